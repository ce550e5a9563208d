"""The bundled model's UNet in one step: what a program that draws with networks has to predict."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hnetkit
from hnetkit import demo


class Inputs(NamedTuple):
    """Of one UNet call for two images."""

    latents: Tensor
    timesteps: Tensor
    text: Tensor


def bundled_unet() -> Any:
    """Returns the UNet as diffusers has it."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(demo.model_folder() / "unet").eval()


def inputs() -> Inputs:
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
