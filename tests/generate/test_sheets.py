"""The sheet: where pictures lie, and that labels are there and do not cover each other."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from hnetkit.errors import UsageError
from hnetkit.generate.grids.sheet import (
    LEAST_CELL,
    MIN_CELL,
    MOST_PIXELS,
    Section,
    SheetRow,
    draw_sheet,
    font_of,
    lay_out,
    most_side,
    require_room,
)

SIZE = MIN_CELL  # large enough not to be enlarged
COLOURS = ["#a01010", "#10a010", "#1010a0"]


def rows(width: int, height: int, *labels: str) -> list[Section]:
    pictures = [Image.new("RGB", (width, height), colour) for colour in COLOURS]
    return [Section("", [SheetRow(label, pictures) for label in labels])]


def cell(sheet: Image.Image, place: tuple[int, int], width: int, height: int) -> Image.Image:
    return sheet.crop((*place, place[0] + width, place[1] + height))


def has_ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> bool:
    """Whether something dark is written there."""
    return min(sheet.crop(box).convert("L").tobytes(), default=255) < 100


def test_every_part_of_a_sheet_has_its_label() -> None:
    content = rows(SIZE, SIZE, "ink", "wash")
    arguments = ("a red circle", "model, seed 1", ["none", "0.5", "1"], content)
    sheet, layout = draw_sheet(*arguments), lay_out(*arguments)
    assert sheet.size == layout.size
    assert len(layout.cells) == 2
    assert all(len(row) == 3 for row in layout.cells)
    left, top = layout.cells[0][0]
    for x, _ in layout.cells[0]:
        assert has_ink(sheet, (x, top - 2 * layout.em, x + SIZE, top - 2))
    for row in layout.cells:
        assert has_ink(sheet, (0, row[0][1], left - 2, row[0][1] + SIZE))
    assert has_ink(sheet, (0, 0, layout.size[0], layout.texts[1][1]))


def test_pictures_that_are_large_enough_keep_every_pixel() -> None:
    picture = Image.effect_mandelbrot((SIZE, 64), (-2, -1, 1, 1), 50).convert("RGB")
    content = [Section("", [SheetRow("ink", [picture, picture])])]
    sheet, layout = draw_sheet("t", "c", ["a", "b"], content), lay_out("t", "c", ["a", "b"], content)
    assert layout.scale == 1
    for place in layout.cells[0]:
        assert ImageChops.difference(cell(sheet, place, SIZE, 64), picture).getbbox() is None


@pytest.mark.parametrize(
    ("size", "scale"), [((64, 64), 3), ((16, 16), 12), ((8, 96), 2), ((191, 8), 2), ((512, 512), 1)]
)
def test_small_pictures_are_enlarged_by_a_whole_factor(size: tuple[int, int], scale: int) -> None:
    content = rows(*size, "ink")
    sheet, layout = draw_sheet("t", "", ["a", "b", "c"], content), lay_out("t", "", ["a", "b", "c"], content)
    assert layout.scale == scale
    for colour, place in zip(COLOURS, layout.cells[0], strict=True):
        shown = cell(sheet, place, size[0] * scale, size[1] * scale)
        assert ImageChops.difference(shown, Image.new("RGB", shown.size, colour)).getbbox() is None


def test_cells_do_not_overlap_and_lie_inside() -> None:
    content = rows(SIZE, 128, "ink", "wash", "a_name_that_is_much_too_long_for_the_column_of_labels " * 3)
    layout = lay_out("title " * 60, "caption " * 60, ["none", "0.5", "1"], content)
    places = [place for row in layout.cells for place in row]
    for number, (x, y) in enumerate(places):
        assert layout.texts[1][1] < y
        assert x + SIZE < layout.size[0]
        assert y + 128 < layout.size[1]
        for other_x, other_y in places[:number]:
            assert abs(x - other_x) > SIZE or abs(y - other_y) > 128


def test_long_texts_are_broken_within_the_sheet() -> None:
    content = rows(SIZE, SIZE, "x" * 300)
    arguments = ("word " * 100, "y" * 500, ["a", "b", "c"], content)
    sheet, layout = draw_sheet(*arguments), lay_out(*arguments)
    assert set(layout.labels[0]) == {"x", "\n", "…"}
    assert "\n" in layout.texts[0][0]
    edge = layout.size[0] - layout.em
    assert not has_ink(sheet, (edge, 0, layout.size[0], layout.cells[0][0][1]))
    assert not has_ink(sheet, (0, 0, layout.em, layout.size[1]))


def test_a_third_axis_is_one_sheet_below_another_each_with_its_labels() -> None:
    content = [Section(label, rows(SIZE, 64, "ink", "wash")[0].rows) for label in ("Euler", "DDIM")]
    arguments = ("a red circle", "model", ["none", "0.5", "1"], content)
    sheet, layout = draw_sheet(*arguments), lay_out(*arguments)
    assert (len(layout.cells), layout.firsts) == (4, (0, 2))
    for (_, top), first in zip(layout.headings, layout.firsts, strict=True):
        assert has_ink(sheet, (0, top, layout.size[0] // 2, top + layout.em))
        for x, y in layout.cells[first]:
            assert top < y - 2 * layout.em
            assert has_ink(sheet, (x, y - 2 * layout.em, x + SIZE, y - 2))
    assert layout.cells[1][0][1] + 64 < layout.headings[1][1]


def test_long_labels_of_columns_stay_over_their_column() -> None:
    columns = ["a label of many words that is too long for one line", "y" * 400, "1"]
    content = rows(SIZE, SIZE, "ink")
    sheet, layout = draw_sheet("t", "c", columns, content), lay_out("t", "c", columns, content)
    assert [label.count("\n") for label in layout.columns] == [1, 3, 0]
    assert layout.columns[1].endswith("…")
    above = layout.cells[0][0][1] - layout.em // 2
    for x, _ in layout.cells[0][1:]:
        assert not has_ink(sheet, (x - layout.em // 2 + 1, layout.texts[1][1], x - 1, above))
    for line in layout.columns[0].split("\n"):
        assert line
    assert layout.texts[1][1] + 2 * layout.em < above - 4 * layout.em


def test_a_label_is_no_higher_than_its_row() -> None:
    content = rows(SIZE, SIZE, "word " * 300)
    layout = lay_out("t", "", ["a", "b", "c"], content)
    assert layout.labels[0].endswith("…")
    assert layout.labels[0].count("\n") < SIZE / layout.em


def test_pictures_of_other_sizes_lie_in_the_middle_of_their_cell() -> None:
    large, small = Image.new("RGB", (SIZE, SIZE), COLOURS[0]), Image.new("RGB", (96, 64), COLOURS[1])
    content = [Section("", [SheetRow("ink", [large, small])])]
    sheet, layout = draw_sheet("t", "c", ["a", "b"], content), lay_out("t", "c", ["a", "b"], content)
    x, y = layout.cells[0][1]
    shown = cell(sheet, (x + (SIZE - 96) // 2, y + (SIZE - 64) // 2), 96, 64)
    assert ImageChops.difference(shown, small).getbbox() is None


def test_pictures_may_be_files(tmp_path: Path) -> None:
    picture = Image.new("RGB", (SIZE, SIZE), COLOURS[0])
    picture.save(tmp_path / "a.png")
    drawn = [
        draw_sheet("t", "c", ["a"], [Section("", [SheetRow("ink", [one])])]) for one in (picture, tmp_path / "a.png")
    ]
    assert drawn[0].tobytes() == drawn[1].tobytes()


def test_a_large_sheet_has_smaller_pictures() -> None:
    picture = Image.new("RGB", (1024, 768), COLOURS[0])
    columns = [str(number) for number in range(20)]
    content = [Section("", [SheetRow(label, [picture] * 20) for label in columns])]
    layout = lay_out("t", "c", columns, content)
    assert (layout.scale, layout.shrink, layout.box) == (1, 2, (512, 384))
    assert layout.size[0] * layout.size[1] <= MOST_PIXELS
    assert lay_out("t", "c", columns, content, side=10_000).box == (341, 256)
    with pytest.raises(UsageError):
        lay_out("t", "c", columns, content, side=20 * LEAST_CELL)


def test_what_no_sheet_can_show_is_refused_before_it_is_drawn() -> None:
    require_room(100, 100)
    for columns, rows_ in ((2000, 1), (1, 2000), (300, 300)):
        with pytest.raises(UsageError, match="too many"):
            require_room(columns, rows_)
    with pytest.raises(UsageError):
        require_room(400, 1, most_side(Path("grid.webp")))
    require_room(400, 1, most_side(Path("grid.png")))


@pytest.mark.parametrize(
    "word", ["x", "一", "\u0301", "Wi", "漢 "], ids=["latin", "chinese", "no width", "mixed", "two"]
)
def test_labels_of_any_length_are_broken_in_time_that_grows_with_what_is_shown(word: str) -> None:
    long = word * 50_000
    content = rows(SIZE, SIZE, long, "ink", long)
    started = time.process_time()
    layout = lay_out(long, long, [long, "a", long], content)
    assert time.process_time() - started < 10
    font = font_of(layout.em)
    for column in layout.columns:
        assert all(font.getlength(line) <= SIZE for line in column.split("\n"))
    assert layout.labels[0].endswith("…")


def test_a_line_takes_as_many_letters_as_fit() -> None:
    layout = lay_out("t", "c", ["i" * 60 + "W" * 60], rows(SIZE, SIZE, "ink")[:1])
    font = font_of(layout.em)
    lines = layout.columns[0].split("\n")
    for line, following in pairwise(lines):
        assert font.getlength(line) <= SIZE < font.getlength(line + following[0])
