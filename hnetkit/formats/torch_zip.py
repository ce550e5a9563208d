"""The zip container of `torch.save`: members stored one after another, with nothing before, between or after them.

Two readers of one zip can see two different files: one trusts the directory at the end, another the headers in
front. So every byte must be accounted for: the members' headers, data and trailers tile the file from its first
byte to the directory, and each header must agree with the directory. Whatever torch's own reader (miniz) or Python's
zipfile refuses, or reads as anything but plain data, is refused here too.

Source: PKWARE's APPNOTE.TXT 6.3; what torch writes was measured; miniz_zip.c and Lib/zipfile.py (behavior only).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hnetkit.errors import DamagedFile, UnsafeFile
from hnetkit.formats.open_file import OpenFile
from hnetkit.text import shorten

MAX_MEMBERS = 20_000
MAX_DIRECTORY = 8 << 20  # bytes

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _TRAILER, _UTF8 = 0x1, 0x8, 0x800
_FOLDER = 0x10  # in the attributes: torch reads nothing from such a member
_NEWEST = 63  # largest "version needed" that Python's zipfile accepts
_FULL = 0xFFFFFFFF
_REPACK = "unpack it and pack its folder without compression (zip -0 -r -D -X NEW.pt FOLDER), or get it again"
_LONGEST_END = _END.size + 0xFFFF  # with a comment
_WIDE, _OTHER_NAME = 1, 0x7075  # tags of extra fields: 64-bit sizes, and a second name that some readers use
# two kana or ideographs, or one apart from Latin letters: in cp437 "K\x94nig" is König, and its \x94n is one in cp932
_JAPANESE = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f]{2}|(?<![A-Za-z])[\u3040-\u30ff\u3400-\u9fff](?![A-Za-z])"
)
# data.pkl, data/N, and members that later versions of torch added
_TORCH_MEMBER = re.compile(
    r"data\.pkl|data/[0-9]+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One stored file of a zip; `offset` is where its bytes begin in the container."""

    name: str
    offset: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class _DirectoryEntry:
    """One entry of the directory.

    Attributes:
        header: offset of the member's own header.
    """

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int


def read_members(file: OpenFile) -> dict[str, ZipMember]:
    """Returns the members of a zip by name, in the order of their bytes.

    Raises:
        UnsafeFile: bytes that belong to no member, headers that disagree with the directory, or a name used twice.
        DamagedFile: there is no directory at the end.
    """
    entries, directory_start = _directory(file)
    members: dict[str, ZipMember] = {}
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        if entry.header != position:
            raise UnsafeFile(f"{file.path}: {abs(entry.header - position)} bytes that belong to no member")
        member, position = _member(file, entry)
        if member.name in members:
            raise UnsafeFile(f"{file.path}: two members are named {shorten(member.name)}")
        members[member.name] = member
    if position != directory_start:
        raise UnsafeFile(f"{file.path}: {abs(directory_start - position)} bytes that belong to no member")
    return members


def listed_names(file: OpenFile) -> list[str]:
    """Returns the names in the directory of any zip, as well as they can be told; they decide nothing but a message."""
    tail = file.read_at(max(0, file.size - _LONGEST_END), min(file.size, _LONGEST_END))
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        return []
    *_, size, start, _ = _END.unpack_from(tail, at)
    if size > MAX_DIRECTORY or start + size > file.size:
        return []
    names: list[str] = []
    data, position = file.read_at(start, size), 0
    while position + _CENTRAL.size <= size and len(names) < MAX_MEMBERS:
        mark, *fields = _CENTRAL.unpack_from(data, position)
        if mark != b"PK\1\2":
            break
        flags, (name_size, extra_size, comment_size) = fields[2], fields[9:12]
        position += _CENTRAL.size
        end = position + name_size
        names.append(member_name(data[position:end], flags, data[end : end + extra_size]))
        position = end + extra_size + comment_size
    return names


def member_name(raw: bytes, flags: int, extra: bytes) -> str:
    """Returns the name that the packer of a zip most likely meant for a member.

    It is UTF-8 if the flag says so. Else it is that of Info-ZIP's Unicode path field if there is one for these bytes;
    else UTF-8 if the bytes are, Shift-JIS (cp932) if they are that and hold Japanese letters, and cp437.

    Args:
        raw: the bytes of the name in the directory.
        flags: of the directory entry.
        extra: the extra fields of the directory entry.
    """
    if flags & _UTF8:
        return raw.decode("utf-8", "backslashreplace")
    told = _unicode_path(raw, extra)
    if told is not None:
        return told
    for encoding in ("utf-8", "cp932"):
        try:
            name = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "utf-8" or _JAPANESE.search(name):
            return name
    return raw.decode("cp437")


def _unicode_path(raw: bytes, extra: bytes) -> str | None:
    """The name in the Unicode path field; None without one, and for one that belongs to an older name."""
    position = 0
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        field = extra[position + 4 : position + 4 + size]
        position += 4 + size
        if tag == _OTHER_NAME and 5 < len(field) == size and struct.unpack_from("<BL", field) == (1, zlib.crc32(raw)):
            try:
                return field[5:].decode("utf-8")
            except UnicodeDecodeError:
                return None
    return None


def torch_root(names: Iterable[str]) -> str | None:
    """Returns the folder inside the zip that holds ``data.pkl``; None if this is not a torch file."""
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    return pickles[0].removesuffix("data.pkl") if len(pickles) == 1 else None


def unexpected_members(names: Mapping[str, ZipMember], root: str) -> list[str]:
    """Returns the members that torch does not write."""
    return [name for name in names if not name.startswith(root) or not _TORCH_MEMBER.fullmatch(name.removeprefix(root))]


def _directory(file: OpenFile) -> tuple[list[_DirectoryEntry], int]:
    """Reads the directory; returns its entries and its offset."""
    if file.size < _END.size:
        raise DamagedFile(f"{file.path}: cut short: a zip without its directory")
    end = file.size - _END.size
    mark, disk, first_disk, here, count, size, start, comment = _END.unpack(file.read_at(end, _END.size))
    if mark != b"PK\5\6" or comment:
        raise DamagedFile(
            f"{file.path}: cut short, or followed by other bytes: there is no end record at the end of the zip"
        )
    locator = end - _END64_LOCATOR.size
    if disk or first_disk or here != count:
        raise UnsafeFile(f"{file.path}: a multi-part zip")
    if locator >= _END64.size and file.read_at(locator, 4) == b"PK\6\7":
        narrow = (count, size, start)
        end, *wide = _directory64(file, locator)
        if any(n not in (w, full) for n, w, full in zip(narrow, wide, (0xFFFF, _FULL, _FULL), strict=True)):
            raise UnsafeFile(f"{file.path}: a zip with two end records that disagree")
        count, size, start = wide
    if start + size != end or count > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise UnsafeFile(f"{file.path}: a zip whose directory is not where it states, or is too large")
    return _entries(file, start, size, count), start


def _directory64(file: OpenFile, locator: int) -> tuple[int, int, int, int]:
    """Reads the 64-bit end record; returns its own offset, and count, size and start of the directory."""
    _, disk, offset, disks = _END64_LOCATOR.unpack(file.read_at(locator, _END64_LOCATOR.size))
    if offset + _END64.size != locator or disk or disks != 1:
        raise UnsafeFile(f"{file.path}: a zip whose end record is not where it states")
    fields = _END64.unpack(file.read_at(offset, _END64.size))
    mark, length, disk, first_disk, here, count, size, start = *fields[:2], *fields[4:10]
    if mark != b"PK\6\6" or length != _END64.size - 12 or here != count or disk or first_disk:
        raise UnsafeFile(f"{file.path}: a zip whose end record contradicts itself")
    return offset, count, size, start


def _entries(file: OpenFile, start: int, size: int, count: int) -> list[_DirectoryEntry]:
    data, position, entries = file.read_at(start, size), 0, []
    for _ in range(count):
        if position + _CENTRAL.size > size:
            raise DamagedFile(f"{file.path}: a zip directory that is cut short")
        fields = _CENTRAL.unpack_from(data, position)
        mark, _, version, flags, method, _, _, crc, packed, full, name_size, extra_size, comment_size = fields[:13]
        disk, _, attributes, header = fields[13:]
        if mark != b"PK\1\2":
            raise DamagedFile(f"{file.path}: an invalid zip directory")
        position += _CENTRAL.size
        name = data[position : position + name_size]
        extra = data[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        wide = _wide_sizes(extra, full, packed, header)
        problem = _problem(version, flags, method, disk, attributes)
        if wide is None or not _is_name(name, flags):
            problem = "has a directory entry that readers interpret differently"
        elif wide[0] != wide[1] and not method:
            problem = "states two sizes"
        if problem:
            raise UnsafeFile(
                f"{file.path}: the member {shorten(_text(name))} {problem}", hint=_REPACK if method else None
            )
        full, packed, header = wide or (0, 0, 0)
        entries.append(_DirectoryEntry(name, flags, method, crc, packed, full, header))
    if position != size:
        raise UnsafeFile(f"{file.path}: a zip directory with bytes that belong to no member")
    return entries


def _problem(version: int, flags: int, method: int, disk: int, attributes: int) -> str | None:
    """What torch would never write in a directory entry, as words for a message; None if all is well."""
    if flags & _ENCRYPTED:
        return "is encrypted"
    if flags & ~(_TRAILER | _UTF8):
        return f"has the flags 0x{flags:x}, which torch never sets"
    if method:
        return "is compressed; torch stores members uncompressed"
    if version > _NEWEST:
        return f"needs version {version} of the format"
    if disk:
        return f"is on disk {disk} of a multi-part zip"
    return "is a folder" if attributes & _FOLDER else None


def _is_name(name: bytes, flags: int) -> bool:
    """Whether every reader decodes a member's name to the same text."""
    try:
        text = name.decode("utf-8" if flags & _UTF8 else "latin-1")
    except UnicodeDecodeError:
        return False
    return text.isprintable() and "\\" not in text


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _wide_sizes(extra: bytes, full: int, packed: int, header: int) -> tuple[int, int, int] | None:
    """Replaces values of 0xFFFFFFFF by those of the 64-bit extra field, in its order.

    Returns None if the extra fields do not fill their space exactly, or hold anything that readers disagree on.
    """
    values, position = [full, packed, header], 0
    indices = [index for index, value in enumerate(values) if value == _FULL]
    while position < len(extra):
        if position + 4 > len(extra):
            return None
        tag, size = struct.unpack_from("<2H", extra, position)
        position += 4 + size
        if position > len(extra) or tag == _OTHER_NAME:
            return None
        if tag == _WIDE:
            if size != 8 * len(indices):
                return None
            for index, value in zip(
                indices, struct.unpack_from(f"<{len(indices)}Q", extra, position - size), strict=True
            ):
                values[index] = value
            indices = []
    return None if indices else (values[0], values[1], values[2])


def _member(file: OpenFile, entry: _DirectoryEntry) -> tuple[ZipMember, int]:
    """Reads a member's own header, compares it with the directory, and returns the member and its end."""
    mark, version, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack(
        file.read_at(entry.header, _LOCAL.size)
    )
    name, known = file.read_at(entry.header + _LOCAL.size, name_size), shorten(_text(entry.name))
    start = entry.header + _LOCAL.size + name_size + extra_size
    same = (mark, name, flags, method) == (b"PK\3\4", entry.name, entry.flags, entry.method) and version <= _NEWEST
    if flags & _TRAILER:
        same = same and crc in (0, entry.crc) and {packed, size} <= {0, entry.size, _FULL}
    else:
        same = same and (crc, packed, size) == (entry.crc, entry.packed, entry.size)
    if not same:
        raise UnsafeFile(f"{file.path}: the member {known} has two headers that disagree")
    end = start + entry.size
    if end > file.size:
        raise DamagedFile(f"{file.path}: cut short in the member {known}")
    return ZipMember(_text(entry.name), start, entry.size, entry.crc), end + _trailer_size(file, entry, end)


def _trailer_size(file: OpenFile, entry: _DirectoryEntry, end: int) -> int:
    """The size of the record after a member's data that repeats its checksum and size; 0 without one."""
    if not entry.flags & _TRAILER:
        return 0
    for form in ("<4sLLL", "<4sLQQ"):
        size = struct.calcsize(form)
        if end + size <= file.size:
            fields = struct.unpack(form, file.read_at(end, size))
            if fields == (b"PK\7\10", entry.crc, entry.size, entry.size):
                return size
    raise UnsafeFile(
        f"{file.path}: the member {shorten(_text(entry.name))} has a trailer that disagrees with the directory"
    )
