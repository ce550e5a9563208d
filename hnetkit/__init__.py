"""Stable Diffusion hypernetworks: read safely, fetched, kept, converted, applied in diffusers, trained.

Importing this package does not import torch. Each name below is imported at its first use.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # `python -m hnetkit` would import `typing` from the current folder
if TYPE_CHECKING:
    from typing import Any

    from hnetkit import errors as errors
    from hnetkit import generate as generate
    from hnetkit import sharing as sharing
    from hnetkit import train as train
    from hnetkit.baking.api import bake as bake
    from hnetkit.formats import load as load
    from hnetkit.formats import save as save
    from hnetkit.generate.model import load_model as load_model
    from hnetkit.library.library import Library as Library
    from hnetkit.network import Hypernetwork as Hypernetwork
    from hnetkit.runtime.adapters import applied as applied
    from hnetkit.runtime.adapters import disable_hypernetworks as disable_hypernetworks
    from hnetkit.runtime.adapters import enable_hypernetworks as enable_hypernetworks
    from hnetkit.runtime.adapters import explain as explain
    from hnetkit.runtime.adapters import follow_progress as follow_progress
    from hnetkit.runtime.adapters import get_active_hypernetworks as get_active_hypernetworks
    from hnetkit.runtime.adapters import load_hypernetwork as load_hypernetwork
    from hnetkit.runtime.adapters import set_hypernetworks as set_hypernetworks
    from hnetkit.runtime.adapters import set_progress as set_progress
    from hnetkit.runtime.adapters import unload_hypernetworks as unload_hypernetworks
    from hnetkit.runtime.capture import capture as capture
    from hnetkit.runtime.capture import release as release
    from hnetkit.runtime.stack import Stack as Stack
    from hnetkit.runtime.strength import Strength as Strength
    from hnetkit.sources.session import FetchSession as FetchSession

    __version__: str

_HOME = {
    "load": "hnetkit.formats",
    "save": "hnetkit.formats",
    "FetchSession": "hnetkit.sources.session",
    "Hypernetwork": "hnetkit.network",
    "Library": "hnetkit.library.library",
    "Stack": "hnetkit.runtime.stack",
    "Strength": "hnetkit.runtime.strength",
    "bake": "hnetkit.baking.api",
    "applied": "hnetkit.runtime.adapters",
    "capture": "hnetkit.runtime.capture",
    "disable_hypernetworks": "hnetkit.runtime.adapters",
    "enable_hypernetworks": "hnetkit.runtime.adapters",
    "explain": "hnetkit.runtime.adapters",
    "follow_progress": "hnetkit.runtime.adapters",
    "get_active_hypernetworks": "hnetkit.runtime.adapters",
    "load_hypernetwork": "hnetkit.runtime.adapters",
    "load_model": "hnetkit.generate.model",
    "release": "hnetkit.runtime.capture",
    "set_hypernetworks": "hnetkit.runtime.adapters",
    "set_progress": "hnetkit.runtime.adapters",
    "unload_hypernetworks": "hnetkit.runtime.adapters",
}
_MODULES = ("errors", "generate", "registry", "sharing", "train")

__all__ = ["errors", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("hnetkit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES, "__version__"]
