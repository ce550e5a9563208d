"""The processes of one command, as `accelerate launch` starts them: rank and number, and what passes between them.

torch is imported when it is used: `use_default_threads` must come before.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from hnetkit.errors import HnetkitError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# of torchrun, which accelerate uses, and of the MPI programs that it knows
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")

_GRID_TIMEOUT = timedelta(days=365)
_TRAINING_TIMEOUT = timedelta(days=1)  # the main process draws previews while the others wait


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of one command; by default the only one.

    Attributes:
        rank: from 0, which is the main one: it alone prints and writes what is not a process's own.
        size: how many there are.
        local_rank: from 0 on each machine.
        device: of the tensors that pass between them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str = "cpu"

    @classmethod
    def of_environment(cls) -> Processes:
        """Returns what a launcher set in the environment; one process where none did. Nothing is connected yet."""
        if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return cls()
        rank, size, local_rank = (
            _first_number(names, default) for names, default in ((_RANK, 0), (_SIZE, 1), (_LOCAL_RANK, 0))
        )
        return cls(rank, size, local_rank) if size > 1 and 0 <= rank < size else cls()

    @classmethod
    def of_accelerate(cls, device: str) -> Processes:
        """Returns the processes that accelerate connects, on first use, until `disconnect`.

        Args:
            device: that they compute on: ``"cpu"``, ``"cuda"``, ...
        """
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu", timeout=_TRAINING_TIMEOUT)
        return cls(
            rank=int(state.process_index),
            size=int(state.num_processes),
            local_rank=int(state.local_process_index),
            device=str(state.device),
        )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connects the processes for as long as the block lasts.

        A process that fails disconnects; the others then fail at their next `wait` or `broadcast`.
        """
        if self.size == 1:
            yield
            return
        import torch.distributed as dist

        os.environ["RANK"], os.environ["WORLD_SIZE"] = str(self.rank), str(self.size)
        dist.init_process_group("gloo", timeout=_GRID_TIMEOUT)
        yield
        dist.destroy_process_group()

    def slice_of(self, items: Sequence[T]) -> Sequence[T]:
        """Returns this process's items: neighbors, in order, and as many as the others have, or one more or less."""
        return items[len(items) * self.rank // self.size : len(items) * (self.rank + 1) // self.size]

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor (fp32, on `device`) by its sum over all processes.

        Raises:
            HnetkitError: one of the processes failed.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _reporting_failures():
            dist.all_reduce(flat)
        for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.reshape(tensor.shape))

    def wait(self) -> None:
        """Returns when every process is here.

        Raises:
            HnetkitError: one of them failed.
        """
        self.broadcast(None)

    def broadcast(self, value: Any) -> Any:
        """Returns the main process's `value`, in JSON's types, in each of them; all are here when it returns.

        Raises:
            HnetkitError: one of them failed.
        """
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        with _reporting_failures():
            data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
            length = torch.tensor([len(data)], device=self.device)
            dist.broadcast(length, 0)
            data = data if self.is_main else torch.empty(int(length), dtype=torch.uint8, device=self.device)
            dist.broadcast(data, 0)
            arrived = torch.zeros(1, device=self.device)
            dist.all_reduce(arrived)
            arrived.item()  # on a GPU, the calls above only queue the work
        return json.loads(bytes(data.tolist()))


def disconnect() -> None:
    """Ends the connection that `Processes.of_accelerate` made; at the end of the program."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def use_default_threads() -> None:
    """Lets torch use as many threads as it does without a launcher, because sums depend on the number of threads.

    Launchers allow one thread unless told otherwise. Call this before torch is imported.
    """
    is_launched = Processes.of_environment().size > 1
    if "torch" not in sys.modules and (started_alone() or (is_launched and os.environ.get("OMP_NUM_THREADS") == "1")):
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # with more threads than cores, waiting ones must not spin


def started_alone() -> bool:
    """Whether `accelerate launch --cpu` was asked for several processes: it starts one, unless MPI starts them."""
    is_on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").casefold() in ("1", "true")
    return is_on_cpu and "MASTER_PORT" in os.environ and Processes.of_environment().size == 1


def _first_number(names: tuple[str, ...], default: int) -> int:
    found = (os.environ[name] for name in names if os.environ.get(name, "").isdigit())
    return int(next(found, default))


@contextmanager
def _reporting_failures() -> Iterator[None]:
    """Turns the error of a broken connection into one that names its cause."""
    try:
        yield
    except RuntimeError as error:
        raise HnetkitError(
            "another process of this command failed",
            hint="its own message says why; run the same command again to resume",
        ) from error
