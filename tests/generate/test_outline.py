"""What is told of a model before it is loaded: the same as afterwards, and which networks are for another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.networks import a1111_network, save_pt

import hnetkit
from hnetkit import settings
from hnetkit.cli import run
from hnetkit.errors import IncompatibleNetwork
from hnetkit.generate.loading.diffusers_folder import CLASSES
from hnetkit.generate.loading.outline import read_outline
from hnetkit.generate.model import load_model
from hnetkit.runtime.layers import contexts_of, find_layers


@pytest.mark.parametrize("kind", ["sd_folder", "sdxl_folder"])
def test_an_outline_says_what_the_loaded_model_says(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    outline, model = read_outline(str(folder)), load_model(folder, device="cpu")
    loaded = contexts_of(model.pipe.unet, find_layers(model.pipe.unet))
    assert outline.size == model.size
    assert outline.defaults == model.defaults
    assert outline.contexts is not None
    assert (outline.contexts.text, outline.contexts.is_sdxl) == (loaded.text, loaded.is_sdxl)
    assert outline.contexts.widths >= loaded.widths


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a library of ``lines`` (SD 1), ``glow`` (SD 2), ``grain`` (SDXL) and ``odd``."""
    monkeypatch.chdir(tmp_path)
    for name, widths in {"lines": (320, 768), "glow": (320, 1024), "grain": (640, 2048), "odd": (8, 12)}.items():
        save_pt(a1111_network(widths, (1, 1)), f"{name}.pt")
    with hnetkit.Library() as found:
        found.scan(".")
    return tmp_path


def model_without_weights(name: str, text_width: int) -> str:
    """A folder that says which model it is; its weights are empty files."""
    unet = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": text_width, "sample_size": 64}
    if text_width == 2048:
        unet["addition_embed_type"] = "text_time"
    Path(name, "unet").mkdir(parents=True)
    index = {part: (library, kinds[0]) for part, (library, kinds) in CLASSES.items() if not part.endswith("_2")}
    Path(name, "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))
    Path(name, "unet", "diffusion_pytorch_model.safetensors").touch()
    Path(name, "unet", "config.json").write_text(json.dumps(unet))
    return name


@pytest.mark.parametrize("way", ["tag", "-n", "file", "hires"])
def test_a_network_is_refused_with_the_cure_where_no_model_is_set(
    way: str, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "tag": ["a castle <hypernet:lines:0.7>"],
        "-n": ["a castle", "-n", "lines:0.7"],
        "file": ["a castle", "-n", "lines.pt"],
        "hires": ["a castle", "--hires-scale", "2", "--hires-prompt", "a <hypernet:lines:1>"],
    }[way]
    assert run(["generate", *arguments]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "Error: lines is for SD 1, and no model is set",
        "Hint: hnetkit config model FOLDER, of SD 1",
    ]


@pytest.mark.parametrize(
    ("name", "width", "says"),
    [
        ("glow", 768, "glow is for SD 2; the model, set, is SD 1"),
        ("grain", 768, "grain is for SDXL; the model, set, is SD 1"),
        ("lines", 1024, "lines is for SD 1; the model, set, is SD 2"),
        ("lines", 2048, "lines is for SD 1; the model, set, is SDXL"),
        ("odd", 768, "odd reaches no layer: its widths are 8, 12, the UNet's are 320, 640, 768, 1280"),
    ],
)
def test_a_network_for_another_base_model_is_refused_before_the_model_is_loaded(
    name: str, width: int, says: str, library: Path
) -> None:
    settings.put("model", model_without_weights("set", width))
    with pytest.raises(IncompatibleNetwork) as caught:
        draw(name)
    assert str(caught.value) == says


def test_a_network_of_the_models_base_reaches_the_loading(library: Path) -> None:
    settings.put("model", model_without_weights("set", 768))
    with pytest.raises(hnetkit.errors.ModelNotUsable, match="cannot be loaded"):
        draw("lines")


def draw(name: str) -> None:
    from hnetkit.generate.model import ModelSource, draw_images
    from hnetkit.generate.options import DrawOptions

    list(draw_images(ModelSource(device="cpu"), f"a castle <hypernet:{name}:0.7>", DrawOptions()))
