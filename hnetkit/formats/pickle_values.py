"""The inert values that a torch pickle is read into, and the few globals that may be called to make them.

Nothing here does more than hold what it is given: a tensor is a note of where its bytes lie.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hnetkit.errors import DamagedFile, UnsafeFile


@dataclass(frozen=True, slots=True)
class StorageType:
    """A torch storage class: the element type of a storage, or None for one no network holds (int, bool, ...)."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A persistent reference to tensor bytes that lie outside the pickle."""

    type: StorageType
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and stride in elements. Not checked against the storage's real bytes yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Foreign:
    """Something that the file asked for and that was not done.

    Attributes:
        name: of the global.
        state: the attributes that an object of it was to have.
    """

    name: str
    state: Any = None


@dataclass(frozen=True, slots=True)
class Global:
    """An allowed global: calling it runs `make`, which only builds inert values."""

    name: str
    make: Callable[..., Any] = field(compare=False)


class Parsed(dict[Any, Any]):
    """A dict that came from `collections.OrderedDict`: it may be given a `_metadata` attribute, which is dropped."""


@dataclass(slots=True)
class NumpyType:
    """A numpy dtype by its code (`"i8"`, `"f4"`, ...), as metadata values of numpy types carry it.

    Attributes:
        order: of its bytes, as `struct` names it.
    """

    code: str
    order: str = "<"


class NumpyNumber(int):
    """A whole number of a numpy type: A1111 takes none for a width."""


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, _requires_grad: Any, hooks: Any, marks: Any = None
) -> Tensor:
    if not isinstance(storage, Storage) or not is_index(offset):
        raise UnsafeFile("a tensor without a storage")
    if not all(isinstance(part, tuple) and all(map(is_index, part)) for part in (shape, stride)):
        raise UnsafeFile("a tensor whose shape is not made of numbers")
    if len(shape) != len(stride) or len(shape) > 8:
        raise UnsafeFile("a tensor whose shape and stride do not fit")
    if marks or hooks:  # torch negates or conjugates a tensor that is marked so
        raise UnsafeFile("a tensor that is not what is stored of it")
    return Tensor(storage, offset, shape, stride)


def _rebuild_parameter(data: Any, _requires_grad: Any, _hooks: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise UnsafeFile("a parameter that is not a tensor")
    return data


def _ordered_dict(items: Any = ()) -> Parsed:
    if not isinstance(items, list | tuple) or not all(isinstance(i, list | tuple) and len(i) == 2 for i in items):
        raise UnsafeFile("an ordered dict that is not made of pairs")
    result = Parsed()
    for key, value in items:
        set_item(result, key, value)
    return result


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise UnsafeFile("an unusual text encoding")
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise DamagedFile("text that its encoding does not hold") from error


def _numpy_type(code: Any, *_rest: Any) -> NumpyType:
    if not isinstance(code, str):
        raise UnsafeFile("a numpy type without a code")
    return NumpyType(code)


_NUMPY_FORMATS = {
    **{"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
    **{"f2": "e", "f4": "f", "f8": "d", "b1": "?"},
}


def _numpy_scalar(kind: Any, data: Any = b"", *_rest: Any) -> int | float | bool:
    if not isinstance(kind, NumpyType) or kind.code not in _NUMPY_FORMATS or not isinstance(data, bytes):
        raise UnsafeFile("an unusual numpy value")
    try:
        value: int | float | bool = struct.unpack(kind.order + _NUMPY_FORMATS[kind.code], data)[0]
    except struct.error as error:
        raise DamagedFile("a numpy value of the wrong size") from error
    return NumpyNumber(value) if type(value) is int else value


def is_index(value: Any) -> bool:
    """Whether a value can count elements: an int from 0 below 2**62."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


MAX_NUMBERED = 10_000
"""Items that a dict with numbers as keys may have: an optimizer has one for each tensor, of 2700 in a whole SDXL."""

_LARGEST_KEY = 1 << 60  # beyond it, far numbers have the same hash


def set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Sets an item of a parsed dict.

    Numbers are hashed so that whoever chooses them can make each look-up pass all the others: only as many are taken
    as stay quick then. Of texts nobody can choose the hash.

    Raises:
        UnsafeFile: the key is neither text nor number, or one of more numbers than any model has.
    """
    if isinstance(key, int | float) and (len(target) >= MAX_NUMBERED or not -_LARGEST_KEY < key < _LARGEST_KEY):
        raise UnsafeFile(f"a dict of more than {MAX_NUMBERED} items under numbers, or under a number too large")
    if not isinstance(key, str | int | float | bytes | None):
        if isinstance(key, tuple | Foreign):
            key = f"<{type(key).__name__}>"  # such a key is in no network; the dict is only looked at, never used
        else:
            raise UnsafeFile("a dict key that is neither text nor number")
    target[key] = value


# the globals that hypernetworks need (FloatStorage and the like are made by the reader)
ALLOWED_GLOBALS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.dtype": _numpy_type,
    "_codecs.encode": _encode,
}
STORAGE_TYPES = {
    *("FloatStorage", "HalfStorage", "BFloat16Storage", "DoubleStorage"),
    *("IntStorage", "LongStorage", "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage"),
}
