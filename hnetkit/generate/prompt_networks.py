"""What a prompt names, found before any model is loaded: hypernetworks, LoRAs and textual inversions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hnetkit import settings
from hnetkit.errors import HnetkitError, UsageError
from hnetkit.files import MODEL_SUFFIXES, stat_at
from hnetkit.formats import load
from hnetkit.formats.reading import MIX_SUFFIX
from hnetkit.formats.writing import source_sha256
from hnetkit.generate.loading.extra_networks import (
    Lora,
    find_embeddings,
    find_loras,
    find_unread_embeddings,
    lora_hashes,
)
from hnetkit.library.known_hashes import hash_of_file
from hnetkit.library.resolve import LibraryOpener, find_network, label, opened_when_needed, read_found
from hnetkit.network import Hypernetwork
from hnetkit.prompts.attention import escaped
from hnetkit.prompts.chunks import WordsOf
from hnetkit.prompts.infotext import NEGATIVE, require_prompt_alone
from hnetkit.prompts.schedule import pieces_drawn
from hnetkit.prompts.tags import (
    Tag,
    TaggedPrompt,
    excerpt,
    fits_in_tag,
    options_in,
    plain_in_a1111,
    plain_number,
    problems_of_stack,
    split_comments,
    split_tags,
)
from hnetkit.runtime.strength import Strength, require_order, strength_of
from hnetkit.text import argument

if TYPE_CHECKING:
    from hnetkit.generate.options import DrawOptions
    from hnetkit.registry.store import Registry

Note = Callable[[str], None]
"""Called with each message for the user, one line at a time."""

AnyPath: TypeAlias = "str | os.PathLike[str]"
Networks: TypeAlias = (
    "AnyPath | Iterable[AnyPath | tuple[AnyPath, float | Strength | None]] | Mapping[str, float | Strength | None]"
)
"""Networks beside a prompt: see `network_options`."""

_HINT = 'networks=["ink:0.8", "wash.pt"], or {"ink": 0.8}'
_WITH_STRENGTH = re.compile(r"(.+):\s*([+-]?(?:\d+\.?\d*|\.\d+))")


def ignore_note(note: str) -> None:
    """A `Note` that does nothing."""


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """One network that a prompt or an option names.

    Attributes:
        source: a mention of a network of the library, or the path of a file.
        strength: its multiplier.
        tag: the tag of the prompt; None for an option.
        stated: hex digits of its hash, where the image that the prompt comes from states them.
    """

    source: str | Path
    strength: float
    tag: Tag | None = None
    stated: str | None = None

    @classmethod
    def from_tag(cls, tag: Tag, stated: str | None = None) -> NetworkRequest:
        """A tag names networks of the library only: prompts come from strangers, and must open no file by its path."""
        return cls(tag.name, tag.multiplier, tag, stated)

    @classmethod
    def from_option(cls, option: str) -> NetworkRequest:
        """Reads ``-n NAME[:STRENGTH]``, where NAME may be the path of a file.

        Raises:
            UsageError: the name is empty, or what follows the colon is not a number.
        """
        match = _WITH_STRENGTH.fullmatch(option)
        if match and _is_path(option) and stat_at(option) is not None and stat_at(match[1]) is None:
            match = None  # the colon and the number are part of a file's name
        name, strength = (match[1], float(match[2])) if match else (option, 1.0)
        if _is_path(name):
            return cls(Path(name), strength)
        if not name or (":" in name and not name.startswith("h1:")):
            (tag, *_) = split_tags(option).tags or (Tag(name.partition(":")[0] or "NAME", 0.8),)
            meant = f"{tag.name}:{plain_number(tag.multiplier)}"
            raise UsageError(f"-n {option}: not NAME or NAME:STRENGTH", hint=f"-n {argument(meant)}")
        return cls(name, strength)


def network_options(networks: Networks) -> tuple[str, ...]:
    """Returns ``NAME[:STRENGTH]`` of networks as texts.

    Args:
        networks: such texts, files, or pairs of one of them and a strength, in order; one alone; or name -> strength.

    Raises:
        UsageError: they are a set, which has no order, or nothing that holds networks, or a strength is no number.
    """
    require_order(networks)
    if isinstance(networks, str | os.PathLike):
        networks = [networks]
    if not isinstance(networks, Iterable):
        raise UsageError(f"networks: {excerpt(repr(networks))} is no list of networks", hint=_HINT)
    return tuple(map(_option, networks.items() if isinstance(networks, Mapping) else networks))


def _option(network: Any) -> str:
    name, *strengths = network if isinstance(network, tuple) else (network,)
    if not isinstance(name, str | os.PathLike) or len(strengths) > 1:
        raise UsageError(f"{excerpt(repr(network))} is no name or file of a network", hint=_HINT)
    text = os.fspath(name)
    if not strengths or strengths[0] is None:
        return text
    strength = Strength.of(strengths[0])
    number = strength.number("self", "k")
    if strength != Strength(number):
        hint = f"in the prompt: <hypernet:{text}:{plain_number(number)}:end=0.6>"
        raise UsageError(f"{excerpt(text)}: a strength beside a prompt is one number", hint=hint)
    return f"{text}:{plain_number(number)}"


def _is_path(name: str) -> bool:
    """Whether a name means a file. Only its spelling counts: the files of the current folder may be a stranger's."""
    return name.lower().endswith((*MODEL_SUFFIXES, MIX_SUFFIX)) or "/" in name or os.sep in name


@dataclass(frozen=True)
class ResolvedNetwork:
    """A network that was found and read.

    Attributes:
        name: as images state it: that of the prompt's tag if it is a name of this network, else the stem of its file.
    """

    name: str
    network: Hypernetwork

    @cached_property
    def hash(self) -> str:
        """10 hex digits of the sha256 of the file before any conversion, by which other programs know it."""
        return (source_sha256(self.network) or "")[:10]


@dataclass(frozen=True, slots=True)
class StatedHashes:
    """What an image states of the networks that its prompts' tags name, in their order.

    Attributes:
        prompt, hires_prompt: hex digits of each one's hash; None where it states none.
    """

    prompt: tuple[str | None, ...] = ()
    hires_prompt: tuple[str | None, ...] = ()


NONE_STATED = StatedHashes()


@dataclass(frozen=True, slots=True)
class StackedPrompt:
    """A prompt and the networks of its tags, in stacking order."""

    prompt: TaggedPrompt
    networks: tuple[ResolvedNetwork, ...]

    @property
    def strengths(self) -> tuple[float | Strength, ...]:
        return tuple(map(strength_of, self.prompt.tags))


class NetworkFinder:
    """Finds the networks of what is drawn together; each is read once, and no name stands for two of them.

    Args:
        bundled: stem -> file of the networks that come with the model; they take precedence over the library's.
        registry: of the library; None is that of `hnetkit.paths.home`, which is opened when a name needs it.
        note: told where a network of another name or another hash is meant.
    """

    def __init__(
        self, bundled: Mapping[str, Path] | None = None, registry: Registry | None = None, note: Note = ignore_note
    ) -> None:
        self._bundled = bundled or {}
        self._registry = registry
        self._note = note
        self._read: dict[tuple[str | Path, str | None], _ReadNetwork] = {}
        self._named: dict[str, Hypernetwork] = {}

    @cached_property
    def default_tags(self) -> tuple[Tag, ...]:
        """The tags of the settings; what else is there, by hand or from earlier versions, is told."""
        default = settings.get("hypernetworks") or ""
        for line in problems_of_stack(default):
            self._note(f"Warning: the setting hypernetworks: {line}")
        return split_tags(default).tags

    def stack(
        self, prompt: TaggedPrompt, options: Iterable[str] = (), stated: Iterable[str | None] = ()
    ) -> StackedPrompt:
        """Finds the networks of a prompt; those of the ``-n`` `options` follow its own and become tags too.

        Args:
            stated: the hash of each network of the prompt, where the image that it comes from states one.

        Raises:
            As `NetworkRequest.from_option` and `networks`.
        """
        requests = [
            NetworkRequest.from_tag(*pair) for pair in zip(prompt.tags, chain(stated, repeat(None)), strict=False)
        ]
        requests += map(NetworkRequest.from_option, options)
        networks = self.networks(requests)
        own, added = networks[: len(prompt.tags)], networks[len(prompt.tags) :]
        strengths = [request.strength for request in requests[len(prompt.tags) :]]
        written = prompt.renaming([network.name for network in own])
        tags = tuple(Tag(network.name, strength) for network, strength in zip(added, strengths, strict=True))
        return StackedPrompt(written.adding(tags), tuple(networks))

    def networks(self, requests: Iterable[NetworkRequest]) -> list[ResolvedNetwork]:
        """Returns the network of each request, in order.

        Raises:
            NotFound: there is no such file or name; the hint is the nearest name.
            AmbiguousName: several networks have this name.
            FileRefused: a file is not a hypernetwork that can be read safely, or does not have the hash that was given.
        """
        found = []
        with opened_when_needed(self._registry) as library:
            for request in requests:
                read = self._read_once(request, library)
                keeps_name = read.keeps_name or not fits_in_tag(read.name)
                name = request.tag.name if request.tag and keeps_name else read.name
                found.append(ResolvedNetwork(self._name_of_its_own(name, read.network), read.network))
        return found

    def require_defaults(self, tags: Iterable[Tag]) -> None:
        """Reads networks of the settings, so that an error names the setting; raises as `networks`."""
        with settings.naming(hypernetworks=None), opened_when_needed(self._registry) as library:
            for tag in tags:
                self._read_once(NetworkRequest.from_tag(tag), library)

    def _read_once(self, request: NetworkRequest, library: LibraryOpener) -> _ReadNetwork:
        key = request.source, request.stated
        if key not in self._read:
            self._read[key] = _read_network(request, library, self._bundled, self._note)
        return self._read[key]

    def means_the_same(self, name: str, other: str | Path) -> bool:
        """Whether a mention in a prompt and another one, or a file, mean one network; what is not known does not."""
        if name == other:
            return True
        with opened_when_needed(self._registry) as library:
            try:
                one, another = (self._identity(source, library) for source in (name, other))
            except HnetkitError:  # said where the network is needed
                return False
        return one == another

    def _identity(self, source: str | Path, library: LibraryOpener) -> str:
        if isinstance(source, Path):
            return self._read_once(NetworkRequest(source, 1.0), library).network.content_hash
        found = find_network(source, None, library, self._bundled).network
        return found.content_hash or str(found.path)

    def _name_of_its_own(self, name: str, network: Hypernetwork) -> str:
        """Returns a name that no other network has here: an image states one hash for each name."""
        former = self._named.setdefault(name, network)
        if former is network or former.content_hash == network.content_hash:
            return name
        return label(name, network.content_hash)


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


@dataclass(frozen=True, slots=True)
class _ReadNetwork:
    """A network that was read, with the stem of its file; `keeps_name` is that of `FoundNetwork`."""

    name: str
    network: Hypernetwork
    keeps_name: bool = True


def _read_network(
    request: NetworkRequest, library: LibraryOpener, bundled: Mapping[str, Path], note: Note
) -> _ReadNetwork:
    if isinstance(request.source, Path):
        return _ReadNetwork(request.source.stem, load(request.source))
    found = find_network(request.source, request.stated, library, bundled)
    if found.said:
        note(found.said)
    return _ReadNetwork(found.network.name, read_found(found, request.source), found.keeps_name)


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
        """The infotext's entries for networks, LoRAs and textual inversions."""
        embeddings = {f"embed:{stem}": digits for stem, digits in self.embedding_hashes.items()}
        return network_hashes(self.networks) | lora_hashes(self.loras) | embeddings

    @property
    def embedding_hashes(self) -> dict[str, str]:
        """Stem -> 10 hex digits of the sha256 of each textual inversion."""
        return {path.stem: hash_of_file(path)[:10] for path in self.embeddings}


def resolve_prompts(
    prompt: TaggedPrompt,
    networks: Iterable[str],
    options: DrawOptions,
    finder: NetworkFinder,
    note: Note,
    stated: StatedHashes = NONE_STATED,
    *,
    with_defaults: bool = False,
) -> ResolvedPrompts:
    """Finds all that a prompt and the options beside it name.

    Args:
        networks: ``NAME[:STRENGTH]`` of those that follow the prompt's own.
        options: hold the prompts of the second pass, and the negative ones.
        stated: the hashes of the image that the prompts come from.
        with_defaults: add the networks of the settings to both prompts.

    Raises:
        As `NetworkFinder.stack`, `find_loras`, `find_embeddings` and `hnetkit.prompts.tags.split_tags`.
    """
    networks = tuple(networks)
    default = with_default_stack(prompt, finder, networks) if with_defaults else prompt
    first = finder.stack(default, networks, stated.prompt)
    hires = resolve_hires_prompt(options, finder, note, stated.hires_prompt, with_defaults=with_defaults)
    warn_about_hires_loras([prompt], hires, note)
    loras = tuple(find_loras(prompt.loras, settings.get("loras")))
    return ResolvedPrompts(first, hires, loras, find_embeddings_in([first.prompt.text], hires, options, note))


def resolve_hires_prompt(
    options: DrawOptions,
    finder: NetworkFinder,
    note: Note,
    stated: Iterable[str | None] = (),
    *,
    with_defaults: bool = False,
) -> StackedPrompt | None:
    """Returns the prompt of the second pass; None if it has none of its own, as in A1111 also if it is empty."""
    if not options.has_second_pass or not (options.hires_prompt or "").strip():
        return None
    prompt = read_prompt(options.hires_prompt or "", note)
    return finder.stack(with_default_stack(prompt, finder) if with_defaults else prompt, (), stated)


def find_embeddings_in(
    texts: Iterable[str], hires: StackedPrompt | None, options: DrawOptions, note: Note
) -> tuple[Path, ...]:
    """Returns the files of the textual inversions that prompts name; `texts` are the prompts of first passes."""
    folder = settings.get("embeddings")
    if folder is None:
        return ()
    others = [options.negative_prompt or "", options.hires_negative_prompt or ""]
    if hires is not None:
        others.append(hires.prompt.text)
    written = [*texts, *others]
    read = {piece for text in written for piece in pieces_drawn(text, options.emphasis or "original")}
    found, drawn = [], WordsOf(read)
    for path in find_embeddings([*read, *written], folder, note):
        if drawn.have(path.stem):
            found.append(path)
        else:
            note(
                f"Warning: the textual inversion {path.stem} is plain words here, for brackets weigh: "
                f"write {escaped(path.stem)}"
            )
    for path in find_unread_embeddings(read, folder):
        note(
            f"Warning: {path.stem} is plain text here. {path} may hold a textual inversion of this name, and none is "
            "read from pictures: get it as .pt or .safetensors"
        )
    return tuple(found)


def warn_about_unread_embeddings(prompts: Iterable[str], reader: str, note: Note) -> None:
    """Warns about textual inversions that prompts name, where these are drawn without any.

    Args:
        reader: of the prompts, in words.
    """
    read = (piece for prompt in prompts for piece in pieces_drawn(prompt))
    for file in find_embeddings(read, settings.get("embeddings"), note):
        note(f"Warning: {file.stem}: a textual inversion, which {reader} reads as the words of its name")


def without_comments(prompt: str, note: Note) -> str:
    """Returns a prompt as it is drawn, for one that a person typed, and reports its comments and what is mere text.

    Raises:
        UsageError: it is the generation data of a picture, whose settings would be drawn as words.
    """
    require_prompt_alone(prompt)
    kept, comments = split_comments(prompt)
    for comment in comments:
        note(f"Left out of the prompt as a comment: {excerpt(comment)}")
    for line in plain_in_a1111(kept):
        note(f"Warning: {line}")
    return kept


def without_comments_in_options(options: DrawOptions, note: Note) -> DrawOptions:
    """Returns options as a person typed them, without the comments of their prompts; raises as `without_comments`."""
    names = [field.name for field in fields(options) if field.name.endswith("prompt")]
    typed = {name: text for name in names if (text := getattr(options, name)) is not None}
    drawn: dict[str, Any] = {name: without_comments(text, note) for name, text in typed.items()}
    return replace(options, **drawn)


def read_prompt(prompt: str, note: Note) -> TaggedPrompt:
    """Splits a prompt into text and tags, and reports what has no effect."""
    tagged = split_tags(prompt)
    for warning in tagged.warnings:
        note(f"Warning: {warning}")
    for tag in tagged.unknown:
        note(f"{tag}: no known kind of tag; left out of the prompt, as A1111 does.")
    if (options := options_in(tagged.text)) is not None:
        note(f"Warning: {options} in the prompt: plain words here, which set nothing")
    return tagged


def with_default_stack(prompt: TaggedPrompt, finder: NetworkFinder, options: Iterable[str] = ()) -> TaggedPrompt:
    """Returns a prompt with the networks of the settings at its end, except those that it names itself, however.

    Args:
        options: ``NAME[:STRENGTH]`` of networks that follow it, which it names as well.

    Raises:
        As `NetworkFinder.require_defaults` and `NetworkRequest.from_option`.
    """
    named = [*(tag.name for tag in prompt.tags), *(NetworkRequest.from_option(option).source for option in options)]
    added = tuple(
        tag for tag in finder.default_tags if not any(finder.means_the_same(tag.name, other) for other in named)
    )
    finder.require_defaults(added)
    return prompt.adding(added)


def warn_about_hires_loras(prompts: Iterable[TaggedPrompt], hires: StackedPrompt | None, note: Note) -> None:
    """Warns if the prompt of the second pass names other LoRAs than those of first passes, which stay on the model."""
    if hires is not None and any(prompt.loras != hires.prompt.loras for prompt in prompts):
        note("Warning: LoRAs are the same in both passes: those of PROMPT; tags in --hires-prompt do not change them.")


def warn_about_first_pass(added: Iterable[str], hires: StackedPrompt | None, note: Note) -> None:
    """Warns of networks that were given beside a prompt, if the second pass has a prompt of its own without them."""
    if hires is None:
        return
    own = {tag.name for tag in hires.prompt.tags}
    if missing := [name for name in dict.fromkeys(added) if name not in own]:
        names, verb = (" and ".join(missing), "applies" if len(missing) == 1 else "apply")
        note(
            f"Warning: {names} {verb} in the first pass alone, because the second has a prompt of its own: "
            "add a tag to --hires-prompt"
        )


def warn_about_negative_tags(negative_prompts: Iterable[str | None], note: Note) -> None:
    """Warns about tags of networks in negative prompts, which have no effect there and are read as words."""
    for prompt in filter(None, negative_prompts):
        tagged = split_tags(prompt)
        if tagged.tags or tagged.loras:
            note("Tags in a negative prompt are plain text, as in A1111.")
            return


def warn_about_negative_lines(prompts: Iterable[str], note: Note) -> None:
    """Warns about lines that infotext readers take for the negative prompt: the format has no way to escape them."""
    if any(line.strip().startswith(NEGATIVE) for prompt in prompts for line in prompt.split("\n")):
        note(f"Warning: a line begins with {NEGATIVE!r}: read from the picture, it begins the negative prompt.")
