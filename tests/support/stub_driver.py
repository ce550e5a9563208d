"""Triton's way to a launch, without a GPU: kernels are compiled for a Hopper, and what the driver is given is noted.

Run without TRITON_INTERPRET: kernels that are defined for the interpreter cannot be compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

CAPABILITY = (9, 0)


class _Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, *arguments: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024

    def unload_module(self, module: int) -> None:
        pass


class StubDriver:
    """Stands in for CUDA's driver.

    Attributes:
        launches: the kernel's name, the grid and the arguments of each launch so far.
    """

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[int, ...], tuple[Any, ...]]] = []
        self.utils = _Utils()

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: int, packed: Any, *others: Any) -> None:
            self.launches.append((metadata.name, (x, y, z), others[3:]))

        return launch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY[0] * 10 + CAPABILITY[1], 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda


def install() -> StubDriver:
    """Puts a stub in place of the driver, and has the kernels take the CPU for a Hopper."""
    from hnetkit.kernels.gpu import backward, fused, linear, op

    stub = StubDriver()
    driver.set_active(stub)
    for module in (backward, fused, linear):
        module.capability_of = lambda device: CAPABILITY
    op.can_run = lambda device: True
    return stub
