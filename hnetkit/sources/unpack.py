"""The model files inside a zip that a site serves: each read as a stream, none under the name that the zip gives it.

One member at a time lies on the disk, and what is wrong with one is said of that one: the others are read all the same.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from hnetkit.errors import DamagedFile, DiskFull, HnetkitError, UnsafeFile, failure_of
from hnetkit.formats.reading import MAX_FILE
from hnetkit.sources.names import SUFFIXES

MOST_MEMBERS = 1000
MOST_DIRECTORY = 4 << 20
"""Bytes of a zip's directory, which is read whole: about forty to a member."""
MOST_RATIO = 200
"""Of unpacked to packed size, of a member and of all: weights hardly shrink."""
MOST_UNPACKED = MAX_FILE
"""Bytes of all members of one zip together."""
_CHUNK = 1 << 20  # bytes
_MARGIN = 1.05  # of free space


def holds_models(path: Path) -> bool:
    """Whether a file is a zip with model files in it, under whatever name a site serves it.

    Raises:
        UnsafeFile: more members than a library of networks has.
    """
    try:
        with _opened(path) as file:
            return any(_is_model(info) or _is_nested(info) for info in file.infolist())
    except DamagedFile:
        return False


def unpacked(archive: Path, folder: Path) -> Iterator[tuple[str, Path | HnetkitError]]:
    """Yields (name in the zip, file or what is wrong with it) of each model file inside.

    A file is gone when the next one is asked for; `folder` is made, and emptied first.

    Raises:
        UnsafeFile: more members, or larger ones together, than a library of networks has.
        DamagedFile: the zip contradicts itself.
        DiskFull: no room for a member.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if folder.is_symlink():  # that is what stays there
        folder.unlink()
    folder.mkdir()
    size = os.path.getsize(archive)
    try:
        with _opened(archive) as file:
            for number, member in enumerate(_members(file, archive)):
                if _is_nested(member):
                    hint = "unpack it yourself, then: hnetkit scan FOLDER"
                    yield member.filename, UnsafeFile("an archive inside of an archive, which is not opened", hint=hint)
                    continue
                if not 0 <= member.header_offset < size:  # no disk can look there, and the disk would be blamed
                    yield member.filename, DamagedFile("lies outside of the zip")
                    continue
                target = folder / f"{number}.unexamined"  # a name that no program loads: one that is killed leaves it
                yield member.filename, _extracted(file, member, target)
                target.unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Archive(io.FileIO):
    """A file of which no more is read at once than a directory may have: zipfile reads that whole before it counts."""

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        size = left if size is None or size < 0 else min(size, left)
        if size > MOST_DIRECTORY:
            raise UnsafeFile(f"{os.fspath(self.name)}: a zip with a list of members of {size} bytes")
        return super().read(size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with _Archive(path) as data:
        try:
            file = zipfile.ZipFile(data)
        except Exception as error:
            raise _failure(error, f"{path}: a damaged zip") from error
        with file:
            if len(file.infolist()) > MOST_MEMBERS:
                raise UnsafeFile(f"{path}: a zip of {len(file.infolist())} members")
            yield file


def _failure(error: Exception, what: str) -> HnetkitError:
    """What any exception of zipfile, and of what it unpacks with, says of a file."""
    if isinstance(error, HnetkitError | MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return failure_of(error, what)  # bz2 says by an OSError without a number that its data is damaged
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return DamagedFile(f"{what} ({said[:200]})", hint="get the file again from its source")


def _members(file: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    infos = [info for info in file.infolist() if _is_model(info) or _is_nested(info)]
    size, packed = os.path.getsize(archive), sum(info.compress_size for info in infos)
    claimed = sum(info.file_size for info in infos if not (_is_nested(info) or _claims_too_much(info)))
    if packed > size:
        raise UnsafeFile(f"{archive}: a zip whose members lie on each other: {packed} bytes in {size}")
    if claimed > min(MOST_UNPACKED, MOST_RATIO * max(size, 1 << 10)):
        raise UnsafeFile(f"{archive}: a zip of {size} bytes whose members claim {claimed}")
    return infos


def _claims_too_much(info: zipfile.ZipInfo) -> bool:
    """Whether a member is refused for what it says of its own size, before anything of it is unpacked."""
    return info.file_size > MAX_FILE or info.file_size > MOST_RATIO * max(info.compress_size, 1 << 10)


def _is_model(info: zipfile.ZipInfo) -> bool:
    return _suffix(info) in SUFFIXES - {".zip"}


def _is_nested(info: zipfile.ZipInfo) -> bool:
    return _suffix(info) in (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz")


def _suffix(info: zipfile.ZipInfo) -> str:
    """The suffix of a member that is a file of somebody's; empty for folders, links and what systems add."""
    name = info.filename.replace("\\", "/").rsplit("/", 1)[-1].strip()
    if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16) or name.startswith("._"):
        return ""
    return Path(f"x{name}").suffix.lower()


def _extracted(file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> Path | HnetkitError:
    """Returns the file, or what is wrong with the member.

    Raises:
        DiskFull, OSError: what is wrong is not in the zip.
    """
    if _claims_too_much(member):
        return UnsafeFile(f"claims {member.file_size} bytes in {member.compress_size}")
    if member.file_size * _MARGIN > shutil.disk_usage(target.parent).free:
        raise DiskFull(f"{target.parent.parent}: no room to unpack {member.file_size / 1e6:.0f} MB", hint="make room")
    left = member.file_size
    with open(target, "wb") as out:
        try:
            with file.open(member) as source:
                while chunk := source.read(_CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        return UnsafeFile("is larger than it claims")
                    out.write(chunk)
        except Exception as error:
            failure = _failure(error, "damaged")
            if isinstance(error, OSError) and error.errno is not None:
                raise failure from error
            return failure
    return target
