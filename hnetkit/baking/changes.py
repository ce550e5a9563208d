"""Changes of projections that take the place of a stack, and a UNet with them in its weights for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from hnetkit.kernels.affine import to_float64
from hnetkit.runtime.layers import Layer
from hnetkit.runtime.strength import Side

Origin = Literal["exact", "fitted"]
Place: TypeAlias = tuple[Layer, Side]


@dataclass(frozen=True, eq=False)
class SideChange:
    """What is added to the weight of ``to_k`` or ``to_v``: ``up @ down``, best parts first.

    Attributes:
        up: ``[projected, rank]``.
        down: ``[rank, width]``; None for the identity: `up` is then the whole difference.
        constant: ``[projected]``: what is added to V itself; None for K, where softmax ignores it.
        origin: whether it is what the stack adds, or fitted to it.
        errors: ``[rank + 1]`` relative errors with the first r parts, on contexts that it was not fitted on; of parts
            in no order, as refining leaves them, the last alone.
        center: ``[width]``: the mean context, where fewer parts with another constant give the same; None for 0.
    """

    up: Tensor
    down: Tensor | None
    constant: Tensor | None
    origin: Origin
    errors: Tensor
    center: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def error(self) -> float:
        return float(self.errors[-1])

    @property
    def matrix(self) -> Tensor:
        """``[projected, width]`` in float64."""
        return to_float64(self.up) if self.down is None else to_float64(self.up) @ to_float64(self.down)

    def truncated(self, rank: int) -> SideChange:
        """Returns the change with its first `rank` parts; all of them, where it has no more."""
        if self.down is None or rank >= self.rank:
            return self
        constant = self.constant
        if constant is not None and self.center is not None:
            constant = constant + self.up[:, rank:] @ (self.down[rank:] @ self.center)
        up, down = self.up[:, :rank].clone(), self.down[:rank].clone()  # the whole is not kept in memory
        return replace(self, up=up, down=down, constant=constant, errors=self.errors[: rank + 1].clone())

    def rank_for(self, error: float) -> int | None:
        """Returns the least rank whose relative error is at most `error`; None where no rank's is."""
        fitting = (self.errors <= error).nonzero()
        return int(fitting[0]) if len(fitting) else None


Changes: TypeAlias = Mapping[Place, SideChange]
"""The changes of a UNet's layers."""


def output_shift(change: SideChange, output: Tensor) -> Tensor:
    """Returns what V's constant adds to the bias of ``to_out.0``, ``[query width]`` in float64.

    The weights of the softmax sum to 1, so a constant that is added to V reaches the output whole.

    Args:
        output: the weight of ``to_out.0``, ``[query width, projected]``.
    """
    if change.constant is None:
        return to_float64(output).new_zeros(len(output))
    return to_float64(output) @ to_float64(change.constant)


@contextmanager
def in_weights(unet: nn.Module, changes: Changes) -> Iterator[None]:
    """Has `unet` compute with the changes in its weights inside the block; its own come back bit for bit.

    No stack may be active, since a map that is folded into the same weights would be lost.
    """
    modules = dict(unet.named_modules())
    before: list[tuple[nn.Parameter, Tensor]] = []

    def add(parameter: Any, difference: Tensor) -> None:
        before.append((parameter, parameter.data))
        exact = to_float64(parameter.data) + difference.to(to_float64(parameter.data).device)
        parameter.data = exact.to(parameter.data)

    try:
        with torch.no_grad():
            for (layer, side), change in changes.items():
                attention: Any = modules[layer.name]
                projection = attention.to_k if side == "k" else attention.to_v
                add(projection.weight, change.matrix)
                if change.constant is not None:
                    add(attention.to_out[0].bias, output_shift(change, attention.to_out[0].weight.data))
        yield
    finally:
        for parameter, own in before:
            parameter.data = own.to(parameter.data.device)


def worst(changes: Changes) -> Place:
    """Returns the layer and side with the largest relative error."""
    return max(changes, key=lambda place: changes[place].error)
