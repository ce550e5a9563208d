"""Which path computes a stack: the table's for the device, or the one that `HNETKIT_KERNEL` forces.

A forced path that cannot run is an error.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import torch

from hnetkit.errors import KernelUnavailable, UsageError, did_you_mean
from hnetkit.kernels.configs import VARIABLE, auto_path, is_forced
from hnetkit.kernels.eager import allows_tf32, bf16_obstacle
from hnetkit.kernels.gpu import triton_obstacle

FORCED = ("auto", "reference", "eager", "bf16", "grouped", "fused", "specialized", "chain")
"""What `HNETKIT_KERNEL` may be; ``chain`` is reserved, and an error in this version."""

BF16 = "bf16"
"""Plain torch with products in bf16 under a sum in fp32, for processors with instructions for them; only if forced."""

PLAIN = ("reference", "eager", BF16)
KERNELS = ("grouped", "fused", "specialized")
PATHS = (*PLAIN, *KERNELS)


def chosen_path(device: torch.device | None = None) -> str:
    """Returns the name of the path that computes stacks in this process: one of `PATHS`.

    Args:
        device: where stacks are computed. For None and for a CPU the path is that of the GPU that work would go to;
            on the CPU itself plain torch stands in for a GPU's path. `BF16` is a path of CPUs alone.

    Raises:
        UsageError: `HNETKIT_KERNEL` is not the name of a path.
        KernelUnavailable: it names a path that this version or machine does not have.
    """
    name = os.environ.get(VARIABLE) or "auto"
    if name not in FORCED:
        raise UsageError(
            f"{VARIABLE}={name}: no such path", hint=f"set it to {did_you_mean(name, FORCED) or ', '.join(FORCED)}"
        )
    if name == "auto" or (name == BF16 and device is not None and device.type != "cpu"):
        return _auto(device)
    why = _obstacle(name, device)
    if name not in PATHS or why is not None or (name in KERNELS and not _can_run_anywhere()):
        raise KernelUnavailable(
            f"{VARIABLE}={name}: this path cannot run here{f': {why}' if why else ''}", hint=f"unset {VARIABLE}"
        )
    return name


def path_on(path: str, device: torch.device, dtype: torch.dtype) -> str:
    """Returns what computes a stack of weights of `dtype` on `device` where `path` was chosen.

    The kernels have no fp64. In fp32 at torch's highest precision they have no matrix instructions, and plain torch is
    faster. The path `BF16` is for weights that are in fp32 otherwise.
    """
    if path == BF16:
        return path if device.type == "cpu" and dtype == torch.float32 else "eager"
    if path not in KERNELS:
        return path
    if dtype == torch.float64:
        return "eager"
    from hnetkit.kernels.gpu.device import can_run

    runs = can_run(device)
    if (runs and dtype != torch.float32) or is_forced(path):  # compiled code cannot ask for the precision
        return path
    return path if runs and allows_tf32() else "eager"


def _auto(device: torch.device | None) -> str:
    if not torch.cuda.is_available():
        return "eager"
    if triton_obstacle() is not None:
        _warn_once_of_an_old_triton()
        return "eager"
    gpu = _gpu_for(device)
    from hnetkit.kernels.gpu.device import architecture_of

    path = auto_path(architecture_of(gpu))
    if path in KERNELS:
        from hnetkit.kernels.gpu.op import verified_path

        return verified_path(path, gpu)
    return path


def _fault_of_forced(path: str, device: torch.device | None) -> str | None:
    """Says what is wrong with kernels that are forced on an AMD GPU, which none has run on so far; None elsewhere."""
    if torch.version.hip is None or not torch.cuda.is_available():
        return None
    from hnetkit.kernels.gpu.op import fault_of

    gpu = _gpu_for(device)
    fault = fault_of(path, gpu)
    return None if fault is None else f"on {gpu} the kernels {fault}"


def _obstacle(path: str, device: torch.device | None) -> str | None:
    if path == BF16:
        return bf16_obstacle()
    if path in KERNELS:
        return triton_obstacle() or _fault_of_forced(path, device)
    return None


def _gpu_for(device: torch.device | None) -> torch.device:
    """Returns the GPU that `device` is, with its number; the current one where it names none."""
    index = device.index if device is not None and device.type == "cuda" else None
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


@functools.cache
def _warn_once_of_an_old_triton() -> None:
    if importlib.util.find_spec("triton") is not None:
        warnings.warn(f"hnetkit leaves out its kernels: {triton_obstacle()}", RuntimeWarning, stacklevel=3)


def _can_run_anywhere() -> bool:
    """Whether this process has a GPU, or Triton's interpreter, to run kernels in."""
    from hnetkit.kernels.gpu.device import is_interpreted

    return is_interpreted() or torch.cuda.is_available()
