"""The sampling loop stays on the device: no step reads a value from it or copies one to it, for which the host waits.

The device of torch that computes nothing stands in for a GPU: what is read from it is an error.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.any_truth import small_unet
from support.pipelines import SD_CROSS_WIDTH
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hnetkit.generate.sampling.encoding import Encoded, Guidance
from hnetkit.generate.sampling.loop import Denoiser, KeptRegion, sample
from hnetkit.generate.sampling.noise import Noise
from hnetkit.generate.sampling.samplers import SAMPLERS, prepare_scheduler

DEVICE = torch.device("meta")
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE, COUNT = (4, 8, 8), 2
AT_HOME = [name for name in SAMPLERS if name != "UniPC"]  # diffusers' has the device solve its equations


class Crossings(TorchDispatchMode):
    """Refuses copies between the host and the device, but for noise, which is sent ahead."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.name().partition(".")[0] in ("aten::_to_copy", "aten::copy_"):
            for tensor in args:
                is_noise = isinstance(tensor, Tensor) and tensor.shape == (COUNT, *SHAPE)
                assert is_noise or not isinstance(tensor, Tensor) or tensor.device == output.device, (
                    f"{list(tensor.shape)} goes from {tensor.device} to {output.device}"
                )
        return output


class Texts:
    """Two prompts, the same at each call."""

    def at(self, call: int) -> Guidance:
        text = Encoded(torch.empty(77, SD_CROSS_WIDTH, device=DEVICE), None)
        return Guidance(((text, 1.0),), text)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", AT_HOME)
def test_no_step_waits_for_the_device(name: str, masked: bool) -> None:
    pipe = SimpleNamespace(unet=small_unet().to(DEVICE), _execution_device=DEVICE)
    scheduler, texts = prepare_scheduler(name, SCHEDULE, 5), Texts()
    denoiser = Denoiser(pipe, texts, 7.0, (64, 64))  # type: ignore[arg-type]
    latents = torch.empty(COUNT, *SHAPE, device=DEVICE)
    kept = KeptRegion(latents, latents, torch.empty(1, 1, *SHAPE[1:], device=DEVICE)) if masked else None
    noises = [Noise(seed, SHAPE, source="cpu") for seed in range(COUNT)]
    with torch.no_grad(), Crossings():
        clean = sample(denoiser, scheduler, latents, noises, scheduler.order, kept)
    assert clean.device == DEVICE
    assert clean.shape == latents.shape
