"""Contexts that a model's attention layers see while it draws, gathered as moments of what a stack adds to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hnetkit.baking.contributions import Contribution, StackOnLayers
from hnetkit.baking.moments import PairMoments
from hnetkit.generate.backend_errors import translating_oom
from hnetkit.generate.drawing import SamplingPass
from hnetkit.generate.loading.pipeline import LoadedPipeline
from hnetkit.generate.request import Request
from hnetkit.runtime.layers import Layer
from hnetkit.runtime.strength import SIDES, Side

Calls = Callable[[int, int], None]
"""Called with the calls of the UNet so far and in all."""


class GatheredContexts:
    """Moments of the contexts of each layer and side.

    The text is one tensor for all layers, so layers of cross-attention that change alike share their moments.
    """

    def __init__(self, stack: StackOnLayers) -> None:
        self._stack = stack
        self._pairs: dict[tuple[Layer | None, Contribution], PairMoments] = {}

    def of(self, layer: Layer, side: Side) -> PairMoments:
        """Returns the moments of a layer's contexts, and of what the stack adds to them on one side."""
        return self._pairs[self._key(layer, side)]

    def _key(self, layer: Layer, side: Side) -> tuple[Layer | None, Contribution]:
        return (layer if layer.kind == "self" else None, self._stack.contributions[layer, side])

    def add_text(self, hidden: Tensor, weight: float) -> None:
        """Adds a text to the contexts of cross-attention, as if it had been drawn in so many calls of the UNet.

        Args:
            hidden: as the UNet gets it, ``[tokens, width]``.
        """
        context = hidden.float()[None]
        for (layer, contribution), moments in self._pairs.items():
            if layer is None and contribution.width == context.shape[-1]:
                moments.add(context, contribution(context), weight)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Gathers from every call of the UNet inside the block."""
        with ExitStack() as undo:
            seen: set[object] = set()
            for layer in self._stack.layers:
                attention = self._stack.attention(layer)
                fresh = []
                for side in SIDES:
                    if (layer, side) in self._stack.contributions and self._key(layer, side) not in seen:
                        seen.add(self._key(layer, side))
                        fresh.append(side)
                if fresh:
                    # before the hooks of the stack, which replace the context
                    hook = self._context_hook(layer, fresh)
                    undo.callback(attention.to_k.register_forward_pre_hook(hook, prepend=True).remove)
            yield

    def _context_hook(self, layer: Layer, sides: Sequence[Side]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        device = self._stack.attention(layer).to_k.weight.device
        for side in sides:
            self._pairs.setdefault(self._key(layer, side), PairMoments(layer.width, device, centered=side == "k"))

        def gather(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            context: Tensor = arguments[0].float()
            for side in sides:
                added = self._stack.contributions[layer, side](context)
                self._pairs[self._key(layer, side)].add(context, added)

        return gather


def sampled(model: LoadedPipeline, request: Request, report: Calls) -> Tensor:
    """Returns the clean latents ``[1, 4, h, w]`` of a request's first image."""
    with torch.no_grad(), translating_oom("drawing"):
        drawing = SamplingPass(model, request, [request.seed], request)
        return drawing.from_noise(lambda call, _: report(call, drawing.calls))
