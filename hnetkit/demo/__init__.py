"""The bundled demo: a tiny Stable Diffusion pipeline and hypernetworks that were trained on it."""

from __future__ import annotations

from pathlib import Path

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
