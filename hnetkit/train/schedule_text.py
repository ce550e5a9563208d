"""Pieces of a schedule's text that know where they stand, so that a fault is reported with its column."""

from __future__ import annotations

import math
from typing import NamedTuple

from hnetkit.errors import UsageError

FAR = 10**15  # steps that no run makes: what goes on without an end ends here
_SHOWN = 60  # characters of a schedule or a piece in a message


class Piece(NamedTuple):
    """A piece of a schedule.

    Attributes:
        text: of the piece.
        schedule: the whole that it is a piece of.
        column: of its first character in the whole, from 1.
    """

    text: str
    schedule: str
    column: int = 1

    @property
    def is_blank(self) -> bool:
        return not self.text.strip()

    @property
    def first_column(self) -> int:
        """The column of the first character that is not blank; of a blank piece the one after it."""
        return self.column + len(self.text) - len(self.text.lstrip())

    def split(self, separator: str) -> list[Piece]:
        """Returns the pieces between separators of one character, blank ones too."""
        pieces, column = [], self.column
        for text in self.text.split(separator):
            pieces.append(Piece(text, self.schedule, column))
            column += len(text) + 1
        return pieces

    def number(self) -> float:
        """Returns the finite number, 0 or more, that the piece is.

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
        """Returns the whole number that the piece is, at most `FAR`.

        Raises:
            UsageError: it is not one.
        """
        try:
            return min(int(self.text), FAR)
        except ValueError as error:
            missing = "a number of steps is missing"
            raise self.fault(missing if self.is_blank else f"{self._shown} is not a whole number") from error

    def fault(self, reason: str) -> UsageError:
        """Returns the error that says what is wrong with the piece, and where it stands."""
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
    """Returns a rate as people write it, and as exactly as it is: ``5e-5``."""
    return repr(float(rate)).replace("e-0", "e-")


def scaled_steps(steps: int, factor: float) -> int:
    """Returns a number of steps multiplied and rounded, at least 1."""
    return max(1, min(FAR, round(min(FAR, steps * factor))))


def scaled_rate(rate: float, factor: float) -> float:
    """Returns a rate multiplied, without the dust that binary fractions leave behind."""
    return rate if factor == 1 else float(f"{rate * factor:.12g}")
