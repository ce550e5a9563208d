"""The bundled model draws what its prompts say, and its styles are what their names say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_training import evaluate, pictures
from demo_training.checker import read, score_styles
from demo_training.sampling import open_pipeline

import hnetkit
from hnetkit import demo

LIMIT_BYTES = 12_000_000
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return open_pipeline(demo.model_folder())


def scale() -> float:
    return float(json.loads((demo.model_folder() / "hnetkit.json").read_text())["cfg_scale"])


def draw(pipe: Any, captions: list[pictures.Caption]) -> torch.Tensor:
    return evaluate.draw(pipe, captions, scale())


def some_captions(count: int) -> list[pictures.Caption]:
    return pictures.all_captions()[:: 360 // count][:count]


def test_the_demo_is_small_enough_to_be_in_the_package() -> None:
    folder = Path(demo.__file__).parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LIMIT_BYTES


def test_the_networks_have_different_builds_and_one_is_affine() -> None:
    nets = {stem: hnetkit.load(path) for stem, path in demo.networks().items()}
    assert {"outline", "dots"} < nets.keys()
    assert len({(tuple(net.layer_structure), net.activation) for net in nets.values()}) == len(nets) >= 3
    assert sum(net.is_affine for net in nets.values()) == 1
    assert {net.metadata["sd_checkpoint_name"] for net in nets.values()} == {"hnetkit-demo"}


def test_a_dozen_prompts_are_drawn_as_they_say(pipe: Any) -> None:
    captions = some_captions(12)
    right = [read(picture).agrees(caption) for picture, caption in zip(draw(pipe, captions), captions, strict=True)]
    assert sum(right) >= 11


def test_strength_0_is_the_picture_without_a_network_bit_for_bit(pipe: Any) -> None:
    captions = some_captions(2)
    plain = draw(pipe, captions)
    with hnetkit.applied(pipe, {}):
        hnetkit.load_hypernetwork(pipe, demo.networks()["outline"], name="outline")
        hnetkit.set_hypernetworks(pipe, ["outline"], [0.0])
        assert torch.equal(draw(pipe, captions), plain)
        hnetkit.set_hypernetworks(pipe, ["outline"], [1.0])
        assert not torch.equal(draw(pipe, captions), plain)
    hnetkit.unload_hypernetworks(pipe)
    assert torch.equal(draw(pipe, captions), plain)


@pytest.mark.parametrize("name", pictures.STYLES)
def test_a_style_shows_in_the_picture(pipe: Any, name: str) -> None:
    captions = some_captions(6)
    before = [score_styles(p, c.colour)[name] for p, c in zip(draw(pipe, captions), captions, strict=True)]
    hnetkit.load_hypernetwork(pipe, demo.networks()[name], name=name)
    after = [score_styles(p, c.colour)[name] for p, c in zip(draw(pipe, captions), captions, strict=True)]
    hnetkit.unload_hypernetworks(pipe)
    assert sum(b < a for b, a in zip(before, after, strict=True)) >= 5


def test_the_committed_record_is_of_this_demo_and_as_good_as_the_long_tests_ask() -> None:
    record = json.loads((REPOSITORY / "benchmarks" / "results" / "demo_model.json").read_text())
    for path in demo.networks().values():
        assert record["bytes"][path.name] == path.stat().st_size
    assert record["model"]["colour and shape"] >= 0.95
    require_good_styles(record)


def require_good_styles(record: Any) -> None:
    for style in record["styles"].values():
        assert style["rises over 0, 0.5, 1"] >= 0.8
        assert min(style["readable"].values()) >= 0.8
    for stack in record["stacks"].values():
        assert min(stack["kept"].values()) >= 0.5


@pytest.mark.long
def test_every_prompt_with_three_seeds_is_drawn_as_it_says(pipe: Any) -> None:
    assert evaluate.check_model(pipe, scale())["colour and shape"] >= 0.95


@pytest.mark.long
def test_styles_rise_stay_readable_and_keep_half_of_themselves_in_stacks(pipe: Any) -> None:
    record: Any = evaluate.StyleCheck(pipe, Path(demo.__file__).parent, scale()).record()
    require_good_styles(record)
