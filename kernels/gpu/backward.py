"""Gradients of a stack by Triton kernels: of the context that it was given, and of its weights.

Nothing is kept from the forward pass but `x`. Recomputing a [1, m, 1] network costs two launches (its sums, and
the context after it); then come two products of gradients with weights, and torch's own products for the gradients of
the weights. Layer norms and PReLU have no gradients here: `supports_gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnetkit.kernels.activations import activate as activate_tensor
from hnetkit.kernels.configs import gradient_tiles
from hnetkit.kernels.gpu import linear
from hnetkit.kernels.gpu.activations import activate, derivative
from hnetkit.kernels.gpu.device import capability_of
from hnetkit.kernels.gpu.plan import launch
from hnetkit.kernels.gpu.state import KernelState
from hnetkit.kernels.weights import PackedMLPs, PackedStage, network_at

_BLOCK = 1024  # values of a program of the elementwise kernel


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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``g W``: times ``activation'(before)`` where there is a stage before, else plus `residual`.

    gradient [sides, rows, depth], weight [sides, depth, columns], before (the stage's sums), out and activated
    (``activation(before)``) [sides, rows, columns]; residual [sides, rows, columns] in fp32; all contiguous.
    """
    side = tl.program_id(1).to(tl.int64)
    row_tiles = tl.cdiv(rows, BLOCK_M)
    tile = tl.program_id(0)
    m = (tile % row_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tile // row_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # rows past the end read the last one, and what they give is not stored; columns past the end are masked: loads of
    # the weight run along them, and a clamp would split each load
    near_m = tl.minimum(m, rows - 1).to(tl.int64)
    gradient_tile = gradient_ptr + (side * rows + near_m)[:, None] * depth + k[None, :]
    weight_tile = weight_ptr + side * depth * columns + k.to(tl.int64)[:, None] * columns + n[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, depth, BLOCK_K):
        a = tl.load(gradient_tile, mask=k[None, :] < depth - start, other=0.0)  # [BLOCK_M, BLOCK_K]
        in_weight = (k[:, None] < depth - start) & (n[None, :] < columns)
        b = tl.load(weight_tile, mask=in_weight, other=0.0)  # [BLOCK_K, BLOCK_N]
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
        gradient_tile += BLOCK_K
        weight_tile += BLOCK_K * columns
    offsets = (side * rows + m)[:, None] * columns + n[None, :]
    inside = (m[:, None] < rows) & (n[None, :] < columns)
    if HAS_BEFORE:
        before = tl.load(before_ptr + offsets, mask=inside, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]
        activated = activate(before, 0.0, ACTIVATION)
        activated = activated.to(activated_ptr.dtype.element_ty)
        tl.store(activated_ptr + offsets, activated, mask=inside)  # [BLOCK_M, BLOCK_N]
        sums = sums * derivative(before, ACTIVATION)
    else:
        sums += tl.load(residual_ptr + offsets, mask=inside, other=0.0)  # [BLOCK_M, BLOCK_N]
    tl.store(out_ptr + offsets, sums.to(out_ptr.dtype.element_ty), mask=inside)  # [BLOCK_M, BLOCK_N]


@triton.jit
def derivative_kernel(gradient_ptr, before_ptr, out_ptr, count, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """``g * activation'(before)``, `count` values each: after the last stage, which no product of gradients follows."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    before = tl.load(before_ptr + offsets, mask=inside, other=0.0).to(tl.float32)  # [BLOCK]
    gradient = tl.load(gradient_ptr + offsets, mask=inside, other=0.0).to(tl.float32)  # [BLOCK]
    inner = gradient * derivative(before, ACTIVATION)
    tl.store(out_ptr + offsets, inner.to(out_ptr.dtype.element_ty), mask=inside)  # [BLOCK]


def supports_gradients(networks: Sequence[PackedMLPs]) -> bool:
    """Whether `gradients` can go through every stage."""
    return not any(stage.is_normed or stage.activation == "prelu" for packed in networks for stage in packed)


def gradients(
    gradient: Tensor, x: Tensor, strengths: Tensor, networks: Sequence[PackedMLPs]
) -> tuple[Tensor, list[Tensor]]:
    """Returns the gradients of `x` and of every weight and bias.

    Args:
        gradient: of the stack's output, ``[sides, ..., d]``.
        x: ``[..., d]``, the stack's input.
        strengths: ``[sides, networks]``.
        networks: as they were applied.

    Returns:
        ``[..., d]``; and, network by network and stage by stage, the weight's and the bias's, of their own shapes.
        Strengths have none.
    """
    mlps = [
        [network_at(stage, index) for stage in packed] for packed in networks for index in range(len(packed[0].weight))
    ]
    states = [KernelState.of(x, mlps[0][0].weight.dtype)]
    for mlp, numbers in zip(mlps[:-1], strengths.T, strict=False):
        states.append(linear.apply_network(states[-1], mlp, numbers, is_last=False))
    outer = gradient.reshape(len(strengths), -1, x.shape[-1]).to(torch.float32).contiguous()
    of_mlps: list[list[tuple[Tensor, Tensor]]] = []
    for mlp, state, numbers in reversed(list(zip(mlps, states, strengths.T, strict=True))):
        outer, of_mlp = _network_gradients(outer, state.rows, mlp, numbers)
        of_mlps.insert(0, of_mlp)
    return outer.sum(0).to(x.dtype).reshape(x.shape), _stacked_like(networks, of_mlps)


def _network_gradients(
    residual: Tensor, rows: Tensor, mlp: Sequence[PackedStage], strength: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Takes fp32 gradients ``[sides, rows, d]`` back through one network; also those of its weights and biases."""
    rows = rows.expand(len(strength), -1, -1)
    sums = _sums(rows, mlp)
    outer = (strength[:, None, None] * residual).to(rows.dtype)
    if mlp[-1].activation is not None:
        outer = _through_activation(outer, sums[-1], mlp[-1].activation)
    of_stages: list[tuple[Tensor, Tensor]] = []
    for index in range(len(mlp) - 1, 0, -1):
        before = sums[index - 1]
        inner, activated = torch.empty_like(before), torch.empty_like(before)
        activation = mlp[index - 1].activation
        _launch_gradient(outer, mlp[index], out=inner, before=before, activated=activated, activation=activation)
        of_stages.insert(0, _weight_gradients(outer, activated))
        outer = inner
    of_stages.insert(0, _weight_gradients(outer, rows))
    back = torch.empty_like(residual)
    _launch_gradient(outer, mlp[0], out=back, residual=residual)
    return back, of_stages


def _sums(rows: Tensor, mlp: Sequence[PackedStage]) -> list[Tensor]:
    """Returns what stages give before their activations, ``[sides, rows, out]``; no last one that has no activation."""
    sums: list[Tensor] = []
    for stage in mlp if mlp[-1].activation is not None else mlp[:-1]:
        if sums:
            rows = _activated(sums[-1], mlp[len(sums) - 1].activation)
        sums.append(torch.baddbmm(stage.bias[:, None].to(rows.dtype), rows, stage.weight.transpose(1, 2)))
    return sums


def _activated(sums: Tensor, activation: str | None) -> Tensor:
    return sums if activation is None else activate_tensor(sums, activation, None, inplace=False)


def _through_activation(outer: Tensor, sums: Tensor, activation: str) -> Tensor:
    """Returns ``outer * activation'(sums)``."""
    inner = torch.empty_like(outer)
    grid = (triton.cdiv(outer.numel(), _BLOCK), 1)
    launch(derivative_kernel, grid, outer, sums, inner, outer.numel(), ACTIVATION=activation, BLOCK=_BLOCK)
    return inner


def _weight_gradients(outer: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of a stage's weight ``[sides, out, in]`` and bias ``[sides, out]``."""
    return outer.transpose(1, 2) @ rows, outer.sum(1, dtype=torch.float32)


def _stacked_like(networks: Sequence[PackedMLPs], of_mlps: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> list[Tensor]:
    """Returns gradients of single networks, stacked as the networks were packed when they were applied."""
    result, left = [], iter(of_mlps)
    for packed in networks:
        own = [next(left) for _ in range(len(packed[0].weight))]
        for stage in range(len(packed)):
            result += [torch.stack([of_mlp[stage][kind] for of_mlp in own]) for kind in range(2)]
    return result


def _launch_gradient(
    gradient: Tensor,
    stage: PackedStage,
    *,
    out: Tensor,
    residual: Tensor | None = None,
    before: Tensor | None = None,
    activated: Tensor | None = None,
    activation: str | None = None,
) -> None:
    sides, rows, depth = gradient.shape
    columns = out.shape[2]
    tiles = gradient_tiles(capability_of(gradient.device), gradient.element_size())
    grid = (triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns), sides)
    launch(
        gradient_kernel,
        grid,
        gradient.contiguous(),
        stage.weight,
        before,
        residual,
        out,
        activated,
        rows,
        columns,
        depth,
        ACTIVATION=activation or "none",
        HAS_BEFORE=before is not None,
        PRECISION=linear.precision(gradient.dtype),
        BLOCK_M=tiles.rows,
        BLOCK_N=tiles.columns,
        BLOCK_K=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
