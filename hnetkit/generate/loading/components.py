"""The parts of a pipeline in diffusers' layout, each of a class on a list, of weights that hnetkit's own reader reads.

Which class a folder asks for, and where its weights are, is a stranger's choice. So hnetkit picks the classes, hands
them configurations that it has checked, and gives them tensors; no library looks into the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import DamagedFile, ModelNotUsable
from hnetkit.generate.loading.configs import (
    HINT,
    part_configuration,
    refuse_more_than_weights,
    scheduler_configuration,
    text_encoder_configuration,
)
from hnetkit.generate.loading.libraries import refusing
from hnetkit.generate.loading.parts import build_text_encoder, build_unet, build_vae
from hnetkit.generate.loading.state_dicts import StateDict, read_state_dict
from hnetkit.generate.loading.tokenizer import TOKENIZERS, read_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULERS = (
    *("DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "IPNDMScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler"),
    *("PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler"),
)
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
"""Part of a pipeline -> (library, the classes that it may be of)."""

_HINT_WEIGHTS = "get the model again; every part needs .safetensors weights"
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?"
    r"(?:-(?P<number>\d{5})-of-(?P<of>\d{5}))?(?:\.(?P<behind>\w+))?\.safetensors"
)


def load_component(folder: Path, part: str, kind: str, dtype: Any, variant: str | None = None) -> Any:
    """Returns a part of a pipeline on the CPU.

    Args:
        folder: of the part.
        kind: a class of `CLASSES`.
        dtype: of its weights.
        variant: whose weights are taken where there are several: ``fp16`` and the like.

    Raises:
        ModelNotUsable: its configuration cannot be meant, it has no ``.safetensors`` weights, or they do not fit it.
        FileRefused: its weights cannot be read safely.
    """
    with refusing(str(folder), hint=_HINT_WEIGHTS):
        if part == "scheduler":
            return _scheduler(kind, scheduler_configuration(folder / "scheduler_config.json", SCHEDULERS))
        if part.startswith("tokenizer"):
            return read_tokenizer(folder, kind)
        return _load_model(folder, part, kind, dtype, variant)


def _scheduler(kind: str, config: Mapping[str, Any]) -> Any:
    """Returns a folder's scheduler, whose configuration counts: hnetkit's samplers draw."""
    import diffusers

    try:
        return getattr(diffusers, kind).from_config(config)
    except ImportError:  # some are there only with scipy or torchsde
        return diffusers.EulerDiscreteScheduler.from_config(config)


def part_weights(folder: Path, variant: str | None = None) -> list[Path]:
    """Returns the weight files of a part: one, or all shards; of several variants that one, then the plain one.

    Raises:
        ModelNotUsable: there are none, or shards are missing.
    """
    found: dict[tuple[str | None, str | None], list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (match := _WEIGHTS.fullmatch(path.name)) and os.path.isfile(path):
            found.setdefault((match["variant"] or match["behind"], match["of"]), []).append(path)
    if not found:
        raise ModelNotUsable(f"{folder}: cannot be loaded (no .safetensors weights)", hint=_HINT_WEIGHTS)
    best = min(found, key=lambda key: (key[0] != variant, key[0] is not None, key[0] or "", key[1] is not None))
    if best[1] is not None and int(best[1]) != len(found[best]):
        raise ModelNotUsable(f"{folder}: cannot be loaded (shards of its weights are missing)", hint=_HINT_WEIGHTS)
    return found[best]


def variant_of(path: Path) -> str | None:
    """Returns the variant of a weight file by its name; None for a plain one."""
    match = _WEIGHTS.fullmatch(path.name)
    return (match["variant"] or match["behind"]) if match else None


def _load_model(folder: Path, part: str, kind: str, dtype: Any, variant: str | None) -> Any:
    path = folder / "config.json"
    if part.startswith("text_encoder"):
        config = text_encoder_configuration(path, kind)
    else:
        import diffusers

        config = part_configuration(path, getattr(diffusers, kind))
    files = part_weights(folder, variant)
    try:
        states = [read_state_dict(file) for file in files]
        refuse_more_than_weights(path, config, [shape for state in states for shape in state.shapes.values()])
        tensors = _tensors(states, dtype)
    except DamagedFile as error:
        raise ModelNotUsable(f"{folder}: cannot be loaded ({error})", hint=_HINT_WEIGHTS) from error
    if part == "unet":
        return build_unet(config, tensors, str(folder))
    if part == "vae":
        return build_vae(config, tensors, str(folder))
    return build_text_encoder(config, tensors, "", str(folder))


def _tensors(states: Iterable[StateDict], dtype: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for state in states:
        if twice := sorted(tensors.keys() & state.shapes.keys()):
            raise ModelNotUsable(f"{state.path}: cannot be loaded ({twice[0]} is in another shard too)", hint=HINT)
        tensors |= state.part("", dtype)
    return tensors
