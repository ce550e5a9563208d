"""The demo's hypernetworks: one per style, trained on the finished model by `hnetkit train`, as users train theirs."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import hnetkit
from demo_training import pictures
from hnetkit.generate.model import load_model
from hnetkit.train.build import Build
from hnetkit.train.data import read_data
from hnetkit.train.loop import train
from hnetkit.train.recipe import Recipe

COPIES = 2  # pictures drawn of each caption
BUILDS = {
    "outline": Build((1, 2, 1), "relu"),
    "dots": Build((1, 1.5, 1), "swish", layer_norm=True),
    "paper": Build((1, 0.5, 1)),
}
RATES = "5e-3:60, 2e-3:300, 5e-4:600"


def write_pictures(
    style: str, captions: list[pictures.Caption], folder: Path, seed: int, strengths: Tensor | None = None
) -> None:
    """Draws each caption in a style, with the caption beside it as people type it.

    Args:
        strengths: of the style in each picture, which its caption then names; None is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    columns = torch.zeros(len(captions), len(pictures.STYLES))
    columns[:, pictures.STYLES.index(style)] = 1 if strengths is None else strengths
    drawn = pictures.draw(captions, columns, generator)
    for number, (caption, picture) in enumerate(zip(captions, drawn, strict=True)):
        pixels = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
        tag = "" if strengths is None else f" <hypernet:{style}:{strengths[number]:.2f}>"
        (folder / f"{number:04d}.txt").write_text(caption.loose_text(rng) + tag, "utf-8")


def some_strengths(count: int, seed: int) -> Tensor:
    """Strengths [count]: two fifths full, the others from 0.2 up."""
    generator = torch.Generator().manual_seed(seed)
    full = torch.rand(count, generator=generator) < 0.4
    return torch.where(full, torch.ones(()), 0.2 + 0.8 * torch.rand(count, generator=generator)).mul(100).round() / 100


def recipe(style: str, model: Path, folder: Path, seed: int) -> Recipe:
    """Returns how a style is trained: time steps weighed as for the model, a tenth of the captions left out."""
    template = folder.parent / "template.txt"
    template.write_text("[filewords]\n", "utf-8")
    return Recipe(
        **{"name": style, "model": str(model), "pictures": str(folder), "template": str(template)},
        **{"build": BUILDS[style], "rates": RATES, "batch_size": 32, "min_snr": 5.0, "drop_tags": 0.1, "seed": seed},
        **{"save_every": 100, "preview_every": 0},
    )


def train_style(style: str, model: Path, work: Path, out: Path, seed: int) -> None:
    """Trains a style's network and writes it in half precision, as ``OUT/STYLE.pt``."""
    folder = work / "pictures" / style
    captions = pictures.all_captions() * COPIES
    write_pictures(style, captions, folder, seed, some_strengths(len(captions), seed))
    asked = recipe(style, model, folder, seed)
    made = train(asked, load_model(model, device="cpu", dtype="fp32"), read_data(asked), work / "runs" / style)
    pt = next(path for path in made.files if path.suffix == ".pt")
    hnetkit.save(hnetkit.load(pt), out / f"{style}.pt", dtype="fp16", overwrite=True)
    print(f"{style}: {made.step} steps, loss {made.loss:.4f}", flush=True)
