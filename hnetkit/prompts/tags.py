"""Comments and tags of a prompt: ``<hypernet:NAME:STRENGTH>`` as A1111 reads it, with arguments that it ignores.

Everything from ``#`` to the end of its line is a comment, in prompts as people type them. A prompt that comes with an
image has none: what is written there was drawn.

``<hypernet:ink:0.8:k=0.5:start=0.2:blocks=down,mid>``: `k`, `v`, `self` and `cross` replace the strength of their
part, `start` and `end` are a window of the sampling steps, `blocks` are the parts of the UNet that it applies to.
``<lora:NAME:TE:UNET>`` is read as well. A malformed tag gives a warning and no network, never an error: prompts come
from strangers.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/extra_networks.py, modules/processing_scripts/comments.py
and extensions-builtin/Lora (behavior only).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from hnetkit.errors import UsageError
from hnetkit.text import is_text, shorten

PARTS = ("k", "v", "self", "cross")
_TAG = re.compile(r"<(\w+):([^>]+)>")
# '<' and '>' as they are, and as web pages, addresses and other keyboards write them
_ESCAPED = r"[%s]|&(?:amp;){0,3}(?:%s|#0{0,4}%d|#[xX]0{0,4}3[%s]);|%%(?:25){0,3}3[%s]"
_OPENING = _ESCAPED % ("<\uff1c\u2039\u3008\u27e8", "lt", 60, "cC", "cC")
_CLOSING = _ESCAPED % (">\uff1e\u203a\u3009\u27e9", "gt", 62, "eE", "eE")
_HALF_A_TAG = re.compile(
    rf"(?:{_OPENING})\s*(?:hypernet|lora|lyco)\b(?:(?!{_OPENING}|{_CLOSING})[^\n]){{0,60}}(?:{_CLOSING})?"
)
_NOT_IN_A_NAME = re.compile(r"[:>\r\n]")
BLOCK = re.compile(r"down|mid|up|(?:down_blocks|up_blocks|mid_block)(?:\.\w+)*", re.ASCII)
_BEGINNING = re.compile(r"<\w*\Z")
_LONGEST_BEGINNING = len("<hypernet:")
# options of prompt files; a picture's settings, where line ends or the spelling of its marks were lost; JSON
_OPTION = re.compile(
    r"(?<!\S)--[A-Za-z]\w*|\b(?i:negative prompt) {0,4}[:\uff1a]|\bSteps: {0,4}\d+(?=, {0,4}[A-Z][\w ]{1,30}:)"
    r'|\{\s{0,9}"\w{1,40}"\s{0,9}:'
)
# what people type into A1111's prompts that it reads as text, and what they should know
_PLAIN_IN_A1111 = {
    re.compile(
        r"\{[^{}|]{0,200}\|[^{}]{0,200}\}|\{\d{1,3}\$\$|(?<!\w)__[A-Za-z*][\w/*-]{0,60}?__(?!\w)"
    ): ", as in A1111 without the extension Dynamic Prompts",
    re.compile(r":\s{0,4}\d{1,2},\d{1,3}\s{0,4}[)\]]"): "; write the number with a point",
    re.compile(
        r"(?<![<\uff1c\u2039\u3008\u27e8;\w])(?:hypernet|lora|lyco):[\w.-]{1,60}"
    ): "; a tag begins with < and ends with >",
    re.compile(r"\bembedding:[\w.-]{1,60}"): "; a textual inversion is written by its name alone",
    # InvokeAI's, Midjourney's and NovelAI's; [red::5] is A1111's own
    re.compile(
        r"\w{1,40}\+\+{1,9}|\)(?:\+{1,9}|--{1,9}|\d?\.\d{1,4})(?=[\s,]|$)|\w{0,40}[^\W\d_]::-?\d{1,3}(?![\d.\]])"
        r"|(?<![{|\w])\d\.\d{1,3}::\s?\w{1,40}|\{\{[^{}|\"]{1,60}\}"
    ): "; a weight is written (word:1.2)",
    re.compile(
        r"\b(?:ADD(?:COMM|BASE|COL|ROW)|AND_(?:SALT|PERP|TOPK))\b|\bMASK\("
    ): ", as in A1111 without the extension",
}
_LORA_KINDS = frozenset({"lora", "lyco"})
_SHOWN = 200  # characters of a tag or an argument in a warning
_SHOWN_OF_ANOTHER = 80  # of a tag that another program did not read


@dataclass(frozen=True, slots=True)
class Tag:
    """One hypernetwork that a prompt asks for.

    Attributes:
        name: a file stem or alias, exactly as written.
        multiplier: its strength; finite, may be negative.
        k, v, self_, cross: another strength for this part; None if not given.
        start, end: the window of the sampling steps, as fractions.
        blocks: ``down``, ``mid``, ``up`` or names such as ``up_blocks.1``: it applies to these only; () means all.
        order: the named parts as written, if that differs from the order of `PARTS`. Of two that overlap, such as
            `k` and `self`, the later one wins.
    """

    name: str
    multiplier: float = 1.0
    k: float | None = None
    v: float | None = None
    self_: float | None = None
    cross: float | None = None
    start: float = 0.0
    end: float = 1.0
    blocks: tuple[str, ...] = ()
    order: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, float]:
        """Named part -> its strength, in the order in which they apply."""
        given = {"k": self.k, "v": self.v, "self": self.self_, "cross": self.cross}
        return {part: value for part in dict.fromkeys((*self.order, *PARTS)) if (value := given[part]) is not None}

    @property
    def self_k(self) -> float | None:
        """The strength for K of self-attention if a named part sets it, else None; likewise the next three."""
        return self._replaced("self", "k")

    @property
    def self_v(self) -> float | None:
        return self._replaced("self", "v")

    @property
    def cross_k(self) -> float | None:
        return self._replaced("cross", "k")

    @property
    def cross_v(self) -> float | None:
        return self._replaced("cross", "v")

    def _replaced(self, kind: str, side: str) -> float | None:
        found = [value for part, value in self.parts.items() if part in (kind, side)]
        return found[-1] if found else None

    def __str__(self) -> str:
        """The tag with its multiplier in plain digits, because other readers know no default and no exponent."""
        named = [f"{part}={plain_number(value)}" for part, value in self.parts.items()]
        named += [f"start={plain_number(self.start)}"] if self.start != 0 else []
        named += [f"end={plain_number(self.end)}"] if self.end != 1 else []
        named += [f"blocks={','.join(self.blocks)}"] if self.blocks else []
        return f"<hypernet:{':'.join([self.name, plain_number(self.multiplier), *named])}>"


@dataclass(frozen=True, slots=True)
class LoraTag:
    """One LoRA that a prompt asks for: ``<lora:NAME>``, ``<lora:NAME:TE>``, ``<lora:NAME:TE:UNET>``.

    Attributes:
        name: exactly as written.
        te_multiplier: its strength in the text encoder.
        unet_multiplier: its strength in the UNet; by default the text encoder's.
    """

    name: str
    te_multiplier: float = 1.0
    unet_multiplier: float = 1.0


@dataclass(frozen=True, slots=True)
class TaggedPrompt:
    """A prompt taken apart.

    Attributes:
        text: the prompt without any tag, for the text encoder.
        tags: the hypernetworks in the order written, which is the order of application.
        written: the prompt as stored with an image, with hypernetwork tags in normal form; other tags and malformed
            ones are unchanged.
        unknown: tags of other kinds, which A1111 removes from the text without effect.
        loras: in the order written.
        warnings: one for each part that is malformed or has no effect, with tag and column.
    """

    text: str
    tags: tuple[Tag, ...]
    written: str
    unknown: tuple[str, ...]
    loras: tuple[LoraTag, ...] = ()
    warnings: tuple[str, ...] = ()

    def adding(self, more: tuple[Tag, ...]) -> TaggedPrompt:
        """Returns the prompt with `more` tags at its end, stacked after its own.

        Raises:
            UsageError: a name contains a character that would end it in a tag.
        """
        for tag in more:
            if not fits_in_tag(tag.name):
                raise UsageError(
                    f"{tag.name}: a tag cannot contain this name, because ':', '>' and line ends are special there",
                    hint="rename the file, or give the network an alias with `hnetkit tag`",
                )
        written = " ".join([self.written, *map(str, more)]).lstrip() if more else self.written
        return replace(self, tags=(*self.tags, *more), written=written)

    def replacing(self, tags: Sequence[Tag | None]) -> TaggedPrompt:
        """Returns the prompt with another tag in the place of each of its own; None removes one.

        Where what stands before a removed one could be the beginning of a tag, a space takes its place.
        """
        pieces, position, before = [], 0, ""
        for old, new in zip(self.tags, tags, strict=True):
            begin = self.written.index(str(old), position)
            before = (before + self.written[position:begin])[-_LONGEST_BEGINNING:]
            gap = " " if _BEGINNING.search(before) else ""
            pieces += [self.written[position:begin], gap if new is None else str(new)]
            before += pieces[-1]
            position = begin + len(str(old))
        written = "".join([*pieces, self.written[position:]])
        return replace(self, written=written, tags=tuple(tag for tag in tags if tag is not None))

    def renaming(self, names: Iterable[str]) -> TaggedPrompt:
        """Returns the prompt with these names in its tags."""
        return self.replacing([replace(tag, name=name) for tag, name in zip(self.tags, names, strict=True)])


def without_tags(text: str) -> str:
    """Returns a text without tags of any kind, with a space for each: none comes about where another is taken out."""
    end = text.rfind(">") + 1  # see `split_tags`
    return _TAG.sub(" ", text[:end]) + text[end:]


def unread_tags(text: str, program: str) -> Iterator[str]:
    """Yields a line for each tag in a prompt of a program that reads none; `without_tags` leaves them out."""
    matches = _TAG.finditer(text, 0, text.rfind(">") + 1)  # see `split_tags`
    for tag in dict.fromkeys(match[0][:_SHOWN_OF_ANOTHER] for match in matches):
        yield f"{tag}: {program} does not read tags; it is left out"


def split_comments(prompt: str) -> tuple[str, tuple[str, ...]]:
    """Splits a typed prompt into what is drawn and its comments. A line that begins with ``#`` is gone altogether."""
    kept, comments = [], []
    for line in prompt.split("\n"):
        text, mark, comment = line.partition("#")
        if mark:
            comments.append(mark + comment)
        if text or not mark:
            kept.append(text)
    return "\n".join(kept), tuple(comments)


def options_in(prompt: str) -> str | None:
    """Returns the words of a prompt that are options elsewhere, and here words; else None.

    Those of prompt files of kohya's scripts, as ``--w`` is, of infotexts, as ``Negative prompt:`` and ``Steps: 20``
    are, and of programs that write JSON.
    """
    found = list(dict.fromkeys(_OPTION.findall(prompt)))
    return shorten(", ".join(found), _SHOWN) if found else None


def plain_in_a1111(prompt: str) -> Iterator[str]:
    """Yields a line for each kind of sign in a typed prompt that people mean, and A1111 reads as text."""
    for sign, advice in _PLAIN_IN_A1111.items():
        if found := list(dict.fromkeys(sign.findall(prompt))):
            yield f"{shorten(', '.join(found), _SHOWN)} in the prompt: plain words here{advice}"


def split_tags(prompt: str) -> TaggedPrompt:
    """Splits a prompt into text and tags. Spaces are part of a name; unknown arguments are ignored.

    Raises:
        UsageError: the prompt is not valid text.
    """
    require_text(prompt)
    reader = _TagReader()
    position = 0
    # each '<' after the last '>' would be searched to the end of the prompt in vain
    for match in _TAG.finditer(prompt, 0, prompt.rfind(">") + 1):
        reader.take_text(prompt, position, match.start())
        reader.take_tag(match)
        position = match.end()
    reader.take_text(prompt, position, len(prompt))
    return TaggedPrompt(
        "".join(reader.text),
        tuple(reader.tags),
        "".join(reader.written),
        tuple(reader.unknown),
        tuple(reader.loras),
        tuple(reader.warnings),
    )


def problems_of_stack(text: str) -> list[str]:
    """Returns what has no effect in a text that should be tags of hypernetworks and nothing else."""
    tagged = split_tags(text)
    words = tagged.text.strip(" ,\r\n")
    others = [*([excerpt(words)] if words else []), *tagged.unknown]
    others += [f"<lora:{excerpt(lora.name)}>" for lora in tagged.loras]
    return [*tagged.warnings, *(f"{other} is no tag of a hypernetwork, and has no effect" for other in others)]


class _Malformed(Exception):
    """A tag that gives no network; the message says why."""


@dataclass(slots=True)
class _TagReader:
    """Collects the parts of a prompt. `line` and `line_start` belong to the position `counted`, for warnings."""

    text: list[str] = field(default_factory=list)
    tags: list[Tag] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    loras: list[LoraTag] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    line: int = 1
    line_start: int = 0
    counted: int = 0

    def take_text(self, prompt: str, start: int, end: int) -> None:
        self.text.append(prompt[start:end])
        self.written.append(prompt[start:end])
        for half in _HALF_A_TAG.finditer(prompt, start, end):
            self._warn(prompt, half.start(), half[0].rstrip(), "not <hypernet:NAME:STRENGTH>, so it stays in the text")

    def take_tag(self, match: re.Match[str]) -> None:
        kind, arguments = match[1], match[2].split(":")
        written = match[0]
        try:
            if kind == "hypernet":
                tag, ignored = _tag(arguments)
                self.tags.append(tag)
                written = str(tag)
            elif kind in _LORA_KINDS:
                lora, ignored = _lora(arguments)
                self.loras.append(lora)
            else:
                self.unknown.append(match[0])
                ignored = []
        except _Malformed as error:
            self._warn(match.string, match.start(), match[0], f"{error}; the tag is left out")
        else:
            for argument in ignored:
                self._warn(match.string, match.start(), match[0], f"{excerpt(argument)!r} has no effect")
        self.written.append(written)

    def _warn(self, prompt: str, position: int, tag: str, message: str) -> None:
        self.line += prompt.count("\n", self.counted, position)
        self.line_start = max(self.line_start, prompt.rfind("\n", self.counted, position) + 1)
        self.counted = position
        column = position - self.line_start + 1
        where = f"line {self.line}, column {column}" if self.line > 1 else f"column {column}"
        self.warnings.append(f"{where}: {excerpt(tag)}: {message}")


def _tag(arguments: list[str]) -> tuple[Tag, list[str]]:
    """Returns the tag, and its arguments that have no effect, as in A1111."""
    name, *rest = arguments
    if not name:
        raise _Malformed("no name")
    if rest and "=" in rest[0]:
        raise _Malformed(f"write the strength first, as in <hypernet:{excerpt(name)}:1:{excerpt(rest[0])}>")
    tag = Tag(name, _number(rest[0]) if rest else 1.0)
    parts: dict[str, float] = {}
    ignored = []
    for argument in rest[1:]:
        key, _, value = argument.partition("=")
        if "=" not in argument:
            ignored.append(argument)
        elif key in PARTS:
            parts.pop(key, None)
            parts[key] = _number(value)
        elif key == "start":
            tag = replace(tag, start=_number(value))
        elif key == "end":
            tag = replace(tag, end=_number(value))
        elif key == "blocks":
            tag = replace(tag, blocks=tuple(_blocks(value)))
        else:
            ignored.append(argument)
    if not 0 <= tag.start <= tag.end <= 1:
        raise _Malformed(f"start={tag.start:g} and end={tag.end:g} are not a window within 0 to 1")
    order = () if list(parts) == [part for part in PARTS if part in parts] else tuple(parts)
    k, v, self_, cross = map(parts.get, PARTS)
    return replace(tag, k=k, v=v, self_=self_, cross=cross, order=order), ignored


def _blocks(text: str) -> Iterator[str]:
    for block in (block.strip() for block in text.split(",")):
        if not BLOCK.fullmatch(block):
            raise _Malformed(f"{excerpt(block)!r} is not a block: use down, mid, up, or a name such as up_blocks.1")
        yield block


def _lora(arguments: list[str]) -> tuple[LoraTag, list[str]]:
    """Reads a LoRA tag as A1111 does: an argument with one '=' is a named one, at any position."""
    named = dict(argument.split("=") for argument in arguments if argument.count("=") == 1)
    name, *numbers = [argument for argument in arguments if argument.count("=") != 1] or [""]
    if not name:
        raise _Malformed("no name")
    te_multiplier = _number(named.get("te", numbers[0] if numbers else "1"))
    unet = named.get("unet", numbers[1] if len(numbers) > 1 else None)
    unet_multiplier = te_multiplier if unet is None else _number(unet)
    ignored = [f"{key}={value}" for key, value in named.items() if key not in ("te", "unet")]
    return LoraTag(name, te_multiplier, unet_multiplier), [*numbers[2:], *ignored]


def _number(text: str) -> float:
    value = finite_number(text)
    if value is None:
        raise _Malformed(f"{excerpt(text)!r} is not a number")
    return value


def excerpt(text: str) -> str:
    """Returns a part of a prompt for a message; a long one ends in an ellipsis."""
    return shorten(text, _SHOWN)


def require_text(prompt: str) -> None:
    """Raises UsageError if a prompt is no text, or contains bytes that the terminal could not decode."""
    if not isinstance(prompt, str):
        raise UsageError(f"a prompt is a text, and no {type(prompt).__name__}", hint="draw one prompt after another")
    if not is_text(prompt):
        raise UsageError(f"{excerpt(prompt)}: the prompt is not valid text", hint="check the terminal's encoding")


def fits_in_tag(name: str) -> bool:
    """Whether a tag can contain a name: no character of it would end the name there."""
    return not _NOT_IN_A_NAME.search(name)


def finite_number(text: str) -> float | None:
    """Returns the number that a text is; None if it is not one, or not a finite one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def plain_number(value: float) -> str:
    """Returns the shortest decimal digits that read back as `value`, without an exponent: ``"0.8"``, ``"1"``."""
    text = format(Decimal(repr(float(value))), "f")
    return text.removesuffix(".0")
