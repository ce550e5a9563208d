"""Reduced-rank regression: the change of a projection that is nearest to what a stack adds, over a model's contexts.

With x a context, m what the stack adds to it and W the projection, the difference D minimizes ``E |W m - D x|^2``. At
full rank it is ``W A`` with ``A = C_mx (C_xx + ridge)^-1``; of rank r it is ``U_r U_r^T W A``, where U are the
directions in which the fitted values ``W A x`` vary most. Weighing errors by each head's queries (K) and by the
projection of the output (V) was tried: it made better pictures of one of three stacks, and not of the two others.

Source: Izenman, Reduced-rank regression for the multivariate linear model (1975).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hnetkit.baking.changes import SideChange
from hnetkit.baking.moments import PairMoments
from hnetkit.runtime.strength import Side

RIDGE = 1e-3
"""Of the mean variance of a context: directions in which contexts hardly vary say nothing of other prompts."""


def fitted_change(
    weight: Tensor, side: Side, seen: PairMoments, held_out: PairMoments, *, in_parts: bool
) -> SideChange:
    """Returns the change of one projection in float64, of full rank, with its errors on contexts held out.

    Args:
        weight: of ``to_k`` or ``to_v``, ``[projected, width]`` in float64.
        seen: what it is fitted on.
        held_out: what its errors are measured on.
        in_parts: as parts of rank 1, best first; else as a single difference, which takes less time.
    """
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    xx, mx, _ = seen.covariances
    ridge = RIDGE * xx.diagonal().mean() * identity
    best = weight @ torch.linalg.solve(xx + ridge, mx.T).T  # [projected, width]
    up, down = best, identity
    if in_parts:
        _, vectors = torch.linalg.eigh(best @ xx @ best.T)
        up = vectors.flip(-1)[:, : min(weight.shape)]
        down = up.T @ best
    errors = _errors(weight, up, down, seen, held_out, side)
    constant, center = None, None
    if side == "v":
        center, mean_m = seen.mean
        constant = weight @ mean_m - best @ center
    if not in_parts:
        return SideChange(best, None, constant, "fitted", errors[-1:])
    return SideChange(up, down, constant, "fitted", errors, center)


def _errors(weight: Tensor, up: Tensor, down: Tensor, seen: PairMoments, held_out: PairMoments, side: Side) -> Tensor:
    """Returns the relative errors ``[rank + 1]`` with the first 0, 1, 2, ... parts.

    That of V counts its constant, both in what the stack adds and in what the fit misses of it.
    """
    xx, mx, mm = held_out.covariances
    total = ((weight @ mm) * weight).sum()
    single = ((down @ mx.T @ weight.T) * up.T).sum(1)  # [rank]
    double = (up.T @ up) * (down @ xx @ down.T)  # [rank, rank]
    missed = total - 2 * _running(single) + torch.cat([double.new_zeros(1), double.cumsum(0).cumsum(1).diagonal()])
    if side == "v":
        (seen_x, seen_m), (mean_x, mean_m) = seen.mean, held_out.mean
        shift_x, shift_m = mean_x - seen_x, mean_m - seen_m
        parts = up * (down @ shift_x)  # [projected, rank]
        constants = (weight @ shift_m)[:, None] - torch.cat([parts.new_zeros(len(up), 1), parts.cumsum(1)], dim=1)
        missed = missed + constants.square().sum(0)
        total = total + (weight @ mean_m).square().sum()
    return (missed.clamp(min=0) / total.clamp(min=torch.finfo(total.dtype).tiny)).sqrt()


def error_of(weight: Tensor, added: Tensor, constant: Tensor | None, held_out: PairMoments, side: Side) -> Tensor:
    """Returns the relative error, on contexts held out, of what is added to a weight, and for V to its output."""
    xx, mx, mm = held_out.covariances
    total = ((weight @ mm) * weight).sum()
    missed = total - 2 * ((added @ mx.T) * weight).sum() + ((added @ xx) * added).sum()
    if side == "v":
        mean_x, mean_m = held_out.mean
        own = weight @ mean_m
        missed = missed + (own - added @ mean_x - (0 if constant is None else constant)).square().sum()
        total = total + own.square().sum()
    return (missed.clamp(min=0) / total.clamp(min=torch.finfo(total.dtype).tiny)).sqrt()


def _running(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])
