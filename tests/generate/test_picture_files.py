"""Pictures on disk: what they are called, and that nothing is lost or replaced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from hnetkit.errors import NotFound, OutputExists, UsageError
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate import image_files
from hnetkit.generate.image_files import Picture, is_image_file, next_number
from hnetkit.image_text import read_image_text, write_image

IMAGE = Image.effect_mandelbrot((16, 16), (-2, -1, 1, 1), 50).convert("RGB")
TEXTS = ["a cat\nSteps: 1", "çà", "ネオン <hypernet:ネオン:1>", "\u2028", "😀"]


def texts(path: Path) -> dict[str, str]:
    with OpenFile(path) as file:
        return read_image_text(file)


@pytest.mark.parametrize("text", [*TEXTS, "x" * 100_000])
def test_a_png_has_the_infotext_where_a1111_has_it(tmp_path: Path, text: str) -> None:
    write_image(tmp_path / "a.png", IMAGE, text)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"] == text
        assert image.tobytes() == IMAGE.tobytes()
    assert texts(tmp_path / "a.png") == {"parameters": text}
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_a_jpeg_or_webp_has_it_in_its_exif_comment(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    write_image(path, IMAGE, text)
    with Image.open(path) as image:
        assert image.format == ("WEBP" if name.endswith("webp") else "JPEG")
        assert image.getexif().get_ifd(0x8769)[0x9286] == b"UNICODE\0" + text.encode("utf-16-be")
    assert texts(path) == {"UserComment": text}


def test_a_webp_loses_no_pixel_and_holds_a_long_text(tmp_path: Path) -> None:
    write_image(tmp_path / "a.webp", IMAGE, "x" * 100_000)
    with Image.open(tmp_path / "a.webp") as image:
        assert image.convert("RGB").tobytes() == IMAGE.tobytes()
    assert texts(tmp_path / "a.webp") == {"UserComment": "x" * 100_000}


def test_a_text_that_no_jpeg_can_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_image(tmp_path / "long.jpg", IMAGE, "x" * 32_000)
    assert texts(tmp_path / "long.jpg") == {"UserComment": "x" * 32_000}
    with pytest.raises(UsageError) as refused:
        write_image(tmp_path / "a.jpg", IMAGE, "x" * 33_000)
    assert refused.value.command_hint == f"--out {tmp_path / 'a.png'}"
    assert [path.name for path in tmp_path.iterdir()] == ["long.jpg"]


def test_another_suffix_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="PNG, JPEG or WebP"):
        write_image(tmp_path / "a.gif", IMAGE, "x")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_one_picture_and_text_always_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name, IMAGE, "a cat")
    first = (tmp_path / name).read_bytes()
    write_image(tmp_path / name, IMAGE, "a cat", overwrite=True)
    assert (tmp_path / name).read_bytes() == first


def test_an_existing_file_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExists):
        write_image(path, IMAGE, "new")
    assert path.read_bytes() == b"mine"
    write_image(path, IMAGE, "new", overwrite=True)
    assert path.read_bytes() != b"mine"


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        write_image(tmp_path / "absent" / "a.png", IMAGE, "new")


def test_a_picture_that_cannot_be_encoded_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="HSV"):
        write_image(tmp_path / "a.png", Image.new("HSV", (8, 8)), "x")
    assert not list(tmp_path.iterdir())


def test_numbers_go_on_after_the_highest_of_every_format(tmp_path: Path) -> None:
    assert next_number(tmp_path / "absent") == 0
    assert next_number(tmp_path) == 0
    for name in ("00004-1.png", "00012-99.jpg", "a-1.png", "0001-1.png", "99999-1.gif", "99999-1.png.txt"):
        (tmp_path / name).touch()
    assert next_number(tmp_path) == 13
    (tmp_path / "123456-7.webp").touch()
    assert next_number(tmp_path) == 123457


@pytest.mark.parametrize(
    "name", [f"{'9' * 246}-1.png", "1000000000-1.png", "\u0663" * 5 + "-1.png", "99999-\u0663.png"]
)
def test_a_name_that_is_no_count_changes_no_number(tmp_path: Path, name: str) -> None:
    (tmp_path / "00041-7.png").touch()
    (tmp_path / name).touch()
    assert next_number(tmp_path) == 42


def test_after_the_last_number_of_all_gaps_are_filled(tmp_path: Path) -> None:
    for name in ("999999999-1.png", "00000-1.png", "00002-1.png"):
        (tmp_path / name).touch()
    for expected in (1, 3, 4):
        assert next_number(tmp_path) == expected
        (tmp_path / f"{expected:05}-1.png").touch()


def test_a_place_is_a_file_by_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for file in ("a/b.png", "B.PNG", "a.jpg", "a.jpeg", "a.webp"):
        assert is_image_file(file)
    for folder in (".", "pictures", "v1.5", "x.png/", str(tmp_path / "folder.png")):
        assert not is_image_file(folder)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="neither a folder"):
        is_image_file(str(tmp_path / "notes.txt"))
    with pytest.raises(UsageError) as other:
        is_image_file("a/b.gif")
    assert other.value.command_hint == f"--out {Path('a/b.png')}"


def test_a_folder_that_another_command_makes_at_the_moment_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = image_files.is_there

    def is_there(path: str) -> bool:
        Path(path).mkdir(exist_ok=True)
        return asked(path)

    monkeypatch.setattr(image_files, "is_there", is_there)
    assert not is_image_file(str(tmp_path / "pictures"))


def test_commands_that_draw_the_same_seeds_into_one_folder_at_once_lose_no_picture(tmp_path: Path) -> None:

    def drawing(command: int) -> list[Path]:
        drawn = [Picture(IMAGE.copy(), seed, f"of command {command}", "", "", (), "tiny") for seed in range(15)]
        return [picture.save(tmp_path / "pictures") for picture in drawn]

    with ThreadPoolExecutor(4) as commands:
        written = [path for paths in commands.map(drawing, range(4)) for path in paths]
    assert len(set(written)) == 60
    assert sorted(written) == sorted((tmp_path / "pictures").iterdir())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_name_that_is_no_text_does_not_lose_a_picture_that_was_drawn(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", IMAGE, "a cat\nSteps: 1, Model: bytes \udcff, Seed: 2")
    assert list(texts(tmp_path / f"a{suffix}").values()) == ["a cat\nSteps: 1, Model: bytes ?, Seed: 2"]
