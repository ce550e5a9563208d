"""What kernels are held against: a stack of K and V in float64, and how exact plain torch is in the same dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hnetkit.kernels import reference
from hnetkit.kernels.gpu import op
from hnetkit.kernels.gpu.device import capability_of, is_interpreted
from hnetkit.kernels.weights import MLPWeights, StageWeights, pack
from support.stacks import cast, context, random_mlp, relative, torch_modules

DEVICE = "cpu" if is_interpreted() else "cuda"
LIMITS = {torch.float32: 5e-6, torch.float16: 1.5e-3}
for_hopper = pytest.mark.skipif(
    torch.cuda.is_available() and capability_of(torch.device("cuda")) not in (None, (9, 0)),
    reason="this GPU is no Hopper, which the kernel is for",
)
STRENGTHS = ((0.7, -0.4, 1.1), (0.3, 0.9, -0.6))

Sides = tuple[list[MLPWeights], list[MLPWeights]]


def random_sides(
    count: int,
    shapes: Sequence[int],
    activation: str | None,
    dtype: torch.dtype,
    *,
    norm: bool = False,
    bias: bool = True,
    last: bool = False,
) -> Sides:
    """Networks for K and others for V."""
    k, v = (
        cast(
            [random_mlp(100 * s + n, shapes, activation, norm=norm, bias=bias, last=last) for n in range(count)], dtype
        )
        for s in (1, 2)
    )
    return k, v


def numbers_for(count: int) -> Tensor:
    """Strengths of K and V: ``[2, count]``."""
    return torch.tensor([side[:count] for side in STRENGTHS])


def run(x: Tensor, sides: Sides, strengths: Tensor, path: str) -> Tensor:
    """A stack by Triton kernels: ``[2, ..., d]``."""
    pairs = [pack([there(k), there(v)], for_kernels=True) for k, v in zip(*sides, strict=True)]
    return op.KernelStack(pairs, path).apply(x.to(DEVICE), strengths.to(DEVICE)).cpu()


def require_right(got: Tensor, x: Tensor, sides: Sides, strengths: Tensor) -> None:
    """K and V each, on y and on y - x: a network that is missing hides in the first."""
    assert got.dtype == x.dtype
    assert got.shape == (2, *x.shape)
    for y, mlps, numbers in zip(got, sides, strengths, strict=True):
        truth = reference.apply(x.double(), cast(mlps, torch.float64), numbers.double())
        plain = x
        for mlp, number in zip(mlps, numbers.tolist(), strict=True):
            plain = plain + number * torch_modules(mlp, plain)
        assert torch.isfinite(y).all()
        assert relative(y, truth) <= LIMITS[x.dtype]
        # of eight numbers, roundings may all be lucky in one and not in the other
        luck = torch.finfo(x.dtype).eps * math.sqrt(len(mlps) / y.numel())
        assert relative(y, truth) <= 1.25 * relative(plain, truth) + luck + 1e-5
        delta = truth - x.double()
        luck *= float(truth.norm() / delta.norm())
        assert relative(y, truth, delta) <= 1.5 * relative(plain, truth, delta) + luck + 1e-5


def require_right_run(
    path: str, rows: int, shapes: Sequence[int], activation: str | None, count: int, dtype: torch.dtype, **build: bool
) -> None:
    """A random stack of one build by a path is right."""
    sides, x, strengths = (
        random_sides(count, shapes, activation, dtype, **build),
        context(rows, shapes[0], dtype=dtype),
        numbers_for(count),
    )
    require_right(run(x, sides, strengths, path), x, sides, strengths)


def there(mlp: MLPWeights) -> MLPWeights:
    return tuple(StageWeights(*(t.to(DEVICE) if isinstance(t, Tensor) else t for t in stage)) for stage in mlp)
