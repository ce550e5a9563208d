"""Forgetting: rows of files, networks in no file and records of bakes leave the registry. No file is touched.

What is to go is looked up first, as a `Forgetting` that can be shown and confirmed; then it goes, but for what is there
again by then. Only what the disk says is gone counts as missing: see `hnetkit.library.disks`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnetkit.errors import NotFound, UsageError
from hnetkit.files import is_absent
from hnetkit.library import trash
from hnetkit.library.bakes import gone_bakes
from hnetkit.library.disks import Away, Disks
from hnetkit.library.resolve import content_called
from hnetkit.library.walking import root_path
from hnetkit.registry.columns import spelled
from hnetkit.registry.files import Root
from hnetkit.registry.store import Registry
from hnetkit.text import argument, counted, shorten

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What `Library.forget` is about to remove from the registry.

    Attributes:
        files: rows of files; the files themselves are never touched.
        root: the folder that is forgotten with them.
        contents: of the networks in no file that are forgotten too.
        bakes: files that networks were baked to, of which only the records go.
        is_missing: whether it covers everything that is missing, and nothing that is there again.
        kept: lines about files that are marked missing and stay, because the disk does not say that they are gone, and
            about what was removed from a folder, and what is below it in a folder of its own.
    """

    files: list[Row]
    root: Root | None = None
    contents: tuple[str, ...] = ()
    bakes: tuple[str, ...] = ()
    is_missing: bool = False
    kept: list[str] = field(default_factory=list)

    @property
    def fileless(self) -> int:
        """Number of networks in no file that are forgotten."""
        return len(self.contents)


def plan(registry: Registry, name: str | None = None, *, missing: bool = False) -> Forgetting:
    """Returns what is to be forgotten, looked up on the disk.

    Args:
        registry: of the library.
        name: a network's name, a file's path, a folder that was scanned, or one in it, or the path of what was baked.
        missing: everything that is gone, instead.

    Raises:
        UsageError: neither is given.
        NotFound, AmbiguousName, FileRefused: the name matches no network, several, or only unusable files.
    """
    if missing:
        return _everything_missing(registry)
    if name is None:
        raise UsageError("say what to forget", hint="hnetkit forget NAME, or hnetkit forget --missing")
    root = _root_at(registry, name)
    if root is not None:
        folder = argument(str(root.path), is_path=True)
        back = f"{root.path / trash.FOLDER} keeps what was removed: hnetkit scan {folder}, then hnetkit remove --undo"
        kept = [back] if any(trash.entries(root.path)) else []
        return Forgetting(registry.files.of_root(root), root, kept=[*kept, *_roots_inside(registry, root)])
    bakes = _baked_at(registry, name)
    if (files := registry.files.at_typed(name) or _below(registry, name)) or bakes:
        return Forgetting(files, bakes=bakes)
    content_hash = _content_called(registry, name)
    held = registry.files.holding([content_hash])
    return Forgetting(held) if held else Forgetting([], contents=(content_hash,))


def carry_out(registry: Registry, found: Forgetting) -> list[Row]:
    """Forgets exactly what `plan` returned, but for what is there again; returns the rows of the files that went.

    Tags, notes and aliases go with a network's last file.
    """
    files, bakes = found.files, found.bakes
    with registry.write():
        if found.is_missing:  # a disk may have come back while the question stood
            missing = {row["id"] for row in registry.files.missing()}
            files, _ = _really_gone(registry, [row for row in files if row["id"] in missing])
            gone, _ = gone_bakes(registry)
            bakes = tuple({*bakes} & {*gone})
        lost = [] if found.root is not None else _really_gone(registry, files)[0]
        registry.files.forget(row["id"] for row in files)
        for row in lost:
            if not _is_elsewhere(registry, row):  # else `repair` would fetch it again, or say for ever that it cannot
                registry.jobs.let_go(row["path"])
        registry.bakes.forget(bakes)
        if found.root is not None:
            registry.files.forget_root(found.root)
        contents = {*found.contents, *(row["content_hash"] for row in files)} - {None}
        registry.networks.forget_fileless(contents)
    return files


def _content_called(registry: Registry, name: str) -> str:
    try:
        return content_called(registry, name)
    except NotFound:
        place = os.path.join(os.curdir, name)
        if os.path.dirname(name) or not (_root_at(registry, place) or _below(registry, place)):
            raise
        hint = f"hnetkit forget {argument(place, is_path=True)} forgets the folder"
        raise NotFound(f"no network named {shorten(name)}", hint=hint) from None


def _everything_missing(registry: Registry) -> Forgetting:
    files, kept = _really_gone(registry, registry.files.missing())
    bakes, kept_bakes = gone_bakes(registry)
    return Forgetting(
        files,
        contents=tuple(registry.networks.fileless()),
        bakes=tuple(bakes),
        is_missing=True,
        kept=[*kept, *kept_bakes],
    )


def _really_gone(registry: Registry, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Holds files that a scan missed against the disk: returns those that are gone, and lines about the others."""
    disks = Disks(registry)
    gone, there, behind = [], 0, Counter[Away]()
    for row in rows:
        if not is_absent(row["path"]):
            there += 1
        elif (away := disks.away(row)) is not None:
            behind[away] += 1
        else:
            gone.append(row)
    kept = [
        f"{counted(count, 'file')} kept: {away}; {away.forgotten_by} forgets them" for away, count in behind.items()
    ]
    if there:
        kept.append(f"{counted(there, 'file')} kept, there again or out of reach: hnetkit scan")
    return gone, kept


def _is_elsewhere(registry: Registry, row: Row) -> bool:
    """Whether the library knows another file of what a forgotten one held, or one that was converted from it."""
    sha256, content = row["sha256"] or "", [row["content_hash"]] if row["content_hash"] else []
    files = registry.files
    return bool(files.with_bytes(sha256) or files.converted_from(sha256) or files.holding(content))


def _root_at(registry: Registry, name: str) -> Root | None:
    is_bare = not os.path.dirname(name) and name != os.curdir
    if is_bare:  # a network, even if a folder has the same name
        return None
    roots = {spelled(str(root.path)): root for root in registry.files.roots()}
    # a folder that a link has taken the place of is still known by its own path
    paths = os.path.abspath(name), os.path.realpath(name), str(root_path(Path(name)))
    return next((roots[spelled(path)] for path in paths if spelled(path) in roots), None)


def _roots_inside(registry: Registry, root: Root) -> Iterator[str]:
    """Lines about scanned folders inside one that is forgotten, which stay known with their files."""
    for other in registry.files.roots():
        if other.id != root.id and other.path.is_relative_to(root.path):
            count = counted(len(registry.files.of_root(other)), "file")
            place = argument(str(other.path), is_path=True)
            yield f"{count} kept: {other.path} is a scanned folder of its own; hnetkit forget {place} forgets it too"


def _baked_at(registry: Registry, name: str) -> tuple[str, ...]:
    """What networks were baked to at a path; a bare name without a suffix is a network's."""
    is_path = os.path.dirname(name) or os.path.splitext(name)[1]
    place = os.path.abspath(name)
    return (place,) if is_path and registry.bakes.has(place) else ()


def _below(registry: Registry, name: str) -> list[Row]:
    """The files below a folder that is given by its path."""
    if not os.path.dirname(name):  # a network's name
        return []
    folders = [Path(os.path.abspath(name)), Path(os.path.realpath(name))]
    rows = registry.files.rows()
    return next(
        (below for folder in folders if (below := [row for row in rows if Path(row["path"]).is_relative_to(folder)])),
        [],
    )
