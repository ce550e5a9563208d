"""One pass of sampling, from noise or over latents, at one size, with texts, noise and a stack of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hnetkit.generate.pipeline import LoadedPipeline
from hnetkit.generate.request import Request, SecondPass
from hnetkit.generate.sampling.conditioning import Conditioning
from hnetkit.generate.sampling.loop import AfterStep, Denoiser, Kept, sample
from hnetkit.generate.sampling.noise import Noise
from hnetkit.generate.sampling.samplers import prepare
from hnetkit.runtime.adapters import applied


class Pass:
    """A pass over a batch of pictures.

    Args:
        model: that draws.
        request: what both passes share.
        seeds: of the batch.
        part: the request itself for a first pass, its second one for that.
        denoising: how much of latents is drawn anew, 0 to 1; None where it starts with noise.
        before: the calls of the UNet that the pass before counts for schedules.

    Attributes:
        noise: that sampling begins with, ``[pictures, 4, h, w]`` on the device.
        schedule_calls: the calls of the UNet of a whole run, by which schedules in prompts are measured.
        calls: how many of them are made.
    """

    def __init__(
        self,
        model: LoadedPipeline,
        request: Request,
        seeds: Sequence[int],
        part: Request | SecondPass,
        denoising: float | None = None,
        before: int | None = None,
    ) -> None:
        pipe = model.pipe
        self._pipe, self._request, self._part = pipe, request, part
        self._scheduler = prepare(request.sampler, model.scheduler_config, part.steps, pipe._execution_device)
        self._begin = 0 if denoising is None else _begin(self._scheduler, part.steps, denoising)
        self.schedule_calls = len(self._scheduler.timesteps)
        self.calls = self.schedule_calls - self._begin
        encoder = model.text_encoder(request.clip_skip, request.emphasis)
        self._texts = Conditioning(encoder, part.prompt, part.negative_prompt, self.schedule_calls, before)
        scale = pipe.vae_scale_factor
        shape = (pipe.vae.config.latent_channels, part.height // scale, part.width // scale)
        self._noises = [_noise(request, seed, shape) for seed in seeds]
        self.noise = torch.stack([noise.first() for noise in self._noises]).to(pipe._execution_device)

    def from_noise(self, after_step: AfterStep) -> Tensor:
        """Returns clean latents ``[pictures, 4, h, w]`` that nothing but noise went before."""
        return self._sample(self.noise * self._scheduler.init_noise_sigma, after_step)

    def over(
        self, latents: Tensor, after_step: AfterStep, kept: Kept | None = None, beside: Tensor | None = None
    ) -> Tensor:
        """Returns `latents`, of the noise's shape, drawn anew as far as the pass's denoising says.

        Args:
            kept: what stays outside of a mask.
            beside: channels that a UNet made for inpainting reads next to the latents.
        """
        self._scheduler.set_begin_index(self._begin)
        timestep = self._scheduler.timesteps[self._begin : self._begin + 1]
        return self._sample(self._scheduler.add_noise(latents, self.noise, timestep), after_step, kept, beside)

    def _sample(
        self, latents: Tensor, after_step: AfterStep, kept: Kept | None = None, beside: Tensor | None = None
    ) -> Tensor:
        size = self._part.width, self._part.height
        denoiser = Denoiser(self._pipe, self._texts, self._request.cfg_scale, size, beside)
        with applied(self._pipe, dict(self._part.stack)):
            return sample(denoiser, self._scheduler, latents, self._noises, self._begin, kept, after_step)


def _begin(scheduler: Any, steps: int, denoising: float) -> int:
    """Returns the index of the timestep that image-to-image begins with; A1111 makes one step more than it says."""
    made = min(int(min(denoising, 0.999) * steps), steps - 1) + 1
    return (steps - made) * int(scheduler.order)


def _noise(request: Request, seed: int, shape: tuple[int, ...]) -> Noise:
    return Noise(
        *(seed, shape),
        source=request.rng,
        variation_seed=request.variation_seed + seed - request.seed,
        variation_strength=request.variation_strength,
        ensd=request.eta_seed_delta,
    )
