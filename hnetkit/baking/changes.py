"""Changes of projections that take the place of a stack, how a file rounds them, and a UNet with them for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from hnetkit.errors import FileRefused
from hnetkit.kernels.affine import to_float64
from hnetkit.network import TORCH_NAME, DType
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
        errors: ``[rank + 1]`` relative errors with the first r parts, on contexts that it was not fitted on; once it is
            made, the last of them is that of the file, after refining and rounding.
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


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a file rounds what it holds.

    Attributes:
        dtype: of its tensors.
        of_sums: whether they are weights with the change in them, as in a checkpoint, and not the change alone: a small
            one is then as coarse as the weights are.
    """

    dtype: DType
    of_sums: bool = False

    @property
    def is_felt(self) -> bool:
        return self.dtype != "fp32"

    def of(self, change: SideChange) -> SideChange:
        """Returns a change as the file holds it; one that is rounded in a sum alone, as it is."""
        if self.of_sums:
            return change
        down, constant = (None if part is None else self._rounded(part) for part in (change.down, change.constant))
        return replace(change, up=self._rounded(change.up), down=down, constant=constant)

    def total(self, own: Tensor, added: Tensor) -> Tensor:
        """Returns weights with what is added to them, in float64, as they are once the file is read."""
        exact = to_float64(own) + added.to(to_float64(own))
        return self._rounded(exact) if self.of_sums else exact

    def added(self, own: Tensor, change: SideChange) -> Tensor:
        """Returns what weights become more by, in float64, once the file is read."""
        return self.total(own, self.of(change).matrix) - to_float64(own)

    def too_large(self, name: str) -> FileRefused:
        """Returns the error for a tensor of which the file does not hold a value."""
        hint = "lower strengths"
        if self.is_felt:
            hint = f"a model in fp32, or {hint}" if self.of_sums else "--file-dtype fp32"
        return FileRefused(f"{name}: a value does not fit {self.dtype}", hint=hint)

    def _rounded(self, values: Tensor) -> Tensor:
        return to_float64(values.to(getattr(torch, TORCH_NAME[self.dtype])))


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
def in_weights(unet: nn.Module, changes: Changes, rounding: Rounding) -> Iterator[None]:
    """Has `unet` compute with the changes of a file in its weights inside the block; its own come back bit for bit.

    No stack may be active, since a map that is folded into the same weights would be lost.
    """
    modules = dict(unet.named_modules())
    before: list[tuple[nn.Parameter, Tensor]] = []

    def add(parameter: Any, difference: Tensor) -> None:
        before.append((parameter, parameter.data))
        parameter.data = rounding.total(parameter.data, difference).to(parameter.data)

    try:
        with torch.no_grad():
            for (layer, side), exact in changes.items():
                change = rounding.of(exact)
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
