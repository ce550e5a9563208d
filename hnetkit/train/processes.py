"""The processes of one training run, as `accelerate launch` starts them: who is this, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from hnetkit.errors import HnetkitError

T = TypeVar("T")

_PATIENCE = timedelta(days=1)  # the main process draws previews while the others wait


class Processes:
    """This process among those of one run.

    Args:
        device: that the run computes on: ``"cpu"``, ``"cuda"``, ...

    Attributes:
        rank: from 0, which is the main one: it alone writes files.
        size: how many there are.
    """

    def __init__(self, device: str) -> None:
        from accelerate import PartialState

        self._state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
        self.rank, self.size = int(self._state.process_index), int(self._state.num_processes)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Returns this process's part: neighbours, in order, and as many as the others have, or one more or less."""
        return items[len(items) * self.rank // self.size : len(items) * (self.rank + 1) // self.size]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Makes each tensor (fp32, on the run's device) the sum of what all processes have in its place.

        Raises:
            HnetkitError: one of the processes failed.
        """
        if self.size == 1:
            return
        import torch.distributed as dist

        together = torch.cat([tensor.reshape(-1) for tensor in tensors])
        try:
            dist.all_reduce(together)
        except RuntimeError as error:
            raise _other_failed() from error
        for tensor, part in zip(tensors, torch.split(together, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.reshape(tensor.shape))

    def shared(self, value: T) -> T:
        """Returns the main process's `value` in each of them; all are here when it returns.

        Raises:
            HnetkitError: one of the processes failed.
        """
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values: list[Any] = [value]
        try:
            broadcast_object_list(values)
            self.add_up([torch.zeros(1, device=self._state.device)])
        except RuntimeError as error:
            raise _other_failed() from error
        result: T = values[0]
        return result


def leave() -> None:
    """Ends the connection between processes, at the end of the program."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _other_failed() -> HnetkitError:
    return HnetkitError(
        "another process of this run failed", hint="it said why; the same command then goes on from the last checkpoint"
    )
