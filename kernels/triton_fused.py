"""A whole stack of [1, m, 1] networks of width 320, K and V, in one Triton launch; hidden values never leave the chip.

A program owns some rows of one side and takes them through every network. The hidden layer comes in blocks: a block is
computed, activated, and multiplied into the sums of the outputs at once. What of this order, of the halves of 256 and
64 columns and of the pieces of the last part is there for the compiler (no spills, no serialised matrix instructions)
was found by compiling: `tests/kernels/test_ahead_of_time.py` holds it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hnetkit.kernels.triton_activations import activate
from hnetkit.kernels.triton_linear import add_part

WIDTH = 320
_D = tl.constexpr(WIDTH)
_HEAD = tl.constexpr(256)
_PIECE = tl.constexpr(64)


@triton.jit
def fused_kernel(
    x_ptr,
    first_weight_ptr,
    first_bias_ptr,
    first_slope_ptr,
    last_weight_ptr,
    last_bias_ptr,
    last_slope_ptr,
    shift_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    strength_ptr,
    out_ptr,
    total_ptr,
    rows,
    count,
    kept,
    strength_side,
    epsilon,
    HIDDEN: tl.constexpr,
    HIDDEN_WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LAST_ACTIVATION: tl.constexpr,
    HIDDEN_NORM: tl.constexpr,
    LAST_NORM: tl.constexpr,
    IS_FIRST: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``y = y + strength * MLP(y)`` for `count` networks of one build.

    x [rows, 320] where IS_FIRST: the stack begins here. Else `out` and `total` hold what came before, and are written
    over. out [sides, rows, 320] in the products' dtype, total [sides, rows, 320] in fp32, of which the first `kept`
    networks leave theirs. Weights as in `packing`: first [count, sides, HIDDEN, 320], last [count, sides, 320, HIDDEN].
    """
    side = tl.program_id(1).to(tl.int64)
    sides = tl.num_programs(1)
    above = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    if IS_FIRST:
        x_ptr += above * _D
    out_ptr += (side * rows + above) * _D
    if HAS_TOTAL:
        total_ptr += (side * rows + above) * _D
    left = (rows - above).to(tl.int32)
    head = tl.arange(0, _HEAD)
    piece = tl.arange(0, _PIECE)
    hidden = tl.arange(0, BLOCK_HIDDEN)
    for network in tl.range(0, count, disable_licm=True):
        strength = tl.load(strength_ptr + side * strength_side + network)
        # a zero that the compiler cannot see through: else addresses of the last part are kept during the loop below
        m = tl.arange(0, BLOCK_ROWS) + (strength != strength).to(tl.int32)
        inside = m[:, None] < left
        own_x = tl.where(network == 0, left, 0) if IS_FIRST else 0
        from_x, from_total = m[:, None] < own_x, m[:, None] < left - own_x
        keeps = m[:, None] < tl.where(network < kept, left, 0)
        source = out_ptr
        if IS_FIRST:  # noqa: SIM102 - decided when it is compiled, and on the device
            if network == 0:
                source = x_ptr
        x_head = tl.load(source + m[:, None] * _D + head[None, :], mask=inside, other=0.0)
        x_tail = tl.load(source + m[:, None] * _D + _HEAD + piece[None, :], mask=inside, other=0.0)
        place = network * sides + side
        first, last = first_weight_ptr + place * HIDDEN * _D, last_weight_ptr + place * HIDDEN * _D
        sums = tl.zeros((BLOCK_ROWS, _HEAD), tl.float32)
        tail = tl.zeros((BLOCK_ROWS, _PIECE), tl.float32)
        mean = tl.zeros((BLOCK_ROWS,), tl.float32)
        squares = tl.zeros((BLOCK_ROWS,), tl.float32)
        for start in tl.range(0, tl.where(strength == 0, 0, HIDDEN), BLOCK_HIDDEN, num_stages=STAGES):
            h = start + hidden
            a = tl.dot(x_head, tl.load(first + h[None, :] * _D + head[:, None]))
            a = tl.dot(x_tail, tl.load(first + h[None, :] * _D + _HEAD + piece[:, None]), a)
            a += tl.load(first_bias_ptr + place * HIDDEN + h)[None, :]
            slope = 0.0
            if ACTIVATION == "prelu":
                slope = tl.load(first_slope_ptr + place * HIDDEN + h)[None, :]
            a = activate(a, slope, ACTIVATION).to(out_ptr.dtype.element_ty)
            if HIDDEN_NORM:
                real = tl.maximum(tl.minimum(HIDDEN_WIDTH - start, BLOCK_HIDDEN), 0)
                values = tl.where((hidden < real)[None, :], a.to(tl.float32), 0.0)
                part = tl.sum(values, 1) / tl.maximum(real, 1)
                apart = tl.where((hidden < real)[None, :], values - part[:, None], 0.0)
                _, mean, squares = add_part(start, mean, squares, real, part, tl.sum(apart * apart, 1))
            sums = tl.dot(a, tl.load(last + head[None, :] * HIDDEN + h[:, None]), sums)
            tail = tl.dot(a, tl.load(last + (piece + _HEAD)[None, :] * HIDDEN + h[:, None]), tail)
        left_half, right_half = sums.reshape(BLOCK_ROWS, 2, 128).permute(0, 2, 1).split()
        piece_0, piece_1 = left_half.reshape(BLOCK_ROWS, 2, _PIECE).permute(0, 2, 1).split()
        piece_2, piece_3 = right_half.reshape(BLOCK_ROWS, 2, _PIECE).permute(0, 2, 1).split()
        pieces = (piece_0, piece_1, piece_2, piece_3, tail)
        scale = 1 / tl.sqrt(squares / HIDDEN_WIDTH + epsilon)
        row_mean = tl.zeros((BLOCK_ROWS,), tl.float32)
        row_squares = tl.zeros((BLOCK_ROWS,), tl.float32)
        if LAST_NORM:
            for i in tl.static_range(5):
                values = finished(
                    pieces[i],
                    mean,
                    scale,
                    place * _D + i * _PIECE + piece,
                    shift_ptr,
                    last_bias_ptr,
                    last_slope_ptr,
                    LAST_ACTIVATION,
                    HIDDEN_NORM,
                )
                part = tl.sum(values, 1) / _PIECE
                apart = values - part[:, None]
                _, row_mean, row_squares = add_part(
                    i * 64.0, row_mean, row_squares, 64.0, part, tl.sum(apart * apart, 1)
                )
        row_scale = 1 / tl.sqrt(row_squares / _D + epsilon)
        for i in tl.static_range(5):
            columns = place * _D + i * _PIECE + piece
            y = finished(
                pieces[i], mean, scale, columns, shift_ptr, last_bias_ptr, last_slope_ptr, LAST_ACTIVATION, HIDDEN_NORM
            )
            if LAST_NORM:
                y = (y - row_mean[:, None]) * row_scale[:, None]
                y = y * tl.load(norm_weight_ptr + columns)[None, :] + tl.load(norm_bias_ptr + columns)[None, :]
            at = m[:, None] * _D + i * _PIECE + piece[None, :]
            residual = tl.zeros((BLOCK_ROWS, _PIECE), tl.float32)
            if HAS_TOTAL:
                residual = tl.load(total_ptr + at, mask=from_total, other=0.0)
            if IS_FIRST:
                of_x = tl.load(x_ptr + at, mask=from_x, other=0.0).to(tl.float32)
                residual = tl.where(from_x, of_x, residual)
            y = tl.where(strength == 0, residual, residual + strength * y)
            tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)
            if HAS_TOTAL:
                tl.store(total_ptr + at, y, mask=keeps)
        tl.debug_barrier()


@triton.jit
def finished(
    sums, mean, scale, columns, shift_ptr, bias_ptr, slope_ptr, ACTIVATION: tl.constexpr, IS_NORMED: tl.constexpr
):
    """The second linear layer's outputs from its sums: the folded layer norm, bias and activation."""
    if IS_NORMED:
        sums = (sums - mean[:, None] * tl.load(shift_ptr + columns)[None, :]) * scale[:, None]
    sums += tl.load(bias_ptr + columns)[None, :]
    slope = 0.0
    if ACTIVATION == "prelu":
        slope = tl.load(slope_ptr + columns)[None, :]
    return activate(sums, slope, ACTIVATION)
