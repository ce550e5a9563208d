"""Progress on stderr, for a person at a terminal and for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
    shown: list[Any] = []

    def report(done: float, total: float) -> None:
        if quiet or not sys.stderr.isatty() or (not shown and time.monotonic() - started < 1):
            return
        if not shown:
            shown.append(_start(label, in_bytes))
        bar, task = shown[0]
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        for bar, _ in shown:
            bar.stop()


def _start(label: str, in_bytes: bool) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counted = DownloadColumn() if in_bytes else MofNCompleteColumn()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        counted,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    return bar, bar.add_task(label, total=None)
