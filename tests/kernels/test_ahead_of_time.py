"""Every shipped configuration compiles for the GPUs that take it, without a GPU, and fits on them.

It cannot show speed, races, or that the hardware does what its instructions say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "ahead_of_time.py"
SHARED_KB = {80: 163, 86: 99, 89: 99, 90: 227}  # that a program can have

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")


@pytest.fixture(scope="module")
def kernels() -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-P", SCRIPT], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_every_gpu_gets_kernels_for_few_rows_and_for_many(kernels: list[dict[str, Any]]) -> None:
    for gpu in SHARED_KB:
        assert len([kernel for kernel in kernels if kernel["gpu"] == gpu]) == 4


def test_no_configuration_spills_into_local_memory(kernels: list[dict[str, Any]]) -> None:
    assert [kernel for kernel in kernels if kernel["local"]] == []


def test_shared_memory_is_there_on_the_device(kernels: list[dict[str, Any]]) -> None:
    assert all(kernel["shared"] <= SHARED_KB[kernel["gpu"]] << 10 for kernel in kernels)


def test_products_are_matrix_instructions_of_the_device(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        assert (kernel["wgmma"] if kernel["gpu"] >= 90 else kernel["mma"]) > 0, kernel
