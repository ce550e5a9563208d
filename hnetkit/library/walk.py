"""Finding model files under a folder: every folder once, whatever links lead to it."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = frozenset({".pt", ".ckpt", ".bin", ".pth", ".safetensors", ".sft"})
_UNPACKING = re.compile(r"\.hnetkit-[0-9a-f]{16}\.unpacked")  # what lies there is gone in a moment
_HALF = 2**63
_JUNCTION = 0xA0000003  # what `st_reparse_tag` says of Windows' links to folders, which are no symbolic links


@dataclass(frozen=True, slots=True)
class Found:
    """A model file as it stands on disk; `path` is below the root that was walked, `mtime_ns` is `mtime_of` it."""

    path: str
    size_bytes: int
    mtime_ns: int


def walk(root: Path, *, skip: frozenset[Path] = frozenset(), unfollowed: list[Path] | None = None) -> Iterator[Found]:
    """Yields the model files under a folder, in the order of their names.

    Args:
        root: where to begin; must exist.
        skip: folders that are not entered, whatever leads to them (roots of their own).
        unfollowed: gets the links to folders outside of `root`, which are not followed then; None follows them.

    Links are followed after all that is there without them, each folder is entered once; folders that cannot be
    read are passed over. A link to a file is that file, wherever it leads.
    """
    visited = {_identity(folder) for folder in skip} - {_identity(root)}
    waiting, links = [root], deque[Path]()
    while waiting or links:
        is_link = not waiting
        folder = waiting.pop() if waiting else links.popleft()
        identity = _identity(folder)
        if identity is None or identity in visited:
            continue
        if is_link and unfollowed is not None and not _is_inside(folder, root):
            unfollowed.append(folder)
            continue
        visited.add(identity)
        folders: list[Path] = []
        for entry, is_folder in _entries(folder):
            if is_folder:
                (links if _is_link(entry) else folders).append(Path(entry.path))
            elif found := find(root, os.path.relpath(entry.path, root)):
                yield found
        waiting.extend(reversed(folders))


def model_files(folder: Path) -> list[Path]:
    """Returns the model files under a folder, sorted; no link leads out of it. It may be absent, and is empty then."""
    return sorted(folder / found.path for found in walk(folder, unfollowed=[]))


def find(root: Path, path: str) -> Found | None:
    """Returns the file at a path below a root as it stands on disk; None where no regular file is there."""
    try:
        status = os.stat(root / path)
    except (OSError, ValueError):
        return None
    return Found(path, status.st_size, mtime_of(status)) if stat.S_ISREG(status.st_mode) else None


def mtime_of(status: os.stat_result) -> int:
    """Returns the modification time in nanoseconds, as 64 bits hold it: after the year 2262 it begins again.

    So a file whose time is nonsense can be stored, and is noticed when it changes, like any other.
    """
    return (status.st_mtime_ns + _HALF) % (2 * _HALF) - _HALF


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_inside(folder: Path, root: Path) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root))


def _entries(folder: Path) -> list[tuple[os.DirEntry[str], bool]]:
    """The folders and models of a folder, and which of them are folders."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_folder = _is_folder(entry)
                if is_model(entry.name) or (is_folder and not _UNPACKING.fullmatch(entry.name)):
                    found.append((entry, is_folder))
    except OSError:
        return []
    return sorted(found, key=lambda item: item[0].name)


def is_model(name: str) -> bool:
    """Whether a file may hold a model, by its name."""
    # macOS leaves `._name.pt` beside `name.pt` on foreign disks: notes of the Finder, not models
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("._")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_link(entry: os.DirEntry[str]) -> bool:
    if os.name != "nt" or entry.is_symlink():
        return entry.is_symlink()
    return getattr(entry.stat(follow_symlinks=False), "st_reparse_tag", 0) == _JUNCTION
