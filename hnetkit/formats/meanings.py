"""What else a file is to another loader.

A file that is two things at once shows one of them to hnetkit and may show the other to the next program, which runs
what it finds there. So whatever is read here as a model must be nothing but that to every loader that is known to look
at such files:

- torch takes a file that is no zip for a tar first, and runs the pickles inside (`torch.load` of `storages`);
- it then runs the pickle that the file begins with, whatever the file is (`torch.load` of a safetensors file that is
  called ``.pt``);
- AUTOMATIC1111 and virus scanners ask Python's zipfile, which looks for a zip from the end of the file;
- gzip unpacks what it starts, HDF5 libraries look at a list of places.

Source: CPython's Lib/tarfile.py and Lib/zipfile.py, torch/serialization.py (behaviour only).
"""

from __future__ import annotations

import re
import struct

from hnetkit.errors import UnsafeFile
from hnetkit.formats.pickle_walk import imports_something
from hnetkit.formats.source import OpenFile

_TAR_BLOCK, _TAR_SUM = 512, slice(148, 156)
_ZIP_TAIL = (1 << 16) + 22  # bytes: a zip's end record, and the longest comment behind it
_ZIP_END = struct.Struct("<4s4H2LH")
_HDF5, _HDF5_FIRST = b"\x89HDF\r\n\x1a\n", 512


def refuse_second_meaning(file: OpenFile, *, container: str) -> None:
    """Looks whether a file that is about to be read is something else to another program as well.

    Args:
        container: what it is read as: ``"zip"``, ``"legacy"`` or ``"safetensors"``.

    Raises:
        UnsafeFile: it is; the message says what.
    """
    other = _second_meaning(file, container)
    if other:
        raise UnsafeFile(
            f"{file.path}: is {other} as well: other programs may read that instead, and run code from it",
            hint="do not load this file with any program; get it again from its source",
        )


def _second_meaning(file: OpenFile, container: str) -> str | None:
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
    """Whether Python's tarfile takes a block of 512 bytes for a header: by its checksum, in each way to write one."""
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
    """Whether a zip's end record stands near the end, and a directory where it says (or none, in an empty zip)."""
    start = max(0, file.size - _ZIP_TAIL)
    tail = file.read_at(start, file.size - start)
    for found in re.finditer(rb"PK\x05\x06", tail):
        place = found.start()
        if place + _ZIP_END.size > len(tail):
            continue
        size, offset = _ZIP_END.unpack_from(tail, place)[5:7]
        if tail[max(0, place - 20) :].startswith(b"PK\6\7"):
            return True
        # readers disagree on whether the start that is stated counts, or the place before the record
        if not size or any(_has(file, at, b"PK\1\2") for at in (start + place - size, offset)):
            return True
    return False


def _has(file: OpenFile, place: int, mark: bytes) -> bool:
    return 0 <= place <= file.size - len(mark) and file.read_at(place, len(mark)) == mark


def _is_hdf5(file: OpenFile) -> bool:
    place = _HDF5_FIRST
    while place < file.size:
        if _has(file, place, _HDF5):
            return True
        place *= 2
    return False
