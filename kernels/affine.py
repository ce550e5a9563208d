"""Affine maps: what MLPs without activation and layer norm are. Neighbors in a stack compose into one, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hnetkit.kernels.weights import MLPWeights, StageWeights


class Affine(NamedTuple):
    """``MLP(x) = matrix x + offset``. matrix: ``[d, d]``; offset: ``[d]``."""

    matrix: Tensor
    offset: Tensor


def collapse(mlp: MLPWeights) -> Affine:
    """Returns the map of an affine MLP in float64: ``W2 W1`` and ``W2 b1 + b2`` for two stages, and so on."""
    first, *rest = mlp
    matrix, offset = to_float64(first.weight), _bias(first)
    for stage in rest:
        weight = to_float64(stage.weight)
        matrix, offset = weight @ matrix, weight @ offset + _bias(stage)
    return Affine(matrix, offset)


def compose(maps: Iterable[tuple[Affine, float]]) -> Affine:
    """Returns P, p in float64 such that ``x + P x + p`` is each ``y = y + strength * (A y + c)`` in order.

    Args:
        maps: ``(A and c, strength)`` in stacking order, at least one.
    """
    total: Affine | None = None
    for (matrix, offset), strength in maps:
        step = Affine(to_float64(matrix) * strength, to_float64(offset) * strength)
        if total is None:
            total = step
        else:
            total = Affine(
                torch.addmm(total.matrix + step.matrix, step.matrix, total.matrix),
                torch.addmv(total.offset + step.offset, step.matrix, total.offset),
            )
    if total is None:
        raise ValueError("there is no map to compose")
    return total


def fold(weight: Tensor, bias: Tensor | None, affine: Affine) -> tuple[Tensor, Tensor]:
    """Returns weight and bias that give for x what the old ones give for ``x + P x + p``, rounded once.

    Args:
        weight: ``[out, d]``.
        bias: ``[out]``, or None.
        affine: P and p in float64.

    Returns:
        weight ``[out, d]`` and bias ``[out]`` of the old weight's dtype, on its device.
    """
    old = to_float64(weight)
    folded = torch.addmm(old, old, affine.matrix)
    shift = old @ affine.offset
    if bias is not None:
        shift = shift + to_float64(bias)
    return folded.to(weight), shift.to(weight)


def compose_flops(width: int, count: int) -> int:
    """Returns the floating-point operations of composing `count` maps of `width`."""
    return 2 * width**3 * (count - 1)


def algebra_device(device: torch.device) -> torch.device:
    """Returns where float64 products of tensors on `device` are computed: there, or on the CPU where it has none."""
    return torch.device("cpu") if device.type == "mps" else device


def to_float64(tensor: Tensor) -> Tensor:
    """Returns `tensor` in float64, on its `algebra_device`."""
    return tensor.to(algebra_device(tensor.device), torch.float64)


def _bias(stage: StageWeights) -> Tensor:
    if stage.bias is None:
        return to_float64(stage.weight).new_zeros(stage.weight.shape[0])
    return to_float64(stage.bias)
