"""Pictures that were drawn in ComfyUI with hnetkit's nodes: names, strengths, windows and order are read back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hnetkit.comfyui.nodes import NODES
from hnetkit.prompts import comfyui
from hnetkit.prompts.comfyui.nodes import WIDGETS
from hnetkit.prompts.tags import split_tags

Graph = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(*loaders: dict[str, Any], text: Any = "a castle") -> Graph:
    """Returns a graph with loaders in a row between checkpoint and sampler; each gets the model of the one before."""
    nodes: Graph = {"1": node("CheckpointLoaderSimple", ckpt_name="demo.safetensors")}
    before = "1"
    for number, loader in enumerate(loaders, 10):
        nodes[str(number)] = {**loader, "inputs": {**loader["inputs"], "model": [before, 0]}}
        before = str(number)
    nodes["2"] = node("CLIPTextEncode", text=text, clip=["1", 1])
    nodes["3"] = node("CLIPTextEncode", text="blurry", clip=["1", 1])
    nodes["4"] = node("EmptyLatentImage", width=512, height=512, batch_size=1)
    sides = {"model": [before, 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    nodes["5"] = node(
        "KSampler", seed=5, steps=20, cfg=7.0, sampler_name="euler", scheduler="normal", denoise=1.0, **sides
    )
    nodes["6"] = node("VAEDecode", samples=["5", 0], vae=["1", 2])
    nodes["7"] = node("SaveImage", filename_prefix="ComfyUI", images=["6", 0])
    return nodes


def read(nodes: Graph) -> tuple[str, list[str]]:
    """Returns the prompt that is read from a graph, with its tags, and the warnings."""
    read = comfyui.parse(json.dumps(nodes), None)
    assert read is not None
    return read.prompt, list(read.warnings)


def loader(name: str, strength: float, **advanced: Any) -> dict[str, Any]:
    return node("HnetkitHypernetworkLoader", hypernetwork_name=name, strength=strength, **advanced)


def test_the_widgets_that_are_read_are_those_of_the_nodes() -> None:
    widgets = {own.id: tuple(i.name for i in own.inputs if i.type != "MODEL") for own in NODES}
    assert {id: WIDGETS[id] for id in widgets} == widgets


def test_loaders_in_a_row_are_tags_in_their_order() -> None:
    prompt, warnings = read(graph(loader("old/dots.pt", 0.8), loader("ink.safetensors", -0.5)))
    assert prompt.startswith("a castle")
    assert [(tag.name, tag.multiplier) for tag in split_tags(prompt).tags] == [("dots", 0.8), ("ink", -0.5)]
    assert warnings == []


def test_hnetkits_and_comfyuis_loaders_mix() -> None:
    own = node("HypernetworkLoader", hypernetwork_name="wash.pt", strength=0.25)
    prompt, _ = read(graph(loader("dots.pt", 0.8), own, loader("ink.pt", 1)))
    assert [tag.name for tag in split_tags(prompt).tags] == ["dots", "wash", "ink"]


def test_windows_sides_and_blocks_are_in_the_tags() -> None:
    advanced = {"v": 0.5, "start": 0.25, "end": 0.75, "blocks": "down, up_blocks.1", "k": 1.0, "self_attention": 1.0}
    prompt, warnings = read(graph(loader("dots.pt", 0.8, **advanced)))
    (tag,) = split_tags(prompt).tags
    assert str(tag) == "<hypernet:dots:0.8:k=0.8:v=0.4:start=0.25:end=0.75:blocks=down,up_blocks.1>"
    assert warnings == []


def test_a_stack_is_its_slots() -> None:
    slots = {"hypernetwork_1": "dots.pt", "strength_1": 0.8, "hypernetwork_2": "None", "strength_2": 1.0}
    slots |= {"hypernetwork_3": "ink.pt", "strength_3": 0.5}
    prompt, _ = read(graph(node("HnetkitHypernetworkStack", **slots)))
    assert [(tag.name, tag.multiplier) for tag in split_tags(prompt).tags] == [("dots", 0.8), ("ink", 0.5)]


def test_a_prompt_with_tags_is_the_one_that_was_typed() -> None:
    typed = "a castle <hypernet:dots:0.8> in <hypernet:ink:0.5:end=0.5>fog"
    nodes = graph(node("HnetkitHypernetworksFromTags", text=typed), text=["10", 1])
    prompt, warnings = read(nodes)
    assert split_tags(prompt).text.split() == ["a", "castle", "in", "fog"]
    assert [str(tag) for tag in split_tags(prompt).tags] == ["<hypernet:dots:0.8>", "<hypernet:ink:0.5:end=0.5>"]
    assert warnings == []


@pytest.mark.parametrize(
    "advanced", [{"k": 0.5, "cross_attention": 0.5}, {"blocks": "down=0.5"}, {"blocks": "down>, <hypernet:other:1"}]
)
def test_what_no_tag_can_hold_is_not_taken_over_and_said(advanced: dict[str, Any]) -> None:
    prompt, warnings = read(graph(loader("dots.pt", 0.8, **advanced)))
    assert [str(tag) for tag in split_tags(prompt).tags] == ["<hypernet:dots:0.8>"]
    (warning,) = warnings
    assert warning.startswith("not taken over from ComfyUI: HnetkitHypernetworkLoader with ")


def test_nodes_of_tags_in_a_circle_end() -> None:
    nodes = graph(
        node("HnetkitHypernetworksFromTags", text=["11", 1]), node("HnetkitHypernetworksFromTags", text=["10", 1])
    )
    nodes["2"]["inputs"]["text"] = ["11", 1]
    prompt, _ = read(nodes)
    assert split_tags(prompt).tags == ()
