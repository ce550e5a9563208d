"""Gradients of a stack by Triton kernels: for contexts that are learned through, and weights that are learned.

Nothing is kept from the forward pass but `x`. A network of [1, m, 1] costs two launches to be computed again (its
sums, and the context after it), two products of gradients with weights, and torch's own products for the weights'
gradients. Layer norms and PReLU are not known here: `can_learn`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from hnetkit.kernels import grouped
from hnetkit.kernels.activations import activate
from hnetkit.kernels.configs import gradient_tiles
from hnetkit.kernels.devices import capability_of
from hnetkit.kernels.packing import Packed, PackedStage, at
from hnetkit.kernels.state import State
from hnetkit.kernels.triton_backward import derivative_kernel, gradient_kernel

_BLOCK = 1024  # values of a program of the elementwise kernel


def can_learn(networks: Sequence[Packed]) -> bool:
    """Whether `gradients` knows every stage."""
    return not any(stage.is_normed or stage.activation == "prelu" for packed in networks for stage in packed)


def gradients(
    gradient: Tensor, x: Tensor, strengths: Tensor, networks: Sequence[Packed]
) -> tuple[Tensor, list[Tensor]]:
    """Returns the gradients of `x` and of every weight and bias.

    Args:
        gradient: of what the stack gave, ``[sides, ..., d]``.
        x: ``[..., d]``, what it was given.
        strengths: ``[sides, networks]``.
        networks: as they were applied.

    Returns:
        ``[..., d]``; and, network by network and stage by stage, the weight's and the bias's, of their own shapes.
        Strengths have none.
    """
    mlps = [[at(stage, place) for stage in packed] for packed in networks for place in range(len(packed[0].weight))]
    states = [State.of(x, mlps[0][0].weight.dtype)]
    for mlp, numbers in zip(mlps[:-1], strengths.T, strict=False):
        states.append(grouped.apply(states[-1], mlp, numbers, is_last=False))
    flowing = gradient.reshape(len(strengths), -1, x.shape[-1]).to(torch.float32).contiguous()
    found: list[list[tuple[Tensor, Tensor]]] = []
    for mlp, state, numbers in reversed(list(zip(mlps, states, strengths.T, strict=True))):
        flowing, own = _network(flowing, state.rows, mlp, numbers)
        found.insert(0, own)
    return flowing.sum(0).to(x.dtype).reshape(x.shape), _like_packed(found, networks)


def _network(
    flowing: Tensor, rows: Tensor, mlp: Sequence[PackedStage], strength: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Takes fp32 gradients ``[sides, rows, d]`` back through one network; also those of its weights and biases."""
    rows = rows.expand(len(strength), -1, -1)
    sums = _sums(rows, mlp)
    outer = (strength[:, None, None] * flowing).to(rows.dtype)
    if mlp[-1].activation is not None:
        outer = _through_activation(outer, sums[-1], mlp[-1].activation)
    found: list[tuple[Tensor, Tensor]] = []
    for place in range(len(mlp) - 1, 0, -1):
        before = mlp[place - 1]
        inner, activated = torch.empty_like(sums[place - 1]), torch.empty_like(sums[place - 1])
        _launch(outer, mlp[place], out=inner, before=sums[place - 1], activated=activated, activation=before.activation)
        found.insert(0, _of_weights(outer, activated))
        outer = inner
    found.insert(0, _of_weights(outer, rows))
    back = torch.empty_like(flowing)
    _launch(outer, mlp[0], out=back, residual=flowing)
    return back, found


def _sums(rows: Tensor, mlp: Sequence[PackedStage]) -> list[Tensor]:
    """Returns what each stage gives before its activation, ``[sides, rows, out]``; of a last one without, nothing."""
    found: list[Tensor] = []
    for stage in mlp if mlp[-1].activation is not None else mlp[:-1]:
        if found:
            rows = _activated(found[-1], mlp[len(found) - 1].activation)
        found.append(torch.baddbmm(stage.bias[:, None].to(rows.dtype), rows, stage.weight.transpose(1, 2)))
    return found


def _activated(sums: Tensor, activation: str | None) -> Tensor:
    return sums if activation is None else activate(sums, activation, None, inplace=False)


def _through_activation(outer: Tensor, sums: Tensor, activation: str) -> Tensor:
    """Returns ``outer * activation'(sums)``."""
    inner = torch.empty_like(outer)
    grid = (triton.cdiv(outer.numel(), _BLOCK),)
    derivative_kernel[grid](outer, sums, inner, outer.numel(), ACTIVATION=activation, BLOCK=_BLOCK)
    return inner


def _of_weights(outer: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of a stage's weight ``[sides, out, in]`` and bias ``[sides, out]``."""
    return outer.transpose(1, 2) @ rows, outer.sum(1, dtype=torch.float32)


def _like_packed(found: Sequence[Sequence[tuple[Tensor, Tensor]]], networks: Sequence[Packed]) -> list[Tensor]:
    """Returns gradients of single networks as those of the runs that they were applied in."""
    result, left = [], iter(found)
    for packed in networks:
        own = [next(left) for _ in range(len(packed[0].weight))]
        for place in range(len(packed)):
            result += [torch.stack([network[place][kind] for network in own]) for kind in range(2)]
    return result


def _launch(
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
    gradient_kernel[grid](
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
        PRECISION=grouped.precision(gradient.dtype),
        BLOCK_ROWS=tiles.rows,
        BLOCK_COLUMNS=tiles.columns,
        BLOCK_DEPTH=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
