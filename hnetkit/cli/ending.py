"""A polite kill and a closed terminal end a command as Ctrl-C does: all is unwound, nothing half-written stays."""

from __future__ import annotations

import signal
from types import FrameType


class Ended(KeyboardInterrupt):
    """The process was told to end.

    Attributes:
        exit_code: what shells say of a process that this signal ended.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def unwind_on_signals() -> None:
    """Makes SIGTERM and SIGHUP an `Ended`, once; a second one ends at once. What is ignored (`nohup`) stays ignored."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def exit_code_of(interruption: BaseException) -> int:
    """Returns the exit code after what click makes of an interruption."""
    return interruption.__cause__.exit_code if isinstance(interruption.__cause__, Ended) else 130


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Ended(number)
