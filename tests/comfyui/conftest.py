"""A ComfyUI in small, with the bundled networks in its folder and the bundled model loaded."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import comfyui
from torch import Tensor

import hnetkit
from hnetkit import demo
from hnetkit.runtime import network_files


@pytest.fixture(scope="session")
def unet() -> Any:
    """The bundled model's UNet of diffusers."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(demo.model_folder() / "unet").eval()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's folder of hypernetworks, which ComfyUI is installed beside."""
    folder = tmp_path / "models" / "hypernetworks"
    shutil.copytree(demo.network_folder(), folder)
    network_files._opened.cache_clear()
    with comfyui.installed(folder):
        yield folder


@pytest.fixture
def model(unet: Any, folder: Path) -> comfyui.Model:
    return comfyui.model_of(unet)


@pytest.fixture(scope="session")
def step() -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of one UNet call for two images: latents, timesteps, text."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return latents, torch.tensor([301.0, 301.0]), torch.randn(2, 77, 80, generator=generator)


@pytest.fixture
def expected(unet: Any, step: tuple[Tensor, Tensor, Tensor]) -> Any:
    """Returns what diffusers with hnetkit predicts with networks, given as files with strengths."""

    def predict(*networks: tuple[Path, float | hnetkit.Strength]) -> Tensor:
        own = copy.deepcopy(unet)
        for number, (file, strength) in enumerate(networks):
            hnetkit.load_hypernetwork(own, file, name=str(number), strength=strength)
        latents, timesteps, text = step
        with torch.no_grad():
            output: Tensor = own(latents, timesteps, text, return_dict=False)[0]
        return output

    return predict
