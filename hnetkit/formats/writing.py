"""Writing of files: safetensors of any tensors and of hypernetworks, and `.pt` for programs that read nothing else.

The `.pt` is the smallest torch zip: A1111's own safety check accepts it, and torch reads it safely. It holds only
``data.pkl``, ``data/N`` and ``version``, because newer members make A1111's check refuse the file. The pickle names
three globals and nothing else, and is written opcode by opcode.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from hnetkit.errors import DamagedFile, FileRefused, HnetkitError, NotAHypernetwork, UnsupportedNetwork, UsageError
from hnetkit.files import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES, new_file, refuse_existing
from hnetkit.formats.a1111 import require_metadata
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import identify, is_sparse
from hnetkit.formats.safetensors_file import MAX_HEADER
from hnetkit.formats.safetensors_schema import a1111_metadata, header_metadata
from hnetkit.hashes import damaged_parts, sha256_of
from hnetkit.network import ITEM_SIZE, TORCH_NAME, DType, Hypernetwork, TensorRef

_CHUNK = 4 << 20  # bytes
_VALUES = 1 << 20  # converted at a time
_WORTHLESS = ("empty", "zeros", "html", "git-lfs")  # kinds of files that failed downloads leave
_HEAD = 64 << 10  # bytes
# the name of a tensor, pickled or in a header, or the format's name in a header
_OF_A_NETWORK = re.compile(rb'(?:X.{4}|[U\x8c].|")(?:\d+\.[kv]\.)?linear[\d.]|"hnetkit\.hypernetwork"', re.DOTALL)
_CODES: dict[DType, str] = {"fp16": "F16", "bf16": "BF16", "fp32": "F32", "fp64": "F64"}

ROOT = "archive"  # the same for every file, so that equal content gives equal bytes
_STORAGE = {"fp32": "FloatStorage", "fp16": "HalfStorage", "bf16": "BFloat16Storage", "fp64": "DoubleStorage"}
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def save(
    net: Hypernetwork, path: str | os.PathLike[str], *, dtype: DType | None = None, overwrite: bool = False
) -> None:
    """Writes a network to a file, completely or not at all. Tensors are streamed, so memory stays small.

    Args:
        net: the network; tensors keep their bytes unless their dtype changes, metadata values keep their types.
        path: ``.safetensors``, ``.pt``, ``.ckpt`` or ``.bin`` decides the container.
        dtype: ``"fp32"``, ``"fp16"`` or ``"bf16"`` to convert every tensor; None keeps each as it is.
        overwrite: replace an existing network, whole or damaged, but no file of another kind.

    Raises:
        UsageError: another suffix, an unknown dtype, or metadata that no file can store.
        OutputExists: see `require_output`.
        DamagedFile: the network's own file was damaged since it was saved.
        FileRefused: a value of the network does not fit `dtype`, or its metadata does not fit a header.
    """
    require_output(path, overwrite=overwrite)
    require_metadata(net.metadata)
    damaged = damaged_parts(net)
    if damaged:
        raise DamagedFile(
            f"{net.path}: the bytes of {damaged[0]} do not match its checksum",
            hint="get the file again, or an earlier save of it",
        )
    if dtype is not None and dtype not in ITEM_SIZE:
        raise UsageError(f"{dtype}: not a type of weights", hint=f"use one of {', '.join(ITEM_SIZE)}")
    suffix = Path(path).suffix.lower()
    if suffix in SAFETENSORS_SUFFIXES:
        with new_file(path, overwrite=overwrite) as file:
            _write_safetensors(net, file, dtype)
    elif suffix in PICKLE_SUFFIXES:
        with new_file(path, overwrite=overwrite) as file:
            _write_pt(net, file, dtype)
    else:
        raise UsageError(f"{os.fspath(path)}: the suffix decides the format", hint="name it .safetensors, .pt or .ckpt")


def require_output(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Checks that a network may be written to `path`.

    Raises:
        OutputExists: the file exists, and `overwrite` is False or it is of another kind.
    """
    refuse_existing(path, overwrite=overwrite, is_other=_is_other)


def _is_other(path: Path) -> bool:
    """Whether a file is anything but a network, a damaged network, or the remains of a failed download.

    A damaged file counts as a network if its beginning still looks like one.
    """
    try:
        with OpenFile(path) as file:
            refusal = identify(file).refusal
            if isinstance(refusal, DamagedFile):
                return is_sparse(file) or not _OF_A_NETWORK.search(file.read_at(0, min(file.size, _HEAD)))
    except HnetkitError:  # unknown, so it is kept
        return True
    if isinstance(refusal, NotAHypernetwork):
        return refusal.kind not in _WORTHLESS
    return not isinstance(refusal, UnsupportedNetwork | None)


def source_sha256(net: Hypernetwork) -> str | None:
    """Returns the sha256 of the file by which others know this network; None for one made in this process."""
    if net.source_sha256 or net.source is None:
        return net.source_sha256
    return sha256_of(net.source)


def _write_pt(net: Hypernetwork, file: BinaryIO, dtype: DType | None) -> None:
    pickled = PickleWriter()
    for width in net.widths:
        pickled.add_pair(width, [mlp.tensors for mlp in net.mlps[width]], dtype)
    for key, value in a1111_metadata(net).items():
        pickled.add_item(key, value)
    # in the order in which the pickle numbers its storages
    named = ((f"{width}.{side}.{key}", tensor) for width, side, key, tensor in net.each_tensor())
    write_zip(file, pickled.finish(), (_chunks(name, tensor, dtype) for name, tensor in named))


def _write_safetensors(net: Hypernetwork, file: BinaryIO, dtype: DType | None) -> None:
    named = {f"{width}.{side}.{key}": tensor for width, side, key, tensor in net.each_tensor()}
    write_tensors(file, named, header_metadata(net, source_sha256(net)), name=net.name, dtype=dtype)


def write_tensors(
    file: BinaryIO,
    tensors: Mapping[str, TensorRef],
    metadata: Mapping[str, str],
    *,
    name: str,
    dtype: DType | None = None,
) -> None:
    """Writes tensors as safetensors, one chunk in memory at a time.

    Args:
        file: see `hnetkit.files.new_file`.
        tensors: by name.
        metadata: of the header.
        name: of what is written, for messages.
        dtype: to convert every tensor; None keeps each as it is.

    Raises:
        FileRefused: a value does not fit `dtype`, or the metadata does not fit a header.
    """
    # with wide types first, every tensor is aligned to its own size
    order = sorted(tensors, key=lambda key: -ITEM_SIZE[dtype or tensors[key].dtype])
    begin, offsets = 0, {}
    for key in order:
        size = tensors[key].numel * ITEM_SIZE[dtype or tensors[key].dtype]
        offsets[key] = [begin, begin + size]
        begin += size
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    for key, tensor in tensors.items():
        code = _CODES[dtype or tensor.dtype]
        header[key] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": offsets[key]}
    write_header(file, header, name)
    for key in order:
        for chunk in _chunks(key, tensors[key], dtype):
            file.write(chunk)


def write_header(file: BinaryIO, header: Mapping[str, object], name: str) -> None:
    """Writes the header of a safetensors file; raises FileRefused where none of its readers would take it."""
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    if len(data) > MAX_HEADER:
        raise FileRefused(f"{name}: its header would take {len(data):,} bytes; at most {MAX_HEADER:,} are read")
    file.write(len(data).to_bytes(8, "little") + data)


def _chunks(name: str, tensor: TensorRef, dtype: DType | None) -> Iterator[bytes]:
    """The tensor's bytes, converted if `dtype` is another type."""
    if dtype is not None and dtype != tensor.dtype:
        for first in range(0, tensor.numel, _VALUES):
            offset = tensor.offset + first * ITEM_SIZE[tensor.dtype]
            part = TensorRef(tensor.dtype, (min(_VALUES, tensor.numel - first),), tensor.file, offset)
            yield _converted(name, part, dtype)
        return
    yield from tensor.parts(_CHUNK)


def _converted(name: str, tensor: TensorRef, dtype: DType) -> bytes:
    import torch

    before = tensor.torch()
    after = before.to(getattr(torch, TORCH_NAME[dtype]))
    if not torch.equal(before.isfinite(), after.isfinite()):
        largest = before[before.isfinite()].abs().max().item()
        raise FileRefused(
            f"{name}: a weight of {largest:g} does not fit {dtype}",
            hint="use --dtype bf16, which holds the range of fp32",
        )
    if before.any() and not after.any():
        largest = before.abs().max().item()
        raise FileRefused(
            f"{name}: all its values, up to {largest:g}, become 0 in {dtype}",
            hint="use --dtype bf16, which holds the range of fp32",
        )
    return after.view(torch.uint8).numpy().tobytes()


class PickleWriter:
    """Writes the pickle of a network's dict piece by piece (protocol 2, no memo)."""

    def __init__(self) -> None:
        self.parts: list[bytes] = [b"\x80\x02}("]
        self.storages: list[TensorRef] = []

    def finish(self) -> bytes:
        return b"".join([*self.parts, b"u."])

    def add_pair(self, width: int, sides: Iterable[Mapping[str, TensorRef]], dtype: DType | None) -> None:
        """Adds ``width: (K tensors, V tensors)``."""
        self.parts.append(encode(width))
        for side in sides:
            self.parts.append(_ORDERED_DICT + b"(")
            for name, tensor in side.items():
                self.parts.append(encode(name))
                self._tensor(tensor, dtype or tensor.dtype)
            self.parts.append(b"u")
        self.parts.append(b"\x86")

    def add_item(self, key: str, value: Any) -> None:
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
