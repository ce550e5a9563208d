"""Allow-list reader of torch pickles: reads their structure without running any of it.

A pickle is a program for a small stack machine. This is that machine with everything dangerous left out: it imports
nothing, calls nothing, and knows only the opcodes that `torch.save` writes. The few globals that a hypernetwork
needs become inert values. Any other global becomes a `Foreign` value, which does nothing, and its name is noted, so
that other kinds of files can still be recognized; a hypernetwork with one is refused.

Source: the pickle opcodes are documented in CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hnetkit.errors import DamagedFile, UnsafeFile, UnsupportedNetwork
from hnetkit.formats import numpy_values
from hnetkit.formats.numpy_values import NumpyArray, NumpyType, SpelledText, TorchType
from hnetkit.formats.open_file import OpenFile
from hnetkit.limits import Budget, is_index
from hnetkit.network import DType

MAX_NUMBERED = 10_000
"""Items of a dict with numeric keys: an optimizer has one for each tensor, and SDXL has 2700 tensors."""
_LARGEST_KEY = 1 << 60  # larger numbers may share a hash
FLOAT_STORAGES: Mapping[str, DType] = {
    "FloatStorage": "fp32",
    "HalfStorage": "fp16",
    "BFloat16Storage": "bf16",
    "DoubleStorage": "fp64",
}
STORAGE_TYPES = {
    *FLOAT_STORAGES,
    "IntStorage",
    "LongStorage",
    "ShortStorage",
    "CharStorage",
    "ByteStorage",
    "BoolStorage",
}

MAX_SIZE = 16 << 20  # bytes of structure; the largest real file has 60 kB
MAX_DEPTH = 200  # nested marks
MAX_INTEGER_BYTES = 16
MAX_ARGUMENTS = 8
MAX_NAME = 500  # characters of a global's name
MAX_KEPT = 1_000_000  # entries of the memo, which a pickle numbers from 0
_WINDOW = 64 << 10  # bytes that are read from the file together
_NOTHING = object()
_ENCODE = "_codecs.encode"


@dataclass(frozen=True, slots=True)
class StorageType:
    """A torch storage class, which names the element type of a storage."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A persistent reference to tensor bytes outside the pickle."""

    type: StorageType
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class TensorStub:
    """A view of a storage; offset and stride in elements. Not yet checked against the storage's real bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Foreign:
    """A global that the file asked for and that was not imported.

    Attributes:
        name: of the global.
        state: the attributes that the file wanted to set on an object of it.
    """

    name: str
    state: Any = None


@dataclass(frozen=True, slots=True)
class AllowedGlobal:
    """A global of the allow-list: calling it runs `make`, which only builds inert values."""

    name: str
    make: Callable[..., Any] = field(compare=False)


class ParsedDict(dict[Any, Any]):
    """A dict made by `collections.OrderedDict`. Its `_metadata` attribute, if the file sets one, is dropped."""


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, _requires_grad: Any, hooks: Any, marks: Any = None
) -> TensorStub:
    if not isinstance(storage, Storage) or not is_index(offset):
        raise UnsafeFile("a tensor without a storage")
    if not all(isinstance(part, tuple) and all(map(is_index, part)) for part in (shape, stride)):
        raise UnsafeFile("a tensor whose shape does not consist of numbers")
    if len(shape) != len(stride) or len(shape) > 8:
        raise UnsafeFile("a tensor whose shape and stride do not match")
    if marks or hooks:  # torch would negate or conjugate such a tensor
        raise UnsafeFile("a tensor that differs from its stored bytes")
    return TensorStub(storage, offset, shape, stride)


def _rebuild_parameter(data: Any, _requires_grad: Any, _hooks: Any) -> TensorStub:
    if not isinstance(data, TensorStub):
        raise UnsafeFile("a parameter that is not a tensor")
    return data


def _device_tensor(data: Any, kind: Any, _device: Any, _requires_grad: Any) -> TensorStub:
    if not isinstance(data, TensorStub) or not isinstance(kind, TorchType):
        raise UnsafeFile("a tensor of another device without its values")
    if FLOAT_STORAGES.get(data.storage.type.name) != kind.dtype:
        raise UnsupportedNetwork("a tensor that has another type on its device than in the file")
    return data


def _ordered_dict(items: Any = ()) -> ParsedDict:
    if not isinstance(items, list | tuple) or not all(isinstance(i, list | tuple) and len(i) == 2 for i in items):
        raise UnsafeFile("an ordered dict that does not consist of pairs")
    result = ParsedDict()
    for key, value in items:
        set_item(result, key, value)
    return result


def set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Sets an item of a parsed dict.

    Whoever chooses numeric keys can make all of them collide, so only as many are accepted as stay quick even then.
    The hashes of texts are random and cannot be chosen.

    Raises:
        UnsafeFile: the key is neither text nor number, or there are more numeric keys than any model has.
    """
    if isinstance(key, int | float) and (len(target) >= MAX_NUMBERED or not -_LARGEST_KEY < key < _LARGEST_KEY):
        raise UnsafeFile(
            f"a dict with more than {MAX_NUMBERED} items and numeric keys, or with a key that is too large"
        )
    if not isinstance(key, str | int | float | bytes | None):
        if isinstance(key, tuple | Foreign):
            key = f"<{type(key).__name__}>"  # no network has such a key; the dict is only looked at, never used
        else:
            raise UnsafeFile("a dict key that is neither text nor number")
    target[key] = value


# the globals that hypernetworks need; the reader itself handles storage classes such as FloatStorage
ALLOWED_GLOBALS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    # tensors of devices without storages, such as Macs' GPUs in torch 1.12
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _device_tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": numpy_values.device_tensor,
    "torch._utils._rebuild_xla_tensor": numpy_values.device_tensor,
    "numpy.core.multiarray.scalar": numpy_values.numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_values.numpy_scalar,
    "numpy.core.multiarray._reconstruct": numpy_values.reconstruct,
    "numpy._core.multiarray._reconstruct": numpy_values.reconstruct,
    "numpy.ndarray": numpy_values.reconstruct,
    "numpy.dtype": numpy_values.numpy_type,
    _ENCODE: numpy_values.encode,
}


@dataclass(slots=True)
class PickleReader:
    """Interprets one pickle after another in a file.

    Attributes:
        file: holds the pickles.
        position: where the next pickle begins, in bytes.
        end: where the last one ends at the latest.
        budget: charged one step for each opcode and each item that a call goes through, and the bytes of texts.
        named: names of all globals, each once, in order of appearance.
        foreign: those of them that are not on the allow-list.
    """

    file: OpenFile
    position: int
    end: int
    budget: Budget
    named: dict[str, None] = field(default_factory=dict)
    foreign: dict[str, None] = field(default_factory=dict)
    _stack: list[Any] = field(default_factory=list)
    _marks: list[int] = field(default_factory=list)
    # a list, because the file chooses these numbers, and could choose them to make every look-up in a dict slow
    _memo: list[Any] = field(default_factory=list)
    _kept: int = 0
    _storages: dict[str, Storage] = field(default_factory=dict)
    _window: bytes = b""
    _window_start: int = 0
    _bytes_left: int = MAX_SIZE

    def read(self) -> Any:
        """Returns the value of the pickle at `position`, and moves past it.

        Raises:
            UnsafeFile: an opcode, a call or a limit that no hypernetwork needs.
            DamagedFile: the pickle is cut short or contradicts itself.
        """
        self._stack, self._marks, self._memo, self._kept = [], [], [], 0
        while True:
            self.budget.work(1)
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                if len(self._stack) != 1 or self._marks:
                    raise DamagedFile("a pickle that does not end with exactly one value")
                return self._stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise UnsafeFile(f"pickle opcode 0x{code:02x}, which no network needs")
            operation(self)

    # --- bytes and stack

    def _take(self, size: int) -> bytes:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise UnsafeFile(f"more than {MAX_SIZE >> 20} MB of structure; a network has a few thousand bytes")
        part = self._peek(size)
        if len(part) < size or size < 0:
            raise DamagedFile("cut short in the middle of its structure")
        self.position += size
        return part

    def _peek(self, size: int) -> bytes:
        """The next `size` bytes, or as many as there are."""
        start = self.position - self._window_start
        if start + size > len(self._window):
            self._window_start, start = self.position, 0
            self._window = self.file.read_at(self.position, min(max(size, _WINDOW), self.end - self.position))
        return self._window[start : start + size]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        length = self._peek(MAX_NAME).find(b"\n")
        if length < 0:
            raise DamagedFile("a global without an end")
        line = self._take(length)
        self._take(1)
        return line.decode("utf-8", "backslashreplace")

    def _text(self, size: int, errors: str = "surrogatepass") -> str:
        self.budget.make(size)
        try:
            return self._take(size).decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise DamagedFile("text that is not UTF-8") from error

    def _unicode(self, size: int) -> str | SpelledText:
        """A text; one that only spells the bytes of a tensor stays in the file."""
        called = self._stack[-1] if self._stack else None
        if size <= numpy_values.SHORT or not isinstance(called, AllowedGlobal) or called.name != _ENCODE:
            return self._text(size)
        if size > self.end - self.position:
            raise DamagedFile("cut short in the middle of a tensor")
        self.position += size
        return SpelledText(self.file, self.position - size, size)

    def _bytes(self, size: int) -> bytes:
        self.budget.make(size)
        return self._take(size)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) <= floor:
            raise DamagedFile("a pickle that pops more values than it pushed")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _mark(self) -> None:
        if len(self._marks) >= MAX_DEPTH:
            raise UnsafeFile("a pickle nested too deeply")
        self._marks.append(len(self._stack))

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise DamagedFile("a pickle that closes a group it never opened")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    # --- containers

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Foreign):
            return
        if not isinstance(target, list):
            raise UnsafeFile("items appended to something that is not a list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Foreign):
            return
        if not isinstance(target, dict):
            raise UnsafeFile("items set on something that is not a dict")
        if len(items) % 2:
            raise DamagedFile("a dict with a key but no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            set_item(target, key, value)

    def _tuple(self, size: int) -> None:
        items = [self._pop() for _ in range(size)]
        self._push(tuple(reversed(items)))

    def _memoize(self, key: int) -> None:
        value = self._top()
        if key >= MAX_KEPT:
            raise UnsafeFile(f"a pickle that memoizes a value under the number {key}")
        if key >= len(self._memo):
            self._memo += [_NOTHING] * (key + 1 - len(self._memo))
        self._kept += self._memo[key] is _NOTHING
        self._memo[key] = value

    def _recall(self, key: int) -> None:
        if key >= len(self._memo) or self._memo[key] is _NOTHING:
            raise DamagedFile("a pickle that recalls a value it never memoized")
        self._push(self._memo[key])

    # --- globals and calls

    def _global(self, name: str) -> None:
        self.named[name] = None
        module, _, attribute = name.rpartition(".")
        if module == "torch" and attribute in STORAGE_TYPES:
            self._push(StorageType(attribute))
        elif name in ALLOWED_GLOBALS:
            self._push(AllowedGlobal(name, ALLOWED_GLOBALS[name]))
        elif module == "torch" and attribute in numpy_values.TORCH_FLOATS:
            self._push(TorchType(numpy_values.TORCH_FLOATS[attribute]))
        else:
            self.foreign[name] = None
            self._push(Foreign(name))

    def _stack_global(self) -> None:
        attribute, module = self._pop(), self._pop()
        if not isinstance(attribute, str) or not isinstance(module, str) or len(module) + len(attribute) > MAX_NAME:
            raise UnsafeFile("a global without a valid name")
        self._global(f"{module}.{attribute}")

    def _reduce(self) -> None:
        arguments, target = self._pop(), self._pop()
        if isinstance(target, Foreign):
            self._push(target)
            return
        if not isinstance(target, AllowedGlobal) or not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
            raise UnsafeFile("a call of something that is not callable")
        # a pickle can pass one large value to any number of calls
        self.budget.work(
            sum(len(argument) for argument in arguments if isinstance(argument, str | bytes | list | tuple))
        )
        if any(isinstance(argument, Foreign) for argument in arguments):
            self._push(next(argument for argument in arguments if isinstance(argument, Foreign)))
            return
        try:
            self._push(target.make(*arguments))
        except TypeError as error:
            raise DamagedFile(f"{target.name} with the wrong number of arguments") from error

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Foreign):
            target.state = state
            return
        if isinstance(target, NumpyArray):
            target.set_state(state)
            return
        # torch sets the version numbers of modules on a state dict
        if isinstance(target, ParsedDict) and isinstance(state, dict) and state.keys() <= {"_metadata"}:
            return
        # (version, byte order, and what only types of several fields have)
        if isinstance(target, NumpyType) and isinstance(state, tuple) and len(state) >= 2 and state[1] in tuple("<>|="):
            target.order = ">" if state[1] == ">" else "<"
            return
        raise UnsafeFile("attributes set on an object")

    def _new_object(self) -> None:
        self._pop()
        target = self._pop()
        if not isinstance(target, Foreign):
            raise UnsafeFile("an object built from a class")
        self._push(Foreign(target.name))

    def _persistent(self) -> None:
        reference = self._pop()
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            raise UnsafeFile("a persistent reference that is not a storage")
        _, kind, key, _location, numel, *view = reference
        if isinstance(kind, Foreign):
            self._push(kind)
            return
        if not isinstance(kind, StorageType) or not isinstance(key, str) or not is_index(numel):
            raise UnsafeFile("a persistent reference that is not a storage")
        if view and view[0] is not None:
            raise UnsafeFile("a view of another storage")
        storage = Storage(kind, key, numel)
        # torch creates a storage at its first mention, and ignores what later mentions say of it
        if self._storages.setdefault(key, storage) != storage:
            raise UnsafeFile("tensors that disagree about one storage: programs would read different weights")
        self._push(storage)

    def _integer(self, size: int) -> None:
        if size > MAX_INTEGER_BYTES:
            raise UnsafeFile(f"an integer of {size} bytes")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _protocol(self) -> None:
        if self._take(1)[0] > 5:
            raise DamagedFile("a pickle of an unknown protocol")

    def _skip_frame(self) -> None:
        self._take(8)


def _push_new(make: Callable[[], Any]) -> Callable[[PickleReader], None]:
    return lambda reader: reader._push(make())


_OPERATIONS: dict[int, Callable[[PickleReader], None]] = {
    0x80: PickleReader._protocol,
    0x95: PickleReader._skip_frame,
    ord("("): PickleReader._mark,
    ord("0"): lambda reader: reader._pop() and None,
    ord("N"): _push_new(lambda: None),
    0x88: _push_new(lambda: True),
    0x89: _push_new(lambda: False),
    ord("}"): _push_new(dict),
    ord("]"): _push_new(list),
    ord(")"): _push_new(tuple),
    ord("J"): lambda reader: reader._push(reader._number("<i")),
    ord("K"): lambda reader: reader._push(reader._number("<B")),
    ord("M"): lambda reader: reader._push(reader._number("<H")),
    0x8A: lambda reader: reader._integer(reader._number("<B")),
    0x8B: lambda reader: reader._integer(reader._number("<I")),
    ord("G"): lambda reader: reader._push(reader._number(">d")),
    ord("X"): lambda reader: reader._push(reader._unicode(reader._number("<I"))),
    0x8C: lambda reader: reader._push(reader._text(reader._number("<B"))),
    0x8D: lambda reader: reader._push(reader._unicode(reader._number("<Q"))),
    ord("U"): lambda reader: reader._push(reader._text(reader._number("<B"), "strict")),  # of Python 2; torch takes
    ord("T"): lambda reader: reader._push(reader._text(reader._number("<i"), "strict")),  # its bytes for UTF-8
    ord("C"): lambda reader: reader._push(reader._bytes(reader._number("<B"))),
    ord("B"): lambda reader: reader._push(reader._bytes(reader._number("<I"))),
    ord("a"): lambda reader: reader._append([reader._pop()]),
    ord("e"): lambda reader: reader._append(reader._since_mark()),
    ord("s"): lambda reader: reader._set_items([reader._pop(), reader._pop()][::-1]),
    ord("u"): lambda reader: reader._set_items(reader._since_mark()),
    ord("t"): lambda reader: reader._push(tuple(reader._since_mark())),
    0x85: lambda reader: reader._tuple(1),
    0x86: lambda reader: reader._tuple(2),
    0x87: lambda reader: reader._tuple(3),
    ord("q"): lambda reader: reader._memoize(reader._number("<B")),
    ord("r"): lambda reader: reader._memoize(reader._number("<I")),
    0x94: lambda reader: reader._memoize(reader._kept),
    ord("h"): lambda reader: reader._recall(reader._number("<B")),
    ord("j"): lambda reader: reader._recall(reader._number("<I")),
    ord("c"): lambda reader: reader._global(f"{reader._line()}.{reader._line()}"),
    0x93: PickleReader._stack_global,
    ord("R"): PickleReader._reduce,
    ord("b"): PickleReader._build,
    0x81: PickleReader._new_object,
    ord("Q"): PickleReader._persistent,
}
