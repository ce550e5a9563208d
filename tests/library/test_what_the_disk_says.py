"""Rows and the disk are two things: nothing is lost, counted or called missing because of rows alone."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from support import networks
from support.failing_disk import fail_at, make_case_blind

from hnetkit.cli import run
from hnetkit.errors import NotFound, UsageError
from hnetkit.library import trash
from hnetkit.library.library import Library
from hnetkit.library.resolve import find_network
from hnetkit.library.restore import trashed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`ink.pt` and `glow.pt`."""
    made = tmp_path / "models"
    made.mkdir()
    networks.network_file(made, "ink.pt", seed=1)
    networks.network_file(made, "glow.pt", seed=2)
    return made


@pytest.fixture
def library(home: Path, folder: Path) -> Iterator[Library]:
    """Both are known; `ink` has a tag, an alias and a note."""
    with Library(home) as opened:
        opened.scan(folder)
        opened.tag("ink", "lines", alias="thin", note="best at 0.8")
        yield opened


def words(library: Library, name: str) -> tuple[Any, ...]:
    row = library.record(name)
    return row["tags"], row["aliases"], row["note"]


OF_INK = (["lines"], ["thin"], "best at 0.8")


def told(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What a command prints, on stdout and stderr."""
    capsys.readouterr()
    run(list(args))
    said = capsys.readouterr()
    return said.out + said.err


# --- a file that is not where it was


@pytest.mark.parametrize("place", ["best.pt", "deep/ink.pt", "../elsewhere.pt"])
def test_removing_a_file_that_was_moved_since_the_scan_keeps_what_people_said_of_it(
    library: Library, folder: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "deep").mkdir()
    (folder / "ink.pt").rename(folder / place)
    said = told(capsys, "remove", "ink", "-y")
    assert "skipped" in said
    assert "hnetkit scan looks for it, hnetkit forget ink forgets it" in said
    assert words(library, "ink") == OF_INK
    library.scan((folder / place).parent)
    assert words(library, Path(place).stem) == OF_INK


def test_removing_a_file_that_left_an_empty_folder_says_first_what_finds_it(
    library: Library, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "deep").mkdir()
    (folder / "ink.pt").rename(folder / "deep" / "ink.pt")
    library.scan()
    (folder / "deep" / "ink.pt").rename(folder / "best.pt")
    said = told(capsys, "remove", "ink", "-y")
    assert f"may be away; hnetkit scan looks for it, hnetkit forget {folder / 'deep'} forgets it" in said
    library.scan()
    assert words(library, "best") == OF_INK


def test_removing_a_file_behind_a_link_whose_disk_is_away_keeps_what_people_said_of_it(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    networks.network_file(tmp_path / "disk", "far.pt", seed=3)
    (folder / "way").symlink_to(tmp_path / "disk")
    library.scan(folder, follow_links=True)
    library.tag("far", "away")
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    (change,) = library.remove("far")
    assert change.what == "skipped"
    assert f"{folder / 'way'} is not there, and its disk may be away" in str(change.reason)
    assert library.record("far")["tags"] == ["away"]


@pytest.mark.parametrize("way", ["a link that leads nowhere", "an empty folder", "an empty root", "another disk"])
def test_what_may_be_on_a_disk_that_is_away_is_not_forgotten(
    way: str, library: Library, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    networks.network_file(disk, "far.pt", seed=3)
    mount = {"a link that leads nowhere": folder / "way", "an empty folder": folder / "mount"}.get(
        way, tmp_path / "mount"
    )
    if way == "a link that leads nowhere":
        mount.symlink_to(disk)
    else:
        disk.rename(mount)
    library.scan(mount if "root" in way or "another" in way else folder, follow_links=True)
    library.tag("far", "away")
    mount.resolve().rename(tmp_path / "unplugged")
    if way != "a link that leads nowhere":
        mount.mkdir()
    if way == "another disk":
        (mount / "holiday.txt").write_text("not ours")
    library.scan(follow_links=True)
    assert library.record("far")["files"][0]["state"] == "missing"
    said = told(capsys, "forget", "--missing", "-y")
    assert f"1 file kept: {mount} " in said
    assert f"hnetkit forget {mount} forgets them" in said
    assert library.record("far")["tags"] == ["away"]
    assert run(["forget", str(mount), "-y"]) == 0
    with pytest.raises(NotFound):
        library.record("far")


@pytest.mark.parametrize("is_scanned", [True, False])
def test_what_came_onto_an_empty_mount_point_does_not_speak_for_the_disk_that_is_away(
    is_scanned: bool,
    library: Library,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    networks.network_file(mount, "far.pt", seed=3)
    networks.network_file(mount, "gone.pt", seed=4)
    library.scan(mount)
    library.tag("far", "away")
    mount.rename(tmp_path / "unplugged")
    mount.mkdir()
    if is_scanned:
        library.scan()
    later = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat(timespec="seconds")
    monkeypatch.setattr("hnetkit.registry.files.now", lambda: later)
    networks.network_file(mount, "new.pt", seed=5)
    library.scan()
    said = told(capsys, "forget", "--missing", "-y")
    assert f"2 files kept: {mount} holds none of the files that were there with it" in said
    assert library.record("far")["tags"] == ["away"]
    (mount / "new.pt").rename(tmp_path / "unplugged" / "new.pt")
    mount.rmdir()
    (tmp_path / "unplugged").rename(mount)
    (mount / "gone.pt").unlink()
    library.scan()
    assert f"forgotten  {mount / 'gone.pt'}" in told(capsys, "forget", "--missing", "-y")
    assert library.record("far")["tags"] == ["away"]


def test_what_came_back_while_the_question_stood_is_not_forgotten(library: Library, folder: Path) -> None:
    (folder / "ink.pt").rename(folder / "away")
    library.scan()
    asked = library.forgetting(missing=True)
    assert [row["stem"] for row in asked.files] == ["ink"]
    (folder / "away").rename(folder / "ink.pt")
    assert library.forget_found(asked) == []
    library.scan()
    assert words(library, "ink") == OF_INK


def test_a_corrupt_file_is_not_called_missing_and_stays_corrupt_when_its_disk_comes_back(
    library: Library, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, good = folder / "ink.pt", (folder / "ink.pt").read_bytes()
    before = path.stat()

    def put(data: bytes) -> None:
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    put(good[:6000] + bytes([good[6000] ^ 4]) + good[6001:])
    assert [change.what for change in library.recheck()] == ["corrupt"]
    assert "corrupt" in told(capsys, "list")
    assert "there is no missing network" in told(capsys, "list", "--missing")
    assert library.networks(missing=True) == []
    folder.rename(folder.with_name("unplugged"))
    library.scan()
    folder.with_name("unplugged").rename(folder)
    assert sorted((change.what, Path(change.path).name) for change in library.scan()) == [
        ("corrupt", "ink.pt"),
        ("returned", "glow.pt"),
    ]
    assert library.scan() == []
    put(good)
    assert [change.what for change in library.scan()] == ["returned"]
    assert library.record("ink")["files"][0]["state"] == "present"


def test_what_a_file_manager_deleted_is_not_in_the_library(library: Library, folder: Path) -> None:
    for place in (".Trash-1000/files", ".Trashes/501", "$RECYCLE.BIN/S-1-5-21", "#recycle", "@Recycle"):
        (folder / place).mkdir(parents=True)
        shutil.copy(folder / "glow.pt", folder / place / "ink.pt")
    (folder / "ink.pt").rename(folder / ".Trash-1000" / "files" / "ink.pt")
    assert [(change.what, Path(change.path)) for change in library.scan()] == [("missing", folder / "ink.pt")]


@pytest.mark.parametrize(
    "place", [".stversions", ".sync/Archive", ".dropbox.cache/2026-11-29", ".snapshots/1/snapshot", "#snapshot/daily"]
)
def test_what_sync_tools_and_disks_keep_of_earlier_is_not_in_the_library(
    library: Library, folder: Path, place: str
) -> None:
    (folder / place).mkdir(parents=True)
    shutil.copy(folder / "glow.pt", folder / place / "glow.pt")
    (folder / "ink.pt").rename(folder / place / "ink~20261129-101010.pt")
    assert [(change.what, Path(change.path)) for change in library.scan()] == [("missing", folder / "ink.pt")]
    assert library.scan(folder / place)  # unless it is asked for by name


# --- one file under several names


def test_links_other_names_and_what_is_gone_or_replaced_are_no_copies(
    library: Library, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a-link.pt").symlink_to("ink.pt")
    os.link(folder / "glow.pt", folder / "hard.pt")
    for seed, name in enumerate(("gone", "other", "copied"), 3):
        networks.network_file(folder, f"{name}.pt", seed=seed)
        shutil.copy(folder / f"{name}.pt", folder / f"{name}2.pt")
    (folder / "copied3.pt").symlink_to("copied2.pt")
    library.scan()
    (folder / "gone2.pt").unlink()
    networks.network_file(folder, "other2.pt", seed=9)
    assert [(row["name"], row["copies"]) for row in library.networks(duplicates=True)] == [("copied", 2)]
    assert told(capsys, "list", "--duplicates") == (
        f"copied  2 copies, 12.2 kB\n  {folder / 'copied.pt'}\n  {folder / 'copied2.pt'}\n"
        f"  {folder / 'copied3.pt'}  (no copy: one file with {folder / 'copied2.pt'})\n"
    )


def test_a_card_says_where_a_file_is_not_what_was_scanned(
    library: Library, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a-link.pt").symlink_to("ink.pt")
    library.scan()
    said = told(capsys, "show", "ink")
    assert f"no copy: one file with {folder / 'ink.pt'}" in said
    assert "gone or changed since" not in said
    networks.network_file(folder, "ink.pt", seed=9)
    assert f"{folder / 'ink.pt'}, gone or changed since: hnetkit scan" in told(capsys, "show", "ink")
    (folder / "glow.pt").unlink()
    assert f"{folder / 'glow.pt'}, gone or changed since: hnetkit scan" in told(capsys, "show", "glow")
    library.scan()
    assert "gone or changed since" not in told(capsys, "show", "glow")


def test_links_to_a_file_that_is_removed_are_told(library: Library, folder: Path) -> None:
    (folder / "a-link.pt").symlink_to("ink.pt")
    library.scan()
    kept, removed = library.remove(str(folder / "ink.pt"))
    assert (kept.what, kept.path) == ("kept", str(folder / "a-link.pt"))
    assert f"a link to {folder / 'ink.pt'}" in str(kept.reason)
    assert removed.what == "removed"


def test_a_folder_that_moved_and_left_a_link_is_forgotten_by_its_own_path(
    library: Library, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.rename(tmp_path / "new")
    folder.symlink_to(tmp_path / "new")
    library.scan()
    library.scan(tmp_path / "new")
    assert library.networks(duplicates=True) == []
    told(capsys, "forget", str(folder / "glow.pt"), "-y")
    told(capsys, "forget", str(folder), "-y")
    assert {Path(row["path"]).parent for row in library.files()} == {tmp_path / "new"}
    assert words(library, "ink") == OF_INK


def test_names_that_look_alike_are_two_files_where_they_are_two(library: Library, folder: Path) -> None:
    composed, apart = folder / "caf\u00e9.pt", folder / "cafe\u0301.pt"
    networks.network_file(folder, composed.name, seed=5)
    shutil.copy(composed, apart)
    if len(list(folder.iterdir())) < 4:
        pytest.skip("this disk composes names")
    library.scan()
    assert {change.path for change in library.remove("caf\u00e9")} == {str(composed), str(apart)}
    assert {path.name for path in folder.iterdir()} == {"ink.pt", "glow.pt", trash.FOLDER}


def test_a_file_renamed_in_case_alone_is_the_same_file_where_case_makes_no_difference(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "ink.pt").rename(folder / "Ink.pt")
    make_case_blind(monkeypatch, folder)
    assert [(change.what, Path(change.path).name) for change in library.scan()] == [("changed", "Ink.pt")]
    assert [Path(row["path"]).name for row in library.files()] == ["Ink.pt", "glow.pt"]
    assert words(library, "Ink") == OF_INK
    assert library.scan() == []


# --- sidecars


@pytest.mark.parametrize(
    ("other", "shared"), [("ink.zip", "ink.json"), ("ink.PT", "ink.png"), ("ink.preview.pt", "ink.preview.png")]
)
def test_what_another_model_has_too_stays(library: Library, folder: Path, other: str, shared: str) -> None:
    shutil.copy(folder / "glow.pt", folder / other)
    (folder / shared).write_bytes(b'{"notes": "a brush"}')
    library.scan()
    found = {Path(change.path).name: (change.what, change.reason) for change in library.remove(str(folder / "ink.pt"))}
    assert found == {"ink.pt": ("removed", None), shared: ("kept", f"{other} has it too")}


def test_what_other_programs_put_there_and_hnetkit_does_not_know_stays_and_is_told(
    library: Library, folder: Path
) -> None:
    for name in ("ink.html", "ink.preview.mp4", "ink.pt.optim", "ink.txt", "inky.md", "ink.v2.md"):
        (folder / name).write_text("x")
    shutil.copy(folder / "glow.pt", folder / "ink.v2.pt")
    library.scan()
    found = {Path(change.path).name: change.what for change in library.remove("ink")}
    assert found == {
        "ink.pt": "removed",
        "ink.pt.optim": "removed",
        "ink.txt": "removed",
        "ink.html": "kept",
        "ink.preview.mp4": "kept",
    }


def test_where_a_folder_cannot_be_listed_sidecars_stay(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "ink.txt").write_text("x")
    fail_at(monkeypatch, folder, 13, "listdir")
    found = {Path(change.path).name: (change.what, change.reason) for change in library.remove("ink")}
    assert found == {
        "ink.pt": ("removed", None),
        "ink.txt": ("kept", "its folder cannot be listed (Permission denied)"),
    }


# --- the trash


def test_a_note_that_does_not_come_back_is_said(library: Library, folder: Path) -> None:
    data = (folder / "ink.pt").read_bytes()
    library.remove("ink")
    (folder / "ink.pt").write_bytes(data)
    library.scan()
    library.tag("ink", note="another")
    reasons = [change.reason for change in library.restore() if change.what == "kept"]
    assert reasons == ["it has another note by now; the one that did not come back: best at 0.8"]
    assert library.record("ink")["note"] == "another"


def test_removed_files_whose_journal_is_lost_are_named(library: Library, folder: Path) -> None:
    library.remove("ink")
    (entry,) = (folder / trash.FOLDER).iterdir()
    (entry / "journal.json").unlink()
    for names in ((), ("ink",)):
        with pytest.raises(NotFound, match="has no journal any more; move back by hand: 0-ink"):
            library.restore(*names)
    library.remove("glow")
    assert (entry / "0-ink.pt.trash").exists()


def test_forgetting_a_folder_says_that_its_trash_is_not_empty(
    library: Library, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library.remove("ink")
    assert f"{folder / trash.FOLDER} keeps what was removed: hnetkit scan {folder}" in told(
        capsys, "forget", str(folder), "-y"
    )
    assert "nothing is in the trash of any scanned folder" in told(capsys, "remove", "--undo")
    library.scan(folder)
    library.restore()
    assert words(library, "ink") == OF_INK


def test_forgetting_a_folder_says_which_folders_inside_it_stay_known(
    library: Library, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "deep").mkdir()
    networks.network_file(folder / "deep", "far.pt", seed=3)
    library.scan(folder / "deep")
    said = told(capsys, "forget", str(folder), "-y")
    assert f"1 file kept: {folder / 'deep'} is a scanned folder of its own; hnetkit forget {folder / 'deep'}" in said
    assert [row["name"] for row in library.networks()] == ["far"]
    told(capsys, "forget", str(folder / "deep"), "-y")
    assert library.networks() == []


def test_a_dry_run_of_bringing_back_says_what_is_in_the_way(library: Library, folder: Path) -> None:
    library.remove("ink")
    shutil.copy(folder / "glow.pt", folder / "ink.pt")
    dry, real = library.restore(dry_run=True), library.restore()
    assert [(change.what, change.reason) for change in dry] == [(change.what, change.reason) for change in real]
    assert [change.what for change in real] == ["skipped"]


def test_what_comes_back_below_a_folder_that_is_scanned_alone_by_now_belongs_to_that(
    library: Library, folder: Path
) -> None:
    (folder / "deep").mkdir()
    networks.network_file(folder / "deep", "far.pt", seed=3)
    library.scan()
    library.remove("far")
    library.scan(folder / "deep")
    library.restore()
    assert library.scan() == []
    assert [row["state"] for row in library.files()] == ["present"] * 3


def test_the_number_of_a_download_means_nothing_in_another_registry(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    def job(of: Library, key: str) -> int:
        values = {"source": "civitai", "url": "u", "name": "n", "suffix": ".pt", "folder": str(folder)}
        with of.registry.write():
            return of.registry.jobs.add(key, values).id

    number = job(library, "civitai:1")
    with library.registry.write():
        library.registry.jobs.add_install(str(folder / "ink.pt"), number, "network", None)
    library.remove("ink")
    with Library(tmp_path / "second") as second:
        second.scan(folder)
        assert job(second, "civitai:2") == number
        assert trashed(second.registry).get("civitai:1") == "ink"
        assert "civitai:2" not in trashed(second.registry)
        second.restore()
        assert [row["job_id"] for row in second.registry.jobs.installs()] == [None]


# --- two at once


def test_of_two_that_give_one_alias_at_once_the_second_is_told(library: Library, home: Path) -> None:
    outcomes: list[str] = []

    def give(name: str) -> None:
        with Library(home) as own:
            try:
                own.tag(name, alias="fav")
            except UsageError as error:
                outcomes.append(str(error))
            else:
                outcomes.append("given")

    threads = [threading.Thread(target=give, args=[name]) for name in ("ink", "glow")]
    with library.registry.write():
        for thread in threads:
            thread.start()
        for thread in threads:  # both wait for the registry
            thread.join(0.5)
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[1] == "given"
    assert "is an alias of" in sorted(outcomes)[0]


# --- names


@pytest.mark.parametrize("verb", [["show"], ["tag", "x"], ["remove", "--dry-run"], ["forget", "-y"]])
def test_every_verb_says_where_a_name_is_the_alias_of_another(
    verb: list[str], library: Library, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks.network_file(folder, "thin.pt", seed=4)
    library.scan()
    said = told(capsys, verb[0], "thin", *verb[1:])
    assert f"Warning: thin is {folder / 'thin.pt'}, and not ink@" in said


# --- other programs' folders


@pytest.mark.parametrize("how", ["symlink", "hardlink", "copy"])
def test_a_program_s_folder_that_was_moved_keeps_its_links(
    how: Any, library: Library, folder: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "webui", tmp_path / "ai"
    (old / "models" / "hypernetworks").mkdir(parents=True)
    (old / "webui.py").touch()
    (folder / "ink.json").write_text('{"notes": "a brush"}')
    library.link(old, how=how)
    old.rename(new)
    assert {change.what for change in library.link(new)} == {"there"}
    assert sorted(Path(change.path).name for change in library.unlink(new) if change.what == "removed") == [
        "glow.pt",
        "ink.json",
        "ink.pt",
    ]
    assert list((new / "models" / "hypernetworks").iterdir()) == []
    assert library.registry.links.rows() == []


def test_one_of_a_moved_folder_that_changed_has_all_kept(library: Library, tmp_path: Path) -> None:
    old, new = tmp_path / "webui", tmp_path / "ai"
    (old / "models" / "hypernetworks").mkdir(parents=True)
    (old / "webui.py").touch()
    library.link(old, how="copy")
    old.rename(new)
    (new / "models" / "hypernetworks" / "ink.pt").write_bytes(b"mine")
    assert library.unlink(new) == []
    assert (new / "models" / "hypernetworks" / "glow.pt").exists()


def test_links_that_the_registry_does_not_know_are_told(library: Library, home: Path, tmp_path: Path) -> None:
    webui = tmp_path / "webui"
    (webui / "models" / "hypernetworks").mkdir(parents=True)
    (webui / "webui.py").touch()
    library.link(webui)
    with library.registry.write():
        library.registry.links.forget(library.registry.links.paths())
    found = library.unlink(webui)
    assert {(change.what, Path(change.path).name) for change in found} == {("kept", "ink.pt"), ("kept", "glow.pt")}
    assert "hnetkit has no record of making it" in str(found[0].reason)


def test_removing_says_where_a_program_s_folder_is_not_there(library: Library, tmp_path: Path) -> None:
    webui = tmp_path / "webui"
    (webui / "models" / "hypernetworks").mkdir(parents=True)
    (webui / "webui.py").touch()
    library.link(webui)
    webui.rename(tmp_path / "ai")
    kept, removed = library.remove("ink")
    assert (kept.what, removed.what) == ("kept", "removed")
    assert "hypernetworks is not there" in str(kept.reason)


# --- the registry


def test_an_empty_library_says_which_registry_is_empty(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HNETKIT_HOME", str(tmp_path / "mount" / "hn"))
    path = tmp_path / "mount" / "hn" / "registry.db"
    assert f"the library is empty, as {path} says, which is new" in told(capsys, "list")
    for command in (["list"], ["search", "ink"], ["show", "ink"], ["remove", "ink"]):
        assert f"the library is empty, as {path} says; hnetkit scan FOLDER" in told(capsys, *command)


def test_a_home_behind_a_link_that_leads_nowhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "way").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("HNETKIT_HOME", str(tmp_path / "way" / "hn"))
    assert f"{tmp_path / 'way'}: a link to {tmp_path / 'disk'}, which is not there" in told(capsys, "list")
    checks = {row["check"]: row for row in json.loads(told_json(capsys, "doctor", "--json"))}
    assert checks["home"]["state"] == "failed"


def told_json(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    run(list(args))
    return capsys.readouterr().out


def test_a_file_that_is_in_icloud_alone_is_called_so_and_keeps_what_people_said_of_it(
    library: Library, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ink.pt").rename(folder / ".ink.pt.icloud")  # the stub of macOS before 14
    assert "is in iCloud alone" in told(capsys, "scan")
    said = told(capsys, "forget", "--missing", "-y")
    assert f"1 file kept: {folder / 'ink.pt'} is in iCloud alone" in said
    assert "is in iCloud alone" in told(capsys, "remove", "ink", "-y")
    assert words(library, "ink") == OF_INK
    (folder / ".ink.pt.icloud").unlink()
    told(capsys, "forget", "--missing", "-y")
    assert [row["name"] for row in library.networks()] == ["glow"]


def test_every_verb_that_takes_a_name_takes_the_path_of_a_scanned_file(
    library: Library, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / "sub").mkdir()
    networks.network_file(folder / "sub", "ink.pt", seed=8)
    (folder / "bad.pt").write_bytes(b"no network")
    library.scan(folder)
    path = f"{folder.name}/sub/ink.pt"
    of_path = networks_at(library, folder / "sub" / "ink.pt")
    assert run(["show", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["content_hash"] == of_path
    assert run(["tag", path, "second"]) == 0
    assert [row["content_hash"] for row in library.networks(tags=["second"])] == [of_path]
    (tmp_path / "webui").mkdir()
    assert run(["link", str(tmp_path / "webui"), "--layout", "a1111", path]) == 0
    assert library.load(path).content_hash == of_path
    assert library.find(path) == folder / "sub" / "ink.pt"
    assert library.said_of(path) is None
    capsys.readouterr()
    assert run(["show", f"{folder.name}/bad.pt"]) != 0
    assert "no network named" not in capsys.readouterr().err
    assert run(["show", f"{folder.name}/none.pt"]) == NotFound.exit_code
    monkeypatch.chdir(folder / "sub")
    assert library.record("ink.pt")["content_hash"] == of_path


def test_a_path_in_a_prompt_is_no_name(library: Library, folder: Path) -> None:
    with pytest.raises(NotFound):
        find_network(str(folder / "ink.pt"), None, lambda: library.registry)


def networks_at(library: Library, path: Path) -> str:
    return next(row["content_hash"] for row in library.files() if row["path"] == str(path))
