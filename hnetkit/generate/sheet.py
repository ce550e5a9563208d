"""A labelled sheet of pictures: rows and columns with their names, a title above. Pixels in, pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

MIN_CELL = 192
"""Pixels: pictures whose longer side is shorter are enlarged, by a whole factor, so that labels can be read."""

_PAPER, _INK, _PALE_INK, _EDGE = "#ffffff", "#1a1a1a", "#6b6b6b", "#d8d8d8"


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One row: what it is called, and its pictures, all of one size."""

    label: str
    pictures: Sequence[Image.Image]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are on a sheet, in pixels.

    Attributes:
        size: (width, height) of the sheet.
        em: size of a label's letters; the title is a third larger.
        scale: how often each picture is enlarged; at 1 a cell has its picture's own pixels.
        texts: the lines of title and caption, each with its top.
        labels: of the rows, broken into lines.
        cells: (left, top) of each cell, by row and column.
    """

    size: tuple[int, int]
    em: int
    scale: int
    texts: tuple[tuple[str, int], tuple[str, int]]
    labels: tuple[str, ...]
    cells: tuple[tuple[tuple[int, int], ...], ...]


def lay_out(title: str, caption: str, columns: Sequence[str], rows: Sequence[SheetRow]) -> Layout:
    """Returns the layout of the sheet that `draw_sheet` makes of the same arguments."""
    picture = rows[0].pictures[0]
    scale = -(-MIN_CELL // max(picture.size))
    width, height = picture.width * scale, picture.height * scale
    em = max(15, min(28, width // 13))
    gap, margin = em // 2, em * 3 // 2

    labels = tuple(_wrapped(row.label, _font(em), 14 * em) for row in rows)
    label_width = max(_width(label, _font(em)) for label in labels)
    left = margin + (label_width + em if label_width else 0)
    full_width = left + len(columns) * (width + gap) - gap + margin

    title = _wrapped(title, _title_font(em), full_width - 2 * margin)
    caption = _wrapped(caption, _font(em), full_width - 2 * margin)
    caption_top = margin + _height(title, _title_font(em))
    top = caption_top + _height(caption, _font(em)) + em * 2
    cells = tuple(
        tuple((left + column * (width + gap), top + row * (height + gap)) for column in range(len(columns)))
        for row in range(len(rows))
    )
    size = full_width, top + len(rows) * (height + gap) - gap + margin
    return Layout(size, em, scale, ((title, margin), (caption, caption_top)), labels, cells)


def draw_sheet(title: str, caption: str, columns: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """Returns the sheet.

    Args:
        title: large, at the top; wrapped where it is long.
        caption: small and pale, under the title.
        columns: one label for each picture of a row.
        rows: from top to bottom.
    """
    from PIL import Image, ImageDraw

    layout = lay_out(title, caption, columns, rows)
    em, font = layout.em, _font(layout.em)
    sheet = Image.new("RGB", layout.size, _PAPER)
    canvas = ImageDraw.Draw(sheet)
    for (text, top), of_text, ink in zip(layout.texts, (_title_font(em), font), (_INK, _PALE_INK), strict=True):
        canvas.multiline_text((em * 3 // 2, top), text, fill=ink, font=of_text, spacing=em // 3)

    for row, label, places in zip(rows, layout.labels, layout.cells, strict=True):
        pictures = [_enlarged(picture, layout.scale) for picture in row.pictures]
        middle = places[0][0] - em, places[0][1] + pictures[0].height / 2
        canvas.multiline_text(middle, label, fill=_INK, font=font, anchor="rm", align="right", spacing=em // 3)
        for picture, (x, y) in zip(pictures, places, strict=True):
            canvas.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=_EDGE)
            sheet.paste(picture, (x, y))
    for label, (x, y) in zip(columns, layout.cells[0], strict=True):
        above = x + rows[0].pictures[0].width * layout.scale / 2, y - em // 2
        canvas.text(above, label, fill=_INK, font=font, anchor="mb")
    return sheet


def _enlarged(picture: Image.Image, scale: int) -> Image.Image:
    from PIL import Image

    if scale == 1:
        return picture
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)


def _font(em: int) -> Font:
    from PIL import ImageFont

    return ImageFont.load_default(em)


def _title_font(em: int) -> Font:
    return _font(em * 4 // 3)


def _wrapped(text: str, font: Font, width: int) -> str:
    """Breaks `text` into lines of at most `width` pixels, between words, and within a word that is wider."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines.append(word)
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:
            fits = next(n for n in range(len(lines[-1]) - 1, 0, -1) if n == 1 or font.getlength(lines[-1][:n]) <= width)
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return "\n".join(line for line in lines if line)


def _width(text: str, font: Font) -> int:
    return max((round(font.getlength(line)) for line in text.split("\n")), default=0)


def _height(text: str, font: Font) -> int:
    """Of wrapped text with the space below it; 0 for none."""
    if not text:
        return 0
    ascent_to_descent = font.getbbox("Ag")[3]
    return round((text.count("\n") + 1) * ascent_to_descent * 1.35)
