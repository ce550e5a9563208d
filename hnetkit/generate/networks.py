"""From what a prompt and its options name to networks that are ready to be applied."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hnetkit import paths
from hnetkit.errors import FileChanged, FileRefused, HnetkitError, NotFound, UsageError
from hnetkit.files import MODEL_SUFFIXES
from hnetkit.formats import load
from hnetkit.formats.writing import source_sha256
from hnetkit.library.resolve import resolve
from hnetkit.network import Hypernetwork
from hnetkit.prompts.tags import Tag, TaggedPrompt
from hnetkit.registry.store import Registry
from hnetkit.runtime.strength import Strength
from hnetkit.text import argument

_BLOCKS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
_HASHED = re.compile(r"(?:^|@)(?:h1:)?[0-9a-f]{8,64}$", re.IGNORECASE)
_WITH_STRENGTH = re.compile(r"(.+):\s*([+-]?(?:\d+\.?\d*|\.\d+))")


@dataclass(frozen=True, slots=True)
class Wish:
    """One network that is asked for.

    Attributes:
        place: a name of the library, or the path of a file.
        strength: its multiplier.
        tag: the tag in the prompt that asks for it; None for an option.
    """

    place: str | Path
    strength: float
    tag: Tag | None = None

    @classmethod
    def of_tag(cls, tag: Tag) -> Wish:
        """A tag names networks of the library only: prompts come from strangers, and open no file by its path."""
        return cls(tag.name, tag.multiplier, tag)

    @classmethod
    def of_option(cls, option: str) -> Wish:
        """Reads ``-n NAME[:STRENGTH]``, where NAME may be the path of a file.

        Raises:
            UsageError: nothing is named, or what follows the colon is not a number.
        """
        found = _WITH_STRENGTH.fullmatch(option)
        if found and _is_path(option) and os.path.exists(option) and not os.path.exists(found[1]):
            found = None  # a file is called so, colon and all
        name, strength = (found[1], float(found[2])) if found else (option, 1.0)
        if _is_path(name):
            return cls(Path(name), strength)
        if not name or (":" in name and not name.startswith("h1:")):
            said = name.partition(":")[0] or "NAME"
            raise UsageError(f"-n {option}: not NAME or NAME:STRENGTH", hint=f"-n {argument(f'{said}:0.8')}")
        return cls(name, strength)


def _is_path(name: str) -> bool:
    """Whether a name is that of a file, whatever lies in the folder that one is in: it may be a stranger's."""
    return name.lower().endswith(MODEL_SUFFIXES) or "/" in name or os.sep in name


@dataclass(frozen=True)
class Network:
    """A network that was found and read.

    Attributes:
        name: what the prompt calls it: as its tag does, else the stem of its file.
    """

    name: str
    network: Hypernetwork

    @cached_property
    def hash(self) -> str:
        """10 hex digits of the sha256 of the file that others know it by: before any conversion."""
        return (source_sha256(self.network) or "")[:10]


@dataclass(frozen=True, slots=True)
class StackedPrompt:
    """A prompt and the networks of its tags, in stacking order."""

    prompt: TaggedPrompt
    networks: tuple[Network, ...]

    @property
    def strengths(self) -> tuple[float | Strength, ...]:
        return tuple(map(strength_of, self.prompt.tags))


def strength_of(tag: Tag) -> float | Strength:
    """Returns what a tag says of strength: a bare number, unless it names parts, a window or blocks."""
    strength = Strength(
        tag.multiplier,
        self_k=tag.self_k,
        self_v=tag.self_v,
        cross_k=tag.cross_k,
        cross_v=tag.cross_v,
        start=tag.start,
        end=tag.end,
        blocks={"": 0.0, **{_BLOCKS.get(block, block): 1.0 for block in tag.blocks}} if tag.blocks else (),
    )
    return tag.multiplier if strength == Strength(tag.multiplier) else strength


def find_stack(
    prompt: TaggedPrompt, options: Iterable[str], bundled: Mapping[str, Path], registry: Registry | None = None
) -> StackedPrompt:
    """Returns a prompt with its networks found; those of ``-n`` `options` follow its own and become tags too.

    Raises:
        As `Wish.of_option` and `find_networks`.
    """
    wishes = [*map(Wish.of_tag, prompt.tags), *map(Wish.of_option, options)]
    networks = find_networks(wishes, bundled, registry)
    added = [Tag(found.name, wish.strength) for found, wish in zip(networks, wishes, strict=True) if wish.tag is None]
    return StackedPrompt(prompt.adding(tuple(added)), tuple(networks))


def find_networks(
    wishes: Iterable[Wish], bundled: Mapping[str, Path], registry: Registry | None = None
) -> list[Network]:
    """Returns the network of each wish, in order; the same place is read once.

    Args:
        wishes: in stacking order.
        bundled: stem -> file of networks that come with the model; they go before the library's.
        registry: of the library; None is that of `hnetkit.paths.home`, which is opened where a name needs it.

    Raises:
        NotFound: a file or a name that is not there; the hint is the nearest name.
        AmbiguousName: a name stands for several networks.
        FileRefused: a file is not a hypernetwork that can be read safely, or is not of the hash that was asked for.
    """
    read: dict[str | Path, tuple[str, Hypernetwork]] = {}
    networks = []
    for wish in wishes:
        if wish.place not in read:
            read[wish.place] = _read(wish.place, bundled, registry)
        stem, network = read[wish.place]
        networks.append(Network(wish.tag.name if wish.tag else stem, network))
    return networks


def put_on_one(pipe: Any, network: Network, taken: Collection[str]) -> str:
    """Loads a network onto a pipeline, not yet in effect; returns its name there, which is none of those `taken`."""
    from hnetkit.runtime.adapters import load_hypernetwork

    name, times = network.name, 1
    while name in taken:
        times += 1
        name = f"{network.name} #{times}"
    return load_hypernetwork(pipe, network.network, name, strength=0.0)


def hashes_of(networks: Iterable[Network]) -> dict[str, str]:
    """Returns the infotext's entry for each network."""
    return {f"hypernet:{network.name}": network.hash for network in networks}


def _read(place: str | Path, bundled: Mapping[str, Path], registry: Registry | None) -> tuple[str, Hypernetwork]:
    """Returns the stem of a network's file, and the network."""
    if isinstance(place, Path):
        return place.stem, load(place)
    if place in bundled:
        return place, load(bundled[place])
    found = _resolved(place, bundled, registry)
    files = found.files if found.is_by_content else found.files[:1]
    failures: list[HnetkitError] = []
    for path in files:
        try:
            network = load(path)
        except (FileRefused, NotFound) as error:
            failures.append(error)
            continue
        if not found.is_by_content or network.content_hash == found.content_hash:
            return path.stem, network
        hint = f"hnetkit scan {argument(path.parent, is_path=True)}"
        failures.append(FileChanged(f"{path}: replaced since it was scanned: no longer {place}", hint=hint))
    raise failures[0]


@dataclass(frozen=True, slots=True)
class _Found:
    """What the library holds under a name.

    Attributes:
        files: that hold the network, the best first.
        is_by_content: whether a hash was said: then nothing but this content is meant.
    """

    files: list[Path]
    content_hash: str
    is_by_content: bool


def _resolved(name: str, bundled: Mapping[str, Path], library: Registry | None) -> _Found:
    try:
        with Registry(paths.registry_file()) if library is None else nullcontext(library) as registry:
            found = resolve(registry, name)
            is_by_content = bool(_HASHED.search(name)) and (name != found.name or not name.isalnum())
            alike = [row for row in registry.files.holding([found.content_hash]) if row["state"] == "present"]
    except NotFound as error:
        if not bundled:
            raise
        near = difflib.get_close_matches(name, bundled, n=1)
        brought = f"did you mean {near[0]}?" if near else f"the demo model brings {', '.join(bundled)}"
        raise NotFound(str(error), hint=brought if near else f"{error.hint}; {brought}") from error
    others = [Path(row["path"]) for row in alike]
    return _Found([found.path, *(path for path in others if path != found.path)], found.content_hash, is_by_content)
