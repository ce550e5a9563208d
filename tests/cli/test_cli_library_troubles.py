"""The library's commands where disks, names and the registry itself are not as one would like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import networks
import pytest

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


@pytest.mark.skipif(os.name != "posix", reason="names are text there")
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
