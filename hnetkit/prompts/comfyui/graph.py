"""ComfyUI's graphs as an image stores them, and walks through them.

There are two texts: ``prompt`` is the graph that ran (node -> its class and inputs), ``workflow`` is the graph in the
editor (nodes with the values of their widgets in order, and links between them). ``prompt`` takes precedence.

Graphs are untrusted: the memory and steps that reading one takes are limited, and every walk enters a node once.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hnetkit.limits import Budget, json_size, parse_json
from hnetkit.prompts.comfyui.nodes import WIDGETS
from hnetkit.prompts.tags import plain_number
from hnetkit.text import shorten

_HELPERS = ("guider", "sampler", "sigmas", "noise")  # inputs of a sampler; the nodes there hold some of its settings
_SKIPPED = (2, 4)  # modes of a node in the editor: muted, bypassed
_PASSED = ("", "*", "any")  # a reroute's only input
_VALUES = ("value", "seed", "noise_seed", "text", "string", "String", "Text", "int", "float", "number", *_PASSED)
_OF_NUMBERS = ("value", "int", "float", "number")  # beside other numbers, a node computes with it
_CONCATENATE = "StringConcatenate"
_LONGEST = 80  # letters of a class in a warning
_SUFFIX = re.compile(r"\.(?:pt|pt2|pth|ckpt|bin|pkl|sft|safetensors)$", re.IGNORECASE)

LARGEST = 1_000_000_000
"""A number beyond this one, or its negative, counts as this."""

MOST_NODES = 200
"""Nodes on one way through a graph; no real one is longer."""


@dataclass(frozen=True, slots=True)
class NodeLink:
    """An input that comes from another node's output: by which of them, 0 for the first."""

    node: str
    slot: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A node of either graph.

    Attributes:
        kind: its class in ComfyUI; empty for one that was muted or bypassed, through whose inputs walks pass.
        inputs: name -> a value, or `NodeLink`.
    """

    id: str
    kind: str
    inputs: dict[str, Any]

    @property
    def links(self) -> list[NodeLink]:
        return [value for value in self.inputs.values() if isinstance(value, NodeLink)]

    @property
    def holds_a_value(self) -> bool:
        """Whether it is nothing but a value for others."""
        return len(self.inputs) == 1 and not self.links and next(iter(self.inputs)) in _VALUES

    def value_at(self, slot: int) -> Any:
        """The value or link that it hands on at one of its outputs; None if that is not known."""
        if slot and self.kind not in WIDGETS:
            return None
        name = next((name for name in _VALUES if name in self.inputs), None)
        others = (value for key, value in self.inputs.items() if key != name)
        if name is None or (name in _OF_NUMBERS and any(_is_number(value) for value in others)):
            return None
        return self.inputs[name]


@dataclass
class Graph:
    """The nodes of either graph.

    Attributes:
        nodes: by id, in the order of their numbers.
        warnings: what reading them lost, each once, in the order found; see `warn`.
        embeddings: the textual inversions that the prompts read so far name, each once.
        loaded: the networks that ComfyUI's own loader applies, among those that were read so far, each once.
        translated: the texts that were read so far, by what they were: many nodes may refer to the same.
        is_drawn: whether it is the graph in the editor, whose texts are as they were typed.
    """

    nodes: dict[str, Node]
    budget: Budget
    warnings: dict[str, None] = field(default_factory=dict)
    embeddings: dict[str, None] = field(default_factory=dict)
    loaded: dict[str, None] = field(default_factory=dict)
    translated: dict[tuple[str, bool], str] = field(default_factory=dict)
    is_drawn: bool = False

    def warn(self, warning: str) -> None:
        self.warnings[warning] = None

    def chain(self, node: Node, *names: str) -> Iterator[Node]:
        """The nodes upstream through the first linked input with one of these names, nearest first."""
        seen: set[str] = set()
        while (following := self.entered(self._link(node, names), seen)) is not None:
            node = following
            yield node

    def behind(self, link: Any, *names: str) -> list[Node]:
        """The node at a link, and the chain behind it."""
        return list(self.chain(Node("", "", {"": link}), *names))

    def upstream(self, links: Sequence[NodeLink]) -> Iterator[Node]:
        """Every node that leads to these links, nearest first."""
        seen: set[str] = set()
        waiting = deque(links)
        while waiting:
            node = self.entered(waiting.popleft(), seen, most=len(self.nodes))
            if node is not None:
                self.budget.work(1)
                yield node
                waiting.extend(node.links)

    def way_to(self, is_goal: Callable[[Node], bool], links: Sequence[NodeLink], seen: set[str]) -> list[Node]:
        """The shortest way upstream to a node, which is its last; empty if none can be reached.

        Args:
            seen: ids of nodes that are not entered; those that this enters are added.
        """
        waiting = deque((link, -1) for link in links)
        entered: list[tuple[Node, int]] = []
        while waiting:
            link, before = waiting.popleft()
            node = self.entered(link, seen, most=len(self.nodes))
            if node is None:
                continue
            self.budget.work(1)
            entered.append((node, before))
            if is_goal(node):
                return list(_way_back(entered))
            waiting.extend((onward, len(entered) - 1) for onward in node.links)
        return []

    def entered(self, link: Any, seen: set[str], most: int = MOST_NODES) -> Node | None:
        """The node at a link; None if there is none, it was entered before, or the walk is too long."""
        if not isinstance(link, NodeLink) or link.node in seen or len(seen) >= most:
            return None
        seen.add(link.node)
        return self.nodes.get(link.node)

    def _link(self, node: Node, names: Sequence[str]) -> NodeLink | None:
        self.budget.work(1)
        inputs = node.inputs
        return next((inputs[n] for n in (*names, *_PASSED) if isinstance(inputs.get(n), NodeLink)), None)

    def is_sampler(self, node: Node) -> bool:
        """Whether a node makes an image or latent from noise by a prompt."""
        inputs = self.settings(node)
        prompt = inputs.get("positive", inputs.get("conditioning") if "guider" in node.inputs else None)
        return isinstance(prompt, NodeLink) and ("seed" in inputs or "noise_seed" in inputs)

    def settings(self, sampler: Node) -> Mapping[str, Any]:
        """A sampler's inputs, with those of the nodes that supply its noise, guidance and steps."""
        self.budget.work(1)
        helpers = [self.entered(sampler.inputs.get(name), set()) for name in _HELPERS]
        return ChainMap(*(node.inputs for node in (sampler, *helpers) if node))

    def value(self, value: Any) -> Any:
        """A plain value, followed through links to other nodes."""
        return self._value(value, frozenset())

    def _value(self, value: Any, seen: frozenset[str]) -> Any:
        while isinstance(value, NodeLink):
            self.budget.work(1)
            node = self.entered(value, set(seen))
            if node is None:
                return None
            seen |= {node.id}
            if node.kind == _CONCATENATE:
                return self._joined_texts(node, seen)
            value = node.value_at(value.slot)
        return value

    def _joined_texts(self, node: Node, seen: frozenset[str]) -> str | None:
        """The text of a node that joins two; None if neither is read."""
        first, second, between = (self._value(node.inputs.get(name), seen) for name in WIDGETS[_CONCATENATE])
        texts = [text for text in (first, second) if isinstance(text, str)]
        self.budget.make(sum(map(len, texts)))
        return (between if isinstance(between, str) else "").join(texts) if texts else None

    def origin(self, link: NodeLink) -> str:
        """The node at a link, for a warning."""
        node = self.nodes.get(link.node)
        return f"a {shorten(node.kind, _LONGEST)}" if node is not None and node.kind else "another node"

    def number(self, value: Any) -> str | None:
        """A number in plain digits; None if it is not a number."""
        number = self.value(value)
        if isinstance(number, float) and math.isfinite(number):
            return plain_number(number)
        return str(number) if isinstance(number, int) and not isinstance(number, bool) else None

    def real(self, value: Any) -> float | None:
        """A number within a billion of 0; None if it is not a number."""
        number = self.value(value)
        if not isinstance(number, int | float) or isinstance(number, bool) or number != number:
            return None
        return float(max(-LARGEST, min(number, LARGEST)))

    def whole(self, value: Any) -> int:
        """A whole number within a billion of 0; 0 if it is not a number."""
        return int(self.real(value) or 0)

    def text(self, value: Any) -> str:
        """A text; empty if it is none."""
        text = self.value(value)
        return text if isinstance(text, str) else ""


def _way_back(entered: Sequence[tuple[Node, int]]) -> Iterator[Node]:
    """The nodes from the first one to the last one entered; each is paired with the index of the one before it."""
    way = []
    index = len(entered) - 1
    while index >= 0:
        node, index = entered[index]
        way.append(node)
    return reversed(way)


def read_graph(prompt: str | None, workflow: str | None, budget: Budget) -> Graph:
    """Returns the graph that ran, else the one in the editor; it is empty if neither text is a graph.

    Raises:
        UnsafeFile: reading it would take too much memory.
    """
    graph = Graph(_nodes_that_ran(_json(prompt, budget)) if prompt else {}, budget)
    if not graph.nodes and workflow:
        graph = Graph(_nodes_drawn(_json(workflow, budget)), budget, is_drawn=True)
    return graph


def _nodes_that_ran(graph: Any) -> dict[str, Node]:
    """The nodes of a ``prompt``."""
    found = {}
    for id, node in sorted(_mapping(graph).items(), key=lambda item: (len(item[0]), item[0])):
        inputs = {name: _linked(value) for name, value in _mapping(_mapping(node).get("inputs")).items()}
        if isinstance(node, dict) and isinstance(node.get("class_type"), str):
            found[id] = Node(id, node["class_type"], inputs)
    return found


def _linked(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and isinstance(value[1], int):
        return NodeLink(str(value[0]), value[1])
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, NodeLink) or (isinstance(value, int | float) and not isinstance(value, bool))


def _nodes_drawn(graph: Any) -> dict[str, Node]:
    """The nodes of a ``workflow``."""
    links = dict(_origins(_list(_mapping(graph).get("links"))))
    found = {}
    nodes = [node for node in map(_mapping, _list(_mapping(graph).get("nodes"))) if isinstance(node.get("type"), str)]
    for node in sorted(nodes, key=lambda node: (len(_id(node.get("id"))), _id(node.get("id")))):
        kind, is_skipped = node["type"], node.get("mode") in _SKIPPED
        inputs = {} if is_skipped else _widgets(kind, node.get("widgets_values"))
        for slot in map(_mapping, _list(node.get("inputs"))):
            origin = links.get(_id(slot.get("link")))
            if origin is not None and isinstance(slot.get("name"), str):
                inputs[slot["name"]] = origin
        id = _id(node.get("id"))
        found[id] = Node(id, "" if is_skipped else kind, inputs)
    return found


def _widgets(kind: str, values: Any) -> dict[str, Any]:
    if isinstance(values, dict):
        return dict(values)
    names: Sequence[str] = WIDGETS.get(kind, ("text",) if "text" in kind.lower() else ())
    return {name: value for name, value in zip(names, _list(values), strict=False) if name}


def _origins(links: list[Any]) -> Iterator[tuple[str, NodeLink]]:
    """(link id, origin) of each link, which is a list or an object."""
    for link in links:
        if isinstance(link, list) and len(link) >= 3:
            id, node, slot = link[:3]
        else:
            id, node, slot = (_mapping(link).get(key) for key in ("id", "origin_id", "origin_slot"))
        yield _id(id), NodeLink(_id(node), slot if isinstance(slot, int) else 0)


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


def stem_of(path: str) -> str:
    """A model's name in A1111: its file without folder and suffix."""
    return _SUFFIX.sub("", file_name(path))


def file_name(path: str) -> str:
    """The file of a path, as Windows or any other system writes it."""
    return path.replace("\\", "/").rpartition("/")[2]
