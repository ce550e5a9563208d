"""ComfyUI's image metadata, converted to the equivalent infotext.

There are two texts: ``prompt`` is the graph that ran (node -> its class and inputs), ``workflow`` is the graph in the
editor (nodes with the values of their widgets in order, and links between them). ``prompt`` takes precedence.

Graphs are untrusted: the memory and steps that reading one takes are limited, and every walk enters a node once.

Source: comfyanonymous/ComfyUI nodes.py, comfy_extras/nodes_hypernetwork.py and nodes_custom_sampler.py (behavior
only).
"""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hnetkit.limits import Budget, json_size, parse_json
from hnetkit.prompts.infotext import Infotext
from hnetkit.prompts.tags import fits_in_tag, plain_number

MOST_STEPS = 2_000_000
"""Steps from node to node that reading a graph may take; a graph of a hundred nodes takes a few hundred."""

Node = dict[str, Any]
"""A node of either graph: ``class_type``, and ``inputs``: name -> a value, or `NodeLink`."""

# ComfyUI's name -> A1111's
_SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "lms": "LMS",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_sde_gpu": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_gpu": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_3m_sde_gpu": "DPM++ 3M SDE",
    "ddim": "DDIM",
    "uni_pc": "UniPC",
    "lcm": "LCM",
}
_SCHEDULERS = {
    "normal": "Normal",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "beta": "Beta",
    "kl_optimal": "KL Optimal",
}
# the widgets of a node in the editor, in order; "" is one that is not an input
_WIDGETS = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
    "SamplerCustom": ("add_noise", "noise_seed", "", "cfg"),
    "RandomNoise": ("noise_seed",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "CFGGuider": ("cfg",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": ("config_name", "ckpt_name"),
    "UNETLoader": ("unet_name",),
    "HypernetworkLoader": ("hypernetwork_name", "strength"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "PrimitiveNode": ("value",),
}
_MODEL_KEYS = ("ckpt_name", "unet_name")
_HELPERS = ("guider", "sampler", "sigmas", "noise")  # inputs of a sampler; the nodes there hold some of its settings
_SKIPPED = (2, 4)  # modes of a node in the editor: muted, bypassed
_JOINED_BY = {"ConditioningCombine": " AND ", "ConditioningConcat": " BREAK "}
_LATENT = ("latent_image", "samples", "latent", "pixels", "image")
_PASSED = ("", "*", "any")  # a reroute's only input
_VALUES = ("value", "seed", "noise_seed", "text", "string", "String", "Text", "int", "float", "number", *_PASSED)
_MOST_NODES = 200  # on one walk; no real graph is longer
_SUFFIX = re.compile(r"\.(?:pt|pt2|pth|ckpt|bin|pkl|sft|safetensors)$", re.IGNORECASE)
_TAG = re.compile(r"<hypernet:[^<>]*>")


@dataclass(frozen=True, slots=True)
class NodeLink:
    """An input that comes from another node's output."""

    node: str


def parse(prompt: str | None, workflow: str | None = None, budget: Budget | None = None) -> Infotext:
    """Converts the graphs of an image to an infotext in A1111's terms; it is empty if they hold nothing known.

    Hypernetworks become tags at the end of the prompt, in stacking order. A text that is not a graph is ignored.

    Args:
        budget: for reading the graphs; None makes a new one.

    Raises:
        UnsafeFile: reading the graphs would take too much memory or too many steps.
    """
    budget = budget or Budget(work=MOST_STEPS)
    graph = _Graph(_nodes_that_ran(_json(prompt, budget)) if prompt else {}, budget)
    if not graph.nodes and workflow:
        graph = _Graph(_nodes_drawn(_json(workflow, budget)), budget)
    sampler = graph.sampler()
    positive, negative = (graph.text(sampler, side) for side in ("positive", "negative"))
    for text in (positive, negative):
        tags_in_it = dict.fromkeys(tag[:80] for tag in _TAG.findall(text))
        graph.warnings += [f"{tag}: ComfyUI does not read tags; it is left out" for tag in tags_in_it]
    tags = "".join(graph.hypernetwork_tags(sampler))
    parameters = graph.parameters(sampler)
    if parameters:
        parameters["Version"] = "ComfyUI"
    return Infotext(_TAG.sub("", positive) + tags, _TAG.sub("", negative), parameters, tuple(graph.warnings))


@dataclass
class _Graph:
    """The nodes of either graph by id, and the warnings from reading them."""

    nodes: dict[str, Node]
    budget: Budget
    warnings: list[str] = field(default_factory=list)

    def sampler(self) -> Node:
        """The sampler of the image: the first that starts from an empty latent; without any, a node without inputs."""
        samplers = [node for node in self.nodes.values() if self._is_sampler(node)]
        leads_to_one: set[str] = set()
        first = (node for node in samplers if not self._follows_a_sampler(node, leads_to_one))
        return next(first, samplers[0] if samplers else {"class_type": "", "inputs": {}})

    def parameters(self, sampler: Node) -> dict[str, str]:
        """A1111's parameters for a sampler's image."""
        inputs = self._settings(sampler)
        name, scheduler = (_text(self._value(inputs.get(key))) for key in ("sampler_name", "scheduler"))
        size: Node = next((n["inputs"] for n in self._chain(sampler, *_LATENT) if "width" in n["inputs"]), {})
        width, height = (self._number(size.get(key)) for key in ("width", "height"))
        models = [self._value(n["inputs"].get(k)) for n in self._chain_of_model(sampler) for k in _MODEL_KEYS]
        model = next(filter(None, map(_text, models)), None)
        values = {
            "Steps": self._number(inputs.get("steps")),
            "Sampler": _SAMPLERS.get(name, name),
            "Schedule type": _SCHEDULERS.get(scheduler, scheduler),
            "CFG scale": self._number(inputs.get("cfg")),
            "Seed": self._number(inputs.get("seed")) or self._number(inputs.get("noise_seed")),
            "Size": f"{width}x{height}" if width and height else None,
            "Model": _SUFFIX.sub("", _file_name(model)) if model else None,
            "Denoising strength": _unless(self._number(inputs.get("denoise")), "1"),
            "Clip skip": _unless(self._clip_skip(inputs.get("positive")), "1"),
        }
        found = {key: value for key, value in values.items() if value}
        return found | ({"RNG": "CPU"} if "Seed" in found else {})  # ComfyUI makes its noise on the CPU

    def hypernetwork_tags(self, sampler: Node) -> Iterator[str]:
        """The tags of the hypernetworks on a sampler's model; the one next to the checkpoint comes first."""
        for node in reversed(list(self._chain_of_model(sampler))):
            if node["class_type"] != "HypernetworkLoader":
                self._warn_of_lora(node)
                continue
            name = _SUFFIX.sub("", _file_name(_text(self._value(node["inputs"].get("hypernetwork_name")))))
            strength = self._number(node["inputs"].get("strength", 1))
            if not name or not fits_in_tag(name) or strength is None:
                self.warnings.append(f"a HypernetworkLoader is left out: {name[:80]!r} at {strength}")
            else:
                self.budget.make(len(name))
                yield f"<hypernet:{name}:{strength}>"

    def _warn_of_lora(self, node: Node) -> None:
        if "lora" in node["class_type"].lower():
            name = _file_name(_text(self._value(node["inputs"].get("lora_name"))))
            self.warnings.append(f"a {node['class_type'][:80]} is left out: {name[:80]!r}")

    def text(self, sampler: Node, side: str) -> str:
        """The prompt of one side (``"positive"`` or ``"negative"``), from every text that is linked to it."""
        return self._encoded(self._settings(sampler).get(side), side, set()).strip()

    # --- walking: each walk enters a node once, so that even a tangled graph is read quickly

    def _encoded(self, start: Any, side: str, seen: set[str]) -> str:
        """The texts of a conditioning, joined as A1111 would write their combination."""
        node = self._entered(start, seen)
        if node is None:
            return ""
        texts = [self._value(node["inputs"].get(key)) for key in ("text", "text_g", "text_l", "t5xxl")]
        own = list(dict.fromkeys(text for text in texts if isinstance(text, str) and text))
        if own:
            return self._joined("\n", own)
        links = {name: value for name, value in node["inputs"].items() if isinstance(value, NodeLink)}
        onward = [value for name, value in links.items() if name.startswith("conditioning") or name == side]
        onward = onward or [value for name, value in links.items() if name in _PASSED]
        parts = [self._encoded(link, side, seen) for link in onward]
        return self._joined(_JOINED_BY.get(node["class_type"], ", "), [part for part in parts if part])

    def _joined(self, word: str, texts: list[str]) -> str:
        self.budget.make(sum(map(len, texts)))  # many nodes may refer to the same text
        return word.join(texts)

    def _chain_of_model(self, sampler: Node) -> list[Node]:
        """The nodes from a sampler's model up to its checkpoint; without a sampler, the longest chain of loaders."""
        inputs = self._settings(sampler)
        if isinstance(inputs.get("model"), NodeLink):
            return list(self._chain({"inputs": inputs}, "model"))
        loaders = [node for node in self.nodes.values() if node["class_type"] == "HypernetworkLoader"][:_MOST_NODES]
        return max(([node, *self._chain(node, "model")] for node in loaders), key=len, default=[])

    def _clip_skip(self, start: Any) -> str | None:
        """The clip skip: A1111 counts the text encoder's layers from 1, ComfyUI from -1."""
        encoders = self._chain({"inputs": {"conditioning": start}}, "conditioning", "clip")
        layers = (self._number(node["inputs"].get("stop_at_clip_layer")) for node in encoders)
        return next((layer.removeprefix("-") for layer in layers if layer), None)

    def _chain(self, node: Node, *names: str) -> Iterator[Node]:
        """The nodes upstream through the first linked input with one of these names, nearest first."""
        seen: set[str] = set()
        while (following := self._entered(self._link(node, names), seen)) is not None:
            node = following
            yield node

    def _link(self, node: Node, names: Sequence[str]) -> NodeLink | None:
        self.budget.work(1)
        inputs = node["inputs"]
        return next((inputs[n] for n in (*names, *_PASSED) if isinstance(inputs.get(n), NodeLink)), None)

    def _follows_a_sampler(self, node: Node, leads_to_one: set[str]) -> bool:
        """Whether `node` starts from another sampler's image. Across many calls each node is visited once.

        Args:
            leads_to_one: ids of nodes that are samplers or follow one; updated by this.
        """
        walked: set[str] = set()
        while (link := self._link(node, _LATENT)) is not None:
            if link.node in leads_to_one:
                break
            following = self._entered(link, walked)
            if following is None:
                return False
            node = following
            if self._is_sampler(node):
                break
        leads_to_one |= walked
        return link is not None

    def _entered(self, link: Any, seen: set[str]) -> Node | None:
        """The node at a link; None if there is none, it was entered before, or the walk is too long."""
        if not isinstance(link, NodeLink) or link.node in seen or len(seen) >= _MOST_NODES:
            return None
        seen.add(link.node)
        return self.nodes.get(link.node)

    def _is_sampler(self, node: Node) -> bool:
        inputs = self._settings(node)
        return isinstance(inputs.get("positive"), NodeLink) and ("seed" in inputs or "noise_seed" in inputs)

    def _settings(self, sampler: Node) -> Mapping[str, Any]:
        """A sampler's inputs, with those of the nodes that supply its noise, guidance and steps."""
        self.budget.work(1)
        helpers = [self._entered(sampler["inputs"].get(name), set()) for name in _HELPERS]
        return ChainMap(*(node["inputs"] for node in (sampler, *helpers) if node))

    def _value(self, value: Any) -> Any:
        """A plain value, followed through links to other nodes."""
        seen: set[str] = set()
        while isinstance(value, NodeLink):
            self.budget.work(1)
            node = self._entered(value, seen)
            inputs = node["inputs"] if node else {}
            value = next((inputs[name] for name in _VALUES if name in inputs), None)
        return value

    def _number(self, value: Any) -> str | None:
        """A number in plain digits; None if it is not a number."""
        number = self._value(value)
        if isinstance(number, float) and math.isfinite(number):
            return plain_number(number)
        return str(number) if isinstance(number, int) and not isinstance(number, bool) else None


def _nodes_that_ran(graph: Any) -> dict[str, Node]:
    """The nodes of a ``prompt``, in the order of their numbers."""
    found = {}
    for id, node in sorted(_mapping(graph).items(), key=lambda item: (len(item[0]), item[0])):
        inputs = {name: _linked(value) for name, value in _mapping(_mapping(node).get("inputs")).items()}
        if isinstance(node, dict) and isinstance(node.get("class_type"), str):
            found[id] = {"class_type": node["class_type"], "inputs": inputs}
    return found


def _linked(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and isinstance(value[1], int):
        return NodeLink(str(value[0]))
    return value


def _nodes_drawn(graph: Any) -> dict[str, Node]:
    """The nodes of a ``workflow``. A muted or bypassed one has no class, so that walks pass through its inputs."""
    links = dict(_origins(_list(_mapping(graph).get("links"))))
    found = {}
    nodes = [node for node in map(_mapping, _list(_mapping(graph).get("nodes"))) if isinstance(node.get("type"), str)]
    for node in sorted(nodes, key=lambda node: (len(_id(node.get("id"))), _id(node.get("id")))):
        kind, is_skipped = node["type"], node.get("mode") in _SKIPPED
        inputs: Node = {} if is_skipped else _widgets(kind, node.get("widgets_values"))
        for slot in map(_mapping, _list(node.get("inputs"))):
            origin = links.get(_id(slot.get("link")))
            if origin is not None and isinstance(slot.get("name"), str):
                inputs[slot["name"]] = origin
        found[_id(node.get("id"))] = {"class_type": "" if is_skipped else kind, "inputs": inputs}
    return found


def _widgets(kind: str, values: Any) -> Node:
    if isinstance(values, dict):
        return dict(values)
    names: Sequence[str] = _WIDGETS.get(kind, ("text",) if "text" in kind.lower() else ())
    return {name: value for name, value in zip(names, _list(values), strict=False) if name}


def _origins(links: list[Any]) -> Iterator[tuple[str, NodeLink]]:
    """(link id, origin) of each link, which is a list or an object."""
    for link in links:
        if isinstance(link, list) and len(link) >= 3:
            id, node = link[:2]
        else:
            id, node = (_mapping(link).get(key) for key in ("id", "origin_id"))
        yield _id(id), NodeLink(_id(node))


def _json(text: str, budget: Budget) -> Any:
    """The value of a JSON text; None if it is not JSON. Raises UnsafeFile if it exceeds the budget."""
    budget.make(json_size(text))
    try:
        return parse_json(text)
    except ValueError:
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _id(value: Any) -> str:
    return str(value) if isinstance(value, str | int) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _unless(value: str | None, usual: str) -> str | None:
    return None if value == usual else value
