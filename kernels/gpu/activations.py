"""Activations and their derivatives on tiles inside a Triton kernel, by A1111's names. fp32 in, fp32 out.

The list is that of `hnetkit.kernels.activations`. Only operations are used that exist both on the GPU and in Triton's
interpreter (no libdevice, no inline assembly).
"""

from __future__ import annotations

import triton
import triton.language as tl

from hnetkit.kernels.activations import LEAKY_SLOPE, RRELU_SLOPE

_LEAKY = tl.constexpr(LEAKY_SLOPE)
_RRELU = tl.constexpr(RRELU_SLOPE)
_SELU_SCALE = tl.constexpr(1.0507009873554805)
_SELU_ALPHA = tl.constexpr(1.6732632423543772)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_BELL = tl.constexpr(0.3989422804014327)  # one over the root of two pi
_FLAT = tl.constexpr(20.0)  # from here on mish and softplus are the identity in fp32


@triton.jit
def _clamp(h, LOW: tl.constexpr, HIGH: tl.constexpr):
    """`h` between two numbers; NaN stays NaN, which the plain minimum and maximum would lose."""
    return tl.minimum(tl.maximum(h, LOW, tl.PropagateNan.ALL), HIGH, tl.PropagateNan.ALL)


@triton.jit
def _tanh(h):
    return 2 * tl.sigmoid(2 * h) - 1


@triton.jit
def _softplus(h):
    return tl.maximum(h, 0.0) + tl.log(1 + tl.exp(-tl.abs(h)))


@triton.jit
def _below(h):
    """``exp(h) - 1`` below 0, and 0 above."""
    return tl.exp(tl.minimum(h, 0.0, tl.PropagateNan.ALL)) - 1


@triton.jit
def _mish(h):
    e = tl.exp(tl.minimum(h, _FLAT))
    n = e * (e + 2)
    return tl.where(h > _FLAT, h, h * n / (n + 2))


@triton.jit
def activate(h, slope, NAME: tl.constexpr):
    """The activation `NAME` of a tile; `slope` is PReLU's, of a shape that fits the tile."""
    if NAME == "relu":
        h = tl.maximum(h, 0.0, tl.PropagateNan.ALL)
    elif NAME == "leakyrelu":
        h = tl.where(h > 0, h, _LEAKY * h)
    elif NAME == "rrelu":
        h = tl.where(h > 0, h, _RRELU * h)
    elif NAME == "prelu":
        h = tl.where(h > 0, h, slope * h)
    elif NAME == "elu" or NAME == "celu":
        h = tl.where(h > 0, h, _below(h))
    elif NAME == "selu":
        h = _SELU_SCALE * tl.where(h > 0, h, _SELU_ALPHA * _below(h))
    elif NAME == "swish" or NAME == "hardswish":
        h = h * _clamp(h + 3, 0.0, 6.0) / 6
    elif NAME == "hardsigmoid":
        h = _clamp(h + 3, 0.0, 6.0) / 6
    elif NAME == "hardtanh":
        h = _clamp(h, -1.0, 1.0)
    elif NAME == "relu6":
        h = _clamp(h, 0.0, 6.0)
    elif NAME == "tanh":
        h = _tanh(h)
    elif NAME == "tanhshrink":
        h = h - _tanh(h)
    elif NAME == "sigmoid":
        h = tl.sigmoid(h)
    elif NAME == "logsigmoid":
        h = -_softplus(-h)
    elif NAME == "softplus":
        h = tl.where(h > _FLAT, h, _softplus(h))
    elif NAME == "silu":
        h = h * tl.sigmoid(h)
    elif NAME == "mish":
        h = _mish(h)
    elif NAME == "gelu":
        h = 0.5 * h * (1 + tl.erf(h * _SQRT_HALF))
    elif NAME == "softsign":
        h = h / (1 + tl.abs(h))
    elif NAME == "hardshrink":
        h = tl.where(tl.abs(h) <= 0.5, 0.0, h)
    elif NAME == "softshrink":
        h = h - _clamp(h, -0.5, 0.5)
    else:
        tl.static_assert(NAME == "none", "no such activation")
    return h


@triton.jit
def derivative(h, NAME: tl.constexpr):
    """The derivative of the activation `NAME` on a tile, as torch takes it where there is a kink; none for PReLU."""
    if NAME == "relu":
        d = tl.where(h > 0, 1.0, 0.0)
    elif NAME == "leakyrelu":
        d = tl.where(h > 0, 1.0, _LEAKY)
    elif NAME == "rrelu":
        d = tl.where(h > 0, 1.0, _RRELU)
    elif NAME == "elu" or NAME == "celu":
        d = tl.where(h > 0, 1.0, _below(h) + 1)
    elif NAME == "selu":
        d = _SELU_SCALE * tl.where(h > 0, 1.0, _SELU_ALPHA * (_below(h) + 1))
    elif NAME == "swish" or NAME == "hardswish":
        d = tl.where(h < -3, 0.0, tl.where(h > 3, 1.0, h / 3 + 0.5))
    elif NAME == "hardsigmoid":
        d = tl.where(tl.abs(h) < 3, 1.0 / 6, 0.0)
    elif NAME == "hardtanh":
        d = tl.where(tl.abs(h) < 1, 1.0, 0.0)
    elif NAME == "relu6":
        d = tl.where((h > 0) & (h < 6), 1.0, 0.0)
    elif NAME == "tanh":
        d = 1 - _tanh(h) * _tanh(h)
    elif NAME == "tanhshrink":
        d = _tanh(h) * _tanh(h)
    elif NAME == "sigmoid":
        d = tl.sigmoid(h) * (1 - tl.sigmoid(h))
    elif NAME == "logsigmoid":
        d = tl.sigmoid(-h)
    elif NAME == "softplus":
        d = tl.sigmoid(h)
    elif NAME == "silu":
        d = tl.sigmoid(h) * (1 + h * (1 - tl.sigmoid(h)))
    elif NAME == "mish":
        t = _tanh(_softplus(h))
        d = t + h * (1 - t * t) * tl.sigmoid(h)
    elif NAME == "gelu":
        d = 0.5 * (1 + tl.erf(h * _SQRT_HALF)) + h * tl.exp(-0.5 * h * h) * _BELL
    elif NAME == "softsign":
        d = 1 / ((1 + tl.abs(h)) * (1 + tl.abs(h)))
    elif NAME == "hardshrink" or NAME == "softshrink":
        d = tl.where(tl.abs(h) > 0.5, 1.0, 0.0)
    else:
        tl.static_assert(NAME == "none", "no such derivative")
        d = tl.zeros_like(h) + 1
    return d
