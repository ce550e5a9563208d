"""What fitting loses: the bundled networks as LoRAs of several ranks, on prompts and seeds that nothing was fitted on.

python benchmarks/baking.py [--part pictures|refined [--stack dots]] [--part real-size]

For each stack: relative errors of K and V by kind of layer, and the error of pictures as a share of what the networks
change, with the PSNR; the same for the SVD of the fitted weights, which knows nothing of contexts, and once more after
refining, which draws more pictures: of texts that are put together from the words of the same prompts. Seeds are fixed;
pictures are drawn with the bundled model's defaults but for the number of steps. The rate of refining was chosen on
other prompts and seeds, and after one run on these.

The real size is SD 1.5's, with random weights, on the CPU: three networks [1, 2, 1] with an activation to a LoRA of
rank 16, on one picture of each of four prompts, 256 px. What counts there is time and peak memory.
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
from safetensors.torch import save_file

import hnetkit
from hnetkit import demo
from hnetkit.baking.changes import Changes, Rounding, SideChange
from hnetkit.baking.contributions import NamedStack, StackOnLayers
from hnetkit.baking.fit import fitted_change
from hnetkit.baking.key_sets import named_tensors
from hnetkit.baking.making import Form, make_changes
from hnetkit.baking.picture_plan import PicturePlan, PlannedPicture, recombined
from hnetkit.baking.pictures import FitDrawing
from hnetkit.baking.refining import calls_for

STEPS = 12
TEXTS = 64  # of the words of the prompts, encoded and not drawn
RANKS = (4, 8, 16)
SVD_RANKS = (4, 8)
REFINED_RANKS, REFINE_STEPS = (8, 16), 150
EXACT = Rounding("fp32")
STACKS = {"outline": {"outline": 1.0}, "dots": {"dots": 1.0}, "outline + paper": {"outline": 0.8, "paper": 0.6}}
FURTHER = (  # beside the bundled model's own
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
REAL_STEPS, REAL_SIZE, REAL_RANK = 10, 256, 16
REAL_PROMPTS = (
    "a castle on a hill at sunset",
    "portrait of an old man with a beard",
    "a bowl of fruit on a wooden table",
    "a dog running on a beach",
)


def plan(model: Any, calls: int = 0) -> PicturePlan:
    """Returns what is drawn: a picture of each prompt, and texts like them until the UNet is called so often."""
    own, (width, height) = model.defaults, model.size
    seen = (*own.prompts, *FURTHER)
    more = max(0, -(-calls // STEPS) - len(seen))
    return PicturePlan(
        tuple(map(PlannedPicture, (*seen, *recombined(seen, 0, number=more)), count(1))),
        tuple(map(PlannedPicture, HELD_OUT, count(1000))),
        recombined(seen, 0, number=TEXTS),
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


def rows(model: Any, strengths: dict[str, float], *, refined: bool) -> Iterator[dict[str, Any]]:
    networks = {name: hnetkit.load(demo.networks()[name]) for name in strengths}
    for name, network in networks.items():
        hnetkit.load_hypernetwork(model.pipe, network, name)
    stack = [(name, networks[name], hnetkit.Strength(strength)) for name, strength in strengths.items()]
    with hnetkit.applied(model.pipe, {}):
        on_layers = StackOnLayers(model.pipe.unet, stack)
        yield from (refined_rows if refined else fitted_rows)(model, stack, on_layers)
    hnetkit.unload_hypernetworks(model.pipe)


def fitted_rows(model: Any, stack: NamedStack, on_layers: StackOnLayers) -> Iterator[dict[str, Any]]:
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


def refined_rows(model: Any, stack: NamedStack, on_layers: StackOnLayers) -> Iterator[dict[str, Any]]:
    more = plan(model, calls_for(REFINE_STEPS))
    drawing = FitDrawing(model, stack, on_layers, more, None, REFINE_STEPS)
    gathered = drawing.gather()
    for rank in REFINED_RANKS:
        for by, refine in (("fit", None), (f"fit, refined in {REFINE_STEPS} steps", drawing.refine)):
            changes = make_changes(on_layers, lambda: gathered, Form(True, EXACT, rank), refine)
            measured = {**row(drawing, changes), "layers": layer_errors(changes)}
            yield {"rank": rank, "by": by, "pictures": len(more.seen), **measured}


def row(drawing: FitDrawing, changes: Changes) -> dict[str, Any]:
    errors = asdict(drawing.compare(changes, EXACT).errors)
    return {"picture_error": round(errors["share"], 3), "psnr": round(errors["psnr"], 1), "effect": errors["effect"]}


def pictures(stacks: Sequence[str], *, refined: bool) -> dict[str, Any]:
    model = hnetkit.load_model("demo", device="cpu")
    own = plan(model)
    setting = {"steps": own.steps, "cfg_scale": own.cfg_scale, "sampler": own.sampler, "size": [own.width, own.height]}
    drawn = {**setting, "prompts": [*model.defaults.prompts, *FURTHER], "held_out": HELD_OUT}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in stacks}
    for name in stacks:
        for measured in rows(model, STACKS[name], refined=refined):
            print(name, measured, flush=True)
            found[name].append(measured)
    return {"pictures": drawn, "refined" if refined else "stacks": found, **conditions("torch", "diffusers")}


def bake_real(folder: Path) -> None:
    """Bakes three networks of real size to a LoRA of rank 16, as `hnetkit.bake` does, on one picture of each prompt."""
    model: Any = hnetkit.load_model(folder / "model", device="cpu", dtype="fp32")
    own = model.defaults
    seen, held_out = ([PlannedPicture(prompt, 1) for prompt in part] for part in (REAL_PROMPTS[:3], REAL_PROMPTS[3:]))
    texts = recombined(REAL_PROMPTS[:3], 0)
    drawn = PicturePlan(
        tuple(seen), tuple(held_out), texts, REAL_STEPS, own.cfg_scale, own.sampler, REAL_SIZE, REAL_SIZE
    )
    networks = {path.stem: hnetkit.load(path) for path in sorted(folder.glob("activation*.pt"))}
    stack = [(name, network, hnetkit.Strength(0.5)) for name, network in networks.items()]
    for name, network in networks.items():
        hnetkit.load_hypernetwork(model.pipe, network, name)
    with hnetkit.applied(model.pipe, {}):
        on_layers = StackOnLayers(model.pipe.unet, stack)
        drawing = FitDrawing(model, stack, on_layers, drawn, None)
        changes = make_changes(on_layers, drawing.gather, Form(True, EXACT, REAL_RANK, is_shared=True))
        print(drawing.compare(changes, EXACT).errors, file=sys.stderr)
        outputs = {layer: on_layers.projections(layer).output for layer in on_layers.layers}
    tensors = named_tensors(changes, outputs, "lora", "diffusers")
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, folder / "lora.safetensors")


def real_size() -> dict[str, Any]:
    """Time and peak memory of a bake in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_model(folder / "model", torch.float32)
        build_networks(folder, torch.float32)
        environment = {**os.environ, "HNETKIT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        began, before = time.monotonic(), os.times()
        peak = peak_of([sys.executable, __file__, "--bake-in", name], environment)
        minutes, after = (time.monotonic() - began) / 60, os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    measured = {"minutes": round(minutes, 1), "cpu_minutes": round(cpu_s / 60, 1), "peak_mb": round(peak / 1e6)}
    own = {"networks": 3, "rank": REAL_RANK, "prompts": len(REAL_PROMPTS), "steps": REAL_STEPS, "size": REAL_SIZE}
    machine = {"load": round(os.getloadavg()[2], 1), "threads": os.environ.get("OMP_NUM_THREADS", "torch's own")}
    return {"real_size": {**own, "dtype": "fp32", **measured, **machine, **conditions("torch", "diffusers")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["pictures", "refined", "real-size"], help="measure this alone")
    parser.add_argument("--stack", choices=STACKS, help="measure this one alone")
    parser.add_argument("--bake-in", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bake_in:
        bake_real(arguments.bake_in)
        return
    stacks = [arguments.stack] if arguments.stack else [*STACKS]
    measured: dict[str, Any] = {}
    for part in ("pictures", "refined", "real-size") if arguments.part is None else [arguments.part]:
        measured.update(real_size() if part == "real-size" else pictures(stacks, refined=part == "refined"))
    file = RESULTS / "baking.json"
    known = json.loads(file.read_text()) if file.exists() else {}  # what is not measured now stays
    for key in ("stacks", "refined"):
        measured[key] = {**known.get(key, {}), **measured.get(key, {})}
    write("baking", {**known, **measured})


if __name__ == "__main__":
    main()
