"""Opening the registry's database: its pragmas, its transactions, and its errors in words a person can use."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database

from hnetkit.errors import RegistryError
from hnetkit.registry.migrations import migrations

SCHEMA_VERSION = 3  # the number of migrations; kept in the file as `user_version`
BUSY_TIMEOUT_S = 30.0


def open_database(path: Path) -> Database:
    """Returns the database at `path`, made and brought up to date where needed. Any number may do so at once.

    Raises:
        RegistryError: damaged, locked, not writable, or written by a newer hnetkit.
    """
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            db = Database(connection, execute_plugins=False)
            _prepare(db, path)
        except BaseException:
            connection.close()
            raise
    return db


@contextmanager
def transaction(db: Database) -> Iterator[None]:
    """One write, whole or not at all. The lock is taken at once: two writers wait for each other, none fails."""
    db.conn.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.conn.execute("COMMIT")
    finally:
        if db.conn.in_transaction:
            db.conn.execute("ROLLBACK")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into RegistryError."""
    try:
        yield
    except (sqlite3.DatabaseError, OSError) as error:
        raise _in_words(path, error) from error


def _prepare(db: Database, path: Path) -> None:
    db.conn.execute("PRAGMA foreign_keys = ON")
    _enable_wal(db.conn)
    db.conn.execute("PRAGMA synchronous = NORMAL")
    version = db.conn.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise RegistryError(f"{path}: written by a newer hnetkit", hint="pip install --upgrade hnetkit")
    if version < SCHEMA_VERSION:
        with transaction(db):
            migrations.apply(db)
            db.conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _enable_wal(connection: sqlite3.Connection) -> None:
    # SQLite answers "locked" at once, whatever the timeout, while another process makes the same change
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _in_words(path: Path, error: Exception) -> RegistryError:
    said = str(error)
    if "locked" in said or "busy" in said:
        return RegistryError(f"{path}: another process keeps the registry busy", hint="try again when it ended")
    if "not a database" in said or "malformed" in said:
        hint = f"move it away and scan again: mv {path} {path}.damaged"
        return RegistryError(f"{path}: the registry is damaged ({said})", hint=hint)
    if isinstance(error, OSError) or "unable to open" in said or "readonly" in said:
        hint = "set HNETKIT_HOME to a folder of yours"
        return RegistryError(f"{path}: the registry cannot be opened for writing ({said})", hint=hint)
    return RegistryError(f"{path}: {said}")
