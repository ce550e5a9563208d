"""Limits on memory and work when reading untrusted files, and readers of JSON and of tables that keep them.

The size of a file, or a number in it, says little about the cost of reading it: a few bytes may unpack to a gigabyte,
and one text may be referenced ten thousand times. So limits count the bytes that are created and the steps taken.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hnetkit.errors import UnsafeFile
from hnetkit.files import read_regular

MAX_MADE = 96 << 20
"""Bytes that the structure of one file may take in memory, without its tensors."""

MAX_WORK = 20_000_000
"""Steps that reading the structure of one file may take: about ten seconds of Python at worst."""

MAX_JSON = 8 << 20
"""Bytes of a JSON file beside a model: a configuration, a sidecar, a recipe."""

MOST_COLUMNS = 1000
"""Columns of a table."""


class Budget:
    """The memory and steps that reading one untrusted file may still take; all parts of its reader share it.

    Args:
        made: bytes.
        work: steps.
        path: of the file, which messages then begin with.
    """

    def __init__(self, made: int = MAX_MADE, work: int = MAX_WORK, *, path: str | None = None) -> None:
        self._file = "" if path is None else f"{path}: "
        self.made_left = made
        self.work_left = work

    def make(self, size: int) -> None:
        """Charges `size` bytes that are about to be created.

        Raises:
            UnsafeFile: the budget is exceeded.
        """
        self.made_left -= size
        if self.made_left < 0:
            raise UnsafeFile(f"{self._file}what is in it would take far more memory than the file does")

    def work(self, steps: int) -> None:
        """Charges `steps` steps that are about to be taken.

        Raises:
            UnsafeFile: the budget is exceeded.
        """
        self.work_left -= steps
        if self.work_left < 0:
            raise UnsafeFile(f"{self._file}reading it would never end")


def is_index(value: Any) -> bool:
    """Whether a value from a file can count elements: an int from 0 to 2**62 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def parse_json(
    text: str | bytes,
    *,
    most: int = MAX_MADE,
    strict: bool = True,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parses a JSON text that may be hostile.

    Args:
        text: bytes are UTF-8, with or without a byte order mark.
        most: bytes that the value may take in memory.
        strict: whether control characters within strings are errors.
        pairs: builds an object from its keys and values, like `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or would take more than `most` bytes.
    """
    if json_size(text) > most:
        raise ValueError(f"its values would take more than {most >> 20} MB")
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=pairs, strict=strict)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_size(text: str | bytes) -> int:
    """Estimates how many bytes the values of a JSON text take in memory; the estimate errs upward."""
    # in CPython 3.11 an object of one key takes 184 bytes, a list of one item 88, a short text 50
    costs = (("{", 200), ("[", 90), (",", 80), (":", 80))
    if isinstance(text, bytes):
        return len(text) + sum(text.count(sign.encode()) * cost for sign, cost in costs)
    return len(text) + sum(text.count(sign) * cost for sign, cost in costs)


def read_json(path: str | os.PathLike[str], *, most: int = MAX_JSON, made: int = MAX_MADE) -> Any:
    """Reads and parses a JSON file that may be hostile.

    Args:
        most: bytes that the file may have.
        made: bytes that its value may take in memory.

    Raises:
        OSError: it does not exist or cannot be read.
        ValueError: it is not a regular file, is too large, or as `parse_json`.
    """
    return parse_json(read_regular(path, most=most), most=made)


def rows_of_table(lines: Iterable[str], columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields each row of a CSV table that may be hostile, as its cells of some columns.

    A row is one line: cells that go on over lines could make one row of a whole file. A line that is none has no cells.

    Raises:
        ValueError: the first line does not name each of `columns` once.
    """
    places: dict[str, int] | None = None
    for line in lines:
        cells = _cells(line)
        if places is None:
            require_unique_columns(cells, columns)
            if lacking := [name for name in columns if name not in cells]:
                raise ValueError(f"no column is called {lacking[0]}")
            places = {name: cells.index(name) for name in columns}
        elif line.strip():
            is_whole = len(cells) > max(places.values())
            yield {name: cells[place] for name, place in places.items()} if is_whole else {}


def _cells(line: str) -> list[str]:
    """Returns the cells of a line of a table; none of one that has too many, or that is not CSV."""
    if line.count(",") >= MOST_COLUMNS:
        return []
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def require_unique_columns(header: Sequence[str], columns: Iterable[str]) -> None:
    """Raises ValueError if a table's header names one of `columns` twice: readers silently take the last."""
    for name in columns:
        if header.count(name) > 1:
            raise ValueError(f"{header.count(name)} columns are called {name}")
