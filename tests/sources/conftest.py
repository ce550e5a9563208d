"""Sessions that fetch from the fake sites, with a clock on which waiting is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support.fake_sites import Sites, World
from support.fast_clock import FastClock

from hnetkit.library.library import Library
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.session import FetchSession


@pytest.fixture
def open_session(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FetchSession]]:
    """Opens a session on the library of this test's home and a fake site; settings are those of `FetchSession`."""
    with ExitStack() as stack:

        def opened(sites: Sites, *, token: str | None = None, **settings: Any) -> FetchSession:
            monkeypatch.setenv("HNETKIT_CIVITAI_URL", sites.civitai_url)
            clock = FastClock()
            civitai = Civitai(clock, base=sites.civitai_url, token=token or sites.token)
            library = stack.enter_context(Library(home))
            return FetchSession(library, clock=clock, site=civitai, **settings)

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
def session(sites: Sites, open_session: Callable[..., FetchSession]) -> FetchSession:
    return open_session(sites)


@pytest.fixture
def site() -> Iterator[Sites]:
    """Three ordinary models, for this test alone: the second holds two files in one version or two."""
    with Sites(World.make(3, plain=True)) as sites:
        yield sites


@pytest.fixture
def hub(site: Sites, monkeypatch: pytest.MonkeyPatch) -> Sites:
    """`site`, whose hub is the one that the environment names."""
    monkeypatch.setenv("HF_ENDPOINT", site.hub_url)
    monkeypatch.setenv("HF_TOKEN", site.hub_token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return site


@pytest.fixture
def here(site: Sites, open_session: Callable[..., FetchSession]) -> FetchSession:
    return open_session(site)


@pytest.fixture(scope="module")
def long_list() -> Iterator[Sites]:
    """More models than a page holds."""
    with Sites(World.make(130, plain=True)) as sites:
        yield sites
