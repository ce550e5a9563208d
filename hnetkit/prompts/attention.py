r"""A1111's attention weights: ``(word)`` for more, ``[word]`` for less, ``(word:1.3)`` for exactly so.

A bracket or backslash after a backslash is text; a backslash before anything else is dropped. Round and square
brackets are matched independently, and one that is never closed counts as closed at the end.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/prompt_parser.py (behavior only).
"""

from __future__ import annotations

import math
import re
import sys
from itertools import groupby, pairwise

from hnetkit.prompts.tags import finite_number, plain_number

BREAK = "BREAK"
Pairs = list[tuple[str, float]]

_UP, _DOWN = 1.1, 1 / 1.1
# every piece of text is multiplied once per bracket around it; at 100 the weight is 13,781, far beyond any use
_DEEPEST = 100
_PIECE = re.compile(r"\\[()\[\]\\]|[\\()\[\]]|:\s*([+-]?[.\d]+)\s*\)|:|[^\\()\[\]:]+")
_BREAK = re.compile(r"\bBREAK\b")
_TO_ESCAPE = re.compile(r"[()\[\]\\]")
_BACKSLASH = "\\"


def parse_attention(text: str) -> Pairs:
    """Returns the pieces of a prompt with their weights, neighbors of equal weight merged; never empty.

    A ``BREAK`` is ``("BREAK", -1.0)`` times the weights around it. Any text can be read: where A1111 raises an error,
    as at ``(a:1.2.3)``, the number is text. Brackets nested more than 100 deep add no weight.
    """
    weights = _Weights()
    for piece in _PIECE.finditer(text):
        _add_piece(weights, piece[0], piece[1])
    weights.close_all()
    return weights.merged() or [("", 1.0)]


def escaped(text: str) -> str:
    """Returns a text in which brackets and backslashes are read as they are."""
    return _TO_ESCAPE.sub(r"\\\g<0>", text)


def write_attention(pairs: Pairs) -> str:
    """Returns a prompt that `parse_attention` reads as `pairs`, for any result of that function."""
    if pairs == [("", 1.0)]:
        return ""
    groups: list[tuple[list[str], float]] = []
    position = 0
    while position < len(pairs):
        text, weight = pairs[position]
        texts = [text]
        # texts around a BREAK share its brackets: on its own, an empty one would be lost
        while pairs[position + 1 : position + 2] == [(BREAK, -weight)] and _weight(pairs, position + 2) == weight:
            position += 2
            texts.append(pairs[position][0])
        groups.append((texts, weight))
        position += 1
    return "".join(_group(texts, weight) for texts, weight in groups)


class _Weights:
    """The pieces of a prompt so far, and the brackets that are open around the next one."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._weights: list[float] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}

    def add(self, text: str) -> None:
        """Adds text without brackets; a ``BREAK`` in it swallows the spaces around it."""
        first, *others = _BREAK.split(text)
        self._append(first.rstrip() if others else first, 1.0)
        for number, other in enumerate(others, start=1):
            self._append(BREAK, -1.0)
            self._append(other.lstrip() if number == len(others) else other.strip(), 1.0)

    def open(self, bracket: str) -> None:
        self._open[bracket].append(len(self._texts))

    def is_open(self, bracket: str) -> bool:
        return bool(self._open[bracket])

    def close(self, bracket: str, factor: float) -> None:
        depth = len(self._open[bracket])
        self._multiply(self._open[bracket].pop(), factor, depth)

    def close_all(self) -> None:
        for bracket, factor in (("(", _UP), ("[", _DOWN)):
            for depth, start in enumerate(self._open[bracket], start=1):
                self._multiply(start, factor, depth)

    def merged(self) -> Pairs:
        groups = groupby(zip(self._texts, map(_finite, self._weights), strict=True), key=lambda pair: pair[1])
        return [("".join(text for text, _ in group), weight) for weight, group in groups]

    def _append(self, text: str, weight: float) -> None:
        self._texts.append(text)
        self._weights.append(weight)

    def _multiply(self, start: int, factor: float, depth: int) -> None:
        if depth <= _DEEPEST:
            self._weights[start:] = [weight * factor for weight in self._weights[start:]]


def _add_piece(weights: _Weights, piece: str, number: str | None) -> None:
    if piece in ("(", "["):
        weights.open(piece)
    elif piece == "]" and weights.is_open("["):
        weights.close("[", _DOWN)
    elif piece[-1] == ")" and piece[0] != "\\" and weights.is_open("("):
        weight = finite_number(number) if number else _UP
        if weight is None:
            weights.add(piece[:-1])
        weights.close("(", _UP if weight is None else weight)
    else:
        weights.add(piece[1:] if piece[0] == "\\" else piece)


def _finite(weight: float) -> float:
    if math.isnan(weight):
        return 0.0
    return max(-sys.float_info.max, min(sys.float_info.max, weight))


def _weight(pairs: Pairs, position: int) -> float | None:
    return pairs[position][1] if position < len(pairs) else None


def _group(texts: list[str], weight: float) -> str:
    """Writes texts of equal weight, joined by BREAK."""
    written = _escaped(texts[0])
    for before, after in pairwise(texts):
        # a backslash protects the spaces of a text from the BREAK, which would swallow them
        left = _BACKSLASH if before[-1:].isspace() else " " if written else ""
        right = _BACKSLASH if after[:1].isspace() else " " if after else ""
        written += f"{left}{BREAK}{right}{_escaped(after)}"
    if weight == 1 and written:
        return written
    # empty brackets hold no text, but a lone backslash in them is an empty text
    return f"({written or _BACKSLASH}:{plain_number(weight)})"


def _escaped(text: str) -> str:
    """Escapes a text so that it reads back unchanged; a backslash, which reading drops, splits the word BREAK."""
    return _BREAK.sub(r"B\\REAK", escaped(text))
