"""Linear layers of K and V in one Triton launch each, with bias, activation, residual, strength and rounding in it.

A network of [1, m, 1] costs two launches, whatever the activation. A layer norm between two linear layers costs none:
the first writes the statistics of its rows, and the rest is folded into the second (`packing`). One after the last
linear layer is a launch of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from hnetkit.kernels.configs import NORM_ROWS, NORM_ROWS_INTERPRETED, Tiles, linear_tiles
from hnetkit.kernels.devices import capability_of, is_interpreted
from hnetkit.kernels.mlp import NORM_EPSILON
from hnetkit.kernels.packing import Packed, PackedStage, at
from hnetkit.kernels.state import State, side_stride
from hnetkit.kernels.triton_linear import linear_kernel, norm_kernel


def launches(networks: Packed) -> int:
    """Returns how many launches `run` makes."""
    return len(networks[0].weight) * (len(networks) + networks[-1].is_normed)


def run(state: State, networks: Packed, strengths: Tensor, *, is_last: bool) -> State:
    """Applies networks of one build, one after the other.

    Args:
        state: the stack so far.
        networks: their weights.
        strengths: ``[sides, count]``, fp32.
        is_last: whether the stack ends with them.
    """
    count = len(networks[0].weight)
    for place in range(count):
        mlp = [at(stage, place) for stage in networks]
        state = apply(state, mlp, strengths[:, place], is_last=is_last and place == count - 1)
    return state


def apply(state: State, mlp: Sequence[PackedStage], strength: Tensor, *, is_last: bool) -> State:
    """Applies one network; strength: ``[sides]``."""
    rows, sides, count = state.rows, len(strength), state.rows.shape[1]
    tiles = linear_tiles(capability_of(rows.device), count, rows.shape[-1], rows.element_size())
    stats, width = None, 0
    for stage in mlp[:-1]:
        out = rows.new_empty(sides, count, stage.weight.shape[1])
        parts = triton.cdiv(stage.width, tiles.columns)
        written = rows.new_empty(sides, parts, 2, count, dtype=torch.float32) if stage.is_normed else None
        _launch_linear(rows, stage, strength, tiles, normed=stats, normed_width=width, out=out, stats=written)
        rows, stats, width = out, written, stage.width
    last, (out, total) = mlp[-1], state.outputs(sides, is_last=is_last)
    if not last.is_normed:
        ends = {"residual": state.residual, "out": out, "total": total}
        _launch_linear(rows, last, strength, tiles, normed=stats, normed_width=width, **ends)
    else:
        h = torch.empty_like(out, dtype=torch.float32)
        _launch_linear(rows, last, strength, tiles, normed=stats, normed_width=width, total=h)
        _launch_norm(h, last, strength, state.residual, out, total)
    return state.after(out, total)


def _launch_linear(
    rows: Tensor,
    stage: PackedStage,
    strength: Tensor,
    tiles: Tiles,
    *,
    normed: Tensor | None,
    normed_width: int,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    total: Tensor | None = None,
    stats: Tensor | None = None,
) -> None:
    sides, columns, depth = stage.weight.shape
    count = rows.shape[1]
    grid = (triton.cdiv(count, tiles.rows) * triton.cdiv(columns, tiles.columns), sides)
    by_descriptor = tiles.by_descriptor and _can_be_described(rows, stage.weight)
    linear_kernel[grid](
        _described(rows, tiles.rows, tiles.depth) if by_descriptor else rows,
        _described(stage.weight, tiles.columns, tiles.depth) if by_descriptor else stage.weight,
        stage.bias,
        stage.slope,
        stage.shift,
        normed,
        residual,
        strength,
        out,
        total,
        stats,
        count,
        columns,
        depth,
        stage.width,
        normed_width,
        side_stride(rows),
        0 if residual is None else side_stride(residual),
        strength.stride(0),
        NORM_EPSILON,
        ACTIVATION=stage.activation or "none",
        IS_NORMED=normed is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_OUT=out is not None,
        HAS_TOTAL=total is not None,
        HAS_STATS=stats is not None,
        PART=tiles.columns,
        BY_DESCRIPTOR=by_descriptor,
        WHOLE=depth % tiles.depth == 0,
        PRECISION=precision(rows.dtype),
        BLOCK_ROWS=tiles.rows,
        BLOCK_COLUMNS=tiles.columns,
        BLOCK_DEPTH=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def _can_be_described(*matrices: Tensor) -> bool:
    """Whether rows begin at 16 bytes, of values of 16 bits: matrix instructions take no wider ones as they come."""
    return all(
        matrix.data_ptr() % 16 == 0 and matrix.shape[-1] % 8 == 0 and matrix.element_size() == 2 for matrix in matrices
    )


def _described(matrices: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Returns ``[..., columns]``, contiguous, as a matrix that the copy engine takes tiles from."""
    flat = matrices.view(-1, matrices.shape[-1])
    return TensorDescriptor(flat, list(flat.shape), [flat.shape[1], 1], [rows, columns])


def _launch_norm(
    h: Tensor, stage: PackedStage, strength: Tensor, residual: Tensor, out: Tensor, total: Tensor | None
) -> None:
    sides, rows, columns = h.shape
    tile = NORM_ROWS_INTERPRETED if is_interpreted() else NORM_ROWS
    norm_kernel[(triton.cdiv(rows, tile), sides)](
        h,
        stage.norm_weight,
        stage.norm_bias,
        residual,
        strength,
        out,
        total,
        rows,
        columns,
        side_stride(residual),
        strength.stride(0),
        NORM_EPSILON,
        HAS_TOTAL=total is not None,
        BLOCK_ROWS=tile,
        BLOCK_COLUMNS=triton.next_power_of_2(columns),
        num_warps=4,
    )


def precision(dtype: torch.dtype) -> str:
    """Returns how products of fp32 are taken, by torch's own setting."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"
