"""The two Triton kernels of the grouped path: a linear layer and a layer norm, each with all that follows it."""

from __future__ import annotations

import triton
import triton.language as tl

from hnetkit.kernels.triton_activations import activate


@triton.jit
def linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    residual_ptr,
    strength_ptr,
    out_ptr,
    total_ptr,
    rows,
    columns,
    depth,
    slope_stride,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_OUT: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """``h = activation(x W^T + b)``; with a residual ``residual + strength * h``; to `out` rounded, to `total` in fp32.

    x [rows, depth], weight [columns, depth], residual, out and total [rows, columns], all contiguous.
    """
    down = tl.cdiv(rows, BLOCK_ROWS)
    tile = tl.program_id(0)
    m = (tile % down).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    n = (tile // down).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    k = tl.arange(0, BLOCK_DEPTH)
    in_m, in_n = m[:, None] < rows, n[None, :] < columns
    x_tile = x_ptr + m[:, None] * depth + k[None, :]
    weight_tile = weight_ptr + n[None, :] * depth + k[:, None]
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        left = depth - start
        a = tl.load(x_tile, mask=in_m & (k[None, :] < left), other=0.0)
        b = tl.load(weight_tile, mask=in_n & (k[:, None] < left), other=0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee")
        x_tile += BLOCK_DEPTH
        weight_tile += BLOCK_DEPTH
    if HAS_BIAS:
        sums += tl.load(bias_ptr + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    slope = 0.0
    if ACTIVATION == "prelu":
        slope = tl.load(slope_ptr + n * slope_stride, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    h = activate(sums, slope, ACTIVATION)
    place = m[:, None] * columns + n[None, :]
    inside = in_m & in_n
    if HAS_RESIDUAL:
        h = tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32) + tl.load(strength_ptr) * h
    if HAS_TOTAL:
        tl.store(total_ptr + place, h, mask=inside)
    if HAS_OUT:
        tl.store(out_ptr + place, h.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_kernel(
    h_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    strength_ptr,
    out_ptr,
    total_ptr,
    columns,
    epsilon,
    HAS_RESIDUAL: tl.constexpr,
    HAS_OUT: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Layer norm of one row of `h` [rows, columns] in fp32, then what `linear_kernel` does with its sums."""
    row = tl.program_id(0).to(tl.int64) * columns
    n = tl.arange(0, BLOCK)
    inside = n < columns
    h = tl.load(h_ptr + row + n, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(h, 0) / columns
    centred = tl.where(inside, h - mean, 0.0)
    h = centred / tl.sqrt(tl.sum(centred * centred, 0) / columns + epsilon)
    weight = tl.load(weight_ptr + n, mask=inside, other=0.0).to(tl.float32)
    h = h * weight + tl.load(bias_ptr + n, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        h = tl.load(residual_ptr + row + n, mask=inside, other=0.0).to(tl.float32) + tl.load(strength_ptr) * h
    if HAS_TOTAL:
        tl.store(total_ptr + row + n, h, mask=inside)
    if HAS_OUT:
        tl.store(out_ptr + row + n, h.to(out_ptr.dtype.element_ty), mask=inside)
