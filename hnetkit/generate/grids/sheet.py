"""A labeled sheet of images: rows and columns with their labels, sections, a title. Pixels in, pixels out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hnetkit.errors import UsageError
from hnetkit.images import image_size, open_rgb

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

MIN_CELL = 192
"""Pixels: images whose longer side is shorter are enlarged by a whole factor, so that labels are legible."""

LEAST_CELL = 48
"""Pixels: the longer side of an image is never shrunk below this on a large sheet."""

MOST_PIXELS = 178_956_970
"""Pixels of a whole sheet: most programs open this much without a warning."""

MOST_SIDE = {".webp": 16_383}
"""Suffix -> pixels of the longest side that the format allows."""

MOST_LETTERS = 10_000
"""Characters of a label, a title or a caption; the rest is cut off before it is measured."""

_OTHER_SIDE = 65_500
_LINES = {"title": 6, "caption": 3, "column": 4, "section": 3}
_PAPER, _INK, _PALE_INK, _EDGE = "#ffffff", "#1a1a1a", "#6b6b6b", "#d8d8d8"


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One row: its label, and its images or their files."""

    label: str
    pictures: Sequence[Image.Image | Path]


@dataclass(frozen=True, slots=True)
class Section:
    """Rows below one heading."""

    label: str
    rows: Sequence[SheetRow]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are on a sheet, in pixels.

    Attributes:
        size: (width, height) of the sheet.
        em: height of a label's font; the title is a third larger.
        scale: factor by which each image is enlarged.
        shrink: factor by which it is made smaller; with both at 1 a cell shows the image's own pixels.
        box: (width, height) of a cell.
        texts: the lines of title and caption, each with its top.
        columns: labels above the first row of each section, broken into lines.
        headings: the lines of each section, with their top.
        labels: of all rows, broken into lines.
        cells: (left, top) of each cell, by row and column, through all sections.
        firsts: the number of each section's first row.
    """

    size: tuple[int, int]
    em: int
    scale: int
    shrink: int
    box: tuple[int, int]
    texts: tuple[tuple[str, int], tuple[str, int]]
    columns: tuple[str, ...]
    headings: tuple[tuple[str, int], ...]
    labels: tuple[str, ...]
    cells: tuple[tuple[tuple[int, int], ...], ...]
    firsts: tuple[int, ...]


def most_side(path: Path) -> int:
    """Returns the longest side in pixels that the format of a sheet's file allows."""
    return MOST_SIDE.get(path.suffix.lower(), _OTHER_SIDE)


def require_room(columns: int, rows: int, side: int = _OTHER_SIDE) -> None:
    """Raises UsageError if no sheet can show so many cells."""
    if max(columns, rows) * LEAST_CELL > side or columns * rows * LEAST_CELL**2 > MOST_PIXELS:
        raise UsageError(
            f"{columns} columns and {rows} rows are too many for one sheet", hint="draw several grids of fewer values"
        )


def lay_out(
    title: str, caption: str, columns: Sequence[str], sections: Sequence[Section], side: int = _OTHER_SIDE
) -> Layout:
    """Returns the layout of the sheet that `draw_sheet` draws of the same arguments: the largest that is allowed.

    Raises:
        UsageError: even the smallest cells are too many.
    """
    sizes = [_cell_image_size(picture) for section in sections for row in section.rows for picture in row.pictures]
    largest = max(width for width, _ in sizes), max(height for _, height in sizes)
    for scale, shrink in _scales(max(largest)):
        layout = _layout_at(title, caption, columns, sections, largest, scale, shrink)
        if max(layout.size) <= side and layout.size[0] * layout.size[1] <= MOST_PIXELS:
            return layout
    raise UsageError(
        f"{len(sizes)} pictures are too many for one sheet", hint="draw several grids of fewer values, or write a .png"
    )


def draw_sheet(
    title: str, caption: str, columns: Sequence[str], sections: Sequence[Section], side: int = _OTHER_SIDE
) -> Image.Image:
    """Returns the sheet.

    Args:
        title: large, at the top. Long texts are wrapped, and very long ones end in an ellipsis.
        caption: small and pale, below the title.
        columns: one label for each image of a row, above each section.
        sections: from top to bottom.
        side: the longest side in pixels.
    """
    from PIL import Image, ImageDraw

    layout = lay_out(title, caption, columns, sections, side)
    em, font, edge = layout.em, font_of(layout.em), layout.em * 3 // 2
    sheet = Image.new("RGB", layout.size, _PAPER)
    canvas = ImageDraw.Draw(sheet)
    texts = [(layout.texts[0], _title_font(em), _INK), (layout.texts[1], font, _PALE_INK)]
    texts += [(heading, _title_font(em), _INK) for heading in layout.headings]
    for (text, top), of_text, ink in texts:
        canvas.multiline_text((edge, top), text, fill=ink, font=of_text, spacing=em // 3)

    rows = [row for section in sections for row in section.rows]
    for row, label, corners in zip(rows, layout.labels, layout.cells, strict=True):
        middle = corners[0][0] - em, corners[0][1] + layout.box[1] / 2
        canvas.multiline_text(middle, label, fill=_INK, font=font, anchor="rm", align="right", spacing=em // 3)
        for picture, (x, y) in zip(row.pictures, corners, strict=True):
            shown = _fit_image(picture, layout)
            left, top = x + (layout.box[0] - shown.width) // 2, y + (layout.box[1] - shown.height) // 2
            canvas.rectangle((left - 1, top - 1, left + shown.width, top + shown.height), outline=_EDGE)
            sheet.paste(shown, (left, top))
    for first in layout.firsts:
        for label, (x, y) in zip(layout.columns, layout.cells[first], strict=True):
            above = x + layout.box[0] / 2, y - em // 2
            canvas.multiline_text(above, label, fill=_INK, font=font, anchor="md", align="center", spacing=em // 3)
    return sheet


def _scales(longest: int) -> Iterator[tuple[int, int]]:
    """Yields (scale, shrink), from large to small."""
    for scale in range(-(-MIN_CELL // longest), 0, -1):
        yield scale, 1
    for shrink in range(2, longest // LEAST_CELL + 1):
        yield 1, shrink


def _layout_at(
    title: str,
    caption: str,
    columns: Sequence[str],
    sections: Sequence[Section],
    largest: tuple[int, int],
    scale: int,
    shrink: int,
) -> Layout:
    width, height = (max(1, pixels * scale // shrink) for pixels in largest)
    em = max(15, min(28, width // 13))
    gap, margin = em // 2, em * 3 // 2
    font, large = font_of(em), _title_font(em)

    fitting = max(1, round(height / _height("A", font)))
    labels = tuple(_wrap(row.label, font, 14 * em, fitting) for section in sections for row in section.rows)
    label_width = max(_width(label, font) for label in labels)
    left = margin + (label_width + em if label_width else 0)
    full_width = max(left + len(columns) * (width + gap) - gap + margin, 16 * em)
    inner = full_width - 2 * margin

    title = _wrap(title, large, inner, _LINES["title"])
    caption = _wrap(caption, font, inner, _LINES["caption"])
    caption_top = margin + _height(title, large)
    headed = tuple(_wrap(column, font, width, _LINES["column"]) for column in columns)
    above = max((_height(column, font) for column in headed), default=0) + em // 2

    top = caption_top + _height(caption, font) + em // 2
    headings: list[tuple[str, int]] = []
    cells: list[tuple[tuple[int, int], ...]] = []
    firsts: list[int] = []
    for section in sections:
        heading = _wrap(section.label, large, inner, _LINES["section"])
        top += em if headings and heading else 0
        headings.append((heading, top))
        top += _height(heading, large) + above
        firsts.append(len(cells))
        for _ in section.rows:
            cells.append(tuple((left + column * (width + gap), top) for column in range(len(columns))))
            top += height + gap
    size = full_width, top - gap + margin
    texts = ((title, margin), (caption, caption_top))
    return Layout(
        size, em, scale, shrink, (width, height), texts, headed, tuple(headings), labels, tuple(cells), tuple(firsts)
    )


def _cell_image_size(picture: Image.Image | Path) -> tuple[int, int]:
    from PIL import Image

    if isinstance(picture, Image.Image):
        return picture.size
    return image_size(picture)


def _fit_image(picture: Image.Image | Path, layout: Layout) -> Image.Image:
    from PIL import Image

    if not isinstance(picture, Image.Image):
        return _fit_image(open_rgb(picture), layout)
    if layout.scale == layout.shrink == 1:
        return picture
    if layout.shrink > 1:
        return picture.reduce(layout.shrink)
    return picture.resize((picture.width * layout.scale, picture.height * layout.scale), Image.Resampling.BICUBIC)


def font_of(em: int) -> Font:
    """Returns Pillow's font, `em` pixels high; before Pillow 10.1, whose font has a single size, matplotlib's."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(em)
    except TypeError:
        from matplotlib import get_data_path

        return ImageFont.truetype(os.path.join(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), em)


def _title_font(em: int) -> Font:
    return font_of(em * 4 // 3)


def _wrap(text: str, font: Font, width: int, most: int) -> str:
    """Wraps `text` into at most `most` lines of `width` pixels, between words, or inside a word that is wider."""
    if len(text) > MOST_LETTERS:
        text = f"{text[:MOST_LETTERS]}…"
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if _fitting(joined, font, width) == len(joined):
            lines[-1] = joined
            continue
        lines.append(word)
        while len(lines) < most + 3 and (fits := _fitting(lines[-1], font, width)) < len(lines[-1]):
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
        if len(lines) > most + 2:
            break
    lines = [line for line in lines if line]
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines[most - 1 :] = [last + "…"]
    return "\n".join(lines)


def _fitting(text: str, font: Font, width: int) -> int:
    """Returns how many characters of `text` fit into `width` pixels, at least one; no more of it is measured."""
    least, most = min(1, len(text)), min(16, len(text))
    while most < len(text) and font.getlength(text[:most]) <= width:
        least, most = most, min(2 * most, len(text))
    if font.getlength(text[:most]) <= width:
        return most
    while least + 1 < most:
        middle = (least + most) // 2
        least, most = (middle, most) if font.getlength(text[:middle]) <= width else (least, middle)
    return least


def _width(text: str, font: Font) -> int:
    return max((round(font.getlength(line)) for line in text.split("\n")), default=0)


def _height(text: str, font: Font) -> int:
    """Returns the height of wrapped text with the space below it; 0 for no text."""
    if not text:
        return 0
    ascent_to_descent = font.getbbox("Ag")[3]
    return round((text.count("\n") + 1) * ascent_to_descent * 1.35)
