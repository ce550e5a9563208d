"""A ComfyUI in small, with the bundled networks in its folder and the bundled model loaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import comfyui
from support.one_step import expected, step, unet  # noqa: F401

from hnetkit import demo


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's folder of hypernetworks, which ComfyUI is installed beside."""
    folder = tmp_path / "models" / "hypernetworks"
    shutil.copytree(demo.network_folder(), folder)
    with comfyui.installed(folder):
        yield folder


@pytest.fixture
def model(unet: Any, folder: Path) -> comfyui.Model:  # noqa: F811
    return comfyui.model_of(unet)
