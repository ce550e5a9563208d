"""hnetkit's own nodes in a graph: the networks that they applied, as tags."""

from __future__ import annotations

from collections.abc import Iterator

from hnetkit.prompts.comfyui.graph import Graph, Node
from hnetkit.prompts.comfyui.nodes import LOADER, STACK, TAGS, stem_of
from hnetkit.prompts.tags import Tag, excerpt, fits_in_tag, split_tags

_MOST_SLOTS = 50
_SHARES = ("k", "v", "self_attention", "cross_attention")
_NONE = ("", "None")


def own_tags(graph: Graph, node: Node) -> Iterator[str]:
    """Yields the tags of the networks that one of hnetkit's nodes applied, in its order; none for another node.

    A network that no tag can hold is left out with a warning.
    """
    if node.kind == LOADER:
        yield from _slot(graph, node, "hypernetwork_name", "strength")
    elif node.kind == STACK:
        for slot in range(1, _MOST_SLOTS + 1):
            yield from _slot(graph, node, f"hypernetwork_{slot}", f"strength_{slot}")
    elif node.kind == TAGS:
        yield from map(str, split_tags(graph.text(node.inputs.get("text"))).tags)


def _slot(graph: Graph, node: Node, file: str, strength: str) -> Iterator[str]:
    name = graph.text(node.inputs.get(file))
    if name in _NONE:
        return
    tag = _tag(graph, node, stem_of(name), strength)
    if isinstance(tag, Tag) and split_tags(str(tag)).tags == (tag,):
        graph.budget.make(len(str(tag)))
        yield str(tag)
    else:
        why = tag if isinstance(tag, str) else "a part of it is no part of a tag"
        graph.warn(f"a {node.kind} is left out: {excerpt(name)}: {why}")


def _tag(graph: Graph, node: Node, name: str, strength: str) -> Tag | str:
    """Returns a network as a tag, or why it is none."""
    given = {"strength": strength, **{own: own for own in (*_SHARES, "end")}}
    numbers = {own: graph.real(node.inputs.get(key, 1.0)) for own, key in given.items()}
    numbers["start"] = graph.real(node.inputs.get("start", 0.0))
    known = {own: number for own, number in numbers.items() if number is not None}
    if len(known) < len(numbers) or not fits_in_tag(name):
        return "a number of it is none" if fits_in_tag(name) else "a tag cannot hold its name"
    multiplier = known["strength"]
    k, v, self_, cross = (
        None if known[own] == 1.0 else known[own] * multiplier
        for own in ("k", "v", "self_attention", "cross_attention")
    )
    if (k, v) != (None, None) and (self_, cross) != (None, None):
        return "a tag cannot hold shares of a side and of a kind of attention"
    blocks = tuple(filter(None, (block.strip() for block in graph.text(node.inputs.get("blocks", "")).split(","))))
    if any("=" in block for block in blocks):
        return "a tag cannot hold factors of blocks"
    return Tag(name, multiplier, k, v, self_, cross, known["start"], known["end"], blocks)
