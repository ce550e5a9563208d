"""The sampling loop, from noise to clean latents: the guided UNet at each time step of a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from hnetkit.generate.sampling.encoding import Conditioning, Encoded, Guidance
from hnetkit.generate.sampling.noise import Noise, PerImageNoise
from hnetkit.runtime.adapters import set_progress

AfterStep = Callable[[int, int], None]
"""Called with the calls of the UNet so far and in all."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptRegion:
    """The region outside of a mask, which keeps the latents of the init image.

    Attributes:
        latents: of the init image, ``[images, 4, h, w]``.
        noise: that sampling began with, of the same shape.
        mask: ``[1, 1, h, w]``, 1 where the image is repainted.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor

    def restore(self, latents: Tensor, scheduler: Any, timestep: Tensor) -> Tensor:
        """Returns `latents` with the region restored, as noisy as at `timestep` ``[1]``; empty after the last step."""
        original = scheduler.add_noise(self.latents, self.noise, timestep) if len(timestep) else self.latents
        return latents * self.mask + original.to(latents) * (1 - self.mask)


class Denoiser:
    """The UNet with classifier-free guidance.

    Args:
        pipe: the UNet's pipeline.
        conditioning: the encoded prompts of each call.
        cfg_scale: 1 leaves the negative prompt out.
        size: (width, height) in pixels, which SDXL reads.
        mask_channels: ``[1, 5, h, w]``, which a UNet made for inpainting reads beside the latents.
    """

    def __init__(
        self,
        pipe: Any,
        conditioning: Conditioning,
        cfg_scale: float,
        size: tuple[int, int],
        mask_channels: Tensor | None = None,
    ) -> None:
        self.pipe, self._conditioning, self._cfg_scale = pipe, conditioning, cfg_scale
        self._height_width, self._mask_channels = (size[1], size[0]), mask_channels

    def __call__(self, latents: Tensor, timestep: Tensor, call: int) -> Tensor:
        """Returns the guided prediction for `latents` ``[images, 4, h, w]``, of the same shape."""
        guidance = self._conditioning.at(call)
        if self._cfg_scale == 1 and len(guidance.positive) == 1:
            return self._predict(latents, timestep, [guidance.positive[0][0]])[0]
        negative, *positive = self._predict(latents, timestep, _padded_texts(guidance))
        result = negative
        for prediction, (_, weight) in zip(positive, guidance.positive, strict=True):
            result = result + (prediction - negative) * (weight * self._cfg_scale)
        return result

    def _predict(self, latents: Tensor, timestep: Tensor, texts: Sequence[Encoded]) -> list[Tensor]:
        """Returns the UNet's output for each text; neighbors of one length share a call."""
        outputs: list[Tensor] = []
        for _, alike in groupby(texts, key=lambda text: len(text.hidden)):
            group = list(alike)
            outputs += self._call(latents, timestep, group).chunk(len(group))
        return outputs

    def _call(self, latents: Tensor, timestep: Tensor, texts: Sequence[Encoded]) -> Tensor:
        count, unet = len(latents), self.pipe.unet
        sample = latents
        if self._mask_channels is not None:
            sample = torch.cat([latents, self._mask_channels.to(latents).expand(count, -1, -1, -1)], dim=1)
        extra = {}
        pooled = [text.pooled for text in texts if text.pooled is not None]
        if pooled:
            ids = latents.new_tensor([*self._height_width, 0, 0, *self._height_width])
            extra["added_cond_kwargs"] = {
                "text_embeds": _rows(pooled, count),
                "time_ids": ids.expand(count * len(texts), -1),
            }
        prediction: Tensor = unet(
            sample.to(unet.dtype).repeat(len(texts), 1, 1, 1),
            timestep,
            encoder_hidden_states=_rows([text.hidden for text in texts], count).to(unet.dtype),
            return_dict=False,
            **extra,
        )[0]
        return prediction


def sample(
    denoiser: Denoiser,
    scheduler: Any,
    latents: Tensor,
    noises: Sequence[Noise],
    begin: int = 0,
    kept: KeptRegion | None = None,
    after_step: AfterStep | None = None,
) -> Tensor:
    """Returns clean latents ``[images, 4, h, w]``.

    Args:
        scheduler: with its timesteps set.
        latents: as noisy as at the scheduler's timestep number `begin`.
        noises: of each image, for samplers that add noise at each step.
        begin: number of the first timestep; not 0 only for image-to-image.
        kept: the region outside of a mask.
    """
    timesteps = scheduler.timesteps[begin:]
    scheduler.set_begin_index(begin)
    for call, timestep in enumerate(timesteps):
        set_progress(denoiser.pipe, call, len(timesteps))
        prediction = denoiser(scheduler.scale_model_input(latents, timestep), timestep, call)
        with PerImageNoise(noises):
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        if kept is not None:
            following = timesteps[call + 1 : call + 2]
            latents = kept.restore(latents, scheduler, following)
        if after_step is not None:
            after_step(call + 1, len(timesteps))
    return latents


def _padded_texts(guidance: Guidance) -> list[Encoded]:
    """Returns the negative prompt and the sub-prompts, padded to one length with their last vector as in A1111."""
    longest = max(len(text.hidden) for text, _ in guidance.positive)
    return [guidance.negative, *(text.padded(longest) for text, _ in guidance.positive)]


def _rows(vectors: Sequence[Tensor], count: int) -> Tensor:
    """Returns each tensor `count` times, in order: the rows of a batch."""
    return torch.stack(list(vectors)).repeat_interleave(count, dim=0)
