"""What other programs make of a LoRA or of full differences, from the rules of their loaders; every key must count.

ComfyUI and Forge: comfy/lora.py: a difference of a bias goes where there is a bias. AUTOMATIC1111 and SD.Next:
network_full.py and networks.py: a bias is made where there is none, and a module with `diff_b` needs `diff`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def apply(pipe: Any, tensors: dict[str, Tensor], program: str, strength: float = 1.0) -> None:
    """Adds the tensors of a file to a pipeline's UNet, as `program` does; refuses what that would not read."""
    modules = {f"lora_unet_{name.replace('.', '_')}": module for name, module in pipe.unet.named_modules()}
    left = dict(tensors)
    for name in {key.rpartition(".")[0].removesuffix(".lora_up").removesuffix(".lora_down") for key in tensors}:
        module = modules[name]
        own = {key.removeprefix(f"{name}."): left.pop(key) for key in list(left) if key.startswith(f"{name}.")}
        _add(module, own, program, strength)
    assert left == {}


def _add(module: Any, own: dict[str, Tensor], program: str, strength: float) -> None:
    weight, bias = own.pop("diff", None), own.pop("diff_b", None)
    if "lora_up.weight" in own:
        up, down = own.pop("lora_up.weight"), own.pop("lora_down.weight")
        weight = up @ down * (own.pop("alpha") / len(down))
    assert own == {}
    with torch.no_grad():
        if weight is not None:
            module.weight += strength * weight
        if bias is None:
            return
        if program == "a1111":
            assert weight is not None, "AUTOMATIC1111 refuses a module with diff_b and no diff"
            if module.bias is None:
                module.bias = nn.Parameter(torch.zeros(len(module.weight)))
        module.bias += strength * bias
