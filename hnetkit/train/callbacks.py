"""What a training run calls as it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]
"""Takes what is being prepared, how much is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Where a run is.

    Attributes:
        step: steps made, of `last_step`.
        epoch: how often all images were seen.
        loss: its running mean.
        rate: learning rate of the step that was just made.
    """

    step: int
    last_step: int
    epoch: int
    loss: float
    rate: float


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What a run calls as it goes.

    Attributes:
        note: takes a line for the user.
        progress: a `Progress`.
        step: takes where the run is, after each step.
    """

    note: Callable[[str], None] = lambda line: None
    progress: Progress = lambda what, done, total: None
    step: Callable[[TrainingReport], None] = lambda report: None


NO_CALLBACKS = Callbacks()
"""Nothing is called."""
