"""What could not be looked at is not gone: its rows stay as they are, and it is named with the reason."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import networks
from support.deep_folders import deep_tree
from support.failing_disk import fail_at, make_case_blind

from hnetkit.cli import run
from hnetkit.errors import HnetkitError, NotFound, UsageError
from hnetkit.library.scan import FileChange, recheck, scan
from hnetkit.library.walking import model_files
from hnetkit.registry import Registry

FAILURES = (errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``a.pt``, and ``sub/b.pt`` and ``sub/deep/c.pt``."""
    made = tmp_path / "models"
    (made / "sub" / "deep").mkdir(parents=True)
    for seed, name in enumerate(("a.pt", "sub/b.pt", "sub/deep/c.pt")):
        networks.network_file(made, name, seed=seed)
    return made


def told(found: list[FileChange], root: Path) -> list[tuple[str, str]]:
    return sorted((change.what, os.path.relpath(change.path, root)) for change in found)


def states(registry: Registry) -> set[str]:
    return {row["state"] for row in registry.files.rows()}


@pytest.mark.parametrize("number", FAILURES, ids=map(errno.errorcode.get, FAILURES))
@pytest.mark.parametrize("call", ["stat", "scandir"])
@pytest.mark.parametrize("place", ["", "sub", "sub/deep"])
def test_below_a_folder_that_cannot_be_looked_at_everything_stays_as_it_was(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, call: str, number: int
) -> None:
    list(scan(registry, [folder]))
    before = registry.files.rows()
    with monkeypatch.context() as patch:
        fail_at(patch, folder / place, number, call)
        (change,) = scan(registry)
    assert (change.what, change.path) == ("unread", str(folder / place))
    assert change.reason == f"{folder / place}: {os.strerror(number)}"
    assert registry.files.rows() == before
    assert list(scan(registry)) == []


@pytest.mark.parametrize("number", FAILURES, ids=map(errno.errorcode.get, FAILURES))
def test_a_file_that_cannot_be_looked_at_stays_as_it_was(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    list(scan(registry, [folder]))
    fail_at(monkeypatch, folder / "sub" / "b.pt", number, "stat")
    assert told(list(scan(registry)), folder) == told(list(recheck(registry)), folder) == [("unread", "sub/b.pt")]
    assert states(registry) == {"present"}


def test_beside_what_cannot_be_looked_at_a_scan_goes_on(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(scan(registry, [folder]))
    (folder / "a.pt").rename(folder / "z.pt")
    fail_at(monkeypatch, folder / "sub" / "deep", errno.EIO, "scandir")
    found = told(list(scan(registry)), folder)
    assert found == [("missing", "a.pt"), ("new", "z.pt"), ("unread", "sub/deep")]


def test_a_folder_whose_listing_breaks_off_keeps_what_was_not_listed(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks.network_file(folder, "b.pt", seed=9)
    list(scan(registry, [folder]))
    listing = os.scandir

    class Breaking:
        def __init__(self, path: Path) -> None:
            self.entries = listing(path)

        def __enter__(self) -> Breaking:
            return self

        def __exit__(self, *_: object) -> None:
            self.entries.close()

        def __iter__(self) -> Breaking:
            return self

        def __next__(self) -> os.DirEntry[str]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", Breaking)
    assert told(list(scan(registry)), folder) == [("unread", ".")]
    assert states(registry) == {"present"}


def test_what_is_known_below_comes_back_with_its_tags_after_forget_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(folder)])
    run(["tag", "b", "keep"])
    with monkeypatch.context() as patch:
        fail_at(patch, folder / "sub", errno.EACCES, "stat", "scandir", "open")
        capsys.readouterr()
        assert run(["scan"]) == 1
        out, err = capsys.readouterr()
        assert out == f"unread   {folder / 'sub'}  (Permission denied)\n"
        assert "missing" not in err
        assert run(["forget", "--missing", "-y"]) == 0
    assert run(["scan"]) == 0
    capsys.readouterr()
    run(["show", "b"])
    assert "keep" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["removed", "a file"])
def test_a_folder_that_is_gone_is_an_absence(registry: Registry, folder: Path, what: str) -> None:
    list(scan(registry, [folder]))
    shutil.rmtree(folder / "sub")
    if what == "a file":
        (folder / "sub").write_text("")
    assert told(list(scan(registry)), folder) == [("missing", "sub/b.pt"), ("missing", "sub/deep/c.pt")]


def test_a_root_that_holds_nothing_any_more_makes_one_ask_for_its_disk(registry: Registry, folder: Path) -> None:
    list(scan(registry, [folder]))
    for name in ("a.pt", "sub/b.pt", "sub/deep/c.pt"):
        (folder / name).rename(folder.parent / Path(name).name)
    notes: list[str] = []
    assert [change.what for change in scan(registry, note=notes.append)] == ["missing"] * 3
    assert notes == [f"{folder} holds none of its 3 files any more; is its disk mounted?"]


def test_a_path_that_is_too_long_is_not_gone(registry: Registry, folder: Path) -> None:
    with deep_tree(folder):
        (change,) = (change for change in scan(registry, [folder]) if change.what == "unread")
        assert change.reason == f"{change.path}: {os.strerror(errno.ENAMETOOLONG)}"


def test_a_link_in_a_circle_is_named_and_one_that_leads_nowhere_is_nothing(registry: Registry, folder: Path) -> None:
    (folder / "dead.pt").symlink_to("nowhere.pt")
    (folder / "round.pt").symlink_to("round.pt")
    assert [item for item in told(list(scan(registry, [folder])), folder) if item[0] != "new"] == [
        ("unread", "round.pt")
    ]


def test_where_files_have_no_numbers_every_folder_is_entered(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems give all files the number 0."""
    (folder / "loop").symlink_to(folder)
    stat = os.stat

    def numberless(path: Path, **options: bool) -> SimpleNamespace:
        status = stat(path, **options)
        fields = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
        return SimpleNamespace(**(fields | {"st_ino": 0}))

    monkeypatch.setattr(os, "stat", numberless)
    assert [change.what for change in scan(registry, [folder])] == ["new"] * 3


@pytest.mark.parametrize("name", ["lost+found", "System Volume Information", ".Trashes"])
def test_folders_that_systems_keep_to_themselves_are_nothing_to_speak_of(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (folder / name).mkdir()
    fail_at(monkeypatch, folder / name, errno.EACCES, "scandir")
    assert [change.what for change in scan(registry, [folder])] == ["new"] * 3
    assert len(model_files(folder)) == 3


def test_a_trash_of_hnetkit_is_not_entered(registry: Registry, folder: Path) -> None:
    (folder / "sub").rename(folder / ".hnetkit-trash")
    assert told(list(scan(registry, [folder])), folder) == [("new", "a.pt")]


def test_scanning_says_what_is_wrong_with_a_folder(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match="no such folder"):
        list(scan(registry, [folder / "nowhere"]))
    with pytest.raises(UsageError, match="a file, and a scan takes folders") as caught:
        list(scan(registry, [folder / "a.pt"]))
    assert caught.value.command_hint == f"hnetkit scan {folder}"
    fail_at(monkeypatch, folder, errno.EACCES, "stat")
    with pytest.raises(HnetkitError, match="Permission denied"):
        list(scan(registry, [folder]))


def test_where_nothing_can_be_said_of_what_was_not_seen_it_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, folder / "sub", errno.EACCES, "scandir")
    with pytest.raises(HnetkitError, match=f"{folder / 'sub'}: Permission denied"):
        model_files(folder)


# --- one folder, many spellings


def test_one_folder_in_two_cases_is_one_root_where_case_makes_no_difference(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_case_blind(monkeypatch, folder.parent)
    assert len(list(scan(registry, [folder / "Sub" / "DEEP"]))) == 1
    assert len(list(scan(registry, [folder.parent / "MODELS"]))) == 2
    assert list(scan(registry, [folder, folder / "SUB" / "deep"])) == []
    assert [root.path for root in registry.files.roots()] == [folder / "sub" / "deep", folder]
    assert len(registry.files.rows()) == 3


def test_two_folders_that_differ_in_case_are_two_roots_where_it_makes_a_difference(
    registry: Registry, folder: Path
) -> None:
    (folder / "Sub").mkdir()
    if len(os.listdir(folder)) == 2:
        pytest.skip("case makes no difference on this disk")
    networks.network_file(folder / "Sub", "d.pt", seed=8)
    list(scan(registry, [folder / "sub", folder / "Sub"]))
    assert len(registry.files.roots()) == 2
    assert len(registry.files.rows()) == 3


def test_what_is_missing_is_forgotten_only_where_its_folder_says_so(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, name in (("here", "gone"), ("here", "back"), ("here", "stays"), ("disk", "away")):
        (tmp_path / folder).mkdir(exist_ok=True)
        networks.network_file(tmp_path / folder, f"{name}.pt", seed=len(folder + name))
    run(["scan", str(tmp_path / "here"), str(tmp_path / "disk")])
    run(["tag", "away", "keep"])
    (tmp_path / "here" / "gone.pt").unlink()
    (tmp_path / "here" / "back.pt").rename(tmp_path / "elsewhere")
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    run(["scan"])
    (tmp_path / "elsewhere").rename(tmp_path / "here" / "back.pt")
    capsys.readouterr()
    assert run(["forget", "--missing", "-y"]) == 0
    said = capsys.readouterr()
    assert said.out == f"forgotten  {tmp_path / 'here' / 'gone.pt'}\n"
    assert f"1 file kept: {tmp_path / 'disk'} is not there" in said.err
    assert "1 file kept, there again or out of reach: hnetkit scan" in said.err
    (tmp_path / "unplugged").rename(tmp_path / "disk")
    run(["scan"])
    capsys.readouterr()
    assert run(["list", "--csv"]) == 0
    listed = capsys.readouterr().out
    assert "away" in listed
    assert "keep" in listed
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    run(["scan"])
    assert run(["forget", str(tmp_path / "disk"), "-y"]) == 0
