"""The grid: whose pictures they are, where they lie, and that labels are there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from hnetkit.errors import BadPicture
from hnetkit.formats import load
from hnetkit.generate.grid import Comparison, draw_grid, infotext_of_grid
from hnetkit.generate.model import Model
from hnetkit.generate.networks import Network, StackedPrompt, put_on
from hnetkit.generate.picture import draw
from hnetkit.generate.request import Request
from hnetkit.generate.sheet import MIN_CELL, SheetRow, draw_sheet, lay_out
from hnetkit.prompts import infotext
from hnetkit.prompts.tags import TaggedPrompt, split_tags

SIZE = MIN_CELL  # large enough not to be enlarged
HEIGHT = 16  # of pictures that are drawn: quick
COLOURS = ["#a01010", "#10a010", "#1010a0"]


def rows(width: int, height: int, *labels: str) -> list[SheetRow]:
    return [SheetRow(label, [Image.new("RGB", (width, height), colour) for colour in COLOURS]) for label in labels]


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
    content = [SheetRow("ink", [picture, picture])]
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
    assert layout.labels[0].replace("\n", "") == "x" * 300
    assert "\n" in layout.texts[0][0]
    edge = layout.size[0] - layout.em
    assert not has_ink(sheet, (edge, 0, layout.size[0], layout.cells[0][0][1]))
    assert not has_ink(sheet, (0, 0, layout.em, layout.size[1]))


def request(prompt: TaggedPrompt, seed: int) -> Request:
    return Request(prompt.text, seed, steps=2, cfg_scale=7.0, width=SIZE, height=HEIGHT, sampler="Euler a")


def test_the_cells_of_a_grid_are_the_pictures_of_generate(sd: Model, network_files: Path) -> None:
    ink, wash = (Network(name, load(network_files / f"{name}.pt")) for name in ("ink", "wash"))
    prompt = split_tags("a circle <hypernet:wash:0.3>")
    comparison = Comparison([ink, wash], [0.0, 0.5, 1.0], [StackedPrompt(prompt, (wash,))], [5])
    sheet = draw_grid(sd, comparison, request)

    base, ink_name, wash_name = put_on(sd.pipe, [Network(f"own {n.name}", n.network) for n in (wash, ink, wash)])
    expected = [
        [
            next(draw(sd, replace(request(prompt, 5), stack=((base, 0.3), (name, strength))))).image
            for strength in comparison.strengths
        ]
        for name in (ink_name, wash_name)
    ]
    title, caption = "a circle <hypernet:wash:0.3>", "tiny-sd  ·  seed 5  ·  Euler a  ·  2 steps  ·  CFG 7"
    drawn = [SheetRow(label, pictures) for label, pictures in zip(("ink", "wash"), expected, strict=True)]
    layout = lay_out(title, caption, ["none", "0.5", "1"], drawn)
    assert sheet.size == layout.size
    for pictures, places in zip(expected, layout.cells, strict=True):
        for picture, place in zip(pictures, places, strict=True):
            assert ImageChops.difference(cell(sheet, place, SIZE, HEIGHT), picture).getbbox() is None
    assert len({picture.tobytes() for row in expected for picture in row}) == 5


def test_a_picture_that_occurs_twice_is_drawn_once(sd: Model, network_files: Path) -> None:
    networks = [Network(name, load(network_files / f"{name}.pt")) for name in ("ink", "wash", "mist")]
    told: list[tuple[int, int]] = []
    plain = StackedPrompt(split_tags("a circle"), ())
    comparison = Comparison(networks, [0.0, 1.0, 1.0], [plain], [5])
    draw_grid(sd, comparison, request, lambda done, total: told.append((done, total)))
    assert told[-1] == (8, 8)  # two steps of: none, and each of three networks
    assert told == sorted(told)


def test_a_label_says_what_tells_its_row_from_the_others(network_files: Path) -> None:
    ink = Network("ink", load(network_files / "ink.pt"))
    one, two = (StackedPrompt(split_tags(text), ()) for text in ("a circle", "a star"))
    assert Comparison([ink], [1], [one], [5]).label(ink, one, 5) == "ink"
    assert Comparison([ink], [1], [one, two], [5]).label(ink, two, 5) == "ink, a star"
    assert Comparison([ink], [1], [one, two], [5, 6]).label(ink, two, 6) == "ink, a star, seed 6"


def test_a_grid_tells_its_networks_and_strengths(sd: Model, network_files: Path) -> None:
    ink = Network("ink", load(network_files / "ink.pt"))
    comparison = Comparison([ink], [0, 0.5], [StackedPrompt(split_tags("a circle"), ())], [5])
    read = infotext.parse(infotext_of_grid(sd, comparison, request))
    assert (read.parameters["Grid networks"], read.parameters["Grid strengths"]) == ("ink", "0, 0.5")
    assert read.hashes["hypernet:ink"] == ink.hash


def test_one_bad_cell_is_an_error(sd: Model, network_files: Path) -> None:
    ink = Network("ink", load(network_files / "ink.pt"))
    comparison = Comparison([ink], [0, 1e38], [StackedPrompt(split_tags("a circle"), ())], [5])
    with pytest.raises(BadPicture):
        draw_grid(sd, comparison, request)
