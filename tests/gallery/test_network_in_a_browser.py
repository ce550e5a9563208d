"""The page of one network in a real browser: changes in place, keys, copying, and two windows at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.accessible import faults_of
from support.gallery import Server

import hnetkit
from hnetkit.gallery.pages import path_part


@pytest.fixture
def address(library: hnetkit.Library, server: Server) -> str:
    return f"{server.base}/network/{path_part(library.record('ink')['content_hash'])}"


@pytest.fixture
def ink(page: Any, address: str) -> Any:
    """The page of ``ink``, opened from its card."""
    page.locator(".card .name", has_text="ink").click()
    page.wait_for_url(f"{address}*")
    return page


@pytest.fixture
def other(ink: Any, server: Server, address: str) -> Iterator[Any]:
    """The same page in another browser, which has the token too."""
    context = ink.context.browser.new_context()
    page = context.new_page()
    page.goto(server.address)
    page.goto(address)
    yield page
    context.close()


def wait_for(page: Any, text: str) -> None:
    """Waits until the page says a text; a function that waits would need what its policy forbids."""
    page.locator("#said", has_text=text).wait_for()


def tags(page: Any) -> list[str]:
    found: list[str] = page.locator("[data-part=tags] .chip bdi").all_inner_texts()
    return found


def test_tags_are_added_and_removed_in_place_by_the_keyboard(ink: Any, library: hnetkit.Library) -> None:
    ink.locator("#add-tag").focus()
    ink.keyboard.type("mine")
    ink.keyboard.press("Enter")
    ink.wait_for_selector("[data-part=tags] .chip:has-text('mine')")
    wait_for(ink, "hnetkit tag ink mine")
    assert ink.evaluate("document.activeElement.id") == "add-tag"
    assert ink.locator("#add-tag").input_value() == ""
    ink.get_by_role("button", name="Remove the tag night").focus()
    ink.keyboard.press("Enter")
    ink.wait_for_selector("[data-part=tags] .chip:has-text('night')", state="detached")
    assert ink.evaluate("document.activeElement.id") == "add-tag"
    assert tags(ink) == library.record("ink")["tags"] == ["lineart", "mine"]


def test_the_tag_to_copy_follows_the_strength_and_the_words(ink: Any) -> None:
    ink.get_by_label("Suggested strength").fill("0.7")
    ink.keyboard.press("Enter")
    ink.wait_for_selector("[data-part=use] code:has-text('<hypernet:ink:0.7>')")
    ink.get_by_label("Trigger words").fill("ink wash")
    ink.get_by_role("button", name="Save the words").click()
    ink.wait_for_selector("[data-part=use] code:has-text('ink wash')")
    ink.locator("h1").click()
    ink.keyboard.press("c")
    wait_for(ink, "Copied: <hypernet:ink:0.7> ink wash")
    assert ink.evaluate("navigator.clipboard.readText()") == "<hypernet:ink:0.7> ink wash"
    ink.get_by_role("button", name="Copy as Python").click()
    wait_for(ink, "Copied: import hnetkit")
    assert "find('ink')" in ink.evaluate("navigator.clipboard.readText()")


def test_what_is_typed_and_not_saved_stays_when_something_else_is_saved(ink: Any) -> None:
    ink.get_by_label("Note", exact=True).fill("half a thought")
    ink.locator("#add-tag").fill("mine")
    ink.keyboard.press("Enter")
    ink.wait_for_selector("[data-part=tags] .chip:has-text('mine')")
    assert ink.get_by_label("Note", exact=True).input_value() == "half a thought"


def test_of_two_windows_neither_loses_the_others_words(ink: Any, other: Any, library: hnetkit.Library) -> None:
    for page, tag in ((ink, "one"), (other, "two")):
        page.locator("#add-tag").fill(tag)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"[data-part=tags] .chip:has-text('{tag}')")
    assert {"one", "two"} <= set(library.record("ink")["tags"])
    ink.get_by_label("Note", exact=True).fill("of the first")
    ink.get_by_role("button", name="Save the note").click()
    wait_for(ink, "Saved the note")
    other.get_by_label("Note", exact=True).fill("of the second")
    other.get_by_role("button", name="Save the note").click()
    conflict = other.locator("[data-part=note] .conflict")
    conflict.wait_for()
    assert "of the first" in conflict.inner_text()
    assert other.get_by_label("Note", exact=True).input_value() == "of the second"
    assert library.record("ink")["note"] == "of the first"
    other.get_by_role("button", name="Save the note").click()
    conflict.wait_for(state="hidden")
    assert library.record("ink")["note"] == "of the second"


def test_a_page_of_a_gallery_that_was_ended_says_that_it_can_only_look(
    chromium: Any, server: Server, address: str
) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{address}#token=of-the-last-one")
    notice = page.locator("#no-token")
    assert not notice.is_visible()
    page.locator("#add-tag").fill("a tag")
    page.keyboard.press("Enter")
    notice.wait_for()
    assert page.locator("#add-tag").input_value() == "a tag"
    newer = context.new_page()
    newer.goto(server.address)
    notice.wait_for(state="hidden")
    context.close()


def test_a_preview_is_set_and_seen_at_once(ink: Any, library: hnetkit.Library, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "castle.jpg")
    ink.get_by_label("New preview").set_input_files(tmp_path / "castle.jpg")
    ink.get_by_role("button", name="Set the preview").click()
    wait_for(ink, "hnetkit tag ink --preview castle.jpg")
    shown = ink.locator("[data-part=pictures] img[src*='/preview/0?seen=']")
    shown.wait_for()
    assert shown.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 300


def test_arrows_go_to_the_neighbours_within_the_filter(page: Any, server: Server) -> None:
    page.goto(f"{server.base}/?activation=linear")
    page.locator(".card .name", has_text="ink").click()
    wait_for_network(page, "ink")
    page.keyboard.press("ArrowRight")
    wait_for_network(page, "wash")
    assert "activation=linear" in page.url
    page.keyboard.press("k")
    wait_for_network(page, "ink")
    page.keyboard.press("ArrowLeft")
    page.get_by_label("Note", exact=True).focus()
    page.keyboard.type("jk")
    assert page.locator("h1").inner_text() == "ink"
    page.get_by_label("Note", exact=True).fill("best at 0.8")


def wait_for_network(page: Any, name: str) -> None:
    page.wait_for_selector(f"h1:has-text('{name}')")
    page.wait_for_load_state()


def test_what_a_search_finds_is_tagged_at_once(page: Any, server: Server, library: hnetkit.Library) -> None:
    page.goto(f"{server.base}/?activation=linear")
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    page.get_by_text("Tag 2 networks").click()
    page.locator("#tag-all").fill("soft")
    page.keyboard.press("Enter")
    page.locator(".card .chip", has_text="soft").first.wait_for()
    assert asked == ["Change the tags of 2 networks?"]
    assert [library.record(name)["tags"] for name in ("wash", "lines")] == [["soft"], []]


def test_a_file_is_validated_with_the_command_that_is_said(ink: Any) -> None:
    ink.get_by_role("button", name="Validate").click()
    wait_for(ink, "Every value was read: sound")
    wait_for(ink, "hnetkit validate ")


def test_the_page_is_readable_at_any_width_and_without_a_serious_fault(ink: Any, library: hnetkit.Library) -> None:
    library.tag("ink", "a-tag-of-one-word-that-is-longer-than-any-line-of-a-narrow-page-can-hold-at-once", strength=0.5)
    for scheme, width in itertools.product(("light", "dark"), (380, 1280, 2560)):
        ink.emulate_media(color_scheme=scheme)
        ink.set_viewport_size({"width": width, "height": 800})
        ink.reload()
        assert faults_of(ink) == [], (scheme, width)
