"""Scans: find model files under folders, bring the registry up to date with them, and check known files again.

One file never stops another: any error in a file, its sidecars or its row is that file's failure alone.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from hnetkit.errors import (
    Defect,
    DiskFull,
    HnetkitError,
    NotFound,
    OutOfMemory,
    RegistryError,
    UnreadableFile,
    failure_of,
)
from hnetkit.files import is_model_name
from hnetkit.formats.reading import READER_VERSION
from hnetkit.inspection import KnownHashes, examine
from hnetkit.library import sidecars
from hnetkit.registry.files import KnownFile, Root
from hnetkit.registry.store import Registry
from hnetkit.text import counted

Row = dict[str, Any]
WORKERS = 2
BATCH, BATCH_S = 32, 0.5  # files and seconds per transaction: what a killed scan can lose
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to read in all."""
Note = Callable[[str], None]
"""Called with a line for the user."""

_UNPACKING = re.compile(r"\.hnetkit-[0-9a-f]{16}\.unpacked")  # temporary folders of archives that are being unpacked
_HALF = 2**63
_JUNCTION = 0xA0000003  # `st_reparse_tag` of Windows' junctions: links to folders, but not symbolic links


@dataclass(frozen=True, slots=True)
class WalkedFile:
    """A model file on disk; `path` is relative to the root of the walk, `mtime_ns` is as by `mtime_of`."""

    path: str
    size_bytes: int
    mtime_ns: int


Work = tuple[Root, WalkedFile, KnownFile | None]


Result = tuple[Root, WalkedFile, KnownFile | None, Row | HnetkitError]


@dataclass(frozen=True, slots=True)
class FileChange:
    """What a scan or a check found about one file.

    Attributes:
        what: ``"new"``, ``"changed"``, ``"missing"``, ``"returned"``, ``"corrupt"`` or ``"unread"``.
        path: of the file, or of a root that does not exist.
        row: the examination of the file; None if it was not read.
        reason: why it could not be read.
    """

    what: str
    path: str
    row: Row | None = None
    reason: str | None = None


def scan(
    registry: Registry,
    folders: Iterable[Path] = (),
    progress: Progress | None = None,
    *,
    follow_links: bool = False,
    note: Note | None = None,
) -> Iterator[FileChange]:
    """Reads new and changed files under the library's roots, and yields each change once it is stored.

    A file is unchanged while its size, its modification time and the reader's version are. A file that no longer
    exists, perhaps with its whole root (a disk that is not mounted), is marked missing; nothing is ever forgotten. A
    file that no reader understands is stored as refused, and read again when it changes. A file that the system could
    not read is tried again by the next scan.

    Args:
        registry: updated in small steps, so that a killed scan loses little.
        folders: added as roots, and only these are scanned. Without any, all roots are.
        progress: called as the reading proceeds.
        follow_links: whether to follow links to folders outside a root. If not, what is known of files behind such
            links is kept as it is.
        note: called with a line about links that were not followed.

    Raises:
        NotFound: one of `folders` is not a folder.
        RegistryError, DiskFull: nothing can be stored.
    """
    roots = add_roots(registry, folders) or registry.files.roots()
    if not registry.networks.is_searchable():
        with registry.write():
            registry.networks.rebuild_search()
    all_roots = frozenset(root.path for root in registry.files.roots())
    work: list[Work] = []
    for root in roots:
        seen = registry.files.seen(root)
        unfollowed: list[Path] | None = None if follow_links else []
        found = {file.path: file for file in walk(root.path, skip=all_roots, unfollowed=unfollowed)}
        links = frozenset(unfollowed or ())
        behind = {path for path in seen if path not in found and not links.isdisjoint((root.path / path).parents)}
        if unfollowed and note is not None:
            note(_unfollowed_note(unfollowed, len(behind)))
        gone = [(path, known) for path, known in seen.items() if path not in found and path not in behind]
        yield from _mark_gone(registry, root, gone)
        yield from _mark_returned(
            registry, root, [(p, seen[p]) for p, f in found.items() if _has_returned(seen.get(p), f)]
        )
        work += [
            (root, file, seen.get(path))
            for path, file in found.items()
            if path not in seen or not _is_same(seen[path], file)
        ]
    yield from _read_all(registry, work, progress)
    with registry.write():
        for root in roots:
            registry.files.mark_scanned(root)


def add_file(registry: Registry, folder: Path, path: Path, sha256: str) -> Row:
    """Stores one file that was just written to a folder, which becomes a root; returns its examination.

    Args:
        sha256: of the file, computed while it was written.

    Raises:
        FileRefused, NotFound: it cannot be read.
        RegistryError, DiskFull: it cannot be stored.
    """
    row = _row(path, sha256)
    with registry.write():
        root = registry.files.add_root(Path(os.path.realpath(folder)))
        place = os.path.join(os.path.realpath(path.parent), path.name)  # a link counts as a file, wherever it leads
        found = find_file(root.path, os.path.relpath(place, root.path))
        if found is None:
            raise NotFound(f"{path}: no such file")
        _store(registry, root, found, row, is_own=True)
    return row


def recheck(registry: Registry, progress: Progress | None = None) -> Iterator[FileChange]:
    """Reads every byte of every known file again, and yields the differences.

    Yields ``corrupt`` for other bytes with the same size and time, ``changed`` for a file that was replaced (and is
    stored as it is now), ``missing`` for one that no longer exists, ``unread`` for one that cannot be read.
    """
    for root in registry.files.roots():
        known = registry.files.seen(root)
        shas = {row["path"]: row["sha256"] for row in registry.files.of_root(root)}
        found = {path: file for path in known if (file := find_file(root.path, path))}
        yield from _mark_gone(registry, root, [(p, s) for p, s in known.items() if p not in found])
        work = [(root, file, known[path]) for path, file in found.items()]
        with closing(_examine_all(work, progress)) as results:
            for result in results:
                yield from _recheck_result(registry, result, shas.get(_path_of(result)))


def _recheck_result(registry: Registry, result: Result, sha256: str | None) -> Iterator[FileChange]:
    root, file, seen, row = result
    assert seen is not None
    if isinstance(row, HnetkitError):
        yield FileChange("unread", _path_of(result), reason=str(row))
    elif row["sha256"] != sha256:
        was_read = sha256 is not None and (file.size_bytes, file.mtime_ns) == (seen.size_bytes, seen.mtime_ns)
        with registry.write():
            if was_read:
                registry.files.set_state([seen.id], "corrupt")
            change = FileChange("corrupt", row["path"], row) if was_read else _store_result(registry, result)
        yield change
    elif seen.state != "present":
        yield from _mark_returned(registry, root, [(file.path, seen)])


def add_roots(registry: Registry, folders: Iterable[Path]) -> list[Root]:
    """Adds these folders as roots and returns them. Roots have real paths: a link to a root is the same root.

    Raises:
        NotFound: one of them is not a folder.
    """
    paths = [Path(os.path.realpath(folder)) for folder in folders]
    for path in paths:
        if not os.path.isdir(path):
            raise NotFound(f"{path}: no such folder")
    with registry.write():
        return [registry.files.add_root(path) for path in paths]


def _is_same(seen: KnownFile, file: WalkedFile) -> bool:
    return (seen.size_bytes, seen.mtime_ns, seen.reader_version) == (file.size_bytes, file.mtime_ns, READER_VERSION)


def _has_returned(seen: KnownFile | None, file: WalkedFile) -> bool:
    return seen is not None and seen.state == "missing" and _is_same(seen, file)


def _unfollowed_note(links: Sequence[Path], known: int) -> str:
    """A note for the user about links that lead out of their folder."""
    count = "1 link to a folder outside was" if len(links) == 1 else f"{len(links)} links to folders outside were"
    kept = f"; what is known of {counted(known, 'file')} behind is kept as it was" if known else ""
    return f"{count} not followed: {links[0]}{kept}; --follow-links follows"


def _mark_gone(registry: Registry, root: Root, gone: list[tuple[str, KnownFile]]) -> Iterator[FileChange]:
    if not os.path.isdir(root.path):
        yield FileChange("unread", str(root.path), reason=f"{root.path}: the folder is not there")
    missing = [(path, seen) for path, seen in gone if seen.state != "missing"]
    if missing:
        with registry.write():
            registry.files.set_state((seen.id for _, seen in missing), "missing")
    yield from (FileChange("missing", str(root.path / path)) for path, _ in missing)


def _mark_returned(registry: Registry, root: Root, back: list[tuple[str, KnownFile]]) -> Iterator[FileChange]:
    if back:
        with registry.write():
            registry.files.set_state((seen.id for _, seen in back), "present")
    yield from (FileChange("returned", str(root.path / path)) for path, _ in back)


# --- storing


def _read_all(registry: Registry, work: list[Work], progress: Progress | None) -> Iterator[FileChange]:
    with closing(_examine_all(work, progress)) as results:
        for batch in _batches(results):
            with registry.write():
                # the next scan notices files that vanished between the walk and the reading
                changes = [_store_result(registry, result) for result in batch if not isinstance(result[3], NotFound)]
            yield from changes


def _batches(results: Iterator[Result]) -> Iterator[list[Result]]:
    batch, started = [], time.monotonic()
    try:
        for result in results:
            batch.append(result)
            if len(batch) == BATCH or time.monotonic() - started > BATCH_S:
                yield batch
                batch, started = [], time.monotonic()
    except KeyboardInterrupt:
        yield batch  # store what has been read
        raise
    yield batch


def _store_result(registry: Registry, result: Result) -> FileChange:
    """Stores the result for one file, within a `write`. A file that would fail again is stored as refused."""
    _, file, seen, row = result
    if isinstance(row, HnetkitError):
        failure, is_lasting = row, isinstance(row, Defect | UnreadableFile)
    else:
        problem = _try_store(registry, result, row)
        if problem is None:
            return FileChange("changed" if seen else "new", row["path"], row)
        failure, is_lasting = problem, not isinstance(problem, OutOfMemory)
    if is_lasting:
        _try_store(registry, result, _refused_row(_path_of(result), file, failure))
    return FileChange("unread", _path_of(result), reason=str(failure))


def _try_store(registry: Registry, result: Result, row: Row) -> HnetkitError | None:
    """Stores one row; returns the failure if its values cannot be stored.

    Raises:
        RegistryError, DiskFull: no row can be stored.
    """
    try:
        with registry.part():
            _store(registry, *result[:2], row)
    except (RegistryError, DiskFull):
        raise
    except Exception as error:
        return failure_of(error, _path_of(result))
    return None


def _store(registry: Registry, root: Root, file: WalkedFile, row: Row, *, is_own: bool = False) -> None:
    before = registry.files.content_at(root, file.path)
    registry.files.put(root, file.path, file.mtime_ns, READER_VERSION, row)
    if row["content_hash"]:
        registry.networks.put(row)
    if before not in (None, row["content_hash"]):
        registry.networks.drop_unused(before, for_good=is_own)


# --- reading


def _examine_all(work: Sequence[Work], progress: Progress | None) -> Generator[Result, None, None]:
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
                result = future.result()
                pending += [(item, pool.submit(_examine, *item[:2], stop, known)) for item in islice(waiting, 1)]
                done += file.size_bytes
                if progress is not None:
                    progress(done, total)
                yield root, file, seen, result
        finally:
            stop.set()
            for _, future in pending:
                future.cancel()


def _examine(root: Root, file: WalkedFile, stop: threading.Event, known: KnownHashes) -> Row | HnetkitError:
    path = root.path / file.path
    try:
        return _row(path, stop=stop, known=known)
    except Exception as error:
        return failure_of(error, str(path))


def _row(
    path: Path, sha256: str | None = None, stop: threading.Event | None = None, known: KnownHashes | None = None
) -> Row:
    """The row of a file and its sidecars."""
    row = examine(path, sha256=sha256, before_read=partial(_raise_if_stopped, stop), known=known).as_row()
    if not row["content_hash"]:
        return row | {"sidecars": {}}
    try:
        return row | {"sidecars": sidecars.read(path).as_row()}
    except Exception as error:  # broken sidecars are no fault of the network
        warning = f"its sidecars cannot be read: {failure_of(error, path.name)}"
        return row | {"sidecars": {}, "warnings": [*row["warnings"], warning]}


def _raise_if_stopped(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise KeyboardInterrupt


def _refused_row(path: str, file: WalkedFile, failure: HnetkitError) -> Row:
    """The row of a file of which nothing is known but the failure."""
    unknown = dict.fromkeys(("sha256", "autov1", "content_hash", "format"))
    return unknown | {
        "path": path,
        "size_bytes": file.size_bytes,
        "kind": "unknown",
        "verdict": "refused",
        "reason": str(failure),
        "warnings": [],
    }


def _path_of(result: Result) -> str:
    return str(result[0].path / result[1].path)


def walk(
    root: Path, *, skip: frozenset[Path] = frozenset(), unfollowed: list[Path] | None = None
) -> Iterator[WalkedFile]:
    """Yields the model files under a folder, in the order of their names.

    Args:
        root: where to begin; must exist.
        skip: folders that are never entered, because they are roots of their own.
        unfollowed: a list for the links to folders outside `root`, which are then not followed; None follows them.

    Links are followed after everything else, and each folder is entered once. Unreadable folders are skipped. A link
    to a file counts as a file, wherever it leads.
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
            elif found := find_file(root, os.path.relpath(entry.path, root)):
                yield found
        waiting.extend(reversed(folders))


def model_files(folder: Path) -> list[Path]:
    """Returns the model files under a folder, sorted, without following links out of it; [] if it does not exist."""
    return sorted(folder / found.path for found in walk(folder, unfollowed=[]))


def find_file(root: Path, path: str) -> WalkedFile | None:
    """Returns the file at a path below a root; None if there is no regular file."""
    try:
        status = os.stat(root / path)
    except (OSError, ValueError):
        return None
    return WalkedFile(path, status.st_size, mtime_of(status)) if stat.S_ISREG(status.st_mode) else None


def mtime_of(status: os.stat_result) -> int:
    """Returns the modification time in nanoseconds, wrapped to 64 bits after the year 2262.

    So a file with a nonsensical time can be stored, and its changes are noticed like those of any other.
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
    """The subfolders and model files of a folder, each with whether it is a folder."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_folder = _is_folder(entry)
                if is_model_name(entry.name) or (is_folder and not _UNPACKING.fullmatch(entry.name)):
                    found.append((entry, is_folder))
    except OSError:
        return []
    return sorted(found, key=lambda item: item[0].name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_link(entry: os.DirEntry[str]) -> bool:
    if os.name != "nt" or entry.is_symlink():
        return entry.is_symlink()
    return getattr(entry.stat(follow_symlinks=False), "st_reparse_tag", 0) == _JUNCTION
