"""A library of hypernetworks and what people do with it: the one object of this room."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hnetkit import paths
from hnetkit.errors import NotFound, UsageError
from hnetkit.library import link as links
from hnetkit.library.layouts import PROGRAMS, Program
from hnetkit.library.resolve import require_alias, resolve
from hnetkit.library.scan import FileChange, Note, Progress, add_roots, recheck, scan
from hnetkit.registry.store import Registry
from hnetkit.text import argument, size_text

if TYPE_CHECKING:
    from hnetkit.library.link import How, LinkChange
    from hnetkit.registry.files import Root


AnyPath = str | os.PathLike[str]

Row = dict[str, Any]
_OF_A_FILE = ("path", "state", "format", "size_bytes", "sha256", "autov1", "warnings")


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What `Library.forget` removes from the registry.

    Attributes:
        files: rows; no file itself is touched.
        root: the folder that is forgotten with them.
        fileless: networks that are in no file any more.
        is_missing: whether it is all that is missing, networks in no file too.
    """

    files: list[Row]
    root: Root | None = None
    fileless: int = 0
    is_missing: bool = False


class Library:
    """What is known of hypernetworks, and the folder that fetching installs them in.

    Open until `close`, or the end of a `with` block. Any number may be open at once, in any number of processes.

    Args:
        home: the folder of registry and library; None is that of the command line: ``HNETKIT_HOME``, else the
            platform's data folder, and ``HNETKIT_LIBRARY``.

    Attributes:
        home: as given; what processes on one library tell each other is there too.
        registry: rows of files and networks.
        folder: where fetched networks are installed.

    Raises:
        RegistryError: it is damaged, locked, or written by a newer hnetkit.
        DiskFull: there is none yet, and no room for one.
    """

    def __init__(self, home: AnyPath | None = None) -> None:
        self.home = paths.home() if home is None else Path(os.path.abspath(home))
        self.folder = paths.library_folder() if home is None else self.home / "library"
        self.registry = Registry(self.home / "registry.db")

    def close(self) -> None:
        """Closes the registry."""
        self.registry.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.registry.__exit__(kind, error, at)

    def scan(
        self,
        *folders: AnyPath,
        follow_links: bool = False,
        progress: Progress | None = None,
        note: Note | None = None,
    ) -> list[FileChange]:
        """Reads what is new or changed, and returns the changes; see `hnetkit.library.scan.scan`.

        Args:
            folders: remembered for later scans; without any, all known ones are scanned, and `folder`.
            follow_links: also into folders outside, to which links in a folder lead.
            progress: told bytes read, and of how many.
            note: told what a person should read.

        Raises:
            NotFound: a folder is not there, or none was ever scanned.
            RegistryError, DiskFull: the registry cannot be written.
        """
        if not folders:
            self._require_roots()
        return list(scan(self.registry, map(Path, folders), progress, follow_links=follow_links, note=note))

    def recheck(self, progress: Progress | None = None) -> list[FileChange]:
        """Reads every known file again, and returns what is not as it was.

        Raises:
            NotFound: no folder was ever scanned.
        """
        self._require_roots()
        return list(recheck(self.registry, progress=progress))

    def networks(
        self,
        *,
        tags: Iterable[str] = (),
        base_model: str | None = None,
        width: int | None = None,
        activation: str | None = None,
        missing: bool = False,
    ) -> list[Row]:
        """Returns a row for each network, by name; in however many files it stands.

        Args:
            tags: that it has, all of them.
            base_model: that it is for.
            width: of a context that it changes.
            activation: that it has; ``"linear"`` is none.
            missing: none of its files is there.
        """
        rows = with_files(self.registry, self.registry.networks.rows())
        wanted = set(tags)
        return sorted(
            (
                row
                for row in rows
                if wanted <= set(row["tags"])
                and base_model in (None, row["base_model"])
                and (width is None or width in row["widths"])
                and (activation is None or row["activation"] == activation.lower())
                and not (missing and row["present"])
            ),
            key=lambda row: str(row["name"]).casefold(),
        )

    def files(self, *, missing: bool = False) -> list[Row]:
        """Returns a row for each known file, also those that hold no network; `missing`: only those that are gone."""
        return self.registry.files.missing() if missing else self.registry.files.rows()

    def search(self, words: str) -> list[Row]:
        """Returns the networks with all words in names, tags, notes or checkpoint, the best first."""
        return with_files(self.registry, self.registry.networks.search(words))

    def with_alias(self, alias: str) -> list[Row]:
        """Returns the network that has this alias; none where nobody has it."""
        return with_files(self.registry, self.registry.networks.with_alias(alias))

    def record(self, name: str) -> Row:
        """Returns all that is known of one network.

        Args:
            name: see `hnetkit.library.resolve.resolve`.

        Raises:
            NotFound, AmbiguousName, FileRefused: the name means no network, or several, or none that can be used.
        """
        return record(self.registry, resolve(self.registry, name).content_hash)

    def find(self, name: str) -> Path:
        """Returns a file that is there and holds the network.

        Raises:
            NotFound, AmbiguousName, FileRefused: as `record`; NotFound also where none of its files is there.
        """
        path = resolve(self.registry, name).path
        if not path.is_file():
            raise NotFound(f"{path}: the file of {name} is gone", hint="hnetkit scan")
        return path

    def tag(
        self,
        name: str,
        *tags: str,
        remove: Iterable[str] = (),
        alias: str | None = None,
        note: str | None = None,
    ) -> Row:
        """Tags a network, and returns its row; what is said of it belongs to the content, not to a file.

        Args:
            remove: tags to take away.
            alias: one more name, for prompts and commands.
            note: replaces the one that is there; an empty one removes it.

        Raises:
            NotFound, AmbiguousName, FileRefused: as `record`.
            UsageError: what cannot be an alias.
        """
        content_hash = resolve(self.registry, name).content_hash
        if alias is not None:
            require_alias(self.registry, alias, content_hash)
        networks = self.registry.networks
        with self.registry.write():
            id = networks.id_of(content_hash)
            networks.add_tags(id, tags)
            networks.remove_tags(id, remove)
            if alias is not None:
                networks.set_alias(id, alias)
            if note is not None:
                networks.set_note(id, note)
        (row,) = with_files(self.registry, networks.of_contents([content_hash]))
        return row

    def forgetting(self, name: str | None = None, *, missing: bool = False) -> Forgetting:
        """Returns what `forget` would remove; the arguments are the same."""
        files = self.registry.files
        if missing:
            return Forgetting(files.missing(), fileless=self.registry.networks.fileless(), is_missing=True)
        if name is None:
            raise UsageError("say what to forget", hint="hnetkit forget NAME, or hnetkit forget --missing")
        root = self._root_at(name)
        if root is not None:
            return Forgetting(files.of_root(root), root)
        return Forgetting(self._files_called(name))

    def forget(self, name: str | None = None, *, missing: bool = False) -> list[Row]:
        """Removes files from the registry, and returns their rows; no file is touched.

        Tags, notes and aliases go with a network's last file.

        Args:
            name: a network's name, a file's path, or a folder that was scanned.
            missing: all files that are gone, and networks in no file, instead.

        Raises:
            NotFound, AmbiguousName, FileRefused: as `record`.
        """
        return self.forget_found(self.forgetting(name, missing=missing))

    def forget_found(self, found: Forgetting) -> list[Row]:
        """Removes just what `forgetting` returned, which somebody was shown; returns the rows of its files."""
        contents = {row["content_hash"] for row in found.files} - {None}
        with self.registry.write():
            self.registry.files.forget(row["id"] for row in found.files)
            if found.root is not None:
                self.registry.files.forget_root(found.root)
            self.registry.networks.forget_fileless(None if found.is_missing else contents)
        return found.files

    def link(
        self,
        directory: AnyPath,
        *,
        layout: str,
        names: Sequence[str] = (),
        how: How | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> list[LinkChange]:
        """Puts networks into another program's folder, and returns what was done; see `hnetkit.library.link.link`.

        Args:
            directory: the program's own folder.
            layout: whose it is: ``"a1111"``, ``"comfyui"`` and others.
            names: of networks; none means all that can be used.
            how: only by ``"symlink"``, ``"hardlink"`` or ``"copy"``.
        """
        found = links.link(
            self.registry, Path(directory), program_of(layout), names=names, how=how, dry_run=dry_run, progress=progress
        )
        return list(found)

    def unlink(self, directory: AnyPath, *, layout: str, dry_run: bool = False) -> list[LinkChange]:
        """Takes back all that `link` put into a folder and that is still as it was."""
        return list(links.undo(self.registry, Path(directory), program_of(layout), dry_run=dry_run))

    def _require_roots(self) -> None:
        if self.folder.is_dir():
            add_roots(self.registry, [self.folder])
        if not self.registry.files.roots():
            raise NotFound("no folder was ever scanned", hint="hnetkit scan FOLDER")

    def _root_at(self, name: str) -> Root | None:
        is_bare = not os.path.dirname(name) and name != os.curdir
        if is_bare:  # a network, also where a folder is called so
            return None
        return next((root for root in self.registry.files.roots() if str(root.path) == os.path.realpath(name)), None)

    def _files_called(self, name: str) -> list[Row]:
        path = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        files = self.registry.files
        return files.at(path) or files.holding([resolve(self.registry, name).content_hash])


def program_of(layout: str) -> Program:
    """Returns the program of this name.

    Raises:
        UsageError: there is none.
    """
    if layout not in PROGRAMS:
        raise UsageError(
            f"{argument(layout)}: no program whose folders are known", hint=f"one of {', '.join(PROGRAMS)}"
        )
    return PROGRAMS[layout]


def with_files(registry: Registry, rows: list[Row]) -> list[Row]:
    """Returns networks of the registry with the files that hold them, and the checkpoint that they were trained on."""
    by_content: dict[str, list[Row]] = {}
    for file in registry.files.holding([row["content_hash"] for row in rows]):
        by_content.setdefault(file["content_hash"], []).append(file)
    checkpoints = {
        short: file["path"]
        for file in registry.files.of_kind("checkpoint")
        for short in (str(file["sha256"])[:10], file["autov1"])
    }
    return [_with_files(row, by_content.get(row["content_hash"], []), checkpoints) for row in rows]


def record(registry: Registry, content_hash: str) -> Row:
    """Returns everything that is known of one network, which is in the registry."""
    (row,) = with_files(registry, registry.networks.of_contents([content_hash]))
    files = registry.files.holding([content_hash])
    row["sidecars"] = list(registry.files.sidecars(file["id"] for file in files).values())
    row["sites"] = registry.catalogue.files_with({file["sha256"] for file in files})
    row["training"] = _training(registry, content_hash)
    return row


def _with_files(row: Row, files: list[Row], checkpoints: dict[str, str]) -> Row:
    present = any(file["state"] == "present" for file in files)
    return {
        **{key: value for key, value in row.items() if key != "id"},
        "name": files[0]["stem"] if files else row["name"],
        "own_name": row["name"],
        "size": size_text(files[0]["size_bytes"]) if present else "missing",
        "trained_on": _trained_on(row),
        "checkpoint_path": checkpoints.get(row["sd_checkpoint"]),
        "present": present,
        "files": [{key: file[key] for key in _OF_A_FILE} for file in files],
    }


def _trained_on(row: Row) -> str | None:
    name, short = row["sd_checkpoint_name"], row["sd_checkpoint"]
    return " ".join([*([name] if name else []), *([f"[{short}]"] if short else [])]) or None


def _training(registry: Registry, content_hash: str) -> Row | None:
    """How a network came to be that was trained here: its recipe, its model, and its ancestors, the nearest first."""
    training = registry.trainings.of(content_hash)
    if training is None:
        return None
    lineage = registry.trainings.lineage(content_hash)
    names = {row["content_hash"]: row["name"] for row in with_files(registry, registry.networks.of_contents(lineage))}
    return asdict(training) | {"lineage": [{"content_hash": own, "name": names.get(own)} for own in lineage]}
