"""What the graphs of a UNet depend on: it is compared at each replay, and graphs are dropped where it differs.

It is all but the numbers in tensors: the classes, attributes, hooks and weights of all modules, what hypernetworks do
on them, and torch's settings. A UNet has hundreds of modules with twenty attributes each. So everything is laid out
once, in lists that Python compares by itself: a step of bytecode for each attribute takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter, itemgetter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hnetkit.kernels.eager import allows_tf32
from hnetkit.runtime.unet_state import UNetState

CONSTANTS = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size})
"""Classes of values that are nothing but themselves."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_IN_EVERY_MODULE = ("training", "_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_forward_hooks")
_DEPTH = 3  # of values in values: LoRA's scale is in a dict, that of an IP-Adapter in a list of its processor


class Fingerprint:
    """A UNet as it is now.

    An attribute is the same object or an equal one, with the same attributes of its own; a container has the same
    parts; a tensor is the same one, at the same place, of the same layout. What is compared is kept: no other object
    can take its address meanwhile.

    Args:
        unet: it is not kept.
        but: an attribute of it that is left out: what holds the fingerprint.
    """

    def __init__(self, unet: nn.Module, but: object) -> None:
        modules, self._eras = _modules_of(unet)
        self._but = but
        self._watched = {id(module): _DEPTH for module in modules}  # and how deep
        self._tensors: list[Tensor] = []
        self._wrappers: list[Any] = []  # tensors that are made of others, as quantized weights are
        self._objects: list[dict[str, Any]] = []  # the attributes of other objects
        self._objects_then: list[dict[str, Any]] = []
        self._class, self._modules = type(unet), modules[1:]
        self._attributes_of_unet = {
            name: value if name in _OF_EVERY_MODULE else self._noted(value)
            for name, value in _attributes(unet, but).items()
        }
        self._classes = [*map(type, self._modules)]
        by_names = _grouped(map(vars, self._modules))
        self._getters = [itemgetter(*_IN_EVERY_MODULE, *names) for names in by_names]
        self._attributes = [*by_names.values()]
        self._sizes = self._sizes_now()
        common = len(_IN_EVERY_MODULE)
        self._values = [(*values[:common], *map(self._noted, values[common:])) for values in self._values_now()]
        inner = [vars(module)[name] for name in _IN_EVERY_MODULE[1:] for module in modules]
        self._empty = [own for own in inner if not own]
        self._inner = [own for own in inner if own]
        self._names = [*chain.from_iterable(self._inner)]
        self._parts = [self._noted(part) for part in self._parts_now()]
        self._addresses, self._layouts = self._addresses_now(), self._layouts_now()
        self._settings = _settings()

    def is_in_place(self) -> bool:
        """Whether all that graphs read is where it was, which is soon found out.

        As long as it is, a graph can be replayed, if only to find that its UNet has changed: tensors that were taken
        off the UNet are kept here.
        """
        return self._addresses_now() == self._addresses and all(state.era is era for state, era in self._eras)

    def holds(self, unet: nn.Module) -> bool:
        """Whether the UNet is still as it was."""
        return self.is_in_place() and self.is_alike(unet)

    def is_alike(self, unet: nn.Module) -> bool:
        """Whether all else is as it was, of a UNet that `is_in_place`."""
        try:
            return (
                type(unet) is self._class
                and self._attributes_of_unet == _attributes(unet, self._but)
                and self._classes == [*map(type, self._modules)]
                and self._sizes == self._sizes_now()
                and self._values == self._values_now()
                and not any(self._empty)
                and self._names == [*chain.from_iterable(self._inner)]
                and self._parts == self._parts_now()
                and self._objects_then == self._objects
                and self._layouts == self._layouts_now()
                and self._settings == _settings()
            )
        except Exception:  # something is gone, or is a tensor, an array or the like, which are not simply equal or not
            return False

    def writes(self) -> list[int]:
        """Returns how often each tensor was written to so far."""
        return [0 if tensor.is_inference() else tensor._version for tensor in self._tensors]

    def _sizes_now(self) -> list[int]:
        """Returns how many attributes each module has: with as many, none is new where none is gone."""
        return [*map(len, chain.from_iterable(self._attributes))]

    def _values_now(self) -> list[tuple[Any, ...]]:
        """Returns the attributes of each module."""
        return [*chain.from_iterable(map(map, self._getters, self._attributes))]

    def _parts_now(self) -> list[Any]:
        """Returns weights, buffers, modules and hooks."""
        return [*chain.from_iterable(map(dict.values, self._inner))]

    def _addresses_now(self) -> list[int]:
        wrapped = [tensor.data_ptr() for wrapper in self._wrappers for tensor in _tensors_in(wrapper)]
        return [*map(Tensor.data_ptr, self._tensors), *wrapped]

    def _layouts_now(self) -> list[object]:
        tensors = self._tensors
        return [*map(attrgetter("dtype"), tensors), *map(attrgetter("shape"), tensors), *map(Tensor.stride, tensors)]

    def _noted(self, value: Any, depth: int = _DEPTH) -> Any:
        """Returns what a value must be equal to: containers are copied, as they may change; all else is itself."""
        kind = type(value)
        if kind in CONSTANTS:
            return value
        if isinstance(value, Tensor):
            (self._wrappers if _is_wrapper(value) else self._tensors).append(value)
            return _Itself(value) if value.numel() == 1 else value
        if depth and kind in (tuple, list):
            return kind([self._noted(part, depth - 1) for part in value])
        if depth and kind is dict:
            return {name: self._noted(part, depth - 1) for name, part in value.items()}
        if depth > 1 and self._watched.get(id(value), 0) < depth:
            self._watched[id(value)] = depth
            own = getattr(value, "__dict__", None)
            is_ours = kind.__module__.partition(".")[0] == "hnetkit"
            if type(own) is dict and not is_ours and not isinstance(value, ModuleType):
                self._objects_then.append(self._noted(own, depth - 1))
                self._objects.append(own)
        return value


class _Itself:
    """Is equal to one tensor alone. A tensor of one number is equal to others, which the host would wait to know."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __eq__(self, other: object) -> bool:
        return other is self._tensor


def _is_wrapper(tensor: Tensor) -> bool:
    return hasattr(tensor, "__tensor_flatten__")


def _tensors_in(wrapper: Any) -> Iterator[Tensor]:
    """Yields the tensors that one without memory of its own is made of."""
    for name in wrapper.__tensor_flatten__()[0]:
        inner = getattr(wrapper, name)
        if _is_wrapper(inner):
            yield from _tensors_in(inner)
        else:
            yield inner


def _modules_of(unet: nn.Module) -> tuple[list[nn.Module], list[tuple[UNetState, object]]]:
    """Returns the UNet and all modules in it, but for hypernetworks: these say when what was captured is of no use."""
    modules, eras = [unet], []
    for module in modules:  # it grows
        for inner in vars(module)["_modules"].values():
            if isinstance(inner, UNetState):
                eras.append((inner, inner.era))
            elif inner is not None:
                modules.append(inner)
    return modules, eras


def _attributes(unet: nn.Module, but: object) -> dict[str, Any]:
    return {name: value for name, value in vars(unet).items() if value is not but}


def _grouped(attributes: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Returns the attributes of modules by their names, without those that every module has."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for own in attributes:
        groups.setdefault(tuple(name for name in own if name not in _OF_EVERY_MODULE), []).append(own)
    return groups


_OF_PRODUCTS = (
    "allow_fp16_accumulation",
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
)
_ASKED: list[Any] = [
    getattr(torch.backends.cuda, name)
    for name in (
        "flash_sdp_enabled",
        "mem_efficient_sdp_enabled",
        "math_sdp_enabled",
        "cudnn_sdp_enabled",
        "fp16_bf16_reduction_math_sdp_allowed",
        "preferred_blas_library",
    )
    if hasattr(torch.backends.cuda, name)
]


def _settings() -> list[object]:
    """Returns torch's settings by which it chooses kernels, as far as its version has them."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    return [
        torch.are_deterministic_algorithms_enabled(),
        allows_tf32(),
        *[getattr(matmul, name, None) for name in _OF_PRODUCTS],
        cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32,
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        *[ask() for ask in _ASKED],
    ]
