"""A stranger's values in messages and warnings: shortened before they become text."""

from __future__ import annotations

from typing import Any

from hnetkit.errors import FileRefused, printable

MOST_ITEMS = 12
MOST_DEPTH = 3


def shown(value: Any, most: int = 60) -> str:
    """Returns a text of at most about `most` signs that shows any value; text stands as it is.

    No part of the value becomes text whole: a list may hold one long text ten thousand times.
    """
    text = value if isinstance(value, str) else _literal(value, most, MOST_DEPTH)
    return text if len(text) <= most else text[: most - 1] + "…"


def naming(error: FileRefused, path: str) -> FileRefused:
    """Returns a refusal whose message begins with the file's path: `error` itself, or one of its kind."""
    if str(error).startswith(printable(path)):
        return error
    return type(error)(f"{path}: {error}", hint=error.hint)


def _literal(value: Any, most: int, depth: int) -> str:
    if isinstance(value, str | bytes):
        return repr(value[:most])
    if isinstance(value, list | tuple | dict):
        if not depth:
            return "…"
        items = [_literal(item, most, depth - 1) for _, item in zip(range(MOST_ITEMS), value, strict=False)]
        joined = ", ".join([*items, "…"] if len(value) > MOST_ITEMS else items)
        form = {list: "[%s]", tuple: "(%s)"}.get(type(value), "{%s}")
        return form % joined
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    return repr(value) if isinstance(value, int | float | None) else type(value).__name__
