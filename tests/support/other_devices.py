"""Tensors as torch pickles those of devices without storages: Macs' GPUs with torch 1.12, XLA, DirectML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Saved = Callable[[torch.Tensor], Any]


class Reduced:
    """Pickles as a call of a global with arguments, as torch's tensors do."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = function, arguments

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._reduced


def as_array(tensor: torch.Tensor, array: Any = None, dtype: torch.dtype | None = None) -> Reduced:
    """torch 1.12 on a Mac."""
    values = tensor.numpy() if array is None else array
    return Reduced(torch._utils._rebuild_device_tensor_from_numpy, values, dtype or tensor.dtype, "mps:0", False)


def as_cpu_tensor(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> Reduced:
    """torch of today, on devices without storages."""
    rebuild = torch._utils._rebuild_device_tensor_from_cpu_tensor
    return Reduced(rebuild, tensor, dtype or tensor.dtype, "privateuseone:0", False)


def elsewhere(content: Any, saved: Saved) -> Any:
    if isinstance(content, torch.Tensor):
        return saved(content)
    if isinstance(content, dict):
        return type(content)((key, elsewhere(item, saved)) for key, item in content.items())
    return tuple(elsewhere(item, saved) for item in content) if isinstance(content, tuple) else content
