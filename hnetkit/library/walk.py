"""Finding model files under a folder: every folder once, whatever links lead to it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = frozenset({".pt", ".ckpt", ".bin", ".pth", ".safetensors", ".sft"})


@dataclass(frozen=True, slots=True)
class Found:
    """A model file as it stands on disk; `path` is below the root that was walked."""

    path: str
    size_bytes: int
    mtime_ns: int


def walk(root: Path, *, skip: frozenset[Path] = frozenset()) -> Iterator[Found]:
    """Yields the model files under a folder, in the order of their names.

    Args:
        root: where to begin; must exist.
        skip: folders that are not entered, whatever leads to them (roots of their own).

    Links are followed after all that is there without them, each folder is entered once; folders that cannot be
    read are passed over.
    """
    visited = {_identity(folder) for folder in skip} - {_identity(root)}
    waiting, links = [root], deque[Path]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.popleft()
        identity = _identity(folder)
        if identity is None or identity in visited:
            continue
        visited.add(identity)
        folders: list[Path] = []
        for entry in _entries(folder):
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(Path(entry.path))
            elif _is_model(entry.name) and (found := _found(entry, root)):
                yield found
        waiting.extend(reversed(folders))


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_model(name: str) -> bool:
    # macOS leaves `._name.pt` beside `name.pt` on foreign disks: notes of the Finder, not models
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("._")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _found(entry: os.DirEntry[str], root: Path) -> Found | None:
    try:
        if not entry.is_file():
            return None
        status = entry.stat()
    except OSError:
        return None
    return Found(os.path.relpath(entry.path, root), status.st_size, status.st_mtime_ns)
