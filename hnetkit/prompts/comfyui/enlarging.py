"""The sizes of latents and images in a graph, and how the nodes between two samplers enlarge them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hnetkit.prompts.comfyui.graph import LARGEST, Graph, Node, stem_of
from hnetkit.prompts.comfyui.nodes import IMAGE_UPSCALERS, LATENT_UPSCALERS
from hnetkit.prompts.tags import excerpt, plain_number

Size = tuple[int, int]
"""Width and height in pixels."""

_TIMES = re.compile(r"(?<!\d)([1-9])x|x([1-9])(?!\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Enlargement:
    """What some nodes do to the size of a latent or an image.

    Attributes:
        size: of the result; None if it is only known in proportion.
        factor: result to original; None if it is not known.
        upscaler: A1111's name of the method; empty if nothing is enlarged.
    """

    size: Size | None = None
    factor: float | None = 1.0
    upscaler: str = ""

    @property
    def is_known(self) -> bool:
        return self.size is not None or self.factor is not None

    def of(self, original: Size | None) -> Size | None:
        """The size of the result; None if it is not known.

        Args:
            original: the size before; None if it is not known.
        """
        if self.size or original is None or self.factor is None:
            return self.size
        return _length(original[0] * self.factor), _length(original[1] * self.factor)

    @property
    def factor_text(self) -> str | None:
        return None if self.size or self.factor is None else plain_number(self.factor)


def enlargement_by(graph: Graph, way: Sequence[Node], original: Size | None) -> Enlargement:
    """Returns what the nodes of a way do to an image's size.

    Args:
        way: from the result to the original.
        original: the size before; None if it is not known.
    """
    found = Enlargement()
    for node in reversed(way):
        upscaler = _upscaler(graph, node) or found.upscaler
        if node.kind == "ImageUpscaleWithModel":
            found = _scaled(found, _factor_of_model(graph, node), upscaler)
        elif factor := graph.real(node.inputs.get("scale_by")):
            found = _scaled(found, factor, upscaler)
        elif "width" in node.inputs and "height" in node.inputs:
            found = _resized(graph, node, found, original, upscaler)
    return found


def size_of(graph: Graph, node: Node) -> Size | None:
    """The width and height that a node states; None if it states none."""
    width, height = (_side(graph, node, key) for key in ("width", "height"))
    return (width, height) if width and height else None


def _side(graph: Graph, node: Node, key: str) -> int:
    return max(0, graph.whole(node.inputs.get(key)))


def _scaled(before: Enlargement, factor: float | None, upscaler: str) -> Enlargement:
    if factor is None:
        return Enlargement(None, None, upscaler)
    size = before.size and (_length(before.size[0] * factor), _length(before.size[1] * factor))
    return Enlargement(size, before.factor and min(before.factor * factor, LARGEST), upscaler)


def _length(pixels: float) -> int:
    """A side of an image, also where a graph enlarges it without end, or makes it as small as nothing."""
    return max(1, round(min(pixels, LARGEST)))


def _resized(graph: Graph, node: Node, before: Enlargement, original: Size | None, upscaler: str) -> Enlargement:
    """A side of 0 follows the other one, and two of them change nothing."""
    width, height = (_side(graph, node, key) for key in ("width", "height"))
    shape = before.of(original) or original
    if width and height:
        if shape and abs(shape[0] * height - shape[1] * width) > max(width, height) and not _crops(graph, node):
            graph.warn(f"it was stretched from {shape[0]}x{shape[1]} to {width}x{height}; A1111 crops instead")
        return Enlargement((width, height), None, upscaler)
    if not width and not height:
        return before
    if shape is None:
        return Enlargement(None, None, upscaler)
    sides = (
        width or _length(height * shape[0] / max(shape[1], 1)),
        height or _length(width * shape[1] / max(shape[0], 1)),
    )
    return Enlargement(sides, None, upscaler)


def _crops(graph: Graph, node: Node) -> bool:
    return graph.text(node.inputs.get("crop")) == "center"


def _upscaler(graph: Graph, node: Node) -> str:
    """A1111's name of the method by which a node enlarges; empty if it does not."""
    if node.kind == "ImageUpscaleWithModel":
        loaders = graph.chain(node, "upscale_model")
        return stem_of(next((name for n in loaders if (name := graph.text(n.inputs.get("model_name")))), ""))
    method = graph.text(node.inputs.get("upscale_method"))
    if not method:
        return ""
    names, nearest = (LATENT_UPSCALERS, "Latent") if "samples" in node.inputs else (IMAGE_UPSCALERS, "Lanczos")
    if method not in names:
        graph.warn(f"{excerpt(method)}, by which it was enlarged, is not in A1111; {nearest} is the nearest")
    return names.get(method, nearest)


def _factor_of_model(graph: Graph, node: Node) -> float | None:
    """How many times a model enlarges, as its name says: ``4x-UltraSharp``, ``RealESRGAN_x2plus``."""
    found = _TIMES.search(_upscaler(graph, node))
    return float(found[1] or found[2]) if found else None
