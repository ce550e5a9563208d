"""A kernel that cannot be compiled, or computes something wrong, is left out once, with a word; results stay right."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.stacks import context

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

from support.truth import DEVICE, for_hopper, numbers_for, random_sides, require_right, run
from triton.runtime.errors import InterpreterError, OutOfResources

from hnetkit.errors import KernelUnavailable
from hnetkit.kernels import configs, dispatch, eager
from hnetkit.kernels.gpu import fused, linear, op, specialized
from hnetkit.kernels.gpu.device import architecture_of

X = context(3, 320, dtype=torch.float16)
SIDES = random_sides(2, (320, 64, 320), "relu", torch.float16)
NUMBERS = numbers_for(2)


@pytest.fixture(autouse=True)
def nothing_left_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(op, "_failed", set())
    for name, number in (("_TEST_ROWS", 3), ("_RACE_ROWS", 3), ("_RACES", 2), ("_CACHE", 16)):
        monkeypatch.setattr(op, name, number)
    known = op._verified_path, op._fault_of
    for cached in known:
        cached.cache_clear()
    yield
    for cached in known:
        cached.cache_clear()


def does_not_fit(*arguments: Any, **options: Any) -> None:
    raise OutOfResources(300_000, 232_448, "shared memory")


@pytest.mark.parametrize(
    ("path", "broken"),
    [
        pytest.param("specialized", [specialized], marks=for_hopper),
        pytest.param("specialized", [specialized, fused], marks=for_hopper),
        ("fused", [fused]),
        ("fused", [fused, linear]),
    ],
    ids=["to fused", "from specialized to grouped", "to grouped", "to plain torch"],
)
def test_what_cannot_be_compiled_is_said_once_and_replaced(
    path: str, broken: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in broken:
        monkeypatch.setattr(module, "run", does_not_fit)
    with pytest.warns(RuntimeWarning, match=r"leaves out its \w+ kernels: .*shared memory") as said:
        require_right(run(X, SIDES, NUMBERS, path), X, SIDES, NUMBERS)
    assert len(said) == len(broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_right(run(X, SIDES, NUMBERS, path), X, SIDES, NUMBERS)


def test_a_forced_path_that_cannot_be_compiled_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", "fused")
    monkeypatch.setattr(fused, "run", does_not_fit)
    with pytest.raises(KernelUnavailable, match="shared memory"):
        run(X, SIDES, NUMBERS, "fused")


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), InterpreterError("a bug")])
def test_no_other_error_is_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(fused, "run", fail)
    with pytest.raises(type(error), match=str(error)):
        run(X, SIDES, NUMBERS, "fused")


def test_a_path_that_works_passes_its_self_test() -> None:
    assert op.verified_path("fused", torch.device(DEVICE)) == "fused"
    assert op.verified_path("grouped", torch.device(DEVICE)) == "grouped"
    assert op.verified_path("specialized", torch.device(DEVICE)) == "specialized"


@pytest.mark.parametrize("asked", ["cuda:0", "cuda:2", "cuda", "cpu", None])
def test_the_gpu_that_is_asked_for_is_the_one_that_is_tested(
    asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []

    def works(path: str, device: torch.device) -> str:
        seen.append(device)
        return path

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(op, "verified_path", works)
    assert dispatch.chosen_path(None if asked is None else torch.device(asked)) == "fused"
    assert seen == [torch.device({"cuda:0": "cuda:0", "cuda:2": "cuda:2"}.get(str(asked), "cuda:1"))]


@pytest.fixture
def an_amd_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)


@pytest.mark.usefixtures("an_amd_gpu")
def test_no_kernel_runs_on_an_amd_gpu_unasked() -> None:
    assert dispatch.chosen_path() == dispatch.chosen_path(torch.device("cuda", 0)) == "eager"
    assert architecture_of(torch.device("cuda", 0)) == "gfx942"
    assert not eager.allows_tf32()


@pytest.mark.usefixtures("an_amd_gpu")
def test_kernels_that_are_asked_for_on_an_amd_gpu_are_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here in the interpreter, in which the CPU stands in for the device."""
    monkeypatch.setenv("HNETKIT_KERNEL", "grouped")
    whole, on_the_cpu = linear.run, op._fault_of.__wrapped__

    def weaker(state: Any, networks: Any, strengths: Any, *rest: Any, **options: Any) -> Any:
        return whole(state, networks, strengths * 0.97, *rest, **options)

    monkeypatch.setattr(linear, "run", weaker)
    monkeypatch.setattr(op, "fault_of", lambda path, device: on_the_cpu(path, torch.device(DEVICE), "ieee"))
    with pytest.raises(KernelUnavailable, match="on cuda:0 the kernels compute something else than plain torch"):
        dispatch.chosen_path(torch.device("cuda", 0))
    monkeypatch.setattr(op, "fault_of", lambda path, device: None)
    assert dispatch.chosen_path(torch.device("cuda", 0)) == "grouped"


def test_an_amd_gpu_has_its_own_tiles_or_a_word_that_it_has_none() -> None:
    few, many = (configs.linear_tiles("gfx1100", 1, rows, 640) for rows in (128, 4096))
    assert few.rows < many.rows
    assert not few.by_descriptor
    assert configs.gradient_tiles("gfx1100") == few
    assert configs.fused_tiles("gfx942", normed=False) is None
    with pytest.raises(KernelUnavailable, match="no tiles for gfx1030"):
        configs.linear_tiles("gfx1030", 1, 128, 640)


def test_a_plan_that_differs_from_the_first_launches_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "_TEST_CALLS", 2)
    whole, calls = op.KernelStack.apply, []

    def as_planned(self: Any, x: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return whole(self, x, strengths * (1 if len(calls) == 1 else 0.97))

    monkeypatch.setattr(op.KernelStack, "apply", as_planned)
    assert op.fault_of("grouped", torch.device(DEVICE)) == "compute something else than plain torch"
    assert len(calls) == 2


def test_a_path_that_computes_something_else_fails_its_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fused.run

    def weaker(state: Any, networks: Any, strengths: Any, *rest: Any, **options: Any) -> Any:
        return whole(state, networks, strengths * 0.97, *rest, **options)

    monkeypatch.setattr(fused, "run", weaker)
    with pytest.warns(RuntimeWarning, match="fused kernels: .* something else than plain torch"):
        assert op.verified_path("fused", torch.device(DEVICE)) == "grouped"


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, MemoryError])
def test_memory_that_runs_out_is_no_fault_of_the_kernels(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and the path is tested again once there is room."""
    whole = op.KernelStack.apply

    def fail(*arguments: Any, **options: Any) -> None:
        raise error("out of memory")

    monkeypatch.setattr(op.KernelStack, "apply", fail)
    with pytest.raises(error, match="out of memory"):
        op.verified_path("fused", torch.device(DEVICE))
    monkeypatch.setattr(op.KernelStack, "apply", whole)
    assert op.verified_path("fused", torch.device(DEVICE)) == "fused"


def test_where_no_kernel_works_it_is_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(op.KernelStack, "apply", fail)
    with pytest.warns(RuntimeWarning, match="they fail"):
        assert op.verified_path("fused", torch.device(DEVICE)) == "eager"


def writes_the_last_row_once(state: Any, out: torch.Tensor, calls: list[int]) -> None:
    if len(calls) > 3:
        out[:, -1] = torch.nan


def differs_by_a_bit_at_times(state: Any, out: torch.Tensor, calls: list[int]) -> None:
    if len(calls) == 5:
        out[0, 0, 0] += 1e-2


@for_hopper
@pytest.mark.parametrize("broken", [writes_the_last_row_once, differs_by_a_bit_at_times])
def test_warps_that_do_not_wait_for_each_other_fail_the_self_test(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, calls = specialized._launch, list[int]()

    def races(state: Any, mlp: Any, strength: Any, out: torch.Tensor, tiles: Any) -> None:
        calls.append(len(calls))
        launch(state, mlp, strength, out, tiles)
        broken(state, out, calls)

    monkeypatch.setattr(specialized, "_launch", races)
    with pytest.warns(RuntimeWarning, match="specialized kernels: .* one thing now and another then"):
        assert op.verified_path("specialized", torch.device(DEVICE)) == "fused"
