"""The bundled demo: a tiny Stable Diffusion pipeline and hypernetworks that were trained on it."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "demo"
"""Stands for the bundled model, where no file or folder has this name."""

MODEL_NAME = "hnetkit-demo"  # the model's name in images and networks; its folder is just "model"
_HERE = Path(__file__).resolve().parent


def model_folder() -> Path:
    """Returns the folder of the demo pipeline, in diffusers' layout."""
    return _HERE / "model"


def network_folder() -> Path:
    """Returns the folder of the demo's hypernetworks."""
    return _HERE / "hypernetworks"


def networks() -> dict[str, Path]:
    """Returns the demo's hypernetworks, stem -> file, sorted by stem."""
    return {path.stem: path for path in sorted(network_folder().glob("*.pt"))}


def location_of(model: str | os.PathLike[str] | None) -> str:
    """Returns the file, folder or hub id of a model as people name it; without one that of the bundled model."""
    if model is None or (model == NAME and not os.path.exists(model)):
        return str(model_folder())
    return os.fspath(model)


def is_bundled(location: str) -> bool:
    """Whether a model's location is the folder of the bundled one."""
    return os.path.realpath(location) == str(model_folder())


def comes_with(model: str | os.PathLike[str] | None) -> dict[str, Path]:
    """Returns the hypernetworks that come with a model, stem -> file: the bundled one has some, others have none."""
    return networks() if is_bundled(location_of(model)) else {}
