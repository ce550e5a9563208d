"""The spec of a grid: its axes, the positions of its cells, and the spec of each cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from hnetkit.errors import UsageError
from hnetkit.generate.grids.axes import (
    NO_AXIS,
    Axis,
    AxisChange,
    Content,
    Value,
    cross_axes,
    expand_orders,
    make_axis,
    read_axis,
    read_strengths,
)
from hnetkit.generate.grids.cells import CellSpec, all_orders
from hnetkit.generate.prompt_networks import network_options
from hnetkit.text import argument

RANDOM = -1
"""Stands for a seed that is still to be picked at random."""

STRENGTHS = "0,0.5,1,1.5,2"
_SIDES = ("--x", "--y", "--z")


@dataclass(frozen=True, slots=True)
class Grid:
    """Three axes: x from left to right, y from top to bottom, z one part of the sheet below another."""

    x: Axis
    y: Axis
    z: Axis

    @property
    def positions(self) -> list[tuple[int, int, int]]:
        """(x, y, z) of every cell in reading order."""
        sizes = (range(len(axis)) for axis in (self.z, self.y, self.x))
        zs, ys, xs = sizes
        return [(x, y, z) for z in zs for y in ys for x in xs]

    def changes(self, position: tuple[int, int, int]) -> Value:
        """Returns the changes of a cell. The last one wins where two change the same thing."""
        x, y, z = position
        return (*self.z[z], *self.y[y], *self.x[x])

    def record_position(self, position: tuple[int, int, int]) -> dict[str, Any]:
        """Returns the position of a cell, as the record holds it."""
        coordinates = {change.coordinate: change.value for change in reversed(self.changes(position))}
        return {**dict(zip("xyz", position, strict=True)), "coordinates": coordinates}

    def varied(self) -> dict[str, list[Content]]:
        """Coordinate -> its values, in the order in which they occur."""
        found: dict[str, list[Content]] = {}
        for change in (change for axis in (self.x, self.y, self.z) for value in axis for change in value):
            values = found.setdefault(change.coordinate, [])
            if change.value not in values:
                values.append(change.value)
        return found


@dataclass(frozen=True, slots=True)
class GridSpec:
    """What a grid draws.

    Attributes:
        base: the cell before any axis changes it.
        sides: for x, y and z the axes that are crossed there; seeds may be `RANDOM`.
    """

    base: CellSpec
    sides: tuple[tuple[Axis, ...], ...]

    @property
    def grid(self) -> Grid:
        return Grid(*(cross_axes(*side) if side else NO_AXIS for side in self.sides))

    @property
    def cell_specs(self) -> list[CellSpec]:
        """The spec of each cell, in reading order."""
        grid = self.grid
        return [self.base.changed(grid.changes(position)) for position in grid.positions]

    @property
    def has_every_order(self) -> bool:
        return any(change == AxisChange("order", ("all",)) for change in self._changes())

    def in_orders_of(self, names: Sequence[str]) -> GridSpec:
        """Returns the spec with ``order=all`` expanded for a stack.

        Raises:
            UsageError: fewer than two names, or too many.
        """
        orders = all_orders(names)
        return replace(self, sides=tuple(tuple(expand_orders(axis, orders) for axis in side) for side in self.sides))

    @property
    def random_seeds(self) -> int:
        """How many seeds are still to be picked."""
        seeds = [self.base.seed, *(change.value for change in self._changes() if change.axis == "seed")]
        return seeds.count(RANDOM)

    def with_seeds(self, seeds: Iterable[int]) -> GridSpec:
        """Returns the spec with `seeds` for the random ones, in order."""
        left = iter(seeds)
        base = replace(self.base, seed=next(left)) if self.base.seed == RANDOM else self.base

        def drawn(change: AxisChange) -> AxisChange:
            return replace(change, value=next(left)) if change == AxisChange("seed", RANDOM) else change

        return GridSpec(base, self._sides_with(drawn))

    def with_prompts(self, read: Callable[[str], str]) -> GridSpec:
        """Returns the spec with `read` of each prompt, and of each text that an axis puts into one."""
        own = self.base
        base = replace(own, prompt=read(own.prompt), negative_prompt=read(own.negative_prompt))

        def typed(change: AxisChange) -> AxisChange:
            return replace(change, value=read(str(change.value))) if change.kind in ("prompt", "text") else change

        return GridSpec(base, self._sides_with(typed))

    def _sides_with(self, changed: Callable[[AxisChange], AxisChange]) -> tuple[tuple[Axis, ...], ...]:
        return tuple(tuple(tuple(tuple(map(changed, value)) for value in axis) for axis in side) for side in self.sides)

    def _changes(self) -> list[AxisChange]:
        return [change for side in self.sides for axis in side for value in axis for change in value]


Axes: TypeAlias = "Sequence[str | None] | Mapping[str, str | Iterable[object]]"
"""What changes from left to right, from top to bottom, and in depth: ``"AXIS=VALUES"``, or axis -> its values."""

Strengths: TypeAlias = "str | Iterable[float]"


def make_spec(
    axes: Axes, names: Sequence[str], prompts: Sequence[str], seeds: Sequence[int], strengths: Strengths | None
) -> GridSpec:
    """Returns the spec of networks as rows and strengths as columns, or of axes.

    Raises:
        UsageError: both are given, or neither; or as `spec_from_names` and `spec_from_axes`.
    """
    if not prompts or not seeds:
        raise UsageError("nothing to draw: a prompt and a seed are needed", hint='--prompt "a red circle"')
    for seed in seeds:
        if type(seed) is not int or seed < RANDOM:
            raise UsageError(f"seed {seed}: must be a whole number, or {RANDOM} for a random one")
    if names and any(axes):
        axis = argument(f"hypernetwork={','.join(names)}")
        raise UsageError(
            "NAMEs are rows already",
            hint=f"--y {axis}, or -n NAME",
            python=f'axes={{"hypernetwork": {list(names)}, ...}}, or networks=["NAME"]',
        )
    if names:
        return spec_from_names(names, prompts, seeds, strengths)
    if strengths is not None:
        listed = strengths if isinstance(strengths, str) else ",".join(map(str, strengths))
        raise UsageError(
            "--strengths goes with NAMEs",
            hint=f"--x {argument(f'strength={listed}')}",
            python=f'axes={{"strength": [{listed}], ...}}',
        )
    return spec_from_axes(prompts, seeds, axes)


def spec_from_names(
    names: Sequence[str], prompts: Sequence[str], seeds: Sequence[int], strengths: Strengths | None
) -> GridSpec:
    """Returns the spec of one row for each prompt, seed and network, and one column for each strength.

    Raises:
        UsageError: `strengths` is not a list of numbers.
    """
    rows: list[Axis] = [tuple((AxisChange("text", prompt),) for prompt in prompts)] if len(prompts) > 1 else []
    rows += [tuple((AxisChange("seed", seed),) for seed in seeds)] if len(seeds) > 1 else []
    rows.append(tuple((AxisChange("hypernetwork", name),) for name in names))
    base = CellSpec(prompts[0], "", seed=0 if len(seeds) > 1 else seeds[0])
    listed = STRENGTHS if strengths is None or strengths == "" else strengths
    columns = read_strengths(listed) if isinstance(listed, str) else make_axis("--strengths", "strength", listed)
    return GridSpec(base, ((columns,), tuple(rows), ()))


def spec_from_axes(prompts: Sequence[str], seeds: Sequence[int], axes: Axes) -> GridSpec:
    """Returns the spec of up to three axes.

    Raises:
        UsageError: axes cannot be read, or contradict each other.
    """
    read = _parse_axes(axes)
    varied = [axis[0][0].axis for axis in read if axis]
    if not varied:
        raise UsageError(
            "nothing varies",
            hint="name hypernetworks, or --x strength=0,0.5,1 --y seed=1-3",
            python='names=["ink"], or axes={"strength": [0, 0.5, 1], "seed": [1, 2, 3]}',
        )
    for name in varied:
        if varied.count(name) > 1 and name != "prompt":
            raise UsageError(f"{name} is on two axes", hint="one axis can have all its values")
    if {"order", "hypernetwork"} <= set(varied):
        raise UsageError(
            "order is of the same stack in all cells",
            hint="-n NAME -n NAME --x order=all",
            python='networks=["ink", "dots"], axes=["order=all"]',
        )
    if len(prompts) > 1:
        raise UsageError(
            "one --prompt, and an axis that replaces a part of it",
            hint='--y "prompt=circle,star"',
            python='axes={"prompt": ["circle", "star"], ...}',
        )
    if len(seeds) > 1:
        raise UsageError(
            "one --seed, or an axis of them",
            hint=f"--y seed={','.join(map(str, seeds))}",
            python=f'axes={{"seed": {list(seeds)}, ...}}',
        )
    base = CellSpec(prompts[0], "", seed=0 if "seed" in varied else seeds[0])
    return GridSpec(base, tuple((axis,) if axis else () for axis in read))


def _parse_axes(axes: Axes) -> list[Axis | None]:
    """Returns the three axes; None for a direction without one."""
    if len(axes) > len(_SIDES):
        raise UsageError(f"{len(axes)} axes: a grid has at most {len(_SIDES)}", hint="draw several grids")
    found: list[Axis | None] = []
    if isinstance(axes, Mapping):
        for option, (name, values) in zip(_SIDES, axes.items(), strict=False):
            if isinstance(values, Mapping):  # network -> strength
                values = network_options(values)
            is_text = isinstance(values, str)
            found.append(read_axis(option, f"{name}={values}") if is_text else make_axis(option, name, values))
    else:
        found += [read_axis(option, text) if text else None for option, text in zip(_SIDES, axes, strict=False)]
    return [*found, *[None] * (len(_SIDES) - len(found))]
