"""From a Hypernetwork to a file: `.pt` for the programs that know no other, safetensors for everything else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hnetkit.errors import DamagedFile, FileRefused, HnetkitError, NotAHypernetwork, UnsupportedNetwork, UsageError
from hnetkit.files import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES, new_file, refuse_existing
from hnetkit.formats.a1111 import require_metadata
from hnetkit.formats.convention import a1111_metadata, header_metadata
from hnetkit.formats.reading import is_sparse, look
from hnetkit.formats.safetensors_file import MAX_HEADER
from hnetkit.formats.source import OpenFile
from hnetkit.formats.write_pt import Pickled, write_zip
from hnetkit.hashes import damaged_parts, sha256_of
from hnetkit.network import ITEM_SIZE, TORCH_NAME, DType, Hypernetwork, TensorRef

_CHUNK = 4 << 20  # bytes
_VALUES = 1 << 20  # converted at a time
_WORTHLESS = ("empty", "html", "git-lfs")  # what stands where a download failed
_HEAD = 64 << 10  # bytes
# the name of a tensor, pickled or in a header; or a header's own word
_OF_A_NETWORK = re.compile(rb'(?:X.{4}|[U\x8c].|")(?:\d+\.[kv]\.)?linear[\d.]|"hnetkit\.hypernetwork"', re.DOTALL)
_CODES: dict[DType, str] = {"fp16": "F16", "bf16": "BF16", "fp32": "F32", "fp64": "F64"}


def save(
    net: Hypernetwork, path: str | os.PathLike[str], *, dtype: DType | None = None, overwrite: bool = False
) -> None:
    """Writes a network to a file, whole or not at all. Tensors stream through: memory stays small.

    Args:
        net: what to write; its tensors keep their bytes where no dtype changes, its metadata values their types.
        path: ``.safetensors``, ``.pt``, ``.ckpt`` or ``.bin`` decides the container.
        dtype: ``"fp32"``, ``"fp16"`` or ``"bf16"`` to convert every tensor; None keeps each as it is.
        overwrite: replace an earlier network, whole or broken; no file of another kind.

    Raises:
        UsageError: another suffix, no such dtype, or metadata that no file could give back.
        OutputExists: see `require_output`.
        DamagedFile: the network's own file is not as it was saved.
        FileRefused: a value of the network does not fit into `dtype`, or its metadata into a header.
    """
    require_output(path, overwrite=overwrite)
    require_metadata(net.metadata)
    damaged = damaged_parts(net)
    if damaged:
        raise DamagedFile(
            f"{net.path}: the bytes of {damaged[0]} do not have its checksum",
            hint="get the file again, or an earlier save of it",
        )
    if dtype is not None and dtype not in ITEM_SIZE:
        raise UsageError(f"{dtype}: no type of weights", hint=f"one of {', '.join(ITEM_SIZE)}")
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
    """Accepts the name of a network's file to write.

    Raises:
        OutputExists: the file exists, and `overwrite` is False or it is of another kind.
    """
    refuse_existing(path, overwrite=overwrite, is_other=_is_other)


def _is_other(path: Path) -> bool:
    """Whether a file is anything but a network, one that broke, or what a failed download left.

    What is damaged was a network where its beginning still says so.
    """
    try:
        with OpenFile(path) as file:
            refusal = look(file).refusal
            if isinstance(refusal, DamagedFile):
                return is_sparse(file) or not _OF_A_NETWORK.search(file.read_at(0, min(file.size, _HEAD)))
    except HnetkitError:  # nobody knows what it is
        return True
    if isinstance(refusal, NotAHypernetwork):
        return refusal.kind not in _WORTHLESS
    return not isinstance(refusal, UnsupportedNetwork | None)


def source_sha256(net: Hypernetwork) -> str | None:
    """Returns the sha256 of the file that others know this network by; None for one made in this process."""
    if net.source_sha256 or net.source is None:
        return net.source_sha256
    return sha256_of(net.source)


def _write_pt(net: Hypernetwork, file: BinaryIO, dtype: DType | None) -> None:
    pickled = Pickled()
    for width in net.widths:
        pickled.pair(width, [mlp.tensors for mlp in net.mlps[width]], dtype)
    for key, value in a1111_metadata(net).items():
        pickled.item(key, value)
    # the same order as that of the storages in the pickle
    named = ((f"{width}.{side}.{key}", tensor) for width, side, key, tensor in net.each_tensor())
    write_zip(file, pickled.finish(), (_chunks(name, tensor, dtype) for name, tensor in named))


def _write_safetensors(net: Hypernetwork, file: BinaryIO, dtype: DType | None) -> None:
    named = {f"{width}.{side}.{key}": tensor for width, side, key, tensor in net.each_tensor()}
    # wide types first keeps every tensor aligned to its own size
    order = sorted(named, key=lambda name: -ITEM_SIZE[dtype or named[name].dtype])
    begin, places = 0, {}
    for name in order:
        size = named[name].numel * ITEM_SIZE[dtype or named[name].dtype]
        places[name] = [begin, begin + size]
        begin += size
    header: dict[str, object] = {"__metadata__": header_metadata(net, source_sha256(net))}
    for name, tensor in named.items():
        code = _CODES[dtype or tensor.dtype]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": places[name]}
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    if len(data) > MAX_HEADER:
        raise FileRefused(f"{net.name}: its metadata takes {len(data):,} bytes; a header of {MAX_HEADER:,} is read")
    file.write(len(data).to_bytes(8, "little") + data)
    for name in order:
        for chunk in _chunks(name, named[name], dtype):
            file.write(chunk)


def _chunks(name: str, tensor: TensorRef, dtype: DType | None) -> Iterator[bytes]:
    """The tensor's bytes, converted where `dtype` is another one."""
    if dtype is not None and dtype != tensor.dtype:
        for first in range(0, tensor.numel, _VALUES):
            place = tensor.offset + first * ITEM_SIZE[tensor.dtype]
            part = TensorRef(tensor.dtype, (min(_VALUES, tensor.numel - first),), tensor.file, place)
            yield _converted(name, part, dtype)
        return
    for position in range(0, tensor.nbytes, _CHUNK):
        yield tensor.file.read_at(tensor.offset + position, min(_CHUNK, tensor.nbytes - position))


def _converted(name: str, tensor: TensorRef, dtype: DType) -> bytes:
    import torch

    before = tensor.torch()
    after = before.to(getattr(torch, TORCH_NAME[dtype]))
    if not torch.equal(before.isfinite(), after.isfinite()):
        largest = before[before.isfinite()].abs().max().item()
        raise FileRefused(
            f"{name}: a weight of {largest:g} does not fit into {dtype}",
            hint="use --dtype bf16, which holds the range of fp32",
        )
    return after.view(torch.uint8).numpy().tobytes()
