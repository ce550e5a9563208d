"""Removing networks from the library: their files move to a trash on the same disk.

What is planned is looked up on the disk first, and asked about; then a journal is written, links in other programs'
folders are taken away, the files move, and last the registry forgets them. A removal that was cut short anywhere is
taken back by the next one, or by bringing it back. Nothing is deleted but what has another copy at its place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError
from hnetkit.files import TEMPORARY, is_absent, is_there, mtime_of
from hnetkit.library import trash
from hnetkit.library.belongings import Belongings
from hnetkit.library.disks import Disks
from hnetkit.library.placing import is_same_entry, is_untouched, key_of, links_locked, way_of
from hnetkit.library.resolve import resolve
from hnetkit.library.restore import RemovalChange, locked, reason_of, stamp, take_back, take_back_unfinished
from hnetkit.library.trash import Entry, TrashedFile
from hnetkit.library.walking import is_gone
from hnetkit.registry.links import Link
from hnetkit.registry.store import Registry
from hnetkit.text import argument

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that is to be removed.

    Attributes:
        root: the folder of the library that it is under.
        path: of the file.
        row: the registry's row.
        beside: its sidecars.
    """

    root: Path
    path: Path
    row: Row
    beside: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class PlannedNetwork:
    """A network, or a file that holds none, that is to be removed.

    Attributes:
        name: of the network or the file.
        content_hash: of the network; None without one.
        files: to move.
        gone: ids of rows of files that are gone already, or are one of `files` under another name; they are forgotten
            with these.
    """

    name: str
    content_hash: str | None
    files: tuple[PlannedFile, ...]
    gone: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Removal:
    """What `Library.remove` is about to do.

    Attributes:
        networks: with their files.
        changes: files that are not removed, and why; and what an earlier removal left undone.
    """

    networks: tuple[PlannedNetwork, ...]
    changes: tuple[RemovalChange, ...]

    @property
    def files(self) -> list[Path]:
        """The model files to move."""
        return [file.path for network in self.networks for file in network.files]

    @property
    def beside(self) -> list[Path]:
        """Their sidecars."""
        return [path for network in self.networks for file in network.files for path in file.beside]


# --- planning


def plan(registry: Registry, names: Iterable[str], *, dry_run: bool = False) -> Removal:
    """Returns what is to be removed, after a removal that was cut short has been taken back.

    Args:
        registry: of the library.
        names: of networks, for all files of each; or paths of files, for these alone.
        dry_run: take nothing back.

    Raises:
        NotFound, AmbiguousName, FileRefused: a name means no network, several, or only unusable files.
        HnetkitError: another process is removing files and did not finish in time.
    """
    changes: list[RemovalChange] = []
    if not dry_run:
        with locked(registry):
            changes += take_back_unfinished(registry)
    disks = Disks(registry)
    found: dict[str, tuple[str, str | None, list[Row]]] = {}
    linked = {key_of(path) for path in registry.links.paths()}
    for name in names:
        for title, content, row in _called(registry, name, linked):
            _, _, rows = found.setdefault(content or row["path"], (title, content, []))
            if row["id"] not in {other["id"] for other in rows}:
                rows.append(row)
    why_not = {row["path"]: _why_not(disks, row) for _, _, rows in found.values() for row in rows}
    leaving = {path for path, why in why_not.items() if why is None}
    belongings = Belongings(leaving)
    networks = []
    for title, content, rows in found.values():
        files: list[PlannedFile] = []
        gone: list[Row] = []
        for row in sorted(rows, key=lambda row: why_not[row["path"]] is not None):  # what goes, then its other names
            path, why = row["path"], why_not[row["path"]]
            if why == "" or any(is_same_entry(file.path, path) for file in files):
                gone.append(row)
            elif why:
                changes.append(RemovalChange("skipped", path, title, reason=why))
            else:
                beside, staying = belongings.of(Path(path))
                files.append(PlannedFile(disks.root_of(path), Path(path), row, beside))
                changes += [RemovalChange("kept", str(other), title, reason=reason) for other, reason in staying]
        if not files:  # without a journal nothing would bring back what people said of it
            reason = f"not there any more: hnetkit scan looks for it, hnetkit forget {argument(title)} forgets it"
            changes += [RemovalChange("skipped", row["path"], title, reason=reason) for row in gone]
            continue
        if content is not None:
            left = _links_left(registry, content, leaving, linked)
            changes += [RemovalChange("kept", path, title, reason=reason) for path, reason in left]
        networks.append(PlannedNetwork(title, content, tuple(files), tuple(row["id"] for row in gone)))
    return Removal(tuple(networks), tuple(changes))


def _called(registry: Registry, name: str, linked: Set[str]) -> Iterator[tuple[str, str | None, Row]]:
    """Yields name, content and row of each file that a name or a path means; a name means no links of hnetkit's."""
    at = registry.files.at_typed(name)
    if not at:
        network = resolve(registry, name)
        for row in registry.files.holding([network.content_hash]):
            if key_of(row["path"]) not in linked:
                yield network.name, network.content_hash, row
    for row in at:
        yield row["stem"], row["content_hash"], row


def _why_not(disks: Disks, row: Row) -> str | None:
    """Why a file cannot be removed; None if it can, an empty text if it is gone."""
    path = Path(row["path"])
    root = disks.root_of(path)
    try:
        status, folder, own = os.stat(path), os.stat(path.parent), os.stat(root)
    except (FileNotFoundError, NotADirectoryError):
        if not is_absent(path):
            return "a link to a file that is not there"
        away = disks.away(row)
        return f"{away}; hnetkit scan looks for it, {away.forgotten_by} forgets it" if away else ""
    except OSError as error:
        return str(error.strerror or error)
    if stat.S_ISDIR(status.st_mode):  # the file is gone, whatever has its name
        return ""
    if (status.st_size, mtime_of(status)) != (row["size_bytes"], row["mtime_ns"]):
        return "changed since it was scanned; hnetkit scan"
    if folder.st_dev != own.st_dev or not trash.is_inside(path.parent, root):
        return f"not on the disk of {root}: scan its own folder, {path.parent}, first"
    return None


def _links_left(
    registry: Registry, content_hash: str, leaving: Set[str], linked: Set[str]
) -> Iterator[tuple[str, str]]:
    """Yields the user's links that lead to files of a network that leave, and stay themselves, with the reason."""
    going = {key_of(path): path for path in leaving}
    for row in registry.files.holding([content_hash]):
        path = row["path"]
        key, *way = way_of(path)
        if path in leaving or key in linked:
            continue
        if (target := next((going[step] for step in way if step in going), None)) is not None:
            yield path, f"a link to {target}, and to nothing once that is in the trash"


# --- removing


@dataclass(frozen=True, slots=True)
class _Records:
    """What one command looks up for each of many networks.

    Attributes:
        links: what `link` made of each file of the library, by the file's path.
        installs: the files that were fetched, by path.
        taken: sidecars that go already: two files of one stem share them.
        moved: keys of what is in the trash by now, which links that go too may lead to.
    """

    links: Mapping[str, list[Link]]
    installs: Mapping[str, Row]
    taken: set[Path] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, registry: Registry) -> _Records:
        links: dict[str, list[Link]] = {}
        for link in registry.links.rows():
            if not link.path.endswith(TEMPORARY):
                links.setdefault(link.source, []).append(link)
        return cls(links, {install["path"]: install for install in registry.jobs.installs()})

    def links_to(self, places: Iterable[str]) -> list[Link]:
        return [link for place in places for link in self.links.get(place, ())]


def carry_out(registry: Registry, removal: Removal) -> Iterator[RemovalChange]:
    """Moves what was planned into the trash, and yields what happened to each file.

    Raises:
        HnetkitError: another process is removing files and did not finish in time.
        RegistryError, DiskFull: the registry cannot be written; what was moved for this network is back.
    """
    yield from removal.changes
    with locked(registry), links_locked(registry, dry_run=False):
        batch = trash.new_batch(root.path for root in registry.files.roots())
        records = _Records.read(registry)
        for network in removal.networks:
            begun: list[Entry] = []
            try:
                yield from _remove(registry, network, batch, begun, records)
            except BaseException:
                with suppress(Exception):  # the next removal tries again
                    list(take_back(registry, begun))
                raise


def _remove(
    registry: Registry, network: PlannedNetwork, batch: str, begun: list[Entry], records: _Records
) -> Iterator[RemovalChange]:
    moved = set[str]()
    for root in dict.fromkeys(file.root for file in network.files):
        files = [file for file in network.files if file.root == root]
        entry = _entry(registry, network, root, files, batch, records)
        try:
            trash.begin(entry)
        except (OSError, HnetkitError) as error:
            why = reason_of(error, root)
            yield from (RemovalChange("skipped", str(file.path), network.name, reason=why) for file in files)
            continue
        begun.append(entry)
        yield from _unlink(registry, entry, records)
        for file in entry.files:
            if file.of is None or str(root / file.of) in moved:
                change = _put_in(entry, file, records.moved)
                yield change
                if change.what == "removed":
                    moved.add(change.path)
    forgotten = [file.row["id"] for file in network.files if str(file.path) in moved]
    forgotten += network.gone if moved else ()
    with registry.write():
        for install in (install for entry in begun for install in entry.installs if install["path"] in moved):
            registry.jobs.let_go(install["path"])
        registry.files.forget(forgotten)
        if network.content_hash is not None:
            registry.networks.forget_fileless([network.content_hash])
    for entry in begun:
        if any(str(entry.place(file)) in moved for file in entry.files):
            trash.write(replace(entry, is_done=True))
        else:
            trash.close(entry)


def _entry(
    registry: Registry, network: PlannedNetwork, root: Path, files: list[PlannedFile], batch: str, records: _Records
) -> Entry:
    listed: list[TrashedFile] = []
    for file in files:
        of = file.path.relative_to(root).as_posix()
        row = file.row
        name = trash.stored_name(len(listed), file.path)
        listed.append(TrashedFile(of, name, row["size_bytes"], row["mtime_ns"], row["sha256"], row["first_seen"]))
        for path in file.beside:
            if path not in records.taken:
                records.taken.add(path)
                stored = trash.stored_name(len(listed), path)
                listed.append(TrashedFile(path.relative_to(root).as_posix(), stored, of=of))
    places = [str(root.joinpath(file.path)) for file in listed]
    return Entry(
        root,
        trash.folder_for(root, batch),
        batch,
        network.name,
        network.content_hash,
        tuple(listed),
        _words(registry, network.content_hash),
        tuple({key: getattr(link, key) for key in ("path", "folder", "layout")} for link in records.links_to(places)),
        tuple(_install(registry, records.installs[place]) for place in places if place in records.installs),
    )


def _install(registry: Registry, install: Row) -> Row:
    """The record of a fetched file with its job's key: the number of a job means another one in another registry."""
    job = install["job_id"]
    return install | {"job_key": registry.jobs.get(job).key if job is not None else None}


def _words(registry: Registry, content_hash: str | None) -> dict[str, Any]:
    if content_hash is None:
        return {}
    row = registry.networks.of_content(content_hash)
    training = registry.trainings.of(content_hash)
    words = {key: row[key] for key in ("tags", "note", "aliases")}
    return words | {"training": asdict(training) if training else None}


def _unlink(registry: Registry, entry: Entry, records: _Records) -> Iterator[RemovalChange]:
    """Takes away what `link` put into other programs' folders for the files of a removal, where it is unchanged."""
    for link in records.links_to(str(entry.place(file)) for file in entry.files):
        try:
            if not is_there(link.path):
                if is_gone(Path(link.folder)):
                    reason = f"{link.folder} is not there: where its disk or the folder is now, a link leads nowhere"
                    yield RemovalChange("kept", link.path, entry.name, reason=reason)
                continue
            if not is_untouched(link):
                reason = f"in {link.folder}; changed since hnetkit put it there"
                yield RemovalChange("kept", link.path, entry.name, reason=reason)
                continue
            os.unlink(link.path)
        except OSError as error:
            yield RemovalChange("kept", link.path, entry.name, reason=reason_of(error, link.path))
            continue
        with registry.write():
            registry.links.forget([link.path])
        yield RemovalChange("unlinked", link.path, entry.name)


def _put_in(entry: Entry, file: TrashedFile, moved: set[str]) -> RemovalChange:
    place, stored = entry.place(file), entry.stored(file)
    try:
        key, *way = way_of(place)
        is_led_to = not moved.isdisjoint(way)  # a link whose file, looked at before, has gone already
        if file.of is None and not is_led_to and stamp(place) != (file.size_bytes, file.mtime_ns):
            raise HnetkitError(f"{place}: changed since it was scanned")
        trash.put_in(entry, file)
        moved.add(key)
    except (OSError, HnetkitError) as error:
        return RemovalChange("skipped", str(place), entry.name, reason=reason_of(error, place))
    return RemovalChange("removed", str(place), entry.name, str(stored))
