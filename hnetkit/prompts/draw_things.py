"""Draw Things' metadata, converted to the equivalent infotext.

Its text is like A1111's: the prompt; the negative prompt behind a ``-`` at the beginning of a line; the line of
settings, some of them under names of its own. A PNG has it as ``dc:description`` of its XMP data, and beside it the
settings as a JSON object, in which ``c`` is the prompt and ``uc`` the negative one. The text by itself does not tell a
negative prompt from the last item of a list in the prompt.

It weighs words in round and square brackets as A1111 does.

Source: the texts that the program writes and the programs that read them; drawthingsai/draw-things-community,
Libraries/Tokenizer/Sources/Attention.swift, and receyuki/stable-diffusion-prompt-reader (behavior only).
"""

from __future__ import annotations

import re

from hnetkit.limits import parse_json
from hnetkit.prompts import infotext
from hnetkit.prompts.infotext import Infotext
from hnetkit.prompts.schedule import as_whole_text, plain_elsewhere
from hnetkit.prompts.tags import excerpt, unread_tags, without_tags
from hnetkit.text import unescaped

_NAME = "Draw Things"
_KEYS = {"Guidance Scale": "CFG scale"}
_NOISE = {"Torch CPU Compatible": "CPU", "Nvidia GPU Compatible": "NV"}
_AS_LIST = re.compile(r"^-(?=\s)", re.MULTILINE)
_DESCRIPTION = re.compile(r"<dc:description>(?:\s*<rdf:Alt>\s*<rdf:li[^<>]{0,80}>)?([^<>]*)")
_COMMENT = re.compile(r"<exif:UserComment>(?:\s*<rdf:Alt>\s*<rdf:li[^<>]{0,80}>)?([^<>]*)")


def parse(text: str, prompts: tuple[str, str] | None = None) -> Infotext | None:
    """Converts the text; None if it is not Draw Things'.

    Args:
        prompts: the prompt and the negative one, where they are known.
    """
    if "Seed Mode:" not in text or "Guidance Scale:" not in text:
        return None
    read = infotext.parse(text)
    if not {"Seed Mode", "Guidance Scale"} <= read.parameters.keys() or read.negative_prompt:
        return None
    prompt, negative, guess = (*prompts, ()) if prompts else _divided(read.prompt)
    found = {_KEYS.get(key, key): value for key, value in read.parameters.items()}
    strength = found.pop("Strength", "1")
    noise = _NOISE.get(found["Seed Mode"])
    if noise:
        found["RNG"] = noise
        del found["Seed Mode"]
    if strength not in ("1", "1.0"):
        found["Denoising strength"] = strength
    otherwise = plain_elsewhere(_NAME, prompt, negative, weakens=True)
    warnings = (*read.warnings, *guess, *otherwise, *unread_tags(prompt, _NAME))
    ours = as_whole_text(without_tags(prompt).strip())
    return read._replace(prompt=ours, negative_prompt=negative.strip(), parameters=found, warnings=warnings)


def parse_xmp(xmp: str) -> Infotext | None:
    """Converts a PNG's XMP data; None if it is not Draw Things'."""
    description = _DESCRIPTION.search(xmp)
    return parse(unescaped(description[1]), _prompts(xmp)) if description else None


def _prompts(xmp: str) -> tuple[str, str] | None:
    """The prompt and the negative one in the JSON object of a PNG's XMP data; None if it does not have both."""
    comment = _COMMENT.search(xmp)
    try:
        settings = parse_json(unescaped(comment[1]), strict=False) if comment else None
    except ValueError:
        return None
    if not isinstance(settings, dict):
        return None
    prompt, negative = settings.get("c"), settings.get("uc")
    return (prompt, negative) if isinstance(prompt, str) and isinstance(negative, str) else None


def _divided(text: str) -> tuple[str, str, tuple[str, ...]]:
    """The prompt and the negative one of the lines above the settings, and what is a guess about it."""
    before, mark, negative = f"\n{text}".rpartition("\n-")
    if not mark:
        return text, "", ()
    if "\n-" not in before and not _AS_LIST.search(text):
        return before, negative, ()
    beginning = excerpt(" ".join(negative.split()))
    return before, negative, (f"its prompt may be a list: the last item is read as the negative prompt: {beginning}",)
