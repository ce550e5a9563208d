"""Extract the model files of a zip, and what lies beside them: none under the path that the zip gives it.

One model at a time is on the disk. A faulty member is reported by itself, and the others are still read.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hnetkit.errors import DamagedFile, DiskFull, HnetkitError, UnsafeFile, failure_of
from hnetkit.files import MODEL_SUFFIXES
from hnetkit.formats import archive_kinds
from hnetkit.formats.archive_kinds import archive_kind
from hnetkit.formats.reading import MAX_FILE
from hnetkit.formats.torch_zip import member_name
from hnetkit.library import sidecars
from hnetkit.library.layouts import folded
from hnetkit.text import size_text

SUFFIXES = (".zip", *archive_kinds.SUFFIXES)
"""What the names of archives end with, in lower case."""

MOST_MEMBERS = 1000
MOST_DIRECTORY = 4 << 20
"""Bytes of a zip's directory, which is read as a whole: about forty per member."""
MOST_RATIO = 200
"""Uncompressed to compressed size, of each member and of all together: weights hardly compress."""
MOST_UNPACKED = MAX_FILE
"""Uncompressed bytes of all members of one zip."""
_CHUNK = 1 << 20  # bytes
_UTF8 = 0x800  # in a member's flags: its name is UTF-8
_MARGIN = 1.05  # of free space
_OF_THE_SYSTEM = frozenset({".ds_store", "thumbs.db", "desktop.ini"})


def archive_suffix(path: Path) -> str | None:
    """Returns the suffix of an archive, by its content; None for anything else, and for torch's own zips."""
    try:
        if holds_models(path):
            return ".zip"
    except UnsafeFile:
        return ".zip"
    with open(path, "rb") as file:
        kind = archive_kind(file.read(4096))
    return None if kind is None else kind.suffix


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
    """Yields (name in the zip, extracted file or error) for each model file and archive inside.

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
                    yield _name(member), UnsafeFile("an archive inside an archive is not opened", hint=hint)
                    continue
                if not 0 <= member.header_offset < size:  # seeking there would fail as an error of the disk
                    yield _name(member), DamagedFile("lies outside the zip")
                    continue
                target = folder / f"{number}.unexamined"  # no program loads it if it is left behind by a kill
                yield _name(member), _extract(file, member, target)
                target.unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class OtherMembers:
    """The files in an open zip that are neither models nor archives; what systems add is not among them.

    Args:
        file: the zip.
        size: of the zip, in bytes.

    Attributes:
        names: in the zip; a member is known by its place in this list, since two may have one name.
    """

    def __init__(self, file: zipfile.ZipFile, size: int) -> None:
        self._file, self._size = file, size
        self._members = [info for info in file.infolist() if _is_other(info)]
        self.names = [_name(info) for info in self._members]

    def read(self, number: int, *, most: int) -> bytes:
        """Returns the content of a member.

        Args:
            number: its place in `names`.
            most: bytes that it may have.

        Raises:
            DamagedFile, UnsafeFile: it cannot be unpacked, or is larger.
        """
        member = self._members[number]
        if not 0 <= member.header_offset < self._size:
            raise DamagedFile("lies outside the zip")
        if member.file_size > most or _claims_too_much(member):
            raise UnsafeFile(f"larger than {size_text(most)}, or claims to be")
        try:
            with self._file.open(member) as source:
                data = source.read(most + 1)
        except Exception as error:
            raise _zip_error(error, "damaged") from error
        if len(data) > most:
            raise UnsafeFile(f"larger than {size_text(most)}")
        return data


@contextlib.contextmanager
def open_others(archive: Path) -> Iterator[OtherMembers]:
    """Opens a zip for the files in it that are neither models nor archives.

    Raises:
        As `extract_models`.
    """
    with _open_zip(archive) as file:
        yield OtherMembers(file, os.path.getsize(archive))


def belongings(names: Sequence[str], models: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yields (place in `names`, place in `models`, suffix) for each file of an archive that is a sidecar of a model.

    It lies beside the model and has its stem.
    """
    by_stem: dict[str, list[int]] = {}
    for model, name in enumerate(models):
        by_stem.setdefault(folded(os.path.splitext(_path(name))[0]), []).append(model)
    for number, name in enumerate(names):
        path = folded(_path(name))
        for suffix in filter(path.endswith, sidecars.SUFFIXES):
            yield from ((number, model, suffix) for model in by_stem.get(path.removesuffix(suffix), ()))


def only_picture(names: Sequence[str]) -> tuple[int, str] | None:
    """Returns the place and the suffix of the one picture of an archive; None if it has none, or several."""
    suffixes = {n: os.path.splitext(folded(name))[1] for n, name in enumerate(names)}
    pictures = [(n, suffix) for n, suffix in suffixes.items() if suffix in sidecars.PREVIEW_SUFFIXES]
    return pictures[0] if len(pictures) == 1 else None


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
    return _is_file(info) and _suffix(info) in MODEL_SUFFIXES


def _is_nested(info: zipfile.ZipInfo) -> bool:
    return _is_file(info) and _suffix(info) in SUFFIXES


def _is_other(info: zipfile.ZipInfo) -> bool:
    return _is_file(info) and not (_is_model(info) or _is_nested(info))


def _is_file(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a file that somebody put there: no folder, no link, and none that systems add."""
    name = _last(info).lower()  # a folder has none
    is_added = name.startswith("._") or name in _OF_THE_SYSTEM
    return bool(name) and not (is_added or stat.S_ISLNK(info.external_attr >> 16))


def _suffix(info: zipfile.ZipInfo) -> str:
    return Path(f"x{_last(info)}").suffix.lower()


def _last(info: zipfile.ZipInfo) -> str:
    return _path(_name(info)).rsplit("/", 1)[-1].strip()


def _path(name: str) -> str:
    return name.replace("\\", "/")


def _name(info: zipfile.ZipInfo) -> str:
    """The name of a member as its packer meant it. zipfile takes every name for cp437 that is not flagged as UTF-8."""
    is_utf8 = bool(info.flag_bits & _UTF8)
    name = info.orig_filename
    return (name if is_utf8 else member_name(name.encode("cp437"), 0, info.extra)).partition("\0")[0]


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
