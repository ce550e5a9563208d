"""The noise levels that a sampler goes down by, as k-diffusion and A1111 choose them.

A noise level (sigma) is the ratio of noise to picture. A model knows one for each of its training steps; a schedule
chooses some of them, or values between, from the highest down to 0. Formulas: Karras et al. 2022 ("Elucidating the
Design Space of Diffusion-Based Generative Models"), equation 5, and the functions of k-diffusion and A1111 1.10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.float64]

TRAINED = 1000

_RHO = 7.0


def _at(sigmas: Levels, times: Levels) -> Levels:
    return np.exp(np.interp(times, np.arange(len(sigmas)), np.log(sigmas)))


def _karras(sigmas: Levels, steps: int) -> Levels:
    ramp = np.linspace(sigmas[-1] ** (1 / _RHO), sigmas[0] ** (1 / _RHO), steps)
    return np.asarray(ramp**_RHO)


def _every(sigmas: Levels, steps: int) -> Levels:
    return sigmas[1 :: max(len(sigmas) // steps, 1)][::-1]


SCHEDULES: Mapping[str, Callable[[Levels, int], Levels]] = {
    "Uniform": lambda sigmas, steps: _at(sigmas, np.linspace(len(sigmas) - 1, 0, steps)),
    "Karras": _karras,
    "Exponential": lambda sigmas, steps: np.exp(np.linspace(np.log(sigmas[-1]), np.log(sigmas[0]), steps)),
    "SGM Uniform": lambda sigmas, steps: _at(sigmas, np.linspace(len(sigmas) - 1, 0, steps + 1)[:-1]),
    "Simple": lambda sigmas, steps: sigmas[[-1 - int(step * len(sigmas) / steps) for step in range(steps)]],
    "DDIM": _every,
}
"""From a model's sigmas, ascending, and a number of steps to sigmas, descending and without the 0 at their end."""


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


def uniform_times(steps: int) -> npt.NDArray[np.int64]:
    """Returns CompVis's time steps for DDIM, descending: more than `steps` where these do not divide 1000."""
    return np.arange(1, TRAINED + 1, max(TRAINED // steps, 1))[::-1].copy()
