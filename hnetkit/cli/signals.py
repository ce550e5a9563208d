"""What ends a command early: Ctrl-C, SIGTERM and SIGHUP unwind it, and leave nothing half-written."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnetkit.sources.http import RealClock


AFTER_INTERRUPTION: Mapping[str, str] = {
    "scan": "what was indexed stays; the same command does the rest",
    "import": "what was imported stays; the same command imports the rest",
    "identify": "what the site answered stays; the same command asks about the rest",
    "remove": "a removal that was not complete is taken back; the same command does the rest",
    "link": "what was linked stays; the same command does the rest",
    "pull": "what was received stays; the same command does the rest",
    "sync": "what was received stays; the same command does the rest",
    "repair": "what was received stays; the same command does the rest",
    "share": "no file is half-written; the same command begins again, or goes on with an upload",
    "export": "no file was written or replaced; the same command begins again",
    "convert": "files that were converted stay; the same command with --overwrite makes them all",
    "generate": "pictures that were written stay; the same command draws all of them",
    "grid": "cells that were drawn stay; the same command draws the rest",
    "gallery": "what a page said it did stays; drawings that wait are drawn by the next `hnetkit gallery`",
    "bake": "nothing was written; the same command begins again",
    "bench": "nothing was stored; a lower --seconds takes less time",
    "train prepare": "pictures that were written stay; the same command with --overwrite makes them all",
    "train review": "captions that were written stay; the same command writes the rest",
    "train run": "the same command resumes from the last checkpoint, if there is one",
    "train sweep": "finished runs stay; the same command resumes the one that was interrupted",
}
"""Command -> what Ctrl-C leaves and what to do next, for the commands that leave something or take long."""


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


def name_command(interruption: BaseException, command: str) -> None:
    """Says in an interruption which command it ended, unless that is said already."""
    vars(interruption).setdefault("command", command)


def next_step_of(interruption: BaseException) -> str | None:
    """Returns what to say of an `Abort` of click's, which stands for an interruption; None where there is nothing."""
    command = vars(interruption.__cause__).get("command") if interruption.__cause__ else None
    return AFTER_INTERRUPTION.get(command or "")


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
