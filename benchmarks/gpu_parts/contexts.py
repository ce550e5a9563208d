"""Parts `isolated` and `compile`: stacks on the contexts of one UNet step, K and V, without the rest of the UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gpu_parts import paths
from gpu_parts.clock import Bench, tensors_of
from gpu_parts.paths import Pair, Path, as_a1111
from gpu_parts.record import Key, Row, fault_of
from gpu_parts.work import Contexts, cases, rehearsal
from hnetkit.kernels import reference

LIMIT, DELTA_LIMIT = 1.5e-3, 1.5
"""Of y's relative error in fp16; of the error of y - x, as a multiple of what it is as A1111 computes it."""


def isolated(bench: Bench, stands: Callable[[Key], bool]) -> Iterator[Row]:
    """Yields a row for each configuration and path."""
    return _rows("isolated", paths.EACH, bench, stands)


def compiled(bench: Bench, stands: Callable[[Key], bool]) -> Iterator[Row]:
    """Yields a row for each configuration: as A1111 through `torch.compile`, between that without it and the kernels.

    `torch.compile` leaves CUDA graphs to the benchmark, so that all three are timed the same way.
    """
    options = {"backend": "aot_eager"} if bench.rehearse else {"mode": "max-autotune-no-cudagraphs"}
    sides = {
        "as A1111": paths.AS_A1111,
        "torch.compile": Path(paths.compiled(**options), in_every_layer=True),
        "fused": paths.FUSED,
    }
    return _rows("compile", sides, bench, stands)


def _rows(part: str, each: Mapping[str, Path], bench: Bench, stands: Callable[[Key], bool]) -> Iterator[Row]:
    for case in rehearsal() if bench.rehearse else cases():
        keys = {name: Key(part, case.model, case.build, str(case.networks), case.work, name) for name in each}
        todo = {name: key for name, key in keys.items() if not stands(key)}
        if not todo:
            continue
        work = case.contexts(bench.device)
        for name, key in todo.items():
            yield {**key._asdict(), **measured(work, each[name], bench)}
            if part == "compile":
                torch.compiler.reset()


def measured(work: Sequence[Contexts], path: Path, bench: Bench) -> dict[str, str]:
    """Returns the figures of a path, or what is wrong with it."""
    try:
        runner = bench.captured(path.step(work))
        wrong = error(work, runner.outputs())
        return {"wrong": wrong} if wrong else bench.figures(runner, path.flops(work))
    except Exception as fault:  # a kernel that a GPU cannot run is a result like any other
        return {"wrong": fault_of(fault)}


def error(work: Sequence[Contexts], outputs: Sequence[Sequence[Pair]]) -> str | None:
    """Says how the outputs of a step are wrong; None where they are right.

    All must be finite. The first and the last of every width and kind are held against the mathematics in fp32.
    """
    if not all(torch.isfinite(tensor).all() for tensor in tensors_of(outputs)):
        return "not finite"
    for contexts, pairs in zip(work, outputs, strict=True):
        for x, pair in ((contexts.xs[0], pairs[0]), (contexts.xs[-1], pairs[-1])):
            for side, got in enumerate(pair):
                wrong = _error(x, got, contexts, side)
                if wrong:
                    return f"{'kv'[side]} of {list(x.shape)} {wrong}"
    return None


def _error(x: Tensor, got: Tensor, contexts: Contexts, side: int) -> str | None:
    stack = contexts.stack
    truth = reference.apply(x.float(), stack.sides[side], stack.strengths[side]).double()
    plain = as_a1111(x, stack.sides[side], stack.numbers[side])
    off, usual = ((y.double() - truth).norm() for y in (got, plain))
    if off / truth.norm() > LIMIT:
        return f"is {off / truth.norm():.1e} off"
    delta = (truth - x.double()).norm()
    if off / delta > DELTA_LIMIT * usual / delta + 1e-5:
        return f"adds something {off / delta:.1e} off, as A1111 {usual / delta:.1e}"
    return None
