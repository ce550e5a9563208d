"""One [1, m, 1] network of width 320, K and V, in one launch whose warps have different jobs: for Hopper.

A program owns some rows of one side. Of its warps, four load weights, and two groups of four take half the rows each
through the first product, the activation and the second product at a pace of their own: one multiplies while the other
activates. Triton makes twelve warps of the four that it is asked for.

Three things are shaped for the compiler. The descriptor of x, whose rows the groups share out, is made in the kernel:
Triton 3.6 takes one of the host's and computes something else. The sums begin as what they are added to, and hidden
values come times the strength: so the end is one store, and keeps no registers. The columns are 256 and 64, as matrix
instructions have no 320. `tests/kernels/test_ahead_of_time.py` holds them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnetkit.kernels.configs import FusedTiles, specialized_tiles
from hnetkit.kernels.gpu import fused
from hnetkit.kernels.gpu.activations import activate
from hnetkit.kernels.gpu.device import capability_of
from hnetkit.kernels.gpu.linear import can_be_described, descriptor
from hnetkit.kernels.gpu.plan import require_allocator
from hnetkit.kernels.gpu.state import KernelState, side_stride
from hnetkit.kernels.weights import PackedMLPs, PackedStage, network_at

_D = tl.constexpr(fused.WIDTH)
_HEAD, _TAIL = 256, fused.WIDTH - 256
_N, _R = tl.constexpr(_HEAD), tl.constexpr(_TAIL)


@triton.jit
def specialized_kernel(
    x_ptr,
    first_head,
    first_tail,
    last_head,
    last_tail,
    first_bias_ptr,
    last_bias_ptr,
    strength_ptr,
    out_ptr,
    rows,
    x_side,
    strength_side,
    HIDDEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``y = x + strength * (W2 activation(W1 x + b1) + b2)``, all of one dtype.

    x [sides or 1, rows, 320], `x_side` 0 where both sides share one; out [sides, rows, 320]. The weights are
    descriptors of first [sides * HIDDEN, 320] and last [sides * 320, HIDDEN], each in boxes of 256 and of 64 columns of
    x or of the output; biases [sides, HIDDEN] and [sides, 320] in fp32.
    """
    side = tl.program_id(1)
    strength = tl.load(strength_ptr + side * strength_side)  # scalar
    above = tl.program_id(0) * BLOCK_M
    x_ptr += side.to(tl.int64) * x_side
    x_head = tl.make_tensor_descriptor(x_ptr, [rows, _D], [_D, 1], [BLOCK_M, _N]).load([above, 0])
    x_tail = tl.make_tensor_descriptor(x_ptr, [rows, _D], [_D, 1], [BLOCK_M, _R]).load([above, _N])
    m = above + tl.arange(0, BLOCK_M)
    inside = m[:, None] < rows
    offsets = m.to(tl.int64)[:, None] * _D
    head, tail = tl.arange(0, _N), tl.arange(0, _R) + _N
    sums = begin(x_ptr + offsets + head[None, :], last_bias_ptr + side * _D + head, strength, inside)
    rest = begin(x_ptr + offsets + tail[None, :], last_bias_ptr + side * _D + tail, strength, inside)
    end = tl.where(strength == 0, 0, HIDDEN)
    for start in tl.range(0, end, BLOCK_H, num_stages=STAGES, warp_specialize=True):
        hidden = side * HIDDEN + start
        a = tl.dot(x_head, first_head.load([hidden, 0]).T)  # [BLOCK_H, 256]
        a = tl.dot(x_tail, first_tail.load([hidden, _N]).T, a)  # [BLOCK_H, 64]
        a += tl.load(first_bias_ptr + hidden + tl.arange(0, BLOCK_H))[None, :]  # [BLOCK_H]
        a = (activate(a, 0.0, ACTIVATION) * strength).to(out_ptr.dtype.element_ty)
        sums = tl.dot(a, last_head.load([side * _D, start]).T, sums)  # [256, BLOCK_H]
        rest = tl.dot(a, last_tail.load([side * _D + _N, start]).T, rest)  # [64, BLOCK_H]
    out_ptr += side.to(tl.int64) * rows * _D
    tl.store(out_ptr + offsets + head[None, :], sums.to(out_ptr.dtype.element_ty), mask=inside)  # [BLOCK_M, 256]
    tl.store(out_ptr + offsets + tail[None, :], rest.to(out_ptr.dtype.element_ty), mask=inside)  # [BLOCK_M, 64]


@triton.jit
def begin(residual_ptrs, bias_ptrs, strength, inside):
    """What the second product is added to: ``residual + strength * bias``, in fp32.

    With a strength of 0 it is the residual, bit for bit: any value plus -0 is itself.
    """
    bias = tl.where(strength == 0, -0.0, strength * tl.load(bias_ptrs))
    return tl.load(residual_ptrs, mask=inside, other=0.0).to(tl.float32) + bias[None, :]


def tiles_for(networks: PackedMLPs, device: torch.device) -> FusedTiles | None:
    """Returns the tiles that `run` takes on `device`; None where it cannot run.

    Sums in fp32, which stacks of bf16 need, do not fit on the chip beside two halves of a tile. An activation after the
    last product has no place, as the residual is in the sums from the beginning; layer norms and PReLU are left out.
    """
    first, last = networks[0], networks[-1]
    is_plain = first.slope is None and last.activation is None and not any(stage.is_normed for stage in networks)
    if not (fused.fits(networks) and is_plain and first.weight.dtype == torch.float16):
        return None
    if not can_be_described(first.weight, last.weight):
        return None
    return specialized_tiles(capability_of(device))


def launches(networks: PackedMLPs) -> int:
    """Returns how many launches `run` makes."""
    return len(networks[0].weight)


def run(
    state: KernelState, networks: PackedMLPs, strengths: Tensor, tiles: FusedTiles, *, is_last: bool
) -> KernelState:
    """Applies networks of one build, a launch each; see `linear.run`. Rows must begin at 16 bytes, and be fp16 as x."""
    require_allocator()
    count = launches(networks)
    for index in range(count):
        out, total = state.outputs(len(strengths), is_last=is_last and index == count - 1)
        _launch(state, [network_at(stage, index) for stage in networks], strengths[:, index], out, tiles)
        state = state.after(out, total)
    return state


def _launch(state: KernelState, mlp: Sequence[PackedStage], strength: Tensor, out: Tensor, tiles: FusedTiles) -> None:
    first, last = mlp
    sides, rows, _ = out.shape
    state.launch(
        specialized_kernel,
        (triton.cdiv(rows, tiles.rows), sides),
        state.rows,
        descriptor(first.weight, tiles.hidden, _HEAD),
        descriptor(first.weight, tiles.hidden, _TAIL),
        descriptor(last.weight, _HEAD, tiles.hidden),
        descriptor(last.weight, _TAIL, tiles.hidden),
        first.bias,
        last.bias,
        strength,
        out,
        rows,
        side_stride(state.rows),
        strength.stride(0),
        HIDDEN=first.weight.shape[1],
        ACTIVATION=first.activation or "none",
        BLOCK_M=tiles.rows,
        BLOCK_H=tiles.hidden,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
