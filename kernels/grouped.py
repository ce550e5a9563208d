"""Linear layers with everything that follows them in one Triton launch: bias, activation, residual, strength, rounding.

A stack of [1, m, 1] networks costs two launches each, whatever the activation. Products run in the weights' dtype with
fp32 sums; the residual stays in fp32 across the stack and is rounded once. A layer norm is one more launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from hnetkit.errors import KernelUnavailable
from hnetkit.kernels import eager
from hnetkit.kernels.configs import linear_tiles
from hnetkit.kernels.mlp import NORM_EPSILON, MLPWeights, StageWeights
from hnetkit.kernels.triton_linear import linear_kernel, norm_kernel

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return not hasattr(linear_kernel, "device_caches")


def can_run(device: torch.device) -> bool:
    return is_interpreted() or (device.type == "cuda" and torch.version.hip is None)


def apply(x: Tensor, mlps: Sequence[MLPWeights], strengths: Tensor) -> Tensor:
    """Returns ``x`` after each ``y = y + strength * MLP(y)`` in order; see `eager.apply`.

    What is to be differentiated, and float64, goes through `eager.apply`.

    Args:
        x: ``[..., d]``, any strides; never written to.
        mlps: in stacking order, on x's device, all of one dtype: the products' dtype.
        strengths: ``[len(mlps)]``, fp32, on x's device.

    Raises:
        KernelUnavailable: x is not where Triton can reach it.
        ValueError: x has another width than the networks, or integers in it.
    """
    if not mlps or not x.numel():
        return x
    _require(x, mlps)
    dtype = mlps[0][0].weight.dtype
    learns = torch.is_grad_enabled() and (
        x.requires_grad or any(stage.weight.requires_grad for m in mlps for stage in m)
    )
    if learns or x.dtype not in _DTYPES or dtype not in _DTYPES:
        return eager.apply(x, mlps, strengths)
    tensors, layout = _flattened(mlps)
    result: Tensor = _stack(x, strengths, tensors, layout)
    return result


@torch.library.custom_op("hnetkit::grouped_stack", mutates_args=())
def _stack(x: Tensor, strengths: Tensor, tensors: list[Tensor], layout: str) -> Tensor:
    """`apply` as one operation, so that `torch.compile` sees no more of it than its shape."""
    mlps = _unflattened(tensors, layout)
    residual = x.reshape(-1, x.shape[-1]).contiguous()
    rows = residual.to(tensors[0].dtype)
    for number, mlp in enumerate(mlps):
        last = number == len(mlps) - 1
        out = torch.empty_like(residual, dtype=x.dtype if last else rows.dtype)
        total = None if last else torch.empty_like(residual, dtype=torch.float32)
        for stage in mlp[:-1]:
            rows = _hidden(rows, stage)
        _residual(rows, mlp[-1], residual, strengths[number], out, total)
        rows, residual = out, (residual if total is None else total)
    return rows.reshape(x.shape)


@_stack.register_fake
def _(x: Tensor, strengths: Tensor, tensors: list[Tensor], layout: str) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _flattened(mlps: Sequence[MLPWeights]) -> tuple[list[Tensor], str]:
    """Returns all tensors, and for each stage a line ``MLP ACTIVATION FIELD...``: which fields follow one another."""
    tensors, layout = [], []
    for number, mlp in enumerate(mlps):
        for stage in mlp:
            held = [(field, value) for field, value in stage._asdict().items() if isinstance(value, Tensor)]
            tensors += [value for _, value in held]
            layout.append(" ".join([str(number), stage.activation or "none", *(field for field, _ in held)]))
    return tensors, "\n".join(layout)


def _unflattened(tensors: Sequence[Tensor], layout: str) -> list[MLPWeights]:
    left = iter(tensors)
    mlps: dict[str, list[StageWeights]] = {}
    for line in layout.splitlines():
        number, activation, *held = line.split()
        values = {field: next(left) for field in held}
        stage = StageWeights(activation=None if activation == "none" else activation, **values)
        mlps.setdefault(number, []).append(stage)
    return [tuple(stages) for stages in mlps.values()]


def _require(x: Tensor, mlps: Sequence[MLPWeights]) -> None:
    if not can_run(x.device):
        raise KernelUnavailable(f"HNETKIT_KERNEL=grouped: not on {x.device}", hint="unset HNETKIT_KERNEL")
    if not x.dtype.is_floating_point:
        raise ValueError(f"a context of {x.dtype}: it must be floating-point")
    width = mlps[0][0].weight.shape[1]
    if x.shape[-1] != width:
        raise ValueError(f"a context {x.shape[-1]} wide for networks of {width}")


def _hidden(rows: Tensor, stage: StageWeights) -> Tensor:
    """One stage inside of an MLP: ``[rows, out]`` of the rows' dtype."""
    out = rows.new_empty(len(rows), stage.weight.shape[0])
    _launch_linear(rows, stage, out=out)
    if stage.norm_weight is not None:
        _launch_norm(out, stage, out=out)
    return out


def _residual(
    rows: Tensor, stage: StageWeights, residual: Tensor, strength: Tensor, out: Tensor, total: Tensor | None
) -> None:
    """The last stage of an MLP: ``residual + strength * stage(rows)``, rounded into `out`, in fp32 into `total`."""
    if stage.norm_weight is None:
        _launch_linear(rows, stage, residual=residual, strength=strength, out=out, total=total)
        return
    h = rows.new_empty(len(rows), stage.weight.shape[0], dtype=torch.float32)
    _launch_linear(rows, stage, total=h)
    _launch_norm(h, stage, residual=residual, strength=strength, out=out, total=total)


def _launch_linear(
    rows: Tensor,
    stage: StageWeights,
    *,
    residual: Tensor | None = None,
    strength: Tensor | None = None,
    out: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    columns, depth = stage.weight.shape
    capability = None if is_interpreted() else torch.cuda.get_device_capability(rows.device)
    tiles = linear_tiles(capability, len(rows))
    grid = (triton.cdiv(len(rows), tiles.rows) * triton.cdiv(columns, tiles.columns),)
    linear_kernel[grid](
        rows,
        stage.weight.contiguous(),
        stage.bias,
        stage.slope,
        residual,
        strength,
        out,
        total,
        len(rows),
        columns,
        depth,
        0 if stage.slope is None or stage.slope.numel() == 1 else 1,
        ACTIVATION=stage.activation or "none",
        HAS_BIAS=stage.bias is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_OUT=out is not None,
        HAS_TOTAL=total is not None,
        BLOCK_ROWS=tiles.rows,
        BLOCK_COLUMNS=tiles.columns,
        BLOCK_DEPTH=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def _launch_norm(
    h: Tensor,
    stage: StageWeights,
    *,
    residual: Tensor | None = None,
    strength: Tensor | None = None,
    out: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    columns = h.shape[1]
    norm_kernel[(len(h),)](
        h,
        stage.norm_weight,
        stage.norm_bias,
        residual,
        strength,
        out,
        total,
        columns,
        NORM_EPSILON,
        HAS_RESIDUAL=residual is not None,
        HAS_OUT=out is not None,
        HAS_TOTAL=total is not None,
        BLOCK=triton.next_power_of_2(columns),
        num_warps=4,
    )
