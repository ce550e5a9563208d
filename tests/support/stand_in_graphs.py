"""CUDA graphs without CUDA: a call's operations are recorded with the memory that they read and write, and repeated.

What would go wrong in a graph goes wrong here: nothing is computed while it is recorded, and nothing written to memory
of others; a replay runs no Python of the module, memory of others that was freed meanwhile is not read, a value never
reaches the host, and what a graph wrote is gone once another one of the pool ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")

WAITING = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select")


class Freed(AssertionError):
    """A replay reads memory that its owner has freed."""


class Place(NamedTuple):
    """Memory that the graph does not own, as a kernel knows it: by its address."""

    storage: StorageWeakRef
    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    number: Tensor | None = None
    """Of a number in a tensor, which a kernel is given by its value."""

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        storage = StorageWeakRef(tensor.untyped_storage())
        is_number = tensor.ndim == 0 and tensor.untyped_storage().nbytes() == tensor.element_size()
        with torch.utils._python_dispatch._disable_current_modes():
            number = tensor.clone() if is_number else None
        return cls(storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, number)

    def tensor(self) -> Tensor:
        storage = None if self.storage.expired() else torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None and self.number is not None:
            return self.number
        if storage is None:
            raise Freed
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


class Recorder(TorchDispatchMode):
    """Records operations; what they make is the graph's own."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.own: dict[int, torch.UntypedStorage] = {}
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in WAITING:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        inputs = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs))}
        recorded = self.recorded(args), self.recorded(kwargs)
        others = [(tensor, tensor.clone()) for tensor in written(func, args) if not self.is_own(tensor)]
        output = func(*args, **kwargs)
        for tensor, before in others:
            tensor.copy_(before)
        fresh = [tensor.detach() for tensor in tensors_in(output) if tensor.untyped_storage()._cdata not in inputs]
        for tensor in fresh:
            self.own[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        self.made += fresh
        if fresh or func._schema.is_mutable:  # else a view
            self.operations.append((func, *recorded, fresh))
        return output

    def recorded(self, value: Any) -> Any:
        def place(tensor: Tensor) -> Any:
            return tensor.detach() if self.is_own(tensor) else Place.of(tensor)

        return changed(value, Tensor, place)

    def is_own(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.own


class StandInGraph:
    """What was recorded."""

    def __init__(self, recorder: Recorder) -> None:
        self.operations: list[Any] | None = recorder.operations
        self.made = recorder.made
        self.spoil()

    def spoil(self) -> None:
        for tensor in self.made:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)

    @torch.no_grad()
    def replay(self) -> None:
        assert self.operations is not None, "replayed after it was dropped"
        for func, args, kwargs, made in self.operations:
            given, named = (changed(value, Place, Place.tensor) for value in (args, kwargs))
            for place, tensor in zip(made, tensors_in(func(*given, **named)), strict=bool(made)):
                place.copy_(tensor)

    def reset(self) -> None:
        self.operations, self.made = None, []


class StandInGraphs:
    """Stands in for `hnetkit.runtime.capture.CudaGraphs`, and counts.

    Attributes:
        warmed, recorded, replayed: how many calls were made in each way, over all captures.
        living: graphs that are not dropped.
        fault: an error that every capture fails with.
    """

    warmed = recorded = replayed = 0
    living: list[StandInGraph] = []  # noqa: RUF012
    fault: Exception | None = None

    @classmethod
    def begin(cls) -> None:
        """Forgets what was before."""
        StandInGraphs.warmed = StandInGraphs.recorded = StandInGraphs.replayed = 0
        StandInGraphs.living, StandInGraphs.fault = [], None

    def __init__(self, device: torch.device) -> None:
        self.own: list[StandInGraph] = []
        self.is_replaying = False

    @staticmethod
    def obstacle(device: torch.device) -> str | None:
        return None

    @property
    def memory(self) -> int:
        return sum(tensor.nbytes for graph in self.own for tensor in graph.made)

    def warm(self, call: Callable[[], T]) -> T:
        StandInGraphs.warmed += 1
        return call()

    def record(self, call: Callable[[], T]) -> tuple[StandInGraph, T]:
        if self.fault is not None:
            raise self.fault
        recorder = Recorder()
        with recorder:
            output = call()
        StandInGraphs.recorded += 1
        graph = StandInGraph(recorder)
        self.own.append(graph)
        self.living.append(graph)
        return graph, output

    def replay(self, graph: StandInGraph, fill: Callable[[], None], take: Callable[[], T]) -> T:
        assert not self.is_replaying, "two replays at once"
        self.is_replaying = True
        for other in self.own:
            if other is not graph:
                other.spoil()
        fill()
        graph.replay()
        result = take()
        self.is_replaying = False
        StandInGraphs.replayed += 1
        return result

    def drop(self, *graphs: StandInGraph) -> None:
        for graph in graphs:
            graph.reset()
            self.own.remove(graph)
            self.living.remove(graph)


def written(func: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """Returns the tensors that an operation writes to."""
    pairs = zip(func._schema.arguments, args, strict=False)
    return [value for argument, value in pairs if argument.alias_info is not None and argument.alias_info.is_write]


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)


def changed(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Returns nested containers with `change` of each part that is of a class."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: changed(part, kind, change) for name, part in value.items()}
    return type(value)([changed(part, kind, change) for part in value]) if type(value) in (tuple, list) else value
