"""Writes A1111's `.pt`: the smallest torch zip, which A1111's own safety check accepts and torch reads safely.

Only ``data.pkl``, ``data/N`` and ``version`` are in it: newer members make A1111's check refuse the file. The pickle
names three globals and nothing else, and is written here opcode by opcode.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from hnetkit.network import DType, TensorRef

ROOT = "archive"  # the same for every file, so that the same content gives the same bytes
_STORAGE = {"fp32": "FloatStorage", "fp16": "HalfStorage", "bf16": "BFloat16Storage", "fp64": "DoubleStorage"}
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


class Pickled:
    """Pickle bytes of a network's dict, built piece by piece (protocol 2, no memo)."""

    def __init__(self) -> None:
        self.parts: list[bytes] = [b"\x80\x02}("]
        self.storages: list[TensorRef] = []

    def finish(self) -> bytes:
        return b"".join([*self.parts, b"u."])

    def pair(self, width: int, sides: Iterable[Mapping[str, TensorRef]], dtype: DType | None) -> None:
        """Adds ``width: (K tensors, V tensors)``."""
        self.parts.append(encode(width))
        for side in sides:
            self.parts.append(_ORDERED_DICT + b"(")
            for name, tensor in side.items():
                self.parts.append(encode(name))
                self._tensor(tensor, dtype or tensor.dtype)
            self.parts.append(b"u")
        self.parts.append(b"\x86")

    def item(self, key: str, value: Any) -> None:
        """Adds one key of the metadata."""
        self.parts.append(encode(key) + encode(value))

    def _tensor(self, tensor: TensorRef, dtype: DType) -> None:
        stride: list[int] = []
        step = 1
        for length in reversed(tensor.shape):
            stride.insert(0, step)
            step *= length
        storage = f"ctorch\n{_STORAGE[dtype]}\n".encode()
        key = str(len(self.storages))
        reference = b"(" + encode("storage") + storage + encode(key) + encode("cpu") + encode(tensor.numel) + b"tQ"
        view = encode(0) + encode(tensor.shape) + encode(tuple(stride)) + b"\x89" + _ORDERED_DICT
        self.parts.append(b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + view + b"tR")
        self.storages.append(tensor)


def encode(value: Any) -> bytes:
    """Returns the pickle opcodes of a metadata value: None, bool, int, float, text, list, tuple or dict."""
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return _encode_int(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, tuple):
        return b"(" + b"".join(map(encode, value)) + b"t" if value else b")"
    if isinstance(value, list):
        return b"](" + b"".join(map(encode, value)) + b"e"
    if isinstance(value, Mapping):
        return b"}(" + b"".join(encode(key) + encode(item) for key, item in value.items()) + b"u"
    raise TypeError(f"{type(value).__name__} in a network's metadata")


def _encode_int(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + struct.pack("<B", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + struct.pack("<B", len(data)) + data


def write_zip(file: BinaryIO, pickle: bytes, storages: Iterable[Iterable[bytes]]) -> None:
    """Writes the zip: the pickle, then each storage's bytes in chunks."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", [pickle])
        for number, chunks in enumerate(storages):
            _add(archive, f"data/{number}", chunks)
        _add(archive, "version", [b"3\n"])


def _add(archive: zipfile.ZipFile, name: str, chunks: Iterable[bytes]) -> None:
    member = zipfile.ZipInfo(f"{ROOT}/{name}")  # its date is fixed: 1980-01-01
    with archive.open(member, "w") as target:
        for chunk in chunks:
            target.write(chunk)
