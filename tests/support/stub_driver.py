"""Triton's way to a launch, without a GPU: kernels are compiled for one, and what its driver is given is noted.

Run without TRITON_INTERPRET: kernels that are defined for the interpreter cannot be compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.tools.tensor_descriptor import TensorDescriptor

HOPPER = GPUTarget("cuda", 90, 32)
MI300 = GPUTarget("hip", "gfx942", 64)
MULTIPROCESSORS = 132


class _Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448, "multiprocessor_count": MULTIPROCESSORS, "warpSize": 32}

    def load_binary(self, *arguments: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024

    def unload_module(self, module: int) -> None:
        pass


class Pointer(int):
    """The address of a tensor that a launch was given; a plan gives numbers."""


class StubDriver:
    """Stands in for the driver of a GPU.

    Attributes:
        target: the GPU.
        launches: what each launch so far was given: the kernel's name, the grid, and the arguments, tensors as pointers
            and descriptors as tuples. None: they are not noted.
    """

    def __init__(self, target: GPUTarget) -> None:
        self.target = target
        self.launches: list[tuple[object, ...]] | None = []
        self.utils = _Utils()

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: int, packed: Any, *others: Any) -> None:
            if self.launches is not None:
                self.launches.append((metadata.name, (x, y, z), *map(_noted, others[3:])))

        return launch

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda


def _noted(argument: Any) -> Any:
    if isinstance(argument, TensorDescriptor):
        base = argument.base.data_ptr()
        place = Pointer(base) if isinstance(argument.base, torch.Tensor) else base
        return (place, *argument.shape, *argument.strides, *argument.block_shape, argument.padding)
    return Pointer(argument.data_ptr()) if isinstance(argument, torch.Tensor) else argument


def install(*modules: Any, target: GPUTarget = HOPPER) -> StubDriver:
    """Puts a stub in place of the driver, and has modules of kernels take the CPU for a GPU."""
    stub = StubDriver(target)
    driver.set_active(stub)
    architecture = divmod(target.arch, 10) if isinstance(target.arch, int) else target.arch
    for module in modules:
        for name, value in (
            ("capability_of", architecture),
            ("multiprocessors_of", MULTIPROCESSORS),
            ("can_run", True),
        ):
            if hasattr(module, name):
                setattr(module, name, lambda device, value=value: value)
    return stub
