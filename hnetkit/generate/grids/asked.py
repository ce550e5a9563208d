"""What a grid was asked for: its axes, where its cells are, and what each of them asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hnetkit.errors import UsageError
from hnetkit.generate.grids.axes import (
    NO_AXIS,
    Axis,
    Change,
    Content,
    Value,
    across,
    in_every_order,
    read_axis,
    read_strengths,
)
from hnetkit.generate.grids.cells import Draft, every_order

RANDOM = -1
"""A seed that is still to be drawn."""

STRENGTHS = "0,0.5,1,1.5,2"


@dataclass(frozen=True, slots=True)
class Grid:
    """Where cells are: from left to right, from top to bottom, and one sheet below another."""

    x: Axis
    y: Axis
    z: Axis

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """(x, y, z) of every cell in reading order."""
        sizes = (range(len(axis)) for axis in (self.z, self.y, self.x))
        zs, ys, xs = sizes
        return [(x, y, z) for z in zs for y in ys for x in xs]

    def changes(self, place: tuple[int, int, int]) -> Value:
        """Returns what changes in a cell; of two that change the same, the later one counts."""
        x, y, z = place
        return (*self.z[z], *self.y[y], *self.x[x])

    def place_of(self, place: tuple[int, int, int]) -> dict[str, Any]:
        """Returns where a cell is, as the record says it."""
        coordinates = {change.coordinate: change.value for change in reversed(self.changes(place))}
        return {**dict(zip("xyz", place, strict=True)), "coordinates": coordinates}

    def varied(self) -> dict[str, list[Content]]:
        """Returns the values of each coordinate, as they occur."""
        found: dict[str, list[Content]] = {}
        for change in (change for axis in (self.x, self.y, self.z) for value in axis for change in value):
            values = found.setdefault(change.coordinate, [])
            if change.value not in values:
                values.append(change.value)
        return found


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command asks for.

    Attributes:
        base: what no axis changes.
        sides: for each of x, y and z what is crossed on it; seeds may be `RANDOM`.
    """

    base: Draft
    sides: tuple[tuple[Axis, ...], ...]

    @property
    def grid(self) -> Grid:
        return Grid(*(across(*side) if side else NO_AXIS for side in self.sides))

    @property
    def drafts(self) -> list[Draft]:
        """What each cell asks for, in reading order."""
        grid = self.grid
        return [self.base.changed(grid.changes(place)) for place in grid.places]

    @property
    def has_every_order(self) -> bool:
        return any(change == Change("order", ("all",)) for change in self._changes())

    def in_orders_of(self, names: Sequence[str]) -> Asked:
        """Returns it with ``order=all`` spelled out for a stack.

        Raises:
            UsageError: fewer than two names, or too many.
        """
        orders = every_order(names)
        return replace(self, sides=tuple(tuple(in_every_order(axis, orders) for axis in side) for side in self.sides))

    @property
    def random_seeds(self) -> int:
        """How many seeds are still to be drawn."""
        seeds = [self.base.seed, *(change.value for change in self._changes() if change.axis == "seed")]
        return seeds.count(RANDOM)

    def with_seeds(self, seeds: Iterable[int]) -> Asked:
        """Returns it with the seeds that were drawn, in order."""
        left = iter(seeds)
        base = replace(self.base, seed=next(left)) if self.base.seed == RANDOM else self.base

        def drawn(change: Change) -> Change:
            return replace(change, value=next(left)) if change == Change("seed", RANDOM) else change

        sides = tuple(tuple(tuple(tuple(map(drawn, value)) for value in axis) for axis in side) for side in self.sides)
        return Asked(base, sides)

    def _changes(self) -> list[Change]:
        return [change for side in self.sides for axis in side for value in axis for change in value]


def short_form(names: Sequence[str], prompts: Sequence[str], seeds: Sequence[int], strengths: str | None) -> Asked:
    """Rows of networks, for each prompt and seed; columns of strengths.

    Raises:
        UsageError: `strengths` is no list of numbers.
    """
    rows: list[Axis] = [tuple((Change("text", prompt),) for prompt in prompts)] if len(prompts) > 1 else []
    rows += [tuple((Change("seed", seed),) for seed in seeds)] if len(seeds) > 1 else []
    rows.append(tuple((Change("hypernetwork", name),) for name in names))
    base = Draft(prompts[0], "", seed=0 if len(seeds) > 1 else seeds[0])
    return Asked(base, ((read_strengths(strengths or STRENGTHS),), tuple(rows), ()))


def of_axes(prompts: Sequence[str], seeds: Sequence[int], axes: Sequence[str | None]) -> Asked:
    """Axes from left to right, from top to bottom, and in depth, each as ``AXIS=VALUES``.

    Raises:
        UsageError: axes that cannot be read, or do not go together.
    """
    read = [read_axis(f"--{side}", text) if text else None for side, text in zip("xyz", axes, strict=True)]
    varied = [axis[0][0].axis for axis in read if axis]
    if not varied:
        raise UsageError("nothing varies", hint="name hypernetworks, or --x strength=0,0.5,1 --y seed=1-3")
    for name in varied:
        if varied.count(name) > 1 and name != "prompt":
            raise UsageError(f"{name} is on two axes", hint="one axis can have all its values")
    if {"order", "hypernetwork"} <= set(varied):
        raise UsageError("order is of the same stack in all cells", hint="-n NAME -n NAME --x order=all")
    if len(prompts) > 1:
        raise UsageError("one --prompt, and an axis that replaces a part of it", hint='--y "prompt=circle,star"')
    if len(seeds) > 1:
        raise UsageError("one --seed, or an axis of them", hint=f"--y seed={','.join(map(str, seeds))}")
    base = Draft(prompts[0], "", seed=0 if "seed" in varied else seeds[0])
    return Asked(base, tuple((axis,) if axis else () for axis in read))
