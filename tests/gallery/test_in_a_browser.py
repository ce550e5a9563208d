"""The cards in a real browser: keys, search, copying, looks."""

from __future__ import annotations

from typing import Any

import pytest
from support.accessible import faults_of
from support.gallery import Server

import hnetkit

NO_PAGE = "/no/such/page"


def names(page: Any) -> list[str]:
    return [name.strip() for name in page.locator(".card .name").all_inner_texts()]


def test_from_the_search_to_a_copied_tag_by_keys_alone(page: Any) -> None:
    page.keyboard.press("/")
    page.keyboard.type("tin")
    page.locator(".card").nth(1).wait_for(state="detached")
    assert "q=tin" in page.url
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "ink"
    page.keyboard.press("c")
    page.locator("#said:not(:empty)").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "<hypernet:ink:1>"
    page.keyboard.press("Enter")
    page.wait_for_url("**/network/**")
    assert page.locator("h1").inner_text() == "ink"


def test_every_page_searches(page: Any) -> None:
    for address in ("/drawing", "/files", "/pictures", "/no/such/page"):
        page.goto(address)
        page.keyboard.press("/")
        page.keyboard.type("tinte")
        page.keyboard.press("Enter")
        page.wait_for_url("**/?q=tinte")
        assert names(page) == ["ink"]


def test_how_many_were_found_is_said_to_who_does_not_see_it(page: Any) -> None:
    region = page.locator("#found[role=status]")
    assert region.inner_text() == ""
    page.locator("#q").fill("tinte")
    page.locator("#found", has_text="1 network of 3").wait_for()
    page.locator("#q").fill("")
    page.locator("#found", has_text="3 networks").wait_for()


def test_what_is_said_stays_as_long_as_it_is_pointed_at(page: Any) -> None:
    page.clock.install()
    page.get_by_role("button", name="Copy tag of ink").click()
    said = page.locator("#said:not(:empty)")
    said.hover()
    page.clock.run_for(60_000)
    assert said.is_visible()
    page.mouse.move(0, 0)
    page.clock.run_for(60_000)
    assert not said.is_visible()


def test_keys_move_between_cards(page: Any) -> None:
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == "lines"
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.textContent") == "ink"
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_the_address_holds_the_whole_state(page: Any) -> None:
    page.select_option("[name=activation]", "relu")
    page.locator(".card").nth(1).wait_for(state="detached")
    address = page.url
    page.goto("/")
    assert len(names(page)) == 3
    page.goto(address)
    assert names(page) == ["lines"]
    page.get_by_role("link", name="Remove the filter relu").click()
    assert len(names(page)) == 3


def test_the_order_that_was_chosen_is_remembered(page: Any) -> None:
    page.select_option("[name=sort]", "size")
    page.wait_for_url("**sort=size**")
    page.goto("/")
    page.wait_for_url("**sort=size**")


def test_a_token_that_another_site_made_up_takes_the_place_of_none(chromium: Any, server: Server) -> None:
    """A link on any page can lead to the gallery, with anything behind its #."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.address)
    with page.expect_response("**/token") as answered:
        page.goto(f"{server.base}/files#token=made-up")
    assert answered.value.status == 403
    assert page.evaluate("[localStorage.getItem('token'), location.hash]") == [server.token, ""]
    page.goto(f"{server.base}/")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("summary", has_text="Tag").click()
    page.fill("#tag-all", "night")
    page.get_by_role("button", name="Add to all").click()
    page.locator("#said:not(:empty)").wait_for()
    assert str(page.text_content("#said")).startswith("Tagged")
    context.close()


def test_the_token_does_not_stay_in_the_address(page: Any, server: Server) -> None:
    assert "token" not in page.url
    assert page.evaluate("localStorage.getItem('token')") == server.token
    assert page.locator("#no-token").is_hidden()


def test_an_empty_library_says_what_to_do_first(page: Any, library: hnetkit.Library) -> None:
    page.wait_for_load_state("networkidle")
    for row in library.networks():
        library.forget(row["name"])
    page.reload()
    assert "hnetkit scan FOLDER" in page.locator("main").inner_text()


@pytest.mark.parametrize(("scheme", "width"), [("light", 380), ("dark", 1280), ("light", 2560)])
def test_pages_fit_and_have_no_serious_fault_of_accessibility(page: Any, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for address in ("/", "/files", NO_PAGE, page.locator(".card .name").first.get_attribute("href")):
        page.goto(address)
        assert faults_of(page) == [], address
