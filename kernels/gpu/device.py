"""Where Triton's kernels can run: on NVIDIA and AMD GPUs, and in Triton's interpreter on the CPU."""

from __future__ import annotations

import functools

import torch

from hnetkit.kernels.configs import Architecture
from hnetkit.kernels.gpu.activations import activate

_IS_INTERPRETED = not hasattr(activate, "device_caches")  # looked up once: torch.compile cannot trace it


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return _IS_INTERPRETED


def can_run(device: torch.device) -> bool:
    """Whether Triton's kernels run on `device`."""
    return is_interpreted() or device.type == "cuda"  # which torch for ROCm says of AMD's, too


@functools.cache
def multiprocessors_of(device: torch.device) -> int:
    """Returns how many multiprocessors a CUDA device has; 1 in the interpreter."""
    return 1 if is_interpreted() else torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def capability_of(device: torch.device) -> Architecture | None:
    """Returns what tables know a GPU by; None in the interpreter."""
    return None if is_interpreted() else architecture_of(device)


def architecture_of(device: torch.device) -> Architecture:
    """Returns the compute capability of a GPU, or of AMD's the name of its architecture."""
    if torch.version.hip is None:
        return torch.cuda.get_device_capability(device)
    name: str = torch.cuda.get_device_properties(device).gcnArchName  # gfx942:sramecc+:xnack-
    return name.partition(":")[0]
