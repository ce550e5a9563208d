"""Every class of ComfyUI's own nodes, on the way to an image: it is taken over, or said not to be.

`comfyui_nodes.json` lists them: class -> input names with their types, and the types of its outputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hnetkit.prompts import comfyui
from hnetkit.prompts.comfyui.nodes import WIDGETS

CORE: dict[str, tuple[dict[str, str], list[str]]] = json.loads(
    (Path(__file__).parent / "comfyui_nodes.json").read_text(encoding="utf-8")
)
Graph = dict[str, dict[str, Any]]

SOURCES = {
    **{"MODEL": "4", "CLIP": "4", "VAE": "4", "CONDITIONING": "6", "LATENT": "3", "IMAGE": "8", "MASK": "70"},
    **{"CONTROL_NET": "60", "UPSCALE_MODEL": "61", "SIGMAS": "62", "SAMPLER": "63", "NOISE": "64", "GUIDER": "65"},
}
"""Type of a link -> the node in `two_passes` that gives it."""

PLACES = {
    **{"MODEL": ("32", "model"), "CLIP": ("6", "clip"), "VAE": ("80", "vae"), "CONDITIONING": ("32", "positive")},
    **{"LATENT": ("32", "latent_image"), "IMAGE": ("41", "pixels"), "MASK": ("42", "mask"), "INT": ("3", "seed")},
    **{"CONTROL_NET": ("50", "control_net"), "UPSCALE_MODEL": ("43", "upscale_model"), "FLOAT": ("3", "cfg")},
    **{"SIGMAS": ("66", "sigmas"), "SAMPLER": ("66", "sampler"), "NOISE": ("66", "noise"), "GUIDER": ("66", "guider")},
    **{"STRING": ("6", "text"), "BOOLEAN": ("67", "add_noise")},
}
"""Type of an output -> the input in `two_passes` that takes it; a class of other types leads to the image's saver."""

VALUES = {"INT": (7, 9), "FLOAT": (0.5, 0.7), "STRING": ("one", "two"), "BOOLEAN": (True, False)}

OF_A_RUN_IN_PARTS = {"add_noise": ("enable", "disable"), "start_at_step": (0, 3), "end_at_step": (5, 10_000)}
"""Values of ``KSamplerAdvanced``."""

SAY_NOTHING = {
    ("KSamplerAdvanced", "return_with_leftover_noise"),  # said with `end_at_step`, without which it means nothing
    ("CheckpointLoader", "config_name"),
    ("LoadImageMask", "channel"),
    ("SaveImage", "filename_prefix"),
    ("SaveImageAdvanced", "filename_prefix"),
    ("SaveImageAdvanced", "format"),
}
"""Settings of classes that are taken over which do not shape the image, or whose file is named without them."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def two_passes() -> Graph:
    sampled = {"steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal"}
    sides = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]}
    return {
        "3": node("KSampler", seed=3, denoise=1.0, latent_image=["5", 0], **sampled, **sides),
        "4": node("CheckpointLoaderSimple", ckpt_name="v1-5.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "6": node("CLIPTextEncode", text="a cat", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["80", 0]),
        "32": node("KSampler", seed=3, denoise=0.5, latent_image=["3", 0], **sampled, **sides),
        "80": node("VAEDecode", samples=["32", 0], vae=["4", 2]),
        # parts that are off the way until a node is placed
        "41": node("VAEEncode", pixels=["8", 0], vae=["4", 2]),
        "42": node("SetLatentNoiseMask", samples=["3", 0], mask=["70", 0]),
        "43": node("ImageUpscaleWithModel", image=["8", 0], upscale_model=["61", 0]),
        "44": node("VAEEncode", pixels=["43", 0], vae=["4", 2]),
        "50": node("ControlNetApply", conditioning=["6", 0], control_net=["60", 0], image=["70", 0], strength=1.0),
        "60": node("ControlNetLoader", control_net_name="canny.pth"),
        "61": node("UpscaleModelLoader", model_name="4x-UltraSharp.pth"),
        "62": node("BasicScheduler", scheduler="normal", steps=20, denoise=0.5, model=["4", 0]),
        "63": node("KSamplerSelect", sampler_name="euler"),
        "64": node("RandomNoise", noise_seed=3),
        "65": node("CFGGuider", cfg=7.0, **sides),
        "66": node(
            *("SamplerCustomAdvanced",),
            **{"noise": ["64", 0], "guider": ["65", 0], "sampler": ["63", 0], "sigmas": ["62", 0]},
            latent_image=["3", 0],
        ),
        "67": node(
            "SamplerCustom", noise_seed=3, cfg=7.0, sampler=["63", 0], sigmas=["62", 0], latent_image=["3", 0], **sides
        ),
        "70": node("LoadImage", image="edge.png"),
        "90": node("PrimitiveInt", value=1),
    }


WAYS = {
    "41": ("32", "latent_image"),
    "42": ("32", "latent_image"),
    "43": ("44", "pixels"),
    "44": ("32", "latent_image"),
}
WAYS |= {"50": ("32", "positive"), "66": ("80", "samples"), "67": ("80", "samples")}
"""A part that is off the way -> the input that puts it on the way."""


def placed(kind: str, type_: str, **settings: Any) -> Graph:
    """`two_passes` with a node of a class on the way to the image, by its output of one type."""
    graph = two_passes()
    inputs, _ = CORE[kind]
    own = {name: [SOURCES[of], 0] for name, of in inputs.items() if of in SOURCES}
    own |= {name: VALUES.get(of, ("one",))[0] for name, of in inputs.items() if of not in SOURCES}
    graph["100"] = node(kind, **(own | settings))
    id, name = (
        ("80", "samples")
        if "positive" in inputs and type_ == "LATENT" and "seed" in " ".join(inputs)
        else PLACES.get(type_, ("9", "other"))
    )
    graph[id]["inputs"][name] = ["100", 0]
    while id in WAYS:
        onward, name = WAYS[id]
        graph[onward]["inputs"][name] = [id, 0]
        id = onward
    return graph


def told(graph: Graph) -> Any:
    return comfyui.parse(json.dumps(graph))


@pytest.mark.parametrize("kind", CORE)
def test_each_core_node_is_taken_over_or_named(kind: str) -> None:
    linked = {name: ["90", 0] for name, type_ in CORE[kind][0].items() if type_ not in SOURCES}
    for type_ in dict.fromkeys(CORE[kind][1]):
        warnings = " ".join(told(placed(kind, type_, **linked)).warnings)
        assert kind in WIDGETS or kind in warnings, type_


SETTINGS = [
    (kind, name, type_)
    for kind in WIDGETS
    if kind in CORE
    for name, type_ in CORE[kind][0].items()
    if type_ not in SOURCES and (kind, name) not in SAY_NOTHING
]


@pytest.mark.parametrize(("kind", "name", "type_"), SETTINGS)
def test_each_setting_of_a_node_that_is_taken_over_is_told(kind: str, name: str, type_: str) -> None:
    said = [
        [told(placed(kind, output, **{name: value})) for output in CORE[kind][1]]
        for value in OF_A_RUN_IN_PARTS.get(name, VALUES.get(type_, ("one", "two")))
    ]
    assert said[0] != said[1]


def test_the_widgets_of_a_class_are_its_settings() -> None:
    for kind, names in WIDGETS.items():
        if kind in CORE:
            settings = {name for name, type_ in CORE[kind][0].items() if type_ not in SOURCES}
            assert {name for name in names if name} == settings, kind


def test_a_node_that_leads_to_no_image_is_not_named() -> None:
    graph = two_passes()
    graph["100"] = node("FreeU", model=["4", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2)
    assert told(graph) == told(two_passes())
    assert told(graph).warnings == ()
