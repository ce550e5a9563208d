"""The bundled model's UNet in one step: what a program that draws with networks has to predict.

The conftest of such a program's tests imports the fixtures `unet`, `step` and `expected`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import hnetkit
from hnetkit import demo


class Inputs(NamedTuple):
    """Of one UNet call for two images."""

    latents: Tensor
    timesteps: Tensor
    text: Tensor


@pytest.fixture(scope="session")
def unet() -> Any:
    """The bundled model's UNet of diffusers."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(demo.model_folder() / "unet").eval()


@pytest.fixture(scope="session")
def step() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return Inputs(latents, torch.tensor([301.0, 301.0]), torch.randn(2, 77, 80, generator=generator))


def predicted(unet: Any, step: Inputs, *networks: tuple[Path, float | hnetkit.Strength]) -> Tensor:
    """Returns what a copy of `unet` predicts in diffusers, with networks that hnetkit loads in this order."""
    own = copy.deepcopy(unet)
    for number, (file, strength) in enumerate(networks):
        hnetkit.load_hypernetwork(own, file, name=str(number), strength=strength)
    with torch.no_grad():
        output: Tensor = own(*step, return_dict=False)[0]
    return output


@pytest.fixture
def expected(unet: Any, step: Inputs) -> Callable[..., Tensor]:
    """Returns what diffusers with hnetkit predicts with networks, given as files with strengths."""
    return partial(predicted, unet, step)
