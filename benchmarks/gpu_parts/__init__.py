"""The parts of `gpu.py`. Importing them makes this checkout's `hnetkit` importable where nothing is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "hnetkit": "hnetkit",
    "hnetkit.kernels": "kernels",
    "hnetkit.registry": "registry",
    "hnetkit.train": "hnetkit/train",
}
AS_FOLDERS = {"hnetkit.train"}
"""Packages whose modules can be imported and they themselves not: they import packages that a bare machine lacks."""


def borrow_checkout() -> None:
    """Loads each package from its folder of the checkout; `sys.path` stays, where a folder `kernels` is in the way."""
    for name, folder in FOLDERS.items():
        path = ROOT / folder
        spec = importlib.util.spec_from_file_location(
            name, path / "__init__.py", submodule_search_locations=[str(path)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        if name not in AS_FOLDERS:
            spec.loader.exec_module(module)


if "hnetkit" not in sys.modules:
    borrow_checkout()
