"""What a grid was asked for: its axes, where its cells are, and what each of them asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from hnetkit.errors import UsageError
from hnetkit.generate.grids.axes import (
    NO_AXIS,
    Axis,
    Change,
    Content,
    Value,
    across,
    in_every_order,
    make_axis,
    read_axis,
    read_strengths,
)
from hnetkit.generate.grids.cells import Draft, every_order
from hnetkit.text import argument

RANDOM = -1
"""A seed that is still to be drawn."""

STRENGTHS = "0,0.5,1,1.5,2"
_SIDES = ("--x", "--y", "--z")


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


Axes: TypeAlias = "Sequence[str | None] | Mapping[str, str | Iterable[object]]"
"""What changes from left to right, from top to bottom, and in depth: ``"AXIS=VALUES"``, or axis -> its values."""

Strengths: TypeAlias = "str | Iterable[float]"


def asked_for(
    axes: Axes, names: Sequence[str], prompts: Sequence[str], seeds: Sequence[int], strengths: Strengths | None
) -> Asked:
    """Returns what is asked for by networks as rows and strengths as columns, or else by axes.

    Raises:
        UsageError: both, or neither; or as `short_form` and `of_axes`.
    """
    if not prompts or not seeds:
        raise UsageError("nothing to draw: a prompt and a seed are needed", hint='--prompt "a red circle"')
    for seed in seeds:
        if type(seed) is not int or seed < RANDOM:
            raise UsageError(f"seed {seed}: a whole number is meant, or {RANDOM} to draw one")
    if names and any(axes):
        axis = argument(f"hypernetwork={','.join(names)}")
        raise UsageError("NAMEs are rows already", hint=f"--y {axis}, or -n NAME")
    if names:
        return short_form(names, prompts, seeds, strengths)
    if strengths is not None:
        listed = strengths if isinstance(strengths, str) else ",".join(map(str, strengths))
        raise UsageError("--strengths goes with NAMEs", hint=f"--x {argument(f'strength={listed}')}")
    return of_axes(prompts, seeds, axes)


def short_form(
    names: Sequence[str], prompts: Sequence[str], seeds: Sequence[int], strengths: Strengths | None
) -> Asked:
    """Rows of networks, for each prompt and seed; columns of strengths.

    Raises:
        UsageError: `strengths` is no list of numbers.
    """
    rows: list[Axis] = [tuple((Change("text", prompt),) for prompt in prompts)] if len(prompts) > 1 else []
    rows += [tuple((Change("seed", seed),) for seed in seeds)] if len(seeds) > 1 else []
    rows.append(tuple((Change("hypernetwork", name),) for name in names))
    base = Draft(prompts[0], "", seed=0 if len(seeds) > 1 else seeds[0])
    listed = STRENGTHS if strengths is None or strengths == "" else strengths
    columns = read_strengths(listed) if isinstance(listed, str) else make_axis("--strengths", "strength", listed)
    return Asked(base, ((columns,), tuple(rows), ()))


def of_axes(prompts: Sequence[str], seeds: Sequence[int], axes: Axes) -> Asked:
    """Axes from left to right, from top to bottom, and in depth.

    Raises:
        UsageError: axes that cannot be read, or do not go together.
    """
    read = _read(axes)
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


def _read(axes: Axes) -> list[Axis | None]:
    """Returns the three axes; None where nothing changes in a direction."""
    if len(axes) > len(_SIDES):
        raise UsageError(f"{len(axes)} axes: a grid has at most {len(_SIDES)}", hint="draw several grids")
    found: list[Axis | None] = []
    if isinstance(axes, Mapping):
        for option, (name, values) in zip(_SIDES, axes.items(), strict=False):
            is_text = isinstance(values, str)
            found.append(read_axis(option, f"{name}={values}") if is_text else make_axis(option, name, values))
    else:
        found += [read_axis(option, text) if text else None for option, text in zip(_SIDES, axes, strict=False)]
    return [*found, *[None] * (len(_SIDES) - len(found))]
