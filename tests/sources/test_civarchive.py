"""CivArchive's API: what its answers say of a file, in all the shapes in which they come, and what they may not do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.fake_sites import Sites, World
from support.fake_sites.messages import Ledger, Request, Response, json_response, text_response
from support.fake_sites.server import Origin as Server
from support.fast_clock import FastClock

from hnetkit.errors import Gone, NetworkFailed, RateLimited, RemoteError, UsageError
from hnetkit.sources.civarchive import CIVARCHIVE_API, MOST_MIRRORS, CivArchive, civarchive_base

SHA = "ab" * 32
OTHER = "cd" * 32
MIRROR = "https://example.org/ink.pt"


class Archive:
    """An archive that gives one answer to everything."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.answer = json_response({})
        self.server = Server("civarchive", lambda request: self.answer, self.ledger)
        self.client = CivArchive(FastClock(2000), f"{self.server.url}/api")

    def says(self, content: Any, status: int = 200) -> CivArchive:
        self.answer = json_response(content, status)
        return self.client


@pytest.fixture(scope="module")
def archive() -> Iterator[Archive]:
    archive = Archive()
    archive.server.start()
    yield archive
    archive.server.close()


def file(**changes: Any) -> dict[str, Any]:
    mirror = {"filename": "ink.pt", "url": MIRROR, "source": "huggingface", "deletedAt": None}
    return {"id": 1, "name": "ink.pt", "type": "Model", "sizeKB": 2.5, "sha256": SHA, "mirrors": [mirror], **changes}


def version(*files: Any, **changes: Any) -> dict[str, Any]:
    about = {"id": 11, "modelId": 7, "name": "v1", "files": list(files), **changes}
    return {"id": 7, "name": "Ink", "type": "Hypernetwork", "version": about, "versions": [{"id": 11, "name": "v1"}]}


@pytest.mark.parametrize(
    "content",
    [
        {"data": version(file())},
        version(file()),
        {"data": {"model": version(file())}},
        {"data": {**version(), "files": [file()]}},
        {"data": version(file(sha256=SHA.upper()))},
        {"data": version(file(sha256=None, hashes={"SHA256": SHA.upper()}))},
        {"data": version(file(name=None))},
        {"data": version(file(sha256=OTHER, mirrors=[]), file())},
        {"data": version(file(mirrors=None, downloadUrl=MIRROR))},
        {"data": {"files": [file(sha256=None, model_id=7, model_version_id=11)]}},
    ],
)
def test_a_file_is_found_in_every_shape_of_answer(archive: Archive, content: Any) -> None:
    found = archive.says(content).file(SHA)
    assert [mirror.url for mirror in found.mirrors] == [MIRROR]
    assert (found.sha256, found.name, found.size_bytes) == (SHA, "ink.pt", 2560)


def test_an_answer_that_names_only_the_version_leads_to_its_record() -> None:
    with Sites(World.make(2, plain=True)) as sites:
        _, _, listed = next(sites.world.files())
        sha256 = sites.civarchive.keep(listed["id"], "right")
        sites.civarchive.files_only = True
        found = CivArchive(FastClock(), sites.civarchive_url).file(sha256)
        assert found.mirrors[0].url == sites.civarchive.mirror("right", sha256)
        assert [request.path.split("/")[2] for request in sites.requests] == ["sha256", "models"]


def test_what_is_deleted_comes_last_and_what_is_closed_before_it(archive: Archive) -> None:
    mirrors = [
        {"url": "https://a.example/x", "deletedAt": "2025-01-01T00:00:00Z"},
        {"url": "https://b.example/x", "is_gated": True},
        {"url": "https://c.example/x", "deletedAt": None},
        {"url": "https://c.example/x"},
    ]
    found = archive.says(version(file(mirrors=mirrors))).file(SHA)
    assert [(m.url[8], m.is_deleted, m.is_closed) for m in found.mirrors] == [
        ("c", False, False),
        ("b", False, True),
        ("a", True, False),
    ]


@pytest.mark.parametrize(
    "url",
    [
        *(None, 5, "", "ink.pt", "/download/1", "file:///etc/passwd", "ftp://a.example/x", "https://"),
        *("https://user:word@a.example/x", "https://a.example/\r\nx", "https://a.example/" + "x" * 5000),
        "https://[fe80::1%25a%25b]/x",  # an address for one parser and an error for another
    ],
)
def test_what_is_no_address_is_no_mirror(archive: Archive, url: Any) -> None:
    client = archive.says(version(file(mirrors=[{"url": url}, {"url": MIRROR}, url])))
    assert [mirror.url for mirror in client.file(SHA).mirrors] == [MIRROR]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"data": None},
        {"data": []},
        {"data": {"version": {"files": {"0": 1}}}},
        {"data": version(1, None, "x", [], {})},
        {"data": version(file(sha256=OTHER))},
        {"data": version(file(sha256="zz"))},
        {"data": version(file(sha256=7))},
    ],
)
def test_an_answer_without_the_file_says_that_the_archive_has_none(archive: Archive, content: Any) -> None:
    with pytest.raises(RemoteError):
        archive.says(content).file(SHA)


def test_the_files_and_mirrors_of_an_answer_are_limited(archive: Archive) -> None:
    mirrors = [{"url": f"https://m{number}.example/x"} for number in range(10_000)]
    found = archive.says(version(*(file(mirrors=mirrors) for _ in range(30)))).file(SHA)
    assert len(found.mirrors) <= MOST_MIRRORS


def test_odd_sizes_and_names_are_unknown_ones(archive: Archive) -> None:
    for size in (None, "big", -1, 0.01, float("1e300"), True, 10**40):
        found = archive.says(version(file(sizeKB=size, name=["x"], mirrors=[{"url": MIRROR}]))).file(SHA)
        assert (found.size_bytes, found.name) == (None, None)


def test_another_version_than_was_asked_for_is_refused(archive: Archive) -> None:
    client = archive.says(version(file()))
    assert client.version(7, 11).model == "Ink"
    for model, number in ((8, 11), (7, 12)):
        with pytest.raises(NetworkFailed, match="answered with model 7"):
            client.version(model, number)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, Gone), (410, Gone), (400, NetworkFailed), (401, NetworkFailed), (503, NetworkFailed)]
)
def test_refusals_have_their_meaning(archive: Archive, status: int, kind: type[RemoteError]) -> None:
    with pytest.raises(kind):
        archive.says({"error": "no"}, status).file(SHA)


def test_a_request_to_wait_is_a_rate_limit_and_a_page_for_people_no_answer(archive: Archive) -> None:
    archive.answer = text_response(429, "later", Retry_After="100000")
    with pytest.raises(RateLimited):
        archive.client.file(SHA)
    archive.answer = Response(200, {"Content-Type": "text/html"}, b"<html>down</html>")
    with pytest.raises(NetworkFailed):
        archive.client.file(SHA)


def test_no_token_of_any_site_goes_to_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CIVITAI_TOKEN", "CIVITAI_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "a-secret-token-0123456789")
    heard: list[Request] = []

    def answer(request: Request) -> Response:
        heard.append(request)
        return json_response(version(file()))

    server = Server("civarchive", answer, Ledger())
    server.start()
    try:
        CivArchive(FastClock(), f"{server.url}/api").file(SHA)
    finally:
        server.close()
    assert heard
    assert "a-secret-token" not in json.dumps([dict(request.headers) for request in heard]) + heard[0].target


def test_the_variable_moves_the_archive_or_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "": CIVARCHIVE_API,
        " https://archive.example/api/ ": "https://archive.example/api",
        "http://127.0.0.1:8000": "http://127.0.0.1:8000/api",
        "off": None,
        " OFF ": None,
    }
    for text, base in given.items():
        monkeypatch.setenv("HNETKIT_CIVARCHIVE_URL", text)
        assert civarchive_base() == base
    for text in ("civarchive.com", "http://civarchive.com/api", "https://a:b@civarchive.com", "https://c.com/?key=1"):
        monkeypatch.setenv("HNETKIT_CIVARCHIVE_URL", text)
        with pytest.raises(UsageError, match="HNETKIT_CIVARCHIVE_URL"):
            civarchive_base()
