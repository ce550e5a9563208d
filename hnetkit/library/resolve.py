"""Names of networks: from a stem, an alias or a hash to the file to read.

Two files with the same content are one network. A name that matches several networks is an error that lists them.
Stems and aliases may come from strangers, so a hash always means that content, whatever else has the name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnetkit.errors import AmbiguousName, FileRefused, HnetkitError, NotFound, UsageError, did_you_mean
from hnetkit.registry.store import Registry
from hnetkit.text import argument, printable

Row = dict[str, Any]
_HASH = re.compile(r"(?:h1:)?[0-9a-f]{8,64}", re.IGNORECASE)
_SHORT = re.compile(r"[0-9a-f]{8,63}", re.IGNORECASE)  # digits that could also be a word or a date
MOST_ALIAS = 200
"""Characters of an alias."""


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


def resolve(registry: Registry, name: str) -> Resolved:
    """Returns the network that `name` means.

    Args:
        registry: the library.
        name: an exact file stem, else an alias, else a hash (``h1:...``, sha256, A1111's 8 or 10 digits, each also
            shortened to 8 digits or more), or ``name@hash`` if a stem matches several.

    A missing file lends its name only if no existing file has it. ``h1:...``, a whole sha256 and ``name@hash`` come
    before any stem or alias. A stem or alias that reads as a shorter hash, and belongs to another content than the
    hash, is ambiguous.

    Raises:
        NotFound: nothing has this name; the hint is the nearest one.
        AmbiguousName: several networks have it.
        FileRefused: only files without a usable network have it.
    """
    files = _matches(registry, name)
    if not files:
        raise _unknown(registry, name)
    files = [row for row in files if row["state"] == "present"] or files
    if len({row["content_hash"] for row in files}) > 1:
        raise AmbiguousName(
            f"{name} means several networks", hint=f"use one of {', '.join(map(argument, labels(files)))}"
        )
    best = files[0]
    return Resolved(best["stem"], Path(best["path"]), best["content_hash"], best["sha256"])


def labels(files: Iterable[Row]) -> list[str]:
    """Returns ``name@hash`` of each network in rows of files, each once."""
    return list(dict.fromkeys(f"{row['stem']}@{row['content_hash'].removeprefix('h1:')[:10]}" for row in files))


def require_alias(registry: Registry, text: str, content_hash: str) -> None:
    """Raises UsageError if a text cannot be the alias of a network."""
    why = None
    if not text.strip() or set(text) & set(":<>@") or len(text) > MOST_ALIAS:
        why = "it cannot be written in a prompt"
    elif printable(text) != text or text.strip() != text:
        why = "parts of it are invisible"
    elif text.startswith("-"):
        why = "commands would read it as an option"
    elif _HASH.fullmatch(text):
        why = "it looks like a hash"
    if why is not None:
        raise UsageError(f"{text[:60]!r} cannot be an alias: {why}", hint="use letters, digits, - and _")
    others = [row for row in _by_stem(registry, text) if row["content_hash"] != content_hash]
    if others:  # stems take precedence
        raise UsageError(f"{text} is the name of {others[0]['path']}", hint="choose another alias")


def _matches(registry: Registry, name: str) -> list[Row]:
    by_hash = _by_hash(registry, name) or _by_name_and_hash(registry, name)
    if by_hash and not _SHORT.fullmatch(name):
        return by_hash
    return [*(_by_stem(registry, name) or registry.files.with_alias(name)), *by_hash]


def _unknown(registry: Registry, name: str) -> HnetkitError:
    others = registry.files.named(name)
    if others:
        return FileRefused(others[0]["reason"], hint="hnetkit list --files")
    return NotFound(f"no network named {name}", hint=_nearest(registry, name))


def _by_stem(registry: Registry, stem: str) -> list[Row]:
    return [row for row in registry.files.named(stem) if row["content_hash"]]


def _by_name_and_hash(registry: Registry, name: str) -> list[Row]:
    stem, _, digits = name.rpartition("@")
    if not _HASH.fullmatch(digits):
        return []
    return [row for row in _by_stem(registry, stem) or registry.files.with_alias(stem) if _has_hash(row, digits)]


def _by_hash(registry: Registry, digits: str) -> list[Row]:
    if not _HASH.fullmatch(digits):
        return []
    bare = digits.lower().removeprefix("h1:")
    if digits.lower().startswith("h1:"):
        return registry.files.with_hash(content=bare)
    return registry.files.with_hash(content=bare, sha256=bare, autov1=bare)


def _has_hash(row: Row, digits: str) -> bool:
    bare = digits.lower().removeprefix("h1:")
    return any((row["content_hash"][3:].startswith(bare), row["sha256"].startswith(bare), row["autov1"] == bare))


def names(registry: Registry) -> list[str]:
    """Returns all names of networks: stems and aliases, sorted."""
    return sorted(registry.files.stems() | registry.networks.aliases())


def _nearest(registry: Registry, name: str) -> str:
    everything = names(registry)
    if not everything:
        return "the library is empty; hnetkit scan FOLDER"
    near = did_you_mean(name, everything)
    return f"did you mean {argument(near)}?" if near else "hnetkit list"


@dataclass(frozen=True, slots=True)
class MentionedNetwork:
    """The library's match for a network that an image's settings mention.

    Attributes:
        path: an existing file; None if the library has none, or several networks with that name.
        is_held: whether there is any match.
        warning: why it may be another network than the image's; None without reason for doubt.
    """

    path: Path | None
    is_held: bool
    warning: str | None = None


def find_mentioned(registry: Registry, name: str, digits: str | None) -> MentionedNetwork:
    """Finds a network that an image mentions: by its hash, then by its name.

    Args:
        registry: the library.
        name: a stem or an alias.
        digits: of its hash, in lower case: A1111's old 8, or the beginning of the sha256, which may be that of the
            file that one of the library's was converted from; None if unknown.
    """
    row, claims = next(_of_hash(registry, digits), (None, False)) if digits else (None, False)
    if row is not None:
        path = row["path"]
        warning = f"{path}: used for {digits} only because it states that it was converted from that file"
        return MentionedNetwork(Path(path), True, warning if claims else None)
    # lists of late 2022 put the old hash after the name, and a file may really have such a name
    for known_as in (name, f"{name}({digits})") if digits else (name,):
        try:
            path = resolve(registry, known_as).path
        except AmbiguousName as error:
            return MentionedNetwork(None, True, f"{error}; {error.command_hint}")
        except HnetkitError:
            continue
        if os.path.isfile(path):
            return MentionedNetwork(
                path, True, f"{name}: the library's has another hash than {digits}" if digits else None
            )
    return MentionedNetwork(None, False)


def _of_hash(registry: Registry, digits: str) -> Iterator[tuple[Row, bool]]:
    """Yields the files with a hash, and whether that is only the file's own claim."""
    files = registry.files
    # anybody can make a file with a given old hash, which covers 64 kB
    for row in (*files.with_hash(sha256=digits), *files.with_hash(autov1=digits)):
        if row["state"] == "present":
            yield row, False
    for row in files.with_hash(source_sha256=digits):
        if row["state"] == "present":
            originals = files.with_hash(sha256=row["source_sha256"])
            yield row, row["content_hash"] not in {known["content_hash"] for known in originals}
