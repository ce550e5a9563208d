"""Tiny pipelines on disk and loaded, and networks that fit them."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
from support.networks import a1111_network, save_pt
from support.pipelines import SD_CROSS_WIDTH, SDXL_CROSS_WIDTH, SELF_WIDTHS, tiny_sd, tiny_sdxl

import hnetkit
from hnetkit.generate.model import Model, load_model


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    tiny_sd(least=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-sdxl"
    tiny_sdxl().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _loaded(sd_folder: Path) -> Model:
    return load_model(sd_folder, device="cpu")


@pytest.fixture
def sd(_loaded: Model) -> Model:
    """A model of this test's own, copied in a third of the time that loading takes."""
    return copy.deepcopy(_loaded)


@pytest.fixture(scope="session")
def network_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ink`` (relu), ``mist`` (mish, layer norm) and ``wash`` (affine), for SD and SDXL alike."""
    folder = tmp_path_factory.mktemp("networks")
    widths = (*SELF_WIDTHS, SD_CROSS_WIDTH, SDXL_CROSS_WIDTH)
    kinds = {"ink": ("relu", False), "mist": ("mish", True), "wash": ("linear", False)}
    for seed, (name, (activation, norm)) in enumerate(kinds.items()):
        content = a1111_network(widths, activation=activation, layer_norm=norm, seed=seed, scale=0.3, name=name)
        save_pt(content, folder / f"{name}.pt")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network_files: Path) -> Path:
    """A folder to be in, with a library of ``ink``, ``mist`` and ``wash``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(network_files, "networks")
    with hnetkit.Library() as library:
        library.scan("networks")
    return tmp_path
