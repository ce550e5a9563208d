"""Bringing back what was removed: files return from the trash to their places, with all that was known of them.

Only the disk is asked what is where, so this also takes back a removal that was cut short anywhere.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from hnetkit.errors import DiskFull, HnetkitError, NotFound, RegistryError, UsageError, failure_of
from hnetkit.files import exclusive_lock, is_absent, mtime_of
from hnetkit.library import trash
from hnetkit.library.placing import key_of
from hnetkit.library.prompt_names import require_alias
from hnetkit.library.resolve import is_hash, label
from hnetkit.library.scan import add_file
from hnetkit.library.trash import Entry, TrashedFile
from hnetkit.library.walking import bare_way, is_gone
from hnetkit.registry.networks import Training
from hnetkit.registry.store import Registry
from hnetkit.text import argument

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


def restore(registry: Registry, names: Iterable[str] = (), *, dry_run: bool = False) -> Iterator[RemovalChange]:
    """Brings the files of removals back to their places, with tags, note and aliases, and yields what happened.

    Args:
        registry: of the library.
        names: of networks, aliases, the beginnings of hashes, or paths as a person types them; of each, the latest
            removal. Without any, the latest of all.
        dry_run: yield what would come back, and move nothing.

    Raises:
        NotFound: nothing with such a name is in the trash.
        HnetkitError: another process is removing files and did not finish in time.
    """
    with locked(registry):
        unread: list[RemovalChange] = []
        chosen: dict[Path, Entry] = {}
        wanted: list[str | None] = [*names]
        latest, called = [_Latest(name) for name in wanted or [None]], dict[str, None]()
        for entry in _entries(registry, unread):
            called[argument(entry.name)] = None
            for one in latest:
                one.see(entry)
        for one in latest:
            if not one.found:
                raise _nothing(one.name, called, unread)
            chosen |= {entry.folder: entry for entry in one.found}
        yield from unread
        if dry_run:
            for entry in chosen.values():
                yield from _would_come_back(entry)
        else:
            yield from take_back(registry, chosen.values())


def trashed(registry: Registry, *, is_emptied: bool = False) -> dict[str, str]:
    """Returns what is in the trash: sha256 of a file, or key of the job that fetched it -> name of its network.

    Args:
        registry: of the library.
        is_emptied: also what was deleted from the trash, where what was known of it is left.
    """
    found: dict[str, str] = {}
    for entry in _entries(registry, []):
        files = [file for file in entry.files if file.of is None and (is_emptied or entry.holds(file))]
        found |= {file.sha256: entry.name for file in files if file.sha256 is not None}
        places = {str(entry.place(file)) for file in files}
        fetched = (install for install in entry.installs if install.get("path") in places)
        found |= {install["job_key"]: entry.name for install in fetched if install.get("job_key") is not None}
    return found


def said_of_trashed(name: str) -> str:
    """Returns in words why a network in the trash is not fetched; `name`: as `trashed` gives it."""
    return f"removed from the library; hnetkit remove --undo {argument(name)} brings it back"


def _entries(registry: Registry, unread: list[RemovalChange]) -> Iterator[Entry]:
    """Yields the removals in the trash, one at a time: there may be many large ones. Adds what cannot be read."""
    for root in registry.files.roots():
        is_empty = True
        for entry in trash.entries(root.path):
            is_empty = False
            if isinstance(entry, Entry):
                yield entry
            else:
                unread.append(RemovalChange("skipped", str(root.path / trash.FOLDER), "", reason=str(entry)))
        if is_gone(root.path):
            reason = "the folder is not there: what is in its trash cannot be seen"
            unread.append(RemovalChange("kept", str(root.path), "", reason=reason))
        elif is_empty and bare_way(root.path, root.path / trash.FOLDER) is not None:
            reason = "the folder is empty, and its disk may be away: what is in its trash cannot be seen"
            unread.append(RemovalChange("kept", str(root.path), "", reason=reason))


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Earlier removals first."""
    return sorted(entries, key=lambda entry: (entry.batch, entry.folder))


class _Latest:
    """The latest removal that is meant by a name, else by a path as it is typed, else by the beginning of a hash.

    Args:
        name: None means any.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name
        self._by: list[list[Entry]] = [[], [], []]

    def see(self, entry: Entry) -> None:
        """Keeps a removal if it is meant, and none that was kept before is later."""
        if (way := self._way_to(entry)) is None:
            return
        kept = self._by[way]
        if not kept or entry.batch > kept[0].batch:
            self._by[way] = [entry]
        elif entry.batch == kept[0].batch:
            kept.append(entry)

    @property
    def found(self) -> list[Entry]:
        return _in_order(next(filter(None, self._by), []))

    def _way_to(self, entry: Entry) -> int | None:
        """Returns by what a removal is meant, 0 for its name; None if it is not."""
        if self.name is None or self.name in trash.names_of(entry) | _labels_of(entry):
            return 0
        place = key_of(self.name)
        called = (file for file in entry.files if _is_called(file, os.path.basename(place)))  # the disk is slow to ask
        if any(key_of(entry.place(file)) == place for file in called):
            return 1
        return 2 if is_hash(self.name) and trash.has_hash(entry, [self.name.lower()]) else None


def _is_called(file: TrashedFile, name: str) -> bool:
    return unicodedata.normalize("NFC", PurePosixPath(file.path).name) == name


def _labels_of(entry: Entry) -> set[str]:
    return {label(entry.name, entry.content_hash)} if entry.content_hash else set()


def _nothing(name: str | None, called: Iterable[str], unread: list[RemovalChange]) -> NotFound:
    unseen = f"; {unread[0].path}: {unread[0].reason}" if unread else ""
    what = "nothing is in the trash of any scanned folder" if name is None else f"{name} is not in the trash"
    there = ", ".join(called)
    if unread and unread[0].what == "kept":  # not there, and so perhaps moved
        hint = "hnetkit scan FOLDER, where that folder is by now"
    elif name is None:
        hint = "hnetkit scan FOLDER, where a folder that was removed from is not scanned any more"
    else:
        hint = f"in the trash: {there}" if there else "hnetkit list shows what is in the library"
    return NotFound(f"{what}{unseen}", hint=hint)


def _would_come_back(entry: Entry) -> Iterator[RemovalChange]:
    is_here = True
    for file in entry.files:
        place, stored = str(entry.place(file)), str(entry.stored(file))
        try:
            trash.is_at_place(entry, file)
        except (OSError, HnetkitError) as error:
            is_here = False
            yield RemovalChange("skipped", place, entry.name, stored, reason_of(error, place))
        else:
            if not is_absent(stored):
                is_here = False
                yield RemovalChange("restored", place, entry.name, stored)
    if is_here:
        yield _words_alone(entry)


def take_back_unfinished(registry: Registry) -> list[RemovalChange]:
    unfinished = _in_order(entry for entry in _entries(registry, []) if not entry.is_done)
    return list(take_back(registry, unfinished))


def take_back(registry: Registry, entries: Iterable[Entry]) -> Iterator[RemovalChange]:
    """Moves the files of removals back, and then settles each: a link of one may lead to a file of another."""
    moved = []
    for entry in entries:
        moved.append((entry, *(yield from _move_back(entry))))
    for entry, is_whole, has_moved in moved:
        yield from _settle(registry, entry, is_whole, has_moved)


def _move_back(entry: Entry) -> Generator[RemovalChange, None, tuple[bool, bool]]:
    """Moves the files of a removal back, and returns whether all are at their places, and whether one moved."""
    is_whole, has_moved = True, False
    told = _how_to_link_again(entry) if entry.content_hash else "hnetkit scan lists it again"
    for file in entry.files:
        place = entry.place(file)
        try:
            moved = trash.put_back(entry, file)
        except (OSError, HnetkitError) as error:
            is_whole = False
            yield RemovalChange("skipped", str(place), entry.name, str(entry.stored(file)), reason_of(error, place))
            continue
        if moved:
            has_moved = True
            yield RemovalChange("restored", str(place), entry.name, reason=told)
            told = None
    return is_whole, has_moved


def _settle(registry: Registry, entry: Entry, is_whole: bool, has_moved: bool) -> Iterator[RemovalChange]:
    """Tells the registry of what came back, and last removes the journal, if that is all."""
    for file in entry.files:
        if file.of is None and not is_absent(entry.place(file)):
            try:
                _register(registry, entry, file)
            except (OSError, HnetkitError, ValueError) as error:
                is_whole = False
                reason = f"{reason_of(error, entry.place(file))}; hnetkit scan, then --undo again"
                yield RemovalChange("skipped", str(entry.place(file)), entry.name, reason=reason)
    try:
        yield from _bring_words_back(registry, entry)
    except (RegistryError, DiskFull):
        raise
    except Exception as error:  # a journal may be a stranger's, and hold what cannot be stored
        is_whole = False
        journal = entry.folder / trash.JOURNAL
        reason = f"what {journal} tells of it cannot be stored: {failure_of(error, str(journal))}"
        yield RemovalChange("skipped", str(entry.place(entry.files[0])), entry.name, reason=reason)
    if not is_whole:
        return
    if entry.content_hash is not None and not registry.networks.is_known(entry.content_hash):
        reason = (
            f"no file is known to hold {entry.name}; what was known of it stays in the trash: "
            f"hnetkit scan --rehash, then hnetkit remove --undo {argument(entry.name)}"
        )
        yield RemovalChange("kept", str(entry.place(entry.files[0])), entry.name, str(entry.folder), reason)
        return
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
        (row["state"], row["size_bytes"], row["mtime_ns"]) == ("present", *stamp(place))
        for row in registry.files.at(str(place))
    ):
        add_file(registry, entry.root, place)  # the hash that the journal tells may be a stranger's lie
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
        now = networks.of_content(content)
        if note is not None and now["note"] is None:
            networks.set_note(id, note)
        elif note is not None and note != now["note"]:
            told.append(f"it has another note by now; the one that did not come back: {note}")
        trained = registry.trainings.of(content)
        if training is not None and trained is None:
            registry.trainings.put(id, Training(**training))
        elif training is not None and not _is_same_run(trained, Training(**training)):
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


def _is_same_run(now: Training | None, before: Training) -> bool:
    """Whether two records tell of the same training: a run that is given again stores its own at another time."""
    return now is not None and replace(before, trained_at=now.trained_at) == now


def _how_to_link_again(entry: Entry) -> str | None:
    folders = {(link["folder"], link["layout"]) for link in entry.links}
    commands = [
        f"hnetkit link {argument(folder, is_path=True)} --layout {argument(layout)} {argument(entry.name)}"
        for folder, layout in sorted(folders)
    ]
    return f"links it again: {'; '.join(commands)}" if commands else None


# --- small things


@contextmanager
def locked(registry: Registry) -> Iterator[None]:
    busy = HnetkitError("another process is removing files, or bringing some back", hint="try again when it has ended")
    with exclusive_lock(registry.path.parent / "locks" / "trash.lock", busy, patience_s=_PATIENCE_S):
        for root in registry.files.roots():
            trash.sweep(root.path)
        yield


def stamp(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, mtime_of(status)


def reason_of(error: Exception, what: str | Path) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else str(failure_of(error, str(what)))
