"""Draw Things' metadata, converted to the equivalent infotext.

Its text is like A1111's: the prompt; the negative prompt behind a ``-`` at the beginning of a line; the line of
settings, some of them under names of its own. A PNG has it as ``dc:description`` of its XMP data.

It weighs words in round and square brackets as A1111 does.

Source: the texts that the program writes and the programs that read them; drawthingsai/draw-things-community,
Libraries/Tokenizer/Sources/Attention.swift (behavior only).
"""

from __future__ import annotations

import re

from hnetkit.prompts import infotext
from hnetkit.prompts.infotext import Infotext
from hnetkit.prompts.schedule import as_whole_text, plain_elsewhere
from hnetkit.prompts.tags import unread_tags, without_tags
from hnetkit.text import unescaped

_NAME = "Draw Things"
_KEYS = {"Guidance Scale": "CFG scale"}
_NOISE = {"Torch CPU Compatible": "CPU", "Nvidia GPU Compatible": "NV"}
_DESCRIPTION = re.compile(r"<dc:description>(?:\s*<rdf:Alt>\s*<rdf:li[^<>]{0,80}>)?([^<>]*)")


def parse(text: str) -> Infotext | None:
    """Converts the text; None if it is not Draw Things'."""
    if "Seed Mode:" not in text or "Guidance Scale:" not in text:
        return None
    read = infotext.parse(text)
    if not {"Seed Mode", "Guidance Scale"} <= read.parameters.keys() or read.negative_prompt:
        return None
    prompt, _, negative = f"\n{read.prompt}".rpartition("\n-") if "\n-" in f"\n{read.prompt}" else (read.prompt, "", "")
    found = {_KEYS.get(key, key): value for key, value in read.parameters.items()}
    strength = found.pop("Strength", "1")
    noise = _NOISE.get(found["Seed Mode"])
    if noise:
        found["RNG"] = noise
        del found["Seed Mode"]
    if strength not in ("1", "1.0"):
        found["Denoising strength"] = strength
    otherwise = plain_elsewhere(_NAME, prompt, negative, weakens=True)
    warnings = (*read.warnings, *otherwise, *unread_tags(prompt, _NAME))
    ours = as_whole_text(without_tags(prompt).strip())
    return read._replace(prompt=ours, negative_prompt=negative.strip(), parameters=found, warnings=warnings)


def parse_xmp(xmp: str) -> Infotext | None:
    """Converts a PNG's XMP data; None if it is not Draw Things'."""
    description = _DESCRIPTION.search(xmp)
    return parse(unescaped(description[1])) if description else None
