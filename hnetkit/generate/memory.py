"""Running out of memory, on whatever device, as one error that says what to switch on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hnetkit.errors import OutOfMemory

_HINT = "--offload (on CUDA), --attention-slicing, --dtype fp16, a smaller --size, or --batch-size 1"
# what RuntimeErrors of the CPU's allocator and of MPS say
_SAYINGS = ("out of memory", "not enough memory", "can't allocate memory", "invalid buffer size")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that there was not enough memory."""
    import torch

    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error).lower() for saying in _SAYINGS)


@contextmanager
def needing_memory(doing: str) -> Iterator[None]:
    """Surrounds what may run out of memory.

    Args:
        doing: what goes on inside, as in "not enough memory for ...".

    Raises:
        OutOfMemory: in place of torch's or Python's own error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"not enough memory for {doing}", hint=_HINT) from error
