"""A stack by Triton kernels, as one operation that `torch.compile` and CUDA graphs take whole.

Every run of networks of one build goes to the fused kernel where it fits and the path is `fused`, else to the grouped
ones. Streams and devices are the caller's: launches go to the current stream of x's device. What Triton cannot compile
is left out for good, once with a word, and what is simpler takes its place.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.errors import TritonError
from triton.runtime.errors import InterpreterError

from hnetkit.errors import KernelUnavailable
from hnetkit.kernels import backward, eager, fused, grouped
from hnetkit.kernels.configs import SIMPLER, is_forced
from hnetkit.kernels.devices import can_run
from hnetkit.kernels.mlp import MLPWeights
from hnetkit.kernels.packing import TENSORS, Packed, PackedStage, merge, unpack
from hnetkit.kernels.state import State

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Flat(NamedTuple):
    """Networks as an operation of torch takes them.

    Attributes:
        tensors: of every stage, in order.
        layout: what the tensors are, a line for each stage; `_parsed` reads it.
        networks: how many there are.
    """

    tensors: list[Tensor]
    layout: str
    networks: int


def arrange(networks: Iterable[Packed], path: str) -> list[Packed]:
    """Returns a stack as the kernels of `path` take it: what the fused kernel applies in one launch becomes one."""
    if path != "fused":
        return list(networks)
    runs: list[Packed] = []
    for is_fused, run in groupby(networks, key=lambda packed: fused.fits(packed) and _signature(packed)):
        members = list(run)
        runs += [merge(members)] if is_fused and len(members) > 1 else members
    return runs


def flatten(networks: Iterable[Packed]) -> Flat:
    """Returns networks as `apply` takes them."""
    tensors, lines, count = [], [], 0
    for number, packed in enumerate(networks):
        count += len(packed[0].weight)
        for stage in packed:
            held = [name for name in TENSORS if getattr(stage, name) is not None]
            tensors += [getattr(stage, name) for name in held]
            lines.append(f"{number} {stage.activation or 'none'} {stage.width} {stage.is_normed:d} {' '.join(held)}")
    return Flat(tensors, "\n".join(lines), count)


def apply(x: Tensor, stack: Flat, strengths: Tensor, path: str) -> Tensor:
    """Returns what K and V get: `x` after each ``y = y + strength * MLP(y)`` in order, for each side.

    Args:
        x: ``[..., d]``, any strides; never written to.
        stack: of one width, on x's device, all of one dtype: the products' dtype.
        strengths: ``[sides, networks]``, fp32, on x's device. A network of strength 0 costs a copy.
        path: ``"grouped"`` or ``"fused"``.

    Returns:
        ``[sides, ..., d]`` of x's dtype.

    Raises:
        KernelUnavailable: x is not where Triton can reach it.
        ValueError: x has another width or device than the networks, or a dtype that the kernels do not know.
    """
    _require(x, stack, strengths)
    if not x.numel():
        return x.new_empty(len(strengths), *x.shape)
    result: Tensor = _stack(x, strengths, stack.tensors, stack.layout, path)
    return result


def can_learn(networks: Sequence[Packed]) -> bool:
    """Whether gradients flow through `apply`, to x and to weights and biases."""
    return backward.can_learn(networks)


def launches(networks: Iterable[Packed], path: str, device: torch.device) -> int:
    """Returns how many kernels `apply` launches for networks that went through `arrange`."""
    return sum(
        1 if path == "fused" and fused.tiles_for(packed, device) else grouped.launches(packed) for packed in networks
    )


@torch.library.custom_op("hnetkit::stack", mutates_args=())
def _stack(x: Tensor, strengths: Tensor, tensors: list[Tensor], layout: str, path: str) -> Tensor:
    networks = _unflattened(tensors, layout)
    for candidate in SIMPLER[path]:
        case = (candidate, x.device, x.dtype, layout)
        if case in _left_out:
            continue
        try:
            with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
                return _launched(x, strengths, networks, candidate)
        except Exception as error:
            if not _is_of_the_compiler(error):
                raise
            if is_forced(path):
                raise KernelUnavailable(f"{path}: {error}", hint="unset HNETKIT_KERNEL") from error
            _left_out.add(case)
            warnings.warn(f"hnetkit leaves out its {candidate} kernels: {error}", RuntimeWarning, stacklevel=2)
    return torch.stack([eager.apply(x, _plain(networks, side), numbers) for side, numbers in enumerate(strengths)])


_left_out: set[tuple[str, torch.device, torch.dtype, str]] = set()
"""What Triton could not compile in this process."""


def _plain(networks: Sequence[Packed], side: int) -> list[MLPWeights]:
    return [unpack(packed, side, place) for packed in networks for place in range(len(packed[0].weight))]


def _is_of_the_compiler(error: Exception) -> bool:
    """Whether Triton could not make or load a kernel: nothing was launched."""
    if isinstance(error, InterpreterError):
        return False
    return isinstance(error, TritonError) or (type(error) is RuntimeError and "PassManager" in str(error))


def _launched(x: Tensor, strengths: Tensor, networks: Sequence[Packed], path: str) -> Tensor:
    dtype = networks[0][0].weight.dtype
    state, done, total = State.of(x, dtype), 0, strengths.shape[1]
    for packed in networks:
        before, done = done, done + len(packed[0].weight)
        numbers, is_last = strengths[:, before:done], done == total
        tiles = fused.tiles_for(packed, x.device) if path == "fused" and x.dtype == dtype else None
        if tiles is None:
            state = grouped.run(state, packed, numbers, is_last=is_last)
        else:
            state = fused.run(state, packed, numbers, tiles, is_last=is_last)
    return state.rows.view(len(strengths), *x.shape)


@_stack.register_fake
def _(x: Tensor, strengths: Tensor, tensors: list[Tensor], layout: str, path: str) -> Tensor:
    return x.new_empty(len(strengths), *x.shape)


@torch.library.custom_op("hnetkit::stack_gradients", mutates_args=())
def _gradients(gradient: Tensor, x: Tensor, strengths: Tensor, tensors: list[Tensor], layout: str) -> list[Tensor]:
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        of_x, of_weights = backward.gradients(gradient, x, strengths, _unflattened(tensors, layout))
    return [of_x, *of_weights]


@_gradients.register_fake
def _(gradient: Tensor, x: Tensor, strengths: Tensor, tensors: list[Tensor], layout: str) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (x, *tensors)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, strengths, tensors, ctx.layout, _ = inputs
    ctx.save_for_backward(x, strengths, *tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, strengths, *tensors = ctx.saved_tensors
    of_x, *of_tensors = _gradients(gradient, x, strengths, tensors, ctx.layout)
    return of_x, None, of_tensors, None, None


_stack.register_autograd(_backward, setup_context=_keep)


def _signature(packed: Packed) -> tuple[object, ...]:
    return tuple((stage.weight.shape, stage.activation, stage.is_normed) for stage in packed)


@functools.cache
def _parsed(layout: str) -> tuple[tuple[tuple[str | None, int, bool, tuple[str, ...]], ...], ...]:
    """Returns, for each run of networks, each stage's activation, width, whether it is normed, and its tensors."""
    lines = [line.split() for line in layout.splitlines()]
    return tuple(
        tuple(
            (None if activation == "none" else activation, int(width), normed == "1", tuple(names))
            for _, activation, width, normed, *names in stages
        )
        for _, stages in groupby(lines, key=lambda line: line[0])
    )


def _unflattened(tensors: Sequence[Tensor], layout: str) -> list[Packed]:
    left = iter(tensors)
    return [tuple(_stage(left, *line) for line in stages) for stages in _parsed(layout)]


def _stage(
    tensors: Iterator[Tensor], activation: str | None, width: int, is_normed: bool, names: Sequence[str]
) -> PackedStage:
    held: dict[str, Any] = {name: next(tensors) if name in names else None for name in TENSORS}
    return PackedStage(**held, activation=activation, width=width, is_normed=is_normed)


def _require(x: Tensor, stack: Flat, strengths: Tensor) -> None:
    weight = stack.tensors[0]
    if not can_run(x.device):
        raise KernelUnavailable(f"Triton's kernels do not run on {x.device}", hint="unset HNETKIT_KERNEL")
    if x.dtype not in DTYPES or weight.dtype not in DTYPES:
        raise ValueError(f"a context of {x.dtype} for weights of {weight.dtype}: the kernels know fp16, bf16 and fp32")
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"a context {x.shape[-1]} wide for networks of {weight.shape[-1]}")
    if not x.device == weight.device == strengths.device:
        raise ValueError(f"a context on {x.device}, weights on {weight.device}, strengths on {strengths.device}")
    if strengths.shape != (weight.shape[1], stack.networks):
        raise ValueError(f"strengths {list(strengths.shape)} for {stack.networks} networks of {weight.shape[1]} sides")
