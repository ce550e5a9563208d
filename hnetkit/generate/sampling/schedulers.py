"""diffusers' schedulers on A1111's noise levels.

Time steps are fractional, as in k-diffusion: the UNet is told the time of the very level that it is given. DDIM's and
PLMS's are whole.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from hnetkit.generate.sampling.levels import SCHEDULES, TRAINED, Levels, model_sigmas, uniform_times
from hnetkit.generate.sampling.noise import Stretch, along


class Leveled:
    """What the schedulers share.

    Attributes:
        schedule: a key of `SCHEDULES`.
        discards: one step more is scheduled, and the level before the 0 left out.
    """

    schedule = "Uniform"
    discards = False
    config: Any

    def levels(self, steps: int) -> Levels:
        """Returns the noise levels of a run, the last of them 0."""
        chosen = SCHEDULES[self.schedule](self.known_sigmas, steps + self.discards)
        return np.append(chosen[:-1] if self.discards else chosen, 0.0)

    @cached_property
    def known_sigmas(self) -> Levels:
        """The levels that schedules choose from, ascending."""
        return model_sigmas(self)

    def time_of(self, sigmas: Levels) -> Levels:
        """Returns the model's time steps for noise levels; beyond its own they are its first and last."""
        known = np.log(self.known_sigmas)
        return np.interp(np.log(np.maximum(sigmas, 1e-10)), known, np.arange(len(known)))


class OneCall(Leveled):
    """For schedulers that call the UNet once a step: ``sigmas`` are the levels, ``timesteps`` their times."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        levels = self.levels(num_inference_steps)
        super().set_timesteps(len(levels) - 1, device)  # type: ignore[misc]
        self.sigmas = torch.tensor(levels, dtype=torch.float32)
        self.timesteps = torch.tensor(self.time_of(levels[:-1]), dtype=torch.float32, device=device)


class TwoCalls(Leveled):
    """For schedulers that call it twice: they lay out levels and times themselves.

    With ``use_exponential_sigmas`` they ask for levels, and round no time.
    """

    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None, *_: Any) -> None:
        self._levels = self.levels(num_inference_steps)
        super().set_timesteps(len(self._levels) - 1, device)  # type: ignore[misc]
        self.timesteps = self.timesteps.to(torch.float32)

    def _convert_to_exponential(self, in_sigmas: Any, num_inference_steps: int) -> Levels:
        return self._levels[:-1]

    def _sigma_to_t(self, sigma: Any, log_sigmas: Any) -> Levels:
        return self.time_of(np.asarray(sigma))


class PlainNoise:
    """Sampling begins with noise times the first level, whatever the model's spacing of time steps."""

    sigmas: Tensor

    @property
    def init_noise_sigma(self) -> Tensor:
        return self.sigmas[0]


class Euler(OneCall, PlainNoise, EulerDiscreteScheduler):  # type: ignore[misc]
    pass


class EulerAncestral(OneCall, PlainNoise, EulerAncestralDiscreteScheduler):  # type: ignore[misc]
    pass


class Heun(TwoCalls, PlainNoise, HeunDiscreteScheduler):  # type: ignore[misc]
    pass


class DPM2(TwoCalls, PlainNoise, KDPM2DiscreteScheduler):  # type: ignore[misc]
    pass


class DPM2Ancestral(TwoCalls, PlainNoise, KDPM2AncestralDiscreteScheduler):  # type: ignore[misc]
    pass


class Multistep(OneCall, DPMSolverMultistepScheduler):  # type: ignore[misc]
    """Works on latents of variance 1, which k-diffusion's are after division by ``sqrt(sigma**2 + 1)``."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self.init_noise_sigma = self.sigmas[0] / (self.sigmas[0] ** 2 + 1) ** 0.5

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        start, end = self.sigmas[self.step_index].item(), self.sigmas[self.step_index + 1].item()
        with along(stretch(self.sigmas, start, end)):
            return super().step(model_output, timestep, sample, *args, **options)


class UniPC(UniPCMultistepScheduler):  # type: ignore[misc]
    """Evenly spaced from the model's last time step to its first, where it ends; between, log alpha is linear."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        steps = len(uniform_times(num_inference_steps))
        super().set_timesteps(steps, device)
        known = model_sigmas(self)
        times = np.linspace(len(known) - 1, 0, steps + 1)
        log_alphas = np.interp(times, np.arange(len(known)), -0.5 * np.log1p(known**2))
        self.sigmas = torch.tensor(np.sqrt(np.expm1(-2 * log_alphas)), dtype=torch.float32)
        self.timesteps = torch.tensor(times[:-1], dtype=torch.float32, device=device)


class _WholeTimes:
    """For schedulers of whole time steps. One beyond the model's last is told to the model as the last."""

    alphas_cumprod: Tensor
    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(min(num_inference_steps, TRAINED), device)  # type: ignore[misc]
        times = uniform_times(num_inference_steps)
        self._beyond = times[0] == TRAINED
        self.timesteps = torch.from_numpy(np.minimum(times, TRAINED - 1)).to(device)
        self.alphas_cumprod = torch.cat([self.alphas_cumprod[:TRAINED], self.alphas_cumprod[TRAINED - 1 : TRAINED]])

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        time = int(timestep)
        if self._beyond and time == TRAINED - 1:
            time = TRAINED
        return super().step(model_output, time, sample, *args, **options)  # type: ignore[misc]


class DDIM(_WholeTimes, DDIMScheduler):  # type: ignore[misc]
    def set_begin_index(self, begin_index: int = 0) -> None:
        """Does nothing: a time step says all."""


class PLMS(_WholeTimes, PNDMScheduler):  # type: ignore[misc]
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._uniform = self.timesteps
        self.set_begin_index(0)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Lets the run begin at time step number `begin_index`: its first step calls the UNet twice."""
        second = begin_index + 1
        self.timesteps = torch.cat([self._uniform[: second + 1], self._uniform[second:]])
        self.ets: list[Tensor] = []
        self.counter = self.cur_model_output = 0

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        if self.config.prediction_type == "v_prediction":  # the noise is what past calls are weighed by
            alpha = self.alphas_cumprod[int(timestep)]
            model_output = alpha**0.5 * model_output + (1 - alpha) ** 0.5 * sample
        return super().step(model_output, timestep, sample, *args, **options)

    def _get_prev_sample(self, sample: Tensor, timestep: Any, prev_timestep: Any, model_output: Tensor) -> Tensor:
        alpha, before = self.alphas_cumprod[timestep], self.alphas_cumprod[max(prev_timestep, 0)]
        clean = (sample - (1 - alpha) ** 0.5 * model_output) / alpha**0.5
        previous: Tensor = before**0.5 * clean + (1 - before) ** 0.5 * model_output
        return previous


def stretch(levels: Levels | Tensor, start: float, end: float) -> Stretch:
    """Returns the stretch from one level to another of the path over a run's levels, in k-diffusion's float32."""
    single = [float(np.float32(level)) for level in (levels[levels > 0].min(), levels.max(), start, end)]
    return Stretch(*single)
