"""What the training of the model shares: a schedule by wall time, an average of weights."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

LONGEST_STEP = 2.0  # seconds: a machine that sleeps in the middle of a step loses no training


class TimedLoop:
    """Steps until the time is up; the learning rate falls along a cosine of the *time* spent.

    A schedule by time ends well on any machine, however busy: a slow one takes fewer steps.

    Args:
        parameters: what to train.
        rate: peak learning rate, reached after ``warmup`` steps.
        minutes: how long to train.
    """

    def __init__(self, parameters: Iterable[Tensor], rate: float, minutes: float, *, decay: float = 0.01) -> None:
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.99), weight_decay=decay)
        self.rate, self.seconds, self.warmup = rate, minutes * 60, 100
        self.spent = 0.0

    def steps(self) -> Iterator[int]:
        """Counts steps from 0 until the time is up, setting the learning rate before each."""
        step = 0
        while (done := self.spent / self.seconds) < 1:
            started = time.monotonic()
            share = min(1, (step + 1) / self.warmup) * (0.5 + 0.5 * math.cos(math.pi * done))
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * share
            yield step
            self.spent += min(time.monotonic() - started, LONGEST_STEP)
            step += 1

    def descend(self, loss: Tensor) -> None:
        """One optimizer step on a scalar loss, with the gradient's norm held at 1."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()

    def report(self, step: int, every: int, **values: float) -> None:
        """Prints one line every so many steps."""
        if step % every == 0:
            shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            print(f"{self.spent:6.0f}s step {step:5d} {shown}", flush=True)


class Average:
    """An exponential moving average of modules' weights."""

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self.live = list(modules)
        self.modules = [copy.deepcopy(module).requires_grad_(False) for module in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the live weights, faster while few steps have been taken."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for average, live in zip(self.modules, self.live, strict=True):
            mine, theirs = list(average.parameters()), list(live.parameters())
            torch._foreach_lerp_(mine, theirs, 1 - decay)
