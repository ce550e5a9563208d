"""What fitting loses: the bundled networks as LoRAs of several ranks, on prompts and seeds that nothing was fitted on.

python benchmarks/baking.py [--part real-size]

For each stack: relative errors of K and V by kind of layer, and the error of pictures as a share of what the networks
change, with the PSNR; beside it the same for the SVD of the fitted weights, which knows nothing of contexts. Seeds are
fixed; pictures are drawn with the bundled model's defaults but for the number of steps.

The real size is SD 1.5's, with random weights, on the CPU: three networks [1, 2, 1] with an activation to rank 16, on
four prompts at 256 px. What counts there is the time and the peak memory of the whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, conditions, write
from real_size import build_model, build_networks, peak_of

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
REAL_PROMPTS = (
    "a castle on a hill at sunset",
    "portrait of an old man with a beard",
    "a bowl of fruit on a wooden table",
    "a dog running on a beach",
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


def pictures() -> dict[str, Any]:
    model = hnetkit.load_model("demo", device="cpu")
    own = plan(model)
    setting = {"steps": own.steps, "cfg_scale": own.cfg_scale, "sampler": own.sampler, "size": [own.width, own.height]}
    drawn = {**setting, "prompts": SEEN, "held_out": HELD_OUT}
    return {"pictures": drawn, "stacks": grouped(list(all_rows(model))), **conditions("torch", "diffusers")}


def real_size() -> dict[str, Any]:
    """Time and peak memory of `hnetkit bake` in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_model(folder / "model", torch.float32)
        networks = build_networks(folder, torch.float32)["activation"]
        (folder / "prompts.txt").write_text("\n".join(REAL_PROMPTS))
        options = [part for path in networks for part in ("-n", f"{path}:0.5")]
        options += ["--rank", "16", "--prompts", str(folder / "prompts.txt"), "--steps", "10", "--size", "256"]
        options += [
            "--model",
            str(model),
            "--device",
            "cpu",
            "--dtype",
            "fp32",
            "--out",
            str(folder / "lora.safetensors"),
        ]
        environment = {**os.environ, "HNETKIT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        began, cpu_before = time.monotonic(), os.times()
        peak = peak_of([sys.executable, "-P", "-m", "hnetkit", "bake", *options], environment)
        minutes, cpu = (time.monotonic() - began) / 60, os.times()
    cpu_s = cpu.children_user + cpu.children_system - cpu_before.children_user - cpu_before.children_system
    measured = {
        "minutes": round(minutes, 1),
        "cpu_minutes": round(cpu_s / 60, 1),
        "peak_mb": round(peak / 1e6),
        "load": os.getloadavg()[2],
    }
    own = {"networks": 3, "rank": 16, "prompts": len(REAL_PROMPTS), "steps": 10, "size": 256, "dtype": "fp32"}
    threads = {"threads": os.environ.get("OMP_NUM_THREADS", "as torch chooses")}
    return {"real_size": {**own, **measured, **threads, **conditions("torch", "diffusers")}}


PARTS = {"pictures": pictures, "real-size": real_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="measure this alone, and keep what is known of the other")
    part = parser.parse_args().part
    file = RESULTS / "baking.json"
    known = json.loads(file.read_text()) if part and file.exists() else {}
    for measure in PARTS.values() if part is None else [PARTS[part]]:
        known.update(measure())
    write("baking", known)


if __name__ == "__main__":
    main()
