"""The weights of one residual MLP as tensors: what every path of this package takes."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from torch import Tensor


class StageWeights(NamedTuple):
    """Linear, then activation, then layer norm (eps 1e-5), always in this order; all on one device, of one dtype.

    Attributes:
        weight: ``[out, in]``.
        bias: ``[out]``, or None.
        activation: a name of `activations.ACTIVATIONS`, or None for none.
        slope: PReLU's slope, ``[1]`` or ``[out]``; None for every other activation.
        norm_weight: ``[out]``, None without layer norm.
        norm_bias: ``[out]``, None without layer norm.
    """

    weight: Tensor
    bias: Tensor | None = None
    activation: str | None = None
    slope: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


MLPWeights: TypeAlias = tuple[StageWeights, ...]
"""Stages in order of application; the first takes ``[..., d]``, the last gives ``[..., d]``."""

NORM_EPSILON = 1e-5


def multiplications(mlp: MLPWeights) -> int:
    """Returns the multiply-adds of the products for one row; FLOPs are twice as many."""
    return sum(stage.weight.numel() for stage in mlp)
