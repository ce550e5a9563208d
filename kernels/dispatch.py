"""Which path computes a stack: the table's for the device, or the one that `HNETKIT_KERNEL` forces.

A forced path that cannot run is an error.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import re
import warnings

import torch

from hnetkit.errors import KernelUnavailable, UsageError
from hnetkit.kernels.configs import VARIABLE, auto_path, is_forced

FORCED = ("auto", "reference", "eager", "grouped", "fused", "chain")
PLAIN = ("reference", "eager")
KERNELS = ("grouped", "fused")
PATHS = (*PLAIN, *KERNELS)
LEAST_TRITON = (3, 6)
"""The kernels compile from this version on; an older one counts as absent."""


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
    why = obstacle_of_triton() if name in KERNELS else None
    if name not in PATHS or why is not None or (name in KERNELS and not _can_run_anywhere()):
        raise KernelUnavailable(
            f"{VARIABLE}={name}: this path cannot run here{f': {why}' if why else ''}", hint=f"unset {VARIABLE}"
        )
    return name


@functools.cache
def obstacle_of_triton() -> str | None:
    """Says why Triton cannot be used, whatever the device: it is not there, or too old. None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    import triton

    found = re.match(r"(\d+)\.(\d+)", triton.__version__)
    if found and (int(found[1]), int(found[2])) < LEAST_TRITON:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, LEAST_TRITON))}"
    return None


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
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return "eager"
    if obstacle_of_triton() is not None:
        _say_once_that_it_is_old()
        return "eager"
    gpu = device if device is not None and device.type == "cuda" else torch.device("cuda")
    path = auto_path(torch.cuda.get_device_capability(gpu))
    if path in KERNELS:
        from hnetkit.kernels.trial import proven_path

        return proven_path(path, torch.device("cuda", gpu.index or torch.cuda.current_device()))
    return path


@functools.cache
def _say_once_that_it_is_old() -> None:
    if importlib.util.find_spec("triton") is not None:
        warnings.warn(f"hnetkit leaves out its kernels: {obstacle_of_triton()}", RuntimeWarning, stacklevel=3)


def _can_run_anywhere() -> bool:
    """Whether there is a GPU, or Triton's interpreter, for kernels to run in."""
    from hnetkit.kernels.devices import is_interpreted

    return is_interpreted() or torch.cuda.is_available()
