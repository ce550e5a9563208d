"""A whole model in one file, in the original layout of Stable Diffusion 1, 2 and XL: ``.safetensors`` or ``.ckpt``.

What it is, is told from its tensors' names and shapes; the configurations that such a file lacks are part of hnetkit
(``configurations/<kind>/<part>/``, in diffusers' layout, from the architectures' published numbers).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hnetkit.errors import ModelNotUsable
from hnetkit.formats.reading import TITLES, kind_of_names
from hnetkit.generate.loading.parts import VAE_NAMES, build_text_encoder, build_unet, build_vae
from hnetkit.generate.loading.state_dicts import StateDict, read_state_dict
from hnetkit.generate.loading.tokenizer import load_tokenizers

CONFIGURATIONS = Path(__file__).parent / "configurations"

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_XL = "conditioner.embedders."
# where each text encoder stands, by who wrote the file
_TEXT = {
    "text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model.", f"{_XL}0.transformer."),
    "text_encoder_2": (f"{_XL}1.model.",),
}
_REFINER_WIDTH = 1280
_CHANNELS = (4, 9)  # latents; for inpainting also the mask and what is left of the picture
_OTHER_MODEL = "hypernetworks belong on Stable Diffusion 1, 2 and XL"

MakeVae = Callable[[Callable[[], Mapping[str, Any]]], Any]


def load_checkpoint(
    path: Path, dtype: Any, device: str, *, tokenizer: str | None = None, make_vae: MakeVae | None = None
) -> Any:
    """Returns the pipeline of a checkpoint, each tensor read straight into `dtype`.

    Args:
        device: what a UNet is tried on, where only its answer tells what it predicts.
        tokenizer: a folder; see `load_tokenizers`.
        make_vae: makes another autoencoder than the file's, given what returns the configuration.

    Raises:
        ModelNotUsable: it is no such checkpoint, a part of it is missing or does not fit, or there is no tokenizer.
        FileRefused: the file cannot be read safely.
    """
    import diffusers

    state = read_state_dict(path)
    kinds = _kinds_of(state)
    unet_config = {**_config(kinds[0], "unet"), "in_channels": state.shapes[f"{_UNET}input_blocks.0.0.weight"][1]}
    encoders = [name for name in _TEXT if (CONFIGURATIONS / kinds[0] / name).is_dir()]
    tokenizers = load_tokenizers(tokenizer, [_config(kinds[0], name) for name in encoders])

    parts = dict(zip((name.replace("text_encoder", "tokenizer") for name in encoders), tokenizers, strict=True))
    vae_config = _config(kinds[0], "vae")
    parts["vae"] = make_vae(lambda: vae_config) if make_vae else _vae(state, vae_config, dtype)
    parts |= {name: _text_encoder(state, name, _config(kinds[0], name), dtype) for name in encoders}
    parts["unet"] = unet = build_unet(unet_config, state.part(_UNET, dtype), state.path)
    kind = kinds[0] if len(kinds) == 1 else _told_by_its_answer(kinds, unet.to(device))
    unet.register_to_config(sample_size=_config(kind, "unet")["sample_size"])
    scheduler_config = _config(kind, "scheduler") | _stated_prediction(state)
    parts["scheduler"] = getattr(diffusers, scheduler_config["_class_name"]).from_config(scheduler_config)
    if "text_encoder_2" in parts:
        return diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, **none)


def _kinds_of(state: StateDict) -> list[str]:
    """Returns the names of the configurations that a checkpoint can have: several differ in what the UNet predicts."""
    first, context = f"{_UNET}input_blocks.0.0.weight", ".attn2.to_k.weight"
    contexts = [shape for name, shape in state.shapes.items() if name.startswith(_UNET) and name.endswith(context)]
    widths = {shape[-1] for shape in contexts if shape}
    channels = state.shapes.get(first, ())
    if len(channels) != 4 or len(widths) != 1 or not all(contexts):
        kind = TITLES[kind_of_names(state.shapes)]
        raise ModelNotUsable(
            f"{state.path}: no Stable Diffusion checkpoint (it has no UNet; it may be {kind})", hint=_OTHER_MODEL
        )
    width = widths.pop()
    is_xl = any(name.startswith(f"{_XL}1.") for name in state.shapes)
    if width == _REFINER_WIDTH and any(name.startswith(f"{_XL}0.model.") for name in state.shapes):
        raise ModelNotUsable(f"{state.path}: the refiner of SDXL, which draws no picture alone", hint=_OTHER_MODEL)
    if channels[1] not in _CHANNELS:
        raise ModelNotUsable(f"{state.path}: its UNet takes {channels[1]} channels, not 4 or 9", hint=_OTHER_MODEL)
    kinds = [kind.name for kind in sorted(CONFIGURATIONS.iterdir()) if _fits(kind, width, is_xl)]
    if not kinds:
        raise ModelNotUsable(f"{state.path}: a UNet whose text is {width} wide, which is unknown", hint=_OTHER_MODEL)
    stated = _stated_prediction(state)
    return [kind for kind in kinds if stated.items() <= _config(kind, "scheduler").items()] or kinds[:1]


def _fits(kind: Path, width: int, is_xl: bool) -> bool:
    return _config(kind.name, "unet")["cross_attention_dim"] == width and (kind / "text_encoder_2").is_dir() == is_xl


def _config(kind: str, part: str) -> dict[str, Any]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    config: dict[str, Any] = json.loads((CONFIGURATIONS / kind / part / name).read_text(encoding="utf-8"))
    return config


def _stated_prediction(state: StateDict) -> dict[str, str]:
    """What the file itself says that its UNet predicts, as a scheduler's configuration; empty where it does not.

    Source: Stability's ModelSpec for metadata, and the empty tensor ``v_pred`` that SDXL trainers leave.
    """
    stated = "v" if "v_pred" in state.shapes else state.metadata.get("modelspec.prediction_type", "")
    names = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}
    return {"prediction_type": names[stated]} if stated in names else {}


def _told_by_its_answer(kinds: list[str], unet: Any) -> str:
    """Picks the configuration by what the UNet makes of noise: nothing else in a file of SD 2 tells its two apart."""
    prediction = "epsilon" if gives_noise_back(unet) else "v_prediction"
    return next((kind for kind in kinds if _config(kind, "scheduler")["prediction_type"] == prediction), kinds[0])


def gives_noise_back(unet: Any) -> bool:
    """Whether a UNet predicts noise (epsilon): at the last time step its input is hardly anything else."""
    import torch

    generator, config = torch.Generator("cpu").manual_seed(0), unet.config
    sample = torch.randn(1, config.in_channels, 16, 16, generator=generator).to(unet.device, unet.dtype)
    text = torch.zeros(1, 77, config.cross_attention_dim, device=unet.device, dtype=unet.dtype)
    with torch.no_grad():
        answer = unet(sample, 999, encoder_hidden_states=text).sample
    noise = sample[:, : answer.shape[1]]
    return torch.cosine_similarity(answer.float().flatten(), noise.float().flatten(), dim=0).item() > 0.5


def _text_encoder(state: StateDict, part: str, config: Mapping[str, Any], dtype: Any) -> Any:
    found = (prefix for prefix in _TEXT[part] if any(name.startswith(prefix) for name in state.shapes))
    prefix = next(found, _TEXT[part][0])
    return build_text_encoder(config, state.part(prefix, dtype), prefix, state.path)


def _vae(state: StateDict, config: Mapping[str, Any], dtype: Any) -> Any:
    tensors = state.part(tuple(_VAE + name for name in VAE_NAMES), dtype)
    if not tensors:
        raise ModelNotUsable(f"{state.path}: has no autoencoder of its own", hint="--vae FILE")
    return build_vae(config, {name.removeprefix(_VAE): tensor for name, tensor in tensors.items()}, state.path)
