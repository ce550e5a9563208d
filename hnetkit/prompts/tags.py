"""Hypernetwork tags in a prompt: `<hypernet:NAME:MULTIPLIER>`, read as A1111 reads them.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/extra_networks.py (behaviour only).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal

from hnetkit.errors import UsageError

_TAG = re.compile(r"<(\w+):([^>]+)>")
_NOT_IN_A_NAME = re.compile(r"[:>\r\n]")
_UNREAD = re.compile(r"[()\[\]]|\b(?:AND|BREAK)\b")
_OTHER_NETWORKS = frozenset({"lora", "lyco"})


@dataclass(frozen=True, slots=True)
class Tag:
    """One network that a prompt asks for.

    Attributes:
        name: a file stem or alias, exactly as written.
        multiplier: its strength; finite, may be negative.
    """

    name: str
    multiplier: float = 1.0

    def __str__(self) -> str:
        """The tag with its multiplier spelled out in plain digits: other readers know no default and no exponent."""
        return f"<hypernet:{self.name}:{plain_number(self.multiplier)}>"


@dataclass(frozen=True, slots=True)
class TaggedPrompt:
    """A prompt taken apart.

    Attributes:
        text: what the text encoder reads: the prompt without any tag.
        tags: the hypernetworks in the order written, which is the order of application.
        written: the prompt with its hypernetwork tags in normal form, as it is stored with a picture.
        unknown: other tags, which A1111 drops from the text without effect.
    """

    text: str
    tags: tuple[Tag, ...]
    written: str
    unknown: tuple[str, ...]

    def adding(self, more: tuple[Tag, ...]) -> TaggedPrompt:
        """Returns the prompt with `more` tags at its end, stacked after its own.

        Raises:
            UsageError: a name holds a sign that ends a name in a tag.
        """
        for tag in more:
            if _NOT_IN_A_NAME.search(tag.name):
                raise UsageError(
                    f"{tag.name}: a tag cannot hold this name, because ':', '>' and line ends have a meaning there",
                    hint="rename the file, or give the network an alias with `hnetkit tag`",
                )
        written = " ".join([self.written, *map(str, more)]).lstrip() if more else self.written
        return TaggedPrompt(self.text, (*self.tags, *more), written, self.unknown)


def split_tags(prompt: str) -> TaggedPrompt:
    """Takes the tags out of a prompt. Arguments after the multiplier are ignored; spaces are part of a name.

    Raises:
        UsageError: a multiplier is not a finite number (A1111 then drops every hypernetwork, silently), a tag asks
            for a kind of network that is not applied here (``<lora:...>``), or the prompt is not text.
    """
    require_text(prompt)
    tags: list[Tag] = []
    unknown: list[str] = []

    def normal_form(match: re.Match[str]) -> str:
        kind, arguments = match.groups()
        if kind in _OTHER_NETWORKS:
            raise UsageError(f"{match[0]}: only hypernetworks are applied here", hint="take the tag out of the prompt")
        if kind != "hypernet":
            unknown.append(match[0])
            return match[0]
        tags.append(_tag(match[0], arguments.split(":")))
        return str(tags[-1])

    written = _TAG.sub(normal_form, prompt)
    return TaggedPrompt(_TAG.sub("", prompt), tuple(tags), written, tuple(unknown))


def _tag(source: str, arguments: list[str]) -> Tag:
    try:
        multiplier = float(arguments[1]) if len(arguments) > 1 else 1.0
    except ValueError:
        multiplier = math.nan
    if not math.isfinite(multiplier):
        raise UsageError(f"{source}: {arguments[1]!r} is not a number", hint=f"<hypernet:{arguments[0]}:1>")
    return Tag(arguments[0], multiplier)


def require_text(prompt: str) -> None:
    """Raises UsageError where a prompt holds bytes that the terminal could not make text of."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{prompt}: the prompt is not valid text", hint="check the terminal's encoding") from error


def plain_number(value: float) -> str:
    """Returns the shortest decimal digits that read back as `value`, without an exponent: ``"0.8"``, ``"1"``."""
    text = format(Decimal(repr(float(value))), "f")
    return text.removesuffix(".0")


def has_unread_syntax(text: str) -> bool:
    """Whether `text` uses A1111's weights, schedules or composition, which are passed on here as plain words."""
    return _UNREAD.search(text) is not None
