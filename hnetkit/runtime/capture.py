"""A UNet as CUDA graphs: one for each set of shapes, captured while it is used, and replayed in place of its calls.

A call of Stable Diffusion's UNet launches some thousand kernels, and the host is slower at that than a fast GPU is at
running them. A graph is launched at once. It repeats the same kernels on the same memory, so a call is copied into
buffers that stay, and what it gives is copied out. The first call with its shapes runs as it would anyway, which also
warms up what is captured at the second.

What a graph depends on is compared at each replay, and if anything differs, the graphs are dropped, and the call is
made again (`hnetkit.runtime.fingerprint`). The device begins to replay before the host has compared everything: it
would wait for that. Where a graph writes to what stays on the UNet, such as a counter, it does wait. Strengths are in
buffers that graphs read: they change without that.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hnetkit.runtime.capture_obstacles import (
    Watch,
    is_part_of_more,
    obstacle_of_call,
    obstacle_of_error,
    obstacle_of_unet,
)
from hnetkit.runtime.captured_call import CapturedCall, NotAnArgument, copied, taken_apart
from hnetkit.runtime.cuda_graphs import CudaGraphs, Graphs
from hnetkit.runtime.fingerprint import Fingerprint
from hnetkit.runtime.layers import unet_of
from hnetkit.runtime.unet_state import UNetState
from hnetkit.text import counted

MOST_CHANGES = 8
"""How many times a UNet may change before a graph of it was replayed even once."""

SHAPES = 8
"""How many graphs of a UNet are kept: that of the shapes which were not called for the longest time goes first."""

_SLOT = "_compiled_call_impl"
"""The attribute in which a module has what is called in its place: by `nn.Module.compile`, and by a capture."""

_COMPILE = "compile"


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
    for found in _captures_of(pipe):
        found.release()


def forget_graphs(pipe: Any) -> bool:
    """Frees the memory of a captured UNet's graphs; it stays captured. Returns whether there was anything to free."""
    return any([found.forget() for found in _captures_of(pipe)])


def captured_by(graphs: type[Graphs], pipe: Any) -> Capture:
    """Returns the capture of a pipeline's UNet, made by `graphs` where there is none yet; see `capture`."""
    unet, called = unet_of(pipe), _called_module(pipe)
    within = _capture_of(unet)
    if within is not None and called is not unet:  # compiled after that: what is captured is what was compiled
        within.release()
    made = _capture_of(called) or Capture(called, graphs)
    made.holders += 1
    return made


def _called_module(pipe: Any) -> nn.Module:
    """Returns the module that a pipeline calls: the UNet, or what ``torch.compile`` made of it."""
    module: nn.Module = getattr(pipe, "unet", pipe)
    return module


def _captures_of(pipe: Any) -> list[Capture]:
    """Returns the captures of a pipeline's UNet: of what it calls, and one that `torch.compile` found on the UNet."""
    found = {_capture_of(module) for module in (unet_of(pipe), _called_module(pipe))}
    return [capture for capture in found if capture is not None]


def _capture_of(module: nn.Module) -> Capture | None:
    found = vars(module).get(_SLOT)
    return found if isinstance(found, Capture) else None


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
        self._calls: dict[object, CapturedCall] = {}
        self._seen: Fingerprint | None = None
        self._changes = 0
        self._has_given_up = False
        self._said: set[str] = set()
        self._unsaid: list[str] = []
        self._lock = threading.RLock()
        # not by setattr: a compiled module gives its attributes to the one inside of it
        vars(module).update({_SLOT: self, _COMPILE: _CompileWithin(module)})

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
            self._seen = None  # it keeps all that was on the UNet when it was last called
        return had_graphs

    def release(self) -> None:
        """Has the UNet run as before, and frees the memory of the graphs."""
        with self._lock:
            module = self._module()
            if module is not None and vars(module).get(_SLOT) is self:
                del vars(module)[_SLOT], vars(module)[_COMPILE]
                if self._compiled is not None:
                    vars(module)[_SLOT] = self._compiled
            self._drop_all()
            self._graphs, self._seen, self.holders = None, None, 0

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compiles the UNet in place, as `nn.Module.compile` does: from now on, what that gives is captured."""
        with self._lock:
            module: Any = self._module()
            own = vars(module)
            del own[_SLOT]
            try:
                type(module).compile(module, *arguments, **options)
                self._compiled = own.get(_SLOT, self._compiled)
            finally:
                own[_SLOT] = self
            self._drop_all()
            self._seen = None

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.holders -= 1
        if self.holders == 0:
            self.release()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Calls the UNet: by its graph where there is one for this call."""
        if torch.compiler.is_compiling():
            _say_that_it_is_compiled_later()
        if self._has_given_up or is_part_of_more():
            return self._run(arguments, options)
        with self._lock:
            is_captured, output = self._by_graph(arguments, options)
            unsaid, self._unsaid = self._unsaid, []
        for obstacle in unsaid:
            warnings.warn(f"this UNet runs without CUDA graphs: {obstacle}", RuntimeWarning, stacklevel=3)
        return output if is_captured else self._run(arguments, options)

    def _run(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Calls the UNet without a graph."""
        module: Any = self._module()
        return (self._compiled or module._call_impl)(*arguments, **options)

    def _by_graph(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[bool, Any]:
        """Returns whether there is a graph for a call, or will be one, and what the call gives then."""
        if obstacle := obstacle_of_call():
            return self._say(obstacle), None
        try:
            structure, tensors = taken_apart(arguments, options)
        except NotAnArgument as error:
            return self._say(f"it is called with a {error}"), None
        module: Any = self._module()
        unet = unet_of(module)
        key = structure, _operations_of_networks(unet)
        call, seen = self._calls.get(key), self._seen
        if call is not None and call.may_run_ahead and seen is not None and seen.is_in_place():
            output = self._replayed(call, tensors)  # which the device does while the host looks whether it may
            if seen.is_alike(unet):
                self._calls[key] = self._calls.pop(key)  # again: at the end are the latest
                self._changes = 0
                return True, output
        self._look_at(module, unet)
        if self.obstacle is not None:
            return self._say(self.obstacle), None
        call = self._calls.pop(key, None) or CapturedCall(structure, tensors, self._device)
        self._calls[key] = call
        if len(self._calls) > SHAPES:
            self._drop([self._calls.pop(next(iter(self._calls)))])
        if call.is_warm:
            self._changes = 0
            return True, self._replayed(call, tensors)
        return True, self._warmed(call, tensors)

    def _look_at(self, module: nn.Module, unet: nn.Module) -> None:
        """Drops the graphs if anything on the UNet is not as it was, and finds out whether it can be captured."""
        if self._seen is not None:
            if self._seen.holds(unet):
                return
            self._changes += 1
        self._drop_all()
        self._seen = Fingerprint(unet, but=self)
        if self._changes > MOST_CHANGES:
            self._give_up("something on it changes at every call")
            return
        device = next(unet.parameters()).device
        self._is_compiled = is_compiled(module)
        self.obstacle = self._kind.obstacle(device) or obstacle_of_unet(unet, device)
        if self.obstacle is None and (self._graphs is None or device != self._device):
            self._graphs, self._device = self._kind(device), device

    def _give_up(self, reason: str) -> None:
        self._drop_all()
        self._graphs, self._seen = None, None
        self._has_given_up, self.obstacle = True, reason
        self._say(reason)

    def _say(self, obstacle: str) -> bool:
        """Says each obstacle once; returns that there is no graph."""
        if obstacle not in self._said:
            self._said.add(obstacle)
            self._unsaid.append(obstacle)
        return False

    # --- graphs

    def _warmed(self, call: CapturedCall, tensors: list[Tensor]) -> Any:
        """Returns what a call gives that is made as ever, so that everything a capture needs is there after it."""
        assert self._graphs is not None
        call.fill(tensors)
        watch = Watch()
        output = self._graphs.warm(lambda: self._watched(call, watch))
        call.be_warm(watch.operations)
        result = copied(output)
        if watch.obstacle is not None:
            self._give_up(watch.obstacle)
        return result

    def _replayed(self, call: CapturedCall, tensors: list[Tensor]) -> Any:
        """Returns what the graph of a warm call gives, which is captured first if need be."""
        graphs, seen, watch = self._graphs, self._seen, None
        assert graphs is not None
        assert seen is not None
        if call.graph is None:
            watch, writes = Watch(), seen.writes()
            try:
                call.graph, call.output = graphs.record(lambda: self._watched(call, watch))
            except Exception as error:  # whatever a library raises there, the call itself may well be possible
                self._give_up(obstacle_of_error(error))
                call.fill(tensors)
                return copied(self._run(*call.arguments()))
            self.captures += 1
            call.writes = seen.writes() != writes
        graph = call.graph
        result = graphs.replay(graph, lambda: call.fill(tensors), lambda: copied(call.output))
        if watch is not None and watch.operations != call.operations:  # the graph is right for this call alone
            if call.has_differed:
                self._give_up("it does not do the same at every call")
            else:  # as the first call does that records a plan of its launches for later ones
                self._drop([call])
                call.has_differed, call.operations = True, watch.operations
        return result

    def _watched(self, call: CapturedCall, watch: Watch) -> Any:
        """Makes a call in one mode for all: a graph serves callers in inference mode and others."""
        seen = nullcontext() if self._is_compiled else watch  # torch compiles nothing while it is watched
        with torch.inference_mode(False), torch.no_grad(), seen:
            return self._run(*call.arguments())

    def _drop(self, calls: Iterable[CapturedCall]) -> None:
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


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _say_that_it_is_compiled_later() -> None:
    """Is called while what is around a captured UNet is compiled: that calls the UNet from then on, not the capture."""
    warnings.warn(
        "this UNet runs without CUDA graphs: torch.compile was called on it after hnetkit.capture; call "
        "hnetkit.release(pipe), torch.compile, and then hnetkit.capture(pipe)",
        RuntimeWarning,
        stacklevel=2,
    )


class _CompileWithin:
    """`compile` of a captured module, which would else put what it makes in the place of the capture."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)

    def __call__(self, *arguments: Any, **options: Any) -> None:
        module: Any = self._module()
        capture = _capture_of(module)
        if capture is not None:
            capture.compile(*arguments, **options)
        else:  # of a copy, which is not captured
            type(module).compile(module, *arguments, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _CompileWithin, (self._module(),)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` has made something of a module or of a part of it."""
    return any(hasattr(part, "_orig_mod") or _compiled_call(part) is not None for part in module.modules())


def _compiled_call(module: nn.Module) -> Callable[..., Any] | None:
    """Returns what `nn.Module.compile` put in place of a module; None where it was not called."""
    put: Callable[..., Any] | None = vars(module).get(_SLOT)
    return put._compiled if isinstance(put, Capture) else put


def _operations_of_networks(unet: nn.Module) -> object:
    state = getattr(unet, "hnetkit", None)
    return state.operations if isinstance(state, UNetState) else None
