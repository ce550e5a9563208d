"""The trash of a folder of the library: removals, each a folder with the files and a journal of all that was known.

A removal is in `.hnetkit-trash` of the root that its files are under, and so on the same disk: a file goes there, and
comes back, by a change of its name alone. Its journal is on disk before the first file moves. What is where is never
read from it: each file is at its place or in the trash, and the disk is asked. Names in the trash have a suffix that no
program lists. A journal may come from a stranger's archive: it can name nothing outside its root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeAlias

from hnetkit.errors import HnetkitError, OutputExists, failure_of
from hnetkit.files import TEMPORARY, is_absent, is_folder_at, is_there, new_file, publish, stat_at, sync_folder
from hnetkit.library.placing import is_same_bytes
from hnetkit.limits import read_json
from hnetkit.paths import is_state
from hnetkit.text import argument, shorten

FOLDER = ".hnetkit-trash"
JOURNAL = "journal.json"
_SUFFIX = ".trash"
_KIND, _VERSION = "hnetkit removal", 1
_MOST = 32 << 20  # bytes of a journal
_STAMP = "%Y%m%dT%H%M%S.%f"  # sorts by time
_SHOWN = 40  # characters of a file's name in the trash


@dataclass(frozen=True, slots=True)
class TrashedFile:
    """One file of a removal.

    Attributes:
        path: its place, below the root, with ``/``.
        stored: its name in the folder of the removal.
        size_bytes, mtime_ns: of a model file when it was removed.
        sha256: of a model file; None if it is not known.
        first_seen: since when the library knew a model file, ISO 8601.
        of: the `path` of the model file that it is a sidecar of; None for a model file.
    """

    path: str
    stored: str
    size_bytes: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None
    first_seen: str | None = None
    of: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One removal: the files of one network under one root.

    Attributes:
        root: the folder of the library.
        folder: of the removal, in the root's trash.
        batch: the same for all that one command removed; later ones sort after earlier ones.
        name: of the network, or of a file that holds none.
        content_hash: of the network; None without one.
        files: model files, each before its sidecars.
        words: the network's tags, note, aliases and training.
        links: what led to the files in other programs' folders: path, folder and layout of each.
        installs: records of the files that were fetched.
        is_done: whether the removal came to its end.
    """

    root: Path
    folder: Path
    batch: str
    name: str
    content_hash: str | None
    files: tuple[TrashedFile, ...]
    words: Mapping[str, Any] = field(default_factory=dict)
    links: tuple[Mapping[str, str], ...] = ()
    installs: tuple[Mapping[str, Any], ...] = ()
    is_done: bool = False

    def place(self, file: TrashedFile) -> Path:
        return self.root.joinpath(*PurePosixPath(file.path).parts)

    def stored(self, file: TrashedFile) -> Path:
        return self.folder / file.stored

    def holds(self, file: TrashedFile) -> bool:
        """Whether a file is in the trash, and was not deleted there; one that cannot be looked at counts as there."""
        return not is_absent(self.stored(file))


def new_batch(roots: Iterable[Path]) -> str:
    """Returns the name of a command's removals, which sorts after all that are in these roots' trash.

    The clock may have been set back since the last of them, and the last one is what comes back first.
    """
    stamp = f"{datetime.now(timezone.utc):{_STAMP}}"
    last = max((name for root in roots for name in _names(root)), default="")[: len(stamp)]
    if last >= stamp:
        with contextlib.suppress(ValueError, OverflowError):  # no name of ours, or of the last of all days
            stamp = f"{datetime.strptime(last, _STAMP) + timedelta(microseconds=1):{_STAMP}}"
    return f"{stamp}-{secrets.token_hex(4)}"


def _names(root: Path) -> list[str]:
    """Names of the removals in the trash of a root; none where it cannot be listed."""
    try:
        return os.listdir(root / FOLDER)
    except OSError:
        return []


def stored_name(number: int, path: Path) -> str:
    """Returns the name of a file in the trash; `number` tells files of one removal apart."""
    return f"{number}-{path.name[:_SHOWN]}{_SUFFIX}"


def folder_for(root: Path, batch: str) -> Path:
    """Returns the folder of a new removal: one command makes as many as it removes networks."""
    return root / FOLDER / f"{batch}-{secrets.token_hex(8)}"


def begin(entry: Entry) -> None:
    """Creates the folder of a removal with its journal, and returns when both are on disk.

    Raises:
        OSError, HnetkitError: they cannot be written; nothing is left of them.
    """
    trash = entry.folder.parent
    if trash.is_symlink():
        raise OutputExists(f"{trash}: a link, and hnetkit does not write through links", hint="remove it")
    trash.mkdir(exist_ok=True)
    try:
        entry.folder.mkdir()
    except OSError:  # nothing of what may be there is this removal's
        _remove_if_empty(trash)
        raise
    try:
        write(entry)
        for folder in (trash, entry.root):
            sync_folder(folder)
    except BaseException:
        close(entry)
        raise


def write(entry: Entry) -> None:
    """Writes the journal of a removal."""
    journal = asdict(replace(entry, root=Path(), folder=Path()))
    del journal["root"], journal["folder"]
    with new_file(entry.folder / JOURNAL, overwrite=True) as file:
        # escapes keep names that are not text
        file.write(json.dumps({"kind": _KIND, "version": _VERSION} | journal, indent=1).encode("ascii"))
    sync_folder(entry.folder)


def put_in(entry: Entry, file: TrashedFile) -> None:
    """Moves a file into the trash."""
    os.rename(entry.place(file), entry.stored(file))


def is_at_place(entry: Entry, file: TrashedFile) -> bool:
    """Whether a file is at its place already; False where it can come back to it.

    Raises:
        OutputExists: another file is there.
        OSError, HnetkitError: it is in neither place, or that could not be seen.
    """
    stored, place = entry.stored(file), entry.place(file)
    if not is_there(stored):
        if is_there(place):
            return True
        raise HnetkitError(f"{place}: neither there nor in {entry.folder}: put a copy there, or delete that folder")
    if not is_inside(place.parent, entry.root) or is_state(place):
        raise OutputExists(f"{place}: not a place for files of {entry.root}")
    if not is_there(place):
        nearest = next(folder for folder in place.parents if stat_at(folder) is not None)
        if not is_folder_at(nearest):
            raise _in_the_way(entry, nearest, "a file is there by now, and no folder")
        return False
    if _is_link(stored) or _is_link(place) or not is_same_bytes(stored, place):
        raise _in_the_way(entry, place, "another file is there by now")
    return True


def _in_the_way(entry: Entry, path: Path, what: str) -> OutputExists:
    return OutputExists(f"{path}: {what}; once that has another name: hnetkit remove --undo {argument(entry.name)}")


def put_back(entry: Entry, file: TrashedFile) -> bool:
    """Moves a file to its place, unless it is there already; returns whether it moved.

    Raises:
        OSError, HnetkitError: as `is_at_place`, or it cannot be moved.
    """
    stored, place = entry.stored(file), entry.place(file)
    is_here = is_at_place(entry, file)
    if not is_there(stored):
        return False
    if not is_here:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(stored, place) if _is_link(stored) else publish(stored, place)
    sync_folder(place.parent)
    if is_there(stored):  # it has two names, or two copies
        os.unlink(stored)
    return True


def _is_link(path: Path) -> bool:
    return stat.S_ISLNK(os.lstat(path).st_mode)


def close(entry: Entry) -> None:
    """Removes the journal and the folders of a removal that has no file any more."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(entry.folder / JOURNAL)
    for folder in (entry.folder, entry.folder.parent):
        _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # there is more in it
        folder.rmdir()


def sweep(root: Path) -> None:
    """Removes what killed removals left that had not begun, or were over; nothing may be writing there."""
    with contextlib.suppress(OSError):
        for folder in (root / FOLDER).iterdir():
            if not folder.is_symlink() and folder.is_dir() and not is_there(folder / JOURNAL):
                for path in folder.glob(f".*{TEMPORARY}"):
                    path.unlink()
                _remove_if_empty(folder)
        (root / FOLDER).rmdir()


def last_removed(roots: Iterable[Path], *, digits: Collection[str], names: Collection[str]) -> str | None:
    """Returns the name of the network that was removed last of those with a hash or a name; None without one.

    Args:
        roots: in whose trashes to look.
        digits: the first ones of a hash of a network or of one of its files.
        names: of networks or files, or aliases.
    """
    last = "", ""
    for entry in (entry for root in roots for entry in entries(root) if isinstance(entry, Entry)):
        is_meant = entry.batch > last[0] and (has_hash(entry, digits) or not names_of(entry).isdisjoint(names))
        if is_meant and any(file.of is None and entry.holds(file) for file in entry.files):
            last = entry.batch, entry.name
    return last[1] or None


def names_of(entry: Entry) -> set[str]:
    """Returns what the network of a removal was called: its name, those of its files, and its aliases."""
    stems = (PurePosixPath(file.path).stem for file in entry.files if file.of is None)
    return {entry.name, *stems, *(entry.words.get("aliases") or ())}


def has_hash(entry: Entry, digits: Collection[str]) -> bool:
    """Whether the network of a removal, or a file of it, has a hash with these first digits."""
    content = entry.content_hash or ""
    hashes = (content, content.removeprefix("h1:"), *(file.sha256 for file in entry.files))
    return any(own and own.startswith(tuple(digits)) for own in hashes)


def entries(root: Path) -> Iterator[Entry | HnetkitError]:
    """Yields the removals in the trash of a root, and what cannot be read of it."""
    trash = root / FOLDER
    try:
        names = sorted(os.listdir(trash)) if not trash.is_symlink() else []
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield failure_of(error, str(trash))
        return
    for name in names:
        folder = trash / name
        try:
            yield _parse(root, folder, read_json(folder / JOURNAL, most=_MOST))
        except (FileNotFoundError, NotADirectoryError):
            if files := _without_journal(folder):
                yield HnetkitError(f"{folder} has no journal any more; move back by hand: {', '.join(files)}")
        except OSError as error:
            yield failure_of(error, str(folder / JOURNAL))
        except (ValueError, TypeError, KeyError) as error:
            yield HnetkitError(f"{folder / JOURNAL}: not a journal of hnetkit ({error})")


def _without_journal(folder: Path) -> list[str]:
    """The files of a removal whose journal is lost; none in what `sweep` takes away."""
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(_SUFFIX))
    except OSError:
        return []


def hashes_in(roots: Iterable[Path]) -> set[str]:
    """Returns the sha256 of the files in the trash of these roots, as their journals tell."""
    found = (entry.files for root in roots for entry in entries(root) if isinstance(entry, Entry))
    return {file.sha256 for files in found for file in files if file.sha256 is not None}


def _parse(root: Path, folder: Path, journal: Any) -> Entry:
    if not isinstance(journal, dict) or (journal.pop("kind", None), journal.pop("version", None)) != (_KIND, _VERSION):
        raise ValueError("another format")
    files = tuple(TrashedFile(**file) for file in journal.pop("files"))
    links, installs = tuple(journal.pop("links")), tuple(journal.pop("installs"))
    entry = Entry(root, folder, files=files, links=links, installs=installs, **journal)
    of_entry = {key: getattr(entry, key) for key in _ENTRY}
    are_whole = _has_shape(of_entry, _ENTRY) and _has_shape(entry.words, _WORDS)
    are_whole &= all(_has_shape(asdict(file), _FILE) for file in files)
    are_whole &= all(_has_shape(link, _LINK) for link in links)
    are_whole &= all(_has_shape(install, _INSTALL) for install in installs)
    if not files or not are_whole:
        raise ValueError("values of another kind")
    for file in files:
        parts = PurePosixPath(file.path).parts
        if not parts or not all(map(_is_own_part, parts)):
            raise ValueError(f"{shorten(file.path)} is not below the folder")
        if not file.stored.endswith(_SUFFIX) or not _is_own_part(file.stored):
            raise ValueError(f"{shorten(file.stored)} is not in the trash")
    return entry


_Shape: TypeAlias = Mapping[str, Callable[[Any], bool]]
"""Key -> whether it may have a value; None stands for a key that is not there."""


def _has_shape(value: Any, shape: _Shape) -> bool:
    return isinstance(value, Mapping) and all(fits(value.get(key)) for key, fits in shape.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _like(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_training(value: Any) -> bool:
    return _has_shape(value, _TRAINING) and value.keys() <= _TRAINING.keys()


def _is_own_part(text: str) -> bool:
    """Whether a text can be one part of a path, and no more: on Windows a colon or a backslash can lead elsewhere."""
    return text != ".." and PurePath(text).parts == (text,) and not PurePath(text).anchor and _can_be_a_name(text)


def _can_be_a_name(text: str) -> bool:
    """Whether a file system can have a path; JSON may hold others."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


_NUMBER = _or_none(lambda value: type(value) is int)
_SHA256, _CONTENT = (_or_none(_like(f"{prefix}[0-9a-f]{{64}}")) for prefix in ("", "h1:"))
_TIME = _or_none(_like(r"[0-9T:.+-]{1,40}"))
_TEXT_OR_NONE = _or_none(_is_text)
_ENTRY: _Shape = {"batch": _is_text, "name": _is_text, "content_hash": _CONTENT, "is_done": _is_flag}
_FILE: _Shape = {
    "path": _is_text,
    "stored": _is_text,
    "size_bytes": _NUMBER,
    "mtime_ns": _NUMBER,
    "sha256": _SHA256,
    "first_seen": _TIME,
    "of": _TEXT_OR_NONE,
}
_LINK: _Shape = {"path": _is_text, "folder": _is_text, "layout": _is_text}
_INSTALL: _Shape = {
    "path": _is_text,
    "job_key": _TEXT_OR_NONE,
    "sha256": _SHA256,
    "kind": _like("network|preview|sidecar|quarantine"),
}
_TRAINING: _Shape = {
    "recipe": lambda value: isinstance(value, dict),
    "started_from": _CONTENT,
    "model_name": _TEXT_OR_NONE,
    "model_hash": _TEXT_OR_NONE,
    "trained_at": _TIME,
}
_WORDS: _Shape = {
    "tags": _or_none(_are_texts),
    "aliases": _or_none(_are_texts),
    "note": _TEXT_OR_NONE,
    "training": _or_none(_is_training),
}


def is_inside(folder: Path, root: Path) -> bool:
    """Whether a folder is below a root, links resolved."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root))
