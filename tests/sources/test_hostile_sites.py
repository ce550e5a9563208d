"""What strangers upload, and what a hostile site answers: each fails alone, is named, and is not fetched again."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import hostile_files
from support.fake_sites import Sites, World
from support.fake_sites.messages import Request, Response
from support.fetching import EVERYTHING, installed, jobs_of

from hnetkit.cli import run
from hnetkit.errors import HnetkitError, NetworkFailed, RegistryError
from hnetkit.registry.catalogue import MAX_RECORD
from hnetkit.sources.civitai import Filters
from hnetkit.sources.civitai_models import BadRecord
from hnetkit.sources.download import max_bytes
from hnetkit.sources.plans import enqueue
from hnetkit.sources.session import FetchSession
from hnetkit.sources.sync import check_unlisted, find_updates, plan_sync, store_models

OpenSession = Callable[..., FetchSession]
DEEP = ', "meta": ' + '{"a":[' * 50_000 + "]}" * 50_000 + "}"
Change = Callable[[Request, Response], Response]


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


def damaged(members: dict[str, bytes], method: int = zipfile.ZIP_LZMA) -> bytes:
    """A zip whose last member cannot be unpacked."""
    data = bytearray(zipped(members, method))
    end = data.index(b"PK\1\2")
    data[end - 60 : end - 20] = b"\xff" * 40
    return bytes(data)


def endless(chunk: bytes, **headers: str) -> Response:
    kind = {"Content-Type": "application/octet-stream", **headers}
    return Response(200, kind, chunk, length=False, endless=chunk)


def of_files(answers: dict[int, Callable[[], Response]]) -> Change:
    """Other answers of the storage for some files."""

    def change(request: Request, response: Response) -> Response:
        parts = request.path.split("/")
        made = answers.get(int(parts[2])) if request.origin == "storage" and parts[1] == "files" else None
        return made() if made else response

    return change


def of_records(change: Callable[[str], str]) -> Change:
    """Another text of every page of the list, each record of which begins on a line of its own."""

    def changed(request: Request, response: Response) -> Response:
        if request.origin == "api" and request.path == "/api/v1/models" and response.status == 200:
            page = response.json()
            records = ",\n".join(change(json.dumps(item)) for item in page.pop("items"))
            rest = json.dumps(page)
            response.body = f'{rest[:-1]}, "items": [{records}]}}'.encode()
        return response

    return changed


def both(first: Change, second: Change) -> Change:
    return lambda request, response: second(request, first(request, response))


def test_of_a_hundred_models_ten_hostile_ones_fail_alone_by_name_and_once(
    home: Path, open_session: OpenSession
) -> None:
    with Sites(World.make(100, plain=True)) as sites:
        files = [[f for version in model["modelVersions"] for f in version["files"]] for model in sites.world.models]
        hostile = [(number, its[0]["id"]) for number, its in enumerate(files) if len(its) == 1][:10]
        lzma, bomb, never, packed, wrong, pickle, calls, page = (file for _, file in hostile[:8])
        good = sites.world.content(files[90][0]["id"])
        put = sites.world.contents.put
        put(lzma, damaged({"a.pt": good}))
        put(bomb, zipped({"bomb.pt": b"\0" * 40_000_000}))
        put(pickle, hostile_files.TRICKS["memo_bomb"]())
        put(calls, hostile_files.TRICKS["zip_os_system"]())
        put(page, b"<!DOCTYPE html><html><body>Welcome</body></html>" * 20)
        for number, file in hostile:
            if file in (lzma, bomb, pickle, calls, page):
                files[number][0]["sizeKB"] = None  # the site states what is true of them
            if file == wrong:
                files[number][0]["hashes"]["SHA256"] = "AB" * 32
        bad = {sites.world.models[number]["id"] for number, _ in hostile}
        deep_id, digits_id = (sites.world.models[number]["id"] for number, _ in hostile[8:])

        def odd(record: str) -> str:
            if record.startswith(f'{{"id": {deep_id},'):
                return record[:-1] + DEEP
            if record.startswith(f'{{"id": {digits_id},'):
                return record[:-1] + ', "size": ' + "9" * 5000 + "}"
            return record

        bombed = gzip.compress(b"\0" * 30_000_000)
        plain = {"Content-Type": "application/octet-stream"}
        answers = {
            never: lambda: endless(b"\0" * 65_536),
            packed: lambda: Response(200, {**plain, "Content-Encoding": "gzip"}, bombed),
        }
        sites.alter = both(of_files(answers), of_records(odd))
        session = open_session(sites, sidecars=False)
        plan = plan_sync(session.registry, session.civitai, EVERYTHING)
        assert {record.id for record in plan.failed} == {deep_id, digits_id}
        assert len(plan.models) == 98
        jobs = jobs_of(session, session.sync(EVERYTHING, all_versions=True))
        failed = {job.key: job for job in jobs if job.state != "done"}
        names = {f"civitai:{file}" for file in (lzma, bomb, never, packed, wrong, pickle, calls, page)}
        assert failed.keys() == names
        assert all(job.state == "refused" and job.reason for job in failed.values()), failed
        good_files = {sha256 for model in sites.world.models if model["id"] not in bad for sha256 in hashes_of(model)}
        assert good_files <= set(installed(session))
        assert len({job.remote_file_id for job in jobs if job.state == "done"}) >= 90
        kept = sum(path.stat().st_size for path in (session.folder / ".quarantine").iterdir())
        assert kept < 1_000_000, "of what was too much, nothing is kept"
        assert not list(session.folder.glob(".hnetkit-*"))
        sites.clear()
        assert jobs_of(session, session.sync(EVERYTHING, all_versions=True)) == []
        assert not [r for r in sites.requests if r.origin == "storage"], "what was refused is not fetched again"
        assert run(["sync", "-y", "--nsfw", "--no-sidecars"]) == 1


def hashes_of(model: dict[str, Any]) -> list[str]:
    files = [file for version in model["modelVersions"] for file in version["files"]]
    usable = [file for file in files if file["type"] == "Model" and file["hashes"]]
    return [file["hashes"]["SHA256"].lower() for file in usable]


def test_what_cannot_be_read_is_said_by_the_command_and_kept_in_the_registry(
    site: Sites, here: FetchSession, capsys: pytest.CaptureFixture[str]
) -> None:
    id = site.world.ids()[1]
    site.alter = of_records(lambda r: r[:-1] + DEEP if r.startswith(f'{{"id": {id},') else r)
    assert run(["sync", "-y", "--nsfw", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    (bad,) = [row for row in rows if row["state"] != "done"]
    assert (bad["name"], bad["state"], bad["code"]) == (f"model:{id}", "refused", "record")
    (job,) = here.registry.jobs.of(f"civitai:model:{id}")
    assert (job.state, job.code, job.reason) == ("refused", "record", bad["reason"])
    site.alter = lambda request, response: response
    assert run(["sync", "-y", "--nsfw"]) == 0
    assert here.registry.jobs.get(job.id).state == "done", "the site mended it"


@pytest.mark.parametrize("value", [None, True, 5, -1.5, 1e308, 10**30, "x", "\ud800", [], {}, [[]], [{}], {"a": []}])
def test_any_json_anywhere_in_a_record_leaves_the_others_alone(site: Sites, here: FetchSession, value: object) -> None:
    first = site.world.ids()[0]
    others = set(site.world.ids()[1:])
    template = next(model for model in site.world.models if model["id"] == first)

    def records() -> list[dict[str, Any]]:
        changed = []
        for key in (key for key in template if key != "id"):
            changed.append({**template, key: value})
        for key in (key for key in template["modelVersions"][0] if key != "id"):
            changed.append({**template, "modelVersions": [{**template["modelVersions"][0], key: value}]})
        file = template["modelVersions"][0]["files"][0]
        for key in (key for key in file if key != "id"):
            version = {**template["modelVersions"][0], "files": [{**file, key: value}]}
            changed.append({**template, "modelVersions": [version]})
        return [{**record, "id": 5000 + number} for number, record in enumerate(changed)]

    def more(request: Request, response: Response) -> Response:
        if request.path == "/api/v1/models":
            page = response.json()
            page["items"] = [value, *records(), *page["items"]]
            response.body = json.dumps(page).encode()
        return response

    site.alter = more
    plan = plan_sync(here.registry, here.civitai, EVERYTHING)
    store_models(here.registry, plan.models)
    listed = {model.id for model in plan.models}
    assert others <= listed
    stored = {row["remote_id"] for row in here.registry.catalogue.models()}
    assert {str(id) for id in others} <= stored


def test_updates_names_a_record_that_makes_no_sense_and_shows_the_rest(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING, all_versions=True)
    for id in site.world.ids():
        site.world.add_version(id)
    broken = site.world.ids()[0]
    site.alter = of_records(lambda r: r[:-1] + DEEP if r.startswith(f'{{"id": {broken},') else r)
    failed: list[BadRecord] = []
    found = {update.model.id for update in find_updates(here.registry, here.civitai, failed)}
    assert found == set(site.world.ids()[1:])
    assert [record.id for record in failed] == [broken]


def test_a_model_that_is_asked_about_and_refused_is_one_of_several(site: Sites, here: FetchSession) -> None:
    ids = site.world.ids()

    def refusing(request: Request, response: Response) -> Response:
        if request.path == f"/api/v1/models/{ids[0]}":
            return Response(403, {"Content-Type": "application/json"}, b'{"error": "Forbidden"}')
        if request.path == "/api/v1/models":
            response.body = json.dumps({"items": []}).encode()
        return response

    site.alter = refusing
    failed: list[BadRecord] = []
    asked = dict(check_unlisted(here.registry, here.civitai, here.clock, ["x", *map(str, ids)], failed))
    assert asked.keys() == {str(id) for id in ids[1:]}
    assert [record.id for record in failed] == [None, ids[0]]
    failed.clear()
    (page,) = here.civitai.pages(Filters(ids=tuple(ids)), failed=failed.append)
    assert {model.id for model in page} == set(ids[1:])
    assert [record.id for record in failed] == [ids[0]]


def test_a_defect_met_with_one_file_is_that_files_and_it_is_not_fetched_again(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnetkit.sources import install

    examine, victim = install.examine, hashes_of(site.world.models[0])[0]

    def broken(path: Path, *, whole: bool, sha256: str) -> Any:
        if sha256 == victim:
            raise OverflowError("nobody foresaw this")
        return examine(path, whole=whole, sha256=sha256)

    monkeypatch.setattr(install, "examine", broken)
    jobs = jobs_of(here, here.sync(EVERYTHING, all_versions=True))
    (bad,) = [job for job in jobs if job.state != "done"]
    assert (bad.state, bad.code) == ("refused", "defect")
    assert "OverflowError: nobody foresaw this" in str(bad.reason)
    assert len(list((here.folder / ".quarantine").glob("*.bad"))) == 1
    site.clear()
    assert jobs_of(here, here.sync(EVERYTHING, all_versions=True)) == []
    site.world.replace_file(int(bad.key.partition(":")[2]))
    assert [job.state for job in jobs_of(here, here.sync(EVERYTHING, all_versions=True))] == ["done"], (
        "the site's record of it changed"
    )


def test_a_file_that_cannot_be_repaired_keeps_no_other_from_it(
    site: Sites, here: FetchSession, capsys: pytest.CaptureFixture[str]
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    folder, missing, damaged_file = sorted(installed(here).values())[:3]
    folder.unlink()
    folder.mkdir()
    missing.unlink()
    damaged_file.write_bytes(b"x")
    assert run(["repair", "--json"]) == 1
    rows = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert rows == {str(folder): "failed", missing.name: "done", damaged_file.name: "done"}


def test_a_network_that_cannot_be_examined_is_not_left_in_the_library(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnetkit.sources import install

    examine, victim = install.examine, hashes_of(site.world.models[0])[0]

    def broken(path: Path, *, whole: bool, sha256: str) -> Any:
        if sha256 == victim:
            raise MemoryError
        return examine(path, whole=whole, sha256=sha256)

    monkeypatch.setattr(install, "examine", broken)
    (bad,) = [job for job in jobs_of(here, here.sync(EVERYTHING, all_versions=True)) if job.state != "done"]
    assert (bad.state, bad.code) == ("refused", "out-of-memory")
    assert victim not in installed(here)
    assert victim not in {hashlib.sha256(path.read_bytes()).hexdigest() for path in here.folder.glob("*.pt")}
    (kept,) = (here.folder / ".quarantine").glob("*.bad")
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == victim
    site.clear()
    assert jobs_of(here, here.sync(EVERYTHING, all_versions=True)) == []
    assert not [r for r in site.requests if r.origin == "storage"]


def test_a_file_that_the_site_replaced_by_a_larger_one_meanwhile_is_fetched_once_more(
    site: Sites, here: FetchSession
) -> None:
    file = site.world.models[0]["modelVersions"][0]["files"][0]
    plan = here.plan(EVERYTHING, all_versions=True)
    larger = zipped({"big.pt": site.world.content(file["id"]), "rest.bin": bytes(5_000_000)}, zipfile.ZIP_STORED)
    site.world.contents.put(file["id"], larger)
    file["sizeKB"] = None
    site.world.model(site.world.ids()[0])

    def unstated(request: Request, response: Response) -> Response:
        if request.path.startswith(f"/files/{file['id']}/"):
            response.length = False
            response.headers.pop("Content-Range", None)
        return response

    site.alter = unstated
    store_models(here.registry, plan.models)
    with here.registry.write():
        jobs = [job.id for _, job in enqueue(here.registry, here.folder, plan.items)]
    states = {job.key: job.state for job in here.run(jobs)}
    assert states[f"civitai:{file['id']}"] == "done"
    assert len([r for r in site.requests if r.path.startswith(f"/files/{file['id']}/")]) == 2


def test_a_preview_that_is_a_program_for_printers_is_left_out_and_the_network_stays(
    site: Sites, here: FetchSession
) -> None:
    def printed(request: Request, response: Response) -> Response:
        if request.path.startswith("/images/"):
            response.body = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
            response.headers["Content-Type"] = "image/png"
        return response

    site.alter = printed
    assert {job.state for job in here.sync(EVERYTHING, all_versions=True)} == {"done"}
    assert not list(here.folder.glob("*.preview.*"))


# --- how much comes


def test_a_download_ends_a_little_after_the_size_that_the_site_states(site: Sites, here: FetchSession) -> None:
    file = site.world.models[0]["modelVersions"][0]["files"][0]
    size = round(file["sizeKB"] * 1024)
    site.alter = of_files({file["id"]: lambda: endless(b"\0" * 65_536)})
    (job,) = [
        job for job in jobs_of(here, here.pull(f"model:{site.world.ids()[0]}")) if job.key == f"civitai:{file['id']}"
    ]
    assert (job.state, job.code) == ("refused", "wrong-bytes")
    assert "exceeds" in str(job.reason)
    asked = [r for r in site.requests if r.path.startswith(f"/files/{file['id']}/")]
    assert len(asked) == 1
    assert not (here.folder / ".quarantine").exists()
    assert not list(here.folder.glob(".hnetkit-*"))
    assert max_bytes(size) < 2 * size + (1 << 17)


def test_a_size_that_is_old_on_the_site_does_not_cut_a_file_short(site: Sites, here: FetchSession) -> None:
    file = site.world.models[0]["modelVersions"][0]["files"][0]
    content = site.world.content(file["id"])
    site.world.contents.put(file["id"], content)
    file["sizeKB"] = len(content) / 1024 / 50
    assert {job.state for job in here.pull(f"model:{site.world.ids()[0]}")} == {"done"}


def test_a_file_that_needs_more_room_than_there_is_does_not_keep_others_from_coming(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = site.world.models[0]["modelVersions"][0]["files"][0]
    victim["sizeKB"] = 3e6
    free = shutil.disk_usage(here.folder.parent)._replace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    site.alter = of_files({victim["id"]: lambda: endless(b"\0" * 65_536)})
    jobs = {job.key: job for job in jobs_of(here, here.sync(EVERYTHING, all_versions=True))}
    assert jobs.pop(f"civitai:{victim['id']}").code == "disk-full"
    assert {job.state for job in jobs.values()} == {"done"}


@pytest.mark.parametrize("size", [1e9, 1e300, -5, "x", None])
def test_a_size_that_no_file_has_does_not_keep_it_from_coming(site: Sites, here: FetchSession, size: object) -> None:
    file = site.world.models[0]["modelVersions"][0]["files"][0]
    site.world.sha256(file["id"])
    file["sizeKB"] = size
    assert {job.state for job in here.pull(f"model:{site.world.ids()[0]}")} == {"done"}


def test_without_any_size_a_download_ends_at_what_no_hypernetwork_has(
    here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.download.MAX_FILE", 1 << 20)
    with Sites(World.make(1), repos={"a/b": {"a.pt": b"x"}}) as sites:
        sites.alter = lambda request, response: endless(b"\0" * 65_536)
        (job,) = here.pull(f"{sites.hub_url}/a/b/resolve/main/a.pt", sha256="ab" * 32)
        assert (job.state, job.code) == ("refused", "wrong-bytes")
        assert "exceeds 1,048,576 bytes" in str(job.reason)
        assert sum(r.sent for r in sites.requests) < 16 << 20
    assert not list(here.folder.rglob("*"))


def test_a_page_of_a_hundred_million_brackets_is_refused_before_it_is_made(site: Sites, here: FetchSession) -> None:
    body = b'{"items":[' + b"{}," * 3_000_000 + b"{}]}"

    def flooded(request: Request, response: Response) -> Response:
        return (
            Response(200, {"Content-Type": "application/json"}, body) if request.path == "/api/v1/models" else response
        )

    site.alter = flooded
    with pytest.raises(NetworkFailed, match="no JSON"):
        plan_sync(here.registry, here.civitai, EVERYTHING)


@pytest.mark.parametrize("coding", ["gzip, gzip", "br", "zstd", "gzip, br"])
def test_an_answer_packed_in_a_way_that_nobody_asked_for_is_refused(
    site: Sites, here: FetchSession, coding: str
) -> None:
    def packed(request: Request, response: Response) -> Response:
        if request.path == "/api/v1/models":
            response.headers["Content-Encoding"] = coding
        return response

    site.alter = packed
    with pytest.raises(HnetkitError, match="packed as"):
        plan_sync(here.registry, here.civitai, EVERYTHING)


def test_a_list_that_never_ends_ends(site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnetkit.sources.civitai.MOST_LISTED", 50)
    numbers = iter(range(10**7))

    def onwards(request: Request, response: Response) -> Response:
        if request.path != "/api/v1/models":
            return response
        items = [{"id": 1000 + next(numbers), "type": "Hypernetwork"} for _ in range(10)]
        body = json.dumps({"items": items, "metadata": {"nextCursor": str(next(numbers))}}).encode()
        return Response(200, {"Content-Type": "application/json"}, body)

    site.alter = onwards
    plan = plan_sync(here.registry, here.civitai, Filters())
    assert len(plan.models) == 50
    assert [record.reason for record in plan.failed] == ["the listing goes on after 50 models; left out what follows"]


def test_an_answer_of_a_byte_now_and_then_is_ended_and_the_file_goes_on(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.trust.SLOW_S", 0.3)
    drips = iter([1, 1])

    def slow(request: Request, response: Response) -> Response:
        if request.path.startswith("/files/") and next(drips, None):
            response.drip, response.drip_seconds = 1, 0.05
        return response

    site.alter = slow
    assert {job.state for job in here.pull(f"model:{site.world.ids()[0]}")} == {"done"}
    ranges = [r.headers.get("range") for r in site.requests if r.path.startswith("/files/")]
    assert any(ranges), "it went on where it was ended"


def test_a_rate_that_a_person_wants_is_not_the_servers_slowness(
    site: Sites, open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.trust.SLOW_S", 0.1)
    monkeypatch.setattr("hnetkit.sources.http._CHUNK", 1000)
    session = open_session(site, limit=20.0, sidecars=False)  # on a clock that runs 200 times as fast
    (job, *_) = session.pull(f"model:{site.world.ids()[0]}")
    assert job.state == "done"
    assert len([r for r in site.requests if r.path.startswith("/files/")]) == 1


def test_headers_that_never_end_are_ended(site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnetkit.sources.trust.HEADERS_S", 0.3)
    import socket
    import threading

    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(client,), daemon=True).start()

    def drip(client: socket.socket) -> None:
        with client:
            client.recv(65_536)
            try:
                while True:
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    with server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.pt"
        (job,) = here.pull(url, sha256="ab" * 32)
    assert (job.state, job.code) == ("failed", "network")
    assert "too slowly" in str(job.reason)


@pytest.mark.parametrize(
    "wait",
    ["9" * 400, "1e308", "-5", "nan", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT", "x" * 9000],
)
def test_a_pause_that_makes_no_sense_or_never_ends_does_not_hold_a_command(
    site: Sites, here: FetchSession, wait: str
) -> None:
    def later(request: Request, response: Response) -> Response:
        if request.path.startswith("/api/v1/models/"):
            return Response(429, {"Retry-After": wait}, b"{}")
        return response

    site.alter = later
    with pytest.raises(HnetkitError) as caught:
        here.pull(f"model:{site.world.ids()[0]}")
    assert caught.value.exit_code == 6
    assert sum(here.clock.slept) < 3600  # type: ignore[attr-defined]


def test_a_record_in_the_registry_is_unpacked_up_to_what_a_record_has(here: FetchSession) -> None:
    packed = zlib.compress(b" " * (MAX_RECORD + 1), 9)
    with here.registry.write():
        here.registry.catalogue.put_model("civitai", "5", {"name": "x", "state": "listed"}, {"name": "\ud800"})
        assert here.registry.catalogue.raw("civitai", "5") == {"name": "\ud800"}
        here.registry.catalogue._db.execute("UPDATE models SET raw = ?", [packed])
        with pytest.raises(RegistryError, match="civitai 5") as too_large:
            here.registry.catalogue.raw("civitai", "5")
        assert "a record of more than 16 MB" in str(too_large.value.__cause__)
        here.registry.catalogue._db.execute("UPDATE models SET raw = ?", [b"x"])
        with pytest.raises(RegistryError, match="civitai 5"):
            here.registry.catalogue.raw("civitai", "5")


SHA = "0a" * 20
ODD_REPOSITORIES: list[Any] = [
    *(None, 5, [], {}, {"sha": 5}, {"sha": "x"}, {"sha": SHA}, {"sha": SHA, "siblings": {}, "tags": 5}),
    {"sha": SHA, "siblings": [None, 5, {}, {"rfilename": 5}, {"rfilename": "a.txt", "lfs": []}], "downloads": 10**400},
]


@pytest.mark.parametrize("info", ODD_REPOSITORIES)
def test_a_repository_that_makes_no_sense_is_a_failure_in_words(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch, info: object
) -> None:
    in_the_hub(site, monkeypatch, info)
    with pytest.raises(HnetkitError) as caught:
        here.pull("hf:a/b")
    assert caught.value.exit_code in (4, 5)


def test_a_file_of_a_repository_with_an_odd_name_fails_alone(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    ink = site.world.content(site.world.models[0]["modelVersions"][0]["files"][0]["id"])
    site.hub.add("a/b", {"ink.pt": ink})
    commit = next(iter(site.hub.repos["a/b"].commits))
    names = ["ink.pt", "\ud800.pt", "a\r\nb.pt", "../../x.pt", "a?b#c.pt", "x" * 3000 + ".pt"]
    info = {"sha": commit, "siblings": [{"rfilename": name, "size": 1e400, "lfs": {"sha256": "x"}} for name in names]}
    in_the_hub(site, monkeypatch, info)
    states = {job.state for job in jobs_of(here, here.pull("hf:a/b")) if job.name != "ink"}
    assert states == {"failed"}
    assert [path.name for path in installed(here).values()] == ["ink.pt"]


def in_the_hub(site: Sites, monkeypatch: pytest.MonkeyPatch, info: object) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", site.hub_url)
    body = json.dumps(info).encode()

    def odd(request: Request, response: Response) -> Response:
        is_info = request.path.startswith("/api/models/")
        return Response(200, {"Content-Type": "application/json"}, body) if is_info else response

    site.alter = odd
