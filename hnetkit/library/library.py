"""`Library`: a library of hypernetworks with all its verbs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hnetkit import paths
from hnetkit.errors import (
    WHERE_GONE,
    AmbiguousName,
    ChangedMeanwhile,
    DiskFull,
    FileRefused,
    NotFound,
    PartlyFailed,
    RegistryError,
    UsageError,
)
from hnetkit.files import is_file_at, is_folder_at
from hnetkit.library import forget, plugins
from hnetkit.library import link as links
from hnetkit.library import remove as removal
from hnetkit.library import restore as restoration
from hnetkit.library.examining import Progress
from hnetkit.library.layouts import PROGRAMS, Program
from hnetkit.library.listing import list_networks
from hnetkit.library.prompt_names import require_alias
from hnetkit.library.records import look_at_files, record, with_files
from hnetkit.library.resolve import content_called, find_certain, read_found, resolve
from hnetkit.library.scan import FileChange, Note, add_roots, recheck, scan
from hnetkit.library.suggestions import Suggestions, read_again, trigger_words
from hnetkit.registry.columns import spelled
from hnetkit.registry.store import Registry
from hnetkit.text import argument, counted, listed, several

if TYPE_CHECKING:
    from hnetkit.library.forget import Forgetting
    from hnetkit.library.link import LinkChange
    from hnetkit.library.placing import How
    from hnetkit.library.plugins import Kind
    from hnetkit.library.remove import Removal
    from hnetkit.library.restore import RemovalChange
    from hnetkit.network import Hypernetwork


AnyPath = str | os.PathLike[str]

Row = dict[str, Any]


class Library:
    """A registry of hypernetworks, and the folder that downloads are installed in.

    It stays open until `close` or the end of a `with` block. Any number may be open at once, in many processes.

    Args:
        home: folder of registry and library. None is the command line's: ``HNETKIT_HOME``, else the platform's data
            folder, and ``HNETKIT_LIBRARY``.

    Attributes:
        home: as given; locks between processes are there too.
        registry: rows of files and networks.
        folder: where downloads are installed.

    Raises:
        RegistryError: the registry is damaged, locked, or written by a newer hnetkit.
        DiskFull: there is no registry yet, and no room for one.
    """

    def __init__(self, home: AnyPath | None = None) -> None:
        self.home = paths.home() if home is None else Path(os.path.abspath(home))
        self.folder = paths.library_folder() if home is None else self.home / "library"
        self.registry = Registry(self.home / "registry.db")

    def __repr__(self) -> str:
        return f"<Library {os.fspath(self.home)!r}>"

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
        """Reads new and changed files, and returns the changes; see `hnetkit.library.scan.scan`.

        Args:
            folders: scanned and remembered for later scans. Without any, all known folders and `folder` are scanned.
            follow_links: also enter folders outside that links lead to.
            progress: called with the bytes read, and of how many.
            note: called with notes for the user.

        Raises:
            NotFound: a folder does not exist, or no folder was ever scanned.
            RegistryError, DiskFull: the registry cannot be written.
        """
        if not folders:
            self._require_roots()
        return list(scan(self.registry, map(Path, folders), progress, follow_links=follow_links, note=note))

    def recheck(self, progress: Progress | None = None, *, note: Note | None = None) -> list[FileChange]:
        """Reads every known file again, and returns the differences.

        Args:
            progress: called with the bytes read, and of how many.
            note: called with notes for the user.

        Raises:
            NotFound: no folder was ever scanned.
        """
        self._require_roots()
        return list(recheck(self.registry, progress, note=note))

    def networks(
        self,
        *,
        tags: str | Iterable[str] = (),
        base_model: str | None = None,
        width: int | None = None,
        activation: str | None = None,
        missing: bool = False,
        duplicates: bool = False,
        sort: str = "name",
        reverse: bool = False,
    ) -> list[Row]:
        """Returns one row for each network, however many files hold it.

        Args:
            tags: only networks with all of these tags: the user's, a site's or a sidecar's, in upper or lower case.
            base_model: only networks that fit this base model, in any spelling of our name or of Civitai's; those that
                may be for SD 1 or 2 fit both.
            width: only networks that change contexts of this width.
            activation: only networks with this activation; ``"linear"`` means none.
            missing: only networks without any existing file.
            duplicates: only networks that several files hold, as the disk says now. A link and another name of a file
                are no copy: ``same_as`` of such a file is the path of the other, and ``there`` is whether it is as it
                was scanned.
            sort: ``"name"``, ``"added"`` (latest first), ``"size"``, ``"copies"`` or ``"step"`` (largest first),
                ``"base-model"``, ``"title"`` or ``"creator"``.
            reverse: turns the order around.

        Raises:
            UsageError: there is no such base model or order.
        """
        found = list_networks(
            self.registry,
            tags=several(tags),
            base_model=base_model,
            width=width,
            activation=activation,
            missing=missing,
            duplicates=duplicates,
            sort=sort,
            reverse=reverse,
        )
        contents = [row["content_hash"] for row in found]
        rows = {
            row["content_hash"]: row for row in with_files(self.registry, self.registry.networks.of_contents(contents))
        }
        found = [rows[content] for content in contents]
        return self._copied(found) if duplicates else found

    def _copied(self, rows: list[Row]) -> list[Row]:
        """Returns the networks among rows that several files hold on the disk; links and other names are no copies."""
        known: dict[str, list[Row]] = {}
        for file in self.registry.files.holding([row["content_hash"] for row in rows]):
            known.setdefault(file["content_hash"], []).append(file)
        for row in rows:
            look_at_files(row, known[row["content_hash"]])
        return [row for row in rows if row["copies"] > 1]

    def files(self, *, missing: bool = False, **of_networks: Any) -> list[Row]:
        """Returns one row for each known file, with a network or not.

        Args:
            missing: only files that no longer exist.
            of_networks: filters of `networks`: with any, only files of the networks that pass them.
        """
        rows = self.registry.files.missing() if missing else self.registry.files.rows()
        if all(value is None or value is False or value == () for value in of_networks.values()):
            return rows
        wanted = {row["content_hash"] for row in self.networks(**of_networks)}
        return [row for row in rows if row["content_hash"] in wanted]

    def is_empty(self) -> bool:
        """Whether no network is known."""
        return not self.registry.networks.count()

    def search(self, words: str) -> list[Row]:
        """Returns the networks of which every word is shown, also in what sites and sidecars say, best match first."""
        with suppress(RegistryError, DiskFull):  # a registry that cannot be written is searched as it is
            self.registry.catch_up()
        return with_files(self.registry, self.registry.networks.search(words))

    def said_of(self, name: str) -> str | None:
        """Returns what to tell a person who names a network so: another has this name too, or it is called otherwise.

        None if there is nothing to tell, or nothing has the name.
        """
        try:
            return find_certain(self.registry, name).said
        except (NotFound, AmbiguousName, FileRefused):
            return None

    def with_alias(self, alias: str) -> list[Row]:
        """Returns the network with this alias, as a list of one row or none."""
        return with_files(self.registry, self.registry.networks.with_alias(alias))

    def record(self, name: str) -> Row:
        """Returns everything that is known about one network.

        Args:
            name: a name, an alias, a hash and more; see `hnetkit.library.resolve.find_network`.

        Raises:
            NotFound, AmbiguousName, FileRefused: the name matches no network, several, or only unusable files.
        """
        return record(self.registry, content_called(self.registry, name))

    def find(self, name: str) -> Path:
        """Returns an existing file that holds the network.

        Raises:
            NotFound, AmbiguousName, FileRefused: as `record`; NotFound also if none of its files exists.
        """
        path = resolve(self.registry, name).path
        if not is_file_at(path):
            raise NotFound(f"{path}: the file of {name} is gone", hint=WHERE_GONE)
        return path

    def load(self, name: str) -> Hypernetwork:
        """Reads a network, from any of its files that still holds it.

        Raises:
            NotFound, AmbiguousName, FileRefused: as `record`; NotFound also if none of its files exists, FileRefused
                also if it was found by a hash and its files hold something else by now.
        """
        return read_found(find_certain(self.registry, name), name)

    def tag(
        self,
        name: str,
        *tags: str,
        remove: str | Iterable[str] = (),
        alias: str | None = None,
        note: str | None = None,
        remove_aliases: str | Iterable[str] = (),
        strength: float | str | None = None,
        trigger_words: str | None = None,
        preview: AnyPath | None = None,
        expected: Mapping[str, str] | None = None,
    ) -> Row:
        """Changes what a person says of a network, and returns its `record`.

        Tags, aliases and the note belong to the network's content, whichever files hold it. The other three are
        sidecars, so that other programs show them too: ``STEM.json`` as A1111 writes it, and ``STEM.preview.png``,
        beside each file that holds the network.

        Args:
            tags: to add. A comma ends one, as in prompts: ``"lines, night"`` are two.
            remove: tags to remove.
            alias: another name for prompts and commands.
            note: replaces the present note; an empty or blank text removes it.
            remove_aliases: aliases to remove.
            strength: to suggest; an empty text removes it.
            trigger_words: for the prompt; an empty text removes them.
            preview: an image file, of which the sidecar is a smaller copy; an empty text removes that one.
            expected: ``"note"`` or ``"trigger_words"`` -> what it is, as the caller saw it: another text, which came
                meanwhile, is not replaced.

        Raises:
            NotFound, AmbiguousName, FileRefused: as `record`; NotFound also if sidecars are to be written, and no file
                that holds the network is there, or if there is no such image.
            UsageError: the text cannot be an alias, or is the alias or the name of another network; or the network
                has no such tag or alias to remove; or the strength is not one.
            BadPicture: the preview cannot be read.
            OutputExists: a sidecar is something else than programs write there, or another picture comes before it.
            ChangedMeanwhile: a text is not what was `expected`.
            PartlyFailed: beside some files sidecars could not be written. After any other error, nothing is changed.
        """
        networks = self.registry.networks
        suggestions = Suggestions.read(strength, trigger_words, preview)
        remove, remove_aliases = several(remove), several(remove_aliases)
        with self.registry.write():  # what is looked up may be changed by another process otherwise
            content_hash = content_called(self.registry, name)
            known = networks.of_content(content_hash)
            _require_known(name, "tag", remove, known["tags"])
            _require_known(name, "alias", remove_aliases, known["aliases"])
            if alias is not None:
                require_alias(self.registry, alias, content_hash)
            if expected:
                read_again(self.registry, content_hash)
                _require_unchanged(name, record(self.registry, content_hash), expected)
            id = networks.id_of(content_hash)
            networks.add_tags(id, listed(tags))
            networks.remove_tags(id, remove)
            networks.remove_aliases(id, remove_aliases)
            if alias is not None:
                networks.set_alias(id, alias)
            if note is not None:
                networks.set_note(id, note if note.strip() else "")
            failures = [] if suggestions.is_nothing else suggestions.write(self.registry, content_hash, name)
        if failures:
            raise PartlyFailed(f"beside {counted(len(failures), 'file')} of {name} not written: {failures[0]}")
        return record(self.registry, content_hash)

    def tag_all(self, content_hashes: str | Iterable[str], *tags: str, remove: str | Iterable[str] = ()) -> list[str]:
        """Adds tags to several networks at once, and removes others from those that have them.

        Args:
            content_hashes: of the networks; what the library does not have is left out.
            tags: to add, as by `tag`.
            remove: tags to remove.

        Returns:
            The content hashes of the networks whose tags are others now.
        """
        networks, added, removed = self.registry.networks, listed(tags), set(map(spelled, several(remove)))
        changed = []
        with self.registry.write():
            for row in networks.of_contents(several(content_hashes)):
                had = set(map(spelled, row["tags"]))
                if (had | set(map(spelled, added))) - removed != had:
                    networks.add_tags(row["id"], [tag for tag in added if spelled(tag) not in removed])
                    networks.remove_tags(row["id"], [tag for tag in row["tags"] if spelled(tag) in removed])
                    changed.append(row["content_hash"])
        return changed

    def forgetting(self, name: str | None = None, *, missing: bool = False) -> Forgetting:
        """Returns what `forget` would remove; the arguments are the same."""
        return forget.plan(self.registry, name, missing=missing)

    def forget(self, name: str | None = None, *, missing: bool = False) -> list[Row]:
        """Removes files from the registry, and returns their rows. The files themselves are not touched.

        Tags, notes and aliases go with a network's last file.

        Args:
            name: a network's name, a file's path, a folder that was scanned, or the path of what was baked.
            missing: forget all files that no longer exist, networks in no file, and records of what was baked and is
                gone, instead. Files in iCloud are kept, and those whose disk may be away: a folder on the way to them
                is not there, leads nowhere or is empty, or nothing that was in their root with them is there either.

        Raises:
            NotFound, AmbiguousName, FileRefused: as `record`.
        """
        return self.forget_found(self.forgetting(name, missing=missing))

    def forget_found(self, found: Forgetting) -> list[Row]:
        """Removes what `forgetting` returned, which the user has confirmed, but for what is there again by now.

        Returns:
            The rows of the files that were removed.
        """
        return forget.carry_out(self.registry, found)

    def removing(self, *names: str, dry_run: bool = False) -> Removal:
        """Returns what `remove` would move into the trash, looked up on the disk.

        Args:
            names: of networks, for all their files in the library's folders; or paths of files, for these alone.
            dry_run: do not take back a removal that was cut short, which is else done first.

        Raises:
            NotFound, AmbiguousName, FileRefused: as `record`.
        """
        return removal.plan(self.registry, names, dry_run=dry_run)

    def remove(self, *names: str) -> list[RemovalChange]:
        """Moves networks' files and sidecars into a trash on the same disk, and forgets them; see `removing`.

        Links that `link` made to the files are taken away. `restore` brings files, tags, notes and aliases back.
        """
        return self.remove_found(self.removing(*names))

    def remove_found(self, found: Removal) -> list[RemovalChange]:
        """Moves exactly what `removing` returned, which the user has confirmed."""
        return list(removal.carry_out(self.registry, found))

    def restore(self, *names: str, dry_run: bool = False) -> list[RemovalChange]:
        """Brings back what `remove` moved: the latest removal of each name, or without any the latest of all.

        Raises:
            NotFound: nothing with such a name is in the trash.
        """
        return list(restoration.restore(self.registry, names, dry_run=dry_run))

    def link(
        self,
        directory: AnyPath,
        *,
        layout: str | None = None,
        names: str | Sequence[str] = (),
        how: How | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> list[LinkChange]:
        """Links networks into another program's folder, and returns the changes; see `hnetkit.library.link.link`.

        Args:
            directory: the program's own folder.
            layout: the program: ``"a1111"``, ``"comfyui"`` and others. None: see `program_for`.
            names: of networks; none means all usable ones.
            how: ``"symlink"``, ``"hardlink"`` or ``"copy"``, and nothing else; None tries them in this order.
        """
        program, wanted = self.program_for(directory, layout), several(names)
        return list(
            links.link(
                self.registry, Path(directory), program, names=wanted, how=how, dry_run=dry_run, progress=progress
            )
        )

    def unlink(self, directory: AnyPath, *, layout: str | None = None, dry_run: bool = False) -> list[LinkChange]:
        """Removes everything that `link` put into a folder and that has not changed since."""
        program = self.program_for(directory, layout)
        return list(links.undo(self.registry, Path(directory), program, dry_run=dry_run))

    def link_plugin(self, directory: AnyPath, kind: Kind, *, dry_run: bool = False) -> list[LinkChange]:
        """Puts nodes or an extension into a program's folder; see `hnetkit.library.plugins.install`."""
        return list(plugins.install(self.registry, Path(directory), kind, dry_run=dry_run))

    def unlink_plugin(self, directory: AnyPath, kind: Kind, *, dry_run: bool = False) -> list[LinkChange]:
        """Removes what `link_plugin` put there and that has not changed since."""
        return list(plugins.uninstall(self.registry, Path(directory), kind, dry_run=dry_run))

    def program_for(self, directory: AnyPath, layout: str | None = None) -> Program:
        """Returns the program with the name `layout`; without one, that which the folder belongs to.

        Raises:
            NotFound: no such folder.
            UsageError: there is no such program, or nothing tells which.
        """
        return links.program_for(self.registry, Path(directory)) if layout is None else program_of(layout)

    def _require_roots(self) -> None:
        if is_folder_at(self.folder):
            add_roots(self.registry, [self.folder])
        if not self.registry.files.roots():
            raise NotFound("no folder was ever scanned", hint="hnetkit scan FOLDER")


def _require_known(name: str, what: str, removed: Iterable[str], known: Sequence[str]) -> None:
    """Raises UsageError if a network has not all of the tags or aliases that are to be removed."""
    for text in removed:
        if spelled(text) not in map(spelled, known):
            has = f"it has {', '.join(map(argument, known))}" if known else f"hnetkit show {argument(name)}"
            raise UsageError(f"{text} is no {what} of {name}", hint=has)


def _require_unchanged(name: str, row: Row, expected: Mapping[str, str]) -> None:
    """Raises ChangedMeanwhile if one of the texts of a network is not what is expected, but for spaces."""
    texts = {"note": row["note"] or "", "trigger_words": trigger_words(row)}
    for key, text in expected.items():
        if texts[key].split() != text.split():
            words = key.replace("_", " ")
            message = f"the {words} of {name} changed meanwhile"
            raise ChangedMeanwhile(message, now=texts[key], hint=f"hnetkit show {argument(name)}")


def program_of(layout: str) -> Program:
    """Returns the program with this name.

    Raises:
        UsageError: there is none.
    """
    if layout not in PROGRAMS:
        raise UsageError(f"{argument(layout)}: not a known program", hint=f"use one of {', '.join(PROGRAMS)}")
    return PROGRAMS[layout]
