"""A library that fetches from the fake sites, with a clock on which waiting is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fake_sites import Sites, World
from fast_clock import FastClock
from fetching import Library

from hnetkit.registry import Registry
from hnetkit.sources.civitai import Civitai


@pytest.fixture
def open_library(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Library]]:
    """Opens the library of this test's home on a fake site; settings are those of `Desk`."""
    with ExitStack() as stack:

        def opened(sites: Sites, *, token: str | None = None, **settings: Any) -> Library:
            monkeypatch.setenv("HNETKIT_CIVITAI_URL", sites.civitai_url)
            clock = FastClock()
            registry = stack.enter_context(Registry(home / "registry.db"))
            civitai = Civitai(clock, base=sites.civitai_url, token=token or sites.token)
            return Library(registry, home / "library", clock, civitai, **settings)

        yield opened


@pytest.fixture(scope="module")
def shared_sites() -> Iterator[Sites]:
    with Sites(World.make(39, others=4)) as sites:
        yield sites


@pytest.fixture
def sites(shared_sites: Sites) -> Iterator[Sites]:
    """The fake sites with all oddities; tests that change the world make their own."""
    shared_sites.clear()
    shared_sites.needs_token = False
    yield shared_sites
    shared_sites.clear()


@pytest.fixture
def library(sites: Sites, open_library: Callable[..., Library]) -> Library:
    return open_library(sites)


@pytest.fixture
def site() -> Iterator[Sites]:
    """Three ordinary models, for this test alone: the second holds two files in one version or two."""
    with Sites(World.make(3, plain=True)) as sites:
        yield sites


@pytest.fixture
def here(site: Sites, open_library: Callable[..., Library]) -> Library:
    return open_library(site)


@pytest.fixture(scope="module")
def long_list() -> Iterator[Sites]:
    """More models than a page holds."""
    with Sites(World.make(130, plain=True)) as sites:
        yield sites
