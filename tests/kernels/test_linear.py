"""The grouped kernels in Triton's interpreter (on the GPU where there is one), held against float64.

bf16 is left out by name: the interpreter computes its products and casts wrongly. Which launches a GPU makes of this,
how fast, and whether they race, it cannot show.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

from support.truth import LIMITS, require_right_run

from hnetkit.kernels import activations


@pytest.mark.parametrize("name", [None, *sorted(activations.NAMES)])
def test_every_activation_inside_and_behind_a_network(name: str | None) -> None:
    for dtype, norm in ((torch.float32, False), (torch.float16, True)):
        require_right_run("grouped", 3, (24, 40, 24), name, 1, dtype, last=True, norm=norm)


@given(
    rows=st.sampled_from([1, 2, 15, 16, 17, 33]),
    width=st.sampled_from([8, 24, 40]),
    hidden=st.lists(st.sampled_from([1, 7, 32, 76]), max_size=2),
    name=st.sampled_from([None, "relu", "swish", "sigmoid", "prelu"]),
    norm=st.booleans(),
    bias=st.booleans(),
    last=st.booleans(),
    count=st.integers(1, 3),
    dtype=st.sampled_from(list(LIMITS)),
)
def require_right_build(
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
    rows = min(rows, 5) if norm else rows  # the interpreter takes long over layer norms
    require_right_run("grouped", rows, (width, *hidden, width), name, count, dtype, norm=norm, bias=bias, last=last)


@pytest.mark.parametrize("examples", [12, pytest.param(100, marks=pytest.mark.long)])
def test_any_build_and_any_number_of_rows(examples: int) -> None:
    settings(deadline=None, max_examples=examples, derandomize=True)(require_right_build)()


def test_a_layer_norm_over_several_tiles_and_a_mean_far_from_zero() -> None:
    """The norm is folded into the next product: where the mean outweighs the deviation, that must not lose digits."""
    for dtype in LIMITS:
        require_right_run("grouped", 4, (24, 150, 70, 24), "softplus", 2, dtype, norm=True, last=True)
