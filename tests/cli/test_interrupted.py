"""Ctrl-C in any command: one line says what it leaves and what to do next, and doing that finishes the work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.pictures import different

from hnetkit import demo
from hnetkit.cli import COMMANDS, run
from hnetkit.cli.signals import AFTER_INTERRUPTION
from hnetkit.cli.train import SUBCOMMANDS

needs_demo = pytest.mark.skipif(not demo.networks(), reason="the bundled demo model is missing from this checkout")

NOTHING_TO_SAY = frozenset(
    {
        # they only look
        *("inspect", "validate", "list", "search", "show", "browse", "updates", "prompt", "train schedule"),
        *("doctor", "path"),
        # done at once, or not at all
        *("tag", "forget", "config"),
        # the commands that they run say it
        *("demo", "train"),
    }
)


def test_every_command_says_what_to_do_after_ctrl_c_or_has_nothing_to_say() -> None:
    commands = {name for section in COMMANDS.values() for name in section}
    commands |= {f"train {name}" for section in SUBCOMMANDS.values() for name in section}
    assert commands - set(AFTER_INTERRUPTION) - NOTHING_TO_SAY == set()
    assert not set(AFTER_INTERRUPTION) & NOTHING_TO_SAY


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three networks, ``lib``, and one of three pictures, ``photos``."""
    monkeypatch.chdir(tmp_path)
    Path("lib").mkdir()
    for name, file in demo.networks().items():
        shutil.copy(file, Path("lib", f"{name}.pt"))
    Path("photos").mkdir()
    for path in different(Path("photos"), 3):
        path.with_suffix(".txt").write_text("a red circle")
    return tmp_path


def interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: str, number: int, line: Sequence[str]
) -> str:
    """Runs a command in which Ctrl-C arrives at a call of the operating system; returns what it said at last."""
    real: Callable[..., Any] = getattr(os, call)
    calls = 0

    def pressed(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return real(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, pressed)
        assert run(list(line)) == 130
    assert calls >= number
    said = capsys.readouterr().err.splitlines()
    assert said[-2] == "Interrupted."
    return said[-1].removeprefix("Hint: ")


def names(folder: str, pattern: str) -> list[str]:
    return sorted(path.name for path in Path(folder).glob(pattern))


@needs_demo
def test_a_removal_is_taken_back_and_an_earlier_one_stays_in_the_trash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["scan", "lib"]) == 0
    assert run(["remove", "dots", "-y"]) == 0
    said = interrupted(monkeypatch, capsys, "rename", 1, ["remove", "outline", "-y"])
    assert said == AFTER_INTERRUPTION["remove"]
    assert "--undo" not in said
    assert sorted(path.name for path in Path("lib").glob("*.pt")) == ["outline.pt", "paper.pt"]


@needs_demo
def test_a_scan_is_finished_by_the_same_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["scan", "lib"]
    assert interrupted(monkeypatch, capsys, "scandir", 1, line) == AFTER_INTERRUPTION["scan"]
    assert run(line) == 0
    assert run(["list", "--nl"]) == 0
    assert len(capsys.readouterr().out.splitlines()[-3:]) == 3


@needs_demo
def test_files_that_were_converted_stay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["convert", "--to", "safetensors", *map(str, sorted(Path("lib").iterdir()))]
    assert interrupted(monkeypatch, capsys, "fsync", 2, line) == AFTER_INTERRUPTION["convert"]
    assert len(names("lib", "*")) == 4  # one of three, and nothing half-written
    assert run([*line, "--overwrite"]) == 0
    assert len(names("lib", "*.safetensors")) == 3


def test_an_export_is_whole_or_absent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["export", "library.jsonl"]
    assert interrupted(monkeypatch, capsys, "fsync", 1, line) == AFTER_INTERRUPTION["export"]
    assert names(".", "*library.jsonl*") == []
    assert run(line) == 0


@needs_demo
def test_a_share_is_whole_or_absent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan", "lib"]) == 0
    line = ["share", "outline", "--out", "shared", "--license", "mit"]
    assert interrupted(monkeypatch, capsys, "fsync", 3, line) == AFTER_INTERRUPTION["share"]
    assert names(".", "*shared*") == []
    assert run(line) == 0


@needs_demo
def test_an_import_is_finished_by_the_same_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["scan", "lib"]) == 0
    assert run(["export", "library.jsonl"]) == 0

    monkeypatch.setenv("HNETKIT_HOME", "other")
    line = ["import", "library.jsonl"]
    assert interrupted(monkeypatch, capsys, "fstat", 1, line) == AFTER_INTERRUPTION["import"]
    assert run(line) == 0
    assert run(["list", "--nl"]) == 0
    assert len(capsys.readouterr().out.splitlines()[-3:]) == 3


@needs_demo
def test_pictures_that_were_drawn_stay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["generate", "a star", "--steps", "1", "--count", "3", "--seed", "1", "--out", "drawn"]
    assert interrupted(monkeypatch, capsys, "fsync", 2, line) == AFTER_INTERRUPTION["generate"]
    assert names("drawn", "*") == ["00000-1.png"]
    assert run(line) == 0
    assert len(names("drawn", "*.png")) == 4


@needs_demo
def test_a_grid_goes_on_from_its_cells(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["grid", "dots", "--prompt", "a star", "--steps", "1", "--strengths", "0,1", "--seed", "1"]
    assert interrupted(monkeypatch, capsys, "fsync", 3, line) == AFTER_INTERRUPTION["grid"]
    drawn = {path: path.stat().st_mtime_ns for path in Path().rglob("*.png")}
    assert run(line) == 0
    assert Path("grid.png").exists()
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn


def test_pictures_that_were_prepared_stay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "prepare", "photos", "--out", "pictures", "--size", "64"]
    assert interrupted(monkeypatch, capsys, "fsync", 5, line) == AFTER_INTERRUPTION["train prepare"]
    assert names("pictures", "*.png") == ["picture-00.png"]
    assert run([*line, "--overwrite"]) == 0
    assert len(names("pictures", "*.png")) == 3


@needs_demo
def test_a_training_is_resumed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "photos", "--name", "ink", "--rate", "1e-4:3", "--save-every", "1", "--preview-every", "0"]
    assert interrupted(monkeypatch, capsys, "fsync", 12, line) == AFTER_INTERRUPTION["train run"]
    assert run(line) == 0
    assert "Resuming from step" in capsys.readouterr().err
    assert Path("training", "ink", "ink.safetensors").exists()
