"""The training loop: its steps, and between them guards, logs, previews, checkpoints and roll-backs."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any

import torch

from hnetkit.errors import RunChanged, TrainingFailed
from hnetkit.formats.writing import save
from hnetkit.network import Hypernetwork
from hnetkit.train.callbacks import Progress, TrainingReport
from hnetkit.train.checkpoints import TrainingState, reporting_full_disk
from hnetkit.train.guards import MEASURED, Guards, Verdict
from hnetkit.train.logs import Log, LogRow
from hnetkit.train.plot import write_plot
from hnetkit.train.previews import Previews
from hnetkit.train.recipe import LARGEST, Recipe
from hnetkit.train.run_folder import RunFolder
from hnetkit.train.schedules import Rates
from hnetkit.train.step import Stepper, StepResult, restore_optimizer

_SECONDS_BETWEEN_PLOTS = 60
_SECONDS_OF_ONE_SIGNAL = 1  # launchers pass on a signal that the terminal has sent already


@dataclass(eq=False)
class TrainingLoop:
    """The loop of a run that is set up.

    Attributes:
        recipe: of the run.
        files: the run's folder.
        stepper: makes steps.
        guards: watch the run; their verdicts count if the recipe is guarded.
        rates: of learning.
        clip_at: a schedule of what gradients are clipped at; None if they are not.
        export: gives the network as it is after so many steps.
        log, previews: in the main process alone; previews are None if none are wanted.
        progress: called with what takes time between the steps.
        report: called after every step.
        note: called with a line for the user.
        step: steps made.
    """

    recipe: Recipe
    files: RunFolder
    stepper: Stepper
    guards: Guards
    rates: Rates
    clip_at: Rates | None
    export: Callable[[int], Hypernetwork]
    log: Log | None
    previews: Previews | None
    progress: Progress
    report: Callable[[TrainingReport], None]
    note: Callable[[str], None]
    step: int = 0
    _seconds: float = 0.0
    _last_plot: float = field(default_factory=time.monotonic)

    @property
    def last_step(self) -> int:
        return self.rates.last_step

    def begin(self) -> None:
        """Measures the loss, draws the first preview and writes the first checkpoint, before the first step.

        Raises:
            TrainingFailed: the loss is not finite from the start.
            DiskFull: no room for a checkpoint.
        """
        verdict = None
        if self.recipe.guarded:
            verdict = self.guards.begin(list(self._losses_before()))
        verdict = verdict or self._preview()
        if verdict is not None:
            raise self._failure(verdict)
        if self.stepper.processes.is_main:
            self.files.checkpoints.write(self._state())

    def _losses_before(self) -> Iterator[float]:
        """Yields the losses that the first steps would have with the network as it is."""
        most = min(MEASURED, self.last_step)
        for step in range(most):
            self.progress("Measuring the loss before training", step, most)
            yield self.stepper.measure(step)

    def resume(self, state: TrainingState) -> None:
        """Restores a checkpoint.

        Raises:
            RunChanged: another version of hnetkit, or of torch, wrote it.
        """
        self._restore(state, self.guards.load_state_dict)

    def run(self) -> None:
        """Makes the missing steps.

        Raises:
            TrainingFailed: a guard stopped the run; the message names the last good file.
            DiskFull: no room for a checkpoint; the previous one is complete.
            KeyboardInterrupt: asked to stop, by Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written.
        """
        with _stop_on_signals() as stop:
            while self.step < self.last_step:
                result, row = self._make_step(is_last=stop.is_set())
                verdict = self._watch(result, row)
                is_preview_due = self.recipe.preview_every and self.step % self.recipe.preview_every == 0
                if verdict is None and is_preview_due:
                    verdict = self._preview()
                if verdict is not None:
                    self._roll_back(verdict)
                elif self._is_checkpoint_due or result.is_last:
                    self.write_checkpoint()
                if result.is_last:
                    raise KeyboardInterrupt

    def write_checkpoint(self) -> None:
        """Writes the network as a file, then a checkpoint.

        Raises:
            DiskFull: no room; the previous checkpoint is complete.
        """
        self._require_finite()
        if not self.stepper.processes.is_main:
            return
        checkpoints = self.files.checkpoints
        with reporting_full_disk(checkpoints):
            save(self.export(self.step), self.files.snapshot(self.step), overwrite=True)
        checkpoints.write(self._state())
        if time.monotonic() - self._last_plot > _SECONDS_BETWEEN_PLOTS:
            self.plot()

    def plot(self) -> None:
        """Plots the losses so far."""
        self._last_plot = time.monotonic()
        if self.log is not None:
            write_plot(self.files.folder, self.recipe.name)

    @property
    def _is_checkpoint_due(self) -> bool:
        every = self.recipe.save_every
        return self.step == self.last_step or bool(every and self.step % every == 0)

    def _make_step(self, *, is_last: bool) -> tuple[StepResult, LogRow]:
        """Makes a step; returns it and its row of the log, which has no running mean yet."""
        started = time.monotonic()
        rate = self.rates.rate_at(self.step) * self.guards.rate_factor
        clip_at = None if self.clip_at is None else self.clip_at.rate_at(self.step)
        result = self.stepper.make_step(self.step, rate, clip_at, is_last=is_last)
        epoch, epoch_step = self.stepper.data.epoch(self.step)
        self.step += 1
        self._seconds += time.monotonic() - started
        return result, LogRow(
            step=self.step,
            epoch=epoch,
            epoch_step=epoch_step,
            loss=result.loss,
            learn_rate=rate,
            running_mean=math.nan,
            gradient_norm=result.gradient_norm,
            seconds=self._seconds,
            roll_backs=self.guards.roll_backs,
        )

    def _watch(self, result: StepResult, row: LogRow) -> Verdict | None:
        """Logs a step; returns a verdict if the run must not continue."""
        verdict = self.guards.after_step(self.step, result.loss, result.gradient_norm, is_skipped=result.is_skipped)
        row = row._replace(running_mean=self.guards.running_mean)
        if self.log is not None:
            self.log.step(row)
        self.report(TrainingReport(self.step, self.last_step, row.epoch, row.running_mean, row.learn_rate))
        return self._serious(verdict)

    def _preview(self) -> Verdict | None:
        """Draws a preview; returns a verdict if the run must not continue."""
        if not self.recipe.preview_every:
            return None
        seen = None
        if self.previews is not None:
            what = f"Drawing the preview of step {self.step}"
            preview = self.previews.draw(self.export(self.step), self.step, partial(self.progress, what))
            if self.log is not None:
                self.log.preview(self.step, preview.path)
            seen = preview.energy, preview.fault
        energy, fault = self.stepper.processes.broadcast(seen) or (0.0, "")
        return self._serious(self.guards.after_preview(self.step, energy, fault))

    def _serious(self, verdict: Verdict | None) -> Verdict | None:
        """Notes a warning; returns any other verdict if the recipe is guarded."""
        if verdict is None or not self.recipe.guarded:
            return None
        if verdict.kind == "warn":
            self.note(f"Warning: step {self.step}: {verdict.reason}; {verdict.remedy}")
            return None
        return verdict

    def _roll_back(self, verdict: Verdict) -> None:
        """Restores the last good checkpoint with a lower rate, and writes it again as the newest one.

        Raises:
            TrainingFailed: no more roll-backs are allowed, or there is no checkpoint.
            RunChanged: as `resume`.
        """
        if verdict.kind == "stop":
            raise self._failure(verdict)
        checkpoints = self.files.checkpoints
        state = checkpoints.read(most=verdict.sound_until) or checkpoints.oldest()
        if state is None:
            raise self._failure(verdict)
        self.stepper.processes.wait()
        reached = self.step
        self._restore(state, self.guards.roll_back)
        self.note(
            f"Step {reached}: {verdict.reason}. Back to step {self.step}, "
            f"with {self.guards.rate_factor:g} times the rates of the schedule."
        )
        if self.stepper.processes.is_main:
            checkpoints.write(self._state())
            checkpoints.remove_after(self.step)
            self.files.remove_snapshots_after(self.step)

    def _require_finite(self) -> None:
        """Raises TrainingFailed if a weight is not finite: such a network is never written."""
        if not all(torch.isfinite(parameter).all() for parameter in self.stepper.network.parameters()):
            raise self._failure(Verdict("stop", "a weight is no finite number", "a lower --rate"))

    def _failure(self, verdict: Verdict) -> TrainingFailed:
        self.plot()
        state = self.files.checkpoints.read()
        good = self.files.snapshot(state.step) if state is not None and state.step else None
        last = f"the last good network is {good}" if good else "there is no good network yet"
        return TrainingFailed(f"step {self.step}: {verdict.reason}; {last}", hint=verdict.remedy)

    def _state(self) -> TrainingState:
        stepper = self.stepper
        return TrainingState(
            self.step,
            {
                "network": stepper.network.state_dict(),
                "optimizer": stepper.optimizer.state_dict(),
                "scaler": stepper.scaler.state_dict(),
                "guards": self.guards.state_dict(),
                "seconds": self._seconds,
                "recipe": self.files.to_checkpoint(),
            },
        )

    def _restore(self, state: TrainingState, restore_guards: Callable[[Mapping[str, Any]], None]) -> None:
        """Restores a state, and the guards by one of their own methods.

        Raises:
            RunChanged: it does not fit this run.
        """
        try:
            _require_numbers(self.guards.state_dict(), state.content["guards"])
            self._load(state)
            restore_guards(state.content["guards"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            why = "" if "\n" in str(error) else f" ({error})"  # torch lists each tensor on a line of its own
            raise RunChanged(
                f"{self.files.folder}: a checkpoint of other layers, or of another version of hnetkit{why}",
                hint="--restart starts over",
            ) from error

    def _load(self, state: TrainingState) -> None:
        """Restores a state except for the guards."""
        stepper, content = self.stepper, state.content
        stepper.network.load_state_dict(content["network"])
        restore_optimizer(stepper.optimizer, content["optimizer"])
        if stepper.scaler.is_enabled():
            stepper.scaler.load_state_dict(content["scaler"])
        self.step, self._seconds = state.step, float(content["seconds"])


def _require_numbers(fresh: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raises ValueError if guards stored something else than the numbers, and lists of numbers, that they store."""
    for name, value in fresh.items():
        found = stored.get(name) if value is None else stored[name]
        is_fit = all(isinstance(number, int | float) for number in (found if isinstance(found, list) else [found]))
        if value is None:
            is_fit = found is None or (is_fit and not isinstance(found, list))
        elif type(value) is int:
            is_fit = type(found) is int and 0 <= found < LARGEST
        if not is_fit or isinstance(value, list) != isinstance(found, list):
            raise ValueError(f"guards: {name}")


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Gives an event that Ctrl-C, SIGTERM and SIGHUP set, so that no step is cut in half and no step is lost.

    A signal after the first ends the run at once. SIGTERM and SIGHUP are sent again at the end of the block, to whoever
    handled them before it. Those that are ignored, as by `nohup`, stay so.
    """
    stop_asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_asked
        return
    first, received = 0.0, signal.SIGINT
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first, received
        if stop_asked.is_set() and time.monotonic() - first > _SECONDS_OF_ONE_SIGNAL:
            raise KeyboardInterrupt
        first, received = first or time.monotonic(), signal.Signals(number)
        stop_asked.set()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, stop)
    try:
        yield stop_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received != signal.SIGINT:
            signal.raise_signal(received)
