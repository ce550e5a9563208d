"""The plainest form of the mathematics, in fp32: the reference for every faster path.

With float64 inputs everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hnetkit.kernels.weights import NORM_EPSILON, MLPWeights, StageWeights

SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805

FORMULAS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "celu": lambda h: h.clamp(min=0) + torch.expm1(h.clamp(max=0)),
    "elu": lambda h: h.clamp(min=0) + torch.expm1(h.clamp(max=0)),
    "gelu": lambda h: h * (1 + torch.erf(h / math.sqrt(2))) / 2,
    "hardshrink": lambda h: torch.where(h.abs() <= 0.5, 0, h),
    "hardsigmoid": lambda h: (h + 3).clamp(0, 6) / 6,
    "hardswish": lambda h: h * (h + 3).clamp(0, 6) / 6,
    "hardtanh": lambda h: h.clamp(-1, 1),
    "leakyrelu": lambda h: torch.where(h > 0, h, 0.01 * h),
    "logsigmoid": lambda h: -softplus(-h),
    "mish": lambda h: h * torch.tanh(softplus(h)),
    "relu": lambda h: h.clamp(min=0),
    "relu6": lambda h: h.clamp(0, 6),
    "rrelu": lambda h: torch.where(h > 0, h, (1 / 8 + 1 / 3) / 2 * h),  # evaluation: the middle of its range
    "selu": lambda h: SELU_SCALE * (h.clamp(min=0) + SELU_ALPHA * torch.expm1(h.clamp(max=0))),
    "sigmoid": lambda h: 1 / (1 + torch.exp(-h)),
    "silu": lambda h: h / (1 + torch.exp(-h)),
    "softplus": lambda h: softplus(h),
    "softshrink": lambda h: h.sign() * (h.abs() - 0.5).clamp(min=0),
    "softsign": lambda h: h / (1 + h.abs()),
    "swish": lambda h: h * (h + 3).clamp(0, 6) / 6,  # A1111's swish is hardswish, not SiLU
    "tanh": torch.tanh,
    "tanhshrink": lambda h: h - torch.tanh(h),
}


def apply(x: Tensor, mlps: Sequence[MLPWeights], strengths: Tensor | Sequence[Tensor]) -> Tensor:
    """Returns ``x`` after each ``y = y + strength * MLP(y)`` in order.

    Args:
        x: ``[..., d]``.
        mlps: in stacking order, on x's device, of any dtypes.
        strengths: ``[len(mlps)]`` or as many scalars, on x's device.

    Returns:
        ``[..., d]`` of x's dtype.
    """
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    for mlp, strength in zip(mlps, strengths, strict=True):
        h = y
        for stage in mlp:
            h = _stage(h, stage)
        y = y + strength * h
    return y.to(x.dtype)


def _stage(h: Tensor, stage: StageWeights) -> Tensor:
    h = h @ stage.weight.to(h.dtype).T
    if stage.bias is not None:
        h = h + stage.bias.to(h.dtype)
    if stage.slope is not None:
        h = torch.where(h > 0, h, stage.slope.to(h.dtype) * h)
    elif stage.activation is not None:
        h = FORMULAS[stage.activation](h)
    if stage.norm_weight is not None and stage.norm_bias is not None:
        centered = h - h.mean(-1, keepdim=True)
        variance = centered.square().mean(-1, keepdim=True)
        h = centered / torch.sqrt(variance + NORM_EPSILON)
        h = h * stage.norm_weight.to(h.dtype) + stage.norm_bias.to(h.dtype)
    return h


def softplus(h: Tensor) -> Tensor:
    """Returns ``log(1 + exp(h))`` without overflow."""
    return h.clamp(min=0) + torch.log1p(torch.exp(-h.abs()))
