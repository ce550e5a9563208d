"""Preparing and reviewing a training folder from Python: what the commands make, with the package's own errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.pictures import different, save

from hnetkit import train
from hnetkit.cli import run
from hnetkit.errors import HnetkitError, NotFound, OutputExists, UsageError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures, one with a caption, one long, one transparent, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    different(folder, 3, (100, 80))
    (folder / "picture-01.txt").write_text("a red square\n", encoding="utf-8")
    save(folder, "strip.png", (300, 60), "blue")
    save(folder, "veil.png", (64, 64), (255, 0, 0, 99))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        (["--size", "64"], {"size": 64}),
        (["--size", "64x96", "--crop", "entropy", "--flip"], {"size": (64, 96), "crop": "entropy", "flip": True}),
        (
            ["--size", "64", "--split", "--split-threshold", "0.4", "--split-overlap", "0.1", "--flatten"],
            {"size": "64", "split": True, "split_threshold": 0.4, "split_overlap": 0.1, "flatten": True},
        ),
        (["--size", "64", "--buckets", "--recursive"], {"size": 64, "buckets": True, "recursive": True}),
    ],
    ids=["plain", "cropped and flipped", "split and flattened", "buckets"],
)
def test_the_folder_is_the_one_that_the_command_makes(
    said: list[str], chosen: dict[str, Any], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "prepare", str(photos), "--out", str(tmp_path / "command"), *said, "--json"]) == 1
    printed = capsys.readouterr()
    told: list[HnetkitError] = []
    steps: list[tuple[int, int]] = []
    done = train.prepare(
        photos, tmp_path / "python", progress=lambda *step: steps.append(step), failed=told.append, **chosen
    )
    assert files(tmp_path / "python") == files(tmp_path / "command")
    rows = json.loads(printed.out)
    assert [(one.path.name, str(one.source), list(one.size), one.caption) for one in done.made] == [
        (Path(row["path"]).name, row["source"], [row["width"], row["height"]], row["caption"]) for row in rows
    ]
    assert steps == [(number, 6) for number in range(1, 7)]
    assert [str(failure) for failure in done.failures] == [str(failure) for failure in told]
    assert [f"Error: {failure}" for failure in told] == printed.err.splitlines()[:1]
    assert (done.originals, len(told)) == (6, 1)
    assert [f"Warning: {warning}" for warning in done.warnings] == printed.err.splitlines()[1:-1]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"size": 500}, "multiples of 8"),
        ({"size": (64, 64, 64)}, "not a size"),
        ({"crop": "center"}, "crop center: one of centre, entropy, face"),
        ({"existing": "drop"}, "existing drop: one of keep, replace, append, prepend"),
        ({"split_threshold": 2}, "split_threshold 2: a share from 0 to 1"),
        ({"split_overlap": float("nan")}, "split_overlap nan: a share from 0 to 0.9"),
        ({"captions": ["clip"]}, "nothing called clip writes captions"),
        ({"captions": ["tags"], "general_threshold": 35}, "general_threshold 35: a probability"),
        ({"blip_model": "folder"}, "--caption blip"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_leaves_no_folder_behind(
    chosen: dict[str, Any], said: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        train.prepare(photos, tmp_path / "pictures", **chosen)
    assert not (tmp_path / "pictures").exists()


def test_folders_that_are_not_there_or_in_use_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such folder"):
        train.prepare(tmp_path / "nowhere", tmp_path / "pictures")
    with pytest.raises(NotFound, match="no such folder"):
        train.prepare(photos, tmp_path / "no" / "where")
    with pytest.raises(UsageError, match="originals are in it"):
        train.prepare(photos, photos, overwrite=True)
    train.prepare(photos, tmp_path / "pictures", size=64)
    before = files(tmp_path / "pictures")
    with pytest.raises(OutputExists, match="not empty"):
        train.prepare(photos, tmp_path / "pictures", size=64)
    train.prepare(photos, tmp_path / "pictures", size=64, overwrite=True)
    assert files(tmp_path / "pictures") == before


def test_captions_are_reviewed_edited_and_shown_as_by_the_command(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "drawing.psd").write_bytes(b"8BPS")
    seen = train.review(str(photos))
    assert run(["train", "review", str(photos), "--json"]) == 1
    printed = capsys.readouterr()
    assert seen.rows == json.loads(printed.out)
    assert [f"Warning: {line}" for line in (*seen.warnings, *seen.unreadable)] == printed.err.splitlines()[:-1]
    assert seen.warnings[0].startswith("1 file was left out: drawing.psd; pictures are .png, .jpg, ")
    assert run(["train", "review", str(photos), "--tags", "--json"]) == 1
    assert [{"tag": tag, "pictures": count} for tag, count in seen.tags()] == json.loads(capsys.readouterr().out)
    assert run(["train", "review", str(photos), "--html", str(tmp_path / "command.html")]) == 1
    train.write_page(seen, tmp_path / "python.html")
    assert (tmp_path / "python.html").read_bytes() == (tmp_path / "command.html").read_bytes()
    with pytest.raises(OutputExists):
        train.write_page(seen, tmp_path / "python.html")

    (tmp_path / "edited.csv").write_text('file,caption\npicture-01.png,"red, blue"\nveil.png,thin\n', encoding="utf-8")
    captions = train.read_captions(tmp_path / "edited.csv")
    assert captions == {"picture-01.png": "red, blue", "veil.png": "thin"}
    with (tmp_path / "edited.csv").open("rb") as file:
        assert train.read_captions(file) == captions
    assert train.apply_captions(photos, captions) == [photos / "picture-01.txt", photos / "veil.txt"]
    assert run(["train", "review", str(photos), "--apply", str(tmp_path / "edited.csv")]) == 0
    assert "0 captions changed" in capsys.readouterr().err
    with pytest.raises(NotFound, match="no such picture"):
        train.apply_captions(photos, {"other.png": "x"})
    with pytest.raises(NotFound, match=r"edited\.tsv"):
        train.read_captions(tmp_path / "edited.tsv")
