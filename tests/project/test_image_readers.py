"""Everything that reads an image sees the same pixels: those that viewers show."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.odd_images import SIDE, motif, write_odd_images
from support.training import small_recipe

from hnetkit.generate.drawing import _InitPixels
from hnetkit.generate.grids.sheet import Section, SheetRow, draw_sheet, lay_out
from hnetkit.generate.request import InitImage
from hnetkit.images import as_gray, image_size, on_white, open_image
from hnetkit.train.data import read_data
from hnetkit.train.frozen import encode_images
from hnetkit.train.preparing.folder import prepare
from hnetkit.train.preparing.quality import ImageStats
from hnetkit.train.preparing.review import contact_sheet, review

LOSSY = 4  # of 255, on average: JPEG, AVIF and CMYK store about what they were given


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bool]:
    return write_odd_images(tmp_path_factory.mktemp("odd"))


def looks(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(float)


def wanted(is_gray: bool) -> np.ndarray:
    plain = motif()
    return np.asarray((plain.convert("L") if is_gray else plain).convert("RGB")).astype(float)


def start_of_image_to_image(path: Path) -> Image.Image:
    return _InitPixels.read(InitImage(path), (SIDE, SIDE)).image


def cell_of_a_sheet(path: Path) -> Image.Image:
    section = Section("", [SheetRow("", [path])])
    layout = lay_out("", "", [""], [section])
    left, top = layout.cells[0][0]
    sheet = draw_sheet("", "", [""], [section]).crop((left, top, left + layout.box[0], top + layout.box[1]))
    return sheet.resize((SIDE, SIDE), Image.Resampling.BOX)


def what_training_encodes(path: Path, folder: Path, **options: Any) -> Image.Image:
    (folder / path.name).write_bytes(path.read_bytes())
    seen: list[Image.Image] = []

    class Stop(Exception):
        pass

    class Processor:
        def preprocess(self, image: Image.Image) -> None:
            seen.append(image)
            raise Stop

    pipe = type("Pipe", (), {"image_processor": Processor()})
    with pytest.raises(Stop):
        encode_images(pipe, read_data(small_recipe(folder, **options)))
    return seen[0]


def what_is_prepared(path: Path, folder: Path, **options: Any) -> Path:
    source = folder / "source"
    source.mkdir()
    (source / path.name).write_bytes(path.read_bytes())
    done = prepare(source, folder / "out", size=SIDE, **options)
    assert not done.failures
    return done.made[0].path


def thumbnail(path: Path, folder: Path) -> Image.Image:
    (folder / path.name).write_bytes(path.read_bytes())
    page = "".join(contact_sheet(review(folder)))
    data = page.partition(";base64,")[2].partition('"')[0]
    return Image.open(io.BytesIO(base64.b64decode(data)))


READERS: dict[str, Callable[[Path, Path], Image.Image]] = {
    "the reader itself": lambda path, folder: on_white(open_image(path)),
    "--image": lambda path, folder: start_of_image_to_image(path),
    "a cell of a sheet": lambda path, folder: cell_of_a_sheet(path),
    "train": what_training_encodes,
    "train --size": lambda path, folder: what_training_encodes(path, folder, size=(SIDE, SIDE)),
    "train --alpha-as-weight": lambda path, folder: what_training_encodes(path, folder, alpha_as_weight=True),
    "prepare": lambda path, folder: on_white(open_image(what_is_prepared(path, folder))),
    "prepare --flatten": lambda path, folder: open_image(what_is_prepared(path, folder, flatten=True)),
    "the review page": thumbnail,
}


RESAMPLING = ("the review page", "a cell of a sheet")
"""They save a JPEG, or scale."""


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_sees_what_viewers_show(reader: str, odd: dict[Path, bool], tmp_path: Path) -> None:
    off = {}
    for path, is_gray in odd.items():
        folder = tmp_path / path.name
        folder.mkdir()
        off[path.name] = np.abs(looks(READERS[reader](path, folder)) - wanted(is_gray)).mean()
    lossless = {name for name in off if not name.endswith((".jpg", ".jfif", ".jpe", ".avif"))}
    exact = set() if reader in RESAMPLING else lossless
    assert {name: value for name, value in off.items() if value > LOSSY} == {}
    assert {name: value for name, value in off.items() if name in exact and value > 0.5} == {}


def test_sizes_and_grays_and_statistics_are_those_of_what_viewers_show(odd: dict[Path, bool]) -> None:
    plain = ImageStats.of(next(path for path in odd if path.name == "plain.png"))
    for path, is_gray in odd.items():
        assert image_size(path) == (SIDE, SIDE), path
        shades = np.asarray(as_gray(open_image(path))).astype(float)
        assert np.abs(shades - np.asarray(motif().convert("L"))).mean() < LOSSY, path
        colors = np.frombuffer(ImageStats.of(path).colors, np.uint8).astype(float)
        if not is_gray:
            assert np.abs(colors - np.frombuffer(plain.colors, np.uint8)).mean() < 2 * LOSSY, path
