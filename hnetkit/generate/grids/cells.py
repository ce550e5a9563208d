"""The cells of a grid: each position's changes applied, its networks found, its tags rewritten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError, NotFound, UsageError, did_you_mean, failure_of
from hnetkit.generate.grids.axes import AxisChange
from hnetkit.generate.loading.extra_networks import Lora, find_loras
from hnetkit.generate.prompt_networks import NetworkFinder, NetworkRequest, ResolvedNetwork, StackedPrompt
from hnetkit.prompts.tags import Tag, TaggedPrompt

MOST_IN_EVERY_ORDER = 5
"""Networks of a stack for ``order=all``: 120 orders."""


@dataclass(frozen=True, slots=True)
class CellSpec:
    """What a cell draws, before its names are looked up; None takes the model's default.

    Attributes:
        prompt: with tags.
        options: ``NAME[:STRENGTH]`` of networks that follow those of the prompt.
        has_network: whether an axis gives a network, which then follows all others.
        network: that network; None if the axis's value is ``none``.
        strengths: (name, strength) that replace those of the stack; an empty name is the axis's network, or all.
        order: names in stacking order, if an axis gives it.
        checkpoint: source of the model; None for the grid's own.
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

    def changed(self, changes: Iterable[AxisChange]) -> CellSpec:
        """Returns the spec with the changes of one position applied.

        Raises:
            UsageError: the text that an axis searches for is not in the prompt.
        """
        spec = self
        for change in changes:
            spec = _CHANGES[change.kind](spec, change)
        return spec


@dataclass(frozen=True)
class Cell:
    """A cell, ready to be drawn.

    Attributes:
        spec: what it draws.
        prompt: split into text and tags; the tags are the stack.
        networks: of its tags, in stacking order.
        loras: of its prompt.
        failure: why it cannot be drawn, if a file of its networks or LoRAs is unusable; both are then empty.
    """

    spec: CellSpec
    prompt: TaggedPrompt
    networks: tuple[ResolvedNetwork, ...]
    loras: tuple[Lora, ...] = ()
    failure: HnetkitError | None = None

    @property
    def stacked(self) -> StackedPrompt:
        return StackedPrompt(self.prompt, self.networks)

    def facts(self) -> dict[str, object]:
        """Returns all that its image depends on, except the model and what all cells of a grid share."""
        spec = self.spec
        facts: dict[str, object] = {
            "text": self.prompt.text,
            "written": self.prompt.written,
            "negative_prompt": spec.negative_prompt,
            "loras": [[str(lora.tag), lora.hash] for lora in self.loras],
            "networks": [[network.network.content_hash, network.hash] for network in self.networks],
            "tags": [str(tag) for tag in self.prompt.tags],
            "steps": spec.steps,
            "cfg_scale": spec.cfg_scale,
            "sampler": spec.sampler,
            "seed": spec.seed,
        }
        if self.failure is not None:
            facts["failure"] = str(self.failure)
        return facts


class CellBuilder:
    """Builds cells from their specs; every network file is opened once for a whole grid.

    A file that exists and is unusable fails only the cells that need it.

    Args:
        specs: of all cells that will be built.
        finder: finds their networks.
        read: splits a prompt into text and tags.
        lora_folder: the folder of LoRAs.
        with_defaults: adds the networks of the settings to a prompt. A cell that names one of them besides, as an
            option or on an axis, has it once, as it is named there.

    Raises:
        As `NetworkFinder.networks`, `NetworkRequest.from_option`, `find_loras` and `hnetkit.prompts.tags.split_tags`.
    """

    def __init__(
        self,
        specs: Sequence[CellSpec],
        finder: NetworkFinder,
        read: Callable[[str], TaggedPrompt],
        lora_folder: str | None = None,
        with_defaults: Callable[[TaggedPrompt], TaggedPrompt] = lambda prompt: prompt,
    ) -> None:
        self._finder = finder
        self._prompts = {text: read(text) for text in dict.fromkeys(spec.prompt for spec in specs)}
        self._loras: dict[str, tuple[Lora, ...]] = {}
        self._failures: dict[str | Path, HnetkitError] = {}
        for text, prompt in self._prompts.items():
            self._loras[text] = tuple(find_loras(prompt.loras, lora_folder))
            for lora in self._loras[text]:
                self._try(lora.path, partial(getattr, lora, "hash"))
        self._tagged = {text: [*map(NetworkRequest.from_tag, prompt.tags)] for text, prompt in self._prompts.items()}
        self._defaults = {
            text: [*map(NetworkRequest.from_tag, with_defaults(prompt).tags[len(prompt.tags) :])]
            for text, prompt in self._prompts.items()
        }
        requests = [request for own in (*self._tagged.values(), *self._defaults.values()) for request in own]
        named = dict.fromkeys(name for spec in specs for name in (*spec.options, spec.network) if name)
        self._options = {name: NetworkRequest.from_option(name) for name in named}
        self._found: dict[tuple[str | Path, bool], ResolvedNetwork] = {}
        alike: dict[str | Path, dict[bool, NetworkRequest]] = {}
        for request in (*requests, *self._options.values()):
            alike.setdefault(request.source, {})[request.tag is None] = request
        for source, same in alike.items():
            self._try(source, partial(self._find, list(same.values())))
        for text, own in self._tagged.items():
            self._prompts[text] = self._prompts[text].renaming(map(self._name, own))

    def _find(self, requests: Sequence[NetworkRequest]) -> None:
        for request, network in zip(requests, self._finder.networks(requests), strict=True):
            _ = network.hash, network.network.content_hash  # read now, while a failure can be told to be this network's
            self._found[request.source, request.tag is None] = network

    def _try(self, source: str | Path, do: Callable[[], object]) -> None:
        """Does something with a file. If the file is unusable, its cells fail later; a mistyped name raises at once."""
        try:
            do()
        except (NotFound, UsageError):
            raise
        except Exception as error:
            self._failures[source] = failure_of(error, str(source))

    @property
    def names(self) -> dict[str, str]:
        """``NAME[:STRENGTH]`` -> the network's name."""
        return {option: self._name(request) for option, request in self._options.items()}

    def _name(self, request: NetworkRequest) -> str:
        if found := self._found.get((request.source, request.tag is None)):
            return found.name
        return request.source.stem if isinstance(request.source, Path) else request.source

    def stack_of(self, spec: CellSpec) -> tuple[str, ...]:
        """Returns the names of a cell's stack, in the order before an axis changes it."""
        return tuple(tag.name for tag in self.cell(replace(spec, order=None)).prompt.tags)

    def cell(self, spec: CellSpec) -> Cell:
        """Builds a cell; raises UsageError if an axis names a network that is not in the stack."""
        prompt = self._prompts[spec.prompt]
        options = [self._options[option] for option in (*spec.options, *([spec.network] if spec.network else []))]
        further = [*self._defaults_beside(spec, options), *options]
        requests = [*self._tagged[spec.prompt], *further]
        tags: list[Tag | None] = [*prompt.tags, *map(self._tag, further)]
        for name, strength in spec.strengths:
            _set_strength(tags, spec, name, strength)
        indices = _ordered(tags, spec.order) if spec.order is not None else list(range(len(tags)))
        final = _with_stack(prompt, [tags[index] for index in indices])
        stack = [requests[index] for index in indices if tags[index] is not None]
        loras = self._loras[spec.prompt]
        needed = [*(request.source for request in stack), *(lora.path for lora in loras)]
        failure = next((self._failures[source] for source in needed if source in self._failures), None)
        if failure is not None:
            return Cell(spec, final, (), (), failure)
        return Cell(spec, final, tuple(self._found[request.source, request.tag is None] for request in stack), loras)

    def _defaults_beside(self, spec: CellSpec, options: Iterable[NetworkRequest]) -> list[NetworkRequest]:
        """Returns the networks of the settings that follow those of a cell's prompt: none that an option names."""
        named = {content for option in options if (content := self._content(option)) is not None}
        return [request for request in self._defaults[spec.prompt] if self._content(request) not in named]

    def _tag(self, request: NetworkRequest) -> Tag:
        return replace(request.tag or Tag("", request.strength), name=self._name(request))

    def _content(self, request: NetworkRequest) -> str | None:
        found = self._found.get((request.source, request.tag is None))
        return None if found is None else found.network.content_hash

    def written(self, spec: CellSpec) -> str:
        """Returns the prompt of a cell as it is stored, with its own tags and those of its options."""
        plain = replace(spec, has_network=False, network=None, strengths=(), order=None)
        return self.cell(plain).prompt.written


def kept_by_second_pass(
    axes: Iterable[str], prompt: StackedPrompt | None, negative_prompt: str | None
) -> Iterator[str]:
    """Yields a line for each axis that changes nothing of a second pass, because that has prompts of its own.

    Args:
        axes: what varies. That of networks is told with their names: see `warn_about_first_pass`.
        prompt, negative_prompt: of the second pass; None where those of the first one are its own.
    """
    names = [*axes]
    for axis in names:
        kind = axis.partition(":")[0]
        is_kept = kind in ("prompt", "order") or (kind == "strength" and "hypernetwork" not in names)
        if is_kept and prompt is not None:
            yield f"Warning: {axis} changes the first pass alone: the second has a prompt of its own, --hires-prompt"
        elif kind == "prompt" and negative_prompt is not None:
            yield f"Warning: {axis} does not change the negative prompt of the second pass, --hires-negative-prompt"


def all_orders(names: Sequence[str]) -> list[tuple[str, ...]]:
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


def _set_strength(tags: list[Tag | None], spec: CellSpec, name: str, strength: float) -> None:
    """Changes the strength of tags. One without any strength left becomes None, so that equal images have one key."""
    if name:
        indices = [index for index, tag in enumerate(tags) if tag is not None and tag.name == name]
        names = [tag.name for tag in tags if tag is not None]
        if not indices and strength:
            near = did_you_mean(name, names)
            hint = f"did you mean strength:{near}?" if near else f"in it are: {', '.join(names) or 'none'}"
            raise UsageError(f"strength:{name}: the stack has no network of this name", hint=hint)
    elif spec.has_network:
        indices = [len(tags) - 1] if spec.network else []
    else:
        indices = list(range(len(tags)))
    for index in indices:
        tag = tags[index]
        if tag is not None:
            changed = replace(tag, multiplier=strength)
            tags[index] = None if strength == 0 and not tag.parts else changed


def _ordered(tags: Sequence[Tag | None], order: tuple[str, ...]) -> list[int]:
    """Returns the indices of `tags` in the order of names, then those of the tags that are None."""
    left = [index for index, tag in enumerate(tags) if tag is not None]
    names = [tag.name for tag in tags if tag is not None]
    absent = [index for index, tag in enumerate(tags) if tag is None]
    indices = []
    for name in order:
        found = next((index for index in left if tags[index].name == name), None)  # type: ignore[union-attr]
        if found is not None:
            left.remove(found)
            indices.append(found)
        elif not absent:
            raise UsageError(f"order={'/'.join(order)}: not an order of the stack", hint=f"it is {'/'.join(names)}")
    if left:
        raise UsageError(f"order={'/'.join(order)}: leaves out {tags[left[0]].name}", hint=f"it is {'/'.join(names)}")  # type: ignore[union-attr]
    return [*indices, *absent]


def _with_stack(prompt: TaggedPrompt, tags: Sequence[Tag | None]) -> TaggedPrompt:
    """Returns a prompt with its own tags replaced in place and further ones at its end; None removes a tag."""
    own = len(prompt.tags)
    return prompt.replacing(tags[:own]).adding(tuple(tag for tag in tags[own:] if tag is not None))


def _with_replaced_text(spec: CellSpec, change: AxisChange) -> CellSpec:
    if change.search not in spec.prompt and change.search not in spec.negative_prompt:
        raise UsageError(
            f"prompt={change.search}: not in the prompt: the first value of this axis is what is searched for",
            hint=f'the prompt is "{spec.prompt}"',
        )
    return replace(
        spec,
        prompt=spec.prompt.replace(change.search, str(change.value)),
        negative_prompt=spec.negative_prompt.replace(change.search, str(change.value)),
    )


def _to(name: str) -> Callable[[CellSpec, AxisChange], CellSpec]:
    """Returns the function that puts a change's value into one field."""

    def put(spec: CellSpec, change: AxisChange) -> CellSpec:
        value: Any = change.value
        return replace(spec, **{name: value})

    return put


def _with_network(spec: CellSpec, change: AxisChange) -> CellSpec:
    return replace(_to("network")(spec, change), has_network=True)


def _with_strength(spec: CellSpec, change: AxisChange) -> CellSpec:
    strength: Any = change.value
    return replace(spec, strengths=(*spec.strengths, (change.target, strength)))


_CHANGES: Mapping[str, Callable[[CellSpec, AxisChange], CellSpec]] = {
    "cfg": _to("cfg_scale"),
    "checkpoint": _to("checkpoint"),
    "hypernetwork": _with_network,
    "order": _to("order"),
    "prompt": _with_replaced_text,
    "sampler": _to("sampler"),
    "seed": _to("seed"),
    "steps": _to("steps"),
    "strength": _with_strength,
    "text": _to("prompt"),
}
