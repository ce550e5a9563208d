"""Pipelines in diffusers' layout: a folder, or a hub id that is fetched into the hub's cache.

Which class a folder names, and where its weights are, is a stranger's choice. So hnetkit picks the classes from a list,
passes them checked configurations, and gives them tensors that its own reader reads; no library looks into the folder.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import DamagedFile, ModelNotUsable
from hnetkit.files import is_file_at, is_folder_at, stat_at
from hnetkit.generate.backend_errors import translating_errors
from hnetkit.generate.loading.checkpoints import StateDict, read_state_dict
from hnetkit.generate.loading.configs import (
    HINT,
    part_configuration,
    read_object,
    refuse_more_than_weights,
    scheduler_configuration,
    text_encoder_configuration,
)
from hnetkit.generate.loading.defaults import MOST_PIXELS
from hnetkit.generate.loading.model_source import hub_request, require_hub_id
from hnetkit.generate.loading.parts import (
    OTHER_MODEL,
    build_pipeline,
    build_text_encoder,
    build_unet,
    build_vae,
    edm_model,
    model_of_cfg_scale,
    refiner,
    require_known_channels,
)
from hnetkit.generate.loading.tokenizer import FILES as _TOKENIZER_FILES
from hnetkit.generate.loading.tokenizer import TOKENIZERS, read_tokenizer
from hnetkit.hub import complete_folder, fetched_file

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
_EDM = "EDM"  # what the names of schedulers begin with that have its noise levels
_TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")

CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "scheduler": ("diffusers", SCHEDULERS),
    "text_encoder": ("transformers", _TEXT_ENCODERS),
    "text_encoder_2": ("transformers", _TEXT_ENCODERS),
    "tokenizer": ("transformers", TOKENIZERS),
    "tokenizer_2": ("transformers", TOKENIZERS),
}
"""Part of a pipeline -> (library, the classes that it may have)."""

_HINT_WEIGHTS = "get the model again; every part needs .safetensors weights"
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?"
    r"(?:-(?P<number>\d{5})-of-(?P<of>\d{5}))?(?:\.(?P<suffix_variant>\w+))?\.safetensors"
)

_SD_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_SDXL_PARTS = (*_SD_PARTS, "text_encoder_2", "tokenizer_2")
_PIPELINES: Mapping[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": _SD_PARTS,
    "StableDiffusionImg2ImgPipeline": _SD_PARTS,
    "StableDiffusionInpaintPipeline": _SD_PARTS,
    "StableDiffusionXLPipeline": _SDXL_PARTS,
    "StableDiffusionXLImg2ImgPipeline": _SDXL_PARTS,
    "StableDiffusionXLInpaintPipeline": _SDXL_PARTS,
}
# pipelines with the same parts, whose UNets read other channels
_OTHER_CHANNELS: Mapping[str, int] = {
    "StableDiffusionDepth2ImgPipeline": 5,
    "StableDiffusionInstructPix2PixPipeline": 8,
    "StableDiffusionUpscalePipeline": 7,
    "StableDiffusionXLInstructPix2PixPipeline": 8,
}
_LATENTS = 4  # channels, in all of them
# parts that pipelines usually have, and that images are drawn without
_NOT_LOADED: Mapping[str, tuple[str, ...]] = {
    "safety_checker": ("StableDiffusionSafetyChecker",),
    "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor"),
    "image_encoder": ("CLIPVisionModelWithProjection",),
}
_NOT_PICKLED = "get it as .safetensors, or as a diffusers folder with .safetensors files"
_OTHER_SOURCE = "get the model from a source that you trust"


@dataclass(frozen=True, slots=True)
class PipelineIndex:
    """The parts of a pipeline folder.

    Attributes:
        kind: the class of the pipeline.
        parts: name -> class of each part that is loaded.
        zeros_for_empty_prompt: of SDXL: whether an empty negative prompt is encoded as zeros.
        notes: parts that are not loaded, one line each.
    """

    kind: str
    parts: Mapping[str, str]
    zeros_for_empty_prompt: bool
    notes: tuple[str, ...]


def read_model_index(folder: Path) -> PipelineIndex:
    """Reads a folder's ``model_index.json``, which names the class of each part.

    Raises:
        ModelNotUsable: it is not a Stable Diffusion pipeline, or a part has a class that it cannot have.
    """
    path = folder / "model_index.json"
    if stat_at(path) is None:
        raise ModelNotUsable(
            f"{folder}: no pipeline in diffusers' layout (it has no model_index.json)",
            hint="give the folder that holds model_index.json and unet/",
        )
    index = read_object(path)
    kind = index.get("_class_name")
    if isinstance(kind, str) and kind in _OTHER_CHANNELS:
        require_known_channels(_OTHER_CHANNELS[kind], _LATENTS, str(folder))
    if not isinstance(kind, str) or kind not in _PIPELINES:
        raise ModelNotUsable(
            f"{folder}: holds a {str(kind)[:80]}; hypernetworks belong on Stable Diffusion 1, 2 and XL",
            hint=OTHER_MODEL,
        )
    if index.get("text_encoder") == [None, None] and "text_encoder_2" in index:
        raise refiner(folder)
    parts, notes = {}, []
    for name, value in index.items():
        if not isinstance(value, list) or value == [None, None]:
            continue
        library, named = value if len(value) == 2 else (None, value)
        if name in _PIPELINES[kind]:
            allowed = CLASSES[name]
            if library != allowed[0] or named not in allowed[1]:
                raise ModelNotUsable(f"{path}: its {name} is of {_class(value)}, which is none", hint=_OTHER_SOURCE)
            if named.startswith(_EDM):
                raise edm_model(folder)
            parts[name] = named
        elif named not in _NOT_LOADED.get(name, ()):
            notes.append(f"{folder}: its {name[:80]} ({_class(value)}) is left out: no such part is ever loaded.")
    return PipelineIndex(kind, parts, index.get("force_zeros_for_empty_prompt", True) is not False, tuple(notes))


def require_parts(folder: Path, index: PipelineIndex, others: Container[str]) -> None:
    """Checks that a pipeline folder has what is loaded.

    Args:
        others: parts that replace the folder's own.

    Raises:
        ModelNotUsable: a part is missing, or there are no weights that are not pickled.
    """
    for name in _PIPELINES[index.kind]:
        if name not in index.parts and name not in others:
            raise ModelNotUsable(f"{folder}: cannot be loaded: it has no {name}", hint="get the model again")
    if not weight_files(folder):
        raise ModelNotUsable(f"{folder}: no .safetensors weights in unet/", hint=_NOT_PICKLED)


def load_pipeline_folder(folder: Path, index: PipelineIndex, dtype: Any, **parts: Any) -> Any:
    """Returns the pipeline of a folder on the CPU, in `dtype`, without a safety checker.

    Args:
        index: of `read_model_index`.
        parts: parts by name (``vae``) that replace the folder's own.

    Raises:
        ModelNotUsable: a part is missing, has another architecture, or has pickled weights only.
        FileRefused: weights cannot be read safely.
    """
    require_parts(folder, index, parts)
    require_known_unet(folder)
    variant = variant_of(weight_files(folder)[0])
    for name, kind in index.parts.items():
        if name not in parts:
            parts[name] = load_component(folder / name, name, kind, dtype, variant)
    _refuse_huge_pictures(folder, parts["unet"].config.sample_size, parts["vae"].config.block_out_channels)
    with translating_errors(str(folder), hint="get the model again"):
        return build_pipeline(parts, zeros_for_empty_prompt=index.zeros_for_empty_prompt)


def require_known_unet(folder: Path) -> None:
    """Raises ModelNotUsable if the UNet's configuration says that it reads what drawing does not give; no torch."""
    path = folder / "unet" / "config.json"
    config = read_object(path) if stat_at(path) is not None else {}
    reads, latents = config.get("in_channels", _LATENTS), config.get("out_channels", _LATENTS)
    if type(reads) is int and type(latents) is int:  # other values are refused when the UNet is built
        require_known_channels(reads, latents, str(folder))
    if config.get("time_cond_proj_dim") is not None:
        raise model_of_cfg_scale(folder)


def vae_configuration(folder: Path) -> dict[str, Any]:
    """Returns the configuration of a pipeline folder's autoencoder.

    Raises:
        ModelNotUsable: there is none, or a value in it is not allowed.
    """
    from diffusers import AutoencoderKL

    return part_configuration(folder / "vae" / "config.json", AutoencoderKL)


def weight_files(folder: Path, part: str = "unet") -> list[Path]:
    """Returns the weight files of a UNet or autoencoder, plain names before variants, shards in their order."""
    found = (folder / part).glob("diffusion_pytorch_model*.safetensors")
    return sorted(filter(is_file_at, found), key=lambda path: (path.name.count("."), path.name))


def download_pipeline(hub_id: str) -> Path:
    """Returns the folder of a hub model in the local cache; fetches the missing files that are loaded, and no code.

    Raises:
        NotFound, ModelNotUsable: see `require_hub_id` and `hub_request`.
    """
    require_hub_id(hub_id)
    with hub_request(hub_id):
        folder = fetched_file(hub_id, "model_index.json").parent
        index = read_model_index(folder)
        weighted = [name for name in index.parts if not name.startswith(("tokenizer", "scheduler"))]
        plain = [f"{name}/{weights}" for name in weighted for weights in _plain_weights(name)]
        complete_folder(folder, hub_id, [*_small_files(index), *plain])
        without_weights = [name for name in weighted if not any((folder / name).glob("*.safetensors"))]
        if without_weights:
            variants = [f"{name}/{_weights_stem(name)}.*.safetensors" for name in without_weights]
            complete_folder(folder, hub_id, variants)
    return folder


def _small_files(index: PipelineIndex) -> list[str]:
    found = []
    for name in index.parts:
        if name.startswith("tokenizer"):
            found += [f"{name}/{file}" for file in _TOKENIZER_FILES]
        else:
            found.append(f"{name}/{'scheduler_config' if name == 'scheduler' else 'config'}.json")
    return found


def _plain_weights(name: str) -> list[str]:
    return [f"{_weights_stem(name)}.safetensors", f"{_weights_stem(name)}-?????-of-?????.safetensors"]


def _weights_stem(name: str) -> str:
    return "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"


def _refuse_huge_pictures(folder: Path, sample_size: Any, channels: Any) -> None:
    """Raises ModelNotUsable if the default size of a model's images is far too large."""
    sides = sample_size if isinstance(sample_size, list | tuple) and len(sample_size) == 2 else (sample_size,)
    for side in sides:
        if type(side) is not int or not 0 < side << (len(channels) - 1) <= MOST_PIXELS:
            raise ModelNotUsable(
                f"{folder / 'unet'}: cannot be loaded: sample_size cannot be {str(side)[:40]}", hint=_OTHER_SOURCE
            )


def _class(value: list[Any]) -> str:
    return ".".join(str(item) for item in value[:2])[:80]


def load_component(folder: Path, part: str, kind: str, dtype: Any, variant: str | None = None) -> Any:
    """Returns a part of a pipeline on the CPU.

    Args:
        folder: of the part.
        kind: a class of `CLASSES`.
        dtype: of its weights.
        variant: ``fp16`` and the like: which weights to take if there are several.

    Raises:
        ModelNotUsable: its configuration is not allowed, it has no ``.safetensors`` weights, or they do not fit it.
        FileRefused: its weights cannot be read safely.
    """
    with translating_errors(str(folder), hint=_HINT_WEIGHTS):
        if part == "scheduler":
            config = scheduler_configuration(folder / "scheduler_config.json", SCHEDULERS)
            if str(config.get("_class_name", "")).startswith(_EDM):
                raise edm_model(folder)
            return _scheduler(kind, config)
        if part.startswith("tokenizer"):
            return read_tokenizer(folder, kind)
        return _load_model(folder, part, kind, dtype, variant)


def _scheduler(kind: str, config: Mapping[str, Any]) -> Any:
    """Returns a folder's scheduler. Only its configuration is used, because hnetkit's own samplers draw."""
    import diffusers

    try:
        return getattr(diffusers, kind).from_config(config)
    except ImportError:  # some need scipy or torchsde
        return diffusers.EulerDiscreteScheduler.from_config(config)


def part_weights(folder: Path, variant: str | None = None) -> list[Path]:
    """Returns the weight files of a part, one or all shards: of `variant` if there are such files, else plain ones.

    Raises:
        ModelNotUsable: there are none, or shards are missing.
    """
    found: dict[tuple[str | None, str | None], list[Path]] = {}
    for path in sorted(folder.iterdir()) if is_folder_at(folder) else ():
        if (match := _WEIGHTS.fullmatch(path.name)) and is_file_at(path):
            found.setdefault((match["variant"] or match["suffix_variant"], match["of"]), []).append(path)
    if not found:
        raise ModelNotUsable(f"{folder}: cannot be loaded (no .safetensors weights)", hint=_HINT_WEIGHTS)
    best = min(found, key=lambda key: (key[0] != variant, key[0] is not None, key[0] or "", key[1] is not None))
    if best[1] is not None and int(best[1]) != len(found[best]):
        raise ModelNotUsable(f"{folder}: cannot be loaded (shards of its weights are missing)", hint=_HINT_WEIGHTS)
    return found[best]


def variant_of(path: Path) -> str | None:
    """Returns the variant in the name of a weight file; None for a plain one."""
    match = _WEIGHTS.fullmatch(path.name)
    return (match["variant"] or match["suffix_variant"]) if match else None


def _load_model(folder: Path, part: str, kind: str, dtype: Any, variant: str | None) -> Any:
    path = folder / "config.json"
    if part.startswith("text_encoder"):
        config = text_encoder_configuration(path, kind)
    else:
        import diffusers

        config = part_configuration(path, getattr(diffusers, kind))
        if any(config.get(key) is not None for key in ("latents_mean", "latents_std")):
            raise ModelNotUsable(
                f"{path}: latents_mean, latents_std: an autoencoder with latents of its own, as Playground 2.5's",
                hint=OTHER_MODEL,
            )
    files = part_weights(folder, variant)
    try:
        states = [read_state_dict(file) for file in files]
        refuse_more_than_weights(path, config, [shape for state in states for shape in state.shapes.values()])
        tensors = _join_shards(states, dtype)
    except DamagedFile as error:
        raise ModelNotUsable(f"{folder}: cannot be loaded ({error})", hint=_HINT_WEIGHTS) from error
    if part == "unet":
        return build_unet(config, tensors, str(folder))
    if part == "vae":
        return build_vae(config, tensors, str(folder))
    return build_text_encoder(config, tensors, "", str(folder))


def _join_shards(states: Iterable[StateDict], dtype: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for state in states:
        if repeated := sorted(tensors.keys() & state.shapes.keys()):
            raise ModelNotUsable(f"{state.path}: cannot be loaded ({repeated[0]} is in another shard too)", hint=HINT)
        tensors |= state.part("", dtype)
    return tensors


_MIXED_PARTS = "get the model again; its folder mixes parts of several models"
_FEWEST_TOKENS = 3  # start, end, and one between


def require_matching_parts(pipe: Any, source: str) -> None:
    """Compares what each part of a pipeline takes with what the part before it gives: they may be of several models.

    A tokenizer without a window, as many are, gets that of its text encoder.

    Args:
        source: of the pipeline, for messages.

    Raises:
        ModelNotUsable: two parts do not fit; the message names them.
    """
    is_xl = hasattr(pipe, "text_encoder_2")
    encoders = [pipe.text_encoder, pipe.text_encoder_2] if is_xl else [pipe.text_encoder]
    tokenizers = [pipe.tokenizer, pipe.tokenizer_2] if is_xl else [pipe.tokenizer]
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        _require_window(tokenizer, encoder.config.max_position_embeddings, source)
    unet, vae = pipe.unet.config, pipe.vae.config
    _require_conditions(unet, encoders, source)
    width = sum(encoder.config.hidden_size for encoder in encoders)
    wanted = unet.cross_attention_dim if unet.encoder_hid_dim is None else unet.encoder_hid_dim
    if any(side != width for side in (wanted if isinstance(wanted, list | tuple) else [wanted])):
        raise _unfit(source, f"its text encoder gives {width} values, its UNet takes {wanted}")
    if vae.latent_channels != unet.out_channels:
        raise _unfit(source, f"its autoencoder has {vae.latent_channels} channels, its UNet {unet.out_channels}")


def _require_window(tokenizer: Any, window: int, source: str) -> None:
    stated = tokenizer.model_max_length
    if not isinstance(stated, int | float) or stated < _FEWEST_TOKENS or window < _FEWEST_TOKENS:
        raise _unfit(source, f"its tokenizer's model_max_length cannot be {str(stated)[:40]}")
    if type(stated) is not int or stated > window:
        tokenizer.model_max_length = window


def _require_conditions(unet: Any, encoders: list[Any], source: str) -> None:
    """Checks what a UNet takes beside its context: SDXL's sizes and pooled text, and nothing else."""
    added, hidden = unet.addition_embed_type, unet.encoder_hid_dim_type
    if hidden not in (None, "text_proj"):
        raise _unfit(source, f"its UNet takes {str(hidden)[:40]}, which no prompt gives")
    if len(encoders) == 1:
        if added not in (None, "text"):
            raise _unfit(source, f"its UNet takes {str(added)[:40]}, which only SDXL's pipeline gives")
        return
    if added != "text_time":
        raise _unfit(source, "its UNet is not SDXL's")
    if not hasattr(encoders[1], "text_projection"):
        raise _unfit(source, "its second text encoder has no projection")
    given = 6 * unet.addition_time_embed_dim + encoders[1].config.projection_dim
    if given != unet.projection_class_embeddings_input_dim:
        wanted = unet.projection_class_embeddings_input_dim
        raise _unfit(source, f"its second text encoder and the sizes give {given} values, its UNet takes {wanted}")


def _unfit(source: str, reason: str) -> ModelNotUsable:
    return ModelNotUsable(f"{source}: parts that do not fit: {reason}", hint=_MIXED_PARTS)
