"""The networks that a batch is learned with: each of its samples may have a stack of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from hnetkit.runtime.strength import SIDES, Side
from hnetkit.train.hooks import put_on

if TYPE_CHECKING:
    from hnetkit.train.mlp import Casts
    from hnetkit.train.modules import TrainedNetwork

Stack: TypeAlias = "tuple[tuple[str, float], ...]"
"""Names and strengths of networks, in the order in which contexts pass through them."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Samples that have the same networks in the same order.

    Attributes:
        rows: their numbers in the batch.
        networks: each with its strengths ``[n]``; None is 1 for all.
    """

    rows: Tensor
    networks: Sequence[tuple[TrainedNetwork, Tensor | None]]

    def apply_to(self, x: Tensor, side: Side, casts: Casts) -> Tensor:
        for network, strengths in self.networks:
            x = network.apply_to(x, side, casts, strengths)
        return x


class Stacks:
    """Networks in front of a UNet's attention in training; until `choose`, all of them at strength 1, in their order.

    Args:
        networks: by the names that stacks have for them.

    Attributes:
        widths: of the contexts that they change.
        sides: that they change.
    """

    def __init__(self, networks: Mapping[str, TrainedNetwork]) -> None:
        self._networks = networks
        self.widths = {width for network in networks.values() for width in network.widths}
        self.sides: list[Side] = [
            side for side in SIDES if any(side in network.build.sides for network in networks.values())
        ]
        self._groups = [_Group(torch.empty(0), [(network, None) for network in networks.values()])]
        self._places = torch.empty(0)  # of each sample, among those of all groups one after the other

    def choose(self, stacks: Sequence[Stack], device: torch.device) -> None:
        """Gives the samples of the batch that comes next their stacks.

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
                    (self._networks[name], _strengths([stacks[row][place][1] for row in rows], device))
                    for place, name in enumerate(names)
                ],
            )
            for names, rows in orders.items()
        ]
        self._places = torch.cat([group.rows for group in self._groups]).argsort()

    def apply_to(self, x: Tensor, side: Side, casts: Casts) -> Tensor:
        """Returns contexts ``[n, ..., width]`` after the networks of their samples.

        Args:
            casts: of the parameters, which several calls may share.
        """
        if len(self._groups) == 1:
            return self._groups[0].apply_to(x, side, casts)
        changed = [group.apply_to(x.index_select(0, group.rows), side, casts) for group in self._groups]
        return torch.cat(changed).index_select(0, self._places)

    @contextmanager
    def on(self, unet: Any) -> Iterator[None]:
        """Has the networks in front of ``to_k`` and ``to_v`` of every layer of their widths.

        Within the block, text contexts pass through them once for each call of the UNet, not once for each layer, so
        dropout draws once for all of them. The backward pass belongs into the block too: with gradient checkpointing
        layers are computed again there.

        Raises:
            AttachError: other hypernetworks are active on the UNet, its projections are fused, or no layer is reached.
        """
        with ExitStack() as stack:
            for handle in put_on(unet, self):
                stack.callback(handle.remove)
            yield


def _strengths(strengths: Sequence[float], device: torch.device) -> Tensor | None:
    return None if all(strength == 1 for strength in strengths) else torch.tensor(strengths, device=device)
