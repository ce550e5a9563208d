"""The walk over a folder of model files. It tells three things apart: there, not there, and could not be looked at.

Only "no such file" is an absence. A folder that may not be listed, a disk that fails, a share that does not answer say
nothing about the files there.
"""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from hnetkit.errors import HnetkitError
from hnetkit.files import is_absence, is_absent, is_model_name, mtime_of
from hnetkit.library import sidecars
from hnetkit.library.layouts import folded

# hnetkit's own: archives that are being unpacked, and networks that were removed
_OWN = re.compile(r"\.hnetkit-(?:[0-9a-f]{16}\.unpacked|trash)")
# folders that systems put onto every disk and let nobody read: no word is lost on them
_OF_THE_SYSTEM = frozenset(
    {"lost+found", "system volume information", ".trashes", ".fseventsd", ".spotlight-v100", ".documentrevisions-v100"}
)
# where file managers, network disks and sync tools (Syncthing, Resilio, Dropbox) keep what was deleted, and disks what
# was there at an earlier time: it is not in the library any more
_DELETED = re.compile(
    r"\.trash(?:es|-\d+)?|\$recycle\.bin|recycler|[#@]recycle"
    r"|\.stversions|\.sync|\.dropbox\.cache|[.#]snapshots?|\.zfs",
    re.IGNORECASE,
)
_JUNCTION = 0xA0000003  # `st_reparse_tag` of Windows' junctions: links to folders, but not symbolic links


@dataclass(frozen=True, slots=True)
class WalkedFile:
    """A model file on disk.

    Attributes:
        path: relative to the root of the walk.
        size_bytes: of the file.
        mtime_ns: as by `mtime_of`.
        sidecars: what they look like, as by `sidecars.fingerprints`; None if that was not looked at.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    sidecars: str | None = None


@dataclass(frozen=True, slots=True)
class Unseen:
    """A file or folder that could not be looked at: it, and whatever is known below it, may be there or not.

    Attributes:
        path: in full.
        reason: in the system's words.
    """

    path: Path
    reason: str

    @property
    def is_expected(self) -> bool:
        """Whether it is one of the folders that systems keep to themselves."""
        return self.path.name.lower() in _OF_THE_SYSTEM


def walk(
    root: Path,
    *,
    skip: frozenset[Path] = frozenset(),
    unfollowed: list[Path] | None = None,
    unseen: list[Unseen] | None = None,
) -> Iterator[WalkedFile]:
    """Yields the model files under a folder, in the order of their names; none if the folder does not exist.

    Args:
        root: where to begin.
        skip: folders that are never entered, because they are roots of their own.
        unfollowed: a list for the links to folders outside `root`, which are then not followed; None follows them.
        unseen: a list for what could not be looked at; None makes that an error.

    Links are followed after everything else, and each folder is entered once. A link to a file counts as a file,
    wherever it leads.

    Raises:
        HnetkitError: something could not be looked at, and there is no list for it.
    """
    visited = {_identity_or_none(folder) for folder in skip} - {_identity_or_none(root)}
    waiting, links = [root], deque[Path]()
    while waiting or links:
        is_linked = not waiting
        folder = waiting.pop() if waiting else links.popleft()
        is_foreign = is_linked and unfollowed is not None and not _is_inside(folder, root)
        try:
            identity = _identity(folder)
        except OSError as error:
            if not is_foreign:
                _note_unseen(unseen, folder, error)
                continue
        else:
            if identity is None or identity in visited:
                continue
        if is_foreign and unfollowed is not None:
            unfollowed.append(folder)
            continue
        visited.add(identity)
        listing = _listing(folder, unseen)
        for entry in listing.models:
            try:
                found = find_file(root, os.path.relpath(entry.path, root))
            except OSError as error:
                _note_unseen(unseen, Path(entry.path), error)
            else:
                if found is not None:
                    yield replace(found, sidecars=listing.sidecars.get(PurePath(entry.name).stem))
        links.extend(Path(entry.path) for entry in listing.folders if is_link(entry))
        folders = [Path(entry.path) for entry in listing.folders if not is_link(entry)]
        waiting.extend(reversed(folders))


def model_files(folder: Path, unseen: list[Unseen] | None = None) -> list[Path]:
    """Returns the model files under a folder, sorted, without following links out of it; [] if it does not exist.

    Args:
        unseen: gets what could not be looked at, except folders that systems keep to themselves.

    Raises:
        HnetkitError: a folder or file could not be looked at, and there is no list for it.
    """
    found: list[Unseen] | None = None if unseen is None else []
    files = sorted(folder / file.path for file in walk(folder, unfollowed=[], unseen=found))
    if unseen is not None and found is not None:
        unseen += [it for it in found if not it.is_expected]
    return files


def find_file(root: Path, path: str) -> WalkedFile | None:
    """Returns the file at a path below a root; None if there is no regular file.

    Raises:
        OSError: whether there is one could not be seen.
    """
    try:
        status = os.stat(root / path)
    except ValueError:  # no system can have a file of such a name
        return None
    except OSError as error:
        if is_absence(error):
            return None
        raise
    return WalkedFile(path, status.st_size, mtime_of(status)) if stat.S_ISREG(status.st_mode) else None


def root_path(folder: Path) -> Path:
    """Returns a folder's one path: without links, and spelled as the disk spells it where case makes no difference."""
    real = Path(os.path.realpath(folder))
    found = Path(real.anchor)
    for name in real.parts[1:]:
        found /= _spelled(found, name)
    return found


def _spelled(folder: Path, name: str) -> str:
    same = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == name:
                    return name
                if folded(entry.name) == folded(name) and os.path.samefile(entry.path, folder / name):
                    same.append(entry.name)
    except OSError:  # as it was typed, then
        return name
    return same[0] if len(same) == 1 else name


def names_of_files(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the paths in rows of files that are there as they were scanned, those of one file together.

    A hard link is another name of a file, and so is a symbolic link; the file itself comes before its symbolic links.
    """
    names: dict[tuple[int, int | str], list[str]] = {}
    there = (str(row["path"]) for row in rows if row["state"] == "present" and is_as_scanned(row))
    for path in sorted(there, key=os.path.islink):
        if (identity := _identity_or_none(Path(path))) is not None:
            names.setdefault(identity, []).append(path)
    return list(names.values())


def is_as_scanned(row: Mapping[str, Any]) -> bool:
    """Whether a file has the size and the time of its row, or cannot be looked at."""
    try:
        status = os.stat(row["path"])
    except ValueError:
        return False
    except OSError as error:
        return not is_absence(error)
    return (status.st_size, mtime_of(status)) == (row["size_bytes"], row["mtime_ns"])


def is_same_file(path: str, other: str) -> bool:
    """Whether two paths lead to one file."""
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def is_gone(folder: Path) -> bool:
    """Whether there is certainly no folder at a path."""
    try:
        return not stat.S_ISDIR(os.stat(folder).st_mode)
    except OSError as error:
        return is_absence(error)


def in_cloud(path: Path) -> str | None:
    """Returns what to say of a file that is not there, where macOS before 14 left its stub for iCloud, else None."""
    stub = path.with_name(f".{path.name}.icloud")
    return None if is_absent(stub) else "is in iCloud alone, and Finder downloads it"


def broken_way(root: Path, path: Path) -> Path | None:
    """Returns the folder on the way to a file that is not there whose disk may be away; None if there is none.

    It is the root where that is not there, or a link to a folder that leads nowhere.
    """
    absent = next((folder for folder in _way(root, path) if is_gone(folder)), None)
    return absent if absent is not None and (absent == root or os.path.islink(absent)) else None


def bare_way(root: Path, path: Path) -> Path | None:
    """Returns the last folder that is left of the way to a file that is not there, where it is empty, else None.

    An empty folder may be one that was cleared, or the mount point of a disk that is away.
    """
    last = next(folder for folder in reversed(_way(root, path)) if folder == root or not is_gone(folder))
    try:
        with os.scandir(last) as entries:
            return None if any(entries) else last
    except OSError:  # nothing can be said of what is in it
        return last


def _way(root: Path, path: Path) -> list[Path]:
    """The folders from a root to the one of a file below it."""
    below = path.parent.relative_to(root).parts
    return [root.joinpath(*below[:depth]) for depth in range(len(below) + 1)]


def _note_unseen(unseen: list[Unseen] | None, path: Path, error: OSError) -> None:
    found = Unseen(path, error.strerror or str(error))
    if unseen is not None:
        unseen.append(found)
    elif not found.is_expected:
        raise HnetkitError(f"{path}: {found.reason}", hint="make it readable, or move it elsewhere") from error


def _identity(folder: Path) -> tuple[int, int | str] | None:
    """What tells a folder from others, whatever its path; None if it does not exist.

    Raises:
        OSError: it could not be looked at.
    """
    try:
        status = os.stat(folder)
    except OSError as error:
        if is_absence(error):
            return None
        raise
    return status.st_dev, status.st_ino or os.path.realpath(folder)  # some file systems number no files


def _identity_or_none(folder: Path) -> tuple[int, int | str] | None:
    try:
        return _identity(folder)
    except OSError:  # a root that cannot be looked at cannot be entered from another one either
        return None


def _is_inside(folder: Path, root: Path) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root))


@dataclass(frozen=True, slots=True)
class _Listing:
    """What is in one folder, by name.

    Attributes:
        models: files that may be models.
        folders: to be entered.
        sidecars: what lies beside the models, by their stems; empty if not all of the folder could be listed.
    """

    models: list[os.DirEntry[str]]
    folders: list[os.DirEntry[str]]
    sidecars: dict[str, str]


def _listing(folder: Path, unseen: list[Unseen] | None) -> _Listing:
    models: list[os.DirEntry[str]] = []
    folders: list[os.DirEntry[str]] = []
    others: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_folder(entry):
                    folders.append(entry)
                else:
                    (models if may_be_model(entry.name) else others).append(entry)
    except OSError as error:  # what was listed before it is there
        is_whole = False
        if not is_absence(error):
            _note_unseen(unseen, folder, error)
    else:
        is_whole = True
    stems = {PurePath(entry.name).stem for entry in models}
    return _Listing(
        sorted(models, key=lambda entry: entry.name),
        sorted((entry for entry in folders if not _is_left_out(entry.name)), key=lambda entry: entry.name),
        sidecars.fingerprints(others, stems) if is_whole else {},
    )


def _is_left_out(name: str) -> bool:
    return _OWN.fullmatch(name) is not None or _DELETED.fullmatch(name) is not None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or may be one for all that can be seen."""
    try:
        return entry.is_dir()
    except OSError:
        return not may_be_model(entry.name)


def may_be_model(name: str) -> bool:
    """Whether a file of this name may be a model: some sites and systems call a torch file, which is a zip, so."""
    return is_model_name(name) or (name.lower().endswith(".zip") and not name.startswith("._"))


def is_link(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a link: a symbolic one, or one of Windows' junctions."""
    if os.name != "nt" or entry.is_symlink():
        return entry.is_symlink()
    try:
        return getattr(entry.stat(follow_symlinks=False), "st_reparse_tag", 0) == _JUNCTION
    except OSError:  # what it is will be seen when it is entered
        return False
