"""The MLP of one width and side with weights that learn, in A1111's layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetkit.kernels.activations import activate
from hnetkit.network import ResidualMLP
from hnetkit.train.build import Build


class Activation(nn.Module):
    """An activation without weights, by A1111's name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, rows: Tensor) -> Tensor:
        return activate(rows, self.name, None, inplace=False)


class Casts:
    """Parameters in the dtype of the products, each cast once however many layers use it."""

    def __init__(self) -> None:
        self._made: dict[tuple[Tensor, torch.dtype, bool], Tensor] = {}

    def __call__(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns `parameter` in `dtype`: itself where it is."""
        if parameter.dtype == dtype:
            return parameter
        key = (parameter, dtype, torch.is_grad_enabled())
        if key not in self._made:
            self._made[key] = parameter.to(dtype)
        return self._made[key]


class MLP(nn.Module):
    """The `MLP` of ``x + MLP(x)`` for one width and side: ``linear`` is A1111's Sequential, so tensors have its names.

    Args:
        build: the order of the modules.
        layers: widths, from the context's to the context's.
    """

    def __init__(self, build: Build, layers: Sequence[int]) -> None:
        super().__init__()
        self.linear = nn.Sequential(*_modules(build, layers))

    def forward(self, rows: Tensor, casts: Casts) -> Tensor:
        """Returns ``MLP(rows)``, ``[rows, width]``, computed in the dtype of `rows`."""
        dtype = rows.dtype
        for module in self.linear:
            if isinstance(module, nn.Linear):
                rows = F.linear(rows, casts(module.weight, dtype), casts(module.bias, dtype))
            elif isinstance(module, nn.LayerNorm):
                weight, bias = casts(module.weight, dtype), casts(module.bias, dtype)
                rows = F.layer_norm(rows, module.normalized_shape, weight, bias, module.eps)
            elif isinstance(module, nn.PReLU):
                rows = F.prelu(rows, casts(module.weight, dtype))
            else:
                rows = module(rows)
        return rows

    def load(self, mlp: ResidualMLP) -> None:
        """Takes the weights of an MLP of the same build; a missing bias is 0."""
        linears, norms = self._of(nn.Linear), self._of(nn.LayerNorm)
        with torch.no_grad():
            for linear, stage in zip(linears, mlp.stages, strict=True):
                linear.weight.copy_(stage.weight.torch())
                linear.bias.copy_(stage.bias.torch()) if stage.bias is not None else linear.bias.zero_()
            for norm, stage in zip(norms, mlp.stages if norms else (), strict=True):
                assert stage.norm is not None, "builds were compared"
                norm.weight.copy_(stage.norm.weight.torch())
                norm.bias.copy_(stage.norm.bias.torch())
            for slope, stage in zip(self._of(nn.PReLU), mlp.stages, strict=False):
                assert stage.slope is not None, "builds were compared"
                slope.weight.copy_(stage.slope.torch())

    def _of(self, kind: type[nn.Module]) -> list[Any]:
        return [module for module in self.linear if isinstance(module, kind)]


def _modules(build: Build, layers: Sequence[int]) -> Iterator[nn.Module]:
    """Yields the modules of A1111's Sequential: linear, activation, layer norm and dropout of each stage.

    Linear layers hold no weights yet: torch's own would cost time, and draw from its global generator.
    """
    stages = len(layers) - 1
    for place in range(stages):
        yield nn.Linear(layers[place], layers[place + 1], device="meta").to_empty(device="cpu")
        if build.activation is not None and (place < stages - 1 or build.activate_output):
            yield _activation(build.activation)
        if build.layer_norm:
            yield nn.LayerNorm(layers[place + 1])
        if build.chance(place):
            yield nn.Dropout(build.chance(place))


def _activation(name: str) -> nn.Module:
    if name == "prelu":
        return nn.PReLU()
    return nn.RReLU() if name == "rrelu" else Activation(name)  # random slopes while it trains
