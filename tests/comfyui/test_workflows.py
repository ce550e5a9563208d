"""The workflows of docs/workflows: both forms are one workflow, and it predicts what its numbers say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.comfyui import Model
from torch import Tensor

import hnetkit
from hnetkit import demo
from hnetkit.comfyui import NODE_CLASS_MAPPINGS
from hnetkit.prompts import comfyui

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOWS = REPOSITORY / "docs" / "workflows"
NETWORKS = {"ink": "outline", "glow": "dots", "paper": "paper"}
"""Names in the workflows -> bundled networks."""

TOLERANCE = 2e-6
Graph = dict[str, dict[str, Any]]


@pytest.fixture(params=sorted(path.stem for path in WORKFLOWS.glob("*.json") if not path.stem.endswith("_api")))
def name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def api(name: str) -> Graph:
    graph: Graph = json.loads((WORKFLOWS / f"{name}_api.json").read_text())
    return graph


@pytest.fixture
def networks(folder: Path) -> Path:
    for name, bundled in NETWORKS.items():
        shutil.copy(demo.network_folder() / f"{bundled}.pt", folder / f"{name}.pt")
    return folder


def inputs_of(kind: str) -> dict[str, Any]:
    assert NODE_CLASS_MAPPINGS is not None
    groups = NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()  # type: ignore[attr-defined]
    return {**groups["required"], **groups["optional"]}


def ours(graph: Graph) -> Graph:
    return {number: node for number, node in graph.items() if node["class_type"].startswith("Hnetkit")}


def computed(graph: Graph, model: Model) -> dict[tuple[str, int], Any]:
    """Runs our nodes in the order of their wires; all other models are `model`."""
    outputs: dict[tuple[str, int], Any] = {}
    waiting = ours(graph)
    while waiting:
        for number, node in list(waiting.items()):
            wires = {key: tuple(own) for key, own in node["inputs"].items() if isinstance(own, list)}
            if any(source in waiting for source, _ in wires.values()):
                continue
            given = {**node["inputs"], **{key: outputs.get(wire, model) for key, wire in wires.items()}}
            kind: Any = (NODE_CLASS_MAPPINGS or {})[node["class_type"]]
            for place, value in enumerate(getattr(kind(), kind.FUNCTION)(**given)):
                outputs[number, place] = value
            del waiting[number]
    return outputs


def test_a_workflow_gives_every_input_that_its_nodes_have(api: Graph, networks: Path) -> None:
    assert ours(api)
    for node in ours(api).values():
        assert list(node["inputs"]) == list(inputs_of(node["class_type"]))


def test_both_forms_are_one_workflow(name: str, api: Graph, networks: Path) -> None:
    editor = json.loads((WORKFLOWS / f"{name}.json").read_text())
    links = {link[0]: (str(link[1]), link[2]) for link in editor["links"]}
    assert {str(node["id"]): node["type"] for node in editor["nodes"]} == {
        number: node["class_type"] for number, node in api.items()
    }
    for node in editor["nodes"]:
        given = api[str(node["id"])]["inputs"]
        wires = {own["name"]: links[own["link"]] for own in node["inputs"] if own["link"] is not None}
        assert wires == {key: tuple(own) for key, own in given.items() if isinstance(own, list)}
        if node["type"].startswith("Hnetkit"):
            widgets = [own["name"] for own in node["inputs"] if "widget" in own]
            assert dict(zip(widgets, node["widgets_values"], strict=True)) == {
                key: own for key, own in given.items() if not isinstance(own, list)
            }


def test_a_picture_of_a_workflow_is_read_by_hnetkit(name: str, api: Graph) -> None:
    drawn = (WORKFLOWS / f"{name}.json").read_text()
    for read in (comfyui.parse(json.dumps(api), None), comfyui.parse(None, drawn)):
        assert read.prompt == (
            "a castle by the sea  , morning light"
            "<hypernet:paper:0.6:self=0.3:cross=0.6:end=0.7><hypernet:ink:0.8><hypernet:glow:-0.3>"
            "<hypernet:glow:0.5:start=0.4>"
        )
        assert [warning for warning in read.warnings if "blocks down, mid, up_blocks.1=0.5" not in warning] == []


def test_the_workflow_of_three_nodes_predicts_what_its_numbers_say(
    networks: Path, model: Model, step: tuple[Tensor, Tensor, Tensor], expected: Callable[..., Tensor]
) -> None:
    graph: Graph = json.loads((WORKFLOWS / "hypernetworks_api.json").read_text())
    outputs = computed(graph, model)
    last = outputs[tuple(graph["8"]["inputs"]["model"])]
    assert outputs[tuple(graph["5"]["inputs"]["text"])] == "a castle by the sea , morning light"
    blocks = {"": 0.0, "down_blocks": 1.0, "mid_block": 1.0, "up_blocks.1": 0.5}
    paper = hnetkit.Strength(self_k=0.3, self_v=0.3, cross_k=0.6, cross_v=0.6, blocks=blocks)
    row = [(networks / "paper.pt", paper), (networks / "ink.pt", 0.8), (networks / "glow.pt", -0.3)]
    glow = [(networks / "glow.pt", 0.5)]
    for sigma, wanted in ((14.6, row), (2.1, row + glow), (0.7, row[1:] + glow)):
        schedule = torch.tensor([14.6, 6.2, 2.1, 0.7, 0.0])
        latents, timesteps, text = step
        options = {"sigmas": torch.full((2,), sigma), "sample_sigmas": schedule}
        last.load()
        with torch.inference_mode():
            got = last(latents, timesteps, text, **options)
        assert float((got - expected(*wanted)).abs().max()) <= TOLERANCE
