"""What nodes apply of hypernetworks, ComfyUI's own and those of `hnetkit.comfyui`, as tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hnetkit.prompts.comfyui.graph import Graph, Node, stem_of
from hnetkit.prompts.tags import BLOCK, Tag, excerpt, finite_number, fits_in_tag, split_tags

_COMFYUIS = "HypernetworkLoader"
_LOADERS = (_COMFYUIS, "HnetkitHypernetworkLoader")
_STACK, _FROM_TAGS = "HnetkitHypernetworkStack", "HnetkitHypernetworksFromTags"
_PARTS = ("k", "v", "self_", "cross")
_SHARES = ("k", "v", "self_attention", "cross_attention")
_MOST_SLOTS = 100

HYPERNETWORK_NODES = frozenset({*_LOADERS, _STACK, _FROM_TAGS})


def hypernetwork_tags(graph: Graph, node: Node) -> Iterator[str]:
    """Yields the tags of what one of `HYPERNETWORK_NODES` applies; what no tag can say is warned of."""
    if node.kind == _FROM_TAGS:
        text = graph.text(node.inputs.get("text"))
        graph.budget.make(len(text))
        yield from map(str, split_tags(text).tags)
    elif node.kind in _LOADERS:
        tag = _tag(graph, node, "hypernetwork_name", "strength")
        if tag is not None:
            graph.loaded |= {tag.name: None} if node.kind == _COMFYUIS else {}
            yield str(_limited(graph, node, tag))
    else:
        for number in range(1, _MOST_SLOTS):
            name = f"hypernetwork_{number}"
            if name not in node.inputs:
                return
            if graph.text(node.inputs[name]) != "None":
                tag = _tag(graph, node, name, f"strength_{number}")
                yield str(tag) if tag is not None else ""


def texts_with_tags(graph: Graph, models: Sequence[Node]) -> frozenset[str]:
    """Returns the prompts whose tags are applied by nodes on the way to the checkpoint."""
    return frozenset(graph.text(node.inputs.get("text")) for node in models if node.kind == _FROM_TAGS)


def _tag(graph: Graph, node: Node, name_key: str, strength_key: str) -> Tag | None:
    """Returns the tag of a network; None, with a warning, if no tag can hold its name or its strength is no number."""
    name, stated = stem_of(graph.text(node.inputs.get(name_key))), graph.number(node.inputs.get(strength_key, 1))
    strength = None if stated is None else finite_number(stated)
    if not name or not fits_in_tag(name) or strength is None:
        graph.warn(f"a {node.kind} is left out: {name[:80]!r} at {excerpt(str(stated))}")
        return None
    graph.budget.make(len(name))
    return Tag(name, strength)


def _limited(graph: Graph, node: Node, tag: Tag) -> Tag:
    """Returns a tag with the parts, the window and the blocks that a loader limits its network to."""

    def number(name: str, default: float) -> float:
        value = graph.real(node.inputs.get(name, default))
        return default if value is None else value

    k, v, self_, cross = shares = tuple(number(name, 1.0) for name in _SHARES)
    parts: dict[str, float] = {}
    if self_ == cross:
        parts = {} if k == v == self_ == 1 else {"k": k * self_, "v": v * self_}
    elif k == v:
        parts = {"self_": self_ * k, "cross": cross * k}
    else:
        stated = zip(_SHARES, shares, strict=True)
        _warn(graph, node, ", ".join(f"{name} {share:g}" for name, share in stated))
    start = min(max(number("start", 0.0), 0.0), 1.0)
    end = min(max(number("end", 1.0), start), 1.0)
    written = graph.text(node.inputs.get("blocks"))
    graph.budget.make(len(written))
    blocks = tuple(filter(None, (block.strip() for block in written.split(","))))
    if not all(BLOCK.fullmatch(block) for block in blocks):
        _warn(graph, node, f"blocks {written}")
        blocks = ()
    own_k, own_v, own_self, own_cross = (
        round(tag.multiplier * parts[part], 6) if part in parts else None for part in _PARTS
    )
    return Tag(tag.name, tag.multiplier, own_k, own_v, own_self, own_cross, start, end, blocks)


def _warn(graph: Graph, node: Node, what: str) -> None:
    graph.warn(f"not taken over from ComfyUI: {node.kind} with {what[:80]}")
