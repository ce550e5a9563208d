"""SIGTERM and SIGHUP end a command as Ctrl-C does: it unwinds, and leaves nothing half-written."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnetkit.sources.http import RealClock


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM or SIGHUP.

    Attributes:
        exit_code: the one by which shells report this signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def unwind_on_signals() -> None:
    """Raises `Terminated` at the first SIGTERM or SIGHUP; a second one kills. Signals that `nohup` ignores stay so."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def exit_code_of(interruption: BaseException) -> int:
    """Returns the exit code of an `Abort` of click's, which stands for an interruption."""
    return interruption.__cause__.exit_code if isinstance(interruption.__cause__, Terminated) else 130


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Terminated(number)


@contextmanager
def stopping_on_signals(clock: RealClock) -> Iterator[None]:
    """Stops work that uses `clock` at its next step, on SIGINT, SIGTERM or SIGHUP.

    A second signal, for a site that hangs, ends the process at once. The exit code is the signal's.
    """
    from hnetkit.sources.http import Stopped

    received = signal.SIGINT

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if clock.stop.is_set():
            os._exit(128 + number)  # jobs and partial files survive a kill at any moment
        received = signal.Signals(number)
        clock.stop.set()

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # as `nohup` has it
    previous = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    except Stopped as stopped:
        stopped.exit_code = 128 + received
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
