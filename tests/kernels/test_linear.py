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

from support.stacks import context
from support.truth import LIMITS, for_hopper, numbers_for, random_sides, require_right, require_right_run, run
from torch import Tensor

from hnetkit.kernels import activations, configs
from hnetkit.kernels.gpu import linear
from hnetkit.kernels.gpu.device import is_interpreted


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
    if norm and min([width, *hidden]) < 24:  # norms of few numbers enlarge roundings
        dtype = torch.float32
    require_right_run("grouped", rows, (width, *hidden, width), name, count, dtype, norm=norm, bias=bias, last=last)


@pytest.mark.parametrize("examples", [12, pytest.param(100, marks=pytest.mark.long)])
def test_any_build_and_any_number_of_rows(examples: int) -> None:
    settings(deadline=None, max_examples=examples, derandomize=True)(require_right_build)()


def test_a_layer_norm_over_several_tiles_and_a_mean_far_from_zero() -> None:
    """The norm is folded into the next product: where the mean outweighs the deviation, that must not lose digits."""
    for dtype in LIMITS:
        require_right_run("grouped", 4, (24, 150, 70, 24), "softplus", 2, dtype, norm=True, last=True)


WIDTHS = (80, 320, 80)
WIDE_TILES = configs.WIDE_INTERPRETED if is_interpreted() else configs.WIDE[-1].tiles
"""Columns, and wide tiles that divide them."""


@pytest.fixture
def wide_tiles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has wide tiles chosen where they can be; notes the tail of each product's tiles."""
    tails: list[int] = []
    launch = linear._launch_linear

    def noted(
        state: object, rows: Tensor, stage: object, strength: Tensor, tiles: configs.Tiles, **rest: object
    ) -> None:
        tails.append(tiles.tail)
        launch(state, rows, stage, strength, tiles, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(linear, "_launch_linear", noted)
    monkeypatch.setattr(linear, "wide_tiles", lambda *arguments: WIDE_TILES)
    return tails


@for_hopper
@pytest.mark.parametrize(
    ("rows", "name", "count", "build"),
    [
        (1, "swish", 1, {}),
        (15, None, 2, {"bias": False}),
        (16, "prelu", 1, {"last": True}),
        (17, "mish", 3, {}),
        (33, "relu", 2, {"last": True}),
    ],
)
def test_tiles_with_a_tail_compute_all_columns(
    rows: int, name: str | None, count: int, build: dict[str, bool], wide_tiles: list[int]
) -> None:
    require_right_run("grouped", rows, WIDTHS, name, count, torch.float16, **build)
    assert wide_tiles == [WIDE_TILES.tail] * 2 * count


@for_hopper
def test_tiles_with_a_tail_give_a_network_of_strength_0_bit_for_bit(wide_tiles: list[int]) -> None:
    x, sides = context(17, WIDTHS[0], dtype=torch.float16), random_sides(2, WIDTHS, "relu", torch.float16)
    for side in sides:
        side[1][0].weight.fill_(torch.nan)
    once = run(x, (sides[0][:1], sides[1][:1]), numbers_for(1), "grouped")
    strengths = numbers_for(2)
    strengths[:, 1] = 0
    assert torch.equal(run(x, sides, strengths, "grouped"), once)
    got = run(x, sides, torch.zeros(2, 2), "grouped")
    assert all(torch.equal(side.view(torch.int16), x.view(torch.int16)) for side in got)
    assert all(wide_tiles)


@for_hopper
def test_tiles_with_a_tail_keep_the_order_of_a_stack(wide_tiles: list[int]) -> None:
    x, (keys, values) = context(5, WIDTHS[0], dtype=torch.float16), random_sides(2, WIDTHS, "relu", torch.float16)
    for sides in ((keys, values), (keys[::-1], values[::-1])):
        require_right(run(x, sides, numbers_for(2), "grouped"), x, sides, numbers_for(2))
    assert all(wide_tiles)


@for_hopper
@pytest.mark.parametrize(
    ("shapes", "dtype", "norm", "tails"),
    [
        ((80, 64, 80), torch.float16, False, [0, WIDE_TILES.tail]),  # a hidden width that they do not divide
        ((24, 320, 24), torch.float16, False, [WIDE_TILES.tail, 0]),
        (WIDTHS, torch.float16, True, [0, 0]),
        (WIDTHS, torch.float32, False, [0, 0]),
    ],
)
def test_what_tiles_with_a_tail_are_not_for_takes_those_of_the_table(
    shapes: tuple[int, ...], dtype: torch.dtype, norm: bool, tails: list[int], wide_tiles: list[int]
) -> None:
    require_right_run("grouped", 5, shapes, "relu", 1, dtype, norm=norm)
    assert wide_tiles == tails


@for_hopper
def test_a_broken_tail_is_seen(wide_tiles: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    described = linear.descriptor

    def without_tail(matrices: Tensor, rows: int, columns: int) -> object:
        return described(0 * matrices if rows == WIDE_TILES.tail else matrices, rows, columns)

    monkeypatch.setattr(linear, "descriptor", without_tail)
    with pytest.raises(AssertionError):
        require_right_run("grouped", 5, WIDTHS, "relu", 1, torch.float16)


def test_a_candidate_is_passed_over_until_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper = (9, 0)
    products = {(2048, 1280, 640): 320, (2048, 640, 1280): 160, (512, 2560, 1280): 160, (512, 1280, 2560): 80}
    for (rows, columns, depth), width in products.items():
        assert configs.wide_tiles(hopper, rows, columns, depth) is None
        with configs.candidates():
            tiles = configs.wide_tiles(hopper, rows, columns, depth)
            assert configs.wide_tiles((10, 0), rows, columns, depth) is None
        assert tiles is not None
        assert tiles.columns + tiles.tail == width
        assert 2 * (rows // tiles.rows) * (columns // width) == 128, "programs of K and V, for the 132 of an H100"
    assert configs.wide_tiles(hopper, 2048, 640, 1280) is None, "the switch is off again"
    measured = [row._replace(measured="gpu.csv") for row in configs.WIDE]
    monkeypatch.setattr(configs, "WIDE", measured)
    assert configs.wide_tiles(hopper, 2048, 640, 1280) == measured[1].tiles
    assert configs.wide_tiles(hopper, 8192, 640, 320) is None, "so little depth"
    assert configs.wide_tiles(hopper, 128, 1280, 2560) is None, "so few rows"
