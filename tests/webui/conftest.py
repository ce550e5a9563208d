"""A Forge in small with the bundled model, networks and the extension."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import webui
from support.one_step import expected, step, unet  # noqa: F401

from hnetkit import demo
from hnetkit.webui import register


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(demo.network_folder(), folder / "hypernetworks" / "demo")
    return folder


@pytest.fixture
def forge(unet: Any, models: Path) -> Iterator[webui.Webui]:  # noqa: F811
    program = webui.Webui(unet)
    with webui.installed(program, models):
        script = register()
        assert script is not None
        program.start(script)
        yield program
