"""`hnetkit train prepare` and `hnetkit train review` as a person or a script meets them."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.hostile_images import damaged_avif, large_png, postscript
from support.pictures import different, save

from hnetkit.cli import run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    different(folder, 3, (100, 80))
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: object, exit_code: int = 0) -> tuple[str, str]:
    assert run(["train", *map(str, arguments)]) == exit_code
    out, err = capsys.readouterr()
    return out, err


def rows(capsys: pytest.CaptureFixture[str], *arguments: object, exit_code: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(said(capsys, *arguments, "--json", exit_code=exit_code)[0])
    return found


def test_pictures_become_a_training_folder(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "prepare", pictures, "--out", tmp_path / "training", "--size", "64", "--flip")
    assert len(found) == 6
    assert found[0] == {
        "path": str(tmp_path / "training" / "picture-00.png"),
        "source": str(pictures / "picture-00.png"),
        "width": 64,
        "height": 64,
        "caption": "picture-00",
    }
    assert all(Image.open(row["path"]).size == (64, 64) for row in found)


def test_what_cannot_be_read_is_named_and_the_rest_is_made(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "picture-01.txt").write_bytes(b"\xff\xfe\xff")
    out, err = said(capsys, "prepare", pictures, "--out", tmp_path / "training", "--size", "64", exit_code=1)
    assert [Path(line).name for line in out.splitlines()] == ["picture-00.png", "picture-02.png"]
    assert "broken.png: not a picture" in err
    assert "picture-01.txt: not UTF-8" in err
    assert "2 of 4 pictures were left out" in err
    assert sorted(path.name for path in (tmp_path / "training").iterdir()) == ["picture-00.png", "picture-02.png"]


def test_each_hostile_picture_and_caption_fails_alone(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (pictures / "a-damaged.png").write_bytes(damaged_avif())
    (pictures / "b-code.png").write_bytes(postscript())
    (pictures / "c-large.png").write_bytes(large_png(13_300, 13_300))
    (pictures / "d-line.png").write_bytes(large_png(1, 60_000))
    save(pictures, "e-captioned.png").with_suffix(".txt").touch()
    os.truncate(pictures / "e-captioned.txt", 1 << 40)
    save(pictures, "f" * 250 + ".png", (64, 64), "blue")
    arguments = ("prepare", pictures, "--out", tmp_path / "training", "--size", "64", "--flip", "--split")
    out, err = said(capfd, *arguments, exit_code=1)
    assert len(out.splitlines()) == 8
    failed = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert [line.split(": ")[1].split("/")[-1] for line in failed[:-1]] == [
        *("a-damaged.png", "b-code.png", "c-large.png", "d-line.png", "e-captioned.txt")
    ]
    assert failed[-1] == "Error: 5 of 9 pictures were left out"
    assert "Warning: Image" not in err
    out, err = said(capfd, "review", pictures, "--csv", exit_code=1)
    assert len(out.splitlines()) == 10
    assert "4 of 9 pictures or their captions cannot be read" in err


def test_a_full_disk_ends_the_run_and_is_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    _, err = said(capsys, "prepare", pictures, "--out", tmp_path / "training", "--size", "64", exit_code=1)
    assert err.count("Error: ") == 1
    assert "picture-00.png: no room is left on the disk" in err
    assert "run the command again with --overwrite" in err
    assert list((tmp_path / "training").iterdir()) == []


def test_an_endless_table_is_refused(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "edited.csv").touch()
    os.truncate(tmp_path / "edited.csv", 1 << 40)
    assert (
        "more than 16,777,216 bytes"
        in said(capsys, "review", pictures, "--apply", tmp_path / "edited.csv", exit_code=2)[1]
    )


def test_what_is_odd_about_the_pictures_is_said(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "twin.png").write_bytes((pictures / "picture-00.png").read_bytes())
    arguments = ("prepare", pictures, "--out", tmp_path / "training", "--size", "96x64")
    _, err = said(capsys, *arguments)
    assert "4 pictures are few" in err
    assert "twin.png" in err
    save(tmp_path / "training", "old.png")
    _, err = said(capsys, *arguments, "--overwrite")
    assert "1 picture of before stays" in err
    assert "old.png" in err
    assert said(capsys, *arguments, "--overwrite", "-q")[1] == ""


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--size", "500"], 2, "multiples of 8"),
        (["--blip-model", "x"], 2, "--caption blip"),
        (["--caption", "none", "--caption", "blip"], 2, "stands alone"),
        (["--caption", "blip", "--blip-model", "nobody/nothing"], 4, "go online once"),
        (["--caption", "tags", "--tags-model", "no-such-folder"], 4, "no such folder"),
    ],
)
def test_a_bad_option_leaves_no_folder_behind(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    exit_code: int,
    words: str,
) -> None:
    _, err = said(capsys, "prepare", pictures, "--out", tmp_path / "training", *arguments, exit_code=exit_code)
    assert words in err
    assert not (tmp_path / "training").exists()


def test_the_folder_of_the_originals_and_a_full_folder_are_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(pictures.iterdir())
    assert "originals" in said(capsys, "prepare", pictures, "--out", pictures, "--overwrite", exit_code=2)[1]
    save(tmp_path, "mine.png")
    assert "not empty" in said(capsys, "prepare", pictures, "--out", tmp_path, exit_code=2)[1]
    assert sorted(pictures.iterdir()) == before
    said(capsys, "prepare", tmp_path / "nowhere", "--out", tmp_path / "training", exit_code=4)


def test_captions_go_out_as_a_table_and_come_back_edited(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = tmp_path / "training"
    said(capsys, "prepare", pictures, "--out", training, "--size", "64")
    out, _ = said(capsys, "review", training, "--csv")
    assert out.splitlines()[1] == "picture-00.png,64,64,picture-00,the caption is the file name,b3:6c6cb056"
    (tmp_path / "edited.csv").write_text(out.replace("picture-01,", '"red, blue",'), encoding="utf-8")
    out, err = said(capsys, "review", training, "--apply", tmp_path / "edited.csv")
    assert out == f"{training / 'picture-01.txt'}\n"
    assert "1 caption changed" in err
    assert rows(capsys, "review", training)[1]["caption"] == "red, blue"
    assert rows(capsys, "review", training, "--tags")[0] == {"tag": "blue", "pictures": 1}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"file,caption\npicture-02.png,green\n")))
    said(capsys, "review", training, "--apply", "-")
    assert (training / "picture-02.txt").read_text(encoding="utf-8") == "green\n"


def test_a_page_is_written_once(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert said(capsys, "review", pictures, "--html", page)[0] == f"{page}\n"
    assert page.read_text(encoding="utf-8").count("<img ") == 3
    assert "exists" in said(capsys, "review", pictures, "--html", page, exit_code=2)[1]
    said(capsys, "review", pictures, "--html", page, "--overwrite")


def test_a_review_asks_for_one_thing_and_names_what_it_cannot_read(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "review", pictures, "--tags", "--html", tmp_path / "page.html", exit_code=2)
    said(capsys, "review", tmp_path / "nowhere", exit_code=4)
    (pictures / "broken.png").write_bytes(b"no picture")
    out, err = said(capsys, "review", pictures, "--csv", exit_code=1)
    assert out.splitlines()[1].startswith("broken.png,,,broken,cannot be read,b3:")
    assert "1 of 4 pictures" in err
