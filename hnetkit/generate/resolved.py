"""What prompts ask for, taken apart and found: networks, LoRAs and textual inversions, before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hnetkit import settings
from hnetkit.formats.writing import source_sha256
from hnetkit.generate.loading.embeddings import find_embeddings
from hnetkit.generate.loras import Lora, find_loras, hashes_of_loras
from hnetkit.generate.networks import Network, StackedPrompt, find_stack, hashes_of
from hnetkit.hashes import sha256_of
from hnetkit.prompts.infotext import NEGATIVE
from hnetkit.prompts.tags import TaggedPrompt, split_tags

if TYPE_CHECKING:
    from hnetkit.generate.options import DrawOptions
    from hnetkit.registry.store import Registry

Note = Callable[[str], None]
"""Called with what a person should read, one line each."""


@dataclass(frozen=True, slots=True)
class ResolvedPrompts:
    """What the prompts of both passes ask for, found.

    Attributes:
        first: the prompt, with the networks of its tags and options.
        hires: that of the second pass, where it has one of its own.
        loras: of the prompt.
        embeddings: files of the textual inversions that any of the prompts names.
    """

    first: StackedPrompt
    hires: StackedPrompt | None = None
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Path, ...] = ()

    @property
    def networks(self) -> tuple[Network, ...]:
        """Of both passes."""
        return (*self.first.networks, *(self.hires.networks if self.hires else ()))

    @property
    def hashes(self) -> dict[str, str]:
        """The infotext's entries."""
        return hashes_of(self.networks) | hashes_of_loras(self.loras)

    @property
    def full_hashes(self) -> dict[str, set[str]]:
        """By the infotext's name of each: the sha256 of its file, and of the file that it was converted from."""
        found: dict[str, set[str]] = {}
        for one in self.networks:
            own = sha256_of(one.network.source) if one.network.source is not None else None
            found[f"hypernet:{one.name}"] = {digits for digits in (source_sha256(one.network), own) if digits}
        return found | {f"lora:{lora.tag.name}": {lora.hash} for lora in self.loras}


def resolve_prompts(
    prompt: TaggedPrompt,
    networks: Iterable[str],
    options: DrawOptions,
    bundled: Mapping[str, Path],
    registry: Registry | None,
    note: Note,
) -> ResolvedPrompts:
    """Finds all that a prompt and the options beside it ask for.

    Args:
        prompt: taken apart.
        networks: ``NAME[:STRENGTH]`` of those that follow the prompt's own.
        options: the prompts of the second pass, and the negative ones.
        bundled, registry: see `hnetkit.generate.networks.find_networks`.

    Raises:
        As `find_stack`, `find_loras`, `find_embeddings` and `hnetkit.prompts.tags.split_tags`.
    """
    first = find_stack(prompt, networks, bundled, registry)
    hires = resolve_hires(options, bundled, registry, note)
    loras = tuple(find_loras(prompt.loras, settings.get("loras")))
    return ResolvedPrompts(first, hires, loras, find_all_embeddings([first.prompt.text], hires, options))


def resolve_hires(
    options: DrawOptions, bundled: Mapping[str, Path], registry: Registry | None, note: Note
) -> StackedPrompt | None:
    """Returns the prompt of the second pass, where it has one of its own."""
    if not options.has_second_pass or options.hires_prompt is None:
        return None
    return find_stack(read_prompt(options.hires_prompt, note), (), bundled, registry)


def find_all_embeddings(texts: Iterable[str], hires: StackedPrompt | None, options: DrawOptions) -> tuple[Path, ...]:
    """Returns the files of the settings' textual inversions that prompts name; `texts` are those of first passes."""
    others = [
        options.negative_prompt or "",
        options.hires_negative_prompt or "",
        *([hires.prompt.text] if hires else []),
    ]
    return tuple(find_embeddings([*texts, *others], settings.get("embeddings")))


def read_prompt(prompt: str, note: Note) -> TaggedPrompt:
    """Takes a prompt apart, and says what in it has no effect."""
    tagged = split_tags(prompt)
    for warning in tagged.warnings:
        note(f"Warning: {warning}")
    for tag in tagged.unknown:
        note(f"{tag}: no known kind of tag; left out of the prompt, as A1111 does.")
    return tagged


def with_default_stack(prompt: TaggedPrompt) -> TaggedPrompt:
    """Returns a prompt with the networks of the settings at its end, but for those that it names itself."""
    named = {tag.name for tag in prompt.tags}
    default = split_tags(settings.get("hypernetworks") or "")
    return prompt.adding(tuple(tag for tag in default.tags if tag.name not in named))


def warn_of_marks(prompts: Iterable[str], note: Note) -> None:
    """Says where the text of a picture will be read as another prompt: nothing can mark a line of it as plain."""
    if any(line.strip().startswith(NEGATIVE) for prompt in prompts for line in prompt.split("\n")):
        note(f"Warning: a line begins with {NEGATIVE!r}: read from the picture, it begins the negative prompt.")


def untold(note: str) -> None:
    """Nobody is told."""
