"""The passes of sampling that made an image: what each of them samples with, where it begins, and in which steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hnetkit.prompts.comfyui.enlarging import Size, enlargement_by, size_of
from hnetkit.prompts.comfyui.graph import MOST_NODES, Graph, Node, NodeLink, stem_of
from hnetkit.prompts.comfyui.hypernetworks import HYPERNETWORK_NODES, texts_with_tags
from hnetkit.prompts.comfyui.nodes import SAMPLERS, SCHEDULERS, WIDGETS
from hnetkit.prompts.comfyui.wording import is_lora, network_tags, prompt_of

LATENT = ("latent_image", "samples", "latent", "pixels", "image")
"""Inputs through which a latent or an image goes on."""

MODEL_KEYS = ("ckpt_name", "unet_name")
_CONDITIONING = ("conditioning", "conditioning_1", "conditioning_to")
_NUMBERS = ("steps", "cfg", "denoise", "seed", "noise_seed", "start_at_step", "end_at_step")
_NAMES = ("sampler_name", "scheduler")
_MOST_SAVED = 8  # images of one graph that are told apart
_MOST_PASSES = 8  # a graph has two or three; the others on the way of a hostile one are left out


@dataclass(frozen=True, eq=False)
class Pass:
    """One sampler with all that leads to it.

    Attributes:
        way: the nodes from the pass before to this one, the nearest to this one first.
        is_first: whether there is no pass before.
    """

    graph: Graph
    sampler: Node
    way: tuple[Node, ...] = ()
    is_first: bool = True

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        return self.graph.settings(self.sampler)

    @cached_property
    def _start(self) -> Node:
        """The sampler with all of its settings, where chains begin."""
        return Node("", "", dict(self.inputs))

    def number(self, name: str) -> str | None:
        return self.graph.number(self.inputs.get(name))

    @property
    def seed(self) -> str | None:
        return self.number("seed") or self.number("noise_seed")

    @property
    def cfg_scale(self) -> str | None:
        return self.number("cfg")

    @property
    def sampler_name(self) -> str:
        name = self.graph.text(self.inputs.get("sampler_name"))
        return SAMPLERS.get(name, name)

    @property
    def schedule_type(self) -> str:
        name = self.graph.text(self.inputs.get("scheduler"))
        return SCHEDULERS.get(name, name)

    @property
    def unread(self) -> Iterator[tuple[str, NodeLink]]:
        """Its settings that come from another node and are not read, each with where it comes from."""
        for name in (*_NUMBERS, *_NAMES):
            value = self.inputs.get(name)
            found = self.graph.real(value) if name in _NUMBERS else self.graph.text(value) or None
            if isinstance(value, NodeLink) and found is None:
                yield name, value

    # --- steps

    @cached_property
    def steps(self) -> int:
        """The steps that the sampler states; 0 if it states none."""
        return max(self.graph.whole(self.inputs.get("steps")), 0)

    @cached_property
    def first_step(self) -> int:
        """The step that it begins with, 0 for the first."""
        return min(max(self.graph.whole(self.inputs.get("start_at_step")), 0), self.steps)

    @property
    def steps_made(self) -> int:
        return self.steps - self.first_step

    @cached_property
    def denoising(self) -> float:
        """The part of the schedule that it samples, 0 to 1."""
        if self.first_step:
            return (self.steps - self.first_step) / self.steps
        denoising = self.graph.real(self.inputs.get("denoise"))
        return 1.0 if denoising is None else min(max(denoising, 0.0), 1.0)

    @property
    def steps_of_schedule(self) -> int:
        """The steps of a whole run, of which it makes the last ones."""
        if self.first_step or not self.denoising:
            return self.steps
        return int(min(self.steps / self.denoising, 1e9))

    @property
    def stops_at(self) -> int | None:
        """The step after which it leaves the rest to another sampler; None if it samples to the end."""
        end = self.graph.real(self.inputs.get("end_at_step"))
        return int(end) if end is not None and 0 <= end < self.steps else None

    @property
    def adds_noise(self) -> bool:
        noise = self.graph.entered(self.inputs.get("noise"), set())
        is_off = noise is not None and noise.kind == "DisableNoise"
        return not is_off and self.graph.value(self.inputs.get("add_noise")) not in ("disable", False)

    @property
    def goes_on(self) -> bool:
        """Whether it samples the rest of what the pass before left, as a refiner does."""
        return not (self.is_first or self.way or self.adds_noise)

    # --- what it samples with

    @cached_property
    def models(self) -> list[Node]:
        """The nodes from its model up to the checkpoint, nearest first; without a model, the longest chain there is."""
        if isinstance(self.inputs.get("model"), NodeLink):
            return list(self.graph.chain(self._start, "model"))
        loaders = [node for node in self.graph.nodes.values() if node.kind in HYPERNETWORK_NODES][:MOST_NODES]
        return max(([node, *self.graph.chain(node, "model")] for node in loaders), key=len, default=[])

    @cached_property
    def model(self) -> str:
        return checkpoint_of(self.graph, self.models)

    def conditioning(self, side: str) -> Any:
        """What leads to its prompt of one side, ``"positive"`` or ``"negative"``; without guidance it has one side."""
        return self.inputs.get(side, self.inputs.get("conditioning") if side == "positive" else None)

    @cached_property
    def prompt(self) -> str:
        """Its prompt, with the tags of its networks at the end."""
        return prompt_of(self.graph, self.conditioning("positive"), "positive", self._tagged) + self.networks

    @cached_property
    def negative_prompt(self) -> str:
        return prompt_of(self.graph, self.conditioning("negative"), "negative", self._tagged)

    @cached_property
    def _tagged(self) -> frozenset[str]:
        return texts_with_tags(self.graph, self.models)

    def encoders(self, side: str) -> list[Node]:
        """The nodes from the prompt of one side up to the checkpoint of its text encoder, nearest first."""
        return list(self.graph.chain(Node("", "", {"": self.conditioning(side)}), side, *_CONDITIONING, "clip"))

    def clip_skip(self, side: str) -> str | None:
        """The clip skip: A1111 counts the text encoder's layers from 1, ComfyUI from -1. None if it is 1."""
        keys = ("stop_at_clip_layer", "clip_skip")
        layers = (self.graph.number(node.inputs.get(key)) for node in self.encoders(side) for key in keys)
        layer = next(filter(None, layers), "-1").removeprefix("-")
        return None if layer == "1" else layer

    @cached_property
    def networks(self) -> str:
        """The tags of its networks."""
        positive, negative = self.encoders("positive"), self.encoders("negative")
        if negative and {n.id for n in positive if is_lora(n)} != {n.id for n in negative if is_lora(n)}:
            self.graph.warn("its negative prompt is read with other LoRAs; in A1111 it is with those of the prompt")
        return network_tags(self.graph, self.models, positive)

    # --- where it begins

    @cached_property
    def size(self) -> Size | None:
        """The size that the nodes before it state; None if they state none."""
        before = self.graph.chain(self._start, *LATENT)
        return next((size for node in before if (size := size_of(self.graph, node))), None)

    @cached_property
    def before(self) -> list[Node]:
        """Every node that leads to the latent it begins with, nearest first."""
        return list(self.graph.upstream(_latents(self.sampler)))

    @property
    def encoder(self) -> Node | None:
        """The node that encodes the picture it begins with; None if it begins with an empty latent."""
        return next((node for node in self.before if _is_encoder(node)), None)


def checkpoint_of(graph: Graph, nodes: Sequence[Node]) -> str:
    """The name of the first checkpoint that some nodes load; empty if they load none."""
    names = (graph.text(node.inputs.get(key)) for node in nodes for key in MODEL_KEYS)
    return stem_of(next(filter(None, names), ""))


def _is_encoder(node: Node) -> bool:
    return "VAEEncode" in node.kind or node.kind == "InpaintModelConditioning"


@dataclass(frozen=True)
class Made:
    """How an image was made.

    Attributes:
        end: the node that saves it; None if no node is known to.
        passes: in the order in which they ran; at least one.
        output: the nodes from the saved image to the last sampler, nearest to the image first.
    """

    end: Node | None
    passes: tuple[Pass, ...]
    output: tuple[Node, ...] = ()

    @property
    def size(self) -> Size | None:
        """The size of the image as the graph says it; None if it does not."""
        first = self.passes[0]
        way = [*self.output, *(node for one in reversed(self.passes[1:]) for node in one.way)]
        return enlargement_by(first.graph, way, first.size).of(first.size)


def find_passes(graph: Graph, size: Size | None) -> Made:
    """Returns how the image was made. Of several that the graph saves it is the first one of the size.

    Args:
        size: of the image; None if it is not known.
    """
    savers = [node for node in graph.nodes.values() if "save" in node.kind.lower()]
    saved: dict[str, Made] = {}  # by the last sampler
    for made in filter(None, (_made_at(graph, end, set()) for end in savers[:_MOST_SAVED])):
        saved.setdefault(made.passes[-1].sampler.id, made)
    if not saved:
        return _made_without_saving(graph, savers)
    fitting = [made for made in saved.values() if size is not None and made.size == size] or list(saved.values())
    if len(fitting) > 1:
        graph.warn(f"{len(fitting)} images of its graph may be this one; the settings are those of the first")
    return fitting[0]


def _made_without_saving(graph: Graph, savers: Sequence[Node]) -> Made:
    """How an image was made that no node saves, as far as can be told: by the first sampler that others do not use."""
    used = {link.node for node in graph.nodes.values() for link in node.links}
    unused = [node for node in graph.nodes.values() if node.id not in used]
    seen: set[str] = set()
    found = (_made_at(graph, end, seen) for end in (*unused, *graph.nodes.values()))
    made = next(filter(None, found), None)
    if made is None and graph.nodes:
        graph.warn("no sampler that is known made it")
    return made or Made(next(iter([*savers, *unused]), None), (Pass(graph, Node("", "", {})),))


def _made_at(graph: Graph, end: Node, seen: set[str]) -> Made | None:
    """How the image at a node was made; None if no sampler leads to it that can be reached without the nodes `seen`."""
    way = graph.way_to(graph.is_sampler, [NodeLink(end.id)], seen)
    if not way:
        return None
    passes, output = list(_passes_before(graph, way[-1])), way[:-1]
    while len(passes) > 1 and _is_detailer(passes[0].sampler):
        output += [passes[0].sampler, *passes[0].way]
        passes.pop(0)
    return Made(
        end, tuple(one for one in reversed(passes) if one.is_first or not _is_detailer(one.sampler)), tuple(output)
    )


def _is_detailer(sampler: Node) -> bool:
    """Whether a node samples parts of a finished image, such as its faces or tiles: no pass of A1111 does that."""
    inputs = {name for name in LATENT if isinstance(sampler.inputs.get(name), NodeLink)}
    return bool(inputs) and inputs <= {"image", "pixels"} and sampler.kind not in WIDGETS


def _passes_before(graph: Graph, last: Node) -> Iterator[Pass]:
    """The pass of a sampler and those before it, the last one first."""
    samplers = {last.id}
    while len(samplers) <= _MOST_PASSES:
        way = graph.way_to(graph.is_sampler, _latents(last), set())
        yield Pass(graph, last, tuple(way[:-1]), is_first=not way)
        if not way or way[-1].id in samplers:
            return
        last = way[-1]
        samplers.add(last.id)


def _latents(sampler: Node) -> list[NodeLink]:
    """What a sampler begins with."""
    return [link for name in LATENT if isinstance(link := sampler.inputs.get(name), NodeLink)]
