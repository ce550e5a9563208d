"""Pictures as pages show them."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from support.pictures import save

from hnetkit.errors import BadPicture, NotFound
from hnetkit.gallery.thumbnails import Thumbnails, placeholder


def test_a_picture_is_made_small_once_for_its_content(tmp_path: Path) -> None:
    kept, pictures = tmp_path / "kept", tmp_path / "pictures"
    pictures.mkdir()
    first, same = save(pictures, "a.png", (500, 300)), pictures / "b.png"
    same.write_bytes(first.read_bytes())
    thumbnails = Thumbnails(kept)
    one = thumbnails.of(first, "small", within=[pictures])
    (file,) = kept.iterdir()
    made_at = file.stat().st_mtime_ns
    assert thumbnails.of(same, "small", within=[pictures]) == one
    assert [file.stat().st_mtime_ns for file in kept.iterdir()] == [made_at]
    save(pictures, "a.png", (500, 300), "blue")
    assert thumbnails.of(first, "small", within=[pictures]).data != one.data


def test_a_picture_that_cannot_be_kept_is_shown_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"a file where the folder would be")
    picture = save(tmp_path, "a.png")
    assert Thumbnails(tmp_path / "kept").of(picture, "small", within=[tmp_path]).data


def test_a_picture_outside_of_the_folders_is_not_read_wherever_links_lead(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    outside = save(tmp_path, "outside.png")
    (inside / "link.png").symlink_to(outside)
    for path in (outside, inside / "link.png", inside / ".." / "outside.png"):
        with pytest.raises(NotFound):
            Thumbnails(tmp_path / "kept").of(path, "small", within=[inside])


def test_a_page_of_large_files_holds_few_of_them_at_once(tmp_path: Path) -> None:
    size, pictures = 16 << 20, [tmp_path / f"{number}.png" for number in range(12)]
    for path in pictures:
        with path.open("wb") as file:  # what an archive unpacks to holes takes no room on the disk
            file.write(b"\x89PNG\r\n\x1a\n" + (size - 20).to_bytes(4, "big") + b"tEXt")
            file.truncate(size)

    def ask(path: Path) -> None:
        with suppress(BadPicture):
            Thumbnails(tmp_path / "kept").of(path, "small", within=[tmp_path])

    tracemalloc.start()
    try:
        with ThreadPoolExecutor(len(pictures)) as browser:
            list(browser.map(ask, pictures))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5 * size, f"{most >> 20} MB"


@pytest.mark.parametrize("structure", ["1, 2, 1", "", "x", "nan, inf", "1e300, 1", ", ".join(["1"] * 500), "-1, 0"])
def test_every_structure_has_a_drawing(structure: str) -> None:
    drawn = placeholder(structure, "relu").data.decode()
    assert 1 <= drawn.count("<rect") - 1 <= 20
    assert "nan" not in drawn
    assert "inf" not in drawn
