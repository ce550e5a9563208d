"""A1111's prompt scheduling and composition, and a prompt taken apart for `hnetkit prompt`.

Scheduling: ``[from:to:when]`` changes after step `when`, ``[to:when]`` adds, ``[from::when]`` removes, ``[a|b|c]``
alternates. These forms may be nested, and may appear inside ``(...)``, ``(...:1.2)`` and ``[...]``. Anything else is
text. A ``|`` outside a ``[...]`` of its own, or a backslash at the end, makes the whole prompt plain text.

Every bracket has at most one partner, and whether the two make a form depends only on what is between them. So one
pass with a stack reads a prompt of any depth, in time that grows with its length.

Composition: in ``a cat :1.2 AND a dog :-0.5`` each part steers the image by its own weight.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/prompt_parser.py (behavior only).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Union

from hnetkit.errors import UsageError
from hnetkit.prompts.attention import BREAK, parse_attention
from hnetkit.prompts.chunks import ClipTokenizer, split_chunks
from hnetkit.prompts.infotext import require_prompt_alone
from hnetkit.prompts.tags import Tag, split_comments, split_tags

MOST_LETTERS = 10_000_000
"""Characters of all texts of a prompt: one of 5,000 characters may change at each of 1,000 steps, twice over."""
_MANY_STEPS = 1000  # by which all that a prompt changes to is drawn
_TOKEN = re.compile(r"[()\[\]:|]|(?:[^\\()\[\]:|]+|\\.)+")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_PARTNER = {")": "(", "]": "["}

_AND = re.compile(r"\bAND\b")
_BRACKETS = "square brackets"
_SIGNS = {_BRACKETS: re.compile(r"(?<!\\)\["), "AND": _AND, "BREAK": re.compile(r"\bBREAK\b")}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


@dataclass(frozen=True, slots=True)
class _Switch:
    """``[before:after:when]``; `last` is the last step of `before`."""

    before: Sequence[_Node]
    after: Sequence[_Node]
    last: int


@dataclass(frozen=True, slots=True)
class _Turns:
    """``[a|b|c]``."""

    options: Sequence[Sequence[_Node]]


_Node = Union[str, _Switch, _Turns, "Sequence[_Node]"]


class _AllText(Exception):
    """The whole prompt is plain text: a character outside any form cannot be part of a text."""


def schedule(text: str, steps: int, first_pass_steps: int | None = None) -> list[tuple[int, str]]:
    """Returns (last step, text) pairs: each text applies up to and including its step. Steps count from 1.

    Args:
        text: a prompt without tags. Any text is valid.
        steps: number of sampling steps; the last pair has this step.
        first_pass_steps: for the second of two passes, the steps of the first: whole numbers then count the steps of
            both passes, and fractions go from 0 to 1 in the first pass and from 1 to 2 in this one.

    Raises:
        UsageError: the prompt is so long and changes so often that its texts would exceed `MOST_LETTERS`.
    """
    read = _ReadPrompt.of(text, steps, first_pass_steps)
    if read.nodes is not None:
        _require_room([read])
    return read.texts()


def text_at(texts: Sequence[tuple[int, str]], call: int) -> str:
    """Returns the text of a call of the UNet, counted from 0, of what `schedule` returns.

    As in A1111, which includes a text's last step, the first text has one call more.
    """
    number = bisect_left(texts, call, key=lambda pair: pair[0])
    return texts[min(number, len(texts) - 1)][1]


def require_room(texts: Sequence[str], steps: int) -> None:
    """Raises UsageError if the texts of several prompts together exceed `MOST_LETTERS`."""
    _require_room([_ReadPrompt.of(text, steps, None) for text in texts])


def _require_room(prompts: Sequence[_ReadPrompt]) -> None:
    if sum(len(read.ends) * len(read.text) for read in prompts) > MOST_LETTERS:
        letters, changes = sum(len(read.text) for read in prompts), max(len(read.ends) for read in prompts)
        raise UsageError(
            f"a prompt of {letters:,} characters that changes {changes:,} times is too much to draw",
            hint="shorten it, or use fewer steps",
        )


@dataclass(slots=True)
class _Bracket:
    """An open bracket, and what followed it, split at the separators."""

    sign: str
    parts: list[list[_Node]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def separate(self, sign: str) -> None:
        self.separators.append(sign)
        self.parts.append([])

    def as_text(self) -> list[_Node]:
        """Its content as plain text; forms within it remain."""
        if "|" in self.separators:
            raise _AllText
        nodes: list[_Node] = []
        for sign, part in zip([self.sign, *self.separators], self.parts, strict=True):
            nodes += [sign, *part]
        return nodes


class _Reader:
    """Reads one prompt; `ends` are the steps after which its text may change."""

    def __init__(self, steps: int, first_pass_steps: int | None) -> None:
        self.ends = {steps}
        self._has_turns = False
        self._steps = steps
        self._first_pass_steps = first_pass_steps
        self._top: list[_Node] = []
        self._open: list[_Bracket] = []

    def read(self, text: str) -> Sequence[_Node]:
        """Returns the nodes of a prompt. Raises _AllText if the whole prompt is plain text."""
        position = 0
        while position < len(text):
            token = _TOKEN.match(text, position)
            if token is None:
                raise _AllText
            position = token.end()
            self._take(token[0])
        self._close_as_text()
        return self._top

    def _take(self, sign: str) -> None:
        if sign in ("(", "["):
            self._open.append(_Bracket(sign))
        elif sign in _PARTNER:
            self._close(sign)
        elif sign == "|" and not (self._open and self._open[-1].sign == "["):
            raise _AllText
        elif sign in (":", "|") and self._open:
            self._open[-1].separate(sign)
        else:
            self._add(sign)

    def _close(self, sign: str) -> None:
        bracket = self._open[-1] if self._open else None
        form = self._form(bracket, sign) if bracket and bracket.sign == _PARTNER[sign] else None
        if form is None:
            self._close_as_text()
            self._add(sign)
        else:
            self._open.pop()
            self._add(form)

    def _add(self, node: _Node) -> None:
        (self._open[-1].parts[-1] if self._open else self._top).append(node)

    def _close_as_text(self) -> None:
        """Turns all open brackets into text: a form cannot contain an unmatched bracket."""
        for bracket in self._open:
            self._top += bracket.as_text()
        self._open.clear()

    def _form(self, bracket: _Bracket, sign: str) -> _Node | None:
        parts, separators = bracket.parts, "".join(bracket.separators)
        if not separators or (sign == ")" and separators == ":"):
            return [*bracket.as_text(), sign]
        if sign == "]" and separators.strip("|") == "":
            if not self._has_turns:
                self.ends.update(range(1, self._steps + 1))
            self._has_turns = True
            return _Turns(parts)
        if sign == "]" and separators in (":", "::"):
            last = self._last_step(parts[-1])
            return None if last is None else _Switch(parts[0] if len(parts) == 3 else [], parts[-2], last)
        return None

    def _last_step(self, part: list[_Node]) -> int | None:
        """The step in `part`, recorded as an end; None if it is not a number. With a decimal point it is a fraction."""
        found = _WHEN.fullmatch(part[0]) if len(part) == 1 and isinstance(part[0], str) else None
        if found is None:
            return None
        value = float(found[1])
        if "." in found[1]:
            value = (value - (0.0 if self._first_pass_steps is None else 1.0)) * self._steps
        else:
            value -= self._first_pass_steps or 0
        last = int(max(-1.0, min(value, self._steps)))
        if last >= 1:
            self.ends.add(last)
        return last


@dataclass(frozen=True, slots=True)
class _ReadPrompt:
    """A prompt that was read: its nodes, None where all is plain text, and the steps after which it may change."""

    text: str
    nodes: Sequence[_Node] | None
    ends: Set[int]

    @classmethod
    def of(cls, text: str, steps: int, first_pass_steps: int | None) -> _ReadPrompt:
        reader = _Reader(steps, first_pass_steps)
        try:
            return cls(text, reader.read(text), reader.ends)
        except _AllText:
            return cls(text, None, {steps})

    def texts(self) -> list[tuple[int, str]]:
        """Returns what `schedule` returns."""
        if self.nodes is None:
            return [(end, self.text) for end in self.ends]
        texts: dict[str, str] = {}  # a text that recurs, as in [a|b], is kept once
        return [(end, texts.setdefault(at, at)) for end in sorted(self.ends) for at in [_text_at(end, self.nodes)]]


def _text_at(step: int, nodes: Sequence[_Node]) -> str:
    written = []
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            written.append(node)
        elif isinstance(node, _Switch):
            waiting += reversed(node.before if step <= node.last else node.after)
        elif isinstance(node, _Turns):
            waiting += reversed(node.options[(step - 1) % len(node.options)])
        else:
            waiting += reversed(node)
    return "".join(written)


def split_and(text: str) -> list[tuple[str, float]]:
    """Returns the parts between ``AND`` with their weights; there is at least one part.

    A number after the last colon of a part is its weight, even in a prompt without ``AND``; else its weight is 1.
    Spaces at the end of a part are dropped.
    """
    return [_part(part) for part in _AND.split(text)]


def _part(text: str) -> tuple[str, float]:
    words, colon, number = text.rpartition(":")
    if colon and _NUMBER.fullmatch(number.strip()) and math.isfinite(float(number)):
        return words.rstrip(), float(number)
    return text.rstrip(), 1.0


def pieces_drawn(prompt: str, emphasis: str = "original") -> set[str]:
    """Returns the texts that the encoder may read at some step: of ``[my-:0.5]style (b)`` ``my-style`` and ``b``, too.

    Args:
        prompt: without tags; as a prompt, whose parts have schedules of their own, or a negative one.
        emphasis: that of a request; ``none`` reads brackets as text.
    """
    texts = {prompt}
    for part in {prompt, *(words for words, _ in split_and(prompt))}:
        for first_pass_steps in (None, _MANY_STEPS):
            with suppress(UsageError):  # too long, which is told where the steps are known
                texts.update(text for _, text in schedule(part, _MANY_STEPS, first_pass_steps))
    if emphasis == "none":
        return texts
    return {piece for text in texts for piece, _ in parse_attention(text) if piece != BREAK}


def as_whole_text(prompt: str) -> str:
    """Returns the prompt of a program that knows no weights of parts, so that all of each part is its text.

    ``a sign, 16:9`` ends in a weight here; ``a sign, 16:9:1`` is that text. Tags may stand behind it.
    """
    parts = _AND.split(prompt)
    if not any(map(_ends_in_weight, parts)):
        return prompt
    return " AND ".join(f"{part.strip()}:1" if _ends_in_weight(part) else part.strip() for part in parts)


def plain_elsewhere(
    program: str, prompt: str, negative_prompt: str, *others: str, weakens: bool = False
) -> Iterator[str]:
    """Yields a line for each kind of prompt that has what A1111 reads, and a program as text.

    Args:
        others: names of what the prompt has besides, such as a number at its end: see `as_whole_text`.
        weakens: whether the program weakens words in square brackets as A1111 does; what changes in them is text.
    """
    of_prompt = [*_signs_in(prompt, weakens=weakens), *others]
    # ``AND`` is plain text in A1111's negative prompts too
    of_negative = [name for name in _signs_in(negative_prompt, weakens=weakens) if name != "AND"]
    for kind, found in (("prompt", of_prompt), ("negative prompt", of_negative)):
        if found:
            yield f"its {kind} has {' and '.join(found)}, plain text in {program} and none in A1111"


def _signs_in(text: str, *, weakens: bool) -> Iterator[str]:
    """Yields what a text has that A1111 reads, without weights in round brackets."""
    for name, sign in _SIGNS.items():
        if not sign.search(text):
            continue
        if name != _BRACKETS or not weakens:
            yield name
        elif schedule(text, 1) != [(1, text)]:
            yield "changes such as [a:b:0.5]"


def _ends_in_weight(part: str) -> bool:
    words = split_tags(part.encode("utf-8", "replace").decode()).text.rstrip()
    return _part(words)[0] != words


def explain_prompt(
    text: str, *, steps: int = 20, hires_steps: int | None = None, tokenizer: ClipTokenizer | None = None
) -> dict[str, Any]:
    """Returns a prompt taken apart, as `hnetkit prompt --json` prints it. No network is looked up.

    ``text``, ``attention``, ``composition`` and ``schedule`` are the prompt read by one rule each. ``drawn`` is what
    all rules together give: parts first, then the schedule of each, then the weights of what it says at a step.

    Args:
        text: in A1111's syntax, with tags and comments.
        steps: sampling steps, which the schedules refer to.
        hires_steps: of a second pass; None without one.
        tokenizer: counts; None leaves the counts out.

    Returns:
        ``text`` without tags, ``comments``, ``hypernetworks`` and ``loras`` of the tags, ``attention`` as (text,
        weight), ``composition`` of sub-prompts as (text, weight), ``schedule`` and ``hires_schedule`` as (last step,
        text), ``drawn`` and ``hires_drawn`` as `drawn_texts` has them, ``embeddings``: the textual inversions that the
        tokenizer was given, ``tokenizer``: its name, ``tokens_per_chunk``, ``warnings``.

    Raises:
        UsageError: it is not valid text, the generation data of a picture, or too long for the number of its changes.
    """
    require_prompt_alone(text)
    typed, comments = split_comments(text)
    prompt = split_tags(typed)
    embeddings = tokenizer.embeddings if tokenizer else {}
    unknown = [f"{tag}: not a known kind of tag; it has no effect" for tag in prompt.unknown]
    return {
        "text": prompt.text,
        "comments": list(comments),
        "hypernetworks": [_hypernetwork(tag) for tag in prompt.tags],
        "loras": [{"name": lora.name, "te": lora.te_multiplier, "unet": lora.unet_multiplier} for lora in prompt.loras],
        "attention": parse_attention(prompt.text),
        "composition": split_and(prompt.text),
        "schedule": schedule(prompt.text, steps),
        "hires_schedule": None if hires_steps is None else schedule(prompt.text, hires_steps, steps),
        "drawn": drawn_texts(prompt.text, steps, tokenizer=tokenizer),
        "hires_drawn": None if hires_steps is None else drawn_texts(prompt.text, hires_steps, steps, tokenizer),
        "embeddings": [{"name": name, "vectors": number} for name, number in embeddings.items()],
        "tokenizer": tokenizer.name if tokenizer else None,
        "tokens_per_chunk": tokenizer.room if tokenizer else None,
        "warnings": [*prompt.warnings, *unknown],
    }


def drawn_texts(
    text: str, steps: int, first_pass_steps: int | None = None, tokenizer: ClipTokenizer | None = None
) -> list[dict[str, Any]]:
    """Returns what is drawn at which steps of a pass, in the order in which it begins.

    A sampler that calls the UNet twice a step, such as Heun, changes the text twice as fast as its steps count.

    Args:
        text, steps, first_pass_steps: as for `schedule`.
        tokenizer: counts; None leaves the counts out.

    Returns:
        For each combination of texts ``steps``, as (first, last) of each range from 1 on, and ``parts``: for each
        sub-prompt its ``text``, its ``weight``, ``attention`` as (text, weight), and ``tokens`` and ``chunks``.

    Raises:
        UsageError: as `schedule`.
    """
    parts = split_and(text)
    read = [_ReadPrompt.of(words, steps, first_pass_steps) for words, _ in parts]
    _require_room(read)
    schedules = [one.texts() for one in read]
    described: dict[str, dict[str, Any]] = {}

    def describe(words: str) -> dict[str, Any]:
        if words not in described:
            described[words] = _described(words, tokenizer)
        return described[words]

    ranges: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    # a text ends with the call whose number, from 0, is its last step: the step after it, counted from 1
    ends = sorted({min(end + 1, steps) for texts in schedules for end, _ in texts})
    for first, last in zip([1, *(end + 1 for end in ends)], ends, strict=False):
        at_once = tuple(text_at(texts, first - 1) for texts in schedules)
        ranges.setdefault(at_once, []).append((first, last))
    return [
        {
            "steps": _joined(found),
            "parts": [
                {"text": words, "weight": weight, **describe(words)}
                for words, (_, weight) in zip(at_once, parts, strict=True)
            ],
        }
        for at_once, found in ranges.items()
    ]


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins ranges that follow each other."""
    joined: list[tuple[int, int]] = []
    for first, last in ranges:
        if joined and joined[-1][1] + 1 == first:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return joined


def _described(words: str, tokenizer: ClipTokenizer | None) -> dict[str, Any]:
    """The weights of a text that is drawn, and how much of the encoder's window it fills."""
    attention = parse_attention(words)
    if tokenizer is None:
        return {"attention": attention, "tokens": None, "chunks": None}
    chunks = split_chunks(attention, tokenizer.tokens, tokenizer.room, tokenizer.comma, tokenizer.lengths)
    return {"attention": attention, "tokens": sum(len(chunk.tokens) for chunk in chunks), "chunks": len(chunks)}


def _hypernetwork(tag: Tag) -> dict[str, Any]:
    """A tag as data, without the keys that it does not set."""
    found: dict[str, Any] = {"name": tag.name, "strength": tag.multiplier, **tag.parts}
    found |= {"start": tag.start} if tag.start != 0 else {}
    found |= {"end": tag.end} if tag.end != 1 else {}
    return found | ({"blocks": list(tag.blocks)} if tag.blocks else {})
