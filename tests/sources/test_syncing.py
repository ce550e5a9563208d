"""A whole library mirrored: complete, incremental, interruptible, by several processes at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fake_sites import Fault, Sites, World
from support.fake_sites.messages import Request, Response, json_response
from support.fetching import EVERYTHING, installed, jobs_of
from support.waiting import wait_until

from hnetkit.files import MODEL_SUFFIXES
from hnetkit.library.scan import recheck, scan
from hnetkit.library.trash import FOLDER
from hnetkit.registry import Registry
from hnetkit.sources import jobs
from hnetkit.sources.civitai import Filters
from hnetkit.sources.plans import enqueue
from hnetkit.sources.session import FetchSession
from hnetkit.sources.sync import check_unlisted, find_updates, unlisted_models
from hnetkit.sources.workers import Worker

PROCESS = Path(__file__).resolve().parents[1] / "support" / "sync_process.py"


@pytest.fixture
def large() -> Iterator[Sites]:
    """300 models with 400 files."""
    with Sites(World.make(300, plain=True)) as sites:
        yield sites


@pytest.fixture
def several() -> Iterator[Sites]:
    """90 models with 120 files."""
    with Sites(World.make(90, plain=True)) as sites:
        yield sites


def start(sites: Sites) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", str(PROCESS), sites.civitai_url, sites.token]
    environment = {**os.environ, "PYTHONPATH": str(PROCESS.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def downloads(sites: Sites) -> Counter[str]:
    """File number -> how often its bytes were sent whole or in part."""
    links = (r for r in sites.requests if r.origin == "api" and "/download/" in r.path)
    return Counter(r.query["fileId"][0] for r in links)


def contents(sites: Sites) -> set[str]:
    """The sha256 of everything that can be mirrored."""
    return {sites.world.sha256(file["id"]).lower() for _, _, file in sites.world.files() if file["type"] == "Model"}


def digests(folder: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.suffix in MODEL_SUFFIXES}


def test_what_a_fetch_puts_beside_a_network_is_no_news_to_a_scan(
    several: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(several)
    session.sync(EVERYTHING)
    (first, *_) = session.registry.files.of_networks()
    assert session.registry.files.sidecars([first["id"]])[first["id"]]["model_id"]
    assert list(scan(session.registry)) == list(recheck(session.registry)) == []


def test_what_was_removed_is_not_fetched_again_by_a_sync(
    several: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(several)
    session.sync(EVERYTHING)
    (first, *_) = session.registry.files.of_networks()
    session.library.remove(first["path"])
    plan = session.plan(EVERYTHING)
    (item,) = (item for item in plan.items if item.code == "removed")
    assert f"hnetkit remove --undo {first['stem']}" in str(item.reason)
    assert plan.to_fetch == []
    assert [result.code for result in session.sync(EVERYTHING)] == ["removed"]
    assert not os.path.exists(first["path"])
    assert {job.state for job in session.registry.jobs.rows()} == {"done"}
    session.library.restore()
    assert [item for item in session.plan(EVERYTHING).items if item.code == "removed"] == []
    assert list(session.repair()) == []


def with_one_tagged_and_removed(session: FetchSession) -> dict[str, Any]:
    """Fetches everything, and removes a network with a tag; returns the row of its file."""
    session.sync(EVERYTHING)
    (first, *_) = session.registry.files.of_networks()
    session.library.tag(first["path"], "lines")
    session.library.remove(first["path"])
    return first


def test_what_was_removed_and_is_pulled_again_says_where_its_tags_are(
    several: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(several)
    first = with_one_tagged_and_removed(session)
    (result,) = session.pull(first["sha256"])
    assert (result.state, result.code) == ("done", "in-trash")
    assert f"hnetkit remove --undo {first['stem']}" in str(result.reason)
    assert not result.is_failed
    session.library.restore()
    assert session.library.record(first["path"])["tags"] == ["lines"]
    assert [result.code for result in session.pull(first["sha256"])] == [None]


def test_what_was_deleted_from_the_trash_is_fetched_like_any_other_and_its_tags_are_told_of(
    several: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(several)
    first = with_one_tagged_and_removed(session)
    assert [item.code for item in session.plan(EVERYTHING).items if item.action == "skip"] == ["removed"]
    (stored,) = (session.folder / FOLDER).rglob("*.pt.trash")
    stored.unlink()
    (result,) = session.sync(EVERYTHING)
    assert (result.state, result.code) == ("done", "in-trash")
    session.library.restore()
    assert session.library.record(first["path"])["tags"] == ["lines"]


def test_a_sync_mirrors_300_models_and_400_files_and_a_second_one_fetches_nothing(
    large: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(large)
    jobs = jobs_of(session, session.sync(EVERYTHING, all_versions=True))
    assert {job.state for job in jobs} == {"done"}
    offered = contents(large)
    of_type = {row["remote_file_id"]: row["file_type"] for row in session.registry.catalogue.files()}
    assert sum(of_type[job.remote_file_id] == "Model" for job in jobs) == 400
    assert {row["sha256"] for row in session.registry.files.of_networks()} >= offered
    assert len(session.registry.catalogue.models()) == 300
    large.clear()
    assert jobs_of(session, session.sync(EVERYTHING, all_versions=True)) == []
    pages = [request for request in large.requests if request.path.endswith("/models")]
    assert [request.origin for request in large.requests] == ["api"] * len(pages)
    assert len(pages) == 3


def test_a_plan_touches_nothing(sites: Sites, session: FetchSession) -> None:
    plan = session.plan(EVERYTHING, all_versions=True)
    assert plan.bytes_to_fetch > 0
    assert not session.folder.exists()
    assert session.registry.catalogue.models() == []
    assert session.registry.jobs.rows() == []
    assert not downloads(sites)


def test_what_the_site_cannot_give_is_left_out_with_the_reason_and_the_rest_comes(
    sites: Sites, session: FetchSession
) -> None:
    jobs = jobs_of(session, session.sync(EVERYTHING, all_versions=True))
    by_state = Counter((job.state, job.code) for job in jobs)
    assert by_state["done", None] > 30
    assert set(by_state) <= {
        ("done", None),
        ("done", "had"),
        ("done", "unpacked"),
        ("refused", "refused"),
        ("refused", "wrong-bytes"),
        ("failed", "no-access"),
        ("failed", "early-access"),
    }
    assert all(job.reason for job in jobs if job.state in ("refused", "failed"))
    assert all(session.folder in path.parents and path.is_file() for path in installed(session).values())
    assert list(recheck(session.registry)) == []


def test_only_the_newest_version_comes_unless_all_are_asked_for(
    several: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(several)
    newest = session.plan(EVERYTHING, all_versions=False)
    for item in newest.items:
        versions = several.world.model(item.model_id)["modelVersions"]
        newest_of = max(versions, key=lambda version: version["publishedAt"])
        assert item.version_id == newest_of["id"]
    assert len(newest.items) < len(session.plan(EVERYTHING, all_versions=True).items)


def test_filters_that_the_site_drops_are_applied_here(sites: Sites, session: FetchSession) -> None:
    assert session.plan(Filters(tag="no such tag", nsfw=True), all_versions=True).models == []
    tag = next(tag for model in sites.world.models for tag in model.get("tags") or ())
    found = session.plan(Filters(tag=tag, nsfw=True), all_versions=True).models
    assert found
    assert all(tag.lower() in {t.lower() for t in model.tags or ()} for model in found)


def test_without_nsfw_nothing_comes_that_the_site_marks_so(sites: Sites, session: FetchSession) -> None:
    shown = {model.id: model.nsfw_level for model in session.plan(Filters(), all_versions=True).models}
    everything = {model.id for model in session.plan(EVERYTHING, all_versions=True).models}
    assert set(shown) < everything
    assert all(level is not None and level & 1 for level in shown.values())


def test_a_stopped_sync_says_by_what_and_goes_on_where_it_stopped(several: Sites, home: Path) -> None:
    done: set[str] = set()
    for number, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)):
        several.clear()
        process = start(several)
        wait_until(lambda: len(downloads(several)) >= 20, process)
        process.send_signal(getattr(signal, number))
        assert process.wait(30) == code
        assert not {f"civitai:{file}" for file in downloads(several)} & done
        with Registry(home / "registry.db") as registry:
            assert not any(job.owner for job in registry.jobs.rows())
            before, done = done, {job.key for job in registry.jobs.rows() if job.state == "done"}
        assert before < done
        assert len(done) < 110, "it was stopped in the middle"
    several.clear()
    assert start(several).wait(120) == 0
    assert not {f"civitai:{file}" for file in downloads(several)} & done
    assert digests(home / "library") >= contents(several)


def test_a_second_interrupt_leaves_at_once_when_a_site_hangs(home: Path) -> None:
    with Sites(World.make(12, plain=True)) as sites:
        sites.faults.add(Fault("F", "storage", times=2, mode="stall", seconds=8))
        process = start(sites)
        wait_until(lambda: len(sites.faults.fired) >= 2, process)
        time.sleep(1)  # both have read what comes before the stall: until then an interrupt is heard at once
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None, "it should still wait for the site"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        sites.faults.clear()
        assert start(sites).wait(120) == 0
        assert digests(home / "library") >= contents(sites)


def test_two_syncs_at_once_share_the_work_and_fetch_nothing_twice(several: Sites, home: Path) -> None:
    processes = [start(several), start(several)]
    assert [process.wait(180) for process in processes] == [0, 0]
    assert max(downloads(several).values()) == 1
    with Registry(home / "registry.db") as registry:
        assert {job.state for job in registry.jobs.rows()} == {"done"}
        assert registry.check().endswith("files")
    assert not list((home / "workers").iterdir())


def test_what_another_sync_brought_since_the_plan_was_made_is_not_fetched_again(
    several: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(several)
    plan = session.plan(EVERYTHING, all_versions=True)
    assert any(item.name.endswith(".zip") for item in plan.to_fetch)  # whose hash no file has
    session.sync(EVERYTHING, all_versions=True)
    with session.registry.write():
        jobs = [job.id for _, job in enqueue(session.registry, session.folder, plan.items)]
    list(session.run(jobs))
    assert max(downloads(several).values()) == 1


def test_a_worker_that_was_killed_leaves_its_jobs_to_the_next(several: Sites, home: Path) -> None:
    process = start(several)
    wait_until(lambda: len(downloads(several)) >= 20, process)
    process.kill()
    process.wait()
    with Registry(home / "registry.db") as registry:
        assert any(job.owner for job in registry.jobs.rows())
    assert start(several).wait(120) == 0
    assert not list((home / "library").glob(".hnetkit-*"))
    with Registry(home / "registry.db") as registry:
        assert {job.state for job in registry.jobs.rows()} == {"done"}


def test_the_locks_of_workers_that_were_killed_without_a_job_are_removed(
    site: Sites, here: FetchSession, home: Path
) -> None:
    workers = home / "workers"
    with Worker(workers) as living:
        dead = workers / f"{'0' * 32}.lock"
        dead.touch()
        here.sync(EVERYTHING)
        assert [path.stem for path in workers.iterdir()] == [living.name]
    assert not list(workers.iterdir())


def test_no_more_files_at_a_time_than_asked_for(large: Sites, open_session: Callable[..., FetchSession]) -> None:
    large.faults.add(Fault("F", "storage", times=30, mode="stall", seconds=0.05))
    open_session(large, parallel=3, previews=False).sync(Filters(nsfw=True, username="inkfox_test"), all_versions=True)
    assert large.in_flight_peak("storage") == 3


@pytest.mark.parametrize("parallel", [1, 2])
def test_the_next_file_comes_while_one_is_installed_but_not_where_one_at_a_time_is_asked_for(
    large: Sites, open_session: Callable[..., FetchSession], monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    install, number, came = jobs.install, itertools.count(), list[bool]()

    def waits(*args: Any) -> Any:  # the first one, for the file after those that come anyway; with 1 for a moment only
        if next(number) == 0:
            until = time.monotonic() + (0.2 if parallel == 1 else 20.0)
            while len(sent(large)) <= parallel and time.monotonic() < until:
                time.sleep(0.01)
            came.append(len(sent(large)) > parallel)
        return install(*args)

    monkeypatch.setattr(jobs, "install", waits)
    session = open_session(large, parallel=parallel, sidecars=False)
    assert len(session.sync(Filters(nsfw=True, username="inkfox_test"))) > 2
    assert came == [parallel == 2]
    assert large.in_flight_peak("storage") <= parallel


def sent(sites: Sites) -> list[str]:
    """The files that the storage was asked for."""
    return [request.path for request in sites.requests if request.origin == "storage"]


def test_files_share_connections_also_where_each_is_a_redirect(
    site: Sites, open_session: Callable[..., FetchSession]
) -> None:
    site.alter = redirecting(b"<p>Found. Redirecting.</p>")
    session = open_session(site, parallel=1, sidecars=False)
    assert len(session.sync(EVERYTHING, all_versions=True)) > 2
    assert (site.connected("api"), site.connected("storage")) == (1, 1)


def test_of_a_redirect_no_more_is_read_than_a_connection_costs(
    site: Sites, open_session: Callable[..., FetchSession]
) -> None:
    site.alter = redirecting(bytes(50_000_000))
    results = open_session(site, parallel=1, sidecars=False).sync(EVERYTHING, all_versions=True)
    assert {result.state for result in results} == {"done"}
    assert not [r for r in site.requests if r.sent > 20_000_000]


def test_a_redirect_that_stalls_is_followed_all_the_same(
    site: Sites, open_session: Callable[..., FetchSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.trust.SLOW_S", 0.2)
    site.alter = redirecting(b"<p>Found. Redirecting.</p>", stall_after=5, stall_seconds=60.0)
    results = open_session(site, sidecars=False).sync(EVERYTHING)
    assert {result.state for result in results} == {"done"}


def redirecting(body: bytes, **settings: Any) -> Callable[[Request, Response], Response]:
    """Gives the redirects of downloads a body, as sites do."""

    def altered(request: Request, response: Response) -> Response:
        if request.path.startswith("/api/download/"):
            response = replace(response, body=body, **settings)
        return response

    return altered


def test_what_the_site_lost_is_a_state_and_stays_here(open_session: Callable[..., FetchSession]) -> None:
    with Sites(World.make(8, plain=True)) as sites:
        session = open_session(sites)
        session.sync(EVERYTHING, all_versions=True)
        ids = sites.world.ids()
        sites.world.remove(ids[0])
        sites.world.archive(ids[1])
        sites.world.take_down(ids[2])
        files = set(installed(session).values())
        with session.registry.write():
            session.registry.catalogue._db.execute("UPDATE models SET last_seen = '2020-01-01T00:00:00+00:00'")
        gone = unlisted_models(session.registry, session.plan(EVERYTHING, all_versions=True).models)
        states = dict(check_unlisted(session.registry, session.civitai, session.clock, gone))
        assert states[str(ids[0])] == "gone"
        assert states[str(ids[1])] == "archived"
        assert all(path.is_file() for path in files)
        assert unlisted_models(session.registry, session.plan(EVERYTHING, all_versions=True).models) == [], (
            "they were asked about just now"
        )


def test_one_answer_that_a_model_is_gone_proves_nothing(open_session: Callable[..., FetchSession]) -> None:
    with Sites(World.make(3, plain=True)) as sites:
        session = open_session(sites)
        session.sync(EVERYTHING, all_versions=True)
        id = sites.world.ids()[0]
        sites.faults.add(Fault("I", "api", status=404, match=f"/models/{id}"))
        assert dict(check_unlisted(session.registry, session.civitai, session.clock, [str(id)])) == {str(id): "listed"}
        assert len([r for r in sites.requests if r.path.endswith(f"/models/{id}")]) == 2


def test_a_newer_version_is_an_update_until_it_is_here(open_session: Callable[..., FetchSession]) -> None:
    with Sites(World.make(5, plain=True)) as sites:
        session = open_session(sites)
        session.sync(EVERYTHING, all_versions=True)
        assert list(find_updates(session.registry, session.civitai)) == []
        id = sites.world.ids()[1]
        version = sites.world.add_version(id)
        (update,) = find_updates(session.registry, session.civitai)
        assert (update.model.id, update.newest.version_id) == (id, version["id"])
        session.pull(f"version:{version['id']}")
        assert list(find_updates(session.registry, session.civitai)) == []


def test_a_file_that_its_owner_replaced_later_comes_beside_the_old_one(
    open_session: Callable[..., FetchSession],
) -> None:
    with Sites(World.make(3, plain=True)) as sites:
        session = open_session(sites)
        session.sync(EVERYTHING, all_versions=True)
        before = set(installed(session))
        file = next(f for _, _, f in sites.world.files() if f["type"] == "Model")
        new = sites.world.replace_file(file["id"]).lower()
        (job,) = session.sync(EVERYTHING, all_versions=True)
        assert (job.state, job.sha256) == ("done", new)
        assert set(installed(session)) >= before
        assert installed(session)[new].is_file()


def test_a_file_that_its_owner_replaced_is_an_update_until_it_is_here(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING, all_versions=True)
    model, version, file = next(found for found in site.world.files() if found[2]["type"] == "Model")
    site.world.replace_file(file["id"])
    for _ in range(2):  # the site's new hash is stored by the first
        (update,) = here.updates()
        assert (update.model.id, update.newest.file_id, update.is_replaced) == (model["id"], file["id"], True)
    here.pull(f"version:{version['id']}")
    assert here.updates() == []


def test_a_file_of_a_version_that_was_never_fetched_is_no_update(
    several: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(several)
    _, version, file = next(
        found for found in several.world.files() if found[2]["type"] == "Model" and len(found[1]["files"]) > 1
    )
    session.pull(several.download_url(version["id"], file["id"]))
    assert session.updates() == []


def test_what_a_network_was_unpacked_from_has_updates_too(
    several: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(several)
    model = next(model for model, _, file in several.world.files() if file["name"].endswith(".zip"))
    session.pull(f"model:{model['id']}")
    version = several.world.add_version(model["id"])
    (update,) = session.updates()
    assert (update.model.id, update.newest.version_id) == (model["id"], version["id"])


@pytest.mark.parametrize("field", ["nsfw", "nsfwLevel"])
def test_a_model_that_the_site_lists_by_mistake_without_nsfw_is_left_out(
    site: Sites, here: FetchSession, field: str
) -> None:
    bare, *others = site.world.models

    def alter(request: Request, response: Response) -> Response:
        if not request.path.endswith("/models"):
            return response
        page = json.loads(response.body)
        for model in page["items"]:
            if model["id"] == bare["id"]:
                model[field] = True if field == "nsfw" else 28
        return json_response(page)

    site.alter = alter
    assert {model.id for model in here.plan(Filters()).models} == {model["id"] for model in others}
    assert {model.id for model in here.plan(EVERYTHING).models} == {model["id"] for model in site.world.models}


def test_what_a_listing_without_nsfw_leaves_out_is_not_called_unlisted(site: Sites, here: FetchSession) -> None:
    bare = site.world.models[0]
    bare |= {"nsfw": True, "nsfwLevel": 28}
    here.sync(EVERYTHING, all_versions=True)
    with here.registry.write():
        here.registry.catalogue._db.execute("UPDATE models SET last_seen = '2020-01-01T00:00:00+00:00'")
    site.clear()
    assert here.sync(Filters(), all_versions=True) == []
    assert [request for request in site.requests if request.path.endswith(f"/models/{bare['id']}")] == []


def test_a_type_in_another_case_is_the_same_type(site: Sites, here: FetchSession) -> None:
    def alter(request: Request, response: Response) -> Response:
        changed = response.body.replace(b'"Hypernetwork"', b'"hypernetwork"') if response.body else response.body
        return Response(response.status, response.headers, changed)

    site.alter = alter
    assert len(here.plan(EVERYTHING).models) == len(site.world.models)


def test_values_that_a_later_answer_leaves_out_are_kept(open_session: Callable[..., FetchSession]) -> None:
    with Sites(World.make(3, plain=True)) as sites:
        session = open_session(sites)
        session.sync(EVERYTHING, all_versions=True)
        model = next(model for model in sites.world.models if model.get("tags"))
        tags = list(model["tags"])
        del model["tags"]
        model["stats"] = {}
        session.sync(EVERYTHING, all_versions=True)
        row = session.registry.catalogue.model("civitai", str(model["id"]))
        assert row["tags"] == tags
        assert row["downloads"] is not None
        model["tags"] = []
        session.registry.catalogue.models()
        from hnetkit.sources.sync import store_models

        store_models(session.registry, session.plan(EVERYTHING, all_versions=True).models)
        row = session.registry.catalogue.model("civitai", str(model["id"]))
        assert row["tags"] == []
