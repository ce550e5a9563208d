"""Networks in stacking order, applied to a context tensor, without a UNet or diffusers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hnetkit.kernels.dispatch import chosen_path
from hnetkit.kernels.executor import PackedPair, StackExecutor, pack_pair
from hnetkit.kernels.weights import MLPWeights, StageWeights
from hnetkit.network import Hypernetwork, ResidualMLP, TensorRef
from hnetkit.runtime.fit import TEXT_WIDTH
from hnetkit.runtime.strength import SIDES, Kind, Strength


class Stack:
    """An ordered stack: each network sees what the one before it gave, ``y = x + strength * MLP(x)``.

    Args:
        items: ``(network, strength)`` in order; a strength is a number or a `Strength`.

    Example::

        stack = Stack([(net, 0.8), (other, Strength(1.0, cross_v=0.5))])
        k, v = stack(x)

    Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/hypernetworks/hypernetwork.py (behavior only).
    """

    def __init__(self, items: Iterable[tuple[Hypernetwork, float | Strength]]) -> None:
        self.items = tuple((network, Strength.of(strength)) for network, strength in items)
        self._weights: dict[tuple[int, int, torch.device, torch.dtype, str], PackedPair] = {}
        self._executors: dict[object, StackExecutor] = {}

    @property
    def widths(self) -> list[int]:
        """Context widths that some network has, ascending."""
        return sorted({width for network, _ in self.items for width in network.widths})

    def __call__(self, x: Tensor, *, kind: Kind | None = None, progress: float | None = None) -> tuple[Tensor, Tensor]:
        """Returns what ``to_k`` and ``to_v`` get instead of the context `x`.

        Args:
            x: ``[..., width]``, floating point. Products are in x's dtype; a file of another dtype is converted.
            kind: which of a `Strength`'s numbers count; None: cross for the text widths, self for all others.
            progress: fraction of the sampling steps, for windows; None: every window is open.

        Returns:
            K's and V's context, each ``[..., width]`` of x's dtype on its device. Block factors play no part: there
            are no blocks here. A width that no network has gives `x` itself, twice.

        Raises:
            hnetkit.errors.KernelUnavailable: `HNETKIT_KERNEL` forces a path that cannot run here.
        """
        width = x.shape[-1]
        kind = kind or ("cross" if width in TEXT_WIDTH.values() else "self")
        numbers = {
            index: [strength.number(kind, side) for side in SIDES]
            for index, (network, strength) in enumerate(self.items)
            if width in network.mlps and (progress is None or strength.applies_at(progress))
        }
        indices = tuple(index for index, pair in numbers.items() if any(pair))
        if not indices:
            return x, x
        sides = [[numbers[index][side] for index in indices] for side in range(len(SIDES))]
        executor = self._executor(indices, width, x, tuple(side for side, own in enumerate(sides) if any(own)))
        strengths = torch.tensor(sides, dtype=torch.float32, device=x.device)
        return executor.apply(x, strengths, [[bool(number) for number in own] for own in sides])

    def _executor(self, indices: tuple[int, ...], width: int, x: Tensor, sides: tuple[int, ...]) -> StackExecutor:
        """Returns what applies some of the networks on x's device and in its dtype; it is kept for the next call."""
        path = chosen_path(x.device)
        key = (indices, width, x.device, x.dtype, path, sides)
        if key not in self._executors:
            pairs = [self._pair(index, width, x, path) for index in indices]
            self._executors[key] = StackExecutor(pairs, path, sides)
        return self._executors[key]

    def _pair(self, index: int, width: int, x: Tensor, path: str) -> PackedPair:
        key = (index, width, x.device, x.dtype, path)
        if key not in self._weights:
            pair = self.items[index][0].mlps[width]
            key_mlp, value_mlp = (read_mlp(mlp, x.device, x.dtype) for mlp in pair)
            self._weights[key] = pack_pair(key_mlp, value_mlp, path)
        return self._weights[key]


def read_mlp(mlp: ResidualMLP, device: torch.device, dtype: torch.dtype) -> MLPWeights:
    """Returns the weights of `mlp` on `device`, each rounded once from the file's dtype to `dtype`.

    Only one tensor is held in the file's dtype at a time.

    Raises:
        hnetkit.errors.FileChanged: the file changed or shrank since it was opened.
    """

    def tensor(ref: TensorRef | None) -> Tensor | None:
        return None if ref is None else ref.torch().to(device=device, dtype=dtype)

    return tuple(
        StageWeights(
            weight=stage.weight.torch().to(device=device, dtype=dtype),
            bias=tensor(stage.bias),
            activation=stage.activation,
            slope=tensor(stage.slope),
            norm_weight=tensor(stage.norm.weight if stage.norm else None),
            norm_bias=tensor(stage.norm.bias if stage.norm else None),
        )
        for stage in mlp.stages
    )
