"""An affine map in the weights of `to_k` or `to_v`: no work at run time, undone bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial, update_wrapper
from types import MethodType
from typing import Any, NoReturn, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hnetkit.errors import AttachError
from hnetkit.kernels.affine import Affine, fold
from hnetkit.runtime.plan import WeightedNetwork

SECONDS = 1.0
"""The float64 products of folding take about this long at most, by the rates below."""

CPU_RATE = 2e10
"""Float64 operations per second of two CPU cores."""

GPU_RATE = 3e11
"""Float64 operations per second of a consumer GPU."""

DATACENTER_RATE = 5e12
"""Float64 operations per second of a GPU with full float64 units, by compute capability."""

DATACENTER = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})

_HINT = "hnetkit.unload_hypernetworks(pipe) first, and load them again after it"
_REFUSED = ("fuse_lora", "unfuse_lora", "fuse_qkv_projections", "load_state_dict")
_UNFOLDED = ("load_lora_adapter", "load_attn_procs", "save_pretrained")  # the second is of diffusers before 0.32


def affordable_flops(device: torch.device) -> float:
    """Returns the float64 operations that `device` does in about a second, by a fixed table: nothing is timed."""
    if device.type == "cpu":
        return SECONDS * CPU_RATE
    if device.type == "cuda":
        full = torch.cuda.get_device_capability(device) in DATACENTER
        return SECONDS * (DATACENTER_RATE if full else GPU_RATE)
    return 0


def can_fold(unet: nn.Module, modules: Iterable[nn.Module]) -> bool:
    """Whether every module is a plain `nn.Linear` of 16 bits or more that holds its own weights.

    Offloading hooks keep weights of their own, and would bring the unfolded ones back.
    """
    if hasattr(unet, "_hf_hook") or hasattr(unet, "_diffusers_hook"):
        return False
    return all(
        type(module) is nn.Linear
        and module.weight.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and not module.weight.is_meta
        and not hasattr(module, "_hf_hook")
        and not hasattr(module, "_diffusers_hook")
        for module in modules
    )


class FoldedMap:
    """A map in the weights of one projection. The original weights are kept in CPU memory.

    What others do to the folded weights meanwhile cannot be done to the original ones: it is lost, and said.

    Attributes:
        networks: the networks and numbers of the map.
    """

    def __init__(self, module: Any, networks: tuple[WeightedNetwork, ...], affine: Affine) -> None:
        self._module = module
        self._weight: nn.Parameter = module.weight
        self._bias: nn.Parameter | None = module.bias
        self._guards: tuple[RemovableHandle, ...] = (
            module.register_state_dict_pre_hook(_refuse_saving),
            module._register_load_state_dict_pre_hook(_refuse_loading),
        )
        weight, bias = fold(self._weight.data, None if self._bias is None else self._bias.data, affine)
        module.weight = nn.Parameter(weight, requires_grad=self._weight.requires_grad)
        module.bias = nn.Parameter(bias, requires_grad=self._weight.requires_grad)
        for parameter in self._originals():
            parameter.data = parameter.data.cpu()
        self.networks = networks
        self._dtype = weight.dtype  # compiled code reads it
        self._bits = self._sum_of_bits()

    @property
    def is_cast(self) -> bool:
        """Whether the folded weights were cast to another dtype, and rounded with the map in them."""
        is_cast: bool = self._module.weight.dtype != self._dtype
        return is_cast

    def rewrite(self, networks: tuple[WeightedNetwork, ...], affine: Affine) -> None:
        """Takes another map in place of this one."""
        self._warn_of_edits()
        like = self._module.weight
        originals = [parameter.data.to(like.device) for parameter in self._originals()]
        weight, bias = fold(originals[0], originals[1] if len(originals) > 1 else None, affine)
        self._module.weight.data.copy_(weight)
        self._module.bias.data.copy_(bias)
        self.networks = networks
        self._bits = self._sum_of_bits()

    def undo(self) -> None:
        """Puts the original parameters back, on the device and in the dtype that the module has by now."""
        self._warn_of_edits()
        like = self._module.weight
        for parameter in self._originals():
            parameter.data = parameter.data.to(like.device, like.dtype)
        self._module.weight = self._weight
        self._module.bias = self._bias
        for guard in self._guards:
            guard.remove()

    def _warn_of_edits(self) -> None:
        if not self.is_cast and self._sum_of_bits() != self._bits:
            warnings.warn(
                "weights of to_k or to_v were changed while hypernetworks were folded into them: the change is undone;"
                " unload the hypernetworks first",
                UserWarning,
                stacklevel=2,
            )

    def _sum_of_bits(self) -> int:
        """Returns the bits of the module's parameters, added as integers: the same number on any device."""
        kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[self._dtype.itemsize]
        return sum(int(parameter.data.view(kind).sum()) for parameter in self._module.parameters())

    def _originals(self) -> list[nn.Parameter]:
        return [self._weight] if self._bias is None else [self._weight, self._bias]


class FoldOwner(Protocol):
    """The state of a UNet with folded maps."""

    def replan(self, *, fold: bool = True) -> None: ...

    def rewrap(self) -> None: ...


def guard(unet: nn.Module, owner: FoldOwner) -> None:
    """Has `unet` refuse to be fused, and other weights, while maps are folded in.

    While it is saved or a LoRA is loaded, they are unfolded.
    """
    if _REFUSED[0] in vars(unet):  # already: what is on the UNet stays as it is, for captured calls compare it
        return
    for method in _REFUSED:
        setattr(unet, method, partial(_refuse_fusing, method))
    for method in _UNFOLDED:
        own = getattr(type(unet), method, None)
        if own is not None:  # pipelines look at what it takes
            setattr(unet, method, update_wrapper(partial(_unfolded, method, unet, owner), MethodType(own, unet)))


def unguard(unet: nn.Module) -> None:
    for method in (*_REFUSED, *_UNFOLDED):
        unet.__dict__.pop(method, None)


def _refuse_saving(module: nn.Module, prefix: str, keep_vars: bool) -> NoReturn:
    raise AttachError(f"{prefix}weight has hypernetworks folded in: its state dict is not the model's own", hint=_HINT)


def _refuse_loading(state_dict: Any, prefix: str, *others: Any) -> NoReturn:
    raise AttachError(f"{prefix}weight has hypernetworks folded in: other weights would take their place", hint=_HINT)


def _refuse_fusing(method: str, *arguments: Any, **options: Any) -> NoReturn:
    raise AttachError(f"{method}: hypernetworks are folded into the UNet's weights", hint=_HINT)


def _unfolded(method: str, unet: Any, owner: FoldOwner, *arguments: Any, **options: Any) -> Any:
    owner.replan(fold=False)
    try:
        return getattr(type(unet), method)(unet, *arguments, **options)
    finally:
        owner.rewrap()
