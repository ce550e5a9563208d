"""CUDA graphs of one device, as a captured UNet uses them: calls are warmed up, recorded, and replayed."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class CapturedGraph(Protocol):
    """A graph: torch's."""

    def replay(self) -> None: ...

    def reset(self) -> None: ...


class Graphs(Protocol):
    """Graphs of one device that share one pool of memory: `CudaGraphs`."""

    def __init__(self, device: torch.device) -> None: ...

    @staticmethod
    def obstacle(device: torch.device) -> str | None:
        """Says why nothing can be captured on a device."""

    @property
    def memory(self) -> int:
        """Bytes of the pool."""

    def warm(self, call: Callable[[], T]) -> T:
        """Makes a call apart from the caller's own work, and returns what it gives."""

    def record(self, call: Callable[[], T]) -> tuple[CapturedGraph, T]:
        """Returns the graph of a call, and the tensors that a replay will write; nothing is computed yet."""

    def replay(self, graph: CapturedGraph, fill: Callable[[], None], take: Callable[[], T]) -> T:
        """Replays a graph after `fill` and returns what `take` gives, in the order of the caller's own work."""

    def drop(self, *graphs: CapturedGraph) -> None:
        """Frees graphs that nothing replays any more."""


class CudaGraphs:
    """CUDA graphs of one device that share one pool of memory; see `Graphs`.

    A pool's memory is written by every replay of its graphs, so replays wait for each other, whichever stream they are
    in. Calls are warmed up in another stream than they are captured in: what cuBLAS works in then belongs to the pool,
    and is not freed while graphs of the pool need it (torch 2.11 and later free it with the first graph).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._warming, self._capturing = (torch.cuda.Stream() for _ in range(2))  # type: ignore[no-untyped-call]
            self._replayed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pool: Any = None
        self._living: list[CapturedGraph] = []

    @staticmethod
    def obstacle(device: torch.device) -> str | None:
        return None if device.type == "cuda" else f"it is on {device.type}"

    @property
    def memory(self) -> int:
        if self._pool is None:
            return 0
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        return sum(part["total_size"] for part in segments if tuple(part["segment_pool_id"]) == tuple(self._pool))

    def warm(self, call: Callable[[], T]) -> T:
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._warming.wait_stream(current)
            with torch.cuda.stream(self._warming):
                output = call()
            current.wait_stream(self._warming)
        for tensor in _tensors_in(output):
            tensor.record_stream(current)
        return output

    def record(self, call: Callable[[], T]) -> tuple[CapturedGraph, T]:
        # not by `torch.cuda.graph`: after a capture that fails it leaves the thread in the stream that failed
        with _CAPTURING, torch.cuda.device(self._device), _without_collector():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # what warming up took
            pool = self._pool if self._pool is not None else torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(self._capturing):
                # of this thread alone: what other threads do at the same time is no part of it
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    output = call()
                except BaseException:
                    with suppress(RuntimeError):
                        graph.capture_end()
                    graph.reset()
                    raise
                graph.capture_end()
        self._pool = pool
        self._living.append(graph)
        return graph, output

    def replay(self, graph: CapturedGraph, fill: Callable[[], None], take: Callable[[], T]) -> T:
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._replayed)
            try:
                fill()
                graph.replay()
                return take()
            finally:  # also where there is no memory to take it to
                self._replayed.record(stream)

    def drop(self, *graphs: CapturedGraph) -> None:
        self._replayed.synchronize()
        for graph in graphs:
            graph.reset()
            self._living.remove(graph)
        if not self._living:  # a pool without graphs takes no more of them
            self._pool = None
            with torch.cuda.device(self._device):
                torch.cuda.empty_cache()


_CAPTURING = threading.Lock()
"""Held while a thread captures: a process can do so once at a time."""


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors_in(part)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keeps Python from collecting garbage: an event or a graph among it cannot be destroyed during a capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
