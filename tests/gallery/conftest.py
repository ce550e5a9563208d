"""A library with a gallery before it, and a browser that looks at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gallery import Server, running
from support.networks import network_file

import hnetkit

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three: ``ink`` and ``wash`` for SD 1 or 2, ``lines`` of another structure and activation."""
    folder = tmp_path_factory.mktemp("networks")
    network_file(folder, "ink.pt", widths=(320, 768), seed=1)
    network_file(folder, "wash.pt", widths=(320, 768), seed=2)
    network_file(folder, "lines.pt", widths=(320,), structure=[1, 1.5, 1], activation="relu", seed=3)
    return folder


@pytest.fixture
def library(home: Path, networks: Path, tmp_path: Path) -> Iterator[hnetkit.Library]:
    """A copy of these networks, scanned."""
    folder = tmp_path / "networks"
    shutil.copytree(networks, folder, copy_function=shutil.copyfile)
    with hnetkit.Library() as library:
        library.scan(folder)
        library.tag("ink", "night", "lineart", alias="tinte", note="best at 0.8")
        yield library


@pytest.fixture
def server(library: hnetkit.Library) -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: make browser installs it")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make browser")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, server: Server) -> Iterator[Any]:
    """A page of the gallery; whatever a test does on it, the console stays quiet and no request leaves the server."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, base_url=server.base)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(_complaint(message)))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.address)
    yield page
    context.close()
    assert [text for text in said if text] == []
    assert [url for url in asked if not url.startswith(server.base)] == []


def _complaint(message: Any) -> str:
    """What the console says that it should not; that there is no such page is said of none."""
    is_wrong = message.type in ("error", "warning") and not message.location["url"].endswith("/no/such/page")
    return message.text if is_wrong else ""
