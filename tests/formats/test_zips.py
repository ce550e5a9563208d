"""Zips that torch or Python refuse are refused, and what is read here torch reads to the same names and bytes."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import hostile_files, networks

import hnetkit
from hnetkit.errors import FileRefused, UnsafeFile

# (place in the local header, place in the directory's line, size) of every field that stands in both
BOTH = {
    "version": (4, 6, 2),
    "flags": (6, 8, 2),
    "method": (8, 10, 2),
    "time": (10, 12, 2),
    "date": (12, 14, 2),
    "checksum": (14, 16, 4),
    "packed": (18, 20, 4),
    "size": (22, 24, 4),
}
DIRECTORY = {
    "made by": (4, 2),
    "comment": (32, 2),
    "disk": (34, 2),
    "inside": (36, 2),
    "outside": (38, 4),
    "at": (42, 4),
}
VALUES = (0, 1, 7, 20, 63, 64, 999, *(1 << bit for bit in range(3, 16)), 1 << 24, 0xFFFF, 0xFFFFFFFF)


def zips(folder: Path) -> dict[str, bytes]:
    """One of Python's, without 64-bit records, and one of torch's, with them and with trailers."""
    networks.network_file(folder, "torch.pt", widths=(4,), structure=(1, 1))
    return {"python": hostile_files.good(), "torch": (folder / "torch.pt").read_bytes()}


def changed_fields(data: bytes) -> Iterator[tuple[str, bytes]]:
    members = zipfile.ZipFile(io.BytesIO(data))
    for number, info in list(enumerate(members.infolist()))[:2]:
        line = members.start_dir + sum(46 + len(i.orig_filename) + len(i.extra) for i in members.infolist()[:number])
        fields = [(name, [(info.header_offset + a, n), (line + b, n)]) for name, (a, b, n) in BOTH.items()]
        fields += [(name, [(line + at, n)]) for name, (at, n) in DIRECTORY.items()]
        for name, places in fields:
            for value in VALUES:
                out = bytearray(data)
                for at, size in places:
                    out[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
                yield f"{info.filename}: {name} {value}", bytes(out)
    end = len(data) - 22
    for at, size in ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)):
        for value in VALUES:
            out = bytearray(data)
            out[end + at : end + at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
            yield f"end: {at} {value}", bytes(out)


def changed_bytes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """One byte of a header, at every third place."""
    rng = random.Random(7)
    tensors = set()
    for info in zipfile.ZipFile(io.BytesIO(data)).infolist():
        name, extra = struct.unpack_from("<2H", data, info.header_offset + 26)
        start = info.header_offset + 30 + name + extra
        tensors.update(range(start, start + info.file_size))
    for at in range(0, len(data), 3):
        if at not in tensors:
            value = rng.choice([v for v in range(256) if v != data[at]])
            yield f"byte {at} {value}", data[:at] + bytes([value]) + data[at + 1 :]


@pytest.mark.parametrize("change", [changed_fields, changed_bytes])
@pytest.mark.parametrize("base", ["python", "torch"])
def test_what_is_read_is_what_torch_and_python_read(
    base: str, change: Callable[[bytes], Iterator[tuple[str, bytes]]], tmp_path: Path
) -> None:
    path, read = tmp_path / "changed.pt", 0
    for what, data in change(zips(tmp_path)[base]):
        path.write_bytes(data)
        try:
            net = hnetkit.load(path)
        except FileRefused:
            continue
        read += 1
        theirs = torch.load(path, weights_only=True)
        for width, side, key, tensor in net.each_tensor():
            assert torch.equal(tensor.torch(), theirs[width]["kv".index(side)][key]), what
        with zipfile.ZipFile(path) as archive:
            assert [i for i in archive.infolist() if i.flag_bits & 0x61] == [], what
            archive.testzip()
    assert read > 10


def extra_field(data: bytes, extra: bytes) -> bytes:
    """A zip whose first line of the directory has an extra field."""
    line = data.index(b"PK\1\2")
    out = bytearray(data)
    name = struct.unpack_from("<H", data, line + 28)[0]
    struct.pack_into("<H", out, line + 30, len(extra))
    out[line + 46 + name : line + 46 + name] = extra
    struct.pack_into("<I", out, len(out) - 10, struct.unpack_from("<I", out, len(out) - 10)[0] + len(extra))
    return bytes(out)


def test_an_extra_field_that_says_nothing_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(extra_field(hostile_files.good(), b"UT\1\0\0"))
    assert hnetkit.load(path).widths == [2]


@pytest.mark.parametrize(
    "extra",
    [b"\1\0\xff\xff" + bytes(8), b"\1\0\x08\0" + bytes(8), b"\x75\x70\x05\0\1" + bytes(4), b"abc", b"UT\xff\xff"],
    ids=["a lying 64-bit field", "a needless 64-bit field", "a second name", "half a field", "a lying field"],
)
def test_an_extra_field_that_readers_take_for_different_things_is_refused(extra: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(extra_field(hostile_files.good(), extra))
    with pytest.raises(UnsafeFile, match=r"data\.pkl has a directory entry"):
        hnetkit.load(path)


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("version", b"0\n"),
        ("version", b"999\n"),
        ("version", b""),
        ("version", b"x"),
        ("version", b"99999999999999999999999"),
        ("byteorder", b"big"),
        ("byteorder", b"middle"),
        ("byteorder", b"little\n"),
        (".storage_alignment", b"x"),
        (".storage_alignment", b""),
        (".storage_alignment", b"9" * 5000),
        ("data/\u0660", b"1234"),
    ],
)
def test_what_torch_refuses_of_a_members_content_is_refused(member: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(hostile_files.zip_of(hostile_files.network(), {member: content}))
    with pytest.raises(FileRefused):
        hnetkit.load(path)


def test_an_alignment_as_torch_writes_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    members = {".format_version": b"1", ".storage_alignment": b"64"}
    path.write_bytes(hostile_files.zip_of(hostile_files.network(), members))
    torch.load(path, weights_only=True)
    hnetkit.load(path)


def test_a_zip_without_a_version_is_refused_as_torch_refuses_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(io.BytesIO(hostile_files.good())) as good, zipfile.ZipFile(path, "w") as bad:
        for info in good.infolist():
            if not info.filename.endswith("version"):
                bad.writestr(info, good.read(info))
    with pytest.raises(RuntimeError):
        torch.load(path, weights_only=True)
    with pytest.raises(FileRefused, match="version"):
        hnetkit.load(path)
