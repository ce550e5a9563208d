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
from types import MappingProxyType
from typing import NamedTuple

from hnetkit.errors import UsageError
from hnetkit.train.cosine import Cosine, Cycle, is_cosine
from hnetkit.train.schedule_text import FAR, Piece, rate_text, scaled_rate, scaled_steps

MOST_STAGES = 10_000
"""Of a schedule."""


class Preset(NamedTuple):
    """A schedule with a name.

    Attributes:
        text: the schedule.
        about: what it is, in one line.
        stops: where to look whether the network will do already: name -> the first and the last such step.
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


class Stage(NamedTuple):
    """A part of a schedule with one rate, or one cycle of a cosine.

    Its rate is that of the step that makes `step` into `step` + 1, where `from_step` <= `step` < `to_step`. A stage
    whose `to_step` is not above its `from_step` is never used; A1111's grammar allows it.

    Attributes:
        rate: of every step; of a cosine's cycle the highest.
        from_step: steps that were made when it begins.
        to_step: steps that were made when it ends.
    """

    rate: float
    from_step: int
    to_step: int


class Rates:
    """The rate of every step of a run.

    Args:
        text: a schedule, or a preset's name.
        max_steps: at which the run ends at the latest, at least 1.
        from_step: steps that were made before.

    Attributes:
        stages: in order; those that end at or before `from_step` are left out.

    Raises:
        UsageError: it is no schedule, or nothing of it is left after `from_step`; the message has the column.
    """

    def __init__(self, text: str, max_steps: int, from_step: int = 0) -> None:
        self.max_steps, self.from_step = max_steps, from_step
        schedule = _schedule(text)
        self._cycles: tuple[Cycle, ...] = ()
        self._unread: list[str] = []
        if is_cosine(schedule):
            self._cycles = Cosine.read(schedule, max_steps).cycles(max_steps, from_step)
            ends = [(cycle.peak, min(cycle.end, max_steps)) for cycle in self._cycles]
        else:
            ends, self._unread = _read(schedule, max_steps, from_step)
        self.stages = _in_a_row(ends, from_step)
        used = [number for number, stage in enumerate(self.stages) if stage.from_step < stage.to_step]
        self._used = used or [len(self.stages) - 1]
        self._ends = [self.stages[number].to_step for number in self._used]

    @property
    def last_step(self) -> int:
        """The steps that were made when training ends: `max_steps`, or fewer where the schedule ends before."""
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

    def warnings(self) -> Iterator[str]:
        """Yields what may not be meant, one line each; above all, that training ends before `max_steps`."""
        if self.from_step >= self.max_steps:
            yield f"no step is left: {self.from_step} are made, and training ends at {self.max_steps}"
        elif self.last_step < self.max_steps:
            yield f"training ends at step {self.last_step}, not at {self.max_steps}: the schedule ends there"
        for stage in self.stages:
            if stage.to_step <= stage.from_step and stage.to_step < self.max_steps:
                unused = f"{rate_text(stage.rate)} until step {stage.to_step}"
                yield f"{unused} is never used: {stage.from_step} steps are made by then"
        yield from self._unread
        if self._cycles and self._cycles[-1].end > self.max_steps:
            yield f"the last cycle is cut off at step {self.max_steps}: it would end at {self._cycles[-1].end}"


def schedule(text: str, max_steps: int | None = None, from_step: int = 0) -> Rates:
    """Returns the rates that a schedule, or a preset's name, stands for; A1111's grammar gives A1111's stages.

    Args:
        text: a schedule, or a preset's name.
        max_steps: at which the run ends at the latest, at least 1; None: where the schedule ends.
        from_step: steps that were made before.

    Raises:
        UsageError: it is no schedule, nothing of it is left after `from_step`, or nothing says where it ends; where it
            cannot be read, the message has the column.
    """
    last = end_of(text) if max_steps is None else max_steps
    if last is None:
        raise UsageError(f"the schedule {text} has no end of its own", hint="--max-steps 10000")
    return Rates(text, last, from_step)


def end_of(text: str) -> int | None:
    """Returns the step at which a schedule ends of itself; None where it lasts as long as the run.

    Raises:
        UsageError: it is no schedule.
    """
    schedule = _schedule(text)
    if is_cosine(schedule):
        Cosine.read(schedule)
        return None
    last = Rates(text, FAR).last_step
    return last if last < FAR else None


def scaled(text: str, steps: float = 1, rates: float = 1) -> str:
    """Returns the same schedule with its steps and its rates multiplied; no step becomes less than 1.

    Raises:
        UsageError: it is no schedule, or a factor is not a number above 0.
    """
    for factor in (steps, rates):
        if not 0 < factor < math.inf:
            raise UsageError(f"a schedule cannot be scaled by {factor:g}", hint="a number above 0")
    schedule = _schedule(text)
    if is_cosine(schedule):
        return Cosine.read(schedule).scaled(steps, rates).text()
    ends, _ = _read(schedule, FAR, 0)
    return ", ".join(
        rate_text(scaled_rate(rate, rates)) + (f":{scaled_steps(end, steps)}" if end < FAR else "")
        for rate, end in ends
    )


def _schedule(text: str) -> Piece:
    preset = PRESETS.get(text.strip())
    text = text if preset is None else preset.text
    return Piece(text, text)


def _read(schedule: Piece, max_steps: int, from_step: int) -> tuple[list[tuple[float, int]], list[str]]:
    """Returns each rate with the step at which it ends, and a line about each part that is not read.

    As in A1111, what is not needed is not looked at: the rate of a stage that is over, and all after the last step.
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
            return ends, [*_unread(rest, pieces[number:])]
        if end > from_step:
            ends.append((rate.number(), min(end, max_steps)))
        if end > max(max_steps, from_step):
            break
    if not pieces:
        raise schedule.fault("no rate in it")
    if not ends:
        raise rest[0].fault(f"training goes on from step {from_step}, and no rate lasts longer")
    return ends, []


def _unread(rest: list[Piece], after: list[Piece]) -> Iterator[str]:
    words = "what stands from column {} on is not read: {}"
    if len(rest) > 1:
        yield words.format(rest[0].first_column, "A1111 takes two colons for no step at all")
    elif after:
        yield words.format(after[0].first_column, "the rate before it has no end")


def _in_a_row(ends: list[tuple[float, int]], from_step: int) -> tuple[Stage, ...]:
    stages = []
    for rate, end in ends:
        stages.append(Stage(rate, from_step, end))
        from_step = max(from_step, end)
    return tuple(stages)
