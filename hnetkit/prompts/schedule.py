"""A1111's prompt scheduling: texts that change in the course of sampling.

``[from:to:when]`` changes after step `when`, ``[to:when]`` adds, ``[from::when]`` takes away, ``[a|b|c]`` takes turns.
Forms may hold forms, and stand inside ``(...)``, ``(...:1.2)`` and ``[...]``. What fits no form is text. A ``|`` that
is in no ``[...]`` of its own, or a backslash before nothing, makes all of the prompt text.

Every bracket has at most one partner, and whether the two make a form depends only on what is between them. So one
pass with a stack reads a prompt of any depth, in time that grows with its length.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/prompt_parser.py (behaviour only).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Union

from hnetkit.errors import UsageError
from hnetkit.prompts.attention import parse_attention
from hnetkit.prompts.tags import Tag, split_tags

MOST_LETTERS = 10_000_000
"""Of all texts that a prompt becomes: one of 5,000 letters may change at each of 1,000 steps, twice over."""
_TOKEN = re.compile(r"[()\[\]:|]|(?:[^\\()\[\]:|]+|\\.)+")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_PARTNER = {")": "(", "]": "["}

_AND = re.compile(r"\bAND\b")
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
    """A sign that can be no text stands where no form takes it."""


def schedule(text: str, steps: int, first_pass_steps: int | None = None) -> list[tuple[int, str]]:
    """Returns which text counts up to and including which step, steps being counted from 1; the last is `steps`.

    Args:
        text: a prompt without tags. Any text can be read.
        steps: how many sampling steps there are.
        first_pass_steps: given for the second pass of a two-pass picture: whole numbers then count the steps of both
            passes, and fractions go from 0 to 1 in the first pass and from 1 to 2 in this one.

    Raises:
        UsageError: the prompt is so long and changes so often that its texts would have more than `MOST_LETTERS`.
    """
    reader = _Reader(steps, first_pass_steps)
    try:
        nodes = reader.read(text)
    except _AllText:
        return [(steps, text)]
    if len(reader.ends) * len(text) > MOST_LETTERS:
        raise _too_much(len(text), len(reader.ends))
    texts: dict[str, str] = {}  # one that comes again, as in turns, is kept once
    return [(end, texts.setdefault(at, at)) for end in sorted(reader.ends) for at in [_text_at(end, nodes)]]


def require_room(texts: Sequence[str], steps: int) -> None:
    """Raises UsageError where the texts that prompts become together have more letters than `MOST_LETTERS`."""
    changes, letters = 0, 0
    for text in texts:
        reader = _Reader(steps, None)
        with suppress(_AllText):
            reader.read(text)
        changes, letters = max(changes, len(reader.ends)), letters + len(reader.ends) * len(text)
    if letters > MOST_LETTERS:
        raise _too_much(sum(map(len, texts)), changes)


def _too_much(letters: int, changes: int) -> UsageError:
    return UsageError(
        f"a prompt of {letters:,} letters that changes {changes:,} times is too much to draw",
        hint="shorten it, or take fewer steps",
    )


@dataclass(slots=True)
class _Bracket:
    """An open bracket, and what came after it, cut where a separator stood."""

    sign: str
    parts: list[list[_Node]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def separate(self, sign: str) -> None:
        self.separators.append(sign)
        self.parts.append([])

    def as_text(self) -> list[_Node]:
        """What it is where it makes no form; the forms in it stay."""
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
        """Raises _AllText where the whole prompt is."""
        position = 0
        while position < len(text):
            token = _TOKEN.match(text, position)
            if token is None:
                raise _AllText
            position = token.end()
            self._take(token[0])
        self._give_up()
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
            self._give_up()
            self._add(sign)
        else:
            self._open.pop()
            self._add(form)

    def _add(self, node: _Node) -> None:
        (self._open[-1].parts[-1] if self._open else self._top).append(node)

    def _give_up(self) -> None:
        """Makes text of all open brackets: none of them can become a form with one in it that is none."""
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
        """The step that `part` names, noted as an end; None where it is no number. With a point it is a fraction."""
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
    """Returns the parts between ``AND`` with their weights, at least one; a weight that is not written is 1.

    A number after the last colon of a part is its weight, of a prompt without ``AND`` too. Spaces at a part's end
    are dropped.
    """
    return [_part(part) for part in _AND.split(text)]


def _part(text: str) -> tuple[str, float]:
    words, colon, number = text.rpartition(":")
    if colon and _NUMBER.fullmatch(number.strip()) and math.isfinite(float(number)):
        return words.rstrip(), float(number)
    return text.rstrip(), 1.0


def meaning_of(text: str, *, steps: int = 20, hires_steps: int | None = None) -> dict[str, Any]:
    """Returns a prompt taken apart, as `hnetkit prompt --json` prints it.

    Args:
        text: in A1111's language, with tags.
        steps: of sampling, by which schedules are measured.
        hires_steps: of a second pass; None where there is none.

    Returns:
        ``text`` without tags, ``hypernetworks`` and ``loras`` of the tags, ``attention`` as (text, weight),
        ``composition`` of sub-prompts as (text, weight), ``schedule`` and ``hires_schedule`` as (last step, text),
        ``warnings``.

    Raises:
        UsageError: it is no text, or changes more often than any picture has steps.
    """
    prompt = split_tags(text)
    unknown = [f"{tag}: no known kind of tag; it has no effect" for tag in prompt.unknown]
    return {
        "text": prompt.text,
        "hypernetworks": [_hypernetwork(tag) for tag in prompt.tags],
        "loras": [{"name": lora.name, "te": lora.te_multiplier, "unet": lora.unet_multiplier} for lora in prompt.loras],
        "attention": parse_attention(prompt.text),
        "composition": split_and(prompt.text),
        "schedule": schedule(prompt.text, steps),
        "hires_schedule": None if hires_steps is None else schedule(prompt.text, hires_steps, steps),
        "warnings": [*prompt.warnings, *unknown],
    }


def _hypernetwork(tag: Tag) -> dict[str, Any]:
    """A tag as data: what is not named in it is not there."""
    found: dict[str, Any] = {"name": tag.name, "strength": tag.multiplier, **tag.parts}
    found |= {"start": tag.start} if tag.start != 0 else {}
    found |= {"end": tag.end} if tag.end != 1 else {}
    return found | ({"blocks": list(tag.blocks)} if tag.blocks else {})
