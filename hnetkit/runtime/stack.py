"""Networks in stacking order, applied to a context tensor: no UNet, no diffusers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hnetkit.kernels.dispatch import chosen_path
from hnetkit.kernels.prepared import Pair, Prepared, pack_pair
from hnetkit.network import Hypernetwork
from hnetkit.runtime.strength import SIDES, Kind, Strength
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
        self._weights: dict[tuple[int, int, torch.device, torch.dtype, str], Pair] = {}
        self._ready: dict[object, Prepared] = {}

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
        kind = kind or ("cross" if width in TEXT_WIDTHS else "self")
        numbers = {
            place: [strength.number(kind, side) for side in SIDES]
            for place, (network, strength) in enumerate(self.items)
            if width in network.mlps and (progress is None or strength.applies_at(progress))
        }
        places = tuple(place for place, pair in numbers.items() if any(pair))
        if not places:
            return x, x
        sides = [[numbers[place][side] for place in places] for side in range(len(SIDES))]
        prepared = self._prepared(places, width, x, tuple(side for side, own in enumerate(sides) if any(own)))
        strengths = torch.tensor(sides, dtype=torch.float32, device=x.device)
        return prepared.apply(x, strengths, [[bool(number) for number in own] for own in sides])

    def _prepared(self, places: tuple[int, ...], width: int, x: Tensor, sides: tuple[int, ...]) -> Prepared:
        """Returns some of the networks beside `x`; they are kept for the next call."""
        path = chosen_path(x.device)
        key = (places, width, x.device, x.dtype, path, sides)
        if key not in self._ready:
            pairs = [self._pair(place, width, x, path) for place in places]
            self._ready[key] = Prepared(pairs, path, sides)
        return self._ready[key]

    def _pair(self, place: int, width: int, x: Tensor, path: str) -> Pair:
        key = (place, width, x.device, x.dtype, path)
        if key not in self._weights:
            pair = self.items[place][0].mlps[width]
            key_mlp, value_mlp = (materialise(mlp, x.device, x.dtype) for mlp in pair)
            self._weights[key] = pack_pair(key_mlp, value_mlp, path)
        return self._weights[key]
