"""NovelAI's image metadata, converted to the equivalent infotext.

There are several texts: ``Description`` is the prompt, ``Comment`` a JSON object with the settings, ``Source`` the
model. Braces strengthen words by 1.05 each, square brackets weaken them; round ones are plain text.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10 (modules/images.py, which reads these pictures), NovelAI's
documentation (behavior only).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from hnetkit.limits import parse_json
from hnetkit.prompts.infotext import Infotext
from hnetkit.prompts.schedule import as_whole_text
from hnetkit.prompts.tags import unread_tags, without_tags

_WORD = re.compile(r"\b(?:AND|BREAK)\b")
_NUMBER = re.compile(r"\d::|::\s*-?\d")
_STEP = 1.05  # factor of one bracket
_MOST_DEEP = 20  # brackets that count: 1.05 ** 20 is 2.7
_SAMPLERS = {
    "k_euler_ancestral": "Euler a",
    "k_euler": "Euler",
    "k_lms": "LMS",
    "k_heun": "Heun",
    "k_dpm_2": "DPM2",
    "k_dpm_2_ancestral": "DPM2 a",
    "k_dpmpp_2s_ancestral": "DPM++ 2S a",
    "k_dpmpp_2m": "DPM++ 2M",
    "k_dpmpp_2m_sde": "DPM++ 2M SDE",
    "k_dpmpp_sde": "DPM++ SDE",
    "ddim": "DDIM",
    "ddim_v3": "DDIM",
    "plms": "PLMS",
}
_SCHEDULES = {"native": None, "karras": "Karras", "exponential": "Exponential", "polyexponential": "Polyexponential"}
_LIKE_NOVELAI = {"Clip skip": "2", "ENSD": "31337"}  # what A1111 sets to draw such a picture again
# what asked for the image, where it was drawn over another one
_REPAINTING = ("Img2ImgRequest", "NativeInfillingRequest")
# key of ``Comment`` -> at which value it changes nothing; for others that is 0, false or nothing
_IDLE = {"uncond_scale": 1}
# keys of ``Comment`` that are read, or that shape nothing
_READ = frozenset(
    {
        "add_original_image",
        "height",
        "legacy",
        "legacy_v3_extend",
        "n_samples",
        "negative_prompt",
        "noise_schedule",
        "params_version",
        "prompt",
        "request_type",
        "sampler",
        "scale",
        "seed",
        "signed_hash",
        "steps",
        "uc",
        "ucPreset",
        "v4_negative_prompt",
        "v4_prompt",
        "version",
        "width",
    }
)


def parse(texts: Mapping[str, str], size: tuple[int, int] | None = None) -> Infotext | None:
    """Converts the texts of an image; None if they are not NovelAI's.

    Args:
        size: (width, height) of the image in pixels, for settings of 2022, which do not say it.
    """
    if not texts.get("Software", "").startswith("NovelAI"):
        return None
    try:
        settings = parse_json(texts.get("Comment", ""))
    except ValueError:
        return None
    if not isinstance(settings, dict):
        return None
    prompt = _caption(settings.get("v4_prompt")) or _text(settings.get("prompt")) or texts.get("Description", "")
    negative = _caption(settings.get("v4_negative_prompt")) or _text(settings.get("uc"))
    negative = negative or _text(settings.get("negative_prompt"))
    sampler, schedule = _text(settings.get("sampler")), _text(settings.get("noise_schedule"))
    width, height = (settings.get("width"), settings.get("height")) if "width" in settings else size or (None, None)
    others = {key: value for key, value in settings.items() if key not in _READ}
    parameters = {
        "Steps": settings.get("steps"),
        "Sampler": _SAMPLERS.get(sampler, sampler) or None,
        "Schedule type": _SCHEDULES.get(schedule, schedule) or None,
        "CFG scale": settings.get("scale"),
        "Seed": settings.get("seed"),
        "Size": f"{width}x{height}" if width and height else None,
        "Model": texts.get("Source"),
        "Denoising strength": others.pop("strength", None) if settings.get("request_type") in _REPAINTING else None,
        **_LIKE_NOVELAI,
        **{key: value for key, value in others.items() if (value != _IDLE[key] if key in _IDLE else value)},
        "Version": "NovelAI",
    }
    said = {key: str(value) for key, value in parameters.items() if value is not None}
    warnings = tuple(_beyond_our_language(f"{prompt}\n{negative}"))
    ours = as_whole_text(_in_our_language(prompt.strip()))
    return Infotext(ours, _in_our_language(negative.strip()), said, warnings)


def _beyond_our_language(prompts: str) -> Iterator[str]:
    """Yields what prompts ask for that A1111's language has no word for."""
    if _NUMBER.search(prompts):
        yield "its prompt has weights such as 1.5::words::, which are not taken over: write (words:1.5)"
    if "|" in prompts:
        yield "its prompt is mixed of parts with |, which is not taken over: A1111 reads all of it as one text"
    yield from unread_tags(prompts, "NovelAI")


def _in_our_language(prompt: str) -> str:
    """Returns a prompt that A1111 reads as NovelAI did, which knows neither tags, ``AND`` nor ``BREAK``."""
    return _in_our_weights(_WORD.sub(lambda word: word[0].lower(), without_tags(prompt)))


def _in_our_weights(prompt: str) -> str:
    """Returns a prompt with A1111's weights in place of NovelAI's brackets."""
    parts = groupby(_weighted_letters(prompt), key=lambda part: part[0])
    return "".join(_with_weight("".join(letter for _, letter in letters), depth) for depth, letters in parts)


def _weighted_letters(prompt: str) -> Iterator[tuple[int, str]]:
    """Yields (depth, letter): how many braces, less the square brackets, are open around a letter."""
    open_brackets: list[str] = []
    depth = 0
    for letter in prompt:
        if letter in "{[":
            open_brackets.append(letter)
            depth += 1 if letter == "{" else -1
        elif letter in "}]":
            if open_brackets and open_brackets[-1] == {"}": "{", "]": "["}[letter]:
                depth -= 1 if open_brackets.pop() == "{" else -1
        else:
            yield depth, f"\\{letter}" if letter in "()\\" else letter


def _with_weight(text: str, depth: int) -> str:
    if depth == 0 or not text.strip():
        return text
    weight = _STEP ** max(-_MOST_DEEP, min(depth, _MOST_DEEP))
    return f"({text}:{weight:.4g})"


def _caption(prompt: Any) -> str:
    """Returns the text of a prompt of version 4: that of the picture, then those of its characters."""
    caption = prompt.get("caption") if isinstance(prompt, dict) else None
    if not isinstance(caption, dict):
        return ""
    characters = caption.get("char_captions")
    parts = [caption.get("base_caption")]
    if isinstance(characters, list):
        parts += [part.get("char_caption") for part in characters if isinstance(part, dict)]
    return ", ".join(filter(None, map(_text, parts)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
