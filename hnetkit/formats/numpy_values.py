"""numpy's values inside a pickle: numbers in the metadata, and arrays that hold tensors of devices without storages.

torch before 2 saved a tensor on a Mac's GPU (``mps``), and others a tensor on ``xla`` or ``ort``, as a numpy array
within the pickle. Pickle protocol 2 has no bytes: it spells them as text, each byte as the character of its number,
in UTF-8. Such a text may be most of the file, so it stays there and is decoded when the tensor is read.

Source: torch/_tensor.py and torch/_utils.py of 1.12.1; numpy's `ndarray.__setstate__` (behavior only).
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from hnetkit.errors import DamagedFile, UnsafeFile, UnsupportedNetwork
from hnetkit.formats.open_file import OpenFile
from hnetkit.limits import is_index
from hnetkit.network import ITEM_SIZE, DType, MemorySource, TensorRef

_STRUCT_FORMATS = {
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "b1": "?",
}
_FLOATS: Mapping[str, DType] = {"f2": "fp16", "f4": "fp32", "f8": "fp64"}
TORCH_FLOATS: Mapping[str, DType] = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
"""torch's names of its floating-point types -> ours."""

SHORT = 4096  # bytes of a text that is decoded at once
_STEP = 1 << 20  # bytes of text that are decoded together
_NOT_FIRST = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character


@dataclass(slots=True)
class NumpyType:
    """A numpy dtype by its code (`"i8"`, `"f4"`, ...).

    Attributes:
        order: byte order, in the notation of `struct`.
    """

    code: str
    order: str = "<"


class NumpyNumber(int):
    """A whole number of a numpy type, which A1111 does not recognize as a width."""


@dataclass(frozen=True, slots=True)
class TorchType:
    """A dtype of torch that a pickle names."""

    dtype: DType


@dataclass(frozen=True, slots=True)
class SpelledText:
    """A text that spells bytes and stays in its file: `size` bytes of UTF-8 at `start`."""

    file: OpenFile
    start: int
    size: int


@dataclass(frozen=True)
class SpelledBytes:
    """The `size` bytes that a text spells, decoded when they are read (a `ByteSource`)."""

    text: SpelledText
    size: int

    def read_at(self, offset: int, size: int) -> bytes:
        """Returns exactly `size` bytes at `offset`.

        Raises:
            DamagedFile: the text spells another number of bytes, or none.
        """
        step, parts = bisect_right(self._ends, offset), []
        position, end = self._ends[step - 1] if step else 0, offset + size
        while position < end:
            part = self._spelled(step)
            parts.append(part[max(0, offset - position) : end - position])
            position, step = position + len(part), step + 1
        return b"".join(parts)

    def _spelled(self, number: int) -> bytes:
        try:
            return self._step(number).decode("utf-8").encode("latin-1")
        except UnicodeError as error:
            raise DamagedFile(f"{self.text.file.path}: a text in the place of a tensor's bytes") from error

    @cached_property
    def _ends(self) -> list[int]:
        """For each step of the text, the number of bytes that it spells up to its end."""
        counts = (len(self._step(number).translate(None, _NOT_FIRST)) for number in range(-(-self.text.size // _STEP)))
        ends = [*accumulate(counts)]
        if ends[-1] != self.size:
            raise DamagedFile(f"{self.text.file.path}: a tensor of {self.size} bytes, of which {ends[-1]} are there")
        return ends

    def _step(self, number: int) -> bytes:
        """The characters that begin within one step of the text."""
        start = number * _STEP
        data = self.text.file.read_at(self.text.start + start, min(_STEP + 1, self.text.size - start))
        characters = data[:_STEP].lstrip(_NOT_FIRST) if number else data[:_STEP]
        return characters + data[_STEP:] if data[_STEP:].strip(_NOT_FIRST) == b"" else characters


@dataclass(slots=True)
class NumpyArray:
    """An array, empty until the pickle sets its state."""

    kind: NumpyType | None = None
    shape: tuple[int, ...] = ()
    data: bytes | SpelledText = b""

    def set_state(self, state: Any) -> None:
        """Takes what numpy pickles of an array of numbers: version, shape, dtype, column order, bytes.

        From anything else the array stays empty, and no tensor can be made of it.
        """
        if not isinstance(state, tuple) or len(state) != 5:
            return
        _, shape, kind, is_by_columns, data = state
        is_shape = isinstance(shape, tuple) and len(shape) <= 8 and all(map(is_index, shape))
        if not is_shape or not isinstance(kind, NumpyType) or not isinstance(data, bytes | SpelledText):
            return
        if not is_by_columns or sum(length > 1 for length in shape) <= 1:
            self.kind, self.shape, self.data = kind, shape, data

    def tensor(self) -> TensorRef:
        """Returns the tensor with the array's values, which stay where they are.

        Raises:
            UnsupportedNetwork: they are no floating-point numbers, or of another byte order.
            DamagedFile: their number is not that of the shape.
        """
        dtype = _FLOATS.get(self.kind.code) if self.kind and self.kind.order == "<" else None
        if dtype is None:
            raise UnsupportedNetwork("an array that is not little-endian floating-point numbers, row by row")
        size = math.prod(self.shape) * ITEM_SIZE[dtype]
        if isinstance(self.data, SpelledText):
            if not size <= self.data.size <= 2 * size:
                raise DamagedFile(f"an array of {size} bytes whose text has {self.data.size}")
            return TensorRef(dtype, self.shape, SpelledBytes(self.data, size), 0)
        if len(self.data) != size:
            raise DamagedFile(f"an array of {size} bytes, of which the file has {len(self.data)}")
        return TensorRef(dtype, self.shape, MemorySource(self.data), 0)


# --- the globals; each takes what a pickle passes to it


def numpy_type(code: Any, *_rest: Any) -> NumpyType:
    """``numpy.dtype``."""
    if not isinstance(code, str):
        raise UnsafeFile("a numpy type without a code")
    return NumpyType(code)


def numpy_scalar(kind: Any, data: Any = b"", *_rest: Any) -> int | float | bool:
    """``numpy.core.multiarray.scalar``."""
    if not isinstance(kind, NumpyType) or kind.code not in _STRUCT_FORMATS or not isinstance(data, bytes):
        raise UnsafeFile("an unusual numpy value")
    try:
        value: int | float | bool = struct.unpack(kind.order + _STRUCT_FORMATS[kind.code], data)[0]
    except struct.error as error:
        raise DamagedFile("a numpy value of the wrong size") from error
    return NumpyNumber(value) if type(value) is int else value


def reconstruct(*_class_and_shape: Any) -> NumpyArray:
    """``numpy.core.multiarray._reconstruct``: an array to which the pickle then gives its state."""
    return NumpyArray()


def encode(text: Any, encoding: Any = "utf-8") -> bytes | SpelledText:
    """``_codecs.encode``: the bytes that a text spells."""
    if isinstance(text, SpelledText) and encoding in ("latin1", "latin-1"):
        return text
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise UnsafeFile("an unusual text encoding")
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise DamagedFile("text that its encoding cannot represent") from error


def device_tensor(array: Any, kind: Any, _device: Any, _requires_grad: Any) -> TensorRef:
    """``torch._utils._rebuild_device_tensor_from_numpy``: a tensor of a device without storages."""
    if not isinstance(array, NumpyArray) or not isinstance(kind, TorchType):
        raise UnsafeFile("a tensor of another device without its values")
    tensor = array.tensor()
    if kind.dtype != tensor.dtype:
        raise UnsupportedNetwork("a tensor that has another type on its device than in the file")
    return tensor
