"""A stack by Triton kernels: launches of its own, or a custom op where `torch.compile` or autograd look on.

Every run of networks of one build goes to the kernels of the path where these fit, else to those of the next simpler
one: specialized, fused, linear. Streams and devices are the caller's: launches go to the current stream of x's device.

A kernel that fails is replaced by a simpler path. Before a GPU's kernels are used, they compute one small stack that is
compared with plain torch (`verified_path`). What Triton cannot compile later is not tried again in this process, and a
warning says so once.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError
from triton.runtime.errors import InterpreterError

from hnetkit.errors import KernelUnavailable
from hnetkit.kernels import activations, eager, reference
from hnetkit.kernels.configs import FALLBACKS, VARIABLE, FusedTiles, is_forced
from hnetkit.kernels.gpu import backward, fused, linear, specialized
from hnetkit.kernels.gpu.device import can_run, is_interpreted
from hnetkit.kernels.gpu.plan import Plan, Recording, launch
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

_ACTIVATIONS = (None, *sorted(activations.NAMES))
_MOST_PLANS = 64

_TEST_WIDTH, _TEST_ROWS, _TEST_LIMIT = 320, 65, 1e-2
_TEST_STRENGTHS = ((0.7, -0.4), (0.3, 0.9))
_TEST_CALLS = 1 if is_interpreted() else 2  # the interpreter has no plans
_RACE_ROWS, _RACES, _CACHE = 8257, 200, 96 << 20
"""Rows that keep all of a GPU busy, with some left over; runs; and bytes that no GPU's second cache holds besides."""


class KernelStack:
    """Networks of one width as the kernels of a path apply them, with the plans of their launches.

    Args:
        networks: in stacking order, on one device, all of one dtype: the products' dtype.
        path: ``"grouped"``, ``"fused"`` or ``"specialized"``.
    """

    def __init__(self, networks: Iterable[PackedMLPs], path: str) -> None:
        self.path = path
        self.networks = arrange(networks, path)
        self._count = sum(len(packed[0].weight) for packed in self.networks)
        self._tensors = [tensor for packed in self.networks for stage in packed for tensor in stage.tensors().values()]
        self._dtype = self._tensors[0].dtype
        self._builds = [number for packed in self.networks for number in _numbers_of(packed)]
        self._plans: dict[tuple[object, ...], Plan] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Returns all but the plans: a copy has its weights elsewhere."""
        return {**vars(self), "_plans": {}}

    @property
    def supports_gradients(self) -> bool:
        """Whether gradients flow through `apply`, to x and to weights and biases."""
        return backward.supports_gradients(self.networks)

    def launches(self, device: torch.device) -> int:
        """Returns how many kernels `apply` launches on `device`."""
        return sum(_kernels_for(packed, self.path, device)[0].launches(packed) for packed in self.networks)

    def apply(self, x: Tensor, strengths: Tensor) -> Tensor:
        """Returns what K and V get: `x` after each ``y = y + strength * MLP(y)`` in order, for each side.

        Args:
            x: ``[..., d]``, any strides; never written to.
            strengths: ``[sides, networks]``, fp32, on x's device. A network of strength 0 costs a copy.

        Returns:
            ``[sides, ..., d]`` of x's dtype.

        Raises:
            KernelUnavailable: x is not where Triton can reach it.
            ValueError: x has another width or device than the networks, or a dtype that the kernels do not know.
        """
        is_empty = not x.numel()
        if is_empty or torch.compiler.is_compiling() or _is_watched(x, self._tensors):
            self._require_fit(x, strengths)
            if is_empty:
                return x.new_empty(len(strengths), *x.shape)
            result: Tensor = _stack(x, strengths, self._tensors, self._builds, self.path)
            return result
        return self.run(x, strengths)

    def run(self, x: Tensor, strengths: Tensor) -> Tensor:
        """Launches the kernels, by the plan of an earlier call of this kind where there is one; see `apply`."""
        residual = x.contiguous()
        rows = residual.to(self._dtype) if x.dtype != self._dtype else residual
        # all that Triton compiles for; and the places of the weights, which offloading moves
        kind = (
            x.shape,
            x.dtype,
            x.device,
            strengths.shape,
            strengths.stride(0),
            strengths.device,
            rows.data_ptr() % 16,
            residual.data_ptr() % 16,
            strengths.data_ptr() % 16,
            linear.product_precision(self._dtype, x.device),
            *map(Tensor.data_ptr, self._tensors),
        )
        plan = self._plans.get(kind)
        if plan is None:
            return self._first_run(kind, x, strengths)
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            return plan.run((rows, residual, strengths))

    def _first_run(self, kind: tuple[object, ...], x: Tensor, strengths: Tensor) -> Tensor:
        """Launches by the first path that compiles, and keeps the plan of it; by plain torch where none does."""
        self._require_fit(x, strengths)
        start = KernelState.of(x, self._dtype)
        for candidate in FALLBACKS[self.path]:
            case = (candidate, x.device, x.dtype, *self._builds)
            if case in _failed:
                continue
            recording = Recording()
            try:
                with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
                    state = start._replace(launch=recording.launch)
                    result = _launch(state, strengths, self.networks, candidate).view(len(strengths), *x.shape)
            except Exception as error:
                if not _is_compiler_error(error):
                    raise
                if is_forced(self.path):
                    raise KernelUnavailable(f"{self.path}: {error}", hint=f"unset {VARIABLE}") from error
                _failed.add(case)
                warnings.warn(f"hnetkit leaves out its {candidate} kernels: {error}", RuntimeWarning, stacklevel=2)
                continue
            plan = recording.plan((start.rows, start.residual, strengths), self._tensors, result)
            if plan is not None:
                if len(self._plans) >= _MOST_PLANS:
                    self._plans.clear()
                self._plans[kind] = plan
            return result
        sides = enumerate(strengths)
        return torch.stack([eager.apply(x, _plain(self.networks, side), numbers) for side, numbers in sides])

    def _require_fit(self, x: Tensor, strengths: Tensor) -> None:
        weight = self._tensors[0]
        if not can_run(x.device):
            raise KernelUnavailable(f"Triton's kernels do not run on {x.device}", hint=f"unset {VARIABLE}")
        if x.dtype not in DTYPES or weight.dtype not in DTYPES:
            raise ValueError(
                f"a context of {x.dtype} for weights of {weight.dtype}: the kernels know fp16, bf16 and fp32"
            )
        if x.shape[-1] != weight.shape[-1]:
            raise ValueError(f"a context {x.shape[-1]} wide for networks of {weight.shape[-1]}")
        if not x.device == weight.device == strengths.device:
            raise ValueError(f"a context on {x.device}, weights on {weight.device}, strengths on {strengths.device}")
        if strengths.shape != (weight.shape[1], self._count):
            raise ValueError(f"strengths {list(strengths.shape)} for {self._count} networks of {weight.shape[1]} sides")


def arrange(networks: Iterable[PackedMLPs], path: str) -> list[PackedMLPs]:
    """Returns a stack as the kernels of `path` take it: what the fused kernel applies in one launch becomes one."""
    if "fused" not in FALLBACKS[path]:
        return list(networks)
    runs: list[PackedMLPs] = []
    for is_fused, run in groupby(networks, key=lambda packed: fused.fits(packed) and _packed_build(packed)):
        members = list(run)
        runs += [merge(members)] if is_fused and len(members) > 1 else members
    return runs


def _is_watched(x: Tensor, weights: Iterable[Tensor]) -> bool:
    """Whether something other than its values counts: gradients, a trace, or a tensor that stands for others."""
    if type(x) is not Tensor or torch._C._get_tracing_state() is not None:
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))


def _kernels_for(networks: PackedMLPs, path: str, device: torch.device) -> tuple[Any, FusedTiles | None]:
    """Returns the module that applies networks of one build, and tiles for it; the linear one has its own."""
    for name, module in (("specialized", specialized), ("fused", fused)):
        tiles = module.tiles_for(networks, device) if name in FALLBACKS[path] else None
        if tiles is not None:
            return module, tiles
    return linear, None


def _launch(state: KernelState, strengths: Tensor, networks: Sequence[PackedMLPs], path: str) -> Tensor:
    if path == "specialized" and state.rows.data_ptr() % 16:
        path = "fused"  # the copy engine would not take the rows
    if state.dtype != state.rows.dtype:
        path = "grouped"
    done, total = 0, strengths.shape[1]
    for packed in networks:
        before, done = done, done + len(packed[0].weight)
        numbers, is_last = strengths[:, before:done], done == total
        module, tiles = _kernels_for(packed, path, strengths.device)
        if tiles is None:
            state = linear.run(state, packed, numbers, is_last=is_last)
        else:
            state = module.run(state, packed, numbers, tiles, is_last=is_last)
    return state.rows


_failed: set[tuple[object, ...]] = set()
"""Path, device, dtype and builds of what Triton could not compile in this process."""


def _plain(networks: Sequence[PackedMLPs], side: int) -> list[MLPWeights]:
    return [unpack(packed, side, index) for packed in networks for index in range(len(packed[0].weight))]


def _is_compiler_error(error: Exception) -> bool:
    """Whether Triton could not make or load a kernel: nothing was launched."""
    if isinstance(error, InterpreterError):
        return False
    return isinstance(error, TritonError) or (type(error) is RuntimeError and "PassManager" in str(error))


@torch.library.custom_op("hnetkit::stack", mutates_args=())
def _stack(x: Tensor, strengths: Tensor, tensors: list[Tensor], builds: list[int], path: str) -> Tensor:
    return KernelStack(_networks_of(tensors, builds), path).run(x, strengths)


@_stack.register_fake
def _fake_stack(x: Tensor, strengths: Tensor, tensors: list[Tensor], builds: list[int], path: str) -> Tensor:
    return x.new_empty(len(strengths), *x.shape)


@torch.library.custom_op("hnetkit::stack_gradients", mutates_args=())
def _gradients(
    gradient: Tensor, x: Tensor, strengths: Tensor, tensors: list[Tensor], builds: list[int]
) -> list[Tensor]:
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        of_x, of_weights = backward.gradients(gradient, x, strengths, _networks_of(tensors, builds))
    return [of_x, *of_weights]


@_gradients.register_fake
def _fake_gradients(
    gradient: Tensor, x: Tensor, strengths: Tensor, tensors: list[Tensor], builds: list[int]
) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (x, *tensors)]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, strengths, tensors, ctx.builds, _ = inputs
    ctx.save_for_backward(x, strengths, *tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, strengths, *tensors = ctx.saved_tensors
    of_x, *of_tensors = _gradients(gradient, x, strengths, tensors, ctx.builds)
    return of_x, None, of_tensors, None, None


_stack.register_autograd(_backward, setup_context=_save_for_backward)


def _packed_build(packed: PackedMLPs) -> tuple[object, ...]:
    return tuple((stage.weight.shape, stage.activation, stage.is_normed) for stage in packed)


def _numbers_of(packed: PackedMLPs) -> Iterator[int]:
    """Yields how a custom op is told what its tensors are: how many stages there are, and four numbers for each."""
    yield len(packed)
    for stage in packed:
        own = stage.tensors()
        has = sum(1 << place for place, name in enumerate(PACKED_TENSORS) if name in own)
        yield from (_ACTIVATIONS.index(stage.activation), stage.width, int(stage.is_normed), has)


def _networks_of(tensors: Iterable[Tensor], builds: Iterable[int]) -> list[PackedMLPs]:
    left, numbers = iter(tensors), iter(builds)
    return [tuple(_stage_of(left, *islice(numbers, 4)) for _ in range(count)) for count in numbers]


def _stage_of(tensors: Iterator[Tensor], activation: int, width: int, is_normed: int, has: int) -> PackedStage:
    own: dict[str, Any] = {name: next(tensors) if has >> i & 1 else None for i, name in enumerate(PACKED_TENSORS)}
    return PackedStage(**own, activation=_ACTIVATIONS[activation], width=width, is_normed=bool(is_normed))


def verified_path(path: str, device: torch.device) -> str:
    """Returns `path`, or the first simpler one that works on `device`; a path that does not is warned of, once."""
    return _verified_path(path, device, linear.product_precision(torch.float16, device))


@functools.cache
def _verified_path(path: str, device: torch.device, precision: str) -> str:
    for candidate in FALLBACKS[path]:
        fault = fault_of(candidate, device)
        if fault is None:
            return candidate
        warnings.warn(
            f"hnetkit leaves out its {candidate} kernels: on {device} they {fault}", RuntimeWarning, stacklevel=2
        )
    return "eager"


def fault_of(path: str, device: torch.device) -> str | None:
    """Says what the kernels of a path do wrong on `device`; None where they compute a small stack right.

    Once as it is launched first, and once by the plan that later calls take; again if torch's settings ask for another
    way to compute products.
    """
    return _fault_of(path, device, linear.product_precision(torch.float16, device))


@functools.cache
def _fault_of(path: str, device: torch.device, precision: str) -> str | None:
    sides = [[_small_network(10 * side + index, device) for index in range(2)] for side in range(2)]
    rows = _RACE_ROWS if path == "specialized" else _TEST_ROWS
    x = torch.randn(rows, _TEST_WIDTH, generator=torch.Generator().manual_seed(0)).to(device, torch.float16)
    strengths = torch.tensor(_TEST_STRENGTHS, device=device)
    networks = [pack(pair, for_kernels=True) for pair in zip(*sides, strict=True)]
    try:
        with torch.no_grad():
            stack = KernelStack(networks, path)
            contexts = torch.cat([stack.apply(x, strengths) for _ in range(_TEST_CALLS)])
            if path == "specialized" and not _is_steady(contexts[: len(sides)], x, networks, strengths):
                return "compute one thing now and another then"
    except (MemoryError, torch.cuda.OutOfMemoryError):  # says nothing of the kernels, and the caller may make room
        raise
    except Exception as error:  # whatever a compiler or driver of the years to come says
        return f"fail ({type(error).__name__})"
    for y, mlps, numbers in zip(contexts, sides * _TEST_CALLS, torch.cat([strengths] * _TEST_CALLS), strict=True):
        truth = reference.apply(x.float(), mlps, numbers)
        if not (y.float() - truth).norm() <= _TEST_LIMIT * (truth - x.float()).norm():
            return "compute something else than plain torch"
    return None


def _is_steady(got: Tensor, x: Tensor, networks: Sequence[PackedMLPs], strengths: Tensor) -> bool:
    """Whether specialized warps, which wait for each other by barriers of their own, give the same bits in every run.

    What a run writes to holds NaN before it, and the second cache none of what it reads.
    """

    def poisoned(kernel: Any, grid: tuple[int, int], *arguments: Any, **constants: Any) -> Any:
        dict(zip(kernel.arg_names, arguments, strict=False))["out_ptr"].fill_(torch.nan)
        return launch(kernel, grid, *arguments, **constants)

    runs, state = arrange(networks, "specialized"), KernelState.of(x, x.dtype, poisoned)
    other = torch.empty(_CACHE, dtype=torch.int8, device=x.device)
    is_steady = torch.ones((), dtype=torch.bool, device=x.device)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        for _ in range(_RACES):
            other.zero_()
            is_steady &= (_launch(state, strengths, runs, "specialized") == got).all()
    return bool(is_steady)


def _small_network(seed: int, device: torch.device) -> MLPWeights:
    noise = torch.Generator().manual_seed(seed)
    shapes = ((2 * _TEST_WIDTH, _TEST_WIDTH), (_TEST_WIDTH, 2 * _TEST_WIDTH))
    draws = [
        (torch.randn(*shape, generator=noise) / shape[1] ** 0.5, torch.randn(shape[0], generator=noise))
        for shape in shapes
    ]
    (w1, b1), (w2, b2) = ((weight.to(device, torch.float16), bias.to(device, torch.float16)) for weight, bias in draws)
    return (StageWeights(w1, b1, "swish"), StageWeights(w2, b2))
