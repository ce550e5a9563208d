"""What a prompt names, found before any model is loaded: hypernetworks, LoRAs and textual inversions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit import paths, settings
from hnetkit.errors import FileChanged, FileRefused, HnetkitError, NotFound, UsageError, did_you_mean
from hnetkit.files import MODEL_SUFFIXES
from hnetkit.formats import load
from hnetkit.formats.writing import source_sha256
from hnetkit.generate.loading.extra_networks import Lora, find_embeddings, find_loras, lora_hashes
from hnetkit.hashes import sha256_of
from hnetkit.library.resolve import resolve
from hnetkit.network import Hypernetwork
from hnetkit.prompts.infotext import NEGATIVE
from hnetkit.prompts.tags import Tag, TaggedPrompt, split_tags
from hnetkit.registry.store import Registry
from hnetkit.runtime.strength import Strength
from hnetkit.text import argument

if TYPE_CHECKING:
    from hnetkit.generate.options import DrawOptions

Note = Callable[[str], None]
"""Called with each message for the user, one line at a time."""

_BLOCKS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
_HASHED = re.compile(r"(?:^|@)(?:h1:)?[0-9a-f]{8,64}$", re.IGNORECASE)
_WITH_STRENGTH = re.compile(r"(.+):\s*([+-]?(?:\d+\.?\d*|\.\d+))")


def ignore_note(note: str) -> None:
    """A `Note` that does nothing."""


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """One network that a prompt or an option names.

    Attributes:
        source: a name in the library, or the path of a file.
        strength: its multiplier.
        tag: the tag of the prompt; None for an option.
    """

    source: str | Path
    strength: float
    tag: Tag | None = None

    @classmethod
    def from_tag(cls, tag: Tag) -> NetworkRequest:
        """A tag names networks of the library only: prompts come from strangers, and must open no file by its path."""
        return cls(tag.name, tag.multiplier, tag)

    @classmethod
    def from_option(cls, option: str) -> NetworkRequest:
        """Reads ``-n NAME[:STRENGTH]``, where NAME may be the path of a file.

        Raises:
            UsageError: the name is empty, or what follows the colon is not a number.
        """
        match = _WITH_STRENGTH.fullmatch(option)
        if match and _is_path(option) and os.path.exists(option) and not os.path.exists(match[1]):
            match = None  # the colon and the number are part of a file's name
        name, strength = (match[1], float(match[2])) if match else (option, 1.0)
        if _is_path(name):
            return cls(Path(name), strength)
        if not name or (":" in name and not name.startswith("h1:")):
            before_colon = name.partition(":")[0] or "NAME"
            raise UsageError(f"-n {option}: not NAME or NAME:STRENGTH", hint=f"-n {argument(f'{before_colon}:0.8')}")
        return cls(name, strength)


def _is_path(name: str) -> bool:
    """Whether a name means a file. Only its spelling counts: the files of the current folder may be a stranger's."""
    return name.lower().endswith(MODEL_SUFFIXES) or "/" in name or os.sep in name


@dataclass(frozen=True)
class ResolvedNetwork:
    """A network that was found and read.

    Attributes:
        name: as in the tag of the prompt; without a tag the stem of its file.
    """

    name: str
    network: Hypernetwork

    @cached_property
    def hash(self) -> str:
        """10 hex digits of the sha256 of the file before any conversion, by which other programs know it."""
        return (source_sha256(self.network) or "")[:10]


@dataclass(frozen=True, slots=True)
class StackedPrompt:
    """A prompt and the networks of its tags, in stacking order."""

    prompt: TaggedPrompt
    networks: tuple[ResolvedNetwork, ...]

    @property
    def strengths(self) -> tuple[float | Strength, ...]:
        return tuple(map(strength_of, self.prompt.tags))


def strength_of(tag: Tag) -> float | Strength:
    """Returns the strength in a tag: a plain number, unless the tag names sides, a window or blocks."""
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
    """Finds the networks of a prompt; those of the ``-n`` `options` follow its own and become tags too.

    Raises:
        As `NetworkRequest.from_option` and `find_networks`.
    """
    requests = [*map(NetworkRequest.from_tag, prompt.tags), *map(NetworkRequest.from_option, options)]
    networks = find_networks(requests, bundled, registry)
    pairs = zip(networks, requests, strict=True)
    added = [Tag(network.name, request.strength) for network, request in pairs if request.tag is None]
    return StackedPrompt(prompt.adding(tuple(added)), tuple(networks))


def find_networks(
    requests: Iterable[NetworkRequest], bundled: Mapping[str, Path], registry: Registry | None = None
) -> list[ResolvedNetwork]:
    """Returns the network of each request, in order; the same source is read once.

    Args:
        requests: in stacking order.
        bundled: stem -> file of the networks that come with the model; they take precedence over the library's.
        registry: of the library; None is that of `hnetkit.paths.home`, which is opened when a name needs it.

    Raises:
        NotFound: there is no such file or name; the hint is the nearest name.
        AmbiguousName: several networks have this name.
        FileRefused: a file is not a hypernetwork that can be read safely, or does not have the hash that was given.
    """
    loaded: dict[str | Path, tuple[str, Hypernetwork]] = {}
    networks = []
    for request in requests:
        if request.source not in loaded:
            loaded[request.source] = _load_network(request.source, bundled, registry)
        stem, network = loaded[request.source]
        networks.append(ResolvedNetwork(request.tag.name if request.tag else stem, network))
    return networks


def attach_network(pipe: Any, network: ResolvedNetwork, taken: Collection[str]) -> str:
    """Loads a network onto a pipeline at strength 0; returns its name there, which is none of those `taken`."""
    from hnetkit.runtime.adapters import load_hypernetwork

    name, number = network.name, 1
    while name in taken:
        number += 1
        name = f"{network.name} #{number}"
    return load_hypernetwork(pipe, network.network, name, strength=0.0)


def network_hashes(networks: Iterable[ResolvedNetwork]) -> dict[str, str]:
    """Returns the infotext's entry for each network."""
    return {f"hypernet:{network.name}": network.hash for network in networks}


def _load_network(
    source: str | Path, bundled: Mapping[str, Path], registry: Registry | None
) -> tuple[str, Hypernetwork]:
    """Returns the stem of a network's file, and the network."""
    if isinstance(source, Path):
        return source.stem, load(source)
    if source in bundled:
        return source, load(bundled[source])
    found = _find_in_library(source, bundled, registry)
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
        failures.append(FileChanged(f"{path}: replaced since it was scanned: no longer {source}", hint=hint))
    raise failures[0]


@dataclass(frozen=True, slots=True)
class _LibraryMatch:
    """The network that the library has under a name.

    Attributes:
        files: the files that hold it, the best one first.
        is_by_content: the name has a hash in it, so only this content will do.
    """

    files: list[Path]
    content_hash: str
    is_by_content: bool


def _find_in_library(name: str, bundled: Mapping[str, Path], library: Registry | None) -> _LibraryMatch:
    try:
        with Registry(paths.registry_file()) if library is None else nullcontext(library) as registry:
            found = resolve(registry, name)
            is_by_content = bool(_HASHED.search(name)) and (name != found.name or not name.isalnum())
            copies = [row for row in registry.files.holding([found.content_hash]) if row["state"] == "present"]
    except NotFound as error:
        if not bundled:
            raise
        near = did_you_mean(name, bundled)
        hint = f"did you mean {near}?" if near else f"{error.command_hint}; the demo model brings {', '.join(bundled)}"
        raise NotFound(str(error), hint=hint) from error
    others = [Path(row["path"]) for row in copies]
    files = [found.path, *(path for path in others if path != found.path)]
    return _LibraryMatch(files, found.content_hash, is_by_content)


@dataclass(frozen=True, slots=True)
class ResolvedPrompts:
    """All that the prompts of both passes name, found.

    Attributes:
        first: the prompt, with the networks of its tags and of the options.
        hires: the prompt of the second pass, if it has its own.
        loras: of the prompt.
        embeddings: files of the textual inversions that any of the prompts names.
    """

    first: StackedPrompt
    hires: StackedPrompt | None = None
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Path, ...] = ()

    @property
    def networks(self) -> tuple[ResolvedNetwork, ...]:
        """The networks of both passes."""
        return (*self.first.networks, *(self.hires.networks if self.hires else ()))

    @property
    def hashes(self) -> dict[str, str]:
        """The infotext's entries for networks and LoRAs."""
        return network_hashes(self.networks) | lora_hashes(self.loras)

    @property
    def full_hashes(self) -> dict[str, set[str]]:
        """Infotext's name -> the sha256 of the file, and of the file that it was converted from."""
        found: dict[str, set[str]] = {}
        for resolved in self.networks:
            own = sha256_of(resolved.network.source) if resolved.network.source is not None else None
            digests = resolved.network.source_sha256, own
            found[f"hypernet:{resolved.name}"] = {digest for digest in digests if digest}
        return found | {f"lora:{lora.tag.name}": {lora.hash} for lora in self.loras}


def resolve_prompts(
    prompt: TaggedPrompt,
    networks: Iterable[str],
    options: DrawOptions,
    bundled: Mapping[str, Path],
    registry: Registry | None,
    note: Note,
) -> ResolvedPrompts:
    """Finds all that a prompt and the options beside it name.

    Args:
        networks: ``NAME[:STRENGTH]`` of those that follow the prompt's own.
        options: hold the prompts of the second pass, and the negative ones.
        bundled, registry: see `find_networks`.

    Raises:
        As `find_stack`, `find_loras`, `find_embeddings` and `hnetkit.prompts.tags.split_tags`.
    """
    first = find_stack(prompt, networks, bundled, registry)
    hires = resolve_hires_prompt(options, bundled, registry, note)
    loras = tuple(find_loras(prompt.loras, settings.get("loras")))
    return ResolvedPrompts(first, hires, loras, find_embeddings_in([first.prompt.text], hires, options))


def resolve_hires_prompt(
    options: DrawOptions, bundled: Mapping[str, Path], registry: Registry | None, note: Note
) -> StackedPrompt | None:
    """Returns the prompt of the second pass; None if it has none of its own."""
    if not options.has_second_pass or options.hires_prompt is None:
        return None
    return find_stack(read_prompt(options.hires_prompt, note), (), bundled, registry)


def find_embeddings_in(texts: Iterable[str], hires: StackedPrompt | None, options: DrawOptions) -> tuple[Path, ...]:
    """Returns the files of the textual inversions that prompts name; `texts` are the prompts of first passes."""
    others = [options.negative_prompt or "", options.hires_negative_prompt or ""]
    if hires is not None:
        others.append(hires.prompt.text)
    return tuple(find_embeddings([*texts, *others], settings.get("embeddings")))


def read_prompt(prompt: str, note: Note) -> TaggedPrompt:
    """Splits a prompt into text and tags, and reports what has no effect."""
    tagged = split_tags(prompt)
    for warning in tagged.warnings:
        note(f"Warning: {warning}")
    for tag in tagged.unknown:
        note(f"{tag}: no known kind of tag; left out of the prompt, as A1111 does.")
    return tagged


def with_default_stack(prompt: TaggedPrompt) -> TaggedPrompt:
    """Returns a prompt with the networks of the settings at its end, except those that it names itself."""
    named = {tag.name for tag in prompt.tags}
    default = split_tags(settings.get("hypernetworks") or "")
    return prompt.adding(tuple(tag for tag in default.tags if tag.name not in named))


def warn_about_negative_lines(prompts: Iterable[str], note: Note) -> None:
    """Warns about lines that infotext readers take for the negative prompt: the format has no way to escape them."""
    if any(line.strip().startswith(NEGATIVE) for prompt in prompts for line in prompt.split("\n")):
        note(f"Warning: a line begins with {NEGATIVE!r}: read from the picture, it begins the negative prompt.")
