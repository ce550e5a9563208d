"""What of a UNet no CUDA graph can repeat, and why: it is seen before a capture, or while a call warms up for one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_OFFLOADED = ("_hf_hook", "_diffusers_hook")
_HOST_READS = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select",
        "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave",
    )
)  # fmt: skip
_NOTHING = frozenset({"aten::detach", "aten::alias", "aten::lift_fresh"})  # torch adds them where modes are nested
_COPIES = frozenset({"aten::_to_copy", "aten::copy_"})


def is_part_of_more() -> bool:
    """Whether a call is part of something else: of training, a trace of torch's compilers, or a capture of others."""
    is_traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    cuda: Any = torch.cuda
    is_captured = cuda.is_initialized() and cuda.is_current_stream_capturing()
    return torch.is_grad_enabled() or is_traced or bool(is_captured)


def obstacle_of_call() -> str | None:
    """Says why a call that is made now cannot be captured."""
    if torch.is_autocast_enabled():
        return "under autocast, weights have copies that last for one call"
    return None


def obstacle_of_unet(unet: nn.Module, device: torch.device) -> str | None:
    """Says why a UNet on a device cannot be captured, as far as it shows."""
    for module in unet.modules():
        if any(name in vars(module) for name in _OFFLOADED):
            return "parts of it are offloaded"
    if any(tensor.device != device for tensor in unet.parameters()):
        return "it is on several devices"
    return None


def obstacle_of_error(error: Exception) -> str:
    """Says why a capture failed."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "there is not enough memory for its graph"
    lines = str(error).strip().splitlines()
    return f"capturing it fails ({lines[0][:200] if lines else type(error).__name__})"


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation of a call.

    Attributes:
        operations: in order, with their numbers.
        obstacle: why the first one that a graph cannot repeat is no part of one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[object] = []
        self.obstacle: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.name() not in _NOTHING:
            numbers = [argument for argument in args if type(argument) in (bool, int, float)]
            self.operations.append((func, numbers))
        if self.obstacle is None:
            self.obstacle = _obstacle_of_operation(func, args, output)
        return output


def _obstacle_of_operation(func: Any, args: tuple[Any, ...], output: Any) -> str | None:
    name = func.name().partition(".")[0]
    if name in _COPIES:  # from one device to another
        waits = any(isinstance(argument, Tensor) and argument.device != output.device for argument in args)
    elif name == "aten::index":
        waits = any(index is not None and index.dtype == torch.bool for index in args[1])
    else:
        waits = name in _HOST_READS
    if waits:
        return f"it waits for values on the host ({name})"
    is_random = torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name  # its dropout is 0
    if "dropout" in name:
        is_random = bool(args[1] and args[2])
    return f"it draws random numbers ({name})" if is_random else None
