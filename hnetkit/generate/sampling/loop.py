"""The sampling loop, from noise to clean latents: the guided UNet at each time step of a scheduler.

Source of the steps that a pass makes: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/sd_samplers_common.py and
sd_samplers_timesteps.py (behavior only).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnetkit.generate.sampling.encoding import Conditioning, Encoded, Guidance
from hnetkit.generate.sampling.noise import Noise, PerImageNoise
from hnetkit.generate.sampling.schedulers import model_sigmas
from hnetkit.runtime.adapters import set_progress
from hnetkit.runtime.progress import step_of_call

AfterStep = Callable[[int, int], None]
"""Called with the calls of the UNet so far and in all."""

AHEAD = 2
"""How many steps the host may begin before the GPU has made them: enough to keep it at work."""
_MOST_DENOISING = 0.999
_LONGEST = 10_000
"""Steps of a schedule; beyond, its last levels are alike, and samplers that lay them out one by one take seconds."""


class Steps(NamedTuple):
    """The last steps of a schedule.

    Attributes:
        in_all: steps of the schedule, from noise to an image.
        made: how many of them are sampled, the last ones.
    """

    in_all: int
    made: int

    @classmethod
    def over_image(cls, steps: int, denoising: float) -> Steps:
        """Those of image-to-image: the share `denoising` of the steps, and one more, as in A1111."""
        return cls(steps, min(int(min(denoising, _MOST_DENOISING) * steps), steps - 1) + 1)

    @classmethod
    def over_first_pass(cls, steps: int, denoising: float) -> Steps:
        """Those of a second pass: as in A1111 all of its steps, in the share `denoising` of a longer schedule."""
        share = max(min(denoising, _MOST_DENOISING), steps / _LONGEST)
        return cls(max(steps, int(steps / share)), steps)

    def first_call(self, scheduler: Any) -> int:
        """Returns the number of the call of the UNet that they begin with, for a scheduler set to `in_all` steps.

        DDIM, PLMS and UniPC may have more times than steps (see `uniform_times` of the schedulers): from noise they
        take all of them, else they count from the end.
        """
        if self.made == self.in_all:
            return 0
        in_all = getattr(scheduler, "number_of_times", self.in_all)
        return (in_all - self.made) * int(scheduler.order)


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
        original = noised(self.latents, self.noise, scheduler, timestep) if len(timestep) else self.latents
        return latents * self.mask + original.to(latents) * (1 - self.mask)


def noised(latents: Tensor, noise: Tensor, scheduler: Any, timestep: Tensor) -> Tensor:
    """Returns `latents` as noisy as at a scheduler's `timestep` ``[1]``, without a wait for their device.

    A scheduler looks the shares of both up, which it does on the CPU, for numbers: on the device it would wait for it.
    """
    one, none = torch.ones(1, dtype=latents.dtype), torch.zeros(1, dtype=latents.dtype)
    of_latents, of_noise = (float(scheduler.add_noise(*pair, timestep)) for pair in ((one, none), (none, one)))
    return latents * of_latents + noise * of_noise


class Denoiser:
    """The UNet with classifier-free guidance.

    Args:
        pipe: the UNet's pipeline.
        conditioning: the encoded prompts of each call.
        cfg_scale: 1 leaves the negative prompt out, if the prompt is one part of weight 1.
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
        self._mask_channels = mask_channels
        # both once: the one looks at all of the UNet's modules, the other waits for the device
        self._dtype = pipe.unet.dtype
        self._time_ids = torch.tensor([size[1], size[0], 0, 0, size[1], size[0]], device=pipe._execution_device)

    def __call__(self, latents: Tensor, timestep: Tensor, call: int) -> Tensor:
        """Returns the guided prediction for `latents` ``[images, 4, h, w]``, of the same shape."""
        guidance = self._conditioning.at(call)
        if self._cfg_scale == 1 and [weight for _, weight in guidance.positive] == [1]:
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
        count = len(latents)
        sample = latents
        if self._mask_channels is not None:
            sample = torch.cat([latents, self._mask_channels.to(latents).expand(count, -1, -1, -1)], dim=1)
        extra = {}
        pooled = [text.pooled for text in texts if text.pooled is not None]
        if pooled:
            extra["added_cond_kwargs"] = {
                "text_embeds": _rows(pooled, count),
                "time_ids": self._time_ids.to(latents).expand(count * len(texts), -1),
            }
        prediction: Tensor = self.pipe.unet(
            sample.to(self._dtype).repeat(len(texts), 1, 1, 1),
            timestep,
            encoder_hidden_states=_rows([text.hidden for text in texts], count).to(self._dtype),
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

    Everything stays on the device, and nothing but the progress waits for it: the host is ahead by `AHEAD` steps. (But
    for UniPC: diffusers has the device solve its equations, and waits.)

    Args:
        scheduler: with its timesteps set, on the CPU, where it reads them.
        latents: as noisy as at the scheduler's timestep number `begin`.
        noises: of each image, for samplers that add noise at each step.
        begin: number of the first timestep; not 0 only for image-to-image.
        kept: the region outside of a mask.
    """
    timesteps = scheduler.timesteps[begin:]
    scheduler.set_begin_index(begin)
    progress = StepProgress(latents.device, len(timesteps), after_step)
    steps = step_of_call(scheduler, len(timesteps) - 1) + 1
    for call, timestep in enumerate(timesteps):
        set_progress(denoiser.pipe, step_of_call(scheduler, call), steps)
        there = torch.full((), timestep.item(), dtype=timestep.dtype, device=latents.device)
        given = scheduler.scale_model_input(latents, timestep)
        prediction = denoiser(given, there, call)
        if scheduler.predicts_image:
            prediction = _noise_in(given, prediction, _level_at(scheduler, timestep.item()))
        with PerImageNoise(noises):
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        if kept is not None:
            following = timesteps[call + 1 : call + 2]
            latents = kept.restore(latents, scheduler, following)
        progress.begun_another()
    progress.wait()
    return latents


def _level_at(scheduler: Any, time: float) -> float:
    """Returns the noise level of a time step of the model, which may lie between two, as its samplers know it."""
    levels = np.log(model_sigmas(scheduler))
    return float(np.exp(np.interp(time, np.arange(len(levels)), levels)))


def _noise_in(given: Tensor, image: Tensor, level: float) -> Tensor:
    """Returns the noise in latents of variance 1 at a noise level, if `image` is the image in them."""
    return (given * math.hypot(level, 1) - image) / level


class StepProgress:
    """Tells of the steps that a device has made, while the host is ahead of it.

    Args:
        device: that makes them; all but CUDA are taken to be done when the host is.
        steps: how many there are.
        after_step: is told.
        mark: returns what waits for all that the device was given so far; None for the device's own.
    """

    def __init__(
        self,
        device: torch.device,
        steps: int,
        after_step: AfterStep | None,
        mark: Callable[[], Any] | None = None,
    ) -> None:
        self._steps, self._after_step, self._made = steps, after_step, 0
        self._mark = mark or (lambda: _recorded_event(device) if device.type == "cuda" else _Done())
        self._begun: deque[Any] = deque()
        self._ahead = AHEAD if mark is not None or device.type == "cuda" else 0

    def begun_another(self) -> None:
        """The host has given the device another step. Waits for an earlier one where it is far ahead."""
        self._begun.append(self._mark())
        if len(self._begun) > self._ahead:
            self._tell()

    def wait(self) -> None:
        """Waits until all steps are made."""
        while self._begun:
            self._tell()

    def _tell(self) -> None:
        self._begun.popleft().synchronize()
        self._made += 1
        if self._after_step is not None:
            self._after_step(self._made, self._steps)


class _Done:
    """The mark of a step that is made when the host has given it."""

    def synchronize(self) -> None: ...


def _recorded_event(device: torch.device) -> Any:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _padded_texts(guidance: Guidance) -> list[Encoded]:
    """Returns the negative prompt and the sub-prompts, padded to one length with their last vector as in A1111."""
    longest = max(len(text.hidden) for text, _ in guidance.positive)
    return [guidance.negative, *(text.padded(longest) for text, _ in guidance.positive)]


def _rows(vectors: Sequence[Tensor], count: int) -> Tensor:
    """Returns each tensor `count` times, in order: the rows of a batch."""
    return torch.stack(list(vectors)).repeat_interleave(count, dim=0)
