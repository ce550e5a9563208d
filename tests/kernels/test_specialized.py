"""The specialized kernel of width 320 in Triton's interpreter (on the GPU where there is one), held against float64.

The interpreter runs one warp after the other: whether they wait for each other, it cannot show. What holds for every
path is in `test_op.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.stacks import context
from torch import Tensor

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

from support.truth import DEVICE, for_hopper, numbers_for, random_sides, require_right, require_right_run, run

from hnetkit.kernels import activations, configs, dispatch
from hnetkit.kernels.gpu import fused, linear, op, specialized

pytestmark = for_hopper

HALF = torch.float16


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that networks went to, in order."""
    names: list[str] = []
    for module in (specialized, fused, linear):

        def noted(*arguments: Any, run: Any = module.run, name: str = module.__name__, **options: Any) -> Any:
            names.append(name.rpartition(".")[2])
            return run(*arguments, **options)

        monkeypatch.setattr(module, "run", noted)
    return names


@pytest.mark.parametrize(
    ("rows", "hidden", "activation", "bias", "count"),
    [
        (1, 64, None, True, 1),
        (15, 192, "swish", False, 2),
        (16, 76, "sigmoid", True, 3),  # padded: what the activation makes of 0 must not count
        (37, 64, "mish", True, 2),
    ],
)
def test_any_number_of_rows_and_hidden_values(
    rows: int, hidden: int, activation: str | None, bias: bool, count: int, ran: list[str]
) -> None:
    require_right_run("specialized", rows, (320, hidden, 320), activation, count, HALF, bias=bias)
    assert ran == ["specialized"]


@pytest.mark.parametrize("name", sorted(activations.NAMES - {"prelu"}))
def test_every_activation(name: str, ran: list[str]) -> None:
    require_right_run("specialized", 2, (320, 64, 320), name, 1, HALF)
    assert ran == ["specialized"]


def test_an_activation_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = specialized._launch

    def without(state: Any, mlp: Any, *rest: Any) -> None:
        launch(state, [mlp[0]._replace(activation=None), mlp[1]], *rest)

    monkeypatch.setattr(specialized, "_launch", without)
    with pytest.raises(AssertionError):
        require_right_run("specialized", 2, (320, 64, 320), "relu", 1, HALF)


@pytest.mark.parametrize("box", [specialized._HEAD, specialized._TAIL])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_part_of_the_weights_left_out_is_seen(box: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = specialized.descriptor

    def without(matrices: Tensor, rows: int, columns: int) -> Any:
        is_broken = (columns if place == "first" else rows) == box
        return describe(0 * matrices if is_broken else matrices, rows, columns)

    monkeypatch.setattr(specialized, "descriptor", without)
    with pytest.raises(AssertionError):
        require_right_run("specialized", 2, (320, 64, 320), "relu", 1, HALF)


@pytest.mark.parametrize(
    ("activation", "build", "kernels"),
    [
        ("prelu", {}, "fused"),
        ("relu", {"norm": True}, "fused"),
        ("relu", {"last": True}, "fused"),
    ],
)
def test_networks_that_it_is_not_for_go_to_the_fused_kernel(
    activation: str, build: dict[str, bool], kernels: str, ran: list[str]
) -> None:
    require_right_run("specialized", 2, (320, 64, 320), activation, 2, HALF, **build)
    assert ran == [kernels]


@pytest.mark.parametrize(
    ("shapes", "dtype"), [((320, 64, 64, 320), HALF), ((24, 64, 24), HALF), ((320, 64, 320), torch.float32)]
)
def test_what_no_fused_kernel_is_for_goes_to_the_grouped_ones(
    shapes: tuple[int, ...], dtype: torch.dtype, ran: list[str]
) -> None:
    require_right_run("specialized", 2, shapes, "relu", 1, dtype)
    assert ran == ["linear"]


def test_bf16_whose_sums_are_in_fp32_is_not_for_it() -> None:
    (key,), (value,) = random_sides(1, (320, 64, 320), "relu", torch.bfloat16)
    packed = op.pack([key, value], for_kernels=True)
    assert specialized.tiles_for(packed, torch.device(DEVICE)) is None
    assert fused.tiles_for(packed, torch.device(DEVICE)) is not None


def test_rows_that_the_copy_engine_does_not_take_go_to_the_fused_kernel(ran: list[str]) -> None:
    memory = torch.zeros(1 + 3 * 320, dtype=HALF, device=DEVICE)
    x = memory[1:].view(3, 320)
    x.copy_(context(3, 320, dtype=HALF))
    sides = random_sides(2, (320, 64, 320), "relu", HALF)
    require_right(run(x, sides, numbers_for(2), "specialized"), x.cpu(), sides, numbers_for(2))
    assert ran == ["fused"]


def test_a_network_of_another_build_in_the_middle_of_a_stack(ran: list[str]) -> None:
    sides = random_sides(3, (320, 64, 320), "relu", HALF)
    for side, other in zip(sides, random_sides(1, (320, 32, 48, 320), "tanh", HALF, norm=True), strict=True):
        side[1] = other[0]
    x, strengths = context(5, 320, dtype=HALF), numbers_for(3)
    require_right(run(x, sides, strengths, "specialized"), x, sides, strengths)
    assert ran == ["specialized", "linear", "specialized"]


def test_it_is_for_hopper_alone_and_waits_for_its_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability in ((8, 0), (8, 9), (10, 0), (12, 0)):
        assert configs.specialized_tiles(capability) is None
    assert configs.specialized_tiles((9, 0)) is not None
    assert configs.auto_path((9, 0)) == "fused"
    with configs.candidates():
        assert configs.auto_path((9, 0)) == "specialized"
        assert configs.auto_path((10, 0)) == configs.auto_path((8, 9)) == "grouped"
    monkeypatch.setenv("HNETKIT_KERNEL", "specialized")
    assert dispatch.chosen_path() == "specialized"
