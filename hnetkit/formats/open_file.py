"""One open file, read by position. The path is resolved only once."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import weakref
from collections.abc import Callable
from types import TracebackType

from hnetkit.errors import DamagedFile, FileChanged, FileRefused, NotFound
from hnetkit.files import READ_FLAGS
from hnetkit.hashes import sha256_of
from hnetkit.limits import Budget
from hnetkit.text import argument, printable

MAX_STEPS = 600_000
"""Steps that reading the structure of one file may take: under a second. A large checkpoint takes 130,000."""

_HOLES = 16  # a file that claims this many times its size on disk consists of little but holes


class OpenFile:
    """A regular file held open for reading by position (a `hnetkit.network.ByteSource`).

    Attributes:
        path: as given, as text.
        size: in bytes, when the file was opened.
        budget: memory and steps that reading its structure may still take; all of its readers share it.
        content: identifies the content through any link to it; None where the file system numbers no files.

    Args:
        before_read: called before every read; an exception from it ends the reading of a large file.

    Raises:
        NotFound: the path does not exist, or is a folder.
        FileRefused: it is a device, a pipe or a socket, or must not be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, before_read: Callable[[], None] | None = None) -> None:
        self.path = os.fsdecode(path)
        self._before_read = before_read
        self._lock = threading.Lock()
        self._handle = _open(self.path)
        self._closing = weakref.finalize(self, os.close, self._handle)
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            if stat.S_ISDIR(status.st_mode):
                raise NotFound(
                    f"{self.path}: a folder, not a file", hint=f"hnetkit scan {argument(self.path, is_path=True)}"
                )
            raise FileRefused(f"{self.path}: not a regular file")
        self.size = status.st_size
        self.budget = Budget(work=MAX_STEPS, path=self.path)
        self.content = _content(status)
        self._identity = _identity(status)

    def read_at(self, offset: int, size: int) -> bytes:
        """Returns exactly `size` bytes at `offset`.

        Raises:
            FileChanged: the file changed or shrank since it was opened.
            DamagedFile: the range is not within the file.
        """
        if self._before_read is not None:
            self._before_read()
        if offset < 0 or size < 0 or offset + size > self.size:
            raise DamagedFile(f"{self.path}: cut short: {size} bytes at {offset} are not in {self.size} bytes")
        data = self._read(offset, size)
        self.check_unchanged()
        if len(data) != size:
            raise FileChanged(f"{self.path}: the file shrank while it was read", hint="run the command again")
        return data

    def check_unchanged(self) -> None:
        """Raises FileChanged if size or modification time differ from those at opening."""
        if _identity(os.fstat(self._handle)) != self._identity:
            raise FileChanged(f"{self.path}: the file changed while it was read", hint="run the command again")

    def refusal(self, error: FileRefused) -> FileRefused:
        """Returns a refusal whose message begins with this file's path: `error` itself, or one of its kind."""
        if str(error).startswith(printable(self.path)):
            return error
        return type(error)(f"{self.path}: {error}", hint=error.command_hint)

    def bytes_on_disk(self) -> int:
        """Returns how many bytes a file with little but holes takes on disk; for any other file its size."""
        status = os.fstat(self._handle)
        stored = 512 * getattr(status, "st_blocks", self.size)
        if stored * _HOLES >= self.size or not hasattr(os, "SEEK_HOLE"):
            return self.size
        with self._lock, contextlib.suppress(OSError):  # some file systems do not count blocks, and know no holes
            if os.lseek(self._handle, 0, os.SEEK_HOLE) < self.size:
                return stored
        return self.size

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size:
            part = self._read_some(offset, size)
            if not part:
                break
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_some(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._handle, size, offset)
        with self._lock:
            os.lseek(self._handle, offset, os.SEEK_SET)
            return os.read(self._handle, size)

    def close(self) -> None:
        """Closes the file; closing twice is harmless."""
        self._closing()
        self._handle = -1  # the number may soon be another file's

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def sha256_at(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a whole file."""
    with OpenFile(path) as file:
        return sha256_of(file)


def _open(path: str) -> int:
    try:
        return os.open(path, READ_FLAGS)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise NotFound(f"{path}: no such file") from error
    except OSError as error:
        if os.path.isdir(path):
            raise NotFound(
                f"{path}: a folder, not a file", hint=f"hnetkit scan {argument(path, is_path=True)}"
            ) from error
        raise FileRefused(f"{path}: cannot be opened: {error.strerror}") from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _content(status: os.stat_result) -> tuple[int, ...] | None:
    if status.st_ino == 0:  # some file systems number no files
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
