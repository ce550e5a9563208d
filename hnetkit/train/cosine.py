"""Cosine with restarts: rates that fall from a peak to a floor in cycles, each after a warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from hnetkit.errors import UsageError
from hnetkit.train.schedule_text import FAR, Piece, rate_text, scaled_rate, scaled_steps

_WORD = "cosine"
_DEFAULTS = {"mult": 1.0, "min": 0.0, "decay": 1.0}
_MOST_CYCLES = 10_000


class Cycle(NamedTuple):
    """One cycle: up from `lowest` to `peak` in `warmup` steps, then down to `lowest` along half a cosine.

    Attributes:
        start: steps that were made when it begins.
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
        mult: by which a cycle, without its warm-up, is longer than the one before; at least 1.
        warmup: steps of each cycle from the lowest rate up to the peak.
        lowest: rate at which each cycle ends.
        decay: what the peak is multiplied by after each cycle; it does not fall below `lowest`.
    """

    peak: float
    cycle: int | None
    mult: float
    warmup: int
    lowest: float
    decay: float

    @classmethod
    def read(cls, schedule: Piece, max_steps: int = FAR) -> Cosine:
        """Returns what a schedule says that begins with ``cosine``.

        Raises:
            UsageError: it cannot be meant; the message has the column.
        """
        _, *rest = schedule.split(":")
        if not rest:
            raise Piece("", schedule.schedule, schedule.column + len(schedule.text)).fault("cosine:RATE has a rate")
        options = _options(rest[1:])
        numbers = _DEFAULTS | {word: piece.number() for word, piece in options.items() if word in _DEFAULTS}
        counts = {word: piece.whole_number() for word, piece in options.items() if word not in _DEFAULTS}
        read = cls(
            rest[0].number(),
            cycle=counts.get("cycle"),
            mult=numbers["mult"],
            warmup=counts.get("warmup", 0),
            lowest=numbers["min"],
            decay=numbers["decay"],
        )
        length = max_steps if read.cycle is None else read.cycle
        for name, holds, reason in (
            ("cycle", length >= 1, "a cycle has at least 1 step"),
            ("mult", read.mult >= 1, "cycles do not become shorter: at least 1"),
            ("warmup", 0 <= read.warmup < length, f"a warm-up has fewer steps than its cycle, which has {length}"),
            ("min", read.lowest <= read.peak, f"the lowest rate is not above the highest, {rate_text(read.peak)}"),
            ("decay", 0 < read.decay <= 1, "a number above 0, up to 1"),
        ):
            if name in options and not holds:
                raise options[name].fault(reason)
        return read

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
        """Returns the same with its steps and its rates multiplied; a cycle stays longer than its warm-up."""
        cycle = None if self.cycle is None else scaled_steps(self.cycle, steps)
        warmup = min(scaled_steps(self.warmup, steps), (cycle or FAR) - 1) if self.warmup else 0
        return replace(
            self, peak=scaled_rate(self.peak, rates), lowest=scaled_rate(self.lowest, rates), cycle=cycle, warmup=warmup
        )

    def text(self) -> str:
        """Returns how it is written; what has its default is left out."""
        parts = [_WORD, rate_text(self.peak)]
        parts += [] if self.cycle is None else [f"cycle={self.cycle}"]
        parts += [] if self.mult == 1 else [f"mult={self.mult!r}"]
        parts += [f"warmup={self.warmup}"] if self.warmup else []
        parts += [f"min={rate_text(self.lowest)}"] if self.lowest else []
        parts += [] if self.decay == 1 else [f"decay={self.decay!r}"]
        return ":".join(parts)


def is_cosine(schedule: Piece) -> bool:
    """Returns whether a schedule is written as a cosine; A1111's grammar has no such word."""
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
            raise name.fault(f"{word} is said twice")
        options[word] = values[0]
    return options
