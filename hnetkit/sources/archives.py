"""Extract the model files of a zip: each as a stream, none under the name that the zip gives it.

One member at a time is on the disk. A faulty member is reported by itself, and the others are still read.
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
from hnetkit.files import MODEL_SUFFIXES
from hnetkit.formats.reading import MAX_FILE
from hnetkit.text import size_text

MOST_MEMBERS = 1000
MOST_DIRECTORY = 4 << 20
"""Bytes of a zip's directory, which is read as a whole: about forty per member."""
MOST_RATIO = 200
"""Uncompressed to compressed size, of each member and of all together: weights hardly compress."""
MOST_UNPACKED = MAX_FILE
"""Uncompressed bytes of all members of one zip."""
_CHUNK = 1 << 20  # bytes
_MARGIN = 1.05  # of free space


def holds_models(path: Path) -> bool:
    """Whether a file is a zip with model files in it, whatever its name.

    Raises:
        UnsafeFile: it has more members than any library of networks.
    """
    try:
        with _open_zip(path) as file:
            return any(_is_model(info) or _is_nested(info) for info in file.infolist())
    except DamagedFile:
        return False


def extract_models(archive: Path, folder: Path) -> Iterator[tuple[str, Path | HnetkitError]]:
    """Yields (name in the zip, extracted file or error) for each model file inside.

    Args:
        archive: the zip.
        folder: for the extracted files; emptied first. Each file is removed when the next one is requested.

    Raises:
        UnsafeFile: more or larger members than any library of networks.
        DamagedFile: the zip contradicts itself.
        DiskFull: there is no room for a member.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if folder.is_symlink():  # rmtree leaves a link in place
        folder.unlink()
    folder.mkdir()
    size = os.path.getsize(archive)
    try:
        with _open_zip(archive) as file:
            for number, member in enumerate(_members(file, archive)):
                if _is_nested(member):
                    hint = "unpack it yourself, then: hnetkit scan FOLDER"
                    yield member.filename, UnsafeFile("an archive inside an archive is not opened", hint=hint)
                    continue
                if not 0 <= member.header_offset < size:  # seeking there would fail as an error of the disk
                    yield member.filename, DamagedFile("lies outside the zip")
                    continue
                target = folder / f"{number}.unexamined"  # no program loads it if it is left behind by a kill
                yield member.filename, _extract(file, member, target)
                target.unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Archive(io.FileIO):
    """A file that refuses single reads larger than a directory may be: zipfile reads it whole before counting."""

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        size = left if size is None or size < 0 else min(size, left)
        if size > MOST_DIRECTORY:
            raise UnsafeFile(f"{os.fspath(self.name)}: a zip with a directory of {size} bytes")
        return super().read(size)


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    with _Archive(path) as data:
        try:
            file = zipfile.ZipFile(data)
        except Exception as error:
            raise _zip_error(error, f"{path}: a damaged zip") from error
        with file:
            if len(file.infolist()) > MOST_MEMBERS:
                raise UnsafeFile(f"{path}: a zip of {len(file.infolist())} members")
            yield file


def _zip_error(error: Exception, what: str) -> HnetkitError:
    """Turns any exception of zipfile or a decompressor into our error."""
    if isinstance(error, HnetkitError | MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return failure_of(error, what)  # bz2 raises OSError without a number for damaged data
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return DamagedFile(f"{what} ({detail[:200]})")


def _members(file: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    infos = [info for info in file.infolist() if _is_model(info) or _is_nested(info)]
    size, packed = os.path.getsize(archive), sum(info.compress_size for info in infos)
    claimed = sum(info.file_size for info in infos if not (_is_nested(info) or _claims_too_much(info)))
    if packed > size:
        raise UnsafeFile(f"{archive}: a zip with overlapping members: {packed} bytes in {size}")
    if claimed > min(MOST_UNPACKED, MOST_RATIO * max(size, 1 << 10)):
        raise UnsafeFile(f"{archive}: a zip of {size} bytes whose members claim {claimed}")
    return infos


def _claims_too_much(info: zipfile.ZipInfo) -> bool:
    """Whether the stated size of a member is refused, before anything is extracted."""
    return info.file_size > MAX_FILE or info.file_size > MOST_RATIO * max(info.compress_size, 1 << 10)


def _is_model(info: zipfile.ZipInfo) -> bool:
    return _suffix(info) in MODEL_SUFFIXES


def _is_nested(info: zipfile.ZipInfo) -> bool:
    return _suffix(info) in (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz")


def _suffix(info: zipfile.ZipInfo) -> str:
    """Returns the suffix of a regular member; empty for folders, links and files that systems add."""
    name = info.filename.replace("\\", "/").rsplit("/", 1)[-1].strip()
    if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16) or name.startswith("._"):
        return ""
    return Path(f"x{name}").suffix.lower()


def _extract(file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> Path | HnetkitError:
    """Returns the extracted file, or what is wrong with the member.

    Raises:
        DiskFull, OSError: the fault is not in the zip.
    """
    if _claims_too_much(member):
        return UnsafeFile(f"claims {member.file_size} bytes in {member.compress_size}")
    if member.file_size * _MARGIN > shutil.disk_usage(target.parent).free:
        raise DiskFull(f"{target.parent.parent}: no room to unpack {size_text(member.file_size)}", hint="make room")
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
            failure = _zip_error(error, "damaged")
            if isinstance(error, OSError) and error.errno is not None:
                raise failure from error
            return failure
    return target
