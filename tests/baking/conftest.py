"""Tiny pipelines, and networks for them of which some are affine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.networks import network_file
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd

import hnetkit
from hnetkit.network import Hypernetwork

Make = Callable[..., Hypernetwork]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a network by the options of `support.networks.a1111_network`, on all widths of the tiny model."""

    def made(name: str, **options: Any) -> Hypernetwork:
        defaults: dict[str, Any] = {"widths": (*SELF_WIDTHS, SD_CROSS_WIDTH), "scale": 0.3}
        return hnetkit.load(network_file(tmp_path, f"{name}.pt", **{**defaults, **options}))

    return made


@pytest.fixture
def pipe() -> Any:
    """A tiny Stable Diffusion pipeline, fp32, on the CPU."""
    return tiny_sd()


@pytest.fixture
def tint(make: Make) -> Hypernetwork:
    """[1, 2, 1], affine, with biases."""
    return make("tint", activation=None, seed=3)


@pytest.fixture
def shade(make: Make) -> Hypernetwork:
    """[1, 0.5, 1], affine, with biases."""
    return make("shade", activation="linear", structure=(1, 0.5, 1), seed=4)


@pytest.fixture
def ink(make: Make) -> Hypernetwork:
    """[1, 2, 1], ReLU."""
    return make("ink", activation="relu", seed=1)
