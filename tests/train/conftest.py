"""The least model there is, on disk and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.pipelines import tiny_sd

from hnetkit.generate.model import Model, load_model


@pytest.fixture(scope="session")
def least_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd(least=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(least_folder: Path) -> Model:
    """A model of this module's own."""
    return load_model(least_folder, device="cpu")
