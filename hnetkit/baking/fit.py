"""Reduced-rank regression: the change of a projection that is nearest to what a stack adds, over a model's contexts.

With x a context, m what the stack adds to it and W the projection, the difference D minimizes ``E |R (W m - D x)|^2``.
At full rank it is ``W A`` with ``A = C_mx (C_xx + ridge)^-1``. Of rank r it is ``R^-1 U_r U_r^T R W A``, where U are
the directions in which the fitted values ``R W A x`` vary most. R weighs errors as attention reads them: those of K by
the queries of each head, those of V by the projection of the output.

Source: Izenman, Reduced-rank regression for the multivariate linear model (1975).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hnetkit.baking.changes import SideChange
from hnetkit.baking.contributions import LayerProjections
from hnetkit.baking.moments import PairMoments, QueryMoments
from hnetkit.kernels.affine import to_float64
from hnetkit.runtime.strength import Side

RIDGE = 1e-4
"""Of the mean variance of a context: directions in which contexts hardly vary say nothing of other prompts."""

_FLOOR = 1e-3
"""Of the mean weight: directions that attention hardly reads count a little all the same."""


def fitted_change(
    projections: LayerProjections,
    side: Side,
    seen: PairMoments,
    held_out: PairMoments,
    queries: QueryMoments | None,
    *,
    in_parts: bool,
) -> SideChange:
    """Returns the change of one projection in float64, of full rank, with its errors on contexts held out.

    Args:
        seen: what it is fitted on.
        held_out: what its errors are measured on.
        queries: of the layer, for K.
        in_parts: as parts of rank 1, best first; else as a single difference, which takes less time.
    """
    weight = projections.of(side)  # [projected, width]
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    xx, mx, _ = seen.covariances
    ridge = RIDGE * xx.diagonal().mean() * identity
    best = weight @ torch.linalg.solve(xx + ridge, mx.T).T  # [projected, width]
    up, down = best, identity
    if in_parts:
        root, inverse = _error_weights(projections, side, queries)
        weighted = root @ best
        _, vectors = torch.linalg.eigh(weighted @ xx @ weighted.T)
        directions = vectors.flip(-1)[:, : min(weight.shape)]
        up, down = inverse @ directions, directions.T @ weighted
    errors = _errors(weight, up, down, seen, held_out, side)
    constant, center = None, None
    if side == "v":
        center, mean_m = seen.mean
        constant = weight @ mean_m - best @ center
    if not in_parts:
        return SideChange(best, None, constant, "fitted", errors[-1:])
    return SideChange(up, down, constant, "fitted", errors, center)


def _error_weights(projections: LayerProjections, side: Side, queries: QueryMoments | None) -> tuple[Tensor, Tensor]:
    """Returns R and its inverse, ``[projected, projected]``, both symmetric."""
    if side == "v":
        output = to_float64(projections.output)
        return _roots(output.T @ output)
    if queries is None:
        raise ValueError("K is fitted with the queries of its layer")
    pairs = [_roots(head) for head in queries.products]
    return torch.block_diag(*(root for root, _ in pairs)), torch.block_diag(*(inverse for _, inverse in pairs))


def _roots(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the square root of a symmetric matrix with a floor under it, and the root's inverse."""
    values, vectors = torch.linalg.eigh(gram)
    roots = (values.clamp(min=0) + _FLOOR * values.mean()).sqrt()
    return vectors * roots @ vectors.T, vectors / roots @ vectors.T


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


def _running(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])
