"""What holds for every path of Triton kernels: wrong results are seen, strength 0 costs no bit, nonsense is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.stacks import cast, context, random_mlp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

from support.torch_settings import setting
from support.truth import DEVICE, Sides, numbers_for, random_sides, require_right, run, there

from hnetkit.errors import KernelUnavailable
from hnetkit.kernels import configs
from hnetkit.kernels.dispatch import path_on
from hnetkit.kernels.executor import StackExecutor, pack_pair
from hnetkit.kernels.gpu import fused, linear, op, specialized
from hnetkit.kernels.gpu.device import is_interpreted
from hnetkit.kernels.weights import pack

SHAPES = {"grouped": (24, 40, 24), "fused": (320, 64, 320), "specialized": (320, 64, 320)}
paths = pytest.mark.parametrize("path", list(SHAPES))


def stack_for(path: str, count: int = 3, **build: bool) -> tuple[Tensor, Sides]:
    shapes = SHAPES[path]
    return context(5, shapes[0], dtype=torch.float16), random_sides(count, shapes, "relu", torch.float16, **build)


def changed(strengths: Tensor) -> Tensor:
    strengths = strengths.clone()
    strengths[1, 2] += 0.05
    return strengths


BROKEN: dict[str, Callable[[Tensor, Sides, Tensor, str], Tensor]] = {
    "a dropped network": lambda x, s, n, path: run(x, (s[0][:2], s[1][:2]), n[:, :2], path),
    "K and V swapped": lambda x, s, n, path: run(x, (s[1], s[0]), n, path),
    "strengths of K and V swapped": lambda x, s, n, path: run(x, s, n.flip(0), path),
    "a wrong strength": lambda x, s, n, path: run(x, s, changed(n), path),
    "another order": lambda x, s, n, path: run(x, tuple([m[1], m[0], m[2]] for m in s), n, path),  # type: ignore[arg-type]
    "no bias": lambda x, s, n, path: run(x, tuple([_unbiased(m) for m in side] for side in s), n, path),  # type: ignore[arg-type]
}


def _unbiased(mlp: Any) -> Any:
    return tuple(stage._replace(bias=None) for stage in mlp)


@paths
@pytest.mark.parametrize("way", BROKEN)
def test_the_check_sees_a_broken_kernel(way: str, path: str) -> None:
    x, sides = stack_for(path)
    with pytest.raises(AssertionError):
        require_right(BROKEN[way](x, sides, numbers_for(3), path), x, sides, numbers_for(3))


@paths
def test_a_broken_part_of_a_kernel_is_seen(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of a folded layer norm left out: what the packing computes, the kernels must use."""
    x, sides = stack_for(path, 1, norm=True)
    require_right(run(x, sides, numbers_for(1), path), x, sides, numbers_for(1))
    arrange = op.arrange

    def without_shift(networks: Any, path: str) -> Any:
        ((first, last),) = arrange(networks, path)
        return [(first, last._replace(shift=0 * last.shift))]

    monkeypatch.setattr(op, "arrange", without_shift)
    with pytest.raises(AssertionError):
        require_right(run(x, sides, numbers_for(1), path), x, sides, numbers_for(1))


@paths
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_strength_0_gives_the_context_bit_for_bit(path: str, norm: bool) -> None:
    x, sides = stack_for(path, 2, norm=norm)
    x[0, :3] = torch.tensor([-0.0, torch.inf, torch.nan])
    for side in sides:
        side[1][0].weight.fill_(torch.nan)
    got = run(x, sides, torch.zeros(2, 2), path)
    assert got[:, 0, 2].isnan().all()  # its bits are the device's own: it passes through fp32
    got[:, 0, 2] = x[0, 2] = 0
    assert all(torch.equal(side.view(torch.int16), x.view(torch.int16)) for side in got)


@paths
def test_strength_0_in_the_middle_is_as_if_the_network_were_not_there(path: str) -> None:
    x, sides = stack_for(path)
    strengths = numbers_for(3)
    strengths[:, 1] = 0
    without = run(x, tuple([m[0], m[2]] for m in sides), strengths[:, [0, 2]], path)  # type: ignore[arg-type]
    assert torch.equal(run(x, sides, strengths, path), without)


@paths
def test_strengths_are_read_on_the_device_when_it_runs(path: str) -> None:
    """Captured work sees another number without a repack: `apply` keeps nothing of the strengths."""
    x, sides = stack_for(path)
    pairs = [pack_pair(there(k), there(v), path) for k, v in zip(*sides, strict=True)]
    executor = StackExecutor(pairs, path)
    strengths = torch.zeros(2, 3, device=DEVICE)
    for numbers in (numbers_for(3), changed(numbers_for(3))):
        strengths.copy_(numbers)
        k, v = executor.apply(x.to(DEVICE), strengths, [[True] * 3] * 2)
        require_right(torch.stack([k, v]).cpu(), x, sides, numbers)


class Counting:
    """A Triton kernel that counts its launches."""

    def __init__(self, kernel: Any, launches: list[Any]) -> None:
        self.kernel, self.launches, self.arg_names = kernel, launches, kernel.arg_names

    def __getitem__(self, grid: Any) -> Any:
        self.launches.append(self.kernel)
        return self.kernel[grid]


@paths
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_launches_are_as_many_as_it_says(path: str, norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    for module, name in (
        (linear, "linear_kernel"),
        (linear, "norm_kernel"),
        (fused, "fused_kernel"),
        (specialized, "specialized_kernel"),
    ):
        monkeypatch.setattr(module, name, Counting(getattr(module, name), launched))
    x, sides = stack_for(path, norm=norm)
    run(x, sides, numbers_for(3), path)
    stack = op.KernelStack([pack(pair, for_kernels=True) for pair in zip(*sides, strict=True)], path)
    assert len(launched) == stack.launches(torch.device(DEVICE))
    kernels, _ = op._kernels_for(stack.networks[0], path, torch.device(DEVICE))
    assert len(launched) == {fused: 1, specialized: 3, linear: 9 if norm else 6}[kernels]
    if is_interpreted():
        assert kernels is {"grouped": linear, "fused": fused, "specialized": fused if norm else specialized}[path]


@paths
@pytest.mark.parametrize("view", [lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x.expand(2, *x.shape)])
def test_a_context_of_any_strides_is_read_right_and_never_written_to(
    view: Callable[[Tensor], Tensor], path: str
) -> None:
    base = context(2, 4, SHAPES[path][0], dtype=torch.float16)
    x, before = view(base), base.clone()
    sides = stack_for(path, 1)[1]
    require_right(run(x, sides, numbers_for(1), path), x, sides, numbers_for(1))
    assert torch.equal(base, before)


@paths
def test_what_makes_no_sense_is_refused_before_a_launch(path: str) -> None:
    x, sides = stack_for(path, 1)
    with pytest.raises(ValueError, match="wide"):
        run(context(5, 32, dtype=torch.float16), sides, numbers_for(1), path)
    with pytest.raises(ValueError, match="int64"):
        run(torch.ones(5, x.shape[1], dtype=torch.int64), sides, numbers_for(1), path)
    with pytest.raises(ValueError, match="for 1 networks"):
        run(x, sides, numbers_for(2), path)
    assert run(x[:0], sides, numbers_for(1), path).shape == (2, 0, x.shape[1])


def test_a_context_on_another_device_is_refused_before_a_launch() -> None:
    x, sides = stack_for("grouped", 1)
    stack = op.KernelStack([pack([side[0] for side in sides], for_kernels=True)], "grouped")
    with pytest.raises((ValueError, KernelUnavailable), match="meta"):
        stack.apply(x.to("meta"), numbers_for(1))


@paths
@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="4 GB of context takes Triton's interpreter hours: needs a CUDA device"
)
def test_more_elements_than_32_bits_can_count(path: str) -> None:
    x, sides = stack_for(path, 1)
    rows = 2**31 // x.shape[1] + 100
    whole = x[:1].to(DEVICE).expand(rows, -1).contiguous()
    got, truth = run(whole, sides, numbers_for(1), path), run(x[:1], sides, numbers_for(1), path)
    assert torch.equal(got[:, -1:], truth)


def test_builds_of_k_and_v_may_differ() -> None:
    key, value = cast([random_mlp(1, (24, 40, 24)), random_mlp(2, (24, 24), "mish", norm=True)], torch.float16)
    x, strengths = context(5, 24, dtype=torch.float16), torch.tensor([[0.7], [0.4]])
    pair = pack_pair(there(key), there(value), "grouped")
    k, v = StackExecutor([pair], "grouped").apply(x.to(DEVICE), strengths.to(DEVICE), [[True], [True]])
    require_right(torch.stack([k, v]).cpu(), x, ([key], [value]), strengths)


@paths
def test_a_compiled_model_goes_through_it_without_a_break(path: str) -> None:
    x, sides = stack_for(path, 1)
    x, strengths = x.to(DEVICE), numbers_for(1).to(DEVICE)
    stack = op.KernelStack([pack([there(side[0]) for side in sides], for_kernels=True)], path)

    def model(x: Tensor) -> Tensor:
        return torch.sin(stack.apply(x * 2, strengths))

    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), model(x))


class Operations(TorchDispatchMode):
    """Notes the operations of torch that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@paths
@pytest.mark.parametrize("wanted", [False, True], ids=["values alone", "gradients"])
def test_the_custom_op_is_run_where_gradients_are_wanted(path: str, wanted: bool) -> None:
    x, sides = stack_for(path, 1)
    stack = op.KernelStack([pack([there(side[0]) for side in sides], for_kernels=True)], path)
    x, strengths = x.to(DEVICE).requires_grad_(wanted), numbers_for(1).to(DEVICE)
    with Operations() as run_there:
        stack.apply(x, strengths)
    assert run_there.names.count("hnetkit::stack") == wanted


def test_fp32_at_the_highest_precision_is_left_to_plain_torch_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matrix instructions the kernels would be slower; fp64 they do not know."""
    device = torch.device(DEVICE)
    assert path_on("fused", device, torch.float16) == "fused"
    assert path_on("fused", device, torch.float32) == "eager"
    torch.set_float32_matmul_precision("high")
    try:
        assert path_on("fused", device, torch.float32) == "fused"
    finally:
        torch.set_float32_matmul_precision("highest")
    monkeypatch.setenv("HNETKIT_KERNEL", "fused")
    assert path_on("fused", device, torch.float32) == "fused"
    assert path_on("fused", device, torch.float64) == "eager"


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has one setting")
def test_tf32_is_allowed_by_the_newer_setting_too() -> None:
    """After it was used, torch refuses to tell the older one, or tells it as it was."""
    x, sides = stack_for("grouped", 1)
    wanted = run(x, sides, numbers_for(1), "grouped")
    with setting(torch.backends.cuda.matmul, "fp32_precision", "tf32"):
        assert path_on("grouped", torch.device(DEVICE), torch.float32) == "grouped"
        assert torch.equal(run(x, sides, numbers_for(1), "grouped"), wanted)
    torch.set_float32_matmul_precision("high")
    try:
        with setting(torch.backends.cuda.matmul, "fp32_precision", "ieee"):
            assert path_on("grouped", torch.device(DEVICE), torch.float32) == "eager"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_without_a_gpu_and_without_the_interpreter_the_path_is_refused() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"HNETKIT_KERNEL": "grouped", "CUDA_VISIBLE_DEVICES": ""}
    code = "from hnetkit.kernels.dispatch import chosen_path; chosen_path()"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert "KernelUnavailable" in done.stderr


def test_every_row_of_the_tables_says_why_and_some_row_fits_any_device() -> None:
    for table in (configs.AUTO, configs.LINEAR, configs.WIDE, configs.FUSED):
        assert all(row.reason and row.measured for row in table)
    for capability in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
        assert configs.auto_path(capability) in ("eager", "grouped", "fused")
        for rows in (1, 256, 4096):
            assert configs.linear_tiles(capability, 100, rows, 640).warps in (4, 8)
