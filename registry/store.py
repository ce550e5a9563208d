"""The registry: one SQLite file with what is known of files and networks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from hnetkit.registry.connection import open_database, transaction, translated
from hnetkit.registry.files import Files
from hnetkit.registry.networks import Networks


class Registry:
    """Opens the registry at `path`, making it where it does not exist.

    Attributes:
        files: roots and the files under them.
        networks: contents, with their tags, notes, aliases, and the search.

    Raises:
        RegistryError: damaged, locked, not writable, or written by a newer hnetkit.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._db = open_database(self.path)
        self.files = Files(self._db)
        self.networks = Networks(self._db)

    @contextmanager
    def write(self) -> Iterator[None]:
        """One change, whole or not at all; every change is made in such a block."""
        with translated(self.path), transaction(self._db):
            yield

    def check(self) -> str:
        """Returns how much is in the registry, in words.

        Raises:
            RegistryError: the database is damaged.
        """
        with translated(self.path):
            self._db.conn.execute("PRAGMA quick_check").fetchone()
            counts = [self._db.conn.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("networks", "files")]
        return f"{counts[0]} networks in {counts[1]} files"

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
