"""Hashes of models' files, remembered between commands: a checkpoint of 7 GB is read once for its hash, not each time.

A file in the home folder holds them by path. A hash is believed only while the file is the one that was read: device,
inode, size and both times are compared. The file may be deleted at any time.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeAlias

from hnetkit.errors import HnetkitError
from hnetkit.files import exclusive_lock, new_file
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import refuse_sparse
from hnetkit.hashes import sha256_of
from hnetkit.limits import read_json
from hnetkit.paths import hashes_file

LEAST = 16 << 20
"""Bytes of a file whose hash is remembered; a smaller one is read again in a blink."""

MOST_FILES = 1000
"""Files whose hashes are remembered; the oldest are forgotten."""

_SETTLED_NS = 2_000_000_000  # a file that was written a moment ago may change again within one tick of its clock
_PATIENCE_S = 2.0
_SHA256 = re.compile(r"[0-9a-f]{64}")

_Known: TypeAlias = dict[str, tuple[list[int], str]]
"""Real path -> what identifies the content, and its sha256."""


def hash_of_file(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file.

    Raises:
        NotFound: it is not there.
        FileRefused: it cannot be read, or is a sparse file that is almost empty.
    """
    with OpenFile(path) as file:
        refuse_sparse(file)
        if file.size < LEAST or file.content is None:
            return sha256_of(file)
        place, content = os.path.realpath(path), list(file.content)
        known = _read().get(place)
        if known is not None and known[0] == content:
            return known[1]
        digest = sha256_of(file)
        if time.time_ns() - max(content[-2:]) > _SETTLED_NS:
            _remember(place, content, digest)
        return digest


def remembered_hashes(files: Iterable[str]) -> dict[str, str]:
    """Returns file -> sha256 for those of some files whose hash is remembered; none of them is read."""
    stored, found = _read(), {}
    for path in files:
        known = stored.get(os.path.realpath(path))
        with suppress(HnetkitError):
            if known is not None and known[0] == _content_of(path):
                found[path] = known[1]
    return found


def _content_of(path: str) -> list[int]:
    with OpenFile(path) as file:
        return list(file.content or ())


def _read() -> _Known:
    """Returns what is remembered; nothing where it cannot be read, as hashes can be computed again."""
    try:
        stored = read_json(hashes_file())
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict):
        return {}
    return {
        place: (entry[0], entry[1])
        for place, entry in stored.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) and _SHA256.fullmatch(entry[1])
    }


def _remember(place: str, content: list[int], digest: str) -> None:
    """Adds a hash. Where that cannot be done, it is computed again the next time."""
    path = hashes_file()
    busy = HnetkitError(f"{path}: another process is writing it")
    with suppress(OSError, HnetkitError), exclusive_lock(path.with_name(".hashes.lock"), busy, patience_s=_PATIENCE_S):
        known = _read()
        known.pop(place, None)
        known[place] = content, digest
        newest = dict(list(known.items())[-MOST_FILES:])
        with new_file(path, overwrite=True) as file:
            file.write(json.dumps(newest).encode() + b"\n")
