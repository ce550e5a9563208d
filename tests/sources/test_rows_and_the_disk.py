"""The disk is looked at before anything is fetched: what is there is not fetched again, wherever it lies by now."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_sites import Fault, Sites
from support.fetching import EVERYTHING, installed
from support.killed import Killed, full_disk, killed_at
from support.registry_rows import row

from hnetkit.cli import run
from hnetkit.errors import NotFound
from hnetkit.files import mtime_of
from hnetkit.formats.reading import READER_VERSION
from hnetkit.library.library import Library
from hnetkit.library.scan import recheck, scan
from hnetkit.registry import Registry
from hnetkit.sources.maintenance import find_damage
from hnetkit.sources.presence import find_bytes, survey
from hnetkit.sources.results import FetchResult
from hnetkit.sources.session import FetchSession


@pytest.fixture
def mirror(site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch) -> FetchSession:
    """A library with everything of the site, of which no request is remembered."""
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    monkeypatch.setenv("CIVITAI_TOKEN", site.token)
    here.sync(EVERYTHING, all_versions=True)
    site.clear()
    return here


def fetched(sites: Sites) -> list[str]:
    return [request.path for request in sites.requests if "/download/" in request.path]


def damaged(path: Path) -> bytes:
    """Changes one byte of a file, as a disk does: size and time stay."""
    data, status = bytearray(path.read_bytes()), path.stat()
    data[-200] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return bytes(data)


def no_links(*args: Any, **more: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


# --- renamed, moved, copied


def renamed(path: Path) -> Path:
    return path.rename(path.with_name(f"best of {path.name}"))


def moved(path: Path) -> Path:
    (path.parent / "people" / "old").mkdir(parents=True, exist_ok=True)
    return path.rename(path.parent / "people" / "old" / path.name)


def copied(path: Path) -> Path:
    copy = path.with_name(f"copy of {path.name}")
    shutil.copy(path, copy)
    path.unlink()
    return copy


@pytest.mark.parametrize("change", [renamed, moved, copied])
def test_what_was_renamed_moved_or_copied_is_not_fetched_again_and_the_plan_says_where_it_is(
    site: Sites, mirror: FetchSession, change: Callable[[Path], Path]
) -> None:
    now = {change(path) for path in installed(mirror).values()}
    plan = mirror.plan(EVERYTHING, all_versions=True)
    assert plan.to_fetch == []
    assert {Path(str(item.path)) for item in plan.items} == now
    assert mirror.carry_out(plan) == []
    (result,) = mirror.pull(f"version:{plan.items[0].version_id}")[:1]
    assert (result.state, result.paths) == ("have", (plan.items[0].path,))
    assert mirror.repair() == []
    assert set(installed(mirror).values()) == now
    assert fetched(site) == []


def test_what_was_moved_into_a_scanned_folder_inside_the_library_is_known_there(
    site: Sites, mirror: FetchSession
) -> None:
    first = next(iter(installed(mirror).values()))
    (inside := mirror.folder / "people").mkdir()
    mirror.library.scan(inside)
    first.rename(inside / first.name)
    assert mirror.sync(EVERYTHING, all_versions=True) == []
    assert fetched(site) == []


def test_a_library_that_was_moved_to_another_disk_is_known_there_and_not_fetched_again(
    site: Sites, mirror: FetchSession, tmp_path: Path
) -> None:
    new, before = tmp_path / "new disk", set(installed(mirror).values())
    shutil.move(mirror.folder, new)
    mirror.library.folder = mirror.folder = new
    assert mirror.sync(EVERYTHING, all_versions=True) == []
    assert {path.parent for path in installed(mirror).values()} == {new}
    assert mirror.repair() == []
    assert fetched(site) == []
    missing = {Path(row["path"]) for row in mirror.registry.files.missing()}
    assert missing == before


@pytest.mark.parametrize(
    ("how", "verb"), [("folder", "sync"), ("folder", "repair"), ("folder", "pull"), ("link", "sync")]
)
def test_before_files_of_a_disk_that_may_be_away_are_fetched_again_the_place_is_named(
    mirror: FetchSession, tmp_path: Path, how: str, verb: str
) -> None:
    item = next(item for item in mirror.plan(EVERYTHING, all_versions=True).items if item.action == "have")
    path = Path(str(item.path))
    disk = mirror.folder / "disk" if how == "folder" else tmp_path / "disk"
    disk.mkdir()
    there = path.rename(disk / path.name)
    if how == "link":
        path.symlink_to(there)
    verbs: dict[str, Callable[[], list[FetchResult]]] = {
        "sync": lambda: mirror.sync(EVERYTHING, all_versions=True),
        "repair": mirror.repair,
        "pull": lambda: mirror.pull(f"version:{item.version_id}"),
    }
    assert {result.state for result in verbs[verb]()} <= {"have"}
    disk.rename(tmp_path / "away")
    if how == "folder":
        disk.mkdir()
    state = "is empty" if how == "folder" else "is not there"
    with pytest.warns(UserWarning, match=re.escape(f"{disk} {state}, and its disk may be away")):
        found = verbs[verb]()
    assert "done" in {result.state for result in found}


def test_a_damaged_file_of_a_moved_library_is_repaired_where_it_is(
    site: Sites, mirror: FetchSession, tmp_path: Path
) -> None:
    old, new = mirror.folder, tmp_path / "new"
    shutil.move(old, new)
    mirror.library.folder = mirror.folder = new
    mirror.survey()
    path = next(iter(installed(mirror).values()))
    good = path.read_bytes()
    damaged(path)
    (result,) = mirror.repair()
    assert (result.state, result.paths) == ("done", (str(path),))
    assert path.read_bytes() == good
    assert not old.exists()


def test_files_of_a_library_without_a_registry_are_not_fetched_even_by_a_dry_run(
    site: Sites, mirror: FetchSession, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HNETKIT_LIBRARY", str(mirror.folder))
    monkeypatch.setenv("HNETKIT_HOME", str(home / "another"))
    assert run(["sync", "--dry-run", "--all-versions", "--nsfw"]) == 0
    told = capsys.readouterr()
    assert "0 to fetch" in told.err
    assert {line.split()[0] for line in told.out.splitlines()} == {"have"}
    assert all(str(path) in told.out for path in installed(mirror).values())
    assert not (home / "another").exists()


def test_a_file_that_cannot_be_looked_at_counts_as_there(
    site: Sites, mirror: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, unseen = sorted(installed(mirror).values())[:2]
    gone.unlink()
    real = os.stat

    def stat(path: Any, *args: Any, **more: Any) -> os.stat_result:
        if path == str(unseen):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, *args, **more)

    monkeypatch.setattr("hnetkit.sources.presence.os.stat", stat)
    plan = mirror.plan(EVERYTHING, all_versions=True)
    assert [item.name for item in plan.to_fetch] == [gone.name]


LOOKING: dict[str, Callable[[FetchSession], object]] = {
    "damages": FetchSession.damages,
    "identify": FetchSession.identify,
    "plan": FetchSession.plan,
    "plan_pull": lambda session: session.plan_pull(f"model:{session.registry.catalogue.models()[0]['remote_id']}"),
    "pull": lambda session: session.pull(f"model:{session.registry.catalogue.models()[0]['remote_id']}"),
    "repair": FetchSession.repair,
    "survey": FetchSession.survey,
    "sync": FetchSession.sync,
    "updates": FetchSession.updates,
}
OTHERS = {"browse", "carry_out", "close", "enqueue", "require_library", "run"}
"""These take what another one gave, or ask the site alone."""
SAVED = {"subscribe", "subscription", "subscriptions", "unsubscribe"}


def test_every_verb_of_a_session_is_known_to_look_at_the_disk_or_to_need_no_look() -> None:
    verbs = {name for name in vars(FetchSession) if not name.startswith("_")}
    assert verbs == LOOKING.keys() | OTHERS | SAVED


@pytest.mark.parametrize("verb", LOOKING)
def test_every_verb_that_decides_from_rows_looks_at_the_disk_first(mirror: FetchSession, verb: str) -> None:
    path = sorted(installed(mirror).values())[0]
    now = renamed(path)
    LOOKING[verb](mirror)
    states = {Path(row["path"]): row["state"] for row in mirror.registry.files.rows()}
    assert (states[now], states[path]) == ("present", "missing")
    assert not path.exists()


# --- nothing left


def test_a_known_library_of_which_nothing_is_left_is_not_filled_again_without_being_asked_for(
    site: Sites, mirror: FetchSession, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(mirror.folder)
    mirror.folder.mkdir()  # an empty mount point
    for command in (["sync", "-y", "--all-versions", "--nsfw"], ["repair"], ["sync", "--nsfw", "--all-versions"]):
        assert run(command) == NotFound.exit_code
        told = capsys.readouterr().err
        assert "nothing is left of the library" in told
        assert "HNETKIT_LIBRARY" in told
        assert "--refill" in told
    assert os.listdir(mirror.folder) == []
    assert fetched(site) == []
    assert run(["sync", "-y", "--all-versions", "--nsfw", "--refill", "--no-sidecars"]) == 0
    assert len(os.listdir(mirror.folder)) == len(installed(mirror))


def test_a_library_that_is_set_to_a_wrong_folder_is_not_fetched_into_it(
    mirror: FetchSession, tmp_path: Path, site: Sites
) -> None:
    mirror.folder.rename(tmp_path / "away")
    mirror.library.folder = mirror.folder = tmp_path / "typo"
    with pytest.raises(NotFound, match="nothing is left"):
        mirror.sync(EVERYTHING, all_versions=True)
    assert not (tmp_path / "typo").exists()
    mirror.sync(EVERYTHING, all_versions=True, refill=True)
    assert (tmp_path / "typo").exists()


def test_repair_of_a_library_of_which_nothing_is_left_needs_refill(mirror: FetchSession) -> None:
    count = len(installed(mirror))
    shutil.rmtree(mirror.folder)
    with pytest.raises(NotFound, match=f"nothing is left of the library .{count} files"):
        mirror.repair()
    assert len(mirror.repair(refill=True)) == count


def test_who_removed_the_networks_alone_is_not_asked(mirror: FetchSession) -> None:
    for path in installed(mirror).values():
        path.unlink()
    assert list(mirror.folder.glob("*.civitai.info")), "the disk is there"
    assert {result.state for result in mirror.sync(EVERYTHING, all_versions=True)} == {"done"}


def test_a_pull_onto_a_disk_that_may_not_be_mounted_warns(mirror: FetchSession) -> None:
    version = mirror.plan(EVERYTHING).items[0].version_id
    shutil.rmtree(mirror.folder)
    with pytest.warns(UserWarning, match="is its disk mounted"):
        mirror.pull(f"version:{version}")


# --- repair


def test_a_damaged_file_stays_until_its_replacement_is_here_and_is_named_then(
    site: Sites, mirror: FetchSession, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sorted(installed(mirror).values())[0]
    good, bad = path.read_bytes(), damaged(path)
    site.faults.add(Fault("N", "api", times=1, status=410))
    assert run(["repair", "--no-previews"]) == 4
    told = capsys.readouterr()
    assert f"the damaged file stays: {path}" in told.err
    assert path.read_bytes() == bad
    assert not (mirror.folder / ".quarantine").exists()
    assert run(["repair", "--no-previews"]) == 0
    (kept,) = (mirror.folder / ".quarantine").glob("*.bad")
    assert f"the damaged file is now {kept}" in capsys.readouterr().out
    assert (path.read_bytes(), kept.read_bytes()) == (good, bad)
    assert list(find_damage(mirror.registry)) == []
    assert list(recheck(mirror.registry)) == []


def test_what_a_person_puts_in_the_place_of_a_damaged_file_meanwhile_is_kept(site: Sites, mirror: FetchSession) -> None:
    path = sorted(installed(mirror).values())[0]
    good = path.read_bytes()
    damaged(path)
    damages = mirror.damages()
    path.write_bytes(b"my own")
    (result,) = mirror.repair(damages)
    assert path.read_bytes() == b"my own"
    assert good in [Path(found).read_bytes() for found in result.paths]


def test_without_hard_links_a_damaged_file_is_replaced_as_well(
    mirror: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sorted(installed(mirror).values())[0]
    good, bad = path.read_bytes(), damaged(path)
    monkeypatch.setattr(os, "link", no_links)
    assert [result.state for result in mirror.repair()] == ["done"]
    (kept,) = (mirror.folder / ".quarantine").glob("*.bad")
    assert (path.read_bytes(), kept.read_bytes()) == (good, bad)


@pytest.mark.parametrize(
    ("by", "after"), [(Killed, False), (Killed, True), (full_disk, False)], ids=["before", "after", "full disk"]
)
@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_wherever_a_repair_ends_one_of_both_files_is_whole_and_the_next_one_completes_it(
    mirror: FetchSession, monkeypatch: pytest.MonkeyPatch, by: Any, after: bool, links: bool
) -> None:
    path = sorted(installed(mirror).values())[0]
    good = path.read_bytes()
    for number in range(1, 100):
        shutil.rmtree(mirror.folder / ".quarantine", ignore_errors=True)
        bad = damaged(path)
        with monkeypatch.context() as patched:
            if not links:
                patched.setattr(os, "link", no_links)
            with killed_at(patched, number, after=after, by=by) as made, contextlib.suppress(Killed, OSError):
                mirror.repair()
        whole = [found.read_bytes() for found in mirror.folder.rglob("*") if found.is_file()]
        assert good in whole or bad in whole
        assert good in whole or path.read_bytes() == bad, "the damaged file stays until the other one is here"
        assert {result.state for result in mirror.repair()} <= {"done", "had"}
        assert path.read_bytes() == good
        assert mirror.repair() == []
        if len(made) < number:
            assert "replace" in made
            return
    raise AssertionError("it changes names a hundred times")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_wherever_a_repair_is_killed_the_next_one_leaves_no_part_of_a_download(
    mirror: FetchSession, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    path = sorted(installed(mirror).values())[0]
    good = path.read_bytes()
    for number in range(1, 100):
        path.unlink()
        with killed_at(monkeypatch, number, after=after) as made, contextlib.suppress(Killed):
            mirror.repair()
        mirror.repair()
        assert path.read_bytes() == good
        assert list(mirror.folder.glob(".hnetkit-*")) == [], (number, made)
        if len(made) < number:
            assert "link" in made
            return
    raise AssertionError("it changes names a hundred times")


# --- a large library


def test_following_what_was_moved_takes_as_long_for_each_in_a_large_library(tmp_path: Path) -> None:
    def time_of(count: int) -> float:
        folder = tmp_path / str(count)
        (folder / "old").mkdir(parents=True)
        with Registry(tmp_path / f"{count}.db") as registry:
            with registry.write():
                root = registry.files.add_root(folder)
                for number in range(count):
                    sha256, new = hashlib.sha256(str(number).encode()).hexdigest(), folder / f"n{number}.pt"
                    new.write_bytes(b"12345")
                    known = {**row(1), "sha256": sha256, "size_bytes": 5, "kind": "hypernetwork"}
                    registry.files.put(root, new.name, mtime_of(new.stat()), READER_VERSION, known)
                    values = {"source": "civitai", "url": "", "name": new.stem, "suffix": ".pt"}
                    values |= {"folder": str(folder), "remote_file_id": None, "sha256": sha256, "size_bytes": 5}
                    job = registry.jobs.add(f"civitai:{number}", values)
                    registry.jobs.add_install(str(folder / "old" / new.name), job.id, "network", sha256)
            began = time.process_time()
            survey(registry, folder)
            took = time.process_time() - began
            assert {Path(made["path"]).parent for made in registry.jobs.installs()} == {folder}
            return took

    time_of(30)
    assert time_of(2000) < 10 * time_of(400)


def test_a_library_is_surveyed_once_for_many_files(mirror: FetchSession, home: Path) -> None:
    with Library(home) as library, FetchSession(library, site=mirror.civitai) as session:
        session.survey()
        read: list[int] = []
        session.survey(lambda done, total: read.append(total))
    assert read == [], "what is known is not read again"


def test_bytes_that_the_last_scan_missed_and_that_are_back_are_not_fetched_again(
    site: Sites, here: FetchSession, tmp_path: Path
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    mine = tmp_path / "mine"
    here.folder.rename(mine)
    here.library.scan(mine)
    away = mine.rename(tmp_path / "away")
    here.folder.mkdir()
    list(scan(here.registry))  # both folders are without the files
    away.rename(mine)
    assert all(find_bytes(here.registry, sha256) is not None for sha256 in installed(here))
    site.clear()
    assert {item.action for item in here.plan(EVERYTHING, all_versions=True).items} == {"have"}
