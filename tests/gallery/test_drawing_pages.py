"""The pages of strips and comparisons: over HTTP, and in a real browser."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from support.accessible import faults_of
from support.gallery import Server, running
from support.networks import network_file

import hnetkit
from hnetkit import demo
from hnetkit.cli import run
from hnetkit.gallery.cards import View
from hnetkit.gallery.drawing import DrawingSettings
from hnetkit.gallery.drawing_page import settings_of
from hnetkit.gallery.drawing_queue import DrawingQueue, networks_of
from hnetkit.gallery.worker import Drawer

pytestmark = pytest.mark.skipif(not demo.networks(), reason="the bundled demo model is missing from this checkout")

HOSTILE = "<img src=x onerror=alert(1)>\u202e"
PENDING_MS = 120_000


@pytest.fixture
def library(home: Path, tmp_path: Path) -> Iterator[hnetkit.Library]:
    """The networks of the demo model, and ``ink`` for another one."""
    folder = tmp_path / "networks"
    shutil.copytree(demo.network_folder(), folder)
    network_file(folder, "ink.pt", widths=(320, 768), structure=(1, 0.01, 1))
    with hnetkit.Library() as library:
        library.scan(folder)
        yield library


@pytest.fixture
def digits(library: hnetkit.Library) -> dict[str, str]:
    """Name -> the digits of its content hash."""
    return {row["name"]: row["content_hash"].removeprefix("h1:") for row in library.networks()}


@pytest.fixture
def strip(home: Path, library: hnetkit.Library, digits: dict[str, str]) -> str:
    """The id of a strip of ``outline`` that was drawn."""
    queue = DrawingQueue(home)
    added = queue.add(networks_of(library, [f"h1:{digits['outline']}"]), DrawingSettings(steps=1))
    Drawer(queue).run(idle_s=0)
    return added.id


def test_a_strip_is_the_picture_of_a_network_without_another_and_its_page_has_all_of_it(
    server: Server, strip: str, digits: dict[str, str]
) -> None:
    for address in (
        f"/thumbnail/h1:{digits['outline']}",
        f"/thumbnail/h1:{digits['outline']}?size=large",
        f"/drawing/{strip}/sheet",
        f"/drawing/{strip}/cell/0/2",
    ):
        answer = server.get(address)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp"), address
        Image.open(io.BytesIO(answer.content)).load()
    assert server.get(f"/thumbnail/h1:{digits['dots']}").headers["content-type"] == "image/svg+xml"
    page = server.get("/drawing").text
    for said in ("a red circle", "outline at strength 0.5", "hnetkit-demo", "seed 1", "hnetkit grid --prompt", "drawn"):
        assert said in page
    assert "Strip<span" in server.get("/").text
    for address in (f"/drawing/{strip}/cell/0/3", f"/drawing/{strip}/cell/0/0?size=huge", "/drawing/../sheet"):
        assert server.get(address).status_code == 404


def test_what_waits_can_be_stopped_gone_on_with_and_removed(server: Server, digits: dict[str, str]) -> None:
    both = f"{digits['outline']}.{digits['dots']}"
    wanted = {
        "networks": both,
        "prompt": "a star",
        "strengths": "0, 1",
        "steps": "400",
        "size": "64",
        "sampler": "ddim",
    }
    added = server.change("/drawing/add", wanted).json()
    (one,) = added["drawings"]
    assert added["said"] == "A comparison of 2 networks waits to be drawn"
    assert added["command"].startswith(
        "hnetkit grid --prompt 'a star' --seed 1 --strengths 0,1 --steps 400 --sampler DDIM"
    )
    assert server.change("/drawing/add", wanted).json() == {"said": "The same is there already", "drawings": [one]}
    assert server.change("/drawing/add", {"networks": digits["ink"]}).status_code == 200
    assert server.change(f"/drawing/{one['id']}/again", {}).status_code == 400
    assert server.change(f"/drawing/{one['id']}/stop", {}).json()["said"] == "Stopped"
    state = server.get(f"/drawing/state?as=item&id={one['id']}&id=none").json()["drawings"]
    assert list(state) == [one["id"]]
    assert not state[one["id"]]["pending"]
    assert "Go on" in state[one["id"]]["html"]
    assert server.change(f"/drawing/{one['id']}/again", {}).status_code == 200
    assert server.change("/drawing/stop-all", {}).json()["reload"]
    assert server.change(f"/drawing/{one['id']}/remove", {}).json()["removed"] == one["id"]
    assert server.change("/drawing/remove-ended", {}).status_code == 200
    assert "Nothing was drawn yet" in server.get("/drawing").text
    assert server.change(f"/drawing/{one['id']}/remove", {}).status_code == 404


def test_strips_are_added_for_all_that_a_filter_shows_but_those_that_have_one_and_those_that_no_model_fits(
    server: Server, strip: str, home: Path
) -> None:
    answer = server.change("/drawing/add-all", {"view": "?"}).json()
    assert answer["said"] == "2 strips to draw; 1 has one already; 1 for a model, and none is set"
    assert len(DrawingQueue(home).drawings()) == 3
    answer = server.change("/drawing/add-all", {"view": "?q=ink"})
    assert (answer.status_code, answer.json()["hint"]) == (400, "hnetkit config model FOLDER")
    server.change("/drawing/stop-all", {})


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("add", {}),
        ("add", []),
        ("add", {"networks": "../.."}),
        ("add", {"networks": 5}),
        ("add", {"networks": "0" * 64}),
        ("add", {"networks": "NAME", "seed": "x"}),
        ("add", {"networks": "NAME", "size": "huge"}),
        ("add", {"networks": "NAME", "strengths": "one"}),
        ("add", {"networks": "NAME", "model": "/etc/passwd"}),
        ("add-all", {"view": ["?"]}),
        ("stop-all", {"id": "x"}),
        ("../../x/stop", {}),
        ("x/explode", {}),
    ],
)
def test_what_cannot_be_drawn_is_said_and_nothing_is_added(
    server: Server, digits: dict[str, str], home: Path, path: str, values: Any
) -> None:
    if isinstance(values, dict) and values.get("networks") == "NAME":
        values = values | {"networks": digits["outline"]}
    answer = server.change(f"/drawing/{path}", values)
    assert answer.status_code in (400, 404, 405)
    assert answer.json()["error"] if answer.status_code != 405 else True
    assert DrawingQueue(home).drawings() == []
    assert (
        server.change("/drawing/add", {"networks": digits["outline"]}, Origin="http://evil.example").status_code == 403
    )
    assert DrawingQueue(home).drawings() == []


def test_a_disk_that_takes_nothing_is_a_sentence_and_no_trace_of_the_code(
    server: Server, digits: dict[str, str], home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (home / "drawings").touch()  # no folder can be made there
    answer = server.change("/drawing/add", {"networks": next(iter(digits.values()))})
    assert answer.status_code == 500
    assert str(home / "drawings") in answer.json()["error"]
    assert "Traceback" not in capfd.readouterr().err


def test_texts_of_strangers_are_shown_as_texts(server: Server, library: hnetkit.Library, home: Path) -> None:
    queue = DrawingQueue(home)
    (named,) = networks_of(library, [library.record("ink")["content_hash"]])
    hostile = type(named)(named.content_hash, HOSTILE)
    drawing = queue.add([hostile], DrawingSettings(prompt=HOSTILE, negative_prompt=HOSTILE))
    queue.stop(drawing.id)
    (drawing.folder / "state.json").write_text("{")
    state = server.get(f"/drawing/state?as=item&id={drawing.id}").json()["drawings"][drawing.id]
    assert "\u202e" not in state["said"]
    for page in (server.get("/drawing").text, state["html"]):
        assert "&lt;img src=x" in page
        assert "<img src=x" not in page
        assert "\u202e" not in re.sub(r'data-copy="[^"]*"', "", page)  # what is copied is exact, and not shown
    chosen = named.content_hash.removeprefix("h1:")
    assert "<img src=x" not in server.get(f"/compare?chosen={chosen}&like={drawing.id}").text
    for odd in ("?chosen=x", "?chosen=" + "0" * 64, f"?chosen={chosen}&like=../..", "?like=x"):
        assert server.get(f"/compare{odd}").status_code == 200


def test_the_chosen_networks_are_a_part_of_the_address() -> None:
    one, two = (f"h1:{digit * 64}" for digit in "ab")
    view = View.of({"q": "ink", "chosen": View().toggled(one)})
    both = View.of({"chosen": view.toggled(two)})
    assert both.chosen_contents == [one, two]
    assert View.of({"chosen": both.toggled(one)}).chosen_contents == [two]
    assert "q=ink" in view.address()
    assert "chosen=aaaa" in view.address()
    for odd in ("x", "a" * 63, ".".join("a" * 64 for _ in range(7)), f"{'a' * 64}/"):
        assert View.of({"chosen": odd}).chosen_contents == []


def test_an_empty_field_takes_the_default() -> None:
    fields = ("prompt", "negative_prompt", "seed", "strengths", "steps", "sampler", "size")
    assert settings_of({}) == settings_of(dict.fromkeys(fields, " ")) == DrawingSettings()
    given = settings_of({"strengths": "-1 0,.5", "size": "64X128", "seed": "0", "sampler": "euler A"})
    assert (given.strengths, given.width, given.height, given.seed) == ((-1, 0, 0.5), 64, 128, 0)
    assert given.sampler == "Euler a"


def test_the_strip_of_a_network_appears_without_reloading_and_goes_on_after_a_kill(page: Any, server: Server) -> None:
    page.evaluate("window.isSamePage = true")
    page.get_by_role("button", name="Draw a strip of outline").press("Enter")
    card = page.locator(".card", has_text="outline")
    card.locator("[data-pending]").wait_for()
    picture = card.locator("img[src*='drawn=']")
    picture.wait_for(timeout=PENDING_MS)
    assert picture.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 384
    assert "Strip of outline: drawn" in page.locator("#said").inner_text()
    assert page.evaluate("window.isSamePage")

    page.get_by_role("link", name="dots", exact=True).click()
    page.get_by_role("button", name="Draw a strip").click()
    page.locator(".strip img").nth(2).wait_for(timeout=PENDING_MS)
    page.get_by_role("link", name="← Library").click()

    page.get_by_role("link", name="Strip of outline").click()
    page.evaluate("window.isSamePage = true")
    page.get_by_label("Strengths").fill("0, 0.2, 0.4, 0.6, 0.8")
    page.get_by_label("Steps").fill("20")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#drawings > li[data-pending]").wait_for()  # above the strip that is there
    first = page.locator("#drawings > li").first
    first.locator(".cells img").first.wait_for(timeout=PENDING_MS)
    for process in psutil.Process(server.process.pid).children():
        process.kill()
    assert first.locator(".absent").count() > 0
    first.get_by_text("drawn", exact=True).wait_for(timeout=PENDING_MS)
    assert first.locator(".cells img").count() == 5
    assert page.evaluate("window.isSamePage")


def test_networks_are_chosen_on_cards_by_keys_and_compared(page: Any, server: Server, home: Path) -> None:
    for name in ("outline", "dots"):
        page.get_by_role("link", name=f"Compare {name}").press("Enter")
        page.get_by_role("link", name=f"Chosen ✓ {name}").wait_for()
        assert name in page.evaluate("document.activeElement.textContent")  # the place is kept
    page.reload()
    page.get_by_role("link", name="Compare 2 networks").click()
    assert page.locator(".chosen li").count() == 2
    page.get_by_label("Prompt", exact=True).fill("a black star")
    page.get_by_label("Steps").fill("999")
    page.get_by_role("button", name="Draw", exact=True).click()
    item = page.locator("#drawings > li").first
    item.get_by_role("button", name="Stop").wait_for()
    item.get_by_role("button", name="Stop").click()
    item.get_by_role("button", name="Go on").wait_for()
    (drawing,) = DrawingQueue(home).drawings()
    assert (drawing.state, drawing.prompt, len(drawing.networks)) == ("stopped", "a black star", 2)
    page.goto("/drawing")
    page.get_by_role("button", name="Remove the comparison").click()
    item.wait_for(state="detached")
    assert DrawingQueue(home).drawings() == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 380), ("dark", 1280)])
def test_pages_of_drawings_fit_and_have_no_serious_fault_of_accessibility(
    page: Any, strip: str, digits: dict[str, str], scheme: str, width: int
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    chosen = f"{digits['outline']}.{digits['ink']}"
    for address in (
        "/drawing",
        f"/compare?chosen={chosen}",
        f"/compare?chosen={digits['outline']}",
        f"/?chosen={chosen}",
    ):
        page.goto(address)
        assert faults_of(page) == [], address


@pytest.fixture
def outputs(library: hnetkit.Library, tmp_path: Path) -> Path:
    """A folder with a picture of ``outline``, and one that says nothing of itself."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    prompt = "a large red star <hypernet:outline:0.7>"
    assert run(["generate", prompt, "--steps=2", "--seed=9", "--out", str(folder / "star.png")]) == 0
    Image.new("RGB", (64, 64)).save(folder / "plain.png")
    os.utime(folder / "plain.png", (1, 1))
    return folder


def test_a_picture_is_drawn_again_by_a_click_and_appears_without_reloading(
    chromium: Any, outputs: Path, home: Path, digits: dict[str, str]
) -> None:
    with running("--pictures", str(outputs)) as server:
        page = chromium.new_page(base_url=server.base)
        page.goto(server.address)
        page.goto("/pictures")
        page.locator("a.picture").first.click()
        page.get_by_role("button", name="Draw it again").wait_for()
        page.evaluate("window.isSamePage = true")
        page.get_by_role("button", name="Draw it again").click()
        picture = page.locator("#drawings > li .cells img")
        picture.wait_for(timeout=PENDING_MS)
        assert picture.get_attribute("alt") == "star.png, drawn again"
        assert page.evaluate("window.isSamePage")
        (again,) = DrawingQueue(home).drawings()
        assert Image.open(again.sheet).tobytes() == Image.open(outputs / "star.png").tobytes()
        command = page.locator("#drawings > li code").inner_text()
        assert command == f"hnetkit generate --from {outputs / 'star.png'} --model demo --out picture.png"
        assert faults_of(page) == []
        page.goto("/drawing")
        page.get_by_role("button", name="Remove the picture of star.png").click()
        page.locator("#drawings > li").wait_for(state="detached")
        page.close()

        seen = re.findall('<a class="picture" href="/picture/([0-9a-f]{24})', server.get("/pictures").text)
        assert "Draw it again" not in server.get(f"/picture/{seen[1]}").text
        answer = server.change("/drawing/add-picture", {"picture": seen[1]})
        assert (answer.status_code, answer.json()["error"]) == (400, "the picture carries no settings")
        assert server.change("/drawing/add-picture", {"picture": "0" * 24}).status_code == 404
        assert DrawingQueue(home).drawings() == []
