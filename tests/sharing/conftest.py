"""A library of two networks for the tiny pipeline, to share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.networks import network_file
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS

import hnetkit


@pytest.fixture
def library(home: Path, tmp_path: Path) -> Iterator[hnetkit.Library]:
    """``ink`` as A1111 of 2022 wrote it, and ``wash`` as a torch of today does, which A1111 does not load."""
    folder = tmp_path / "networks"
    folder.mkdir()
    for seed, name in enumerate(("wash", "raw")):
        network_file(folder, f"{name}.pt", widths=(*SELF_WIDTHS, SD_CROSS_WIDTH), seed=seed)
    hnetkit.save(hnetkit.load(folder / "raw.pt"), folder / "ink.pt")
    (folder / "raw.pt").unlink()
    with hnetkit.Library() as library:
        library.scan(folder)
        yield library
