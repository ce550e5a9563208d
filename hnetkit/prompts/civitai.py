"""Civitai's list of what an image was drawn with: ``Civitai resources`` in its infotext.

Civitai's generator writes it, and so do programs that draw elsewhere. A resource has a ``type``, or an identifier such
as ``urn:air:sd1:lora:civitai:82098@87153``, which names the kind of it too.

Source: civitai/civitai (Uniform Resource Names for AI), alexopus/ComfyUI-Image-Saver (behavior only).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hnetkit.limits import parse_json
from hnetkit.prompts.infotext import KINDS, Infotext

_NETWORKS = ("lora", "hypernet")
_TAGS = ("lora", "lyco", "hypernet")
_PLACE_OF_KIND = 3  # among the parts of ``urn:air:sd1:lora:...``


def untagged_networks(read: Infotext) -> list[str]:
    """Returns name and strength of each network in the list of an image whose prompts have no tags of that kind.

    One that the list does not say the kind of is a network if it has a strength: checkpoints have none.
    """
    try:
        resources = parse_json(read.parameters.get("Civitai resources", ""))
    except ValueError:
        return []
    prompts = "\n".join((read.prompt, read.parameters.get("Hires prompt", ""))).casefold()
    tagged = {KINDS[kind] for kind in _TAGS if f"<{kind}:" in prompts}
    given = [one for one in resources if isinstance(one, dict)] if isinstance(resources, list) else []
    return [_described(one) for one in given if _is_untagged_network(one, tagged)]


def _is_untagged_network(resource: Mapping[str, Any], tagged: set[str]) -> bool:
    kind = _kind(resource)
    if not kind:
        return "weight" in resource and not tagged
    return kind in _NETWORKS and kind not in tagged


def _kind(resource: Mapping[str, Any]) -> str:
    """A1111's name of the kind of a resource; empty if it is not said."""
    parts = str(resource.get("air", "")).split(":")
    in_air = parts[_PLACE_OF_KIND] if len(parts) > _PLACE_OF_KIND else ""
    kind = str(resource.get("type") or in_air).casefold()
    return KINDS.get(kind, kind)


def _described(resource: Mapping[str, Any]) -> str:
    versions = (resource.get("modelVersionName"), resource.get("versionName"))
    parts = [resource.get("modelName") or f"version {resource.get('modelVersionId')}", *filter(None, versions)]
    return f"{' '.join(map(str, parts))} at {resource.get('weight', 1)}"
