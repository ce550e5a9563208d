"""The path in plain torch: products in the weights' dtype, the residual in fp32 across the stack, one rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hnetkit.kernels.activations import activate
from hnetkit.kernels.weights import NORM_EPSILON, MLPWeights


def apply(x: Tensor, mlps: Sequence[MLPWeights], strengths: Tensor | Sequence[Tensor]) -> Tensor:
    """Returns ``x`` after each ``y = y + strength * MLP(y)`` in order.

    Args:
        x: ``[..., d]``; never written to.
        mlps: in stacking order, on x's device, all of one dtype: the products' dtype.
        strengths: ``[len(mlps)]`` or as many scalars, fp32, on x's device.

    Returns:
        ``[..., d]`` of x's dtype; `x` itself where there is no MLP.
    """
    if not mlps:
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    dtype = mlps[0][0].weight.dtype
    inplace = not torch.is_grad_enabled()
    flat = x.reshape(-1, x.shape[-1])
    # the sum may be written to once it is a tensor of its own, and not x
    total, total_is_ours = flat.to(wide), x.dtype != wide
    for number, (mlp, strength) in enumerate(zip(mlps, strengths, strict=True)):
        rows = (total if number else flat).to(dtype)
        delta = _evaluate(mlp, rows, inplace=inplace)
        if inplace and total_is_ours:
            total.addcmul_(delta, strength)
        else:
            total, total_is_ours = torch.addcmul(total, delta, strength), True
    return total.to(x.dtype).reshape(x.shape)


def _evaluate(mlp: MLPWeights, rows: Tensor, *, inplace: bool) -> Tensor:
    """Returns ``MLP(rows)`` ``[rows, d]``; `rows` is not written to."""
    for stage in mlp:
        rows = F.linear(rows, stage.weight, stage.bias)
        if stage.activation is not None:
            rows = activate(rows, stage.activation, stage.slope, inplace=inplace)
        if stage.norm_weight is not None:
            rows = F.layer_norm(rows, (rows.shape[-1],), stage.norm_weight, stage.norm_bias, NORM_EPSILON)
    return rows
