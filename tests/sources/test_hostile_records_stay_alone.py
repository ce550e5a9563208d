"""One record, one member, one hash or one reference that is hostile costs the others nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_sites import Sites, World
from support.fake_sites.messages import Request, Response, json_response
from support.fetching import EVERYTHING, installed, jobs_of
from support.networks import a1111_network
from support.odd_answers import give

from hnetkit.cli import run
from hnetkit.errors import NetworkFailed
from hnetkit.sources.civitai import Filters
from hnetkit.sources.civitai_models import BadRecord
from hnetkit.sources.export import import_records
from hnetkit.sources.http import ATTEMPTS, MOST_PATIENT
from hnetkit.sources.maintenance import identify_files
from hnetkit.sources.plans import enqueue
from hnetkit.sources.session import FetchSession
from hnetkit.sources.sync import store_models

OpenSession = Callable[..., FetchSession]
LIST = "/api/v1/models"


def network(seed: int) -> bytes:
    data = io.BytesIO()
    torch.save(a1111_network(seed=seed), data)
    return data.getvalue()


def change_list(site: Sites, change: Callable[[dict[str, Any]], None]) -> None:
    """Answers each page of the list as `change` leaves it."""

    def changed(request: Request, response: Response) -> Response:
        if request.path != LIST or response.status != 200:
            return response
        page = response.json()
        change(page)
        return Response(200, {"Content-Type": "application/json"}, json.dumps(page).encode())

    site.alter = changed


def test_a_place_in_the_list_that_is_no_text_is_asked_for_as_it_came(site: Sites, here: FetchSession) -> None:
    change_list(site, lambda page: page.update(metadata={"nextCursor": "\ud800x"}))
    assert {job.state for job in jobs_of(here, here.sync(EVERYTHING, all_versions=True))} == {"done"}


def test_a_description_of_brackets_costs_that_model_alone(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.civitai.MOST_KEPT", 100 << 20)
    bad, *good = sorted(site.world.ids())

    def swell(page: dict[str, Any]) -> None:
        for model in page["items"]:
            if model["id"] == bad:
                model["description"] = "{" * 1_500_000

    change_list(site, swell)
    for filters in (Filters(nsfw=True), Filters(ids=(bad, *good))):
        plan = here.plan(filters)
        assert set(good) <= {model.id for model in plan.models}


def far_away(data: bytes) -> bytes:
    """A zip whose first member says that it lies where no file can have anything."""
    end = data.rfind(b"PK\5\6")
    size, start = struct.unpack_from("<II", data, end + 12)
    entry = bytearray(data[start:end])
    name = struct.unpack_from("<H", entry, 28)[0]
    extra = struct.pack("<HHQ", 1, 8, 2**62)
    struct.pack_into("<H", entry, 30, len(extra))
    struct.pack_into("<I", entry, 42, 0xFFFFFFFF)
    entry[46 + name : 46 + name] = extra
    tail = bytearray(data[end:])
    struct.pack_into("<I", tail, 12, size + len(extra))
    return data[:start] + bytes(entry) + bytes(tail)


def test_a_member_that_lies_outside_of_its_zip_costs_the_others_nothing(open_session: OpenSession) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for number, name in enumerate(("far.pt", "day.pt", "night.pt")):
            archive.writestr(name, network(number))
    with Sites(World.make(1, plain=True)) as site:
        (file,) = [file for _, _, file in site.world.files()]
        site.world.contents.put(file["id"], far_away(data.getvalue()))
        file.update(name="networks.zip", sizeKB=None)
        session = open_session(site)
        (job,) = session.sync(EVERYTHING, all_versions=True)
        assert (job.state, job.code) == ("done", "partly")
        assert "far.pt: lies outside" in str(job.reason)
        assert sorted(path.name for path in session.folder.glob("*.pt")) == ["day.pt", "night.pt"]


def test_an_empty_answer_takes_back_nothing_of_what_was_known_of_files(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING, all_versions=True)
    known = {row["path"]: row["model_id"] for row in identify_files(here.registry, here.civitai)}
    assert all(known.values())
    site.alter = lambda request, response: json_response([]) if request.path.endswith("/by-hash/ids") else response
    again = {row["path"]: row["model_id"] for row in identify_files(here.registry, here.civitai, again=True)}
    assert again == known


def test_a_json_of_the_persons_that_has_a_description_is_not_written_into(site: Sites, here: FetchSession) -> None:
    here.folder.mkdir(parents=True)
    own = here.folder / "package.json"
    own.write_text('{"name": "tool", "version": "1.0.0", "description": "what I make"}')
    before = own.read_bytes()

    def rename(page: dict[str, Any]) -> None:
        for version in page["items"][0]["modelVersions"]:
            version["trainedWords"] = ["hello"]
            for file in version["files"]:
                file["name"] = "package.pt"

    change_list(site, rename)
    here.sync(EVERYTHING, all_versions=True)
    assert (here.folder / "package.pt").exists()
    assert own.read_bytes() == before


def test_a_hub_that_is_gone_is_found_out_once_for_all_of_its_files(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sites(World.make(1, plain=True), repos={"a/many": {f"n{n}.pt": network(n) for n in range(15)}}) as site:
        monkeypatch.setenv("HF_ENDPOINT", site.hub_url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        asked = 0

        def gone(request: Request, response: Response) -> Response:
            nonlocal asked
            if "/resolve/" in request.path:
                asked += 1
                response.cut_after = -1
            return response

        site.alter = gone
        jobs = open_session(site, parallel=1).pull("hf:a/many")
        assert {job.state for job in jobs} == {"failed"}
        assert asked <= MOST_PATIENT * ATTEMPTS + len(jobs)


def test_a_reference_that_means_nothing_stops_no_other(
    site: Sites, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    first, second, _ = site.world.ids()
    assert run(["pull", "--no-previews", f"model:{first}", "model:x", f"model:{second}"]) == 1
    assert "model:x: not a recognized reference" in capsys.readouterr().err
    assert len(list((home / "library").glob("*.pt"))) == 2
    assert run(["pull", "model:x", "model:y"]) == 2


def test_many_owners_whose_files_want_a_login_stop_no_other(open_session: OpenSession) -> None:
    with Sites(World.make(24, plain=True)) as site:
        newest = sorted(site.world.models, key=lambda model: model["modelVersions"][0]["publishedAt"])[-9:]
        closed = {str(version["id"]) for model in newest for version in model["modelVersions"]}

        def refused(request: Request, response: Response) -> Response:
            if request.path == LIST:
                page = response.json()
                for model in page["items"]:
                    model["creator"] = {"username": f"account {model['id']}"}
                return json_response(page)
            if "/download/models/" in request.path and request.path.rsplit("/", 1)[1] in closed:
                message = "The creator of this asset requires you to be logged in to download it"
                return json_response({"error": "Unauthorized", "message": message}, 401)
            return response

        site.alter = refused
        session = open_session(site, parallel=1)
        jobs = jobs_of(session, session.sync(EVERYTHING, all_versions=True))
        failed = [job for job in jobs if job.state != "done"]
        assert {(job.state, job.code) for job in failed} == {("failed", "no-token")}
        assert len(failed) == sum(len(version["files"]) for model in newest for version in model["modelVersions"])


def test_a_file_that_is_said_to_have_the_bytes_of_another_does_not_keep_that_one_waiting(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.jobs._POLL_S", 0.05)
    with Sites(World.make(6, plain=True)) as site:
        slow: set[int] = set()
        good: list[int] = []
        came = threading.Event()

        def copy_the_hash(page: dict[str, Any]) -> None:
            hostile, _, honest = page["items"][:3]
            file = max(honest["modelVersions"], key=lambda version: str(version["publishedAt"]))["files"][0]
            good[:] = [file["id"]]
            for version in hostile["modelVersions"]:
                for its in version["files"]:
                    its["hashes"] = dict(file["hashes"])
                    slow.add(its["id"])

        change_list(site, copy_the_hash)
        listed = site.alter

        def drip(request: Request, response: Response) -> Response:
            response = listed(request, response)
            number = re.match(r"/files/(\d+)/", request.path)
            if number and int(number[1]) in slow:
                came.wait(30)
            return response

        site.alter = drip
        session = open_session(site)
        plan = session.plan(EVERYTHING, all_versions=False)
        store_models(session.registry, plan.models)
        with session.registry.write():
            ids = [job.id for _, job in enqueue(session.registry, session.folder, plan.items)]
        order = []
        for job in session.run(ids):
            order.append((job.key, job.state))
            if job.key == f"civitai:{good[0]}":
                came.set()
        assert (f"civitai:{good[0]}", "done") in order[:-1], "it waited for the slow one"
        assert {state for _, state in order} == {"done"}


@pytest.mark.parametrize("is_scanned", [True, False])
def test_repair_leaves_another_network_that_a_person_put_in_the_place_of_one(
    site: Sites,
    here: FetchSession,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_scanned: bool,
) -> None:
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    here.sync(EVERYTHING, all_versions=True)
    replaced, rotten, torn = [path for path in installed(here).values() if path.suffix == ".pt"][:3]
    own = network(99)
    replaced.write_bytes(own)
    if is_scanned:
        assert run(["scan", "-q"]) == 0
    torn.write_bytes(torn.read_bytes()[:-100])
    status, data = rotten.stat(), bytearray(rotten.read_bytes())
    data[len(data) // 2] ^= 1
    rotten.write_bytes(data)
    os.utime(rotten, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(["repair", "--no-previews", "--nl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"state"')]
    assert sorted(row["state"] for row in rows) == ["done", "done", "kept"]
    assert replaced.read_bytes() == own
    assert run(["repair", "--dry-run"]) == 0
    assert "nothing is missing" in capsys.readouterr().err


def test_an_import_without_end_is_taken_in_as_far_as_an_export_can_go(
    here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.export.MOST_LINES", 1000)

    def lines() -> Iterator[str]:
        yield json.dumps({"kind": "hnetkit", "version": 1})
        yield json.dumps({"kind": "subscription", "name": "all", "filters": {}})
        while True:
            yield from ("{}", "", json.dumps({"kind": "hnetkit", "version": 1}))

    found = import_records(here.registry, lines())
    assert found.counts == {"subscription": 1}
    assert found.failures[0] == "line 1001: more lines than any export has; left out from here on"


def test_a_pause_that_the_site_asks_for_because_of_one_file_holds_up_no_other(open_session: OpenSession) -> None:
    with Sites(World.make(6, plain=True)) as site:
        closed = {str(version["id"]) for version in site.world.models[0]["modelVersions"]}
        site.alter = lambda request, response: (
            Response(503, {"Retry-After": "800"}, b"")
            if "/download/models/" in request.path and request.path.rsplit("/", 1)[1] in closed
            else response
        )
        session = open_session(site, parallel=1)
        paused: list[float] = []
        session.civitai.client.limiter.pause = paused.append  # type: ignore[method-assign]
        jobs = session.sync(EVERYTHING, all_versions=True)
        failed = [job for job in jobs if job.state != "done"]
        assert {job.code for job in failed} == {"network"}
        assert len(jobs) - len(failed) > 4
        assert paused == []
        assert max(session.clock.slept, default=0) < 100  # type: ignore[attr-defined]


def test_a_record_whose_own_page_asks_for_a_pause_holds_up_no_other(site: Sites, here: FetchSession) -> None:
    closed, *others = site.world.ids()

    def changed(request: Request, response: Response) -> Response:
        if request.path == f"{LIST}/{closed}":
            return Response(503, {"Retry-After": "800"}, b"")
        if request.path == LIST:
            page = response.json()
            return json_response({**page, "items": [model for model in page["items"] if model["id"] != closed]})
        return response

    site.alter = changed
    plan = here.plan(Filters(ids=(closed, *others)), all_versions=True)
    assert {model.id for model in plan.models} == set(others)
    assert [bad.id for bad in plan.failed] == [closed]
    assert max(here.clock.slept, default=0) < 100  # type: ignore[attr-defined]


def test_pictures_that_drip_hold_no_network_back(open_session: OpenSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnetkit.sources.sidecar_writer.WHOLE_S", 0.5)
    with Sites(World.make(5, plain=True)) as site:

        def drip(request: Request, response: Response) -> Response:
            if request.path.startswith("/images"):
                response.body += bytes(1 << 20)
                response.drip, response.drip_seconds = 30, 0.05
            return response

        site.alter = drip
        started = time.monotonic()
        assert {job.state for job in open_session(site).sync(EVERYTHING, all_versions=True)} == {"done"}
        assert time.monotonic() - started < 60, "a picture would have taken half an hour"


def test_a_page_that_drips_is_given_up(site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnetkit.sources.http.WHOLE_JSON_S", 1.0)

    def drip(request: Request, response: Response) -> Response:
        if request.path == LIST:
            response.body = b" " * (1 << 20) + response.body
            response.drip, response.drip_seconds = 30, 0.05
        return response

    site.alter = drip
    with pytest.raises(NetworkFailed, match="too slowly"):
        here.plan(EVERYTHING, all_versions=True)
    assert len([request for request in site.requests if request.path == LIST]) == 1


@pytest.mark.parametrize("place", [0, 7, -1])
def test_a_record_over_which_the_list_stumbles_costs_that_model_alone(open_session: OpenSession, place: int) -> None:
    with Sites(World.make(25, plain=True)) as site:
        session = open_session(site)
        bad = [model.id for model in session.plan(EVERYTHING, all_versions=True).models][place]

        def stumble(request: Request, response: Response) -> Response:
            is_there = request.path == LIST and any(model["id"] == bad for model in response.json()["items"])
            return Response(500, {}, b"") if is_there else response

        site.alter = stumble
        plan = session.plan(EVERYTHING, all_versions=True)
        assert {model.id for model in plan.models} == {id for id in listed_ids(site) if id != bad}
        assert ["breaks off" in record.reason for record in plan.failed] == [True]


def listed_ids(site: Sites) -> set[int]:
    return {id for id in site.world.ids() if site.world.raw(id).get("availability") != "Private"}


def test_a_list_that_stumbled_once_goes_on_with_whole_pages(open_session: OpenSession) -> None:
    with Sites(World.make(160, plain=True)) as site:
        failed = 0

        def stumble(request: Request, response: Response) -> Response:
            nonlocal failed
            if request.path == LIST and failed < 8 and int(request.one("limit") or 0) > 1:
                failed += 1
                return Response(500, {}, b"")
            return response

        site.alter = stumble
        plan = open_session(site).plan(EVERYTHING, all_versions=True)
        assert {model.id for model in plan.models} == listed_ids(site)
        assert plan.failed == []
        assert len([request for request in site.requests if request.path == LIST]) < 60


def test_a_site_that_is_down_is_said_to_be_in_little_time(site: Sites, here: FetchSession) -> None:
    site.alter = lambda request, response: Response(500, {}, b"")
    with pytest.raises(NetworkFailed, match="6 attempts"):
        here.plan(EVERYTHING, all_versions=True)
    assert len(site.requests) < 20


def test_numbers_of_models_that_never_were_are_not_asked_about_without_end(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.civitai.MOST_GONE", 10)
    good = site.world.ids()
    plan = here.plan(Filters(ids=(*range(1000, 1300), *good)))
    assert {model.id for model in plan.models} == set(good)
    assert len(site.requests) < 30
    assert [bad.count for bad in plan.failed] == [290]


def test_a_hash_over_which_the_site_stumbles_costs_that_file_alone(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING, all_versions=True)
    rows = list(identify_files(here.registry, here.civitai))
    odd, *_ = {str(row["sha256"]) for row in rows}
    with here.registry.write():
        here.registry.catalogue._db.execute("DELETE FROM lookups")
    site.alter = lambda request, response: Response(500, {}, b"") if odd.upper().encode() in request.body else response
    failed: list[BadRecord] = []
    again = list(identify_files(here.registry, here.civitai, failed=failed))
    assert [row["path"] for row in again] == [row["path"] for row in rows]
    assert {str(row["sha256"]) for row in again if row["model_id"] is None} == {odd}
    assert {(str(row["sha256"]), row["reason"]) for row in again if row["state"] == "failed"} == {
        (odd, "the site gave no answer about it")
    }
    assert [odd in record.reason for record in failed] == [True]
    assert odd not in here.registry.catalogue.lookups()
    site.alter = lambda request, response: Response(500, {}, b"")
    with pytest.raises(NetworkFailed):
        list(identify_files(here.registry, here.civitai, again=True))


def test_a_model_that_lists_the_numbers_of_all_files_keeps_none_of_them_from_coming(open_session: OpenSession) -> None:
    with Sites(World.make(8, plain=True)) as site:
        numbers = [file["id"] for _, _, file in site.world.files()]
        good = {site.world.sha256(number).lower() for number in numbers}

        def claim(page: dict[str, Any]) -> None:
            first = page["items"][0]["modelVersions"][0]
            own = first["files"][0]
            others = [n for n in numbers if n != own["id"]]
            first["files"] += [{**own, "id": n, "hashes": {"SHA256": f"{n:064x}"}} for n in others]

        change_list(site, claim)
        session = open_session(site)
        session.sync(EVERYTHING, all_versions=True)
        session.sync(EVERYTHING, all_versions=True)
        wanted = {
            site.world.sha256(file["id"]).lower() for _, _, file in site.world.files() if file["name"].endswith(".pt")
        }
        came = set(installed(session))
        assert wanted <= came
        assert came <= good


def test_a_refused_file_whose_number_another_model_lists_is_not_fetched_again(site: Sites, here: FetchSession) -> None:
    owner = site.world.models[1]
    file = site.world.model(owner["id"])["modelVersions"][0]["files"][0]
    give(site, file, b"no network at all")
    true = {**file, "hashes": {"SHA256": hashlib.sha256(b"no network at all").hexdigest()}}

    def claim(page: dict[str, Any]) -> None:
        items = {item["id"]: item for item in page["items"]}
        other, own = (items[id]["modelVersions"][0]["files"] for id in (site.world.ids()[0], owner["id"]))
        own[:] = [true]
        other.append({**file, "hashes": {"SHA256": "ab" * 32}})
        page["items"] = sorted(page["items"], key=lambda item: item["id"] == owner["id"])  # the claim comes first

    change_list(site, claim)
    for _ in range(2):
        here.sync(EVERYTHING, all_versions=True)
    (job,) = here.registry.jobs.of(f"civitai:{file['id']}-{owner['id']}")
    assert (job.state, job.attempts) == ("refused", 1)


def test_a_second_page_that_drips_leaves_what_the_first_listed(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.http.WHOLE_JSON_S", 3.0)
    with Sites(World.make(130, plain=True)) as site:

        def drip(request: Request, response: Response) -> Response:
            if request.path == LIST and request.one("cursor"):
                response.body = b" " * (1 << 20) + response.body
                response.drip, response.drip_seconds = 30, 0.05
            return response

        site.alter = drip
        plan = open_session(site).plan(EVERYTHING, all_versions=True)
        assert len(plan.models) > 50
        assert ["breaks off" in bad.reason for bad in plan.failed] == [True]
