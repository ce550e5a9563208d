"""Where Triton's kernels can run: NVIDIA GPUs, and Triton's interpreter on the CPU."""

from __future__ import annotations

import functools

import torch

from hnetkit.kernels.configs import Capability
from hnetkit.kernels.triton_linear import linear_kernel

_IS_INTERPRETED = not hasattr(linear_kernel, "device_caches")  # asked once: torch.compile cannot ask it


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return _IS_INTERPRETED


def can_run(device: torch.device) -> bool:
    """Whether Triton's kernels run on `device`."""
    return is_interpreted() or (device.type == "cuda" and torch.version.hip is None)


@functools.cache
def capability_of(device: torch.device) -> Capability | None:
    """Returns the compute capability of a CUDA device; None in the interpreter."""
    return None if is_interpreted() else torch.cuda.get_device_capability(device)
