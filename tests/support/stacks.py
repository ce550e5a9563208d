"""Random networks and contexts as tensors, and how far a result lies from the truth."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from unittest import mock

import torch
from torch import Tensor

from hnetkit.kernels.executor import StackExecutor, pack_pair
from hnetkit.kernels.weights import MLPWeights, StageWeights
from support.networks import ACTIVATIONS as TORCH_MODULES


def random_mlp(
    seed: int,
    shapes: Sequence[int] = (24, 48, 24),
    activation: str | None = "relu",
    *,
    norm: bool = False,
    bias: bool = True,
    last: bool = False,
    dtype: torch.dtype = torch.float64,
) -> MLPWeights:
    """Weights at a scale that keeps activations busy; `last` puts the activation after the last stage too."""
    noise = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    stages = []
    for number, (wide, out) in enumerate(itertools.pairwise(shapes)):
        active = activation if last or number < len(shapes) - 2 else None
        stage = StageWeights(
            weight=draw(out, wide) * 1.5 / wide**0.5,
            bias=draw(out) if bias else None,
            activation=active,
            slope=draw(1).abs() if active == "prelu" else None,
            norm_weight=1 + draw(out) / 4 if norm else None,
            norm_bias=draw(out) / 4 if norm else None,
        )
        stages.append(StageWeights(*(t.to(dtype) if isinstance(t, Tensor) else t for t in stage)))
    return tuple(stages)


def cast(mlps: Sequence[MLPWeights], dtype: torch.dtype) -> list[MLPWeights]:
    return [
        tuple(StageWeights(*(t.to(dtype) if isinstance(t, Tensor) else t for t in stage)) for stage in mlp)
        for mlp in mlps
    ]


def context(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64).to(dtype)


def relative(got: Tensor, truth: Tensor, scale: Tensor | None = None) -> float:
    """Returns the error in the 2-norm, relative to `scale`, which is the truth where it is not given."""
    scale = truth if scale is None else scale
    return float((got.detach().double() - truth.detach().double()).norm() / scale.detach().double().norm())


def through(path: str, x: Tensor, mlps: Sequence[MLPWeights], strengths: Tensor) -> Tensor:
    """One side of a stack by a path, forced: in fp32 too."""
    with mock.patch.dict(os.environ, HNETKIT_KERNEL=path):
        return _through(path, x, mlps, strengths)


def _through(path: str, x: Tensor, mlps: Sequence[MLPWeights], strengths: Tensor) -> Tensor:
    pairs = [pack_pair(mlp, mlp, path) for mlp in mlps]
    return StackExecutor(pairs, path, [1]).apply(x, torch.stack([strengths] * 2), [[True] * len(mlps)] * 2)[1]


def torch_modules(mlp: MLPWeights, x: Tensor) -> Tensor:
    """The same MLP in torch's own modules."""
    for stage in mlp:
        x = torch.nn.functional.linear(x, stage.weight, stage.bias)
        if stage.activation:
            module = TORCH_MODULES[stage.activation]().eval().to(x.dtype)
            if stage.slope is not None:
                module.weight.data = stage.slope  # type: ignore[assignment]
            x = module(x)
        if stage.norm_weight is not None:
            x = torch.nn.functional.layer_norm(x, x.shape[-1:], stage.norm_weight, stage.norm_bias)
    return x
