"""What one file, one owner or one host does, or a whole site that is gone, costs all the others little."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_sites import Sites, World
from support.fake_sites.messages import Request, Response, json_response
from support.fast_clock import FastClock
from support.fetching import EVERYTHING, jobs_of

from hnetkit.cli import run
from hnetkit.errors import NetworkFailed
from hnetkit.registry import Registry
from hnetkit.sources.civitai_models import BadRecord
from hnetkit.sources.download import lock_download
from hnetkit.sources.export import import_records
from hnetkit.sources.http import ATTEMPTS, MOST_PATIENT, NoConnection, RateLimiter, TransientError, retry
from hnetkit.sources.maintenance import identify_checkpoints
from hnetkit.sources.plans import enqueue
from hnetkit.sources.session import FetchSession
from hnetkit.sources.sync import MOST_CHECKED, find_updates, store_models

OpenSession = Callable[..., FetchSession]


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_one_files_storage_asks_for_holds_up_no_other(open_session: OpenSession, status: int) -> None:
    with Sites(World.make(6, plain=True)) as site:
        first: list[str] = []

        def limited(request: Request, response: Response) -> Response:
            if request.origin != "storage" or not request.path.startswith("/files"):
                return response
            first[:] = first or [request.path]
            return Response(status, {"Retry-After": "86400"}, b"") if request.path == first[0] else response

        site.alter = limited
        jobs = open_session(site, parallel=1).sync(EVERYTHING, all_versions=True)
        assert [(job.state, job.code) for job in jobs if job.state != "done"] == [("failed", "network")]
        assert len(jobs) > 5


def test_storage_that_asks_for_short_pauses_holds_up_no_other(open_session: OpenSession) -> None:
    with Sites(World.make(3, plain=True)) as site:
        session = open_session(site, parallel=1)
        paused: list[float] = []
        session.civitai.client.limiter.pause = paused.append  # type: ignore[method-assign]

        def limited(request: Request, response: Response) -> Response:
            is_file = request.origin == "storage" and request.path.startswith("/files")
            return Response(429, {"Retry-After": "3"}, b"") if is_file else response

        site.alter = limited
        assert {(job.state, job.code) for job in session.sync(EVERYTHING, all_versions=True)} == {("failed", "network")}
        assert paused == []


def test_an_owner_who_demands_a_login_for_many_files_stops_no_other(open_session: OpenSession) -> None:
    with Sites(World.make(12, plain=True)) as site:
        newest = sorted(site.world.models, key=lambda model: -model["id"])[:4]
        closed = {str(version["id"]) for model in newest for version in model["modelVersions"]}
        assert len(closed) > 3

        def refused(request: Request, response: Response) -> Response:
            for model in newest:  # one owner
                name = model.get("creator", {}).get("username")
                if name and request.origin == "api":
                    response.body = response.body.replace(f'"{name}"'.encode(), b'"somebody"')
            if "/download/models/" in request.path and request.path.rsplit("/", 1)[1] in closed:
                message = "The creator of this asset requires you to be logged in to download it"
                return json_response({"error": "Unauthorized", "message": message}, 401)
            return response

        site.alter = refused
        session = open_session(site, parallel=1)
        jobs = session.sync(EVERYTHING, all_versions=True)
        failed = [job for job in jobs if job.state == "failed"]
        assert {job.code for job in failed} == {"no-token"}
        assert not [job for job in failed if str(job.reason).startswith("not tried")]
        assert [job.state for job in jobs].count("done") == len(jobs) - len(failed)


def test_that_there_is_no_connection_is_told_at_the_first_failure_and_once_for_each_request() -> None:
    clock, told = FastClock(), list[int]()

    def offline() -> None:
        told.append(len(seen))
        raise NoConnection("civitai.example: no connection")

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(NetworkFailed):
            retry(offline, "the list", clock=clock, limiter=RateLimiter(clock))
    assert told == [0, *[1] * (ATTEMPTS - 1)]
    assert [str(warning.message) for warning in seen] == ["civitai.example: no connection; trying again"]


def test_while_nothing_comes_each_thing_is_tried_once_and_then_as_often_as_before() -> None:
    clock = FastClock()
    pace, tried = RateLimiter(clock), 0

    def nothing() -> None:
        nonlocal tried
        tried += 1
        raise TransientError("no connection")

    for count in [ATTEMPTS] * MOST_PATIENT + [1, 1]:
        tried = 0
        with pytest.raises(NetworkFailed, match=f"{count} attempt"):
            retry(nothing, "a file", clock=clock, limiter=pace)
        assert tried == count
    retry(lambda: None, "a file", clock=clock, limiter=pace)
    tried = 0
    with pytest.raises(NetworkFailed):
        retry(nothing, "a file", clock=clock, limiter=pace)
    assert tried == ATTEMPTS


def test_many_checkpoints_are_asked_about_in_little_time_where_the_site_does_not_answer(
    site: Sites, here: FetchSession
) -> None:
    from support.registry_rows import row

    with here.registry.write():
        for number in range(60):
            here.registry.networks.put(row(number, sd_checkpoint=f"deadbe{number:02}"))
    site.alter = lambda request, response: Response(503, {}, b"") if "/by-hash/" in request.path else response
    failed: list[object] = []
    assert list(identify_checkpoints(here.registry, here.civitai, failed)) == []  # type: ignore[arg-type]
    assert len(failed) == 60
    assert len(site.requests) == MOST_PATIENT * ATTEMPTS + 60 - MOST_PATIENT


def test_a_sync_asks_about_few_of_the_models_that_an_import_brought_and_says_so(
    site: Sites, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    monkeypatch.setattr("hnetkit.sources.sync._AGAIN_S", 0.0)
    models = [{"kind": "model", "source": "civitai", "raw": {"id": 1000 + n, "name": "m"}} for n in range(150)]
    with Registry(home / "registry.db") as registry:
        import_records(registry, map(json.dumps, [{"kind": "hnetkit", "version": 1}, *models]))
        with registry.write():
            registry.catalogue._db.execute("UPDATE models SET last_seen = '2020-01-01T00:00:00+00:00'")
    for asked in (MOST_CHECKED, 150 - MOST_CHECKED, 0):
        site.clear()
        assert run(["sync", "--metadata-only"]) == 0
        found = {r.path for r in site.requests if re.search(r"/models/1\d\d\d$", r.path)}
        assert len(found) == asked
        said = capsys.readouterr().err
        assert (f"{MOST_CHECKED} of 150 unlisted models are checked" in said) is (asked == MOST_CHECKED)


@pytest.mark.parametrize("status", [401, 451])
def test_one_model_about_which_nobody_is_told_stops_no_other(
    site: Sites, here: FetchSession, home: Path, status: int
) -> None:
    closed, open_one, _ = site.world.ids()

    def altered(request: Request, response: Response) -> Response:
        if request.path.endswith(f"/models/{closed}"):
            return json_response({"error": "x", "message": "y"}, status)
        if request.path.endswith("/models"):
            content = response.json()
            content["items"] = [item for item in content["items"] if item["id"] != closed]
            return json_response(content)
        return response

    here.sync(EVERYTHING, all_versions=True)
    with here.registry.write():
        here.registry._db.execute("UPDATE models SET last_seen = '2020-01-01T00:00:00+00:00'")
    site.world.add_version(open_one)
    site.alter = altered
    failed: list[BadRecord] = []
    assert [update.model.id for update in find_updates(here.registry, here.civitai, failed)] == [open_one]
    assert [bad.id for bad in failed] == [closed]
    assert run(["sync", "-y", "--no-previews"]) == 1
    assert open_one in {model.id for model in here.plan(EVERYTHING, all_versions=True).models}
    assert [item.action for item in here.plan(EVERYTHING, all_versions=False).items] == ["have"] * len(
        here.plan(EVERYTHING, all_versions=False).items
    )


def test_one_checkpoint_about_which_nobody_is_told_stops_no_other(site: Sites, here: FetchSession) -> None:
    from support.registry_rows import row

    with here.registry.write():
        for number in range(3):
            here.registry.networks.put(row(number, sd_checkpoint=f"deadbee{number}"))
    site.alter = lambda request, response: (
        json_response({"error": "x"}, 401) if request.path.endswith("deadbee0") else response
    )
    failed: list[BadRecord] = []
    found = list(identify_checkpoints(here.registry, here.civitai, failed))
    assert [row["checkpoint"] for row in found] == ["deadbee1", "deadbee2"]
    assert len(failed) == 1


def test_a_list_that_breaks_off_is_used_as_far_as_it_goes(open_session: OpenSession) -> None:
    with Sites(World.make(130, plain=True)) as site:
        site.alter = lambda request, response: Response(500, {}, b"") if request.one("cursor") else response
        session = open_session(site)
        plan = session.plan(EVERYTHING, all_versions=True)
        assert len(plan.models) > 50
        assert ["breaks off" in bad.reason for bad in plan.failed] == [True]
        site.alter = lambda request, response: Response(500, {}, b"")
        with pytest.raises(NetworkFailed):
            session.plan(EVERYTHING, all_versions=True)


def test_where_a_list_by_numbers_fails_each_model_is_asked_about_by_itself(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING, all_versions=True)
    first = site.world.ids()[0]
    site.world.add_version(first)
    site.alter = lambda request, response: Response(500, {}, b"") if request.one("ids") else response
    assert [update.model.id for update in find_updates(here.registry, here.civitai)] == [first]
    site.clear()
    site.alter = lambda request, response: Response(500, {}, b"")
    with pytest.raises(NetworkFailed):
        list(find_updates(here.registry, here.civitai))
    assert len(site.requests) <= 3 * ATTEMPTS


def test_junk_does_not_fill_the_disk_and_good_files_come(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sites(World.make(3, plain=True)) as site:
        junk = next(site.world.files())[2]
        site.world.contents.put(junk["id"], b"junk" * 10_000)
        junk["sizeKB"] = None
        session = open_session(site)
        monkeypatch.setattr("hnetkit.sources.install.LEAST_FREE", 1 << 62)
        jobs = {job.state: job for job in session.sync(EVERYTHING, all_versions=True)}
        assert jobs.keys() == {"refused", "done"}
        assert not (session.folder / ".quarantine").exists()
        assert not list(session.folder.glob(".hnetkit-*"))


def test_half_a_character_in_a_date_is_no_failure(site: Sites, here: FetchSession) -> None:
    first = site.world.ids()[0]

    def altered(request: Request, response: Response) -> Response:
        if request.path.endswith("/models"):
            content = response.json()
            for version in next(item for item in content["items"] if item["id"] == first)["modelVersions"]:
                version["earlyAccessEndsAt"] = "20990101\ud8001200"
            response.body = json.dumps(content).encode()
        return response

    site.alter = altered
    failed: list[BadRecord] = []
    plan = here.plan(EVERYTHING, all_versions=True)
    assert store_models(here.registry, plan.models) == []
    with here.registry.write():
        list(enqueue(here.registry, here.folder, plan.items, failed.append))
    assert failed == []
    assert any(job.state == "skipped" for job in here.registry.jobs.rows())


def test_two_people_who_fetch_into_one_folder_do_not_write_into_one_file(
    site: Sites, here: FetchSession, tmp_path: Path
) -> None:
    job = next(item for item in here.plan(EVERYTHING, all_versions=True).items if item.action == "fetch")
    with lock_download(tmp_path, job.key, "ink.pt"):
        with (
            pytest.raises(NetworkFailed, match=r"ink\.pt: another hnetkit"),
            lock_download(tmp_path, job.key, "ink.pt"),
        ):
            pytest.fail("both are at it")
        with lock_download(tmp_path, "another", "tint.pt"):
            pass
        here.folder.mkdir(exist_ok=True)
    with lock_download(here.folder, job.key, "ink.pt"):
        jobs = here.sync(EVERYTHING, all_versions=True)
    assert [job.code for job in jobs if job.state == "failed"] == ["network"]
    assert {job.state for job in here.sync(EVERYTHING, all_versions=True)} == {"done"}
    assert not list(here.folder.glob(".hnetkit-*"))
    assert list(tmp_path.glob(".hnetkit-*")) == []


def test_files_that_hardly_move_hold_up_no_other(open_session: OpenSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnetkit.sources.workers._LONG_S", 0.5)
    with Sites(World.make(5, plain=True)) as site:
        slow: list[str] = []

        def altered(request: Request, response: Response) -> Response:
            if request.origin == "storage" and request.path.startswith("/files") and len(slow) < 2:
                slow.append(request.path)
                response.drip, response.drip_seconds = 150, 0.1
            return response

        site.alter = altered
        session = open_session(site, parallel=2)
        jobs = jobs_of(session, session.sync(EVERYTHING, all_versions=True))
        assert {job.state for job in jobs} == {"done"}
        assert len(jobs) > 4
        assert {job.key.partition(":")[2] for job in jobs[-2:]} == {path.split("/")[2] for path in slow}
