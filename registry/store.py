"""The registry: one SQLite file with what is known of files and networks."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from hnetkit.errors import RegistryError
from hnetkit.registry import json_columns
from hnetkit.registry.catalogue import Catalogue
from hnetkit.registry.connection import (
    expected_tables,
    moved_away,
    open_database,
    savepoint,
    transaction,
    translated,
)
from hnetkit.registry.files import Files
from hnetkit.registry.jobs import Jobs
from hnetkit.registry.links import Links
from hnetkit.registry.networks import Networks
from hnetkit.registry.subscriptions import Subscriptions
from hnetkit.registry.trainings import Trainings


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
            for fault in (*json_columns.faults(self._db), *self.catalogue.faults()):
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
