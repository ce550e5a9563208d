"""Files written by `torch.save`, zip or legacy: the saved value, and the offset of each tensor's bytes.

Source: torch/serialization.py (behavior only): a zip since torch 1.6, before that one pickle after another.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hnetkit.errors import DamagedFile, FileRefused, UnsafeFile, UnsupportedNetwork
from hnetkit.formats import pickle_reader
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.pickle_reader import FLOAT_STORAGES, PickleReader
from hnetkit.formats.polyglot import refuse_polyglot
from hnetkit.formats.torch_zip import listed_names, read_members, torch_root, unexpected_members
from hnetkit.network import ITEM_SIZE, Checksum, TensorRef
from hnetkit.text import shorten

LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_LEGACY_PROTOCOL = 1001
_VERSION = re.compile(rb"([1-9]|10)\n?")
_ALIGNMENT = re.compile(rb"[1-9]\d{0,14}")  # bytes; torch reads it as a number


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The structure of a torch file.

    Attributes:
        value: the saved object, with inert stand-ins for tensors (`pickle_reader.TensorStub`) and unknown globals.
        named: names of the globals in the file.
        foreign: those of them that are not on the allow-list.
        storages: storage key -> (offset, size) of its bytes in `file`.
        checksums: of the storages, if the container states them.
    """

    file: OpenFile
    format: Literal["pt-zip", "pt-legacy"]
    value: Any
    named: tuple[str, ...]
    foreign: tuple[str, ...]
    storages: Mapping[str, tuple[int, int]]
    checksums: tuple[Checksum, ...] = ()

    def tensor(self, stub: pickle_reader.TensorStub | TensorRef, name: str) -> TensorRef:
        """Returns a reference to the tensor's bytes, checked against its storage if it has one.

        Raises:
            UnsupportedNetwork: its type is not floating-point, or it is not contiguous.
            UnsafeFile: it reaches outside its storage, or the storage has another size than stated.
        """
        if isinstance(stub, TensorRef):
            return stub
        where = f"{self.file.path}: {shorten(name)}"
        dtype = FLOAT_STORAGES.get(stub.storage.type.name)
        if dtype is None:
            raise UnsupportedNetwork(f"{where} has the type {stub.storage.type.name}; weights are floating-point")
        if stub.storage.key not in self.storages:
            raise DamagedFile(f"{where} has no bytes in the file")
        offset, size = self.storages[stub.storage.key]
        numel, item = math.prod(stub.shape), ITEM_SIZE[dtype]
        if stub.storage.numel * item != size or stub.offset + numel > stub.storage.numel:
            raise UnsafeFile(f"{where} reaches outside its storage")
        if numel and not _is_contiguous(stub):
            raise UnsupportedNetwork(f"{where} is not stored row by row")
        return TensorRef(dtype, stub.shape, self.file, offset + stub.offset * item)


def _is_contiguous(stub: pickle_reader.TensorStub) -> bool:
    expected = 1
    for length, stride in zip(reversed(stub.shape), reversed(stub.stride), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def read_torch_zip(file: OpenFile) -> TorchFile | None:
    """Reads the zip container; returns None if the zip is not a torch file.

    Raises:
        UnsafeFile, DamagedFile: see `read_members` and `PickleReader`.
    """
    refuse_polyglot(file, container="zip")
    try:
        members = read_members(file)
    except (UnsafeFile, DamagedFile):
        names = listed_names(file)
        if not names or torch_root(names) is not None:
            raise
        return None  # packed by another program, and no torch file to any reader
    root = torch_root(members)
    if root is None:
        return None
    foreign_members = unexpected_members(members, root)
    if foreign_members:
        raise UnsafeFile(f"{file.path}: holds {foreign_members[0]}, which no hypernetwork needs")
    version = members.get(f"{root}version")
    if version is None or not _VERSION.fullmatch(file.read_at(version.offset, min(version.size, 16))):
        raise DamagedFile(f"{file.path}: states no version of torch's format, or one that torch does not read")
    order = members.get(f"{root}byteorder")
    if order and file.read_at(order.offset, min(order.size, 16)) != b"little":
        raise UnsupportedNetwork(f"{file.path}: written on a machine with another byte order")
    alignment = members.get(f"{root}.storage_alignment")
    if alignment and not _ALIGNMENT.fullmatch(file.read_at(alignment.offset, min(alignment.size, 16))):
        raise DamagedFile(f"{file.path}: states an alignment of its storages that torch does not read")
    pickle = members[f"{root}data.pkl"]
    # a pickle that is large because of tensors in it is checked with them; 0: torch can be set to compute none
    is_short = pickle.size <= pickle_reader.MAX_SIZE
    if is_short and pickle.crc and zlib.crc32(file.read_at(pickle.offset, pickle.size)) != pickle.crc:
        raise DamagedFile(f"{file.path}: its structure does not match the checksum in the zip")
    end = pickle.offset + pickle.size
    reader = PickleReader(file, pickle.offset, end, file.budget)
    value = _read(reader, file)
    if reader.position != end:
        raise UnsafeFile(f"{file.path}: bytes after the end of its pickle")
    prefix = f"{root}data/"
    parts = {name.removeprefix(prefix): member for name, member in members.items() if name.startswith(prefix)}
    storages = {key: (member.offset, member.size) for key, member in parts.items()}
    large = () if is_short else (pickle,)
    checksums = tuple(Checksum(m.name, m.offset, m.size, m.crc) for m in (*parts.values(), *large) if m.crc)
    return TorchFile(file, "pt-zip", value, tuple(reader.named), tuple(reader.foreign), storages, checksums)


def read_torch_legacy(file: OpenFile) -> TorchFile:
    """Reads the container of torch before 1.6: several pickles, then the storages.

    Raises:
        UnsafeFile, DamagedFile: see `PickleReader`.
    """
    refuse_polyglot(file, container="legacy")
    reader = PickleReader(file, 0, file.size, file.budget)
    value, keys = _legacy_values(reader, file)
    sizes = _storage_sizes(value)
    position, storages = reader.position, {}
    for key in keys:
        numel = int.from_bytes(file.read_at(position, 8), "little", signed=True)
        kind_numel, item = sizes.get(key, (numel, 1))
        if key not in sizes or numel != kind_numel or key in storages:
            raise UnsafeFile(f"{file.path}: the storage {shorten(key)} differs from what its tensors state")
        storages[key] = (position + 8, numel * item)
        position += 8 + numel * item
    if position > file.size:
        raise DamagedFile(f"{file.path}: cut short: {position - file.size} bytes of its tensors are missing")
    if position != file.size:
        raise UnsafeFile(f"{file.path}: {file.size - position} bytes after its end")
    return TorchFile(file, "pt-legacy", value, tuple(reader.named), tuple(reader.foreign), storages)


def _legacy_values(reader: PickleReader, file: OpenFile) -> tuple[Any, list[str]]:
    """Reads magic number, protocol, system, value, and the keys of the storages in the order of their bytes."""
    _read(reader, file)
    protocol, system, value, keys = (_read(reader, file) for _ in range(4))
    if not _describes_a_machine(system):
        raise UnsafeFile(f"{file.path}: its description of the machine contains more than numbers")
    if protocol != _LEGACY_PROTOCOL or system.get("little_endian") is not True:
        raise UnsupportedNetwork(f"{file.path}: a torch file with another protocol or byte order")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DamagedFile(f"{file.path}: its list of storages is invalid")
    return value, keys


def _describes_a_machine(system: Any) -> bool:
    """Whether the system dict holds what torch writes: numbers by name, and one nested dict of such."""
    return isinstance(system, dict) and all(
        isinstance(key, str)
        and len(key) < 40
        and (isinstance(value, int) or (key == "type_sizes" and _describes_a_machine(value)))
        for key, value in system.items()
    )


def _read(reader: PickleReader, file: OpenFile) -> Any:
    try:
        return reader.read()
    except FileRefused as error:
        raise file.refusal(error) from None


_ITEM = {"LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1}


def _storage_sizes(value: Any) -> dict[str, tuple[int, int]]:
    """Finds every storage that a value refers to: key -> (number of elements, bytes of one)."""
    found: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, pickle_reader.Foreign):
            item = item.state
        if isinstance(item, pickle_reader.TensorStub):
            item = item.storage
        if isinstance(item, pickle_reader.Storage):
            kind = item.type.name
            found[item.key] = (item.numel, ITEM_SIZE[FLOAT_STORAGES[kind]] if kind in FLOAT_STORAGES else _ITEM[kind])
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)
    return found
