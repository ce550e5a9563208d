"""A Forge in small with the bundled model, networks and the extension."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import one_step, webui

from hnetkit import demo
from hnetkit.webui import register


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
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(demo.network_folder(), folder / "hypernetworks" / "demo")
    return folder


@pytest.fixture
def forge(unet: Any, models: Path) -> Iterator[webui.Webui]:
    program = webui.Webui(unet)
    with webui.installed(program, models):
        script = register()
        assert script is not None
        program.start(script)
        yield program
