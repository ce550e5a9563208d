"""Learning rates over the steps of a run: A1111's grammar, presets by name, and cosine with restarts.

A schedule is one of

    RATE[:STEP], RATE[:STEP], ...       A1111's: each rate until its step; without a step, or with -1, to the end
    default                             a preset's name
    cosine:RATE[:cycle=STEPS][:mult=FACTOR][:warmup=STEPS][:min=RATE][:decay=FACTOR]

Steps are absolute and count from 0. Values of gradient clipping are written the same way.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from hnetkit.errors import UsageError

FAR = 10**15  # the end of what has none: no run makes so many steps

MOST_STAGES = 10_000
"""Stages of a schedule."""


class Preset(NamedTuple):
    """A schedule with a name.

    Attributes:
        text: the schedule.
        about: what it is, in one line.
        stops: steps at which to look whether the network is good enough: name -> the first and the last such step.
    """

    text: str
    about: str
    stops: Mapping[str, tuple[int, int]] = MappingProxyType({})


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "default": Preset(
            "5e-5:100, 5e-6:1500, 5e-7:10000, 5e-8:20000",
            "down in four steps, as most guides give it",
            MappingProxyType({"usable": (5000, 10000), "fine": (20000, 20000)}),
        ),
        "short": Preset("5e-5:2000, 5e-6:4000, 5e-7:6000", "done in 6000 steps"),
        "long": Preset("5e-5:2000, 5e-6:10000, 5e-7:20000", "the first two rates for longer"),
        "open": Preset("1e-4:1000, 5e-5:2000, 1e-5:10000, 5e-6", "higher rates, with no end of its own"),
        "flat": Preset("1e-5", "one rate, the one that A1111 offers"),
        "restarts": Preset("cosine:4e-5:cycle=64:warmup=5:min=6e-7", "a cosine in many short cycles"),
    }
)


class RateStage(NamedTuple):
    """A part of a schedule with one rate, or one cycle of a cosine.

    Its rate is that of the step that makes `step` into `step` + 1, where `from_step` <= `step` < `to_step`. A stage
    whose `to_step` is not above its `from_step` is never used; A1111's grammar allows it.

    Attributes:
        rate: of every step; of a cosine's cycle the highest.
        from_step: steps made when it begins.
        to_step: steps made when it ends.
    """

    rate: float
    from_step: int
    to_step: int


class Rates:
    """The rate of every step of a run.

    Args:
        text: a schedule, or a preset's name.
        max_steps: at which the run ends at the latest, at least 1.
        from_step: steps made before.

    Attributes:
        stages: in order, without those that end at or before `from_step`.

    Raises:
        UsageError: it is no schedule, or nothing of it is left after `from_step`; the message has the column.
    """

    def __init__(self, text: str, max_steps: int, from_step: int = 0) -> None:
        self.max_steps, self.from_step = max_steps, from_step
        schedule = _as_piece(text)
        self._cycles: tuple[Cycle, ...] = ()
        self._warnings: list[str] = []
        if is_cosine(schedule):
            self._cycles = Cosine.parse(schedule, max_steps).cycles(max_steps, from_step)
            ends = [(cycle.peak, min(cycle.end, max_steps)) for cycle in self._cycles]
        else:
            ends, self._warnings = _parse_stages(schedule, max_steps, from_step)
        self.stages = _consecutive_stages(ends, from_step)
        used = [number for number, stage in enumerate(self.stages) if stage.from_step < stage.to_step]
        self._used = used or [len(self.stages) - 1]
        self._ends = [self.stages[number].to_step for number in self._used]

    @property
    def last_step(self) -> int:
        """The steps made when training ends: `max_steps`, or fewer if the schedule ends before."""
        return max(self.from_step, self._ends[-1])

    def rate_at(self, step: int) -> float:
        """Returns the rate of the step that makes `step` into `step` + 1; from `last_step` on the last one used."""
        number = self._used[min(bisect_right(self._ends, step), len(self._used) - 1)]
        stage = self.stages[number]
        return self._cycles[number].rate_at(min(step, stage.to_step - 1)) if self._cycles else stage.rate

    def is_same(self, other: Rates) -> bool:
        """Whether both give every step the same rate, however they are written."""
        if self.last_step != other.last_step or self._cycles or other._cycles:
            return self.last_step == other.last_step and self._cycles == other._cycles
        changes = {rates.stages[number].from_step for rates in (self, other) for number in rates._used}
        return all(self.rate_at(step) == other.rate_at(step) for step in changes)

    def is_same_until(self, step: int, other: Rates) -> bool:
        """Whether both give each step before `step` the same rate."""
        if self._cycles or other._cycles:
            is_same = self._cycles == other._cycles
            return is_same or all(self.rate_at(number) == other.rate_at(number) for number in range(step))
        changes = {rates.stages[number].from_step for rates in (self, other) for number in rates._used}
        return all(self.rate_at(number) == other.rate_at(number) for number in changes if number < step)

    def warnings(self) -> Iterator[str]:
        """Yields what may be a mistake, one line each; above all, that training ends before `max_steps`."""
        if self.from_step >= self.max_steps:
            yield f"no step is left: {self.from_step} are made, and training ends at {self.max_steps}"
        elif self.last_step < self.max_steps:
            yield f"training ends at step {self.last_step}, not at {self.max_steps}: the schedule ends there"
        for stage in self.stages:
            if stage.to_step <= stage.from_step and stage.to_step < self.max_steps:
                unused = f"{rate_text(stage.rate)} until step {stage.to_step}"
                yield f"{unused} is never used: {stage.from_step} steps are made by then"
        yield from self._warnings
        if self._cycles and self._cycles[-1].end > self.max_steps:
            yield f"the last cycle is cut off at step {self.max_steps}: it would end at {self._cycles[-1].end}"


def schedule(text: str, max_steps: int | None = None, from_step: int = 0) -> Rates:
    """Returns the rates of a schedule or a preset; A1111's grammar gives A1111's stages.

    Args:
        text: a schedule, or a preset's name.
        max_steps: at which the run ends at the latest, at least 1; None: where the schedule ends.
        from_step: steps made before.

    Raises:
        UsageError: it is no schedule, nothing of it is left after `from_step`, or nothing says where it ends; for a
            mistake in the text, the message has the column.
    """
    last = end_of(text) if max_steps is None else max_steps
    if last is None:
        raise UsageError(f"the schedule {text} has no end of its own", hint="--max-steps 10000")
    return Rates(text, last, from_step)


def end_of(text: str) -> int | None:
    """Returns the step at which a schedule ends of itself; None if it lasts as long as the run.

    Raises:
        UsageError: it is no schedule.
    """
    schedule = _as_piece(text)
    if is_cosine(schedule):
        Cosine.parse(schedule)
        return None
    last = Rates(text, FAR).last_step
    return last if last < FAR else None


def scale_schedule(text: str, steps: float = 1, rates: float = 1) -> str:
    """Returns the same schedule with its steps and its rates multiplied; no step becomes less than 1.

    Raises:
        UsageError: it is no schedule, or a factor is not a number above 0.
    """
    for factor in (steps, rates):
        if not 0 < factor < math.inf:
            raise UsageError(f"a schedule cannot be scaled by {factor:g}", hint="a number above 0")
    schedule = _as_piece(text)
    if is_cosine(schedule):
        return Cosine.parse(schedule).scaled(steps, rates).text()
    ends, _ = _parse_stages(schedule, FAR, 0)
    return ", ".join(
        rate_text(_scaled_rate(rate, rates)) + (f":{_scaled_steps(end, steps)}" if end < FAR else "")
        for rate, end in ends
    )


def _as_piece(text: str) -> Piece:
    preset = PRESETS.get(text.strip())
    text = text if preset is None else preset.text
    return Piece(text, text)


def _parse_stages(schedule: Piece, max_steps: int, from_step: int) -> tuple[list[tuple[float, int]], list[str]]:
    """Returns each rate with the step at which it ends, and a warning if the rest of the text is ignored.

    As in A1111, unneeded parts are not parsed: the rate of a stage that is over, and everything after the last step.
    """
    if schedule.text.count(",") > MOST_STAGES:
        raise schedule.fault(f"more than {MOST_STAGES} rates")
    pieces = [piece for piece in schedule.split(",") if not piece.is_blank]
    ends: list[tuple[float, int]] = []
    for number, piece in enumerate(pieces, 1):
        rate, *rest = piece.split(":")
        end = rest[0].whole_number() if len(rest) == 1 else -1
        if end == -1:
            ends.append((rate.number(), max_steps))
            return ends, [*_ignored(rest, pieces[number:])]
        if end > from_step:
            ends.append((rate.number(), min(end, max_steps)))
        if end > max(max_steps, from_step):
            break
    if not pieces:
        raise schedule.fault("no rate in it")
    if not ends:
        raise rest[0].fault(f"training goes on from step {from_step}, and no rate lasts longer")
    return ends, []


def _ignored(rest: list[Piece], after: list[Piece]) -> Iterator[str]:
    words = "everything from column {} on is ignored: {}"
    if len(rest) > 1:
        yield words.format(rest[0].first_column, "A1111 takes two colons for no step at all")
    elif after:
        yield words.format(after[0].first_column, "the rate before it has no end")


def _consecutive_stages(ends: list[tuple[float, int]], from_step: int) -> tuple[RateStage, ...]:
    stages = []
    for rate, end in ends:
        stages.append(RateStage(rate, from_step, end))
        from_step = max(from_step, end)
    return tuple(stages)


# --- cosine with restarts

_WORD = "cosine"
_DEFAULTS = {"mult": 1.0, "min": 0.0, "decay": 1.0}
_MOST_CYCLES = 10_000


class Cycle(NamedTuple):
    """One cycle: up from `lowest` to `peak` in `warmup` steps, then down to `lowest` along half a cosine.

    Attributes:
        start: steps made when it begins.
        length: in steps, the warm-up included.
        warmup: in steps; 0 begins at the peak.
        peak: highest rate.
        lowest: rate that it begins at (with a warm-up) and falls to.
    """

    start: int
    length: int
    warmup: int
    peak: float
    lowest: float

    @property
    def end(self) -> int:
        return self.start + self.length

    def rate_at(self, step: int) -> float:
        """Returns the rate of the step that makes `step` into `step` + 1."""
        made = step - self.start
        if made < self.warmup:
            part = made / self.warmup
        else:
            part = (1 + math.cos(math.pi * (made - self.warmup) / (self.length - self.warmup))) / 2
        return self.lowest + (self.peak - self.lowest) * part


@dataclass(frozen=True, slots=True)
class Cosine:
    """What ``cosine:RATE[:cycle=STEPS][:mult=FACTOR][:warmup=STEPS][:min=RATE][:decay=FACTOR]`` says.

    Attributes:
        peak: highest rate of the first cycle.
        cycle: steps of the first cycle, the warm-up included; None: the whole run is one.
        mult: how many times longer each cycle is than the one before, without warm-ups; at least 1.
        warmup: steps of each cycle from the lowest rate up to the peak.
        lowest: rate at which each cycle ends.
        decay: factor of the peak after each cycle; it does not fall below `lowest`.
    """

    peak: float
    cycle: int | None
    mult: float
    warmup: int
    lowest: float
    decay: float

    @classmethod
    def parse(cls, schedule: Piece, max_steps: int = FAR) -> Cosine:
        """Returns the cosine of a schedule that begins with ``cosine``.

        Raises:
            UsageError: it is invalid; the message has the column.
        """
        _, *rest = schedule.split(":")
        if not rest:
            raise Piece("", schedule.schedule, schedule.column + len(schedule.text)).fault("cosine:RATE has a rate")
        options = _options(rest[1:])
        numbers = _DEFAULTS | {word: piece.number() for word, piece in options.items() if word in _DEFAULTS}
        counts = {word: piece.whole_number() for word, piece in options.items() if word not in _DEFAULTS}
        cosine = cls(
            rest[0].number(),
            cycle=counts.get("cycle"),
            mult=numbers["mult"],
            warmup=counts.get("warmup", 0),
            lowest=numbers["min"],
            decay=numbers["decay"],
        )
        length = max_steps if cosine.cycle is None else cosine.cycle
        for name, holds, reason in (
            ("cycle", length >= 1, "a cycle has at least 1 step"),
            ("mult", cosine.mult >= 1, "cycles do not become shorter: at least 1"),
            ("warmup", 0 <= cosine.warmup < length, f"a warm-up has fewer steps than its cycle, which has {length}"),
            (
                "min",
                cosine.lowest <= cosine.peak,
                f"the lowest rate is not above the highest, {rate_text(cosine.peak)}",
            ),
            ("decay", 0 < cosine.decay <= 1, "a number above 0, up to 1"),
        ):
            if name in options and not holds:
                raise options[name].fault(reason)
        return cosine

    def cycles(self, max_steps: int, from_step: int = 0) -> tuple[Cycle, ...]:
        """Returns the cycles of the steps from `from_step` to `max_steps`, the last in its full length.

        Raises:
            UsageError: there are more than 10,000.
        """
        start, length, found = 0, self.cycle or max(1, max_steps), list[Cycle]()
        while not found or start < max_steps:
            if len(found) == _MOST_CYCLES:
                raise UsageError(f"{self.text()}: more than {_MOST_CYCLES} cycles in {max_steps} steps", hint="cycle=N")
            peak = max(self.lowest, self.peak * self.decay ** len(found))
            found.append(Cycle(start, length, self.warmup, peak, self.lowest))
            start += length
            length = int(min((length - self.warmup) * self.mult, FAR)) + self.warmup
        return tuple(cycle for cycle in found if cycle.end > from_step) or (found[-1],)

    def scaled(self, steps: float, rates: float) -> Cosine:
        """Returns a cosine with its steps and its rates multiplied; a cycle stays longer than its warm-up."""
        cycle = None if self.cycle is None else _scaled_steps(self.cycle, steps)
        warmup = min(_scaled_steps(self.warmup, steps), (cycle or FAR) - 1) if self.warmup else 0
        return replace(
            self,
            peak=_scaled_rate(self.peak, rates),
            lowest=_scaled_rate(self.lowest, rates),
            cycle=cycle,
            warmup=warmup,
        )

    def text(self) -> str:
        """Returns it as text, without what has its default."""
        parts = [_WORD, rate_text(self.peak)]
        parts += [] if self.cycle is None else [f"cycle={self.cycle}"]
        parts += [] if self.mult == 1 else [f"mult={self.mult!r}"]
        parts += [f"warmup={self.warmup}"] if self.warmup else []
        parts += [f"min={rate_text(self.lowest)}"] if self.lowest else []
        parts += [] if self.decay == 1 else [f"decay={self.decay!r}"]
        return ":".join(parts)


def is_cosine(schedule: Piece) -> bool:
    """Whether a schedule is written as a cosine; A1111's grammar has no such word."""
    return schedule.text.split(":")[0].strip() == _WORD


def _options(pieces: list[Piece]) -> dict[str, Piece]:
    options: dict[str, Piece] = {}
    for piece in pieces:
        name, *values = piece.split("=")
        word = name.text.strip()
        if word not in ("cycle", "warmup", *_DEFAULTS):
            raise name.fault("after the rate: cycle=, mult=, warmup=, min= or decay=")
        if len(values) != 1:
            raise piece.fault(f"{word}=NUMBER has one number")
        if word in options:
            raise name.fault(f"{word} is given twice")
        options[word] = values[0]
    return options


# --- pieces of a schedule's text

_SHOWN = 60  # characters of a schedule or a piece in a message


class Piece(NamedTuple):
    """A piece of a schedule.

    Attributes:
        text: of the piece.
        schedule: the whole text.
        column: of its first character in the whole text, from 1.
    """

    text: str
    schedule: str
    column: int = 1

    @property
    def is_blank(self) -> bool:
        return not self.text.strip()

    @property
    def first_column(self) -> int:
        """The column of the first character that is not blank; of a blank piece, the one after it."""
        return self.column + len(self.text) - len(self.text.lstrip())

    def split(self, separator: str) -> list[Piece]:
        """Returns the pieces between separators of one character, including blank ones."""
        pieces, column = [], self.column
        for text in self.text.split(separator):
            pieces.append(Piece(text, self.schedule, column))
            column += len(text) + 1
        return pieces

    def number(self) -> float:
        """Returns the finite number, 0 or more, that is written in the piece.

        Raises:
            UsageError: it is not one.
        """
        try:
            value = float(self.text)
        except ValueError as error:
            raise self.fault("a number is missing" if self.is_blank else f"{self._shown} is not a number") from error
        if not 0 <= value < math.inf:
            raise self.fault(f"{self._shown} is not a number from 0 on")
        return value

    def whole_number(self) -> int:
        """Returns the whole number that is written in the piece, at most `FAR`.

        Raises:
            UsageError: it is not one.
        """
        try:
            return min(int(self.text), FAR)
        except ValueError as error:
            missing = "a number of steps is missing"
            raise self.fault(missing if self.is_blank else f"{self._shown} is not a whole number") from error

    def fault(self, reason: str) -> UsageError:
        """Returns an error with what is wrong with the piece, and its column."""
        return UsageError(
            f"schedule {_shortened(self.schedule)!r}, column {self.first_column}: {reason}",
            hint="hnetkit train schedule lists presets; hnetkit train schedule TEXT shows what a schedule means",
        )

    @property
    def _shown(self) -> str:
        return repr(_shortened(self.text.strip()))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def rate_text(rate: float) -> str:
    """Returns a rate as people write it, ``5e-5``, without rounding."""
    return repr(float(rate)).replace("e-0", "e-")


def _scaled_steps(steps: int, factor: float) -> int:
    """Returns a number of steps multiplied and rounded, at least 1."""
    return max(1, min(FAR, round(min(FAR, steps * factor))))


def _scaled_rate(rate: float, factor: float) -> float:
    """Returns a rate multiplied, without the last digits that binary fractions add."""
    return rate if factor == 1 else float(f"{rate * factor:.12g}")
