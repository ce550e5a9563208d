"""Weights of K and V side by side, and laid out for the Triton kernels where they are to run.

For the kernels, hidden widths are padded and layer norms folded. Padding is exact for every activation: a padded row of
one weight meets a column of the next that is zero. A layer norm between two linear layers is folded into the second:
``LN(a) W^T + b = r (a (W g)^T - m c) + (W n + b)``, with g and n the norm's weight and bias, m the mean of a row, r one
over its deviation, and c the row sums of the rounded ``W g``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hnetkit.kernels.mlp import MLPWeights, StageWeights

MULTIPLE = 64
"""Hidden widths are padded to a multiple of this: whole tiles, and rows that begin at 16 bytes."""


TENSORS = ("weight", "bias", "slope", "shift", "norm_weight", "norm_bias")


class PackedStage(NamedTuple):
    """One stage of `count` networks of one build, for one or both sides (K, V).

    Attributes:
        weight: ``[count, sides, out, in]``, the products' dtype.
        bias: ``[count, sides, out]``; zeros where the file has none. This and the rest are fp32 for the kernels.
        slope: PReLU's, ``[count, sides, out]``.
        shift: row sums of `weight`, ``[count, sides, out]``, where a layer norm before it is folded into it.
        norm_weight, norm_bias: ``[count, sides, out]``: of the layer norm that follows, where it is not folded.
        activation: a name of `activations.ACTIVATIONS`, or None.
        width: outputs without padding.
        is_normed: whether a layer norm follows, folded or not.
    """

    weight: Tensor
    bias: Tensor
    slope: Tensor | None
    shift: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    activation: str | None
    width: int
    is_normed: bool

    def map(self, made: Callable[[str], Tensor]) -> PackedStage:
        """Returns the stage with other tensors, by the names of those that it has."""
        held: dict[str, Any] = {name: made(name) for name in TENSORS if getattr(self, name) is not None}
        return self._replace(**held)


Packed: TypeAlias = tuple[PackedStage, ...]
"""Networks of one build that follow one another in a stack."""


def same_build(mlps: Sequence[MLPWeights]) -> bool:
    """Whether MLPs differ in nothing but numbers."""
    return len({tuple(_build(stage) for stage in mlp) for mlp in mlps}) == 1


def pack(sides: Sequence[MLPWeights], *, for_kernels: bool) -> Packed:
    """Returns one network, packed.

    Args:
        sides: its MLPs of `same_build`: K's and V's, or one.
        for_kernels: whether to pad and fold.
    """
    return tuple(
        _stage(
            [mlp[number] for mlp in sides],
            [mlp[number - 1] if number else None for mlp in sides],
            is_last=number == len(first) - 1,
            for_kernels=for_kernels,
        )
        for first in sides[:1]
        for number in range(len(first))
    )


def unpack(packed: Packed, side: int, place: int = 0) -> MLPWeights:
    """Returns an MLP that computes what one side of a packed network does, its weights as views."""
    dtype, stages = packed[0].weight.dtype, []
    for before, stage in zip((None, *packed), packed, strict=False):
        depth = stage.weight.shape[-1] if before is None else before.width
        own = [None if t is None else t[place, side, : stage.width].to(dtype) for t in (stage.bias, stage.slope)]
        norm_weight, norm_bias = stage.norm_weight, stage.norm_bias
        if stage.is_normed and norm_weight is None:  # folded: what is left of it has no weights of its own
            norm_weight, norm_bias = torch.ones_like(stage.bias), torch.zeros_like(stage.bias)
        norms = [None if t is None else t[place, side, : stage.width].to(dtype) for t in (norm_weight, norm_bias)]
        weight = stage.weight[place, side, : stage.width, :depth]
        stages.append(StageWeights(weight, own[0], stage.activation, own[1], *norms))
    return tuple(stages)


def merge(networks: Sequence[Packed]) -> Packed:
    """Returns networks of one build as one, for a kernel that applies them all: their tensors are copied."""
    return tuple(_merged(stages) for stages in zip(*networks, strict=True))


def _merged(stages: Sequence[PackedStage]) -> PackedStage:
    return stages[0].map(lambda name: torch.cat([getattr(stage, name) for stage in stages]))


def one_side(packed: Packed, side: int) -> Packed:
    """Returns one side of networks as views."""
    return tuple(_side(stage, side) for stage in packed)


def _side(stage: PackedStage, side: int) -> PackedStage:
    return stage.map(lambda name: getattr(stage, name)[:, side : side + 1])


def at(stage: PackedStage, place: int) -> PackedStage:
    """Returns a stage of one network, its tensors ``[sides, ...]``, as views."""
    return stage.map(lambda name: getattr(stage, name)[place])


def _build(stage: StageWeights) -> tuple[object, ...]:
    return (stage.weight.shape, stage.activation, stage.norm_weight is not None)


def _folded(stage: StageWeights, before: StageWeights | None) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of a stage, with the layer norm of the stage before in them."""
    weight = stage.weight
    bias = weight.new_zeros(len(weight)) if stage.bias is None else stage.bias
    if before is None or before.norm_weight is None or before.norm_bias is None:
        return weight, bias
    wide = weight.double() if weight.device.type != "mps" else weight.float()
    scaled = (wide * before.norm_weight.to(wide)).to(weight.dtype)
    return scaled, (wide @ before.norm_bias.to(wide) + bias.to(wide)).float()


def _stage(
    stages: Sequence[StageWeights], befores: Sequence[StageWeights | None], *, is_last: bool, for_kernels: bool
) -> PackedStage:
    """Returns one stage of all sides; `befores` are the stages before, or None for the first."""
    first, before = stages[0], befores[0]
    width, depth = first.weight.shape
    folds = for_kernels and before is not None and before.norm_weight is not None
    more_out = -width % MULTIPLE if for_kernels and not is_last else 0
    more_in = -depth % MULTIPLE if for_kernels and before is not None else 0
    pairs = [_folded(stage, before if folds else None) for stage, before in zip(stages, befores, strict=True)]
    weight = F.pad(torch.stack([weight for weight, _ in pairs]), (0, more_in, 0, more_out))
    dtype = torch.float32 if for_kernels else weight.dtype

    def rows(tensors: Iterable[Tensor | None]) -> Any:
        held = [tensor.to(dtype).expand(width) for tensor in tensors if tensor is not None]
        return F.pad(torch.stack(held), (0, more_out))[None] if held else None

    norms = stages if is_last or not for_kernels else []
    return PackedStage(
        weight=weight[None],
        bias=rows(bias for _, bias in pairs),
        slope=rows(stage.slope for stage in stages),
        shift=weight.float().sum(-1)[None] if folds else None,
        norm_weight=rows(stage.norm_weight for stage in norms),
        norm_bias=rows(stage.norm_bias for stage in norms),
        activation=first.activation,
        width=width,
        is_normed=first.norm_weight is not None,
    )
