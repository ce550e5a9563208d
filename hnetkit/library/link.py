"""Links to other programs' folders: put the library's networks there, keep them up to date, and remove them again.

A network comes with its sidecars: previews, notes, records. A file that hnetkit did not put there, that changed since,
or that is the last one with its network, is never overwritten and never removed; and nothing is removed before what
comes instead is there. Only one process at a time does this, because two could each rely on the file that the other
removes.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hnetkit.errors import (
    WHERE_GONE,
    DiskFull,
    FileChanged,
    HnetkitError,
    NotFound,
    RegistryError,
    UsageError,
    failure_of,
)
from hnetkit.files import is_absence, is_folder_at, is_model_name, is_there, mtime_of
from hnetkit.formats import load, save
from hnetkit.formats.a1111 import OUT_OF_ORDER
from hnetkit.library import sidecars
from hnetkit.library.layouts import PROGRAMS, Program, TakenNames, folded, folder_of, program_at, stem_for_layout
from hnetkit.library.placing import (
    How,
    Placing,
    holds,
    is_same_bytes,
    is_same_name,
    is_untouched,
    key_of,
    links_locked,
)
from hnetkit.library.resolve import resolve
from hnetkit.library.walking import is_same_file, walk
from hnetkit.registry.links import Link
from hnetkit.registry.store import Registry

Row = dict[str, Any]
CHANGED = "changed since hnetkit put it there: it is kept"
_LAST = "no other file of the library holds this network any more: it is kept"
_LAST_KNOWN = "the last file of a network that the library knows: move it into the library, then hnetkit scan"
_LAST_SIDECAR = "the file that it was made from is gone: it is kept"
_NO_RECORD = "leads to the library, but hnetkit has no record of making it: it is kept"
NOT_OURS = "it is not from hnetkit: it is kept"


@dataclass(frozen=True, slots=True)
class LinkChange:
    """What was done with one file in another program's folder.

    Attributes:
        what: ``"linked"``, ``"updated"``, ``"there"`` (nothing to do), ``"removed"``, ``"skipped"`` (the program does
            not get this file), or ``"kept"`` (a file that is not removed or replaced).
        path: in the program's folder.
        source: the library's file; None if there is none.
        how: ``"symlink"``, ``"hardlink"``, ``"copy"`` or ``"converted"``; None if hnetkit put nothing there.
        reason: why it was skipped or kept, or why it has another name there.
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
    """Puts networks and their sidecars into a program's folder, and removes those of networks that left the library.

    Args:
        registry: of the library; it records what was put where.
        directory: the program's folder; see `layouts.folder_of`.
        program: the program. Files that it cannot read are converted to ``.pt``.
        names: of the networks; without any, all of the library.
        how: the only way to use; None goes on in the way of what is there, and else tries a symbolic link, then a hard
            link, then a copy.
        dry_run: yield what would be done, and do nothing.
        progress: called with the number of networks done, and of all.

    Raises:
        NotFound: no such folder, or no network with such a name.
        AmbiguousName, FileRefused: a name matches several networks, or only unusable files.
        HnetkitError: another process is changing links and did not finish in time.
    """
    folder = folder_of(program, directory)
    requested = {resolve(registry, name).content_hash for name in names}
    with links_locked(registry, dry_run=dry_run):
        job = _LinkRun(registry, program, folder, how, dry_run)
        every = _wanted(registry, job.folder, program, job.placed)
        wanted = [item for item in every if not requested or item.content_hash in requested]
        standing: set[str] = set()
        for done, item in enumerate(wanted):
            if progress is not None:
                progress(done, len(wanted))
            change = job.put_or_skip(item)
            yield change
            if change.what != "skipped":
                standing.add(item.content_hash)
                if change.how is not None:  # hnetkit's own file, and not one that was there already
                    yield from job.put_beside(item)
        yield from job.clear(every, standing)


def undo(registry: Registry, directory: Path, program: Program, *, dry_run: bool = False) -> Iterator[LinkChange]:
    """Removes the unchanged files that `link` put into a program's folder, and the folders it made, if empty.

    A file that has become the last one with its network is kept, until another file holds the network again.

    Raises:
        NotFound: no such folder.
        HnetkitError: another process is changing links and did not finish in time.
    """
    folder = folder_of(program, directory)
    with links_locked(registry, dry_run=dry_run):
        job = _LinkRun(registry, program, folder, None, dry_run)
        yield from job.clear()
        yield from job.unknown()
        if not dry_run:
            job.placing.remove_folders(job.made)


def program_for(registry: Registry, directory: Path) -> Program:
    """Returns the program that a folder belongs to: the one that was linked into it before, or told by its files.

    Raises:
        NotFound: no such folder.
        UsageError: nothing tells it.
    """
    if not is_folder_at(directory):
        raise NotFound(f"{directory}: no such folder", hint="give the folder that a program is installed in")
    known = [
        program
        for program in PROGRAMS.values()
        if program.name in {link.layout for link in registry.links.into(str(folder_of(program, directory)))}
    ]
    found = known[0] if len(known) == 1 else program_at(directory)
    if found is None:
        raise UsageError(
            f"{directory}: nothing in it tells which program it belongs to",
            hint=f"add --layout PROGRAM: {', '.join(PROGRAMS)}",
        )
    return found


class _LinkRun:
    """One run on one folder.

    Attributes:
        placing: puts files there.
        placed: the files that hnetkit put there before, by `key_of` their paths.
        made: paths of folders that hnetkit created there.
    """

    def __init__(self, registry: Registry, program: Program, folder: Path, how: How | None, dry_run: bool) -> None:
        self.registry, self.program, self.folder, self.how, self.dry_run = registry, program, folder, how, dry_run
        self.placing = Placing(registry, folder, program.name, how)
        self.placed, self.made = self.placing.known(dry_run=dry_run)
        self.placing.go_on_as(link.how for link in self.placed.values())
        self._beside: dict[str, Path] = {}  # the sidecars of this run: key of the path -> source

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
        path, source = str(item.path), str(item.source)
        problem = item.problem()
        if problem:
            return LinkChange("skipped", path, source, reason=problem)
        if item.in_place:
            return LinkChange("there", path, source)
        before = self._placed_at(item.path)
        if before is not None:
            if not is_untouched(before):
                return LinkChange("skipped", path, source, reason=CHANGED)
            if self._is_current(before, item):
                return LinkChange("there", path, source, before.how)
            if self._is_last(before) and (before.source != source or self._is_known(before)):
                reason = _LAST if before.source != source else _LAST_KNOWN
                return LinkChange("skipped", path, source, reason=reason)
        elif other := self._name_taken_by(item):
            if holds(other, item.content_hash):
                return LinkChange("there", other, source)
            return LinkChange("skipped", path, source, reason=f"{other} has this name, and is not from hnetkit")
        problem = _why_refused(item, self.program)
        if problem:
            return LinkChange("skipped", path, source, reason=problem)
        what = "updated" if before is not None else "linked"
        how: str = "converted" if item.convert else self.placing.ways[0]
        if not self.dry_run:
            how = self._place(item, replace=before is not None)
        return LinkChange(what, path, source, how, item.renamed)

    def put_beside(self, item: _WantedLink) -> Iterator[LinkChange]:
        """Puts the sidecars of a network beside it; any failure skips that sidecar alone."""
        for suffix, source in item.beside.items():
            path = item.path.with_name(item.path.stem + suffix)
            self._beside[key_of(path)] = source
            try:
                yield self._put_sidecar(source, path)
            except (RegistryError, DiskFull):
                raise
            except Exception as error:
                yield LinkChange("skipped", str(path), str(source), reason=_reason_of(error, source))

    def _put_sidecar(self, source: Path, path: Path) -> LinkChange:
        before = self._placed_at(path)
        what = "linked"
        if before is not None:
            if not is_untouched(before):
                return LinkChange("kept", str(path), str(source), reason=CHANGED)
            is_new = before.source != str(source) or self.how not in (None, before.how)
            if not is_new and (before.how == "symlink" or is_same_bytes(path, source)):
                return LinkChange("there", str(path), str(source), before.how)
            what = "updated"
        elif is_there(path):
            if is_same_bytes(path, source):
                return LinkChange("there", str(path), str(source))
            return LinkChange("kept", str(path), str(source), reason=NOT_OURS)
        how: str = self.placing.ways[0]
        if not self.dry_run:
            how = self.placing.place(source, path, sha256=None, replace=before is not None)
        return LinkChange(what, str(path), str(source), how)

    def clear(self, wanted: Sequence[_WantedLink] = (), standing: Set[str] = frozenset()) -> Iterator[LinkChange]:
        """Removes what hnetkit put there and is not wanted there any more.

        Args:
            wanted: the networks that belong there.
            standing: contents of those that are there now. Of the others, everything stays as it is.
        """
        keep = {key_of(item.path) for item in wanted if not item.in_place} | self._beside.keys()
        waiting = {path for item in wanted if item.content_hash not in standing for path in item.paths}
        waiting_stems = {os.path.splitext(key)[0] for key, link in self.placed.items() if link.source in waiting}
        spared = {stem + suffix for stem in waiting_stems for suffix in sidecars.SUFFIXES}
        for key, link in self.placed.items():
            if key in keep or key in spared or link.source in waiting:
                continue
            try:
                there = is_there(link.path)
                is_away = not there and not is_folder_at(self.folder)
            except OSError as error:
                yield LinkChange("kept", link.path, link.source, link.how, _reason_of(error, link.path))
                continue
            if is_away:  # its disk may be back tomorrow
                continue
            untouched = there and is_untouched(link)
            if untouched and self._is_last(link):
                reason = _LAST if is_model_name(link.path) else _LAST_SIDECAR
                yield LinkChange("kept", link.path, link.source, link.how, reason)
                continue
            if not self.dry_run:
                try:
                    if untouched:
                        os.unlink(link.path)
                except OSError as error:  # the record stays, so that it can be removed another time
                    yield LinkChange("kept", link.path, link.source, link.how, _reason_of(error, link.path))
                    continue
                self.placing.forget(link.path)
            if there:
                what = "removed" if untouched else "kept"
                yield LinkChange(what, link.path, link.source, link.how, None if untouched else CHANGED)

    def unknown(self) -> Iterator[LinkChange]:
        """Names the links to the library that nothing is known of, as where the registry is older than they are."""
        try:
            foreign = list(map(Path, self._foreign_files.values()))
        except (OSError, HnetkitError) as error:
            yield LinkChange("kept", str(self.folder), reason=_reason_of(error, self.folder))
            return
        for path in foreign:
            for row in self.registry.files.named(path.stem):
                if str(path) != row["path"] and is_same_file(str(path), row["path"]):
                    yield LinkChange("kept", str(path), row["path"], reason=_NO_RECORD)
                    break

    # --- what is there

    def _placed_at(self, path: Path) -> Link | None:
        """The file that hnetkit put at this path before and that is still there, changed or not."""
        if not is_there(path):
            return None
        return self.placed.get(key_of(path)) or self._spelled_anew(path)

    def _spelled_anew(self, path: Path) -> Link | None:
        """Gives the file that hnetkit put there under other capitals its new ones, where a disk knows no difference."""
        link = self._by_folded_path.get(folded(str(path)))
        if link is None or path.name in os.listdir(path.parent):
            return None
        del self.placed[key_of(link.path)]
        if not self.dry_run:
            os.rename(link.path, path)
            link = self.placing.move(link, path)
        self.placed[key_of(path)] = link
        return link

    @cached_property
    def _by_folded_path(self) -> dict[str, Link]:
        return {folded(link.path): link for link in self.placed.values()}

    def _is_current(self, link: Link, item: _WantedLink) -> bool:
        if link.source != str(item.source) or (link.how == "converted") != item.convert:
            return False
        if item.convert:
            return holds(link.path, item.content_hash)
        return link.sha256 == item.row["sha256"] and self.how in (None, link.how)

    def _is_known(self, link: Link) -> bool:
        """Whether the registry keeps what a network's file holds: a scan found it, or a person said something of it."""
        try:
            return bool(self.registry.networks.of_contents([load(link.path).content_hash]))
        except HnetkitError:
            return False

    def _is_last(self, link: Link) -> bool:
        """Whether no other file holds what it holds: neither its source nor, of a network, another of the library."""
        is_elsewhere = not is_same_name(link.source, link.path)
        if link.how == "symlink" or (is_elsewhere and is_same_file(link.source, link.path)):
            return False
        if not is_model_name(link.path):
            is_there = is_elsewhere and os.path.isfile(link.source)
            sources = self._beside_by_size.get(os.path.getsize(link.path), ())
            return not is_there and not any(is_same_bytes(link.path, source) for source in sources)
        try:
            content = load(link.path).content_hash
        except Exception:  # unreadable, so be careful
            return True
        rows = self.registry.files.holding([content])
        others = (path for path in (link.source, *(row["path"] for row in rows)) if not is_same_name(path, link.path))
        return not any(holds(path, content) for path in others)

    @cached_property
    def _beside_by_size(self) -> dict[int, list[Path]]:
        found: dict[int, list[Path]] = {}
        for source in self._beside.values():
            with suppress(OSError):
                found.setdefault(os.path.getsize(source), []).append(source)
        return found

    def _name_taken_by(self, item: _WantedLink) -> str | None:
        if is_there(item.path):
            return str(item.path)
        return self._foreign_files.get(self._name_of(item.path))

    @cached_property
    def _foreign_files(self) -> dict[str, str]:
        """The files that the program lists and hnetkit did not put there: name -> path."""
        found = (self.folder / file.path for file in walk(self.folder))
        listed = (path for path in found if path.suffix.lower() in self.program.suffixes)
        return {self._name_of(path): str(path) for path in listed if key_of(path) not in self.placed}

    def _name_of(self, path: Path) -> str:
        """The program's name for a file, folded so that names that hide each other are equal."""
        return folded(path.stem if self.program.named_by == "stem" else str(path.relative_to(self.folder)))

    # --- placing

    def _place(self, item: _WantedLink, *, replace: bool) -> str:
        self.placing.make_folder()
        if not item.convert:
            return self.placing.place(item.source, item.path, sha256=item.row["sha256"], replace=replace)
        with tempfile.TemporaryDirectory(prefix="hnetkit-") as scratch:
            converted = Path(scratch) / "converted.pt"
            save(load(item.source), converted)
            if not holds(converted, item.content_hash):
                raise FileChanged(f"{item.source}: not what was scanned", hint="hnetkit scan")
            self.placing.copy(converted, item.path, "converted", replace=replace, recorded=item.source)
        return "converted"


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
        paths: of all of the library's files that hold it, and are no links of hnetkit's; the best first.
    """

    content_hash: str
    row: Row
    path: Path
    convert: bool
    in_place: bool
    paths: tuple[str, ...]

    @property
    def source(self) -> Path:
        return Path(self.row["path"])

    @property
    def renamed(self) -> str | None:
        """Why its name there is not the one that prompts know; None if it is."""
        stem, name = self.path.stem, self.row["stem"]
        if stem in {unicodedata.normalize("NFC", Path(path).stem) for path in self.paths}:
            return None
        by_rule = stem_for_layout(name)
        why = f"{name} cannot be a name there" if by_rule == stem else f"another network is {by_rule} there"
        return f"its name there is {stem}: {why}"

    @property
    def beside(self) -> dict[str, Path]:
        """The sidecars of its files: suffix -> path. Of several with one suffix, that of the best file counts."""
        found: dict[str, Path] = {}
        for path in self.paths:
            found = sidecars.beside(Path(path)) | found
        return found

    def problem(self) -> str | None:
        """Why its file cannot be used now; None if it can."""
        if self.row["state"] == "corrupt":
            return f"{self.source}: corrupt"
        try:
            status = os.stat(self.source)
        except OSError as error:
            step = WHERE_GONE if is_absence(error) else "hnetkit scan"
            return f"{self.source}: {_reason_of(error, self.source)}; {step}"
        if not stat.S_ISREG(status.st_mode):
            return f"{self.source}: not a regular file"
        if not _is_as_scanned(self.row):
            return f"{self.source}: changed since it was scanned; hnetkit scan"
        return None


def _wanted(registry: Registry, folder: Path, program: Program, placed: Mapping[str, Link]) -> list[_WantedLink]:
    """Returns every network of the library with its path in the program's folder; no two names collide."""
    networks: dict[str, list[Row]] = {}
    for row in registry.files.of_networks():
        if key_of(row["path"]) not in placed:  # a scan of the program's folder also finds the links
            networks.setdefault(row["content_hash"], []).append(row)
    linked = {key_of(path) for path in registry.links.paths()}
    for rows in networks.values():
        rows.sort(key=lambda row: _rank(row, folder, program, linked))
    in_place = {content for content, (best, *_) in networks.items() if _is_in_place(best, folder, program)}
    stems = _stems_so_far(networks, placed)
    taken = TakenNames([*stems.values(), *(networks[content][0]["stem"] for content in in_place)])
    wanted = []
    for content, (row, *others) in networks.items():
        stem = stems.get(content) or (row["stem"] if content in in_place else taken.free(stem_for_layout(row["stem"])))
        taken.add(stem)
        convert = not _is_readable(row, program)
        path = folder / (stem + (".pt" if convert else Path(row["path"]).suffix.lower()))
        path = Path(row["path"]) if content in in_place else path
        own = (row["path"], *(other["path"] for other in others if key_of(other["path"]) not in linked))
        wanted.append(_WantedLink(content, row, path, convert, content in in_place, own))
    return wanted


def _rank(row: Row, folder: Path, program: Program, linked: Set[str]) -> tuple[bool, ...]:
    """The sort key of a network's files, the best first: there as scanned, in the program's folder, readable as it is.

    Links in another program's folder, which may be removed at any time, come after files that are not links.
    """
    first = not _is_as_scanned(row), row["state"] != "present", not _is_in_place(row, folder, program)
    return *first, key_of(row["path"]) in linked, not _is_readable(row, program)


def _is_as_scanned(row: Row) -> bool:
    try:
        status = os.stat(row["path"])
    except (OSError, ValueError):
        return False
    return (status.st_size, mtime_of(status)) == (row["size_bytes"], row["mtime_ns"])


def _is_readable(row: Row, program: Program) -> bool:
    return Path(row["path"]).suffix.lower() in program.suffixes and row["format"] != "safetensors"


def _is_in_place(row: Row, folder: Path, program: Program) -> bool:
    path = Path(key_of(row["path"]))
    listed = path.suffix in program.suffixes and path.stem != "None" and _is_readable(row, program)
    return listed and row["state"] == "present" and path.is_relative_to(key_of(folder))


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


# --- files


def _why_refused(item: _WantedLink, program: Program) -> str | None:
    """Why a program must not get a file; size and time are as scanned, but the content may not be."""
    try:
        network = load(item.source)
    except HnetkitError as error:
        return str(error)
    out_of_order = program.by_order and not item.convert and OUT_OF_ORDER in network.warnings
    return f"{item.source}: {OUT_OF_ORDER}" if out_of_order else None


def _reason_of(error: Exception, what: str | Path) -> str:
    failure = failure_of(error, str(what))
    if isinstance(error, OSError) and error.errno == errno.EXDEV:
        return "on another disk, to which no hard link leads; --copy copies it"
    if isinstance(error, OSError) and not isinstance(failure, DiskFull):
        return str(error.strerror or error)
    return str(failure)
