"""Which of the library's networks a picture means: by its hash, then by its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnetkit.errors import AmbiguousName, HnetkitError
from hnetkit.library.resolve import resolve
from hnetkit.registry.store import Registry

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Held:
    """What the library holds of a network that a picture names.

    Attributes:
        path: a file that is there; None where the library has none, or several networks of the name.
        is_held: whether there is any.
        warning: why it may be another network than the picture's; None where nothing speaks for that.
    """

    path: Path | None
    is_held: bool
    warning: str | None = None


def find_mentioned(registry: Registry, name: str, digits: str | None) -> Held:
    """Returns what the library holds of a network.

    Args:
        registry: the library.
        name: a stem or an alias.
        digits: of its hash, in lower case: A1111's old 8, or the beginning of the sha256, also of the file that one of
            the library's was converted from; None where it is not known.
    """
    row, claims = next(_of_hash(registry, digits), (None, False)) if digits else (None, False)
    if row is not None:
        path = row["path"]
        word = f"{path}: taken for {digits} on its own word, that it was converted from that file" if claims else None
        return Held(Path(path), True, word)
    # lists of late 2022 put the old hash behind the name, and a file may really be called so
    for known_as in (name, f"{name}({digits})") if digits else (name,):
        try:
            path = resolve(registry, known_as).path
        except AmbiguousName as error:
            return Held(None, True, f"{error}; {error.hint}")
        except HnetkitError:
            continue
        if os.path.isfile(path):
            return Held(path, True, f"{name}: the library's has another hash than {digits}" if digits else None)
    return Held(None, False)


def _of_hash(registry: Registry, digits: str) -> Iterator[tuple[Row, bool]]:
    """Yields the files of a hash, and whether only their own word speaks for it."""
    files = registry.files
    # a stranger can make a file of any old hash, which is that of 64 kB
    for row in (*files.with_hash(sha256=digits), *files.with_hash(autov1=digits)):
        if row["state"] == "present":
            yield row, False
    for row in files.with_hash(source_sha256=digits):
        if row["state"] == "present":
            originals = files.with_hash(sha256=row["source_sha256"])
            yield row, row["content_hash"] not in {known["content_hash"] for known in originals}
