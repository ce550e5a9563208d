"""Weights and strengths as buffers of modules, so that `torch.compile` sees the same modules whatever is loaded.

No buffer is saved with the UNet. They move with it: `hnetkit.runtime.attached.Attached` sees to that, for all that is
in a `registered`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from hnetkit.kernels.affine import Affine, algebra_device, collapse, compose
from hnetkit.kernels.mlp import StageWeights
from hnetkit.kernels.packing import TENSORS, Packed
from hnetkit.kernels.prepared import Pair, Prepared, pack_pair
from hnetkit.network import Hypernetwork, MLPPair
from hnetkit.runtime.plan import Part, Step, Term
from hnetkit.runtime.strength import SIDES, Side
from hnetkit.runtime.weights import materialise


class PairBuffers(nn.Module):
    """The weights of a network's MLPs of K and V for one width, on the UNet's device and in its dtype."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self._stages = pair
        for place, packed in enumerate(pair):
            for number, stage in enumerate(packed):
                for name in TENSORS:
                    self.register_buffer(f"{name}_{place}_{number}", getattr(stage, name), persistent=False)

    def pair(self) -> Pair:
        """Returns the weights as they are held now."""
        return cast(Pair, tuple(self._packed(place) for place in range(len(self._stages))))

    def _packed(self, place: int) -> Packed:
        return tuple(
            stage._replace(**{name: getattr(self, f"{name}_{place}_{number}") for name in TENSORS})
            for number, stage in enumerate(self._stages[place])
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

    Affine MLPs are kept as maps where that is no more work than their factors; the factors are then not kept.
    """

    def __init__(self, name: str, network: Hypernetwork, widths: frozenset[int]) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.widths = tuple(width for width in network.widths if width in widths)
        self._pairs: dict[int, PairBuffers] = {}
        self._maps: dict[tuple[int, Side], AffineBuffers] = {}

    def materialise(self, device: torch.device, dtype: torch.dtype, path: str) -> None:
        """Reads the weights from the file, in the form that `path` takes."""
        self._pairs, self._maps = {}, {}
        for width in self.widths:
            pair = self.network.mlps[width]
            if path != "reference" and _is_kept_as_map(pair):
                for side, mlp in zip(SIDES, pair, strict=True):
                    exact = materialise(mlp, algebra_device(device), torch.float64)
                    self._maps[width, side] = AffineBuffers(collapse(exact), device, dtype)
            else:
                key, value = (materialise(mlp, device, dtype) for mlp in pair)
                self._pairs[width] = PairBuffers(pack_pair(key, value, path))
        self.registered = nn.ModuleList([*self._pairs.values(), *self._maps.values()])

    def pair(self, width: int) -> PairBuffers:
        """Returns the weights of MLPs that are not kept as maps."""
        return self._pairs[width]

    def map(self, width: int, side: Side) -> Affine:
        """Returns the map of an MLP that is kept as one."""
        return self._maps[width, side].affine()

    @property
    def affine(self) -> frozenset[int]:
        """Widths whose MLPs are kept as maps."""
        return frozenset(width for width, _ in self._maps)


class Chain(nn.Module):
    """The steps of one part: what turns a context into what ``to_k`` and ``to_v`` get.

    Args:
        part: its steps; what is folded is not the chain's.
        networks: by name.
        path: what computes it.
        device, dtype: the UNet's.
    """

    def __init__(
        self,
        part: Part,
        networks: Mapping[str, LoadedNetwork],
        *,
        path: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.part = part
        self._path = path
        self._steps = tuple(
            PairBuffers(_composed_pair(step, part.width, networks, path, device, dtype))
            if step["k"].composed
            else networks[step["k"].terms[0].name].pair(part.width)
            for step in part.steps
        )
        self.registered = nn.ModuleList(self._steps)
        self.strengths: Tensor
        self.register_buffer("strengths", torch.tensor(_numbers(part), device=device), persistent=False)
        self._active = _active(part)
        self.prepare()

    def prepare(self) -> None:
        """Takes the weights as they are held now: after they moved."""
        sides = [SIDES.index(side) for side in self.part.sides]
        self.prepared = Prepared([step.pair() for step in self._steps], self._path, sides)

    def rewrite(self, part: Part, networks: Mapping[str, LoadedNetwork]) -> None:
        """Takes the numbers of a part of the same shape: scalars, and the maps that they are composed into."""
        if part.steps == self.part.steps:
            self.part = part
            return
        for old, new, held in zip(self.part.steps, part.steps, self._steps, strict=True):
            for place, side in enumerate(SIDES):
                if new[side].composed and old[side] != new[side] and new[side].is_active:
                    total = composed(new[side].terms, part.width, side, networks)
                    (stage,) = held.pair()[0]
                    stage.weight[0, place].copy_(total.matrix)
                    stage.bias[0, place].copy_(total.offset)
                    self.prepared.forget_plain()
        self.strengths.copy_(torch.tensor(_numbers(part)))
        self._active = _active(part)
        self.part = part

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the contexts ``[..., width]`` of K and of V after the steps."""
        return self.prepared.apply(x, self.strengths, self._active)


def composed(terms: Iterable[Term], width: int, side: Side, networks: Mapping[str, LoadedNetwork]) -> Affine:
    """Returns the float64 map of neighbouring affine networks, their strengths included."""
    return compose((networks[term.name].map(width, side), term.number) for term in terms)


def _is_kept_as_map(pair: MLPPair) -> bool:
    return all(mlp.is_affine and mlp.width**2 <= sum(stage.weight.numel for stage in mlp.stages) for mlp in pair)


def _numbers(part: Part) -> list[list[float]]:
    """Returns ``[sides][steps]``: a composed map holds its strengths."""
    return [
        [float(step.is_active) if step.composed else step.terms[0].number for step in part.recipes[side].steps]
        for side in SIDES
    ]


def _active(part: Part) -> tuple[tuple[bool, ...], ...]:
    return tuple(tuple(step.is_active for step in part.recipes[side].steps) for side in SIDES)


def _composed_pair(
    step: Mapping[Side, Step],
    width: int,
    networks: Mapping[str, LoadedNetwork],
    path: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Pair:
    """Returns the composed maps of a step as MLPs of one linear layer."""
    maps = [composed(step[side].terms, width, side, networks) for side in SIDES]
    key, value = ((StageWeights(m.matrix.to(device, dtype), m.offset.to(device, dtype)),) for m in maps)
    return pack_pair(key, value, path)
