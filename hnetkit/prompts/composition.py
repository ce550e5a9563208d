"""A1111's composition: ``a cat :1.2 AND a dog :-0.5``, where each part steers the picture by its own weight.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/prompt_parser.py (behaviour only).
"""

from __future__ import annotations

import math
import re

_AND = re.compile(r"\bAND\b")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


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
