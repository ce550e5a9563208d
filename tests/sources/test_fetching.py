"""One file at a time, over real sockets, whatever the sites do: it comes whole and right, or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_sites import Fault, Sites, World
from support.fetching import EVERYTHING, installed, jobs_of

import hnetkit
from hnetkit.sources.install import safe_stem, split_name
from hnetkit.sources.session import FetchSession


@pytest.fixture
def site() -> Any:
    """A site with one ordinary model of 130 kB."""
    with Sites(World.make(1, plain=True, widths=(64,))) as sites:
        yield sites


def only_model(site: Sites) -> str:
    return f"model:{site.world.models[0]['id']}"


def only_file(site: Sites) -> int:
    return int(site.world.models[0]["modelVersions"][0]["files"][0]["id"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def leftovers(session: FetchSession) -> list[str]:
    return sorted(path.name for path in session.folder.glob(".hnetkit-*"))


PASSING = [
    Fault("B", "api"),
    Fault("C", "storage"),
    Fault("E", "storage", after=40_000),
    Fault("E", "storage", after=40_000, content_length=False),
    Fault("E", "storage", after=40_000, reset=True),
    Fault("E", "api"),
    Fault("F", "storage", mode="drip", seconds=0.2),
    Fault("F", "storage", mode="stall", seconds=0.3),
    Fault("G", "storage"),
    Fault("G", "api"),
    Fault("H", "api", retry_after=2),
    Fault("H", "api", retry_after=2, form="date"),
    Fault("H", "api", retry_after=None),
    Fault("H", "storage", retry_after=None),
    Fault("I", "api", times=3),
    Fault("I", "storage", times=3),
    Fault("I", "api", status=522),
    Fault("K", "api"),
    Fault("M", "api"),
    Fault("R", "storage", mode="traversal"),
    Fault("R", "storage", mode="latin1"),
    Fault("R", "storage", mode="long"),
    Fault("S", "storage"),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.where}-{fault.options}")
def test_a_trouble_that_passes_leaves_the_right_file_and_nothing_else(
    site: Sites, here: FetchSession, fault: Fault
) -> None:
    site.faults.add(fault)
    (job,) = here.pull(only_model(site))
    assert site.faults.fired, "the fault never happened"
    assert (job.state, job.reason) == ("done", None)
    ((digest, path),) = installed(here).items()
    assert sha256(path) == digest == site.world.sha256(only_file(site)).lower()
    assert path.parent == here.folder
    assert hnetkit.load(path).widths == [64]
    assert leftovers(here) == []


@pytest.mark.parametrize("mode", ["ignored", "wrong-start", "416"])
def test_a_cut_file_is_resumed_and_a_wrong_answer_to_the_range_begins_anew(
    site: Sites, here: FetchSession, mode: str
) -> None:
    site.faults.add(Fault("E", "storage", after=40_000))
    site.faults.add(Fault("D", "storage", mode=mode))
    (job,) = here.pull(only_model(site))
    assert {fired.fault.kind for fired in site.faults.fired} == {"E", "D"}
    assert job.state == "done"
    assert sha256(next(iter(installed(here).values()))) == site.world.sha256(only_file(site)).lower()


def test_a_resumed_file_asks_only_for_what_is_missing(site: Sites, here: FetchSession) -> None:
    site.faults.add(Fault("E", "storage", after=40_000))
    (job,) = here.pull(only_model(site))
    assert job.state == "done"
    transfers = [r for r in site.requests if r.origin == "storage" and not r.path.startswith("/images/")]
    first, second = (int(r.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-")) for r in transfers)
    assert (first, transfers[1].status) == (0, 206)
    assert 0 < second <= 40_000
    assert transfers[1].sent == len(site.world.content(only_file(site))) - second


def test_every_attempt_asks_the_site_for_a_fresh_link(site: Sites, here: FetchSession) -> None:
    site.faults.add(Fault("I", "storage", times=2))
    here.pull(only_model(site))
    links = [request for request in site.requests if request.origin == "api" and "/download/" in request.path]
    assert len(links) == 3


def test_a_wrong_hash_that_stays_wrong_goes_to_quarantine(site: Sites, here: FetchSession) -> None:
    site.faults.add(Fault("L", "api", times=100))
    (job,) = here.pull(only_model(site))
    assert (job.state, job.code) == ("refused", "wrong-bytes")
    assert installed(here) == {}
    (bad,) = (here.folder / ".quarantine").glob("*.bad")
    assert sha256(bad) == site.world.sha256(only_file(site)).lower()
    assert json.loads(Path(f"{bad}.json").read_text())["reason"] == job.reason
    assert leftovers(here) == []


def test_a_file_that_its_owner_replaced_meanwhile_is_taken_as_it_is_now(site: Sites, here: FetchSession) -> None:
    before = site.world.sha256(only_file(site)).lower()
    site.faults.add(Fault("M", "api"))
    (job,) = here.pull(only_model(site))
    assert job.state == "done"
    assert job.sha256 == site.world.sha256(only_file(site)).lower() != before


@pytest.mark.parametrize(
    ("options", "code", "state"),
    [
        ({"status": 410}, "archived", "failed"),
        ({"status": 451}, "region-blocked", "failed"),
        ({"status": 403}, "early-access", "failed"),
    ],
)
def test_each_refusal_of_the_site_is_told_apart(
    site: Sites, here: FetchSession, options: dict[str, Any], code: str, state: str
) -> None:
    site.faults.add(Fault("N", "api", times=10, **options))
    (job,) = here.pull(only_model(site))
    assert (job.state, job.code) == (state, code)
    assert len([request for request in site.requests if "/download/" in request.path]) == 1, "it was asked again"


def test_without_a_token_the_first_refusal_ends_the_work_and_says_how_to_set_one(
    open_session: Callable[..., FetchSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sites(World.make(12, plain=True), needs_token=True) as sites:
        session = open_session(sites, token="not-the-token", parallel=1)
        jobs = jobs_of(session, session.sync(EVERYTHING, all_versions=True))
        assert {(job.state, job.code) for job in jobs} == {("failed", "no-token")}
        assert len([request for request in sites.requests if "/download/" in request.path]) == 1
        again = open_session(sites)
        assert {job.state for job in jobs_of(again, again.sync(EVERYTHING, all_versions=True))} == {"done"}


@pytest.mark.parametrize("mode", ["loop", "stranger", "file"])
def test_a_redirect_to_nowhere_good_is_not_followed(site: Sites, here: FetchSession, mode: str) -> None:
    site.faults.add(Fault("Q", "api", times=20, mode=mode))
    (job,) = here.pull(only_model(site))
    assert job.state in ("failed", "refused")
    assert installed(here) == {}
    assert not [r for r in site.requests if r.origin == "stranger" and "authorization" in r.headers]


@pytest.mark.parametrize("mode", ["redirect", "html"])
def test_the_page_for_browsers_is_never_saved_as_a_model(site: Sites, here: FetchSession, mode: str) -> None:
    site.faults.add(Fault("O", "api", times=20, mode=mode))
    (job,) = here.pull(only_model(site))
    assert job.state == "failed"
    assert installed(here) == {}
    assert not list(here.folder.glob("*.pt"))


def test_a_pause_that_the_site_asks_for_holds_for_every_worker(
    open_session: Callable[..., FetchSession],
) -> None:
    with Sites(World.make(6, plain=True)) as sites:
        session = open_session(sites, parallel=4)
        sites.faults.add(Fault("H", "api", retry_after=200, match="/download/"))
        assert {job.state for job in session.sync(EVERYTHING, all_versions=True)} == {"done"}
        limited = next(r for r in sites.requests if r.status == 429)
        after = sorted(r.started for r in sites.requests if r.origin == "api" and r.started > limited.ended)
        del after[:3]  # the other workers may have been on their way
        assert min(after) - limited.ended >= 0.9, "somebody asked during the pause of 200 s, one second on this clock"


def test_bytes_come_no_faster_than_the_limit(site: Sites, open_session: Callable[..., FetchSession]) -> None:
    size = len(site.world.content(only_file(site)))
    slow = open_session(site, limit=size / 400, previews=False)
    started = time.monotonic()
    slow.pull(only_model(site))
    assert time.monotonic() - started >= 0.8, "400 s on this clock are two"


def test_a_disk_without_room_is_said_before_anything_comes(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    (job,) = here.pull(only_model(site))
    assert (job.state, job.code) == ("failed", "disk-full")
    assert list(here.folder.iterdir()) == []


def test_what_a_person_put_there_is_never_replaced(site: Sites, here: FetchSession) -> None:
    here.folder.mkdir()
    stem, suffix = split_name(here.plan(EVERYTHING, all_versions=True).items[0].name)
    mine = here.folder / f"{safe_stem(stem, 'x')}{suffix}"
    mine.write_bytes(b"mine")
    (job,) = here.pull(only_model(site))
    ((_, path),) = installed(here).items()
    assert job.state == "done"
    assert mine.read_bytes() == b"mine"
    assert path != mine
    assert path.stem.startswith(mine.stem)


def test_the_same_bytes_that_are_here_already_are_adopted(site: Sites, here: FetchSession) -> None:
    jobs_of(here, here.pull(only_model(site)))
    ((_, path),) = installed(here).items()
    status = path.stat()
    site.clear()
    jobs = jobs_of(here, here.pull(only_model(site)))
    assert jobs == []
    assert not [r for r in site.requests if r.origin == "storage" and "/images/" not in r.path]
    assert path.stat().st_mtime_ns == status.st_mtime_ns
