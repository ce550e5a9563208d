"""What a UNet with hypernetworks must compute, and what of a UNet can change.

`run` calls a UNet, `plain` makes the same call by the plain implementation; `surface` lists all that attaching could
leave behind; `lora` and `merged` make a LoRA, and a pipeline with it in its weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import hnetkit
from hnetkit.network import Hypernetwork
from support import plain_a1111
from support.pipelines import tiny_sd, unet_call


def run(pipe: Any, **options: Any) -> Tensor:
    """Returns the output of one UNet call, the same call every time."""
    with torch.no_grad():
        result: Tensor = pipe.unet(**unet_call(pipe), return_dict=False, **options)[0]
    return result


def plain(pipe: Any, networks: Sequence[tuple[Hypernetwork, float]]) -> Tensor:
    """Returns the same call by the plain implementation, on a copy of the UNet."""
    fresh = copy.deepcopy(pipe)
    hnetkit.unload_hypernetworks(fresh)
    modules = [(plain_a1111.modules_of(net, fresh.unet.dtype), strength) for net, strength in networks]
    fresh.unet.set_attn_processor(plain_a1111.PlainProcessor(modules))
    return run(fresh)


def surface(unet: nn.Module) -> dict[str, Any]:
    """Returns all that attaching could leave behind: modules, attributes, hooks, and every bit of every tensor."""
    return {
        "modules": [(name, type(module)) for name, module in unet.named_modules()],
        "attributes": {name: sorted(module.__dict__) for name, module in unet.named_modules()},
        "hooks": {
            name: [len(value) for key, value in vars(module).items() if "hook" in key and hasattr(value, "__len__")]
            for name, module in unet.named_modules()
        },
        "parameters": {name: (id(p), _bits(p)) for name, p in unet.named_parameters()},
        "state": {name: _bits(value) for name, value in unet.state_dict().items()},
    }


LORA_RANK = 3


def lora(pipe: Any, parts: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")) -> dict[str, Tensor]:
    """Returns a LoRA for the attention layers as diffusers stores one."""
    noise = torch.Generator().manual_seed(5)
    tensors = {}
    for name, module in pipe.unet.named_modules():
        if name.endswith(parts) and ".attn" in name:
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(LORA_RANK, module.in_features, generator=noise) * 0.3
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(module.out_features, LORA_RANK, generator=noise) * 0.3
    return tensors


def merged(tensors: dict[str, Tensor]) -> Any:
    """Returns a tiny pipeline with the LoRA in its weights."""
    pipe = tiny_sd()
    for name, module in pipe.unet.named_modules():
        if f"unet.{name}.lora_A.weight" in tensors:
            module.weight.data += tensors[f"unet.{name}.lora_B.weight"] @ tensors[f"unet.{name}.lora_A.weight"]
    return pipe


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
