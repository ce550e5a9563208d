"""Rows in pages: which page an address asks for, what is on it, and what stands before and after a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
_MOST_DIGITS = 6


class Part(NamedTuple):
    """Where the rows of a page are among all: `rows` is the slice, `number` the page, from 1, and `last` the last."""

    rows: slice
    number: int
    last: int


def page_number(parameters: Mapping[str, str]) -> int:
    """Returns the page that an address asks for, from 1; the first where it asks for none that can be."""
    text = parameters.get("page", "")
    is_number = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
    return max(1, int(text)) if is_number else 1


def part_of(count: int, number: int, size: int) -> Part:
    """Returns one page of `count` rows, `size` of them on each; beyond the last page it is the last."""
    last = max(1, -(-count // size))
    number = min(max(1, number), last)
    return Part(slice((number - 1) * size, number * size), number, last)


def neighbours(items: Sequence[Item], item: Item) -> tuple[Item | None, Item | None]:
    """Returns what stands before and after an item; None where nothing does, or the item is not there."""
    if item not in items:
        return None, None
    place = items.index(item)
    return items[place - 1] if place else None, items[place + 1] if place + 1 < len(items) else None
