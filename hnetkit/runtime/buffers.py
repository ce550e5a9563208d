"""Weights and strengths as buffers of modules, so that `torch.compile` sees the same modules whatever is loaded.

No buffer is saved with the UNet. They move with it: `hnetkit.runtime.attached.Attached` sees to that, for all that is
in a `registered`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hnetkit.kernels.affine import Affine, algebra_device, collapse, compose
from hnetkit.kernels.dispatch import Apply
from hnetkit.kernels.mlp import MLPWeights, StageWeights
from hnetkit.network import Hypernetwork, ResidualMLP
from hnetkit.runtime.plan import Recipe, Step, Term
from hnetkit.runtime.strength import SIDES, Side
from hnetkit.runtime.weights import materialise

_TENSORS = ("weight", "bias", "slope", "norm_weight", "norm_bias")


class MLPBuffers(nn.Module):
    """The weights of one MLP, on the UNet's device and in its dtype."""

    def __init__(self, mlp: MLPWeights) -> None:
        super().__init__()
        for number, stage in enumerate(mlp):
            for field in _TENSORS:
                self.register_buffer(f"{field}_{number}", getattr(stage, field), persistent=False)
        self.activations = tuple(stage.activation for stage in mlp)

    def weights(self) -> MLPWeights:
        return tuple(
            StageWeights(
                weight=getattr(self, f"weight_{number}"),
                bias=getattr(self, f"bias_{number}"),
                activation=activation,
                slope=getattr(self, f"slope_{number}"),
                norm_weight=getattr(self, f"norm_weight_{number}"),
                norm_bias=getattr(self, f"norm_bias_{number}"),
            )
            for number, activation in enumerate(self.activations)
        )


class AffineBuffers(nn.Module):
    """The map of one affine MLP, ``[d, d]`` and ``[d]``, in fp32 at least: it goes into products before it is used."""

    def __init__(self, affine: Affine, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        wide = torch.promote_types(dtype, torch.float32)
        self.register_buffer("matrix", affine.matrix.to(device, wide), persistent=False)
        self.register_buffer("offset", affine.offset.to(device, wide), persistent=False)

    def affine(self) -> Affine:
        return Affine(self.get_buffer("matrix"), self.get_buffer("offset"))


class LoadedNetwork(nn.Module):
    """A network under its name, with the weights of the widths that the UNet has.

    Affine MLPs are kept as one map where that is no more work than their factors; the factors are then not kept.
    """

    def __init__(self, name: str, network: Hypernetwork, widths: frozenset[int]) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.widths = tuple(width for width in network.widths if width in widths)
        self._held: dict[tuple[int, Side], MLPBuffers | AffineBuffers] = {}

    def materialise(self, device: torch.device, dtype: torch.dtype, *, algebra: bool) -> None:
        """Reads the weights from the file; `algebra` allows affine MLPs to be kept as one map."""
        for width in self.widths:
            for side, mlp in zip(SIDES, self.network.mlps[width], strict=True):
                self._held[width, side] = _hold(mlp, device, dtype, algebra=algebra)
        self.registered = nn.ModuleList(self._held.values())

    def mlp(self, width: int, side: Side) -> MLPBuffers:
        """Returns the weights of an MLP that is not kept as one map."""
        return cast(MLPBuffers, self._held[width, side])

    def map(self, width: int, side: Side) -> Affine:
        """Returns the map of an MLP that is kept as one."""
        return cast(AffineBuffers, self._held[width, side]).affine()

    @property
    def affine(self) -> frozenset[tuple[int, Side]]:
        """``(width, side)`` of the MLPs that are kept as one map."""
        return frozenset(place for place, held in self._held.items() if isinstance(held, AffineBuffers))


class Chain(nn.Module):
    """The steps of one recipe: what turns a context into what ``to_k`` or ``to_v`` gets.

    Args:
        recipe: its steps; the folded part is not the chain's.
        networks: by name.
        path: what computes it.
        device, dtype: the UNet's.
    """

    def __init__(
        self,
        recipe: Recipe,
        width: int,
        side: Side,
        networks: Mapping[str, LoadedNetwork],
        *,
        path: Apply,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.width = width
        self._side = side
        self._path = path
        self._steps = tuple(
            MLPBuffers(_stage(composed(step.terms, width, side, networks), device, dtype))
            if step.composed
            else networks[step.terms[0].name].mlp(width, side)
            for step in recipe.steps
        )
        self.registered = nn.ModuleList(self._steps)
        self.strengths: Tensor
        strengths = torch.tensor([_strength(step) for step in recipe.steps], dtype=torch.float32, device=device)
        self.register_buffer("strengths", strengths, persistent=False)

    def rewrite(self, recipe: Recipe, networks: Mapping[str, LoadedNetwork]) -> None:
        """Takes the numbers of a recipe of the same shape: scalars, and the maps that they are composed into."""
        for number, (old, new, held) in enumerate(zip(self.recipe.steps, recipe.steps, self._steps, strict=True)):
            if old.terms == new.terms:
                continue
            self.strengths[number] = _strength(new)
            if new.composed:
                total = composed(new.terms, self.width, self._side, networks)
                (stage,) = held.weights()
                stage.weight.copy_(total.matrix)
                cast(Tensor, stage.bias).copy_(total.offset)
        self.recipe = recipe

    def forward(self, x: Tensor) -> Tensor:
        """Returns the context ``[..., width]`` after the steps."""
        return self._path(x, self.mlps(), self.strengths)

    def mlps(self) -> list[MLPWeights]:
        return [step.weights() for step in self._steps]


def composed(terms: Sequence[Term], width: int, side: Side, networks: Mapping[str, LoadedNetwork]) -> Affine:
    """Returns the float64 map of neighbouring affine networks, their strengths included."""
    return compose((networks[term.name].map(width, side), term.number) for term in terms)


def _hold(mlp: ResidualMLP, device: torch.device, dtype: torch.dtype, *, algebra: bool) -> MLPBuffers | AffineBuffers:
    factors = sum(stage.weight.numel for stage in mlp.stages)
    if algebra and mlp.is_affine and mlp.width**2 <= factors:
        exact = materialise(mlp, algebra_device(device), torch.float64)
        return AffineBuffers(collapse(exact), device, dtype)
    return MLPBuffers(materialise(mlp, device, dtype))


def _strength(step: Step) -> float:
    return 1.0 if step.composed else step.terms[0].number


def _stage(affine: Affine, device: torch.device, dtype: torch.dtype) -> MLPWeights:
    return (StageWeights(affine.matrix.to(device, dtype), affine.offset.to(device, dtype)),)
