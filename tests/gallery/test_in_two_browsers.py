"""Two browsers and the command line at once: nothing that one of them says of a network is lost, and all see it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gallery import Server
from support.networks import network_file

import hnetkit
from hnetkit.gallery.pages import path_part

_TAGS = 8


@pytest.fixture
def pages(chromium: Any, server: Server, library: hnetkit.Library) -> Iterator[list[Any]]:
    """The page of ``ink`` in two browsers that know nothing of each other."""
    contexts = [chromium.new_context() for _ in range(2)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.goto(server.address)
        page.goto(f"{server.base}/network/{path_part(library.record('ink')['content_hash'])}")
    yield pages
    for context in contexts:
        context.close()


def hnetkit_begins(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-P", "-m", "hnetkit", *words], stdout=subprocess.DEVNULL)


def tagged(page: Any, tag: str) -> Any:
    return page.locator("[data-part=tags] .chip bdi").get_by_text(tag, exact=True)


def test_two_browsers_a_scan_and_a_command_lose_nothing_and_see_each_other(
    pages: list[Any], server: Server, library: hnetkit.Library, tmp_path: Path
) -> None:
    folder = tmp_path / "networks"
    for number in range(20):
        network_file(folder, f"new{number}.pt", widths=(8,), seed=100 + number)
    commands = [hnetkit_begins("scan", "-q"), hnetkit_begins("tag", "ink", *(f"typed{n}" for n in range(_TAGS)))]
    for number in range(_TAGS):
        for name, page in zip("ab", pages, strict=True):
            page.locator("#add-tag").fill(f"{name}{number}")
            page.locator("#add-tag").press("Enter")
        for name, page in zip("ab", pages, strict=True):
            tagged(page, f"{name}{number}").wait_for()
    assert [command.wait(60) for command in commands] == [0, 0]
    everything = {f"{name}{number}" for name in ("a", "b", "typed") for number in range(_TAGS)}
    assert everything | {"night", "lineart"} == set(library.record("ink")["tags"])
    assert len(library.networks()) == 23  # what the scan found
    for page, other in (pages, pages[::-1]):
        page.get_by_label("Suggested strength").fill(f"0.{len(page.context.pages)}5")
        page.get_by_role("button", name="Save the strength").click()
        page.locator("#said", has_text="Suggested strength").wait_for()
        other.reload()
        assert (
            other.get_by_label("Suggested strength").input_value()
            == page.get_by_label("Suggested strength").input_value()
        )
        assert set(other.locator("[data-part=tags] .chip bdi").all_inner_texts()) >= everything
    pages[0].goto(f"{server.base}/?q=new19")
    pages[0].locator(".card .name", has_text="new19").wait_for()
