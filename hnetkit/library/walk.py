"""Finding model files under a folder: every folder once, whatever links lead to it."""

from __future__ import annotations

import os
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
        skip: folders that are not entered (roots of their own).

    Links are followed, each folder is entered once; folders that cannot be read are passed over.
    """
    visited: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited or (folder in skip and folder != root):
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        folders = []
        for entry in entries:
            if _is_folder(entry):
                folders.append(Path(entry.path))
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and (found := _found(entry, root)):
                yield found
        waiting.extend(reversed(folders))


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
