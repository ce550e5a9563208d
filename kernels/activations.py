"""Activations in plain torch, by the names that A1111 writes into files.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10 (behavior only): six names of its own, and the classes of
`torch.nn.modules.activation` in lower case, but seven that make no sense here, with default arguments in evaluation
mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

LEAKY_SLOPE = 0.01
RRELU_SLOPE = (1 / 8 + 1 / 3) / 2


def _leaky(slope: float) -> Callable[[Tensor, bool], Tensor]:
    return lambda h, inplace: F.leaky_relu(h, slope, inplace)


def _tanh(h: Tensor, inplace: bool) -> Tensor:
    return h.tanh_() if inplace else h.tanh()


def _sigmoid(h: Tensor, inplace: bool) -> Tensor:
    return h.sigmoid_() if inplace else h.sigmoid()


# name -> f(hidden [rows, width], inplace): `inplace` allows f to overwrite its argument.
# PReLU is the only activation with a weight, and is not in the table.
ACTIVATIONS: Mapping[str, Callable[[Tensor, bool], Tensor]] = {
    "celu": lambda h, inplace: F.celu(h, inplace=inplace),
    "elu": lambda h, inplace: F.elu(h, inplace=inplace),
    "gelu": lambda h, inplace: F.gelu(h),
    "hardshrink": lambda h, inplace: F.hardshrink(h),
    "hardsigmoid": lambda h, inplace: F.hardsigmoid(h, inplace=inplace),
    "hardswish": lambda h, inplace: F.hardswish(h, inplace=inplace),
    "hardtanh": lambda h, inplace: F.hardtanh(h, inplace=inplace),
    "leakyrelu": _leaky(LEAKY_SLOPE),
    "logsigmoid": lambda h, inplace: F.logsigmoid(h),
    "mish": lambda h, inplace: F.mish(h, inplace=inplace),
    "relu": lambda h, inplace: F.relu(h, inplace=inplace),
    "relu6": lambda h, inplace: F.relu6(h, inplace=inplace),
    "rrelu": _leaky(RRELU_SLOPE),
    "selu": lambda h, inplace: F.selu(h, inplace=inplace),
    "sigmoid": _sigmoid,
    "silu": lambda h, inplace: F.silu(h, inplace=inplace),
    "softplus": lambda h, inplace: F.softplus(h),
    "softshrink": lambda h, inplace: F.softshrink(h),
    "softsign": lambda h, inplace: F.softsign(h),
    "swish": lambda h, inplace: F.hardswish(h, inplace=inplace),
    "tanh": _tanh,
    "tanhshrink": lambda h, inplace: F.tanhshrink(h),
}

NAMES = frozenset({*ACTIVATIONS, "prelu"})


def activate(h: Tensor, name: str, slope: Tensor | None, *, inplace: bool) -> Tensor:
    """Returns the activation `name` of `h` ``[rows, width]``; `inplace` allows it to overwrite `h`."""
    if slope is not None:
        return F.prelu(h, slope)
    return ACTIVATIONS[name](h, inplace)
