"""What varies over a grid: ``AXIS=VALUE,VALUE`` read into axes, each value a change to what a cell draws."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import TypeAlias

from hnetkit.errors import UsageError
from hnetkit.generate.request import LARGEST_SEED
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
"""The kinds of axes, with values as an example. ``strength:NAME`` varies one network of a stack."""

MOST_VALUES = 1000
"""Values of one axis."""

_OTHER_NAMES = {
    **{"hypernet": "hypernetwork", "network": "hypernetwork", "model": "checkpoint", "seeds": "seed"},
    **{"cfg-scale": "cfg", "strengths": "strength", "step": "steps", "prompt-sr": "prompt"},
}
_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+))"
_DASHED = re.compile(rf"{_NUMBER}\s*-\s*{_NUMBER}\s*(?:\(\s*{_NUMBER}\s*\)|\[\s*(\d{{1,9}})\s*\])?")
_STEPPED = re.compile(rf"{_NUMBER}\s*:\s*{_NUMBER}(?:\s*:\s*{_NUMBER})?")

Content: TypeAlias = "str | int | float | tuple[str, ...] | None"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs between cells.

    Attributes:
        axis: a key of `AXES`, ``strength:NAME``, or ``text`` for another prompt as a whole.
        value: the name of a network or None, a number, names in stacking order (``("all",)`` until they are known),
            what a searched text becomes, a sampler's name, or the place of a model.
        search: of a prompt: what is replaced.
    """

    axis: str
    value: Content
    search: str = ""

    @property
    def kind(self) -> str:
        return self.axis.partition(":")[0]

    @property
    def target(self) -> str:
        """The network that a strength is of; empty where it is not named."""
        return self.axis.partition(":")[2]

    @property
    def coordinate(self) -> str:
        """What the record calls this direction of the grid."""
        return "prompt" if self.axis == "text" else self.axis


Value: TypeAlias = tuple[Change, ...]
"""One place on an axis: all that changes there."""

Axis: TypeAlias = tuple[Value, ...]
"""The places from left to right, or from top to bottom."""

NO_AXIS: Axis = ((),)


def across(*axes: Axis) -> Axis:
    """Returns one axis that runs through every combination; the last one changes first."""
    return tuple(sum(values, ()) for values in product(*axes))


def read_axis(option: str, text: str) -> Axis:
    """Reads ``AXIS=VALUE,VALUE``.

    Args:
        option: ``"--x"``, for errors.
        text: values are separated by commas and may stand in double quotes, as in CSV. Numbers take ranges with both
            ends: ``1-5``, ``1-9 (2)`` by twos, ``1-10 [4]`` four of them, ``0:1:0.25`` by quarters.

    Raises:
        UsageError: no such axis, or values that it cannot have; the message names both.
    """
    name, equals, listed = text.partition("=")
    kind = _kind(option, name.strip().partition(":")[0])
    if not equals:
        raise UsageError(f"{option} {text}: not AXIS=VALUE,VALUE", hint=f'{option} "{kind}={AXES[kind]}"')
    try:
        values = next(csv.reader([listed], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise UsageError(
            f"{option} {name.strip()}: {listed}: not a list of values ({error})",
            hint=f"""{option} '{kind}="one, two",three'""",
        ) from error
    return make_axis(option, name.strip(), values)


def make_axis(option: str, name: str, values: Iterable[object]) -> Axis:
    """Returns the axis of a name and its values, as they stand between the commas of `read_axis`.

    Args:
        option: ``"--x"``, for errors.
        values: texts and numbers; None is ``none``, and names in stacking order may be a list of them.

    Raises:
        UsageError: as `read_axis`.
    """
    kind, colon, target = name.partition(":")
    kind = _kind(option, kind)
    if colon and (kind != "strength" or not target):
        raise UsageError(f"{option} {name}: only strength:NAME has a name behind it", hint=f"{option} {kind}=...")
    where = f"{option} {name}"
    texts = map(_written, values)
    contents = list(_READ[kind](where, [text.strip() if kind != "prompt" else text for text in texts]))
    if not contents:
        raise UsageError(f"{where}: no values", hint=f'{option} "{kind}={AXES[kind]}"')
    if len(contents) > MOST_VALUES:
        raise UsageError(f"{where}: {len(contents)} values; at most {MOST_VALUES}", hint="draw several grids")
    search = str(contents[0]) if kind == "prompt" else ""
    return tuple((Change(f"{kind}{colon}{target}", content, search),) for content in contents)


def read_strengths(text: str) -> Axis:
    """Reads ``--strengths LIST``.

    Raises:
        UsageError: not a list of numbers.
    """
    numbers = list(_numbers("--strengths", [part.strip() for part in text.split(",")], whole=False))
    return tuple((Change("strength", float(number)),) for number in numbers)


def label_of(value: Value, names: Mapping[tuple[str, Content], str]) -> str:
    """Returns what a row or column is called.

    Args:
        value: a place on an axis.
        names: (axis, value) -> what it is called, where that is not the value itself.
    """
    labels = [names.get((change.axis, change.value)) or _label(change) for change in value]
    return ", ".join(label for label in labels if label)


def in_every_order(axis: Axis, orders: Sequence[tuple[str, ...]]) -> Axis:
    """Returns an axis with ``order=all`` spelled out."""
    return tuple(
        value
        for place in axis
        for value in (
            tuple((Change("order", order),) for order in orders)
            if place and place[0] == Change("order", ("all",))
            else (place,)
        )
    )


def _kind(option: str, name: str) -> str:
    kind = _OTHER_NAMES.get(name.casefold(), name.casefold())
    if kind not in AXES:
        near = difflib.get_close_matches(kind, [*AXES, *_OTHER_NAMES], n=1)
        hint = f"did you mean {near[0]}?" if near else f"axes are: {', '.join(AXES)}"
        raise UsageError(f"{option} {name}: no axis has this name", hint=hint)
    return kind


def _written(value: object) -> str:
    if isinstance(value, tuple | list):
        return "/".join(map(str, value))
    return "none" if value is None else str(value)


def _label(change: Change) -> str:
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


def _texts(where: str, values: Sequence[str]) -> Iterator[Content]:
    if not any(value.strip() for value in values[:1]):
        raise UsageError(f"{where}: the first value is what is searched for", hint='"prompt=circle,star"')
    yield from values


def _samplers(where: str, values: Sequence[str]) -> Iterator[Content]:
    for value in values:
        try:
            yield sampler_name(value)
        except UsageError as error:
            hint = None if error.hint is None else error.hint.removeprefix("--sampler ")
            raise UsageError(f"{where}: {error}", hint=hint) from error


def _places(where: str, values: Sequence[str]) -> Iterator[Content]:
    for value in values:
        if not value:
            raise UsageError(f"{where}: a value is empty", hint=f'"checkpoint={AXES["checkpoint"]}"')
        yield value


def _whole(lowest: int, highest: int) -> Callable[[str, Sequence[str]], Iterator[Content]]:
    def read(where: str, values: Sequence[str]) -> Iterator[Content]:
        for number in _numbers(where, values, whole=True):
            if number != int(number) or not lowest <= number <= highest:
                raise UsageError(f"{where}: {number}: a whole number from {lowest} to {highest} is meant")
            yield int(number)

    return read


def _real(lowest: float) -> Callable[[str, Sequence[str]], Iterator[Content]]:
    def read(where: str, values: Sequence[str]) -> Iterator[Content]:
        for number in _numbers(where, values, whole=False):
            if number < lowest:
                raise UsageError(f"{where}: {number}: a number from {lowest:g} on is meant")
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
            yield _number(where, value)


def _number(where: str, text: str) -> Decimal:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{where}: {text or 'an empty value'}: not a number", hint="0,0.5,1 or 1-5 or 0:1:0.25")
    return Decimal(text.strip().replace("_", ""))


def _range(where: str, text: str, start: str, end: str, step: str | None) -> Iterator[Decimal]:
    """Yields a range with both ends where the step hits them, exact in decimals."""
    first, last, by = Decimal(start), Decimal(end), abs(Decimal(step or 1))
    if not by or abs(last - first) / by >= MOST_VALUES:
        raise UsageError(f"{where}: {text}: a range of more than {MOST_VALUES} values", hint="take a larger step")
    by = by if last >= first else -by
    for place in range(int((last - first) / by) + 1):
        yield first + place * by


def _spread(start: str, end: str, count: int, whole: bool) -> Iterator[Decimal]:
    """Yields `count` numbers from one end to the other, as evenly as they can be."""
    first, last = Decimal(start), Decimal(end)
    for place in range(min(count, MOST_VALUES + 1)):
        number = first + (last - first) * place / max(count - 1, 1)
        yield Decimal(int(number)) if whole else round(number, 6)


_READ: Mapping[str, Callable[[str, Sequence[str]], Iterator[Content]]] = {
    "hypernetwork": _networks,
    "strength": _real(-math.inf),
    "order": _orders,
    "seed": _whole(-1, LARGEST_SEED),
    "prompt": _texts,
    "steps": _whole(1, 1000),
    "cfg": _real(1),
    "sampler": _samplers,
    "checkpoint": _places,
}
