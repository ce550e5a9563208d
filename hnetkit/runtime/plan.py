"""Which networks are applied where, in which form: decided from data, before any tensor is touched.

1. Strength 0, a closed window, or a width that a network lacks: left out.
2. Layers of one width and kind with the same strengths form a part. A cross-attention part is applied to the text
   once per UNet call, every other part in each of its layers.
3. Neighbours without activation and layer norm compose into one map. The last such map of a part goes into the
   weights of ``to_k`` and ``to_v`` where that is cheap; maps of networks with a window stay outside, since they
   come and go during sampling.
4. The rest is computed network by network.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hnetkit.kernels.affine import compose_flops
from hnetkit.runtime.layers import Layer
from hnetkit.runtime.strength import SIDES, Kind, Side, Strength


@dataclass(frozen=True, slots=True)
class Member:
    """One network of the active stack.

    Attributes:
        name: under which it was loaded.
        strength: as it was set.
        widths: context widths that it has.
        affine: ``(width, side)`` of its MLPs that are kept as one map.
        is_open: whether its window is open now.
    """

    name: str
    strength: Strength
    widths: Collection[int]
    affine: Collection[tuple[int, Side]]
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class Term:
    """A network and the number that it is multiplied by in one part, on one side."""

    name: str
    number: float


@dataclass(frozen=True, slots=True)
class Step:
    """One application of ``y = y + strength * MLP(y)``: a network, or neighbours composed into one map."""

    terms: tuple[Term, ...]
    composed: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(term.name for term in self.terms)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What happens to the context of K, or of V, in one part.

    Attributes:
        steps: applied to the context, in order.
        folded: networks whose composed map is in the projection's weights, after the steps.
    """

    steps: tuple[Step, ...] = ()
    folded: tuple[Term, ...] = ()

    @property
    def shape(self) -> tuple[tuple[bool, tuple[str, ...]], ...]:
        """The steps without their numbers: what stays the same when only a strength changes."""
        return tuple((step.composed, step.names) for step in self.steps)


@dataclass(frozen=True, slots=True)
class Part:
    """Layers of one width and kind that all apply the same, with one recipe for K and one for V."""

    width: int
    kind: Kind
    layers: tuple[Layer, ...]
    recipes: Mapping[Side, Recipe] = field(hash=False)

    @property
    def key(self) -> tuple[int, Kind, tuple[str, ...]]:
        return self.width, self.kind, tuple(layer.name for layer in self.layers)

    @property
    def is_idle(self) -> bool:
        return not any(recipe.steps or recipe.folded for recipe in self.recipes.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of a stack on a UNet: every layer belongs to exactly one."""

    parts: tuple[Part, ...] = ()

    @property
    def fold_flops(self) -> int:
        """Floating-point operations, in float64, of composing and folding what this plan folds."""
        return sum(_fold_flops(part, recipe) for part in self.parts for recipe in part.recipes.values())


def make_plan(layers: Iterable[Layer], stack: Sequence[Member], *, fold: bool) -> Plan:
    """Returns the plan of `stack` on `layers`; `fold` allows maps to go into the projections' weights."""
    groups: dict[tuple[int, Kind, tuple[float, ...]], list[Layer]] = {}
    for layer in layers:
        factors = tuple(member.strength.factor(layer.name) for member in stack)
        groups.setdefault((layer.width, layer.kind, factors), []).append(layer)
    return Plan(
        tuple(
            Part(
                width,
                kind,
                tuple(members),
                {side: _recipe(stack, factors, width, kind, side, fold=fold) for side in SIDES},
            )
            for (width, kind, factors), members in groups.items()
        )
    )


def _recipe(
    stack: Sequence[Member], factors: Sequence[float], width: int, kind: Kind, side: Side, *, fold: bool
) -> Recipe:
    active = [
        (member, Term(member.name, number))
        for member, factor in zip(stack, factors, strict=True)
        if member.is_open and width in member.widths and (number := factor * member.strength.number(kind, side))
    ]
    folded: list[Term] = []
    while fold and active and (width, side) in active[-1][0].affine and not active[-1][0].strength.has_window:
        folded.insert(0, active.pop()[1])
    return Recipe(tuple(_steps(active, width, side)), tuple(folded))


def _steps(active: Iterable[tuple[Member, Term]], width: int, side: Side) -> Iterator[Step]:
    for composed, run in itertools.groupby(active, key=lambda pair: (width, side) in pair[0].affine):
        terms = tuple(term for _, term in run)
        if composed:
            yield Step(terms, composed=True)
        else:
            yield from (Step((term,), composed=False) for term in terms)


def _fold_flops(part: Part, recipe: Recipe) -> int:
    if not recipe.folded:
        return 0
    into_layers = sum(2 * layer.projected * part.width**2 for layer in part.layers)
    return compose_flops(part.width, len(recipe.folded)) + into_layers
