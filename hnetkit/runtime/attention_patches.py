"""A stack as patches of attention layers, as the UNets of ComfyUI and Forge take them.

In such a program each attention layer calls ``patch(q, k, v, options)`` before it projects. Models are copied freely
and share one UNet, so the stack is in the patches of one copy, and nothing of it is on the UNet. Weights are shared by
all stacks of a network; the program moves them between devices as it moves its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from hnetkit.errors import AttachError
from hnetkit.kernels.executor import PackedPair, StackExecutor
from hnetkit.runtime.buffers import LoadedNetwork, PairBuffers, active_steps, step_numbers, step_weights
from hnetkit.runtime.layers import Layer, Place
from hnetkit.runtime.plan import ActiveNetwork, LayerGroup, plan_stack
from hnetkit.runtime.strength import SIDES, Kind, Strength

Progress: TypeAlias = Callable[[Mapping[str, Any]], float | None]
"""From the options of a patch to the fraction of the sampling steps that is done; None where it is not known."""


class AttentionStack:
    """Networks in stacking order, for the attention layers of one kind of UNet.

    It never changes: another strength is another stack, of the same weights. It may be called from several threads.

    Args:
        networks: in stacking order, each with its strength; their weights are read.
        layers: of the UNet, as `find_ldm_layers` gives them.
        progress: tells where sampling is, for windows of steps.
        path: one of `hnetkit.kernels.dispatch.PATHS`; the networks were read for it.
        dtype: of the weights.

    Attributes:
        composed: the maps that neighbors without activation were composed into: what it has beside the networks.
    """

    def __init__(
        self,
        networks: Sequence[tuple[LoadedNetwork, Strength]],
        layers: Mapping[Place, Layer],
        progress: Progress,
        *,
        path: str,
        dtype: torch.dtype,
    ) -> None:
        self.networks = tuple(networks)
        self.composed = nn.ModuleList()
        self._layers = layers
        self._progress = progress
        self._path = path
        self._dtype = dtype
        self._has_windows = any(strength.has_window for _, strength in self.networks)
        borders = sorted({0.0, 1.0, *(at for _, strength in self.networks for at in (strength.start, strength.end))})
        between = [(low + high) / 2 for low, high in itertools.pairwise(borders)]
        self._plans = {opened: self._plan(opened) for opened in {self._open_at(at) for at in (*borders, *between)}}
        self._text: dict[torch.device, _Text] = {}
        self._step: tuple[object, tuple[bool, ...]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionStack:
        """Returns itself: programs copy a model's options with the model, and weights are not to be copied."""
        return self

    def contexts(self, k: Tensor, v: Tensor, kind: Kind, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Returns what ``to_k`` and ``to_v`` get in one layer.

        Args:
            k, v: ``[..., width]``, what they would get without the stack: one tensor, or two.
            kind: of attention.
            options: of the program for this call: its ``block`` and ``block_index``, and ``sigmas``, another object in
                each step.

        Raises:
            AttachError: a network has a window of steps, and the program does not tell the step.
        """
        block, number = options.get("block") or ("", 0)
        layer = self._layers.get(Place(block, number, options.get("block_index", 0), kind))
        # a layer that is not the UNet's own, such as a model beside it has: not what the networks were made for
        group = self._plans[self._open(options)].get(layer.name) if layer is not None else None
        if group is None or group.width != k.shape[-1]:
            return k, v
        call = options.get("sigmas")
        if kind == "self" or call is None:  # without sigmas, nothing tells one UNet call from the next
            return group.contexts(k, v)
        # one text for all layers of a UNet call; the next call has other sigmas, or another text
        text = self._text.get(k.device)
        if text is None or text.k is not k or text.v is not v or text.call is not call:
            text = self._text[k.device] = _Text(k, v, call)
        if group not in text.contexts:
            text.contexts[group] = group.contexts(k, v)
        return text.contexts[group]

    def release(self, keep: torch.device) -> None:
        """Forgets the last call, and what was made on other devices than `keep`. The weights are not moved."""
        self._text.clear()
        self._step = None
        for group in {group for groups in self._plans.values() for group in groups.values()}:
            group.release(keep)

    def _open(self, options: Mapping[str, Any]) -> tuple[bool, ...]:
        """Returns which networks' windows are open, asking once a step: the answer is on the device."""
        if not self._has_windows:
            return self._open_at(0.5)
        call, step = options.get("sigmas"), self._step
        if step is not None and call is not None and step[0] is call:
            return step[1]
        progress = self._progress(options)
        if progress is None:
            name = next(network.name for network, strength in self.networks if strength.has_window)
            raise AttachError(
                f"{name} is limited to a part of the steps, and this sampler does not tell at which step it is",
                hint="use another sampler, or start 0 and end 1",
            )
        opened = self._open_at(progress)
        self._step = call, opened
        return opened

    def _open_at(self, progress: float) -> tuple[bool, ...]:
        return tuple(strength.applies_at(progress) for _, strength in self.networks)

    @torch.inference_mode(False)
    def _plan(self, is_open: tuple[bool, ...]) -> Mapping[str, _LayerSteps]:
        names = [str(number) for number in range(len(self.networks))]  # a stack may hold a network twice
        loaded = dict(zip(names, (network for network, _ in self.networks), strict=True))
        active = [
            ActiveNetwork(name, strength, network.widths, network.affine, opened)
            for name, (network, strength), opened in zip(names, self.networks, is_open, strict=True)
        ]
        groups = {}
        for group in plan_stack(self._layers.values(), active).groups:
            if not group.sides:
                continue
            weights = step_weights(group, loaded, path=self._path, device=torch.device("cpu"), dtype=self._dtype)
            self.composed.extend(own for own, step in zip(weights, group.steps, strict=True) if step["k"].is_composed)
            groups.update(
                dict.fromkeys((layer.name for layer in group.layers), _LayerSteps(group, weights, self._path))
            )
        return groups


class _LayerSteps:
    """The steps of one group of layers, wherever a context and the weights are.

    Args:
        group: the steps with their numbers.
        weights: of each step.
        path: what computes it.
    """

    def __init__(self, group: LayerGroup, weights: Sequence[PairBuffers], path: str) -> None:
        self.width = group.width
        self._sides = tuple(SIDES.index(side) for side in group.sides)
        self._strengths = torch.tensor(step_numbers(group))
        self._active = active_steps(group)
        self._weights = weights
        self._path = path
        self._ready: dict[tuple[torch.device, tuple[int, ...]], _Ready] = {}

    def contexts(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the contexts after the steps; where K's and V's differ already, each is computed by itself."""
        if k is v:
            return self._apply(k, self._sides)
        sides = [tuple(own for own in self._sides if own == side) for side in range(len(SIDES))]
        return self._apply(k, sides[0])[0], self._apply(v, sides[1])[1]

    def release(self, keep: torch.device) -> None:
        self._ready = {key: ready for key, ready in self._ready.items() if key[0] == keep}

    def _apply(self, x: Tensor, sides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if not sides:
            return x, x
        tensors = [weights.get_buffer("weight_0_0") for weights in self._weights]
        ready = self._ready.get((x.device, sides))
        if ready is None or any(own is not other for own, other in zip(ready.tensors, tensors, strict=True)):
            ready = self._prepare(x.device, sides, tensors)
        return ready.executor.apply(x, ready.strengths, self._active)

    @torch.inference_mode(False)
    def _prepare(self, device: torch.device, sides: tuple[int, ...], tensors: list[Tensor]) -> _Ready:
        """Returns the steps on a device. They are kept, unless the weights are elsewhere: for want of memory, say."""
        pairs = [weights.pair() for weights in self._weights]
        is_here = all(tensor.device == device for tensor in tensors)
        here = pairs if is_here else [_moved(pair, device) for pair in pairs]
        ready = _Ready(tensors, StackExecutor(here, self._path, sides), self._strengths.to(device))
        if is_here:
            self._ready[device, sides] = ready
        return ready


class _Ready(NamedTuple):
    """Steps on a device, made from `tensors`, which are others once the weights have moved."""

    tensors: list[Tensor]
    executor: StackExecutor
    strengths: Tensor


def _moved(pair: PackedPair, device: torch.device) -> PackedPair:
    moved = (tuple(stage.map(lambda tensor: tensor.to(device)) for stage in packed) for packed in pair)
    return cast(PackedPair, tuple(moved))


@dataclass
class _Text:
    """The contexts of the text in one UNet call, by the group of layers."""

    k: Tensor
    v: Tensor
    call: object
    contexts: dict[_LayerSteps, tuple[Tensor, Tensor]] = field(default_factory=dict)


class AttentionPatch:
    """What a program calls in its attention layers of one kind; see `AttentionStack.contexts`."""

    def __init__(self, stack: AttentionStack, kind: Kind) -> None:
        self.stack = stack
        self.kind = kind

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionPatch:
        return self

    def to(self, target: torch.device | torch.dtype) -> AttentionPatch:
        """Follows the model. The program moves the weights; what was made from them elsewhere is released."""
        if isinstance(target, torch.device):
            self.stack.release(keep=target)
        return self

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.stack.contexts(k, v, self.kind, options)
        return q, k, v
