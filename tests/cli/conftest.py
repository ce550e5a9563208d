"""What tests of commands that draw stand on: a tiny model, a library that fits it, and an empty folder to be in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.networks import a1111_network, save_pt
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd

from hnetkit.cli import run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd(least=True).save_pretrained(folder)
    (folder / "hnetkit.json").write_text(json.dumps({"steps": 2, "cfg_scale": 4.0, "sampler": "DDIM"}))
    return str(folder)


@pytest.fixture
def library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """``ink`` and ``wash`` fit the model, ``other`` does not; all are indexed."""
    folder = tmp_path / "library"
    folder.mkdir()
    for seed, (name, widths) in enumerate({"ink": 0, "wash": 0, "other": 768}.items()):
        fitting = (*SELF_WIDTHS, SD_CROSS_WIDTH)
        content = a1111_network((widths,) if widths else fitting, activation="relu", seed=seed, scale=0.3)
        save_pt(content, folder / f"{name}.pt")
    assert run(["scan", str(folder)]) == 0
    capsys.readouterr()
    return folder


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
