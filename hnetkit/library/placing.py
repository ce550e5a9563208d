"""Files in other programs' folders: how one is put there, recorded and replaced, and whether it is still as it was put.

Each file is recorded in the registry before it is placed, so that a killed run can be resumed or undone. A file of
hnetkit's that is replaced stays until the new one is complete; until then there are two records, and `Placing.known`
finds out which of them came true.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import Literal

from hnetkit.errors import FileChanged, HnetkitError
from hnetkit.files import TEMPORARY, exclusive_lock, is_folder_at, new_file
from hnetkit.formats import load
from hnetkit.formats.open_file import OpenFile, sha256_at
from hnetkit.library.layouts import folded
from hnetkit.library.walking import is_gone, is_same_file
from hnetkit.registry.links import Link
from hnetkit.registry.store import Registry

How = Literal["symlink", "hardlink", "copy"]
_WAYS: tuple[How, ...] = ("symlink", "hardlink", "copy")
_WAYS_AFTER: dict[str, tuple[How, ...]] = {"hardlink": ("hardlink", "symlink", "copy"), "copy": ("copy",)}
"""How a file may come where those that are there came in one way; copies, since a program may see nothing else."""
_CHUNK = 1 << 20  # bytes
_PATIENCE_S = 60.0


@contextmanager
def links_locked(registry: Registry, *, dry_run: bool) -> Iterator[None]:
    """Keeps other processes from removing files between the check for a network's last file and its removal."""
    if dry_run:
        yield
        return
    busy = HnetkitError("another process is changing links to other programs", hint="try again when it has ended")
    with exclusive_lock(registry.path.parent / "locks" / "links.lock", busy, patience_s=_PATIENCE_S):
        yield


class Placing:
    """What is put into one folder of one program, and its records.

    Args:
        registry: holds the records.
        folder: the program's folder of hypernetworks.
        layout: name of the program.
        how: the only way to use; None tries all, the cheapest first; see `go_on_as`.
    """

    def __init__(self, registry: Registry, folder: Path, layout: str, how: How | None) -> None:
        self.registry, self.folder, self.layout = registry, folder, layout
        self.ways: tuple[How, ...] = (how,) if how else _WAYS

    def go_on_as(self, hows: Iterable[str]) -> None:
        """Puts what comes there in the way of what is there, if that came in a single one, and none was asked for."""
        there = {*hows}.intersection(_WAYS)
        if len(self.ways) > 1 and len(there) == 1:
            self.ways = _WAYS_AFTER.get(there.pop(), _WAYS)

    def place(self, source: Path, path: Path, *, sha256: str | None, replace: bool) -> How:
        """Places a file, and returns the way that worked.

        Args:
            source: of the library.
            path: in the folder.
            sha256: of the source; None if it is not known yet. A copy must have it.
            replace: an older file of hnetkit's is replaced once the new one is complete.

        Raises:
            OSError: no way works.
            FileChanged: the source has other bytes.
        """
        for way in self.ways[:-1]:
            try:
                self._place_by(way, source, path, sha256, replace=replace)
                return way
            except OSError:  # not permitted, or another disk
                continue
        self._place_by(self.ways[-1], source, path, sha256, replace=replace)
        return self.ways[-1]

    def _place_by(self, way: How, source: Path, path: Path, sha256: str | None, *, replace: bool) -> None:
        if way == "copy":
            self.copy(source, path, "copy", sha256=sha256, replace=replace)
            return
        with self._recorded(path, way, source, sha256 or sha256_at(source), replace=replace):
            if way == "symlink":
                _place_link(lambda made: os.symlink(source, made), path, replace=replace)
            else:
                _place_link(lambda made: os.link(os.path.realpath(source), made), path, replace=replace)

    def copy(
        self,
        source: Path,
        path: Path,
        how: str,
        *,
        replace: bool,
        sha256: str | None = None,
        recorded: Path | None = None,
    ) -> None:
        """Copies a file.

        Args:
            source: to read.
            path: to write.
            how: as the record has it.
            replace: as `place` has it.
            sha256: the hash that the bytes must have; None for any.
            recorded: the source that the record has; None for the one that is read.

        Raises:
            FileChanged: the bytes have another hash.
        """
        digest = hashlib.sha256()
        with contextlib.ExitStack() as record, OpenFile(source) as reader, new_file(path, overwrite=replace) as file:
            for start in range(0, reader.size, _CHUNK):
                chunk = reader.read_at(start, min(_CHUNK, reader.size - start))
                digest.update(chunk)
                file.write(chunk)
            if sha256 not in (None, digest.hexdigest()):
                raise FileChanged(f"{source}: not what was scanned", hint="hnetkit scan")
            record.enter_context(self._recorded(path, how, recorded or source, digest.hexdigest(), replace=replace))

    @contextmanager
    def _recorded(self, path: Path, how: str, source: Path, sha256: str, *, replace: bool) -> Iterator[None]:
        """Records a file that the block places; where it replaces another, beside the other's record until then."""
        link = Link(str(path), str(self.folder), self.layout, how, str(source), sha256)
        planned = changed(link, path=link.path + TEMPORARY) if replace else link
        self.put(planned)
        try:
            yield
        except Exception:  # a killed run keeps the record
            self.forget(planned.path)
            raise
        if replace:
            with self.registry.write():
                self.registry.links.put(link)
                self.registry.links.forget([planned.path])

    def known(self, *, dry_run: bool) -> tuple[dict[str, Link], list[str]]:
        """Returns the files that hnetkit put there, by `key_of` their paths, and the folders that it made.

        What a killed run was about to replace is one of two files; the records then follow what is there.
        """
        known = [*self.registry.links.into(str(self.folder)), *self._moved_here(dry_run=dry_run)]
        placed = {key_of(link.path): link for link in known if link.source and not link.path.endswith(TEMPORARY)}
        for planned in (link for link in known if link.path.endswith(TEMPORARY)):
            link = changed(planned, path=planned.path.removesuffix(TEMPORARY))
            came_true = is_untouched(link)
            if came_true:
                placed[key_of(link.path)] = link
            if not dry_run:
                with self.registry.write():
                    self.registry.links.forget([planned.path])
                    if came_true:
                        self.registry.links.put(link)
        return placed, [link.path for link in known if not link.source]

    def _moved_here(self, *, dry_run: bool) -> Iterator[Link]:
        """Takes over the records of a folder that is gone, where all that was put into it is here unchanged."""
        known = set(self.registry.links.paths())
        others: dict[str, list[Link]] = {}
        for link in self.registry.links.rows():
            is_file = link.source and not link.path.endswith(TEMPORARY)
            if is_file and link.layout == self.layout and link.folder != str(self.folder):
                others.setdefault(link.folder, []).append(link)
        for folder, links in others.items():
            if not is_gone(Path(folder)):
                continue
            places = [self.folder / Path(link.path).relative_to(folder) for link in links]
            moved = [
                changed(link, path=str(place), folder=str(self.folder))
                for link, place in zip(links, places, strict=True)
            ]
            if known.isdisjoint(link.path for link in moved) and all(map(is_untouched, moved)):
                if not dry_run:
                    with self.registry.write():
                        for link in moved:
                            self.registry.links.put(link)
                        self.registry.links.forget(link.path for link in links)
                yield from moved

    def make_folder(self) -> None:
        """Creates the folder, and records those that were not there."""
        missing = [path for path in (self.folder, *self.folder.parents) if not is_folder_at(path)]
        for path in reversed(missing):
            self.put(Link(str(path), str(self.folder), self.layout, how="copy", source="", sha256=""))
            path.mkdir(exist_ok=True)

    def remove_folders(self, made: list[str]) -> None:
        """Removes folders that were created here, if they are empty, and their records."""
        for path in sorted(made, key=len, reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(path)
            self.forget(path)

    def move(self, link: Link, path: Path) -> Link:
        """Records that a file has another path now, and returns the record."""
        moved = changed(link, path=str(path))
        with self.registry.write():
            self.registry.links.put(moved)
            self.registry.links.forget([link.path])
        return moved

    def put(self, link: Link) -> None:
        with self.registry.write():
            self.registry.links.put(link)

    def forget(self, path: str) -> None:
        with self.registry.write():
            self.registry.links.forget([path])


def is_untouched(link: Link) -> bool:
    """Whether the file at a link's path is exactly what hnetkit put there."""
    try:
        if link.how == "symlink":
            return os.readlink(link.path).removeprefix("\\\\?\\") == link.source.removeprefix("\\\\?\\")
        if os.path.islink(link.path):
            return False
        if link.how == "hardlink" and is_same_file(link.path, link.source):
            return True
        return sha256_at(link.path) == link.sha256
    except (OSError, HnetkitError):  # another kind of file, or unreadable, so be careful
        return False


def is_same_bytes(path: str | Path, other: str | Path) -> bool:
    """Whether two files can both be read and hold the same."""
    try:
        return os.path.getsize(path) == os.path.getsize(other) and sha256_at(path) == sha256_at(other)
    except (OSError, HnetkitError):
        return False


def holds(path: str | Path, content_hash: str) -> bool:
    """Whether a file holds this network now."""
    try:
        return load(path).content_hash == content_hash
    except Exception:  # unreadable, so certainly not that network
        return False


def is_same_name(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def is_same_entry(path: str | Path, other: str | Path) -> bool:
    """Whether two paths to files that are there name one file: links in folders are resolved, and so is the spelling
    where the disk makes no difference.
    """
    (folder, name), (other_folder, other_name) = os.path.split(path), os.path.split(other)
    if folded(name) != folded(other_name) or not is_same_file(folder, other_folder):
        return False
    try:
        return name == other_name or not {name, other_name}.issubset(os.listdir(folder))
    except OSError:  # two, for all that can be seen
        return False


def key_of(path: str | Path) -> str:
    """A key that is equal for all spellings of a path: links in its folders resolved, but not the last part; NFC."""
    folder, name = os.path.split(path)
    return unicodedata.normalize("NFC", os.path.join(os.path.realpath(folder), name))


def way_of(path: str | Path) -> list[str]:
    """The keys of all that a path leads through: its own, and that of what each link on the way names."""
    way: list[str] = []
    while (key := key_of(path)) not in way:  # links may lead in a circle
        way.append(key)
        try:
            target = os.readlink(path)
        except (OSError, ValueError):  # no link, or nothing there
            break
        path = os.path.join(os.path.realpath(os.path.dirname(path)), target.removeprefix("\\\\?\\"))
    return way


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
