"""Whole stacks of [1, m, 1] networks of width 320, K and V, in one Triton launch; hidden values never leave the chip.

A program owns some rows of one side and takes them through every network. The hidden layer comes in blocks: a block is
computed, activated, and multiplied into the sums of the outputs at once.

Three things are shaped for the compiler, so that nothing spills and matrix instructions are not run one by one: this
order, the split of the columns into 256 and 64, and the pieces of the last part. They were found by compiling, and
`tests/kernels/test_ahead_of_time.py` holds them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnetkit.kernels.configs import FusedTiles, fused_tiles
from hnetkit.kernels.gpu.activations import activate
from hnetkit.kernels.gpu.device import capability_of
from hnetkit.kernels.gpu.linear import add_part
from hnetkit.kernels.gpu.state import KernelState
from hnetkit.kernels.weights import NORM_EPSILON, PackedMLPs

WIDTH = 320
_D = tl.constexpr(WIDTH)
_HEAD = tl.constexpr(256)
_PIECE = tl.constexpr(64)
_DTYPES = (torch.float16, torch.bfloat16)


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
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``y = y + strength * MLP(y)`` for `count` networks of one build.

    x [rows, 320] where IS_FIRST: the stack begins here. Else `out` and `total` hold what came before, and are
    overwritten. out [sides, rows, 320] in the products' dtype; what is added to is read from it, or, with HAS_TOTAL,
    from total [sides, rows, 320] in fp32, written by the first `kept` networks. Weights are packed: first
    [count, sides, HIDDEN, 320], last [count, sides, 320, HIDDEN].
    """
    side = tl.program_id(1).to(tl.int64)
    sides = tl.num_programs(1)
    above = tl.program_id(0).to(tl.int64) * BLOCK_M
    if IS_FIRST:
        x_ptr += above * _D
    out_ptr += (side * rows + above) * _D
    if HAS_TOTAL:
        total_ptr += (side * rows + above) * _D
    left = (rows - above).to(tl.int32)
    head = tl.arange(0, _HEAD)
    piece = tl.arange(0, _PIECE)
    hidden = tl.arange(0, BLOCK_H)
    for network in tl.range(0, count, disable_licm=True):
        strength = tl.load(strength_ptr + side * strength_side + network)  # scalar
        # plus a zero that the compiler cannot see through: else the last part's addresses are kept during the loop
        m = tl.arange(0, BLOCK_M) + (strength != strength).to(tl.int32)
        inside = m[:, None] < left
        own_x = tl.where(network == 0, left, 0) if IS_FIRST else 0
        from_x, from_total = m[:, None] < own_x, m[:, None] < left - own_x  # of what the residual is read
        keeps = m[:, None] < tl.where(network < kept, left, 0)
        source = out_ptr
        if IS_FIRST:  # noqa: SIM102 - the first is decided by the compiler, the second on the device
            if network == 0:
                source = x_ptr
        row = source + m[:, None] * _D
        x_head = tl.load(row + head[None, :], mask=inside, other=0.0)  # [BLOCK_M, 256]
        x_tail = tl.load(row + _HEAD + piece[None, :], mask=inside, other=0.0)  # [BLOCK_M, 64]
        index = network * sides + side
        first, last = first_weight_ptr + index * HIDDEN * _D, last_weight_ptr + index * HIDDEN * _D
        sums = tl.zeros((BLOCK_M, _HEAD), tl.float32)
        tail = tl.zeros((BLOCK_M, _PIECE), tl.float32)
        mean = tl.zeros((BLOCK_M,), tl.float32)
        squares = tl.zeros((BLOCK_M,), tl.float32)
        for start in tl.range(0, tl.where(strength == 0, 0, HIDDEN), BLOCK_H, num_stages=STAGES):
            h = start + hidden
            a = tl.dot(x_head, tl.load(first + h[None, :] * _D + head[:, None]))  # [256, BLOCK_H]
            a = tl.dot(x_tail, tl.load(first + h[None, :] * _D + _HEAD + piece[:, None]), a)  # [64, BLOCK_H]
            a += tl.load(first_bias_ptr + index * HIDDEN + h)[None, :]  # [BLOCK_H]
            slope = 0.0
            if ACTIVATION == "prelu":
                slope = tl.load(first_slope_ptr + index * HIDDEN + h)[None, :]  # [BLOCK_H]
            a = activate(a, slope, ACTIVATION).to(out_ptr.dtype.element_ty)
            if HIDDEN_NORM:
                real = tl.maximum(tl.minimum(HIDDEN_WIDTH - start, BLOCK_H), 0)  # columns that are not padding
                values = tl.where((hidden < real)[None, :], a.to(tl.float32), 0.0)
                part = tl.sum(values, 1) / tl.maximum(real, 1)
                apart = tl.where((hidden < real)[None, :], values - part[:, None], 0.0)
                _, mean, squares = add_part(start, mean, squares, real, part, tl.sum(apart * apart, 1))
            sums = tl.dot(a, tl.load(last + head[None, :] * HIDDEN + h[:, None]), sums)  # [BLOCK_H, 256]
            tail = tl.dot(a, tl.load(last + (piece + _HEAD)[None, :] * HIDDEN + h[:, None]), tail)  # [BLOCK_H, 64]
        left_half, right_half = sums.reshape(BLOCK_M, 2, 128).permute(0, 2, 1).split()
        piece_0, piece_1 = left_half.reshape(BLOCK_M, 2, _PIECE).permute(0, 2, 1).split()
        piece_2, piece_3 = right_half.reshape(BLOCK_M, 2, _PIECE).permute(0, 2, 1).split()
        pieces = (piece_0, piece_1, piece_2, piece_3, tail)
        scale = 1 / tl.sqrt(squares / HIDDEN_WIDTH + epsilon)
        row_mean = tl.zeros((BLOCK_M,), tl.float32)
        row_squares = tl.zeros((BLOCK_M,), tl.float32)
        if LAST_NORM:
            for i in tl.static_range(5):
                values = finish(
                    pieces[i],
                    mean,
                    scale,
                    index * _D + i * _PIECE + piece,
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
            columns = index * _D + i * _PIECE + piece
            y = finish(
                pieces[i], mean, scale, columns, shift_ptr, last_bias_ptr, last_slope_ptr, LAST_ACTIVATION, HIDDEN_NORM
            )
            if LAST_NORM:
                y = (y - row_mean[:, None]) * row_scale[:, None]
                y = y * tl.load(norm_weight_ptr + columns)[None, :]  # [64]
                y += tl.load(norm_bias_ptr + columns)[None, :]  # [64]
            offsets = m[:, None] * _D + i * _PIECE + piece[None, :]
            if HAS_TOTAL:
                residual = tl.load(total_ptr + offsets, mask=from_total, other=0.0)  # [BLOCK_M, 64]
                if IS_FIRST:
                    own = tl.load(x_ptr + offsets, mask=from_x, other=0.0)  # [BLOCK_M, 64]
                    residual = tl.where(from_x, own.to(tl.float32), residual)
            else:
                residual = tl.load(source + offsets, mask=inside, other=0.0).to(tl.float32)  # [BLOCK_M, 64]
            y = tl.where(strength == 0, residual, residual + strength * y)
            tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=inside)  # [BLOCK_M, 64]
            if HAS_TOTAL:
                tl.store(total_ptr + offsets, y, mask=keeps)  # [BLOCK_M, 64]
        tl.debug_barrier()  # the next network reads what other threads have stored


@triton.jit
def finish(
    sums, mean, scale, columns, shift_ptr, bias_ptr, slope_ptr, ACTIVATION: tl.constexpr, IS_NORMED: tl.constexpr
):
    """The second linear layer's outputs from 64 columns of its sums: the folded layer norm, bias and activation."""
    if IS_NORMED:
        sums = (sums - mean[:, None] * tl.load(shift_ptr + columns)[None, :]) * scale[:, None]  # [64]
    sums += tl.load(bias_ptr + columns)[None, :]  # [64]
    slope = 0.0
    if ACTIVATION == "prelu":
        slope = tl.load(slope_ptr + columns)[None, :]  # [64]
    return activate(sums, slope, ACTIVATION)


def fits(networks: PackedMLPs) -> bool:
    """Whether networks of one build are what the kernel is for."""
    first, last = networks[0], networks[-1]
    widths = (first.weight.shape[-1], last.weight.shape[-2])
    return len(networks) == 2 and widths == (WIDTH, WIDTH) and first.weight.dtype in _DTYPES


def tiles_for(networks: PackedMLPs, device: torch.device) -> FusedTiles | None:
    """Returns the tiles that `run` takes on `device`; None where it cannot run."""
    if not fits(networks):
        return None
    return fused_tiles(capability_of(device), normed=any(stage.is_normed for stage in networks))


def launches(networks: PackedMLPs) -> int:
    """Returns how many launches `run` makes."""
    return 1


def run(
    state: KernelState, networks: PackedMLPs, strengths: Tensor, tiles: FusedTiles, *, is_last: bool
) -> KernelState:
    """Applies networks of one build in one launch; see `linear.run`.

    x must have the products' dtype: the kernel reads and writes contexts in it, and would lose what is wider.
    """
    first, last = networks
    count, sides, hidden, _ = first.weight.shape
    rows = state.rows.shape[1]
    if state.is_first:
        out = state.rows.new_empty(sides, rows, WIDTH)
        needed = state.needs_total and not (is_last and count == 1)
        total = torch.empty_like(out, dtype=torch.float32) if needed else None
    else:
        out, total = state.rows, state.residual if state.needs_total else None
    state.launch(
        fused_kernel,
        (triton.cdiv(rows, tiles.rows), sides),
        state.rows,
        first.weight,
        first.bias,
        first.slope,
        last.weight,
        last.bias,
        last.slope,
        last.shift,
        last.norm_weight,
        last.norm_bias,
        strengths,
        out,
        total,
        rows,
        count,
        count - 1 if is_last else count,
        strengths.stride(0),
        NORM_EPSILON,
        HIDDEN=hidden,
        HIDDEN_WIDTH=first.width,
        ACTIVATION=first.activation or "none",
        LAST_ACTIVATION=last.activation or "none",
        HIDDEN_NORM=first.is_normed,
        LAST_NORM=last.is_normed,
        IS_FIRST=state.is_first,
        HAS_TOTAL=total is not None,
        BLOCK_M=tiles.rows,
        BLOCK_H=tiles.hidden,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return state.after(out, None if is_last else total)
