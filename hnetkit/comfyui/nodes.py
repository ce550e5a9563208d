"""What the nodes are and what they do; `hnetkit.comfyui.api` shows them to ComfyUI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hnetkit.comfyui.files import named_by, names, open_file, state_of
from hnetkit.comfyui.models import with_networks
from hnetkit.errors import HnetkitError, UsageError, printable
from hnetkit.prompts.tags import excerpt, finite_number, split_tags
from hnetkit.runtime.strength import PARTS, Strength, strength_of

NONE = "None"
SLOTS = 5
"""Networks in one node of a stack; nodes in a row are one stack, too."""

CATEGORY = "loaders/hnetkit"


@dataclass(frozen=True)
class Input:
    """An input of a node.

    Attributes:
        name: of the argument of `NodeKind.run`, and in saved workflows.
        type: ``"MODEL"``, ``"FLOAT"``, ``"STRING"``, or ``"COMBO"`` for a choice of `choices`.
        default: without it the input has to be connected or chosen.
        tooltip: what it is for.
        low, high, step: of a number.
        choices: called when ComfyUI shows the node.
        is_multiline: whether a text has several lines.
        is_advanced: whether it is for few people: ComfyUI hides it where it can.
    """

    name: str
    type: str
    default: float | str | None = None
    tooltip: str = ""
    low: float = -10.0
    high: float = 10.0
    step: float = 0.01
    choices: Callable[[], list[str]] | None = None
    is_multiline: bool = False
    is_advanced: bool = False


@dataclass(frozen=True)
class NodeKind:
    """A node: its id is in saved workflows and never changes.

    Attributes:
        outputs: type and name of each.
        run: takes the inputs by name, returns the outputs.
        files: takes the inputs, None for one that is linked, and returns the names of the files that it may read.
    """

    id: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]
    run: Callable[..., tuple[Any, ...]]
    files: Callable[..., list[str]]

    def state(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Returns what is another value once one of its files is: else ComfyUI would not run the node again."""
        try:
            return [state_of(name) for name in self.files(**inputs)]
        except HnetkitError:  # which it says when it runs
            return []


def load_hypernetwork(
    *,
    model: Any,
    hypernetwork_name: str,
    strength: float,
    k: float = 1.0,
    v: float = 1.0,
    self_attention: float = 1.0,
    cross_attention: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
    blocks: str = "",
) -> tuple[Any]:
    """Returns the model with one network more."""
    if start > end:
        raise UsageError(f"a window of steps that starts at {start:g} cannot end at {end:g}", hint="swap start and end")
    own = Strength(
        self_k=strength * self_attention * k,
        self_v=strength * self_attention * v,
        cross_k=strength * cross_attention * k,
        cross_v=strength * cross_attention * v,
        start=start,
        end=end,
        blocks=block_factors(blocks),
    )
    return (with_networks(model, [(open_file(hypernetwork_name), own)]),)


def stack_hypernetworks(*, model: Any, **slots: Any) -> tuple[Any]:
    """Returns the model with the networks of all slots that have one, the first slot first."""
    chosen = [(open_file(name), Strength(slots.get(f"strength_{number}", 1.0))) for number, name in _filled(slots)]
    return (with_networks(model, chosen) if chosen else model,)


def hypernetworks_from_tags(*, model: Any, text: str) -> tuple[Any, str]:
    """Returns the model with the networks that a prompt names, and the prompt without their tags."""
    prompt = split_tags(text)
    for warning in prompt.warnings:
        if "hypernet" in warning:
            raise UsageError(warning, hint="write <hypernet:name:0.8>")
        logging.warning("hnetkit: %s", printable(warning))  # the prompt may be a stranger's, and this a terminal
    for tag in prompt.unknown:
        if tag[1:].lower().startswith("hypernet"):
            raise UsageError(f"{excerpt(tag)}: no known kind of tag", hint="write <hypernet:name:0.8>")
    rest = prompt.replacing([None] * len(prompt.tags)).written
    named = zip(named_by(prompt.tags), prompt.tags, strict=True)
    chosen = [(open_file(name), Strength.of(strength_of(tag))) for name, tag in named]
    return with_networks(model, chosen) if chosen else model, rest


def _filled(slots: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yields number and file of the slots that have one."""
    for number in range(1, SLOTS + 1):
        name = slots.get(f"hypernetwork_{number}", NONE)
        if name != NONE:
            yield number, name


def _loaded_file(*, hypernetwork_name: str | None, **others: Any) -> list[str]:
    return names() if hypernetwork_name is None else [hypernetwork_name]


def _stacked_files(**slots: Any) -> list[str]:
    linked = any(slots.get(f"hypernetwork_{number}", NONE) is None for number in range(1, SLOTS + 1))
    return names() if linked else [name for _, name in _filled(slots)]


def _tagged_files(*, text: str | None, **others: Any) -> list[str]:
    return names() if text is None else named_by(split_tags(text).tags)


def block_factors(text: str) -> dict[str, float]:
    """Returns factors by block from a text: ``"down, mid"`` is these alone, ``"up_blocks.1=0.5"`` changes one.

    Raises:
        UsageError: something else.
    """
    factors: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, number = (word.strip() for word in part.partition("="))
        factor = finite_number(number) if sign else 1.0
        if factor is None or not name:
            raise UsageError(f"blocks: {part} is no block with a number", hint="down, mid, or up_blocks.1=0.5")
        if not sign:
            factors[""] = 0.0
        factors[PARTS.get(name, name)] = factor
    return factors


_MODEL = Input("model", "MODEL", tooltip="The model that it is applied to, for this branch of the workflow alone.")
_STRENGTH_TOOLTIP = "How strongly it is applied: 1 as it was trained, 0 not at all, below 0 the other way."


def _choice() -> list[str]:
    return [NONE, *names()]


def _share(name: str, of: str) -> Input:
    return Input(name, "FLOAT", 1.0, f"Multiplies the strength in {of}.", is_advanced=True)


def _at(name: str, default: float, tooltip: str) -> Input:
    return Input(name, "FLOAT", default, tooltip, low=0.0, high=1.0, step=0.001, is_advanced=True)


NODES = (
    NodeKind(
        "HnetkitHypernetworkLoader",
        "Load Hypernetwork (hnetkit)",
        "Applies a hypernetwork to a model: .pt, .ckpt or .safetensors, with every activation, as AUTOMATIC1111 does.",
        (
            _MODEL,
            Input(
                "hypernetwork_name",
                "COMBO",
                tooltip="A file of models/hypernetworks or hnetkit's library.",
                choices=names,
            ),
            Input("strength", "FLOAT", 1.0, _STRENGTH_TOOLTIP),
            _share("k", "the keys of attention"),
            _share("v", "the values of attention"),
            _share("self_attention", "self-attention, which sees the image"),
            _share("cross_attention", "cross-attention, which sees the text"),
            _at("start", 0.0, "The part of the steps after which it begins."),
            _at("end", 1.0, "The part of the steps after which it ends."),
            Input(
                "blocks",
                "STRING",
                "",
                "Where in the UNet: down, mid, up, or factors such as up_blocks.1=0.5. Empty is everywhere.",
                is_advanced=True,
            ),
        ),
        (("MODEL", "model"),),
        load_hypernetwork,
        _loaded_file,
    ),
    NodeKind(
        "HnetkitHypernetworkStack",
        "Hypernetwork Stack (hnetkit)",
        "Applies several hypernetworks to a model, the first one first.",
        (
            _MODEL,
            *(
                own
                for number in range(1, SLOTS + 1)
                for own in (
                    Input(f"hypernetwork_{number}", "COMBO", NONE, "A file, or None.", choices=_choice),
                    Input(f"strength_{number}", "FLOAT", 1.0, _STRENGTH_TOOLTIP),
                )
            ),
        ),
        (("MODEL", "model"),),
        stack_hypernetworks,
        _stacked_files,
    ),
    NodeKind(
        "HnetkitHypernetworksFromTags",
        "Hypernetworks from Tags (hnetkit)",
        "Applies the hypernetworks that a prompt names, as <hypernet:name:0.8>, and passes the prompt on without them.",
        (_MODEL, Input("text", "STRING", "", "A prompt with tags.", is_multiline=True)),
        (("MODEL", "model"), ("STRING", "text")),
        hypernetworks_from_tags,
        _tagged_files,
    ),
)
