"""Progress on stderr, for a person at a terminal and for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hnetkit.cli.output import is_terminal
from hnetkit.text import printable


@contextmanager
def byte_progress(label: str, *, quiet: bool) -> Iterator[Callable[[float, float], None]]:
    """Gives a function to call with (bytes done, bytes in all)."""
    with _bar(label, quiet=quiet, in_bytes=True) as report:
        yield report


@contextmanager
def step_progress(label: str, *, quiet: bool) -> Iterator[Callable[[float, float], None]]:
    """Gives a function to call with (steps done, steps in all)."""
    with _bar(label, quiet=quiet, in_bytes=False) as report:
        yield report


@contextmanager
def _bar(label: str, *, quiet: bool, in_bytes: bool) -> Iterator[Callable[[float, float], None]]:
    started = time.monotonic()
    shown: list[Bar] = []

    def report(done: float, total: float) -> None:
        if quiet or not is_terminal(sys.stderr) or (not shown and time.monotonic() - started < 1):
            return
        if not shown:
            shown.append(Bar(label, in_bytes=in_bytes))
        shown[0].show(label, done, total)

    try:
        yield report
    finally:
        for bar in shown:
            bar.stop()


class Bar:
    """A line on stderr that shows how far something is; it is gone once it stops.

    Args:
        label: what is being done. Labels and lines are texts: rich reads no markup in them.
        in_bytes: whether bytes are counted.
    """

    def __init__(self, label: str, *, in_bytes: bool = False) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn() if in_bytes else MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[about]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(printable(label), total=None, about="")

    def begin(self, label: str, done: float, total: float) -> None:
        """Starts anew: the time that is left is reckoned from here."""
        self._progress.reset(self._task, description=printable(label), completed=int(done), total=total)

    def show(self, label: str, done: float, total: float, about: str = "") -> None:
        """Shows how much of `total` is done, and a remark after it."""
        self._progress.update(
            self._task, description=printable(label), completed=done, total=total, about=printable(about)
        )

    def say(self, line: str) -> None:
        """Says one line above the bar."""
        self._progress.console.print(printable(line), markup=False, highlight=False, emoji=False)

    def stop(self) -> None:
        self._progress.stop()
