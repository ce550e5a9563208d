"""Tables for people: columns as wide as their cells, and no wider than the terminal.

Cells that do not fit are continued below, so that nothing is left out. Emoji, and characters of Chinese, Japanese and
Korean, take two columns.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import zip_longest

_BETWEEN = 2  # spaces between columns
_NARROWEST = 4  # columns that a cell keeps, however narrow the terminal is
_PARTS = re.compile(r"[^\s_/\\,-]*[\s_/\\,-]+|[^\s_/\\,-]+")  # where a cell is best continued on the next line


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[str]], most: int | None) -> Iterator[str]:
    """Yields the lines of a table.

    Args:
        headers: of its columns.
        rows: each with a text for each column.
        most: columns of the terminal; None for no limit.
    """
    lengths = [[_length(cell) for cell in column] for column in zip(headers, *rows, strict=True)]
    widths = [max(length[0] + _BETWEEN, *length) for length in lengths]
    if most is not None and _total(widths) > most:
        columns = list(zip(headers, *rows, strict=True))
        widths = _fitting([max(length) for length in lengths], columns, most)
    yield from _lines(headers, widths)
    yield (" " * _BETWEEN).join("-" * width for width in widths)
    for row in rows:
        yield from _lines(row, widths)


def _length(text: str) -> int:
    """Returns how many columns of a terminal a text takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):  # drawn onto the one before
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _BETWEEN * (len(widths) - 1)


def _fitting(widths: list[int], columns: Sequence[Sequence[str]], most: int) -> list[int]:
    """Returns widths that fit together.

    Lines are broken between words as long as that is enough; then within those of headers, and at last within any.
    """
    words = [_longest_word(cells) for _, *cells in columns]
    headers = [_longest_word(header) for header, *_ in columns]
    for least in (map(max, words, headers), words, [_NARROWEST] * len(words)):
        widths = _narrowed(widths, [max(_NARROWEST, each) for each in least], most)
    return widths


def _narrowed(widths: list[int], least: list[int], most: int) -> list[int]:
    """Returns widths of which the widest are made narrower, none below its least, until all fit or none may be."""
    widths = list(widths)
    while _total(widths) > most:
        free = [column for column, width in enumerate(widths) if width > least[column]]
        if not free:
            break
        widest = max(free, key=lambda column: widths[column])
        second = max([0, *(widths[column] for column in free if widths[column] < widths[widest])])
        excess = _total(widths) - most
        widths[widest] = max(least[widest], min(widths[widest] - 1, max(second, widths[widest] - excess)))
    return widths


def _longest_word(cells: str | Sequence[str]) -> int:
    """Returns how many columns the longest part takes that is not continued on the next line, of one cell or many."""
    texts = {cells} if isinstance(cells, str) else set(cells)
    return max((_length(part.rstrip()) for text in texts for part in _PARTS.findall(text)), default=0)


def _lines(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    columns = map(_wrapped, cells, widths)
    for parts in zip_longest(*columns, fillvalue=""):
        yield (" " * _BETWEEN).join(map(_padded, parts, widths)).rstrip()


def _padded(text: str, width: int) -> str:
    return text.ljust(width) if text.isascii() else text + " " * (width - _length(text))


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Yields the lines of a cell, none longer than `width` columns."""
    if _length(text) <= width:
        yield text
        return
    line = ""
    for part in _PARTS.findall(text):
        if _length(line + part.rstrip()) <= width:
            line += part
            continue
        if line:
            yield line.rstrip()
        line = part
        while _length(line.rstrip()) > width:
            end = _end(line, width)
            yield line[:end]
            line = line[end:]
    if line:
        yield line.rstrip()


def _end(text: str, width: int) -> int:
    """Returns how many characters of a text fit into `width` columns, at least one."""
    taken = 0
    for index, character in enumerate(text):
        taken += _length(character)
        if taken > width:
            return max(1, index)
    return len(text)
