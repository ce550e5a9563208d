"""What ComfyUI is to a node, in small: folders, models that are copied and moved, and a UNet that calls patches.

Written from its documented behavior: a patch gets ``(q, k, v, options)`` before each projection, models share one
network while their options are copied, and what `models()` of a patch gives is moved with the model. The UNet computes
what the one of diffusers does with the same weights, in blocks that are named and numbered as ComfyUI's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.stand_in_modules import importable

CPU = torch.device("cpu")


class Model:
    """A MODEL of a workflow, and anything else that ComfyUI loads, counts and moves: its `ModelPatcher`."""

    def __init__(self, model: Any, load_device: torch.device, offload_device: torch.device, size: int = 0) -> None:
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> Model:
        twin = Model(self.model, self.load_device, self.offload_device, self.size)
        twin.model_options = copy.deepcopy(self.model_options)
        return twin

    def set_model_attn1_patch(self, patch: Any) -> None:
        self._patches("attn1_patch").append(patch)

    def set_model_attn2_patch(self, patch: Any) -> None:
        self._patches("attn2_patch").append(patch)

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def model_dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.diffusion_model.dtype
        return dtype

    def patches(self) -> list[Any]:
        """Returns the patches of both kinds of attention."""
        kinds = self.model_options["transformer_options"].get("patches", {}).values()
        return [patch for patches in kinds for patch in patches]

    def load(self) -> list[Any]:
        """Gets ready to sample; returns what was loaded beside the model."""
        for patch in self.patches():
            if hasattr(patch, "to"):
                patch.to(self.load_device)
                patch.to(self.model_dtype())
        beside = list(
            dict.fromkeys(own for patch in self.patches() if hasattr(patch, "models") for own in patch.models())
        )
        for own in beside:
            own.model.to(own.load_device)
        return beside

    def detach(self) -> None:
        """Leaves the device."""
        for patch in self.patches():
            if hasattr(patch, "to"):
                patch.to(self.offload_device)

    def __call__(self, x: Tensor, timestep: Tensor, context: Tensor, **options: Any) -> Tensor:
        """Returns what the UNet predicts in one step."""
        transformer = {**self.model_options["transformer_options"], "sigmas": timestep, **options}
        output: Tensor = self.model.diffusion_model(x, timestep, context, transformer)
        return output

    def _patches(self, name: str) -> list[Any]:
        patches: list[Any] = self.model_options["transformer_options"].setdefault("patches", {}).setdefault(name, [])
        return patches


class UNet(nn.Module):
    """A UNet of diffusers in ComfyUI's form; its weights are shared."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.num_res_blocks = [unet.config.layers_per_block] * len(unet.config.block_out_channels)
        self.dtype = unet.dtype
        self._unet = (unet,)  # its own names would be found too
        self._options: dict[str, Any] = {}
        numbers = _blocks(unet)
        sides = {"input": nn.ModuleDict(), "middle": nn.ModuleDict(), "output": nn.ModuleDict()}
        for (side, number), attention in numbers.items():
            sides[side][str(number)] = attention
            attention.register_forward_pre_hook(self._entering(side, 0 if side == "middle" else number))
            for index, block in enumerate(attention.transformer_blocks):
                block.forward = _forward(block, index, self)
        self.input_blocks, self.middle_block, self.output_blocks = sides["input"], sides["middle"], sides["output"]

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        self._options = dict(transformer_options)
        output: Tensor = self._unet[0](x, timesteps, context, return_dict=False)[0]
        return output

    def options(self, index: int) -> dict[str, Any]:
        """Returns what a patch is told in a block."""
        return {**{key: own for key, own in self._options.items() if key != "patches"}, "block_index": index}

    def patches(self, name: str) -> Sequence[Any]:
        patches: Sequence[Any] = self._options.get("patches", {}).get(name, [])
        return patches

    def _entering(self, side: str, number: int) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            self._options["block"] = (side, number)

        return enter


def _blocks(unet: Any) -> dict[tuple[str, int], Any]:
    """Returns the transformers by their block: a level has its residual blocks and one that changes the size."""
    step = unet.config.layers_per_block + 1
    blocks: dict[tuple[str, int], Any] = {}
    for level, down in enumerate(unet.down_blocks):
        for index, attention in enumerate(getattr(down, "attentions", [])):
            blocks["input", 1 + level * step + index] = attention
    blocks["middle", 1] = unet.mid_block.attentions[0]
    for level, up in enumerate(unet.up_blocks):
        for index, attention in enumerate(getattr(up, "attentions", [])):
            blocks["output", level * step + index] = attention
    return blocks


def _forward(block: Any, index: int, unet: UNet) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, encoder_hidden_states: Tensor, **others: Any) -> Tensor:
        for number, norm, context in ((1, block.norm1, None), (2, block.norm2, encoder_hidden_states)):
            q = norm(hidden_states)
            k = v = q if context is None else context
            for patch in unet.patches(f"attn{number}_patch"):
                q, k, v = patch(q, k, v, unet.options(index))
            hidden_states = hidden_states + _attend(getattr(block, f"attn{number}"), q, k, v)
        fed: Tensor = block.ff(block.norm3(hidden_states))
        return fed + hidden_states

    return forward


def _attend(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = attention.to_q(q), attention.to_k(k), attention.to_v(v)
    heads = [part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in (q, k, v)]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
    output: Tensor = attention.to_out[0](mixed)
    return output


def model_of(unet: Any) -> Model:
    """Returns a MODEL with a UNet of diffusers; the UNet is a copy."""
    inner = SimpleNamespace(diffusion_model=UNet(copy.deepcopy(unet)), manual_cast_dtype=None)
    return Model(inner, CPU, CPU)


@contextmanager
def installed(folder: Path) -> Iterator[ModuleType]:
    """Lets nodes import ComfyUI, with a folder of hypernetworks.

    Args:
        folder: ``models/hypernetworks``.
    """
    folders = [str(folder)]
    paths = ModuleType("folder_paths")
    paths.get_folder_paths = lambda kind: list(folders)  # type: ignore[attr-defined]
    paths.add_model_folder_path = lambda kind, path: folders.append(path)  # type: ignore[attr-defined]
    paths.get_filename_list = lambda kind: sorted(  # type: ignore[attr-defined]
        {str(file.relative_to(root)) for root in folders for file in Path(root).rglob("*") if file.is_file()}
    )
    paths.get_full_path = lambda kind, name: next(  # type: ignore[attr-defined]
        (str(Path(root, name)) for root in folders if Path(root, name).is_file()), None
    )
    comfy, patcher = ModuleType("comfy"), ModuleType("comfy.model_patcher")
    patcher.ModelPatcher = Model  # type: ignore[attr-defined]
    comfy.model_patcher = patcher  # type: ignore[attr-defined]
    modules = {"folder_paths": paths, "comfy": comfy, "comfy.model_patcher": patcher}
    with importable(modules):
        yield paths
