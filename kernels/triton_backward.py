"""The Triton kernels of the backward pass: a product with a weight, and what the chain rule puts behind it."""

from __future__ import annotations

import triton
import triton.language as tl

from hnetkit.kernels.triton_activations import activate, derivative


@triton.jit
def gradient_kernel(
    gradient_ptr,
    weight_ptr,
    before_ptr,
    residual_ptr,
    out_ptr,
    activated_ptr,
    rows,
    columns,
    depth,
    ACTIVATION: tl.constexpr,
    HAS_BEFORE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """``g W``: times ``activation'(before)`` where there is a stage before, else plus `residual`.

    gradient [sides, rows, depth], weight [sides, depth, columns], before (the stage's sums), out and activated
    (``activation(before)``) [sides, rows, columns]; residual [sides, rows, columns] in fp32; all contiguous.
    """
    side = tl.program_id(1).to(tl.int64)
    down = tl.cdiv(rows, BLOCK_ROWS)
    tile = tl.program_id(0)
    m = (tile % down) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    n = (tile // down) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    k = tl.arange(0, BLOCK_DEPTH)
    near_m, near_n = tl.minimum(m, rows - 1).to(tl.int64), tl.minimum(n, columns - 1).to(tl.int64)
    gradient_tile = gradient_ptr + (side * rows + near_m)[:, None] * depth + k[None, :]
    weight_tile = weight_ptr + side * depth * columns + k.to(tl.int64)[:, None] * columns + near_n[None, :]
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        a = tl.load(gradient_tile, mask=k[None, :] < depth - start, other=0.0)
        b = tl.load(weight_tile, mask=k[:, None] < depth - start, other=0.0)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
        gradient_tile += BLOCK_DEPTH
        weight_tile += BLOCK_DEPTH * columns
    place = (side * rows + m)[:, None] * columns + n[None, :]
    inside = (m[:, None] < rows) & (n[None, :] < columns)
    if HAS_BEFORE:
        before = tl.load(before_ptr + place, mask=inside, other=0.0).to(tl.float32)
        activated = activate(before, 0.0, ACTIVATION)
        tl.store(activated_ptr + place, activated.to(activated_ptr.dtype.element_ty), mask=inside)
        sums = sums * derivative(before, ACTIVATION)
    else:
        sums += tl.load(residual_ptr + place, mask=inside, other=0.0)
    tl.store(out_ptr + place, sums.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def derivative_kernel(gradient_ptr, before_ptr, out_ptr, count, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """``g * activation'(before)``, `count` values each: after the last stage, which no product of gradients follows."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    before = tl.load(before_ptr + place, mask=place < count, other=0.0).to(tl.float32)
    gradient = tl.load(gradient_ptr + place, mask=place < count, other=0.0).to(tl.float32)
    inner = gradient * derivative(before, ACTIVATION)
    tl.store(out_ptr + place, inner.to(out_ptr.dtype.element_ty), mask=place < count)
