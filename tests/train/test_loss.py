"""The loss: against what the model was trained to say, weighed over time and place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from hnetkit.errors import ModelNotUsable
from hnetkit.train.step import Objective

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def objective(prediction: str = "epsilon", min_snr: float | None = None, **more: Any) -> Objective:
    return Objective({**STABLE, "prediction_type": prediction, **more}, min_snr)


def sample(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(count, 4, 6, 6, generator=generator) for _ in range(2))
    return latents, noise, torch.tensor([0, 500, 999][:count])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_what_the_model_should_say_has_no_loss_and_leads_back_to_the_latents(prediction: str) -> None:
    latents, noise, times = sample()
    own = objective(prediction)
    noisy = own.add_noise(latents, noise, times)
    kept = DDPMScheduler(**STABLE).alphas_cumprod[times][:, None, None, None]
    said = {"epsilon": noise, "sample": latents, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * latents}
    right = said[prediction]
    assert own.losses(right, latents, noise, times).abs().max() < 1e-9
    back = {
        "epsilon": (noisy - (1 - kept).sqrt() * right) / kept.sqrt(),
        "v_prediction": kept.sqrt() * noisy - (1 - kept).sqrt() * right,
        "sample": right,
    }
    torch.testing.assert_close(back[prediction], latents, atol=1e-4, rtol=1e-4)


def test_the_loss_of_each_sample_is_its_mean_squared_error_in_fp32() -> None:
    latents, noise, times = sample()
    losses = objective().losses((noise + 0.5).half(), latents, noise, times)
    assert losses.dtype is torch.float32
    torch.testing.assert_close(losses, torch.full((3,), 0.25), atol=1e-3, rtol=1e-3)


def test_places_are_weighed() -> None:
    latents, noise, times = sample()
    wrong = noise.clone()
    wrong[..., 0] += 1
    weights = torch.zeros(3, 1, 6, 6)
    weights[..., 0] = 6
    assert objective().losses(wrong, latents, noise, times, weights).tolist() == pytest.approx([1, 1, 1])
    assert objective().losses(wrong, latents, noise, times, 6 - weights).tolist() == pytest.approx([0, 0, 0])


def test_min_snr_weighs_early_time_steps_down_and_leaves_late_ones() -> None:
    times = torch.arange(1000)
    kept = DDPMScheduler(**STABLE).alphas_cumprod.double()
    ratio = kept / (1 - kept)
    for prediction, of in (("epsilon", ratio), ("v_prediction", ratio + 1), ("sample", torch.ones(()))):
        weights = objective(prediction, 5.0).time_weights(times)
        torch.testing.assert_close(weights.double(), ratio.clamp(max=5) / of, atol=1e-6, rtol=1e-5)
    latents, noise, times = sample()
    plain, weighed = (objective(min_snr=gamma).losses(noise * 0, latents, noise, times) for gamma in (None, 5.0))
    assert weighed[0] < plain[0] / 100
    assert torch.equal(weighed[1:], plain[1:])


def test_min_snr_knows_schedules_that_end_without_signal() -> None:
    weights = objective("v_prediction", 5.0, rescale_betas_zero_snr=True).time_weights(torch.arange(1000))
    assert weights.isfinite().all()


def test_a_model_that_predicts_something_else_is_refused() -> None:
    with pytest.raises(ModelNotUsable, match="flow"):
        objective("flow")
