"""One-file checkpoints in the original Stable Diffusion layout, made from tiny diffusers pipelines.

Written from the names in the CompVis release of Stable Diffusion 1: ``model.diffusion_model``, ``first_stage_model``,
``cond_stage_model``. The blocks of the tiny pipelines: two levels, attention in each, one ResNet per level.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

LEVELS = 2
PER_LEVEL = 2  # places of one level in the original's flat lists: a ResNet with attention, then what changes the size

_STEM = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_checkpoint(pipe: Any, path: Path) -> Path:
    """Writes a Stable Diffusion 1 pipeline as one ``.safetensors`` file; returns the path."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in pipe.unet.state_dict().items():
        tensors[f"model.diffusion_model.{unet_name(name)}"] = tensor
    for name, tensor in pipe.vae.state_dict().items():
        is_product = re.search(r"mid_block\.attentions.*to_.*weight", name)
        tensors[f"first_stage_model.{vae_name(name)}"] = tensor[:, :, None, None] if is_product else tensor
    for name, tensor in pipe.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def unet_name(name: str) -> str:
    """Returns the original's name of a diffusers UNet tensor."""
    for ours, original in _STEM.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, original, 1)
    parts = name.split(".")
    if parts[0] == "mid_block":
        return f"middle_block.1.{'.'.join(parts[3:])}" if parts[1] == "attentions" else _mid_resnet(parts)
    level, kind, place = int(parts[1]), parts[2], int(parts[3])
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * PER_LEVEL}.0.op.{parts[-1]}"
    if kind == "upsamplers":
        return f"output_blocks.{level * PER_LEVEL + 1}.2.conv.{parts[-1]}"
    number = level * PER_LEVEL + place
    block = f"input_blocks.{number + 1}" if parts[0] == "down_blocks" else f"output_blocks.{number}"
    rest = f"0.{_RESNET[parts[4]]}.{parts[5]}" if kind == "resnets" else f"1.{'.'.join(parts[4:])}"
    return f"{block}.{rest}"


def _mid_resnet(parts: list[str]) -> str:
    return f"middle_block.{2 * int(parts[2])}.{_RESNET[parts[3]]}.{parts[4]}"


def vae_name(name: str) -> str:
    """Returns the original's name of a diffusers autoencoder tensor."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    for ours, original in _VAE_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{original}.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{LEVELS - 1 - int(found[1])}.block", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{LEVELS - 1 - int(found[1])}.upsample", name)
