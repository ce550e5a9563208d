"""The weights of residual MLPs as tensors: plain, and packed for K and V side by side.

For the Triton kernels, packing pads hidden widths and folds layer norms. Padding is exact for every activation: a
padded row of one weight meets a column of the next that is zero. A layer norm between two linear layers is folded into
the second: ``LN(a) W^T + b = r (a (W g)^T - m c) + (W n + b)``, with g and n the norm's weight and bias, m the mean of
a row, r one over its deviation, and c the row sums of the rounded ``W g``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPSILON = 1e-5

PADDING = 64
"""Hidden widths are padded to a multiple of this: whole tiles, and rows that begin at 16 bytes."""

PACKED_TENSORS = ("weight", "bias", "slope", "shift", "norm_weight", "norm_bias")
"""The tensors of a `PackedStage`; some of them may be absent."""


class StageWeights(NamedTuple):
    """Linear, then activation, then layer norm (eps 1e-5), always in this order; all on one device, of one dtype.

    Attributes:
        weight: ``[out, in]``.
        bias: ``[out]``, or None.
        activation: a name of `activations.ACTIVATIONS`, or None for none.
        slope: PReLU's slope, ``[1]`` or ``[out]``; None for every other activation.
        norm_weight: ``[out]``, None without layer norm.
        norm_bias: ``[out]``, None without layer norm.
    """

    weight: Tensor
    bias: Tensor | None = None
    activation: str | None = None
    slope: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


MLPWeights: TypeAlias = tuple[StageWeights, ...]
"""Stages in order of application; the first takes ``[..., d]``, the last gives ``[..., d]``."""


def is_affine(mlp: MLPWeights) -> bool:
    """Whether an MLP is one linear map with an offset: nothing in it has an activation or a layer norm."""
    return all(stage.activation is None and stage.norm_weight is None for stage in mlp)


def cast(mlp: MLPWeights, dtype: torch.dtype) -> MLPWeights:
    """Returns an MLP in another dtype."""

    def converted(stage: StageWeights) -> StageWeights:
        tensors: dict[str, Any] = {
            name: value.to(dtype) for name, value in stage._asdict().items() if isinstance(value, Tensor)
        }
        return stage._replace(**tensors)

    return tuple(map(converted, mlp))


def multiplications(mlp: MLPWeights) -> int:
    """Returns the multiply-adds of the products for one row; FLOPs are twice as many."""
    return sum(stage.weight.numel() for stage in mlp)


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

    def map(self, change: Callable[[Tensor], Tensor]) -> PackedStage:
        """Returns the stage with `change` made to each tensor that it has."""
        tensors: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return self._replace(**tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that it has, by name, in the order of `PACKED_TENSORS`."""
        tensors = {name: getattr(self, name) for name in PACKED_TENSORS}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}


PackedMLPs: TypeAlias = tuple[PackedStage, ...]
"""Networks of one build that follow one another in a stack."""


def same_build(mlps: Sequence[MLPWeights]) -> bool:
    """Whether MLPs differ in nothing but numbers."""
    return len({tuple(_build_of(stage) for stage in mlp) for mlp in mlps}) == 1


def pack(sides: Sequence[MLPWeights], *, for_kernels: bool) -> PackedMLPs:
    """Returns one network, packed.

    Args:
        sides: its MLPs of `same_build`: K's and V's, or one.
        for_kernels: whether to pad and fold.
    """
    last = len(sides[0]) - 1
    return tuple(
        _pack_stage(
            [mlp[number] for mlp in sides],
            [mlp[number - 1] if number else None for mlp in sides],
            is_last=number == last,
            for_kernels=for_kernels,
        )
        for number in range(last + 1)
    )


def unpack(packed: PackedMLPs, side: int, index: int = 0) -> MLPWeights:
    """Returns an MLP that computes what one side of a packed network does, its weights as views."""
    dtype, stages = packed[0].weight.dtype, []
    for before, stage in zip((None, *packed), packed, strict=False):
        depth = stage.weight.shape[-1] if before is None else before.width
        norm_weight, norm_bias = stage.norm_weight, stage.norm_bias
        if stage.is_normed and norm_weight is None:  # folded: what is left of it has no weights of its own
            norm_weight, norm_bias = torch.ones_like(stage.bias), torch.zeros_like(stage.bias)
        bias, slope, norm_weight, norm_bias = (
            None if tensor is None else tensor[index, side, : stage.width].to(dtype)
            for tensor in (stage.bias, stage.slope, norm_weight, norm_bias)
        )
        weight = stage.weight[index, side, : stage.width, :depth]
        stages.append(StageWeights(weight, bias, stage.activation, slope, norm_weight, norm_bias))
    return tuple(stages)


def merge(networks: Sequence[PackedMLPs]) -> PackedMLPs:
    """Returns networks of one build packed together, for a kernel that applies them all; their tensors are copied."""
    return tuple(_merge_stages(stages) for stages in zip(*networks, strict=True))


def _merge_stages(stages: Sequence[PackedStage]) -> PackedStage:
    tensors: dict[str, Any] = {
        name: torch.cat([stage.tensors()[name] for stage in stages]) for name in stages[0].tensors()
    }
    return stages[0]._replace(**tensors)


def one_side(packed: PackedMLPs, side: int) -> PackedMLPs:
    """Returns one side of networks as views."""
    return tuple(stage.map(lambda tensor: tensor[:, side : side + 1]) for stage in packed)


def network_at(stage: PackedStage, index: int) -> PackedStage:
    """Returns a stage of one network, its tensors ``[sides, ...]``, as views."""
    return stage.map(lambda tensor: tensor[index])


def _build_of(stage: StageWeights) -> tuple[object, ...]:
    return (stage.weight.shape, stage.activation, stage.norm_weight is not None)


def _fold_norm(stage: StageWeights, before: StageWeights | None) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of a stage, with the layer norm of the stage before folded in."""
    weight = stage.weight
    bias = weight.new_zeros(len(weight)) if stage.bias is None else stage.bias
    if before is None or before.norm_weight is None or before.norm_bias is None:
        return weight, bias
    wide = weight.double() if weight.device.type != "mps" else weight.float()
    scaled = (wide * before.norm_weight.to(wide)).to(weight.dtype)
    return scaled, (wide @ before.norm_bias.to(wide) + bias.to(wide)).float()


def _pack_stage(
    stages: Sequence[StageWeights], befores: Sequence[StageWeights | None], *, is_last: bool, for_kernels: bool
) -> PackedStage:
    """Returns one stage of all sides; `befores` are the stages before, or None for the first."""
    first, before = stages[0], befores[0]
    width, depth = first.weight.shape
    folds = for_kernels and before is not None and before.norm_weight is not None
    more_out = -width % PADDING if for_kernels and not is_last else 0
    more_in = -depth % PADDING if for_kernels and before is not None else 0
    pairs = [_fold_norm(stage, before if folds else None) for stage, before in zip(stages, befores, strict=True)]
    weight = F.pad(torch.stack([weight for weight, _ in pairs]), (0, more_in, 0, more_out))
    dtype = torch.float32 if for_kernels else weight.dtype

    def rows(tensors: Iterable[Tensor | None]) -> Any:
        vectors = [tensor.to(dtype).expand(width) for tensor in tensors if tensor is not None]
        return F.pad(torch.stack(vectors), (0, more_out))[None] if vectors else None

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
