"""What a person is told while networks are trained: a bar at a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hnetkit.cli.output import Output, is_terminal

if TYPE_CHECKING:
    from hnetkit.train.loop import TrainingReport

_SECONDS_BETWEEN_LINES = 60  # where no terminal shows a bar


def as_one_process(output: Output) -> Output:
    """Returns how this process prints: of several that `accelerate` starts, the main one alone says something."""
    from hnetkit.distributed import Processes, started_alone

    if started_alone():
        output.note("accelerate started one process: with --cpu it needs MPI for several; --multi_gpu starts them.")
    return output if Processes.of_environment().is_main else replace(output, quiet=True)


@contextmanager
def run_progress(output: Output) -> Iterator[dict[str, Any]]:
    """Gives the callbacks of `hnetkit.train.train`: a bar with loss, rate and time left, or lines."""
    if output.quiet or not is_terminal(sys.stderr):
        yield {"note": output.note, "step": _lines(output)}
        return
    from hnetkit.cli.progress import Bar

    begun = False

    def prepared(what: str, done: int, total: int) -> None:
        nonlocal begun
        begun = False
        bar.show(what, done, total)

    def made(report: TrainingReport) -> None:
        nonlocal begun
        if not begun:
            begun = True
            bar.begin("Training", report.step - 1, report.last_step)
        about = f"loss {report.loss:.4f}  rate {report.rate:.3g}  epoch {report.epoch + 1}"
        bar.show("Training", report.step, report.last_step, about)

    bar = Bar("Training")
    try:
        yield {"note": bar.say, "progress": prepared, "step": made}
    finally:
        bar.stop()


def _lines(output: Output) -> Callable[[TrainingReport], None]:
    said = time.monotonic()

    def made(report: TrainingReport) -> None:
        nonlocal said
        if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            output.note(f"Step {report.step} of {report.last_step}: loss {report.loss:.4f}, rate {report.rate:.3g}")

    return made
