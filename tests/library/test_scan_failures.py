"""One file stops no scan: whatever is wrong with it, the others are stored, and it is named."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from support import networks
from support.waiting import wait_until

from hnetkit.inspection import KnownHashes, examine
from hnetkit.library.examining import WORKERS
from hnetkit.library.scan import FileChange, recheck, scan
from hnetkit.registry import Registry

AFTER_2262 = 10_413_792_000_000_000_000  # ns; 2300-01-01


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five networks, ``a.pt`` to ``e.pt``."""
    made = tmp_path / "models"
    made.mkdir()
    for seed, stem in enumerate("abcde"):
        networks.network_file(made, f"{stem}.pt", seed=seed)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    with Registry(path) as opened:
        yield opened


def named(found: Iterator[FileChange]) -> list[tuple[str, str]]:
    return sorted((change.what, Path(change.path).name) for change in found)


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


# --- reading


@pytest.fixture
def fails_once(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What hashing raises, one after another, before it works again."""
    waiting: list[BaseException] = []

    def hashing(*arguments: Any) -> Any:
        if waiting:
            raise waiting.pop()
        return blake3(*arguments)

    monkeypatch.setattr("blake3.blake3", hashing)
    return waiting


@pytest.mark.parametrize("error", [OverflowError("too large"), RecursionError(), KeyError("x"), AssertionError()])
def test_a_file_that_nobody_foresaw_is_named_and_not_read_again_until_it_changes(
    registry: Registry, folder: Path, fails_once: list[BaseException], error: Exception
) -> None:
    fails_once.append(error)
    assert {name for _, name in named(scan(registry, [folder]))} == {"a.pt", "b.pt", "c.pt", "d.pt", "e.pt"}
    (row,) = [row for row in registry.files.rows() if row["verdict"] == "refused"]
    assert row["reason"].startswith(f"{row['path']}: {type(error).__name__}")
    assert len(registry.networks.rows()) == 4
    assert named(scan(registry)) == []
    os.utime(row["path"], (1, 1))
    assert named(scan(registry)) == [("changed", Path(row["path"]).name)]
    assert len(registry.networks.rows()) == 5


def test_a_file_that_the_machine_could_not_read_is_tried_again(
    registry: Registry, folder: Path, fails_once: list[BaseException]
) -> None:
    fails_once.append(OSError(errno.EIO, "Input/output error"))
    assert [what for what, _ in named(scan(registry, [folder]))] == ["new"] * 4 + ["unread"]
    assert [what for what, _ in named(scan(registry))] == ["new"]


def test_a_check_goes_on_after_a_file_that_fails(
    registry: Registry, folder: Path, fails_once: list[BaseException]
) -> None:
    list(scan(registry, [folder]))
    (folder / "e.pt").unlink()
    fails_once.append(OSError(errno.EIO, "Input/output error"))
    assert [what for what, _ in named(recheck(registry))] == ["missing", "unread"]
    assert named(recheck(registry)) == []


def test_a_file_that_became_a_pipe_or_a_folder_since_the_walk_is_not_waited_for(
    registry: Registry, folder: Path
) -> None:
    for seed in range(8):
        networks.network_file(folder, f"m{seed}.pt", seed=10 + seed)

    def replace(done: int, total: int) -> None:
        if (folder / "m7.pt").is_file():
            (folder / "m7.pt").unlink()
            (folder / "m6.pt").unlink()
            os.mkfifo(folder / "m7.pt")
            (folder / "m6.pt").mkdir()

    found = {Path(change.path).name: change for change in scan(registry, [folder], replace)}
    assert found.pop("m7.pt").reason == f"{folder / 'm7.pt'}: not a regular file"
    assert {change.what for change in found.values()} == {"new"}
    assert "m6.pt" not in found


# --- storing


@pytest.mark.parametrize("mtime", [AFTER_2262, -(1 << 31) * 10**9, 0, -1])
def test_a_file_of_any_time_is_stored_and_known_again(registry: Registry, folder: Path, mtime: int) -> None:
    os.utime(folder / "c.pt", ns=(mtime, mtime))
    assert [what for what, _ in named(scan(registry, [folder]))] == ["new"] * 5
    assert named(scan(registry)) == named(recheck(registry)) == []
    (folder / "c.pt").write_bytes((folder / "d.pt").read_bytes())
    os.utime(folder / "c.pt", ns=(mtime + 10**9, mtime + 10**9))
    assert named(scan(registry)) == [("changed", "c.pt")]


def test_a_row_that_cannot_be_stored_leaves_the_others(registry: Registry, folder: Path, path: Path) -> None:
    for stem, unfit in (("b", "NEW.content_hash NOTNULL"), ("d", "1")):
        when = f"BEFORE INSERT ON files WHEN NEW.stem = '{stem}' AND {unfit}"
        execute(path, f"CREATE TRIGGER no_{stem} {when} BEGIN SELECT RAISE(ABORT, 'unfit'); END")
    assert named(scan(registry, [folder])) == [
        *(("new", f"{stem}.pt") for stem in "ace"),
        *(("unread", f"{stem}.pt") for stem in "bd"),
    ]
    assert named(scan(registry)) == [("unread", "d.pt")], "b.pt is stored as refused, d.pt not even so"
    assert len(registry.networks.rows()) == 3


@pytest.mark.parametrize(
    "claim",
    [
        {"step": 2**63, "note": 2**64},
        {"step": 10**4_400},
        {"note": [float("nan"), float("-inf")]},
        {"name": "\udc80\ud800", "sd_checkpoint": "\x00"},
    ],
)
def test_what_a_file_claims_is_made_fit(registry: Registry, folder: Path, claim: dict[str, Any]) -> None:
    networks.save_pt(networks.a1111_network(seed=9) | claim, folder / "b.pt")
    assert [what for what, _ in named(scan(registry, [folder]))] == ["new"] * 5
    assert named(scan(registry)) == named(recheck(registry)) == []


def test_a_sidecar_with_a_reference_of_thousands_of_digits_costs_no_search(registry: Registry, folder: Path) -> None:
    (folder / "b.json").write_text(
        json.dumps({"description": f"a &#{9:09}{0:05000}; castle", "activation text": "ink"})
    )
    assert [what for what, _ in named(scan(registry, [folder]))] == ["new"] * 5
    assert len(registry.networks.contents_matching("castle")) == 1


@pytest.mark.parametrize(
    "damage", ["UPDATE files SET warnings = '{'", "UPDATE networks SET widths = '5'", "UPDATE sidecars SET said = '['"]
)
def test_a_scan_reads_again_what_the_registry_cannot_read_any_more(
    registry: Registry, folder: Path, path: Path, damage: str
) -> None:
    (folder / "a.json").write_text('{"notes": "mine"}')
    list(scan(registry, [folder]))
    execute(path, damage)
    assert ("changed", "a.pt") in named(scan(registry))
    assert registry.check() == "5 networks in 5 files"
    assert named(scan(registry)) == []


def test_a_scan_makes_a_lost_search_index_again(registry: Registry, folder: Path, path: Path) -> None:
    list(scan(registry, [folder]))
    execute(path, "DELETE FROM network_text")
    assert named(scan(registry)) == []
    assert len(registry.networks.search("net1")) == 1


# --- links


@pytest.fixture
def outside(tmp_path: Path, folder: Path) -> Path:
    """A folder with a network, to which a link in the scanned one leads."""
    made = tmp_path / "outside"
    (made / "deep").mkdir(parents=True)
    networks.network_file(made / "deep", "far.pt", seed=20)
    (folder / "out").symlink_to(made)
    return made


def scanned(registry: Registry, *folders: Path, **options: Any) -> tuple[list[tuple[str, str]], list[str]]:
    notes: list[str] = []
    return named(scan(registry, folders, note=notes.append, **options)), notes


def test_a_link_that_leads_out_of_the_folder_is_not_followed_and_that_is_said(
    registry: Registry, folder: Path, outside: Path
) -> None:
    (folder / "up").symlink_to("/")
    found, notes = scanned(registry, folder)
    assert [name for _, name in found] == ["a.pt", "b.pt", "c.pt", "d.pt", "e.pt"]
    assert notes == [f"2 links to folders outside were not followed: {folder / 'out'}; --follow-links follows"]


def test_a_link_is_followed_when_that_is_asked_for_and_what_it_led_to_is_kept_later(
    registry: Registry, folder: Path, outside: Path
) -> None:
    found, notes = scanned(registry, folder, follow_links=True)
    assert (("new", "far.pt") in found, notes) == (True, [])
    found, (note,) = scanned(registry)
    assert found == []
    assert "what is known of 1 file behind is kept as it was" in note
    assert {row["state"] for row in registry.files.rows()} == {"present"}
    assert named(recheck(registry)) == []
    (outside / "deep" / "far.pt").unlink()
    assert scanned(registry, follow_links=True)[0] == [("missing", "far.pt")]


def test_links_inside_a_folder_and_links_to_files_and_to_roots_are_followed(
    registry: Registry, folder: Path, outside: Path, tmp_path: Path
) -> None:
    (folder / "out").unlink()
    (folder / ".hidden").mkdir()
    networks.network_file(folder / ".hidden", "near.pt", seed=21)
    (folder / "inside").symlink_to(folder / ".hidden")
    (folder / "file.pt").symlink_to(outside / "deep" / "far.pt")
    (tmp_path / "alias").symlink_to(folder)
    found, notes = scanned(registry, tmp_path / "alias")
    assert {name for _, name in found} >= {"near.pt", "file.pt"}
    assert notes == []


def test_a_link_to_another_scanned_folder_is_nothing_to_speak_of(
    registry: Registry, folder: Path, outside: Path
) -> None:
    assert scanned(registry, folder, outside)[1] == []


# --- links to files


def test_a_file_behind_many_links_is_read_once(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(folder / "holes.pt", "wb") as file:
        file.truncate(8 << 20)
    for number in range(10):
        os.link(folder / "holes.pt", folder / f"holes{number}.pt")
        (folder / f"far{number}.pt").symlink_to("holes.pt")
        (folder / f"ink{number}.pt").symlink_to("a.pt")
        os.link(folder / "a.pt", folder / f"dots{number}.safetensors")
    sizes, pread = [], os.pread
    monkeypatch.setattr("os.pread", lambda *args: sizes.append(args[1]) or pread(*args))
    for found in (scan(registry, [folder]), recheck(registry)):
        sizes.clear()
        assert {change.what for change in found} <= {"new"}
        assert sum(sizes) < 10 << 20
    rows = registry.files.rows()
    assert len(rows) == len({row["path"] for row in rows}) == 46
    for stem, links, content in (("holes", ("holes", "far"), None), ("a", ("ink", "dots"), "h1:")):
        (one,) = (row for row in rows if row["stem"] == stem)
        others = [row for row in rows if row["stem"].startswith(links) and row["stem"] != stem]
        assert len(others) == 20
        assert {(row["sha256"], row["content_hash"]) for row in others} == {(one["sha256"], one["content_hash"])}
        assert content is None or one["content_hash"].startswith(content)


def test_a_file_that_is_replaced_during_a_scan_has_its_own_hashes(registry: Registry, folder: Path) -> None:
    """The same name, the same size and the same time: another file all the same."""
    status = os.stat(folder / "a.pt")
    os.utime(folder / "b.pt", ns=(status.st_atime_ns, status.st_mtime_ns))
    known = KnownHashes()
    first = examine(folder / "a.pt", known=known).hashes
    os.replace(folder / "b.pt", folder / "a.pt")
    second = examine(folder / "a.pt", known=known).hashes
    assert first is not None
    assert second == examine(folder / "a.pt").hashes != first


# --- interrupting


@pytest.fixture
def large(folder: Path) -> Path:
    """A network that takes seconds to read, and no room."""
    return networks.vast_network_file(folder / "large.safetensors")


@pytest.mark.skipif(not hasattr(os, "pread"), reason="this system has no pread, which is counted")
def test_an_interrupt_ends_the_reading_of_a_file(
    registry: Registry, folder: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read, threads = [0], os.pread, threading.active_count()

    def counted(handle: int, size: int, offset: int) -> bytes:
        reads[0] += size == 1 << 20
        if (size, offset) == (1 << 20, 256 << 20):
            os.kill(os.getpid(), signal.SIGINT)
        return read(handle, size, offset)

    monkeypatch.setattr("os.pread", counted)
    with pytest.raises(KeyboardInterrupt):
        list(scan(registry, [folder]))
    assert 256 < reads[0] < 3072, "of 4096 chunks"
    assert len(registry.networks.rows()) == 5, "what was read is stored"
    assert threading.active_count() == threads


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="what a process reads is seen in Linux's /proc")
def test_the_first_interrupt_ends_a_scan_in_the_middle_of_a_large_file(folder: Path, large: Path, home: Path) -> None:
    for number in range(8):
        os.link(large, folder / f"large{number}.safetensors")
    command = [sys.executable, "-P", "-m", "hnetkit", "scan", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: _handles(process.pid, large) >= WORKERS, process)  # all before them are read
        time.sleep(0.5)  # until what was read has been taken over
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (
        130,
        "\nInterrupted.\nHint: what was indexed stays; the same command does the rest\n",
    )
    with Registry(home / "registry.db") as registry:
        assert len(registry.networks.rows()) == 5, "what was read is stored"


def _handles(process: int, path: Path) -> int:
    """How many times a process has a file open, under whatever name."""
    found = 0
    for handle in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            found += os.path.samestat(os.stat(handle), os.stat(path))
    return found
