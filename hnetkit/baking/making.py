"""The changes that take a stack's place: exact where it is affine, fitted elsewhere, of ranks that keep an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hnetkit.baking.changes import Changes, Place, SideChange, worst
from hnetkit.baking.contexts import GatheredContexts
from hnetkit.baking.contributions import StackOnLayers
from hnetkit.baking.exact import exact_change
from hnetkit.baking.fit import fitted_change, relative_error
from hnetkit.errors import TooInexact
from hnetkit.runtime.layers import Layer
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
    """

    in_parts: bool
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
    """Returns the changes of all layers.

    Args:
        gather: called where something has to be fitted.
        refine: returns better changes than those that were fitted; called after `gather`.

    Raises:
        TooInexact: the error is above the form's limit; the hint names what would do.
    """
    limit = form.limit(is_affine=on_layers.is_affine)
    exact: dict[Place, SideChange] = {}
    for place, contribution in on_layers.contributions.items():
        if contribution.is_affine:
            weight = on_layers.projections(place[0]).of(place[1])
            change = exact_change(weight, contribution.affine(), place[1], in_parts=form.in_parts)
            if limit is None or change.rank <= limit:
                exact[place] = change
    to_fit = [place for place in on_layers.contributions if place not in exact]
    if not to_fit:
        return exact
    seen, held_out = gather()
    fitted: dict[Place, SideChange] = {}
    needed: dict[Place, int | None] = {}
    for layer, side in to_fit:
        change = fitted_change(
            on_layers.projections(layer).of(side),
            side,
            seen.of(layer, side),
            held_out.of(layer, side),
            in_parts=form.in_parts,
        )
        if form.max_error is not None:
            needed[layer, side] = change.rank_for(form.max_error)
        fitted[layer, side] = change if limit is None else change.truncated(limit)
    _require_error(fitted, needed, form)
    if form.in_parts and form.rank is None:
        fitted = _of_ranks(fitted, exact, needed, is_shared=form.is_shared)
    both = {**exact, **fitted}
    changes = {place: both[place] for place in on_layers.contributions}
    return changes if refine is None else _measured(refine(changes), on_layers, held_out, form)


def _measured(changes: Changes, on_layers: StackOnLayers, held_out: GatheredContexts, form: Form) -> Changes:
    """Returns changes that were refined with their errors, which are no longer those of the fit."""
    measured: dict[Place, SideChange] = dict(changes)
    for (layer, side), change in changes.items():
        if change.origin == "fitted":
            weight = on_layers.projections(layer).of(side)
            errors = relative_error(weight, side, change, held_out.of(layer, side))
            measured[layer, side] = replace(change, errors=errors)
    layer, side = worst(measured)
    error = measured[layer, side].error
    if form.max_error is not None and error > form.max_error:
        raise _too_inexact(layer, side, error, form.max_error, "leave --refine out, or a higher --max-error")
    return measured


def _of_ranks(
    fitted: Changes, exact: Changes, needed: Mapping[Place, int | None], *, is_shared: bool
) -> dict[Place, SideChange]:
    """Returns fitted changes of the ranks that an error needs; where all have one rank, of the largest."""
    ranks = {place: change.rank for place, change in fitted.items()}
    ranks |= {place: rank for place, rank in needed.items() if rank is not None}
    if is_shared:
        most = max(*ranks.values(), *(change.rank for change in exact.values()))
        ranks = dict.fromkeys(ranks, most)
    return {place: change.truncated(ranks[place]) for place, change in fitted.items()}


def _require_error(fitted: Changes, needed: Mapping[Place, int | None], form: Form) -> None:
    place = worst(fitted)
    if form.max_error is None or fitted[place].error <= form.max_error:
        return
    layer, side = place
    ranks = [rank for rank in needed.values() if rank is not None]
    if form.in_parts and len(ranks) == len(needed):
        chosen = max(ranks)
        hint = f"--rank {chosen}"
    else:
        hint = "no rank would do: a higher --max-error, or lower strengths"
    raise _too_inexact(layer, side, fitted[place].error, form.max_error, hint)


def _too_inexact(layer: Layer, side: Side, error: float, most: float, hint: str) -> TooInexact:
    return TooInexact(
        f"{layer.name}.to_{side}: a relative error of {error:.3f}, above {most:g}; nothing was written", hint=hint
    )
