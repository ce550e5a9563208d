"""Gradients by the Triton kernels, in the interpreter (on the GPU where there is one), against float64 autograd."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support.stacks import cast, context, relative
from torch import Tensor

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

from support.truth import DEVICE, Sides, numbers_for, random_sides, there

from hnetkit.kernels import activations, reference
from hnetkit.kernels.executor import StackExecutor, pack_pair
from hnetkit.kernels.gpu import backward, op
from hnetkit.kernels.weights import pack

LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3}


def learned(sides: Sides) -> tuple[Sides, list[Tensor]]:
    """The same networks with weights and biases that want gradients, and those."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.clone().requires_grad_())
        return leaves[-1]

    k, v = (
        [tuple(stage._replace(weight=leaf(stage.weight), bias=leaf(stage.bias)) for stage in mlp) for mlp in side]  # type: ignore[arg-type]
        for side in sides
    )
    return (k, v), leaves


def by_kernels(x: Tensor, sides: Sides, strengths: Tensor, outer: Tensor, path: str) -> list[Tensor]:
    placed, leaves = learned(tuple([there(mlp) for mlp in side] for side in sides))  # type: ignore[arg-type]
    stack = op.KernelStack([pack(pair, for_kernels=True) for pair in zip(*placed, strict=True)], path)
    assert stack.supports_gradients
    x = x.to(DEVICE).requires_grad_()
    got = stack.apply(x, strengths.to(DEVICE))
    return [g.cpu() for g in torch.autograd.grad(got, [x, *leaves], outer.to(DEVICE))]


def by_autograd(x: Tensor, sides: Sides, strengths: Tensor, outer: Tensor) -> list[Tensor]:
    wide, leaves = learned(tuple(cast(side, torch.float64) for side in sides))  # type: ignore[arg-type]
    x = x.double().requires_grad_()
    got = [reference.apply(x, mlps, numbers.double()) for mlps, numbers in zip(wide, strengths, strict=True)]
    return list(torch.autograd.grad(torch.stack(got), [x, *leaves], outer.double()))


def require_right(got: Sequence[Tensor], truth: Sequence[Tensor], limit: float) -> None:
    assert len(got) == len(truth)
    for one, other in zip(got, truth, strict=True):
        assert one.shape == other.shape
        assert torch.isfinite(one).all()
        assert relative(one, other) <= limit


@pytest.mark.parametrize("name", [None, *sorted(activations.NAMES - {"prelu"})])
def test_gradients_of_every_activation(name: str | None) -> None:
    sides, strengths = random_sides(1, (24, 40, 24), name, torch.float32, last=True), numbers_for(1)
    x, outer = context(5, 24, dtype=torch.float32), context(2, 5, 24, dtype=torch.float32)
    require_right(by_kernels(x, sides, strengths, outer, "grouped"), by_autograd(x, sides, strengths, outer), 1e-5)


@pytest.mark.parametrize("dtype", LIMITS, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    ("path", "shapes", "count", "rows"),
    [
        ("grouped", (24, 24), 2, 1),
        ("grouped", (24, 76, 24), 3, 17),
        ("grouped", (24, 32, 40, 24), 2, 33),
        ("fused", (320, 64, 320), 2, 3),
    ],
)
def test_gradients_through_a_stack_to_the_context_and_to_every_weight(
    path: str, shapes: tuple[int, ...], count: int, rows: int, dtype: torch.dtype
) -> None:
    sides, strengths = random_sides(count, shapes, "mish", dtype), numbers_for(count)
    x, outer = context(rows, shapes[0], dtype=dtype), context(2, rows, shapes[0], dtype=dtype)
    require_right(by_kernels(x, sides, strengths, outer, path), by_autograd(x, sides, strengths, outer), LIMITS[dtype])


def test_the_check_sees_a_broken_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    sides, strengths = random_sides(2, (24, 40, 24), "mish", torch.float32), numbers_for(2)
    x, outer = context(5, 24, dtype=torch.float32), context(2, 5, 24, dtype=torch.float32)
    truth = by_autograd(x, sides, strengths, outer)
    for wrong in (strengths.flip(0), strengths.flip(1), strengths * 1.01):
        with pytest.raises(AssertionError):
            require_right(by_kernels(x, sides, wrong, outer, "grouped"), truth, 1e-5)
    monkeypatch.setattr(backward, "_activated", lambda sums, activation: sums)
    three = random_sides(1, (24, 40, 40, 24), "mish", torch.float32)
    with pytest.raises(AssertionError):
        require_right(
            by_kernels(x, three, strengths[:, :1], outer, "grouped"),
            by_autograd(x, three, strengths[:, :1], outer),
            1e-5,
        )


def test_a_frozen_stack_gives_the_context_its_gradient_in_compiled_code() -> None:
    sides, strengths = random_sides(1, (24, 40, 24), "relu", torch.float32), numbers_for(1).to(DEVICE)
    stack = op.KernelStack([pack([there(side[0]) for side in sides], for_kernels=True)], "grouped")
    x = context(5, 24, dtype=torch.float32).to(DEVICE).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return stack.apply(x, strengths).square().sum()

    (plain,) = torch.autograd.grad(loss(x), x)
    (compiled,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), x)
    assert torch.equal(plain, compiled)


@pytest.mark.parametrize(("activation", "norm"), [("prelu", False), ("relu", True), ("relu", False)])
def test_what_has_no_gradient_here_goes_through_plain_torch(
    activation: str, norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", "grouped")
    sides, strengths = random_sides(1, (24, 40, 24), activation, torch.float32, norm=norm), numbers_for(1)
    executor = StackExecutor([pack_pair(there(sides[0][0]), there(sides[1][0]), "grouped")], "grouped")
    x, outer = context(5, 24, dtype=torch.float32), context(2, 5, 24, dtype=torch.float32)
    here = x.to(DEVICE).requires_grad_()
    k, v = executor.apply(here, strengths.to(DEVICE), [[True]] * 2)
    if not norm and activation == "relu":
        assert k.grad_fn.name().startswith("UnbindBackward")  # type: ignore[union-attr]
    else:
        assert not op.KernelStack([pack([side[0] for side in sides], for_kernels=True)], "grouped").supports_gradients
    (of_x,) = torch.autograd.grad(torch.stack([k, v]), here, outer.to(DEVICE))
    assert relative(of_x.cpu(), by_autograd(x, sides, strengths, outer)[0]) <= 1e-5
