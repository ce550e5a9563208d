"""Reads a picture without being told what it shows, and says how much of each style is in it.

Every pixel counts: a shape is of a colour only where at least 90 % of its pixels are nearest to
that colour, so a two-tone shape fails. With the styles' own eyes on (``outlined=True``) only the
ring of a shape is asked for its colour, because an outlined shape has none inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from demo_training.pictures import (
    CELL,
    COLOURS,
    DOT,
    PAPER,
    SHAPES,
    SIDE,
    WHITE,
    Caption,
    distance,
    rgb,
)

PURITY = 0.9  # share of a shape's pixels that must be nearest to its colour
FIT = 0.75  # overlap with the best fitting true shape, below which it is no shape at all
RIM = 1  # px: the part of a shape's edge that stays coloured when it is outlined
RING = 0.6  # share of that part that must have any shape's colour at all
FEWEST = 40  # px: less than this is no shape

Mask = np.ndarray  # [SIDE, SIDE] bool


@dataclass(frozen=True)
class Reading:
    """What the checker saw: None where it saw nothing clear.

    Attributes:
        colour: the colour of at least PURITY of the looked-at pixels.
        shape: the best fitting shape.
        fit: overlap (intersection over union) with it, 0 to 1.
        purity: share of the looked-at pixels that have the commonest colour.
        ground: share of the pixels around the shape that are of a ground colour.
    """

    colour: str | None
    shape: str | None
    fit: float = 0.0
    purity: float = 0.0
    ground: float = 0.0

    def agrees(self, caption: Caption) -> bool:
        """Whether colour and shape are the caption's."""
        return self.colour == caption.colour and self.shape == caption.shape


@cache
def _ground_colours() -> Tensor:
    """Colours that are no shape's: white to paper, each bare or under a dot of any strength."""
    white, paper, dot = rgb(WHITE), rgb(PAPER), rgb(DOT)
    grounds = [white + (paper - white) * part for part in (0, 0.5, 1)]
    return torch.stack([g + (dot - g) * part for g in grounds for part in (0, 0.5, 1)])


@cache
def _classes() -> Tensor:
    """The shapes' colours, then the grounds', [6 + grounds, 3]."""
    return torch.cat([torch.stack([rgb(c) for c in COLOURS.values()]), _ground_colours()])


def classify(picture: Tensor) -> np.ndarray:
    """The nearest known colour of each pixel of [3, H, W] in 0..1: [H, W], ground is -1."""
    pixels = picture.float().permute(1, 2, 0).reshape(-1, 3)
    nearest = torch.cdist(pixels, _classes()).argmin(1).reshape(picture.shape[1:]).numpy()
    return np.where(nearest < len(COLOURS), nearest, -1)


def _as_image(mask: Mask) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def erode(mask: Mask, pixels: int = 1) -> Mask:
    """A mask less its outermost pixels."""
    return np.asarray(_as_image(mask).filter(ImageFilter.MinFilter(2 * pixels + 1))) > 0


def dilate(mask: Mask, pixels: int = 1) -> Mask:
    """A mask grown by so many pixels."""
    return np.asarray(_as_image(mask).filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def _spread(seed: Mask, within: Mask) -> Mask:
    """All pixels that can be reached from a seed without leaving a mask."""
    while True:
        grown = seed.copy()
        grown[1:] |= seed[:-1]
        grown[:-1] |= seed[1:]
        grown[:, 1:] |= seed[:, :-1]
        grown[:, :-1] |= seed[:, 1:]
        grown &= within
        if (grown == seed).all():
            return grown
        seed = grown


def find_shape(classes: np.ndarray) -> Mask:
    """The largest connected thing that is not ground, with its holes filled."""
    left, best = classes >= 0, np.zeros(classes.shape, bool)
    while left.sum() > best.sum():
        seed = np.zeros_like(left)
        seed[np.unravel_index(left.argmax(), left.shape)] = True
        part = _spread(seed, left)
        if part.sum() > best.sum():
            best = part
        left = left & ~part
    empty = np.pad(~best, 1, constant_values=True)
    outside = _spread(np.pad(np.zeros_like(best), 1, constant_values=True), empty)
    return ~outside[1:-1, 1:-1]


@cache
def _templates() -> tuple[list[str], np.ndarray]:
    """True shapes of many sizes with their centroid in the middle: names, [N, SIDE * SIDE]."""
    grid = torch.cartesian_prod(
        torch.arange(float(len(SHAPES))),
        torch.arange(7, 23, 0.5),
        SIDE / 2 + torch.tensor([0, 0.5]),
    )
    kinds, radii, centre = grid[:, 0].long(), grid[:, 1], grid[:, 2:].expand(-1, 2)
    masks = (distance(kinds, centre, radii) < 0).numpy()
    rows = [_centred(mask).ravel() for mask in masks]
    return [SHAPES[k] for k in kinds.tolist()], np.stack(rows).astype(np.float32)


def _centred(mask: Mask) -> Mask:
    """A mask moved by whole pixels so that its centroid is in the middle."""
    y, x = np.floor(np.argwhere(mask).mean(0) + 0.501).astype(int)
    return np.roll(mask, (SIDE // 2 - y, SIDE // 2 - x), (0, 1))


def fit_shape(mask: Mask) -> tuple[str, float]:
    """The true shape that overlaps a mask best, and the overlap (intersection over union)."""
    names, templates = _templates()
    row = _centred(mask).ravel().astype(np.float32)
    shared = templates @ row
    overlap = shared / (templates.sum(1) + row.sum() - shared)
    best = int(overlap.argmax())
    return names[best], float(overlap[best])


def read(picture: Tensor, *, outlined: bool = False) -> Reading:
    """Reads one picture, [3, 64, 64] in 0..1."""
    classes = classify(picture)
    shape = find_shape(classes)
    if shape.sum() < FEWEST:
        return Reading(None, None)
    inside = erode(shape)
    asked = inside & ~erode(inside, RIM) if outlined else inside
    seen = classes[asked]
    inked = seen[seen >= 0]
    counts = np.bincount(inked, minlength=len(COLOURS))
    whole = max(len(inked), RING * len(seen)) if outlined else len(seen)
    purity = float(counts.max() / max(1, whole))
    colour = list(COLOURS)[int(counts.argmax())] if purity >= PURITY else None
    name, fit = fit_shape(shape)
    around = classes[~dilate(shape, 2)]
    return Reading(
        colour=colour,
        shape=name if fit >= FIT else None,
        fit=fit,
        purity=purity,
        ground=float((around < 0).sum() / max(1, around.size)),
    )


def _along(seen: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """How far colours [N, 3] lie on the way from one colour to another, 0..1, [N]."""
    way = end - start
    return ((seen - start) @ way / (way @ way)).clamp(0, 1)


def _corner_pixels() -> Mask:
    """The corner pixels of all cells: ground that no dot touches."""
    axis = np.isin(np.arange(SIDE) % CELL, (0, CELL - 1))
    return axis[:, None] & axis[None]


def _middle_pixels() -> Mask:
    """The four middle pixels of all cells: inside a dot where there are dots."""
    axis = np.isin(np.arange(SIDE) % CELL, (CELL // 2 - 1, CELL // 2))
    return axis[:, None] & axis[None]


def _pixels(picture: Tensor, mask: Mask) -> Tensor:
    return picture.float()[:, torch.from_numpy(mask)].T


def _core(shape: Mask) -> Mask:
    """The innermost pixels of a shape: what an outline leaves empty."""
    inner, fewest = shape, max(5, 0.04 * shape.sum())
    while (smaller := erode(inner)).sum() >= fewest:
        inner = smaller
    return inner


def score_styles(picture: Tensor, colour: str) -> dict[str, float]:
    """How much of each style a picture has, each 0 (plain) to 1 (as drawn at full strength).

    Args:
        picture: [3, 64, 64] in 0..1.
        colour: the shape's true colour, which says what its inside would be without a style.
    """
    shape = find_shape(classify(picture))
    around = ~dilate(shape, 2)
    ground = _pixels(picture, around & _corner_pixels())
    middle = _pixels(picture, around & _middle_pixels())
    if shape.sum() < FEWEST or not len(ground) or not len(middle):
        return {"outline": 0.0, "dots": 0.0, "paper": 0.0}
    base = ground.median(0).values
    inside = _pixels(picture, _core(shape))
    return {
        "outline": _along(inside, rgb(COLOURS[colour]), base).mean().item(),
        "dots": _along(middle, base, rgb(DOT)).mean().item(),
        "paper": _along(ground, rgb(WHITE), rgb(PAPER)).mean().item(),
    }
