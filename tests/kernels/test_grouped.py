"""The Triton path in its interpreter (on the GPU where there is one), held against float64.

bf16 is left out by name: the interpreter computes its products and casts wrongly. Which launches a GPU makes of this,
how fast, and whether they race, it cannot show.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stacks import cast, context, random_mlp, relative, torch_modules
from torch import Tensor

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

from hnetkit.kernels import activations, eager, grouped, reference
from hnetkit.kernels.configs import LINEAR, linear_tiles
from hnetkit.kernels.mlp import MLPWeights

DEVICE = "cpu" if grouped.is_interpreted() else "cuda"
LIMITS = {torch.float32: 5e-6, torch.float16: 1.5e-3}
STRENGTHS = (0.7, -0.4, 1.1)


def require_right(got: Tensor, x: Tensor, mlps: Sequence[MLPWeights], strengths: Sequence[float]) -> None:
    """On y and on y - x: a network that is missing hides in the first."""
    truth = reference.apply(x.double(), cast(mlps, torch.float64), torch.tensor(strengths))
    plain = x
    for mlp, strength in zip(mlps, strengths, strict=True):
        plain = plain + strength * torch_modules(mlp, plain)
    assert got.dtype == x.dtype
    assert got.shape == x.shape
    assert relative(got, truth) <= LIMITS[x.dtype]
    assert relative(got, truth) <= 1.25 * relative(plain, truth) + 1e-5
    delta = truth - x.double()
    assert relative(got, truth, delta) <= 1.5 * relative(plain, truth, delta) + 1e-5


def run(x: Tensor, mlps: Sequence[MLPWeights], strengths: Sequence[float]) -> Tensor:
    there = [tuple(type(s)(*(t.to(DEVICE) if isinstance(t, Tensor) else t for t in s)) for s in mlp) for mlp in mlps]
    return grouped.apply(x.to(DEVICE), there, torch.tensor(strengths, device=DEVICE)).cpu()


@pytest.mark.parametrize("dtype", LIMITS, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", [None, *sorted(activations.NAMES)])
def test_every_activation_inside_and_behind_a_network(name: str | None, dtype: torch.dtype) -> None:
    mlps = cast([random_mlp(seed, (24, 40, 24), name, last=seed == 2) for seed in (1, 2)], dtype)
    x = context(5, 24, dtype=dtype)
    require_right(run(x, mlps, STRENGTHS[:2]), x, mlps, STRENGTHS[:2])


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    rows=st.sampled_from([1, 2, 15, 16, 17, 33, 70]),
    width=st.sampled_from([8, 24, 40]),
    hidden=st.lists(st.sampled_from([1, 7, 32, 76]), max_size=2),
    name=st.sampled_from([None, "relu", "swish", "mish", "prelu"]),
    norm=st.booleans(),
    bias=st.booleans(),
    last=st.booleans(),
    count=st.integers(1, 3),
    dtype=st.sampled_from(list(LIMITS)),
)
def test_any_build_and_any_number_of_rows(
    rows: int,
    width: int,
    hidden: list[int],
    name: str | None,
    norm: bool,
    bias: bool,
    last: bool,
    count: int,
    dtype: torch.dtype,
) -> None:
    shapes = (width, *hidden, width)
    mlps = cast([random_mlp(seed, shapes, name, norm=norm, bias=bias, last=last) for seed in range(count)], dtype)
    x = context(rows, width, dtype=dtype)
    require_right(run(x, mlps, STRENGTHS[:count]), x, mlps, STRENGTHS[:count])


def wrong_ways() -> dict[str, Callable[[Tensor, list[MLPWeights]], Tensor]]:
    """Kernels that are broken on purpose: what `require_right` must not let pass."""
    return {
        "a dropped network": lambda x, mlps: run(x, mlps[:2], STRENGTHS[:2]),
        "another order": lambda x, mlps: run(x, [mlps[1], mlps[0], mlps[2]], STRENGTHS),
        "a wrong strength": lambda x, mlps: run(x, mlps, (0.7, -0.4, 1.05)),
        "another network": lambda x, mlps: run(x, [*mlps[:2], mlps[1]], STRENGTHS),
        "no bias": lambda x, mlps: run(x, [tuple(s._replace(bias=None) for s in mlp) for mlp in mlps], STRENGTHS),
    }


@pytest.mark.parametrize("way", wrong_ways())
@pytest.mark.parametrize("dtype", LIMITS, ids=lambda dtype: str(dtype)[6:])
def test_the_check_sees_a_broken_kernel(way: str, dtype: torch.dtype) -> None:
    mlps, x = cast([random_mlp(seed) for seed in (1, 2, 3)], dtype), context(9, 24, dtype=dtype)
    require_right(run(x, mlps, STRENGTHS), x, mlps, STRENGTHS)
    with pytest.raises(AssertionError):
        require_right(wrong_ways()[way](x, mlps), x, mlps, STRENGTHS)


@pytest.mark.parametrize("dtype", LIMITS, ids=lambda dtype: str(dtype)[6:])
def test_strength_0_gives_the_context_bit_for_bit(dtype: torch.dtype) -> None:
    mlps, x = cast([random_mlp(1), random_mlp(2, norm=True)], dtype), context(5, 24, dtype=dtype)
    assert torch.equal(run(x, mlps, (0.0, 0.0)), x)


def test_a_stack_of_three_is_six_launches_and_a_norm_is_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []
    for name in ("_launch_linear", "_launch_norm"):
        launch = getattr(grouped, name)
        monkeypatch.setattr(grouped, name, lambda *a, launch=launch, **k: launches.append(launch) or launch(*a, **k))
    x = context(5, 24, dtype=torch.float32)
    run(x, cast([random_mlp(seed) for seed in (1, 2, 3)], torch.float32), STRENGTHS)
    assert len(launches) == 6
    launches.clear()
    run(x, cast([random_mlp(1, norm=True)], torch.float32), STRENGTHS[:1])
    assert len(launches) == 4


@pytest.mark.parametrize("view", [lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x.expand(3, *x.shape)])
def test_a_context_of_any_strides_is_read_right_and_never_written_to(view: Callable[[Tensor], Tensor]) -> None:
    base = context(6, 8, 24, dtype=torch.float32)
    x, before = view(base), base.clone()
    mlps = cast([random_mlp(1)], torch.float32)
    require_right(run(x, mlps, (0.7,)), x, mlps, (0.7,))
    assert torch.equal(base, before)


def test_what_makes_no_sense_is_refused_before_a_launch() -> None:
    mlps = cast([random_mlp(1)], torch.float32)
    with pytest.raises(ValueError, match="wide"):
        run(context(5, 32, dtype=torch.float32), mlps, (0.7,))
    with pytest.raises(ValueError, match="floating-point"):
        run(torch.ones(5, 24, dtype=torch.int64), mlps, (0.7,))
    assert run(context(0, 24, dtype=torch.float32), mlps, (0.7,)).shape == (0, 24)


def test_what_is_to_be_learned_goes_through_plain_torch() -> None:
    mlps, x = cast([random_mlp(1)], torch.float32), context(5, 24, dtype=torch.float32).to(DEVICE).requires_grad_()
    there = [tuple(type(s)(*(t.to(DEVICE) if isinstance(t, Tensor) else t for t in s)) for s in mlp) for mlp in mlps]
    grouped.apply(x, there, torch.tensor([0.7], device=DEVICE)).sum().backward()
    got = x.grad
    x.grad = None
    eager.apply(x, there, torch.tensor([0.7], device=DEVICE)).sum().backward()
    assert got is not None
    assert torch.equal(got, x.grad)  # type: ignore[arg-type]


def test_a_compiled_model_goes_through_it_without_a_break() -> None:
    mlps, x = cast([random_mlp(1, (24, 40, 24))], torch.float32), context(5, 24, dtype=torch.float32)
    strengths = torch.tensor([0.7])

    def model(x: Tensor) -> Tensor:
        return torch.sin(grouped.apply(x * 2, mlps, strengths))

    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x), model(x), atol=1e-6)


def test_without_a_gpu_and_without_the_interpreter_the_path_is_refused() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"HNETKIT_KERNEL": "grouped", "CUDA_VISIBLE_DEVICES": ""}
    code = "from hnetkit.kernels.dispatch import chosen_path; chosen_path()"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert "KernelUnavailable" in done.stderr


def test_every_row_of_the_tiles_says_why_and_some_row_fits_any_device() -> None:
    assert all(row.reason and row.measured for row in LINEAR)
    for capability in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)):
        for rows in (1, 256, 4096):
            assert linear_tiles(capability, rows).warps in (4, 8)
