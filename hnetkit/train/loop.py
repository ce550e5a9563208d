"""The steps of one run, with what is done between them: watching, logging, previews, checkpoints, going back."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from hnetkit.errors import RunChanged, TrainingFailed
from hnetkit.formats.writing import save
from hnetkit.network import Hypernetwork
from hnetkit.train.checkpoints import TrainingState, reporting_full_disk
from hnetkit.train.guards import MEASURED, Guards, Verdict
from hnetkit.train.logs import Log, LogRow
from hnetkit.train.plot import write_plot
from hnetkit.train.previews import Previews
from hnetkit.train.recipe import Recipe
from hnetkit.train.run_folder import RunFolder
from hnetkit.train.schedules import Rates
from hnetkit.train.step import Stepper, StepResult, restore

_SECONDS_BETWEEN_PLOTS = 60


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Where a run is.

    Attributes:
        step: steps made, of `last_step`.
        epoch: how often all pictures were seen.
        loss: its running mean.
        rate: of learning, in the step that was just made.
    """

    step: int
    last_step: int
    epoch: int
    loss: float
    rate: float


@dataclass(eq=False)
class TrainingLoop:
    """A run that is set up.

    Attributes:
        recipe: what is asked for.
        files: where it is kept.
        stepper: makes steps.
        guards: watch; their verdicts count where the recipe says so.
        rates: of learning.
        clip_at: a schedule of what gradients are clipped at; None where they are not.
        as_file: gives the network as it is after so many steps.
        log, previews: in the main process alone; previews are None where none are wanted.
        report: called after every step.
        say: called with a line for the person.
        step: steps made.
    """

    recipe: Recipe
    files: RunFolder
    stepper: Stepper
    guards: Guards
    rates: Rates
    clip_at: Rates | None
    as_file: Callable[[int], Hypernetwork]
    log: Log | None
    previews: Previews | None
    report: Callable[[TrainingReport], None]
    say: Callable[[str], None]
    step: int = 0
    _seconds: float = 0.0
    _plotted: float = field(default_factory=time.monotonic)

    @property
    def last_step(self) -> int:
        return self.rates.last_step

    def open(self) -> None:
        """Looks at everything before the first step, and writes the first checkpoint: so there is room for one.

        Raises:
            TrainingFailed: the loss is not finite as it is.
            DiskFull: no room for a checkpoint.
        """
        verdict = None
        if self.recipe.guarded:
            verdict = self.guards.begin([self.stepper.measure(step) for step in range(min(MEASURED, self.last_step))])
        verdict = verdict or self._preview()
        if verdict is not None:
            raise self._failure(verdict)
        if self.stepper.processes.is_main:
            self.files.states.write(self._state())

    def go_on_from(self, state: TrainingState) -> None:
        """Takes everything over from a checkpoint.

        Raises:
            RunChanged: another version of hnetkit, or of torch, wrote it.
        """
        self._take(state, self.guards.load_state_dict)

    def go(self) -> None:
        """Makes the steps that are missing.

        Raises:
            TrainingFailed: a guard stopped it; the message names the last good file.
            DiskFull: no room for a checkpoint; the one before is whole.
            KeyboardInterrupt: asked to stop; a checkpoint was written.
        """
        with _asked_to_stop() as asked:
            while self.step < self.last_step:
                made, row = self._make(is_last=asked.is_set())
                verdict = self._watched(made, row)
                is_due = self.recipe.preview_every and self.step % self.recipe.preview_every == 0
                if verdict is None and is_due:
                    verdict = self._preview()
                if verdict is not None:
                    self._roll_back(verdict)
                elif self._is_checkpoint or made.is_last:
                    self.checkpoint()
                if made.is_last:
                    raise KeyboardInterrupt

    def checkpoint(self) -> None:
        """Writes the network as a file, then a checkpoint.

        Raises:
            DiskFull: no room; the checkpoint before is whole.
        """
        self._require_finite()
        if not self.stepper.processes.is_main:
            return
        states = self.files.states
        with reporting_full_disk(states):
            save(self.as_file(self.step), self.files.snapshot(self.step), overwrite=True)
        states.write(self._state())
        if time.monotonic() - self._plotted > _SECONDS_BETWEEN_PLOTS:
            self.plot()

    def plot(self) -> None:
        """Draws the losses so far."""
        self._plotted = time.monotonic()
        if self.log is not None:
            write_plot(self.files.folder, self.recipe.name)

    @property
    def _is_checkpoint(self) -> bool:
        every = self.recipe.save_every
        return self.step == self.last_step or bool(every and self.step % every == 0)

    def _make(self, *, is_last: bool) -> tuple[StepResult, LogRow]:
        """Makes a step; returns it and its row of the log, in which the running mean is missing."""
        started = time.monotonic()
        rate = self.rates.rate_at(self.step) * self.guards.rate_factor
        clip_at = None if self.clip_at is None else self.clip_at.rate_at(self.step)
        made = self.stepper.make(self.step, rate, clip_at, is_last=is_last)
        epoch = self.stepper.data.epoch(self.step)
        self.step += 1
        self._seconds += time.monotonic() - started
        losses = made.loss, rate, math.nan, made.gradient_norm
        return made, LogRow(self.step, *epoch, *losses, self._seconds, self.guards.roll_backs)

    def _watched(self, made: StepResult, row: LogRow) -> Verdict | None:
        """Logs a step; returns a verdict that the run cannot go on with."""
        verdict = self.guards.after_step(self.step, made.loss, made.gradient_norm, is_skipped=made.is_skipped)
        row = row._replace(running_mean=self.guards.running_mean)
        if self.log is not None:
            self.log.step(row)
        self.report(TrainingReport(self.step, self.last_step, row.epoch, row.running_mean, row.learn_rate))
        return self._serious(verdict)

    def _preview(self) -> Verdict | None:
        """Draws a preview; returns a verdict that the run cannot go on with."""
        if not self.recipe.preview_every:
            return None
        seen = None
        if self.previews is not None:
            preview = self.previews.draw(self.as_file(self.step), self.step)
            if self.log is not None:
                self.log.preview(self.step, preview.path)
            seen = preview.energy, preview.fault
        energy, fault = self.stepper.processes.broadcast(seen) or (0.0, "")
        return self._serious(self.guards.after_preview(self.step, energy, fault))

    def _serious(self, verdict: Verdict | None) -> Verdict | None:
        """Says a warning; returns any other verdict, where guards count."""
        if verdict is None or not self.recipe.guarded:
            return None
        if verdict.kind == "warn":
            self.say(f"Warning: step {self.step}: {verdict.reason}; {verdict.remedy}")
            return None
        return verdict

    def _roll_back(self, verdict: Verdict) -> None:
        """Goes back to the last good checkpoint with a lower rate, and makes that the newest one.

        Raises:
            TrainingFailed: it is not to be tried again.
            RunChanged: as `go_on_from`.
        """
        if verdict.kind == "stop":
            raise self._failure(verdict)
        states = self.files.states
        state = states.read(most=verdict.sound_until) or states.oldest()
        if state is None:
            raise self._failure(verdict)
        self.stepper.processes.wait()
        reached = self.step
        self._take(state, self.guards.roll_back)
        self.say(
            f"Step {reached}: {verdict.reason}. Back to step {self.step}, "
            f"with {self.guards.rate_factor:g} times the rates of the schedule."
        )
        if self.stepper.processes.is_main:
            states.write(self._state())
            states.remove_after(self.step)
            self.files.drop_snapshots_after(self.step)

    def _require_finite(self) -> None:
        """Raises TrainingFailed where a weight is not a number: such a network is never written."""
        if not all(torch.isfinite(parameter).all() for parameter in self.stepper.network.parameters()):
            raise self._failure(Verdict("stop", "a weight is no finite number", "a lower --rate"))

    def _failure(self, verdict: Verdict) -> TrainingFailed:
        self.plot()
        state = self.files.states.read()
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
            },
        )

    def _take(self, state: TrainingState, as_guards: Callable[[Mapping[str, Any]], None]) -> None:
        """Takes a state over, its statistics by one of the guards' own ways; raises RunChanged where it is no run's."""
        try:
            _require_numbers(self.guards.state_dict(), state.content["guards"])
            self._load(state)
            as_guards(state.content["guards"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise RunChanged(
                f"{self.files.folder}: a checkpoint of another version of hnetkit ({error})",
                hint="--restart starts over",
            ) from error

    def _load(self, state: TrainingState) -> None:
        """Takes over a state but for what guards know."""
        stepper, content = self.stepper, state.content
        stepper.network.load_state_dict(content["network"])
        restore(stepper.optimizer, content["optimizer"])
        if stepper.scaler.is_enabled():
            stepper.scaler.load_state_dict(content["scaler"])
        self.step, self._seconds = state.step, float(content["seconds"])


def _require_numbers(fresh: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raises ValueError where what guards stored is of another kind than what they store: numbers, lists of these."""
    for name, value in fresh.items():
        found = stored[name]
        numbers = found if isinstance(value, list) and isinstance(found, list) else [found]
        is_unsaid = value is None and found is None
        if not is_unsaid and not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"guards: {name}")


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Gives an event that Ctrl-C sets, so that no step is cut in half; pressed again, it interrupts at once.

    Launchers hand a signal on that the terminal has sent already: what comes within a second is the same one.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: Any = signal.getsignal(signal.SIGINT)

    first = 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if asked.is_set() and time.monotonic() - first > 1:
            raise KeyboardInterrupt
        first = first or time.monotonic()
        asked.set()

    signal.signal(signal.SIGINT, stop)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
