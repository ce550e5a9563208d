"""The pages of looking back: what they send, and how they are in a browser."""

from __future__ import annotations

import hashlib
import html
import os
import re
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image
from support.accessible import faults_of
from support.gallery import Server, running
from support.networks import network_file

import hnetkit
from hnetkit.cli import run
from hnetkit.gallery.picture_pages import PictureView
from hnetkit.image_text import write_image
from hnetkit.prompts import infotext
from hnetkit.prompts.tags import split_tags

SETTINGS = {"Steps": 20, "Sampler": "Euler a", "CFG scale": 7, "Seed": 42, "Size": "512x512"}
HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)> "quoted" \u202e javascript:alert(3)'


def draw(path: Path, prompt: str, age: int = 0, hashes: dict[str, str] | None = None) -> Path:
    text = infotext.write(prompt, "blurry", SETTINGS, hashes)
    write_image(path, Image.new("RGB", (600, 400), "red"), text)
    os.utime(path, (1_700_000_000 - age,) * 2)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network ``ink``; pictures with it by its hash, by its name, with one that is not here, and without settings."""
    folder = tmp_path_factory.mktemp("looking-back")
    for name in ("networks", "outputs"):
        (folder / name).mkdir()
    ink, pictures = network_file(folder / "networks", "ink.pt"), folder / "outputs"
    digits = hashlib.sha256(ink.read_bytes()).hexdigest()[:10]
    draw(pictures / "a.png", "a cat <hypernet:old:0.5>", 0, {"hypernet:old": digits})
    draw(pictures / "b.jpg", "a dog <hypernet:ink:1>", 1)
    draw(pictures / "c.webp", "a fox <hypernet:far:1>", 2)
    Image.new("RGB", (40, 40)).save(pictures / "d.png")
    os.utime(pictures / "d.png", (1, 1))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """One for all: what a test changes in the pictures, it takes back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HNETKIT_HOME", str(folder / "home"))
        with hnetkit.Library() as library:
            library.scan(folder / "networks")
        with running("--pictures", str(folder / "outputs")) as server:
            yield server


@pytest.fixture(scope="module")
def ink(folder: Path) -> str:
    """The content hash of the network."""
    return hnetkit.load(folder / "networks" / "ink.pt").content_hash


@pytest.fixture
def pictures(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder of pictures, which is afterwards as it was."""
    shutil.copytree(folder / "outputs", tmp_path / "kept")
    yield folder / "outputs"
    shutil.rmtree(folder / "outputs")
    shutil.copytree(tmp_path / "kept", folder / "outputs")


def ids(server: Server, address: str = "/pictures") -> list[str]:
    parts = server.get(address).text.split('<a class="picture" href="/picture/')[1:]
    return [part[:24] for part in parts]


def test_the_pictures_are_shown_newest_first_and_filtered(server: Server, ink: str) -> None:
    text = server.get("/pictures").text
    assert [text.index(name) for name in ("a.png", "b.jpg", "c.webp", "d.png")] == sorted(
        text.index(name) for name in ("a.png", "b.jpg", "c.webp", "d.png")
    )
    assert "by name only" in text
    assert "not in the library" in text
    assert "the picture carries no settings" in text
    assert len(ids(server, f"/pictures?network={ink}")) == 2
    assert len(ids(server, "/pictures?which=known")) == len(ids(server, "/pictures?which=unknown")) == 2
    assert len(ids(server, "/pictures?which=other&page=x&network=")) == 4
    assert ids(server, f"/network/{ink}") == ids(server, f"/pictures?network={ink}")


def test_a_picture_leaves_as_we_write_it(server: Server) -> None:
    id = ids(server)[0]
    for size, width in (("small", 384), ("large", 600)):
        answer = server.get(f"/picture/{id}/image?size={size}")
        assert answer.headers["Content-Type"] == "image/webp"
        assert b"hypernet" not in answer.content
        assert Image.open(BytesIO(answer.content)).width == width
    assert server.get(f"/picture/{id}/image?size=huge").status_code == 404


def test_a_picture_tells_its_settings_and_its_networks(server: Server, ink: str, folder: Path) -> None:
    text = server.get(f"/picture/{ids(server)[0]}").text
    assert f'href="/network/{quote(ink)}"' in text
    for part in ("a cat &lt;hypernet:old:0.5&gt;", "the picture calls it", "Euler a", "512x512", "blurry"):
        assert part in text
    assert f"hnetkit generate --from {folder / 'outputs' / 'a.png'}" in text
    assert "hnetkit browse far" in server.get(f"/picture/{ids(server)[2]}").text
    assert "the picture carries no settings" in server.get(f"/picture/{ids(server)[3]}").text


def test_the_settings_of_a_picture_are_those_of_a_new_strip_of_its_network(server: Server, ink: str) -> None:
    first, *_, without = ids(server)
    address = f"/compare?chosen={ink.removeprefix('h1:')}&amp;picture={first}"
    assert f'href="{address}"' in server.get(f"/picture/{first}").text
    text = server.get(address.replace("&amp;", "&")).text
    for part in (
        "\na cat</textarea>",
        "\nblurry</textarea>",
        'name="strengths" value="0, 0.5"',
        'name="seed" value="42"',
        'name="size" value="512x512"',
        "<option selected>Euler a</option>",
    ):
        assert part in text
    assert "/compare" not in server.get(f"/picture/{without}").text
    assert 'name="seed" value="1"' in server.get(f"/compare?chosen={ink.removeprefix('h1:')}&picture=0").text


def test_what_a_strip_has_not_of_a_picture_is_said(server: Server, pictures: Path, ink: str) -> None:
    """Its seed alone is not its noise: pictures of A1111 have that of a GPU."""
    said = "Not taken over is CFG scale 7, the noise of an NVIDIA GPU: the pictures will differ from it."
    assert said in server.get(f"/compare?chosen={ink.removeprefix('h1:')}&picture={ids(server)[0]}").text
    more = {"Clip skip": 2, "ENSD": 31337, "RNG": "CPU", "Variation seed": 3, "Variation seed strength": 0.2}
    text = infotext.write("a cow <hypernet:ink:1:end=0.5>", "", {**SETTINGS, **more, "Hires upscale": 2})
    write_image(pictures / "new.png", Image.new("RGB", (60, 40)), text)
    os.utime(pictures / "new.png", (1_800_000_000,) * 2)
    text = server.get(f"/compare?chosen={ink.removeprefix('h1:')}&picture={ids(server)[0]}").text
    lost = "CFG scale 7, clip skip 2, what its tags limit networks to, ENSD, variation noise, its second pass"
    assert f"Not taken over is {lost}:" in text
    more = {"Sampler": "DPM adaptive", "Model": "anime", "Model hash": "925997e9", "VAE": "kl.pt", "Tiling": "True"}
    write_image(
        pictures / "new.png", Image.new("RGB", (60, 40)), infotext.write("a cow", "", SETTINGS | more), overwrite=True
    )
    os.utime(pictures / "new.png", (1_800_000_001,) * 2)
    text = server.get(f"/compare?chosen={ink.removeprefix('h1:')}&picture={ids(server)[0]}").text
    lost = "CFG scale 7, the noise of an NVIDIA GPU, the model anime [925997e9], the VAE kl.pt, "
    assert f"Not taken over is {lost}Sampler DPM adaptive, Tiling:" in text
    own = {**SETTINGS, "Model": hnetkit.demo.MODEL_NAME, "RNG": "CPU"}
    write_image(pictures / "new.png", Image.new("RGB", (60, 40)), infotext.write("a cow", "", own), overwrite=True)
    os.utime(pictures / "new.png", (1_800_000_002,) * 2)
    text = server.get(f"/compare?chosen={ink.removeprefix('h1:')}&picture={ids(server)[0]}").text
    assert "Not taken over is CFG scale 7:" in text


def test_no_network_is_drawn_with_that_a_tag_around_a_tag_hides(server: Server, pictures: Path, ink: str) -> None:
    draw(pictures / "hiding.png", "a cat <hyper<hypernet:ink:1>net:wash:1><lo<hypernet:ink:1>ra:other:1>", -5)
    text = server.get(f"/compare?chosen={ink.removeprefix('h1:')}&picture={ids(server)[0]}").text
    (prompt,) = re.findall(r'<textarea name="prompt"[^>]*>([^<]*)</textarea>', text)
    tagged = split_tags(html.unescape(prompt))
    assert (tagged.tags, tagged.loras) == ((), ())


def test_settings_that_no_strip_can_have_are_said(server: Server, pictures: Path, ink: str) -> None:
    draw(pictures / "long.png", f"{'cat ' * 2000}<hypernet:ink:1>", -5)
    text = server.get(f"/compare?chosen={ink.removeprefix('h1:')}&picture={ids(server)[0]}").text
    assert "cannot be taken over: a prompt is a text of at most 4,000 characters" in text
    assert 'name="seed" value="1"' in text


def test_new_and_gone_pictures_are_seen_at_the_next_look(server: Server, pictures: Path) -> None:
    before = ids(server)
    (pictures / "a.png").unlink()
    draw(pictures / "new.png", "a cow", -5)
    after = ids(server)
    assert after[1:] == before[1:]
    assert after[0] not in before
    assert server.get(f"/picture/{before[0]}").status_code == 404
    assert server.get("/pictures/progress").json() == {"running": False, "done": 1, "of": 1, "pictures": 4}


def test_no_address_opens_another_file(server: Server, pictures: Path, tmp_path: Path) -> None:
    secret = draw(tmp_path / "secret.png", "a secret")
    (pictures / "link.png").symlink_to(secret)
    assert len(ids(server)) == 4
    for id in ("%2e%2e%2fsecret.png", "..%2F..%2Fsecret.png", str(secret).replace("/", "%2F"), "0" * 24, "a.png"):
        for address in (f"/picture/{id}", f"/picture/{id}/image"):
            answer = server.get(address)
            assert answer.status_code == 404, address
            assert "a secret" not in answer.text


def test_hostile_texts_and_names_are_shown_as_text(server: Server, pictures: Path) -> None:
    draw(pictures / "<b>bold<b>.png", f"{HOSTILE} <hypernet:{HOSTILE.replace('>', '').replace(':', '')}:1>", -5)
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    for address in ("/pictures", f"/picture/{ids(server)[0]}", f"/picture/{ids(server)[1]}"):
        answer = server.get(address)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
        assert "<img src=x" not in answer.text
        assert "<b>" not in answer.text
    broken = server.get(f"/picture/{ids(server)[-1]}/image")
    assert broken.status_code == 200
    assert all(server.get(f"/picture/{id}/image").status_code == 200 for id in ids(server))


def test_without_a_folder_or_without_pictures_the_page_says_what_to_do(home: Path, tmp_path: Path) -> None:
    with running() as server:
        assert "hnetkit gallery --pictures FOLDER" in server.get("/pictures").text
    (tmp_path / "empty").mkdir()
    with running("--pictures", str(tmp_path / "empty")) as server:
        assert "There is no PNG, JPEG or WebP picture in" in server.get("/pictures").text
        draw(tmp_path / "empty" / "a.png", "a cat <hypernet:far:1>")
        text = server.get("/pictures").text
        assert "No picture here says that it was drawn with a network of the library." in text


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gallery", "--no-browser", "--port", "0", "--pictures", str(tmp_path / "nowhere")]) == 4
    assert "no such folder" in capsys.readouterr().err


def test_a_view_is_what_its_address_says() -> None:
    for view in (PictureView(), PictureView("h1:ab", "unknown", 3)):
        pairs = dict(
            pair.split("=") for pair in view.address(page=view.page)[1:].replace("%3A", ":").split("&") if pair
        )
        assert PictureView.of(pairs) == view
    assert PictureView.of({"which": "x", "page": "-1"}) == PictureView()


# --- in a browser


def test_from_a_picture_to_its_settings_and_its_network_by_keys(page: Any, folder: Path) -> None:
    page.goto("/pictures")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == "a.png"
    page.keyboard.press("c")
    page.locator("#said:not(:empty)").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == f"hnetkit generate --from {folder / 'outputs' / 'a.png'}"
    page.keyboard.press("Enter")
    page.wait_for_url("**/picture/**")
    page.get_by_role("button", name="Copy settings").press("Enter")
    page.locator("#said:not(:empty)").wait_for()
    copied = infotext.parse(page.evaluate("navigator.clipboard.readText()"))
    assert (copied.prompt, copied.parameters["Seed"]) == ("a cat <hypernet:old:0.5>", "42")
    page.get_by_role("link", name="ink", exact=True).click()
    page.wait_for_url("**/network/**")
    assert page.locator(".card .name").all_inner_texts() == ["a.png", "b.jpg"]
    page.get_by_role("link", name="2 pictures").click()
    page.wait_for_url("**/pictures?network=**")
    page.get_by_label("Drawn with").select_option("")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(lambda url: "network=&" in url)
    assert page.locator(".card").count() == 4


def test_what_is_copied_holds_nothing_that_a_terminal_obeys(page: Any, server: Server, pictures: Path) -> None:
    draw(pictures / "x\x03\ntouch ran\x0f.png", "a cat\x03\x1b[201~\ntouch ran\x0f <hypernet:ink:1>", -5)
    page.goto(f"/picture/{ids(server)[0]}")
    page.click("text=Copy settings")
    page.locator("#said", has_text=re.compile("^Copied")).wait_for(state="attached")
    settings = page.evaluate("navigator.clipboard.readText()")
    assert settings.startswith("a cat[201~\ntouch ran <hypernet:ink:1>\n")
    page.click("text=Copy command that draws it again")
    page.locator("#said", has_text="--from").wait_for(state="attached")
    command = page.evaluate("navigator.clipboard.readText()")
    assert command == f"hnetkit generate --from $'{pictures}/x\\003\\012touch ran\\017.png'"


def test_a_long_look_is_followed_and_its_pictures_appear(page: Any) -> None:
    page.route("**/pictures/progress", lambda route: route.fulfill(json={"running": False, "pictures": 4}))
    page.goto("/pictures")
    page.evaluate(
        """() => {
        const bar = document.createElement("p");
        bar.id = "looking"; bar.dataset.progress = "/pictures/progress";
        bar.append(document.createElement("progress"));
        document.querySelector("main").append(bar);
        followLook(bar);
    }"""
    )
    page.get_by_text("4 pictures are read.").wait_for()
    assert page.locator("#looking").is_hidden()


@pytest.mark.parametrize(("scheme", "width"), [("light", 380), ("dark", 1280), ("light", 2560)])
def test_the_pages_of_pictures_fit_and_have_no_serious_fault_of_accessibility(
    page: Any, scheme: str, width: int
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto("/pictures")
    addresses = [page.locator(".card .name").nth(place).get_attribute("href") for place in range(4)]
    for address in ("/pictures", *addresses):
        page.goto(address)
        assert faults_of(page) == [], address
