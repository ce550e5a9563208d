"""Loading models: folders, hub ids in the cache, checkpoints, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_checkpoint
from pipelines import tiny_sd
from safetensors.torch import save_file

from hnetkit.errors import HnetkitError, ModelNotUsable, NotFound, UsageError
from hnetkit.formats.source import OpenFile
from hnetkit.generate.model import Defaults, load_model
from hnetkit.hashes import sha256_of


def test_a_folder_loads_in_its_dtype_with_the_hash_of_its_unet(sd_folder: Path) -> None:
    model = load_model(sd_folder, device="cpu", dtype="bf16")
    parts = (model.pipe.unet, model.pipe.vae, model.pipe.text_encoder)
    assert {tensor.dtype for part in parts for tensor in part.parameters()} == {torch.bfloat16}
    assert (model.name, model.size, model.defaults) == ("tiny-sd", (16, 16), Defaults())
    weights = sd_folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert model.hash == sha256_of(OpenFile(weights))[:10]


def test_sdxl_is_told_from_its_folder(sdxl_folder: Path) -> None:
    assert type(load_model(sdxl_folder, device="cpu").pipe).__name__ == "StableDiffusionXLPipeline"


def test_loading_says_nothing(sd_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(sd_folder, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_half_precision_files_load_where_there_are_no_others(sd_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(sd_folder, folder)
    for path in [*folder.rglob("diffusion_pytorch_model.safetensors"), *folder.rglob("model.safetensors")]:
        path.rename(path.with_suffix(".fp16.safetensors"))
    model = load_model(folder, device="cpu")
    assert model.weights.name == "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of hub models."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def put_into_cache(cache: Path, hub_id: str, folder: Path) -> Path:
    """Puts a model where the hub's own downloads put it; returns that folder."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return Path(shutil.copytree(folder, repository / "snapshots" / ("0" * 40)))


def test_a_hub_id_loads_from_the_cache_without_a_network(sd_folder: Path, hub_cache: Path) -> None:
    put_into_cache(hub_cache, "somebody/tiny-sd", sd_folder)
    model = load_model("somebody/tiny-sd", device="cpu")
    assert (model.name, model.size) == ("tiny-sd", (16, 16))


def test_a_checkpoint_in_one_file_loads_every_weight(sd_folder: Path, hub_cache: Path, tmp_path: Path) -> None:
    put_into_cache(hub_cache, "stable-diffusion-v1-5/stable-diffusion-v1-5", sd_folder)
    pipe = tiny_sd(seed=3)
    path = save_checkpoint(pipe, tmp_path / "model.safetensors")
    model = load_model(path, device="cpu")
    for ours, theirs in ((model.pipe.unet, pipe.unet), (model.pipe.vae, pipe.vae)):
        expected = theirs.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert model.pipe.safety_checker is None
    assert (model.name, model.hash) == ("model", sha256_of(OpenFile(path))[:10])


def test_a_checkpoint_whose_configuration_is_not_here_says_where_it_comes_from(hub_cache: Path, tmp_path: Path) -> None:
    path = save_checkpoint(tiny_sd(), tmp_path / "model.safetensors")
    with pytest.raises(ModelNotUsable, match="cannot be loaded") as refusal:
        load_model(path, device="cpu")
    assert "go online once" in str(refusal.value.hint)


def test_a_folders_own_defaults_are_read(sd_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd_folder, folder)
    said = {"cfg_scale": 4, "steps": 3, "width": 24, "height": 8, "sampler": "DDIM", "prompts": ["a"]}
    (folder / "hnetkit.json").write_text(json.dumps(said))
    model = load_model(folder, device="cpu")
    assert model.defaults == Defaults(4, 3, "DDIM", 24, 8, ("a",))
    assert model.size == (24, 8)


@pytest.mark.parametrize(
    "said",
    ["{", "[]", '"x"', '{"stepps": 3}', '{"steps": 0}', '{"width": 20}', '{"sampler": "Eulr"}', '{"prompts": "a"}'],
)
def test_defaults_that_cannot_be_meant_are_refused_by_name(sd_folder: Path, tmp_path: Path, said: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd_folder, folder)
    (folder / "hnetkit.json").write_text(said)
    with pytest.raises(ModelNotUsable, match=r"hnetkit\.json"):
        load_model(folder, device="cpu")


def _no_index(folder: Path) -> Path:
    (folder / "model_index.json").unlink()
    return folder


def _other_pipeline(folder: Path) -> Path:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    return folder


def _pickled_only(folder: Path) -> Path:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    return folder


def _pickled_vae(folder: Path) -> Path:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save({"a": torch.zeros(1)}, path.with_suffix(".bin"))
    path.unlink()
    return folder


def _cut_short(folder: Path) -> Path:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    return folder


def _pickled_checkpoint(folder: Path) -> Path:
    torch.save({"state_dict": {}}, folder / "model.ckpt")
    return folder / "model.ckpt"


def _other_safetensors(folder: Path) -> Path:
    save_file({"lora_unet.lora_up.weight": torch.zeros(2)}, folder / "lora.safetensors")
    return folder / "lora.safetensors"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_no_index, "no model_index.json"),
        (_other_pipeline, "holds a FluxPipeline"),
        (_pickled_only, "no .safetensors weights"),
        (_pickled_vae, "cannot be loaded"),
        (_cut_short, "cannot be loaded"),
        (_pickled_checkpoint, "a pickled checkpoint"),
        (_other_safetensors, "no Stable Diffusion checkpoint"),
    ],
)
def test_what_is_no_usable_model_is_refused_in_one_line(sd_folder: Path, tmp_path: Path, make: Any, says: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd_folder, folder)
    place = make(folder)
    with pytest.raises(ModelNotUsable, match=says) as refusal:
        load_model(place, device="cpu")
    assert str(place) in str(refusal.value)
    assert refusal.value.hint


@pytest.mark.parametrize("place", ["./absent", "absent", "a/b/c", "/absent/model", "models/absent.safetensors"])
def test_what_is_not_there_is_not_found(place: str) -> None:
    with pytest.raises(NotFound, match="no such file or folder"):
        load_model(place)


def test_a_hub_id_that_is_out_of_reach_says_so() -> None:
    with pytest.raises(HnetkitError, match="somebody/nothing: no folder here, and the hub"):
        load_model("somebody/nothing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_a_usage_error(sd_folder: Path) -> None:
    with pytest.raises(UsageError, match="--device cuda"):
        load_model(sd_folder, device="cuda")
