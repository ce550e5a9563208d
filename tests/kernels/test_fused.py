"""The fused kernel of width 320 in Triton's interpreter (on the GPU where there is one), held against float64.

bf16 is left out by name: the interpreter computes its products and casts wrongly. fp32 has no fused kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from support.stacks import context

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

from support.truth import DEVICE, numbers_for, random_sides, require_right, require_right_run, run

from hnetkit.kernels import activations
from hnetkit.kernels.gpu import fused, op
from hnetkit.kernels.weights import pack

HALF = torch.float16


class Case(NamedTuple):
    """A stack of one build; the list below has every pair of values of two columns that can go together."""

    rows: int
    hidden: int
    activation: str | None
    norm: bool
    bias: bool
    last: bool
    count: int


CASES = [
    Case(1, 64, None, norm=False, bias=True, last=False, count=1),
    Case(1, 192, "swish", norm=True, bias=False, last=True, count=2),
    Case(1, 76, "prelu", norm=False, bias=True, last=True, count=3),
    Case(15, 64, "swish", norm=False, bias=False, last=True, count=3),
    Case(15, 192, "prelu", norm=True, bias=True, last=False, count=1),
    Case(15, 76, None, norm=False, bias=True, last=False, count=2),
    Case(16, 64, "prelu", norm=True, bias=True, last=True, count=2),
    Case(16, 192, None, norm=False, bias=False, last=False, count=3),
    Case(16, 76, "swish", norm=False, bias=True, last=False, count=1),
    Case(37, 64, "sigmoid", norm=True, bias=False, last=False, count=3),
    Case(37, 192, "swish", norm=False, bias=True, last=True, count=1),
    Case(37, 76, "sigmoid", norm=False, bias=False, last=True, count=2),
    Case(5, 30, "sigmoid", norm=True, bias=True, last=True, count=2),
    Case(5, 76, "softplus", norm=True, bias=True, last=False, count=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_build_and_any_number_of_rows(case: Case) -> None:
    shapes = (320, case.hidden, 320)
    build = {"norm": case.norm, "bias": case.bias, "last": case.last}
    require_right_run("fused", case.rows, shapes, case.activation, case.count, HALF, **build)


@pytest.mark.parametrize("name", [None, *sorted(activations.NAMES)])
def test_every_activation_inside_and_behind_a_network(name: str | None) -> None:
    require_right_run("fused", 2, (320, 64, 320), name, 1, HALF, last=True)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_network_of_another_build_anywhere_in_the_stack(place: int) -> None:
    """Rows and sums pass from the fused kernel to the grouped ones and back."""
    sides = random_sides(3, (320, 64, 320), "relu", HALF)
    for side, other in zip(sides, random_sides(1, (320, 32, 48, 320), "tanh", HALF, norm=True), strict=True):
        side[place] = other[0]
    runs = op.arrange([pack(pair, for_kernels=True) for pair in zip(*sides, strict=True)], "fused")
    assert [len(packed[0].weight) for packed in runs] == {0: [1, 2], 1: [1, 1, 1], 2: [2, 1]}[place]
    x, strengths = context(5, 320, dtype=HALF), numbers_for(3)
    require_right(run(x, sides, strengths, "fused"), x, sides, strengths)


@pytest.mark.parametrize(
    ("shapes", "dtype"),
    [
        ((320, 64, 64, 320), HALF),
        ((640, 64, 640), HALF),
        ((320, 320), HALF),
        ((320, 64, 320), torch.float32),
    ],
)
def test_what_it_is_not_for_goes_to_the_grouped_kernels(shapes: tuple[int, ...], dtype: torch.dtype) -> None:
    sides = random_sides(1, shapes, "relu", dtype)
    packed = pack([side[0] for side in sides], for_kernels=True)
    assert fused.tiles_for(packed, torch.device(DEVICE)) is None
    x, strengths = context(2, shapes[0], dtype=dtype), numbers_for(1)
    require_right(run(x, sides, strengths, "fused"), x, sides, strengths)


def test_a_context_of_another_dtype_than_the_networks_keeps_its_digits() -> None:
    sides, x = random_sides(2, (320, 64, 320), "relu", HALF), context(3, 320, dtype=torch.float32)
    got = run(x, sides, torch.full((2, 2), 1e-6), "fused")
    assert got.dtype == torch.float32
    assert ((got - x).abs().max() < 1e-3).all()
    assert (got != x).any()
