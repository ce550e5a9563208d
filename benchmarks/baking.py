"""What fitting loses: the bundled networks as LoRAs of several ranks, on prompts and seeds that nothing was fitted on.

python benchmarks/baking.py

For each stack: relative errors of K and V by kind of layer, and the error of pictures as a share of what the networks
change, with the PSNR; beside it the same for the SVD of the fitted weights, which knows nothing of contexts. Seeds are
fixed; pictures are drawn with the bundled model's defaults but for the number of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import count
from typing import Any

import torch
from machine import conditions, write

import hnetkit
from hnetkit import demo
from hnetkit.baking.changes import Changes, Rounding, SideChange
from hnetkit.baking.contributions import StackOnLayers
from hnetkit.baking.fit import fitted_change
from hnetkit.baking.picture_plan import PicturePlan, PlannedPicture, recombined
from hnetkit.baking.pictures import FitDrawing

STEPS = 12
TEXTS = 64  # of the words of the prompts, encoded and not drawn
RANKS = (4, 8, 16)
SVD_RANKS = (4, 8)
STACKS = {"outline": {"outline": 1.0}, "dots": {"dots": 1.0}, "outline + paper": {"outline": 0.8, "paper": 0.6}}
SEEN = (
    "a red circle",
    "a large blue star",
    "a small green square on the left",
    "a purple triangle at the top",
    "a large yellow circle at the bottom",
    "a black star on the right",
    "a small orange square",
    "a blue triangle on the left",
    "a large green circle",
    "a red star at the bottom",
    "a yellow square at the top",
    "a small purple circle on the right",
)
HELD_OUT = (
    "a green star",
    "a large red square on the right",
    "a small blue circle at the top",
    "an orange triangle",
    "a black circle at the bottom",
    "a purple square on the left",
    "a small yellow star",
    "a large green triangle",
)


def plan(model: Any) -> PicturePlan:
    own, (width, height) = model.defaults, model.size
    return PicturePlan(
        tuple(map(PlannedPicture, SEEN, count(1))),
        tuple(map(PlannedPicture, HELD_OUT, count(1000))),
        recombined(SEEN, 0, number=TEXTS),
        STEPS,
        own.cfg_scale,
        own.sampler,
        width,
        height,
    )


def svd_of(change: SideChange, rank: int) -> SideChange:
    """Returns the nearest weights of a rank to those of a change, whatever contexts there are."""
    left, values, right = torch.linalg.svd(change.matrix, full_matrices=False)
    nearest = replace(change, up=left * values, down=right, errors=change.errors[: len(values) + 1])
    return nearest.truncated(rank)


def layer_errors(changes: Changes) -> dict[str, float]:
    """Returns the mean relative error of K and of V, by kind of layer."""
    groups: dict[str, list[float]] = {}
    for (layer, side), change in changes.items():
        groups.setdefault(f"{layer.kind} {side}", []).append(change.error)
    return {group: round(sum(errors) / len(errors), 3) for group, errors in groups.items()}


def rows(model: Any, strengths: dict[str, float]) -> Iterator[dict[str, Any]]:
    networks = {name: hnetkit.load(demo.networks()[name]) for name in strengths}
    for name, network in networks.items():
        hnetkit.load_hypernetwork(model.pipe, network, name)
    stack = [(name, networks[name], hnetkit.Strength(strength)) for name, strength in strengths.items()]
    with hnetkit.applied(model.pipe, {}):
        on_layers = StackOnLayers(model.pipe.unet, stack)
        drawing = FitDrawing(model, stack, on_layers, plan(model), None)
        seen, held_out = drawing.gather()
        whole = {
            (layer, side): fitted_change(
                on_layers.projections(layer).of(side),
                side,
                seen.of(layer, side),
                held_out.of(layer, side),
                in_parts=True,
            )
            for layer, side in on_layers.contributions
        }
        for rank in RANKS:
            changes = {place: change.truncated(rank) for place, change in whole.items()}
            yield {"rank": rank, "by": "fit", **row(drawing, changes), "layers": layer_errors(changes)}
        for rank in SVD_RANKS:
            changes = {place: svd_of(change, rank) for place, change in whole.items()}
            yield {"rank": rank, "by": "SVD of the fitted weights", **row(drawing, changes)}
    hnetkit.unload_hypernetworks(model.pipe)


def row(drawing: FitDrawing, changes: Changes) -> dict[str, Any]:
    errors = asdict(drawing.compare(changes, Rounding(torch.float32)).errors)
    return {"picture_error": round(errors["share"], 3), "psnr": round(errors["psnr"], 1), "effect": errors["effect"]}


def all_rows(model: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, strengths in STACKS.items():
        for measured in rows(model, strengths):
            print(name, measured, flush=True)
            yield name, measured


def grouped(pairs: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [measured for other, measured in pairs if other == name] for name in STACKS}


def main() -> None:
    model = hnetkit.load_model("demo", device="cpu")
    own = plan(model)
    setting = {"steps": own.steps, "cfg_scale": own.cfg_scale, "sampler": own.sampler, "size": [own.width, own.height]}
    pictures = {"prompts": SEEN, "held_out": HELD_OUT}
    found = grouped(list(all_rows(model)))
    write("baking", {"pictures": {**setting, **pictures}, "stacks": found, **conditions("torch", "diffusers")})


if __name__ == "__main__":
    main()
