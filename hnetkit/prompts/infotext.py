"""A1111's infotext: the generation parameters that a picture carries as text.

Layout: the prompt; ``Negative prompt: ...``; one line ``Key: value, Key: value``. A value that holds a comma, a
colon or a line end is a JSON string. ``Hashes`` comes last and is a bare JSON object, because the sites that read
it look for one.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/infotext_utils.py and civitai/sd_civitai_extension
(behaviour only).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

_PARAMETER = re.compile(r'(\w[\w \-/]{1,99}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
_FEWEST_PARAMETERS = 3


class Infotext(NamedTuple):
    """What an infotext says.

    Attributes:
        prompt: with its tags; lines are trimmed, as A1111 trims them.
        negative_prompt: empty where there is none.
        parameters: every key of the last line with its value as text.
    """

    prompt: str
    negative_prompt: str
    parameters: dict[str, str]

    @property
    def hashes(self) -> dict[str, str]:
        """The ``Hashes`` parameter: resource (``"model"``, ``"hypernet:NAME"``) -> hex digits; empty without one."""
        found = _json_object(self.parameters.get("Hashes", ""), 0)
        return {key: value for key, value in found[0].items() if isinstance(value, str)} if found else {}


def write(
    prompt: str, negative_prompt: str, parameters: Mapping[str, object], hashes: Mapping[str, str] | None = None
) -> str:
    """Returns the infotext of a picture.

    Args:
        prompt: with its hypernetwork tags in it.
        negative_prompt: left out where it is empty.
        parameters: in the order to write; a value of None is left out.
        hashes: resource -> the first 10 hex digits of the file's sha256.
    """
    fields = [f"{key}: {_quoted(str(value))}" for key, value in parameters.items() if value is not None]
    if hashes:
        fields.append(f"Hashes: {json.dumps(dict(hashes), ensure_ascii=False)}")
    negative = f"\n{_NEGATIVE} {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{', '.join(fields)}".strip()


def parse(text: str) -> Infotext:
    """Reads an infotext by A1111's rules; any text is one, if need be a prompt without parameters.

    The keys ``Hypernet`` and ``Hypernet strength`` of 2022 also come back as a tag at the prompt's end.
    """
    *lines, last = text.strip().split("\n")
    if len(_PARAMETER.findall(last)) < _FEWEST_PARAMETERS:
        lines, last = [*lines, last], ""
    prompt, negative = _prompts(lines)
    parameters = _parameters(last)
    if "Hypernet" in parameters:
        prompt += f"<hypernet:{parameters['Hypernet']}:{parameters.get('Hypernet strength', '1.0')}>"
    return Infotext(prompt, negative, parameters)


def _prompts(lines: list[str]) -> tuple[str, str]:
    parts = {"prompt": "", "negative": ""}
    part = "prompt"
    for line in (line.strip() for line in lines):
        if line.startswith(_NEGATIVE):
            part, line = "negative", line.removeprefix(_NEGATIVE).strip()
        parts[part] += f"\n{line}" if parts[part] else line
    return parts["prompt"], parts["negative"]


def _parameters(line: str) -> dict[str, str]:
    found: dict[str, str] = {}
    position = 0
    while match := _PARAMETER.search(line, position):
        key, value = match.groups()
        position = match.end()
        bare = _json_object(line, match.start(2)) if key == "Hashes" else None
        if bare:
            value, position = line[match.start(2) : bare[1]], bare[1]
        found[key] = _unquoted(value)
    return found


def _json_object(text: str, start: int) -> tuple[dict[str, object], int] | None:
    """Returns the JSON object at `start` and where it ends, None where none is there."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return (value, end) if isinstance(value, dict) else None


def _quoted(text: str) -> str:
    """A1111's rule, and also where its reader would lose a quote, a space at an end, or an empty value."""
    if text and text == text.strip() and not re.search(r'[,:\n]|^"', text):
        return text
    return json.dumps(text, ensure_ascii=False)


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text
