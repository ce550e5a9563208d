"""The zip container of `torch.save`: members stored one after another, nothing before, between or behind them.

Two readers of one zip can see two different files: one trusts the directory at the end, another the headers in
front. So every byte has to be accounted for: the members' headers, data and trailers tile the file from its first
byte to the directory, and what a header says must be what the directory says.

Source: PKWARE's APPNOTE.TXT 6.3; what torch writes was measured.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from hnetkit.errors import DamagedFile, UnsafeFile
from hnetkit.formats.source import OpenFile

MAX_MEMBERS = 20_000
MAX_DIRECTORY = 8 << 20  # bytes

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _TRAILER = 0x1, 0x8
_FULL = 0xFFFFFFFF
# data.pkl, data/N and what torch has added over the years
_TORCH_MEMBER = re.compile(
    r"data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)


@dataclass(frozen=True, slots=True)
class Member:
    """One stored file of a zip: where its bytes are, in bytes from the start of the container."""

    name: str
    offset: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the directory."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int


def read_members(file: OpenFile) -> dict[str, Member]:
    """Returns the members of a zip by name, in the directory's order.

    Raises:
        UnsafeFile: bytes that no member accounts for, members that disagree with themselves, double names.
        DamagedFile: no directory where one must be.
    """
    entries, directory_start = _directory(file)
    members: dict[str, Member] = {}
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        if entry.header != position:
            raise UnsafeFile(f"{file.path}: {abs(entry.header - position)} bytes that no member accounts for")
        member, position = _member(file, entry)
        if member.name in members:
            raise UnsafeFile(f"{file.path}: two members are called {member.name}")
        members[member.name] = member
    if position != directory_start:
        raise UnsafeFile(f"{file.path}: {abs(directory_start - position)} bytes that no member accounts for")
    return {entry.name: members[entry.name] for entry in entries}


def torch_root(names: Mapping[str, Member]) -> str | None:
    """Returns the folder inside the zip that holds ``data.pkl``, None where this is not a torch file."""
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    return pickles[0].removesuffix("data.pkl") if len(pickles) == 1 else None


def unexpected_members(names: Mapping[str, Member], root: str) -> list[str]:
    """Returns the members that torch would not have written beside ``data.pkl``."""
    return [name for name in names if not name.startswith(root) or not _TORCH_MEMBER.fullmatch(name.removeprefix(root))]


def _directory(file: OpenFile) -> tuple[list[_Entry], int]:
    """Reads the directory: its entries, and where it starts."""
    if file.size < _END.size:
        raise DamagedFile(f"{file.path}: cut short: a zip without its directory")
    end = file.size - _END.size
    mark, disk, first_disk, here, count, size, start, comment = _END.unpack(file.read_at(end, _END.size))
    if mark != b"PK\5\6" or comment:
        raise DamagedFile(f"{file.path}: cut short, or followed by foreign bytes: a zip that does not end as one")
    locator = end - _END64_LOCATOR.size
    if locator >= _END64.size and file.read_at(locator, 4) == b"PK\6\7":
        end, count, size, start = _directory64(file, locator)
    elif disk or first_disk or here != count:
        raise UnsafeFile(f"{file.path}: a zip of several parts")
    if start + size != end or count > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise UnsafeFile(f"{file.path}: a zip whose directory is not where it says, or too large")
    return _entries(file, start, size, count), start


def _directory64(file: OpenFile, locator: int) -> tuple[int, int, int, int]:
    """Reads the 64-bit end record: its own place, and number, size and start of the directory."""
    _, _, place, disks = _END64_LOCATOR.unpack(file.read_at(locator, _END64_LOCATOR.size))
    if place + _END64.size != locator or disks > 1:
        raise UnsafeFile(f"{file.path}: a zip whose end record is not where it says")
    fields = _END64.unpack(file.read_at(place, _END64.size))
    mark, length, here, count, size, start = fields[0], fields[1], *fields[6:10]
    if mark != b"PK\6\6" or length != _END64.size - 12 or here != count:
        raise UnsafeFile(f"{file.path}: a zip whose end record contradicts itself")
    return place, count, size, start


def _entries(file: OpenFile, start: int, size: int, count: int) -> list[_Entry]:
    data, position, entries = file.read_at(start, size), 0, []
    for _ in range(count):
        if position + _CENTRAL.size > size:
            raise DamagedFile(f"{file.path}: a zip directory that is cut short")
        fields = _CENTRAL.unpack_from(data, position)
        mark, _, _, flags, method, _, _, crc, packed, full, name_size, extra_size, comment_size = fields[:13]
        if mark != b"PK\1\2":
            raise DamagedFile(f"{file.path}: a zip directory that is not one")
        position += _CENTRAL.size
        name = data[position : position + name_size].decode("utf-8", "backslashreplace")
        extra = data[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        full, packed, header = _wide_sizes(extra, full, packed, fields[16])
        entries.append(_Entry(name, flags, method, crc, packed, full, header))
    if position != size:
        raise UnsafeFile(f"{file.path}: a zip directory with bytes that belong to no member")
    return entries


def _wide_sizes(extra: bytes, *values: int) -> tuple[int, ...]:
    """Replaces the values that stand as 0xFFFFFFFF by those of the 64-bit extra field (tag 1), in its order."""
    position = 0
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        if tag == 1:
            wide = iter(struct.unpack_from(f"<{size // 8}Q", extra.ljust(position + 4 + size, b"\0"), position + 4))
            return tuple(next(wide, value) if value == _FULL else value for value in values)
        position += 4 + size
    return values


def _member(file: OpenFile, entry: _Entry) -> tuple[Member, int]:
    """Reads a member's header in front of its data, holds it against the directory, and returns where it ends."""
    problem = None
    if entry.flags & _ENCRYPTED:
        problem = "is encrypted"
    elif entry.method != 0 or entry.packed != entry.size:
        problem = "is compressed; torch stores its members plainly"
    if problem:
        raise UnsafeFile(f"{file.path}: the member {entry.name} {problem}")
    mark, _, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack(
        file.read_at(entry.header, _LOCAL.size)
    )
    name = file.read_at(entry.header + _LOCAL.size, name_size).decode("utf-8", "backslashreplace")
    start = entry.header + _LOCAL.size + name_size + extra_size
    same = (mark, name, flags, method) == (b"PK\3\4", entry.name, entry.flags, entry.method)
    if flags & _TRAILER:
        same = same and crc in (0, entry.crc) and {packed, size} <= {0, entry.size, _FULL}
    else:
        same = same and (crc, packed, size) == (entry.crc, entry.packed, entry.size)
    if not same:
        raise UnsafeFile(f"{file.path}: the member {entry.name} has two headers that disagree")
    end = start + entry.size
    if end > file.size:
        raise DamagedFile(f"{file.path}: cut short in the member {entry.name}")
    return Member(entry.name, start, entry.size, entry.crc), end + _trailer_size(file, entry, end)


def _trailer_size(file: OpenFile, entry: _Entry, end: int) -> int:
    """The size of the record behind a member's data that repeats its checksum and size; 0 without one."""
    if not entry.flags & _TRAILER:
        return 0
    for form in ("<4sLLL", "<4sLQQ"):
        size = struct.calcsize(form)
        if end + size <= file.size:
            fields = struct.unpack(form, file.read_at(end, size))
            if fields == (b"PK\7\10", entry.crc, entry.size, entry.size):
                return size
    raise UnsafeFile(f"{file.path}: the member {entry.name} has a trailer that disagrees with the directory")
