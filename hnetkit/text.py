"""Safe output of untrusted text: on a terminal, in JSON, tables, Markdown and YAML; and words for counts and sizes.

Names, captions and messages may contain characters that move the cursor, run commands of the terminal, reverse the
direction of the line, or are invisible. These are escaped. Joiners and variation selectors, which emoji and the scripts
of India, Persia and Japan need, are kept if they are single and between characters beyond ASCII.
"""

from __future__ import annotations

import html
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Literal, TypeAlias

NormalForm: TypeAlias = Literal["NFC", "NFD", "NFKC", "NFKD"]

_FEW = 1000  # characters, which take no time worth saving in whatever order they are
_BEYOND = re.compile(r"[^\x20-\x7e]+")
_JOINERS = frozenset("\u200c\u200d")
_SELECTORS = frozenset(map(chr, chain(range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))))
# `str.isprintable` accepts these, but they are invisible: fillers, blanks and marks without a shape
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([kmg]?)b?", re.IGNORECASE)
_WIDE_SPACE = "\u3000"  # every second Japanese caption has one

_FORMULA = re.compile(r"'*(?:\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])")
_MARKED_FORMULA = re.compile(f"'(?={_FORMULA.pattern})")
_AFTER_SEPARATOR = re.compile(r"(?<=;)(\s*)([=+\-@\uff1d\uff0b\uff0d\uff20])")
_PLAIN_WORD = re.compile(r"[\w@%+=:./\\-]+", re.ASCII)
_PLAIN_CELL = re.compile(r"[A-Za-z0-9_][\w .,()\[\]-]*", re.ASCII)
_LIKE_ESCAPE = re.compile(r"\\(?=u[0-9a-f]{4})")
_MOST_ITEMS, _MOST_DEPTH = 12, 3  # of a container, as `shorten` shows it
_TAG = re.compile(r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|<!--[^<>]*-->", re.IGNORECASE)  # <lora:x:1> is none
# references beyond Unicode; slow to convert, and of thousands of digits an error
_NO_SIGN = re.compile(r"&#[xX]?[0-9a-fA-F]{9,};?")
_BREAK = re.compile(r"<(?:br|hr|/p|/div|/li|/h[1-6]|/tr|/pre|/blockquote)\s*/?>", re.IGNORECASE)
_ESCAPES = re.compile(r"(?:\\u[0-9a-f]{4})+")
_INLINE_MARK = re.compile(r"[\\`*_~\[\]|$]")  # of Markdown, anywhere in a line
_LINE_MARK = re.compile(r"^(?:(?=[#+\-=:!])|(\d{1,9})(?=[.)]))")  # at its beginning: headings, lists, rules
# what readers of Markdown make a link of without any mark; the numbers keep the search short
_BARE_LINK = r"(?:[A-Za-z][A-Za-z0-9+.-]{0,30}://|www\.|[\w.+-]{1,64}@(?=[\w-]))\S*"
# what the hub takes for the beginning or the end of a formula, also behind a backslash of Markdown
_OF_A_FORMULA = r"(?<!\\)(?:\\+[()\[\]])+"
_AS_CODE = re.compile(rf"{_BARE_LINK}|{_OF_A_FORMULA}(?:{_BARE_LINK})?", re.IGNORECASE)
_PLAIN_YAML = re.compile(r"[A-Za-z](?:[\w ./+-]*[\w+])?", re.ASCII)
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"})


def is_text(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8; names of files and arguments of a command may not be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Returns `text` on one line and safe for a terminal, with Python's escapes.

    Escaped are control characters (C0, DEL, C1), line and paragraph separators, direction marks, invisible characters
    (zero-width, tags, fillers), lone surrogates, private and unassigned characters, and spaces other than the ASCII
    and the ideographic one.
    """
    return _escaped(text, lambda sign: sign.encode("unicode_escape", "surrogatepass").decode())


def exact(text: str, *, ascii_only: bool = False) -> str:
    r"""Returns `text` safe for a terminal, with JSON's own escapes, which read back exactly.

    Args:
        text: one line of JSON, or the content of a cell.
        ascii_only: escape everything beyond ASCII, for a stream that is not UTF-8.
    """
    safe = _escaped(text, _units)
    return "".join(sign if sign.isascii() else _units(sign) for sign in safe) if ascii_only else safe


def without_markup(text: str) -> str:
    """Returns the words of a text that may be HTML, as sites write descriptions: a line for each paragraph."""
    lines = unescaped(_TAG.sub("", _BREAK.sub("\n", text))).splitlines()
    return "\n".join(filter(None, (" ".join(line.split()) for line in lines)))


def unescaped(text: str) -> str:
    """Returns a text that may be HTML with the signs that its references stand for; one to no sign is a space."""
    return html.unescape(_NO_SIGN.sub(" ", text))


def normal_form(form: NormalForm, text: str) -> str:
    """Returns a text in a normal form of Unicode, in time that grows with its length.

    Python moves each mark to its place among those of a letter one by one, in time by the square of their number. So
    many marks on one letter are in their order before it sees them.
    """
    if text.isascii() or len(text) <= _FEW:
        return unicodedata.normalize(form, text)
    apart: NormalForm = "NFKD" if "K" in form else "NFD"
    text = text.translate({ord(sign): unicodedata.normalize(apart, sign) for sign in set(text)})
    if marks := "".join(filter(unicodedata.combining, set(text))):
        text = re.sub(f"[{re.escape(marks)}]{{30,}}", lambda run: _in_order(run[0]), text)
    return unicodedata.normalize(form, text)


def _in_order(marks: str) -> str:
    """Returns marks by their classes, those of one class in the order that they have."""
    kinds = {ord(mark): unicodedata.combining(mark) for mark in set(marks)}
    ordered = sorted(set(kinds.values()))
    return "".join(marks.translate({mark: None for mark in kinds if kinds[mark] != kind}) for kind in ordered)


def counted(number: int, noun: str) -> str:
    """Returns a count of things, such as ``1 file`` and ``2 files``; the plural of `noun` ends in s."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def listed(texts: Iterable[str]) -> list[str]:
    """Returns the words in texts as people type lists of them, with commas between or without."""
    return [word for text in texts for part in text.split(",") if (word := part.strip())]


def several(given: str | Iterable[str]) -> list[str]:
    """Returns the texts of an argument that takes several: a text alone is one, and not its letters."""
    return [given] if isinstance(given, str) else list(given)


def size_text(size_bytes: int) -> str:
    """Returns a number of bytes in kB, MB or GB of powers of ten, as shops and sites count."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"


def parse_size(text: str) -> float | None:
    """Returns the bytes of a size such as ``500k``, ``2M`` or ``1.5 GB``, in powers of ten; None for anything else."""
    match = _SIZE.fullmatch(text.strip())
    return float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()] if match else None


def lacks_unit(text: str) -> bool:
    """Whether a size is a lone number of bytes that nobody means: a ``5`` for 5 GB."""
    return text.strip().replace(".", "", 1).isdecimal() and 0 < (parse_size(text) or 0) < 1000


def shorten(value: Any, most: int = 60) -> str:
    """Returns a text of at most about `most` characters that shows any value; a text is shown as it is.

    No part of the value is turned into text as a whole: a list may hold one long text ten thousand times.
    """
    text = value if isinstance(value, str) else _literal(value, most, _MOST_DEPTH)
    return text if len(text) <= most else text[: most - 1] + "…"


def argument(text: str | os.PathLike[str], *, is_path: bool = False) -> str:
    """Quotes `text` as one word of a shell command that people may paste.

    What a terminal would obey, or nobody sees, is in it by number, as bash and zsh read it: pasted as it is, it could
    end the command and begin another one.

    Args:
        text: a name, or a path if `is_path`; it is never an option, even if it begins like one.
    """
    text = os.fspath(text)
    if text.startswith("-") and is_path:
        text = os.path.join(".", text)
    if os.name == "nt" and not _PLAIN_WORD.fullmatch(text):
        return "..."  # its shells disagree about quotes
    word = shlex.quote(text) if printable(text) == text else f"$'{_numbered(text)}'"
    return f"-- {word}" if text.startswith("-") else word


def _numbered(text: str) -> str:
    return _escaped(text.replace("\\", "\\\\").replace("'", "\\'"), _octal)


def _octal(character: str) -> str:
    is_byte = "\udc80" <= character <= "\udcff"  # of a file name that is no text
    return "".join(
        f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape" if is_byte else "surrogatepass")
    )


def to_cell(text: str) -> str:
    r"""Returns `text` as a cell of CSV or TSV that is neither a formula for a spreadsheet nor a command for a terminal.

    Text that begins like a formula gets an apostrophe in front. Unsafe characters and line breaks become ``\u`` and
    four digits. So does a character that would begin a formula after a semicolon, because spreadsheets in many
    languages split lines there. `from_cell` returns the original text.
    """
    if _PLAIN_CELL.fullmatch(text):  # most are, of tens of thousands
        return text
    marked = f"'{text}" if _FORMULA.match(text) else text
    escaped = exact(_LIKE_ESCAPE.sub(r"\\u005c", marked))
    return _AFTER_SEPARATOR.sub(lambda found: found[1] + _units(found[2]), escaped)


def are_plain_cells(texts: Iterable[str]) -> bool:
    """Whether `to_cell` leaves each of these texts as it is, beyond doubt."""
    return all(map(_PLAIN_CELL.fullmatch, texts))


def from_cell(cell: str) -> str:
    """Returns the text of a cell that `to_cell` wrote, or that was typed in a spreadsheet."""
    text = _ESCAPES.sub(lambda found: _of_units(found[0]), cell)
    return text[1:] if _MARKED_FORMULA.match(text) else text


def in_markdown(text: str) -> str:
    """Returns `text` as words of one line in Markdown, which are shown as they are: no markup, no HTML, no entity.

    An address is code, as many readers make a link of one that is not. So is a bracket that prompts escape, as in
    ``saber \\(fate\\)``: the hub would show a formula.
    """
    words, parts, position = " ".join(printable(" ".join(text.split())).split()), [], 0
    for link in _AS_CODE.finditer(words):
        parts += [_in_words(words[position : link.start()]), in_code(link[0])]
        position = link.end()
    return _LINE_MARK.sub(r"\1\\", "".join([*parts, _in_words(words[position:])]))


def _in_words(text: str) -> str:
    return _INLINE_MARK.sub(r"\\\g<0>", html.escape(text, quote=False))


def in_code(text: str) -> str:
    """Returns `text` as code within a line of Markdown, however many backticks it has."""
    safe = printable(text)
    fence = "`" * (max(map(len, re.findall("`+", safe)), default=0) + 1)
    return f"{fence} {safe} {fence}" if safe.startswith("`") or safe.endswith("`") else f"{fence}{safe}{fence}"


def in_yaml(text: str) -> str:
    """Returns `text` as a YAML scalar on one line, which every reader takes for this very text.

    Raises:
        UnicodeEncodeError: it holds half a surrogate pair, which YAML cannot.
    """
    text.encode()
    if _PLAIN_YAML.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"{}"'.format("".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in quoted))


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
    if text.isascii() and text.isprintable():  # most is, and this is the quickest way to know
        return text
    return _BEYOND.sub(lambda found: "".join(_each(found, escape)), text)


def _each(found: re.Match[str], escape: Callable[[str], str]) -> Iterator[str]:
    text, first = found.string, found.start()
    before = text[first - 1 : first]
    for index in range(first, found.end()):
        character = text[index]
        stays = _stays(before, character, text[index + 1 : index + 2])
        before = character if stays else ""
        yield character if stays else escape(character)


def _stays(before: str, character: str, after: str) -> bool:
    """Whether a character may stay as it is after `before`, which is empty if that one was escaped."""
    if character in _JOINERS:
        return before > "\x7f" and before not in _JOINERS and after > "\x7f" and _is_seen(after)
    if character in _SELECTORS:
        is_keycap = character == "\ufe0f" and after == "\u20e3"
        return is_keycap or (before > "\x7f" and _is_seen(before))
    return _is_seen(character)


def _is_seen(character: str) -> bool:
    hidden = character in _BLANK or character in _SELECTORS
    return (character.isprintable() and not hidden) or character == _WIDE_SPACE


def _units(character: str) -> str:
    data = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{data[index : index + 4]}" for index in range(0, len(data), 4))


def _of_units(escapes: str) -> str:
    return bytes.fromhex(escapes.replace("\\u", "")).decode("utf-16-be", "surrogatepass")
