"""Which processes are at work on one library: a lock file for each, which the system lets go of when it dies."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout


class Worker:
    """This process, for as long as the block runs.

    Args:
        folder: where the lock files are.

    Attributes:
        name: what claimed jobs carry.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, uuid.uuid4().hex
        self._lock = FileLock(self._file(self.name))

    def __enter__(self) -> Worker:
        self._lock.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()
        self._remove(self.name)

    def is_dead(self, name: str) -> bool:
        """Whether the process that carried this name is not there any more."""
        if name == self.name:
            return False
        lock = FileLock(self._file(name))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        self._remove(name)
        return True

    def _file(self, name: str) -> str:
        return os.fspath(self.folder / f"{name}.lock")

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._file(name))
