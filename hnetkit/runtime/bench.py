"""Benchmark of each way to apply a stack on this machine: is it right, and how long does one call of a UNet take?

The UNets are known by their attention layers alone: no model is loaded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hnetkit.errors import IncompatibleNetwork, KernelUnavailable, UsageError, did_you_mean
from hnetkit.kernels import reference
from hnetkit.kernels.activations import activate
from hnetkit.kernels.configs import specialized_tiles
from hnetkit.kernels.dispatch import BF16, FORCED, KERNELS, PATHS, chosen_path, path_on
from hnetkit.kernels.eager import bf16_obstacle
from hnetkit.kernels.executor import StackExecutor, pack_pair
from hnetkit.kernels.gpu import triton_obstacle
from hnetkit.kernels.weights import NORM_EPSILON, MLPWeights
from hnetkit.network import BaseModel, Hypernetwork
from hnetkit.runtime.cuda_graphs import CudaGraphs, Graphs
from hnetkit.runtime.fit import BASE_MODEL_NAME, TEXT_WIDTH
from hnetkit.runtime.stack import read_mlp
from hnetkit.runtime.strength import Kind

AS_A1111 = "as A1111"
"""The plain way that the others are held against: every network anew in every layer, all rounded to the dtype."""

CAPTURED = "captured"
"""The path that hnetkit uses, for all layers in one CUDA graph, as in a captured UNet: without the host's part."""

TEXT_TOKENS = 77
MOST_ROUNDS = 200
_CHECKED_ROWS = 64
_ROUNDING: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""More than rounding explains: of the distance to the mathematics for each network, relative to the context."""

_ROUNDING_OF_PRODUCTS = 1e-2
"""The same with products in bf16 under a sum in fp32."""

Contexts: TypeAlias = tuple[Tensor, Tensor]
"""What K and V get, each ``[rows, width]``."""

Apply: TypeAlias = Callable[[Tensor], Contexts]


BenchItem: TypeAlias = tuple[str, Hypernetwork, float]
"""A network's name, the network, and its strength."""


class BenchLayers(NamedTuple):
    """Attention layers of a UNet with contexts of one shape, ``[rows, width]``, and how many there are."""

    width: int
    kind: Kind
    rows: int
    number: int


class SelfAttentionLevel(NamedTuple):
    """Self-attention layers of one width, after so many halvings of the latents."""

    width: int
    halvings: int
    number: int


class UNetShape(NamedTuple):
    """A UNet by its attention layers.

    Attributes:
        base: the model that it is of.
        size: side of its images in pixels.
        levels: its self-attention layers.
        text_layers: number of its cross-attention layers.
    """

    base: BaseModel
    size: int
    levels: tuple[SelfAttentionLevel, ...]
    text_layers: int

    @property
    def name(self) -> str:
        return BASE_MODEL_NAME[self.base]

    @property
    def text_width(self) -> int:
        return TEXT_WIDTH[self.base]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(sorted({*(level.width for level in self.levels), self.text_width}))

    def layers(self, width: int, height: int, batch: int) -> list[BenchLayers]:
        """Returns the layers for `batch` images of ``width x height`` pixels in one call."""
        layers = []
        for level in self.levels:
            rows, columns = height // 8, width // 8
            for _ in range(level.halvings):
                rows, columns = (rows + 1) // 2, (columns + 1) // 2
            layers.append(BenchLayers(level.width, "self", batch * rows * columns, level.number))
        return [*layers, BenchLayers(self.text_width, "cross", batch * TEXT_TOKENS, self.text_layers)]


_SD_LEVELS = (
    SelfAttentionLevel(320, 0, 5),
    SelfAttentionLevel(640, 1, 5),
    SelfAttentionLevel(1280, 2, 5),
    SelfAttentionLevel(1280, 3, 1),
)
UNETS: Mapping[BaseModel, UNetShape] = {
    "sd1": UNetShape("sd1", 512, _SD_LEVELS, 16),
    "sd2": UNetShape("sd2", 768, _SD_LEVELS, 16),
    "sdxl": UNetShape("sdxl", 1024, (SelfAttentionLevel(640, 1, 10), SelfAttentionLevel(1280, 2, 60)), 70),
}


def base_of(items: Sequence[BenchItem]) -> BaseModel:
    """Returns the base model that networks are made for, SD 1 where they do not show it.

    Raises:
        IncompatibleNetwork: they are made for several, or for one that is not in `UNETS`.
    """
    for base in UNETS:
        if all(base in _bases(network) for _, network, _ in items):
            return base
    if len(items) == 1:
        require_unet(items, "sd1")
    made_for = {_made_for(network): f"{name} for {_made_for(network)}" for name, network, _ in items}
    raise IncompatibleNetwork(
        f"no model takes all of them: {', '.join(made_for.values())}", hint="measure them one by one"
    )


def require_unet(items: Iterable[BenchItem], base: BaseModel) -> UNetShape:
    """Returns the UNet of a base model.

    Raises:
        IncompatibleNetwork: a network is made for another, or has none of its widths.
    """
    unet = UNETS[base]
    for name, network, _ in items:
        bases = _bases(network)
        if base not in bases:
            hint = f"--base-model {' or '.join(bases)}" if bases else f"bench knows {', '.join(UNETS)}"
            raise IncompatibleNetwork(f"{name} is made for {_made_for(network)}, not for {unet.name}", hint=hint)
        if not set(network.widths) & set(unet.widths):
            fitting = [other for other in bases if set(network.widths) & set(UNETS[other].widths)]
            raise IncompatibleNetwork(
                f"{name} reaches no layer: its widths are {', '.join(map(str, network.widths))}, "
                f"those of {unet.name} are {', '.join(map(str, unet.widths))}",
                hint=f"--base-model {fitting[0]}"
                if fitting
                else f"no model that bench knows ({', '.join(UNETS)}) has them",
            )
    return unet


def _bases(network: Hypernetwork) -> tuple[BaseModel, ...]:
    """Returns the base models of `UNETS` that a network may be made for."""
    base = network.base_model
    several: Mapping[BaseModel, tuple[BaseModel, ...]] = {"unknown": tuple(UNETS), "sd1-or-sd2": ("sd1", "sd2")}
    return several.get(base, (base,) if base in UNETS else ())


def _made_for(network: Hypernetwork) -> str:
    """Returns the name of the base models that a network may be made for."""
    return BASE_MODEL_NAME.get(network.base_model, "any model")


@dataclass
class PathTiming:
    """What was measured of one path.

    Attributes:
        path: one of `hnetkit.kernels.dispatch.PATHS`, `AS_A1111` or `CAPTURED`.
        error: of what the networks add, relative to it: the largest over all layers, K and V; None where it gave no
            numbers.
        launches: of kernels in one UNet call; None for plain torch.
        fault: what is wrong with it; then it was not timed.
        times: of one UNet call, in ms, one for each round.
    """

    path: str
    error: float | None = None
    launches: int | None = None
    fault: str | None = None
    times: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float | None:
        return statistics.median(self.times) if self.times else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The first and the last tenth of the times, or of fewer than ten the lowest and the highest; None of one."""
        times = sorted(self.times)
        tenth = len(times) // 10
        return (times[tenth], times[-1 - tenth]) if len(times) > 1 else None


def runnable_paths(
    requested: Sequence[str], device: torch.device, dtype: torch.dtype
) -> tuple[list[str], dict[str, str]]:
    """Returns the paths to measure, and by name why others are left out.

    Args:
        requested: names of paths; none for all that can run.
        device, dtype: where the work would be done, and in what.

    Raises:
        UsageError: there is no such path.
        KernelUnavailable: a path that was requested cannot be measured here.
    """
    known = (*PATHS, CAPTURED)
    for path in requested:
        if path not in (*known, *FORCED[1:]):
            near = did_you_mean(path, known)
            hint = f"--path {near}" if near else f"paths are {', '.join(known)}"
            raise UsageError(f"--path {path}: no such path", hint=hint)
        reason = _obstacle(path, device, dtype)
        if reason:
            raise KernelUnavailable(f"--path {path}: {reason}", hint="without --path, all that can run are measured")
    left_out = {path: reason for path in known if not requested and (reason := _obstacle(path, device, dtype))}
    return [path for path in known if path in (requested or known) and path not in left_out], left_out


def measure(
    items: Sequence[BenchItem],
    layers: Sequence[BenchLayers],
    paths: Sequence[str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
    graphs: type[Graphs] = CudaGraphs,
) -> list[PathTiming]:
    """Measures `AS_A1111` and `paths`, one application for each kind of layer, all paths in turn in every round.

    `CAPTURED` is measured whole: a graph makes all applications of a UNet call.

    Args:
        items: the stack, in order.
        layers: what a UNet call applies it to; those whose width no network has are left out.
        paths: of `runnable_paths`.
        device, dtype: where the work is done, and what its contexts and weights are.
        seconds: no round begins that would not end within them, except the first.
        progress: called with the seconds that have passed and `seconds`.
        graphs: what `CAPTURED` is captured by.

    Returns:
        A result for each path, `AS_A1111` first.
    """
    started = time.monotonic()
    results = [PathTiming(path) for path in (AS_A1111, *paths)]
    with torch.no_grad():
        benches = _layer_benches(items, layers, paths, device, dtype)
        for bench in benches:
            progress(int(time.monotonic() - started), int(seconds))
            bench.check(results)
        step = _CapturedStep(benches, results, device, graphs)
        right = [result for result in results if result.fault is None]
        longest = 0.0
        for number in range(MOST_ROUNDS if right else 0):
            before = time.monotonic()
            if number and before - started + longest > seconds:
                break
            first = number % len(right)  # another path begins each round: the machine warms up or slows down for all
            for result in (*right[first:], *right[:first]):
                progress(int(time.monotonic() - started), int(seconds))
                if result.path == CAPTURED:
                    result.times.append(step.milliseconds())
                else:
                    result.times.append(sum(bench.milliseconds(result.path) for bench in benches))
            longest = max(longest, time.monotonic() - before)
    return results


class _CapturedStep:
    """All applications of a UNet call as one graph, where `CAPTURED` is among the results and right so far."""

    def __init__(
        self, benches: Sequence[_LayersBench], results: Iterable[PathTiming], device: torch.device, kind: type[Graphs]
    ) -> None:
        self._benches, self._device = benches, device
        for result in results:
            if result.path == CAPTURED and result.fault is None:
                try:
                    self._capture(kind(device), result)
                except Exception as error:  # of a driver or an allocator: the other paths are still measured
                    result.fault = f"fails: {type(error).__name__}"

    def _capture(self, graphs: Graphs, result: PathTiming) -> None:
        expected = graphs.warm(self._contexts)
        self._graphs = graphs
        self._graph, self._outputs = graphs.record(self._contexts)
        replayed = self._replay()
        if not all(torch.equal(*pair) for pair in zip(replayed, expected, strict=True)):
            result.fault = "wrong: its graph gives other numbers than its launches"

    def _contexts(self) -> list[Tensor]:
        """Returns K's and V's contexts of one of each kind of layer, after all of them were computed."""
        return [context for bench in self._benches for context in bench.all_applied(CAPTURED)]

    def _replay(self) -> list[Tensor]:
        return self._graphs.replay(self._graph, lambda: None, lambda: self._outputs)

    def milliseconds(self) -> float:
        return _milliseconds(self._replay, self._device)


class _LayersBench:
    """Layers with like contexts, the stack for their width, and one such context."""

    def __init__(self, layers: BenchLayers, stack: _WidthStack, device: torch.device, dtype: torch.dtype) -> None:
        noise = torch.Generator().manual_seed(layers.rows)
        self.layers = layers
        self._stack = stack
        self._x = torch.randn(layers.rows, layers.width, generator=noise).to(device, dtype)

    def check(self, results: Iterable[PathTiming]) -> None:
        """Notes each path's distance from the mathematics, what is wrong with it, and its launches; `AS_A1111` first.

        A path may be off by twice as much as A1111's way is, and by more with products in bf16. This also warms all of
        them up.
        """
        x, stack = self._x, self._stack
        sample = torch.linspace(0, len(x) - 1, min(len(x), _CHECKED_ROWS), device=x.device).long()
        rows = x[sample].float()
        truths = [reference.apply(rows, side, stack.strengths[number]) for number, side in enumerate(stack.sides)]
        terms = [len(side) * _largest(rows, y) for side, y in zip(stack.sides, truths, strict=True)]
        limits = [_ROUNDING[x.dtype] * term for term in terms]
        of_bf16 = [_ROUNDING_OF_PRODUCTS * term for term in terms]
        for result in results:
            if result.fault is not None:
                continue
            try:
                outputs = stack.applies[result.path](x)
                is_finite = all(bool(torch.isfinite(y).all()) for y in outputs)
            except Exception as error:  # of a compiler, a driver or an allocator: the other paths are still measured
                result.fault = f"fails: {type(error).__name__}"
                continue
            if not is_finite:
                result.fault = f"wrong: not finite at width {self.layers.width}"
                continue
            allowed = of_bf16 if result.path == BF16 else limits
            for side, (y, truth) in enumerate(zip(outputs, truths, strict=True)):
                off, added = _norm(y[sample].float() - truth), _norm(truth - rows)
                result.error = max(result.error or 0.0, off / (added or _norm(truth)) if off else 0.0)
                if off > allowed[side]:
                    result.fault = f"wrong: off by more than rounding at width {self.layers.width}"
                elif result.path == AS_A1111:
                    limits[side] = 2 * off + 1e-5 * added
            launches = stack.launches(result.path)
            if launches is not None:
                result.launches = (result.launches or 0) + launches * _applications(self.layers, result.path)

    def all_applied(self, path: str) -> Contexts:
        """Makes all applications of one UNet call, and returns what the last one gives."""
        for _ in range(_applications(self.layers, path)):
            contexts = self._stack.applies[path](self._x)
        return contexts

    def milliseconds(self, path: str) -> float:
        """Returns the time that all these layers take in one UNet call, from one application."""
        apply, x = self._stack.applies[path], self._x
        return _applications(self.layers, path) * _milliseconds(lambda: apply(x), x.device)


class _WidthStack:
    """The networks that have one width, ready for every path.

    Attributes:
        sides: their MLPs of K and of V, in stacking order.
        strengths: ``[2, networks]``, fp32.
        applies: by path, what gives the contexts of K and V for ``[rows, width]``.
    """

    def __init__(
        self, width: int, items: Sequence[BenchItem], paths: Sequence[str], device: torch.device, dtype: torch.dtype
    ) -> None:
        own = [(network, number) for _, network, number in items if width in network.mlps]
        self._device = device
        self._numbers = [number for _, number in own]
        self.strengths = torch.tensor([self._numbers] * 2, dtype=torch.float32, device=device)
        mlps = [tuple(read_mlp(mlp, device, dtype, net.path) for mlp in net.mlps[width]) for net, _ in own]
        kinds = {path: _path_of(path, device, dtype) for path in paths}
        forms = {kind: "grouped" if kind in KERNELS else BF16 if kind == BF16 else "eager" for kind in kinds.values()}
        packed = {form: [pack_pair(key, value, form) for key, value in mlps] for form in {"eager", *forms.values()}}
        self._executors = {path: StackExecutor(packed[forms[kind]], kind) for path, kind in kinds.items()}
        shared = StackExecutor(packed["eager"], "eager")
        self.sides = [shared.mlps(side) for side in range(2)]
        self.applies: dict[str, Apply] = {path: self._apply_by(executor) for path, executor in self._executors.items()}
        self.applies[AS_A1111] = lambda x: (self._as_a1111(x, 0), self._as_a1111(x, 1))

    def launches(self, path: str) -> int | None:
        return self._executors[path].launches(self._device) if path in self._executors else None

    def _apply_by(self, executor: StackExecutor) -> Apply:
        active = [[True] * len(self._numbers)] * 2
        return lambda x: executor.apply(x, self.strengths, active)

    def _as_a1111(self, x: Tensor, side: int) -> Tensor:
        for mlp, number in zip(self.sides[side], self._numbers, strict=True):
            x = x + _plain_mlp(x, mlp) * number
        return x


def _plain_mlp(h: Tensor, mlp: MLPWeights) -> Tensor:
    """Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/hypernetworks/hypernetwork.py (behavior only)."""
    for stage in mlp:
        h = F.linear(h, stage.weight, stage.bias)
        if stage.activation is not None:
            h = activate(h, stage.activation, stage.slope, inplace=False)
        if stage.norm_weight is not None:
            h = F.layer_norm(h, (h.shape[-1],), stage.norm_weight, stage.norm_bias, NORM_EPSILON)
    return h


def _layer_benches(
    items: Sequence[BenchItem],
    layers: Iterable[BenchLayers],
    paths: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> list[_LayersBench]:
    have = {width for _, network, _ in items for width in network.widths}
    reached = [each for each in layers if each.width in have]
    stacks = {width: _WidthStack(width, items, paths, device, dtype) for width in {each.width for each in reached}}
    return [_LayersBench(each, stacks[each.width], device, dtype) for each in reached]


def _applications(layers: BenchLayers, path: str) -> int:
    """Returns how often `path` applies the stack for these layers: hnetkit applies it to the text once for all."""
    return 1 if layers.kind == "cross" and path != AS_A1111 else layers.number


def _largest(x: Tensor, y: Tensor) -> float:
    return max(_norm(x), _norm(y), _norm(y - x))


def _norm(tensor: Tensor) -> float:
    return float(tensor.norm())


def _milliseconds(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        step()  # the GPU is at work when the clock starts, as it is in a UNet
        start.record()
        step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))
    _finish(device)
    started = time.perf_counter()
    step()
    _finish(device)
    return 1e3 * (time.perf_counter() - started)


def _finish(device: torch.device) -> None:
    if device.type == "mps":
        torch.mps.synchronize()


def _path_of(path: str, device: torch.device, dtype: torch.dtype) -> str:
    """Returns the path of the kernels that is measured: for `CAPTURED`, the one that hnetkit uses."""
    return path_on(chosen_path(device), device, dtype) if path == CAPTURED else path


def _obstacle(path: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Says why a path cannot be measured on `device`."""
    if path == CAPTURED:
        return None if device.type == "cuda" else "CUDA graphs are for CUDA devices"
    if path not in PATHS:
        return "this version has no such path"
    if path == BF16:
        if device.type != "cpu" or dtype != torch.float32:
            return "products in bf16 are for models in fp32 on a CPU"
        return bf16_obstacle()
    if path not in KERNELS:
        return None
    why = triton_obstacle()
    if why is not None:
        return why
    from hnetkit.kernels.gpu.device import can_run, capability_of, is_interpreted

    if is_interpreted():
        return "Triton's kernels are interpreted here (TRITON_INTERPRET), and such times say nothing"
    if not can_run(device):
        return "Triton's kernels run on NVIDIA and AMD GPUs alone"
    if path == "specialized" and specialized_tiles(capability_of(device)) is None:
        return "this kernel is for NVIDIA GPUs of compute capability 9.0"
    return None if path_on(path, device, dtype) == path else "in fp32 plain torch is quicker, and stands in for it"
