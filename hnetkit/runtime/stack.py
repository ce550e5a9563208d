"""Networks in stacking order, applied to a context tensor: no UNet, no diffusers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hnetkit.kernels.dispatch import apply_of, chosen_path
from hnetkit.kernels.mlp import MLPWeights
from hnetkit.network import Hypernetwork
from hnetkit.runtime.strength import SIDES, Kind, Side, Strength
from hnetkit.runtime.weights import materialise

TEXT_WIDTHS = frozenset({768, 1024, 2048})
"""Widths of the text contexts of SD 1, SD 2 and SDXL; every other known width is of self-attention."""


class Stack:
    """An ordered stack: each network sees what the one before it gave, ``y = x + strength * MLP(x)``.

    Args:
        items: ``(network, strength)`` in order; a strength is a number or a `Strength`.

    Example::

        stack = Stack([(net, 0.8), (other, Strength(1.0, cross_v=0.5))])
        k, v = stack(x)

    Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/hypernetworks/hypernetwork.py (behaviour only).
    """

    def __init__(self, items: Iterable[tuple[Hypernetwork, float | Strength]]) -> None:
        self.items = tuple((network, Strength.of(strength)) for network, strength in items)
        self._weights: dict[tuple[int, int, Side, torch.device, torch.dtype], MLPWeights] = {}

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
        kind = kind or ("cross" if x.shape[-1] in TEXT_WIDTHS else "self")
        key, value = (self._apply(x, kind, side, progress) for side in SIDES)
        return key, value

    def _apply(self, x: Tensor, kind: Kind, side: Side, progress: float | None) -> Tensor:
        width = x.shape[-1]
        numbers = {
            place: strength.number(kind, side)
            for place, (network, strength) in enumerate(self.items)
            if width in network.mlps and (progress is None or strength.applies_at(progress))
        }
        numbers = {place: number for place, number in numbers.items() if number}
        if not numbers:
            return x
        mlps = [self._mlp(place, width, side, x) for place in numbers]
        strengths = torch.tensor(list(numbers.values()), dtype=torch.float32, device=x.device)
        return apply_of(chosen_path())(x, mlps, strengths)

    def _mlp(self, place: int, width: int, side: Side, x: Tensor) -> MLPWeights:
        """Returns one network's weights beside `x`; they are kept for the next call."""
        key = (place, width, side, x.device, x.dtype)
        if key not in self._weights:
            pair = self.items[place][0].mlps[width]
            self._weights[key] = materialise(pair.key if side == "k" else pair.value, x.device, x.dtype)
        return self._weights[key]
