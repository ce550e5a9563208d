"""Networks that the runtime's tests share: widths of the tiny pipelines, four builds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.compiled import Graphs
from support.networks import network_file
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd

import hnetkit
from hnetkit.network import Hypernetwork


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, Any]:
    """The cases, the recorded tensors, and every network."""
    folder = shared / "data" / "golden"
    cases = json.loads((folder / "cases.json").read_text())
    networks = {case["name"]: hnetkit.load(folder / case["file"]) for case in cases["files"]}
    return {**cases, "expected": load_file(folder / "expected.safetensors"), "networks": networks}


def _network(folder: Path, name: str, activation: str | None, **options: Any) -> Hypernetwork:
    widths = (*SELF_WIDTHS, SD_CROSS_WIDTH)
    return hnetkit.load(network_file(folder, f"{name}.pt", widths=widths, activation=activation, scale=0.3, **options))


@pytest.fixture
def pipe() -> Any:
    """A tiny Stable Diffusion pipeline, fp32, on the CPU."""
    return tiny_sd()


@pytest.fixture
def ink(tmp_path: Path) -> Hypernetwork:
    """[1, 2, 1], ReLU."""
    return _network(tmp_path, "ink", "relu", seed=1)


@pytest.fixture
def wash(tmp_path: Path) -> Hypernetwork:
    """[1, 2, 1], Mish, layer norm."""
    return _network(tmp_path, "wash", "mish", layer_norm=True, seed=2)


@pytest.fixture
def tint(tmp_path: Path) -> Hypernetwork:
    """[1, 2, 1], affine."""
    return _network(tmp_path, "tint", None, seed=3)


@pytest.fixture
def shade(tmp_path: Path) -> Hypernetwork:
    """[1, 1, 2, 1], affine."""
    return _network(tmp_path, "shade", "linear", structure=(1, 1, 2, 1), seed=4)


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    """A backend of `torch.compile`."""
    torch.compiler.reset()
    yield Graphs()
    torch.compiler.reset()
