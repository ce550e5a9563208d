"""Frozen convolutions: the bits of torch's own, and nothing of their input kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hnetkit.train.frozen import without_kept_inputs

KINDS = {
    "usual": nn.Conv2d(8, 6, 3, padding=1),
    "strided": nn.Conv2d(8, 6, 3, stride=2, padding=1),
    "dilated, without bias": nn.Conv2d(8, 6, 3, dilation=2, bias=False),
    "in groups": nn.Conv2d(8, 6, 1, groups=2),
    "padded to the same size": nn.Conv2d(8, 6, 3, padding="same"),
    "padded with its other side": nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
}


def _trained(model: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """The output of what learns, then frozen convolutions; its gradient; bytes kept beside the model's weights."""
    image = torch.rand(2, 8, 11, 7, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(image)
    torch.autograd.backward(output, torch.ones_like(output))
    assert image.grad is not None
    return output, image.grad, sum(tensor.nbytes for place, tensor in kept.items() if place not in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(KINDS[kind]).to(dtype).requires_grad_(False)
    output, gradient, _ = _trained(model, dtype)
    with without_kept_inputs(model):
        ours, our_gradient, _ = _trained(model, dtype)
    assert torch.equal(ours, output)
    assert torch.equal(our_gradient, gradient)


def test_nothing_of_the_input_is_kept_while_the_block_lasts() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 1)).requires_grad_(False)
    _, _, plain = _trained(model, torch.float32)
    with without_kept_inputs(model):
        _, _, ours = _trained(model, torch.float32)
    _, _, after = _trained(model, torch.float32)
    image = 2 * 8 * 11 * 7 * 4
    assert (plain, ours, after) == (3 * image, image, 3 * image)  # the activation's own input is needed


def test_a_forward_of_somebodys_own_is_left_to_them() -> None:
    model = nn.Sequential(nn.Conv2d(8, 6, 1)).requires_grad_(False)
    plain = model[0].forward
    model[0].forward = lambda image: plain(image) * 2  # as accelerate's offloading does
    with without_kept_inputs(model):
        assert torch.equal(model(torch.ones(1, 8, 2, 2)), plain(torch.ones(1, 8, 2, 2)) * 2)
    assert "forward" in vars(model[0])
