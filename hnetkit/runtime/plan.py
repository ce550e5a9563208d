"""The plan of a stack on a UNet: which networks are applied where, in which form, before any tensor is touched.

1. A network of strength 0, or without a group's width, is left out. A closed window is strength 0 for as long as it is
   closed: the network stays in the plan, so that opening the window changes a number and nothing else.
2. Layers of one width and kind with the same strengths form a group. A cross-attention group is applied to the text
   once per UNet call, every other group in each of its layers.
3. Neighbors without activation and layer norm compose into one map. The last such map of a group goes into the weights
   of ``to_k`` and ``to_v`` where that is cheap: narrow groups first, where it takes least and saves most. Maps of
   networks with a window stay outside, since they come and go during sampling.
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
class ActiveNetwork:
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
class WeightedNetwork:
    """A network and the number that it is multiplied by, in one group and on one side; 0 while it has no effect."""

    name: str
    number: float


@dataclass(frozen=True)
class Step:
    """One application of ``y = y + strength * MLP(y)``: a network, or neighbors composed into one map."""

    networks: tuple[WeightedNetwork, ...]
    is_composed: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(network.name for network in self.networks)

    @property
    def is_active(self) -> bool:
        """Whether it changes anything now."""
        return any(network.number for network in self.networks)


@dataclass(frozen=True)
class SidePlan:
    """What is applied to the context of K, or of V, in one group.

    Attributes:
        steps: applied to the context, in order; K and V of a group have the same steps, with numbers of their own.
        folded: networks whose composed map is in the projection's weights, after the steps.
        has_effect: whether any step changes this side, now or once a window opens.
    """

    steps: tuple[Step, ...] = ()
    folded: tuple[WeightedNetwork, ...] = ()
    has_effect: bool = False

    @property
    def is_active(self) -> bool:
        """Whether any step changes this side now."""
        return any(step.is_active for step in self.steps)


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one width and kind that apply the same steps, with a plan for K and one for V."""

    width: int
    kind: Kind
    layers: tuple[Layer, ...]
    side_plans: Mapping[Side, SidePlan] = field(hash=False)

    @property
    def key(self) -> tuple[int, Kind, tuple[str, ...]]:
        return self.width, self.kind, tuple(layer.name for layer in self.layers)

    @property
    def steps(self) -> tuple[Mapping[Side, Step], ...]:
        """The steps, each as it is for K and for V."""
        return tuple(
            {"k": k, "v": v} for k, v in zip(self.side_plans["k"].steps, self.side_plans["v"].steps, strict=True)
        )

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that steps change, now or once a window opens."""
        return tuple(side for side in SIDES if self.side_plans[side].has_effect)

    @property
    def shape(self) -> tuple[object, ...]:
        """The steps without their numbers: what stays the same when only a strength changes."""
        return self.sides, tuple((step.is_composed, step.names) for step in self.side_plans["k"].steps)

    @property
    def fold_flops(self) -> int:
        """Floating-point operations, in float64, of composing and folding what is folded."""
        return sum(_fold_flops(self, side_plan) for side_plan in self.side_plans.values())

    @property
    def is_idle(self) -> bool:
        return not any(side_plan.is_active or side_plan.folded for side_plan in self.side_plans.values())


@dataclass(frozen=True)
class StackPlan:
    """The groups of layers that a stack is applied in: every layer belongs to exactly one."""

    groups: tuple[LayerGroup, ...] = ()


def plan_stack(layers: Iterable[Layer], stack: Sequence[ActiveNetwork], *, fold_flops: float = 0) -> StackPlan:
    """Returns the plan of `stack` on `layers`.

    Args:
        layers: of a UNet.
        stack: in stacking order.
        fold_flops: that composing maps and folding them into the projections' weights may take in all. The groups that
            take least are folded.
    """
    members: dict[tuple[int, Kind, tuple[float, ...]], list[Layer]] = {}
    for layer in layers:
        factors = tuple(network.strength.factor(layer.name) for network in stack)
        members.setdefault((layer.width, layer.kind, factors), []).append(layer)

    def group(key: tuple[int, Kind, tuple[float, ...]], *, fold: bool) -> LayerGroup:
        width, kind, factors = key
        return LayerGroup(width, kind, tuple(members[key]), _side_plans(stack, factors, width, kind, fold=fold))

    groups, left = {key: group(key, fold=True) for key in members}, fold_flops
    for key in sorted(groups, key=lambda key: groups[key].fold_flops):
        left -= groups[key].fold_flops
        if left < 0:
            groups[key] = group(key, fold=False)
    return StackPlan(tuple(groups.values()))


def _side_plans(
    stack: Sequence[ActiveNetwork], factors: Sequence[float], width: int, kind: Kind, *, fold: bool
) -> dict[Side, SidePlan]:
    active = []
    for network, factor in zip(stack, factors, strict=True):
        numbers = {side: factor * network.strength.number(kind, side) for side in SIDES}
        if width in network.widths and any(numbers.values()):
            active.append((network, numbers))
    end = len(active)
    while fold and end and width in active[end - 1][0].affine and not active[end - 1][0].strength.has_window:
        end -= 1
    return {
        side: SidePlan(
            tuple(_steps(active[:end], width, side)),
            tuple(WeightedNetwork(network.name, numbers[side]) for network, numbers in active[end:] if numbers[side]),
            any(numbers[side] for _, numbers in active[:end]),
        )
        for side in SIDES
    }


def _steps(active: Iterable[tuple[ActiveNetwork, Mapping[Side, float]]], width: int, side: Side) -> Iterator[Step]:
    for is_composed, run in itertools.groupby(active, key=lambda pair: width in pair[0].affine):
        networks = tuple(
            WeightedNetwork(network.name, numbers[side] if network.is_open else 0.0) for network, numbers in run
        )
        if is_composed:
            yield Step(networks, is_composed=True)
        else:
            yield from (Step((network,), is_composed=False) for network in networks)


def _fold_flops(group: LayerGroup, side_plan: SidePlan) -> int:
    if not side_plan.folded:
        return 0
    into_layers = sum(2 * layer.projected * group.width**2 for layer in group.layers)
    return compose_flops(group.width, len(side_plan.folded)) + into_layers
