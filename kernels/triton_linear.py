"""The two Triton kernels of the grouped path: a linear layer and a layer norm, each with all that follows it.

K and V (the sides) are one launch: the second axis of the grid. The number 0 for a strength skips the work and gives
the residual bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hnetkit.kernels.triton_activations import activate


@triton.jit
def add_part(count, mean, squares, part_count, part_mean, part_squares):
    """Mean and sum of squared deviations of two parts of a row together, from those of each (Chan, Golub, LeVeque)."""
    total = count + part_count
    apart = part_mean - mean
    mean += apart * (part_count / total)
    squares += part_squares + apart * apart * (count * part_count / total)
    return total, mean, squares


@triton.jit
def row_statistics(stats_ptr, m, rows, width, PART: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Mean and variance of rows `m`, from those of parts of them.

    stats [parts, 2, rows]: mean and sum of squared deviations of `PART` columns each.
    """
    count = 0.0
    mean = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    squares = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    place = stats_ptr + m
    for start in range(0, width, PART):
        part_count = tl.minimum(width - start, PART).to(tl.float32)
        count, mean, squares = add_part(count, mean, squares, part_count, tl.load(place), tl.load(place + rows))
        place += 2 * rows
    return mean, squares / width


@triton.jit
def linear_kernel(
    x,
    weight,
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
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """``h = activation(x W^T + b)``; with a residual ``residual + strength * h``; to `out` rounded, to `total` in fp32.

    x [sides or 1, rows, depth], weight [sides, columns, depth], bias, slope and shift [sides, columns], residual, out
    and total [sides, rows, columns], all contiguous; `x_side` and `residual_side` are 0 where both sides share one.
    BY_DESCRIPTOR: x and weight are descriptors of them with all but the last axis as one, with tiles for boxes; what a
    box takes beyond a side is not stored, and beyond the end it is 0.

    IS_NORMED: x has a layer norm behind it that is folded into weight, shift and bias; `normed` [sides, parts, 2, rows]
    holds the statistics of its rows by PART columns. HAS_STATS: writes those of `out`. WHOLE: depth is a multiple of
    BLOCK_DEPTH.
    """
    side = tl.program_id(1).to(tl.int64)
    strength = tl.load(strength_ptr + side * strength_side)
    if not HAS_RESIDUAL:  # noqa: SIM102 - decided when it is compiled, and on the device
        if strength == 0:
            return
    down = tl.cdiv(rows, BLOCK_ROWS)
    tile = tl.program_id(0)
    column_tile = tile // down
    m = (tile % down) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    n = column_tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    k = tl.arange(0, BLOCK_DEPTH)
    # rows and columns beyond the end read the last one: what they give is not stored
    near_m, near_n = tl.minimum(m, rows - 1).to(tl.int64), tl.minimum(n, columns - 1).to(tl.int64)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    end = tl.where(strength == 0, 0, depth)
    if BY_DESCRIPTOR:
        row = ((tile % down) * BLOCK_ROWS + tl.where(x_side == 0, 0, side * rows)).to(tl.int32)
        column = (column_tile * BLOCK_COLUMNS + side * columns).to(tl.int32)
        for start in range(0, end, BLOCK_DEPTH):
            a, b = x.load([row, start]), weight.load([column, start])
            sums = tl.dot(a, b.T, sums, input_precision=PRECISION)
    else:
        x_tile = x + side * x_side + near_m[:, None] * depth + k[None, :]
        weight_tile = weight + side * columns * depth + near_n[None, :] * depth + k[:, None]
        for start in range(0, end, BLOCK_DEPTH):
            if WHOLE:
                a, b = tl.load(x_tile), tl.load(weight_tile)
            else:
                a = tl.load(x_tile, mask=k[None, :] < depth - start, other=0.0)
                b = tl.load(weight_tile, mask=k[:, None] < depth - start, other=0.0)
            sums = tl.dot(a, b, sums, input_precision=PRECISION)
            x_tile += BLOCK_DEPTH
            weight_tile += BLOCK_DEPTH
    mean = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    scale = mean + 1.0
    if IS_NORMED:
        stats = normed_ptr + side * tl.cdiv(normed_width, PART) * 2 * rows
        mean, variance = row_statistics(stats, near_m, rows, normed_width, PART, BLOCK_ROWS)
        scale = 1 / tl.sqrt(variance + epsilon)
    # the last part of a wide tile comes in pieces: with a residual, a whole one does not fit into registers
    PIECES: tl.constexpr = BLOCK_COLUMNS // 64 if HAS_RESIDUAL and BLOCK_COLUMNS > 64 else 1
    PIECE: tl.constexpr = BLOCK_COLUMNS // PIECES
    pieces = in_pieces(sums, PIECES)
    own = side * rows * columns
    for i in tl.static_range(PIECES):
        n = column_tile * BLOCK_COLUMNS + i * PIECE + tl.arange(0, PIECE)
        near_n = side * columns + tl.minimum(n, columns - 1)
        h = pieces[i]
        if IS_NORMED:
            h = (h - mean[:, None] * tl.load(shift_ptr + near_n)[None, :]) * scale[:, None]
        h += tl.load(bias_ptr + near_n)[None, :]
        slope = 0.0
        if ACTIVATION == "prelu":
            slope = tl.load(slope_ptr + near_n)[None, :]
        h = activate(h, slope, ACTIVATION)
        place = m.to(tl.int64)[:, None] * columns + n[None, :]
        inside = (m[:, None] < rows) & (n[None, :] < columns)
        if HAS_RESIDUAL:
            residual = tl.load(residual_ptr + side * residual_side + place, mask=inside, other=0.0).to(tl.float32)
            h = tl.where(strength == 0, residual, residual + strength * h)
        if HAS_TOTAL:
            tl.store(total_ptr + own + place, h, mask=inside)
        if HAS_OUT:
            rounded = h.to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + own + place, rounded, mask=inside)
            if HAS_STATS:
                kept = tl.minimum(width - column_tile * BLOCK_COLUMNS, BLOCK_COLUMNS)
                real = (tl.arange(0, BLOCK_COLUMNS) < kept)[None, :]
                values = tl.where(real, rounded.to(tl.float32), 0.0)
                part_mean = tl.sum(values, 1) / tl.maximum(kept, 1)
                apart = tl.where(real, values - part_mean[:, None], 0.0)
                stored = tl.where(kept > 0, rows, 0)
                stats_place = stats_ptr + (side * tl.cdiv(width, BLOCK_COLUMNS) + column_tile) * 2 * rows + m
                tl.store(stats_place, part_mean, mask=m < stored)
                tl.store(stats_place + rows, tl.sum(apart * apart, 1), mask=m < stored)


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
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """``residual + strength * LN(h)`` of whole rows of `h` [sides, rows, columns], fp32; to `out`, to `total`."""
    side = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    n = tl.arange(0, BLOCK_COLUMNS)
    strength = tl.load(strength_ptr + side * strength_side)
    real = n[None, :] < columns
    inside = (m[:, None] < rows) & real
    wanted = (m[:, None] < tl.where(strength == 0, 0, rows)) & real
    place = m.to(tl.int64)[:, None] * columns + n[None, :]
    own = side * rows * columns + place
    h = tl.load(h_ptr + own, mask=wanted, other=0.0)
    mean = tl.sum(h, 1) / columns
    centred = tl.where(wanted, h - mean[:, None], 0.0)
    h = centred / tl.sqrt(tl.sum(centred * centred, 1) / columns + epsilon)[:, None]
    weight = tl.load(weight_ptr + side * columns + n, mask=n < columns, other=0.0)
    h = h * weight[None, :] + tl.load(bias_ptr + side * columns + n, mask=n < columns, other=0.0)[None, :]
    residual = tl.load(residual_ptr + side * residual_side + place, mask=inside, other=0.0).to(tl.float32)
    h = tl.where(strength == 0, residual, residual + strength * h)
    if HAS_TOTAL:
        tl.store(total_ptr + own, h, mask=inside)
    tl.store(out_ptr + own, h.to(out_ptr.dtype.element_ty), mask=inside)
