"""Linear layers of K and V in one Triton launch each, with bias, activation, residual, strength and rounding in it.

This is the path `grouped`. A network of [1, m, 1] costs two launches, whatever the activation. A layer norm between two
linear layers costs none: the first layer writes the statistics of its rows, and the rest is folded into the second
(`hnetkit.kernels.weights`). A layer norm after the last linear layer is a launch of its own.

K and V (the sides) are one launch: the second axis of the grid. A strength of 0 skips the work and gives the residual
bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from hnetkit.kernels.configs import (
    FP16_DEPTH,
    FP16_SUMS,
    NORM_ROWS,
    NORM_ROWS_INTERPRETED,
    Tiles,
    linear_tiles,
    wide_tiles,
)
from hnetkit.kernels.eager import allows_fp16_sums, allows_tf32
from hnetkit.kernels.gpu.activations import activate
from hnetkit.kernels.gpu.device import capability_of, is_interpreted, multiprocessors_of
from hnetkit.kernels.gpu.state import KernelState, side_stride
from hnetkit.kernels.weights import NORM_EPSILON, PackedMLPs, PackedStage, network_at


@triton.jit
def add_part(count, mean, squares, part_count, part_mean, part_squares):
    """Mean and sum of squared deviations of two parts of a row together, from those of each (Chan, Golub, LeVeque)."""
    total = count + part_count
    apart = part_mean - mean
    mean += apart * (part_count / total)
    squares += part_squares + apart * apart * (count * part_count / total)
    return total, mean, squares


@triton.jit
def row_statistics(stats_ptr, m, rows, width, PART: tl.constexpr, BLOCK_M: tl.constexpr):
    """Mean and variance of rows `m`, from those of parts of them.

    stats [parts, 2, rows]: mean and sum of squared deviations of `PART` columns each.
    """
    count = 0.0
    mean = tl.zeros((BLOCK_M,), dtype=tl.float32)
    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    part_ptr = stats_ptr + m
    for start in range(0, width, PART):
        part_count = tl.minimum(width - start, PART).to(tl.float32)
        part_mean, part_squares = tl.load(part_ptr), tl.load(part_ptr + rows)  # [BLOCK_M] each
        count, mean, squares = add_part(count, mean, squares, part_count, part_mean, part_squares)
        part_ptr += 2 * rows
    return mean, squares / width


@triton.jit
def add_product(sums, a, b, PRECISION: tl.constexpr):
    """``sums + a b``; with the precision fp16 the product's own sums are in fp16, and `sums` in fp32 as ever."""
    if PRECISION == "fp16":
        return sums + tl.dot(a, b, out_dtype=tl.float16).to(tl.float32)
    else:
        return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def linear_kernel(
    x,
    weight,
    tail,
    bias_ptr,
    slope_ptr,
    shift_ptr,
    normed_ptr,
    residual_ptr,
    strength_ptr,
    out_ptr,
    total_ptr,
    stats_ptr,
    rows,
    columns,
    depth,
    width,
    normed_width,
    x_side,
    residual_side,
    strength_side,
    epsilon,
    ACTIVATION: tl.constexpr,
    IS_NORMED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_OUT: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    HAS_STATS: tl.constexpr,
    PART: tl.constexpr,
    BY_DESCRIPTOR: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``h = activation(x W^T + b)``; with a residual ``residual + strength * h``; to `out` rounded, to `total` in fp32.

    x [sides or 1, rows, depth], weight [sides, columns, depth], bias, slope and shift [sides, columns], residual, out
    and total [sides, rows, columns], all contiguous; `x_side` and `residual_side` are 0 where both sides share one.
    BY_DESCRIPTOR: x and weight are descriptors of them with all but the last axis merged, and tiles as boxes. What a
    box reads past the end of a side is not stored; past the end of the tensor it reads 0.

    A tile has BLOCK_N columns and TAIL more, which are a product of their own: `tail` describes the weight in boxes of
    as many. TAIL: only by descriptors, without layer norms.

    IS_NORMED: x has a layer norm behind it that is folded into weight, shift and bias; `normed` [sides, parts, 2, rows]
    holds the statistics of its rows by PART columns. HAS_STATS: writes those of `out`. WHOLE: depth is a multiple of
    BLOCK_K.
    """
    side = tl.program_id(1).to(tl.int64)
    strength = tl.load(strength_ptr + side * strength_side)  # scalar
    if not HAS_RESIDUAL:  # noqa: SIM102 - the first is decided by the compiler, the second on the device
        if strength == 0:
            return
    # tiles in columns of the output: programs that run at once share the weight's tile
    row_tiles = tl.cdiv(rows, BLOCK_M)
    tile = tl.program_id(0)
    column_tile = tile // row_tiles
    top, left = (tile % row_tiles) * BLOCK_M, column_tile * (BLOCK_N + TAIL)
    m = top + tl.arange(0, BLOCK_M)
    near_m = tl.minimum(m, rows - 1).to(tl.int64)
    end = tl.where(strength == 0, 0, depth)  # no product where nothing is added
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    rest = 0.0
    if TAIL:
        rest = tl.zeros((BLOCK_M, TAIL), dtype=tl.float32)
    if BY_DESCRIPTOR:
        row = (top + tl.where(x_side == 0, 0, side * rows)).to(tl.int32)
        column = (left + side * columns).to(tl.int32)
        for start in range(0, end, BLOCK_K):
            a, b = x.load([row, start]), weight.load([column, start])  # [BLOCK_M, BLOCK_K], [BLOCK_N, BLOCK_K]
            sums = add_product(sums, a, b.T, PRECISION)
            if TAIL:
                b = tail.load([column + BLOCK_N, start])  # [TAIL, BLOCK_K]
                rest = add_product(rest, a, b.T, PRECISION)
    else:
        # rows and columns past the end read the last one, and what they give is not stored: loads run along k, so that
        # a mask would widen nothing
        k = tl.arange(0, BLOCK_K)
        near_n = tl.minimum(left + tl.arange(0, BLOCK_N), columns - 1).to(tl.int64)
        x_tile = x + side * x_side + near_m[:, None] * depth + k[None, :]
        weight_tile = weight + side * columns * depth + near_n[None, :] * depth + k[:, None]
        for start in range(0, end, BLOCK_K):
            if WHOLE:
                a, b = tl.load(x_tile), tl.load(weight_tile)  # [BLOCK_M, BLOCK_K], [BLOCK_K, BLOCK_N]
            else:
                a = tl.load(x_tile, mask=k[None, :] < depth - start, other=0.0)  # [BLOCK_M, BLOCK_K]
                b = tl.load(weight_tile, mask=k[:, None] < depth - start, other=0.0)  # [BLOCK_K, BLOCK_N]
            sums = add_product(sums, a, b, PRECISION)
            x_tile += BLOCK_K
            weight_tile += BLOCK_K
    mean = tl.zeros((BLOCK_M,), dtype=tl.float32)
    scale = mean + 1.0
    if IS_NORMED:
        stats = normed_ptr + side * tl.cdiv(normed_width, PART) * 2 * rows
        mean, variance = row_statistics(stats, near_m, rows, normed_width, PART, BLOCK_M)
        scale = 1 / tl.sqrt(variance + epsilon)
    for part in tl.static_range(2 if TAIL else 1):
        h = finish(
            rest if part else sums,
            side,
            m,
            left + part * BLOCK_N,
            mean,
            scale,
            strength,
            bias_ptr,
            slope_ptr,
            shift_ptr,
            residual_ptr,
            out_ptr,
            total_ptr,
            rows,
            columns,
            residual_side,
            ACTIVATION,
            IS_NORMED,
            HAS_RESIDUAL,
            HAS_OUT,
            HAS_TOTAL,
        )
    if HAS_STATS:  # without a residual: h is the whole tile
        kept = tl.minimum(width - left, BLOCK_N)  # columns that are not padding
        real = (tl.arange(0, BLOCK_N) < kept)[None, :]
        values = tl.where(real, h.to(out_ptr.dtype.element_ty).to(tl.float32), 0.0)
        part_mean = tl.sum(values, 1) / tl.maximum(kept, 1)
        apart = tl.where(real, values - part_mean[:, None], 0.0)
        stored = tl.where(kept > 0, rows, 0)
        part_ptr = stats_ptr + (side * tl.cdiv(width, BLOCK_N) + column_tile) * 2 * rows + m
        tl.store(part_ptr, part_mean, mask=m < stored)  # [BLOCK_M]
        tl.store(part_ptr + rows, tl.sum(apart * apart, 1), mask=m < stored)  # [BLOCK_M]


@triton.jit
def finish(
    sums,
    side,
    m,
    left,
    mean,
    scale,
    strength,
    bias_ptr,
    slope_ptr,
    shift_ptr,
    residual_ptr,
    out_ptr,
    total_ptr,
    rows,
    columns,
    residual_side,
    ACTIVATION: tl.constexpr,
    IS_NORMED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_OUT: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
):
    """Makes of the sums of rows `m` and of the columns from `left` on what `linear_kernel` computes, and stores it.

    Returns it, ``[BLOCK_M, PIECE]`` in fp32: the last piece of the columns. With a residual, a wide tile comes in
    pieces, as a whole one would not fit into registers.
    """
    PIECES: tl.constexpr = sums.shape[1] // 64 if HAS_RESIDUAL and sums.shape[1] > 64 else 1
    PIECE: tl.constexpr = sums.shape[1] // PIECES
    pieces = in_pieces(sums, PIECES)
    own = side * rows * columns
    for i in tl.static_range(PIECES):
        n = left + i * PIECE + tl.arange(0, PIECE)
        of_column, real_n = side * columns + n, n < columns
        h = pieces[i]  # [BLOCK_M, PIECE]
        if IS_NORMED:
            shift = tl.load(shift_ptr + of_column, mask=real_n, other=0.0)  # [PIECE]
            h = (h - mean[:, None] * shift[None, :]) * scale[:, None]
        h += tl.load(bias_ptr + of_column, mask=real_n, other=0.0)[None, :]  # [PIECE]
        slope = 0.0
        if ACTIVATION == "prelu":
            slope = tl.load(slope_ptr + of_column, mask=real_n, other=0.0)[None, :]  # [PIECE]
        h = activate(h, slope, ACTIVATION)
        offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
        inside = (m[:, None] < rows) & (n[None, :] < columns)
        if HAS_RESIDUAL:
            residual_piece = residual_ptr + side * residual_side + offsets
            residual = tl.load(residual_piece, mask=inside, other=0.0).to(tl.float32)  # [BLOCK_M, PIECE]
            h = tl.where(strength == 0, residual, residual + strength * h)
        if HAS_TOTAL:
            tl.store(total_ptr + own + offsets, h, mask=inside)  # [BLOCK_M, PIECE]
        if HAS_OUT:
            tl.store(out_ptr + own + offsets, h.to(out_ptr.dtype.element_ty), mask=inside)  # [BLOCK_M, PIECE]
    return h


@triton.jit
def in_pieces(sums, PIECES: tl.constexpr):
    """The columns of a tile in 1, 2 or 4 pieces, from left to right."""
    if PIECES == 1:
        return (sums,)
    else:
        left, right = sums.reshape(sums.shape[0], 2, sums.shape[1] // 2).permute(0, 2, 1).split()
        if PIECES == 2:
            return (left, right)
        else:
            first, second = left.reshape(left.shape[0], 2, left.shape[1] // 2).permute(0, 2, 1).split()
            third, fourth = right.reshape(right.shape[0], 2, right.shape[1] // 2).permute(0, 2, 1).split()
            return (first, second, third, fourth)


@triton.jit
def norm_kernel(
    h_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    strength_ptr,
    out_ptr,
    total_ptr,
    rows,
    columns,
    residual_side,
    strength_side,
    epsilon,
    HAS_TOTAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``residual + strength * LN(h)`` of whole rows of `h` [sides, rows, columns], fp32; to `out`, to `total`."""
    side = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    strength = tl.load(strength_ptr + side * strength_side)  # scalar
    real = n[None, :] < columns
    inside = (m[:, None] < rows) & real
    wanted = (m[:, None] < tl.where(strength == 0, 0, rows)) & real  # nothing is read where nothing is added
    offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
    own = side * rows * columns + offsets
    h = tl.load(h_ptr + own, mask=wanted, other=0.0)  # [BLOCK_M, BLOCK_N]
    mean = tl.sum(h, 1) / columns
    centered = tl.where(wanted, h - mean[:, None], 0.0)
    h = centered / tl.sqrt(tl.sum(centered * centered, 1) / columns + epsilon)[:, None]
    weight = tl.load(weight_ptr + side * columns + n, mask=n < columns, other=0.0)  # [BLOCK_N]
    h = h * weight[None, :] + tl.load(bias_ptr + side * columns + n, mask=n < columns, other=0.0)[None, :]  # [BLOCK_N]
    residual = tl.load(residual_ptr + side * residual_side + offsets, mask=inside, other=0.0)  # [BLOCK_M, BLOCK_N]
    residual = residual.to(tl.float32)
    h = tl.where(strength == 0, residual, residual + strength * h)
    if HAS_TOTAL:
        tl.store(total_ptr + own, h, mask=inside)  # [BLOCK_M, BLOCK_N]
    tl.store(out_ptr + own, h.to(out_ptr.dtype.element_ty), mask=inside)  # [BLOCK_M, BLOCK_N]


def launches(networks: PackedMLPs) -> int:
    """Returns how many launches `run` makes."""
    return len(networks[0].weight) * (len(networks) + networks[-1].is_normed)


def run(state: KernelState, networks: PackedMLPs, strengths: Tensor, *, is_last: bool) -> KernelState:
    """Applies networks of one build, one after the other.

    Args:
        state: the stack so far.
        networks: their weights.
        strengths: ``[sides, count]``, fp32.
        is_last: whether the stack ends with them.
    """
    count = len(networks[0].weight)
    for index in range(count):
        mlp = [network_at(stage, index) for stage in networks]
        state = apply_network(state, mlp, strengths[:, index], is_last=is_last and index == count - 1)
    return state


def apply_network(state: KernelState, mlp: Sequence[PackedStage], strength: Tensor, *, is_last: bool) -> KernelState:
    """Applies one network; strength: ``[sides]``."""
    rows, sides, count = state.rows, len(strength), state.rows.shape[1]
    device, width_of_x = rows.device, rows.shape[-1]
    tiles = linear_tiles(capability_of(device), multiprocessors_of(device), count, width_of_x, rows.element_size())
    if product_precision(rows.dtype, device) == "fp16":
        tiles = tiles._replace(depth=FP16_DEPTH)
    can_be_wide = not any(stage.is_normed for stage in mlp)
    stats, width = None, 0
    for stage in mlp[:-1]:
        out = rows.new_empty(sides, count, stage.weight.shape[1])
        parts = triton.cdiv(stage.width, tiles.columns)
        written = rows.new_empty(sides, parts, 2, count, dtype=torch.float32) if stage.is_normed else None
        own = (_wide_tiles(rows, stage) if can_be_wide else None) or tiles
        _launch_linear(state, rows, stage, strength, own, normed=stats, normed_width=width, out=out, stats=written)
        rows, stats, width = out, written, stage.width
    last, (out, total) = mlp[-1], state.outputs(sides, is_last=is_last)
    if not last.is_normed:
        ends = {"residual": state.residual, "out": out, "total": total}
        own = (_wide_tiles(rows, last) if can_be_wide else None) or tiles
        _launch_linear(state, rows, last, strength, own, normed=stats, normed_width=width, **ends)
    else:
        h = torch.empty_like(out, dtype=torch.float32)
        _launch_linear(state, rows, last, strength, tiles, normed=stats, normed_width=width, total=h)
        _launch_norm(state, h, last, strength, out, total)
    return state.after(out, total)


def _launch_linear(
    state: KernelState,
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
    grid = (triton.cdiv(count, tiles.rows) * triton.cdiv(columns, tiles.columns + tiles.tail), sides)
    by_descriptor = tiles.by_descriptor and can_be_described(rows, stage.weight)
    state.launch(
        linear_kernel,
        grid,
        descriptor(rows, tiles.rows, tiles.depth) if by_descriptor else rows,
        descriptor(stage.weight, tiles.columns, tiles.depth) if by_descriptor else stage.weight,
        descriptor(stage.weight, tiles.tail, tiles.depth) if tiles.tail else None,
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
        PRECISION=product_precision(rows.dtype, rows.device),
        BLOCK_M=tiles.rows,
        BLOCK_N=tiles.columns,
        TAIL=tiles.tail,
        BLOCK_K=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def _wide_tiles(rows: Tensor, stage: PackedStage) -> Tiles | None:
    """Returns wide tiles for a product whose columns they divide, where there are such."""
    columns, depth = stage.weight.shape[1:]
    tiles = wide_tiles(capability_of(rows.device), rows.shape[1], columns, depth)
    if tiles is None or columns % (tiles.columns + tiles.tail) or not can_be_described(rows, stage.weight):
        return None
    return tiles


def can_be_described(*matrices: Tensor) -> bool:
    """Whether rows begin at 16 bytes and values have 16 bits: matrix instructions take no wider ones unconverted."""
    return all(
        matrix.data_ptr() % 16 == 0 and matrix.shape[-1] % 8 == 0 and matrix.element_size() == 2 for matrix in matrices
    )


def descriptor(matrices: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Returns ``[..., columns]``, contiguous, as a matrix that the copy engine takes tiles from.

    A loop over tiles of a descriptor that is made here, on the host, must not be specialized by warps
    (``warp_specialize=True``): Triton 3.6 compiles it, without a word, to code that computes something else.
    """
    flat = matrices.view(-1, matrices.shape[-1])
    return TensorDescriptor(flat, list(flat.shape), [flat.shape[1], 1], [rows, columns])


def _launch_norm(
    state: KernelState, h: Tensor, stage: PackedStage, strength: Tensor, out: Tensor, total: Tensor | None
) -> None:
    sides, rows, columns = h.shape
    tile_rows = NORM_ROWS_INTERPRETED if is_interpreted() else NORM_ROWS
    state.launch(
        norm_kernel,
        (triton.cdiv(rows, tile_rows), sides),
        h,
        stage.norm_weight,
        stage.norm_bias,
        state.residual,
        strength,
        out,
        total,
        rows,
        columns,
        side_stride(state.residual),
        strength.stride(0),
        NORM_EPSILON,
        HAS_TOTAL=total is not None,
        BLOCK_M=tile_rows,
        BLOCK_N=triton.next_power_of_2(columns),
        num_warps=4,
    )


def product_precision(dtype: torch.dtype, device: torch.device) -> str:
    """Returns how products are computed, by torch's own settings: as `precision` says, or with sums in fp16."""
    in_fp16 = dtype == torch.float16 and allows_fp16_sums() and capability_of(device) in FP16_SUMS
    return "fp16" if in_fp16 else precision(dtype)


def precision(dtype: torch.dtype) -> str:
    """Returns how products of fp32 are computed, by torch's own setting."""
    return "tf32" if dtype == torch.float32 and allows_tf32() else "ieee"
