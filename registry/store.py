"""`Registry`: the SQLite database of files and networks, its transactions and errors."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from types import TracebackType

from hnetkit.errors import ANOTHER_HOME, DiskFull, HnetkitError, RegistryError
from hnetkit.files import stat_at, sync_folder
from hnetkit.registry import columns
from hnetkit.registry.bakes import Bakes
from hnetkit.registry.cards import Cards
from hnetkit.registry.catalogue import Catalogue, Subscriptions
from hnetkit.registry.files import Files
from hnetkit.registry.imported import ImportedFiles
from hnetkit.registry.jobs import Jobs
from hnetkit.registry.links import Links
from hnetkit.registry.mirrors import Mirrors
from hnetkit.registry.networks import Networks, Trainings
from hnetkit.text import argument

SCHEMA_VERSION = 15  # the number of migrations; kept in the file as `user_version`
BUSY_TIMEOUT_S = 30.0
_LEAST_ROOM = 128 << 10  # bytes that SQLite needs to begin a change
_OF_VALUES = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


class Registry:
    """The registry at `path`, which is created if it does not exist.

    Args:
        path: of the database.
        patience_s: how long to wait for another process that keeps it busy while it is opened.

    Attributes:
        files: roots and the files under them.
        networks: contents with their tags, notes and aliases, and the search.
        imported: files of other machines that imports told of.
        links: files in other programs' folders.
        catalogue: models as the sites list them.
        mirrors: where else the bytes of files are said to be.
        jobs: downloads, and installed files.
        subscriptions: saved filters to keep up to date with a site.
        trainings: how networks were trained here.
        bakes: files that stacks were baked to.
        cards: what networks are chosen by, of all at once.
        is_new: whether there was none before.

    Any number of threads may write; `write` admits one at a time. A registry on a full or read-only disk can still be
    read.

    Raises:
        RegistryError: damaged, locked, or written by a newer hnetkit.
        DiskFull: there is none yet, and no room for one.
    """

    def __init__(self, path: str | os.PathLike[str], *, patience_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = Path(path)
        self.is_new = not self.path.exists()
        self._db = open_database(self.path, patience_s)
        self._place = self.path.absolute()
        self._file = _file_at(self._place)
        self.files = Files(self._db)
        self.networks = Networks(self._db)
        self.imported = ImportedFiles(self._db)
        self.links = Links(self._db)
        self.catalogue = Catalogue(self._db)
        self.mirrors = Mirrors(self._db)
        self.jobs = Jobs(self._db)
        self.subscriptions = Subscriptions(self._db)
        self.trainings = Trainings(self._db)
        self.bakes = Bakes(self._db)
        self.cards = Cards(self._db)
        self._writing = threading.RLock()

    @contextmanager
    def write(self) -> Iterator[None]:
        """A transaction. Every change is made within such a block, or within a `step`.

        Raises:
            RegistryError, DiskFull: nothing can be written.
        """
        with self.step():
            yield
            self.networks.index()

    @contextmanager
    def step(self) -> Iterator[None]:
        """A transaction that is one of many, after which the search is not up to date; the next `write` sees to that.

        What is searched of a network grows with its files: to put all of it into the index at each step takes
        quadratic time for many files of one content.

        Raises:
            RegistryError, DiskFull: nothing can be written, or the file at `path` is another one by now.
        """
        with self._writing, translated(self.path), transaction(self._db):
            self._require_same_file()
            yield

    def catch_up(self) -> None:
        """Brings the search up to date, after a killed scan or a change that was made with another tool.

        Raises:
            RegistryError, DiskFull: nothing can be written.
        """
        if self.networks.has_unindexed():
            with self.write():
                pass

    @contextmanager
    def part(self) -> Iterator[None]:
        """A savepoint within `write`: if it fails, the rest of the transaction can go on.

        Raises:
            ValueError: a value does not fit its column.
            RegistryError, DiskFull: nothing can be written.
        """
        with translated(self.path), savepoint(self._db):
            yield

    def state(self) -> tuple[int, int]:
        """Returns what is another value after every change, by this process or by another.

        Raises:
            RegistryError: a newer hnetkit has changed the registry's tables since it was opened, or its file is gone.
        """
        with translated(self.path):
            self._require_same_file()
            _version(self._db, self.path)
            (others,) = self._db.execute("PRAGMA data_version").fetchone()
            return others, self._db.total_changes

    def emptiness(self) -> str | None:
        """Returns, where no network is known, that and which registry says so; None where some are.

        On a disk that is away, and under another HNETKIT_HOME, a registry is another one than a person thinks.
        """
        if self.networks.count():
            return None
        return f"the library is empty, as {self.path} says{', which is new' if self.is_new else ''}"

    def summary(self) -> str:
        """Returns in words how many networks there are, in how many files, and how many files are missing or others."""
        with translated(self.path):
            networks = self.networks.count()
            holding, missing, others = self.files.counts()
        total = f"{networks} network{'s' * (networks != 1)} in {holding} file{'s' * (holding != 1)}"
        missed = f", {missing} missing" if missing else ""
        return total + missed + (f", {others} other file{'s' * (others != 1)}" if others else "")

    def check(self) -> str:
        """Checks the whole database; returns `summary`.

        Raises:
            RegistryError: something is damaged or lost; the hint is the command that repairs it.
        """
        with translated(self.path):
            self._check_tables()
            if not self.networks.is_searchable():
                raise RegistryError(f"{self.path}: the search index is damaged", hint="hnetkit scan")
            for fault in (*columns.faults(self._db), *self.catalogue.faults()):
                raise fault
        return self.summary()

    def _check_tables(self) -> None:
        hint = moved_away(self.path)
        found = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise RegistryError(f"{self.path}: the registry is damaged ({found})", hint=hint)
        lost = expected_tables() - {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        if lost:
            raise RegistryError(f"{self.path}: the registry is damaged: lost {', '.join(sorted(lost))}", hint=hint)

    def _require_same_file(self) -> None:
        """Raises RegistryError if another file, or none, is at the path by now: nobody would read what is written."""
        found = _file_at(self._place)
        # on some shares files have no numbers, which tells only that one is there
        is_same = found is not None and (found == self._file or not found[1])
        if not is_same:
            message = f"{self.path}: the registry was moved, removed or replaced while it was in use"
            raise RegistryError(message, hint="start hnetkit again")

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        if isinstance(error, sqlite3.DatabaseError):  # damage that was met while reading
            with translated(self.path):
                raise error


def open_database(path: Path, patience_s: float = BUSY_TIMEOUT_S) -> Connection:
    """Opens the database at `path`; creates or migrates it if necessary. Any number may do so at once.

    On a full or read-only disk it can still be read; the first change then raises.

    Raises:
        RegistryError: damaged, locked, or written by a newer hnetkit.
        DiskFull: there is none yet, and no room for one.
    """
    path = path.absolute()  # SQLite would read a path that begins with `file:` as a URI
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise RegistryError(
            f"{path}: not a regular file", hint="move it away, or set HNETKIT_HOME to a folder of yours"
        )
    if (link := broken_link(path.parent)) is not None:
        raise RegistryError(
            f"{link}: a link to {os.readlink(link)}, which is not there",
            hint="mount its disk, or set HNETKIT_HOME to a folder of yours",
        )
    with translated(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _opened(path, partial(_prepare, patience_s=patience_s))
        except (sqlite3.OperationalError, OSError) as error:
            if not isinstance(error, OSError) and not _is_of_the_disk(error):
                raise
            return _opened_to_read(path, error)


def _file_at(path: Path) -> tuple[int, int] | None:
    """Returns what tells a file from others; None if there is none."""
    found = stat_at(path)
    return None if found is None else (found.st_dev, found.st_ino)


def broken_link(folder: Path) -> Path | None:
    """Returns the link on the way to a folder that leads nowhere, as to a disk that is away; None without one."""
    return next((place for place in (folder, *folder.parents) if place.is_symlink() and not place.exists()), None)


def _opened_to_read(path: Path, error: Exception) -> Connection:
    """Opens a database that cannot be written, without creating a file beside it; else raises `error`."""
    try:
        return _opened(path, _prepare_alone)  # a full disk
    except sqlite3.OperationalError:
        if not path.exists() or _has_changes_beside(path):
            raise error from None
    try:
        return _opened(path, _prepare_to_read, "?mode=ro&immutable=1")  # a read-only disk
    except _OfEarlierVersion:
        if not any(word in str(error) for word in ("readonly", "unable to open")) or not _has_room(path):
            raise error from None
        message = f"{path}: of an earlier version of hnetkit, and cannot be brought up to date where it is ({error})"
        raise RegistryError(
            message, hint="make it writable, or copy it into a folder of yours and set HNETKIT_HOME to that"
        ) from None
    except sqlite3.OperationalError:
        raise error from None


class _OfEarlierVersion(sqlite3.OperationalError):
    """A registry that must be brought up to date before it can be read."""


def _has_changes_beside(path: Path) -> bool:
    """Whether the latest changes are still in the file beside the database, which is then needed to read it."""
    try:
        beside = stat_at(f"{path}-wal")
    except OSError:  # for all that can be seen
        return True
    return beside is not None and beside.st_size > 0


def expected_tables() -> set[str]:
    """Returns the names of all tables and indexes except those of the search, which can be rebuilt."""
    from hnetkit.registry.migrations import migrate

    db = sqlite3.connect(":memory:")
    migrate(db)
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    db.close()
    return {name for name in names if not name.startswith("network_text")}


@contextmanager
def transaction(db: Connection, patience_s: float = BUSY_TIMEOUT_S) -> Iterator[None]:
    """A transaction. It takes the write lock at once, so that two writers wait for each other and neither fails."""
    _when_free(db, "BEGIN IMMEDIATE", patience_s)
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


@contextmanager
def savepoint(db: Connection) -> Iterator[None]:
    """A savepoint within a transaction: if it fails, the rest of the transaction stays.

    Raises:
        ValueError: a value does not fit its column.
    """
    db.execute("SAVEPOINT part")
    try:
        yield
    except BaseException as error:
        if db.in_transaction:  # on a full disk SQLite has ended it
            db.execute("ROLLBACK TO part")
            db.execute("RELEASE part")
        if isinstance(error, _OF_VALUES):
            raise ValueError(str(error)) from error
        raise
    db.execute("RELEASE part")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Translates SQLite's errors to RegistryError or DiskFull."""
    try:
        yield
    except (sqlite3.DatabaseError, OSError) as error:
        raise _translate(path, error) from error


def _opened(path: Path, prepare: Callable[[Connection, Path], None], how: str = "") -> Connection:
    name = path.absolute().as_uri() + how if how else path
    connection = sqlite3.connect(
        name, uri=bool(how), timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA recursive_triggers = ON")  # what a row replaces leaves the search as well
        prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(db: Connection, path: Path, patience_s: float) -> None:
    db.execute("PRAGMA foreign_keys = ON")
    db.execute(f"PRAGMA busy_timeout = {min(1000, int(patience_s * 1000))}")  # the first lock tells if there are any
    _when_free(db, "PRAGMA journal_mode = WAL", patience_s, while_busy=lambda: _require_locks(path))
    db.execute("PRAGMA synchronous = NORMAL")
    if _version(db, path) < SCHEMA_VERSION:
        with transaction(db, patience_s):
            _upgrade(db, path)
    db.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")


def _upgrade(db: Connection, path: Path) -> None:
    """Brings a database up to date, within a transaction; an older registry is kept as it was, beside it."""
    version = _version(db, path)  # another process may have done it
    if version == SCHEMA_VERSION:
        return
    if version:
        _keep(path, version)
    from hnetkit.registry.migrations import migrate  # sqlite-utils loads numpy, and most commands need neither

    migrate(db)
    Networks(db).index()
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _keep(path: Path, version: int) -> None:
    """Copies a registry to ``registry.v5.db`` beside it, for its version 5; no earlier copy is replaced."""
    names = (f"{path.stem}.v{version}{number}{path.suffix}" for number in ("", *(f"-{n}" for n in range(2, 1000))))
    target = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)  # of an upgrade that was killed; the lock on the registry is ours
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(part)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # a copy is one file
    os.replace(part, target)
    sync_folder(target.parent)  # the upgrade must not be on the disk before the copy is


def _prepare_alone(db: Connection, path: Path) -> None:
    db.execute("PRAGMA locking_mode = EXCLUSIVE")  # SQLite then keeps the index of the write-ahead log in memory
    _prepare_to_read(db, path)


def _prepare_to_read(db: Connection, path: Path) -> None:
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA temp_store = MEMORY")
    if (version := _version(db, path)) < SCHEMA_VERSION:
        raise _OfEarlierVersion if version else sqlite3.OperationalError("there is nothing in it yet")


def _version(db: Connection, path: Path) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        newer = f"written by a newer hnetkit: its schema is version {version}, this one reads up to {SCHEMA_VERSION}"
        raise RegistryError(f"{path}: {newer}", hint="pip install --upgrade hnetkit")
    return version


def _when_free(
    connection: sqlite3.Connection, statement: str, patience_s: float, while_busy: Callable[[], None] = lambda: None
) -> None:
    """Executes a statement that SQLite may refuse as "locked" at once, whatever its timeout.

    SQLite does that while another process changes the journal mode, and while another thread reads through the same
    connection what another process has changed since.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            while_busy()
            time.sleep(0.01)


def _is_of_the_disk(error: Exception) -> bool:
    return any(word in str(error) for word in ("disk I/O error", "disk is full", "unable to open", "readonly"))


def _require_locks(path: Path) -> None:
    """Raises RegistryError if files in the registry's folder cannot be locked: SQLite calls that busy, or an error."""
    try:
        import fcntl
        import tempfile
    except ImportError:  # Windows locks what it opens
        return
    with suppress(OSError), tempfile.TemporaryFile(dir=path.parent) as file:  # new, so nobody else has locked it
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RegistryError(
                f"{path}: files there cannot be locked, as on some network drives ({error.strerror})",
                hint="set HNETKIT_HOME to a folder on a disk of this machine",
            ) from error


def _translate(path: Path, error: Exception) -> HnetkitError:
    text = str(error)
    if "locked" in text or "busy" in text or "disk I/O error" in text:
        try:
            _require_locks(path)
        except RegistryError as without_locks:
            return without_locks
    if "locked" in text or "busy" in text:
        return RegistryError(f"{path}: another process keeps the registry busy", hint="try again when it has ended")
    if any(word in text for word in ("not a database", "malformed", "vtable constructor failed")):
        hint = moved_away(path)
        return RegistryError(f"{path}: the registry is damaged ({text})", hint=hint)
    if "disk is full" in text or (_is_of_the_disk(error) and "readonly" not in text and not _has_room(path)):
        return DiskFull(f"{path}: no room is left on the disk", hint="make room, and run the command again")
    if isinstance(error, OSError) or "unable to open" in text or "readonly" in text:
        message = f"{path}: the registry cannot be opened for writing ({text})"
        return RegistryError(message, hint=ANOTHER_HOME)
    if "no such table" in text or "no such column" in text or "missing from index" in text:
        return RegistryError(f"{path}: the registry is damaged ({text})", hint="hnetkit doctor")
    return RegistryError(f"{path}: {text}")


def moved_away(path: Path) -> str:
    """Returns the hint for a database that cannot be repaired."""
    new = f"{path}.damaged"
    moved = f"mv {argument(path, is_path=True)} {argument(new, is_path=True)}"
    return f"move it away and scan again; tags, notes and aliases stay in it: {moved}"


def _has_room(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free >= _LEAST_ROOM
    except OSError:
        return True
