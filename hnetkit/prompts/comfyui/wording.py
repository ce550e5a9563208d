"""What ComfyUI's prompts and network loaders are in A1111's language of prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hnetkit.prompts.comfyui.graph import Graph, Node, NodeLink, file_name, stem_of
from hnetkit.prompts.comfyui.hypernetworks import HYPERNETWORK_NODES, hypernetwork_tags
from hnetkit.prompts.comfyui.nodes import WIDGETS
from hnetkit.prompts.schedule import as_whole_text
from hnetkit.prompts.tags import excerpt, fits_in_tag, plain_number, unread_tags, without_tags

_JOINED_BY = {"ConditioningConcat": " BREAK "}
_TEXTS = ("text", "text_g", "text_l", "t5xxl")
_WEIGHT = re.compile(r"(?<!\\)\(")
_SQUARE = re.compile(r"(?<!\\)([\[\]])")
_BACKSLASH = re.compile(r"\\(?![()\[\]])")  # one before a bracket means the same in both
_WORD = re.compile(r"\b(?:AND|BREAK)\b")
_CHOICE = re.compile(r"(?<!\\)\{[^{}]*\||/\*|(?:^|[^:\\])//", re.MULTILINE)
_EMBEDDING = re.compile(r"\bembedding:([^\s,:()<>]+)")


def picture_in(graph: Graph, node: Node, *names: str) -> str:
    """The file of the picture that comes to a node through inputs with these names; empty if it is not known."""
    return next((file_name(name) for n in graph.chain(node, *names) if (name := graph.text(n.inputs.get("image")))), "")


def prompt_of(graph: Graph, start: Any, side: str, tagged: frozenset[str] = frozenset()) -> str:
    """The prompt of a conditioning, from every text that is linked to it.

    Of several that are mixed, ComfyUI averages what the model predicts, so each has its part of the weight of one.

    Args:
        side: ``"positive"`` or ``"negative"``, by which nodes with both go on.
        tagged: texts whose tags of hypernetworks are applied by a node.
    """
    texts = [text.strip() for text in _encoded(graph, start, side, tagged, set())]
    if side == "negative":
        if len(texts) > 1:
            graph.warn(f"its negative prompt is a mix of {len(texts)} texts; in A1111 they are one text")
        return _joined(graph, ", ", [text for text in texts if text])
    if len(texts) < 2:
        return as_whole_text("".join(texts))
    weight = plain_number(round(1 / len(texts), 6))
    return _joined(graph, " AND ", [f"{text}:{weight}" for text in texts])


def _encoded(graph: Graph, start: Any, side: str, tagged: frozenset[str], seen: set[str]) -> list[str]:
    """The texts of a conditioning; those of several are mixed."""
    node = graph.entered(start, seen)
    if node is None or node.kind == "ConditioningZeroOut":  # which leaves nothing of its text
        return []
    stated = node.inputs.get(side)  # some nodes encode texts of both sides
    values = [*map(node.inputs.get, _TEXTS), *([stated] if isinstance(stated, str) else [])]
    given = [text for value in values if (text := _text(graph, value)) is not None]
    own = list(dict.fromkeys(filter(None, given)))
    if given:
        if len(own) > 1:
            graph.warn("its text encoders read different prompts; A1111 has one, which holds them all")
        return [_joined(graph, "\n", [_translated(graph, text, text in tagged) for text in own])]
    links = {name: value for name, value in node.inputs.items() if isinstance(value, NodeLink)}
    onward = [value for name, value in links.items() if name.startswith("conditioning") or name == side]
    onward = onward or [value for name, value in links.items() if name in ("", "*", "any")]
    parts = [found for link in onward if (found := _encoded(graph, link, side, tagged, seen))]
    if node.kind == "ConditioningCombine":
        return [text for texts in parts for text in texts]
    first, *others = parts or [[]]
    behind = [texts[0] for texts in others]  # which is all that ComfyUI takes of them
    word = _JOINED_BY.get(node.kind, ", ")
    return [_joined(graph, word, [part for part in (text, *behind) if part]) for text in first]


def _text(graph: Graph, value: Any) -> str | None:
    """A text that is encoded; None if there is none, or one that is not read, which is warned of."""
    text = graph.value(value)
    if isinstance(value, NodeLink) and not isinstance(text, str):
        graph.warn(f"a text of its prompts comes from {graph.origin(value)}, which is not read: it is left out")
    return text if isinstance(text, str) else None


def _joined(graph: Graph, word: str, texts: list[str]) -> str:
    graph.budget.make(sum(map(len, texts)))  # many nodes may refer to the same text
    return word.join(texts)


def _translated(graph: Graph, text: str, is_tagged: bool) -> str:
    if (text, is_tagged) not in graph.translated:
        graph.translated[text, is_tagged] = _in_a1111s_language(graph, text, is_tagged)
    return graph.translated[text, is_tagged]


def _in_a1111s_language(graph: Graph, text: str, is_tagged: bool) -> str:
    """A text that A1111 reads as ComfyUI did, which knows neither tags, square brackets, ``AND`` nor ``BREAK``."""
    for line in unread_tags(text, "ComfyUI"):
        if not (is_tagged and line.startswith("<hypernet:")):
            graph.warn(line)
    if _WEIGHT.search(text):
        graph.warn("its prompt has weights in round brackets, which ComfyUI applies in another way than A1111")
    if graph.is_drawn and (choice := _CHOICE.search(text)):
        beginning = excerpt(text[choice.start() : choice.start() + 40].strip())
        graph.warn(f"its prompt has a choice or a comment, {beginning}, and does not say which words were drawn")
    if "#" in text:
        graph.warn("its prompt has a #, where a comment begins in A1111 but not in ComfyUI")
    text = _SQUARE.sub(r"\\\1", _BACKSLASH.sub(r"\\\\", without_tags(text)))
    text = _WORD.sub(lambda word: word[0].lower(), text)  # the text encoder does not tell them apart
    names = (stem_of(name.replace(r"\\", "/")) for name in _EMBEDDING.findall(text))
    graph.embeddings |= dict.fromkeys(filter(None, names))
    return _EMBEDDING.sub(lambda name: stem_of(name[1].replace(r"\\", "/")), text)


def network_tags(graph: Graph, models: Sequence[Node], encoders: Sequence[Node]) -> str:
    """The tags of the networks of a pass; the one next to the checkpoint comes first.

    Args:
        models, encoders: the nodes from the sampler's model, and from its positive prompt's text encoder, up to the
            checkpoint, nearest first.
    """
    return "".join(_tags(graph, models, encoders))


def is_lora(node: Node) -> bool:
    return node.inputs.get("lora_name") not in (None, "", "None")


def _tags(graph: Graph, models: Sequence[Node], encoders: Sequence[Node]) -> Iterator[str]:
    on_model, on_encoder = {node.id for node in models}, {node.id for node in encoders}
    others = [node for node in encoders if node.id not in on_model]
    for node in reversed([*others, *models]):
        if node.kind in HYPERNETWORK_NODES:
            yield from hypernetwork_tags(graph, node)
        elif is_lora(node):
            of_encoder = _strength(graph, node, "clip") if node.id in on_encoder else "0"
            of_model = _strength(graph, node, "model") if node.id in on_model else "0"
            yield _lora_tag(graph, node, [of_encoder, of_model])


def _strength(graph: Graph, node: Node, part: str) -> str | None:
    """A LoRA's strength on one part of the model; None if the node does not say it. A loader of ComfyUI's has 1."""
    keys = (f"strength_{part}", f"lora_{part}_strength", "lora_strength", "strength")
    stated = next((node.inputs[key] for key in keys if key in node.inputs), 1 if node.kind in WIDGETS else None)
    return graph.number(stated)


def _lora_tag(graph: Graph, node: Node, strengths: Sequence[str | None]) -> str:
    """The tag of a LoRA; empty, with a warning, if no tag can hold its name or a strength is not a number."""
    name = stem_of(graph.text(node.inputs.get("lora_name")))
    if not name or not fits_in_tag(name) or None in strengths:
        shown = ", ".join(map(str, strengths))
        graph.warn(f"a {node.kind[:80]} is left out: {name[:80]!r} at {shown}")
        return ""
    graph.budget.make(len(name))
    return f"<lora:{name}:{':'.join(map(str, strengths))}>"
