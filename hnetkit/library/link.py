"""Links to other programs' folders: put the library's networks there, keep them up to date, and remove them again.

Each file is recorded in the registry before it is placed, so that a killed run can be resumed or undone. A file that
hnetkit did not put there, that changed since, or that is the last one with its network, is never overwritten and never
removed. Only one process at a time does this, because two could each rely on the file that the other removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import stat
import tempfile
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hnetkit.errors import DiskFull, FileChanged, HnetkitError, RegistryError, failure_of
from hnetkit.files import TEMPORARY, exclusive_lock, mtime_of, new_file
from hnetkit.formats import load, save
from hnetkit.formats.a1111 import OUT_OF_ORDER
from hnetkit.formats.open_file import OpenFile
from hnetkit.hashes import sha256_of
from hnetkit.library.layouts import Program, folded, folder_of, stem_for_layout
from hnetkit.library.resolve import resolve
from hnetkit.library.walking import walk
from hnetkit.registry.links import Link
from hnetkit.registry.store import Registry

Row = dict[str, Any]
How = Literal["symlink", "hardlink", "copy"]
_WAYS: tuple[How, ...] = ("symlink", "hardlink", "copy")
_CHUNK = 1 << 20  # bytes
_PATIENCE_S = 60.0
_CHANGED = "changed since hnetkit put it there: it is kept"
_LAST = "no other file of the library holds this network any more: it is kept"


@dataclass(frozen=True, slots=True)
class LinkChange:
    """What was done with one file in another program's folder.

    Attributes:
        what: ``"linked"``, ``"updated"``, ``"there"`` (nothing to do), ``"removed"``, ``"skipped"`` (the program does
            not get this network), or ``"kept"`` (a file that is not removed).
        path: in the program's folder.
        source: the library's file; None if there is none.
        how: ``"symlink"``, ``"hardlink"``, ``"copy"`` or ``"converted"``; None if hnetkit put nothing there.
        reason: why it was skipped or kept.
    """

    what: str
    path: str
    source: str | None = None
    how: str | None = None
    reason: str | None = None


def link(
    registry: Registry,
    directory: Path,
    program: Program,
    *,
    names: Iterable[str] = (),
    how: How | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[LinkChange]:
    """Puts networks into a program's folder, and removes the links of networks that left the library.

    Args:
        registry: of the library; it records what was put where.
        directory: the program's folder; see `layouts.folder_of`.
        program: the program. Files that it cannot read are converted to ``.pt``.
        names: of the networks; without any, all of the library.
        how: the only way to use; None tries a symbolic link, then a hard link, then a copy.
        dry_run: yield what would be done, and do nothing.
        progress: called with the number of networks done, and of all.

    Raises:
        NotFound: no such folder, or no network with such a name.
        AmbiguousName, FileRefused: a name matches several networks, or only unusable files.
        HnetkitError: another process is changing links and did not finish in time.
    """
    folder = folder_of(program, directory)
    requested = {resolve(registry, name).content_hash for name in names}
    with _links_locked(registry, dry_run=dry_run):
        job = _LinkRun(registry, program, folder, how, dry_run)
        wanted = _wanted(registry, job.folder, program, job.placed)
        yield from job.clear(keep={_key_of(item.path) for item in wanted if not item.in_place})
        wanted = [item for item in wanted if not requested or item.content_hash in requested]
        for done, item in enumerate(wanted):
            if progress is not None:
                progress(done, len(wanted))
            yield job.put_or_skip(item)


def undo(registry: Registry, directory: Path, program: Program, *, dry_run: bool = False) -> Iterator[LinkChange]:
    """Removes the unchanged files that `link` put into a program's folder, and the folders it made, if empty.

    A file that has become the last one with its network is kept, until another file holds the network again.

    Raises:
        NotFound: no such folder.
        HnetkitError: another process is changing links and did not finish in time.
    """
    folder = folder_of(program, directory)
    with _links_locked(registry, dry_run=dry_run):
        job = _LinkRun(registry, program, folder, None, dry_run)
        yield from job.clear(keep=set())
        if not dry_run:
            job.remove_folders()


@contextmanager
def _links_locked(registry: Registry, *, dry_run: bool) -> Iterator[None]:
    """Keeps other processes from removing files between the check for a network's last file and its removal."""
    if dry_run:
        yield
        return
    busy = HnetkitError("another process is changing links to other programs", hint="try again when it has ended")
    with exclusive_lock(registry.path.parent / "locks" / "links.lock", busy, patience_s=_PATIENCE_S):
        yield


class _LinkRun:
    """One run on one folder.

    Attributes:
        placed: the files that hnetkit put there before, by `_key_of` their paths.
        made: paths of folders that hnetkit created there.
    """

    def __init__(self, registry: Registry, program: Program, folder: Path, how: How | None, dry_run: bool) -> None:
        self.registry, self.program, self.folder, self.how, self.dry_run = registry, program, folder, how, dry_run
        known = registry.links.into(str(folder))
        self.placed = {_key_of(link.path): link for link in known if not _is_folder(link)}
        self.made = [link.path for link in known if _is_folder(link)]

    def put_or_skip(self, item: _WantedLink) -> LinkChange:
        """Puts one network there; any failure skips that network alone.

        Raises:
            RegistryError, DiskFull: nothing can be recorded.
        """
        try:
            return self.put(item)
        except (RegistryError, DiskFull):
            raise
        except Exception as error:
            return LinkChange("skipped", str(item.path), str(item.source), reason=_reason_of(error, item.source))

    def put(self, item: _WantedLink) -> LinkChange:
        """Puts one network there, unless it is there already."""
        path, source, before = str(item.path), str(item.source), self.placed.get(_key_of(item.path))
        problem = item.problem()
        if problem:
            return LinkChange("skipped", path, source, reason=problem)
        if item.in_place:
            return LinkChange("there", path, source)
        if before is not None and os.path.lexists(path):
            if not _is_untouched(before):
                return LinkChange("skipped", path, source, reason=_CHANGED)
            if self._is_current(before, item):
                return LinkChange("there", path, source, before.how)
            if before.source != source and self._is_last(before):
                return LinkChange("skipped", path, source, reason=_LAST)
        elif other := self._name_taken_by(item):
            if _holds(other, item.content_hash):
                return LinkChange("there", other, source)
            return LinkChange("skipped", path, source, reason=f"{other} has this name, and is not from hnetkit")
        problem = _why_refused(item, self.program)
        if problem:
            return LinkChange("skipped", path, source, reason=problem)
        what = "updated" if before is not None and os.path.lexists(path) else "linked"
        if self.dry_run:
            return LinkChange(what, path, source, "converted" if item.convert else self.how or "symlink")
        try:
            return LinkChange(what, path, source, self._place(item, replace=what == "updated"))
        except Exception:
            if not os.path.lexists(path):
                self._forget(path)
            elif before is not None and _is_untouched(before):  # the old file is still there
                self._put(before)
            raise

    def clear(self, keep: set[str]) -> Iterator[LinkChange]:
        """Removes everything that hnetkit put there except `keep`, which are keys of `_key_of`."""
        for key, link in self.placed.items():
            if key in keep:
                continue
            there = os.path.lexists(link.path)
            untouched = there and _is_untouched(link)
            if untouched and self._is_last(link):
                yield LinkChange("kept", link.path, link.source, link.how, _LAST)
                continue
            if not self.dry_run:
                try:
                    if untouched:
                        os.unlink(link.path)
                except OSError as error:  # the record stays, so that it can be removed another time
                    yield LinkChange("kept", link.path, link.source, link.how, _reason_of(error, link.path))
                    continue
                self._forget(link.path)
            if there:
                what, reason = ("removed", None) if untouched else ("kept", _CHANGED)
                yield LinkChange(what, link.path, link.source, link.how, reason)

    def remove_folders(self) -> None:
        """Removes the folders that were created for the links, if they are empty."""
        for path in sorted(self.made, key=len, reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(path)
            self._forget(path)

    # --- what is there

    def _is_current(self, link: Link, item: _WantedLink) -> bool:
        if link.source != str(item.source) or (link.how == "converted") != item.convert:
            return False
        if item.convert:
            return _holds(link.path, item.content_hash)
        return link.sha256 == item.row["sha256"] and self.how in (None, link.how)

    def _is_last(self, link: Link) -> bool:
        """Whether no other file holds its network: neither its source nor another of the library."""
        is_elsewhere = not _is_same_name(link.source, link.path)
        if link.how == "symlink" or (is_elsewhere and _is_same_file(link.source, link.path)):
            return False
        try:
            content = load(link.path).content_hash
        except Exception:  # unreadable, so be careful
            return True
        rows = self.registry.files.holding([content])
        others = (path for path in (link.source, *(row["path"] for row in rows)) if not _is_same_name(path, link.path))
        return not any(_holds(path, content) for path in others)

    def _name_taken_by(self, item: _WantedLink) -> str | None:
        if os.path.lexists(item.path):
            return str(item.path)
        return self._foreign_files.get(self._name_of(item.path))

    @cached_property
    def _foreign_files(self) -> dict[str, str]:
        """The files that the program lists and hnetkit did not put there: name -> path."""
        found = (self.folder / file.path for file in walk(self.folder)) if self.folder.is_dir() else ()
        listed = (path for path in found if path.suffix.lower() in self.program.suffixes)
        return {self._name_of(path): str(path) for path in listed if _key_of(path) not in self.placed}

    def _name_of(self, path: Path) -> str:
        """The program's name for a file, folded so that names that hide each other are equal."""
        return folded(path.stem if self.program.named_by == "stem" else str(path.relative_to(self.folder)))

    # --- placing

    def _place(self, item: _WantedLink, *, replace: bool) -> str:
        """Places a file. With `replace`, an older one of hnetkit's is replaced once the new one is complete."""
        self._make_folder()
        if item.convert:
            return self._convert(item, replace=replace)
        ways = (self.how,) if self.how else _WAYS
        for way in ways[:-1]:
            try:
                self._place_by(way, item, replace=replace)
                return way
            except OSError:  # not permitted, or another disk
                continue
        self._place_by(ways[-1], item, replace=replace)
        return ways[-1]

    def _place_by(self, way: How, item: _WantedLink, *, replace: bool) -> None:
        if way == "copy":
            self._copy(item.source, item, "copy", sha256=item.row["sha256"], replace=replace)
            return
        self._remember(item, way, item.row["sha256"])
        if way == "symlink":
            _place_link(lambda path: os.symlink(item.source, path), item.path, replace=replace)
        else:
            _place_link(lambda path: os.link(os.path.realpath(item.source), path), item.path, replace=replace)

    def _convert(self, item: _WantedLink, *, replace: bool) -> str:
        with tempfile.TemporaryDirectory(prefix="hnetkit-") as scratch:
            converted = Path(scratch) / "converted.pt"
            save(load(item.source), converted)
            if not _holds(converted, item.content_hash):
                raise FileChanged(f"{item.source}: not what was scanned", hint="hnetkit scan")
            self._copy(converted, item, "converted", replace=replace)
        return "converted"

    def _copy(self, source: Path, item: _WantedLink, how: str, *, replace: bool, sha256: str | None = None) -> None:
        """Copies a file to the item's path; `sha256` is the hash that its bytes must have."""
        digest = hashlib.sha256()
        with OpenFile(source) as reader, new_file(item.path, overwrite=replace) as file:
            for start in range(0, reader.size, _CHUNK):
                chunk = reader.read_at(start, min(_CHUNK, reader.size - start))
                digest.update(chunk)
                file.write(chunk)
            if sha256 not in (None, digest.hexdigest()):
                raise FileChanged(f"{source}: not what was scanned", hint="hnetkit scan")
            self._remember(item, how, digest.hexdigest())

    def _make_folder(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not os.path.isdir(path)]
        for path in reversed(missing):
            with self.registry.write():
                self.registry.links.put(_folder_link(str(path), str(self.folder), self.program.name))
            path.mkdir(exist_ok=True)

    def _remember(self, item: _WantedLink, how: str, sha256: str) -> None:
        self._put(Link(str(item.path), str(self.folder), self.program.name, how, str(item.source), sha256))

    def _put(self, link: Link) -> None:
        with self.registry.write():
            self.registry.links.put(link)

    def _forget(self, path: str) -> None:
        with self.registry.write():
            self.registry.links.forget([path])


# --- which file each network becomes


@dataclass(frozen=True, slots=True)
class _WantedLink:
    """A network of the library, and the file that it should be in the program's folder.

    Attributes:
        content_hash: of the network.
        row: the registry's row of the file to use for it.
        path: in the program's folder.
        convert: whether the program needs another format.
        in_place: whether the library's own file is in that folder already.
    """

    content_hash: str
    row: Row
    path: Path
    convert: bool
    in_place: bool

    @property
    def source(self) -> Path:
        return Path(self.row["path"])

    def problem(self) -> str | None:
        """Why its file cannot be used now; None if it can."""
        if self.row["state"] == "corrupt":
            return f"{self.source}: corrupt"
        try:
            status = os.stat(self.source)
        except OSError as error:
            return f"{self.source}: {_reason_of(error, self.source)}; hnetkit scan"
        if not stat.S_ISREG(status.st_mode):
            return f"{self.source}: not a regular file"
        if not _is_as_scanned(self.row):
            return f"{self.source}: changed since it was scanned; hnetkit scan"
        return None


def _wanted(registry: Registry, folder: Path, program: Program, placed: Mapping[str, Link]) -> list[_WantedLink]:
    """Returns every network of the library with its path in the program's folder; no two names collide."""
    networks: dict[str, list[Row]] = {}
    for row in registry.files.of_networks():
        if _key_of(row["path"]) not in placed:  # a scan of the program's folder also finds the links
            networks.setdefault(row["content_hash"], []).append(row)
    linked = {_key_of(path) for path in registry.links.paths()}
    best = {
        content: min(rows, key=lambda row: _rank(row, folder, program, linked)) for content, rows in networks.items()
    }
    in_place = {content for content, row in best.items() if _is_in_place(row, folder, program)}
    stems = _stems_so_far(networks, placed)
    taken = {folded(stem) for stem in stems.values()} | {folded(best[content]["stem"]) for content in in_place}
    wanted = []
    for content, row in best.items():
        stem = stems.get(content) or (
            row["stem"] if content in in_place else _free(stem_for_layout(row["stem"]), taken)
        )
        taken.add(folded(stem))
        convert = not _is_readable(row, program)
        path = folder / (stem + (".pt" if convert else Path(row["path"]).suffix.lower()))
        path = Path(row["path"]) if content in in_place else path
        wanted.append(_WantedLink(content, row, path, convert, content in in_place))
    return wanted


def _rank(row: Row, folder: Path, program: Program, linked: Set[str]) -> tuple[bool, ...]:
    """The sort key of a network's files, the best first: there as scanned, in the program's folder, readable as it is.

    Links in another program's folder, which may be removed at any time, come after files that are not links.
    """
    first = row["state"] != "present", not _is_as_scanned(row), not _is_in_place(row, folder, program)
    return *first, _key_of(row["path"]) in linked, not _is_readable(row, program)


def _is_as_scanned(row: Row) -> bool:
    try:
        status = os.stat(row["path"])
    except (OSError, ValueError):
        return False
    return (status.st_size, mtime_of(status)) == (row["size_bytes"], row["mtime_ns"])


def _is_readable(row: Row, program: Program) -> bool:
    return Path(row["path"]).suffix.lower() in program.suffixes and row["format"] != "safetensors"


def _is_in_place(row: Row, folder: Path, program: Program) -> bool:
    path = Path(_key_of(row["path"]))
    listed = path.suffix in program.suffixes and path.stem != "None" and _is_readable(row, program)
    return listed and row["state"] == "present" and path.is_relative_to(_key_of(folder))


def _stems_so_far(networks: Mapping[str, list[Row]], placed: Mapping[str, Link]) -> dict[str, str]:
    """The stems that networks have there already, if they still match the names of their files."""
    content_of = {row["path"]: content for content, rows in networks.items() for row in rows}
    stems: dict[str, str] = {}
    for link in placed.values():
        content, stem = content_of.get(link.source), Path(link.path).stem
        rows = networks[content] if content else []
        present = [row for row in rows if row["state"] == "present"] or rows
        if content and any(re.fullmatch(re.escape(stem_for_layout(row["stem"])) + r"(-\d+)?", stem) for row in present):
            stems.setdefault(content, stem)
    return stems


def _free(stem: str, taken: set[str]) -> str:
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if folded(name) not in taken)


def _key_of(path: str | Path) -> str:
    """A key that is equal for all spellings of a path: links in its folders resolved, but not the last part; NFC."""
    folder, name = os.path.split(path)
    return unicodedata.normalize("NFC", os.path.join(os.path.realpath(folder), name))


# --- files


def _is_untouched(link: Link) -> bool:
    """Whether the file at a link's path is exactly what hnetkit put there."""
    try:
        if link.how == "symlink":
            return os.readlink(link.path).removeprefix("\\\\?\\") == link.source.removeprefix("\\\\?\\")
        if os.path.islink(link.path):
            return False
        if link.how == "hardlink" and _is_same_file(link.path, link.source):
            return True
        with OpenFile(link.path) as file:
            return sha256_of(file) == link.sha256
    except (OSError, HnetkitError):  # another kind of file, or unreadable, so be careful
        return False


def _is_same_name(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _is_same_file(path: str, other: str) -> bool:
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def _place_link(make: Callable[[str], None], path: Path, *, replace: bool) -> None:
    """Makes a link; with `replace`, the old file is replaced once the new one exists."""
    if not replace:
        make(str(path))
        return
    made = str(path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}{TEMPORARY}"))
    try:
        make(made)
        os.replace(made, path)
    finally:
        if os.path.lexists(made):  # replacing a file by itself leaves both names
            os.unlink(made)


def _why_refused(item: _WantedLink, program: Program) -> str | None:
    """Why a program must not get a file; size and time are as scanned, but the content may not be."""
    try:
        network = load(item.source)
    except HnetkitError as error:
        return str(error)
    out_of_order = program.by_order and not item.convert and OUT_OF_ORDER in network.warnings
    return f"{item.source}: {OUT_OF_ORDER}" if out_of_order else None


def _holds(path: str | Path, content_hash: str) -> bool:
    try:
        return load(path).content_hash == content_hash
    except Exception:  # unreadable, so certainly not that network
        return False


def _reason_of(error: Exception, what: str | Path) -> str:
    failure = failure_of(error, str(what))
    if isinstance(error, OSError) and not isinstance(failure, DiskFull):
        return str(error.strerror or error)
    return str(failure)


# --- folders that were created are recorded as links without a source


def _folder_link(path: str, folder: str, layout: str) -> Link:
    return Link(path, folder, layout, how="copy", source="", sha256="")


def _is_folder(link: Link) -> bool:
    return not link.source
