"""A UNet as CUDA graphs: one for each set of shapes, captured while it is used, and replayed in place of its calls.

A call of Stable Diffusion's UNet launches some thousand kernels, and the host is slower at that than a fast GPU is at
running them. A graph is launched at once. It repeats the same kernels on the same memory, so a call is copied into
buffers that stay, and what it gives is copied out. The first call with its shapes runs as it would anyway, which also
warms up what is captured at the second.

What a graph depends on is compared before each replay: the classes, attributes, hooks and weights of all modules, and
what hypernetworks do on them. If anything differs, the graphs are dropped. Strengths are in buffers that graphs read:
they change without that.
"""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hnetkit.runtime.layers import unet_of
from hnetkit.runtime.unet_state import UNetState
from hnetkit.text import counted

T = TypeVar("T")

MOST_CHANGES = 8
"""How many times a UNet may change before a graph of it was replayed even once."""

SHAPES = 8
"""How many graphs of a UNet are kept: that of the shapes which were not called for the longest time goes first."""

_SLOT = "_compiled_call_impl"
"""The attribute in which a module has what is called in its place: by `nn.Module.compile`, and by a capture."""

_TIMESTEP = "timestep"
_OFFLOADED = ("_hf_hook", "_diffusers_hook")

Structure: TypeAlias = Any
"""What a value is without its tensors, to be compared."""


def capture(pipe: Any) -> Capture:
    """Has a pipeline's UNet run as CUDA graphs, with networks, LoRAs and all else that is on it. Compile it before.

    Each set of shapes is captured at its second call, and replayed from then on: other prompts, strengths and windows
    of steps, and other pipelines on the same UNet need no new one. A change of its weights, LoRAs, attention processors
    or hooks does. Calls with gradients run as before, and so do all calls of a UNet that cannot be captured; a warning
    says why, once.

    Args:
        pipe: a `StableDiffusionPipeline`, a `StableDiffusionXLPipeline`, or anything else with such a ``unet``.

    Returns:
        The capture, which is also a context manager: at the end of its block the UNet is as before. A UNet that is
        captured already stays so.

    Raises:
        UsageError: `pipe` has no UNet.

    Example::

        hnetkit.capture(pipe)
        with hnetkit.capture(pipe):
            image = pipe("a house").images[0]
    """
    return captured_by(CudaGraphs, pipe)


def release(pipe: Any) -> None:
    """Has a captured UNet run as before, and frees the memory of its graphs; nothing where it is not captured."""
    unet_of(pipe)
    found = _capture_of(_called_module(pipe))
    if found is not None:
        found.release()


def forget_graphs(pipe: Any) -> bool:
    """Frees the memory of a captured UNet's graphs; it stays captured. Returns whether there was anything to free."""
    found = _capture_of(_called_module(pipe))
    return found is not None and found.forget()


def captured_by(graphs: type[Graphs], pipe: Any) -> Capture:
    """Returns the capture of a pipeline's UNet, made by `graphs` where there is none yet; see `capture`."""
    unet_of(pipe)
    module = _called_module(pipe)
    made = _capture_of(module) or Capture(module, graphs)
    made.holders += 1
    return made


def _called_module(pipe: Any) -> nn.Module:
    """Returns the module that a pipeline calls: the UNet, or what ``torch.compile`` made of it."""
    module: nn.Module = getattr(pipe, "unet", pipe)
    return module


def _capture_of(module: nn.Module) -> Capture | None:
    found = vars(module).get(_SLOT)
    return found if isinstance(found, Capture) else None


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


class CapturedGraph(Protocol):
    """A graph: torch's."""

    def replay(self) -> None: ...

    def reset(self) -> None: ...


class Capture:
    """The graphs of a UNet. It stands where `nn.Module.compile` puts what is called in place of a module.

    Attributes:
        captures: how many graphs were captured so far.
        obstacle: why the UNet cannot be captured as it is now; None where it can.
        holders: how many times it was asked for; see `capture`.
    """

    def __init__(self, module: nn.Module, graphs: type[Graphs]) -> None:
        self.captures = 0
        self.obstacle: str | None = None
        self.holders = 0
        self._module = weakref.ref(module)  # the module holds its capture
        self._compiled: Callable[..., Any] | None = vars(module).get(_SLOT)
        self._kind = graphs
        self._graphs: Graphs | None = None
        self._device = torch.device("cpu")
        self._is_compiled = False
        self._calls: dict[Structure, _CapturedCall] = {}
        self._seen: Fingerprint | None = None
        self._changes = 0
        self._has_given_up = False
        self._said: set[str] = set()
        self._unsaid: list[str] = []
        self._lock = threading.RLock()
        vars(module)[_SLOT] = self  # not by setattr: a compiled module gives its attributes to the one inside of it

    def __repr__(self) -> str:
        return f"<Capture of {counted(self.shapes, 'graph')} in {self.memory:,} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the UNet is not captured."""
        return (type(None), ())

    @property
    def memory(self) -> int:
        """Bytes on the device that its graphs hold, beside the weights."""
        buffers = sum(buffer.nbytes for call in self._calls.values() for buffer in call.buffers)
        return buffers + (self._graphs.memory if self._graphs is not None else 0)

    @property
    def shapes(self) -> int:
        """How many graphs are kept."""
        return sum(call.graph is not None for call in self._calls.values())

    def forget(self) -> bool:
        """Frees the memory of the graphs, which are captured again when they are wanted; False if there was none."""
        with self._lock:
            had_graphs = self.shapes > 0
            self._drop_all()
        return had_graphs

    def release(self) -> None:
        """Has the UNet run as before, and frees the memory of the graphs."""
        with self._lock:
            module = self._module()
            if module is not None and vars(module).get(_SLOT) is self:
                del vars(module)[_SLOT]
                if self._compiled is not None:
                    vars(module)[_SLOT] = self._compiled
            self._drop_all()
            self._graphs, self._seen, self.holders = None, None, 0

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.holders -= 1
        if self.holders == 0:
            self.release()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Calls the UNet: by its graph where there is one for this call."""
        if self._has_given_up or _is_traced_or_trained():
            return self._run(arguments, options)
        with self._lock:
            call, tensors = self._call_for(arguments, options)
            if call is not None:
                output = self._replayed(call, tensors) if call.is_warm else self._warmed(call, tensors)
            unsaid, self._unsaid = self._unsaid, []
        for obstacle in unsaid:
            warnings.warn(f"this UNet runs without CUDA graphs: {obstacle}", RuntimeWarning, stacklevel=3)
        return output if call is not None else self._run(arguments, options)

    def _run(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Calls the UNet without a graph."""
        module: Any = self._module()
        return (self._compiled or module._call_impl)(*arguments, **options)

    def _call_for(
        self, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[_CapturedCall | None, list[Tensor]]:
        """Returns what is captured for calls with these shapes, and this call's tensors; None where nothing can be."""
        module: Any = self._module()
        unet = unet_of(module)
        self._look_at(module, unet)
        obstacle = self.obstacle or _obstacle_of_this_call()
        tensors: list[Tensor] = []
        if self._has_given_up or obstacle is not None:
            self._say(obstacle)
            return None, tensors
        try:
            structure = _structure(_with_timestep_as_tensor(arguments, options), tensors)
        except _NotAnArgument as error:
            self._say(f"it is called with a {error}")
            return None, tensors
        key = structure, _operations_of_networks(unet)
        call = self._calls.pop(key, None) or _CapturedCall(structure, tensors, self._device)
        self._calls[key] = call  # again: at the end are the latest
        if len(self._calls) > SHAPES:
            self._drop([self._calls.pop(next(iter(self._calls)))])
        return call, tensors

    def _look_at(self, module: nn.Module, unet: nn.Module) -> None:
        """Drops the graphs if anything on the UNet is not as it was, and finds out whether it can be captured."""
        seen = Fingerprint.of(unet)
        if self._seen is not None and seen.key == self._seen.key:
            return
        self._drop_all()
        self._seen = seen
        self._changes += 1
        if self._changes > MOST_CHANGES:
            self._give_up("something on it changes at every call")
            return
        device = next(unet.parameters()).device
        self._is_compiled = is_compiled(module)
        self.obstacle = self._kind.obstacle(device) or _obstacle_of(unet, device)
        if self.obstacle is None and (self._graphs is None or device != self._device):
            self._graphs, self._device = self._kind(device), device

    def _give_up(self, reason: str) -> None:
        self._drop_all()
        self._graphs, self._seen = None, None
        self._has_given_up, self.obstacle = True, reason
        self._say(reason)

    def _say(self, obstacle: str | None) -> None:
        """Says each obstacle once."""
        if obstacle is not None and obstacle not in self._said:
            self._said.add(obstacle)
            self._unsaid.append(obstacle)

    # --- graphs

    def _warmed(self, call: _CapturedCall, tensors: list[Tensor]) -> Any:
        """Returns what a call gives that is made as ever, so that everything a capture needs is there after it."""
        assert self._graphs is not None
        call.fill(tensors)
        watch = _Watch()
        output = self._graphs.warm(lambda: self._watched(call, watch))
        call.be_warm(watch.operations)
        result = _copied(output)
        if watch.obstacle is not None:
            self._give_up(watch.obstacle)
        return result

    def _replayed(self, call: _CapturedCall, tensors: list[Tensor]) -> Any:
        """Returns what the graph of a warm call gives, which is captured first if need be."""
        assert self._graphs is not None
        watch = None
        if call.graph is None:
            watch = _Watch()
            try:
                call.graph, call.output = self._graphs.record(lambda: self._watched(call, watch))
            except Exception as error:  # whatever a library raises there, the call itself may well be possible
                self._give_up(_reason_of(error))
                call.fill(tensors)
                return _copied(self._run(*call.arguments()))
            self.captures += 1
        graph = call.graph
        result = self._graphs.replay(graph, lambda: call.fill(tensors), lambda: _copied(call.output))
        self._changes = 0
        if watch is not None and watch.operations != call.operations:  # the graph is right for this call alone
            if call.has_differed:
                self._give_up("it does not do the same at every call")
            else:  # as the first call does that records a plan of its launches for later ones
                self._drop([call])
                call.has_differed, call.operations = True, watch.operations
        return result

    def _watched(self, call: _CapturedCall, watch: _Watch) -> Any:
        """Makes a call in one mode for all: a graph serves callers in inference mode and others."""
        seen = nullcontext() if self._is_compiled else watch  # torch compiles nothing while it is watched
        with torch.inference_mode(False), torch.no_grad(), seen:
            return self._run(*call.arguments())

    def _drop(self, calls: Iterable[_CapturedCall]) -> None:
        graphs = []
        for call in calls:
            if call.graph is not None:
                graphs.append(call.graph)
            call.graph = call.output = None
        if graphs and self._graphs is not None:
            self._graphs.drop(*graphs)

    def _drop_all(self) -> None:
        self._drop(self._calls.values())
        self._calls.clear()


class _CapturedCall:
    """A call of a UNet with given shapes: its buffers and, once it is captured, its graph.

    Attributes:
        buffers: of its tensors; each call is copied into them.
        operations: of the call before its graph was captured.
        has_differed: whether they were others than those of the graph once already.
        graph: None before it is captured.
        output: what the graph writes. Its next replay writes there again, and so may that of any other graph.
    """

    def __init__(self, structure: Structure, tensors: list[Tensor], device: torch.device) -> None:
        self._structure = structure
        with torch.inference_mode(False):  # else they could not be written outside of it
            self.buffers = [torch.empty_like(tensor, device=device) for tensor in tensors]
        self.operations: list[object] = []
        self.has_differed = False
        self.graph: CapturedGraph | None = None
        self.output: Any = None
        self._warmed_by: set[int] = set()  # threads

    @property
    def is_warm(self) -> bool:
        """Whether it is captured, or this thread can do so: each has handles of cuBLAS and cuDNN of its own."""
        return self.graph is not None or threading.get_ident() in self._warmed_by

    def be_warm(self, operations: list[object]) -> None:
        self.operations = operations
        self._warmed_by.add(threading.get_ident())

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments and options of the call, made of the buffers."""
        arguments, options = _rebuilt(self._structure, iter(self.buffers))
        return arguments, options

    def fill(self, tensors: list[Tensor]) -> None:
        """Copies the tensors of a call into the buffers; a number on the host does not make it wait for the device."""
        for buffer, tensor in zip(self.buffers, tensors, strict=True):
            if tensor.device.type == "cpu" and tensor.numel() == 1:
                buffer.fill_(tensor.item())
            else:
                buffer.copy_(tensor)


# --- the calls of a UNet


class _NotAnArgument(Exception):
    """A value whose effect on a call is not known; it names its class."""


_CONSTANTS = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size})


def _structure(value: Any, tensors: list[Tensor]) -> Structure:
    """Returns what a value is without its tensors, which are added to `tensors` in order."""
    kind = type(value)
    if kind is Tensor:
        tensors.append(value)
        return (Tensor, value.shape, value.stride(), value.dtype, value.device)
    if kind in _CONSTANTS:
        return (kind, value)  # the class too: 1, 1.0 and True are equal
    if kind in (tuple, list):
        return (kind, tuple([_structure(part, tensors) for part in value]))
    if kind is dict:
        return (kind, tuple([(name, _structure(part, tensors)) for name, part in value.items()]))
    raise _NotAnArgument(kind.__name__)


def _rebuilt(structure: Structure, tensors: Iterator[Tensor]) -> Any:
    """Returns a value of `_structure` with other tensors."""
    kind, inner = structure[0], structure[1]
    if kind is Tensor:
        return next(tensors)
    if kind in (tuple, list):
        return kind([_rebuilt(part, tensors) for part in inner])
    if kind is dict:
        return {name: _rebuilt(part, tensors) for name, part in inner}
    return inner


def _copied(value: Any) -> Any:
    """Returns a copy of what a UNet gives: tensors, in tuples and in dicts such as diffusers' outputs."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return type(value)(**{name: _copied(part) for name, part in value.items()})
    return type(value)([_copied(part) for part in value]) if isinstance(value, tuple | list) else value


def _with_timestep_as_tensor(
    arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of a call with a tensor for a timestep, as a UNet would make one: it is not a constant."""
    if type(options.get(_TIMESTEP)) in (int, float):
        options = {**options, _TIMESTEP: _tensor_of(options[_TIMESTEP])}
    elif len(arguments) > 1 and type(arguments[1]) in (int, float):
        arguments = (arguments[0], _tensor_of(arguments[1]), *arguments[2:])
    return arguments, options


def _tensor_of(timestep: float) -> Tensor:
    return torch.tensor(timestep, dtype=torch.float64 if isinstance(timestep, float) else torch.int64)


def _operations_of_networks(unet: nn.Module) -> object:
    state = getattr(unet, "hnetkit", None)
    return state.operations if isinstance(state, UNetState) else None


# --- what cannot be captured


def _is_traced_or_trained() -> bool:
    """Whether a call is part of something else: of training, or of a trace of torch's compilers."""
    is_traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return torch.is_grad_enabled() or is_traced


def _obstacle_of_this_call() -> str | None:
    if torch.is_autocast_enabled():
        return "under autocast, weights have copies that last for one call"
    return None


def _obstacle_of(unet: nn.Module, device: torch.device) -> str | None:
    """Says why a UNet cannot be captured, as far as it shows."""
    for module in unet.modules():
        if any(name in vars(module) for name in _OFFLOADED):
            return "parts of it are offloaded"
    if any(tensor.device != device for tensor in unet.parameters()):
        return "it is on several devices"
    return None


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` has made something of a module or of a part of it."""
    return any(hasattr(part, "_orig_mod") or _compiled_call(part) is not None for part in module.modules())


def _compiled_call(module: nn.Module) -> Callable[..., Any] | None:
    """Returns what `nn.Module.compile` put in place of a module; None where it was not called."""
    put: Callable[..., Any] | None = vars(module).get(_SLOT)
    return put._compiled if isinstance(put, Capture) else put


def _reason_of(error: Exception) -> str:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "there is not enough memory for its graph"
    lines = str(error).strip().splitlines()
    return f"capturing it fails ({lines[0][:200] if lines else type(error).__name__})"


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation of a call.

    Attributes:
        operations: in order, with their numbers.
        obstacle: why the first one that a graph cannot repeat is no part of one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[object] = []
        self.obstacle: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.name() not in _NOTHING:
            numbers = [argument for argument in args if type(argument) in (bool, int, float)]
            self.operations.append((func, numbers))
        if self.obstacle is None:
            self.obstacle = _obstacle_of_operation(func, args, output)
        return output


_HOST_READS = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select",
        "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave",
    )
)  # fmt: skip
_NOTHING = frozenset({"aten::detach", "aten::alias", "aten::lift_fresh"})  # torch adds them where modes are nested
_COPIES = frozenset({"aten::_to_copy", "aten::copy_"})


def _obstacle_of_operation(func: Any, args: tuple[Any, ...], output: Any) -> str | None:
    name = func.name().partition(".")[0]
    if name in _COPIES:  # from one device to another
        waits = any(isinstance(argument, Tensor) and argument.device != output.device for argument in args)
    elif name == "aten::index":
        waits = any(index is not None and index.dtype == torch.bool for index in args[1])
    else:
        waits = name in _HOST_READS
    if waits:
        return f"it waits for values on the host ({name})"
    is_random = torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name  # its dropout is 0
    if "dropout" in name:
        is_random = bool(args[1] and args[2])
    return f"it draws random numbers ({name})" if is_random else None


# --- what a graph depends on


class Fingerprint(NamedTuple):
    """All on a UNet that its graphs depend on, but for the numbers in its tensors.

    Attributes:
        key: to compare.
        held: objects that the key has by their ids, which are therefore no others' meanwhile.
    """

    key: list[object]
    held: list[object]

    @classmethod
    def of(cls, unet: nn.Module) -> Fingerprint:
        key: list[object] = []
        held: list[object] = []
        modules = [unet]
        for module in modules:  # it grows
            own = vars(module)
            if isinstance(module, UNetState):  # says itself when what was captured is of no use
                key.append(id(module.era))
                held.append(module.era)
                continue
            key += (type(module), own["training"])
            for name in ("_parameters", "_buffers"):
                key += [_place(tensor) for tensor in own[name].values()]
            for name in ("_forward_pre_hooks", "_forward_hooks"):
                if own[name]:
                    key += [(number, _value(hook, held)) for number, hook in own[name].items()]
            key += [(name, _value(own[name], held)) for name in own if name not in _OF_EVERY_MODULE]
            for name, inner in own["_modules"].items():
                key.append(name)
                if inner is not None:
                    modules.append(inner)
        return cls(key, held)


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_DEPTH = 3  # of values in values: LoRA's scale is in a dict, that of an IP-Adapter in a list of its processor


def _place(tensor: Tensor | None) -> object:
    return None if tensor is None else (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _value(value: Any, held: list[object], depth: int = _DEPTH) -> object:
    """Returns what can be compared of an attribute: a constant itself, a container's parts, an object's attributes."""
    kind = type(value)
    if kind in _CONSTANTS:
        return value
    if isinstance(value, Tensor):
        return _place(value)
    if depth and kind in (tuple, list):
        return [_value(part, held, depth - 1) for part in value]
    if depth and kind is dict:
        return [(name, _value(part, held, depth - 1)) for name, part in value.items()]
    held.append(value)
    if not depth or kind.__module__.partition(".")[0] == "hnetkit" or not getattr(value, "__dict__", None):
        return id(value)
    return id(value), _value(vars(value), held, depth - 1)


# --- CUDA


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
            fill()
            graph.replay()
            result = take()
            self._replayed.record(stream)
        return result

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
