"""Bringing the registry up to date with the folders on disk, and checking that files still are what they were."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hnetkit.errors import FileRefused, HnetkitError, NotFound
from hnetkit.formats.reading import READER_VERSION
from hnetkit.inspection import examine
from hnetkit.library import sidecars
from hnetkit.library.walk import Found, walk
from hnetkit.registry.files import Root, Seen
from hnetkit.registry.store import Registry

Row = dict[str, Any]
WORKERS = 2
BATCH, BATCH_S = 32, 0.5  # files and seconds to one transaction: what a killed scan can lose

Work = tuple[Root, Found, Seen | None]
Result = tuple[Root, Found, Seen | None, Row | HnetkitError]
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to read in all."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a scan or a check found at one place.

    Attributes:
        what: ``"new"``, ``"changed"``, ``"missing"``, ``"returned"``, ``"corrupt"`` or ``"unread"``.
        path: of the file, or of a root that is not there.
        row: the examination of what was read; None where nothing was.
        reason: why a file could not be read.
    """

    what: str
    path: str
    row: Row | None = None
    reason: str | None = None


def scan(registry: Registry, folders: Iterable[Path] = (), progress: Progress | None = None) -> Iterator[Change]:
    """Reads what is new or changed under the library's roots, and yields each change once it is stored.

    A file is the same as long as size, modification time and the reader's version are. A file that is gone, also
    with its whole root (a disk that is not there), is marked missing; nothing is ever forgotten.

    Args:
        registry: brought up to date in small steps, so that a scan that is killed loses little.
        folders: added as roots first; then only they are scanned. With none, all roots are.
        progress: told how far the reading has come.

    Raises:
        NotFound: one of `folders` is no folder.
    """
    roots = add_roots(registry, folders) or registry.files.roots()
    everyone = frozenset(root.path for root in registry.files.roots())
    work: list[Work] = []
    for root in roots:
        seen = registry.files.seen(root)
        found = {file.path: file for file in walk(root.path, skip=everyone)}
        yield from _mark_gone(registry, root, [(p, s) for p, s in seen.items() if p not in found])
        yield from _mark_returned(registry, root, [(p, seen[p]) for p, f in found.items() if _returned(seen.get(p), f)])
        work += [
            (root, file, seen.get(path))
            for path, file in found.items()
            if path not in seen or not _is_same(seen[path], file)
        ]
    yield from _read_all(registry, work, progress)
    with registry.write():
        for root in roots:
            registry.files.root_scanned(root)


def add_file(registry: Registry, folder: Path, path: Path, sha256: str) -> Row:
    """Stores one file that was just put into a folder, which becomes a root; returns its examination.

    Args:
        sha256: of the file, from the bytes as they were written.

    Raises:
        FileRefused, NotFound: it cannot be read.
    """
    row = _row(path, sha256)
    status = os.stat(path)
    with registry.write():
        root = registry.files.add_root(Path(os.path.realpath(folder)))
        found = Found(os.path.relpath(os.path.realpath(path), root.path), status.st_size, status.st_mtime_ns)
        _store(registry, root, found, row)
    return row


def recheck(registry: Registry, progress: Progress | None = None) -> Iterator[Change]:
    """Reads every byte of every known file again, and yields what is not as it was.

    Yields ``corrupt`` for other bytes under the same size and time, ``changed`` for a file that was replaced (and is
    stored as it is now), ``missing`` for one that is gone.
    """
    for root in registry.files.roots():
        known = registry.files.seen(root)
        shas = {row["path"]: row["sha256"] for row in registry.files.rows("root_id = ?", [root.id])}
        found = {file.path: file for file in walk(root.path, skip=frozenset(r.path for r in registry.files.roots()))}
        yield from _mark_gone(registry, root, [(p, s) for p, s in known.items() if p not in found])
        work = [(root, found[path], seen) for path, seen in known.items() if path in found]
        for _, file, _, row in _examined(work, progress):
            full = str(root.path / file.path)
            if isinstance(row, HnetkitError):
                yield Change("unread", full, reason=str(row))
            elif row["sha256"] != shas[full]:
                yield _differs(registry, root, file, known[file.path], row)
            elif known[file.path].state != "present":
                yield from _mark_returned(registry, root, [(file.path, known[file.path])])


def _differs(registry: Registry, root: Root, file: Found, seen: Seen, row: Row) -> Change:
    corrupt = (file.size_bytes, file.mtime_ns) == (seen.size_bytes, seen.mtime_ns)
    with registry.write():
        if corrupt:
            registry.files.set_state([seen.id], "corrupt")
        else:
            _store(registry, root, file, row)
    return Change("corrupt" if corrupt else "changed", row["path"], row)


def add_roots(registry: Registry, folders: Iterable[Path]) -> list[Root]:
    """Returns the roots at these folders, under their real paths: a link to a root is the same root.

    Raises:
        NotFound: one of them is no folder.
    """
    paths = [Path(os.path.realpath(folder)) for folder in folders]
    for path in paths:
        if not os.path.isdir(path):
            raise NotFound(f"{path}: no such folder")
    with registry.write():
        return [registry.files.add_root(path) for path in paths]


def _is_same(seen: Seen, file: Found) -> bool:
    return (seen.size_bytes, seen.mtime_ns, seen.reader_version) == (file.size_bytes, file.mtime_ns, READER_VERSION)


def _returned(seen: Seen | None, file: Found) -> bool:
    return seen is not None and seen.state == "missing" and _is_same(seen, file)


def _mark_gone(registry: Registry, root: Root, gone: list[tuple[str, Seen]]) -> Iterator[Change]:
    if not os.path.isdir(root.path):
        yield Change("unread", str(root.path), reason=f"{root.path}: the folder is not there")
    missing = [(path, seen) for path, seen in gone if seen.state != "missing"]
    if missing:
        with registry.write():
            registry.files.set_state((seen.id for _, seen in missing), "missing")
    yield from (Change("missing", str(root.path / path)) for path, _ in missing)


def _mark_returned(registry: Registry, root: Root, back: list[tuple[str, Seen]]) -> Iterator[Change]:
    if back:
        with registry.write():
            registry.files.set_state((seen.id for _, seen in back), "present")
    yield from (Change("returned", str(root.path / path)) for path, _ in back)


def _read_all(registry: Registry, work: list[Work], progress: Progress | None) -> Iterator[Change]:
    for batch in _batches(_examined(work, progress)):
        changes = []
        with registry.write():
            for root, file, seen, row in batch:
                if isinstance(row, NotFound):  # gone between the walk and the reading: the next scan will know
                    continue
                if isinstance(row, HnetkitError):
                    changes.append(Change("unread", str(root.path / file.path), reason=str(row)))
                    continue
                _store(registry, root, file, row)
                changes.append(Change("changed" if seen else "new", row["path"], row))
        yield from changes


def _batches(results: Iterator[Result]) -> Iterator[list[Result]]:
    batch, started = [], time.monotonic()
    for result in results:
        batch.append(result)
        if len(batch) == BATCH or time.monotonic() - started > BATCH_S:
            yield batch
            batch, started = [], time.monotonic()
    yield batch


def _store(registry: Registry, root: Root, file: Found, row: Row) -> None:
    before = registry.files.content_at(root, file.path)
    registry.files.put(root, file.path, file.mtime_ns, READER_VERSION, row)
    if row["content_hash"]:
        registry.networks.put(row)
    if before not in (None, row["content_hash"]):
        registry.networks.left_a_file(before)


def _examined(work: Sequence[Work], progress: Progress | None) -> Iterator[Result]:
    """Reads files in threads (hashing runs outside of Python's lock) and yields them in the order given."""
    total, done = sum(file.size_bytes for _, file, _ in work), 0
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting = iter(work)
        pending = [(item, pool.submit(_examine, item[0], item[1])) for item in islice(waiting, 2 * WORKERS)]
        try:
            while pending:
                (root, file, seen), future = pending.pop(0)
                result = future.result()
                pending += [(item, pool.submit(_examine, item[0], item[1])) for item in islice(waiting, 1)]
                done += file.size_bytes
                if progress is not None:
                    progress(done, total)
                yield root, file, seen, result
        finally:
            for _, future in pending:
                future.cancel()


def _row(path: Path, sha256: str | None = None) -> Row:
    """What is in a file, and beside it."""
    row = examine(path, sha256=sha256).as_row()
    return row | {"sidecars": sidecars.read(path).as_row() if row["content_hash"] else {}}


def _examine(root: Root, file: Found) -> Row | HnetkitError:
    try:
        return _row(root.path / file.path)
    except (NotFound, FileRefused) as error:
        return error
    except OSError as error:  # a disk that fails under one file is no reason to stop
        return FileRefused(f"{root.path / file.path}: {error.strerror}")
