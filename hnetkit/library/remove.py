"""Removing networks from the library, and bringing them back: their files move to a trash on the same disk.

What is planned is looked up on the disk first, and asked about; then a journal is written, links in other programs'
folders are taken away, the files move, and last the registry forgets them. A removal that was cut short anywhere is
taken back by the next one, or by bringing it back. Nothing is deleted but what has another copy at its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError, NotFound, UsageError, failure_of
from hnetkit.files import TEMPORARY, exclusive_lock, is_absent, is_there, mtime_of
from hnetkit.formats.open_file import sha256_at
from hnetkit.library import trash
from hnetkit.library.belongings import Belongings
from hnetkit.library.disks import Disks
from hnetkit.library.placing import is_same_entry, is_untouched, key_of, links_locked
from hnetkit.library.prompt_names import require_alias
from hnetkit.library.resolve import label, resolve
from hnetkit.library.scan import add_file
from hnetkit.library.trash import Entry, TrashedFile
from hnetkit.library.walking import bare_way, is_gone
from hnetkit.registry.links import Link
from hnetkit.registry.networks import Training
from hnetkit.registry.store import Registry
from hnetkit.text import argument

Row = dict[str, Any]
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class RemovalChange:
    """What was done with one file.

    Attributes:
        what: ``"removed"`` (it is in the trash), ``"restored"`` (it is at its place again), ``"unlinked"`` (a link in
            another program's folder, which is gone), ``"kept"`` (it stays on purpose) or ``"skipped"`` (it could not
            be moved).
        path: its place.
        network: the name of its network.
        trash: where it is in the trash; None if it is not.
        reason: why it was kept or skipped, or what else is to be known.
    """

    what: str
    path: str
    network: str
    trash: str | None = None
    reason: str | None = None


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
        with _locked(registry):
            changes += _take_back_unfinished(registry)
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
        for row in rows:
            path, why = row["path"], why_not[row["path"]]
            if why:
                changes.append(RemovalChange("skipped", path, title, reason=why))
            elif why == "" or any(is_same_entry(file.path, path) for file in files):
                gone.append(row)
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
        return f"{away}; {away.forgotten_by} forgets it" if away else ""
    except OSError as error:
        return str(error.strerror or error)
    if (status.st_size, mtime_of(status)) != (row["size_bytes"], row["mtime_ns"]):
        return "changed since it was scanned; hnetkit scan"
    if folder.st_dev != own.st_dev or not trash.is_inside(path.parent, root):
        return f"not on the disk of {root}: scan its own folder, {path.parent}, first"
    return None


def _links_left(
    registry: Registry, content_hash: str, leaving: Set[str], linked: Set[str]
) -> Iterator[tuple[str, str]]:
    """Yields the user's links that lead to files of a network that leave, and stay themselves, with the reason."""
    real = {os.path.realpath(path): path for path in leaving}
    for row in registry.files.holding([content_hash]):
        path = row["path"]
        if path in leaving or key_of(path) in linked or not os.path.islink(path):
            continue
        if (target := real.get(os.path.realpath(path))) is not None:
            yield path, f"a link to {target}, and to nothing once that is in the trash"


# --- removing


@dataclass(frozen=True, slots=True)
class _Records:
    """What one command looks up for each of many networks.

    Attributes:
        links: what `link` made of each file of the library, by the file's path.
        installs: the files that were fetched, by path.
        taken: sidecars that go already: two files of one stem share them.
    """

    links: Mapping[str, list[Link]]
    installs: Mapping[str, Row]
    taken: set[Path] = field(default_factory=set)

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
    with _locked(registry), links_locked(registry, dry_run=False):
        batch = trash.new_batch(root.path for root in registry.files.roots())
        records = _Records.read(registry)
        for network in removal.networks:
            begun: list[Entry] = []
            try:
                yield from _remove(registry, network, batch, begun, records)
            except BaseException:
                with suppress(Exception):  # the next removal tries again
                    for entry in begun:
                        list(_take_back(registry, entry))
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
            why = _reason_of(error, root)
            yield from (RemovalChange("skipped", str(file.path), network.name, reason=why) for file in files)
            continue
        begun.append(entry)
        yield from _unlink(registry, entry, records)
        for file in entry.files:
            if file.of is None or str(root / file.of) in moved:
                change = _put_in(entry, file)
                yield change
                if change.what == "removed":
                    moved.add(change.path)
    forgotten = [file.row["id"] for file in network.files if str(file.path) in moved]
    forgotten += network.gone if moved else ()
    with registry.write():
        for install in (install for entry in begun for install in entry.installs if install["path"] in moved):
            registry.jobs.forget_install(install["path"])
            if install["kind"] == "network" and install["job_id"] is not None:
                registry.jobs.add_had(install["job_id"], install["sha256"])
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
    (row,) = registry.networks.of_contents([content_hash])
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
            yield RemovalChange("kept", link.path, entry.name, reason=_reason_of(error, link.path))
            continue
        with registry.write():
            registry.links.forget([link.path])
        yield RemovalChange("unlinked", link.path, entry.name)


def _put_in(entry: Entry, file: TrashedFile) -> RemovalChange:
    place, stored = entry.place(file), entry.stored(file)
    try:
        if file.of is None and _stamp(place) != (file.size_bytes, file.mtime_ns):
            raise HnetkitError(f"{place}: changed since it was scanned")
        trash.put_in(entry, file)
    except (OSError, HnetkitError) as error:
        return RemovalChange("skipped", str(place), entry.name, reason=_reason_of(error, place))
    return RemovalChange("removed", str(place), entry.name, str(stored))


# --- bringing back


def restore(registry: Registry, names: Iterable[str] = (), *, dry_run: bool = False) -> Iterator[RemovalChange]:
    """Brings the files of removals back to their places, with tags, note and aliases, and yields what happened.

    Args:
        registry: of the library.
        names: of networks, aliases, hashes, or paths; of each, the latest removal. Without any, the latest of all.
        dry_run: yield what would come back, and move nothing.

    Raises:
        NotFound: nothing with such a name is in the trash.
        HnetkitError: another process is removing files and did not finish in time.
    """
    with _locked(registry):
        found, unread = _entries(registry)
        chosen: dict[Path, Entry] = {}
        wanted: list[str | None] = [*names]
        for name in wanted or [None]:
            named = [entry for entry in found if name is None or name in _names_of(entry)]
            if not named:
                raise _nothing(name, found, unread)
            chosen |= {entry.folder: entry for entry in named if entry.batch == named[-1].batch}
        yield from unread
        for entry in chosen.values():
            yield from _would_come_back(entry) if dry_run else _take_back(registry, entry)


def trashed(registry: Registry) -> dict[str, str]:
    """Returns what is in the trash: sha256 of a file, or key of the job that fetched it -> name of its network."""
    found: dict[str, str] = {}
    for entry in _entries(registry)[0]:
        found |= {file.sha256: entry.name for file in entry.files if file.sha256 is not None}
        found |= {install["job_key"]: entry.name for install in entry.installs if install.get("job_key") is not None}
    return found


def said_of_trashed(name: str) -> str:
    """Returns in words why a network in the trash is not fetched; `name`: as `trashed` gives it."""
    return f"removed from the library; hnetkit remove --undo {argument(name)} brings it back"


def _entries(registry: Registry) -> tuple[list[Entry], list[RemovalChange]]:
    """The removals in the trash, earlier ones first; and what of it cannot be read."""
    found, unread = [], []
    for root in registry.files.roots():
        entries = list(trash.entries(root.path))
        for entry in entries:
            if isinstance(entry, Entry):
                found.append(entry)
            else:
                unread.append(RemovalChange("skipped", str(root.path / trash.FOLDER), "", reason=str(entry)))
        if is_gone(root.path):
            reason = "the folder is not there: what is in its trash cannot be seen"
            unread.append(RemovalChange("kept", str(root.path), "", reason=reason))
        elif not entries and bare_way(root.path, root.path / trash.FOLDER) is not None:
            reason = "the folder is empty, and its disk may be away: what is in its trash cannot be seen"
            unread.append(RemovalChange("kept", str(root.path), "", reason=reason))
    return sorted(found, key=lambda entry: (entry.batch, entry.folder)), unread


def _names_of(entry: Entry) -> set[str]:
    names = {entry.name, *(entry.words.get("aliases") or ()), *(str(entry.place(f)) for f in entry.files)}
    if entry.content_hash:
        names |= {entry.content_hash, label(entry.name, entry.content_hash)}
    return names


def _nothing(name: str | None, found: list[Entry], unread: list[RemovalChange]) -> NotFound:
    unseen = f"; {unread[0].path}: {unread[0].reason}" if unread else ""
    if name is None:
        return NotFound(
            f"nothing is in the trash of any scanned folder{unseen}",
            hint="hnetkit scan FOLDER, where a folder that was removed from is not scanned any more",
        )
    there = ", ".join(dict.fromkeys(argument(entry.name) for entry in found))
    hint = f"in the trash: {there}" if there else "hnetkit list shows what is in the library"
    return NotFound(f"{name} is not in the trash{unseen}", hint=hint)


def _would_come_back(entry: Entry) -> Iterator[RemovalChange]:
    is_here = True
    for file in entry.files:
        place, stored = str(entry.place(file)), str(entry.stored(file))
        try:
            trash.is_at_place(entry, file)
        except (OSError, HnetkitError) as error:
            is_here = False
            yield RemovalChange("skipped", place, entry.name, stored, _reason_of(error, place))
        else:
            if not is_absent(stored):
                is_here = False
                yield RemovalChange("restored", place, entry.name, stored)
    if is_here:
        yield _words_alone(entry)


def _take_back_unfinished(registry: Registry) -> list[RemovalChange]:
    unfinished = [entry for entry in _entries(registry)[0] if not entry.is_done]
    return [change for entry in unfinished for change in _take_back(registry, entry)]


def _take_back(registry: Registry, entry: Entry) -> Iterator[RemovalChange]:
    """Moves the files of a removal back, tells the registry, and last removes the journal, if all came back."""
    is_whole, has_moved = True, False
    told = _how_to_link_again(entry) if entry.content_hash else "hnetkit scan lists it again"
    for file in entry.files:
        place = entry.place(file)
        try:
            moved = trash.put_back(entry, file)
        except (OSError, HnetkitError) as error:
            is_whole = False
            yield RemovalChange("skipped", str(place), entry.name, str(entry.stored(file)), _reason_of(error, place))
            continue
        if moved:
            has_moved = True
            yield RemovalChange("restored", str(place), entry.name, reason=told)
            told = None
    for file in entry.files:
        if file.of is None and not is_absent(entry.place(file)):
            try:
                _register(registry, entry, file)
            except (OSError, HnetkitError, ValueError) as error:
                is_whole = False
                reason = f"{_reason_of(error, entry.place(file))}; hnetkit scan, then --undo again"
                yield RemovalChange("skipped", str(entry.place(file)), entry.name, reason=reason)
    yield from _bring_words_back(registry, entry)
    if is_whole and (entry.content_hash is None or registry.networks.is_known(entry.content_hash)):
        trash.close(entry)
        if not has_moved:
            yield _words_alone(entry)


def _words_alone(entry: Entry) -> RemovalChange:
    """What is said of a removal whose files are all at their places."""
    reason = "it was there already; what was known of it is back"
    return RemovalChange("restored", str(entry.place(entry.files[0])), entry.name, reason=reason)


def _register(registry: Registry, entry: Entry, file: TrashedFile) -> None:
    place = entry.place(file)
    if entry.content_hash is not None and not any(
        (row["state"], row["size_bytes"], row["mtime_ns"]) == ("present", *_stamp(place))
        for row in registry.files.at(str(place))
    ):
        is_same = file.sha256 is not None and _stamp(place) == (file.size_bytes, file.mtime_ns)
        add_file(registry, entry.root, place, file.sha256 if is_same and file.sha256 else sha256_at(place))
    with registry.write():
        if file.first_seen is not None:
            registry.files.set_first_seen([row["id"] for row in registry.files.at(str(place))], file.first_seen)
        for install in entry.installs:
            if install.get("path") == str(place):
                jobs = registry.jobs.of(install.get("job_key") or "")
                registry.jobs.add_install(str(place), jobs[0].id if jobs else None, install["kind"], install["sha256"])


def _bring_words_back(registry: Registry, entry: Entry) -> Iterator[RemovalChange]:
    """Gives a network its tags, note, aliases and training back; what it got meanwhile stays."""
    networks, content, words = registry.networks, entry.content_hash, entry.words
    if content is None or not networks.is_known(content):
        return
    note, training = words.get("note"), words.get("training")
    told: list[str] = []
    with registry.write():
        id = networks.id_of(content)
        networks.add_tags(id, words.get("tags") or ())
        (now,) = networks.of_contents([content])
        if note is not None and now["note"] is None:
            networks.set_note(id, note)
        elif note is not None and note != now["note"]:
            told.append(f"it has another note by now; the one that did not come back: {note}")
        trained = registry.trainings.of(content)
        if training is not None and trained is None:
            registry.trainings.put(id, Training(**training))
        elif training is not None and trained != Training(**training):
            told.append(f"it has another record of its training by now; the one that did not come back: {training}")
        for alias in words.get("aliases") or ():
            try:
                require_alias(registry, alias, content)
            except UsageError as error:
                told.append(f"its alias {alias} did not come back: {error}")
            else:
                networks.set_alias(id, alias)
    for reason in told:
        yield RemovalChange("kept", str(entry.place(entry.files[0])), entry.name, reason=reason)


def _how_to_link_again(entry: Entry) -> str | None:
    folders = {(link["folder"], link["layout"]) for link in entry.links}
    commands = [
        f"hnetkit link {argument(folder, is_path=True)} --layout {argument(layout)} {argument(entry.name)}"
        for folder, layout in sorted(folders)
    ]
    return f"links it again: {'; '.join(commands)}" if commands else None


# --- small things


@contextmanager
def _locked(registry: Registry) -> Iterator[None]:
    busy = HnetkitError("another process is removing files, or bringing some back", hint="try again when it has ended")
    with exclusive_lock(registry.path.parent / "locks" / "trash.lock", busy, patience_s=_PATIENCE_S):
        for root in registry.files.roots():
            trash.sweep(root.path)
        yield


def _stamp(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, mtime_of(status)


def _reason_of(error: Exception, what: str | Path) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else str(failure_of(error, str(what)))
