"""A1111's infotext: the generation parameters that an image carries as text.

Layout: the prompt; ``Negative prompt: ...``; one line ``Key: value, Key: value``, which begins with ``Steps``. A value
with a comma, a colon or a line end is a JSON string. ``Hashes`` comes last and is a bare JSON object, because sites
look for one.

Other programs and extensions spread the settings over several lines, put more text behind them (the templates of
sd-dynamic-prompts), or separate them by ``|`` (SD.Next of 2023). So they are looked for in every line.

Hypernetworks appear as tags of the prompt (since January 2023), as the one selected in the settings (``Hypernet``, its
strength and its hash, 2022), or in the lists of an extension (``Hypernetworks``).

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/infotext_utils.py, civitai/sd_civitai_extension,
antis0007/sd-webui-multiple-hypernetworks, adieyal/sd-dynamic-prompts and vladmandic/automatic (behavior only).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import NamedTuple

from hnetkit.errors import UsageError
from hnetkit.prompts.tags import excerpt, finite_number, fits_in_tag, split_tags

MOST_MENTIONED = 100
"""Networks of one image that are read; real stacks are far smaller."""

_MOST_WARNINGS = 100

_PARAMETER = re.compile(r'(\w[\w \-/]{1,99}):[^\S\n]*("(?:\\.|[^\\"])+"|[^,\n]*)(?:,|$)', re.MULTILINE)
_SETTINGS = re.compile(r"Steps:\s*\d+\b")
# a line of SD.Next that may precede them
_BEFORE_SETTINGS = re.compile(
    r"(?=.*\bVersion:|.*\bApp: *SD\.Next|.*\bBackend: *(?:Original|Diffusers))(?:Version|Pipeline|App|Backend):.*,"
)
_VERSION = re.compile(r"(?:^|[,|] *)Version:")
_PIPES = re.compile(r" \| (?=\w[\w \-/]{1,99}:)")
_TEMPLATE = re.compile(r"(?:Negative )?Template:")
_NEGATIVE_TEMPLATE = re.compile(r"^Negative Template:", re.MULTILINE)
NEGATIVE = "Negative prompt:"
"""The mark at the beginning of the negative prompt."""

_NEGATIVES = re.compile(rf"(?:{NEGATIVE}\s*)+")
_FEWEST_PARAMETERS = 3
_BARE_JSON = ("Hashes", "Civitai resources", "Civitai metadata")  # keys whose values are JSON without quotes
_LISTS = ("Hypernetworks", "Hypernetworks Strengths")
_BARE_LIST = re.compile(r'[^",:\n]*(?:,[^,:\n]*(?=,|$))*(?:,|$)', re.MULTILINE)
# A1111's keys before `Hashes` -> the kind of resource, as `Hashes` names it
_OLDER_HASHES = {"Lora hashes": "lora", "TI hashes": "embed", "Hypernet hashes": "hypernet"}

KINDS = {
    **dict.fromkeys(("lora", "locon", "loha", "lokr", "lyco", "lycoris", "dora"), "lora"),
    **dict.fromkeys(("hypernet", "hypernetwork"), "hypernet"),
    **dict.fromkeys(("embed", "embedding", "textualinversion"), "embed"),
}
"""What programs and sites call a kind of resource, in small letters -> A1111's name of it in ``Hashes``."""

_HEX = re.compile(r"[0-9a-f]{8,64}")
_HASH_OF_NOTHING = "e3b0c442"  # the old 8-digit hash of every file under 1 MiB
_NAME_AND_HASH = re.compile(r"(.+)\(([0-9a-fA-F]{8})\)")


class Infotext(NamedTuple):
    """The parsed infotext.

    Attributes:
        prompt: with its tags; its lines are trimmed. Networks selected outside the prompt are tags at its end.
        negative_prompt: empty if there is none.
        parameters: every key of the settings, with its value as text.
        warnings: what was lost or guessed in the conversion, one line each.
    """

    prompt: str
    negative_prompt: str
    parameters: dict[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def second_pass(self) -> Infotext | None:
        """What it says of a second pass with a prompt of its own; None if there is none."""
        if "Hires prompt" not in self.parameters:
            return None
        hashes = {key: value for key, value in self.parameters.items() if key in ("Hashes", *_OLDER_HASHES)}
        return Infotext(self.parameters["Hires prompt"], self.parameters.get("Hires negative prompt", ""), hashes)

    @property
    def hashes(self) -> dict[str, str]:
        """Resource (``"model"``, ``"hypernet:NAME"``, ``"lora:NAME"``) -> hex digits; {} if none are given.

        From ``Hashes`` and from older keys, such as ``Lora hashes``. Kinds and digits are as A1111 writes them: some
        programs write ``LORA:NAME``, and digits in capitals as Civitai does.
        """
        older = {
            f"{kind}:{name}": digits
            for key, kind in _OLDER_HASHES.items()
            for name, digits in _pairs(self.parameters.get(key, ""))
        }
        found = _json_object(self.parameters.get("Hashes", ""), 0)
        given = older | {key: value for key, value in (found[0] if found else {}).items() if isinstance(value, str)}
        return {_in_a1111s_words(resource): _in_small_letters(digits) for resource, digits in given.items()}


class Mention(NamedTuple):
    """A hypernetwork that an infotext mentions.

    Attributes:
        name: a file's stem or an alias, without the ``(1a2b3c4d)`` that lists of 2022 put after it.
        strength: its multiplier; finite.
        hash: 8 to 64 hex digits in lower case: the old hash (8), or the beginning of the sha256; None if not given.
    """

    name: str
    strength: float
    hash: str | None


class Mentions(NamedTuple):
    """The hypernetworks of an infotext in stacking order, and warnings about how they are written."""

    networks: tuple[Mention, ...]
    warnings: tuple[str, ...]


def write(
    prompt: str, negative_prompt: str, parameters: Mapping[str, object], hashes: Mapping[str, str] | None = None
) -> str:
    """Returns the infotext of an image.

    Args:
        prompt: with its hypernetwork tags.
        negative_prompt: omitted if empty.
        parameters: in the order to write; values of None are omitted.
        hashes: resource -> the first 10 hex digits of the file's sha256.
    """
    fields = [f"{key}: {_quoted(str(value))}" for key, value in parameters.items() if value is not None]
    if hashes:
        fields.append(f"Hashes: {json.dumps(dict(hashes), ensure_ascii=False)}")
    negative = f"\n{NEGATIVE} {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{', '.join(fields)}".strip()


def parse(text: str) -> Infotext:
    """Parses an infotext. Any text is valid, if only as a prompt without parameters.

    The parameters are those after the last line that begins with ``Steps: N`` and has, together with the lines that
    continue it, three of them; without such a line, those of the last line, by A1111's rule. Text behind them is left
    out with a warning.

    A network in the keys of 2022 (``Hypernet`` and its strength) is also returned as a tag at the end of the prompt. A
    last line with three weights, such as ``(fog:0.7)``, stays part of the prompt; A1111 reads it as parameters and
    loses it.
    """
    lines = [line.strip() for line in text.strip().split("\n")]
    divided = _divide_at_steps(lines) or _divide_at_last_line(lines)
    prompt, negative = _prompts(divided.prompts)
    behind = excerpt(" ".join(divided.behind.split()))
    warnings = [f"text behind the settings is left out: {behind}"] if behind else []
    if divided.unread:
        unread = excerpt(", ".join(divided.unread))
        advice = "; write a decimal comma as a point" if any(part.isdecimal() for part in divided.unread) else ""
        warnings.append(f"text between the settings is left out: {unread}{advice}")
    if any(_SETTINGS.match(line) and len(_parameters(line).found) >= _FEWEST_PARAMETERS for line in divided.prompts):
        warnings.append(
            "the text has the settings of several pictures: those of the last are read, and all before them is prompt; "
            "give the text of one picture"
        )
    return with_selected_networks(Infotext(prompt, negative, divided.parameters, tuple(warnings)))


def is_generation_data(text: str) -> bool:
    """Whether a text is an infotext with settings, and no mere prompt: A1111 copies it to the clipboard."""
    return "Steps" in parse(text).parameters


def require_prompt_alone(text: str) -> None:
    """Raises UsageError if a prompt is the generation data of a picture, whose settings would be drawn as words."""
    if is_generation_data(text):
        hint = "give the prompt alone, and its settings as options"
        raise UsageError("a prompt is the generation data of a picture, with settings in it", hint=hint)


def with_selected_networks(read: Infotext) -> Infotext:
    """Returns an infotext whose prompt ends with the tags of the networks that its parameters select."""
    added = _tags_of(_selected(read.parameters))
    return read if read.prompt.endswith(added) else read._replace(prompt=read.prompt + added)


def hypernetworks_of(read: Infotext) -> Mentions:
    """Returns the hypernetworks of an image in stacking order: those of its tags, then the selected ones.

    Those after the first `MOST_MENTIONED` are left out, with a warning.
    """
    selected = list(_selected(read.parameters))
    own = read.prompt.removesuffix(_tags_of(selected))
    tagged = split_tags(own.encode("utf-8", "replace").decode())
    hashes = read.hashes
    warnings = [*read.warnings, *tagged.warnings]
    networks = []
    count = len(tagged.tags) + len(selected)
    if count > MOST_MENTIONED:
        warnings.append(f"{count:,} hypernetworks are named; only the first {MOST_MENTIONED} are read")
    for tag in tagged.tags[:MOST_MENTIONED]:
        name, digits = _name_and_hash(tag.name)
        known = hashes.get(f"hypernet:{tag.name}") or hashes.get(f"hypernet:{name}") or digits
        networks.append(Mention(name, tag.multiplier, _hex(known, name, warnings)))
    for name, strength, digits in selected[: max(0, MOST_MENTIONED - len(networks))]:
        number = finite_number(strength)
        if number is None:
            warnings.append(f"{excerpt(name)}: its strength {strength[:40]!r} is not a number; 1 is used")
        known = _hex(digits or hashes.get(f"hypernet:{name}"), name, warnings)
        networks.append(Mention(name, 1.0 if number is None else number, known))
    if len(warnings) > _MOST_WARNINGS:
        warnings[_MOST_WARNINGS:] = [f"{len(warnings) - _MOST_WARNINGS:,} more warnings are left out"]
    return Mentions(tuple(networks), tuple(warnings))


class _Selected(NamedTuple):
    """A network of the parameters, with its strength as written."""

    name: str
    strength: str
    hash: str | None


def _selected(parameters: Mapping[str, str]) -> Iterator[_Selected]:
    strength = parameters.get("Hypernet strength") or parameters.get("Hypernetwork strength") or "1.0"
    ones = [(parameters.get("Hypernet", ""), strength, parameters.get("Hypernet hash"))]
    names, strengths = ([part.strip() for part in parameters.get(key, "").split(",")] for key in _LISTS)
    ones += [(name, strength or "1.0", None) for name, strength in zip_longest(names, strengths, fillvalue="")]
    for listed, strength, digits in ones:
        if listed.strip() not in ("", "None"):
            name, in_name = _name_and_hash(listed.strip())
            yield _Selected(name, strength.strip(), digits or in_name)


def _tags_of(selected: Iterable[_Selected]) -> str:
    """The equivalent tags, except for names that no tag can hold."""
    return "".join(
        f"<hypernet:{one.name}:{'1.0' if finite_number(one.strength) is None else one.strength}>"
        for one in selected
        if fits_in_tag(one.name)
    )


def _name_and_hash(listed: str) -> tuple[str, str | None]:
    match = _NAME_AND_HASH.fullmatch(listed)
    return (match[1], match[2]) if match else (listed, None)


def _hex(digits: str | None, name: str, warnings: list[str]) -> str | None:
    if not digits:
        return None
    folded = _in_small_letters(digits)
    if not _HEX.fullmatch(folded):
        warnings.append(f"{excerpt(name)}: {digits[:80]!r} is not a hash")
        return None
    return None if folded.startswith(_HASH_OF_NOTHING) else folded


def _in_a1111s_words(resource: str) -> str:
    """Returns ``kind:NAME`` with A1111's name of the kind; what is not known stays as it is."""
    kind, colon, name = resource.partition(":")
    return f"{KINDS.get(kind.casefold(), kind)}:{name}" if colon else resource


def _in_small_letters(digits: str) -> str:
    """Returns a hash as A1111 writes it; what is none stays as it is."""
    folded = digits.strip().lower()
    return folded if _HEX.fullmatch(folded) else digits


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """The ``name: hash, name: hash`` of a key before `Hashes`."""
    for part in text.split(","):
        name, colon, digits = part.rpartition(":")
        if colon:
            yield name.strip(), digits.strip()


def _prompts(lines: list[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in lines:
        if marks := _NEGATIVES.match(line):
            part, line = negative, line[marks.end() :]
        part.append(line)
    return "\n".join(prompt).strip(), "\n".join(negative).strip()


class _Divided(NamedTuple):
    """The parts of an infotext: the lines of both prompts, the parameters, what is between and behind them."""

    prompts: list[str]
    parameters: dict[str, str]
    behind: str = ""
    unread: tuple[str, ...] = ()


def _divide_at_steps(lines: list[str]) -> _Divided | None:
    """Divides an infotext at its last line of settings that begins with the steps; None if it has none."""
    starts = [number for number, line in enumerate(lines) if _SETTINGS.match(line)]
    if not starts:
        return None
    after = range(starts[0] + 1, len(lines))
    templates = next((number for number in after if _TEMPLATE.match(lines[number])), len(lines))
    ends = {*starts, templates, *(number for number in after if lines[number].startswith(NEGATIVE))}
    for start in (number for number in reversed(starts) if number < templates):
        end = next(number for number in range(start + 1, len(lines) + 1) if number in ends or number == len(lines))
        above = start
        is_whole = any(map(_VERSION.search, lines[start:end]))  # then a line above it is a prompt's
        while not is_whole and above and _BEFORE_SETTINGS.fullmatch(lines[above - 1]):
            above -= 1
        found, behind, unread = _parameters(
            "\n".join([*lines[above:start], _with_commas(lines[start]), *lines[start + 1 : end]])
        )
        if len(found) < _FEWEST_PARAMETERS:
            continue
        rest = lines[end:templates]
        prompts = [*lines[:above], *rest] if rest and rest[0].startswith(NEGATIVE) else lines[:above]
        if len(prompts) == above:
            behind = "\n".join([behind, *rest])
        return _Divided(prompts, found | _templates(lines[templates:]), behind.strip(), unread)
    return None


def _divide_at_last_line(lines: list[str]) -> _Divided:
    """Divides an infotext by A1111's rule: its last line holds the parameters if it has three of them."""
    *prompts, last = lines
    if _PARAMETER.match(last) and not last.startswith(NEGATIVE):
        found, _, unread = _parameters(last)
        if len(found) >= _FEWEST_PARAMETERS:
            return _Divided(prompts, found, unread=unread)
    return _Divided(lines, {})


def _with_commas(line: str) -> str:
    """Returns a line of settings with commas between them, where it has ``|``."""
    first, *others = _PIPES.split(line)
    if not others or "," in first:
        return line
    pairs = (pair.partition(":") for pair in (first, *others))
    return ", ".join(f"{key}: {_quoted(value.strip())}" for key, _, value in pairs)


def _templates(lines: list[str]) -> dict[str, str]:
    """Returns the templates of sd-dynamic-prompts, from which the prompts were made; {} without lines."""
    positive, *negative = _NEGATIVE_TEMPLATE.split("\n".join(lines), maxsplit=1)
    templates = {"Template": positive.removeprefix("Template:"), "Negative Template": "".join(negative)}
    return {key: text.strip() for key, text in templates.items() if text.strip()}


class _Parameters(NamedTuple):
    """The parameters at the beginning of a text, the text behind them, and what is none within their lines."""

    found: dict[str, str]
    behind: str
    unread: tuple[str, ...]


def _parameters(text: str) -> _Parameters:
    """Returns the parameters at the beginning of a text. A line that does not begin with one ends them."""
    found: dict[str, str] = {}
    unread: list[str] = []
    position = 0
    while match := _PARAMETER.search(text, position):
        _, *later_lines = text[position : match.start()].split("\n")
        if any(map(str.strip, later_lines)):
            break
        unread.append(text[position : match.start()])
        key, value = match.groups()
        position = match.end()
        end = _end_of_json(text, match.start(2)) if key in _BARE_JSON else None
        if end:
            value, position = text[match.start(2) : end], end
        elif key in _LISTS and (items := _BARE_LIST.match(text, match.start(2))):
            value, position = items[0].rstrip(","), items.end()
        found[key] = _unquoted(value)
    rest, _, behind = text[position:].partition("\n")
    stripped = (part.strip(", \n") for part in (*unread, rest))
    return _Parameters(found, behind.strip(), tuple(filter(None, stripped)))


def _end_of_json(text: str, start: int) -> int | None:
    """Returns the end of the JSON object or list at `start`; None if there is none."""
    if text[start : start + 1] not in ("{", "["):
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def _json_object(text: str, start: int) -> tuple[dict[str, object], int] | None:
    """Returns the JSON object at `start` and its end; None if there is none."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return (value, end) if isinstance(value, dict) else None


def _quoted(text: str) -> str:
    """Quotes a value by A1111's rule, and also if its reader would lose a quote, an outer space, or an empty value."""
    if text and text == text.strip() and not re.search(r'[,:\n]|^"', text):
        return text
    return json.dumps(text, ensure_ascii=False)


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        value = json.loads(text, strict=False)  # with line ends in it
    except ValueError:
        return text
    return value if isinstance(value, str) else text
