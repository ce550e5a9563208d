"""Launches, recorded once and made again: a later call of the same kind costs the host little but filling in addresses.

The first call goes through Triton's own launcher, which compiles each kernel for what it is given, down to whether an
address is a multiple of 16. A `Recording` notes its launches. A `Plan` makes them again with the addresses of another
call, which must be like the first in all of that. Memory that was given back and taken again within the first call is
one piece in later ones too, as launches run one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime import _allocation
from triton.runtime.driver import driver
from triton.tools.tensor_descriptor import TensorDescriptor


def launch(kernel: Any, grid: tuple[int, int], *arguments: Any, **constants: Any) -> Any:
    """Launches a kernel by Triton's launcher; returns what it compiled, None in the interpreter."""
    return kernel[grid](*arguments, **constants, enable_fp_fusion=True)  # the default until Triton 3.9, and then not


def require_allocator() -> None:
    """Has Triton get memory for descriptors that are made in a kernel from torch, unless something else was chosen.

    Triton keeps the choice by thread and context, so that each launch needs it.
    """
    if isinstance(_allocation._allocator.get(), _allocation.NullAllocator):
        triton.set_allocator(_from_torch)


def _from_torch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Returns memory on the current device and stream; torch's begins at a multiple of 512 bytes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


class Address(int):
    """An address in the place of a tensor, for descriptors."""

    def data_ptr(self) -> int:
        return self


class _Place(NamedTuple):
    """Memory that a launch was given: the piece that it is in, with its size in bytes, and the address.

    Attributes:
        descriptor: of tiles in it, without a base; None where the kernel took the address itself.
    """

    piece: int
    size: int
    address: int
    descriptor: TensorDescriptor | None


class _Launch(NamedTuple):
    """A compiled kernel on its grid, called with all its arguments; `gaps`: where an address of the call comes in.

    A gap is the argument's index, the index of a piece of memory, an offset in bytes, and the descriptor or None.
    """

    run: Callable[..., None]
    arguments: list[Any]
    gaps: list[tuple[int, int, int, TensorDescriptor | None]]


class Recording:
    """Notes the launches of one call. No tensor is kept: what the call gives back, it may take again."""

    def __init__(self) -> None:
        self._made: list[tuple[Any, tuple[int, int], list[Any]]] = []

    def launch(self, kernel: Any, grid: tuple[int, int], *arguments: Any, **constants: Any) -> None:
        compiled = launch(kernel, grid, *arguments, **constants)
        named = {**dict(zip(kernel.arg_names, arguments, strict=False)), **constants}
        self._made.append((compiled, grid, [_noted(named[name]) for name in kernel.arg_names]))

    def plan(self, inputs: Sequence[Tensor], weights: Iterable[Tensor], result: Tensor) -> Plan | None:
        """Returns the plan of the launches; None in the interpreter, or where inputs are parts of one piece of memory.

        Args:
            inputs: what another call brings in its place.
            weights: what it does not: all other memory is the call's own.
            result: the tensor that was computed.
        """
        fixed = {_piece(tensor) for tensor in weights}
        starts = {_piece(tensor): tensor.data_ptr() for tensor in inputs}
        are_apart = all(starts[_piece(tensor)] == tensor.data_ptr() for tensor in inputs)
        if not are_apart or any(compiled is None for compiled, _, _ in self._made):
            return None
        places = [value for _, _, values in self._made for value in values if isinstance(value, _Place)]
        sizes: dict[int, int] = {}
        for place in places:
            if place.piece not in fixed and place.piece not in starts:
                sizes[place.piece] = max(place.size, sizes.get(place.piece, 0))
        order = [*map(_piece, inputs), *sizes]
        launches = []
        for compiled, grid, values in self._made:
            arguments, gaps = [], []
            for number, value in enumerate(values):
                if not isinstance(value, _Place):
                    arguments.append(value)
                elif value.piece in fixed:
                    arguments.append(_at(value.address, value.descriptor))
                else:
                    offset = value.address - starts.get(value.piece, value.piece)
                    gaps.append((number, order.index(value.piece), offset, value.descriptor))
                    arguments.append(None)
            launches.append(_Launch(compiled[(*grid, 1)], arguments, gaps))
        takes_memory = any(compiled.metadata.global_scratch_size for compiled, _, _ in self._made)
        return Plan(launches, list(sizes.values()), list(sizes).index(_piece(result)), result, takes_memory)


class Plan:
    """The launches of a call, with the addresses of its own memory left open.

    Args:
        launches: in their order.
        sizes: of the pieces of memory, in bytes.
        result: the index of the piece that what is computed begins.
        like: a tensor of its dtype and shape.
        takes_memory: whether Triton gets memory of its own for a launch.
    """

    def __init__(
        self, launches: Sequence[_Launch], sizes: Sequence[int], result: int, like: Tensor, takes_memory: bool
    ) -> None:
        self._launches, self._result, self._shape, self._count = launches, result, like.shape, like.numel()
        self._dtype, self._takes_memory = like.dtype, takes_memory
        self._sizes: list[Any] = [-(-size // like.element_size()) for size in sizes]
        self._is_whole = self._sizes[result] == self._count
        if self._is_whole:
            self._sizes[result] = self._shape

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        """Makes the launches on the current stream; returns what they compute."""
        device, dtype = inputs[0].device, self._dtype
        if self._takes_memory:
            require_allocator()
        memory = [torch.empty(size, dtype=dtype, device=device) for size in self._sizes]
        starts = [tensor.data_ptr() for tensor in (*inputs, *memory)]
        stream = driver.active.get_current_stream(driver.active.get_current_device())
        for run, known, gaps in self._launches:
            arguments = known.copy()
            for number, piece, offset, descriptor in gaps:
                arguments[number] = _at(starts[piece] + offset, descriptor)
            run(*arguments, stream=stream)
        result = memory[self._result]
        return result if self._is_whole else result[: self._count].view(self._shape)


def _noted(value: Any) -> Any:
    if isinstance(value, TensorDescriptor):
        return _place(value.base, _like(value, None))
    return _place(value, None) if isinstance(value, Tensor) else value


def _place(tensor: Tensor, descriptor: TensorDescriptor | None) -> _Place:
    return _Place(_piece(tensor), tensor.untyped_storage().nbytes(), tensor.data_ptr(), descriptor)


def _piece(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _at(address: int, descriptor: TensorDescriptor | None) -> Any:
    """Returns an address as a kernel takes it: launchers know numbers and descriptors."""
    return address if descriptor is None else _like(descriptor, Address(address))


def _like(descriptor: TensorDescriptor, base: Any) -> TensorDescriptor:
    """Returns a descriptor with another base, without the checks that it once went through."""
    other = object.__new__(TensorDescriptor)
    other.__dict__.update(descriptor.__dict__, base=base)
    return other
