"""Strangers' text on its way out: onto a terminal, into JSON, into the cells of a table that a spreadsheet opens.

Names, captions and messages may hold characters that move the cursor, run a terminal's commands, turn the direction of
the line, or are not seen at all. These are written as escapes. Joiners and variation selectors, of which emoji and the
scripts of India, Persia and Japan are made, stay where they stand alone between characters beyond ASCII.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

_BEYOND = re.compile(r"[^\x20-\x7e]+")
_JOINERS = frozenset("\u200c\u200d")
_SELECTORS = frozenset(map(chr, chain(range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))))
# `str.isprintable` takes these for seen: fillers, blanks and marks without a shape
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
_WIDE_SPACE = "\u3000"  # every second Japanese caption has one

_FORMULA = re.compile(r"'*(?:\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])")
_MARKED_FORMULA = re.compile(f"'(?={_FORMULA.pattern})")
_AFTER_SEPARATOR = re.compile(r"(?<=;)(\s*)([=+\-@\uff1d\uff0b\uff0d\uff20])")
_PLAIN_WORD = re.compile(r"[\w@%+=:./\\-]+", re.ASCII)
_LIKE_ESCAPE = re.compile(r"\\(?=u[0-9a-f]{4})")
_MOST_ITEMS, _MOST_DEPTH = 12, 3  # of a container, as `shorten` shows it
_ESCAPES = re.compile(r"(?:\\u[0-9a-f]{4})+")


def is_text(text: str) -> bool:
    """Whether `text` is UTF-8, which names of files and arguments of a command need not be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Returns `text` on one line and safe for a terminal; what it must not hold is written as Python writes it.

    Escaped are control characters (C0, DEL, C1), line and paragraph separators, marks of direction, characters that
    are not seen (zero-width, tags, fillers), lone surrogates, private and unassigned characters, and spaces of other
    kinds than that of ASCII and the wide one.
    """
    return _escaped(text, lambda sign: sign.encode("unicode_escape", "surrogatepass").decode())


def exact(text: str, *, ascii_only: bool = False) -> str:
    r"""Returns `text` safe for a terminal in JSON's own escapes, which read back exactly.

    Args:
        text: JSON of one line, or what `to_cell` escapes.
        ascii_only: whether all beyond ASCII is escaped, for a stream that is not UTF-8.
    """
    safe = _escaped(text, _units)
    return "".join(sign if sign.isascii() else _units(sign) for sign in safe) if ascii_only else safe


def counted(number: int, noun: str) -> str:
    """Returns a number of things, as ``1 file`` and ``2 files``; `noun` is one that takes an s."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def size_text(size_bytes: int) -> str:
    """Returns a number of bytes in kB, MB or GB of powers of ten, as shops and sites count."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"


def shorten(value: Any, most: int = 60) -> str:
    """Returns a text of at most about `most` characters that shows any value; a text is shown as it is.

    No part of the value is turned into text as a whole: a list may hold one long text ten thousand times.
    """
    text = value if isinstance(value, str) else _literal(value, most, _MOST_DEPTH)
    return text if len(text) <= most else text[: most - 1] + "…"


def argument(text: str | os.PathLike[str], *, is_path: bool = False) -> str:
    """Returns `text` as one word of a command that people paste into a shell, which sees nothing else in it.

    Args:
        text: a name, or a path where `is_path`; no option, even where it begins as one.
    """
    text = os.fspath(text)
    if text.startswith("-") and is_path:
        text = os.path.join(".", text)
    if os.name == "nt" and not _PLAIN_WORD.fullmatch(text):
        return "..."  # no quotes mean the same to all of its shells
    word = shlex.quote(text)
    return f"-- {word}" if text.startswith("-") else word


def to_cell(text: str) -> str:
    r"""Returns `text` as a cell of CSV or TSV: no spreadsheet takes it for a formula, and no terminal obeys it.

    What begins as a formula does gets an apostrophe before it; unsafe characters and line breaks become ``\u`` and four
    digits, and so does what would begin a formula after a semicolon, at which a spreadsheet of half the world's
    languages divides a line. `from_cell` gives the text back.
    """
    marked = f"'{text}" if _FORMULA.match(text) else text
    escaped = exact(_LIKE_ESCAPE.sub(r"\\u005c", marked))
    return _AFTER_SEPARATOR.sub(lambda found: found[1] + _units(found[2]), escaped)


def from_cell(cell: str) -> str:
    """Returns the text of a cell that `to_cell` wrote, or that somebody typed in a spreadsheet."""
    text = _ESCAPES.sub(lambda found: _of_units(found[0]), cell)
    return text[1:] if _MARKED_FORMULA.match(text) else text


def _literal(value: Any, most: int, depth: int) -> str:
    if isinstance(value, str | bytes):
        return repr(value[:most])
    if isinstance(value, list | tuple | dict):
        if not depth:
            return "…"
        items = [_literal(item, most, depth - 1) for _, item in zip(range(_MOST_ITEMS), value, strict=False)]
        joined = ", ".join([*items, "…"] if len(value) > _MOST_ITEMS else items)
        form = {list: "[%s]", tuple: "(%s)"}.get(type(value), "{%s}")
        return form % joined
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    return repr(value) if isinstance(value, int | float | None) else type(value).__name__


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    return _BEYOND.sub(lambda found: "".join(_each(found, escape)), text)


def _each(found: re.Match[str], escape: Callable[[str], str]) -> Iterator[str]:
    text, first = found.string, found.start()
    before = text[first - 1 : first]
    for place in range(first, found.end()):
        sign = text[place]
        stays = _stays(before, sign, text[place + 1 : place + 2])
        before = sign if stays else ""
        yield sign if stays else escape(sign)


def _stays(before: str, sign: str, after: str) -> bool:
    """Whether a character may be written as it is after `before`, which is empty where that one was escaped."""
    if sign in _JOINERS:
        return before > "\x7f" and before not in _JOINERS and after > "\x7f" and _is_seen(after)
    if sign in _SELECTORS:
        is_keycap = sign == "\ufe0f" and after == "\u20e3"
        return is_keycap or (before > "\x7f" and _is_seen(before))
    return _is_seen(sign)


def _is_seen(sign: str) -> bool:
    hidden = sign in _BLANK or sign in _SELECTORS
    return (sign.isprintable() and not hidden) or sign == _WIDE_SPACE


def _units(sign: str) -> str:
    data = sign.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{data[place : place + 4]}" for place in range(0, len(data), 4))


def _of_units(escapes: str) -> str:
    return bytes.fromhex(escapes.replace("\\u", "")).decode("utf-16-be", "surrogatepass")
