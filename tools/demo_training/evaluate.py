"""Measures the bundled demo and writes the record: does it draw what it is told, in every style?

python -m demo_training.evaluate --demo hnetkit/demo --out benchmarks/results/demo_model --date D
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import hnetkit
from demo_training import pictures, report
from demo_training.checker import read, score_styles
from demo_training.sampling import open_pipeline, sample

SEEDS = 3  # pictures of each caption
SCALES = (1.5, 3.0, 5.0, 7.0)  # other guidance scales that are tried
PAIRS = 50  # captions, each with a seed, on which the styles are measured
STACKED = 0.7

Captions = list[pictures.Caption]


def share(values: Sequence[float]) -> float:
    """The share of values that are true."""
    return round(mean(values), 4)


def check_checker() -> dict[str, float]:
    """The checker on pictures drawn from captions: right ones, shuffled ones, styled ones."""
    captions = pictures.all_captions()
    shuffled = random.Random(0).sample(captions, len(captions))

    def agreement(strengths: list[float], told: Captions) -> float:
        generator = torch.Generator().manual_seed(11)
        rows = torch.tensor(strengths).expand(len(captions), -1)
        drawn = pictures.draw(captions, rows, generator)
        readings = [read(picture, outlined=strengths[0] > 0) for picture in drawn]
        return share([r.agrees(c) for r, c in zip(readings, told, strict=True)])

    record = {"plain": agreement([0, 0, 0], captions), "shuffled": agreement([0, 0, 0], shuffled)}
    for i, name in enumerate(pictures.STYLES):
        record[name] = agreement([float(i == k) for k in range(3)], captions)
    return record | {"all styles": agreement([1, 1, 1], captions)}


def check_model(pipeline: StableDiffusionPipeline, scale: float) -> dict[str, float]:
    """Every caption, with several seeds each, at the model's own guidance scale."""
    captions = pictures.all_captions() * SEEDS
    return judge(captions, draw(pipeline, captions, scale))


def check_scales(pipeline: StableDiffusionPipeline) -> dict[str, dict[str, float]]:
    """The same at other guidance scales, on a random third of the captions."""
    captions = random.Random(1).sample(pictures.all_captions(), 120)
    return {str(scale): judge(captions, draw(pipeline, captions, scale)) for scale in SCALES}


def draw(
    pipeline: StableDiffusionPipeline,
    captions: Captions,
    scale: float,
    stack: Mapping[str, float] | None = None,
) -> Tensor:
    """One picture per caption, seeded by its place in the list."""
    texts = [caption.text() for caption in captions]
    return sample(pipeline, texts, range(len(texts)), scale, stack)


def judge(captions: Captions, drawn: Tensor) -> dict[str, float]:
    """Shares of plain pictures that pass, loosely and strictly."""
    readings = [read(picture) for picture in drawn]
    right = [r.agrees(c) for r, c in zip(readings, captions, strict=True)]
    strict = [
        ok and r.fit > 0.85 and r.purity > 0.98 and r.ground > 0.98 for ok, r in zip(right, readings, strict=True)
    ]
    return {
        "pictures": len(captions),
        "colour and shape": share(right),
        "strict": share(strict),
        "mean fit": round(mean(r.fit for r in readings), 4),
    }


class StyleCheck:
    """Measures styles alone and in pairs, all on the same captions and seeds."""

    def __init__(self, pipeline: StableDiffusionPipeline, demo: Path, scale: float) -> None:
        self.pipeline, self.scale = pipeline, scale
        for name in pictures.STYLES:
            hnetkit.load_hypernetwork(pipeline, demo / "hypernetworks" / f"{name}.pt", name=name)
        self.captions = random.Random(2).sample(pictures.all_captions(), PAIRS)
        self.plain = self.measure({})

    def measure(self, strengths: dict[str, float]) -> dict[str, list[float]]:
        """Each style's score on each picture, and ``readable``: whether the caption still is."""
        drawn = draw(self.pipeline, self.captions, self.scale, strengths)
        pairs = list(zip(drawn, self.captions, strict=True))
        scores = [score_styles(picture, caption.colour) for picture, caption in pairs]
        record = {name: [score[name] for score in scores] for name in pictures.STYLES}
        outlined = "outline" in strengths
        record["readable"] = [read(p, outlined=outlined).agrees(c) for p, c in pairs]
        return record

    def alone(self, name: str) -> dict[str, object]:
        """One style at strengths 0, 0.5, STACKED and 1."""
        runs = {0.0: self.plain} | {s: self.measure({name: s}) for s in (0.5, STACKED, 1.0)}
        rises = zip(runs[0.0][name], runs[0.5][name], runs[1.0][name], strict=True)
        return {
            "mean score": {str(s): round(mean(run[name]), 3) for s, run in runs.items()},
            "rises over 0, 0.5, 1": share([low < half < full for low, half, full in rises]),
            "readable": {str(s): share(run["readable"]) for s, run in runs.items()},
        }

    def stacked(self, names: tuple[str, str], alone: dict[str, dict]) -> dict[str, object]:
        """Two styles at STACKED each: what is left of either, against it alone."""
        run = self.measure(dict.fromkeys(names, STACKED))
        kept = {n: mean(run[n]) / alone[n]["mean score"][str(STACKED)] for n in names}
        return {
            "kept": {name: round(value, 3) for name, value in kept.items()},
            "readable": share(run["readable"]),
        }

    def record(self) -> dict[str, Any]:
        """All styles alone, then all stacks of two in both orders; the pipeline is plain again afterwards."""
        alone = {name: self.alone(name) for name in pictures.STYLES}
        orders = [o for pair in combinations(pictures.STYLES, 2) for o in (pair, pair[::-1])]
        stacks = {" then ".join(order): self.stacked(order, alone) for order in orders}
        hnetkit.unload_hypernetworks(self.pipeline)
        return {"styles": alone, "stacks": stacks}


def sizes(demo: Path) -> dict[str, int]:
    """Bytes of the model folder, of each hypernetwork, and of all of it."""
    files = {path: path.stat().st_size for path in sorted(demo.rglob("*")) if path.is_file()}
    model = sum(size for path, size in files.items() if demo / "model" in path.parents)
    networks = {path.name: size for path, size in files.items() if path.suffix == ".pt"}
    return {"model": model} | networks | {"all": model + sum(networks.values())}


def main() -> None:
    """Measures and writes ``OUT.json`` and ``OUT.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", default="2 CPU cores")
    options = parser.parse_args()

    pipeline = open_pipeline(options.demo / "model")
    defaults = json.loads((options.demo / "model" / "hnetkit.json").read_text("utf-8"))
    scale = defaults["cfg_scale"]
    record: dict[str, Any] = {
        "date": options.date,
        "machine": options.machine,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "bytes": sizes(options.demo),
        "cfg_scale": scale,
        "checker": check_checker(),
    }
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "styles": lambda: StyleCheck(pipeline, options.demo, scale).record(),
        "model": lambda: check_model(pipeline, scale),
        "other cfg_scale": lambda: check_scales(pipeline),
    }
    for name, step in steps.items():
        found = step()
        record |= found if name == "styles" else {name: found}
        report.write(record, options.out)
        print(f"measured: {name}", flush=True)


if __name__ == "__main__":
    main()
