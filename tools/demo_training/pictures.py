"""The demo's whole world: captions, and the pictures that they describe.

A picture is one flat shape on white. A style changes how it is drawn, with a strength from 0
(plain) to 1 (full) that acts as the opacity of the change:

- ``outline``: the shape's inside turns into ground, a thick ring of its colour stays;
- ``dots``: polka dots around the shape, one in every 8 px cell (a cell of the latent picture);
- ``paper``: the white ground becomes warm paper.

Shapes are signed distance fields, so that edges are smooth at any sub-pixel position.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

SIDE = 64
CELL = 8

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 45),
    "yellow": (250, 200, 20),
    "green": (35, 160, 75),
    "blue": (40, 90, 220),
    "purple": (165, 50, 175),
    "black": (30, 30, 35),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": 10.0, "medium": 14.0, "large": 18.0}
PLACES = {
    "in the center": (0.0, 0.0),
    "on the left": (-10.0, 0.0),
    "on the right": (10.0, 0.0),
    "at the top": (0.0, -10.0),
    "at the bottom": (0.0, 10.0),
}
STYLES = ("outline", "dots", "paper")

WHITE = (255, 255, 255)
PAPER = (246, 222, 170)
DOT = (130, 190, 200)
DOT_RADIUS = 2.2
SHIFT = 1.0  # px: how far a shape may lie from its nominal place
STRETCH = 0.04  # how far its size may differ from the nominal one


@dataclass(frozen=True)
class Caption:
    """What a picture shows; each field is a key of the tables above."""

    colour: str
    shape: str
    size: str = "medium"
    place: str = "in the center"

    def text(self) -> str:
        """The full caption, as in ``a small red circle on the left``."""
        return f"a {self.size} {self.colour} {self.shape} {self.place}"

    def loose_text(self, rng: random.Random) -> str:
        """A caption as people type it: the middle size and the middle place often go unsaid."""
        words = [] if rng.random() < 0.1 else ["a"]
        if self.size != "medium" or rng.random() < 0.5:
            words.append(self.size)
        words += [self.colour, self.shape]
        if self.place != "in the center" or rng.random() < 0.5:
            words.append(self.place)
        return " ".join(words)


def all_captions() -> list[Caption]:
    """The full factorial: 6 colours x 4 shapes x 3 sizes x 5 places = 360 captions."""
    return [Caption(*fields) for fields in product(COLOURS, SHAPES, SIZES, PLACES)]


def rgb(colour: Sequence[int]) -> Tensor:
    """An 8-bit colour as a float tensor [3] in 0..1."""
    return torch.tensor(colour, dtype=torch.float32) / 255


def _regular(count: int, radius: float, inner: float | None = None) -> Tensor:
    """Vertices [10, 2] of a regular polygon or star, the first one on top, the last repeated."""
    corners = count if inner is None else 2 * count
    angle = torch.arange(corners) * (2 * torch.pi / corners) - torch.pi / 2
    radii = torch.full((corners,), radius)
    if inner is not None:
        radii[1::2] = radius * inner
    points = torch.stack([angle.cos() * radii, angle.sin() * radii], dim=1)
    return torch.cat([points, points[-1:].expand(10 - corners, 2)])


def _polygons() -> Tensor:
    """Unit polygons [4, 10, 2] in the order of SHAPES (the circle's is a stand-in)."""
    square = _regular(4, 0.88 * 2**0.5) @ torch.tensor([[1.0, -1.0], [1.0, 1.0]]) / 2**0.5
    triangle = _regular(3, 1.2) + torch.tensor([0.0, 0.3])
    star = _regular(5, 1.15, inner=0.5)
    return torch.stack([square, square, triangle, star])


_POLYGONS = _polygons()


def distance(kind: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Signed distance in px from each pixel centre to the shape's edge, negative inside.

    Args:
        kind: indices into SHAPES, [B].
        centre: x and y in px, [B, 2].
        radius: nominal radius in px, [B].

    Returns:
        [B, SIDE, SIDE].
    """
    axis = torch.arange(SIDE) + 0.5
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(1, -1, 2)
    points = pixels - centre[:, None]  # [B, P, 2]
    circle = points.norm(dim=-1) - radius[:, None]
    vertices = _POLYGONS[kind] * radius[:, None, None]
    polygon = _polygon_distance(points, vertices)
    return torch.where(kind[:, None] == 0, circle, polygon).reshape(-1, SIDE, SIDE)


def _polygon_distance(points: Tensor, vertices: Tensor) -> Tensor:
    """Signed distance [B, P] of points [B, P, 2] to closed polygons [B, V, 2]."""
    nearest = torch.full(points.shape[:2], torch.inf)
    inside = torch.zeros(points.shape[:2], dtype=torch.bool)
    for i in range(vertices.shape[1]):
        start, end = vertices[:, None, i - 1], vertices[:, None, i]
        edge, offset = end - start, points - start
        along = (offset * edge).sum(-1) / (edge * edge).sum(-1).clamp(min=1e-9)
        gap = offset - edge * along.clamp(0, 1)[..., None]
        nearest = torch.minimum(nearest, (gap * gap).sum(-1))
        cross = edge[..., 0] * offset[..., 1] - edge[..., 1] * offset[..., 0]
        above_start, above_end = offset[..., 1] >= 0, points[..., 1] >= end[..., 1]
        inside ^= (above_start != above_end) & ((cross > 0) == (edge[..., 1] > 0))
    return nearest.sqrt() * (1 - 2 * inside.float())


def ring_width(radius: Tensor) -> Tensor:
    """Thickness in px of an outlined shape's ring."""
    return 0.25 * radius + 0.5


def _dot_cover() -> Tensor:
    """How much of each pixel a dot covers, [SIDE, SIDE]: one dot in the middle of every cell."""
    axis = (torch.arange(SIDE) % CELL) + 0.5 - CELL / 2
    return (DOT_RADIUS + 0.5 - torch.hypot(axis[:, None], axis[None])).clamp(0, 1)


def _mix(below: Tensor, above: Tensor, cover: Tensor) -> Tensor:
    return below + (above - below) * cover


def draw(captions: Sequence[Caption], styles: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws one picture per caption.

    Args:
        captions: B captions.
        styles: strengths in the order of STYLES, [B, 3].
        generator: moves and stretches the shapes a little; with None they stand exactly.

    Returns:
        RGB in 0..1, [B, 3, SIDE, SIDE].
    """
    count = len(captions)
    jitter = torch.zeros(count, 3)
    if generator is not None:
        jitter = torch.rand(count, 3, generator=generator) * 2 - 1
    kind = torch.tensor([SHAPES.index(c.shape) for c in captions])
    centre = torch.tensor([PLACES[c.place] for c in captions]) + SIDE / 2 + SHIFT * jitter[:, :2]
    radius = torch.tensor([SIZES[c.size] for c in captions]) * (1 + STRETCH * jitter[:, 2])
    colour = torch.stack([rgb(COLOURS[c.colour]) for c in captions])[..., None, None]
    outline, dots, paper = styles.float()[..., None, None, None].unbind(1)

    edge = distance(kind, centre, radius)[:, None]
    shape = (0.5 - edge).clamp(0, 1)
    core = (0.5 - edge - ring_width(radius)[:, None, None, None]).clamp(0, 1)
    ground = _mix(rgb(WHITE)[:, None, None], rgb(PAPER)[:, None, None], paper)
    around = _mix(ground, rgb(DOT)[:, None, None], dots * _dot_cover())
    ink = _mix(colour, ground, outline * core)
    return _mix(around, ink, shape)


def random_styles(count: int, chance: float, generator: torch.Generator) -> Tensor:
    """Random strengths [count, 3]: each style is on by chance, then half of the time fully."""
    on = torch.rand(count, 3, generator=generator) < chance
    full = torch.rand(count, 3, generator=generator) < 0.5
    part = torch.rand(count, 3, generator=generator)
    return on * torch.where(full, torch.ones(()), part)


def sheet(pictures: Tensor, columns: int, scale: int = 2) -> Tensor:
    """Lays pictures [B, 3, H, W] out in rows as one 8-bit picture [rows*H*scale, .., 3]."""
    from torch.nn import functional as F

    pad = F.pad(pictures.clamp(0, 1), (1, 1, 1, 1), value=0.5)
    count, _, height, width = pad.shape
    rows = -(-count // columns)
    pad = torch.cat([pad, torch.ones(rows * columns - count, 3, height, width)])
    grid = pad.reshape(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * height, columns * width, 3)
    grid = grid.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    return (grid * 255).round().to(torch.uint8)
