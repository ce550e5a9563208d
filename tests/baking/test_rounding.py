"""Errors are those of the file: after its numbers were rounded, alone or in a sum with the model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import original_tensors, save_ckpt, save_configurations
from support.pipelines import tiny_sd

import hnetkit
from hnetkit.baking.api import bake
from hnetkit.errors import FileRefused, TooInexact, UsageError
from hnetkit.generate.loading.baked import METADATA
from hnetkit.generate.model import load_model
from hnetkit.network import Hypernetwork

FEW: dict[str, Any] = {"prompts": ["a red circle", "a blue star", "a green square", "a black star"], "steps": 1}


@pytest.fixture
def coarse(tmp_path: Path) -> Any:
    """A model that runs in fp32, and whose files are in bf16."""
    tiny_sd().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    return load_model(tmp_path / "model", device="cpu", dtype="fp32")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "unet").glob("*.safetensors")
    return {name: tensor.double() for name, tensor in load_file(file).items()}


def test_the_error_of_a_checkpoint_is_that_of_the_weights_that_were_written(
    coarse: Any, tint: Hypernetwork, tmp_path: Path
) -> None:
    hnetkit.load_hypernetwork(coarse.pipe, tint, "tint", 0.02)
    baked = bake(coarse, to="checkpoint", compare=True, steps=2)
    before, after = weights(tmp_path / "model"), weights(baked.save(tmp_path / "copy"))
    for (layer, side), change in baked.changes.items():
        name = f"{layer.name}.to_{side}"
        added = after[f"{name}.weight"] - before[f"{name}.weight"]
        error = (added - change.matrix).norm() / change.matrix.norm()
        assert change.origin == "exact"
        assert baked.errors[name] == pytest.approx(float(error), rel=1e-6)
    assert max(baked.errors.values()) > 0.03
    assert baked.record["dtype"] == "bf16"
    hnetkit.disable_hypernetworks(coarse.pipe)
    shown = baked.pictures.shown[0]
    (picture,) = load_model(tmp_path / "copy", device="cpu", dtype="fp32").draw(shown.prompt, seed=shown.seed, steps=2)
    pixels = torch.frombuffer(bytearray(picture.image.tobytes()), dtype=torch.uint8)
    assert torch.equal((baked.pictures.baked[0].permute(1, 2, 0) * 255).round().to(torch.uint8).flatten(), pixels)
    hnetkit.enable_hypernetworks(coarse.pipe)
    with pytest.raises(TooInexact, match=r"relative error of 0\.\d+, above 0.01") as refusal:
        bake(coarse, to="checkpoint", max_error=0.01)
    assert refusal.value.command_hint == "rounding alone makes it: a model in fp32"


def test_what_is_added_alone_loses_little(coarse: Any, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(coarse.pipe, tint, "tint", 0.02)
    errors = bake(coarse, to="diff", program="comfyui", dtype="bf16").errors.values()
    assert 0 < max(errors) < 2**-8
    with pytest.raises(TooInexact) as refusal:
        bake(coarse, to="diff", program="comfyui", dtype="bf16", max_error=1e-4)
    assert refusal.value.command_hint == "--file-dtype fp32"
    assert set(bake(coarse, to="diff", program="comfyui").errors.values()) == {0.0}


def test_a_fit_is_measured_after_rounding_too(coarse: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(coarse.pipe, ink, "ink", 0.02)
    exact = bake(coarse, to="diff", program="comfyui", **FEW).errors
    rounded = bake(coarse, to="checkpoint", **FEW).errors
    assert exact.keys() == rounded.keys()
    assert all(rounded[name] > error for name, error in exact.items())
    lora = bake(coarse, max_error=max(exact.values()) + 0.05, dtype="bf16", program="comfyui", **FEW)
    assert max(lora.errors.values()) <= max(exact.values()) + 0.05


@pytest.mark.parametrize(("to", "program"), [("lora", "comfyui"), ("diff", "comfyui"), ("checkpoint", None)])
def test_what_does_not_fit_the_type_of_the_file_is_refused(
    to: Any, program: Any, tint: Hypernetwork, tmp_path: Path
) -> None:
    tiny_sd(least=True).to(torch.float16).save_pretrained(tmp_path / "model")
    model: Any = load_model(tmp_path / "model", device="cpu", dtype="fp32")
    hnetkit.load_hypernetwork(model.pipe, tint, "tint", 1e8)
    with pytest.raises(FileRefused, match="to_k: a value does not fit fp16"):
        bake(model, to=to, program=program, dtype="fp16", max_error=0.1)


def test_a_model_that_cannot_be_copied_is_refused_before_anything_is_drawn(
    ink: Hypernetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = save_configurations(tmp_path / "configurations", sd1=(pipe := tiny_sd()))
    monkeypatch.setattr("hnetkit.generate.loading.checkpoints.CONFIGURATIONS", kinds)
    pipe.tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = save_ckpt(original_tensors(pipe), tmp_path / "model.ckpt")
    model: Any = load_model(path, device="cpu", tokenizer=tmp_path)
    hnetkit.load_hypernetwork(model.pipe, ink, "ink")
    drawn: list[object] = []
    with pytest.raises(UsageError, match=r"copies are made of .safetensors files alone"):
        bake(model, to="checkpoint", **FEW, progress=lambda done, total: drawn.append(done))
    assert drawn == []


def test_networks_that_change_nothing_have_a_record_that_is_json(coarse: Any, make: Any) -> None:
    hnetkit.load_hypernetwork(coarse.pipe, make("blank", activation=None, scale=0.0), "blank")
    baked = bake(coarse, to="diff", program="comfyui", compare=True)
    assert (baked.record["pictures"]["share"], baked.record["pictures"]["psnr"]) == (None, None)
    json.loads(baked.metadata[METADATA], parse_constant=pytest.fail)
    assert str(baked.pictures.errors) == "the networks change nothing, equal"
