"""The callback that tells a UNet's stack how far a diffusers pipeline is in its sampling."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import cache
from types import MethodType, ModuleType
from typing import Any, TypeAlias

from hnetkit.errors import UsageError

Report: TypeAlias = Callable[[Any, int, int], None]
"""Takes what `hnetkit.runtime.adapters.set_progress` takes."""

_BAR = "progress_bar"
"""What every diffusers pipeline calls when its timesteps are final, right before it samples."""


class StepFollower:
    """A pipeline's callback at the end of each step, which also learns when sampling begins.

    No callback comes before the first step, whose place in a window depends on how many steps there are. So an
    attribute of the pipeline stands before its own `progress_bar` for one call: by then the pipeline knows which of
    the scheduler's timesteps it takes. Nothing of this is in the UNet's call, which may be compiled.

    During sampling an attribute stands there again until the last step: where an error or an interruption comes before
    it, the next call, if it is not given the follower, must not be drawn as a later step of this one. A sampling that
    was not given the follower is known by its bar, which advances without it.

    Args:
        pipe: the pipeline, or a UNet that some pipeline calls.
        steps: how many there are, where the pipeline does not say.
        report: called with the pipeline, the step that comes next, and how many there are.
        require_alone: called with the pipeline after each step; raises an error if another sampling was reported since.
    """

    def __init__(self, pipe: Any, steps: int | None, report: Report, require_alone: Callable[[Any], None]) -> None:
        self._pipe, self._stated, self._report, self._require_alone = pipe, steps, report, require_alone
        self._begun_with = steps
        self._is_waiting = self._is_told = False
        self._stands_before: Any = None
        if steps is None and not hasattr(pipe, _BAR):
            raise UsageError(
                f"a {type(pipe).__name__} does not say how many steps there are",
                hint="hnetkit.follow_progress(pipe), with the pipeline that is called",
            )
        self._await_sampling()

    @property
    def tensor_inputs(self) -> list[str]:
        """The tensors that it wants: none. Diffusers asks when a call begins, which shows that it was given to it."""
        self._await_sampling()
        return []

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Reports the step of the call that comes after the one that ended; returns the tensors as they are."""
        self._is_told = True
        self._require_alone(pipe)
        steps = _steps_of(pipe) or self._begun_with or step + 1
        if step == 0 and self._begun_with != steps:
            raise UsageError(
                f"the pipeline makes {steps} steps; its first was drawn as one of {self._begun_with}",
                hint="hnetkit.follow_progress(pipe), with the pipeline that is called",
            )
        is_over = step + 1 >= (_calls_of(pipe) or steps)
        self._report(pipe, steps if is_over else step_of_call(getattr(pipe, "scheduler", None), step + 1), steps)
        if is_over:
            self._step_aside()
        return tensors

    def __repr__(self) -> str:
        return f"follow_progress({type(self._pipe).__name__})"

    def _await_sampling(self) -> None:
        if self._stated is not None:
            self._report(self._pipe, 0, self._stated)
        self._is_waiting = True
        self._stand_before_bar()

    def _stand_before_bar(self) -> None:
        if self._stands_before is not None or not hasattr(self._pipe, _BAR):
            return
        follower = weakref.ref(self)  # nobody holds it any more: the call that begins was not given it
        before, is_sampling, report = vars(self._pipe).get(_BAR), not self._is_waiting, self._report

        def begin(pipe: Any, *arguments: Any, **options: Any) -> Any:
            _put_back(pipe, before)
            bar = getattr(pipe, _BAR)(*arguments, **options)
            if (own := follower()) is not None and own._pipe is pipe:
                own._stands_before = None
                own._begin(options.get("total"))
                own._watch(bar)
            elif is_sampling:
                report(pipe, 1, 1)
            return bar

        self._stands_before = MethodType(begin, self._pipe), before
        setattr(self._pipe, _BAR, self._stands_before[0])

    def _step_aside(self) -> None:
        """Takes the attribute off that stood there during sampling, unless another follower put its own before it."""
        if self._stands_before is None or self._is_waiting:
            return
        method, before = self._stands_before
        if vars(self._pipe).get(_BAR) is method:
            _put_back(self._pipe, before)
            self._stands_before = None

    def _begin(self, asked_for: int | None) -> None:
        if not self._is_waiting:
            self._report(self._pipe, 1, 1)
            return
        self._is_waiting = False
        self._begun_with = _steps_of(self._pipe) or self._stated or asked_for
        if self._begun_with is not None:
            self._report(self._pipe, 0, self._begun_with)
        self._stand_before_bar()

    def _watch(self, bar: Any) -> None:
        """Has the bar's first advance tell whether this sampling was given the callback, which comes right before it.

        Where it was not, the next call of the UNet must not be drawn as the first step, but as without a follower.
        """
        self._is_told, advance = False, bar.update

        def update(*arguments: Any, **options: Any) -> Any:
            bar.update = advance
            if not self._is_told:
                self._report(self._pipe, 1, 1)
            return advance(*arguments, **options)

        bar.update = update


def _put_back(pipe: Any, before: Any) -> None:
    """Takes a follower's attribute off a pipeline; `before` is the one of another follower that stood there."""
    delattr(pipe, _BAR)
    if before is not None:
        setattr(pipe, _BAR, before)


def make_follower(pipe: Any, steps: int | None, report: Report, require_alone: Callable[[Any], None]) -> StepFollower:
    """Returns a `StepFollower`, as a callback of diffusers' own kind where there is diffusers."""
    return _kind_of_follower(sys.modules.get("diffusers.callbacks"))(pipe, steps, report, require_alone)


@cache
def _kind_of_follower(callbacks: ModuleType | None) -> type[StepFollower]:
    """Returns the class for the callbacks of diffusers, which every pipeline of Stable Diffusion has imported."""
    if callbacks is None:
        return StepFollower
    return type(StepFollower.__name__, (StepFollower, callbacks.PipelineCallback), {})


def step_of_call(scheduler: Any, call: int) -> int:
    """Returns the step that a call of the UNet belongs to, both counted from 0 where sampling begins.

    Diffusers' schedulers of second order call it twice in each step, but once in the last; PLMS twice in its first one.
    """
    if hasattr(scheduler, "step_plms") and scheduler.config.skip_prk_steps:
        return max(call - 1, 0)
    return call // int(getattr(scheduler, "order", 1))


def _steps_of(pipe: Any) -> int | None:
    """Returns the steps of the sampling that runs; None where the pipeline does not say."""
    calls = _calls_of(pipe)
    return None if calls is None else step_of_call(getattr(pipe, "scheduler", None), calls - 1) + 1


def _calls_of(pipe: Any) -> int | None:
    """Returns how often it calls the UNet, each with a timestep: what diffusers' callback counts as a step."""
    calls: int | None = getattr(pipe, "num_timesteps", None)
    return calls
