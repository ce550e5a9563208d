"""The library's commands where disks, names and the registry itself are not as one would like."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support import networks

from hnetkit.cli import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "models"
    made.mkdir()
    networks.network_file(made, "ink.pt", seed=1)
    return made


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    capsys.readouterr()
    assert run(["list", "--json", *arguments]) == 0
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return rows


def test_a_disk_that_is_gone_does_not_keep_the_library_folder_from_being_scanned(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["scan", str(folder)]) == 0
    (home / "library").mkdir()
    networks.network_file(home / "library", "pulled.pt", seed=2)
    folder.rename(folder.with_name("unplugged"))
    assert run(["scan"]) == 1
    assert [(row["name"], row["size"] == "missing") for row in listed(capsys)] == [("ink", True), ("pulled", False)]


def test_a_scanned_folder_can_be_forgotten_and_stays_forgotten(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["scan", str(folder)])
    monkeypatch.chdir(folder.parent)
    assert run(["forget", "models", "-y"]) == 4  # a bare word is a network's name, not the folder beside us
    assert "Hint: hnetkit forget ./models forgets the folder" in capsys.readouterr().err
    assert run(["forget", "./models", "-y"]) == 0
    assert listed(capsys, "--files") == []
    assert run(["scan"]) == 4
    assert (folder / "ink.pt").exists()


def test_the_name_of_a_file_that_is_no_network_is_exit_7(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "page.pt").write_bytes(b"<html>log in</html>")
    run(["scan", str(folder)])
    capsys.readouterr()
    assert run(["show", "page"]) == 7
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX alone")
@pytest.mark.parametrize("form", ["", "--json", "--nl", "--csv", "--tsv", "-t"])
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:surrogateescape"])
def test_a_name_that_is_not_utf_8_is_printed_in_every_form(folder: Path, home: Path, form: str, encoding: str) -> None:
    odd = folder / os.fsdecode(b"caf\xe9.pt")
    (folder / "ink.pt").rename(odd)
    assert run(["scan", "-q", str(folder)]) == 0
    command = [sys.executable, "-P", "-m", "hnetkit", "list", "--files", *filter(None, [form])]
    environment = {**os.environ, "HNETKIT_HOME": str(home), "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    if form == "--json":
        (row,) = json.loads(done.stdout)
        assert Path(row["path"]) == odd
    assert done.stderr == b""
    assert rb"caf\udce9" in done.stdout


def test_a_registry_that_is_damaged_inside_is_one_line(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(folder)])
    path = home / "registry.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    for leftover in home.glob("registry.db-*"):
        leftover.unlink()
    capsys.readouterr()
    assert run(["list"]) == 1
    err = capsys.readouterr().err
    assert "the registry is damaged" in err
    assert "defect" not in err
    assert err.count("\n") == 2


# --- registries and settings that something broke


def execute(home: Path, statement: str) -> None:
    with closing(sqlite3.connect(home / "registry.db")) as connection:
        connection.execute(statement)
        connection.commit()


def doctor(capsys: pytest.CaptureFixture[str], check: str) -> tuple[str, str]:
    """What doctor says of one thing: its state, and the detail."""
    capsys.readouterr()
    run(["doctor", "--json"])
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["check"] == check)
    return row["state"], row["detail"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE files SET warnings = '{'", "warnings of 1 row in its table files (hnetkit scan)"),
        ("UPDATE networks SET metadata = 'null'", "metadata of 1 row in its table networks (hnetkit scan"),
        ("DELETE FROM network_text", "the search index is damaged (hnetkit scan)"),
        ("DROP TABLE network_text", "the search index is damaged (hnetkit scan)"),
    ],
)
def test_doctor_says_what_is_broken_and_the_command_that_it_names_mends_it(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str], damage: str, said: str
) -> None:
    run(["scan", str(folder)])
    assert doctor(capsys, "registry")[0] == "ok"
    execute(home, damage)
    state, detail = doctor(capsys, "registry")
    assert (state, said in detail) == ("failed", True), detail
    run(["scan"])
    assert doctor(capsys, "registry")[0] == "ok"
    assert run(["list"]) == run(["search", "ink"]) == 0


@pytest.mark.parametrize(("column", "of_list"), [("widths", ["list", "--width", "320"]), ("layer_structure", ["list"])])
@pytest.mark.parametrize("text", ["[[[", "{}", "nothing"])
def test_a_broken_row_is_one_line_and_the_next_command(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str], column: str, of_list: list[str], text: str
) -> None:
    run(["scan", str(folder)])
    execute(home, f"UPDATE networks SET {column} = '{text}'")
    capsys.readouterr()
    for command in (of_list, ["list", "--json"], ["show", "ink"], ["export", "-"]):
        assert run(command) == 1, command
        error, hint = capsys.readouterr().err.splitlines()
        assert f"the registry is damaged: {column} of h1:" in error
        assert hint.startswith("Hint: hnetkit scan")


def test_a_list_shows_what_is_whole_of_a_network_whose_row_is_broken_elsewhere(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(folder)])
    capsys.readouterr()
    assert run(["list", "--csv"]) == 0
    whole = capsys.readouterr().out
    execute(home, "UPDATE networks SET widths = '[[['")
    assert run(["list", "--csv"]) == 0
    assert capsys.readouterr().out == whole


@pytest.mark.parametrize("damage", ["path = 5", "size_bytes = 'x'", "size_bytes = x'ff00'", "sha256 = x'ff00'"])
def test_a_value_of_another_kind_in_a_files_row_is_no_defect_and_a_scan_mends_it(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    run(["scan", str(folder)])
    execute(home, f"UPDATE files SET {damage} WHERE id = (SELECT min(id) FROM files)")
    capsys.readouterr()
    commands = (["list"], ["list", "--files"], ["search", "ink"], ["export", "-"], ["scan", "--rehash"])
    for command in commands:
        run(command)
        assert "defect" not in capsys.readouterr().err
    assert run(["scan"]) == 0
    for command in commands[:4]:
        assert run(command) == 0


def test_doctor_says_where_a_disk_has_no_room_left(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(home)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    for check, variable in (("home", "HNETKIT_HOME"), ("library", "HNETKIT_LIBRARY")):
        state, detail = doctor(capsys, check)
        assert state == "failed"
        assert "its disk is full, with 4.1 kB free" in detail
        assert variable in detail


def test_doctor_names_a_lost_table_and_goes_on(folder: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(folder)])
    execute(home, "DROP TABLE lookups")
    (home / "config.json").write_text("[" * 100_000)
    state, detail = doctor(capsys, "registry")
    assert (state, "lost lookups" in detail, "move it away" in detail) == ("failed", True, True)
    assert doctor(capsys, "settings")[0] == "failed"
    assert doctor(capsys, "demo model")[0] == "ok"


# --- lines that are wrong, and links


def test_import_takes_in_the_good_lines_and_names_the_bad_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = b'{"kind": "subscription", "name": "a", "filters": {}}'
    lines = [b'{"kind": "hnetkit", "version": 1}', b"\xe9\x1b[31m", good]
    (tmp_path / "library.jsonl").write_bytes(b"\n".join(lines))
    assert run(["import", str(tmp_path / "library.jsonl")]) == 1
    out, err = capsys.readouterr()
    assert out == "subscription  1\n"
    assert err.startswith("line 2: not JSON")
    assert "\x1b" not in err


def test_scan_says_which_links_it_did_not_follow(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    networks.network_file(tmp_path / "other", "far.pt", seed=2)
    (folder / "out").symlink_to(tmp_path / "other")
    assert run(["scan", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "far.pt" not in out
    assert f"1 link to a folder outside was not followed: {folder / 'out'}; --follow-links follows" in err
    assert run(["scan", "--follow-links"]) == 0
    assert "far.pt" in capsys.readouterr().out


def test_doctor_says_where_no_download_can_make_the_library(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "unplugged")
    for place, why in (
        ("file", "file: not a folder"),
        ("file/below", "file: not a folder"),
        ("link", "link leads nowhere: is its disk mounted?"),
    ):
        monkeypatch.setenv("HNETKIT_LIBRARY", str(tmp_path / place))
        state, detail = doctor(capsys, "library")
        assert (state, detail) == ("failed", f"{tmp_path}/{why} (set HNETKIT_LIBRARY to a folder of yours)")


def test_doctor_names_the_library_and_says_when_nothing_is_left_of_it(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor(capsys, "library") == ("ok", f"{home / 'library'}, which the first download makes")
    monkeypatch.setenv("HNETKIT_LIBRARY", str(folder))
    run(["scan", str(folder)])
    assert doctor(capsys, "library") == ("ok", str(folder))
    folder.rename(folder.with_name("unplugged"))
    state, detail = doctor(capsys, "library")
    assert (state, "nothing is left of the library" in detail) == ("failed", True), detail
