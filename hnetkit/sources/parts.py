"""What has come of a file so far: `.hnetkit-<key>.part` beside its target, and a note of what it is a part of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from hnetkit.errors import NetworkFailed
from hnetkit.files import new_file, try_lock
from hnetkit.formats.reading import MAX_FILE
from hnetkit.limits import read_json

_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """Where bytes came from: bytes of another origin are never put behind them."""

    key: str
    sha256: str | None
    host: str | None = None
    etag: str | None = None
    total: int | None = None


@contextlib.contextmanager
def held(folder: Path, key: str, what: str) -> Iterator[None]:
    """One process at a time makes a file: two with a registry each would write into one part.

    Args:
        folder: of the target.
        key: of the job.
        what: the file, in words for messages.

    Raises:
        NetworkFailed: another process is at it.
    """
    path = _path(folder, key).with_suffix(".lock")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink():
        path.unlink()
    handle = os.open(path, flags, 0o666)
    try:
        # one that was removed since it was opened keeps nobody out
        if not try_lock(handle) or os.fstat(handle).st_nlink == 0:
            hint = "run the same command again when it ended"
            raise NetworkFailed(f"{what}: another hnetkit fetches it into this folder", hint=hint)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(handle)


def _path(folder: Path, key: str) -> Path:
    return folder / f".hnetkit-{hashlib.sha256(key.encode()).hexdigest()[:16]}.part"


class Part:
    """An unfinished file, with the hash of what is there.

    Args:
        folder: of the target.
        key: of the job.
        sha256: that the whole will have; None where nobody says.
    """

    def __init__(self, folder: Path, key: str, sha256: str | None) -> None:
        self.path = _path(folder, key)
        self._note = folder / f"{self.path.name}.json"
        self.origin = Origin(key, sha256)
        self.size = 0
        self._digest = hashlib.sha256()
        self._take_up()

    def _take_up(self) -> None:
        """Goes on with what an earlier run left of the same file; anything else is removed."""
        found = self._read_note()
        # without a hash nothing would tell whether it is that of the file, and not somebody else's
        has_hash = self.origin.sha256 is not None
        fits = found is not None and (found.key, found.sha256) == (self.origin.key, self.origin.sha256)
        if found is None or not fits or not has_hash or not self._is_ours():
            self.discard()
            return
        self.origin = found
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            while chunk := file.read(_CHUNK):
                self._digest.update(chunk)
                self.size += len(chunk)

    def _is_ours(self) -> bool:
        """Whether it is a file of its own, or not there: what is written to a link goes elsewhere, and a pipe waits.

        Nor is one that is larger than any network, which would take long to read.
        """
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return True
        return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size <= MAX_FILE

    def _read_note(self) -> Origin | None:
        try:
            return Origin(**read_json(self._note))
        except (OSError, ValueError, TypeError):
            return None

    def begin(self, *, host: str | None, etag: str | None, total: int | None) -> None:
        """Notes where the bytes come from; called before the first of an answer is appended."""
        self.origin = Origin(self.origin.key, self.origin.sha256, host, etag, total)
        with new_file(self._note, overwrite=True) as file:  # a half-written one would cost all that came
            file.write(json.dumps(asdict(self.origin)).encode())

    def open(self) -> BinaryIO:
        """Returns the file, to append to it by `append`."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        return open(os.open(self.path, flags, 0o666), "ab")

    def append(self, file: BinaryIO, chunk: bytes) -> None:
        file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    @property
    def sha256(self) -> str:
        """Of what is there, 64 hex digits."""
        return self._digest.hexdigest()

    def restart(self) -> None:
        """Throws away the bytes: what comes next begins at the beginning."""
        self.size, self._digest = 0, hashlib.sha256()
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.path, 0)

    def flush(self) -> None:
        """Returns when all of it is on the disk."""
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Removes it."""
        self.size, self._digest = 0, hashlib.sha256()
        for path in (self.path, self._note):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
