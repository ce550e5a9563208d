"""ControlNets of a graph in the words of A1111's extension."""

from __future__ import annotations

from hnetkit.prompts.comfyui.graph import Graph, Node, NodeLink, stem_of
from hnetkit.prompts.comfyui.passes import Pass
from hnetkit.prompts.comfyui.wording import picture_in
from hnetkit.prompts.tags import excerpt

_MOST_UNITS = 10


def control_units(graph: Graph, first: Pass, second: Pass | None) -> dict[str, str | None]:
    """Returns ``ControlNet 0`` and so on, the one next to the prompt first."""
    of_first = _units(graph, first)
    of_second = _units(graph, second) if second else of_first
    units = of_first | of_second
    if len(units) > _MOST_UNITS:
        graph.warn(f"{len(units)} ControlNets guided it; only the first {_MOST_UNITS} are named")
    found: dict[str, str | None] = {}
    for number, (id, node) in enumerate(list(units.items())[:_MOST_UNITS]):
        passes = "" if id in of_first and id in of_second else "Low res only" if id in of_first else "High res only"
        found[f"ControlNet {number}"] = _described(graph, node, passes)
    return found


def _units(graph: Graph, one: Pass) -> dict[str, Node]:
    links = [link for side in ("positive", "negative") if isinstance(link := one.conditioning(side), NodeLink)]
    nodes = [node for node in graph.upstream(links) if isinstance(node.inputs.get("control_net"), NodeLink)]
    return {node.id: node for node in reversed(nodes) if graph.real(node.inputs.get("strength")) != 0}


def _described(graph: Graph, node: Node, passes: str) -> str:
    models = graph.chain(node, "control_net")
    model = next((name for n in models if (name := graph.text(n.inputs.get("control_net_name")))), "")
    picture = excerpt(picture_in(graph, node, "image", "images", "pixels")) or "a picture"
    graph.warn(f"the ControlNet {excerpt(stem_of(model))} followed {picture}, which is not in the image")
    values = {
        "Module": "none",
        "Model": excerpt(stem_of(model)),
        "Weight": graph.number(node.inputs.get("strength")) or "1",
        "Guidance Start": graph.number(node.inputs.get("start_percent")) or "0",
        "Guidance End": graph.number(node.inputs.get("end_percent")) or "1",
        "Hires Option": passes,
    }
    return ", ".join(f"{key}: {value}" for key, value in values.items() if value)
