"""A call of a captured UNet: its arguments as buffers that stay, and the graph that reads them.

A call is known by its structure, which is all of its arguments but the numbers in their tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hnetkit.runtime.cuda_graphs import CapturedGraph
from hnetkit.runtime.fingerprint import CONSTANTS

Structure: TypeAlias = Any
"""What arguments are without their tensors, to be compared."""

_TIMESTEP = "timestep"


class CapturedCall:
    """A call of a UNet with given shapes: its buffers and, once it is captured, its graph.

    Attributes:
        buffers: of its tensors; each call is copied into them.
        operations: of the call before its graph was captured.
        has_differed: whether they were others than those of the graph once already.
        graph: None before it is captured.
        output: what the graph gives. Its next replay writes there again, and so may that of any other graph.
        writes: whether the graph writes to what stays on the UNet, too.
    """

    def __init__(self, structure: Structure, tensors: list[Tensor], device: torch.device) -> None:
        self._structure = structure
        with torch.inference_mode(False):  # else they could not be written outside of it
            self.buffers = [torch.empty_like(tensor, device=device) for tensor in tensors]
        self.operations: list[object] = []
        self.has_differed = False
        self.graph: CapturedGraph | None = None
        self.output: Any = None
        self.writes = False
        self._warmed_by: set[int] = set()  # threads

    @property
    def is_warm(self) -> bool:
        """Whether it is captured, or this thread can do so: each has handles of cuBLAS and cuDNN of its own."""
        return self.graph is not None or threading.get_ident() in self._warmed_by

    @property
    def may_run_ahead(self) -> bool:
        """Whether its graph can be replayed before it is known to be right: if it is not, nothing is left of that."""
        return self.graph is not None and not self.writes

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


class NotAnArgument(Exception):
    """A value whose effect on a call is not known; it names its class."""


def taken_apart(arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Structure, list[Tensor]]:
    """Returns the structure of a call, and its tensors in order. A timestep is a tensor, as a UNet would make one.

    Raises:
        NotAnArgument: a part of them is of another class than UNets are called with.
    """
    if type(options.get(_TIMESTEP)) in (int, float):
        options = {**options, _TIMESTEP: _tensor_of(options[_TIMESTEP])}
    elif len(arguments) > 1 and type(arguments[1]) in (int, float):
        arguments = (arguments[0], _tensor_of(arguments[1]), *arguments[2:])
    tensors: list[Tensor] = []
    return _structure((arguments, options), tensors), tensors


def copied(value: Any) -> Any:
    """Returns a copy of what a UNet gives: tensors, in tuples and in dicts such as diffusers' outputs."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return type(value)(**{name: copied(part) for name, part in value.items()})
    return type(value)([copied(part) for part in value]) if isinstance(value, tuple | list) else value


def _structure(value: Any, tensors: list[Tensor]) -> Structure:
    """Returns what a value is without its tensors, which are added to `tensors` in order."""
    kind = type(value)
    if kind is Tensor:
        tensors.append(value)
        return (Tensor, value.shape, value.stride(), value.dtype, value.device)
    if kind in CONSTANTS:
        return (kind, value)  # the class too: 1, 1.0 and True are equal
    if kind in (tuple, list):
        return (kind, tuple([_structure(part, tensors) for part in value]))
    if kind is dict:
        return (kind, tuple([(name, _structure(part, tensors)) for name, part in value.items()]))
    raise NotAnArgument(kind.__name__)


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


def _tensor_of(timestep: float) -> Tensor:
    return torch.tensor(timestep, dtype=torch.float64 if isinstance(timestep, float) else torch.int64)
