"""Hooks that put the networks of a training batch in front of a UNet's attention, each sample with its own stack.

They are forward pre-hooks, which leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from hnetkit.errors import AttachError
from hnetkit.runtime.adapters import get_active_hypernetworks
from hnetkit.runtime.hooks import require_unfused
from hnetkit.runtime.layers import find_layers
from hnetkit.runtime.strength import SIDES, Side
from hnetkit.train.network import CastCache

if TYPE_CHECKING:
    from hnetkit.train.network import TrainedNetwork

NamedStack: TypeAlias = "tuple[tuple[str, float], ...]"
"""Names and strengths of networks, in the order in which contexts pass through them."""


_TEXT = "encoder_hidden_states"
_TEXT_POSITION = 2  # among the positional arguments of a UNet

Hook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Group:
    """Samples with the same networks in the same order.

    Attributes:
        rows: their numbers in the batch.
        networks: each with its strengths ``[n]``; None is 1 for all.
    """

    rows: Tensor
    networks: Sequence[tuple[TrainedNetwork, Tensor | None]]

    def apply_to(self, x: Tensor, side: Side, casts: CastCache) -> Tensor:
        for network, strengths in self.networks:
            x = network.apply_to(x, side, casts, strengths)
        return x


class BatchStacks:
    """Networks in front of a UNet's attention in training; until `choose`, all of them at strength 1, in their order.

    Args:
        networks: by the names that stacks have for them.

    Attributes:
        widths: of the contexts that they change.
        sides: that they change.
        shared: the names of the networks that all samples of the batch have, at strength 1; None if they differ.
    """

    def __init__(self, networks: Mapping[str, TrainedNetwork]) -> None:
        self._networks = networks
        self.widths = {width for network in networks.values() for width in network.widths}
        self.sides: list[Side] = [
            side for side in SIDES if any(side in network.build.sides for network in networks.values())
        ]
        self._groups = [_Group(torch.empty(0), [(network, None) for network in networks.values()])]
        self.shared: tuple[str, ...] | None = tuple(networks)
        self._positions = torch.empty(0)  # of each sample, among those of all groups one after the other
        self._checked: tuple[Any, list[nn.Module]] = (None, [])  # a UNet and its attention of these widths

    def choose(self, stacks: Sequence[NamedStack], device: torch.device) -> None:
        """Sets the stacks of the samples of the next batch.

        Args:
            device: of the contexts.
        """
        orders: dict[tuple[str, ...], list[int]] = {}
        for row, stack in enumerate(stacks):
            orders.setdefault(tuple(name for name, _ in stack), []).append(row)
        self._groups = [
            _Group(
                torch.tensor(rows, device=device),
                [
                    (self._networks[name], _strengths([stacks[row][position][1] for row in rows], device))
                    for position, name in enumerate(names)
                ],
            )
            for names, rows in orders.items()
        ]
        self._positions = torch.cat([group.rows for group in self._groups]).argsort()
        is_plain = len(self._groups) == 1 and all(strengths is None for _, strengths in self._groups[0].networks)
        self.shared = next(iter(orders)) if is_plain else None

    def apply_to(self, x: Tensor, side: Side, casts: CastCache) -> Tensor:
        """Returns contexts ``[n, ..., width]`` after the networks of their samples.

        Args:
            casts: of the parameters; several calls may share them.
        """
        if len(self._groups) == 1:
            return self._groups[0].apply_to(x, side, casts)
        changed = [group.apply_to(x.index_select(0, group.rows), side, casts) for group in self._groups]
        return torch.cat(changed).index_select(0, self._positions)

    @contextmanager
    def on(self, unet: Any) -> Iterator[None]:
        """Puts the networks in front of ``to_k`` and ``to_v`` of every layer of their widths while the block lasts.

        Within the block, text contexts pass through them once for each call of the UNet, not once for each layer, so
        dropout draws once for all of them. The backward pass belongs into the block too: with gradient checkpointing
        layers are computed again there.

        Raises:
            AttachError: other hypernetworks are active on the UNet; or, at the first call for it, its projections are
                fused, or no layer is reached.
        """
        if active := get_active_hypernetworks(unet):
            raise AttachError(
                f"the UNet has hypernetworks on it: {', '.join(active)}", hint="hnetkit.unload_hypernetworks(pipe)"
            )
        if self._checked[0] is not unet:
            self._checked = unet, _attentions(unet, self.widths)
        call = _UNetCall(self)
        with ExitStack() as stack:
            stack.callback(unet.register_forward_pre_hook(call.begin, with_kwargs=True).remove)
            for attention in self._checked[1]:
                for side in self.sides:
                    projection: nn.Module = getattr(attention, f"to_{side}")
                    stack.callback(projection.register_forward_pre_hook(call.hook(side)).remove)
            yield


def _strengths(strengths: Sequence[float], device: torch.device) -> Tensor | None:
    return None if all(strength == 1 for strength in strengths) else torch.tensor(strengths, device=device)


class _UNetCall:
    """The state of the UNet's current call.

    The text context after the networks is looked up by the tensor that the UNet's blocks are given, which is a new one
    for each call. Under gradient checkpointing a layer is computed again when other calls may have begun, and needs the
    text of its own call.
    """

    def __init__(self, stacks: BatchStacks) -> None:
        self.stacks = stacks
        self.casts = CastCache()
        self.texts: Any = WeakTensorKeyDictionary()

    def begin(
        self, unet: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The UNet's hook: passes the text context through the stacks."""
        self.casts = CastCache()
        text = named.get(_TEXT, arguments[_TEXT_POSITION] if len(arguments) > _TEXT_POSITION else None)
        if not isinstance(text, Tensor) or text.shape[-1] not in self.stacks.widths:
            return arguments, named
        own = text.view_as(text)
        self.texts[own] = {side: self.stacks.apply_to(own, side, self.casts) for side in self.stacks.sides}
        if _TEXT in named:
            return arguments, {**named, _TEXT: own}
        return (*arguments[:_TEXT_POSITION], own, *arguments[_TEXT_POSITION + 1 :]), named

    def hook(self, side: Side) -> Hook:
        """Returns the hook of ``to_k`` or ``to_v``."""

        def change(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            context, *others = arguments
            contexts = self.texts.get(context)
            if contexts is None:
                return (self.stacks.apply_to(context, side, self.casts), *others)
            return (contexts[side], *others)

        return change


def _attentions(unet: Any, widths: set[int]) -> list[nn.Module]:
    """Returns the attention modules whose contexts have one of `widths`.

    Raises:
        AttachError: projections are fused, or there are none of these widths.
    """
    modules = dict(unet.named_modules())
    names = [layer.name for layer in find_layers(unet) if layer.width in widths]
    if not names:
        raise AttachError(f"no layer of the UNet has a context of width {', '.join(map(str, sorted(widths)))}")
    for name in names:
        require_unfused(name, modules[name])
    return [modules[name] for name in names]
