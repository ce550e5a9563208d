"""Mentions of networks: from a name, an alias or a hash to the files to read.

`find_network` is the one answer to what a tag, an option, an image or a caller in Python means. A hash decides: stems,
aliases and a file's own name are changed by everybody, and may come from strangers. Two files with the same content are
one network. A mention that fits several networks is an error that lists them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hnetkit import paths
from hnetkit.errors import WHERE_GONE, AmbiguousName, FileChanged, FileRefused, HnetkitError, NotFound, did_you_mean
from hnetkit.files import is_absent, is_there
from hnetkit.formats import load
from hnetkit.hashes import FileHashes
from hnetkit.inspection import examine
from hnetkit.text import argument, shorten

if TYPE_CHECKING:
    from hnetkit.network import Hypernetwork
    from hnetkit.registry.store import Registry

Row = dict[str, Any]
LibraryOpener: TypeAlias = "Callable[[], Registry | None]"
"""Returns the library's registry; None if there is none."""

FETCHABLE = (8, 10, 12, 64)
"""Digits of a hash that Civitai can be asked for."""

_HASH = re.compile(r"(?:h1:)?[0-9a-f]{8,64}", re.IGNORECASE)
_TOO_SHORT = re.compile(r"(?:h1:|.+@|(?=[a-f]*[0-9])(?=.{4}))[0-9a-f]{1,7}", re.IGNORECASE | re.DOTALL)
_SHORT = re.compile(r"[0-9a-f]{8,63}", re.IGNORECASE)  # digits that could also be a word or a date
_NAME_AND_OLD_HASH = re.compile(r"(.+)\(([0-9a-f]{8})\)", re.IGNORECASE | re.DOTALL)
_OLD_HASH_DIGITS = 8
_OLD_HASH_OF_NOTHING = "e3b0c442"  # of every file under 1 MiB
_SHOWN = 200  # characters of a mention in a message
_MOST_LISTED = 20  # networks in a message


@dataclass(frozen=True, slots=True)
class Resolved:
    """A network of the library.

    Attributes:
        name: the stem of its file, which prompts use.
        path: a file that holds it; an existing one if there is any.
        content_hash: of the network.
        sha256: of that file.
    """

    name: str
    path: Path
    content_hash: str
    sha256: str


@dataclass(frozen=True, slots=True)
class FoundNetwork:
    """What a mention means.

    Attributes:
        network: of the library; for one that comes with a model both hashes are empty.
        files: all that hold it, the best one first: those that are there now, or else were there at the last scan.
        is_bundled: whether it comes with the model.
        is_exact: whether no other content will do. Otherwise the first file is meant by its name, whatever it holds.
        keeps_name: whether the mention itself can stay in a prompt; otherwise the network's own name is to be written.
        note: what to tell the user where a network of another name is meant; None if there is nothing to tell.
        doubt: why it may be another network than the one that is meant; None without a reason.
        has_other_hash: whether the mention states a hash that nothing has, and the name alone fits.
        by_hash: whether a hash in the mention, or beside it, decided; otherwise a name did.
    """

    network: Resolved
    files: tuple[Path, ...]
    is_bundled: bool = False
    is_exact: bool = False
    keeps_name: bool = True
    note: str | None = None
    doubt: str | None = None
    has_other_hash: bool = False
    by_hash: bool = False

    @property
    def said(self) -> str | None:
        """What to tell somebody who draws with it, in one line; None if there is nothing to tell."""
        told = [*([f"Warning: {self.doubt}"] if self.doubt else []), *([self.note] if self.note else [])]
        return "; ".join(told) or None


def resolve(registry: Registry, name: str) -> Resolved:
    """Returns the network of the library that `name` means, for verbs that show or change it.

    Args:
        registry: the library.
        name: the path of a scanned file, or a mention; see `find_network`.

    Raises:
        NotFound: nothing has this name, or what has it has another hash than the one in the mention.
        AmbiguousName: several networks have it.
        FileRefused: only files without a usable network have it.
    """
    return find_certain(registry, name).network


def content_called(registry: Registry, name: str) -> str:
    """Returns the content hash of the network that `name` means, also of one in no file, as an import leaves it.

    Raises:
        NotFound, AmbiguousName, FileRefused: as `resolve`.
    """
    failure = None
    try:
        if (found := _certain_if_known(registry, name)) is not None:
            return found.network.content_hash
    except NotFound as error:
        failure = error
    mention = _Mention.read(name, None)
    rows = _not_here(registry, mention)
    if len(rows) > 1:
        choices = [label(row["name"], row["content_hash"]) for row in rows]
        raise AmbiguousName(f"{name} means several networks", hint=f"use one of {_listed(choices)}")
    if not rows:
        raise failure or _Search(mention, lambda: registry, {}).failure()
    return str(rows[0]["content_hash"])


def contents_without_file(registry: Registry, name: str, stated: str | None) -> list[str]:
    """Returns the content hashes of the networks in no file that a mention means, as `find_network` reads it."""
    return [row["content_hash"] for row in _not_here(registry, _Mention.read(name, stated))]


def _not_here(registry: Registry, mention: _Mention) -> list[Row]:
    """Returns the networks in no file that a mention means: by a hash, or as those in files are, by their names."""
    networks, imported = registry.networks, registry.imported
    for digits in mention.digits:
        bare = digits.removeprefix("h1:")
        held = [] if bare != digits else networks.of_contents(imported.contents(digits=bare))
        if rows := networks.without_file(digits=bare) or held:
            return rows
    if mention.digits and mention.name is not None:  # what is only called so is another one
        return []
    for name in mention.names:
        by_stem = networks.of_contents(imported.contents(stem=name))
        if rows := by_stem or networks.without_file(alias=name) or networks.without_file(name=name):
            return rows
    return []


def find_certain(registry: Registry, name: str) -> FoundNetwork:
    """Returns the network in the file at a path, or what `find_network` does in a library; raises as `resolve`.

    What people type may be a path. What a prompt or a picture states is none: it may come from strangers.
    """
    found = _certain_if_known(registry, name)
    if found is None:
        raise _Search(_Mention.read(name, None), lambda: registry, {}).failure()
    return found


def _certain_if_known(registry: Registry, name: str) -> FoundNetwork | None:
    if at := registry.files.at_typed(name):
        return _in_file(at[0])
    found = find_if_known(name, None, lambda: registry)
    if found is not None and found.has_other_hash:
        mention = _Mention.read(name, None)
        raise NotFound(str(found.doubt), hint=fetch_command(mention.name, mention.digits[0]))
    return found


def _in_file(row: Row) -> FoundNetwork:
    if row["content_hash"] is None:
        raise FileRefused(row["reason"] or f"{row['path']}: no hypernetwork", hint="hnetkit list --files")
    path = Path(row["path"])
    network = Resolved(row["stem"], path, row["content_hash"], row["sha256"])
    return FoundNetwork(network, (path,), is_exact=True, keeps_name=False)


def find_network(
    name: str, stated: str | None, library: LibraryOpener, bundled: Mapping[str, Path] | None = None
) -> FoundNetwork:
    """Returns the network that a mention means.

    The first of these that fits an existing file, each first among the networks that come with the model:

    1. a hash, known beside the name or in it: ``h1:...``, sha256, A1111's 8 or 10 digits, each also shortened to 8
       digits or more; ``NAME@HASH``; ``NAME(HASH)``, as lists of 2022 have it. At last also the sha256 of the file
       that one was converted from;
    2. the stem of a file;
    3. an alias;
    4. the name that a file gives itself, which images of 2022 have.

    An alias, and a name inside a file, belong to a content. Where a name also belongs to another network that comes
    later in this order, `FoundNetwork.doubt` says so. Accents may be composed otherwise: systems differ in it.

    Where a hash fits several networks, the name decides between them. A bare hash of less than 64 digits that is also
    the stem or alias of another network is ambiguous.

    Args:
        name: as it is written in a prompt, an option or an image.
        stated: hex digits of its hash, where an image states them beside the name.
        library: called when the library is needed.
        bundled: stem -> file of the networks that come with the model.

    Raises:
        NotFound: nothing has this name or hash; the hint is the nearest name, or how to get it.
        AmbiguousName: several networks have it.
        FileRefused: only files without a usable network have it.
    """
    search = _Search(_Mention.read(name, stated), library, bundled or {})
    found = search.known()
    if found is None:
        raise search.failure()
    return found


def find_if_known(
    name: str, stated: str | None, library: LibraryOpener, bundled: Mapping[str, Path] | None = None
) -> FoundNetwork | None:
    """Returns what `find_network` does; None if nothing has the name or the hash, which costs no search for a hint.

    Raises:
        AmbiguousName, FileRefused: as `find_network`.
    """
    return _Search(_Mention.read(name, stated), library, bundled or {}).known()


def read_found(found: FoundNetwork, mention: str) -> Hypernetwork:
    """Returns the network, from the first file that still holds it.

    Raises:
        NotFound: all of its files are gone.
        FileRefused: a file is not a hypernetwork any more, or another one than at the last scan.
    """
    failures: list[HnetkitError] = []
    for path in found.files:
        is_named = not found.is_exact and path == found.files[0]
        try:
            network = load(path)
        except NotFound as error:
            failures.append(NotFound(str(error), hint=None if found.is_bundled else WHERE_GONE))
            continue
        except FileRefused as error:
            if is_named:
                raise
            failures.append(error)
            continue
        if is_named or network.content_hash == found.network.content_hash:
            return network
        hint = f"hnetkit scan {argument(path.parent, is_path=True)}"
        failures.append(FileChanged(f"{path}: replaced since it was scanned: no longer {mention}", hint=hint))
    raise failures[0]


@contextmanager
def opened_when_needed(registry: Registry | None = None) -> Iterator[LibraryOpener]:
    """Yields a function that returns `registry`, or opens that of `hnetkit.paths.home`; it creates none."""
    with ExitStack() as opened:

        @cache
        def library() -> Registry | None:
            if registry is not None or not is_there(paths.registry_file()):
                return registry
            from hnetkit.registry.store import Registry  # many prompts name no network

            return opened.enter_context(Registry(paths.registry_file()))

        yield library


@dataclass(frozen=True, slots=True)
class _Mention:
    """A mention, taken apart.

    Attributes:
        written: as it is written.
        name: the part of it that is no hash; None if all of it is one.
        digits: of its hashes, the most certain first.
        names: to look up if no hash is found, the best first.
        is_of_a_list: whether it is ``NAME(HASH)``, which no program of today reads in a prompt.
    """

    written: str
    name: str | None
    digits: tuple[str, ...]
    names: tuple[str, ...]
    is_of_a_list: bool = False

    @classmethod
    def read(cls, written: str, stated: str | None) -> _Mention:
        known = (stated.lower(),) if stated else ()
        if match := _NAME_AND_OLD_HASH.fullmatch(written):
            return cls(written, match[1], _telling(*known, match[2].lower()), (written, match[1]), is_of_a_list=True)
        name, _, after = written.rpartition("@")
        if is_hash(after) and (name or after == written):
            return cls(written, name or (written if known else None), _telling(*known, after.lower()), (written,))
        # a file may really be called as the lists of 2022 show it
        listed = [f"{written}({digits})" for digits in known if len(digits) == _OLD_HASH_DIGITS]
        return cls(written, written, _telling(*known), (*listed, written))

    @property
    def may_be_a_word(self) -> bool:
        """Whether it is a bare hash that could as well be a name."""
        return self.name is None and _SHORT.fullmatch(self.written) is not None

    def __str__(self) -> str:
        return shorten(self.written, _SHOWN)


def is_hash(text: str) -> bool:
    """Whether a mention of this form means the network that has this hash, or these first digits of one."""
    return _HASH.fullmatch(text) is not None


def _telling(*digits: str) -> tuple[str, ...]:
    return tuple(one for one in digits if one != _OLD_HASH_OF_NOTHING)


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for what a mention means."""

    mention: _Mention
    library: LibraryOpener
    bundled: Mapping[str, Path]

    def candidates(self) -> Iterator[tuple[FoundNetwork, bool]]:
        """Yields what may be meant, the best first, and whether an existing file holds it."""
        for digits in self.mention.digits:
            for stem, path in self.bundled.items():
                if _has_hash(_hashes_of(path), digits):
                    yield self._bundled(stem, digits), True
            if (registry := self.library()) is not None:
                for rows, is_claimed in _by_hash(registry, digits):
                    yield self._held(registry, rows, digits, is_claimed=is_claimed)
        for name in self.mention.names:
            if name in self.bundled:
                yield self._bundled(name), True
            if (registry := self.library()) is not None:
                for rows in _by_name(registry, name):
                    yield self._held(registry, rows)

    def known(self) -> FoundNetwork | None:
        """Returns the first candidate that an existing file holds, else the first; None if nothing has the name.

        Raises:
            FileRefused: only files without a usable network have it.
        """
        gone = None
        for found, is_held in self.candidates():
            if is_held:
                return found
            gone = gone or found
        registry = self.library() if gone is None else None
        unusable = [row for name in self.mention.names for row in registry.files.named(name)] if registry else []
        if unusable:
            raise FileRefused(unusable[0]["reason"], hint="hnetkit list --files")
        return gone

    def failure(self) -> NotFound:
        """Returns the error for a mention of nothing that is known."""
        mention, registry = self.mention, self.library()
        if registry and (known := _not_here(registry, mention)):
            told = registry.imported.by_content([row["content_hash"] for row in known])
            is_fetchable = any(file.reference for files in told.values() for file in files)
            hint = "hnetkit repair fetches it" if is_fetchable else "hnetkit scan FOLDER, where you have its file"
            return NotFound(f"{mention} is known, but in no file of the library", hint=hint)
        return NotFound(f"no network named {mention}", hint=self._hint(registry))

    def _hint(self, registry: Registry | None) -> str:
        """Returns the next step. Where a hash is named, whatever is called similarly is another network."""
        mention = self.mention
        named = {"digits": mention.digits} if mention.digits else {"names": mention.names}
        if registry and (hint := removed_hint(registry, **named)) is not None:
            return hint
        if not mention.digits or mention.name is None:
            return _nearest(registry, mention.written, self.bundled)
        if mention.name in mention.names:
            return fetch_command(mention.name, mention.digits[0])  # one of a similar name is another one
        called = [row for rows in _by_name_of_today(registry, mention.name) for row in rows] if registry else []
        return f"the library has {_listed(labels(called))}" if called else "hnetkit list"

    def _bundled(self, stem: str, digits: str | None = None) -> FoundNetwork:
        mention, path = self.mention, self.bundled[stem]
        is_other = self._other_hash("model") if digits is None else None
        doubt = (is_other or self._beside_model(stem)) if digits is None else None
        is_called_so = mention.name in (None, stem)
        return FoundNetwork(
            Resolved(stem, path, "", ""),
            (path,),
            is_bundled=True,
            keeps_name=mention.written == stem or (is_called_so and not mention.is_of_a_list),
            note=None if is_called_so else f"{self._with_hash(digits or '')} comes with the model as {stem}",
            doubt=doubt,
            has_other_hash=bool(is_other),
            by_hash=digits is not None,
        )

    def _held(
        self, registry: Registry, rows: list[Row], digits: str | None = None, *, is_claimed: bool = False
    ) -> tuple[FoundNetwork, bool]:
        """Returns the network in the files that fit the mention, by a hash of these `digits` or else by its name."""
        mention = self.mention
        rows = _there(rows) or rows
        if digits and mention.may_be_a_word:
            rows = [*rows, *(row for named in _by_name_of_today(registry, mention.written) for row in _there(named))]
        content = self._content_of(registry, rows)
        copies = [row for row in (*rows, *registry.files.holding([content])) if row["content_hash"] == content]
        there = _there(copies)
        files = {row["path"]: row for row in sorted(there or copies, key=lambda row: not os.path.isfile(row["path"]))}
        best = next(iter(files.values()))
        is_called_so = mention.name is None or content in registry.files.contents_called(mention.name)
        is_other = self._other_hash("library") if digits is None else None
        note = doubt = None
        if digits is None:
            doubt = is_other or self._beside_stem(registry, best)
        elif is_claimed and not is_called_so:
            doubt = f"{best['path']}: used for {digits} only because it states that it was converted from that file"
        if not is_called_so and not (is_claimed and doubt):
            by_what = self._with_hash(digits) if digits else f"{mention}, as it calls itself,"
            note = f"{by_what} is {best['stem']} in the library"
        is_written_so = content in registry.files.contents_called(mention.written)
        found = FoundNetwork(
            Resolved(best["stem"], Path(best["path"]), content, best["sha256"]),
            tuple(map(Path, files)),
            is_exact=(
                digits is not None
                or best["path"] not in {row["path"] for row in rows}
                or best["stem"] not in mention.names
            ),
            keeps_name=is_written_so or (is_called_so and not mention.is_of_a_list),
            note=note,
            doubt=doubt,
            has_other_hash=bool(is_other),
            by_hash=digits is not None,
        )
        return found, bool(there)

    def _content_of(self, registry: Registry, rows: list[Row]) -> str:
        """Returns the one content of files that fit; of several, the one that the mention's name is a name of.

        Raises:
            AmbiguousName: several are left.
        """
        contents = dict.fromkeys(row["content_hash"] for row in rows)
        if len(contents) > 1 and self.mention.name is not None:
            named = registry.files.contents_called(self.mention.name)
            contents = {content: None for content in contents if content in named} or contents
        if len(contents) > 1:
            raise AmbiguousName(f"{self.mention} means several networks", hint=f"use one of {_listed(labels(rows))}")
        return str(next(iter(contents)))

    def _with_hash(self, digits: str) -> str:
        """Returns the mention for a message, with the hash that found it."""
        mention = self.mention
        return str(mention) if digits in mention.written.lower() else f"{mention} [{digits}]"

    def _beside_stem(self, registry: Registry, best: Row) -> str | None:
        """Returns what to say where the name of a file is also an alias of another network."""
        if best["stem"] not in self.mention.names:
            return None
        aliased = [row for row in _there(registry.files.with_alias(best["stem"])) if row["content_hash"]]
        others = [row for row in aliased if row["content_hash"] != best["content_hash"]]
        if not others:
            return None
        return f"{best['stem']} is {best['path']}, and not {_listed(labels(others), ' or ')}, which has this alias"

    def _beside_model(self, stem: str) -> str | None:
        """Returns what to say where the library has another network of the name of one that comes with the model."""
        registry = self.library()
        if registry is None:
            return None
        own = _hashes_of(self.bundled[stem])
        named = [row for rows in _by_name_of_today(registry, stem) for row in _there(rows)]
        others = [row for row in named if own is None or row["content_hash"] != own.content_hash]
        which = _listed(labels(others), " or ")
        return f"{stem} is the one that comes with the model, and not {which}" if others else None

    def _other_hash(self, whose: str) -> str | None:
        mention = self.mention
        if not mention.digits or mention.name not in mention.names:
            return None
        return f"{shorten(mention.name, _SHOWN)}: the {whose}'s has another hash than {mention.digits[0]}"


def _by_hash(registry: Registry, digits: str) -> Iterator[tuple[list[Row], bool]]:
    """Yields the files with a hash, the most certain kind of hash first, and whether that is only their own claim."""
    files, bare = registry.files, digits.removeprefix("h1:")
    if bare != digits:
        yield from _some(files.with_hash(content=bare))
        return
    # anybody can make a file with a given old hash, which covers 64 kB
    yield from _some(files.with_hash(content=bare, sha256=bare))
    yield from _some(files.with_hash(autov1=bare))
    claiming = files.with_hash(source_sha256=bare)
    originals = {row["sha256"]: files.with_hash(sha256=row["source_sha256"]) for row in claiming}
    seen = [row for row in claiming if row["content_hash"] in {one["content_hash"] for one in originals[row["sha256"]]}]
    yield from _some(seen)
    yield from _some([row for row in claiming if row not in seen], is_claimed=True)


def _some(rows: list[Row], *, is_claimed: bool = False) -> Iterator[tuple[list[Row], bool]]:
    if rows:
        yield rows, is_claimed


def _by_name(registry: Registry, name: str) -> Iterator[list[Row]]:
    """Yields the files with a name, in the order of what counts: by their stem, by an alias, by their own name."""
    yield from _by_name_of_today(registry, name)
    if not registry.files.named(name):  # what is there under this name is meant, if only to be refused
        yield from filter(None, [registry.files.with_own_name(name)])


def _by_name_of_today(registry: Registry, name: str) -> Iterator[list[Row]]:
    yield from filter(None, [with_stem(registry, name), registry.files.with_alias(name)])


def with_stem(registry: Registry, stem: str) -> list[Row]:
    """Returns the files of this stem that hold a network."""
    return [row for row in registry.files.named(stem) if row["content_hash"]]


def _listed(labels: Sequence[str], joint: str = ", ") -> str:
    """Returns labels for a message; of very many networks that are called alike, the first ones."""
    more = [f"{len(labels) - _MOST_LISTED} more"] if len(labels) > _MOST_LISTED else []
    return joint.join([*map(argument, labels[:_MOST_LISTED]), *more])


def _there(rows: Iterable[Row]) -> list[Row]:
    """Returns those of some files that are there now, whatever the last scan saw; where none is, those that it saw."""
    known = [row for row in rows if row["state"] != "corrupt"]
    return [row for row in known if not is_absent(row["path"])] or [row for row in known if row["state"] == "present"]


@cache
def _hashes_of(path: Path) -> FileHashes | None:
    """Returns the hashes of a file that comes with a model, which nothing changes while hnetkit runs."""
    return examine(path).hashes


def _has_hash(hashes: FileHashes | None, digits: str) -> bool:
    if hashes is None:
        return False
    content = hashes.content_hash or ""
    if digits.startswith("h1:"):
        return content.startswith(digits)
    return content[3:].startswith(digits) or (hashes.sha256 or "").startswith(digits) or hashes.autov1 == digits


def labels(files: Iterable[Row]) -> list[str]:
    """Returns ``name@hash`` of each network in rows of files, each once."""
    return list(dict.fromkeys(label(row["stem"], row["content_hash"]) for row in files))


def label(name: str, content_hash: str) -> str:
    """Returns ``name@hash``, which tells a network from others of its name."""
    return f"{name}@{content_hash.removeprefix('h1:')[:10]}"


def names(registry: Registry) -> list[str]:
    """Returns all names of networks, also of those in no file: stems and aliases, sorted."""
    return sorted(registry.files.stems() | registry.imported.stems() | registry.networks.aliases())


def removed_hint(registry: Registry, *, digits: Iterable[str] = (), names: Iterable[str] = ()) -> str | None:
    """Returns what brings back the network in a trash that is meant, the last that was removed; None without one."""
    from hnetkit.library import trash

    roots = [root.path for root in registry.files.roots()]
    removed = trash.last_removed(roots, digits=tuple(digits), names=tuple(names))
    return removed and f"hnetkit remove --undo {argument(removed)} brings it back"


def _nearest(registry: Registry | None, name: str, bundled: Mapping[str, Path]) -> str:
    if near := did_you_mean(name, bundled):
        return f"did you mean {argument(near)}?"
    held = names(registry) if registry else []
    near = did_you_mean(name, held)
    if near:
        return f"did you mean {argument(near)}?"
    if held and _TOO_SHORT.fullmatch(name):
        return "a hash has 8 of its digits or more; hnetkit list --json has them all"
    empty = registry.emptiness() if registry else "the library is empty"
    hint = f"{empty}; hnetkit scan FOLDER" if empty else "hnetkit list"
    return f"{hint}; the demo model brings {', '.join(bundled)}" if bundled else hint


def fetch_command(name: str | None, digits: str | None) -> str:
    """Returns the command that gets a network: by its hash, where a site can be asked for it, or else by its name."""
    if digits and len(digits) in FETCHABLE:
        return f"hnetkit pull {digits}"
    return f"hnetkit browse {argument(str(name))}"
