"""What a prompt means, before anything is drawn: no network is looked up."""

from __future__ import annotations

from typing import Any

from hnetkit.prompts.attention import parse_attention
from hnetkit.prompts.composition import split_and
from hnetkit.prompts.schedule import schedule
from hnetkit.prompts.tags import Tag, split_tags


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
