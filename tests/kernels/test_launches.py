"""What Triton is given at a launch: the kernels are compiled, and a stub stands in for a GPU's driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

TESTS = Path(__file__).resolve().parents[1]

START = """
import copy
import torch
from hnetkit.kernels.gpu import backward, fused, linear, op, specialized
from support.stub_driver import Pointer, install
stub = install(backward, fused, linear, op, specialized)
from support.stacks import context
from support.truth import numbers_for, random_sides
from hnetkit.kernels.weights import pack

def packed(*arguments, **build):
    return [pack(pair, for_kernels=True) for pair in zip(*random_sides(*arguments, torch.float16, **build))]
"""

EVERY_KERNEL = """
x = context(5, 320, dtype=torch.float16)
for path, norm in (("fused", False), ("grouped", True), ("specialized", False)):
    op.KernelStack(packed(1, (320, 64, 320), "relu", norm=norm), path).apply(x, numbers_for(1))
networks = packed(1, (320, 64, 320), "relu", last=True)
backward.gradients(torch.ones(2, 5, 320).half(), x, numbers_for(1), networks)
print(*sorted({launch[0] for launch in stub.launches}))
"""

AGAIN = """
def made(stack, x, strengths):
    stub.launches = []
    return stack.apply(x, strengths), stub.launches

def require_same(theirs, ours, moved):
    assert len(theirs) == len(ours) > 0
    for one, other in zip(theirs, ours):
        assert len(one) == len(other)
        for here, there in zip(one, other):
            for a, b in zip(here, there) if isinstance(here, tuple) else [(here, there)]:
                assert not isinstance(b, Pointer), "by a plan"
                if isinstance(a, Pointer):
                    assert moved.setdefault(int(a), int(b)) == b, "memory is where it was, or moved as one piece"
                else:
                    assert a == b and type(a) is type(b)

for path, shapes, count, norm in (
    ("grouped", (64, 128, 64), 3, False), ("grouped", (64, 96, 128, 64), 2, True), ("fused", (320, 64, 320), 3, False),
    ("specialized", (320, 64, 320), 2, False),
):
    stack, rows = op.KernelStack(packed(count, shapes, "relu", norm=norm), path), 40
    memory = torch.zeros(2, 8 + rows * shapes[0], dtype=torch.float16)
    for start in (8, 1) if path == "grouped" else (8,):  # the second is no multiple of 16 bytes
        x, other = (each[start:][:rows * shapes[0]].view(rows, -1) for each in memory)
        first, second = numbers_for(count), numbers_for(count)
        result, theirs = made(stack, x, first)
        assert any(isinstance(argument, Pointer) for launch in theirs for argument in launch), "by Triton"
        for again, numbers in ((other, second), (x, first)):
            result, ours = made(stack, again, numbers)
            moved = {tensor.data_ptr(): tensor.data_ptr() for tensor in stack._tensors}
            moved[x.data_ptr()] = again.data_ptr()
            for network in range(count):
                moved[first[:, network:].data_ptr()] = numbers[:, network:].data_ptr()
            require_same(theirs, ours, moved)
            assert result.shape == (2, rows, shapes[0]) and result.dtype == x.dtype
            assert result.data_ptr() in moved.values()
    plans = len(stack._plans)
    assert plans == (2 if path == "grouped" else 1)
    result, ours = made(stack, other[:20], second)
    assert len(stack._plans) == plans + 1, "other rows"
    stack._tensors[0].data = stack._tensors[0].data.clone()
    result, ours = made(stack, other[:20], second)
    assert len(stack._plans) == plans + 2, "weights that moved"
    twin = copy.deepcopy(stack)
    result, theirs = made(twin, other[:20], second)
    assert any(isinstance(argument, Pointer) for launch in theirs for argument in launch), "a copy has its own weights"
print("the same")
"""


MEMORY = """
import threading
from triton.runtime import _allocation

stack = op.KernelStack(packed(2, (320, 64, 320), "relu"), "specialized")
x, chosen = context(5, 320, dtype=torch.float16), []

def apply():
    stack.apply(x, numbers_for(2))
    chosen.append(_allocation._allocator.get())

def apply_with_an_own_one():
    triton.set_allocator(own)
    apply()

def own(size, alignment, stream): ...

import triton
for run in (apply, apply, apply_with_an_own_one):
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
print(*[allocator.__name__ for allocator in chosen], len(stack._plans))
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Triton keeps what it compiled, for tests that ask for the same kernels."""
    return tmp_path_factory.mktemp("triton")


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
    kernels = (
        "derivative_kernel",
        "fused_kernel",
        "gradient_kernel",
        "linear_kernel",
        "norm_kernel",
        "specialized_kernel",
    )
    assert printed(START + EVERY_KERNEL, tmp_path).split() == list(kernels)


def test_it_is_the_same_for_an_amd_gpu(tmp_path: Path) -> None:
    """Of AMD's GPUs this is all that is known, beside what their compiler makes of the kernels: none has run one."""
    start = START.replace("op, specialized)", "op, specialized, target=MI300)")
    start = start.replace("import Pointer", "import MI300, Pointer")
    kernels = ("derivative_kernel", "gradient_kernel", "linear_kernel", "norm_kernel")
    begin, end = AGAIN.index('    ("grouped", (64, 128, 64)'), AGAIN.index("):\n    stack, rows")
    one_stack = AGAIN[:begin] + '    ("grouped", (64, 96, 128, 64), 2, True),\n' + AGAIN[end:]
    assert printed(start + EVERY_KERNEL + one_stack, tmp_path).split() == [*kernels, "the", "same"]


def test_a_plan_gives_the_driver_what_triton_gives_it(cache: Path) -> None:
    assert printed(START + AGAIN, cache).split() == ["the", "same"]


def test_memory_for_a_descriptor_comes_from_torch_in_every_thread_unless_something_else_was_chosen(
    cache: Path,
) -> None:
    """By Triton's launcher and by a plan."""
    assert printed(START + MEMORY, cache).split() == ["_from_torch", "_from_torch", "own", "1"]
