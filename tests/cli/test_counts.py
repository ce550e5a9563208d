"""One is not several, in whatever is said of how many."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import networks

from hnetkit.cli import run
from hnetkit.text import counted


def test_a_number_of_things() -> None:
    assert [counted(number, "file") for number in (0, 1, 2, 12_345)] == ["0 files", "1 file", "2 files", "12,345 files"]


def test_one_file_is_one_file(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = networks.save_pt(networks.a1111_network((8,)) | {"step": 1}, folder / "ink.pt")
    assert run(["scan", str(folder)]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "1 change; 1 network in 1 file"
    assert run(["export", str(tmp_path / "all.jsonl")]) == 0
    assert capsys.readouterr().err == "1 record\n"
    for command in (["inspect", str(path)], ["show", "ink"]):
        assert run(command) == 0
        out = capsys.readouterr().out
        assert "1 step" in out
        assert "1 steps" not in out
    path.unlink()
    assert run(["scan", "--rehash"]) == 1
    assert "Error: 1 file is not what it was" in capsys.readouterr().err
    assert run(["forget", "ink"]) == 2
    assert "Forget 1 file, and what only it held?" in capsys.readouterr().err
