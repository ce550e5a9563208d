"""Three networks by the nodes for ComfyUI on the CPU: what the contexts of a UNet call cost, without the UNet.

python benchmarks/comfyui.py

Contexts are those of Stable Diffusion 1.5 at 256 px with guidance, in fp32, in its 32 attention layers. Against it
stands what ComfyUI's own loader does: each network is applied in each layer, to K and to V, text or not. The plain
modules here are written for this; ComfyUI is not needed, a stand-in calls the nodes. Each round computes both, in turn
the one or the other first. Times are CPU time of one thread.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from machine import conditions, write
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.comfyui import installed, model_of
from support.networks import a1111_network, save_pt

from hnetkit.runtime.layers import Place, find_ldm_layers

COUNT, ROUNDS, STRENGTH = 3, 9, 0.5
WIDTHS = (320, 640, 768, 1280)
KINDS = {"relu [1, 2, 1]": ("relu", (1, 2, 1)), "affine [1, 0.5, 1]": ("linear", (1, 0.5, 1))}
GOALS = {"relu [1, 2, 1]": 0.70, "affine [1, 0.5, 1]": 0.60}
TOLERANCE = 1e-4
TOKENS = {320: 1024, 640: 256, 1280: 64}
"""Tokens of self-attention by width; those in the middle are 16."""

Call: TypeAlias = Callable[[], list[tuple[Tensor, Tensor]]]
"""Returns the contexts of K and V of all layers."""


def unet() -> Any:
    """The layers of SD 1.5's UNet, without memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )


def contexts(places: Mapping[Place, Any]) -> dict[Place, Tensor]:
    """What the layers of one UNet call are given; the text is one tensor."""
    noise = torch.Generator().manual_seed(0)
    text = torch.randn(2, 77, 768, generator=noise)
    return {
        place: text
        if place.kind == "cross"
        else torch.randn(2, 16 if place.block == "middle" else TOKENS[layer.width], layer.width, generator=noise)
        for place, layer in places.items()
    }


def by_nodes(model: Any, files: list[Path], given: Mapping[Place, Tensor]) -> Call:
    """The contexts as the nodes' patches give them, in one call of the UNet each time."""
    from hnetkit.comfyui import NODE_CLASS_MAPPINGS

    assert NODE_CLASS_MAPPINGS is not None
    node: Any = NODE_CLASS_MAPPINGS["HnetkitHypernetworkLoader"]
    for file in files:
        (model,) = getattr(node(), node.FUNCTION)(model=model, hypernetwork_name=file.name, strength=STRENGTH)
    patches = {patch.kind: patch for patch in model.patches()}

    def call() -> list[tuple[Tensor, Tensor]]:
        sigmas = torch.ones(2)
        results = []
        for place, x in given.items():
            options = {"block": (place.block, place.number), "block_index": place.transformer, "sigmas": sigmas}
            _, k, v = patches[place.kind](x, x, x, options)
            results.append((k, v))
        return results

    return call


def plain(contents: list[dict[Any, Any]], given: Mapping[Place, Tensor]) -> Call:
    """The contexts as a loader without a plan gives them."""
    networks = [{width: [module(side, own) for side in own[width]] for width in WIDTHS} for own in contents]

    def call() -> list[tuple[Tensor, Tensor]]:
        results = []
        for x in given.values():
            k = v = x
            for network in networks:
                key, value = network[x.shape[-1]]
                k, v = k + key(k) * STRENGTH, v + value(v) * STRENGTH
            results.append((k, v))
        return results

    return call


def module(side: Mapping[str, Tensor], content: Mapping[Any, Any]) -> nn.Sequential:
    first, last = (name.removesuffix(".weight") for name in side if name.endswith(".weight"))
    activation = {"relu": nn.ReLU, "linear": nn.Identity}[content["activation_func"]]()
    linears = []
    for name in (first, last):
        weight = side[f"{name}.weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": side[f"{name}.bias"]})
        linears.append(linear)
    return nn.Sequential(linears[0], activation, linears[1])


def seconds(call: Call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(ours: Call, theirs: Call) -> dict[str, Any]:
    """CPU seconds of both, interleaved, and their ratio by round."""
    difference = max(
        float((own - other).abs().max())
        for layer, plain_layer in zip(ours(), theirs(), strict=True)
        for own, other in zip(layer, plain_layer, strict=True)
    )
    assert difference <= TOLERANCE, difference
    rounds = []
    for number in range(ROUNDS):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        times = {id(call): seconds(call) for call in order}
        rounds.append((times[id(ours)], times[id(theirs)]))
    ratios = [own / other for own, other in rounds]
    return {
        "hnetkit_ms": round(statistics.median(own for own, _ in rounds) * 1e3, 1),
        "plain_ms": round(statistics.median(other for _, other in rounds) * 1e3, 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "largest_difference": difference,
    }


def main() -> None:
    torch.set_num_threads(1)
    model_unet = unet()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        with installed(folder):
            model = model_of(model_unet)
            given = contexts(find_ldm_layers(model.model.diffusion_model))
            for kind, (activation, structure) in KINDS.items():
                with torch.inference_mode(False):
                    contents = [
                        a1111_network(WIDTHS, structure, activation, seed=seed, scale=0.01) for seed in range(COUNT)
                    ]
                    files = [save_pt(own, folder / f"{activation}{seed}.pt") for seed, own in enumerate(contents)]
                    calls = by_nodes(model, files, given), plain(contents, given)
                result[kind] = {**compare(*calls), "goal": GOALS[kind]}
    write("comfyui", {"networks": COUNT, "layers": len(given), "threads": 1, **result, **conditions("torch")})


if __name__ == "__main__":
    main()
