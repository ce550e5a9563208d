"""What strangers put into files, notes and addresses: shown as text, and nothing but pictures of the library read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from PIL import Image
from support.gallery import Server, running
from support.hostile_images import large_png, postscript
from support.networks import network_file
from support.pictures import save

import hnetkit
from hnetkit.gallery.access import TOKEN_HEADER

MARKUP = '"><img src=x onerror=window.ran=1><script>window.ran=1</script>'
NAMES = [
    "<img src=x onerror=window.ran=1>",
    "'\"><svg onload=window.ran=1>",
    "{{ 7*7 }}{% raw %}",
    "javascript:window.ran=1",
    "\u202egnp.exe",
    "a\u2066b\u2069\u200f",
    "&lt;b&gt;&#0;",
    "line\nbreak\r\x1b[31m",
    "x" * 200,
]
LONG = "<b>word</b> " * 90_000  # about 1 MB


@pytest.fixture
def hostile(home: Path, tmp_path: Path) -> Iterator[hnetkit.Library]:
    """A library in which every text is a stranger's."""
    folder = tmp_path / "networks"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        network_file(folder, f"{name.replace('/', '_')}.pt", widths=(8,), seed=number, sd_checkpoint_name=MARKUP)
    network_file(folder, "told.pt", widths=(8,), seed=50, activation="relu", sd_checkpoint=MARKUP)
    said = {
        "description": LONG,
        "notes": LONG,
        "activation text": MARKUP,
        "negative text": MARKUP,
        "sd version": MARKUP,
    }
    (folder / "told.json").write_text(json.dumps(said))
    info = {"id": 7, "modelId": 3, "name": MARKUP, "trainedWords": [MARKUP], "model": {"name": MARKUP, "type": MARKUP}}
    (folder / "told.civitai.info").write_text(json.dumps(info))
    (folder / "<script>window.ran=1<_script>.pt").write_bytes(b"no network")
    with hnetkit.Library() as library:
        library.scan(folder)
        library.tag("told", MARKUP.replace(",", ""), note=LONG)
        yield library


@pytest.fixture
def server(hostile: hnetkit.Library) -> Iterator[Server]:
    with running() as server:
        yield server


def test_texts_of_strangers_are_text(page: Any, server: Server, hostile: hnetkit.Library) -> None:
    networks = [f"/network/{quote(row['content_hash'])}" for row in hostile.networks()]
    search = (
        f"/?q={quote(MARKUP)}&tag={quote(MARKUP)}&base={quote(MARKUP)}&trained={quote(MARKUP)}&sort={quote(MARKUP)}"
    )
    for address in ("/", "/files", "/?nsfw=1&state=warnings", search, *networks):
        page.goto(address)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("window.ran") is None, address
        assert page.locator("script:not([src]), [onerror], [onload], [href^='javascript:']").count() == 0, address
        text = page.locator("body").inner_text()
        assert not {"\u202e", "\u2066", "\u2069", "\u200f", "\x1b"} & set(text), address
        assert "{{ 7*7 }}" in text or "49" not in page.title()
        assert len(server.get(address).content) < 1_000_000, address
    page.goto("/")
    assert "<img src=x onerror=window.ran=1>" in page.locator(".cards").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_is_said_of_a_strangers_file_turns_no_other_text_around(
    server: Server, hostile: hnetkit.Library, tmp_path: Path
) -> None:
    (row,) = (row for row in hostile.networks() if "gnp.exe" in row["name"])
    place = f"/network/{quote(row['content_hash'])}"
    path = hostile.record(row["content_hash"])["files"][0]["path"]
    done = server.change(f"{place}/validate", {"file": path}).json()
    Path(path).unlink()
    refused = server.change(f"{place}/validate", {"file": path}).json()
    for text in (done["command"], refused["error"]):
        assert "gnp.exe" in text
        assert "\u202e" not in text


SECRET = b"the secret of the home"


def _attempts(home: Path) -> list[str]:
    """Addresses that would read a file that is not ours to show."""
    files = [str(home / "secret.txt"), str(home / "config.json"), "/etc/passwd"]
    up = ["../" * depth for depth in (1, 3, 12)]
    plain = [f"{place}{rise}{file.lstrip('/')}" for place in PLACES for rise in up for file in files[::2]]
    encoded = [path.replace("../", form) for path in plain[:24] for form in ("%2e%2e/", "..%2f", "%252e%252e%252f")]
    odd = [f"{place}{quote(file, safe='')}{end}" for place in PLACES for file in files for end in ("", "%00.png", "?")]
    sizes = [f"/thumbnail/{{content}}?size={quote(file, safe='')}" for file in (*files, "../small", "small/../large")]
    backs = [f"{place}..\\..\\..\\etc\\passwd" for place in PLACES]
    return [*plain, *encoded, *odd, *sizes, *backs, "//etc/passwd", "/static//etc/passwd", f"/?root={files[0]}"]


PLACES = ("/static/", "/thumbnail/", "/network/", "/files/", "/")


def test_no_address_reads_a_file(home: Path, server: Server, hostile: hnetkit.Library) -> None:
    import http.client

    (home / "secret.txt").write_bytes(SECRET)
    (home / "config.json").write_bytes(b'{"model": "%s"}' % SECRET)
    content = hostile.networks()[0]["content_hash"]
    attempts = [attempt.replace("{content}", content) for attempt in _attempts(home)]
    assert len(attempts) >= 50
    for attempt in attempts:
        connection = http.client.HTTPConnection(server.base.removeprefix("http://"), timeout=30)
        connection.putrequest("GET", attempt, skip_accept_encoding=True)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert SECRET not in body, attempt
        assert b"root:" not in body, attempt
        assert answer.status in (200, 307, 400, 404), (attempt, answer.status)


def test_pictures_leave_written_anew_and_small(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "networks"
    folder.mkdir()
    for number, name in enumerate(("good", "text", "script", "vast", "outside", "drawn")):
        network_file(folder, f"{name}.pt", widths=(8,), seed=number)
    picture = save(folder, "good.preview.png", (900, 500), "blue")
    picture.write_bytes(picture.read_bytes() + SECRET)
    (folder / "text.png").write_bytes(b"<html><script>alert(1)</script>")
    (folder / "script.png").write_bytes(postscript())
    (folder / "vast.png").write_bytes(large_png(60_000, 60_000))
    outside = save(tmp_path, "outside.png", (40, 40), "red")
    os.symlink(outside, folder / "outside.png")
    with hnetkit.Library() as library:
        library.scan(folder)
        contents = {row["name"]: row["content_hash"] for row in library.networks()}
    with running() as server:
        good = server.get(f"/thumbnail/{contents['good']}")
        assert good.headers["Content-Type"] == "image/webp"
        assert SECRET not in good.content
        with Image.open(BytesIO(good.content)) as shown:
            assert shown.size == (384, 213)
        large = server.get(f"/thumbnail/{contents['good']}?size=large")
        with Image.open(BytesIO(large.content)) as shown:
            assert shown.size == (900, 500)
        for name, said in (
            ("text", "no picture"),
            ("script", "no picture"),
            ("vast", "no picture"),
            ("drawn", "linear"),
        ):
            answer = server.get(f"/thumbnail/{contents[name]}")
            assert answer.headers["Content-Type"].startswith("image/svg+xml"), name
            assert said in answer.text, name
        assert "outside of the library" in server.get(f"/thumbnail/{contents['outside']}").text
        assert (
            server.get(f"/thumbnail/{contents['good']}", **{"If-None-Match": good.headers["ETag"]}).status_code == 304
        )


FIELDS = {
    "/network/{}/tags": ("add", "remove"),
    "/network/{}/aliases": ("add", "remove"),
    "/network/{}/note": ("note", "before"),
    "/network/{}/strength": ("strength",),
    "/network/{}/words": ("words", "before"),
    "/network/{}/preview": ("file_name", "data"),
    "/network/{}/validate": ("file",),
    "/network/{}/convert": ("file", "to"),
    "/network/{}/reveal": ("file",),
    "/network/{}/link": ("directory", "layout"),
    "/networks/tags": ("view", "which", "tags", "do"),
    "/drawing/add": ("networks", "prompt", "negative_prompt", "seed", "strengths", "steps", "sampler", "size"),
    "/drawing/add-all": ("view",),
    "/drawing/1234567890123456789-comparison-000000/stop": ("do",),
}
BODIES = [
    b"",
    b"[",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"NaN",
    b"9" * 5000,
    b"\xff\xfe",
    b"null",
    b"[]",
    b'"add"',
    b"{}",
]
VALUES: list[Any] = [None, 1, float("nan"), True, [], {}, "\ud800", "a" * 100_001]


def test_no_body_breaks_a_change(server: Server, hostile: hnetkit.Library) -> None:
    content = hostile.record("told")["content_hash"]
    before = hostile.record(content)
    headers = {"Origin": server.base, TOKEN_HEADER: server.token, "Content-Type": "application/json"}
    tried = 0
    for address, fields in FIELDS.items():
        wrong = (json.dumps({field: value}).encode() for field in fields for value in VALUES)
        for body in (*BODIES, *wrong):
            url = server.base + address.format(quote(content))
            answer = requests.post(url, data=body, headers=headers, timeout=60)
            assert 400 <= answer.status_code < 500, (address, body[:80], answer.text)
            assert answer.json()["error"], (address, body[:80])
            tried += 1
    assert tried > 300
    assert hostile.record(content) == before
