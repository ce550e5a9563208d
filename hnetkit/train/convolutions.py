"""Frozen convolutions that keep nothing of their input: torch's own keep all of it for a gradient nobody asks for.

At SD 1.5's size that is a tenth of what a step keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


@contextmanager
def without_inputs_kept(model: nn.Module) -> Iterator[None]:
    """Has the 2D convolutions of a frozen model keep their weights alone, while the block lasts.

    Outputs and gradients are the same bits. Left as they are: convolutions that pad with other than zeros, and those
    whose ``forward`` is somebody's own already.
    """
    changed = [module for module in model.modules() if isinstance(module, nn.Conv2d) and _is_plain(module)]
    for module in changed:
        module.forward = partial(_convolve, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _is_plain(module: nn.Conv2d) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and "forward" not in vars(module)
    )


def _convolve(module: nn.Conv2d, image: Tensor) -> Tensor:
    placed = (module.stride, module.padding, module.dilation, module.groups)
    convolved: Tensor = _Convolution.apply(image, module.weight, module.bias, placed)  # type: ignore[no-untyped-call]
    return convolved


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, placed: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.placed = image.shape, placed
        return F.conv2d(image, weight, bias, *placed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        image_gradient = conv2d_input(ctx.shape, weight, *gradients, *ctx.placed)  # type: ignore[no-untyped-call]
        return image_gradient, None, None, None
