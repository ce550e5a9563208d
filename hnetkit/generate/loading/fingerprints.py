"""What tells a model's files from others: a hash of what is in them, and a quick look at whether they were replaced."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import refuse_sparse
from hnetkit.generate.loading.folders import download
from hnetkit.hashes import sha256_of

_READ_BY_PIPELINES = (".json", ".txt", ".safetensors", ".model")
_KEY = 32  # hex digits

Stamp: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, place on the disk, size and time of each file."""


def digest(value: object) -> str:
    """Returns a hash of a value that JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY]


def fingerprint(place: str | os.PathLike[str]) -> str:
    """Returns a hash of a model's files; of a hub id, of those in the cache, where they come to first.

    Raises:
        NotFound: no such file, folder or hub id; the hint has the nearest names.
        ModelNotUsable: the hub does not give the model.
    """
    path = Path(place) if os.path.exists(place) else download(os.fspath(place))
    if path.is_file():
        return hash_of_file(path)
    files = sorted(_model_files(path))
    return digest([[file.relative_to(path).as_posix(), hash_of_file(file)] for file in files])


def stamp(place: str | os.PathLike[str]) -> Stamp:
    """Returns what changes where a file, or one of a model's folder, is replaced; a hub id has one of its name alone.

    What is drawn under a hash must be what was hashed, and hashing a model takes long: so this is looked at again.
    """
    path = Path(place)
    files = sorted(_model_files(path)) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            status = os.stat(file)
        except (OSError, ValueError):  # a name that no file can have
            found.append((str(file), 0, 0, 0))
        else:
            found.append((str(file), status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def hash_of_file(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file.

    Raises:
        NotFound: it is not there.
        FileRefused: it cannot be read, or is hardly anything but holes.
    """
    with OpenFile(path) as file:
        refuse_sparse(file)
        return sha256_of(file)


def _model_files(folder: Path) -> Iterator[Path]:
    """A pipeline's own files and those of its parts; other things that lie in the folder are no part of it."""
    here = _names_in(folder)
    below = [path for part in here if os.path.isdir(part) for path in _names_in(part)]
    for path in (*(path for path in here if path.suffix == ".json"), *below):
        if path.suffix in _READ_BY_PIPELINES and os.path.isfile(path):
            yield path


def _names_in(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError:  # what nobody can read is no part of a model
        return []
