"""Loading a Stable Diffusion pipeline: a diffusers folder, a hub id, or one checkpoint file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hnetkit.errors import ModelNotUsable, NotFound, UsageError
from hnetkit.formats.safetensors_file import read_safetensors
from hnetkit.formats.source import OpenFile
from hnetkit.generate.request import is_size
from hnetkit.generate.samplers import SAMPLERS
from hnetkit.hashes import sha256_of

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEFAULTS_FILE = "hnetkit.json"

_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_NOT_PICKLED = "get it as .safetensors, or as a diffusers folder with .safetensors files"

# what a model folder's own defaults may say
_MEANINGFUL: Mapping[str, Callable[[Any], bool]] = {
    "cfg_scale": lambda value: type(value) in (int, float) and 1 <= value <= 100,
    "steps": lambda value: type(value) is int and 1 <= value <= 1000,
    "sampler": lambda value: value in SAMPLERS,
    "width": is_size,
    "height": is_size,
    "prompts": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a picture is drawn with where nobody says otherwise.

    Attributes:
        width, height: pixels; None: the size that the model was trained at.
        prompts: examples that suit the model.
    """

    cfg_scale: float = 7.0
    steps: int = 20
    sampler: str = "Euler a"
    width: int | None = None
    height: int | None = None
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A pipeline that is ready to draw.

    Attributes:
        pipe: a diffusers ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``, on its device.
        name: what the infotext calls it.
        defaults: its own, where its folder has a `DEFAULTS_FILE`.
        weights: the file that tells it from others: the UNet's weights, or the checkpoint.
        scheduler_config: of the scheduler that it came with.
    """

    pipe: Any
    name: str
    defaults: Defaults
    weights: Path
    scheduler_config: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels where nobody says otherwise: the defaults', else what the UNet was made for."""
        made_for = self.pipe.unet.config.sample_size
        height, width = made_for if isinstance(made_for, list | tuple) else (made_for, made_for)
        scale = self.pipe.vae_scale_factor
        return self.defaults.width or width * scale, self.defaults.height or height * scale

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of the sha256 of `weights` (of a checkpoint: A1111's model hash)."""
        return sha256_of(OpenFile(self.weights))[:10]


def load_model(place: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto") -> Model:
    """Loads a pipeline straight into its dtype, without a safety checker, and moves it to its device.

    Args:
        place: a folder in diffusers' layout, a hub id (``"org/name"``, from the cache where the hub is out of
            reach), or a checkpoint in one ``.safetensors`` file.
        device: one of `DEVICES`; ``"auto"`` takes CUDA, then MPS, then the CPU.
        dtype: a key of `DTYPES`; ``"auto"`` is fp16 on CUDA and fp32 elsewhere.

    Raises:
        NotFound: no such file, folder or hub id.
        ModelNotUsable: it is not a Stable Diffusion pipeline, or only has pickled weights.
        UsageError: the device is not there.
    """
    place = os.fspath(place)
    device = device_of(device)
    options = {"dtype": torch_dtype(dtype, device)}
    with _quiet_libraries():
        if os.path.isfile(place):
            weights = Path(place)
            pipe, defaults = _load_checkpoint(weights, options), Defaults()
        else:
            folder = Path(place) if os.path.isdir(place) else _download(place)
            pipe, defaults = _load_folder(folder, options), read_defaults(folder)
            weights = _weight_files(folder)[0]
        pipe.to(device)
        if hasattr(pipe, "watermark"):
            pipe.watermark = None  # SDXL's changes pixels where its package happens to be installed
    pipe.set_progress_bar_config(disable=True)
    return Model(pipe, _name(place), defaults, weights, pipe.scheduler.config)


def read_defaults(folder: Path) -> Defaults:
    """Returns what a model folder's `DEFAULTS_FILE` says; hnetkit's own defaults where there is none.

    Raises:
        ModelNotUsable: the file is no JSON object of known keys with values of the right type.
    """
    path = folder / DEFAULTS_FILE
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Defaults()
    except (OSError, ValueError) as error:
        raise ModelNotUsable(f"{path}: unreadable ({error})", hint="mend the file, or delete it") from error
    for key, value in said.items() if isinstance(said, dict) else [("", said)]:
        if key not in _MEANINGFUL or not _MEANINGFUL[key](value):
            keys = ", ".join(_MEANINGFUL)
            raise ModelNotUsable(f"{path}: {key!r} cannot be {value!r}", hint=f"its keys are {keys}")
    if "prompts" in said:
        said["prompts"] = tuple(said["prompts"])
    return Defaults(**said)


def device_of(device: str) -> str:
    """Returns ``cuda``, ``mps`` or ``cpu`` for what was asked: the best that is here for ``auto``.

    Raises:
        UsageError: this machine has no such device.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, usable in there.items() if usable)
    if not there.get(device):
        raise UsageError(f"--device {device}: this machine's torch has no such device", hint="--device auto")
    return device


def torch_dtype(dtype: str, device: str) -> Any:
    """Returns torch's dtype for ``auto`` (fp16 on CUDA, fp32 elsewhere) or a short name.

    Raises:
        UsageError: there is no such type.
    """
    import torch

    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"--dtype {dtype}: no such type", hint=f"--dtype {' or '.join(DTYPES)}")
    if dtype == "auto":
        dtype = "fp16" if device == "cuda" else "fp32"
    return getattr(torch, DTYPES[dtype])


def _name(place: str) -> str:
    path = Path(os.path.abspath(place))
    return path.stem if path.is_file() else path.name


def _load_folder(folder: Path, options: dict[str, Any]) -> Any:
    import diffusers

    index = _index(folder)
    kind = index.get("_class_name")
    if kind not in _PIPELINES:
        raise ModelNotUsable(
            f"{folder}: holds a {kind}; hypernetworks belong on Stable Diffusion 1, 2 and XL",
            hint="give a folder whose model_index.json names StableDiffusionPipeline or StableDiffusionXLPipeline",
        )
    if not _weight_files(folder):
        raise ModelNotUsable(f"{folder}: no .safetensors weights in unet/", hint=_NOT_PICKLED)
    if "safety_checker" in index:
        options = {**options, "safety_checker": None, "requires_safety_checker": False}
    with _refusing(str(folder), hint="get the model again; every part needs .safetensors weights"):
        return getattr(diffusers, kind).from_pretrained(
            folder, use_safetensors=True, variant=_variant(folder), local_files_only=True, **options
        )


def _index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotUsable(
            f"{folder}: no pipeline in diffusers' layout (it has no model_index.json)",
            hint="give the folder that holds model_index.json and unet/",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelNotUsable(f"{path}: unreadable ({error})", hint="get the model again") from error
    if not isinstance(index, dict):
        raise ModelNotUsable(f"{path}: not a JSON object", hint="get the model again")
    return index


def _variant(folder: Path) -> str | None:
    """``"fp16"`` and the like where the UNet's weights exist under such a name only."""
    names = [path.name.split(".") for path in _weight_files(folder)]
    return names[0][1] if names and all(len(parts) == 3 for parts in names) else None


def _weight_files(folder: Path) -> list[Path]:
    """The UNet's weight files, plain names before variants; of a model in several shards, the first is the first."""
    found = (folder / "unet").glob("diffusion_pytorch_model*.safetensors")
    return sorted(found, key=lambda path: (path.name.count("."), path.name))


def _load_checkpoint(path: Path, options: dict[str, Any]) -> Any:
    import diffusers

    if path.suffix.lower() in _PICKLES:
        raise ModelNotUsable(f"{path}: a pickled checkpoint, which can run code when it is opened", hint=_NOT_PICKLED)
    names = read_safetensors(OpenFile(path)).entries.keys()
    if not any(name.startswith("model.diffusion_model.") for name in names):
        raise ModelNotUsable(f"{path}: no Stable Diffusion checkpoint (it has no UNet)", hint=_NOT_PICKLED)
    is_xl = any(name.startswith("conditioner.embedders.") for name in names)
    if not is_xl:
        options = {**options, "safety_checker": None, "requires_safety_checker": False, "feature_extractor": None}
    with _refusing(str(path), hint="go online once: the configuration of such checkpoints comes from the hub"):
        return getattr(diffusers, _PIPELINES[is_xl]).from_single_file(str(path), **options)


def _download(hub_id: str) -> Path:
    """Returns the folder of a hub model in the local cache, fetching what is missing."""
    import diffusers
    from huggingface_hub.errors import RepositoryNotFoundError

    if not _HUB_ID.fullmatch(hub_id) or hub_id.startswith(".") or hub_id.endswith((".safetensors", *_PICKLES)):
        raise NotFound(
            f"{hub_id}: no such file or folder", hint="give a diffusers folder, a .safetensors file or a hub id"
        )
    try:
        return Path(diffusers.DiffusionPipeline.download(hub_id, use_safetensors=True, safety_checker=None))
    except RepositoryNotFoundError as error:
        raise NotFound(f"{hub_id}: neither a folder here nor a model of the hub") from error
    except Exception as error:
        raise ModelNotUsable(
            f"{hub_id}: no folder here, and the hub gave no model of this name ({type(error).__name__})",
            hint="go online once so that it is cached, or give the model's folder",
        ) from error


@contextmanager
def _refusing(place: str, hint: str) -> Iterator[None]:
    """Whatever the libraries raise while loading means that this model cannot be used."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelNotUsable(
            f"{place}: cannot be loaded ({reason})",
            hint=hint,
        ) from error


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keeps diffusers and transformers from talking and drawing bars; errors still come as exceptions."""
    import logging

    # transformers speaks as it is imported: its level must be set before
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    bars = [module.utils.logging for module in (diffusers, transformers)]
    shown = [logger.is_progress_bar_enabled() for logger in bars]
    for logger in bars:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, was_shown in zip(bars, shown, strict=True):
            if was_shown:
                logger.enable_progress_bar()
