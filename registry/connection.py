"""One open registry file: its pragmas, its transactions, and its errors in words a person can use."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import RegistryError

if TYPE_CHECKING:
    import sqlite_utils

Row = dict[str, Any]

SCHEMA_VERSION = 1  # the number of migrations; kept in the file as `user_version`
BUSY_TIMEOUT_S = 30.0


class Connection:
    """A connection to the registry at `path`, made where there is none, brought up to date where it is older.

    Reading is plain SQL on the standard library's driver; writing goes through `tables`. sqlite-utils imports
    numpy where that is installed, a tenth of a second that `list` and completion do without.

    Raises:
        RegistryError: the file cannot be opened, is damaged, or was written by a newer hnetkit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._driver = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
            try:
                self._prepare()
            except BaseException:
                self._driver.close()
                raise

    def close(self) -> None:
        self._driver.close()

    def rows(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Row]:
        """Returns what a SELECT gives, one dict for each row."""
        with self._translated():
            cursor = self._driver.execute(sql, parameters)
            columns = [column[0] for column in cursor.description]
            return [dict(zip(columns, row, strict=True)) for row in cursor]

    def execute(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> int:
        """Runs one statement inside `writing()`; returns how many rows it changed."""
        return self.tables.execute(sql, parameters).rowcount  # type: ignore[arg-type]

    @cached_property
    def tables(self) -> sqlite_utils.Database:
        """The tables for writing; use it inside `writing()`."""
        from sqlite_utils import Database

        return Database(self._driver, execute_plugins=False)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that holds the write lock from its start; a nested one is part of the outer."""
        if self._driver.in_transaction:
            yield
            return
        with self._translated():
            self._driver.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._driver.execute("COMMIT")
            finally:
                if self._driver.in_transaction:
                    self._driver.execute("ROLLBACK")

    def _prepare(self) -> None:
        self._driver.execute("PRAGMA foreign_keys = ON")
        version = self._driver.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise RegistryError(
                f"{self.path}: a newer hnetkit wrote this registry (its version {version}, ours {SCHEMA_VERSION})",
                hint="pip install --upgrade hnetkit",
            )
        self._enable_wal()
        self._driver.execute("PRAGMA synchronous = NORMAL")
        if version < SCHEMA_VERSION:
            from hnetkit.registry.migrations import migrate

            migrate(self.tables)

    def _enable_wal(self) -> None:
        # SQLite answers "locked" at once, whatever the timeout, while another process makes the same change
        until = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                self._driver.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._in_words(error) from error

    def _in_words(self, error: Exception) -> RegistryError:
        said = str(error)
        if "locked" in said or "busy" in said:
            return RegistryError(
                f"{self.path}: another process keeps the registry busy", hint="try again when it ended"
            )
        if "not a database" in said or "malformed" in said:
            return RegistryError(
                f"{self.path}: the registry is damaged ({said})",
                hint=f"move it away and scan again: mv {self.path} {self.path}.damaged",
            )
        if isinstance(error, OSError) or "unable to open" in said or "readonly" in said:
            return RegistryError(
                f"{self.path}: the registry cannot be opened for writing ({said})",
                hint="set HNETKIT_HOME to a folder of yours",
            )
        return RegistryError(f"{self.path}: {said}")
