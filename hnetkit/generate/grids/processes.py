"""The processes that `accelerate launch` starts of one command: who is this, how many are they, have all come here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hnetkit.errors import HnetkitError

# of torchrun, which accelerate uses, and of the MPI programs that it knows
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
_FOR_EVER = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of one command.

    Attributes:
        rank: from 0, which is the main one: it alone prints and writes the sheet.
        size: how many there are.
        local_rank: from 0 on each machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Processes:
        """Returns what a launcher set; one process alone where none did."""
        if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return cls()
        rank, size, local_rank = (
            _first(names, default) for names, default in ((_RANK, 0), (_SIZE, 1), (_LOCAL_RANK, 0))
        )
        return cls(rank, size, local_rank) if size > 1 and 0 <= rank < size else cls()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Connects them for as long as the block lasts. One that fails leaves, and the others then fail in `wait`."""
        if self.size == 1:
            yield
            return
        import torch.distributed as dist

        os.environ["RANK"], os.environ["WORLD_SIZE"] = str(self.rank), str(self.size)
        dist.init_process_group("gloo", timeout=_FOR_EVER)
        yield
        dist.destroy_process_group()

    def wait(self) -> None:
        """Returns when every process is here.

        Raises:
            HnetkitError: one of them failed.
        """
        self.shared(None)

    def shared(self, value: Any) -> Any:
        """Returns the main process's `value`, which JSON can hold, in each of them.

        Raises:
            HnetkitError: one of them failed.
        """
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        try:
            data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
            length = torch.tensor([len(data)])
            dist.broadcast(length, 0)
            data = data if self.is_main else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, 0)
            dist.barrier()
        except RuntimeError as error:
            raise HnetkitError(
                "another process of this grid failed", hint="it said why; the same command then goes on from here"
            ) from error
        return json.loads(bytes(data.tolist()))


def take_own_threads() -> None:
    """Has torch take as many threads as it does without a launcher: sums in another number of threads round otherwise.

    Launchers allow one thread where nobody says how many. It must come before torch is imported.
    """
    is_launched = Processes.of_environment().size > 1
    if "torch" not in sys.modules and (started_alone() or (is_launched and os.environ.get("OMP_NUM_THREADS") == "1")):
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # more threads than cores must not wait by turning round


def started_alone() -> bool:
    """Whether `accelerate launch --cpu` was asked for several processes: it starts one, unless MPI starts them."""
    is_on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").casefold() in ("1", "true")
    return is_on_cpu and "MASTER_PORT" in os.environ and Processes.of_environment().size == 1


def _first(names: tuple[str, ...], default: int) -> int:
    found = (os.environ[name] for name in names if os.environ.get(name, "").isdigit())
    return int(next(found, default))
