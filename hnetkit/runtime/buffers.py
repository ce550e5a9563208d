"""Weights and strengths as buffers of modules, so that `torch.compile` sees the same modules whatever is loaded.

No buffer is saved with the UNet. `hnetkit.runtime.unet_state.UNetState` moves them with it: a module is reached through
the `registered` of the one that holds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from hnetkit.kernels.affine import Affine, algebra_device, collapse, compose
from hnetkit.kernels.executor import PackedPair, StackExecutor, pack_pair
from hnetkit.kernels.weights import PACKED_TENSORS, PackedMLPs, StageWeights
from hnetkit.network import Hypernetwork, MLPPair
from hnetkit.runtime.plan import LayerGroup, Step, WeightedNetwork
from hnetkit.runtime.stack import read_mlp
from hnetkit.runtime.strength import SIDES, Side


class PairBuffers(nn.Module):
    """The weights of a network's MLPs of K and V for one width, on the UNet's device and in its dtype."""

    def __init__(self, pair: PackedPair) -> None:
        super().__init__()
        self._stages = pair
        for index, packed in enumerate(pair):
            for number, stage in enumerate(packed):
                for name in PACKED_TENSORS:
                    self.register_buffer(f"{name}_{index}_{number}", getattr(stage, name), persistent=False)

    def pair(self) -> PackedPair:
        """Returns the weights as they are held now."""
        return cast(PackedPair, tuple(self._packed(index) for index in range(len(self._stages))))

    def _packed(self, index: int) -> PackedMLPs:
        return tuple(
            stage._replace(**{name: getattr(self, f"{name}_{index}_{number}") for name in PACKED_TENSORS})
            for number, stage in enumerate(self._stages[index])
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

    def read_weights(self, device: torch.device, dtype: torch.dtype, path: str) -> None:
        """Reads the weights from the file, in the form that `path` takes."""
        self._pairs, self._maps = {}, {}
        for width in self.widths:
            pair = self.network.mlps[width]
            if path != "reference" and _is_kept_as_map(pair):
                for side, mlp in zip(SIDES, pair, strict=True):
                    exact = read_mlp(mlp, algebra_device(device), torch.float64, self.network.path)
                    self._maps[width, side] = AffineBuffers(collapse(exact), device, dtype)
            else:
                key, value = (read_mlp(mlp, device, dtype, self.network.path) for mlp in pair)
                self._pairs[width] = PairBuffers(pack_pair(key, value, path))
        self.registered = nn.ModuleList([*self._pairs.values(), *self._maps.values()])

    def pair(self, width: int) -> PairBuffers:
        """Returns the weights of MLPs that are not kept as maps."""
        return self._pairs[width]

    @property
    def pairs(self) -> tuple[PairBuffers, ...]:
        """The weights of all MLPs that are not kept as maps."""
        return tuple(self._pairs.values())

    def map(self, width: int, side: Side) -> Affine:
        """Returns the map of an MLP that is kept as one."""
        return self._maps[width, side].affine()

    @property
    def affine(self) -> frozenset[int]:
        """Widths whose MLPs are kept as maps."""
        return frozenset(width for width, _ in self._maps)


class LayerGroupStack(nn.Module):
    """The steps of one group of layers: they turn a context into what ``to_k`` and ``to_v`` get.

    Args:
        group: its steps; maps that are folded into weights are not applied here.
        networks: by name.
        path: what computes it.
        device, dtype: the UNet's.

    Attributes:
        active: by side and step, whether it changes anything now.
    """

    def __init__(
        self,
        group: LayerGroup,
        networks: Mapping[str, LoadedNetwork],
        *,
        path: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.group = group
        self._path = path
        self._steps = step_weights(group, networks, path=path, device=device, dtype=dtype)
        self.registered = nn.ModuleList(self._steps)
        self.strengths: Tensor
        self.register_buffer("strengths", torch.tensor(step_numbers(group), device=device), persistent=False)
        self.active = active_steps(group)
        self.prepare()

    def prepare(self) -> None:
        """Takes the weights from where they are now: at first, and after they moved."""
        sides = [SIDES.index(side) for side in self.group.sides]
        self.executor = StackExecutor([step.pair() for step in self._steps], self._path, sides)

    def rewrite(self, group: LayerGroup, networks: Mapping[str, LoadedNetwork]) -> None:
        """Takes the numbers of a group of the same shape: scalars, and the maps that they are composed into.

        Tensors keep their memory, so that compiled code and CUDA graphs see the new numbers.
        """
        if group.steps == self.group.steps:
            self.group = group
            return
        for old, new, buffers in zip(self.group.steps, group.steps, self._steps, strict=True):
            for index, side in enumerate(SIDES):
                if new[side].is_composed and old[side] != new[side] and new[side].is_active:
                    total = compose_networks(new[side].networks, group.width, side, networks)
                    (stage,) = buffers.pair()[0]
                    stage.weight[0, index].copy_(total.matrix)
                    stage.bias[0, index].copy_(total.offset)
                    self.executor.forget_plain()
        self.strengths.copy_(torch.tensor(step_numbers(group)))
        self.active = active_steps(group)
        self.group = group

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the contexts ``[..., width]`` of K and of V after the steps."""
        return self.executor.apply(x, self.strengths, self.active)


def compose_networks(
    run: Iterable[WeightedNetwork], width: int, side: Side, networks: Mapping[str, LoadedNetwork]
) -> Affine:
    """Returns the float64 map of neighboring affine networks, their strengths included."""
    return compose((networks[network.name].map(width, side), network.number) for network in run)


def _is_kept_as_map(pair: MLPPair) -> bool:
    return all(mlp.is_affine and mlp.width**2 <= sum(stage.weight.numel for stage in mlp.stages) for mlp in pair)


def step_weights(
    group: LayerGroup,
    networks: Mapping[str, LoadedNetwork],
    *,
    path: str,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[PairBuffers, ...]:
    """Returns the weights of each step: those of its network, or new ones that its maps are composed into."""
    return tuple(
        PairBuffers(_composed_pair(step, group.width, networks, path, device, dtype))
        if step["k"].is_composed
        else networks[step["k"].networks[0].name].pair(group.width)
        for step in group.steps
    )


def step_numbers(group: LayerGroup) -> list[list[float]]:
    """Returns ``[sides][steps]``; a composed map has its strengths in it, and 1 here."""
    return [
        [
            float(step.is_active) if step.is_composed else step.networks[0].number
            for step in group.side_plans[side].steps
        ]
        for side in SIDES
    ]


def active_steps(group: LayerGroup) -> tuple[tuple[bool, ...], ...]:
    """Returns by side and step whether it changes anything now."""
    return tuple(tuple(step.is_active for step in group.side_plans[side].steps) for side in SIDES)


def _composed_pair(
    step: Mapping[Side, Step],
    width: int,
    networks: Mapping[str, LoadedNetwork],
    path: str,
    device: torch.device,
    dtype: torch.dtype,
) -> PackedPair:
    """Returns the composed maps of a step as MLPs of one linear layer."""
    maps = [compose_networks(step[side].networks, width, side, networks) for side in SIDES]
    key, value = ((StageWeights(m.matrix.to(device, dtype), m.offset.to(device, dtype)),) for m in maps)
    return pack_pair(key, value, path)
