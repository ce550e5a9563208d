"""A stack of one width, made ready for a path: all the work that can be done before the first context arrives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from hnetkit.kernels import eager, reference
from hnetkit.kernels.dispatch import BF16, KERNELS, path_on
from hnetkit.kernels.weights import MLPWeights, PackedMLPs, cast, is_affine, one_side, pack, same_build, unpack

if TYPE_CHECKING:
    from hnetkit.kernels.gpu.op import KernelStack

PackedPair: TypeAlias = "tuple[PackedMLPs] | tuple[PackedMLPs, PackedMLPs]"
"""A network's MLPs of K and V: packed together, or each by itself where their builds differ."""

_PLAIN = {"reference": reference.apply, "eager": eager.apply}


def pack_pair(key: MLPWeights, value: MLPWeights, path: str) -> PackedPair:
    """Returns a network's two MLPs as `path` takes them."""
    if path == BF16:
        key, value = _in_bf16(key), _in_bf16(value)
    for_kernels = path in KERNELS and key[0].weight.dtype != torch.float64
    if same_build([key, value]):
        return (pack([key, value], for_kernels=for_kernels),)
    return (pack([key], for_kernels=for_kernels), pack([value], for_kernels=for_kernels))


def packed_alike(path: str, other: str) -> bool:
    """Whether two paths take the same weights."""
    return (path in KERNELS, path == BF16) == (other in KERNELS, other == BF16)


def _in_bf16(mlp: MLPWeights) -> MLPWeights:
    """Returns an fp32 MLP in bf16, but an affine one as it is: it is cheap, and exact otherwise."""
    return mlp if mlp[0].weight.dtype != torch.float32 or is_affine(mlp) else cast(mlp, torch.bfloat16)


class StackExecutor:
    """Networks of one width in stacking order.

    Args:
        pairs: their weights, on one device, of one dtype; for plain torch each network may have its own.
        path: one of `hnetkit.kernels.dispatch.PATHS`.
        sides: which of K (0) and V (1) are computed.
    """

    def __init__(self, pairs: Sequence[PackedPair], path: str, sides: Sequence[int] = (0, 1)) -> None:
        self.path = path
        self.sides = tuple(sides)
        self._pairs = pairs
        self._plain: dict[int, list[MLPWeights]] = {}
        self._branches: list[tuple[tuple[int, ...], KernelStack]] = []
        self._dtype = pairs[0][0][0].weight.dtype if pairs else torch.float64
        if path in KERNELS and self._dtype != torch.float64:
            from hnetkit.kernels.gpu.op import KernelStack

            together = len(self.sides) == 2 and all(len(pair) == 1 for pair in pairs)
            for branch in [self.sides] if together else [(side,) for side in self.sides]:
                networks = [pair[0] if together else _side_of(pair, branch[0]) for pair in pairs]
                self._branches.append((branch, KernelStack(networks, path)))
            self._supports_gradients = all(stack.supports_gradients for _, stack in self._branches)
        else:
            for side in self.sides:
                self.mlps(side)

    def apply(self, x: Tensor, strengths: Tensor, active: Sequence[Sequence[bool]]) -> tuple[Tensor, Tensor]:
        """Returns K's and V's context: `x` after each ``y = y + strength * MLP(y)`` in order.

        Args:
            x: ``[..., d]``; never written to.
            strengths: ``[2, networks]``, fp32, on x's device.
            active: by side and network, whether its strength is not 0: plain torch skips the others. The kernels read
                `strengths` alone, so that they can be captured once and run with any numbers.

        Returns:
            Each ``[..., d]`` of x's dtype; `x` itself for a side that is not computed.

        Raises:
            hnetkit.errors.KernelUnavailable: the path was forced and cannot run on x's device.
            ValueError: x has another width, device, or kind of dtype than the kernels can take.
        """
        contexts = [x, x]
        if self._runs_kernels(x):
            for branch, stack in self._branches:
                numbers = strengths if len(branch) == 2 else strengths[branch[0] : branch[0] + 1]
                for side, context in zip(branch, stack.apply(x, numbers).unbind(), strict=True):
                    contexts[side] = context
        else:
            apply = _PLAIN.get(self.path, eager.apply)
            for side in self.sides:
                chosen = [index for index, is_active in enumerate(active[side]) if is_active]
                mlps, scalars = self.mlps(side), strengths[side].unbind()
                contexts[side] = apply(x, [mlps[index] for index in chosen], [scalars[index] for index in chosen])
        return contexts[0], contexts[1]

    def forget_plain(self) -> None:
        """Has plain torch see numbers that were written into the packed weights."""
        if self._branches:  # without them plain torch has the packed weights as views, which show the numbers already
            self._plain = {}

    def mlps(self, side: int) -> list[MLPWeights]:
        """Returns the networks of one side for plain torch, as views where their dtype allows."""
        if side not in self._plain:
            with torch.inference_mode(False):  # what is kept must serve outside of it too
                self._plain[side] = [unpack(_side_of(pair, side), 0) for pair in self._pairs]
        return self._plain[side]

    def launches(self, device: torch.device) -> int | None:
        """Returns how many kernels `apply` launches on `device` for all its sides; None where it is plain torch."""
        if not self._branches or path_on(self.path, device, self._dtype) not in KERNELS:
            return None
        return sum(stack.launches(device) for _, stack in self._branches)

    def _runs_kernels(self, x: Tensor) -> bool:
        if not self._branches or x.dtype == torch.float64 or path_on(self.path, x.device, self._dtype) not in KERNELS:
            return False
        return not (torch.is_grad_enabled() and x.requires_grad) or self._supports_gradients


def _side_of(pair: PackedPair, side: int) -> PackedMLPs:
    return one_side(pair[0], side) if len(pair) == 1 else pair[side]
