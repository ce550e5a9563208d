"""A stranger's database of Civitai's records, which is only read: tables of models, of versions and of files.

CivArchive publishes such a one for LoRA Manager. Each row has keys, and a JSON record in the column ``data``. Rows are
found by their keys: by an index, or in one pass over a table without one.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from hnetkit.errors import DamagedFile, FileRefused, UnsafeFile
from hnetkit.files import stat_at
from hnetkit.limits import Budget, json_size, parse_json
from hnetkit.registry.columns import Row

MOST_RECORD = 32 << 20
"""Bytes of one record; that of the largest model takes a few MB."""
MOST_MADE = 4 * MOST_RECORD
"""Bytes that a record may take in memory, with its versions and files."""
HINT = "give the civitai.sqlite of a metadata archive, or JSON lines of the site's records"
_MOST_ROWS = 1000  # with one key: files of one hash, versions of a model, files of a version
_STEPS, _STEPS_PER_BYTE = 1_000_000, 4  # of SQLite; a pass over a table takes less than one for each byte of the file
_SECONDS, _BYTES_PER_SECOND = 5.0, 2 << 20  # of the processor: far more than tables and records need
_CHECKED = 1000  # steps
# SQLite parses all of a schema at once, into many times its size; it takes ten steps for each table, index or view
_SCHEMA_STEPS, _SCHEMA_TEXT = 3000, 8 << 10  # bytes of what defines one; a dump has some twenty, of a few hundred bytes
_ROW = 1000  # bytes that a part of a record takes at least
_LARGEST_ID = 2**31
_TABLES = {
    "models": ("id", "name", "type", "username", "data"),
    "model_versions": ("id", "model_id", "name", "base_model", "published_at", "data"),
    "model_files": ("id", "model_id", "version_id", "type", "sha256", "data"),
}

LeftOut = Callable[[int | None, str], None]
"""Called with the number of a model, and with what cannot be read of it."""


def records_in_database(path: Path, sha256s: Iterable[str], left_out: LeftOut) -> Iterator[Row]:
    """Yields the records of models that have files with one of these hashes, as the site's API would give them.

    Args:
        path: of the database; nothing is written beside it.
        sha256s: in lower case.
        left_out: called with what cannot be read; the rest is used.

    Raises:
        FileRefused: it has other tables, or changes that are not in it yet.
        DamagedFile: it cannot be read, or not to its end.
    """
    beside = stat_at(f"{path}-wal")
    if beside is not None and beside.st_size:
        what = f"another program has it open, or left changes in {path.name}-wal"
        raise FileRefused(f"{path}: {what}", hint="close that program, or give a copy that it made")
    size = path.stat().st_size
    steps, until = _SCHEMA_STEPS, time.thread_time() + _SECONDS + size / _BYTES_PER_SECOND

    def is_endless() -> bool:  # pages may lead in circles, or all rows to one long value
        nonlocal steps
        steps -= _CHECKED
        return steps < 0 or time.thread_time() > until

    try:
        with closing(_connected(path)) as db:
            db.set_progress_handler(is_endless, _CHECKED)
            _read_schema(db, path)
            steps = _STEPS + _STEPS_PER_BYTE * size
            for record in _Dump(db, path, left_out).records(sha256s):
                begun = time.thread_time()
                yield record
                until += time.thread_time() - begun
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for names in messages
        is_cut = steps < 0 or time.thread_time() > until
        why = "reading it would never end" if is_cut else str(error)
        raise DamagedFile(f"{path}: no database that can be read: {why}", hint=HINT) from error


def _connected(path: Path) -> sqlite3.Connection:
    """Opens a stranger's database: read-only, and nothing that its schema defines is run."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    if sys.version_info >= (3, 11):
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_RECORD)
        db.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _SCHEMA_TEXT)
    db.text_factory = lambda data: data.decode("utf-8", "replace")
    for setting in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
        db.execute(f"PRAGMA {setting}")
    return db


def _read_schema(db: sqlite3.Connection, path: Path) -> None:
    """Has SQLite read the schema; raises FileRefused where it has far more parts than a dump's."""
    try:
        db.execute("SELECT 1 FROM sqlite_master LIMIT 1")
    except sqlite3.OperationalError as error:
        if str(error) != "interrupted":
            raise
        raise FileRefused(
            f"{path}: a database of very many tables, indexes or views, and no dump", hint=HINT
        ) from error


class _Dump:
    """Tables of models, versions and files, each row with a JSON record in the column ``data``.

    Rows are found by their keys, and read by their row numbers, one model at a time.

    Raises:
        FileRefused: the database has other tables.
    """

    def __init__(self, db: sqlite3.Connection, path: Path, left_out: LeftOut) -> None:
        self._db, self._path, self._left_out, self._budget = db, path, left_out, Budget()
        for table, columns in _TABLES.items():
            self._require_table(table, columns)

    def _require_table(self, table: str, columns: Iterable[str]) -> None:
        """Refuses what is no plain table: a view or a computed column may take for ever."""
        made = self._db.execute("SELECT type, sql FROM sqlite_master WHERE name = ?", [table]).fetchone()
        if made is None:
            raise FileRefused(f"{self._path}: a database without a table {table}, and no dump", hint=HINT)
        words = str(made[1]).upper().split()
        described = self._db.execute(f"PRAGMA table_xinfo({table})").fetchall()
        names = {row[1] for row in described}
        is_plain = made[0] == "table" and words[:2] == ["CREATE", "TABLE"] and not {row[6] for row in described} - {0}
        if not is_plain or "rowid" in map(str.lower, names) or "ROWID" in words:
            raise FileRefused(f"{self._path}: {table} is no plain table", hint=HINT)
        if lacking := [column for column in columns if column not in names]:
            raise FileRefused(f"{self._path}: the table {table} has no column {lacking[0]}", hint=HINT)

    def records(self, sha256s: Iterable[str]) -> Iterator[Row]:
        spelled = {spelling for sha256 in sha256s for spelling in (sha256, sha256.upper())}
        found = self._rows("model_files", "sha256", spelled)
        owners = {self._number("model_files", row, "model_id") for rows in found.values() for row in rows} - {0}
        models = self._rows("models", "id", owners)
        versions = self._rows("model_versions", "model_id", owners)
        numbers = {row: self._number("model_versions", row, "id") for rows in versions.values() for row in rows}
        files = self._rows("model_files", "version_id", set(numbers.values()) - {0})
        for owner in sorted(owners):
            self._budget = Budget(made=MOST_MADE)
            try:
                (row, *_) = models.get(owner) or [0]
                parts = {version: files.get(numbers[version], []) for version in versions.get(owner, [])}
                record = self._model(owner, row, parts)
            except (sqlite3.Error, ValueError, UnsafeFile) as error:
                self._left_out(owner, f"its record in the dump cannot be read: {error}")
                continue
            yield record

    def _rows(self, table: str, column: str, keys: set[Any]) -> dict[Any, list[int]]:
        """Returns keys -> the numbers of the rows that have them, by an index, or in one pass where there is none."""
        statement = f"SELECT rowid FROM {table} WHERE {column} = ? LIMIT {_MOST_ROWS + 1}"
        plan = self._db.execute(f"EXPLAIN QUERY PLAN {statement}", [""]).fetchall()
        found: dict[Any, list[int]] = {}
        if any(str(step[-1]).startswith("SEARCH") for step in plan):
            for key in keys:
                found[key] = [row for (row,) in self._db.execute(statement, [key])]
        else:
            # of a key that is longer than any, nothing is read
            whole = f"SELECT rowid, CASE WHEN length({column}) <= 64 THEN {column} END FROM {table}"
            for row, value in self._db.execute(whole):
                key = value if value in keys else _id(value)  # a number may be stored as text
                if key in keys and len(found.setdefault(key, [])) <= _MOST_ROWS:
                    found[key].append(row)
        for key, rows in found.items():
            if len(rows) > _MOST_ROWS:
                del rows[_MOST_ROWS:]
                reason = f"left out: rows of {table} beyond the first {_MOST_ROWS:,} with {column} {key}"
                self._left_out(None, reason)
        return found

    def _number(self, table: str, row: int, column: str) -> int:
        """Returns a number of a row; 0 where it has none."""
        try:
            return _id(self._values(table, row, column)[0]) or 0
        except (sqlite3.DataError, ValueError):  # a text that is longer than any record
            return 0

    def _values(self, table: str, row: int, *columns: str) -> tuple[Any, ...]:
        found: tuple[Any, ...] | None = self._db.execute(
            f"SELECT {', '.join(columns)} FROM {table} WHERE rowid = ?", [row]
        ).fetchone()
        if found is None:
            raise ValueError(f"not in the table {table}")
        return found

    def _model(self, id: int, row: int, versions: dict[int, list[int]]) -> Row:
        name, kind, user, data = self._values("models", row, "name", "type", "username", "data")
        stated = {"id": id, "name": name, "type": kind, "creator": {"username": user} if user else None}
        parts = [part for version, files in versions.items() for part in self._version(id, version, files)]
        return {**self._object(data), **_known(stated), "modelVersions": parts}

    def _version(self, owner: int, row: int, files: list[int]) -> Iterator[Row]:
        with self._unless_odd(owner, "a version"):
            id, name, base, published, data = self._values(
                "model_versions", row, "id", "name", "base_model", "published_at", "data"
            )
            date = published if isinstance(published, str) else None
            stated = {"id": id, "name": name, "baseModel": base, "publishedAt": date}
            parts = [part for file in files for part in self._file(owner, file)]
            yield {**_known(stated), **_known(self._object(data)), "files": parts}

    def _file(self, owner: int, row: int) -> Iterator[Row]:
        with self._unless_odd(owner, "a file"):
            id, kind, sha256, data = self._values("model_files", row, "id", "type", "sha256", "data")
            record = self._object(data)
            hashes = record.get("hashes")
            stated = {**(hashes if isinstance(hashes, dict) else {}), **_known({"SHA256": sha256})}
            yield {"id": id, "type": kind, **_known(record), "hashes": stated}

    def _object(self, data: Any) -> Row:
        """Returns a part of a model's record; many rows may hold one number, and so be parts of each other's."""
        self._budget.make(_ROW + (json_size(data) if isinstance(data, str | bytes) else 0))
        return _object(data)

    @contextmanager
    def _unless_odd(self, owner: int, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            reason = f"left out: {what} that cannot be read in the dump: {error}"
            self._left_out(owner, reason)


def _object(data: Any) -> Row:
    if not isinstance(data, str | bytes | None):
        raise ValueError("no JSON")
    value = {} if data is None else parse_json(data, most=MOST_MADE, strict=False)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _known(values: Row) -> Row:
    """Returns what is stated, and can be: a column may hold bytes in place of text."""
    return {key: value for key, value in values.items() if value is not None and not isinstance(value, bytes)}


def _id(value: Any) -> int | None:
    """Returns a number of the site, which may be stored as text."""
    try:
        number = int(value) if isinstance(value, int | str) and len(str(value)) <= 10 else 0
    except ValueError:
        return None
    return number if 0 < number < _LARGEST_ID else None
