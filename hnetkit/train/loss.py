"""What a UNet's prediction is measured against: noise, velocity or the clean latents, as the model was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from hnetkit.errors import ModelNotUsable

Prediction = Literal["epsilon", "v_prediction", "sample"]


class Objective:
    """The noise schedule of a model, and the loss of its predictions.

    Args:
        scheduler_config: of the scheduler that came with the model.
        min_snr: gamma of min-SNR weighting (Hang et al. 2023); None weighs every time step the same.

    Attributes:
        prediction: what the model was trained to say.
        steps: time steps of the schedule.

    Raises:
        ModelNotUsable: it predicts something else.
    """

    def __init__(self, scheduler_config: Mapping[str, Any], min_snr: float | None = None) -> None:
        from diffusers import DDPMScheduler

        self._schedule = DDPMScheduler.from_config(dict(scheduler_config))
        self.prediction: Prediction = self._schedule.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise ModelNotUsable(f"the model predicts {self.prediction}, which cannot be trained on")
        self.steps = int(self._schedule.config.num_train_timesteps)
        self._min_snr = min_snr

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Returns latents ``[n, 4, h, w]`` as noisy as their time steps ``[n]``."""
        result: Tensor = self._schedule.add_noise(latents, noise, times)
        return result

    def losses(
        self, predicted: Tensor, latents: Tensor, noise: Tensor, times: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Returns the loss ``[n]`` of each sample, in fp32.

        Args:
            predicted: what the UNet said, ``[n, 4, h, w]``.
            weights: ``[n, 1, h, w]`` of places; None weighs them all the same.
        """
        errors = (predicted.float() - self._target(latents, noise, times).float()).square()
        if weights is not None:
            errors = errors * weights
        losses = errors.mean((1, 2, 3))
        return losses if self._min_snr is None else losses * self.time_weights(times)

    def time_weights(self, times: Tensor) -> Tensor:
        """Returns the min-SNR weight ``[n]`` of time steps ``[n]``."""
        assert self._min_snr is not None
        kept = self._schedule.alphas_cumprod.to(times.device)[times].double()
        ratio = kept / (1 - kept)
        clipped = ratio.clamp(max=self._min_snr)
        if self.prediction == "epsilon":
            clipped = torch.where(ratio > 0, clipped / ratio, torch.ones_like(ratio))
        elif self.prediction == "v_prediction":
            clipped = clipped / (ratio + 1)
        weights: Tensor = clipped.float()
        return weights

    def _target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return latents
        velocity: Tensor = self._schedule.get_velocity(latents, noise, times)
        return velocity
