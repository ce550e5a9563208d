"""A page of a site's list, of which one record may be hostile: whatever is wrong with one, the others are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hnetkit.limits import Budget, json_size, parse_json
from hnetkit.sources.shapes import Model, Version
from hnetkit.sources.web import MOST_MADE, read_json

MOST_LISTED = 20_000
"""Models of one list; the site has some hundreds of the type."""
MOST_KEPT = 2 << 30
"""Bytes that the records of one list may take in memory."""
_MOST_RECORD = 32 << 20  # bytes that one record may take in memory, where the page as a whole cannot be read
_MOST_RECORDS = 1000  # of such a page; the site gives a hundred
_MOST_SIGNS = 5_000_000  # of structure that are looked at to tell the records of such a page apart
_STRUCTURE, _IN_TEXT = re.compile(r'["\[\]{},]'), re.compile(r'["\\]')
_ID = re.compile(r'\s*\{\s*"id"\s*:\s*([0-9]{1,10})\s*[,}]')


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record of a site that cannot be used, or parts of one.

    Attributes:
        id: the site's number of the model; None where it does not say one.
        reason: why, in words.
        count: how many records, or parts of one, this is about.
        is_whole: whether nothing of the model can be used; else the rest of it is.
    """

    id: int | None
    reason: str
    count: int = 1
    is_whole: bool = True


def parts_left_out(what: Model | Version) -> Iterator[BadRecord]:
    """Yields what to say of a model or version of which some parts cannot be used; nothing of others."""
    if what.left_out:
        parts = ", ".join(f"{part} ({count:,})" for part, count in what.left_out.items())
        id = what.id if isinstance(what, Model) else what.model_id
        yield BadRecord(id, f"left out: {parts}", sum(what.left_out.values()), is_whole=False)


def read_page(text: str, kept: Budget) -> Any:
    """Returns a page as `read_json` would, with a BadRecord in the place of each record that cannot be read.

    Args:
        kept: what all pages of the list may take.

    Raises:
        ValueError: it is no page.
        UnsafeFile: too much for `kept`.
    """
    try:
        page = read_json(text)
        kept.make(json_size(text))
    except ValueError:
        records, rest = _taken_apart(text)
        page = parse_json(rest, most=MOST_MADE, strict=False)
        page["items"] = [_record(record, kept) for record in records]
    return page


def _record(text: str, kept: Budget) -> Any:
    try:
        record = parse_json(text, most=_MOST_RECORD, strict=False)
        kept.make(json_size(text))  # only what is kept counts: a text of brackets looks like far more than it is
        return record
    except ValueError as error:
        match = _ID.match(text)
        return BadRecord(int(match[1]) if match else None, f"the site's record of it cannot be read: {error}")


def _taken_apart(text: str) -> tuple[list[str], str]:
    """Returns the records of a page's `items`, and the page without them.

    Raises:
        ValueError: there is no such list, or no end of it.
    """
    records: list[str] = []
    depth, begin, start = 0, 0, 0
    for sign, at in _structure(text):
        if sign in "[{":
            depth += 1
            if depth == 2 and sign == "[" and not begin and re.search(r'"items"\s*:\s*$', text[max(0, at - 40) : at]):
                begin = start = at + 1
        elif sign in "]}":
            depth -= 1
        if begin and ((sign == "," and depth == 2) or depth == 1):
            records.append(text[start:at])
            start = at + 1
            if len(records) > _MOST_RECORDS:
                raise ValueError(f"more than {_MOST_RECORDS:,} records")
            if depth == 1:
                return records, text[:begin] + text[at:]
    raise ValueError("no list of models")


def _structure(text: str) -> Iterator[tuple[str, int]]:
    """Yields the brackets and commas of a JSON text outside of its strings, each with its place."""
    at = 0
    for _ in range(_MOST_SIGNS):
        match = _STRUCTURE.search(text, at)
        if match is None:
            return
        at = match.end()
        if match[0] != '"':
            yield match[0], match.start()
            continue
        inner = None
        while inner is None or inner[0] != '"':
            inner = _IN_TEXT.search(text, at)
            if inner is None:
                return
            at = inner.end() + (inner[0] == "\\")
    raise ValueError(f"more than {_MOST_SIGNS:,} values")
