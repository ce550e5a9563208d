"""Networks that are removed go to a trash on the same disk, and come back from it whole, whatever happens between."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from support import networks

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import NotFound, UsageError
from hnetkit.library import trash
from hnetkit.library.library import Library
from hnetkit.library.restore import trashed
from hnetkit.registry.networks import Training

ON_WINDOWS = pytest.mark.skipif(os.name != "nt", reason="a name like any other elsewhere")
NOTES = b'{"preferred weight": 0.7, "notes": "a brush"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two networks; `ink` is in two files, one of which has sidecars."""
    folder = tmp_path / "library"
    (folder / "sub").mkdir(parents=True)
    networks.network_file(folder, "ink.pt", seed=1)
    shutil.copy(folder / "ink.pt", folder / "sub" / "pen.pt")
    networks.network_file(folder, "glow.pt", seed=2)
    (folder / "ink.json").write_bytes(NOTES)
    (folder / "ink.preview.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "ink.pt.optim").write_bytes(b"the state of its training")
    return folder


@pytest.fixture
def library(home: Path, folder: Path) -> Any:
    with Library(home) as opened:
        opened.scan(folder)
        opened.tag("ink", "lines", "night", alias="thin", note="best at 0.6")
        yield opened


def tree(folder: Path) -> dict[str, Any]:
    """Every file and link below a folder, but for folders."""
    files = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in files}


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def known(library: Library) -> list[dict[str, Any]]:
    """What the library says of its networks, without numbers of rows."""
    rows = [library.record(row["name"]) for row in library.networks()]
    return json.loads(json.dumps(rows, default=str))


def whats(changes: Any) -> list[tuple[str, str]]:
    return sorted((change.what, Path(change.path).name) for change in changes)


# --- there and back


def test_all_files_and_sidecars_of_a_network_go_and_come_back_with_all_that_was_known(
    library: Library, folder: Path
) -> None:
    before, times, rows = tree(folder), stamps(folder), known(library)
    names = ["ink.json", "ink.preview.png", "ink.pt", "ink.pt.optim", "pen.pt"]
    assert whats(library.remove("ink")) == [("removed", name) for name in names]
    assert {path.name for path in folder.rglob("*.*") if trash.FOLDER not in path.parts} == {"glow.pt"}
    assert [row["name"] for row in library.networks()] == ["glow"]
    assert library.search("night") == []
    assert whats(library.restore()) == [("restored", name) for name in names]
    assert tree(folder) == before
    assert stamps(folder) == times
    assert known(library) == rows
    assert not (folder / trash.FOLDER).exists()


def test_a_path_means_one_file(library: Library, folder: Path) -> None:
    assert whats(library.remove(str(folder / "sub" / "pen.pt"))) == [("removed", "pen.pt")]
    assert library.record("ink")["tags"] == ["lines", "night"]
    assert [file["path"] for file in library.record("ink")["files"]] == [str(folder / "ink.pt")]
    library.restore(str(folder / "sub" / "pen.pt"))
    assert len(library.record("ink")["files"]) == 2


def test_a_scan_never_enters_the_trash(library: Library, folder: Path) -> None:
    library.remove("ink")
    (entry,) = (folder / trash.FOLDER).iterdir()
    shutil.copy(folder / "glow.pt", entry / "glow.pt")
    assert library.scan() == []
    assert library.scan(folder) == []


def test_the_trash_becomes_no_folder_of_the_library(library: Library, folder: Path) -> None:
    library.remove("ink")
    roots = library.registry.files.roots()
    for path in (folder / trash.FOLDER, *(folder / trash.FOLDER).iterdir()):
        with pytest.raises(UsageError, match="the trash of removed networks") as refused:
            library.scan(path)
        assert refused.value.command_hint == "hnetkit remove --undo brings back what is in it"
    assert library.registry.files.roots() == roots


def test_no_program_lists_what_is_in_the_trash(library: Library, folder: Path) -> None:
    library.remove("ink")
    kept = [path.name for path in (folder / trash.FOLDER).rglob("*") if path.is_file()]
    assert {Path(name).suffix for name in kept} == {".trash", ".json"}


def test_sidecars_of_two_files_stay_with_the_one_that_stays(library: Library, folder: Path) -> None:
    hnetkit.save(hnetkit.load(networks.network_file(folder.parent, seed=3)), folder / "ink.safetensors")
    library.scan()
    changes = library.remove(str(folder / "ink.pt"))
    assert whats(changes) == [
        ("kept", "ink.json"),
        ("kept", "ink.preview.png"),
        ("removed", "ink.pt"),
        ("removed", "ink.pt.optim"),
    ]
    assert {change.reason for change in changes if change.what == "kept"} == {"ink.safetensors has it too"}
    assert (folder / "ink.json").read_bytes() == NOTES
    assert ("removed", "ink.json") in whats(library.remove(str(folder / "ink.safetensors")))


def test_what_is_no_sidecar_stays(library: Library, folder: Path) -> None:
    (folder / "glow.json").write_text('{"model": "settings of something else"}')
    library.remove("glow")
    assert (folder / "glow.json").exists()


def test_what_only_its_case_makes_no_sidecar_stays_and_is_called_so(library: Library, folder: Path) -> None:
    others = [folder / name for name in ("ink.JSON", "ink.Preview.PNG", "ink.TXT")]
    if (folder / "ink.JSON").exists():
        pytest.skip("a disk where case makes no difference")
    for path in others:
        path.write_text("{}")
    changes = library.remove("ink")
    reasons = {Path(change.path).name: change.reason for change in changes if change.what == "kept"}
    assert reasons == {
        "ink.JSON": "a sidecar's name is ink.json, and this one differs in case",
        "ink.Preview.PNG": "a sidecar's name is ink.preview.png, and this one differs in case",
        "ink.TXT": "a sidecar's name is ink.txt, and this one differs in case",
    }
    assert all(path.exists() for path in others)


def test_a_persons_settings_that_a_link_leads_to_stay_and_are_called_so(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.json").write_bytes(NOTES)
    (folder / "glow.json").symlink_to(tmp_path / "mine.json")
    (kept,) = (change for change in library.remove("glow") if change.what == "kept")
    assert (kept.path, kept.reason) == (str(folder / "glow.json"), "a link to a file in another folder")
    assert (folder / "glow.json").read_bytes() == NOTES


def test_a_link_goes_and_what_it_leads_to_stays(library: Library, folder: Path, tmp_path: Path) -> None:
    own = networks.network_file(tmp_path, "elsewhere.pt", seed=5)
    (folder / "led.pt").symlink_to(own)
    library.scan()
    library.tag("led", "kept")
    library.remove("led")
    assert own.exists()
    assert not (folder / "led.pt").is_symlink()
    library.restore("led")
    assert os.readlink(folder / "led.pt") == str(own)
    assert library.record("led")["tags"] == ["kept"]


def test_links_go_with_what_they_lead_to_in_whatever_folders_both_are_and_come_back(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "a-second"
    other.mkdir()
    networks.network_file(other, "real.pt", seed=5)
    for place, target in {
        other / "a.pt": "real.pt",
        other / "z.pt": "a.pt",  # a link to a link
        folder / "a.pt": "../a-second/real.pt",
        folder / "sub" / "z.pt": "../../a-second/z.pt",
    }.items():
        place.symlink_to(target)
    library.scan(other)
    library.scan()
    before, known_before = (tree(folder), tree(other)), known(library)
    assert {change.what for change in library.remove("real")} == {"removed"}
    assert not [path for path in (*folder.rglob("*.pt"), *other.rglob("*.pt")) if path.is_symlink()]
    for _ in range(4):  # the folders of a removal are named by chance, and come back in the order of their names
        assert {change.what for change in library.restore()} == {"restored"}
        assert ((tree(folder), tree(other)), known(library)) == (before, known_before)
        library.remove("real")


def test_a_link_that_is_removed_costs_another_to_the_same_file_nothing(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    own = networks.network_file(tmp_path, "elsewhere.pt", seed=5)
    (folder / "one.pt").symlink_to(own)
    (folder / "two.pt").symlink_to(own)
    (folder / "three.pt").symlink_to("one.pt")
    library.scan()
    changes = library.remove(str(folder / "one.pt"))
    assert whats(changes) == [("kept", "three.pt"), ("removed", "one.pt")]
    assert (folder / "two.pt").exists()


def test_what_names_a_network_to_remove_names_it_to_bring_back(library: Library, folder: Path) -> None:
    row = library.record("ink")
    content, sha256 = row["content_hash"], row["files"][0]["sha256"]
    label = f"ink@{content.removeprefix('h1:')[:10]}"
    for name in ("pen", "thin", content, content[:13], sha256, sha256[:10].upper(), label):
        library.remove(name)
        library.remove("glow")
        with pytest.raises(NotFound) as refused:
            library.record(name)
        assert str(refused.value.command_hint).endswith(" brings it back")
        assert ("restored", "ink.pt") in whats(library.restore(name)), name
        assert whats(library.restore()) == [("restored", "glow.pt")]


def test_a_path_brings_back_what_it_removed_however_it_is_typed(
    library: Library, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "way").symlink_to(folder)
    for at, path in {
        tmp_path: "library/ink.pt",
        folder / "sub": "../ink.pt",
        folder: "ink.pt",
        Path("/"): "way",
    }.items():
        monkeypatch.chdir(at)
        typed = path if path != "way" else str(tmp_path / "way" / "ink.pt")
        library.remove(typed)
        library.remove(str(folder / "sub" / "pen.pt"))
        assert ("restored", "ink.pt") in whats(library.restore(typed))
        assert not (folder / "sub" / "pen.pt").exists()
        library.restore()


@pytest.mark.skipif(os.name == "nt", reason="names that Windows cannot have")
@pytest.mark.parametrize("place", ["a:b", "back\\slash", "..\\up", "\\\\server\\share\\x", "a:x/back\\slash"])
def test_names_that_windows_reads_as_places_come_back(library: Library, folder: Path, place: str) -> None:
    (folder / place).parent.mkdir(exist_ok=True)
    networks.network_file(folder, f"{place}.pt", seed=3)
    (folder / f"{place}.json").write_bytes(NOTES)
    library.scan(folder)
    before = tree(folder)
    library.remove(folder / f"{place}.pt", "glow")
    assert {change.what for change in library.restore()} == {"restored"}
    assert tree(folder) == before


def test_undo_brings_back_the_last_command_and_a_name_its_last_removal(library: Library, folder: Path) -> None:
    before = tree(folder)
    library.remove("ink")
    library.remove("glow")
    assert whats(library.restore()) == [("restored", "glow.pt")]
    library.remove("glow")
    assert ("restored", "ink.pt") in whats(library.restore("thin"))  # an alias that it had
    assert whats(library.restore("glow")) == [("restored", "glow.pt")]
    assert tree(folder) == before
    with pytest.raises(NotFound, match="nothing is in the trash"):
        library.restore()


def test_what_was_removed_last_comes_back_first_also_where_the_clock_was_set_back(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) + timedelta(days=1)

    with monkeypatch.context() as ahead:
        ahead.setattr(trash, "datetime", Tomorrow)
        library.remove("ink")
    library.remove("glow")
    assert whats(library.restore()) == [("restored", "glow.pt")]
    assert ("restored", "ink.pt") in whats(library.restore())


def test_who_asks_for_a_removed_network_is_told_how_it_comes_back(library: Library, folder: Path) -> None:
    digits = sha256((folder / "ink.pt").read_bytes()).hexdigest()[:10]
    library.remove("ink")
    for mention in ("ink", "pen", "thin", digits):
        with pytest.raises(NotFound) as refused:
            library.record(mention)
        assert refused.value.command_hint == "hnetkit remove --undo ink brings it back"
    library.remove("glow")
    with pytest.raises(NotFound, match="no network named glare") as refused:
        library.record("glare")
    assert "undo" not in str(refused.value.command_hint)


def test_of_many_removals_by_one_command_each_has_a_folder_of_its_own(library: Library, folder: Path) -> None:
    assert len({trash.folder_for(folder, "one-command") for _ in range(2000)}) == 2000
    library.remove("ink")
    (entry,) = trash.entries(folder)
    assert isinstance(entry, trash.Entry)
    with pytest.raises(FileExistsError):
        trash.begin(entry)
    assert list(trash.entries(folder)) == [entry]  # and what is there keeps its journal


def test_several_networks_of_one_command_come_back_together(library: Library, folder: Path) -> None:
    before = tree(folder)
    library.remove("ink", "glow")
    assert library.networks() == []
    library.restore()
    assert tree(folder) == before


def test_what_is_fetched_again_is_known_by_the_trash(library: Library, folder: Path) -> None:
    from hnetkit.library.restore import trashed

    sha256 = library.record("ink")["files"][0]["sha256"]
    library.remove("ink")
    assert trashed(library.registry) == {sha256: "ink"}  # the files of a fetched one have their jobs there too
    library.restore()
    assert trashed(library.registry) == {}


def test_records_of_fetched_files_go_and_come_back(library: Library, folder: Path) -> None:
    installs = library.registry.jobs.installs
    with library.registry.write():
        library.registry.jobs.add_install(str(folder / "glow.pt"), None, "network", "0" * 64)
    before = installs()
    library.remove("glow")
    assert installs() == []
    library.restore()
    assert installs() == before


# --- the disk is asked


def test_sidecars_that_no_file_can_be_called_are_not_there(library: Library, folder: Path) -> None:
    long = "n" * 250
    (folder / "glow.pt").rename(folder / f"{long}.pt")
    (folder / f"{long}.json").write_bytes(NOTES)
    library.scan(folder)
    before = tree(folder)
    assert [change.what for change in library.remove(long)] == ["removed", "removed"]
    assert [change.what for change in library.restore()] == ["restored", "restored"]
    assert tree(folder) == before


def test_a_file_that_changed_since_the_scan_is_not_removed(library: Library, folder: Path) -> None:
    networks.network_file(folder, "ink.pt", seed=9, structure=(1, 3, 1))
    changes = {Path(change.path).name: change for change in library.remove("ink")}
    assert changes["ink.pt"].what == "skipped"
    assert "hnetkit scan" in str(changes["ink.pt"].reason)
    assert changes["pen.pt"].what == "removed"
    assert (folder / "ink.json").exists()


@pytest.mark.parametrize("is_scanned", [True, False])
@pytest.mark.parametrize("left", ["nothing", "an empty mount point", "a mount point with a file of the system"])
def test_a_network_of_which_a_part_is_on_a_disk_that_is_away_keeps_what_people_said_of_it(
    library: Library, folder: Path, tmp_path: Path, left: str, is_scanned: bool
) -> None:
    other = tmp_path / "disk"
    other.mkdir()
    shutil.copy(folder / "ink.pt", other / "ink.pt")
    library.scan(other)
    other.rename(tmp_path / "unmounted")
    if left != "nothing":
        other.mkdir()
    if "system" in left:
        (other / ".volume").write_bytes(b"")
    if is_scanned:
        library.scan()
    changes = [change for change in library.remove("ink") if change.what == "skipped"]
    assert [change.path for change in changes] == [str(other / "ink.pt")]
    assert "its disk may be away" in str(changes[0].reason)
    assert f"hnetkit forget {other}" in str(changes[0].reason)
    shutil.rmtree(other, ignore_errors=True)
    (tmp_path / "unmounted").rename(other)
    library.scan()
    record = library.record("ink")
    assert (record["tags"], record["note"], record["aliases"]) == (["lines", "night"], "best at 0.6", ["thin"])


@pytest.mark.parametrize("is_there", [True, False])
def test_a_trash_on_a_disk_that_is_away_is_told_of(
    library: Library, folder: Path, tmp_path: Path, is_there: bool
) -> None:
    other = tmp_path / "disk"
    other.mkdir()
    networks.network_file(other, "wave.pt", seed=5)
    library.scan(other)
    library.remove("glow")
    library.remove("wave")
    shutil.move(other, tmp_path / "away")
    if is_there:
        other.mkdir()  # as a mount point is
    changes = library.restore("glow")
    assert whats(changes) == [("kept", "disk"), ("restored", "glow.pt")]
    assert "what is in its trash cannot be seen" in str(changes[0].reason)
    for names in (["wave"], []):
        with pytest.raises(NotFound, match=r"trash.*; .*cannot be seen") as refused:
            library.restore(*names)
        assert refused.value.command_hint == "hnetkit scan FOLDER, where that folder is by now"
    library.scan(tmp_path / "away")
    assert ("restored", "wave.pt") in whats(library.restore("wave"))


def test_a_file_that_is_gone_is_forgotten_with_the_others(library: Library, folder: Path) -> None:
    (folder / "sub" / "pen.pt").rename(folder / "sub" / "pen.old")  # an empty folder could be a disk that is away
    library.remove("ink")
    assert [row["name"] for row in library.networks()] == ["glow"]


def test_a_file_behind_a_link_out_of_the_library_is_not_removed(library: Library, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    networks.network_file(tmp_path / "outside", "far.pt", seed=7)
    (folder / "way").symlink_to(tmp_path / "outside")
    library.scan(folder, follow_links=True)
    (change,) = library.remove("far")
    assert change.what == "skipped"
    assert "scan its own folder" in str(change.reason)
    assert (tmp_path / "outside" / "far.pt").exists()


def test_a_file_behind_such_a_link_goes_once_its_own_folder_is_scanned_under_both_names(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    networks.network_file(tmp_path / "outside", "far.pt", seed=7)
    (folder / "way").symlink_to(tmp_path / "outside")
    library.scan(folder, follow_links=True)
    library.scan(tmp_path / "outside")
    assert whats(library.remove("far")) == [("removed", "far.pt")]
    assert "far" not in {row["name"] for row in library.networks()}


def test_a_file_that_cannot_be_moved_costs_no_other(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def failing(source: Any, target: Any) -> None:
        if Path(source).name == "ink.pt":
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr("os.rename", failing)
    changes = whats(library.remove("ink"))
    assert changes == [("removed", "pen.pt"), ("skipped", "ink.pt")]
    assert (folder / "ink.json").exists()
    assert library.record("ink")["tags"] == ["lines", "night"]


@pytest.mark.parametrize("call", ["mkdir", "fsync"])
def test_a_trash_that_cannot_be_written_leaves_all_as_it_is(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    library.removing("ink")  # the locks are there
    before, rows = tree(folder), known(library)

    real = getattr(os, call)

    def full(what: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(what, os.PathLike) and trash.FOLDER not in Path(what).parts:
            return real(what, *arguments, **options)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        assert {change.what for change in library.remove("ink")} == {"skipped"}
    assert tree(folder) == before
    assert known(library) == rows


def test_what_came_to_its_place_meanwhile_is_kept_and_the_rest_comes_back(library: Library, folder: Path) -> None:
    library.remove("ink")
    (folder / "ink.json").write_text('{"notes": "new"}')
    changes = {Path(change.path).name: change for change in library.restore()}
    assert changes["ink.json"].what == "skipped"
    assert str(changes["ink.json"].reason).endswith("once that has another name: hnetkit remove --undo ink")
    assert (folder / "ink.json").read_text() == '{"notes": "new"}'
    assert Path(str(changes["ink.json"].trash)).read_bytes() == NOTES
    assert library.record("ink")["tags"] == ["lines", "night"]
    (folder / "ink.json").unlink()
    assert whats(library.restore()) == [("restored", "ink.json")]
    assert not (folder / trash.FOLDER).exists()


def test_a_file_in_the_place_of_a_folder_is_named_and_told_of_by_a_dry_run_too(library: Library, folder: Path) -> None:
    library.remove(str(folder / "sub" / "pen.pt"))
    (folder / "sub").rmdir()
    (folder / "sub").write_bytes(b"a person's")
    dry = library.restore(dry_run=True)
    (change,) = library.restore()
    assert [(it.what, it.path, it.reason) for it in dry] == [(change.what, change.path, change.reason)]
    assert str(change.reason).startswith(f"{folder / 'sub'}: a file is there by now, and no folder; ")
    (folder / "sub").unlink()
    assert "restored" in {it.what for it in library.restore("pen")}
    assert (folder / "sub" / "pen.pt").exists()


def test_a_file_whose_name_a_folder_has_by_now_is_gone_before_a_scan_and_after(library: Library, folder: Path) -> None:
    (folder / "glow.pt").unlink()
    (folder / "glow.pt").mkdir()
    for _ in range(2):
        (change,) = library.remove("glow")
        assert str(change.reason).endswith("hnetkit forget glow forgets it")
        library.scan()
    library.forget("glow")
    with pytest.raises(NotFound):
        library.record("glow")


def test_nothing_says_that_what_was_deleted_from_the_trash_comes_back(library: Library, folder: Path) -> None:
    copy = (folder / "glow.pt").read_bytes()
    library.tag("glow", "bright")
    library.remove("glow")
    (entry,) = trash.entries(folder)
    assert isinstance(entry, trash.Entry)
    assert trashed(library.registry) == {sha256(copy).hexdigest(): "glow"}
    entry.stored(entry.files[0]).unlink()
    assert trashed(library.registry) == {}
    with pytest.raises(NotFound) as refused:
        library.record("glow")
    assert "--undo" not in str(refused.value.command_hint)
    (change,) = library.restore("glow")
    assert str(change.reason).endswith("put a copy there, or delete that folder")
    (folder / "glow.pt").write_bytes(copy)
    library.restore("glow")
    assert library.record("glow")["tags"] == ["bright"]
    assert not (folder / trash.FOLDER).exists()


def test_an_alias_that_another_network_has_by_now_stays_there(library: Library, folder: Path) -> None:
    library.remove("ink")
    library.tag("glow", alias="thin")
    assert any("its alias thin did not come back" in str(change.reason) for change in library.restore())
    assert library.record("thin")["name"] == "glow"
    assert library.record("ink")["note"] == "best at 0.6"


def test_what_was_put_back_by_hand_gets_its_words_and_that_is_said(library: Library, folder: Path) -> None:
    library.remove("ink")
    (entry,) = trash.entries(folder)
    assert isinstance(entry, trash.Entry)
    for file in entry.files:
        entry.stored(file).rename(entry.place(file))
    library.scan()
    assert library.record("ink")["tags"] == []
    dry = library.restore(dry_run=True)
    (change,) = library.restore()
    assert [change] == dry
    assert (change.what, change.path) == ("restored", str(folder / "ink.pt"))
    assert change.reason == "it was there already; what was known of it is back"
    assert library.record("ink")["tags"] == ["lines", "night"]
    assert not (folder / trash.FOLDER).exists()


def test_words_that_wait_for_a_file_that_nothing_is_known_to_hold_are_told_of(library: Library, folder: Path) -> None:
    networks.network_file(folder, "wave.pt", seed=5)
    shutil.copystat(folder / "glow.pt", folder / "wave.pt")
    library.scan()
    library.tag("wave", "sea")
    names = [folder / "glow.pt", folder / "wave.pt", folder / "aside"]
    for old, new in ((0, 2), (1, 0), (2, 1)):  # which no scan can see: their sizes and times are the same
        names[old].rename(names[new])
    library.remove("wave")
    restored, waiting = library.restore()
    assert (restored.what, waiting.what, waiting.path) == ("restored", "kept", str(folder / "wave.pt"))
    assert "what was known of it stays in the trash: hnetkit scan --rehash, then hnetkit remove --undo wave" in str(
        waiting.reason
    )
    library.recheck()
    assert whats(library.restore("wave")) == [("restored", "wave.pt")]
    assert library.record("glow")["tags"] == ["sea"]


def test_a_note_written_meanwhile_stays(library: Library, folder: Path) -> None:
    shutil.copy(folder / "ink.pt", folder.parent / "ink.pt")
    library.remove("ink")
    shutil.copy(folder.parent / "ink.pt", folder / "again.pt")
    library.scan()
    library.tag("again", "new", note="a new one")
    library.restore("ink")
    row = library.record("again")
    assert (row["note"], row["tags"]) == ("a new one", ["lines", "new", "night"])


# --- links in other programs' folders


def test_a_run_that_was_given_again_meanwhile_has_no_other_record_of_its_training(library: Library) -> None:
    def store(rates: str, day: int) -> None:
        training = Training({"rates": rates}, trained_at=f"2026-01-0{day}T00:00:00+00:00")
        with library.registry.write():
            library.registry.trainings.put(library.registry.networks.id_of(content), training)

    content = library.record("glow")["content_hash"]
    for rates, what in (("1e-3", ["restored"]), ("1e-4", ["restored", "kept"])):
        store("1e-3", 1)
        library.remove("glow")
        networks.network_file(library.registry.files.roots()[0].path, "glow.pt", seed=2)
        library.scan()
        store(rates, 2)
        assert [change.what for change in library.restore()] == what


def test_links_are_taken_away_and_the_command_that_makes_them_again_is_said(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    webui = tmp_path / "webui" / "models" / "hypernetworks"
    webui.mkdir(parents=True)
    library.link(webui, layout="a1111", how="copy")
    (webui / "ink.json").write_text("of the program")
    changes = {change.path: change for change in library.remove("ink")}
    assert changes[str(webui / "ink.pt")].what == "unlinked"
    assert changes[str(webui / "ink.json")].what == "kept"
    assert {path.name for path in webui.iterdir()} == {"glow.pt", "ink.json"}
    told = [change.reason for change in library.restore() if change.reason]
    assert told == [f"links it again: hnetkit link {webui} --layout a1111 ink"]
    library.link(webui, layout="a1111", names=["ink"])
    assert (webui / "ink.pt").exists()


def test_a_link_of_hnetkit_s_in_a_scanned_folder_is_no_file_of_the_network(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    webui = tmp_path / "webui" / "models" / "hypernetworks"
    webui.mkdir(parents=True)
    library.link(webui, layout="a1111", how="copy")
    library.scan(webui)
    assert ("unlinked", "ink.pt") in whats(library.remove("ink"))
    assert not (webui / trash.FOLDER).exists()


# --- killed at any step

CALLS = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "open")


def in_a_process_killed_at(number: int, work: Callable[[], None]) -> bool:
    """Runs work in a process that ends at its n-th call of the system that changes a disk; returns whether it was."""
    child = os.fork()
    if child == 0:
        left = [number]

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)
                return call(*arguments, **options)

            return wrapped

        for name in CALLS:
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def everywhere(home: Path, work: Callable[[Library], Any], after: Callable[[Library], None]) -> int:
    """Kills work at each of its steps in turn, with a look after each; returns the number of steps."""
    for number in range(1, 1000):

        def working() -> None:
            with Library(home) as own:
                work(own)

        was_killed = in_a_process_killed_at(number, working)
        with Library(home) as library:
            after(library)
        if not was_killed:
            return number
    raise AssertionError("it never ends")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")


@needs_fork
@pytest.mark.parametrize("next_command", ["restore", "remove"])
def test_a_removal_killed_at_any_step_loses_nothing(home: Path, folder: Path, next_command: str) -> None:
    with Library(home) as library:
        library.scan(folder)
        library.tag("ink", "lines", alias="thin", note="best at 0.6")
        before, rows = tree(folder), known(library)

    def come_back(library: Library) -> None:
        if next_command == "remove":
            assert whats(library.removing("ink").changes) == [] or (folder / "ink.pt").exists()
            library.remove("ink")
            library.restore()
        else:
            try:
                library.restore()
            except NotFound:
                assert not list(folder.rglob(trash.JOURNAL))
        library.scan()
        assert {path: data for path, data in tree(folder).items() if not path.endswith(".tmp")} == before
        assert known(library) == rows

    if next_command == "remove":

        def again(library: Library) -> None:
            if not (folder / "ink.pt").exists() and "ink" not in {row["name"] for row in library.networks()}:
                library.restore()  # the last step was over
            come_back(library)

        assert everywhere(home, lambda library: library.remove("ink"), again) > 20
    else:
        assert everywhere(home, lambda library: library.remove("ink"), come_back) > 20


@needs_fork
def test_bringing_back_killed_at_any_step_loses_nothing(home: Path, folder: Path) -> None:
    with Library(home) as library:
        library.scan(folder)
        library.tag("ink", "lines", alias="thin", note="best at 0.6")
        before, rows = tree(folder), known(library)
        library.remove("ink")

    def come_back(library: Library) -> None:
        try:
            library.restore()
        except NotFound:
            assert not list(folder.rglob(trash.JOURNAL))
        assert tree(folder) == before
        assert known(library) == rows
        library.remove("ink")

    assert everywhere(home, lambda library: library.restore(), come_back) > 10


@pytest.mark.parametrize("moment", [1, 3, 5])
def test_an_interrupted_removal_is_taken_back_at_once(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    before, rows, rename, left = tree(folder), known(library), os.rename, [moment]

    def interrupted(source: Any, target: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("os.rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            library.remove("ink")
    assert tree(folder) == before
    assert known(library) == rows


# --- a trash from a stranger's archive


def planted(folder: Path, **file: Any) -> Path:
    """A removal as an archive may bring it along."""
    entry = folder / trash.FOLDER / "20990101"
    entry.mkdir(parents=True)
    (entry / "0.trash").write_bytes(b"hostile")
    files = [{"path": "x.txt", "stored": "0.trash", "of": "x.pt"} | file]
    journal = {"kind": "hnetkit removal", "version": 1, "batch": "9", "name": "x", "content_hash": None, "files": files}
    (entry / trash.JOURNAL).write_text(
        json.dumps(journal | {"words": {}, "links": [], "installs": [], "is_done": True})
    )
    return entry


@pytest.mark.parametrize(
    "file",
    [
        {"path": "../x.txt"},
        {"path": "/tmp/x.txt"},
        pytest.param({"path": "C:\\x.txt"}, marks=ON_WINDOWS),
        pytest.param({"path": "sub/C:x.txt"}, marks=ON_WINDOWS),
        pytest.param({"path": "sub/..\\..\\..\\x.txt"}, marks=ON_WINDOWS),
        {"path": "sub/../../x.txt"},
        {"path": ""},
        {"stored": "../0.trash"},
        {"stored": "journal.json"},
        {"path": 3},
        {"unknown": 1},
        {"first_seen": ["2026"]},
        {"first_seen": "\x1b[2J"},
        {"sha256": 7},
        {"sha256": "\ud800"},
        {"size_bytes": "1"},
        {"path": "x\0.txt"},
        {"path": "\ud800.txt"},
    ],
)
def test_a_journal_that_names_something_else_is_refused(library: Library, folder: Path, file: Any) -> None:
    entry = planted(folder, **file)
    before = tree(folder.parent)
    with pytest.raises(NotFound, match="not a journal of hnetkit"):
        library.restore()
    assert tree(folder.parent) == before
    assert entry.exists()


INSTALL = {"path": "/x.pt", "job_key": None, "kind": "network", "sha256": None}
ODD = [
    {"content_hash": {}},
    {"content_hash": "ink"},
    {"batch": 9},
    {"is_done": "no"},
    {"files": []},
    {"files": {}},
    {"words": []},
    {"words": {"tags": 5}},
    {"words": {"aliases": [{}]}},
    {"words": {"note": 7}},
    {"words": {"training": "x"}},
    {"words": {"training": {"recipe": {}, "unknown": 1}}},
    {"words": {"training": {"recipe": {}, "started_from": []}}},
    {"links": [{"path": 5}]},
    {"links": [5]},
    {"installs": [{}]},
    {"installs": [INSTALL | {"job_key": {}}]},
    {"installs": [INSTALL | {"kind": "other"}]},
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_stranger_s_journal_ends_no_command(library: Library, folder: Path, odd: dict[str, Any]) -> None:
    library.remove("ink")
    entry = planted(folder)
    journal = json.loads((entry / trash.JOURNAL).read_text())
    (entry / trash.JOURNAL).write_text(json.dumps(journal | odd))
    assert trashed(library.registry)  # which `sync`, `pull` and `repair` ask
    library.remove("glow")
    changes = library.restore("ink")
    assert {change.what for change in changes} == {"skipped", "restored"}
    assert (entry / "0.trash").read_bytes() == b"hostile"


def test_words_in_a_stranger_s_journal_that_cannot_be_stored_end_no_command(library: Library, folder: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"deeper": deep}
    entry = planted(folder, path="glow.pt", stored="1.trash", of=None)
    journal = json.loads((entry / trash.JOURNAL).read_text())
    journal |= {"content_hash": library.record("glow")["content_hash"], "is_done": False}
    journal["words"] = {"training": {"recipe": deep}, "tags": ["theirs"]}
    (entry / trash.JOURNAL).write_text(json.dumps(journal))
    for _ in range(2):
        changes = list(library.remove("ink"))
        (skipped,) = (change for change in changes if change.what == "skipped")
        assert skipped.path == str(folder / "glow.pt")
        assert f"what {entry / trash.JOURNAL} tells of it cannot be stored" in str(skipped.reason)
        assert {"removed"} < {change.what for change in changes}
        assert ("restored", "ink.pt") in whats(library.restore("ink"))
    assert library.record("glow")["tags"] == []


def test_a_stranger_s_journal_tells_no_hash_of_a_file(library: Library, folder: Path) -> None:
    entry = planted(folder, path="sub/x.pt", of=None, sha256=sha256((folder / "glow.pt").read_bytes()).hexdigest())
    shutil.copy(folder / "ink.pt", entry / "0.trash")
    status = (entry / "0.trash").stat()
    journal = json.loads((entry / trash.JOURNAL).read_text())
    journal["files"][0] |= {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    (entry / trash.JOURNAL).write_text(json.dumps(journal | {"content_hash": library.record("ink")["content_hash"]}))
    library.restore()
    (row,) = library.registry.files.at(str(folder / "sub" / "x.pt"))
    assert row["sha256"] == sha256((folder / "ink.pt").read_bytes()).hexdigest()


def test_what_a_stranger_s_journal_has_typed_is_quoted(library: Library, folder: Path) -> None:
    entry = planted(folder, path="sub/x.pt", of=None)
    journal = json.loads((entry / trash.JOURNAL).read_text())
    journal["links"] = [{"path": "/x", "folder": "/webui", "layout": "a1111; touch MARKED"}]
    content = library.record("ink")["content_hash"]
    (entry / trash.JOURNAL).write_text(json.dumps(journal | {"content_hash": content}))
    (command,) = (change.reason for change in library.restore("x") if change.what == "restored")
    assert command == "links it again: hnetkit link /webui --layout 'a1111; touch MARKED' x"


def test_no_file_is_brought_back_through_a_link(library: Library, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (folder / "way").symlink_to(tmp_path / "outside")
    planted(folder, path="way/x.txt")
    assert {change.what for change in library.restore()} == {"skipped"}
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_trash_that_is_a_link_is_not_written_through(library: Library, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (folder / trash.FOLDER).symlink_to(tmp_path / "outside")
    assert {change.what for change in library.remove("ink")} == {"skipped"}
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_trash_that_cannot_be_read_is_said(library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.remove("ink")
    listdir = os.listdir

    def failing(path: Any = ".") -> list[str]:
        if Path(path).name == trash.FOLDER:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr("os.listdir", failing)
    with pytest.raises(NotFound, match="Permission denied"):
        library.restore()


def test_a_trash_of_many_long_journals_is_read_one_at_a_time(library: Library, folder: Path) -> None:
    library.remove("ink")
    (own,) = (folder / trash.FOLDER).iterdir()
    journal = json.loads((own / trash.JOURNAL).read_text())
    file = journal["files"][0]
    files = [{**file, "path": f"{n}.pt", "stored": f"{n}-{file['stored']}"} for n in range(2000)]

    def add(number: int) -> None:
        """Adds an earlier removal."""
        other = {**journal, "batch": f"2001-{number:02}", "name": "other", "words": {}, "files": files}
        own.with_name(f"2001-{number:02}").mkdir()
        (own.with_name(f"2001-{number:02}") / trash.JOURNAL).write_text(json.dumps(other))

    def peak() -> int:
        """Bytes that looking through the trash takes at most."""
        tracemalloc.start()
        assert len(library.restore("ink", dry_run=True)) == 5
        trashed(library.registry)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    add(0)
    of_one = peak()
    for number in range(1, 8):
        add(number)
    assert peak() < 4 * of_one


# --- the command


def removed(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run(["remove", *map(str, arguments), "--json"]) == code
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_remove_asks_and_undo_brings_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(folder)])
    before = tree(folder)
    assert run(["remove", "ink"]) == 2  # there is nobody to answer
    assert "Move 2 files and 3 sidecars of ink to the trash?" in capsys.readouterr().err
    assert tree(folder) == before
    rows = removed(capsys, "ink", "-y")
    assert {row["change"] for row in rows} == {"removed"}
    assert set(rows[0]) == {"change", "path", "network", "trash", "reason"}
    assert {row["change"] for row in removed(capsys, "--undo")} == {"restored"}
    assert tree(folder) == before
    assert run(["remove", "--undo"]) == 4
    assert run(["remove"]) == 2
    assert run(["remove", "nothing", "-y"]) == 4


def test_a_dry_run_of_remove_moves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(folder)])
    before = tree(folder)
    assert len(removed(capsys, "ink", "--dry-run")) == 5
    assert tree(folder) == before
    run(["remove", "ink", "-y"])
    before = tree(folder)
    assert len(removed(capsys, "--undo", "--dry-run")) == 5
    assert tree(folder) == before
    capsys.readouterr()
    run(["remove", "--undo", "--dry-run"])
    assert capsys.readouterr().out.startswith("to restore ")


def test_what_could_not_be_moved_is_exit_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(folder)])
    networks.network_file(folder, "glow.pt", seed=9, structure=(1, 3, 1))
    assert [row["change"] for row in removed(capsys, "glow", "-y", code=1)] == ["skipped"]
