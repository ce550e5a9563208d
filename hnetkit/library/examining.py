"""The examination of many files, in threads: the row of each, with what its sidecars say, or why there is none.

One file never stops another: any error in a file or its sidecars is that file's failure alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError, failure_of
from hnetkit.inspection import Examination, KnownHashes, examine
from hnetkit.library import sidecars
from hnetkit.library.sidecars import Unreadable
from hnetkit.library.walking import WalkedFile
from hnetkit.registry.files import KnownFile, Root

Row = dict[str, Any]
WORKERS = 2
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to read in all."""

Work = tuple[Root, WalkedFile, KnownFile | None]


@dataclass(frozen=True, slots=True)
class Examined:
    """What the examination of one file gave: its row with the content of its `sidecars`, or why there is none.

    Attributes:
        unreadable: sidecars that were not read, or not wholly.
    """

    root: Root
    file: WalkedFile
    seen: KnownFile | None
    row: Row | HnetkitError
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def path(self) -> str:
        return str(self.root.path / self.file.path)


def examine_all(work: Sequence[Work], progress: Progress | None) -> Generator[Examined, None, None]:
    """Reads files in threads (hashing releases the GIL) and yields the results in the order given.

    When closed or interrupted, it stops after the current chunk of each file.
    """
    total, done = sum(file.size_bytes for _, file, _ in work), 0
    stop, known = threading.Event(), KnownHashes()
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting = iter(work)
        pending = [(item, pool.submit(_examine, *item[:2], stop, known)) for item in islice(waiting, 2 * WORKERS)]
        try:
            while pending:
                (root, file, seen), future = pending.pop(0)
                row, unreadable = future.result()
                pending += [(item, pool.submit(_examine, *item[:2], stop, known)) for item in islice(waiting, 1)]
                done += file.size_bytes
                if progress is not None:
                    progress(done, total)
                yield Examined(root, file, seen, row, unreadable)
        finally:
            stop.set()
            for _, future in pending:
                future.cancel()


def _examine(
    root: Root, file: WalkedFile, stop: threading.Event, known: KnownHashes
) -> tuple[Row | HnetkitError, tuple[Unreadable, ...]]:
    path = root.path / file.path
    try:
        return row_of(examine(path, whole=False, before_read=partial(_raise_if_stopped, stop), known=known))
    except Exception as error:
        return failure_of(error, str(path)), ()


def row_of(examination: Examination) -> tuple[Row, tuple[Unreadable, ...]]:
    """Returns the row of a file with the content of its sidecars, and the sidecars that were not read."""
    row = examination.as_row()
    said, unreadable = sidecars_of(Path(row["path"])) if row["content_hash"] else ({}, ())
    return row | {"sidecars": said}, unreadable


def sidecars_of(path: Path) -> tuple[Row, tuple[Unreadable, ...]]:
    """Returns what the sidecars of a file say, and those that were not read."""
    try:
        found = sidecars.read(path)
        return found.as_row(), found.unreadable
    except Exception as error:  # broken sidecars are no fault of the network
        return {}, (Unreadable(path, f"its sidecars cannot be read: {failure_of(error, path.name)}", is_passing=True),)


def _raise_if_stopped(stop: threading.Event) -> None:
    if stop.is_set():
        raise KeyboardInterrupt


def refused_row(path: str, file: WalkedFile, failure: HnetkitError) -> Row:
    """Returns the row of a file of which nothing is known but the failure."""
    unknown = dict.fromkeys(("sha256", "autov1", "content_hash", "format"))
    return unknown | {
        "path": path,
        "size_bytes": file.size_bytes,
        "kind": "unknown",
        "verdict": "refused",
        "reason": str(failure),
        "warnings": [],
    }
