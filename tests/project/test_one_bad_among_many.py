"""One hostile item of each kind among good ones: the good are done, the bad are named, a second run costs no more."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import growing, hostile_files, networks, pictures

from hnetkit.cli import run

GOOD = 100


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HNETKIT_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for number in range(GOOD):
        networks.network_file(folder, f"good{number}.pt", widths=(4,), seed=number)
    return folder


@pytest.fixture(scope="module")
def tricks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of each trick: to make them all takes seconds."""
    folder = tmp_path_factory.mktemp("tricks")
    for name, make in hostile_files.TRICKS.items():
        (folder / name).write_bytes(make())
    return folder


def hostile_models(tricks: Path, folder: Path, which: slice = slice(None)) -> list[Path]:
    """One file of each trick, between the good ones in the order of names, and things that are no files.

    Args:
        which: of the tricks, where the others are another test's.
    """
    made = [
        Path(shutil.copy(trick, folder / f"good{number % GOOD}-{trick.name}.pt"))
        for number, trick in enumerate(sorted(tricks.iterdir())[which])
    ]
    os.mkfifo(folder / "good1-pipe.pt")
    os.symlink("good2-loop.pt", folder / "good2-loop.pt")
    return made


def hostile_images(folder: Path) -> list[Path]:
    tricks = {
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
        "pixels.png": growing.png(width=60_000, height=60_000 // 8),
        "cut.png": growing.png(width=64, height=64)[:45],
        "chunks.png": growing.png(*[(b"teST", b"")] * 300_000),
        "empty.png": b"",
        "dds.png": b"DDS " + b"\0" * 124,
        "page.jpg": b"<!DOCTYPE html><html></html>",
        "bytes.webp": b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 60,
    }
    for name, data in tricks.items():
        (folder / f"3-{name}").write_bytes(data)
    return [folder / f"3-{name}" for name in tricks]


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    code = run([*map(str, arguments), "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out.strip() else [], said.err


def test_a_scan_takes_in_the_good_and_names_the_bad(
    good: Path, tricks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "library"))
    bad = hostile_models(tricks, folder)
    late = Path(shutil.copy(folder / "good5.pt", folder / "good5-of-2300.pt"))
    os.utime(late, (10_413_792_000, 10_413_792_000))
    _, first, _ = rows(capsys, "scan", folder)
    assert {row["path"] for row in first} >= {str(path) for path in [*bad, *folder.glob("good?.pt"), late]}
    _, held, _ = rows(capsys, "list")
    assert len(held) == GOOD
    _, files, _ = rows(capsys, "list", "--files")
    named = {row["path"]: row for row in files}
    assert all(named[str(path)]["reason"] for path in bad)
    _, second, _ = rows(capsys, "scan", folder)
    circle = (
        folder / "good2-loop.pt"
    )  # a link that leads to itself: named until it is gone, like any failure of the disk
    assert [(row["change"], row["path"]) for row in second] == [("unread", str(circle))] * circle.is_symlink()


def test_a_conversion_converts_the_good_and_names_the_bad(
    good: Path, tricks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "in"))
    bad = hostile_models(tricks, folder, slice(0, None, 2))
    (tmp_path / "out").mkdir()
    code = run(
        ["convert", *map(str, sorted(folder.glob("*.pt"))), "--to", "safetensors", "--out-dir", str(tmp_path / "out")]
    )
    said = capsys.readouterr()
    assert code in (1, 7)
    assert len(list((tmp_path / "out").iterdir())) == GOOD
    assert all(path.name in said.err for path in bad)


def test_validation_judges_the_good_and_names_the_bad(
    good: Path, tricks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "in"))
    bad = hostile_models(tricks, folder, slice(1, None, 2))
    code, judged, said = rows(capsys, "validate", *sorted(folder.glob("*.pt")))
    assert code in (1, 7)
    paths = {row["path"] for row in judged}
    assert all(str(path) in paths or path.name in said for path in [*bad, *folder.glob("good?.pt")])


@pytest.fixture(scope="module")
def good_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    pictures.different(folder, GOOD)
    return folder


def test_preparing_makes_the_good_and_names_the_bad(
    good_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(good_images, tmp_path / "in"))
    bad = hostile_images(folder)
    code = run(["train", "prepare", str(folder), "--out", str(tmp_path / "out"), "--size", "64"])
    said = capsys.readouterr()
    assert code == 1
    assert len(list((tmp_path / "out").glob("*.png"))) == GOOD
    assert all(path.name in said.err for path in bad)


def test_a_review_lists_the_good_and_names_the_bad(
    good_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(good_images, tmp_path / "in"))
    bad = hostile_images(folder)
    os.mkfifo(folder / "3-pipe.txt")
    code, listed, said = rows(capsys, "train", "review", folder)
    assert code in (0, 1)
    assert sum(row["width"] is not None for row in listed) >= GOOD
    assert {row["file"] for row in listed} >= {path.name for path in bad}
    assert all(path.name in said for path in bad)


def test_an_import_takes_in_the_good_lines_and_names_the_bad(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["scan", str(good)]) == 0
    capsys.readouterr()
    assert run(["export", str(tmp_path / "known.jsonl")]) == 0
    head, *lines = (tmp_path / "known.jsonl").read_text().splitlines()
    assert len(lines) == GOOD
    record = json.loads(lines[0])
    bad = [
        "[" * 100_000,
        '{"kind": "network", "tags": [' + "{}," * 1_000_000 + "{}]}",
        json.dumps({**record, "widths": 5}),
        json.dumps({**record, "content_hash": None}),
        json.dumps({**record, "aliases": [[]]}),
        json.dumps({"kind": "subscription", "name": "x", "filters": {"base_models": 7}}),
        '{"kind": "network"}',
        "not JSON",
    ]
    for number, line in enumerate(bad):
        lines.insert(10 * number + 3, line)
    (tmp_path / "shared.jsonl").write_text("\n".join([head, *lines]) + "\n")
    monkeypatch.setenv("HNETKIT_HOME", str(tmp_path / "another"))
    assert run(["import", str(tmp_path / "shared.jsonl")]) == 1
    said = capsys.readouterr()
    assert all(f"line {10 * number + 5}" in said.err for number in range(len(bad)))
    assert run(["export", str(tmp_path / "taken.jsonl")]) == 0
    assert len((tmp_path / "taken.jsonl").read_text().splitlines()) == 1 + GOOD
