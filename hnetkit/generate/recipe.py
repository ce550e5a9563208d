"""How a picture was drawn, read back from its infotext, as options of how to draw."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnetkit.errors import UsageError
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.description import EMPHASIS
from hnetkit.generate.picture_text import settings_of
from hnetkit.generate.request import LARGEST_SEED, MOST_STEPS, UPSCALERS, has_room, require_prompt
from hnetkit.generate.sampling.samplers import sampler_of
from hnetkit.limits import parse_json
from hnetkit.prompts.infotext import MOST_MENTIONED, Infotext, hypernetworks_of
from hnetkit.prompts.tags import excerpt, split_tags

_SHA256 = re.compile(r"[0-9a-f]{10,64}")
_OF_SECOND_PASS = frozenset({"Hires upscale", "Hires resize"})
_MOST_SHOWN = 10
# what is taken over, and what says nothing of how to draw
_KNOWN = frozenset(
    {
        *("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Clip skip", "ENSD", "Emphasis", "RNG"),
        *("Variation seed", "Variation seed strength", "Denoising strength", *_OF_SECOND_PASS, "Hires steps"),
        *("Hires upscaler", "Hires prompt", "Hires negative prompt", "Model", "Model hash", "Hashes", "Lora hashes"),
        *("TI hashes", "Hypernet hashes", "Hypernet", "Hypernet strength", "Hypernet hash", "Hypernetwork strength"),
        *("Hypernetworks", "Hypernetworks Strengths", "Version", "User", "VAE hash", "Batch size", "Batch pos"),
        *("Created Date", "Civitai resources", "Civitai metadata", "Time taken"),
    }
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a picture says of itself.

    Attributes:
        prompt: with tags; None where no picture was read, or its prompt cannot be taken over.
        seed: None where it says none.
        options: option -> value, by the names of `hnetkit.generate.options.DrawOptions`.
        hashes: ``hypernet:NAME``, ``lora:NAME`` and ``model`` -> the first 10 or more hex digits of the sha256 of what
            it was drawn with, where it says them.
        warnings: what could not be taken over, one line each.
    """

    prompt: str | None = None
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_recipe(path: Path) -> Recipe:
    """Returns how to draw the picture in a file again.

    Raises:
        NotFound: no such file, or it carries no settings.
        FileRefused: it cannot be read safely.
    """
    with OpenFile(path) as file:
        return recipe_of(settings_of(file))


def recipe_of(info: Infotext) -> Recipe:
    """Returns how to draw the picture of an infotext again.

    Noise of A1111's pictures came from CUDA's generator unless they say otherwise; hnetkit's own say where from.
    """
    options: dict[str, Any] = {}
    warnings = list(info.warnings)

    def take(key: str, name: str, read: Callable[[str], Any]) -> None:
        text = info.parameters.get(key)
        if text is None:
            return
        try:
            options[name] = read(text)
        except (ValueError, KeyError, UsageError):
            warnings.append(f"{key}: {excerpt(text)} cannot be taken over")

    def sampler(text: str) -> str:
        return sampler_of(text, info.parameters.get("Schedule type"))

    take("Steps", "steps", _whole(1, MOST_STEPS))
    take("Sampler", "sampler", sampler)
    take("CFG scale", "cfg_scale", _number(1, 1000))
    take("Seed", "seed", _whole(0, LARGEST_SEED))
    take("Size", "size", _size)
    take("Clip skip", "clip_skip", _whole(1, 12))
    take("ENSD", "eta_seed_delta", _whole(-LARGEST_SEED, LARGEST_SEED))
    take("Emphasis", "emphasis", {said: name for name, said in EMPHASIS.items()}.__getitem__)
    take("Variation seed", "variation_seed", _whole(0, LARGEST_SEED))
    take("Variation seed strength", "variation_strength", _number(0, 1))
    take("RNG", "rng", {"CPU": "cpu", "NV": "nv", "GPU": "nv"}.__getitem__)
    options.setdefault("rng", "nv")
    take("Denoising strength", "denoising", _number(0, 1))
    _take_second_pass(info, take)
    warnings += _left_out(info)
    prompts: dict[str, str] = {}
    for name, text in (("prompt", info.prompt), ("negative prompt", info.negative_prompt)):
        try:
            prompts[name] = _prompt(text, options.get("steps", 1))
        except UsageError as error:
            warnings.append(f"its {name} cannot be taken over: {error}")
    options["negative_prompt"] = prompts.get("negative prompt")
    options["width"], options["height"] = options.pop("size", (None, None))
    seed = options.pop("seed", None)
    given = {name: value for name, value in options.items() if value is not None}
    return Recipe(prompts.get("prompt"), seed, given, _hashes(info), tuple(warnings))


def _hashes(info: Infotext) -> dict[str, str]:
    """Returns what is said in the digits that today's programs write; older ones are of other hashes."""
    mentioned = {f"hypernet:{one.name}": one.hash for one in hypernetworks_of(info).networks if one.hash}
    older = {key for key in info.hashes if key.startswith("lora:")} if "Hashes" not in info.parameters else set()
    found = {**info.hashes, **mentioned}
    found.setdefault("model", info.parameters.get("Model hash", ""))
    return {key: digits for key, digits in found.items() if key not in older and _SHA256.fullmatch(digits)}


def _left_out(info: Infotext) -> Iterator[str]:
    """Yields what made the picture and is not taken over, one line each."""
    if "Denoising strength" in info.parameters and not info.parameters.keys() & _OF_SECOND_PASS:
        yield "it was drawn over another picture, which is not in it: --image FILE"
    others = [key for key in info.parameters if key not in _KNOWN]
    if others:
        more = f" and {len(others) - _MOST_SHOWN} more" if len(others) > _MOST_SHOWN else ""
        yield f"not taken over: {', '.join(map(excerpt, others[:_MOST_SHOWN]))}{more}"


def _take_second_pass(info: Infotext, take: Callable[[str, str, Callable[[str], Any]], None]) -> None:
    if not info.parameters.keys() & _OF_SECOND_PASS:
        return
    if "Hires resize" in info.parameters:
        take("Hires resize", "hires_size", _size)
    else:
        take("Hires upscale", "hires_scale", _number(1, 8))
    take("Hires steps", "hires_steps", _whole(0, MOST_STEPS))
    take("Hires upscaler", "hires_upscaler", _upscaler)
    take("Hires prompt", "hires_prompt", _prompt)
    take("Hires negative prompt", "hires_negative_prompt", str)


def _prompt(text: str, steps: int = 1) -> str:
    if _is_json(text):
        raise UsageError("it is another program's JSON, and no prompt")
    require_prompt(text, steps)
    tagged = split_tags(text)
    count = sum(map(len, (tagged.tags, tagged.loras, tagged.unknown, tagged.warnings)))
    if count > MOST_MENTIONED:
        raise UsageError(f"{count:,} tags are in it; at most {MOST_MENTIONED}")
    return text


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object, as some programs write all their settings into one."""
    if not (text.startswith("{") and text.endswith("}")):
        return False
    try:
        return isinstance(parse_json(text), dict)
    except ValueError:
        return False


def _upscaler(text: str) -> str:
    if text not in UPSCALERS:
        raise ValueError(text)
    return text


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not has_room(*size):
        raise ValueError(text)
    return size


def _whole(lowest: int, highest: int) -> Callable[[str], float]:
    return _within(int, lowest, highest)


def _number(lowest: float, highest: float) -> Callable[[str], float]:
    return _within(float, lowest, highest)


def _within(kind: Callable[[str], float], lowest: float, highest: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not lowest <= value <= highest:
            raise ValueError(text)
        return value

    return read
