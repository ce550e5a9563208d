"""Pipelines in diffusers' layout: a folder, or a hub id that is fetched into the hub's cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnetkit.errors import ModelNotUsable
from hnetkit.generate.loading.components import CLASSES, load_component, variant_of
from hnetkit.generate.loading.configs import part_configuration, read_object
from hnetkit.generate.loading.defaults import MOST_PIXELS
from hnetkit.generate.loading.libraries import refusing
from hnetkit.generate.loading.places import asking_the_hub, require_hub_id
from hnetkit.generate.loading.tokenizer import FILES as _TOKENIZER_FILES

_OF_SD = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_PIPELINES: Mapping[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": _OF_SD,
    "StableDiffusionXLPipeline": (*_OF_SD, "text_encoder_2", "tokenizer_2"),
}
# the usual ones; pictures are drawn without them
_WITHOUT: Mapping[str, tuple[str, ...]] = {
    "safety_checker": ("StableDiffusionSafetyChecker",),
    "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor"),
    "image_encoder": ("CLIPVisionModelWithProjection",),
}
_NOT_PICKLED = "get it as .safetensors, or as a diffusers folder with .safetensors files"
_OTHER_SOURCE = "get the model from a source that you trust"


@dataclass(frozen=True, slots=True)
class Index:
    """What a pipeline folder is made of.

    Attributes:
        kind: the class of the pipeline.
        parts: name -> class of each part that is loaded.
        zeros_for_empty_prompt: of SDXL: whether no negative prompt means no negative text at all.
        notes: what is left out of it, one line each.
    """

    kind: str
    parts: Mapping[str, str]
    zeros_for_empty_prompt: bool
    notes: tuple[str, ...]


def read_index(folder: Path) -> Index:
    """Reads a folder's ``model_index.json``: it says what the parts are of, within what a Stable Diffusion model has.

    Raises:
        ModelNotUsable: it is no Stable Diffusion pipeline, or a part is missing or of another class than it can be.
    """
    path = folder / "model_index.json"
    if not path.exists():
        raise ModelNotUsable(
            f"{folder}: no pipeline in diffusers' layout (it has no model_index.json)",
            hint="give the folder that holds model_index.json and unet/",
        )
    index = read_object(path)
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in _PIPELINES:
        raise ModelNotUsable(
            f"{folder}: holds a {str(kind)[:80]}; hypernetworks belong on Stable Diffusion 1, 2 and XL",
            hint="give a folder whose model_index.json names StableDiffusionPipeline or StableDiffusionXLPipeline",
        )
    parts, notes = {}, []
    for name, value in index.items():
        if not isinstance(value, list) or value == [None, None]:
            continue
        library, named = value if len(value) == 2 else (None, value)
        if name in _PIPELINES[kind]:
            allowed = CLASSES[name]
            if library != allowed[0] or named not in allowed[1]:
                raise ModelNotUsable(f"{path}: its {name} is of {_class(value)}, which is none", hint=_OTHER_SOURCE)
            parts[name] = named
        elif named not in _WITHOUT.get(name, ()):
            notes.append(f"{folder}: its {name[:80]} ({_class(value)}) is left out: no such part is ever loaded.")
    return Index(kind, parts, index.get("force_zeros_for_empty_prompt", True) is not False, tuple(notes))


def load_folder(folder: Path, index: Index, dtype: Any, **parts: Any) -> Any:
    """Returns the pipeline of a folder on the CPU, in `dtype`, without a safety checker.

    Args:
        index: of `read_index`.
        parts: parts of the pipeline by name (``vae``) that are taken instead of the folder's own.

    Raises:
        ModelNotUsable: a part is missing, is of another build, or only has pickled weights.
        FileRefused: weights that cannot be read safely.
    """
    import diffusers

    for name in _PIPELINES[index.kind]:
        if name not in index.parts and name not in parts:
            raise ModelNotUsable(f"{folder}: cannot be loaded: it has no {name}", hint="get the model again")
    weights = weight_files(folder)
    if not weights:
        raise ModelNotUsable(f"{folder}: no .safetensors weights in unet/", hint=_NOT_PICKLED)
    variant = variant_of(weights[0])
    for name, kind in index.parts.items():
        if name not in parts:
            parts[name] = load_component(folder / name, name, kind, dtype, variant)
    _refuse_huge_pictures(folder, parts["unet"].config.sample_size, parts["vae"].config.block_out_channels)
    with refusing(str(folder), hint="get the model again"):
        if index.kind == "StableDiffusionXLPipeline":
            zeros = index.zeros_for_empty_prompt
            return diffusers.StableDiffusionXLPipeline(
                **parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False
            )
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(**parts, **none)


def vae_configuration(folder: Path) -> dict[str, Any]:
    """Returns the configuration of a pipeline folder's autoencoder.

    Raises:
        ModelNotUsable: it has none that can be read and meant.
    """
    from diffusers import AutoencoderKL

    return part_configuration(folder / "vae" / "config.json", AutoencoderKL)


def weight_files(folder: Path) -> list[Path]:
    """The UNet's weight files, plain names before variants; of a model in several shards, the first is the first."""
    found = (folder / "unet").glob("diffusion_pytorch_model*.safetensors")
    return sorted(filter(Path.is_file, found), key=lambda path: (path.name.count("."), path.name))


def download(hub_id: str) -> Path:
    """Returns the folder of a hub model in the local cache, fetching what is missing of what is loaded: no code.

    Raises:
        NotFound, ModelNotUsable: see `require_hub_id` and `asking_the_hub`.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    require_hub_id(hub_id)
    with asking_the_hub(hub_id):
        index = read_index(Path(hf_hub_download(hub_id, "model_index.json")).parent)
        weighted = [name for name in index.parts if not name.startswith(("tokenizer", "scheduler"))]
        plain = [f"{name}/{weights}" for name in weighted for weights in _plain_weights(name)]
        folder = Path(snapshot_download(hub_id, allow_patterns=["model_index.json", *_small_files(index), *plain]))
        bare = [name for name in weighted if not any((folder / name).glob("*.safetensors"))]
        if bare:
            variants = [f"{name}/{_stem(name)}.*.safetensors" for name in bare]
            folder = Path(snapshot_download(hub_id, allow_patterns=variants))
    return folder


def _small_files(index: Index) -> list[str]:
    found = []
    for name in index.parts:
        if name.startswith("tokenizer"):
            found += [f"{name}/{file}" for file in _TOKENIZER_FILES]
        else:
            found.append(f"{name}/{'scheduler_config' if name == 'scheduler' else 'config'}.json")
    return found


def _plain_weights(name: str) -> list[str]:
    return [f"{_stem(name)}.safetensors", f"{_stem(name)}-?????-of-?????.safetensors"]


def _stem(name: str) -> str:
    return "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"


def _refuse_huge_pictures(folder: Path, sample_size: Any, channels: Any) -> None:
    """Raises ModelNotUsable where a model would draw far too large pictures wherever nobody says how large."""
    sides = sample_size if isinstance(sample_size, list | tuple) else (sample_size,)
    for side in sides:
        if type(side) is not int or not 0 < side << (len(channels) - 1) <= MOST_PIXELS:
            raise ModelNotUsable(
                f"{folder / 'unet'}: cannot be loaded: sample_size cannot be {side}", hint=_OTHER_SOURCE
            )


def _class(value: list[Any]) -> str:
    return ".".join(str(item) for item in value[:2])[:80]
