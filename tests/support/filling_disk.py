"""A disk that fills up inside a write, or a process that dies there; and a real one of which few pages are left.

`support.killed` does the same at changes of names. Python's own files are written through `FillingDisk`; SQLite writes
past Python, so that a disk which is really small shows what it does.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

End = Literal["full", "killed"]
KILLED = 9
_open, _fsync = io.open, os.fsync


class FillingDisk:
    """What is written below a folder, point by point: each raw write, flush to the disk and closing of a file.

    At the n-th point half of a write reaches the disk. Then either the disk is full, and stays so, or the process ends.

    Args:
        folder: that the disk is mounted at.
        number: of the point, from 1; 0 for none.
        end: what happens there.

    Attributes:
        points: what was done so far.
    """

    def __init__(self, folder: Path, number: int = 0, end: End = "full") -> None:
        self.folder, self.number, self.end = folder, number, end
        self.points: list[str] = []

    def point(self, kind: str) -> bool:
        """Counts a point; returns whether it fails."""
        self.points.append(kind)
        if not self.number or len(self.points) < self.number:
            return False
        return len(self.points) == self.number or kind != "close"

    def fail(self) -> None:
        if self.end == "killed":
            os._exit(KILLED)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def mounted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[FillingDisk]:
        """The disk, while the block lasts."""
        with monkeypatch.context() as patched:
            patched.setattr(builtins, "open", self._opened)
            patched.setattr(io, "open", self._opened)
            patched.setattr(os, "fsync", self._flushed)
            yield self

    def _flushed(self, handle: Any) -> None:
        if self.point("fsync"):
            self.fail()
        _fsync(handle)

    def _opened(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wxa+") or not (isinstance(file, int) or self._is_here(file)):
            return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.disk = self
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def _is_here(self, file: Any) -> bool:
        return Path(os.path.abspath(os.fsdecode(file))).is_relative_to(self.folder)


class _Raw(io.FileIO):
    """A file of a disk that fills up."""

    disk: FillingDisk

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        if self.disk.point("write"):
            if len(self.disk.points) == self.disk.number:
                super().write(bytes(data)[: len(data) // 2])
            self.disk.fail()
        return super().write(data)

    def close(self) -> None:
        fails = not self.closed and self.disk.point("close")
        super().close()
        if fails:
            self.disk.fail()


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own at a folder; skips the test where it cannot be mounted."""
    folder.mkdir(exist_ok=True)
    if shutil.which("mount") is None or not mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        pytest.skip("a full disk is tried on a small one, and mounting that takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def pages_left(disk: Path, count: int) -> Iterator[None]:
    """Leaves so many pages of a disk while the block lasts."""
    ballast = disk / "ballast"
    with _open(ballast, "wb") as file:
        status = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, (status.f_bavail - count) * status.f_frsize)
    try:
        yield
    finally:
        ballast.unlink()
