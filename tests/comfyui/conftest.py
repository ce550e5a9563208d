"""A ComfyUI in small, with the bundled networks in its folder and the bundled model loaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import comfyui, one_step

from hnetkit import demo


@pytest.fixture(scope="session")
def unet() -> Any:
    """The bundled model's UNet of diffusers."""
    return one_step.bundled_unet()


@pytest.fixture(scope="session")
def step() -> one_step.Inputs:
    return one_step.inputs()


@pytest.fixture
def expected(unet: Any, step: one_step.Inputs) -> Any:
    """Returns what diffusers with hnetkit predicts with networks, given as files with strengths."""
    return partial(one_step.predicted, unet, step)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's folder of hypernetworks, which ComfyUI is installed beside."""
    folder = tmp_path / "models" / "hypernetworks"
    shutil.copytree(demo.network_folder(), folder)
    with comfyui.installed(folder):
        yield folder


@pytest.fixture
def model(unet: Any, folder: Path) -> comfyui.Model:
    return comfyui.model_of(unet)
