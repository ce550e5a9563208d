"""Noise schedules of k-diffusion and A1111, and diffusers' schedulers on them.

A noise level (sigma) is the ratio of noise to image. A model knows one for each of its training steps. A schedule
chooses levels among them, or values between, from the highest down to 0.

Time steps are fractional, as in k-diffusion: the UNet gets the exact time of each level. Those of DDIM and PLMS are
whole.

Sources: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv:2206.00364);
crowsonkb/k-diffusion; AUTOMATIC1111/stable-diffusion-webui 1.10, sd_schedulers.py, sd_samplers_kdiffusion.py and
sd_samplers_timesteps_impl.py (behavior only). The docstring of each function and class names its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
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

from hnetkit.generate.sampling.noise import NoiseInterval, noise_from

Levels = npt.NDArray[np.float64]

TRAINED = 1000
"""Training steps of every Stable Diffusion model."""

_RHO = 7.0
_LAST_ALPHA = 4.8973451890853435e-08


def _levels_at(sigmas: Levels, times: Levels) -> Levels:
    """Returns the levels at fractional time steps: linear in log sigma, as k-diffusion's ``t_to_sigma``."""
    return np.exp(np.interp(times, np.arange(len(sigmas)), np.log(sigmas)))


def _uniform(sigmas: Levels, steps: int) -> Levels:
    """k-diffusion's ``DiscreteSchedule.get_sigmas``: evenly spaced time steps."""
    return _levels_at(sigmas, np.linspace(len(sigmas) - 1, 0, steps))


def _karras(sigmas: Levels, steps: int) -> Levels:
    """k-diffusion's ``get_sigmas_karras``: Karras et al. 2022, equation 5, with rho 7."""
    ramp = np.linspace(sigmas[-1] ** (1 / _RHO), sigmas[0] ** (1 / _RHO), steps)
    return np.asarray(ramp**_RHO)


def _exponential(sigmas: Levels, steps: int) -> Levels:
    """k-diffusion's ``get_sigmas_exponential``: evenly spaced in log sigma."""
    return np.exp(np.linspace(np.log(sigmas[-1]), np.log(sigmas[0]), steps))


def _sgm_uniform(sigmas: Levels, steps: int) -> Levels:
    """A1111's ``sgm_uniform``, from Stability's generative-models: as `_uniform`, without the model's lowest level."""
    return _levels_at(sigmas, np.linspace(len(sigmas) - 1, 0, steps + 1)[:-1])


def _simple(sigmas: Levels, steps: int) -> Levels:
    """A1111's ``simple_scheduler``, from ComfyUI: every n-th of the model's own levels, from the highest."""
    return sigmas[[-1 - int(step * len(sigmas) / steps) for step in range(steps)]]


def _ddim(sigmas: Levels, steps: int) -> Levels:
    """A1111's ``ddim_scheduler``, from ComfyUI: every n-th of the model's own levels, from the second lowest."""
    return sigmas[1 :: max(len(sigmas) // steps, 1)][::-1]


SCHEDULES: Mapping[str, Callable[[Levels, int], Levels]] = {
    "Uniform": _uniform,
    "Karras": _karras,
    "Exponential": _exponential,
    "SGM Uniform": _sgm_uniform,
    "Simple": _simple,
    "DDIM": _ddim,
}
"""A1111's name of a schedule -> its function: (a model's sigmas, ascending; steps) -> sigmas, descending, without 0."""


def model_sigmas(scheduler: Any) -> Levels:
    """Returns the sigmas of a diffusers scheduler's training steps, ascending, computed as CompVis's code does."""
    config = scheduler.config
    power = {"linear": 1, "scaled_linear": 2}.get(config.beta_schedule)
    if power is None or config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        alphas = scheduler.alphas_cumprod.numpy()
    else:
        ends = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
        betas = np.linspace(*ends, config.num_train_timesteps) ** power
        alphas = np.cumprod(1 - betas).astype(np.float32)
    return np.asarray(np.sqrt((1 - alphas) / alphas), np.float64)


def zero_snr_betas(config: Mapping[str, Any]) -> list[float]:
    """Returns the betas of a scheduler's configuration, rescaled so that the last training step is almost all noise.

    Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891),
    algorithm 1; A1111's ``rescale_zero_terminal_snr_abar``, whose last value keeps the highest noise level finite.
    """
    known = DDIMScheduler.from_config(config, rescale_betas_zero_snr=False)
    roots = known.alphas_cumprod.numpy().astype(np.float64) ** 0.5
    rescaled = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    rescaled[-1] = _LAST_ALPHA
    before = np.concatenate([[1.0], rescaled[:-1]])
    return [float(beta) for beta in 1 - rescaled / before]


def uniform_times(steps: int) -> npt.NDArray[np.int64]:
    """Returns CompVis's time steps for DDIM, descending: more than `steps` if these do not divide 1000."""
    return np.arange(1, TRAINED + 1, max(TRAINED // steps, 1))[::-1].copy()


class HasA1111Sigmas:
    """Base of the schedulers that take their noise levels from a schedule.

    Attributes:
        schedule: a key of `SCHEDULES`.
        discards: schedule one step more and drop the level before the 0: A1111's ``discard_next_to_last_sigma``.
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
        """The levels that a schedule chooses from, ascending."""
        return model_sigmas(self)

    def time_of(self, sigmas: Levels) -> Levels:
        """Returns the model's time steps for noise levels, clamped to its first and last."""
        known = np.log(self.known_sigmas)
        return np.interp(np.log(np.maximum(sigmas, 1e-10)), known, np.arange(len(known)))


class OneCall(HasA1111Sigmas):
    """For schedulers that call the UNet once per step: ``sigmas`` are the levels, ``timesteps`` their times."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        levels = self.levels(num_inference_steps)
        super().set_timesteps(len(levels) - 1, device)  # type: ignore[misc]
        self.sigmas = torch.tensor(levels, dtype=torch.float32)
        self.timesteps = torch.tensor(self.time_of(levels[:-1]), dtype=torch.float32, device=device)


class TwoCalls(HasA1111Sigmas):
    """For schedulers that call the UNet twice per step: they repeat levels and times themselves.

    With ``use_exponential_sigmas`` they get the levels from `_convert_to_exponential`, and do not round times.
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
    """Sampling begins with noise times the first level, whatever the model's ``timestep_spacing``."""

    sigmas: Tensor

    @property
    def init_noise_sigma(self) -> Tensor:
        return self.sigmas[0]


class Euler(OneCall, PlainNoise, EulerDiscreteScheduler):  # type: ignore[misc]
    """k-diffusion's ``sample_euler``: Karras et al. 2022, algorithm 2 with Euler steps."""


class EulerAncestral(OneCall, PlainNoise, EulerAncestralDiscreteScheduler):  # type: ignore[misc]
    """k-diffusion's ``sample_euler_ancestral``: Euler steps to a lower level, then noise up to the next one."""


class Heun(TwoCalls, PlainNoise, HeunDiscreteScheduler):  # type: ignore[misc]
    """k-diffusion's ``sample_heun``: Karras et al. 2022, algorithm 2 with Heun steps."""


class DPM2(TwoCalls, PlainNoise, KDPM2DiscreteScheduler):  # type: ignore[misc]
    """k-diffusion's ``sample_dpm_2``: after DPM-Solver-2, Lu et al. 2022 (arXiv:2206.00927)."""


class DPM2Ancestral(TwoCalls, PlainNoise, KDPM2AncestralDiscreteScheduler):  # type: ignore[misc]
    """k-diffusion's ``sample_dpm_2_ancestral``: steps of `DPM2` to a lower level, then noise up to the next one."""


class Multistep(OneCall, DPMSolverMultistepScheduler):  # type: ignore[misc]
    """k-diffusion's ``sample_dpmpp_2m`` and ``sample_dpmpp_2m_sde``: Lu et al. 2022, "DPM-Solver++" (arXiv:2211.01095).

    diffusers works on latents of variance 1, which k-diffusion's are after division by ``sqrt(sigma**2 + 1)``.
    """

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self.init_noise_sigma = self.sigmas[0] / (self.sigmas[0] ** 2 + 1) ** 0.5

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        start, end = self.sigmas[self.step_index].item(), self.sigmas[self.step_index + 1].item()
        with noise_from(interval(self.sigmas, start, end)):
            return super().step(model_output, timestep, sample, *args, **options)


class UniPC(UniPCMultistepScheduler):  # type: ignore[misc]
    """A1111's ``unipc``: Zhao et al. 2023, "UniPC" (arXiv:2302.04867), of order 3 and type bh1.

    Its times are evenly spaced from the model's last to its first, where it ends; between two, log alpha is linear.
    """

    number_of_times: int

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        steps = self.number_of_times = len(uniform_times(num_inference_steps))
        super().set_timesteps(steps, device)
        known = model_sigmas(self)
        times = np.linspace(len(known) - 1, 0, steps + 1)
        log_alphas = np.interp(times, np.arange(len(known)), -0.5 * np.log1p(known**2))
        self.sigmas = torch.tensor(np.sqrt(np.expm1(-2 * log_alphas)), dtype=torch.float32)
        self.timesteps = torch.tensor(times[:-1], dtype=torch.float32, device=device)


class _WholeTimes:
    """For schedulers with whole time steps. For one beyond the model's last, the model is given the last."""

    alphas_cumprod: Tensor
    timesteps: Tensor
    number_of_times: int

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(min(num_inference_steps, TRAINED), device)  # type: ignore[misc]
        times = uniform_times(num_inference_steps)
        self.number_of_times = len(times)
        self._beyond = times[0] == TRAINED
        self.timesteps = torch.from_numpy(np.minimum(times, TRAINED - 1)).to(device)
        self.alphas_cumprod = torch.cat([self.alphas_cumprod[:TRAINED], self.alphas_cumprod[TRAINED - 1 : TRAINED]])

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        time = int(timestep)
        if self._beyond and time == TRAINED - 1:
            time = TRAINED
        return super().step(model_output, time, sample, *args, **options)  # type: ignore[misc]


class DDIM(_WholeTimes, DDIMScheduler):  # type: ignore[misc]
    """A1111's ``ddim`` with eta 0: Song et al. 2020, "Denoising Diffusion Implicit Models" (arXiv:2010.02502)."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Does nothing: a DDIM step depends on its time step alone."""


class PLMS(_WholeTimes, PNDMScheduler):  # type: ignore[misc]
    """A1111's ``plms``: Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models" (arXiv:2202.09778)."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._uniform = self.timesteps
        self.set_begin_index(0)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begins the run at time step number `begin_index`; its first step calls the UNet twice."""
        second = begin_index + 1
        self.timesteps = torch.cat([self._uniform[: second + 1], self._uniform[second:]])
        self.ets: list[Tensor] = []
        self.counter = self.cur_model_output = 0

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        if self.config.prediction_type == "v_prediction":  # the multistep formula combines predictions of noise
            alpha = self.alphas_cumprod[int(timestep)]
            model_output = alpha**0.5 * model_output + (1 - alpha) ** 0.5 * sample
        return super().step(model_output, timestep, sample, *args, **options)

    def _get_prev_sample(self, sample: Tensor, timestep: Any, prev_timestep: Any, model_output: Tensor) -> Tensor:
        alpha, before = self.alphas_cumprod[timestep], self.alphas_cumprod[max(prev_timestep, 0)]
        clean = (sample - (1 - alpha) ** 0.5 * model_output) / alpha**0.5
        previous: Tensor = before**0.5 * clean + (1 - before) ** 0.5 * model_output
        return previous


def interval(levels: Levels | Tensor, start: float, end: float) -> NoiseInterval:
    """Returns the interval between two levels on the Brownian path over a run's levels, in k-diffusion's float32."""
    single = [float(np.float32(level)) for level in (levels[levels > 0].min(), levels.max(), start, end)]
    return NoiseInterval(*single)
