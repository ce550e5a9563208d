"""Which path computes a stack: the table's for the device, or the one that `HNETKIT_KERNEL` forces.

A forced path that cannot run is an error.
"""

from __future__ import annotations

import difflib
import importlib.util
import os

import torch

from hnetkit.errors import KernelUnavailable, UsageError
from hnetkit.kernels.configs import VARIABLE, auto_path, is_forced

FORCED = ("auto", "reference", "eager", "grouped", "fused", "chain")
PLAIN = ("reference", "eager")
KERNELS = ("grouped", "fused")
PATHS = (*PLAIN, *KERNELS)


def chosen_path(device: torch.device | None = None) -> str:
    """Returns the name of the path that computes stacks in this process: one of `PATHS`.

    Args:
        device: where; None or a CPU: the GPU that work would go to. On a CPU itself, what a GPU's path was chosen for
            is computed by plain torch.

    Raises:
        UsageError: `HNETKIT_KERNEL` is no name of a path.
        KernelUnavailable: it names a path that this version or machine does not have.
    """
    name = os.environ.get(VARIABLE) or "auto"
    if name not in FORCED:
        near = difflib.get_close_matches(name, FORCED, n=1)
        raise UsageError(f"{VARIABLE}={name}: no such path", hint=f"set it to {near[0] if near else ', '.join(FORCED)}")
    if name == "auto":
        return _auto(device)
    if name not in PATHS or (name in KERNELS and not _has_triton()):
        raise KernelUnavailable(f"{VARIABLE}={name}: this path cannot run here", hint=f"unset {VARIABLE}")
    return name


def path_on(path: str, device: torch.device, dtype: torch.dtype) -> str:
    """Returns what computes a stack of weights of `dtype` on `device` where `path` was chosen.

    The kernels know no fp64, and in fp32 at torch's highest precision they have no matrix instructions: plain torch is
    quicker then.
    """
    if path not in KERNELS or (is_forced(path) and dtype != torch.float64):
        return path
    is_slow = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    if dtype == torch.float64 or is_slow:
        return "eager"
    from hnetkit.kernels.devices import can_run

    return path if can_run(device) else "eager"


def _auto(device: torch.device | None) -> str:
    if not torch.cuda.is_available() or torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return "eager"
    gpu = device if device is not None and device.type == "cuda" else torch.device("cuda")
    path = auto_path(torch.cuda.get_device_capability(gpu))
    if path in KERNELS:
        from hnetkit.kernels.trial import proven_path

        return proven_path(path, torch.device("cuda", gpu.index or torch.cuda.current_device()))
    return path


def _has_triton() -> bool:
    """Whether Triton is installed, with a GPU or its interpreter to run in."""
    if importlib.util.find_spec("triton") is None:
        return False
    from hnetkit.kernels.devices import is_interpreted

    return is_interpreted() or torch.cuda.is_available()
