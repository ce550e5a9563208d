"""What shaped an image in a graph and has no equivalent in A1111: listed, so that nothing is lost without a word."""

from __future__ import annotations

from collections.abc import Iterator

from hnetkit.prompts.comfyui.enlarging import Size
from hnetkit.prompts.comfyui.graph import Graph, Node
from hnetkit.prompts.comfyui.nodes import NEUTRAL, WIDGETS
from hnetkit.text import shorten

_MOST_LISTED = 10
_LONGEST = 80  # letters of a class or a value


def warn_of_others(graph: Graph, end: Node | None, size: Size | None) -> None:
    """Warns in one line of all nodes and settings on the way to an image that are not taken over.

    Args:
        end: the node that saves the image; None warns of nothing.
        size: of the first pass.
    """
    at_later_slots = {link.node for node in graph.nodes.values() for link in node.links if link.slot}
    found = (
        other
        for node in graph.upstream(end.links if end else [])
        if not node.holds_a_value or node.id in at_later_slots
        for other in _others(graph, node, size)
    )
    listed = list(dict.fromkeys(found))
    if listed:
        more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
        graph.warn(f"not taken over from ComfyUI: {', '.join(listed[:_MOST_LISTED])}{more}")


def _others(graph: Graph, node: Node, size: Size | None) -> Iterator[str]:
    kind = shorten(node.kind, _LONGEST)
    if not kind:
        return
    if node.kind not in WIDGETS:
        yield kind
    usual = dict(NEUTRAL.get(node.kind, {}))
    if node.kind == "CLIPTextEncodeSDXL" and size:  # A1111 takes the size of the image
        usual |= {"width": size[:1], "height": size[1:], "target_width": size[:1], "target_height": size[1:]}
    for name, values in usual.items():
        value = graph.value(node.inputs.get(name))
        if value is not None and value not in values:
            yield f"{kind} with {name} {shorten(str(value), _LONGEST)}"
