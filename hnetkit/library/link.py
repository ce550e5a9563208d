"""Putting the library's networks into another program's folder, keeping them up to date there, and taking them back.

Each file is written down in the registry before it is placed, so that a run that was killed can be gone on with or
undone. What hnetkit did not put there, what changed since, or what is the last file that holds its network, is never
written over and never removed. One process at a time does so: each of two could take the other's file for the last.
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
from hnetkit.files import TEMPORARY, exclusive_lock, new_file
from hnetkit.formats import load, save
from hnetkit.formats.a1111 import OUT_OF_ORDER
from hnetkit.formats.open_file import OpenFile
from hnetkit.hashes import sha256_of
from hnetkit.library.layouts import Program, folded, folder_of, stem_for_layout
from hnetkit.library.resolve import resolve
from hnetkit.library.scan import mtime_of, walk
from hnetkit.registry.links import Link
from hnetkit.registry.store import Registry

Row = dict[str, Any]
How = Literal["symlink", "hardlink", "copy"]
_ANY: tuple[How, ...] = ("symlink", "hardlink", "copy")
_CHUNK = 1 << 20  # bytes
_PATIENCE_S = 60.0
_CHANGED = "not as hnetkit put it there: it is kept"
_LAST = "no other file of the library holds this network any more: it is kept"


@dataclass(frozen=True, slots=True)
class LinkChange:
    """What was done about one file in another program's folder.

    Attributes:
        what: ``"linked"``, ``"updated"``, ``"there"`` (nothing to do), ``"removed"``, ``"skipped"`` (a network that
            the program does not get), or ``"kept"`` (a file that is not removed, since it changed).
        path: in the program's folder.
        source: the library's file; None where no file of the library stands behind it.
        how: ``"symlink"``, ``"hardlink"``, ``"copy"`` or ``"converted"``; None where hnetkit put nothing there.
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
    """Puts networks into a program's folder, and removes the links of those that left the library.

    Args:
        registry: of the library; it remembers what was put where.
        directory: the program's folder; see `layouts.folder_of`.
        program: whose rules hold. What it cannot read is converted to ``.pt``.
        names: of the networks; with none, all of the library.
        how: the only way to be used; None tries a symbolic link, then a hard link, then a copy.
        dry_run: say what would be done, and do nothing.
        progress: told how many networks are done, of how many.

    Raises:
        NotFound: no such folder, or no network of such a name.
        AmbiguousName, FileRefused: a name that stands for several networks, or for none that is usable.
        HnetkitError: another process has been at links for long.
    """
    folder = folder_of(program, directory)
    asked = {resolve(registry, name).content_hash for name in names}
    with _alone(registry, dry_run=dry_run):
        job = _LinkRun(registry, program, folder, how, dry_run)
        wanted = _wanted(registry, job.folder, program, job.placed)
        yield from job.clear(keep={_key_of(item.path) for item in wanted if not item.in_place})
        wanted = [item for item in wanted if not asked or item.content_hash in asked]
        for done, item in enumerate(wanted):
            if progress is not None:
                progress(done, len(wanted))
            yield job.put_safely(item)


def undo(registry: Registry, directory: Path, program: Program, *, dry_run: bool = False) -> Iterator[LinkChange]:
    """Removes what `link` put into a program's folder and is still as it was, with the folders it made, if empty.

    A file that no other one stands for any more is kept, and taken back another time, when there is one again.

    Raises:
        NotFound: no such folder.
        HnetkitError: another process has been at links for long.
    """
    folder = folder_of(program, directory)
    with _alone(registry, dry_run=dry_run):
        job = _LinkRun(registry, program, folder, None, dry_run)
        yield from job.clear(keep=set())
        if not dry_run:
            job.remove_folders()


@contextmanager
def _alone(registry: Registry, *, dry_run: bool) -> Iterator[None]:
    """Between the look whether a file is the last of its network, and its removal, nobody removes another."""
    if dry_run:
        yield
        return
    busy = HnetkitError("another process is at links to other programs", hint="try again when it ended")
    with exclusive_lock(registry.path.parent / "locks" / "links.lock", busy, patience_s=_PATIENCE_S):
        yield


class _LinkRun:
    """One run on one folder.

    Attributes:
        placed: what hnetkit put there before, by `_key_of` its path.
    """

    def __init__(self, registry: Registry, program: Program, folder: Path, how: How | None, dry_run: bool) -> None:
        self.registry, self.program, self.folder, self.how, self.dry_run = registry, program, folder, how, dry_run
        known = registry.links.into(str(folder))
        self.placed = {_key_of(link.path): link for link in known if not _is_folder(link)}
        self.made = [link.path for link in known if _is_folder(link)]

    def put_safely(self, item: _WantedLink) -> LinkChange:
        """Sees to it that one network is there; whatever fails is that network's failure.

        Raises:
            RegistryError, DiskFull: no network can be written down.
        """
        try:
            return self.put(item)
        except (RegistryError, DiskFull):
            raise
        except Exception as error:
            return LinkChange("skipped", str(item.path), str(item.source), reason=_words(error, item.source))

    def put(self, item: _WantedLink) -> LinkChange:
        """Sees to it that one network is there."""
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
        elif other := self._other_of_this_name(item):
            if _holds(other, item.content_hash):
                return LinkChange("there", other, source)
            return LinkChange("skipped", path, source, reason=f"{other} has this name, and is not hnetkit's")
        problem = _refusal(item, self.program)
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
            elif before is not None and _is_untouched(before):  # nothing took its place
                self._put(before)
            raise

    def clear(self, keep: set[str]) -> Iterator[LinkChange]:
        """Removes all that hnetkit put there, less what is to be kept, by `_key_of`."""
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
                except OSError as error:  # it is still ours, to be taken back another time
                    yield LinkChange("kept", link.path, link.source, link.how, _words(error, link.path))
                    continue
                self._forget(link.path)
            if there:
                what, reason = ("removed", None) if untouched else ("kept", _CHANGED)
                yield LinkChange(what, link.path, link.source, link.how, reason)

    def remove_folders(self) -> None:
        """Removes the folders that were made for the links, where they are empty."""
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
        """Whether no file but this one holds its network, neither its source nor another of the library."""
        is_elsewhere = not _is_same_name(link.source, link.path)
        if link.how == "symlink" or (is_elsewhere and _is_same_file(link.source, link.path)):
            return False
        try:
            content = load(link.path).content_hash
        except Exception:  # then nobody knows
            return True
        rows = self.registry.files.holding([content])
        others = (path for path in (link.source, *(row["path"] for row in rows)) if not _is_same_name(path, link.path))
        return not any(_holds(path, content) for path in others)

    def _other_of_this_name(self, item: _WantedLink) -> str | None:
        if os.path.lexists(item.path):
            return str(item.path)
        return self._others.get(self._name_of(item.path))

    @cached_property
    def _others(self) -> dict[str, str]:
        """What the program lists of files that hnetkit did not put there: name -> path."""
        found = (self.folder / file.path for file in walk(self.folder)) if self.folder.is_dir() else ()
        listed = (path for path in found if path.suffix.lower() in self.program.suffixes)
        return {self._name_of(path): str(path) for path in listed if _key_of(path) not in self.placed}

    def _name_of(self, path: Path) -> str:
        """What the program calls a file, so far as two names can hide each other."""
        return folded(path.stem if self.program.named_by == "stem" else str(path.relative_to(self.folder)))

    # --- placing

    def _place(self, item: _WantedLink, *, replace: bool) -> str:
        """Places a file; an older one of ours, as `put` made sure, goes when the new one is whole."""
        self._make_folder()
        if item.convert:
            return self._convert(item, replace=replace)
        ways = (self.how,) if self.how else _ANY
        for way in ways[:-1]:
            try:
                self._place_by(way, item, replace=replace)
                return way
            except OSError:  # no right to, or another disk
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
        """Copies a file under the item's name; `sha256` is what its bytes must have."""
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


# --- which file each network is to be


@dataclass(frozen=True, slots=True)
class _WantedLink:
    """A network of the library, and the file that it is to be in the program's folder.

    Attributes:
        content_hash: of the network.
        row: the registry's row of the file that stands for it.
        path: in the program's folder.
        convert: whether the program needs it in another format.
        in_place: whether it is a file of the library that lies there already.
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
        """Why its file cannot be used now."""
        if self.row["state"] == "corrupt":
            return f"{self.source}: corrupt"
        try:
            status = os.stat(self.source)
        except OSError as error:
            return f"{self.source}: {_words(error, self.source)}"
        if not stat.S_ISREG(status.st_mode):
            return f"{self.source}: not a regular file"
        if (status.st_size, mtime_of(status)) != (self.row["size_bytes"], self.row["mtime_ns"]):
            return f"{self.source}: changed since it was scanned; hnetkit scan"
        return None


def _wanted(registry: Registry, folder: Path, program: Program, placed: Mapping[str, Link]) -> list[_WantedLink]:
    """Returns every network of the library under the name that it has there, or gets; no two names are alike."""
    networks: dict[str, list[Row]] = {}
    for row in registry.files.of_networks():
        if _key_of(row["path"]) not in placed:  # a scan of the program's folder finds the links as well
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
    """What is there, then what lies in the program's folder, then what it can read as it is, comes first.

    What was linked into another program's folder, which may be taken back any time, comes after all that was not.
    """
    first = row["state"] != "present", not _is_in_place(row, folder, program)
    return *first, _key_of(row["path"]) in linked, not _is_readable(row, program)


def _is_readable(row: Row, program: Program) -> bool:
    return Path(row["path"]).suffix.lower() in program.suffixes and row["format"] != "safetensors"


def _is_in_place(row: Row, folder: Path, program: Program) -> bool:
    path = Path(_key_of(row["path"]))
    listed = path.suffix in program.suffixes and path.stem != "None" and _is_readable(row, program)
    return listed and row["state"] == "present" and path.is_relative_to(_key_of(folder))


def _stems_so_far(networks: Mapping[str, list[Row]], placed: Mapping[str, Link]) -> dict[str, str]:
    """The stems under which networks are there already, so far as they fit the names of their files."""
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
    """A path as two spellings of it agree on: links in its folders followed, NFC; a link itself stays itself."""
    folder, name = os.path.split(path)
    return unicodedata.normalize("NFC", os.path.join(os.path.realpath(folder), name))


# --- files


def _is_untouched(link: Link) -> bool:
    """Whether what stands at a link's path is exactly what hnetkit put there."""
    try:
        if link.how == "symlink":
            return os.readlink(link.path).removeprefix("\\\\?\\") == link.source.removeprefix("\\\\?\\")
        if os.path.islink(link.path):
            return False
        if link.how == "hardlink" and _is_same_file(link.path, link.source):
            return True
        with OpenFile(link.path) as file:
            return sha256_of(file) == link.sha256
    except (OSError, HnetkitError):  # another kind of file, or one that cannot be read: then nobody knows
        return False


def _is_same_name(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _is_same_file(path: str, other: str) -> bool:
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def _place_link(make: Callable[[str], None], path: Path, *, replace: bool) -> None:
    """Makes a link; what it replaces goes when it is there."""
    if not replace:
        make(str(path))
        return
    made = str(path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}{TEMPORARY}"))
    try:
        make(made)
        os.replace(made, path)
    finally:
        if os.path.lexists(made):  # a file in place of itself leaves both names
            os.unlink(made)


def _refusal(item: _WantedLink, program: Program) -> str | None:
    """Why a program must not get a file: size and time are as they were scanned, its content need not be."""
    try:
        network = load(item.source)
    except HnetkitError as error:
        return str(error)
    out_of_order = program.by_order and not item.convert and OUT_OF_ORDER in network.warnings
    return f"{item.source}: {OUT_OF_ORDER}" if out_of_order else None


def _holds(path: str | Path, content_hash: str) -> bool:
    try:
        return load(path).content_hash == content_hash
    except Exception:  # whatever it is, it is not that network
        return False


def _words(error: Exception, what: str | Path) -> str:
    failure = failure_of(error, str(what))
    if isinstance(error, OSError) and not isinstance(failure, DiskFull):
        return str(error.strerror or error)
    return str(failure)


# --- folders that were made are remembered as links without a source


def _folder_link(path: str, folder: str, layout: str) -> Link:
    return Link(path, folder, layout, how="copy", source="", sha256="")


def _is_folder(link: Link) -> bool:
    return not link.source
