"""The network that is trained: MLPs with fp32 parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hnetkit.errors import UsageError
from hnetkit.kernels.activations import activate
from hnetkit.network import Hypernetwork, ResidualMLP
from hnetkit.runtime.strength import SIDES, Side
from hnetkit.train.build import INITIALISATIONS, Build
from hnetkit.train.initialisation import initialise
from hnetkit.train.mlp import MLP, Casts
from hnetkit.train.order import seed_for


class TrainedNetwork(nn.Module):
    """A hypernetwork in training: fp32 parameters, dropout live in train mode.

    Args:
        build: how it is built.
        widths: that the UNet's contexts have; the build may choose among them.
        seed: of the weights that it starts from. Those of a width and side do not depend on which others there are.

    Attributes:
        build: as given; of a network that goes on from a file, what the file says.
        widths: of the contexts that it changes, ascending.

    Raises:
        UsageError: the build wants a width that is not there.
    """

    def __init__(self, build: Build, widths: Iterable[int], *, seed: int) -> None:
        super().__init__()
        self.build = build
        self.widths = build.chosen(widths)
        self.mlps = _pairs({width: build.layers(width) for width in self.widths}, build)
        for width in self.widths:
            for side in build.sides:
                initialise(self.mlp(width, side).linear, build, seed_for(seed, f"weights of {side}", width))

    @classmethod
    def of(cls, network: Hypernetwork) -> TrainedNetwork:
        """Returns a network of the same weights, in fp32, to go on training with.

        A side that changes nothing in any width, beside one that does, is not trained: it was left out before.

        Raises:
            UsageError: its MLPs are not all of one build, or of one that is not made any more.
        """
        build = build_of(network)
        layers = {width: _layers(network.mlps[width].key) for width in network.widths}
        trained = cls.__new__(cls)
        nn.Module.__init__(trained)
        trained.build, trained.widths, trained.mlps = build, tuple(network.widths), _pairs(layers, build)
        for width, side, mlp in network.each_mlp():
            if side in build.sides:
                trained.mlp(width, side).load(mlp)
        return trained

    def mlp(self, width: int, side: Side) -> MLP:
        """Returns the MLP of a width and a side that are trained."""
        return cast(MLP, cast(nn.ModuleDict, self.mlps[str(width)])[side])

    def apply_to(self, x: Tensor, side: Side, casts: Casts | None = None, strengths: Tensor | None = None) -> Tensor:
        """Returns ``x + strength * MLP(x)`` of one side, ``[n, ..., width]`` of x's dtype, in which products are too.

        Args:
            x: ``[n, ..., width]``; a width that is not one of `widths` gives `x`.
            side: K or V; one that is not trained gives `x`.
            casts: of the parameters, where several calls share them.
            strengths: of each context, ``[n]``; None is 1 for all.
        """
        if side not in self.build.sides or x.shape[-1] not in self.widths:
            return x
        rows = x.reshape(-1, x.shape[-1])
        added = cast(Tensor, self.mlp(x.shape[-1], side)(rows, casts or Casts())).view(x.shape)
        if strengths is not None:
            added = added * strengths.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return x + added


def build_of(network: Hypernetwork) -> Build:
    """Returns the build of a network that was read.

    Raises:
        UsageError: its MLPs are not all of one build, or of one that is not made any more.
    """
    mlps = [mlp for _, _, mlp in network.each_mlp()]
    first = mlps[0].stages
    is_normed, activation = first[0].norm is not None, network.activation or first[-1].activation
    expected = [
        (activation if place < len(first) - 1 or network.activate_output else None, is_normed)
        for place in range(len(first))
    ]
    found = {tuple((stage.activation, stage.norm is not None) for stage in mlp.stages) for mlp in mlps}
    if found != {tuple(expected)}:
        raise UsageError(
            f"{network.name}: its MLPs are not all of one build that is known, so training cannot go on with it",
            hint="hnetkit inspect shows how it is built",
        )
    stated = str(network.metadata.get("weight_initialization")).lower()
    return Build(
        structure=tuple(network.layer_structure),
        activation=activation,
        layer_norm=is_normed,
        activate_output=network.activate_output and activation is not None,
        dropout=tuple(network.dropout),
        initialisation=next((name for name, a1111 in INITIALISATIONS.items() if a1111.lower() == stated), "normal"),
        zero_output=False,
        widths=tuple(network.widths),
        sides=_sides_of(network),
    )


def _sides_of(network: Hypernetwork) -> tuple[Side, ...]:
    changing = tuple(side for side in SIDES if not all(_is_silent(m) for _, s, m in network.each_mlp() if s == side))
    return changing or SIDES


def _is_silent(mlp: ResidualMLP) -> bool:
    """Whether an MLP gives 0 for every context."""
    last = mlp.stages[-1]
    if last.norm is not None:
        return not any(ref.torch().any() for ref in (last.norm.weight, last.norm.bias))
    if any(ref.torch().any() for ref in (last.weight, last.bias) if ref is not None):
        return False
    slope = None if last.slope is None else last.slope.torch()
    rows = torch.zeros(1, mlp.width)
    return last.activation is None or not activate(rows, last.activation, slope, inplace=False).any()


def _layers(mlp: ResidualMLP) -> list[int]:
    return [mlp.width, *(stage.weight.shape[0] for stage in mlp.stages)]


def _pairs(layers: Mapping[int, Sequence[int]], build: Build) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            str(width): nn.ModuleDict({side: MLP(build, own) for side in build.sides})
            for width, own in sorted(layers.items())
        }
    )
