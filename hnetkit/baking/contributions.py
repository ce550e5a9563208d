"""What a stack adds to the contexts of a UNet's layers, and the projections that these contexts go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hnetkit.errors import AttachError, IncompatibleNetwork, UsageError
from hnetkit.kernels import reference
from hnetkit.kernels.affine import Affine, collapse, compose, to_float64
from hnetkit.kernels.weights import MLPWeights
from hnetkit.network import Hypernetwork
from hnetkit.runtime.fit import require_fit
from hnetkit.runtime.hooks import require_unfused
from hnetkit.runtime.layers import Layer, contexts_of, find_layers
from hnetkit.runtime.stack import read_mlp
from hnetkit.runtime.strength import SIDES, Side, Strength

NamedStack: TypeAlias = Sequence[tuple[str, Hypernetwork, Strength]]
"""(name, network, strength) in stacking order."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """What a stack adds to K's or V's context ``[..., width]`` of some layers: ``S(x) - x``.

    Attributes:
        mlps: of the networks that have an effect here, in stacking order, in fp32 on the UNet's device.
        strengths: of each, block factors included.
        is_affine: whether it is ``P x + p``.
    """

    mlps: tuple[MLPWeights, ...]
    strengths: tuple[float, ...]
    is_affine: bool

    @property
    def width(self) -> int:
        return self.mlps[0][0].weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """Returns what is added to contexts ``[..., width]`` in fp32."""
        return reference.apply(x, self.mlps, [x.new_tensor(strength) for strength in self.strengths]) - x

    def affine(self) -> Affine:
        """Returns P and p in float64, of a contribution that is affine."""
        return compose(zip(map(collapse, self.mlps), self.strengths, strict=True))


@dataclass(frozen=True, eq=False)
class LayerProjections:
    """The weights of one attention layer that a baked stack changes, or goes through.

    Attributes:
        key, value: of ``to_k`` and ``to_v``, ``[projected, width]``.
        output: of ``to_out.0``, ``[query width, projected]``.
    """

    key: Tensor
    value: Tensor
    output: Tensor

    def of(self, side: Side) -> Tensor:
        """Returns the weight of ``to_k`` or ``to_v`` in float64."""
        return to_float64(self.key if side == "k" else self.value)


class StackOnLayers:
    """A stack as it acts on the layers of a UNet.

    Args:
        unet: without fused projections or LoRAs.
        stack: in stacking order.

    Attributes:
        layers: that the stack changes, in the UNet's order.

    Raises:
        UsageError: there is no network, or one is limited to a window of steps.
        IncompatibleNetwork: a network does not belong on this UNet, or the stack changes no layer of it.
        AttachError: the UNet's projections are fused, have a LoRA, or are no plain linear layers.
        DamagedFile: a network has values that are not finite.
    """

    def __init__(self, unet: nn.Module, stack: NamedStack) -> None:
        if not stack:
            raise UsageError("there is no hypernetwork to bake", hint="-n NAME:STRENGTH")
        found = find_layers(unet)
        for name, network, strength in stack:
            require_whole_run(name, strength)
            require_fit(name, network, contexts_of(unet, found))
        modules = dict(unet.named_modules())
        self._attentions = {layer: modules[layer.name] for layer in found}
        for layer, attention in self._attentions.items():
            _require_plain(layer, attention)
        self._stack = stack
        self._device = next(iter(self._attentions.values())).to_k.weight.device
        self._shared: dict[tuple[int, Side, tuple[tuple[int, float], ...]], Contribution] = {}
        self._mlps: dict[tuple[int, int, Side], MLPWeights] = {}
        self._contributions = dict(self._build(found))
        self.layers = tuple(layer for layer in found if any((layer, side) in self._contributions for side in SIDES))
        if not self.layers:
            names = ", ".join(name for name, _, _ in stack)
            raise IncompatibleNetwork(
                f"{names}: changes no layer of this UNet", hint="give a strength that is not 0, or another model"
            )

    @property
    def contributions(self) -> Mapping[tuple[Layer, Side], Contribution]:
        """By layer and side; a side that does not change has none. Layers that change alike share one."""
        return self._contributions

    @property
    def is_affine(self) -> bool:
        return all(contribution.is_affine for contribution in self._contributions.values())

    def attention(self, layer: Layer) -> Any:
        """Returns the attention module of a layer."""
        return self._attentions[layer]

    def projections(self, layer: Layer) -> LayerProjections:
        """Returns the weights of a layer."""
        attention = self._attentions[layer]
        return LayerProjections(attention.to_k.weight.data, attention.to_v.weight.data, attention.to_out[0].weight.data)

    def _build(self, layers: Iterable[Layer]) -> Iterator[tuple[tuple[Layer, Side], Contribution]]:
        for layer in layers:
            for side in SIDES:
                applied = tuple(
                    (index, number)
                    for index, (_, network, strength) in enumerate(self._stack)
                    if layer.width in network.mlps
                    and (number := strength.number(layer.kind, side) * strength.factor(layer.name))
                )
                if applied:
                    yield (layer, side), self._contribution(layer.width, side, applied)

    def _contribution(self, width: int, side: Side, applied: tuple[tuple[int, float], ...]) -> Contribution:
        key = width, side, applied
        if key not in self._shared:
            sides = SIDES.index(side)
            is_affine = all(self._stack[index][1].mlps[width][sides].is_affine for index, _ in applied)
            mlps = tuple(self._mlp(index, width, side) for index, _ in applied)
            self._shared[key] = Contribution(mlps, tuple(number for _, number in applied), is_affine)
        return self._shared[key]

    def _mlp(self, index: int, width: int, side: Side) -> MLPWeights:
        key = index, width, side
        if key not in self._mlps:
            network = self._stack[index][1]
            mlp = network.mlps[width][SIDES.index(side)]
            self._mlps[key] = read_mlp(mlp, self._device, torch.float32, network.path or network.name)
        return self._mlps[key]


def require_whole_run(name: str, strength: Strength) -> None:
    """Raises UsageError for a strength that is limited to a window of steps: weights are the same at every step."""
    if strength.has_window:
        raise UsageError(
            f"{name} is limited to {strength.start:g} to {strength.end:g} of the steps, and weights apply at all steps",
            hint="leave start and end out",
        )


def _require_plain(layer: Layer, attention: Any) -> None:
    require_unfused(layer.name, attention)
    projections = {"to_k": attention.to_k, "to_v": attention.to_v, "to_out.0": attention.to_out[0]}
    for name, module in projections.items():
        if hasattr(module, "lora_A"):
            raise AttachError(
                f"{layer.name}.{name} has a LoRA, which would become part of what is baked",
                hint="pipe.unload_lora_weights()",
            )
        if type(module) is not nn.Linear or not module.weight.is_floating_point() or module.weight.is_meta:
            raise AttachError(
                f"{layer.name}.{name}: a {type(module).__name__} whose weights are not plain numbers",
                hint="load the model without quantization and offloading",
            )
    if projections["to_out.0"].bias is None:
        raise AttachError(f"{layer.name}.to_out.0 has no bias, which what is added to V needs")
