"""Scans: find model files under folders, bring the registry up to date with them, and check known files again.

One file never stops another: any error in a file, its sidecars or its row is that file's failure alone.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hnetkit.errors import (
    Defect,
    DiskFull,
    FileRefused,
    HnetkitError,
    NotFound,
    OutOfMemory,
    RegistryError,
    UnreadableFile,
    UsageError,
    failure_of,
)
from hnetkit.files import is_absence
from hnetkit.formats.reading import READER_VERSION, load
from hnetkit.inspection import Examination, examine
from hnetkit.library.examining import Examined, Progress, Row, Work, examine_all, refused_row, row_of, sidecars_of
from hnetkit.library.layouts import folded
from hnetkit.library.placing import holds
from hnetkit.library.sidecars import Unreadable
from hnetkit.library.trash import FOLDER, hashes_in
from hnetkit.library.walking import Unseen, WalkedFile, find_file, in_cloud, is_gone, is_same_file, root_path, walk
from hnetkit.registry.files import READ_AGAIN, KnownFile, Root
from hnetkit.registry.store import Registry
from hnetkit.text import argument, counted

BATCH, BATCH_S = 32, 0.5  # files and seconds per transaction: what a killed scan can lose
Note = Callable[[str], None]
"""Called with a line for the user."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileChange:
    """What a scan or a check found about one file.

    Attributes:
        what: ``"new"``, ``"changed"`` (also in name, as far as a disk knows no difference), ``"missing"``,
            ``"returned"``, ``"corrupt"`` or ``"unread"``; ``"sidecars"`` if nothing but they changed.
        path: of the file; of a sidecar that was not read, or not wholly; of a folder that could not be looked at; of a
            root that does not exist.
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

    A file is unchanged while its size, its modification time and the reader's version are. So are its sidecars while
    names, sizes and times are; where nothing else changed, nothing else is read. A file that no longer exists, perhaps
    with its whole root (a disk that is not mounted), is marked missing; nothing is ever forgotten. Of a folder that
    could not be looked at nothing is known, so all that is known below it stays as it is.

    A file that is no network is told from its header; it is not read as a whole, so its sha256 is unknown. One that no
    reader understands is stored as refused, and read again when it changes. One that the system could not read is tried
    again by the next scan.

    Args:
        registry: updated in small steps, so that a killed scan loses little.
        folders: added as roots, and only these and the roots inside them are scanned. Without any, all roots are.
        progress: called as the reading proceeds.
        follow_links: whether to follow links to folders outside a root. If not, what is known of files behind such
            links is kept as it is.
        note: called with a line about links that were not followed, and about tags, notes and aliases of networks that
            files hold no longer.

    Raises:
        NotFound: one of `folders` is not a folder.
        RegistryError, DiskFull: nothing can be stored.
    """
    asked = add_roots(registry, folders)
    roots = [root for root in registry.files.roots() if not asked or _is_among(root, asked)]
    fileless = registry.networks.fileless()
    if not registry.networks.is_searchable():
        with registry.write():
            registry.networks.rebuild_search()
    all_roots = frozenset(root.path for root in registry.files.roots())
    work: list[Work] = []
    beside: list[tuple[Root, WalkedFile, KnownFile]] = []
    seen_roots: list[Root] = []
    for root in roots:
        seen = registry.files.seen(root)
        unfollowed: list[Path] | None = None if follow_links else []
        unseen: list[Unseen] = []
        walked = walk(root.path, skip=all_roots, unfollowed=unfollowed, unseen=unseen)
        found = {file.path: file for file in walked}
        yield from (
            FileChange("unread", str(it.path), reason=f"{it.path}: {it.reason}") for it in unseen if not it.is_expected
        )
        if root.path not in {it.path for it in unseen} and not is_gone(root.path):
            seen_roots.append(root)
        lost = {path: known for path, known in seen.items() if path not in found}
        behind = _at_or_below(root, lost, unfollowed or ())
        if unfollowed and note is not None:
            note(_unfollowed_note(unfollowed, len(behind)))
        kept = behind | _at_or_below(root, lost, [it.path for it in unseen])
        for old, new in _spelled_anew(root, [path for path in lost if path not in kept], found):
            seen[new] = lost.pop(old)
            with registry.write():
                registry.files.move(seen[new].id, new)
            yield FileChange("changed", str(root.path / new))
        gone = [(path, known) for path, known in lost.items() if path not in kept]
        if gone and not found and not kept and note is not None and any(known.state != "missing" for _, known in gone):
            note(f"{root.path} holds none of its {counted(len(gone), 'file')} any more; is its disk mounted?")
        yield from _mark_gone(registry, root, gone)
        yield from _mark_returned(
            registry, root, [(p, seen[p]) for p, f in found.items() if _has_returned(seen.get(p), f)]
        )
        work += [
            (root, file, seen.get(path))
            for path, file in found.items()
            if path not in seen or not _is_same(seen[path], file)
        ]
        beside += [
            (root, file, seen[path])
            for path, file in found.items()
            if path in seen and _is_same(seen[path], file) and not _has_same_sidecars(seen[path], file)
        ]
    yield from _read_beside(registry, beside)
    yield from _read_all(registry, work, progress)
    if note is not None:
        for line in left_without_file(registry, fileless):
            note(line)
    with registry.write():
        for root in seen_roots:
            registry.files.mark_scanned(root)


def left_without_file(registry: Registry, before: Iterable[str]) -> Iterator[str]:
    """Yields a line for each network that is in no file any more, as its file holds something else, and has words.

    Args:
        before: the contents that were in no file already.
    """
    left = sorted({*registry.networks.fileless()}.difference(before))
    for row in _with_words(registry, left):
        short = row["content_hash"][:13]
        what = f"{short}, which no file of the library holds any more"
        yield f"Tags, notes and aliases stay with {what}: `hnetkit show {short}` lists them."


def last_with_words(registry: Registry, files: Sequence[Path]) -> Path | None:
    """Returns one of these files that is the last of a network with tags, a note or an alias; None if none is.

    Args:
        files: that are all about to be replaced or removed.
    """
    going: dict[str, Path] = {}
    for file in files:
        with suppress(FileRefused, NotFound):  # no network, so nothing was said of it
            going.setdefault(load(file).content_hash, file)
    replaced = {os.path.realpath(file) for file in files}
    for row in _with_words(registry, sorted(going)):
        content = row["content_hash"]
        paths = (str(held["path"]) for held in registry.files.holding([content]))
        if not any(holds(path, content) for path in paths if os.path.realpath(path) not in replaced):
            return going[content]
    return None


def _with_words(registry: Registry, contents: list[str]) -> Iterator[Row]:
    """Yields the networks among these contents of which a person said something."""
    for row in registry.networks.of_contents(contents):
        if row["tags"] or row["aliases"] or registry.networks.note_of(row["id"]):
            yield row


def add_file(registry: Registry, folder: Path, path: Path, sha256: str | None = None) -> Row:
    """Stores one file that was just written to a folder, which becomes a root; returns its row.

    Args:
        sha256: of the file, computed while it was written; None has it read for that.

    Raises:
        FileRefused, NotFound: it cannot be read.
        RegistryError, DiskFull: it cannot be stored.
    """
    return add_examined(registry, folder, examine(path, whole=False, sha256=sha256))


def add_examined(registry: Registry, folder: Path, examination: Examination) -> Row:
    """Stores one file that was just examined, in a folder, which becomes a root; returns its row.

    Raises:
        NotFound: it is not there any more.
        FileRefused, RegistryError, DiskFull: it cannot be stored.
    """
    path = Path(examination.path)
    row, _ = row_of(examination)
    with registry.write():
        root = registry.files.add_root(root_path(folder))
        real = os.path.join(os.path.realpath(path.parent), path.name)  # a link counts as a file, wherever it leads
        place = root.path / os.path.relpath(real, os.path.realpath(folder))
        around = [other for other in registry.files.roots() if place.is_relative_to(other.path)]
        root = max([root, *around], key=lambda root: len(root.path.parts))  # a root is scanned without those inside it
        found = find_file(root.path, os.path.relpath(place, root.path))
        if found is None:
            raise NotFound(f"{path}: no such file")
        _store(registry, root, found, row, is_own=True)
    return row


def read_sidecars_again(registry: Registry, path: Path) -> None:
    """Stores what the sidecars of a known file say, after hnetkit wrote some."""
    with registry.write():
        store_sidecars_of(registry, path)


def store_sidecars_of(registry: Registry, path: Path) -> None:
    """Does what `read_sidecars_again` does, within a `write`."""
    said, unreadable = sidecars_of(path)
    for row in registry.files.at(str(root_path(path.parent) / path.name)):
        _store_sidecars(registry, row["id"], said, unreadable, None)


def recheck(registry: Registry, progress: Progress | None = None, *, note: Note | None = None) -> Iterator[FileChange]:
    """Reads every byte of every known network again, and the headers of other files, and yields the differences.

    Yields ``corrupt`` for other bytes with the same size and time, ``changed`` for a file that was replaced (and is
    stored as it is now), ``sidecars`` where nothing but they changed, ``missing`` for one that no longer exists,
    ``unread`` for one that cannot be read.

    Args:
        registry: brought up to date.
        progress: called as the reading proceeds.
        note: called with a line about tags, notes and aliases of networks that files hold no longer.
    """
    fileless = registry.networks.fileless()
    hashes = registry.files.hashes() | hashes_in(root.path for root in registry.files.roots())
    for root in registry.files.roots():
        known = registry.files.seen(root)
        work: list[Work] = []
        gone: list[tuple[str, KnownFile]] = []
        for path, seen in known.items():
            try:
                file = find_file(root.path, path)
            except OSError as error:
                yield FileChange("unread", str(root.path / path), reason=str(failure_of(error, str(root.path / path))))
                continue
            if file is None:
                gone.append((path, seen))
            else:
                work.append((root, file, seen))
        yield from _mark_gone(registry, root, gone)
        with closing(examine_all(work, progress)) as results:
            for result in results:
                yield from _recheck_result(registry, result, hashes)
    if note is not None:
        for line in left_without_file(registry, fileless):
            note(line)


def _recheck_result(registry: Registry, result: Examined, hashes: Set[str]) -> Iterator[FileChange]:
    """Stores what was found of one file; `hashes`: that files here and in the trash had before."""
    root, file, seen, row = result.root, result.file, result.seen, result.row
    assert seen is not None
    if isinstance(row, HnetkitError):
        yield FileChange("unread", result.path, reason=str(row))
        return
    if _has_rotted(result) and row["sha256"] not in hashes:  # no fault of a disk makes the bytes of another file
        with registry.write():
            registry.files.set_state([seen.id], "corrupt")
        yield FileChange("corrupt", row["path"], row)
    elif not seen.reader_version or not (
        _has_same_stat(seen, file) if _is_other(seen, row) else row["sha256"] == seen.sha256
    ):  # the first: its rows are damaged, and written again
        with registry.write():
            changes = _store_result(registry, result)
        yield from changes
        return
    elif seen.state != "present":
        yield from _mark_returned(registry, root, [(file.path, seen)])
    if seen.content_hash is not None:
        yield from _update_sidecars(registry, result, row["sidecars"], seen)


def add_roots(registry: Registry, folders: Iterable[Path]) -> list[Root]:
    """Adds these folders as roots and returns them. A link to a root is the same root; so is one in another case, where
    that names the same folder.

    Raises:
        NotFound: one of them is not there.
        UsageError: one of them is a file, or in the trash of removed networks.
        HnetkitError: one of them could not be looked at.
    """
    paths = list(map(root_path, folders))
    for path in paths:
        _require_folder(path)
        if FOLDER in path.parts:
            hint = "hnetkit remove --undo brings back what is in it"
            raise UsageError(f"{path}: the trash of removed networks, and no folder of the library", hint=hint)
    with registry.write():
        return [registry.files.add_root(path) for path in paths]


def _is_among(root: Root, asked: Iterable[Root]) -> bool:
    """Whether a root is one of some or inside one, which is walked without it."""
    return any(root.path.is_relative_to(other.path) for other in asked)


def _require_folder(path: Path) -> None:
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if is_absence(error):
            raise NotFound(f"{path}: no such folder") from error
        raise failure_of(error, str(path)) from error
    if not is_folder:
        raise UsageError(
            f"{path}: a file, and a scan takes folders", hint=f"hnetkit scan {argument(path.parent, is_path=True)}"
        )


def _is_same(seen: KnownFile, file: WalkedFile) -> bool:
    return _has_same_stat(seen, file) and seen.reader_version == READER_VERSION and seen.state != "corrupt"


def _has_same_stat(seen: KnownFile, file: WalkedFile) -> bool:
    return (seen.size_bytes, seen.mtime_ns) == (file.size_bytes, file.mtime_ns)


def _has_same_sidecars(seen: KnownFile, file: WalkedFile) -> bool:
    return seen.content_hash is None or file.sidecars in (None, seen.sidecars_seen)


def _has_returned(seen: KnownFile | None, file: WalkedFile) -> bool:
    return seen is not None and seen.state == "missing" and _is_same(seen, file)


def _at_or_below(root: Root, paths: Iterable[str], places: Iterable[Path]) -> set[str]:
    """Those of some paths below a root that are one of `places` or below one."""
    among = frozenset(places)
    full = {path: root.path / path for path in paths} if among else {}
    return {path for path, at in full.items() if at in among or not among.isdisjoint(at.parents)}


def _unfollowed_note(links: Sequence[Path], known: int) -> str:
    """A note for the user about links that lead out of their folder."""
    count = "1 link to a folder outside was" if len(links) == 1 else f"{len(links)} links to folders outside were"
    kept = f"; what is known of {counted(known, 'file')} behind is kept as it was" if known else ""
    return f"{count} not followed: {links[0]}{kept}; --follow-links follows"


def _spelled_anew(root: Root, lost: Iterable[str], found: Mapping[str, WalkedFile]) -> list[tuple[str, str]]:
    """Pairs of paths below a root that name one file: as it is known, and as the disk spells it by now.

    Where case or the form of accents makes no difference, a file that was renamed in these is there under both.
    """
    by_key: dict[str, list[str]] = {}
    for path in found:
        by_key.setdefault(folded(path), []).append(path)
    pairs = ((old, new) for old in lost for new in by_key.get(folded(old), ()))
    return [(old, new) for old, new in pairs if is_same_file(str(root.path / old), str(root.path / new))]


def _mark_gone(registry: Registry, root: Root, gone: list[tuple[str, KnownFile]]) -> Iterator[FileChange]:
    if is_gone(root.path):
        yield FileChange("unread", str(root.path), reason=f"{root.path}: the folder is not there")
    missing = [(path, seen) for path, seen in gone if seen.state != "missing"]
    if missing:
        with registry.write():
            registry.files.read_again(seen.id for _, seen in missing if seen.state == "corrupt")
            registry.files.set_missing(seen.id for _, seen in missing)
    places = (root.path / path for path, _ in missing)
    yield from (FileChange("missing", str(place), reason=in_cloud(place)) for place in places)


def _mark_returned(registry: Registry, root: Root, back: list[tuple[str, KnownFile]]) -> Iterator[FileChange]:
    if back:
        with registry.write():
            registry.files.set_state((seen.id for _, seen in back), "present")
    yield from (FileChange("returned", str(root.path / path)) for path, _ in back)


# --- storing


def _read_beside(registry: Registry, files: Iterable[tuple[Root, WalkedFile, KnownFile]]) -> Iterator[FileChange]:
    """Reads the sidecars of known files again, where they are not what they were."""
    for batch in _batches(iter(files)):
        changes: list[FileChange] = []
        with registry.step():
            for root, file, seen in batch:
                path = root.path / file.path
                said, unreadable = sidecars_of(path) if file.sidecars else ({}, ())
                is_news = _store_sidecars(registry, seen.id, said, unreadable, file.sidecars)
                changes += _sidecar_changes(str(path), unreadable, is_news=is_news)
        yield from changes


def _read_all(registry: Registry, work: list[Work], progress: Progress | None) -> Iterator[FileChange]:
    with closing(examine_all(work, progress)) as results:
        for batch in _batches(results):
            changes: list[FileChange] = []
            with registry.step():
                for result in batch:
                    if isinstance(result.row, NotFound):  # the next scan notices what vanished since the walk
                        continue
                    if result.seen is not None and _was_corrupt(result.seen) and _has_rotted(result):
                        changes += _store_rot(registry, result, result.seen)
                    else:
                        changes += _store_result(registry, result)
            yield from changes


def _batches(items: Iterator[T]) -> Iterator[list[T]]:
    batch, started = [], time.monotonic()
    try:
        for item in items:
            batch.append(item)
            if len(batch) == BATCH or time.monotonic() - started > BATCH_S:
                yield batch
                batch, started = [], time.monotonic()
    except KeyboardInterrupt:
        yield batch  # store what has been read
        raise
    yield batch


def _store_result(registry: Registry, result: Examined) -> list[FileChange]:
    """Stores the result for one file, within a `write`. A file that would fail again is stored as refused."""
    row = result.row
    if isinstance(row, HnetkitError):
        failure, is_lasting = row, isinstance(row, Defect | UnreadableFile)
    else:
        problem = _try_store(registry, result, row)
        if problem is None:
            change = FileChange(_what(result.seen, row), row["path"], row)
            return [change, *_sidecar_changes(result.path, result.unreadable)]
        failure, is_lasting = problem, not isinstance(problem, OutOfMemory)
    if is_lasting:
        _try_store(registry, result, refused_row(result.path, result.file, failure))
    return [FileChange("unread", result.path, reason=str(failure))]


def _what(seen: KnownFile | None, row: Row) -> str:
    if seen is None:
        return "new"
    is_as_before = seen.sha256 is not None and seen.sha256 == row["sha256"]
    return "returned" if is_as_before and seen.state != "present" else "changed"


def _has_rotted(result: Examined) -> bool:
    """Whether a file has other bytes than before, with the same size and time."""
    seen, row = result.seen, result.row
    if seen is None or seen.sha256 is None or isinstance(row, HnetkitError) or not _has_same_stat(seen, result.file):
        return False
    return not _is_other(seen, row) and row["sha256"] != seen.sha256


def _is_other(seen: KnownFile, row: Row) -> bool:
    """Whether a file was and is no network: it is known by size and time, and not hashed."""
    return row["content_hash"] is None and seen.content_hash is None


def _was_corrupt(seen: KnownFile) -> bool:
    """Whether a file was corrupt when it was last seen: each scan looks whether it still is."""
    return seen.reader_version == READ_AGAIN or (seen.state == "corrupt" and seen.reader_version == READER_VERSION)


def _store_rot(registry: Registry, result: Examined, seen: KnownFile) -> list[FileChange]:
    """Marks a file as corrupt, within a `write`, and returns that, unless it was known."""
    assert not isinstance(result.row, HnetkitError)
    if seen.state == "corrupt":
        return []
    registry.files.set_state([seen.id], "corrupt")
    return [FileChange("corrupt", result.path, result.row)]


def _try_store(registry: Registry, result: Examined, row: Row) -> HnetkitError | None:
    """Stores one row; returns the failure if its values cannot be stored.

    Raises:
        RegistryError, DiskFull: no row can be stored.
    """
    seen = result.seen
    try:
        with registry.part():
            if seen is not None and seen.reader_version and any(it.is_passing for it in result.unreadable):
                row = row | {"sidecars": registry.files.sidecars([seen.id]).get(seen.id, {}) | row["sidecars"]}
            if seen is not None and row["sha256"] is None and _has_same_stat(seen, result.file):
                row = row | {"sha256": seen.sha256}  # hashed when others than networks still were
            mark = _mark_of(result.file.sidecars, result.unreadable)
            _store(registry, result.root, result.file, row, sidecars_seen=mark)
    except (RegistryError, DiskFull):
        raise
    except Exception as error:
        return failure_of(error, result.path)
    return None


def _store(
    registry: Registry,
    root: Root,
    file: WalkedFile,
    row: Row,
    *,
    sidecars_seen: str | None = None,
    is_own: bool = False,
) -> None:
    before = registry.files.content_at(root, file.path)
    registry.files.put(root, file.path, file.mtime_ns, READER_VERSION, row, sidecars_seen=sidecars_seen)
    if row["content_hash"]:
        registry.networks.put(row)
    if before not in (None, row["content_hash"]):
        registry.networks.drop_unused(before, for_good=is_own)


# --- sidecars


def _store_sidecars(
    registry: Registry, id: int, said: Row, unreadable: Iterable[Unreadable], looks: str | None
) -> bool:
    """Stores what the sidecars of a file say, and returns whether they said something else before.

    What one that cannot be read at the moment said before is kept.
    """
    former = registry.files.sidecars([id]).get(id, {})
    if any(it.is_passing for it in unreadable):
        said = former | said
    registry.files.put_sidecars(id, said, _mark_of(looks, unreadable))
    return said != former


def _mark_of(looks: str | None, unreadable: Iterable[Unreadable]) -> str | None:
    """What to store of what the sidecars look like: nothing if the next scan should try again."""
    return None if any(it.is_passing for it in unreadable) else looks


def _update_sidecars(registry: Registry, result: Examined, said: Row, seen: KnownFile) -> Iterator[FileChange]:
    with registry.write():
        is_news = _store_sidecars(registry, seen.id, said, result.unreadable, seen.sidecars_seen)
    yield from _sidecar_changes(result.path, result.unreadable, is_news=is_news)


def _sidecar_changes(path: str, unreadable: Iterable[Unreadable], *, is_news: bool = False) -> list[FileChange]:
    changes = [FileChange("sidecars", path)] if is_news else []
    return changes + [FileChange("unread", str(it.path), reason=f"{it.path}: {it.reason}") for it in unreadable]
