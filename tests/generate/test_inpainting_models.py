"""Models made for inpainting, whose UNets read a mask and a masked picture: wherever a model is, in every form."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.checkpoints import original_tensors, save_checkpoint, save_ckpt, save_configurations
from support.drawing import REQUEST, drawn, one
from support.pipelines import reading, tiny_sd, tiny_sdxl

import hnetkit
from hnetkit.errors import ModelNotUsable
from hnetkit.generate.loading.outline import read_outline
from hnetkit.generate.model import Model, load_model
from hnetkit.generate.request import InitImage, Request, SecondPass
from hnetkit.train.previews import Previews, PreviewSettings

MAKERS = {"sd1": tiny_sd, "sdxl": tiny_sdxl}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models for inpainting in every form, and the configurations of their sizes."""
    place = tmp_path_factory.mktemp("inpainting")
    for kind, make in MAKERS.items():
        pipe = reading(make(), 9)
        pipe.save_pretrained(place / f"{kind}-plain")
        pipe.save_pretrained(place / f"{kind}-inpaint")
        of_class(place / f"{kind}-inpaint", f"StableDiffusion{'XL' * (kind == 'sdxl')}InpaintPipeline")
        save_checkpoint(pipe, place / f"{kind}.safetensors")
        save_ckpt(original_tensors(pipe), place / f"{kind}.ckpt")
    save_configurations(place / "configurations", sd1=tiny_sd(), sdxl=tiny_sdxl())
    return place


@pytest.fixture(autouse=True)
def tiny(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnetkit.generate.loading.checkpoints.CONFIGURATIONS", place / "configurations")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White on the right, and gray between: more than half white in one column, less in another."""
    columns = np.array([0] * 7 + [100, 150] + [255] * 7, np.uint8)
    Image.fromarray(np.tile(columns, (16, 1))).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def of_class(folder: Path, name: str) -> Path:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
    return folder


def loaded(place: Path, form: str) -> Model:
    tokenizer = place / f"{form.partition('.')[0]}-plain" if "." in form else None
    return load_model(place / form, device="cpu", tokenizer=tokenizer)


def second(upscaler: str) -> SecondPass:
    return SecondPass(32, 24, steps=2, denoising=0.6, upscaler=upscaler, prompt="a circle", negative_prompt="")


def modes(photo: Path, mask: Path) -> dict[str, Request]:
    changes: dict[str, dict[str, Any]] = {
        "noise": {},
        "no guidance": {"cfg_scale": 1.0},
        "several prompts": {"prompt": "red AND circle:0.5"},
        "second pass, latent": {"second": second("Latent")},
        "second pass, pixels": {"second": second("Lanczos")},
        "second order": {"sampler": "Heun"},
        "image": {"init_image": InitImage(photo, 0.6)},
        "mask": {"init_image": InitImage(photo, 0.8, mask=mask, mask_blur=0)},
        "mask, inverted": {"init_image": InitImage(photo, 0.8, mask=mask, mask_blur=0, inverted=True)},
        "mask over noise": {"init_image": InitImage(photo, 1.0, mask=mask, content="noise")},
    }
    return {name: replace(REQUEST, **change) for name, change in changes.items()}


@contextmanager
def told(model: Model) -> Iterator[list[torch.Tensor]]:
    """Collects what the UNet reads beside the latents, ``[n, 5, h, w]``."""
    seen: list[torch.Tensor] = []
    handle = model.pipe.unet.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0][:, 4:]))
    yield seen
    handle.remove()


def beside(model: Model, mask: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """A mask and the latents of a picture, ``[1, 5, h, w]``, of values -1 to 1 in pixels."""
    with torch.no_grad():
        latents = model.pipe.vae.encode(picture).latent_dist.mean * model.pipe.vae.config.scaling_factor
    return torch.cat([mask[:, :, ::2, ::2], latents], dim=1)


def gray(model: Model, width: int = 16, height: int = 16) -> torch.Tensor:
    """What a UNet reads where there is no mask: everything is masked, and what is left of the picture is gray."""
    return beside(model, torch.ones(1, 1, height, width), torch.zeros(1, 3, height, width))


def is_like(call: torch.Tensor, expected: torch.Tensor) -> bool:
    return call.shape[2:] == expected.shape[2:] and torch.allclose(call, expected, atol=1e-5)


def assert_told(seen: list[torch.Tensor], *expected: torch.Tensor) -> None:
    """Each call reads one of these, each of them is read, and every image of a call reads the same."""
    found = [[is_like(call, tensor) for tensor in expected] for call in seen]
    assert seen
    assert all(any(row) for row in found)
    assert all(any(row[place] for row in found) for place in range(len(expected)))


# --- what is drawn


@pytest.mark.parametrize("kind", MAKERS)
def test_every_form_of_a_model_draws_the_same_in_every_mode(place: Path, photo: Path, mask: Path, kind: str) -> None:
    forms = (f"{kind}-inpaint", f"{kind}-plain", f"{kind}.safetensors", f"{kind}.ckpt")
    models = [loaded(place, form) for form in forms]
    pictures = {name: {one(model, request) for model in models} for name, request in modes(photo, mask).items()}
    assert {name: len(forms) for name, forms in pictures.items()} == dict.fromkeys(pictures, 1)
    assert len(set.union(*pictures.values())) == len(pictures)
    assert {type(model.pipe).__name__ for model in models} == {
        f"StableDiffusion{'XL' * (kind == 'sdxl')}InpaintPipeline"
    }


def test_a_model_that_makes_nothing_of_mask_and_picture_draws_what_the_plain_one_draws(
    tmp_path: Path, sd: Model, photo: Path, mask: Path
) -> None:
    reading(sd.pipe, 9, ignored=True).save_pretrained(tmp_path / "ignoring")
    ignoring = load_model(tmp_path / "ignoring", device="cpu")
    for name, request in modes(photo, mask).items():
        ours, plain = (np.frombuffer(one(model, request), np.uint8).astype(int) for model in (ignoring, sd))
        assert np.abs(ours - plain).max() <= 1, name


# --- what the UNet is told


@pytest.mark.parametrize("kind", MAKERS)
def test_without_a_mask_everything_is_masked_and_gray(place: Path, photo: Path, mask: Path, kind: str) -> None:
    model = loaded(place, f"{kind}.safetensors")
    for name, request in modes(photo, mask).items():
        if name.startswith("mask"):
            continue
        with told(model) as seen:
            one(model, request)
        both = [gray(model), gray(model, 32, 24)] if request.second else [gray(model)]
        assert_told(seen, *both)


@pytest.mark.parametrize("inverted", [False, True])
def test_under_a_mask_the_picture_is_gray_and_beside_it_as_it_is(
    place: Path, photo: Path, mask: Path, inverted: bool
) -> None:
    model = loaded(place, "sd1-inpaint")
    init = InitImage(photo, 0.8, mask=mask, mask_blur=0, inverted=inverted, content="noise")
    with told(model) as seen:
        one(model, replace(REQUEST, init_image=init))
    picture = torch.tensor(np.asarray(Image.open(photo))).permute(2, 0, 1)[None] / 127.5 - 1
    where = torch.zeros(1, 1, 16, 16)
    where[..., 8:] = 1  # each pixel is masked or not, whichever it is nearer to
    where = 1 - where if inverted else where
    assert_told(seen, beside(model, where, picture * (1 - where)))


def test_a_picture_does_not_depend_on_those_drawn_with_it(place: Path, photo: Path, mask: Path) -> None:
    model = loaded(place, "sd1-inpaint")
    with told(model) as seen:
        for seed in (5, 6):
            one(model, replace(REQUEST, seed=seed, init_image=InitImage(photo, 0.8, mask=mask)))
    assert all(torch.equal(call, seen[0]) for call in seen)


@pytest.mark.usefixtures("here")
def test_grids_and_previews_tell_it_too(place: Path, tmp_path: Path, network_files: Path) -> None:
    model = loaded(place, "sd1-inpaint")
    with told(model) as seen:
        drawn(model, {"strength": (0.5, 1)}, prompt="a dot <hypernet:ink:1>")
        settings = PreviewSettings(prompts=("a red circle",), seeds=(3,), steps=1)
        Previews(model, settings, tmp_path / "previews", "ink").draw(hnetkit.load(network_files / "ink.pt"), 5)
    assert_told(seen, gray(model))


CALLS = {
    "generate/loading/checkpoints.py: predicts_noise",
    "generate/sampling/loop.py: _call",
    "train/step.py: _losses_of",
}
"""Every function that calls a UNet. Each is tested with one for inpainting: a new one needs such a test as well."""


def test_every_call_of_a_unet_is_known() -> None:
    package = Path(hnetkit.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
                if any(call.rpartition(".")[2] == "unet" for call in calls):
                    found.add(f"{path.relative_to(package).as_posix()}: {function.name}")
    assert found == CALLS


# --- other numbers of channels


@pytest.mark.parametrize(
    ("channels", "whose"), [(5, " (depth-to-image)"), (7, " (upscaler)"), (8, " (InstructPix2Pix)"), (12, ""), (3, "")]
)
def test_other_numbers_of_channels_are_refused_alike_before_torch_or_weights_are_needed(
    tmp_path: Path, channels: int, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file.safetensors"
    tiny_sd().save_pretrained(folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": channels}))
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, channels, 3, 3)}
    save_checkpoint(tiny_sd(), file, **first)
    save_ckpt(original_tensors(tiny_sd()) | first, tmp_path / "file.ckpt")
    monkeypatch.setattr("hnetkit.generate.loading.checkpoints.StateDict.part", None)
    readers = (read_outline, partial(load_model, device="cpu"))
    for place, read in product((folder, file, tmp_path / "file.ckpt"), readers):
        with pytest.raises(ModelNotUsable) as refusal:
            read(str(place))
        usable = "4 and, for inpainting, 9 are supported"
        assert str(refusal.value) == f"{place}: its UNet takes {channels} channels{whose}; {usable}"
        assert "made from them for inpainting" in str(refusal.value.hint)


@pytest.mark.parametrize(
    ("kind", "channels"),
    [("Depth2Img", 5), ("Upscale", 7), ("InstructPix2Pix", 8), ("XLInstructPix2Pix", 8), ("3", None)],
)
def test_pipelines_for_other_ends_are_refused_by_their_class(
    place: Path, tmp_path: Path, kind: str, channels: int | None
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": f"StableDiffusion{kind}Pipeline"}))
    says = f"takes {channels} channels" if channels else f"holds a StableDiffusion{kind}Pipeline"
    with pytest.raises(ModelNotUsable, match=says) as refusal:
        load_model(tmp_path, device="cpu")
    assert "made from them for inpainting" in str(refusal.value.hint)


def test_a_pipeline_of_image_to_image_is_one_of_the_same_model(
    sd_folder: Path, tmp_path: Path, sd: Model, photo: Path, mask: Path
) -> None:
    shutil.copytree(sd_folder, tmp_path / "model")
    model = load_model(of_class(tmp_path / "model", "StableDiffusionImg2ImgPipeline"), device="cpu")
    for request in modes(photo, mask).values():
        assert one(model, request) == one(sd, request)


def test_the_refiner_is_refused_alike_as_a_folder(sdxl_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "refiner"
    shutil.copytree(sdxl_folder, folder)
    index = json.loads((of_class(folder, "StableDiffusionXLImg2ImgPipeline") / "model_index.json").read_text())
    none = {part: [None, None] for part in ("text_encoder", "tokenizer")}
    (folder / "model_index.json").write_text(json.dumps(index | none))
    with pytest.raises(ModelNotUsable) as refusal:
        load_model(folder, device="cpu")
    assert str(refusal.value) == f"{folder}: the refiner of SDXL, which draws no picture alone"
