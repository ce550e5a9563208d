"""What is installed is what was asked for: never another content, never half of one and half of another."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from support import networks
from support.fake_sites import Sites, World
from support.fake_sites.messages import Request, Response
from support.fetching import EVERYTHING, installed, jobs_of

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import Gone, NetworkFailed, UsageError
from hnetkit.hub import hub_token
from hnetkit.library.scan import scan
from hnetkit.registry import Registry
from hnetkit.sources.install import MOST_BYTES, safe_stem
from hnetkit.sources.maintenance import identify_checkpoints
from hnetkit.sources.session import FetchSession
from hnetkit.sources.sidecar_writer import MOST_MISSED

OpenSession = Callable[..., FetchSession]


def content(site: Sites, number: int) -> tuple[str, bytes]:
    """The sha256 and the bytes of the first file of a model."""
    data = site.world.content(site.world.models[number]["modelVersions"][0]["files"][0]["id"])
    return hashlib.sha256(data).hexdigest(), data


def test_who_asks_by_a_hash_gets_no_other_content(site: Sites, here: FetchSession) -> None:
    asked, _ = content(site, 0)
    other, _ = content(site, 2)

    def replaced(request: Request, response: Response) -> Response:
        if re.fullmatch(r"/api/v1/models/\d+", request.path):
            response.body = response.body.replace(asked.upper().encode(), other.upper().encode())
        return response

    site.alter = replaced
    with pytest.raises(NetworkFailed, match="lists no file of"):
        here.pull(asked)
    assert installed(here) == {}


def test_who_asks_by_a_hash_gets_that_file_of_its_version_alone(open_session: OpenSession) -> None:
    with Sites(World.make(12, plain=True)) as site:
        version = next(v for m in site.world.models for v in m["modelVersions"] if len(v["files"]) > 1)
        sha256 = version["files"][1]["hashes"]["SHA256"].lower()
        session = open_session(site)
        session.pull(sha256)
        assert list(installed(session)) == [sha256]


@pytest.mark.parametrize(
    "form", ["urn:air:sd1:hypernetwork:civitai:{0}@{1}", "https://civitai.com/models/{0}/x?modelVersionId={1}"]
)
def test_a_version_of_another_model_than_the_address_says_is_refused(
    site: Sites, here: FetchSession, form: str
) -> None:
    shown, hidden = site.world.models[0], site.world.models[2]
    with pytest.raises(UsageError, match=f"belongs to model {hidden['id']}"):
        here.pull(form.format(shown["id"], hidden["modelVersions"][0]["id"]))
    right = form.format(shown["id"], shown["modelVersions"][0]["id"])
    assert [job.state for job in here.pull(right)] == ["done"]


@pytest.mark.parametrize("etag", [None, 'W/"same"'])
def test_a_file_without_a_hash_and_a_firm_mark_is_not_gone_on_with(
    open_session: OpenSession, tmp_path: Path, etag: str | None
) -> None:
    with Sites(World.make(1, plain=True)) as site:
        file = site.world.models[0]["modelVersions"][0]["files"][0]
        (tmp_path / "a.pt").write_bytes(site.world.content(file["id"]))
        hnetkit.save(hnetkit.load(tmp_path / "a.pt"), tmp_path / "a.safetensors")
        first = (tmp_path / "a.safetensors").read_bytes()
        half = len(first) // 2
        second = first[: half - 100] + bytes(byte ^ 1 for byte in first[half - 100 :])
        site.world.contents.put(file["id"], first)
        file["name"] = "a.safetensors"
        kind = {"Content-Type": "application/octet-stream", **({"ETag": etag} if etag else {})}
        asked: list[str | None] = []

        def swapped(request: Request, response: Response) -> Response:
            if request.origin == "api":
                response.body = re.sub(rb'"hashes": \{[^}]*\}', b'"hashes": {}', response.body)
            if request.origin != "storage" or not request.path.startswith("/files"):
                return response
            asked.append(request.headers.get("range"))
            if len(asked) == 1:
                return Response(200, kind, first, cut_after=half)
            if asked[-1] is None:
                return Response(200, kind, second)
            span = f"bytes {half}-{len(second) - 1}/{len(second)}"
            return Response(206, {**kind, "Content-Range": span}, second[half:])

        site.alter = swapped
        session = open_session(site)
        session.sync(EVERYTHING, all_versions=True)
        assert [path.read_bytes() for path in session.folder.glob("*.safetensors")] == [second]
        assert set(asked) == {None}


def test_a_file_that_was_replaced_since_it_was_scanned_is_not_taken_for_its_content(
    site: Sites, here: FetchSession, tmp_path: Path
) -> None:
    sha256, data = content(site, 0)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "ink.pt").write_bytes(data)
    list(scan(here.registry, [mine]))
    os.utime(mine / "ink.pt", (1, 1))
    assert [item.action for item in here.plan(EVERYTHING, all_versions=True).items if item.sha256 == sha256] == ["have"]
    networks.network_file(mine, "ink.pt", seed=5)
    (job,) = here.pull(sha256)
    assert (job.state, job.code) == ("done", None)
    assert installed(here)[sha256].read_bytes() == data


def test_what_lies_there_while_a_zip_is_unpacked_is_no_file_of_the_library(site: Sites, here: FetchSession) -> None:
    sha256, data = content(site, 0)
    unpacking = here.folder / ".hnetkit-0123456789abcdef.unpacked"
    unpacking.mkdir(parents=True)
    (unpacking / "0.pt").write_bytes(data)
    assert list(scan(here.registry, [here.folder])) == []
    here.sync(EVERYTHING, all_versions=True)
    assert sha256 in installed(here)


def test_a_name_of_a_site_costs_no_more_than_its_beginning() -> None:
    started = time.process_time()
    stems = {safe_stem(name, "x") for name in ("a" + "\u0301\u0316" * 500_000, "a" * 1_000_000, "\u4e2d_" * 500_000)}
    assert time.process_time() - started < 5
    assert len(stems) == 3
    assert all(0 < len(stem.encode()) <= MOST_BYTES for stem in stems)


@pytest.mark.parametrize("retry_after", ["600", None])
def test_pictures_that_do_not_come_hold_no_network_back(retry_after: str | None, open_session: OpenSession) -> None:
    with Sites(World.make(12, plain=True)) as site:
        asked: list[str] = []

        def limited(request: Request, response: Response) -> Response:
            if not request.path.startswith("/images"):
                return response
            asked.append(request.path)
            return Response(429 if retry_after else 503, {"Retry-After": retry_after} if retry_after else {})

        site.alter = limited
        session = open_session(site, parallel=1)
        assert {job.state for job in jobs_of(session, session.sync(EVERYTHING, all_versions=True))} == {"done"}
        assert MOST_MISSED <= len(asked) <= 2 * MOST_MISSED
        assert max(session.clock.slept, default=0) < 60  # type: ignore[attr-defined]


def test_a_site_is_told_hashes_alone(site: Sites, here: FetchSession, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    said = ["..", "../../me", "my private note", "x" * 60_000, "a b?token=1", "deadbeef"]
    for number, text in enumerate(said):
        networks.network_file(tmp_path / "mine", f"{number}.pt", seed=number, sd_checkpoint=text)
    list(scan(here.registry, [tmp_path / "mine"]))
    site.clear()
    assert [row["checkpoint"] for row in identify_checkpoints(here.registry, here.civitai)] == ["deadbeef"]
    assert {r.path for r in site.requests} == {"/api/v1/model-versions/by-hash/deadbeef"}


def test_a_page_that_begins_with_a_byte_order_mark_is_read(site: Sites, here: FetchSession) -> None:
    site.alter = lambda request, response: replace(response, body=b"\xef\xbb\xbf" + response.body)
    assert here.plan(EVERYTHING, all_versions=True).to_fetch


def test_a_library_whose_path_is_no_text_is_filled_all_the_same(
    site: Sites, home: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    monkeypatch.setenv("HNETKIT_LIBRARY", os.fsdecode(os.fsencode(home) + b"/lib\xff"))
    assert run(["pull", f"model:{site.world.ids()[0]}"]) == 0
    assert list(Path(os.fsdecode(os.fsencode(home) + b"/lib\xff")).glob("*.pt"))
    assert run(["repair", "--dry-run"]) == 0
    assert b"nothing is missing" in capsysbinary.readouterr().err


def test_a_library_given_by_a_relative_path_is_the_same_from_everywhere(
    site: Sites, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    monkeypatch.setenv("HNETKIT_LIBRARY", "lib")
    monkeypatch.chdir(home)
    assert run(["pull", f"model:{site.world.ids()[0]}", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert Path(row["paths"][0]).is_absolute()
    monkeypatch.chdir(tmp_path)
    assert run(["repair", "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


def test_a_tilde_that_no_shell_read_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HNETKIT_LIBRARY", "~/networks")
    assert run(["path", "library"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'networks'}\n"


@pytest.mark.parametrize("data", ["hf_\u4e2d\u4e2d12345678".encode(), b"hf_abc\x01defghij", b"\xff\xfe\x00\x80" * 9])
def test_a_saved_token_that_can_be_none_is_said_and_not_sent(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    (tmp_path / "token").write_bytes(data)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UsageError, match="characters that no token has") as caught:
        hub_token()
    assert "hf_" not in str(caught.value)


def test_a_token_that_is_to_stay_at_home_is_told_to_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    (tmp_path / "token").write_text("hf_savedsavedsaved")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert hub_token() == "hf_savedsavedsaved"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    assert hub_token() is None


def test_an_export_holds_one_record_of_a_site_at_a_time(home: Path, tmp_path: Path) -> None:
    with Registry(home / "registry.db") as registry, registry.write():
        for id in range(1, 11):
            raw = {"id": id, "name": "m", "odd": [[]] * 100_000}
            registry.catalogue.put_model("civitai", str(id), {"name": "m", "state": "listed"}, raw)
    tracemalloc.start()
    try:
        assert run(["export", str(tmp_path / "all.jsonl"), "-q"]) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 11


@pytest.mark.parametrize("digits", [64, 10])
def test_a_site_that_says_another_hash_when_it_is_asked_again_does_not_change_what_was_asked_for(
    site: Sites, here: FetchSession, open_session: OpenSession, digits: int
) -> None:
    asked, _ = content(site, 0)
    other, data = content(site, 2)
    came: list[str] = []

    def swapped(request: Request, response: Response) -> Response:
        if request.origin == "storage" and request.path.startswith("/files"):
            came.append(request.path)
            return Response(200, {"Content-Type": "application/octet-stream"}, data)
        if came and request.origin == "api":
            response.body = response.body.replace(asked.upper().encode(), other.upper().encode())
        return response

    site.alter = swapped
    (job,) = here.pull(asked[:digits])
    assert (job.state, job.code) == ("failed", "other-content")
    assert f"you asked for {asked[:digits]}" in str(job.reason)
    assert installed(here) == {}
    later = open_session(site)
    (job,) = later.pull(f"model:{site.world.ids()[0]}")
    assert (job.state, list(installed(later))) == ("done", [other]), "who asks for the file gets what it is now"


@pytest.mark.parametrize("hashes", ['{"AutoV3": "%s"}', '{"BLAKE3": "%s", "SHA256": "%s"}', '{"sha-256": "%s"}'])
@pytest.mark.parametrize("digits", [64, 10])
def test_a_hash_that_only_the_site_says_of_a_file_is_held_against_what_came(
    site: Sites, here: FetchSession, hashes: str, digits: int
) -> None:
    asked, true = ("abcdef0123456789" * 4)[:digits], content(site, 2)[0]
    version = site.world.models[2]["modelVersions"][0]
    said = (hashes.replace("%s", asked, 1).replace("%s", true)).encode()

    def pretended(request: Request, response: Response) -> Response:
        if "/by-hash/" in request.path:
            body = {"id": version["id"], "modelId": site.world.models[2]["id"], "files": []}
            return Response(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        if request.origin == "api":
            response.body = re.sub(rb'"hashes": \{[^}]*\}', b'"hashes": ' + said, response.body)
        return response

    site.alter = pretended
    (job,) = here.pull(asked)
    assert (job.state, job.code) == ("failed", "other-content")
    assert installed(here) == {}


def test_a_file_can_be_asked_for_by_its_blake3(site: Sites, here: FetchSession) -> None:
    sha256, data = content(site, 0)
    asked = blake3(data).hexdigest()

    def added(request: Request, response: Response) -> Response:
        if "/by-hash/" in request.path:
            version = site.world.models[0]["modelVersions"][0]["id"]
            body = {"id": version, "modelId": site.world.models[0]["id"], "files": []}
            return Response(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        if request.origin == "api":
            both = f'"SHA256": "{sha256.upper()}", "BLAKE3": "{asked.upper()}"'.encode()
            response.body = response.body.replace(f'"SHA256": "{sha256.upper()}"'.encode(), both)
        return response

    site.alter = added
    assert [job.state for job in here.pull(asked)] == ["done"]
    assert list(installed(here)) == [sha256]


def test_a_hash_beside_what_a_site_lists_is_refused_and_not_passed_over(
    site: Sites, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    for ref in (f"model:{site.world.ids()[0]}", "hf:a/b:x.pt"):
        assert run(["pull", ref, "--sha256", "a" * 64]) == 2
        assert "--sha256 is for plain addresses" in capsys.readouterr().err
    assert site.requests == []


def test_the_address_of_one_file_brings_that_file_alone(open_session: OpenSession) -> None:
    with Sites(World.make(12, plain=True)) as site:
        version = next(v for m in site.world.models for v in m["modelVersions"] if len(v["files"]) > 1)
        file = version["files"][1]
        session = open_session(site)
        session.pull(site.download_url(version["id"], file["id"]))
        assert list(installed(session)) == [file["hashes"]["SHA256"].lower()]
        with pytest.raises(Gone, match="no file with the number 7"):
            session.pull(site.download_url(version["id"], 7))


@pytest.mark.parametrize("etag", ['"e"', 5, ["x"]])
def test_what_lies_in_a_folder_is_not_taken_for_a_file_of_which_nobody_says_the_hash(
    open_session: OpenSession, etag: object
) -> None:
    with Sites(World.make(1, plain=True)) as site:
        file = site.world.models[0]["modelVersions"][0]["files"][0]
        session = open_session(site)
        session.folder.mkdir(parents=True)
        planted = networks.network_file(session.folder, "planted.pt", seed=7)
        key = f"civitai:{file['id']}"
        part = session.folder / f".hnetkit-{hashlib.sha256(key.encode()).hexdigest()[:16]}.part"
        planted.rename(part)
        size = part.stat().st_size
        note = {"key": key, "sha256": None, "host": "127.0.0.1", "etag": etag, "total": size}
        Path(f"{part}.json").write_text(json.dumps(note))

        def agreed(request: Request, response: Response) -> Response:
            if request.origin == "api":
                response.body = re.sub(rb'"hashes": \{[^}]*\}', b'"hashes": {}', response.body)
            if request.origin == "storage" and request.headers.get("range"):
                return Response(416, {"Content-Range": f"bytes */{size}", "ETag": '"e"'}, b"")
            return response

        site.alter = agreed
        assert [job.state for job in session.sync(EVERYTHING, all_versions=True)] == ["done"]
        assert [path.read_bytes() for path in session.folder.glob("*.pt")] == [site.world.content(file["id"])]
