"""The registry: one SQLite file with what is known of files and networks."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from sqlite_utils import Database

from hnetkit.errors import DiskFull, HnetkitError, RegistryError
from hnetkit.registry import columns
from hnetkit.registry.catalogue import Catalogue, Subscriptions
from hnetkit.registry.files import Files
from hnetkit.registry.jobs import Jobs
from hnetkit.registry.links import Links
from hnetkit.registry.migrations import migrations
from hnetkit.registry.networks import Networks, Trainings
from hnetkit.text import argument

SCHEMA_VERSION = 5  # the number of migrations; kept in the file as `user_version`
BUSY_TIMEOUT_S = 30.0
_LEAST_ROOM = 128 << 10  # bytes: with less SQLite cannot begin a change
_OF_VALUES = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


class Registry:
    """Opens the registry at `path`, making it where it does not exist.

    Attributes:
        files: roots and the files under them.
        networks: contents, with their tags, notes, aliases, and the search.
        links: what was put into other programs' folders.
        catalogue: what the sites say of models.
        jobs: what is to be fetched, and what was installed.
        subscriptions: what is to be kept in step with a site.
        trainings: how networks came to be that were trained here.

    Any number of threads may write; each block of `write` is one of them at a time. On a disk that is full or may
    not be written, what is there can be read.

    Raises:
        RegistryError: damaged, locked, or written by a newer hnetkit.
        DiskFull: there is none yet, and no room for one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._db = open_database(self.path)
        self.files = Files(self._db)
        self.networks = Networks(self._db)
        self.links = Links(self._db)
        self.catalogue = Catalogue(self._db)
        self.jobs = Jobs(self._db)
        self.subscriptions = Subscriptions(self._db)
        self.trainings = Trainings(self._db)
        self._writing = threading.RLock()

    @contextmanager
    def write(self) -> Iterator[None]:
        """One change, whole or not at all; every change is made in such a block.

        Raises:
            RegistryError, DiskFull: it cannot be written.
        """
        with self._writing, translated(self.path), transaction(self._db):
            yield
            self.networks.index()

    @contextmanager
    def part(self) -> Iterator[None]:
        """One part of a `write`, whole or not at all: where it fails, the rest of the change can be made.

        Raises:
            ValueError: its values do not fit their columns.
            RegistryError, DiskFull: nothing can be written.
        """
        with translated(self.path), savepoint(self._db):
            yield

    def summary(self) -> str:
        """Returns how much is in the registry, in words."""
        with translated(self.path):
            counts = [self._db.conn.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("networks", "files")]
        return f"{counts[0]} network{'s' * (counts[0] != 1)} in {counts[1]} file{'s' * (counts[1] != 1)}"

    def check(self) -> str:
        """Looks through the whole database; returns `summary`.

        Raises:
            RegistryError: something in it is damaged or lost; the hint is the command that mends it.
        """
        with translated(self.path):
            self._check_tables()
            if not self.networks.is_searchable():
                raise RegistryError(f"{self.path}: the search's index is damaged", hint="hnetkit scan")
            for fault in (*columns.faults(self._db), *self.catalogue.faults()):
                raise fault
        return self.summary()

    def _check_tables(self) -> None:
        hint = moved_away(self.path)
        found = self._db.conn.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise RegistryError(f"{self.path}: the registry is damaged ({found})", hint=hint)
        lost = expected_tables() - {name for (name,) in self._db.conn.execute("SELECT name FROM sqlite_master")}
        if lost:
            raise RegistryError(f"{self.path}: the registry is damaged: lost {', '.join(sorted(lost))}", hint=hint)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        if isinstance(error, sqlite3.DatabaseError):  # damage that only reading met
            with translated(self.path):
                raise error


def open_database(path: Path) -> Database:
    """Returns the database at `path`, made and brought up to date where needed. Any number may do so at once.

    Where the disk is full or may not be written it can still be read; the first change is an error then.

    Raises:
        RegistryError: damaged, locked, or written by a newer hnetkit.
        DiskFull: there is none yet, and no room for one.
    """
    path = path.absolute()  # SQLite reads one that begins with `file:` as an address
    if path.exists() and not path.is_file():  # it would wait for whoever writes into a pipe
        raise RegistryError(
            f"{path}: not a regular file", hint="move it away, or set HNETKIT_HOME to a folder of yours"
        )
    with translated(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _opened(path, _prepare)
        except (sqlite3.OperationalError, OSError) as error:
            if not isinstance(error, OSError) and not _is_of_the_disk(error):
                raise
            return _readable(path, error)


def _readable(path: Path, error: Exception) -> Database:
    """Opens what cannot be written without any file beside it; raises `error` where that does not help."""
    try:
        return _opened(path, _prepare_alone)  # a full disk
    except sqlite3.OperationalError:
        if not path.exists() or _has_changes_beside(path):
            raise error from None
    try:
        return _opened(path, _prepare_to_read, "?mode=ro&immutable=1")  # a disk that nobody may write
    except sqlite3.OperationalError:
        raise error from None


def _has_changes_beside(path: Path) -> bool:
    """Whether the last changes still lie beside the database: it cannot be read without them."""
    try:
        return Path(f"{path}-wal").stat().st_size > 0
    except OSError:
        return False


def expected_tables() -> set[str]:
    """Returns the names of all tables and indexes but those of the search, which can be made again."""
    db = Database(memory=True)
    migrations.apply(db)
    names = {name for (name,) in db.conn.execute("SELECT name FROM sqlite_master")}
    db.close()
    return {name for name in names if not name.startswith("network_text")}


@contextmanager
def transaction(db: Database) -> Iterator[None]:
    """One write, whole or not at all. The lock is taken at once: two writers wait for each other, none fails."""
    _when_free(db.conn, "BEGIN IMMEDIATE")
    try:
        yield
        db.conn.execute("COMMIT")
    finally:
        if db.conn.in_transaction:
            db.conn.execute("ROLLBACK")


@contextmanager
def savepoint(db: Database) -> Iterator[None]:
    """One part of a transaction, whole or not at all: what fails in it leaves the rest of the transaction as it is.

    Raises:
        ValueError: its values do not fit their columns.
    """
    db.conn.execute("SAVEPOINT part")
    try:
        yield
    except BaseException as error:
        if db.conn.in_transaction:  # a disk that is full has ended it
            db.conn.execute("ROLLBACK TO part")
            db.conn.execute("RELEASE part")
        if isinstance(error, _OF_VALUES):
            raise ValueError(str(error)) from error
        raise
    db.conn.execute("RELEASE part")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into RegistryError, or DiskFull."""
    try:
        yield
    except (sqlite3.DatabaseError, OSError) as error:
        raise _in_words(path, error) from error


def _opened(path: Path, prepare: Callable[[Database, Path], None], how: str = "") -> Database:
    name = path.absolute().as_uri() + how if how else path
    connection = sqlite3.connect(
        name, uri=bool(how), timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        db = Database(connection, execute_plugins=False)
        prepare(db, path)
    except BaseException:
        connection.close()
        raise
    return db


def _prepare(db: Database, path: Path) -> None:
    db.conn.execute("PRAGMA foreign_keys = ON")
    _when_free(db.conn, "PRAGMA journal_mode = WAL")
    db.conn.execute("PRAGMA synchronous = NORMAL")
    version = _version(db, path)
    if version < SCHEMA_VERSION:
        with transaction(db):
            migrations.apply(db)
            db.conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _prepare_alone(db: Database, path: Path) -> None:
    db.conn.execute("PRAGMA locking_mode = EXCLUSIVE")  # then the index of the changes is kept in memory
    _prepare_to_read(db, path)


def _prepare_to_read(db: Database, path: Path) -> None:
    db.conn.execute("PRAGMA foreign_keys = ON")
    db.conn.execute("PRAGMA temp_store = MEMORY")
    if _version(db, path) < SCHEMA_VERSION:
        raise sqlite3.OperationalError("readonly: it must be brought up to date")


def _version(db: Database, path: Path) -> int:
    version: int = db.conn.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise RegistryError(f"{path}: written by a newer hnetkit", hint="pip install --upgrade hnetkit")
    return version


def _when_free(connection: sqlite3.Connection, statement: str) -> None:
    """Carries out a statement that SQLite may answer with "locked" at once, whatever the timeout.

    It does so while another process changes the journal as well, and where another thread is reading through the
    same connection what another process has changed since.
    """
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _is_of_the_disk(error: Exception) -> bool:
    return any(word in str(error) for word in ("disk I/O error", "disk is full", "unable to open", "readonly"))


def _in_words(path: Path, error: Exception) -> HnetkitError:
    said = str(error)
    if "locked" in said or "busy" in said:
        return RegistryError(f"{path}: another process keeps the registry busy", hint="try again when it ended")
    if any(word in said for word in ("not a database", "malformed", "vtable constructor failed")):
        hint = moved_away(path)
        return RegistryError(f"{path}: the registry is damaged ({said})", hint=hint)
    if "disk is full" in said or (_is_of_the_disk(error) and "readonly" not in said and not _has_room(path)):
        return DiskFull(f"{path}: no room is left on the disk", hint="make room, and run the command again")
    if isinstance(error, OSError) or "unable to open" in said or "readonly" in said:
        hint = "set HNETKIT_HOME to a folder of yours"
        return RegistryError(f"{path}: the registry cannot be opened for writing ({said})", hint=hint)
    if "no such table" in said or "no such column" in said or "missing from index" in said:
        return RegistryError(f"{path}: the registry is damaged ({said})", hint="hnetkit doctor")
    return RegistryError(f"{path}: {said}")


def moved_away(path: Path) -> str:
    """Returns what to do about a database that cannot be mended."""
    new = f"{path}.damaged"
    return f"move it away and scan again: mv {argument(path, is_path=True)} {argument(new, is_path=True)}"


def _has_room(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free >= _LEAST_ROOM
    except OSError:
        return True
