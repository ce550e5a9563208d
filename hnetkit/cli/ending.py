"""A polite kill and a closed terminal end a command as Ctrl-C does: all is unwound, nothing half-written stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnetkit.sources.http import RealClock


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


@contextmanager
def stopping_on_signals(clock: RealClock) -> Iterator[None]:
    """Ctrl-C, a polite kill and a closed terminal stop what waits on a clock at its next step; a second one, for a
    site that hangs, ends the process at once. The exit code is the signal's.
    """
    from hnetkit.sources.http import Stopped

    came = signal.SIGINT

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if clock.stop.is_set():
            os._exit(128 + number)  # nothing is lost: jobs and parts are made for a kill at any moment
        came = signal.Signals(number)
        clock.stop.set()

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # as `nohup` has it
    former = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    except Stopped as stopped:
        stopped.exit_code = 128 + came
        raise
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
