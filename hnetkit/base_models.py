"""The names of base models: ours, Civitai's, and the spellings of either that people use."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hnetkit.errors import UsageError

BASE_MODELS = ("sd1", "sd2", "sd1-or-sd2", "sdxl", "sdxl-refiner", "unknown")
"""Our names, as `hnetkit.network.BaseModel`. A network that is ``sd1-or-sd2`` fits both."""

SITE_BASE_MODELS: Mapping[str, tuple[str, ...]] = {
    "sd1": ("SD 1.5", "SD 1.4", "SD 1.5 LCM", "SD 1.5 Hyper"),
    "sd2": ("SD 2.1", "SD 2.1 768", "SD 2.0", "SD 2.0 768", "SD 2.1 Unclip"),
    "sdxl": (
        "SDXL 1.0",
        "SDXL 0.9",
        "SDXL 1.0 LCM",
        "SDXL Distilled",
        "SDXL Turbo",
        "SDXL Lightning",
        "SDXL Hyper",
        "Pony",
        "Illustrious",
        "NoobAI",
    ),
    "unknown": ("Other",),
}
"""Base model -> what Civitai calls it and what is built on it."""

_BEFORE = re.compile(r"(?:stablediffusion|sd)?v?")


def _folded(text: str) -> str:
    """Returns what tells a name from others: ``SD 1.5``, ``sd1.5``, ``sd-v1-5`` and ``1.5`` are one."""
    return _BEFORE.sub("", re.sub(r"[\W_]+", "", text.casefold()), count=1)


_OUR_NAME = {_folded(name): name for name in BASE_MODELS} | {"1x": "sd1", "2x": "sd2"}
_SITE_NAME = {_folded(name): (base, name) for base, names in SITE_BASE_MODELS.items() for name in names}


def base_model_called(text: str) -> str | None:
    """Returns our name for a base model, of ours or the site's name in any spelling; None if it is neither."""
    folded = _folded(text)
    return _OUR_NAME.get(folded) or _SITE_NAME.get(folded, (None,))[0]


def site_names_called(text: str) -> tuple[str, ...]:
    """Returns the site's names for a base model: all of them for a name of ours, one for a name of the site's.

    None are returned for what the site has no name for.
    """
    folded = _folded(text)
    if folded in _SITE_NAME:
        return (_SITE_NAME[folded][1],)
    return tuple(name for base in fitting(_OUR_NAME.get(folded, "")) for name in SITE_BASE_MODELS.get(base, ()))


def fitting(base_model: str) -> tuple[str, ...]:
    """Returns the base models of the networks that fit one: those for ``sd1`` are also the ones for either."""
    if base_model == "sd1-or-sd2":
        return ("sd1-or-sd2",)
    return (base_model, "sd1-or-sd2") if base_model in ("sd1", "sd2") else (base_model,)


def require_base_model(text: str) -> str:
    """Returns our name for a base model.

    Raises:
        UsageError: it is no name of one.
    """
    found = base_model_called(text)
    if found is None:
        raise UsageError(f"{text}: not a base model", hint=f"use one of {', '.join(BASE_MODELS)}")
    return found
