"""What a fingerprint of a UNet sees beside what `test_capture` changes: weights that are made of other tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.pipelines import tiny_sd
from torch import Tensor, nn

from hnetkit.runtime.fingerprint import Fingerprint


class Packed(Tensor):
    """A weight without memory of its own, as those of torchao are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made: Any = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        return made(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value.inner if isinstance(value, Packed) else value for value in args]
        output = func(*given, **(kwargs or {}))
        return Packed(output) if func.name() == "aten::detach" else output


@pytest.fixture
def unet() -> Any:
    unet = tiny_sd(least=True).unet
    unet.conv_in.weight = nn.Parameter(Packed(torch.randn(8, 4, 3, 3)), requires_grad=False)
    return unet


def test_a_weight_whose_inner_tensor_is_another_is_not_in_place(unet: Any) -> None:
    seen = Fingerprint(unet, but=None)
    assert seen.holds(unet)
    unet.conv_in.weight.inner = unet.conv_in.weight.inner.clone()
    assert not seen.is_in_place()


def test_a_weight_that_is_swapped_with_another_is_not_in_place(unet: Any) -> None:
    seen = Fingerprint(unet, but=None)
    torch.utils.swap_tensors(unet.conv_in.weight, nn.Parameter(Packed(torch.randn(8, 4, 3, 3)), requires_grad=False))
    assert not seen.is_in_place()


def test_numbers_that_are_written_in_place_are_no_change(unet: Any) -> None:
    seen = Fingerprint(unet, but=None)
    unet.conv_in.weight.inner.mul_(2)
    unet.conv_out.weight.data.mul_(2)
    assert seen.holds(unet)
