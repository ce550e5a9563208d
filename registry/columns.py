"""Conversion between Python values and registry columns: times, paths, names and JSON, and one way to store a row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import PurePath
from sqlite3 import Connection
from typing import Any, TypeVar

from hnetkit.errors import RegistryError, UnsafeFile
from hnetkit.limits import parse_json
from hnetkit.text import normal_form

Row = dict[str, Any]
Item = TypeVar("Item")

# table -> its columns that hold JSON, and what each holds
COLUMNS: Mapping[str, Mapping[str, type]] = {
    "files": {"warnings": list},
    "sidecars": {"said": dict},
    "networks": {"widths": list, "layer_structure": list, "dropout": list, "metadata": dict},
    "models": {"tags": list, "commercial_use": list},
    "versions": {"trained_words": list},
    "remote_files": {"hashes": dict},
    "subscriptions": {"filters": dict},
    "trainings": {"recipe": dict},
    "baked_networks": {"strength": dict},
}
# table -> the command that writes such rows again
_MENDED_BY = {
    **dict.fromkeys(("files", "sidecars"), "hnetkit scan"),
    "networks": "hnetkit scan; where it is in no file: hnetkit forget --missing",
    **dict.fromkeys(("models", "versions", "remote_files"), "hnetkit sync --metadata-only"),
    "subscriptions": "hnetkit sync --unsave NAME, and save it again",
    "trainings": "hnetkit forget NAME, then hnetkit scan",
    "baked_networks": "hnetkit bake --overwrite, to the same file",
}
_DEEPEST = 100  # levels: a more deeply nested value could be written, but not read everywhere


def now() -> str:
    """Returns the current time in UTC, to the second, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def to_column(path: str) -> str | bytes:
    """Returns a path as SQLite can store it: text, or bytes if it is not UTF-8, whatever this process's locale is."""
    try:
        return os.fsencode(path).decode()
    except UnicodeEncodeError:  # of no file that this locale has a name for
        return text_of(path)
    except UnicodeDecodeError:
        return os.fsencode(path)


def from_column(value: str | bytes) -> str:
    """Returns the path that `to_column` was given."""
    return os.fsdecode(value if isinstance(value, bytes) else str(value).encode())  # a damaged one simply names no file


def text_of(name: str) -> str:
    """Returns a name as valid text, for columns that are only shown and searched."""
    try:
        return name.encode("utf-8", "surrogateescape").decode()  # of UTF-8 that another locale did not know
    except UnicodeError:
        return name.encode("utf-8", "backslashreplace").decode()


def stem_of(path: str) -> str:
    """Returns the name of the file at a path, without its suffix, as valid text."""
    stem = PurePath(path).stem
    stored = to_column(stem)
    return stored if isinstance(stored, str) else text_of(stem)


def spelled(name: str) -> str:
    """Returns a name as people's own words are stored: as valid text in the composed normal form."""
    return normal_form("NFC", text_of(name))


def spellings(name: str) -> list[str]:
    """Returns the forms in which a name may be stored: as it is, composed and decomposed.

    Keyboards compose accents, and what was copied from a Mac has them apart: both look the same and mean the same.
    """
    text = text_of(name)
    return list(dict.fromkeys([text, normal_form("NFC", text), normal_form("NFD", text)]))


def batches(items: Sequence[Item], size: int = 500) -> Iterator[Sequence[Item]]:
    """Yields parts of `items` that fit a statement, as SQLite limits the number of parameters."""
    return (items[start : start + size] for start in range(0, len(items), size))


def upsert(
    db: Connection,
    table: str,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    first: Mapping[str, Any] | None = None,
    keep_known: bool = False,
) -> int:
    """Stores a row, or updates the one that has this key, and returns its `id`.

    Args:
        table: with a column `id`.
        key: the columns that tell one row from another, with their values.
        values: the columns to write in either case.
        first: columns that only a new row gets.
        keep_known: leave a column as it is where its new value is None.
    """
    # sqlite-utils' own upsert cannot leave a column alone, returns no id, and asks for the whole schema at each row
    row = {**key, **values, **(first or {})}
    new = "coalesce(excluded.{0}, {1}.{0})" if keep_known else "excluded.{0}"
    updates = ", ".join(f"{column} = {new.format(column, table)}" for column in values)
    cursor = db.execute(
        f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {updates} RETURNING id",
        list(row.values()),
    )
    id: int = cursor.fetchone()[0]
    return id


def to_json(value: Any) -> str:
    """Returns a value as JSON that SQLite accepts. Numbers that JSON cannot express become text.

    Raises:
        UnsafeFile: it is nested too deeply.
    """
    if _depth(value) > _DEEPEST:
        raise UnsafeFile("its values are nested too deeply")
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # not finite, or an integer of thousands of digits
        return json.dumps(_fitting(value))


def from_json(text: Any, table: str, column: str, row: str) -> Any:
    """Returns the value of a JSON column.

    Args:
        text: as SQLite returned it.
        table, column: where it was read.
        row: a name for the row in messages.

    Raises:
        RegistryError: it is damaged.
    """
    try:
        value = parse_json(text)
    except (ValueError, TypeError) as error:
        raise broken(table, column, row) from error
    if not isinstance(value, COLUMNS[table][column]):
        raise broken(table, column, row)
    return value


def broken(table: str, column: str, row: str) -> RegistryError:
    """Returns the error for a damaged value, with the command that writes it again."""
    return RegistryError(f"the registry is damaged: {column} of {row} in its table {table}", hint=_MENDED_BY[table])


def lost(which: str) -> RegistryError:
    """Returns the error for a network that files hold, and whose row another program deleted."""
    return RegistryError(f"the registry is damaged: {which} has no row in its table networks", hint="hnetkit scan")


def is_sound(table: str, column: str) -> str:
    """Returns SQL that tells whether a JSON column is intact; NULL is."""
    kind = "array" if COLUMNS[table][column] is list else "object"
    name = f"{table}.{column}"
    return f"CASE WHEN {name} IS NULL THEN 1 WHEN json_valid({name}) THEN json_type({name}) = '{kind}' ELSE 0 END"


def faults(db: Connection) -> Iterator[RegistryError]:
    """Yields one error for each column with damaged values, and one for networks that lost their rows."""
    for table, columns in COLUMNS.items():
        for column in columns:
            broken_ones = f"SELECT count(*) FROM {table} WHERE NOT ({is_sound(table, column)})"
            count = db.execute(broken_ones).fetchone()[0]
            if count:
                yield broken(table, column, f"{count} row{'s' * (count != 1)}")
    without = "content_hash NOTNULL AND content_hash NOT IN (SELECT content_hash FROM networks)"
    if (found := db.execute(f"SELECT content_hash FROM files WHERE {without} LIMIT 1").fetchone()) is not None:
        yield lost(found[0])


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for part in level for item in _parts(part)]:
        depth += 1
        if depth > _DEEPEST:
            break
    return depth


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _fitting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _fitting(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fitting(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"an integer of {value.bit_length()} bits"
    return value
