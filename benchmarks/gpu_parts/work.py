"""What is applied to what: networks with random weights, and the contexts of one UNet step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hnetkit.kernels.weights import MLPWeights, StageWeights, multiplications

STRENGTHS = ((0.7, -0.4, 1.0, 0.5, 0.8), (0.6, 0.9, -0.5, 0.8, 0.4))
"""Of K and V, by the network's place in the stack."""

COUNTS = (3, 1, 5)
"""Numbers of networks, in the order in which they are measured."""

WORKS = ("self", "self and text")
"""What of a UNet step networks are applied to: the contexts of self-attention alone, or the text as well."""


class Build(NamedTuple):
    """How a network is built, in A1111's terms."""

    structure: tuple[float, ...]
    activation: str | None
    norm: bool = False


SWISH, MISH, LINEAR = "[1,2,1] swish", "[1,2,2,1] mish, layer norm", "[1,2,1] linear"
BUILDS = {SWISH: Build((1, 2, 1), "swish"), MISH: Build((1, 2, 2, 1), "mish", True), LINEAR: Build((1, 2, 1), None)}


class Layers(NamedTuple):
    """Attention layers whose contexts are alike: each has `rows` rows at batch 2, `width` wide."""

    rows: int
    width: int
    count: int


class Model(NamedTuple):
    """The self-attention layers of one UNet step, and the cross-attention layers, which share one text context."""

    self_attention: tuple[Layers, ...]
    cross_attention: Layers


_SD15_TEXT, _SDXL_TEXT = Layers(2 * 77, 768, 16), Layers(2 * 77, 2048, 70)
MODELS = {
    "SD 1.5, 512": Model(
        (Layers(8192, 320, 5), Layers(2048, 640, 5), Layers(512, 1280, 5), Layers(128, 1280, 1)), _SD15_TEXT
    ),
    "SDXL, 1024": Model((Layers(8192, 640, 10), Layers(2048, 1280, 60)), _SDXL_TEXT),
    "SD 1.5, 1024": Model(
        (Layers(32768, 320, 5), Layers(8192, 640, 5), Layers(2048, 1280, 5), Layers(512, 1280, 1)), _SD15_TEXT
    ),
}
TOYS = {
    "toy": Model((Layers(5, 24, 2),), Layers(3, 16, 2)),
    "toy, 320": Model((Layers(9, 320, 1),), Layers(3, 16, 2)),
}


@dataclass(frozen=True)
class Stack:
    """Networks of one width.

    Attributes:
        sides: their MLPs for K and for V, in stacking order.
        numbers: their strengths, by side.
        strengths: the same as a tensor, ``[2, networks]``, fp32.
    """

    sides: tuple[Sequence[MLPWeights], Sequence[MLPWeights]]
    numbers: tuple[Sequence[float], Sequence[float]]
    strengths: Tensor

    @property
    def multiplications(self) -> int:
        """Multiply-adds for one row of x, K and V together."""
        return sum(multiplications(mlp) for side in self.sides for mlp in side)


@dataclass(frozen=True)
class Contexts:
    """Contexts of one width and the stack that they go through.

    Attributes:
        xs: ``[rows, width]`` each, fp16.
        layers: how many layers take each of them: one, or for the text all cross-attention layers.
    """

    xs: Sequence[Tensor]
    layers: int
    stack: Stack


@dataclass(frozen=True)
class Case:
    """One configuration, under its names in the results.

    Attributes:
        work: one of `WORKS`.
    """

    model: str
    build: str
    networks: int
    work: str

    def contexts(self, device: str) -> list[Contexts]:
        """Returns everything that one UNet step of the model applies networks to."""
        model, build = {**MODELS, **TOYS}[self.model], BUILDS[self.build]
        stacks = {
            layers.width: stack(layers.width, build, self.networks, device)
            for layers in (*model.self_attention, model.cross_attention)
        }
        contexts = [
            Contexts([context(seed, layers, device) for seed in range(layers.count)], 1, stacks[layers.width])
            for layers in model.self_attention
        ]
        if self.work == "self and text":
            text = model.cross_attention
            contexts.append(Contexts([context(0, text, device)], text.count, stacks[text.width]))
        return contexts


def cases() -> Iterator[Case]:
    """Yields every configuration, the most telling first."""
    for model in MODELS:
        for count in COUNTS:
            for build in BUILDS:
                for work in WORKS:
                    yield Case(model, build, count, work)


def rehearsal() -> Iterator[Case]:
    """Yields a few small configurations: every build, a stack of one, and the width that the fused kernel is for."""
    yield Case("toy, 320", SWISH, 2, "self")
    yield Case("toy", SWISH, 1, "self")
    for build in BUILDS:
        yield Case("toy", build, 2, "self and text")


def network(seed: int, width: int, build: Build, device: str) -> MLPWeights:
    """Returns random fp16 weights at a scale at which the addition is about as large as x."""
    noise = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise, device=device)

    stages = []
    widths = [int(width * part) for part in build.structure]
    for number, (before, after) in enumerate(pairwise(widths)):
        last = number == len(widths) - 2
        tensors = [draw(after, before) / before**0.5, draw(after) / 8]
        norms = [1 + draw(after) / 8, draw(after) / 8] if build.norm else []
        weight, bias, *norm = (tensor.half() for tensor in tensors + norms)
        stages.append(StageWeights(weight, bias, None if last else build.activation, None, *norm))
    return tuple(stages)


def stack(width: int, build: Build, count: int, device: str) -> Stack:
    """Returns `count` networks, no two alike; K's and V's differ too."""
    key, value = ([network(100 * side + place, width, build, device) for place in range(count)] for side in (1, 2))
    numbers = (STRENGTHS[0][:count], STRENGTHS[1][:count])
    return Stack((key, value), numbers, torch.tensor(numbers, device=device))


def context(seed: int, layers: Layers, device: str) -> Tensor:
    noise = torch.Generator(device).manual_seed(seed)
    return torch.randn(layers.rows, layers.width, generator=noise, device=device).half()
