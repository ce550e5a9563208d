"""What Triton is given at a launch: the kernels are compiled, and a stub stands in for a GPU's driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

TESTS = Path(__file__).resolve().parents[1]

EVERY_KERNEL = """
import torch
from support.stub_driver import install
stub = install()
from support.stacks import context
from support.truth import numbers_for, random_sides
from hnetkit.kernels.gpu import backward, op
from hnetkit.kernels.weights import pack

for path, norm in (("fused", False), ("grouped", True)):
    x, sides = context(5, 320, dtype=torch.float16), random_sides(1, (320, 64, 320), "relu", torch.float16, norm=norm)
    runs = op.arrange([pack(pair, for_kernels=True) for pair in zip(*sides)], path)
    op.apply(x, op.flatten(runs), numbers_for(1), path)
sides = random_sides(1, (320, 64, 320), "relu", torch.float16, last=True)
networks = [pack(pair, for_kernels=True) for pair in zip(*sides)]
backward.gradients(torch.ones(2, 5, 320).half(), x, numbers_for(1), networks)
print(*sorted({name for name, _, _ in stub.launches}))
"""


def printed(code: str, cache: Path, *options: str) -> str:
    """What code prints in a process where kernels are compiled, and every warning of Triton is an error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(TESTS), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "error::UserWarning", *options, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_no_kernel_leaves_a_choice_of_the_compiler_to_triton(tmp_path: Path) -> None:
    """Where the fusion of products and sums is not chosen, Triton 3.9 warns, and 3.10 turns it off."""
    kernels = ("derivative_kernel", "fused_kernel", "gradient_kernel", "linear_kernel", "norm_kernel")
    assert printed(EVERY_KERNEL, tmp_path).split() == list(kernels)
