"""Which networks are applied where, in which form: decided from data, before any tensor is touched.

1. Strength 0, or a width that a network lacks: left out. A closed window is strength 0 for as long as it is closed: the
   network keeps its place, so that a window that opens changes a number and nothing else.
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


@dataclass(frozen=True)
class Member:
    """One network of the active stack.

    Attributes:
        name: under which it was loaded.
        strength: as it was set.
        widths: context widths that it has.
        affine: widths whose MLPs are kept as maps.
        is_open: whether its window is open now.
    """

    name: str
    strength: Strength
    widths: Collection[int]
    affine: Collection[int]
    is_open: bool = True


@dataclass(frozen=True)
class Term:
    """A network and the number that it is multiplied by, in one part and on one side; 0 while it has no effect."""

    name: str
    number: float


@dataclass(frozen=True)
class Step:
    """One application of ``y = y + strength * MLP(y)``: a network, or neighbours composed into one map."""

    terms: tuple[Term, ...]
    composed: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(term.name for term in self.terms)

    @property
    def is_active(self) -> bool:
        """Whether it changes anything now."""
        return any(term.number for term in self.terms)


@dataclass(frozen=True)
class Recipe:
    """What happens to the context of K, or of V, in one part.

    Attributes:
        steps: applied to the context, in order; K and V of a part have the same steps, with numbers of their own.
        folded: networks whose composed map is in the projection's weights, after the steps.
        is_wanted: whether any step can change this side, now or when a window opens.
    """

    steps: tuple[Step, ...] = ()
    folded: tuple[Term, ...] = ()
    is_wanted: bool = False

    @property
    def is_active(self) -> bool:
        """Whether any step changes this side now."""
        return any(step.is_active for step in self.steps)


@dataclass(frozen=True)
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
    def steps(self) -> tuple[Mapping[Side, Step], ...]:
        """The steps, each as it is for K and for V."""
        return tuple({"k": k, "v": v} for k, v in zip(self.recipes["k"].steps, self.recipes["v"].steps, strict=True))

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that steps can change."""
        return tuple(side for side in SIDES if self.recipes[side].is_wanted)

    @property
    def shape(self) -> tuple[object, ...]:
        """The steps without their numbers: what stays the same when only a strength changes."""
        return self.sides, tuple((step.composed, step.names) for step in self.recipes["k"].steps)

    @property
    def is_idle(self) -> bool:
        return not any(recipe.is_active or recipe.folded for recipe in self.recipes.values())


@dataclass(frozen=True)
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
                _recipes(stack, factors, width, kind, fold=fold),
            )
            for (width, kind, factors), members in groups.items()
        )
    )


def _recipes(
    stack: Sequence[Member], factors: Sequence[float], width: int, kind: Kind, *, fold: bool
) -> dict[Side, Recipe]:
    active = []
    for member, factor in zip(stack, factors, strict=True):
        numbers = {side: factor * member.strength.number(kind, side) for side in SIDES}
        if width in member.widths and any(numbers.values()):
            active.append((member, numbers))
    end = len(active)
    while fold and end and width in active[end - 1][0].affine and not active[end - 1][0].strength.has_window:
        end -= 1
    return {
        side: Recipe(
            tuple(_steps(active[:end], width, side)),
            tuple(Term(member.name, numbers[side]) for member, numbers in active[end:] if numbers[side]),
            any(numbers[side] for _, numbers in active[:end]),
        )
        for side in SIDES
    }


def _steps(active: Iterable[tuple[Member, Mapping[Side, float]]], width: int, side: Side) -> Iterator[Step]:
    for composed, run in itertools.groupby(active, key=lambda pair: width in pair[0].affine):
        terms = tuple(Term(member.name, numbers[side] if member.is_open else 0.0) for member, numbers in run)
        if composed:
            yield Step(terms, composed=True)
        else:
            yield from (Step((term,), composed=False) for term in terms)


def _fold_flops(part: Part, recipe: Recipe) -> int:
    if not recipe.folded:
        return 0
    into_layers = sum(2 * layer.projected * part.width**2 for layer in part.layers)
    return compose_flops(part.width, len(recipe.folded)) + into_layers
