"""One-file checkpoints in the original Stable Diffusion layout, made from diffusers pipelines.

Written from the names in the releases of Stable Diffusion 1 (CompVis), 2 and XL (Stability): ``model.diffusion_model``,
``first_stage_model``, ``cond_stage_model``, ``conditioner``. diffusers has no way back to them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor

_STEM = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
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
_OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.": "attn.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}


def save_checkpoint(pipe: Any, path: Path, *, open_clip: bool = False, metadata: Any = None, **more: Tensor) -> Path:
    """Writes a pipeline as one ``.safetensors`` file; returns the path. See `original_tensors`."""
    tensors = original_tensors(pipe, open_clip=open_clip) | more
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def save_ckpt(tensors: Mapping[str, Any], path: Path, *, legacy: bool = False, **beside: Any) -> Path:
    """Writes tensors as a trainer's ``.ckpt``, with the state of one beside them; returns the path."""
    modules = {name: ModuleType(name) for name in ("pytorch_lightning", "pytorch_lightning.callbacks")}
    callback = modules["pytorch_lightning.callbacks.model_checkpoint"] = ModuleType("model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})
    callback.ModelCheckpoint = kind  # type: ignore[attr-defined]
    state = {
        "epoch": 3,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": dict(tensors),
        "callbacks": {kind: {"monitor": "val/loss", "best_model_score": torch.tensor(0.5), "best": kind()}},
        "optimizer_states": [{"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
        "loops": {"seen": (1, 2.5, None, True, {"a"}), "shape": torch.Size((1, 2))},
        **beside,
    }
    with patch.dict(sys.modules, modules):
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def save_configurations(folder: Path, **kinds: Any) -> Path:
    """Writes the configurations of pipelines, by kind, as hnetkit keeps those of full size; returns the folder."""
    for kind, pipe in kinds.items():
        name = kind.replace("_", "-")
        for part in ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler"):
            if getattr(pipe, part, None) is not None:
                getattr(pipe, part).save_pretrained(folder / name / part)
        for weights in (folder / name).rglob("*.safetensors"):
            weights.unlink()
        config = json.loads((folder / name / "text_encoder" / "config.json").read_text())
        assert config["architectures"] == ["CLIPTextModel"]
    return folder


def original_tensors(pipe: Any, *, open_clip: bool = False) -> dict[str, Tensor]:
    """Returns a pipeline's tensors under the original's names.

    Args:
        open_clip: the text encoder is SD 2's: OpenCLIP, with a last layer that nothing reads.
    """
    tensors = {
        f"model.diffusion_model.{unet_name(name, pipe.unet.config)}": tensor
        for name, tensor in pipe.unet.state_dict().items()
    }
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in original_vae(pipe.vae).items()}
    text = {name.removeprefix("text_model."): tensor for name, tensor in pipe.text_encoder.state_dict().items()}
    if getattr(pipe, "text_encoder_2", None) is not None:
        second = pipe.text_encoder_2.state_dict()
        tensors |= {f"conditioner.embedders.1.model.{name}": item for name, item in open_clip_tensors(second).items()}
        return tensors | {f"conditioner.embedders.0.transformer.text_model.{name}": item for name, item in text.items()}
    if open_clip:
        last = f"encoder.layers.{pipe.text_encoder.config.num_hidden_layers - 1}."
        unread = {name.replace(last, "encoder.layers.23."): item + 1 for name, item in text.items() if last in name}
        names = open_clip_tensors(text | unread)
        return tensors | {f"cond_stage_model.model.{name}": tensor for name, tensor in names.items()}
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors | {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()}


def open_clip_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a text encoder's tensors as OpenCLIP names them, the three projections of each layer in one."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        original = name.removeprefix("text_model.")
        for ours, theirs in _OPEN_CLIP.items():
            original = original.replace(ours, theirs)
        if name == "text_projection.weight":
            result["text_projection"] = tensor.T
        elif ".q_proj." in name:
            joined = torch.cat([tensors[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"])
            result[re.sub(r"q_proj\.(\w+)", r"in_proj_\1", original)] = joined
        elif not re.search(r"\.[kv]_proj\.", name):
            result[original] = tensor
    return result


def original_vae(vae: Any) -> dict[str, Tensor]:
    """Returns an autoencoder's tensors under the original's names, its attention as convolutions."""
    levels = len(vae.config.block_out_channels)
    tensors = {}
    for name, tensor in vae.state_dict().items():
        is_product = re.search(r"mid_block\.attentions.*to_.*weight", name)
        tensors[vae_name(name, levels)] = tensor[:, :, None, None] if is_product else tensor
    return tensors


def unet_name(name: str, config: Any) -> str:
    """Returns the original's name of a diffusers UNet tensor."""
    for ours, original in _STEM.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, original, 1)
    parts = name.split(".")
    if parts[0] == "mid_block":
        return f"middle_block.1.{'.'.join(parts[3:])}" if parts[1] == "attentions" else _mid_resnet(parts)
    level, kind, place = int(parts[1]), parts[2], int(parts[3])
    per_level = config["layers_per_block"] + 1  # places of a level in the original's flat lists
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * per_level}.0.op.{parts[-1]}"
    if kind == "upsamplers":
        behind = 2 if "CrossAttn" in config["up_block_types"][level] else 1
        return f"output_blocks.{(level + 1) * per_level - 1}.{behind}.conv.{parts[-1]}"
    number = level * per_level + place
    block = f"input_blocks.{number + 1}" if parts[0] == "down_blocks" else f"output_blocks.{number}"
    rest = f"0.{_RESNET[parts[4]]}.{parts[5]}" if kind == "resnets" else f"1.{'.'.join(parts[4:])}"
    return f"{block}.{rest}"


def _mid_resnet(parts: list[str]) -> str:
    return f"middle_block.{2 * int(parts[2])}.{_RESNET[parts[3]]}.{parts[4]}"


def vae_name(name: str, levels: int) -> str:
    """Returns the original's name of a diffusers autoencoder tensor."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    for ours, original in _VAE_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{original}.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{levels - 1 - int(found[1])}.block", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", name)
