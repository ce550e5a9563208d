"""The demo's hypernetworks: one per style, trained on the finished model by `hnetkit train`, as users train theirs.

Each is trained beside those before it: some of its pictures show their styles too, and its captions say so, in either
order. That is what makes the styles stack.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import hnetkit
from demo_training import pictures
from hnetkit import demo
from hnetkit.generate.model import load_model
from hnetkit.train.build import Build
from hnetkit.train.data import read_data
from hnetkit.train.recipe import Recipe
from hnetkit.train.trainer import train

COPIES = 20  # pictures drawn of each caption
BUILDS = {
    "outline": Build((1, 2, 1), "relu"),
    "dots": Build((1, 1.5, 1), "swish", layer_norm=True),
    "paper": Build((1, 0.5, 1)),
}
RATES, STEPS = "cosine:3e-3:warmup=100", 3500
DECAYS = {"outline": 0.5, "dots": 0.05, "paper": 0.3}  # small networks stack best; layer norms suffer most


def write_pictures(
    captions: list[pictures.Caption], folder: Path, strengths: Tensor, seed: int, *, tagged: bool = True
) -> None:
    """Draws captions in styles, with each caption beside its picture as people type it.

    Args:
        strengths: of each style in each picture, ``[captions, styles]``.
        tagged: captions name those that are not 0, in an order drawn for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    drawn = pictures.draw(captions, strengths, generator)
    for number, (caption, picture) in enumerate(zip(captions, drawn, strict=True)):
        pixels = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
        shown = zip(pictures.STYLES, strengths[number].tolist(), strict=True)
        tags = [f"<hypernet:{style}:{strength:.2f}>" for style, strength in shown if tagged and strength]
        rng.shuffle(tags)
        (folder / f"{number:04d}.txt").write_text(" ".join([caption.loose_text(rng), *tags]), "utf-8")


def some_strengths(style: str, count: int, seed: int) -> Tensor:
    """Strengths ``[count, styles]``: two fifths full, else from 0.2 up; half show a style before this one too."""
    generator = torch.Generator().manual_seed(seed)
    place = pictures.STYLES.index(style)
    full = torch.rand(count, len(pictures.STYLES), generator=generator) < 0.4
    part = 0.2 + 0.8 * torch.rand(full.shape, generator=generator)
    strengths = torch.where(full, torch.ones(()), part).mul(100).round() / 100
    shows = torch.zeros(full.shape, dtype=torch.bool)
    shows[:, place] = True
    if place:
        other = torch.randint(2 * place, (count,), generator=generator)  # the upper half are no style
        shows[other < place, other[other < place]] = True
    return strengths * shows


def recipe(style: str, model: Path, folder: Path, beside: list[Path], seed: int) -> Recipe:
    """Returns how a style is trained: time steps weighed as for the model, a tenth of the captions left out."""
    template = folder.parent / "template.txt"
    template.write_text("[filewords]\n", "utf-8")
    return Recipe(
        name=style,
        model=str(model),
        pictures=str(folder),
        template=str(template),
        beside=tuple(map(str, beside)),
        build=BUILDS[style],
        rates=RATES,
        max_steps=STEPS,
        batch_size=32,
        clip_norm="1",
        min_snr=5.0,
        drop_tags=0.1,
        optimizer_options={"betas": [0.9, 0.99], "weight_decay": DECAYS[style]},
        seed=seed,
        save_every=250,
        preview_every=0,
    )


def train_style(style: str, model: Path, work: Path, out: Path, seed: int) -> None:
    """Trains a style's network beside those before it, and writes it in half precision, as ``OUT/STYLE.pt``."""
    folder = work / "pictures" / style
    captions = pictures.all_captions() * COPIES
    write_pictures(captions, folder, some_strengths(style, len(captions), seed), seed)
    before = [out / f"{name}.pt" for name in pictures.STYLES[: pictures.STYLES.index(style)]]
    asked = recipe(style, model, folder, before, seed)
    named = replace(load_model(model, device="cpu", dtype="fp32"), name=demo.MODEL_NAME)
    made = train(asked, named, read_data(asked), work / "runs" / style)
    pt = next(path for path in made.files if path.suffix == ".pt")
    hnetkit.save(hnetkit.load(pt), out / f"{style}.pt", dtype="fp16", overwrite=True)
    print(f"{style}: {made.step} steps, loss {made.loss:.4f}", flush=True)
