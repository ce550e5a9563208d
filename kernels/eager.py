"""The paths in plain torch: products in the weights' dtype, the sum of the stack in `sum_dtype`, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hnetkit.kernels.activations import activate
from hnetkit.kernels.weights import NORM_EPSILON, MLPWeights


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which contexts of `dtype` are added up: its own, but fp32 for bf16, which has few digits.

    In fp16 a network's sum, rounded once, is no less exact than A1111's product and sum, rounded each.
    """
    return torch.float32 if dtype == torch.bfloat16 else dtype


def apply(x: Tensor, mlps: Sequence[MLPWeights], strengths: Tensor | Sequence[Tensor]) -> Tensor:
    """Returns ``x`` after each ``y = y + strength * MLP(y)`` in order.

    Args:
        x: ``[..., d]``; never written to.
        mlps: in stacking order, on x's device; products are in the dtype of each.
        strengths: ``[len(mlps)]`` or as many scalars, fp32, on x's device.

    Returns:
        ``[..., d]`` of x's dtype; `x` itself where there is no MLP.
    """
    if not mlps:
        return x
    wide = sum_dtype(x.dtype)
    inplace = not torch.is_grad_enabled()
    # what an MLP gave is written over by the sum where their dtypes agree; else the sum itself is, and must not be x
    flat = x.reshape(-1, x.shape[-1])
    total = flat.to(wide, copy=mlps[0][0].weight.dtype != wide)
    for number, (mlp, strength) in enumerate(zip(mlps, strengths, strict=True)):
        dtype = mlp[0].weight.dtype
        delta = _evaluate(mlp, (total if number else flat).to(dtype), inplace=inplace)
        out = (delta if dtype == wide else total) if inplace else None
        # as a vector: torch would round a scalar to the dtype of what it is multiplied by
        total = torch.addcmul(total, delta, strength.view(1), out=out).to(wide)
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


def allows_tf32() -> bool:
    """Whether torch may round fp32 to TF32 in products on NVIDIA's GPUs; Triton has no such products for AMD's.

    From version 2.9 on it has a setting for this alone. After that was used, it may refuse to tell the older one, or
    tell it as it was.
    """
    if torch.version.hip is not None:
        return False
    matmul: Any = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    return torch.get_float32_matmul_precision() != "highest" if precision is None else bool(precision == "tf32")


def allows_fp16_sums() -> bool:
    """Whether torch may add up products of fp16 in fp16 on CUDA: a setting that it has from version 2.7 on."""
    return bool(getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False))


def bf16_obstacle() -> str | None:
    """Says why products in bf16 are no gain on this processor; None where it has instructions for them."""
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    if not any(asked):
        return f"torch {torch.__version__} does not tell what the processor can do"
    has_them = any(ask() for ask in asked if ask is not None)
    return None if has_them else "the processor has no instructions for products in bf16 (AVX512-BF16 or AMX)"
