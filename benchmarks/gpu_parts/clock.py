"""How a step is run and timed: warm, under a CUDA graph or as it is called. A rehearsal times nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

REPEATS = 30


class Runner(Protocol):
    """A step that can be run again and again."""

    def run(self) -> None: ...

    def outputs(self) -> Any:
        """Returns what one run gives: tensors, in lists and tuples."""


class Called:
    """A step as it is called, with what the host does for it."""

    def __init__(self, step: Callable[[], Any]) -> None:
        self._step = step

    def run(self) -> None:
        self._step()

    def outputs(self) -> Any:
        return self._step()


class Captured:
    """A step as a CUDA graph."""

    def __init__(self, step: Callable[[], Any]) -> None:
        step()  # compiles and loads whatever there is to be compiled and loaded
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._outputs = step()

    def run(self) -> None:
        self._graph.replay()

    def outputs(self) -> Any:
        """Returns what a replay writes; the memory holds NaN before it."""
        for tensor in tensors_of(self._outputs):
            tensor.fill_(torch.nan)
        self.run()
        torch.cuda.synchronize()
        return self._outputs


class Bench:
    """The GPU and its ceiling; in a rehearsal the CPU, where nothing is captured and nothing timed.

    Attributes:
        ceiling: TFLOP/s of torch's own fp16 product of two large square matrices; None in a rehearsal.
    """

    def __init__(self, *, rehearse: bool) -> None:
        self.rehearse = rehearse
        self.device = "cpu" if rehearse else "cuda"
        self.ceiling = None if rehearse else ceiling()

    def captured(self, step: Callable[[], Any]) -> Runner:
        return Called(step) if self.rehearse else Captured(step)

    def figures(self, runner: Runner, flops: int = 0) -> dict[str, str]:
        """Returns median, spread and rate of a step that is known to be right; `flops` 0: its rate is not known."""
        if self.ceiling is None:
            return {}
        times = sorted(milliseconds(runner))
        low, *_, high = statistics.quantiles(times, n=10)
        median = statistics.median(times)
        figures = {"ms": f"{median:.4f}", "ms_p10": f"{low:.4f}", "ms_p90": f"{high:.4f}"}
        if flops:
            rate = flops / median / 1e9
            figures |= {"tflops": f"{rate:.1f}", "of_ceiling": f"{rate / self.ceiling:.3f}"}
        return figures | {"ceiling_tflops": f"{self.ceiling:.1f}"}

    def require_alive(self) -> None:
        """Raises where an error of before has left the GPU useless to this process."""
        if not self.rehearse:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def milliseconds(runner: Runner) -> list[float]:
    """Returns the times of `REPEATS` runs after three that warm up."""
    for _ in range(3):
        runner.run()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        runner.run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def ceiling(size: int = 8192) -> float:
    """Returns TFLOP/s of torch's own fp16 product of two ``[size, size]`` matrices."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    return 2 * size**3 / statistics.median(milliseconds(Captured(lambda: a @ b))) / 1e9


def tensors_of(outputs: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested lists and tuples."""
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for part in outputs:
            yield from tensors_of(part)
