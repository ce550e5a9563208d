"""Refusal of polyglot files, which are a model to hnetkit and something else to another loader.

A file that is two things at once shows one of them to hnetkit and may show the other to the next program, which runs
what it finds there. So a file that is read here as a model must be nothing else to any loader that is known to open
such files:

- torch first tries a file that is not a zip as a tar, and runs the pickles inside (`torch.load` of `storages`);
- it then runs the pickle that the file begins with, whatever the file is (`torch.load` of a safetensors file named
  ``.pt``);
- AUTOMATIC1111 and virus scanners use Python's zipfile, which searches for a zip from the end of the file;
- gzip unpacks files that begin with its mark, and HDF5 libraries search at several offsets.

Whether a file is a pickle that would import something is found by walking over its opcodes. Nothing is built: of the
stack only its height is tracked, and which values are text. A file is harmless if Python's own reader would certainly
fail before an import; where that is uncertain it is refused.

Source: CPython's Lib/tarfile.py, Lib/zipfile.py, Lib/pickletools.py and Modules/_pickle.c, torch/serialization.py
(behavior only).
"""

from __future__ import annotations

import pickletools
import re
import struct

from hnetkit.errors import UnsafeFile
from hnetkit.formats.open_file import OpenFile

_TAR_BLOCK, _TAR_SUM = 512, slice(148, 156)
_ZIP_TAIL = (1 << 16) + 22  # bytes: a zip's end record with the longest comment
_ZIP_END = struct.Struct("<4s4H2LH")
_HDF5, _HDF5_FIRST = b"\x89HDF\r\n\x1a\n", 512

_STEPS = 100_000
_CHUNK = 64 << 10  # bytes
_OPCODES = {ord(op.code): op for op in pickletools.opcodes}
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<i",
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}
_PROTOCOLS = 5
_PROTO, _STOP, _MARK, _POP, _DUP, _GLOBAL, _INST, _STACK_GLOBAL = b"\x80.(02ci\x93"
_MEMOIZE = 0x94
# extension codes, which no program registers; references that only torch's own reader follows; buffers
_FAILING = b"\x82\x83\x84PQ\x97\x98"
_TEXTS = b"STUVX\x8c\x8d"
_PUT, _GET = {ord("p"): None, ord("q"): "<B", ord("r"): "<I"}, {ord("g"): None, ord("h"): "<B", ord("j"): "<I"}
_NAME = re.compile(rb"[\w.]+")
# what the line after an opcode may hold; after V anything
_LINES = {
    **dict.fromkeys(b"IL", re.compile(rb"\s*[-+]?\w+\s*")),
    ord("F"): re.compile(rb"[-+.\w\s]+"),
    ord("S"): re.compile(rb"\s*(['\"]).*\1\s*", re.DOTALL),
    **dict.fromkeys(b"pg", re.compile(rb"\s*\+?[0-9]{1,9}(_[0-9]{1,9})?\s*")),
}


def refuse_polyglot(file: OpenFile, *, container: str) -> None:
    """Raises UnsafeFile for a file that another program would read as something else.

    Args:
        container: what the file is about to be read as: ``"zip"``, ``"legacy"`` or ``"safetensors"``.
    """
    other = _other_format(file, container)
    if other:
        raise UnsafeFile(
            f"{file.path}: is {other} as well: other programs may read that instead, and run code from it",
            hint="do not load this file with any program; get it again from its source",
        )


def _other_format(file: OpenFile, container: str) -> str | None:
    if is_tar(file.read_at(0, min(file.size, _TAR_BLOCK))):
        return "a tar archive"
    if container != "zip" and _ends_as_zip(file):
        return "a zip archive"
    if container == "safetensors" and imports_something(file):
        return "a pickle"
    if file.read_at(0, min(file.size, 3)) == b"\x1f\x8b\x08":
        return "a gzip archive"
    return "an HDF5 file" if _is_hdf5(file) else None


def is_tar(block: bytes) -> bool:
    """Whether Python's tarfile accepts a block of 512 bytes as a header, by either way to compute its checksum."""
    if len(block) < _TAR_BLOCK:
        return False
    stated = _tar_number(block[_TAR_SUM])
    rest = block[: _TAR_SUM.start] + b" " * 8 + block[_TAR_SUM.stop : _TAR_BLOCK]
    return stated in (sum(rest), sum(struct.unpack(f"{_TAR_BLOCK}b", rest)))


def _tar_number(field: bytes) -> int | None:
    if field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0o377:
        return int.from_bytes(field, "big", signed=True)
    try:
        return int(field.split(b"\0", 1)[0].decode("ascii").strip() or "0", 8)
    except ValueError:
        return None


def _ends_as_zip(file: OpenFile) -> bool:
    """Whether there is a zip's end record near the end, and a directory where it says (or none, in an empty zip)."""
    start = max(0, file.size - _ZIP_TAIL)
    tail = file.read_at(start, file.size - start)
    for found in re.finditer(rb"PK\x05\x06", tail):
        record = found.start()
        if record + _ZIP_END.size > len(tail):
            continue
        size, offset = _ZIP_END.unpack_from(tail, record)[5:7]
        if tail[max(0, record - 20) :].startswith(b"PK\6\7"):
            return True
        # some readers use the stated start of the directory, others the bytes before the end record
        if not size or any(_has(file, at, b"PK\1\2") for at in (start + record - size, offset)):
            return True
    return False


def _has(file: OpenFile, offset: int, mark: bytes) -> bool:
    return 0 <= offset <= file.size - len(mark) and file.read_at(offset, len(mark)) == mark


def _is_hdf5(file: OpenFile) -> bool:
    offset = _HDF5_FIRST
    while offset < file.size:
        if _has(file, offset, _HDF5):
            return True
        offset *= 2
    return False


def imports_something(file: OpenFile) -> bool:
    """Whether Python's pickle, reading a file from its first byte, would come to import something."""
    walk = _PickleWalk(file)
    for _ in range(_STEPS):
        found = walk.step()
        if found is not None:
            return found
    return True


class _PickleWalk:
    """A walk over a pickle's opcodes that tracks its stack as far as it matters.

    Attributes:
        frames: the values pushed since each mark; True for a text.
    """

    def __init__(self, file: OpenFile) -> None:
        self.file, self.position = file, 0
        self.frames: list[list[bool]] = [[]]
        self.memo: dict[int, bool] = {}

    def step(self) -> bool | None:
        """Steps over one opcode: True if it imports, False if the pickle ends or fails, None to continue."""
        code = (self._take(1) or b"\0")[0]
        operation = _OPCODES.get(code)
        if operation is None or code == _STOP or code in _FAILING:
            return False
        if code in (_GLOBAL, _INST):
            module, name = self._line(), self._line()
            return bool(module and name and _NAME.fullmatch(module) and _NAME.fullmatch(name))
        if code == _STACK_GLOBAL:
            return self.frames[-1][-2:] == [True, True]
        argument = self._argument(code, operation.arg.n if operation.arg else 0)
        if argument is None or (code == _PROTO and argument[0] > _PROTOCOLS):
            return False
        return None if self._change(code, operation, argument) else False

    def _change(self, code: int, operation: pickletools.OpcodeInfo, argument: bytes) -> bool:
        """Applies an opcode to the stack; False if it would fail."""
        if code == _MARK:
            self.frames.append([])
            return True
        if code == _POP and not self.frames[-1] and len(self.frames) > 1:
            self.frames.pop()
            return True
        need = len(operation.stack_before)
        if pickletools.markobject in operation.stack_before:
            need = operation.stack_before.index(pickletools.markobject)
            if len(self.frames) == 1:
                return False
            self.frames.pop()
        stack = self.frames[-1]
        if code in _PUT or code == _MEMOIZE:
            if stack:
                self.memo[_index(_PUT[code], argument) if code in _PUT else len(self.memo)] = stack[-1]
            return bool(stack)
        if code in _GET:
            index = _index(_GET[code], argument)
            stack.append(self.memo.get(index, False))
            return index in self.memo
        if len(stack) < need:
            return False
        is_text = code in _TEXTS or (code == _DUP and stack[-1])
        del stack[len(stack) - need :]
        stack += [is_text] * len(operation.stack_after)
        return True

    def _argument(self, code: int, size: int) -> bytes | None:
        """Moves past an opcode's argument and returns it as far as it matters; None if it is invalid."""
        if size == pickletools.UP_TO_NEWLINE:
            line = self._line()
            return line if line is not None and (code not in _LINES or _LINES[code].fullmatch(line)) else None
        if size not in _LENGTHS:
            return self._take(size)
        stated = self._take(struct.calcsize(_LENGTHS[size]))
        length = struct.unpack(_LENGTHS[size], stated)[0] if stated else -1
        self.position += max(0, length)
        return b"" if length >= 0 and self.position <= self.file.size else None

    def _take(self, size: int) -> bytes | None:
        if self.position + size > self.file.size:
            return None
        self.position += size
        return self.file.read_at(self.position - size, size)

    def _line(self) -> bytes | None:
        """The bytes up to the next line end (only the first chunk of a long line); None without a line end."""
        first = b""
        for start in range(self.position, self.file.size, _CHUNK):
            part = self.file.read_at(start, min(_CHUNK, self.file.size - start))
            end = part.find(b"\n")
            first = first or part[: end if end >= 0 else None]
            if end >= 0:
                self.position = start + end + 1
                return first
        return None


def _index(form: str | None, argument: bytes) -> int:
    return int(argument) if form is None else int(struct.unpack(form, argument)[0])
