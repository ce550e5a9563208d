"""The change of a projection that is exactly what an affine stack adds: ``W (x + P x + p) = (W + W P) x + W p``.

A constant on all keys adds one number to every score of a row of the softmax, which ignores it; on V it passes to the
output. Everything is linear in P and p, so it is computed in float64 and rounded once, when it is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hnetkit.baking.changes import SideChange
from hnetkit.kernels.affine import Affine
from hnetkit.runtime.strength import Side

_NEGLIGIBLE = 1e-12
"""Singular values below this share of the largest are what float64 products leave of 0."""


def exact_change(weight: Tensor, affine: Affine, side: Side, *, in_parts: bool) -> SideChange:
    """Returns the change of one projection in float64.

    Args:
        weight: of ``to_k`` or ``to_v``, ``[projected, width]`` in float64.
        affine: P and p of what the stack adds to the context.
        in_parts: as parts of rank 1, best first; else as a single product, which takes less time.
    """
    difference = weight @ affine.matrix
    constant = weight @ affine.offset if side == "v" else None
    if not in_parts:
        return SideChange(difference, None, constant, "exact", difference.new_zeros(1))
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    rank = int((values > values[:1] * _NEGLIGIBLE).sum())
    errors = torch.cat([values.new_ones(rank), values.new_zeros(1)])  # fewer parts are better fitted to contexts
    return SideChange(left[:, :rank] * values[:rank], right[:rank], constant, "exact", errors)
