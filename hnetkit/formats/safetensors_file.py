"""The safetensors container: a JSON header, then tensors that tile the rest of the file.

Source: the format's own description, huggingface/safetensors README.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hnetkit.errors import DamagedFile, FileRefused, UnsafeFile, UnsupportedNetwork
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.polyglot import refuse_polyglot
from hnetkit.limits import json_size, parse_json
from hnetkit.network import DType, TensorRef
from hnetkit.text import is_text, shorten

MAX_HEADER = 10 << 20
"""Bytes; a network has 20 kB, the largest checkpoints 1 MB, a LoRA the tags of all its training images."""

MAX_RANK = 8

_DTYPES: Mapping[str, DType] = {"F16": "fp16", "BF16": "bf16", "F32": "fp32", "F64": "fp64"}
_ITEM_BITS = {
    "F4": 4,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the header: type by the format's name, shape, and offset of its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A safetensors file with a consistent header."""

    file: OpenFile
    metadata: Mapping[str, str]
    entries: Mapping[str, TensorEntry]

    def tensor(self, name: str) -> TensorRef:
        """Returns a reference to a tensor's bytes.

        Raises:
            UnsupportedNetwork: its type is not a floating-point type of networks.
        """
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            raise UnsupportedNetwork(
                f"{self.file.path}: {shorten(name)} has the type {entry.dtype}; weights are floating-point"
            )
        return TensorRef(_DTYPES[entry.dtype], entry.shape, self.file, entry.offset)

    def nbytes(self, name: str) -> int:
        """Returns the size of a tensor in bytes."""
        return _bits(self.entries[name]) // 8


def read_safetensors(file: OpenFile) -> SafetensorsFile:
    """Reads the header.

    Raises:
        DamagedFile: the file is truncated, has no valid header, or uses a name twice.
        UnsafeFile: sizes or offsets that contradict each other, or bytes that belong to no tensor.
    """
    refuse_polyglot(file, container="safetensors")
    size = int.from_bytes(file.read_at(0, 8), "little")
    if MAX_HEADER < size <= file.size - 8:
        raise FileRefused(f"{file.path}: a safetensors header of {size:,} bytes; at most {MAX_HEADER:,} are read")
    if size > file.size - 8:
        raise DamagedFile(f"{file.path}: cut short, or not a safetensors file: a header of {size} bytes")
    data = file.read_at(8, size)
    file.budget.make(json_size(data))
    try:
        header = parse_json(data.decode("utf-8"), pairs=_without_doubles)
    except ValueError as error:
        raise DamagedFile(f"{file.path}: a safetensors header that is not JSON, or names something twice") from error
    if not isinstance(header, dict):
        raise DamagedFile(f"{file.path}: a safetensors header that is not an object")
    stated = header.pop("__metadata__", None)
    metadata = {} if stated is None else stated
    if not isinstance(metadata, dict) or not all(map(_is_text, [*metadata, *metadata.values()])):
        raise DamagedFile(f"{file.path}: safetensors metadata that is not text")
    if not all(map(_is_text, header)):
        raise DamagedFile(f"{file.path}: a safetensors header with a name that is not text")
    entries: dict[str, TensorEntry] = {}
    ranges: list[tuple[int, int]] = []
    for name, stated in header.items():
        entries[name], begin, end = _entry(file, name, stated, 8 + size)
        if end > begin:
            ranges.append((begin, end))
    _check_tiling(file, ranges, file.size - 8 - size)
    return SafetensorsFile(file, metadata, entries)


def _is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 can encode: other readers refuse a header with a lone surrogate."""
    return isinstance(value, str) and is_text(value)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _entry(file: OpenFile, name: str, stated: Any, start: int) -> tuple[TensorEntry, int, int]:
    try:
        dtype, shape, (begin, end) = stated["dtype"], stated["shape"], stated["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise DamagedFile(f"{file.path}: {shorten(name)} is not described as a tensor") from error
    if not isinstance(dtype, str) or dtype not in _ITEM_BITS or not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise DamagedFile(f"{file.path}: {shorten(name)} is not described as a tensor")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, begin, end)):
        raise DamagedFile(f"{file.path}: {shorten(name)} is not described as a tensor")
    entry = TensorEntry(dtype, tuple(shape), start + begin)
    if _bits(entry) != (end - begin) * 8 or start + end > file.size:
        raise UnsafeFile(f"{file.path}: {shorten(name)} reaches outside of the file, or its size contradicts its shape")
    return entry, begin, end


def _bits(entry: TensorEntry) -> int:
    return math.prod(entry.shape) * _ITEM_BITS[entry.dtype]


def _check_tiling(file: OpenFile, ranges: list[tuple[int, int]], size: int) -> None:
    position = 0
    for begin, end in sorted(ranges):
        if begin != position:
            break
        position = end
    else:
        if position == size:
            return
    raise UnsafeFile(f"{file.path}: tensors overlap, or leave bytes that belong to none")
