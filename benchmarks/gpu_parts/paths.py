"""The ways to apply a stack that are set side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_parts.work import Contexts, Stack
from hnetkit.kernels import configs, eager
from hnetkit.kernels.activations import activate
from hnetkit.kernels.gpu import op
from hnetkit.kernels.weights import MLPWeights, pack

Pair: TypeAlias = tuple[Tensor, Tensor]
"""What K and V get, each ``[rows, width]``."""

Apply: TypeAlias = Callable[[Tensor], Pair]


class Path(NamedTuple):
    """One way to apply a stack.

    Attributes:
        prepare: does everything that can be done before a context is there.
        in_every_layer: whether the text goes through the stack in each cross-attention layer, not once.
    """

    prepare: Callable[[Stack], Apply]
    in_every_layer: bool = False

    def applications(self, contexts: Contexts) -> int:
        return len(contexts.xs) * (contexts.layers if self.in_every_layer else 1)

    def flops(self, work: Sequence[Contexts]) -> int:
        """Returns the FLOPs of the products of one step, as this path does them."""
        return sum(
            2 * contexts.stack.multiplications * len(contexts.xs[0]) * self.applications(contexts) for contexts in work
        )

    def step(self, work: Sequence[Contexts]) -> Callable[[], list[list[Pair]]]:
        """Returns what applies the stacks of one UNet step; it gives, for each of `work`, a pair per application."""
        prepared = [(self.prepare(c.stack), list(c.xs) * (self.applications(c) // len(c.xs))) for c in work]
        return lambda: [[apply(x) for x in xs] for apply, xs in prepared]


def as_a1111(x: Tensor, mlps: Sequence[MLPWeights], strengths: Sequence[float]) -> Tensor:
    """Returns what A1111 computes of x ``[..., width]``: every network by itself, everything rounded to x's dtype."""
    for mlp, strength in zip(mlps, strengths, strict=True):
        h = x
        for stage in mlp:
            h = F.linear(h, stage.weight, stage.bias)
            if stage.activation is not None:
                h = activate(h, stage.activation, stage.slope, inplace=False)
            if stage.norm_weight is not None:
                h = F.layer_norm(h, (h.shape[-1],), stage.norm_weight, stage.norm_bias)
        x = x + h * strength
    return x


def plainly(stack: Stack) -> Apply:
    """As A1111."""
    (keys, values), (key_numbers, value_numbers) = stack.sides, stack.numbers
    return lambda x: (as_a1111(x, keys, key_numbers), as_a1111(x, values, value_numbers))


def eagerly(stack: Stack) -> Apply:
    """By `hnetkit.kernels.eager`."""
    (keys, values), (key_numbers, value_numbers) = stack.sides, stack.strengths.unbind()
    return lambda x: (eager.apply(x, keys, key_numbers), eager.apply(x, values, value_numbers))


def by_kernels(path: str, *, with_candidates: bool = False) -> Callable[[Stack], Apply]:
    """By the Triton kernels of `path`; with rows of the tables that wait for their measurement, or without."""
    choosing = configs.candidates if with_candidates else contextlib.nullcontext

    def prepare(stack: Stack) -> Apply:
        packed = [pack(pair, for_kernels=True) for pair in zip(*stack.sides, strict=True)]
        kernels = op.KernelStack(packed, path)

        def apply(x: Tensor) -> Pair:
            with choosing():
                key, value = kernels.apply(x, stack.strengths).unbind()
            return key, value

        return apply

    return prepare


def compiled(**options: Any) -> Callable[[Stack], Apply]:
    """As A1111, K and V of a layer through `torch.compile` in one; `options` are its."""

    def prepare(stack: Stack) -> Apply:
        (keys, values), (key_numbers, value_numbers) = stack.sides, stack.numbers

        @torch.compile(dynamic=False, fullgraph=True, **options)
        def both(x: Tensor, keys: Sequence[MLPWeights], values: Sequence[MLPWeights]) -> Pair:
            return as_a1111(x, keys, key_numbers), as_a1111(x, values, value_numbers)

        return lambda x: both(x, keys, values)

    return prepare


AS_A1111 = Path(plainly, in_every_layer=True)
FUSED = Path(by_kernels("fused"))
EACH = {
    "as A1111": AS_A1111,
    "eager": Path(eagerly),
    "grouped": Path(by_kernels("grouped")),
    "fused": FUSED,
    "specialized": Path(by_kernels("specialized")),
}
