"""Samplers of k-diffusion and A1111 that diffusers lacks, as diffusers schedulers.

Sources: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models"
(arXiv:2211.01095); crowsonkb/k-diffusion, sampling.py; AUTOMATIC1111/stable-diffusion-webui 1.10 (behavior only). The
docstring of each class names its own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import nullcontext
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hnetkit.generate.sampling.noise import noise_from
from hnetkit.generate.sampling.schedulers import TRAINED, HasA1111Sigmas, Levels, PlainNoise, interval, model_sigmas

_LCM_EVERY = TRAINED // 50  # LCM models are distilled to 50 of the training steps
_LCM_DATA = 0.5
_LCM_TIME_SCALE = 10.0

Run = Generator[tuple[Tensor, float], tuple[Tensor, Tensor], Tensor]
"""A run of a sampler. It yields latents and the level at which the model denoises them, and is sent the latents, whose
kept region may have been restored, and the denoised latents. It returns the last latents."""

Draw = Callable[..., Tensor]
"""Returns normal noise; with two levels, that of the images' Brownian paths from the first level to the second."""


class Solver(PlainNoise, HasA1111Sigmas, EulerDiscreteScheduler):  # type: ignore[misc]
    """A sampler of k-diffusion as a diffusers scheduler; ``sigmas`` are the levels at each call of the UNet, then 0.

    Attributes:
        order: calls of the UNet in most steps.
    """

    @staticmethod
    @abstractmethod
    def run(x: Tensor, levels: Levels, draw: Draw) -> Run:
        """Runs the sampler down `levels` from latents `x`."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        self._levels = self.levels(num_inference_steps)
        self.num_inference_steps = len(self._levels) - 1
        calls = self._calls()
        self.sigmas = torch.tensor([*calls, 0.0], dtype=torch.float32)
        self.timesteps = torch.tensor(self.time_of(np.array(calls)), dtype=torch.float32, device=device)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._running: Run | None = None

    def _calls(self) -> list[float]:
        """Returns the level of each call. It does not depend on latents, so the run is tried with none."""
        nothing = torch.zeros(())
        run, calls = self.run(nothing, self._levels, lambda *levels: nothing), []
        try:
            calls.append(next(run)[1])
            while True:
                calls.append(run.send((nothing, nothing))[1])
        except StopIteration:
            return calls

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        latents = sample.float()
        denoised = self._denoised(model_output.float(), latents)
        if self._running is None:
            self._running = self.run(latents, self._levels[self.step_index // self.order :], self._draw)
            next(self._running)
        self._like, self._generator = latents, generator
        try:
            following = self._running.send((latents, denoised))[0]
        except StopIteration as end:
            following, self._running = end.value, None
        self._step_index = self.step_index + 1
        following = following.to(model_output.dtype)
        if not return_dict:
            return following, denoised
        return EulerDiscreteSchedulerOutput(prev_sample=following, pred_original_sample=denoised)

    def _denoised(self, output: Tensor, x: Tensor) -> Tensor:
        sigma: float = self.sigmas[self.step_index].item()
        if self.config.prediction_type == "v_prediction":
            return x / (sigma**2 + 1) - output * (sigma / math.hypot(sigma, 1))
        return x - sigma * output

    def _draw(self, *levels: float) -> Tensor:
        with noise_from(interval(self._levels, *levels)) if levels else nullcontext():
            drawn: Tensor = randn_tensor(
                self._like.shape, generator=self._generator, device=self._like.device, dtype=self._like.dtype
            )
        return drawn


def _ancestral(sigma: float, following: float) -> tuple[float, float]:
    """k-diffusion's ``get_ancestral_step``: returns the level to step down to, and the noise to add after it."""
    up = min(following, following * (1 - (following / sigma) ** 2) ** 0.5)
    return (following**2 - up**2) ** 0.5, up


class LMS(Solver):
    """k-diffusion's ``sample_lms``: a linear multistep (Adams-Bashforth) method of order 4."""

    @staticmethod
    def run(x: Tensor, levels: Levels, draw: Draw) -> Run:
        slopes: list[Tensor] = []
        for index, sigma in enumerate(levels[:-1]):
            x, denoised = yield x, sigma
            slopes = [(x - denoised) / sigma, *slopes][:4]
            past = levels[index::-1][: len(slopes)]
            for slope, weight in zip(slopes, _adams_bashforth(past, levels[index + 1]), strict=True):
                x = x + slope * weight
        return x


def _adams_bashforth(past: Levels, end: float) -> list[float]:
    """Returns the exact integral from the first of `past` to `end` of each Lagrange polynomial over `past`."""
    points, weights = np.polynomial.legendre.leggauss(len(past))
    half = (end - past[0]) / 2
    points = past[0] + half * (points + 1)
    others = [np.delete(past, number) for number in range(len(past))]
    at_points = [np.prod((points[:, None] - rest) / (own - rest), 1) for own, rest in zip(past, others, strict=True)]
    return [float(half * weights @ values) for values in at_points]


class DPMPP2SAncestral(Solver):
    """k-diffusion's ``sample_dpmpp_2s_ancestral``: DPM-Solver++(2S) by way of the middle in log sigma."""

    order = 2

    @staticmethod
    def run(x: Tensor, levels: Levels, draw: Draw) -> Run:
        for sigma, following in pairwise(levels):
            down, up = _ancestral(sigma, following)
            x, denoised = yield x, sigma
            if not following:
                return denoised
            middle = (sigma * down) ** 0.5
            _, denoised = yield denoised + (x - denoised) * (middle / sigma), middle
            x = denoised + (x - denoised) * (down / sigma) + draw() * up
        return x


class DPMPPSDE(Solver):
    """k-diffusion's ``sample_dpmpp_sde``: DPM-Solver++ for the SDE.

    An ancestral step leads to the middle in log sigma; the full step then uses what the model denoised there.
    """

    order = 2

    @staticmethod
    def run(x: Tensor, levels: Levels, draw: Draw) -> Run:
        for sigma, following in pairwise(levels):
            x, denoised = yield x, sigma
            if not following:
                return denoised
            middle = (sigma * following) ** 0.5
            down, up = _ancestral(sigma, middle)
            halfway = denoised + (x - denoised) * (down / sigma) + draw(sigma, middle) * up
            _, denoised = yield halfway, middle
            down, up = _ancestral(sigma, following)
            x = denoised + (x - denoised) * (down / sigma) + draw(sigma, following) * up
        return x


class DPMPP3MSDE(Solver):
    """k-diffusion's ``sample_dpmpp_3m_sde``: DPM-Solver++(3M) for the SDE.

    diffusers' own has the sign of a constant of the third order wrong.
    """

    @staticmethod
    def run(x: Tensor, levels: Levels, draw: Draw) -> Run:
        seen: list[Tensor] = []
        lengths: list[float] = []
        for sigma, following in pairwise(levels):
            x, denoised = yield x, sigma
            if not following:
                return denoised
            seen, lengths = [denoised, *seen][:3], [float(np.log(sigma / following)), *lengths][:3]
            twice = 2 * lengths[0]
            x = denoised + (x - denoised) * np.exp(-twice)
            second = np.expm1(-twice) / twice + 1
            if len(seen) == 2:
                x = x + (seen[0] - seen[1]) * (second * lengths[0] / lengths[1])
            elif len(seen) == 3:
                near, far = (lengths[0] / length for length in lengths[1:])
                first, before = (seen[0] - seen[1]) * near, (seen[1] - seen[2]) * far
                apart = lengths[1] / lengths[0] + lengths[2] / lengths[0]
                bend = (first - before) / apart
                slope = first + bend * (lengths[1] / lengths[0])
                x = x + slope * second - bend * (second / twice - 0.5)
            x = x + draw(sigma, following) * (following * (-np.expm1(-twice)) ** 0.5)
        return x


class LCM(Solver):
    """A1111's ``sample_lcm``: Luo et al. 2023, "Latent Consistency Models" (arXiv:2310.04378).

    It uses only the time steps that such models are distilled to.
    """

    @cached_property
    def known_sigmas(self) -> Levels:
        return model_sigmas(self)[_LCM_EVERY - 1 :: _LCM_EVERY]

    def time_of(self, sigmas: Levels) -> Levels:
        distances = np.abs(np.log(sigmas)[:, None] - np.log(self.known_sigmas))
        return np.asarray((distances.argmin(1) + 1) * _LCM_EVERY - 1, np.float64)

    def _denoised(self, output: Tensor, x: Tensor) -> Tensor:
        scaled: float = self.timesteps[self.step_index].item() * _LCM_TIME_SCALE
        whole = math.hypot(scaled, _LCM_DATA)
        return super()._denoised(output, x) * (scaled / whole) + x * (_LCM_DATA / whole) ** 2

    @staticmethod
    def run(x: Tensor, levels: Levels, draw: Draw) -> Run:
        for sigma, following in pairwise(levels):
            x, denoised = yield x, sigma
            x = denoised + draw() * following if following else denoised
        return x
