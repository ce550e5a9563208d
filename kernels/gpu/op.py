"""A stack by Triton kernels, as one custom op that `torch.compile` and CUDA graphs capture.

Every run of networks of one build goes to the fused kernel where it fits and the path is `fused`, else to the linear
ones. Streams and devices are the caller's: launches go to the current stream of x's device.

A kernel that fails is replaced by a simpler path. Before a GPU's kernels are used, they compute one small stack that is
compared with plain torch (`verified_path`). What Triton cannot compile later is not tried again in this process, and a
warning says so once.
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
from hnetkit.kernels import eager, reference
from hnetkit.kernels.configs import FALLBACKS, VARIABLE, is_forced
from hnetkit.kernels.gpu import backward, fused, linear
from hnetkit.kernels.gpu.device import can_run
from hnetkit.kernels.gpu.state import KernelState
from hnetkit.kernels.weights import (
    PACKED_TENSORS,
    MLPWeights,
    PackedMLPs,
    PackedStage,
    StageWeights,
    merge,
    pack,
    unpack,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_TEST_WIDTH, _TEST_ROWS, _TEST_LIMIT = 320, 65, 1e-2
_TEST_STRENGTHS = ((0.7, -0.4), (0.3, 0.9))


class FlatStack(NamedTuple):
    """Networks as an operation of torch takes them.

    Attributes:
        tensors: of every stage, in order.
        layout: what the tensors are, a line for each stage; `_parse_layout` reads it.
        networks: how many there are.
    """

    tensors: list[Tensor]
    layout: str
    networks: int


def arrange(networks: Iterable[PackedMLPs], path: str) -> list[PackedMLPs]:
    """Returns a stack as the kernels of `path` take it: what the fused kernel applies in one launch becomes one."""
    if path != "fused":
        return list(networks)
    runs: list[PackedMLPs] = []
    for is_fused, run in groupby(networks, key=lambda packed: fused.fits(packed) and _packed_build(packed)):
        members = list(run)
        runs += [merge(members)] if is_fused and len(members) > 1 else members
    return runs


def flatten(networks: Iterable[PackedMLPs]) -> FlatStack:
    """Returns networks as `apply` takes them."""
    tensors: list[Tensor] = []
    lines, count = [], 0
    for number, packed in enumerate(networks):
        count += len(packed[0].weight)
        for stage in packed:
            own = stage.tensors()
            tensors += own.values()
            lines.append(f"{number} {stage.activation or 'none'} {stage.width} {stage.is_normed:d} {' '.join(own)}")
    return FlatStack(tensors, "\n".join(lines), count)


def apply(x: Tensor, stack: FlatStack, strengths: Tensor, path: str) -> Tensor:
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
    _require_fit(x, stack, strengths)
    if not x.numel():
        return x.new_empty(len(strengths), *x.shape)
    result: Tensor = _stack(x, strengths, stack.tensors, stack.layout, path)
    return result


def supports_gradients(networks: Sequence[PackedMLPs]) -> bool:
    """Whether gradients flow through `apply`, to x and to weights and biases."""
    return backward.supports_gradients(networks)


def launches(networks: Iterable[PackedMLPs], path: str, device: torch.device) -> int:
    """Returns how many kernels `apply` launches for networks that went through `arrange`."""
    return sum(
        1 if path == "fused" and fused.tiles_for(packed, device) else linear.launches(packed) for packed in networks
    )


@torch.library.custom_op("hnetkit::stack", mutates_args=())
def _stack(x: Tensor, strengths: Tensor, tensors: list[Tensor], layout: str, path: str) -> Tensor:
    networks = _unflatten(tensors, layout)
    for candidate in FALLBACKS[path]:
        case = (candidate, x.device, x.dtype, layout)
        if case in _failed:
            continue
        try:
            with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
                return _run_kernels(x, strengths, networks, candidate)
        except Exception as error:
            if not _is_compiler_error(error):
                raise
            if is_forced(path):
                raise KernelUnavailable(f"{path}: {error}", hint=f"unset {VARIABLE}") from error
            _failed.add(case)
            warnings.warn(f"hnetkit leaves out its {candidate} kernels: {error}", RuntimeWarning, stacklevel=2)
    return torch.stack([eager.apply(x, _plain(networks, side), numbers) for side, numbers in enumerate(strengths)])


_failed: set[tuple[str, torch.device, torch.dtype, str]] = set()
"""Path, device, dtype and layout of what Triton could not compile in this process."""


def _plain(networks: Sequence[PackedMLPs], side: int) -> list[MLPWeights]:
    return [unpack(packed, side, index) for packed in networks for index in range(len(packed[0].weight))]


def _is_compiler_error(error: Exception) -> bool:
    """Whether Triton could not make or load a kernel: nothing was launched."""
    if isinstance(error, InterpreterError):
        return False
    return isinstance(error, TritonError) or (type(error) is RuntimeError and "PassManager" in str(error))


def _run_kernels(x: Tensor, strengths: Tensor, networks: Sequence[PackedMLPs], path: str) -> Tensor:
    dtype = networks[0][0].weight.dtype
    state, done, total = KernelState.of(x, dtype), 0, strengths.shape[1]
    for packed in networks:
        before, done = done, done + len(packed[0].weight)
        numbers, is_last = strengths[:, before:done], done == total
        tiles = fused.tiles_for(packed, x.device) if path == "fused" and x.dtype == dtype else None
        if tiles is None:
            state = linear.run(state, packed, numbers, is_last=is_last)
        else:
            state = fused.run(state, packed, numbers, tiles, is_last=is_last)
    return state.rows.view(len(strengths), *x.shape)


@_stack.register_fake
def _fake_stack(x: Tensor, strengths: Tensor, tensors: list[Tensor], layout: str, path: str) -> Tensor:
    return x.new_empty(len(strengths), *x.shape)


@torch.library.custom_op("hnetkit::stack_gradients", mutates_args=())
def _gradients(gradient: Tensor, x: Tensor, strengths: Tensor, tensors: list[Tensor], layout: str) -> list[Tensor]:
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        of_x, of_weights = backward.gradients(gradient, x, strengths, _unflatten(tensors, layout))
    return [of_x, *of_weights]


@_gradients.register_fake
def _fake_gradients(gradient: Tensor, x: Tensor, strengths: Tensor, tensors: list[Tensor], layout: str) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (x, *tensors)]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, strengths, tensors, ctx.layout, _ = inputs
    ctx.save_for_backward(x, strengths, *tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, strengths, *tensors = ctx.saved_tensors
    of_x, *of_tensors = _gradients(gradient, x, strengths, tensors, ctx.layout)
    return of_x, None, of_tensors, None, None


_stack.register_autograd(_backward, setup_context=_save_for_backward)


def _packed_build(packed: PackedMLPs) -> tuple[object, ...]:
    return tuple((stage.weight.shape, stage.activation, stage.is_normed) for stage in packed)


@functools.cache
def _parse_layout(layout: str) -> tuple[tuple[tuple[str | None, int, bool, tuple[str, ...]], ...], ...]:
    """Returns, for each run of networks, each stage's activation, width, whether it is normed, and its tensors."""
    lines = [line.split() for line in layout.splitlines()]
    return tuple(
        tuple(
            (None if activation == "none" else activation, int(width), normed == "1", tuple(names))
            for _, activation, width, normed, *names in stages
        )
        for _, stages in groupby(lines, key=lambda line: line[0])
    )


def _unflatten(tensors: Sequence[Tensor], layout: str) -> list[PackedMLPs]:
    left = iter(tensors)
    return [tuple(_unflatten_stage(left, *line) for line in stages) for stages in _parse_layout(layout)]


def _unflatten_stage(
    tensors: Iterator[Tensor], activation: str | None, width: int, is_normed: bool, names: Sequence[str]
) -> PackedStage:
    own: dict[str, Any] = {name: next(tensors) if name in names else None for name in PACKED_TENSORS}
    return PackedStage(**own, activation=activation, width=width, is_normed=is_normed)


def _require_fit(x: Tensor, stack: FlatStack, strengths: Tensor) -> None:
    weight = stack.tensors[0]
    if not can_run(x.device):
        raise KernelUnavailable(f"Triton's kernels do not run on {x.device}", hint=f"unset {VARIABLE}")
    if x.dtype not in DTYPES or weight.dtype not in DTYPES:
        raise ValueError(f"a context of {x.dtype} for weights of {weight.dtype}: the kernels know fp16, bf16 and fp32")
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"a context {x.shape[-1]} wide for networks of {weight.shape[-1]}")
    if not x.device == weight.device == strengths.device:
        raise ValueError(f"a context on {x.device}, weights on {weight.device}, strengths on {strengths.device}")
    if strengths.shape != (weight.shape[1], stack.networks):
        raise ValueError(f"strengths {list(strengths.shape)} for {stack.networks} networks of {weight.shape[1]} sides")


@functools.cache
def verified_path(path: str, device: torch.device) -> str:
    """Returns `path`, or the first simpler one that works on `device`; a path that does not is warned of, once."""
    for candidate in FALLBACKS[path]:
        fault = _fault(candidate, device)
        if fault is None:
            return candidate
        warnings.warn(f"hnetkit leaves out its {candidate} kernels: on {device} {fault}", RuntimeWarning, stacklevel=2)
    return "eager"


def _fault(path: str, device: torch.device) -> str | None:
    """Says what is wrong with a path on `device`; None where it computes a small stack right."""
    sides = [[_small_network(10 * side + index, device) for index in range(2)] for side in range(2)]
    x = torch.randn(_TEST_ROWS, _TEST_WIDTH, generator=torch.Generator().manual_seed(0)).to(device, torch.float16)
    strengths = torch.tensor(_TEST_STRENGTHS, device=device)
    networks = [pack(pair, for_kernels=True) for pair in zip(*sides, strict=True)]
    try:
        with torch.no_grad():
            got = apply(x, flatten(arrange(networks, path)), strengths, path)
    except (MemoryError, torch.cuda.OutOfMemoryError):  # says nothing of the kernels, and the caller may make room
        raise
    except Exception as error:  # whatever a compiler or driver of the years to come says
        return f"they fail ({type(error).__name__})"
    for y, mlps, numbers in zip(got, sides, strengths, strict=True):
        truth = reference.apply(x.float(), mlps, numbers)
        if not (y.float() - truth).norm() <= _TEST_LIMIT * (truth - x.float()).norm():
            return "they compute something else than plain torch"
    return None


def _small_network(seed: int, device: torch.device) -> MLPWeights:
    noise = torch.Generator().manual_seed(seed)
    shapes = ((2 * _TEST_WIDTH, _TEST_WIDTH), (_TEST_WIDTH, 2 * _TEST_WIDTH))
    draws = [
        (torch.randn(*shape, generator=noise) / shape[1] ** 0.5, torch.randn(shape[0], generator=noise))
        for shape in shapes
    ]
    (w1, b1), (w2, b2) = ((weight.to(device, torch.float16), bias.to(device, torch.float16)) for weight, bias in draws)
    return (StageWeights(w1, b1, "swish"), StageWeights(w2, b2))
