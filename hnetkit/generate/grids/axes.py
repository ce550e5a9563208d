"""The axes of a grid: ``AXIS=VALUE,VALUE`` parsed into the changes that each value makes to a cell."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import TypeAlias

from hnetkit.errors import UsageError, did_you_mean
from hnetkit.generate.request import LARGEST_SEED, MOST_STEPS
from hnetkit.generate.sampling.samplers import sampler_name
from hnetkit.prompts.tags import plain_number

AXES: Mapping[str, str] = {
    "hypernetwork": "ink,wash:0.5,none",
    "strength": "0,0.5,1",
    "order": "all",
    "seed": "1-4",
    "prompt": "circle,star",
    "steps": "10,20,30",
    "cfg": "4:10:2",
    "sampler": "Euler,DDIM",
    "checkpoint": "one.safetensors,two.safetensors",
}
"""Kind of axis -> an example of its values. ``strength:NAME`` varies one network of a stack."""

MOST_VALUES = 1000
"""Values of one axis."""

_OTHER_NAMES = {
    "cfg-scale": "cfg",
    "hypernet": "hypernetwork",
    "model": "checkpoint",
    "network": "hypernetwork",
    "prompt-sr": "prompt",
    "seeds": "seed",
    "step": "steps",
    "strengths": "strength",
}
_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+))"
_DASHED = re.compile(rf"{_NUMBER}\s*-\s*{_NUMBER}\s*(?:\(\s*{_NUMBER}\s*\)|\[\s*(\d{{1,9}})\s*\])?")
_STEPPED = re.compile(rf"{_NUMBER}\s*:\s*{_NUMBER}(?:\s*:\s*{_NUMBER})?")

Content: TypeAlias = "str | int | float | tuple[str, ...] | None"


@dataclass(frozen=True, slots=True)
class AxisChange:
    """One thing that differs between cells.

    Attributes:
        axis: a key of `AXES`, ``strength:NAME``, or ``text`` for another prompt as a whole.
        value: the name of a network or None, a number, names in stacking order (``("all",)`` until they are known),
            what the text that is searched for becomes, a sampler's name, or the source of a model.
        search: of a prompt: the text that is replaced.
    """

    axis: str
    value: Content
    search: str = ""

    @property
    def kind(self) -> str:
        return self.axis.partition(":")[0]

    @property
    def target(self) -> str:
        """The network whose strength it is; empty if none is named."""
        return self.axis.partition(":")[2]

    @property
    def coordinate(self) -> str:
        """The name of this direction of the grid in the record."""
        return "prompt" if self.axis == "text" else self.axis


Value: TypeAlias = tuple[AxisChange, ...]
"""One value on an axis: all changes that it makes."""

Axis: TypeAlias = tuple[Value, ...]
"""The values from left to right, or from top to bottom."""

NO_AXIS: Axis = ((),)


def cross_axes(*axes: Axis) -> Axis:
    """Returns one axis that runs through every combination; the last one changes first."""
    return tuple(sum(values, ()) for values in product(*axes))


def read_axis(option: str, text: str) -> Axis:
    """Reads ``AXIS=VALUE,VALUE``.

    Args:
        option: ``"--x"``, for errors.
        text: values are separated by commas and may be quoted, as in CSV. Numbers may be ranges that include both
            ends: ``1-5``, ``1-9 (2)`` by twos, ``1-10 [4]`` four of them, ``0:1:0.25`` by quarters.

    Raises:
        UsageError: there is no such axis, or it cannot have these values; the message names both.
    """
    name, equals, listed = text.partition("=")
    kind = _axis_kind(option, name.strip().partition(":")[0])
    if not equals:
        raise UsageError(f"{option} {text}: not AXIS=VALUE,VALUE", hint=f'{option} "{kind}={AXES[kind]}"')
    try:
        values = next(csv.reader([listed], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise UsageError(
            f"{option} {name.strip()}: {listed}: not a list of values ({error})",
            hint=f"""{option} '{kind}="one, two",three'""",
        ) from error
    return make_axis(option, name.strip(), map(str.strip, values))


def make_axis(option: str, name: str, values: Iterable[object]) -> Axis:
    """Returns the axis of a name and of its values, written as between the commas of `read_axis`.

    Args:
        option: ``"--x"``, for errors.
        values: texts and numbers; None is ``none``; a stacking order may be a list of names.

    Raises:
        UsageError: as `read_axis`.
    """
    kind, colon, target = name.partition(":")
    kind = _axis_kind(option, kind)
    if colon and (kind != "strength" or not target):
        raise UsageError(f"{option} {name}: only strength:NAME has a name behind it", hint=f"{option} {kind}=...")
    where = f"{option} {name}"
    texts = map(_as_axis_text, values)
    contents = list(_PARSERS[kind](where, [text.strip() if kind != "prompt" else text for text in texts]))
    if not contents:
        raise UsageError(f"{where}: no values", hint=f'{option} "{kind}={AXES[kind]}"')
    if len(contents) > MOST_VALUES:
        raise UsageError(f"{where}: {len(contents)} values; at most {MOST_VALUES}", hint="draw several grids")
    search = str(contents[0]) if kind == "prompt" else ""
    return tuple((AxisChange(f"{kind}{colon}{target}", content, search),) for content in contents)


def read_strengths(text: str) -> Axis:
    """Reads ``--strengths LIST``.

    Raises:
        UsageError: not a list of numbers.
    """
    numbers = list(_numbers("--strengths", [part.strip() for part in text.split(",")], whole=False))
    return tuple((AxisChange("strength", float(number)),) for number in numbers)


def label_of(value: Value, names: Mapping[tuple[str, Content], str]) -> str:
    """Returns the label of a row or column.

    Args:
        value: a value of an axis.
        names: (axis, value) -> its name, where that is not the value itself.
    """
    labels = [names.get((change.axis, change.value)) or _label(change) for change in value]
    return ", ".join(label for label in labels if label)


def expand_orders(axis: Axis, orders: Sequence[tuple[str, ...]]) -> Axis:
    """Returns an axis with ``order=all`` replaced by one value for each order."""
    return tuple(
        value
        for position in axis
        for value in (
            tuple((AxisChange("order", order),) for order in orders)
            if position and position[0] == AxisChange("order", ("all",))
            else (position,)
        )
    )


def _axis_kind(option: str, name: str) -> str:
    kind = _OTHER_NAMES.get(name.casefold(), name.casefold())
    if kind not in AXES:
        near = did_you_mean(kind, [*AXES, *_OTHER_NAMES])
        hint = f"did you mean {near}?" if near else f"axes are: {', '.join(AXES)}"
        raise UsageError(f"{option} {name}: no axis has this name", hint=hint)
    return kind


def _as_axis_text(value: object) -> str:
    if isinstance(value, tuple | list):
        return "/".join(map(str, value))
    return "none" if value is None else str(value)


def _label(change: AxisChange) -> str:
    value = change.value
    if change.kind == "strength":
        number = plain_number(float(value))  # type: ignore[arg-type]  # strengths are numbers
        return f"{change.target} {number}" if change.target else number if value else "none"
    if change.kind == "hypernetwork":
        return str(value) if value else "none"
    if isinstance(value, tuple):
        return " + ".join(value)
    shown = plain_number(value) if isinstance(value, float) else str(value)
    return {"seed": f"seed {shown}", "steps": f"{shown} step{'s' * (shown != '1')}", "cfg": f"CFG {shown}"}.get(
        change.kind, shown
    )


def _networks(where: str, values: Sequence[str]) -> Iterator[Content]:
    for value in values:
        yield None if value.casefold() in ("", "none") else value


def _orders(where: str, values: Sequence[str]) -> Iterator[Content]:
    for value in values:
        names = tuple(name.strip() for name in value.split("/"))
        if not all(names):
            raise UsageError(f"{where}: {value}: not names in their order", hint='"order=all", or "order=ink/wash"')
        yield names


def _prompt_texts(where: str, values: Sequence[str]) -> Iterator[Content]:
    if not any(value.strip() for value in values[:1]):
        raise UsageError(f"{where}: the first value is what is searched for", hint='"prompt=circle,star"')
    yield from values


def _samplers(where: str, values: Sequence[str]) -> Iterator[Content]:
    for value in values:
        try:
            yield sampler_name(value)
        except UsageError as error:
            hint = None if error.command_hint is None else error.command_hint.removeprefix("--sampler ")
            raise UsageError(f"{where}: {error}", hint=hint) from error


def _checkpoints(where: str, values: Sequence[str]) -> Iterator[Content]:
    for value in values:
        if not value:
            raise UsageError(f"{where}: a value is empty", hint=f'"checkpoint={AXES["checkpoint"]}"')
        yield value


def _integers(lowest: int, highest: int) -> Callable[[str, Sequence[str]], Iterator[Content]]:
    def read(where: str, values: Sequence[str]) -> Iterator[Content]:
        for number in _numbers(where, values, whole=True):
            if number != int(number) or not lowest <= number <= highest:
                raise UsageError(f"{where}: {number}: must be a whole number from {lowest} to {highest}")
            yield int(number)

    return read


def _reals(lowest: float) -> Callable[[str, Sequence[str]], Iterator[Content]]:
    def read(where: str, values: Sequence[str]) -> Iterator[Content]:
        for number in _numbers(where, values, whole=False):
            if number < lowest:
                raise UsageError(f"{where}: {number}: must be {lowest:g} or more")
            yield float(number)

    return read


def _numbers(where: str, values: Sequence[str], *, whole: bool) -> Iterator[Decimal]:
    for value in values:
        dashed, stepped = _DASHED.fullmatch(value), _STEPPED.fullmatch(value)
        if dashed:
            start, end, step, count = dashed.groups()
            yield from _spread(start, end, int(count), whole) if count else _range(where, value, start, end, step)
        elif stepped:
            yield from _range(where, value, *stepped.groups())
        else:
            yield _parse_number(where, value)


def _parse_number(where: str, text: str) -> Decimal:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{where}: {text or 'an empty value'}: not a number", hint="0,0.5,1 or 1-5 or 0:1:0.25")
    return Decimal(text.strip().replace("_", ""))


def _range(where: str, text: str, start: str, end: str, step: str | None) -> Iterator[Decimal]:
    """Yields a range that includes its end if a step hits it, exact in decimals."""
    first, last, by = Decimal(start), Decimal(end), abs(Decimal(step or 1))
    if not by or abs(last - first) / by >= MOST_VALUES:
        raise UsageError(f"{where}: {text}: a range of more than {MOST_VALUES} values", hint="take a larger step")
    by = by if last >= first else -by
    for position in range(int((last - first) / by) + 1):
        yield first + position * by


def _spread(start: str, end: str, count: int, whole: bool) -> Iterator[Decimal]:
    """Yields `count` evenly spaced numbers from one end to the other."""
    first, last = Decimal(start), Decimal(end)
    for position in range(min(count, MOST_VALUES + 1)):
        number = first + (last - first) * position / max(count - 1, 1)
        yield Decimal(int(number)) if whole else round(number, 6)


_PARSERS: Mapping[str, Callable[[str, Sequence[str]], Iterator[Content]]] = {
    "hypernetwork": _networks,
    "strength": _reals(-math.inf),
    "order": _orders,
    "seed": _integers(-1, LARGEST_SEED),
    "prompt": _prompt_texts,
    "steps": _integers(1, MOST_STEPS),
    "cfg": _reals(1),
    "sampler": _samplers,
    "checkpoint": _checkpoints,
}
