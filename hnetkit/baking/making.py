"""The changes that take a stack's place: exact where it is affine, fitted elsewhere, of ranks that keep an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hnetkit.baking.changes import Changes, Place, Rounding, SideChange, worst
from hnetkit.baking.contexts import GatheredContexts
from hnetkit.baking.contributions import StackOnLayers
from hnetkit.baking.exact import exact_change
from hnetkit.baking.fit import error_of, fitted_change
from hnetkit.baking.moments import PairMoments
from hnetkit.errors import TooInexact
from hnetkit.runtime.strength import Side

USUAL_RANK = 16
"""Of a LoRA with fitted parts, where neither a rank nor an error was asked for."""

Gather = Callable[[], tuple[GatheredContexts, GatheredContexts]]
"""Draws, and returns the contexts to fit on and those held out."""


@dataclass(frozen=True, slots=True)
class Form:
    """The form that changes have.

    Attributes:
        in_parts: as a LoRA has them; else each is one whole difference.
        rank: of a LoRA at most; None where the error decides, or what is exact.
        max_error: relative error that the worst layer and side may have; None for any.
        is_shared: whether all layers of a LoRA have one rank, because the program's loader mistakes others.
        rounding: of the file.
    """

    in_parts: bool
    rounding: Rounding
    rank: int | None = None
    max_error: float | None = None
    is_shared: bool = False

    def limit(self, *, is_affine: bool) -> int | None:
        """Returns the largest rank that is kept of a change; None for all of it."""
        if self.rank is None and self.max_error is None and not is_affine:
            return USUAL_RANK if self.in_parts else None
        return self.rank


def make_changes(
    on_layers: StackOnLayers, gather: Gather, form: Form, refine: Callable[[Changes], Changes] | None = None
) -> Changes:
    """Returns the changes of all layers, with the errors that they have once they are rounded.

    Args:
        gather: called where something has to be fitted.
        refine: returns better changes than those that were fitted; called after `gather`.

    Raises:
        FileRefused: a value does not fit the type of the file.
        TooInexact: the error is above the form's limit; the hint names what would do.
    """
    limit = form.limit(is_affine=on_layers.is_affine)
    exact: dict[Place, SideChange] = {}
    for place, contribution in on_layers.contributions.items():
        if contribution.is_affine:
            weight = on_layers.projections(place[0]).of(place[1])
            change = exact_change(weight, contribution.affine(), place[1], in_parts=form.in_parts)
            if limit is None or change.rank <= limit:
                exact[place] = _rounded(change, weight, place[1], form.rounding)
    to_fit = [place for place in on_layers.contributions if place not in exact]
    fitted: dict[Place, SideChange] = {}
    needed: dict[Place, int | None] = {}
    if to_fit:
        seen, held_out = gather()
        for layer, side in to_fit:
            weight, apart = on_layers.projections(layer).of(side), held_out.of(layer, side)
            change = fitted_change(weight, side, seen.of(layer, side), apart, in_parts=form.in_parts)
            if form.in_parts and form.max_error is not None:
                needed[layer, side] = _rank_for(form.max_error, change, weight, side, form.rounding, apart)
            fitted[layer, side] = change if limit is None else change.truncated(limit)
        if form.in_parts and form.rank is None:
            fitted = _of_ranks(fitted, exact, needed, is_shared=form.is_shared)
        if refine is not None:
            better = refine({**exact, **fitted})
            fitted = {place: _measured(better[place], place, on_layers, held_out) for place in fitted}
        for (layer, side), change in fitted.items():
            weight = on_layers.projections(layer).of(side)
            fitted[layer, side] = _rounded(change, weight, side, form.rounding, held_out.of(layer, side))
    both = {**exact, **fitted}
    made = {place: both[place] for place in on_layers.contributions}
    for (layer, side), change in made.items():
        if not math.isfinite(change.error):
            raise form.rounding.too_large(f"{layer.name}.to_{side}")
    _require_error(made, needed, form, is_refined=refine is not None)
    return made


def _measured(change: SideChange, place: Place, on_layers: StackOnLayers, held_out: GatheredContexts) -> SideChange:
    """Returns a change that was refined with its error, which is no longer that of the fit."""
    weight, (_, side) = on_layers.projections(place[0]).of(place[1]), place
    return replace(change, errors=error_of(weight, change.matrix, change.constant, held_out.of(*place), side)[None])


def _rounded(
    change: SideChange, weight: Tensor, side: Side, rounding: Rounding, held_out: PairMoments | None = None
) -> SideChange:
    """Returns a change with the error that it has once it is rounded.

    Args:
        held_out: what it is measured on; None for an exact one, whose values are compared.
    """
    if not rounding.is_felt:
        return change
    added = rounding.added(weight, change)
    if held_out is not None:
        error = error_of(weight, added, rounding.of(change).constant, held_out, side)
    else:
        error = (added - change.matrix).norm() / change.matrix.norm().clamp(min=torch.finfo(added.dtype).tiny)
    return replace(change, errors=torch.cat([change.errors[:-1], error[None]]))


def _rank_for(
    limit: float, change: SideChange, weight: Tensor, side: Side, rounding: Rounding, held_out: PairMoments
) -> int | None:
    """Returns the least rank whose error is at most `limit` once it is rounded; None where no rank's is."""
    least = change.rank_for(limit)
    ranks = range(change.rank + 1)[least:] if least is not None else ()
    within = (
        rank for rank in ranks if _rounded(change.truncated(rank), weight, side, rounding, held_out).error <= limit
    )
    return next(within, None)


def _of_ranks(
    fitted: Changes, exact: Changes, needed: Mapping[Place, int | None], *, is_shared: bool
) -> dict[Place, SideChange]:
    """Returns fitted changes of the ranks that an error needs; where all have one rank, of the largest."""
    ranks = {place: change.rank for place, change in fitted.items()}
    ranks |= {place: rank for place, rank in needed.items() if rank is not None}
    if is_shared:
        most = max([*ranks.values(), *(change.rank for change in exact.values())])
        ranks = dict.fromkeys(ranks, most)
    return {place: change.truncated(ranks[place]) for place, change in fitted.items()}


def _require_error(made: Changes, needed: Mapping[Place, int | None], form: Form, *, is_refined: bool) -> None:
    place = worst(made)
    if form.max_error is None or made[place].error <= form.max_error:
        return
    layer, side = place
    ranks = [rank for rank in needed.values() if rank is not None]
    if made[place].origin == "exact":
        hint = "rounding alone makes it: a model in fp32" if form.rounding.of_sums else "--file-dtype fp32"
    elif is_refined:
        hint = "leave --refine out, or a higher --max-error"
    elif form.in_parts and len(ranks) == len(needed):
        hint = f"--rank {max(ranks)}"
    else:
        hint = "no rank would do: a higher --max-error, or lower strengths"
    raise TooInexact(
        f"{layer.name}.to_{side}: a relative error of {made[place].error:.3f}, above {form.max_error:g}; "
        "nothing was written",
        hint=hint,
    )
