"""Loading models: folders, hub ids in the cache, a separate VAE, what saves memory, and what is refused."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import original_tensors, original_vae, save_checkpoint, save_ckpt, save_configurations
from support.pipelines import draw, tiny_sd, tiny_sdxl
from support.stacks import relative
from support.unet_truth import run

import hnetkit
from hnetkit import settings
from hnetkit.errors import HnetkitError, ModelNotUsable, NotFound, OutOfMemory, UsageError
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.backend_errors import translating_oom
from hnetkit.generate.loading.defaults import Defaults
from hnetkit.generate.model import ModelSource, load_model
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
    [
        "{",
        "[]",
        '"x"',
        '{"stepps": 3}',
        '{"steps": 0}',
        '{"width": 20}',
        '{"sampler": "Eulr"}',
        '{"sampler": []}',
        '{"prompts": "a"}',
    ],
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


def _empty_checkpoint(folder: Path) -> Path:
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
        (_empty_checkpoint, "no Stable Diffusion checkpoint"),
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


def test_an_address_in_place_of_a_model_is_refused_without_what_is_secret_in_it() -> None:
    with pytest.raises(NotFound, match="an address") as refusal:
        load_model("https://user:password@example.org/ink.safetensors?signature=abc")
    assert "password" not in f"{refusal.value}{refusal.value.hint}"
    assert "abc" not in f"{refusal.value}{refusal.value.hint}"


def test_a_hub_id_that_is_out_of_reach_says_so() -> None:
    with pytest.raises(HnetkitError, match="somebody/nothing: no folder here, and the hub"):
        load_model("somebody/nothing")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("{folder}/anithing-v3", "{folder}/anything-v3.ckpt"),
        ("{folder}/anything-v3.safetensors", "{folder}/anything-v3.ckpt"),
        ("{folder}/tiny-sdd", "{folder}/tiny-sd"),
        ("somebody/tiny-xll", "somebody/tiny-xl"),
        ("tiny-xll", "somebody/tiny-xl"),
    ],
)
def test_an_unknown_model_has_the_nearest_names_and_nothing_is_loaded(
    sd_folder: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, meant: str
) -> None:
    put_into_cache(hub_cache, "somebody/tiny-xl", sd_folder)
    shutil.copytree(sd_folder, tmp_path / "tiny-sd")
    (tmp_path / "anything-v3.ckpt").touch()
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", None)
    with pytest.raises(HnetkitError, match=r"no such file or folder|no folder here") as refusal:
        load_model(asked.format(folder=tmp_path))
    assert re.match(rf"did you mean {re.escape(meant.format(folder=tmp_path))}(\?| or )", str(refusal.value.hint))


# --- a separate VAE


@pytest.fixture
def other_vae() -> Any:
    return tiny_sd(seed=9).vae


def _original(vae: Any, folder: Path) -> Path:
    tensors = {f"first_stage_model.{name}": tensor.contiguous() for name, tensor in original_vae(vae).items()}
    save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


def _original_without_prefix(vae: Any, folder: Path) -> Path:
    return save_ckpt(original_vae(vae) | {"loss.logvar": torch.zeros(())}, folder / "a.vae.pt")


def _whole_checkpoint(vae: Any, folder: Path) -> Path:
    return save_checkpoint(tiny_sd(seed=9), folder / "whole.safetensors")


def _diffusers_layout(vae: Any, folder: Path) -> Path:
    torch.save(vae.state_dict(), folder / "diffusion_pytorch_model.bin")
    return folder / "diffusion_pytorch_model.bin"


def _diffusers_layout_of_old(vae: Any, folder: Path) -> Path:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = vae.state_dict()
    for ours, old in names.items():
        tensors = {name.replace(f".{ours}.", f".{old}."): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "old.safetensors")
    return folder / "old.safetensors"


def _vae_folder(vae: Any, folder: Path) -> Path:
    vae.save_pretrained(folder)
    return folder


def _pipeline_folder(vae: Any, folder: Path) -> Path:
    vae.save_pretrained(folder / "vae")
    return folder


VAES = (
    *(_original, _original_without_prefix, _whole_checkpoint, _diffusers_layout, _diffusers_layout_of_old),
    *(_vae_folder, _pipeline_folder),
)


@pytest.mark.parametrize("make", VAES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_separate_vae_takes_the_place_of_the_models_own(
    sd_folder: Path, tmp_path: Path, other_vae: Any, make: Any, dtype: str
) -> None:
    vae = load_model(sd_folder, device="cpu", dtype=dtype, vae=make(other_vae, tmp_path)).pipe.vae
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    expected = other_vae.state_dict()
    assert all(torch.equal(tensor, expected[name].to(kind)) for name, tensor in vae.state_dict().items())


@pytest.mark.parametrize("inside", ["", "vae"])
def test_a_separate_vae_comes_from_the_hubs_cache(
    sd_folder: Path, hub_cache: Path, other_vae: Any, inside: str
) -> None:
    folder = put_into_cache(hub_cache, "somebody/vae", sd_folder)
    shutil.rmtree(folder / "vae")
    other_vae.save_pretrained(folder / inside)
    vae = load_model(sd_folder, device="cpu", vae="somebody/vae").pipe.vae
    assert torch.equal(vae.decoder.conv_in.weight, other_vae.decoder.conv_in.weight)


def test_a_checkpoint_without_a_vae_draws_with_another(
    sd_folder: Path, tmp_path: Path, other_vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configurations = save_configurations(tmp_path / "configurations", sd1=tiny_sd())
    monkeypatch.setattr("hnetkit.generate.loading.checkpoints.CONFIGURATIONS", configurations)
    tensors = {k: t for k, t in original_tensors(tiny_sd()).items() if not k.startswith("first_stage_model.")}
    path = save_ckpt(tensors, tmp_path / "model.ckpt")
    model = load_model(path, device="cpu", tokenizer=sd_folder, vae=_original(other_vae, tmp_path))
    assert torch.equal(model.pipe.vae.decoder.conv_in.weight, other_vae.decoder.conv_in.weight)


def test_what_is_no_vae_is_refused(sd_folder: Path, tmp_path: Path, other_vae: Any) -> None:
    save_file({"lora_unet.lora_up.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    for place, says in (
        (tmp_path / "lora.safetensors", "no autoencoder"),
        (sd_folder / "tokenizer", "no autoencoder"),
        (sd_folder / "unet", "cannot be loaded|lacks"),
        ("somebody/absent", "somebody/absent: no folder here"),
        (tmp_path / "absent.vae.pt", "no such file or folder"),
    ):
        with pytest.raises(HnetkitError, match=says):
            load_model(sd_folder, device="cpu", vae=place)
    other = type(other_vae).from_config({**other_vae.config, "latent_channels": 16})
    with pytest.raises(ModelNotUsable, match="16 channels; the model has 4"):
        load_model(sd_folder, device="cpu", vae=_vae_folder(other, tmp_path / "sixteen"))
    of_sdxl = _vae_folder(other_vae, tmp_path / "of-sdxl")
    stated = json.loads((of_sdxl / "config.json").read_text())
    (of_sdxl / "config.json").write_text(json.dumps({**stated, "scaling_factor": 0.13025}))
    with pytest.raises(ModelNotUsable, match=r"another base model .*0[.]13025, the model's by"):
        load_model(sd_folder, device="cpu", vae=of_sdxl)
    whole = save_checkpoint(tiny_sdxl(), tmp_path / "sdxl.safetensors")
    with pytest.raises(ModelNotUsable, match=r"sdxl[.]safetensors: an autoencoder of another base model .*0[.]13025"):
        load_model(sd_folder, device="cpu", vae=whole)


# --- speed and memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="tries what is said without a GPU, and there is one")
def test_a_device_that_is_not_there_is_a_usage_error(sd_folder: Path) -> None:
    with pytest.raises(UsageError, match="--device cuda"):
        load_model(sd_folder, device="cuda")


def test_offload_needs_cuda(sd_folder: Path) -> None:
    with pytest.raises(UsageError, match="--offload moves parts off a CUDA device; this runs on cpu"):
        load_model(sd_folder, device="cpu", offload=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offload_draws_the_same_picture(sd_folder: Path, network_files: Path) -> None:
    pipes = [load_model(sd_folder, device="cuda", offload=offload).pipe for offload in (False, True)]
    for pipe in pipes:
        hnetkit.load_hypernetwork(pipe, network_files / "ink.pt", strength=0.8)
    assert torch.equal(*(draw(pipe) for pipe in pipes))
    assert pipes[1].vae.device.type == "cpu"


def test_sliced_attention_draws_the_same_picture_with_a_network(sd_folder: Path, network_files: Path) -> None:
    whole, sliced = (load_model(sd_folder, device="cpu", attention_slicing=on).pipe for on in (False, True))
    kinds = {type(processor).__name__ for processor in sliced.unet.attn_processors.values()}
    assert kinds == {"SlicedAttnProcessor"}
    bare = draw(whole)
    for pipe in (whole, sliced):
        hnetkit.load_hypernetwork(pipe, network_files / "ink.pt", strength=0.8)
    assert relative(draw(sliced), draw(whole)) < 1e-4 < relative(draw(sliced), bare)


@pytest.mark.filterwarnings("ignore:hnetkit dropped:UserWarning")
def test_a_compiled_unet_sees_networks_before_and_after_its_first_call(
    tmp_path: Path, network_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # traced as for any backend, and run as it is: compiling would take a minute
    in_place = functools.partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", in_place)
    torch.compiler.reset()
    tiny_sd(least=True).save_pretrained(tmp_path / "least")
    plain = load_model(tmp_path / "least", device="cpu").pipe
    pipe = load_model(tmp_path / "least", device="cpu", compiled=True).pipe
    bare = run(plain)
    for one in (plain, pipe):
        hnetkit.load_hypernetwork(one, network_files / "ink.pt", strength=0.8)
    before = run(pipe)
    assert relative(before, run(plain)) <= 1e-6 < relative(before, bare)
    for one in (plain, pipe):
        hnetkit.load_hypernetwork(one, network_files / "mist.pt", strength=0.8)
    after = run(pipe)
    assert relative(after, run(plain)) <= 1e-6 < relative(after, before)
    hnetkit.unload_hypernetworks(pipe)
    assert torch.equal(run(pipe), bare)
    torch.compiler.reset()


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
        RuntimeError("Invalid buffer size: 58.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_switch_on(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_config", Mock(side_effect=error))
    with pytest.raises(OutOfMemory, match=r"not enough memory for loading .*tiny-sd") as refusal:
        load_model(sd_folder, device="cpu")
    for option in ("--offload", "--attention-slicing", "--dtype fp16", "--size", "--batch-size 1"):
        assert option in str(refusal.value.command_hint)
    for argument in ("offload=True", "attention_slicing=True", 'dtype="fp16"', "width= and height=", "batch_size=1"):
        assert argument in str(refusal.value.hint)


def test_a_real_allocation_that_is_too_large_is_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match="not enough memory for a picture"), translating_oom("a picture"):
        torch.empty(1 << 60)
    with pytest.raises(RuntimeError, match="must match"), translating_oom("a picture"):
        torch.zeros(2) + torch.zeros(3)


@pytest.mark.parametrize(
    ("file", "changed", "said"),
    [
        ("unet/config.json", {"time_cond_proj_dim": 8}, "takes the CFG scale"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "noise of EDM"),
        ("model_index.json", {"scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"]}, "noise of EDM"),
        ("vae/config.json", {"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4}, "latents_mean"),
    ],
)
def test_folders_that_draw_in_another_way_are_refused(
    sd_folder: Path, tmp_path: Path, file: str, changed: dict[str, Any], said: str
) -> None:
    folder = shutil.copytree(sd_folder, tmp_path / "model")
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changed))
    with pytest.raises(ModelNotUsable, match=said):
        load_model(folder, device="cpu")


def test_the_autoencoder_of_the_settings_goes_with_their_model_alone(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_sd(seed=9).vae.save_pretrained(tmp_path / "V")
    other = shutil.copytree(sd_folder, tmp_path / "other")
    settings.put("vae", "V")
    assert ModelSource().own_vae is None  # the bundled model
    settings.put("model", str(sd_folder))
    for place in (None, sd_folder, os.path.relpath(sd_folder), f"{sd_folder}/"):
        assert ModelSource(place).own_vae == str(tmp_path / "V")
    assert ModelSource(other).own_vae is None
    assert ModelSource(other, vae="W").own_vae == "W"
