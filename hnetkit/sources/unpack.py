"""The model files inside a zip that a site serves: each read as a stream, none under the name that the zip gives it."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from hnetkit.errors import DamagedFile, UnsafeFile
from hnetkit.formats.reading import MAX_FILE
from hnetkit.sources.names import SUFFIXES, split_name

MOST_MEMBERS = 1000
MOST_RATIO = 200  # of unpacked to packed size: weights hardly shrink
_CHUNK = 1 << 20  # bytes
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)  # what zipfile raises for what is in a file


def holds_models(path: Path) -> bool:
    """Whether a file is a zip with model files in it, under whatever name a site serves it."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(map(_is_model, file.infolist()))
    except (*_BROKEN, ValueError, OSError):
        return False


def unpacked(archive: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields (name in the zip, file) of each model file inside, one at a time; `folder` is made, and emptied first.

    Raises:
        UnsafeFile: more members, or larger ones, than a library of networks has.
        DamagedFile: the zip contradicts itself.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as file:
            for number, member in enumerate(_members(file, archive)):
                target = folder / f"{number}{split_name(member.filename)[1]}"
                _extract(file, member, target)
                yield member.filename, target
    except _BROKEN as error:
        raise DamagedFile(f"{archive}: a damaged zip ({error})", hint="get the file again from its source") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _members(file: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    infos = file.infolist()
    if len(infos) > MOST_MEMBERS:
        raise UnsafeFile(f"{archive}: a zip of {len(infos)} members")
    return [info for info in infos if _is_model(info)]


def _is_model(info: zipfile.ZipInfo) -> bool:
    name = info.filename.replace("\\", "/").rsplit("/", 1)[-1]
    suffix = Path(f"x{name}").suffix.lower()
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    return not info.is_dir() and not is_link and suffix in SUFFIXES - {".zip"} and not name.startswith("._")


def _extract(file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    if member.file_size > MAX_FILE or member.file_size > MOST_RATIO * max(member.compress_size, 1 << 10):
        raise UnsafeFile(f"{file.filename}: {member.filename} claims {member.file_size} bytes")
    left = member.file_size
    with file.open(member) as source, open(target, "wb") as out:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise UnsafeFile(f"{file.filename}: {member.filename} is larger than it claims")
            out.write(chunk)
