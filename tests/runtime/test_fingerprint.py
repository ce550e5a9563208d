"""What a fingerprint of a UNet sees beside what `test_capture` changes.

Weights that are made of other tensors, tensors of one number, and torch's settings.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.pipelines import tiny_sd
from support.torch_settings import setting
from torch import Tensor, backends, nn

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


def test_a_number_that_becomes_an_equal_one_of_another_type_is_a_change(unet: Any) -> None:
    for module, values in ((unet.mid_block, vars(unet.mid_block)), (unet.conv_in, unet.conv_in._buffers)):
        values["scale"] = torch.tensor(1.5)
        seen = Fingerprint(unet, but=None)
        assert seen.holds(unet)
        module.scale = module.scale.double()
        assert not seen.holds(unet)


SETTINGS: list[tuple[Any, str, Any]] = [
    (backends.cuda.matmul, "allow_tf32", True),
    (backends.cuda.matmul, "fp32_precision", "tf32"),
    (backends.cuda.matmul, "allow_fp16_accumulation", True),
    (backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    (backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    (backends.cudnn, "allow_tf32", False),
    (backends.cudnn, "enabled", False),
    (backends.cudnn, "benchmark", True),
    (backends.cudnn, "deterministic", True),
]


@pytest.mark.parametrize(("owner", "name", "value"), SETTINGS, ids=lambda value: value if type(value) is str else "")
def test_a_setting_by_which_torch_chooses_kernels_is_a_change(unet: Any, owner: Any, name: str, value: Any) -> None:
    if not hasattr(owner, name):
        pytest.skip("this version of torch has no such setting")
    seen = Fingerprint(unet, but=None)
    with setting(owner, name, value):
        assert not seen.holds(unet)
    assert seen.holds(unet)


@pytest.mark.parametrize("name", ["flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp"])
def test_a_kind_of_attention_that_is_switched_off_is_a_change(unet: Any, name: str) -> None:
    seen = Fingerprint(unet, but=None)
    switch = getattr(backends.cuda, f"enable_{name}")
    switch(False)
    try:
        assert not seen.holds(unet)
    finally:
        switch(True)
    assert seen.holds(unet)
