"""Bringing the registry up to date with the folders on disk, and checking that files still are what they were.

One file never stops another: whatever goes wrong with one, its sidecars or its row is that file's failure.
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
BATCH, BATCH_S = 32, 0.5  # files and seconds to one transaction: what a killed scan can lose
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to read in all."""
Note = Callable[[str], None]
"""Called with a line that the person should read."""

_UNPACKING = re.compile(r"\.hnetkit-[0-9a-f]{16}\.unpacked")  # what lies there is gone in a moment
_HALF = 2**63
_JUNCTION = 0xA0000003  # what `st_reparse_tag` says of Windows' links to folders, which are no symbolic links


@dataclass(frozen=True, slots=True)
class WalkedFile:
    """A model file as it stands on disk; `path` is below the root that was walked, `mtime_ns` is `mtime_of` it."""

    path: str
    size_bytes: int
    mtime_ns: int


Work = tuple[Root, WalkedFile, KnownFile | None]


Result = tuple[Root, WalkedFile, KnownFile | None, Row | HnetkitError]


@dataclass(frozen=True, slots=True)
class FileChange:
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


def scan(
    registry: Registry,
    folders: Iterable[Path] = (),
    progress: Progress | None = None,
    *,
    follow_links: bool = False,
    note: Note | None = None,
) -> Iterator[FileChange]:
    """Reads what is new or changed under the library's roots, and yields each change once it is stored.

    A file is the same as long as size, modification time and the reader's version are. A file that is gone, also
    with its whole root (a disk that is not there), is marked missing; nothing is ever forgotten. A file that no
    reader understands is stored as refused, and read again when it changes; one that the system did not let be read
    is tried again by the next scan.

    Args:
        registry: brought up to date in small steps, so that a scan that is killed loses little.
        folders: added as roots first; then only they are scanned. With none, all roots are.
        progress: told how far the reading has come.
        follow_links: whether links to folders outside of a root are followed. What is known of files behind links
            that are not stays as it is.
        note: told what was not followed.

    Raises:
        NotFound: one of `folders` is no folder.
        RegistryError, DiskFull: nothing can be stored.
    """
    roots = add_roots(registry, folders) or registry.files.roots()
    if not registry.networks.is_searchable():
        with registry.write():
            registry.networks.rebuild_search()
    everyone = frozenset(root.path for root in registry.files.roots())
    work: list[Work] = []
    for root in roots:
        seen = registry.files.seen(root)
        unfollowed: list[Path] | None = None if follow_links else []
        found = {file.path: file for file in walk(root.path, skip=everyone, unfollowed=unfollowed)}
        links = frozenset(unfollowed or ())
        behind = {path for path in seen if path not in found and not links.isdisjoint((root.path / path).parents)}
        if unfollowed and note is not None:
            note(_not_followed(unfollowed, len(behind)))
        gone = [(path, known) for path, known in seen.items() if path not in found and path not in behind]
        yield from _mark_gone(registry, root, gone)
        yield from _mark_returned(registry, root, [(p, seen[p]) for p, f in found.items() if _returned(seen.get(p), f)])
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
    """Stores one file that was just put into a folder, which becomes a root; returns its examination.

    Args:
        sha256: of the file, from the bytes as they were written.

    Raises:
        FileRefused, NotFound: it cannot be read.
        RegistryError, DiskFull: it cannot be stored.
    """
    row = _row(path, sha256)
    with registry.write():
        root = registry.files.add_root(Path(os.path.realpath(folder)))
        found = find_file(root.path, os.path.relpath(os.path.realpath(path), root.path))
        if found is None:
            raise NotFound(f"{path}: no such file")
        _store(registry, root, found, row, is_ours=True)
    return row


def recheck(registry: Registry, progress: Progress | None = None) -> Iterator[FileChange]:
    """Reads every byte of every known file again, and yields what is not as it was.

    Yields ``corrupt`` for other bytes under the same size and time, ``changed`` for a file that was replaced (and is
    stored as it is now), ``missing`` for one that is gone, ``unread`` for one that cannot be read.
    """
    for root in registry.files.roots():
        known = registry.files.seen(root)
        shas = {row["path"]: row["sha256"] for row in registry.files.of_root(root)}
        found = {path: file for path in known if (file := find_file(root.path, path))}
        yield from _mark_gone(registry, root, [(p, s) for p, s in known.items() if p not in found])
        work = [(root, file, known[path]) for path, file in found.items()]
        with closing(_examined(work, progress)) as results:
            for result in results:
                yield from _rechecked(registry, result, shas.get(_full(result)))


def _rechecked(registry: Registry, result: Result, sha256: str | None) -> Iterator[FileChange]:
    root, file, seen, row = result
    assert seen is not None
    if isinstance(row, HnetkitError):
        yield FileChange("unread", _full(result), reason=str(row))
    elif row["sha256"] != sha256:
        was_read = sha256 is not None and (file.size_bytes, file.mtime_ns) == (seen.size_bytes, seen.mtime_ns)
        with registry.write():
            if was_read:
                registry.files.set_state([seen.id], "corrupt")
            change = FileChange("corrupt", row["path"], row) if was_read else _kept(registry, result)
        yield change
    elif seen.state != "present":
        yield from _mark_returned(registry, root, [(file.path, seen)])


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


def _is_same(seen: KnownFile, file: WalkedFile) -> bool:
    return (seen.size_bytes, seen.mtime_ns, seen.reader_version) == (file.size_bytes, file.mtime_ns, READER_VERSION)


def _returned(seen: KnownFile | None, file: WalkedFile) -> bool:
    return seen is not None and seen.state == "missing" and _is_same(seen, file)


def _not_followed(links: Sequence[Path], known: int) -> str:
    """What a person should know of links that lead out of their folder."""
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
    with closing(_examined(work, progress)) as results:
        for batch in _batches(results):
            with registry.write():
                # what is gone between the walk and the reading, the next scan will know
                changes = [_kept(registry, result) for result in batch if not isinstance(result[3], NotFound)]
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
        yield batch  # what was read is stored
        raise
    yield batch


def _kept(registry: Registry, result: Result) -> FileChange:
    """Stores what was read of one file, inside of a `write`. What would fail again as it is, is stored as refused."""
    _, file, seen, row = result
    if isinstance(row, HnetkitError):
        failure, is_lasting = row, isinstance(row, Defect | UnreadableFile)
    else:
        problem = _try_to_store(registry, result, row)
        if problem is None:
            return FileChange("changed" if seen else "new", row["path"], row)
        failure, is_lasting = problem, not isinstance(problem, OutOfMemory)
    if is_lasting:
        _try_to_store(registry, result, _refused(_full(result), file, failure))
    return FileChange("unread", _full(result), reason=str(failure))


def _try_to_store(registry: Registry, result: Result, row: Row) -> HnetkitError | None:
    """Stores one row; returns why it could not be stored.

    Raises:
        RegistryError, DiskFull: no row can be.
    """
    try:
        with registry.part():
            _store(registry, *result[:2], row)
    except (RegistryError, DiskFull):
        raise
    except Exception as error:
        return failure_of(error, _full(result))
    return None


def _store(registry: Registry, root: Root, file: WalkedFile, row: Row, *, is_ours: bool = False) -> None:
    before = registry.files.content_at(root, file.path)
    registry.files.put(root, file.path, file.mtime_ns, READER_VERSION, row)
    if row["content_hash"]:
        registry.networks.put(row)
    if before not in (None, row["content_hash"]):
        registry.networks.drop_unused(before, for_good=is_ours)


# --- reading


def _examined(work: Sequence[Work], progress: Progress | None) -> Generator[Result, None, None]:
    """Reads files in threads (hashing runs outside of Python's lock) and yields them in the order given.

    Closed, or interrupted, it ends within a chunk of the files at work.
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
    """What is in a file, and beside it."""
    row = examine(path, sha256=sha256, before_read=partial(_go_on, stop), known=known).as_row()
    if not row["content_hash"]:
        return row | {"sidecars": {}}
    try:
        return row | {"sidecars": sidecars.read(path).as_row()}
    except Exception as error:  # a network is as good as before, whatever lies beside it
        warning = f"what lies beside it cannot be read: {failure_of(error, path.name)}"
        return row | {"sidecars": {}, "warnings": [*row["warnings"], warning]}


def _go_on(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise KeyboardInterrupt


def _refused(path: str, file: WalkedFile, failure: HnetkitError) -> Row:
    """The row of a file of which nothing is known but why."""
    unknown = dict.fromkeys(("sha256", "autov1", "content_hash", "format"))
    return unknown | {
        "path": path,
        "size_bytes": file.size_bytes,
        "kind": "unknown",
        "verdict": "refused",
        "reason": str(failure),
        "warnings": [],
    }


def _full(result: Result) -> str:
    return str(result[0].path / result[1].path)


def walk(
    root: Path, *, skip: frozenset[Path] = frozenset(), unfollowed: list[Path] | None = None
) -> Iterator[WalkedFile]:
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
            elif found := find_file(root, os.path.relpath(entry.path, root)):
                yield found
        waiting.extend(reversed(folders))


def model_files(folder: Path) -> list[Path]:
    """Returns the model files under a folder, sorted; no link leads out of it. It may be absent, and is empty then."""
    return sorted(folder / found.path for found in walk(folder, unfollowed=[]))


def find_file(root: Path, path: str) -> WalkedFile | None:
    """Returns the file at a path below a root as it stands on disk; None where no regular file is there."""
    try:
        status = os.stat(root / path)
    except (OSError, ValueError):
        return None
    return WalkedFile(path, status.st_size, mtime_of(status)) if stat.S_ISREG(status.st_mode) else None


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
