"""Pictures on disk: what they carry, what they are called, and that nothing is lost or replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hnetkit.errors import NotFound, OutputExists, UsageError
from hnetkit.generate.png import is_picture_file, next_number, write_png

IMAGE = Image.effect_mandelbrot((16, 16), (-2, -1, 1, 1), 50).convert("RGB")


@pytest.mark.parametrize("text", ["a cat\nSteps: 1", "çà", "ネオン <hypernet:ネオン:1>", "x" * 100_000, "\u2028"])
def test_the_infotext_survives(tmp_path: Path, text: str) -> None:
    write_png(tmp_path / "a.png", IMAGE, text)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"] == text
        assert image.tobytes() == IMAGE.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_an_existing_file_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExists):
        write_png(path, IMAGE, "new")
    assert path.read_bytes() == b"mine"
    write_png(path, IMAGE, "new", overwrite=True)
    assert path.read_bytes() != b"mine"


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        write_png(tmp_path / "absent" / "a.png", IMAGE, "new")


def test_a_picture_that_cannot_be_encoded_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="HSV"):
        write_png(tmp_path / "a.png", Image.new("HSV", (8, 8)), "x")
    assert not list(tmp_path.iterdir())


def test_numbers_go_on_after_the_highest(tmp_path: Path) -> None:
    assert next_number(tmp_path / "absent") == 0
    assert next_number(tmp_path) == 0
    for name in ("00004-1.png", "00012-99.png", "123456-7.png", "99999-1.jpg", "a-1.png", "0001-1.png"):
        (tmp_path / name).touch()
    assert next_number(tmp_path) == 123457


def test_a_place_is_a_file_by_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    assert is_picture_file("a/b.png")
    assert is_picture_file("B.PNG")
    for folder in (".", "pictures", "v1.5", "x.png/", str(tmp_path / "folder.png")):
        assert not is_picture_file(folder)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="neither a folder"):
        is_picture_file(str(tmp_path / "notes.txt"))
    with pytest.raises(UsageError) as other:
        is_picture_file("a/b.jpg")
    assert other.value.hint == f"--out {Path('a/b.png')}"
