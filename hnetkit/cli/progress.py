"""Progress on stderr: a bar for a person at a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hnetkit.cli.output import Output, is_terminal
from hnetkit.text import printable

if TYPE_CHECKING:
    from hnetkit.train.callbacks import TrainingReport

_SECONDS_BETWEEN_LINES = 60  # where no terminal shows a bar


@contextmanager
def byte_progress(label: str, *, quiet: bool) -> Iterator[Callable[[float, float], None]]:
    """Yields a function to call with (bytes done, bytes in all)."""
    with _bar(label, quiet=quiet, in_bytes=True) as report:
        yield report


@contextmanager
def step_progress(label: str, *, quiet: bool, first: str | None = None) -> Iterator[Callable[[float, float], None]]:
    """Yields a function to call with (steps done, steps in all).

    Args:
        first: what is done before the first step, where that takes seconds: it is shown at once.
    """
    with _bar(label, quiet=quiet, in_bytes=False, first=first) as report:
        yield report


@contextmanager
def _bar(
    label: str, *, quiet: bool, in_bytes: bool, first: str | None = None
) -> Iterator[Callable[[float, float], None]]:
    started, is_shown = time.monotonic(), not quiet and is_terminal(sys.stderr)
    shown = [Bar(first)] if is_shown and first is not None else []
    has_begun = False

    def report(done: float, total: float) -> None:
        nonlocal has_begun
        if not is_shown or (not shown and time.monotonic() - started < 1):
            return
        if not shown:
            shown.append(Bar(label, in_bytes=in_bytes))
        if not has_begun:
            has_begun = True
            shown[0].begin(label, done, total)
        shown[0].show(label, done, total)

    try:
        yield report
    finally:
        for bar in shown:
            bar.stop()


class Bar:
    """A line on stderr that shows how far something is; it is gone once it stops. What is printed goes above it.

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
            # what is printed into a file or a pipe goes there as if there were no bar
            redirect_stdout=is_terminal(sys.stdout),
        )
        self._progress.start()
        self._task = self._progress.add_task(printable(label), total=None, about="")

    def begin(self, label: str, done: float, total: float) -> None:
        """Starts again: the time left is estimated from here on."""
        self._progress.reset(self._task, description=printable(label), completed=int(done), total=total)

    def show(self, label: str, done: float, total: float, about: str = "") -> None:
        """Shows how much of `total` is done, with a remark after it."""
        self._progress.update(
            self._task, description=printable(label), completed=done, total=total, about=printable(about)
        )

    def stop(self) -> None:
        self._progress.stop()


def as_one_process(output: Output) -> Output:
    """Returns how this process prints: of several that `accelerate` started, only the main one prints notes."""
    from hnetkit.distributed import Processes, started_alone

    if started_alone():
        output.note("accelerate started one process: with --cpu it needs MPI for several; --multi_gpu starts them.")
    return output if Processes.of_environment().is_main else replace(output, quiet=True)


@contextmanager
def run_progress(output: Output) -> Iterator[dict[str, Any]]:
    """Yields the callbacks of `hnetkit.train.train`: a bar with loss, rate and time left, or a line each minute."""
    if output.quiet or not is_terminal(sys.stderr):
        yield {"note": output.note, "step": _note_steps(output)}
        return
    shown = ""

    def begin(what: str, done: int, total: int) -> None:
        """Estimates the time left of what is done now, and not of what was done before."""
        nonlocal shown
        if what != shown:
            shown = what
            bar.begin(what, done, total)

    def show_preparation(what: str, done: int, total: int) -> None:
        begin(what, done, total)
        bar.show(what, done, total)

    def show_step(report: TrainingReport) -> None:
        begin("Training", report.step - 1, report.last_step)
        about = f"loss {report.loss:.4f}  rate {report.rate:.3g}  epoch {report.epoch + 1}"
        bar.show("Training", report.step, report.last_step, about)

    bar = Bar("Training")
    try:
        yield {"note": output.note, "progress": show_preparation, "step": show_step}
    finally:
        bar.stop()


def _note_steps(output: Output) -> Callable[[TrainingReport], None]:
    last = time.monotonic()

    def note_step(report: TrainingReport) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            output.note(f"Step {report.step} of {report.last_step}: loss {report.loss:.4f}, rate {report.rate:.3g}")

    return note_step
