"""Pipelines in diffusers' layout: a folder, or a hub id that is fetched into the hub's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hnetkit.errors import ModelNotUsable
from hnetkit.generate.loading.libraries import refusing
from hnetkit.generate.loading.places import asking_the_hub, require_hub_id

_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_NOT_PICKLED = "get it as .safetensors, or as a diffusers folder with .safetensors files"


def load_folder(folder: Path, dtype: Any, **parts: Any) -> Any:
    """Returns the pipeline of a folder on the CPU, in `dtype`, without a safety checker.

    Args:
        parts: parts of the pipeline by name (``vae``) that are taken instead of the folder's own.

    Raises:
        ModelNotUsable: it is not a Stable Diffusion pipeline, or only has pickled weights.
    """
    import diffusers

    index = _index(folder)
    kind = index.get("_class_name")
    if kind not in _PIPELINES:
        raise ModelNotUsable(
            f"{folder}: holds a {kind}; hypernetworks belong on Stable Diffusion 1, 2 and XL",
            hint="give a folder whose model_index.json names StableDiffusionPipeline or StableDiffusionXLPipeline",
        )
    if not weight_files(folder):
        raise ModelNotUsable(f"{folder}: no .safetensors weights in unet/", hint=_NOT_PICKLED)
    options = {"dtype": dtype, "variant": _variant(folder), **parts}
    if "safety_checker" in index:
        options = {**options, "safety_checker": None, "requires_safety_checker": False}
    with refusing(str(folder), hint="get the model again; every part needs .safetensors weights"):
        return getattr(diffusers, kind).from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)


def vae_configuration(folder: Path) -> dict[str, Any]:
    """Returns the configuration of a pipeline folder's autoencoder.

    Raises:
        ModelNotUsable: it has none that can be read.
    """
    return _json(folder / "vae" / "config.json")


def weight_files(folder: Path) -> list[Path]:
    """The UNet's weight files, plain names before variants; of a model in several shards, the first is the first."""
    found = (folder / "unet").glob("diffusion_pytorch_model*.safetensors")
    return sorted(found, key=lambda path: (path.name.count("."), path.name))


def download(hub_id: str) -> Path:
    """Returns the folder of a hub model in the local cache, fetching what is missing.

    Raises:
        NotFound, ModelNotUsable: see `require_hub_id` and `asking_the_hub`.
    """
    import diffusers

    require_hub_id(hub_id)
    with asking_the_hub(hub_id):
        return Path(diffusers.DiffusionPipeline.download(hub_id, use_safetensors=True, safety_checker=None))


def _index(folder: Path) -> dict[str, Any]:
    if not (folder / "model_index.json").exists():
        raise ModelNotUsable(
            f"{folder}: no pipeline in diffusers' layout (it has no model_index.json)",
            hint="give the folder that holds model_index.json and unet/",
        )
    return _json(folder / "model_index.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotUsable(f"{path}: unreadable ({error})", hint="get the model again") from error
    if not isinstance(value, dict):
        raise ModelNotUsable(f"{path}: not a JSON object", hint="get the model again")
    return value


def _variant(folder: Path) -> str | None:
    """``"fp16"`` and the like where the UNet's weights exist under such a name only."""
    names = [path.name.split(".") for path in weight_files(folder)]
    return names[0][1] if names and all(len(parts) == 3 for parts in names) else None
