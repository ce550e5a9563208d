"""A Forge in small with the bundled model, networks and the extension."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import webui

from hnetkit import demo
from hnetkit.runtime import network_files
from hnetkit.webui import register


@pytest.fixture(scope="session")
def unet() -> Any:
    """The bundled model's UNet of diffusers."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(demo.model_folder() / "unet").eval()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(demo.network_folder(), folder / "hypernetworks" / "demo")
    return folder


@pytest.fixture
def forge(unet: Any, models: Path) -> Iterator[webui.Webui]:
    program = webui.Webui(unet)
    network_files._opened.cache_clear()
    with webui.installed(program, models):
        script = register()
        assert script is not None
        program.start(script)
        yield program
