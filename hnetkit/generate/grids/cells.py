"""What each cell of a grid draws: the changes of its place applied, its networks found, its tags written anew."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError, NotFound, UsageError, failure_of
from hnetkit.generate.grids.axes import Change
from hnetkit.generate.loras import Lora, find_loras
from hnetkit.generate.networks import Network, StackedPrompt, Wish, find_networks
from hnetkit.prompts.tags import Tag, TaggedPrompt
from hnetkit.registry.store import Registry

MOST_IN_EVERY_ORDER = 5
"""Networks of a stack: 120 orders."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A cell as it is asked for; None leaves the choice to the model.

    Attributes:
        prompt: with tags.
        options: ``NAME[:STRENGTH]`` of networks that follow those of the prompt.
        has_network: whether an axis gives a network, which then follows all others.
        network: that one; None where its value is none.
        strengths: (name, strength) that replace those of the stack; the empty name is the axis's network, or all.
        order: names in stacking order, where an axis gives it.
        checkpoint: place of the model; None for the one that was asked for beside the axes.
    """

    prompt: str
    negative_prompt: str
    seed: int
    options: tuple[str, ...] = ()
    has_network: bool = False
    network: str | None = None
    strengths: tuple[tuple[str, float], ...] = ()
    order: tuple[str, ...] | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    sampler: str | None = None
    checkpoint: str | None = None

    def changed(self, changes: Iterable[Change]) -> Draft:
        """Returns the draft of a place on a grid.

        Raises:
            UsageError: what an axis searches for is not in the prompt.
        """
        draft = self
        for change in changes:
            draft = _CHANGES[change.kind](draft, change)
        return draft


@dataclass(frozen=True)
class Cell:
    """A cell, ready to be drawn.

    Attributes:
        draft: what was asked for.
        prompt: taken apart; its tags are the stack.
        networks: of its tags, in stacking order.
        loras: of its prompt.
        failure: why it cannot be drawn: a file of its networks or LoRAs is of no use; it then has none of either.
    """

    draft: Draft
    prompt: TaggedPrompt
    networks: tuple[Network, ...]
    loras: tuple[Lora, ...] = ()
    failure: HnetkitError | None = None

    @property
    def stacked(self) -> StackedPrompt:
        return StackedPrompt(self.prompt, self.networks)

    def facts(self) -> dict[str, object]:
        """Returns all that its picture depends on beside the model and what every cell of a grid shares."""
        draft = self.draft
        return {
            "text": self.prompt.text,
            "written": self.prompt.written,
            "negative_prompt": draft.negative_prompt,
            "loras": [[str(lora.tag), lora.hash] for lora in self.loras],
            "networks": [[network.network.content_hash, network.hash] for network in self.networks],
            "tags": [str(tag) for tag in self.prompt.tags],
            "steps": draft.steps,
            "cfg_scale": draft.cfg_scale,
            "sampler": draft.sampler,
            "seed": draft.seed,
            **({"failure": str(self.failure)} if self.failure else {}),
        }


class Finder:
    """Makes cells of drafts; every network file is opened once for a whole grid.

    A file that is there and of no use is the failure of the cells that need it.

    Args:
        drafts: all that cells will be asked of.
        bundled: stem -> file of networks that come with the model.
        read: takes a prompt apart.
        lora_folder: where LoRAs are.
        registry: of the library; see `hnetkit.generate.networks.find_networks`.

    Raises:
        As `hnetkit.generate.networks.find_networks`, `Wish.of_option`, `hnetkit.generate.loras.find_loras` and
        `hnetkit.prompts.tags.split_tags`.
    """

    def __init__(
        self,
        drafts: Sequence[Draft],
        bundled: Mapping[str, Path],
        read: Callable[[str], TaggedPrompt],
        lora_folder: str | None = None,
        registry: Registry | None = None,
    ) -> None:
        self._prompts = {text: read(text) for text in dict.fromkeys(draft.prompt for draft in drafts)}
        self._loras: dict[str, tuple[Lora, ...]] = {}
        self._failures: dict[str | Path, HnetkitError] = {}
        for text, prompt in self._prompts.items():
            self._loras[text] = tuple(find_loras(prompt.loras, lora_folder))
            for lora in self._loras[text]:
                self._try(lora.path, partial(getattr, lora, "hash"))
        wishes = [Wish.of_tag(tag) for prompt in self._prompts.values() for tag in prompt.tags]
        named = dict.fromkeys(name for draft in drafts for name in (*draft.options, draft.network) if name)
        self._options = {name: Wish.of_option(name) for name in named}
        self._found: dict[tuple[str | Path, bool], Network] = {}
        alike: dict[str | Path, list[Wish]] = {}
        for wish in (*wishes, *self._options.values()):
            alike.setdefault(wish.place, []).append(wish)
        for place, same in alike.items():
            self._try(place, partial(self._find, same, bundled, registry))

    def _find(self, wishes: Sequence[Wish], bundled: Mapping[str, Path], registry: Registry | None) -> None:
        for wish, network in zip(wishes, find_networks(wishes, bundled, registry), strict=True):
            _ = network.hash, network.network.content_hash  # read here, where a failure is that network's own
            self._found[wish.place, wish.tag is None] = network

    def _try(self, place: str | Path, do: Callable[[], object]) -> None:
        """Does something with a file; that it is of no use is told where cells need it, and a mistyped name at once."""
        try:
            do()
        except (NotFound, UsageError):
            raise
        except Exception as error:
            self._failures[place] = failure_of(error, str(place))

    @property
    def names(self) -> dict[str, str]:
        """``NAME[:STRENGTH]`` -> the network's name."""
        return {option: self._name(wish) for option, wish in self._options.items()}

    def _name(self, wish: Wish) -> str:
        if found := self._found.get((wish.place, wish.tag is None)):
            return found.name
        return wish.place.stem if isinstance(wish.place, Path) else wish.place

    def stack_of(self, draft: Draft) -> tuple[str, ...]:
        """Returns the names of a draft's stack, as they are before an axis changes their order."""
        return tuple(tag.name for tag in self.cell(replace(draft, order=None)).prompt.tags)

    def cell(self, draft: Draft) -> Cell:
        """Raises UsageError where an axis names what is not in the stack."""
        prompt = self._prompts[draft.prompt]
        options = [*draft.options, *([draft.network] if draft.network else [])]
        wishes = [*map(Wish.of_tag, prompt.tags), *(self._options[option] for option in options)]
        added = [Tag(self._name(wish), wish.strength) for wish in wishes if wish.tag is None]
        tags: list[Tag | None] = [*prompt.tags, *added]
        for name, strength in draft.strengths:
            _set_strength(tags, draft, name, strength)
        places = _ordered(tags, draft.order) if draft.order is not None else list(range(len(tags)))
        final = _rewritten(prompt, [tags[place] for place in places])
        stack = [wishes[place] for place in places if tags[place] is not None]
        loras = self._loras[draft.prompt]
        needed = [*(wish.place for wish in stack), *(lora.path for lora in loras)]
        failure = next((self._failures[place] for place in needed if place in self._failures), None)
        if failure is not None:
            return Cell(draft, final, (), (), failure)
        return Cell(draft, final, tuple(self._found[wish.place, wish.tag is None] for wish in stack), loras)

    def written(self, draft: Draft) -> str:
        """Returns a draft's prompt as it is stored, with its own tags and those of its options."""
        plain = replace(draft, has_network=False, network=None, strengths=(), order=None)
        return self.cell(plain).prompt.written


def every_order(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns all stacking orders of some names.

    Raises:
        UsageError: fewer than two names, or more than `MOST_IN_EVERY_ORDER`.
    """
    if len(names) < 2:
        raise UsageError(
            f"order=all: a stack of {len(names)} has no other order", hint="name networks in the prompt, or with -n"
        )
    if len(names) > MOST_IN_EVERY_ORDER:
        raise UsageError(
            f"order=all: {len(names)} networks have too many orders", hint=f"list some: order={'/'.join(names)}"
        )
    return list(dict.fromkeys(permutations(names)))


def _set_strength(tags: list[Tag | None], draft: Draft, name: str, strength: float) -> None:
    """Gives tags another strength; one that is then nothing at all is left out, so that equal pictures are one."""
    if name:
        places = [place for place, tag in enumerate(tags) if tag is not None and tag.name == name]
        names = [tag.name for tag in tags if tag is not None]
        if not places and strength:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean strength:{near[0]}?" if near else f"in it are: {', '.join(names) or 'none'}"
            raise UsageError(f"strength:{name}: the stack has no network of this name", hint=hint)
    elif draft.has_network:
        places = [len(tags) - 1] if draft.network else []
    else:
        places = list(range(len(tags)))
    for place in places:
        tag = tags[place]
        if tag is not None:
            changed = replace(tag, multiplier=strength)
            tags[place] = None if strength == 0 and not tag.parts else changed


def _ordered(tags: Sequence[Tag | None], order: tuple[str, ...]) -> list[int]:
    """Returns the places of `tags` in the order of names; those left out keep theirs at the end."""
    left = [place for place, tag in enumerate(tags) if tag is not None]
    names = [tag.name for tag in tags if tag is not None]
    absent = [place for place, tag in enumerate(tags) if tag is None]
    places = []
    for name in order:
        found = next((place for place in left if tags[place].name == name), None)  # type: ignore[union-attr]
        if found is not None:
            left.remove(found)
            places.append(found)
        elif not absent:
            raise UsageError(f"order={'/'.join(order)}: not an order of the stack", hint=f"it is {'/'.join(names)}")
    if left:
        raise UsageError(f"order={'/'.join(order)}: leaves out {tags[left[0]].name}", hint=f"it is {'/'.join(names)}")  # type: ignore[union-attr]
    return [*places, *absent]


def _rewritten(prompt: TaggedPrompt, tags: Sequence[Tag | None]) -> TaggedPrompt:
    """Returns a prompt with other tags where its own were, and further ones at its end; None leaves a place empty."""
    own = len(prompt.tags)
    pieces, position = [], 0
    for old, new in zip(prompt.tags, tags[:own], strict=True):
        begin = prompt.written.index(str(old), position)
        pieces += [prompt.written[position:begin], "" if new is None else str(new)]
        position = begin + len(str(old))
    written = "".join([*pieces, prompt.written[position:]])
    changed = replace(prompt, written=written, tags=tuple(tag for tag in tags[:own] if tag is not None))
    return changed.adding(tuple(tag for tag in tags[own:] if tag is not None))


def _replaced(draft: Draft, change: Change) -> Draft:
    if change.search not in draft.prompt and change.search not in draft.negative_prompt:
        raise UsageError(
            f"prompt={change.search}: not in the prompt: the first value of this axis is what is searched for",
            hint=f'the prompt is "{draft.prompt}"',
        )
    return replace(
        draft,
        prompt=draft.prompt.replace(change.search, str(change.value)),
        negative_prompt=draft.negative_prompt.replace(change.search, str(change.value)),
    )


def _to(name: str) -> Callable[[Draft, Change], Draft]:
    """Returns what puts a change's value into one field."""

    def put(draft: Draft, change: Change) -> Draft:
        value: Any = change.value
        return replace(draft, **{name: value})

    return put


def _with_network(draft: Draft, change: Change) -> Draft:
    return replace(_to("network")(draft, change), has_network=True)


def _with_strength(draft: Draft, change: Change) -> Draft:
    strength: Any = change.value
    return replace(draft, strengths=(*draft.strengths, (change.target, strength)))


_CHANGES: Mapping[str, Callable[[Draft, Change], Draft]] = {
    **{name: _to(name) for name in ("order", "seed", "steps", "sampler", "checkpoint")},
    "text": _to("prompt"),
    "cfg": _to("cfg_scale"),
    "prompt": _replaced,
    "hypernetwork": _with_network,
    "strength": _with_strength,
}
