"""Image files that cost far more than they hold, pretend to be others, or are damaged at random. All are small."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import pytest
from PIL import Image, features

_PNG_HEAD = 33  # bytes of signature and IHDR
_TIFF_OF_8_BY_8 = ((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """Returns an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def large_png(width: int, height: int) -> bytes:
    """Returns a PNG of one black bit for each pixel, compressed a thousandfold."""
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def postscript() -> bytes:
    """Returns a picture that Pillow gives to Ghostscript."""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def damaged_avif() -> bytes:
    """Returns an AVIF of which the decoder says only RuntimeError."""
    if not features.check("avif"):
        pytest.skip("this build of Pillow has no AVIF")
    whole = encoded(_noise((32, 32)), "AVIF")
    return whole[: len(whole) // 2]


def avif_of_large_pictures(item: int, *, reduced: bool = True, pieces: int = 1) -> bytes:
    """Returns an AVIF of 16 x 16 pixels whose picture (item 0) or opacity (item 1) is coded as 16384 x 16384.

    Args:
        item: of those in its list.
        reduced: whether its header has the short form.
        pieces: that the item is split into.
    """
    if not features.check("avif"):
        pytest.skip("this build of Pillow has no AVIF")
    data = bytearray(encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 128)), "AVIF"))
    at = data.index(b"iloc") + 12 + 14 * item
    begin, length = struct.unpack_from(">II", data, at + 6)
    form = "00011" + "0" * 5 if reduced else "00000" + "00" + f"{0:05b}" + f"{0:012b}" + f"{4:05b}"
    size = f"{form}{13:04b}{13:04b}{16383:014b}{16383:014b}".ljust(96, "0")
    coded = b"\x0a\x0c" + int(size, 2).to_bytes(12, "big") + data[begin : begin + length]
    if pieces == 1:
        struct.pack_into(">II", data, at + 6, len(data), len(coded))
        return bytes(data) + coded
    parts = [coded[:1], coded[1:7], coded[7:]]
    starts = [len(data), len(data) + 1, len(data) + 7]
    places = b"".join(struct.pack(">II", start, len(part)) for start, part in zip(starts, parts, strict=True))
    listed = struct.pack(">HHH", 9, 0, len(parts)) + places
    box = struct.pack(">I4sIHH", 16 + len(listed), b"iloc", 0, 0x4400, 1) + listed
    return bytes(data) + coded + box


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _small(format: str, **options: object) -> bytes:
    return encoded(Image.new("RGB", (8, 8), "red"), format, **options)


def _texts() -> bytes:
    """60 texts of a million letters that take four bytes each."""
    png, text = _small("PNG"), zlib.compress(("\N{GRINNING FACE}" + "a" * 1_000_000).encode(), 9)
    chunks = (png_chunk(b"iTXt", b"text %d\0\1\0\0\0" % number + text) for number in range(60))
    return png[:_PNG_HEAD] + b"".join(chunks) + png[_PNG_HEAD:]


def _chunks() -> bytes:
    png = _small("PNG")
    return png[:_PNG_HEAD] + png_chunk(b"abCd", b"") * 250_000 + png[_PNG_HEAD:]


def _scans() -> bytes:
    jpeg = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + scan * 1000 + jpeg[-2:]


def _exif_pieces() -> bytes:
    """EXIF data in 100,000 segments, which Pillow joins one by one."""
    jpeg = _small("JPEG")
    return jpeg[:2] + b"\xff\xe1\0\x0aExif\0\0AB" * 100_000 + jpeg[2:]


def _exif_directory() -> bytes:
    """EXIF data with 5,400 entries, each of which names 60,000 bytes of it."""
    jpeg = _small("JPEG")
    entries = b"".join(struct.pack("<HHII", tag, 7, 60_000, 0) for tag in range(5400))
    exif = (b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5400) + entries).ljust(65_533, b"\0")
    return jpeg[:2] + b"\xff\xe1\xff\xff" + exif + jpeg[2:]


def _comment() -> bytes:
    gif = _small("GIF")
    palette_end = 13 + (3 << (gif[10] & 7) + 1)
    return gif[:palette_end] + b"\x21\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0" + gif[palette_end:]


def _tiff(*tags: tuple[int, int, int, int], room: int = 1000) -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4 + room)


def _run_length(width: int, jumps: int) -> bytes:
    """A BMP of one line, of which each jump of 4 bytes goes 255 lines down."""
    data = b"\0\2\xff\xff" * jumps
    header = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + header + bytes(1024) + data


BOMBS: dict[str, Callable[[], bytes]] = {
    "pixels.png": lambda: large_png(13_300, 13_300),
    "wide.png": lambda: large_png(70_000, 1),
    "chunks.png": _chunks,
    "scans.jpg": _scans,
    "picture.avif": lambda: avif_of_large_pictures(0),
    "opacity.avif": lambda: avif_of_large_pictures(1),
    "long header.avif": lambda: avif_of_large_pictures(0, reduced=False),
    "pieces.avif": lambda: avif_of_large_pictures(0, pieces=3),
    "tile.tif": lambda: _tiff(
        *_TIFF_OF_8_BY_8, (259, 3, 1, 5), (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 300), (325, 4, 1, 100)
    ),
    "strips.tif": lambda: _tiff(
        *_TIFF_OF_8_BY_8, (259, 3, 1, 1), (273, 4, 400_000, 200), (278, 4, 1, 1), (279, 4, 1, 64), room=1_600_000
    ),
    "directory.tif": lambda: _tiff(*((tag, 7, 600_000, 8) for tag in range(256, 50_000))),
    "codec.tif": lambda: _tiff(*_TIFF_OF_8_BY_8, (259, 3, 1, 50_001), (273, 4, 1, 300), (279, 4, 1, 100)),
    "jumps.bmp": lambda: _run_length(60_000_000, 10),
    "canvas.webp": lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0" + 2 * struct.pack("<I", 16_382)[:3],
}
"""Files that are refused, by name."""

BAGGAGE: dict[str, Callable[[], bytes]] = {
    "texts.png": _texts,
    "pieces.jpg": _exif_pieces,
    "directory.jpg": _exif_directory,
    "comment.gif": _comment,
}
"""Files of 8 x 8 red pixels with far too much beside them."""


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """Yields images of every format that is opened, each damaged in some places; the same for the same seed."""
    chance = random.Random(seed)
    whole = list(_originals())
    for _ in range(count):
        yield _mutated(chance.choice(whole), chance)


def _noise(size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3))


def _originals() -> Iterator[bytes]:
    image = _noise((20, 16)).resize((40, 32))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a storm"
    for format in ("PNG", "JPEG", "WEBP", "AVIF"):
        yield encoded(image, format, exif=exif)
    yield encoded(image, "JPEG", progressive=True)
    yield encoded(image, "WEBP", lossless=True)
    yield encoded(image, "GIF", comment=b"a storm", save_all=True, append_images=[image.rotate(20)], disposal=2)
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield encoded(image, "TIFF", compression=compression)
    yield encoded(image, "TIFF", big_tiff=True)
    yield encoded(image.convert("1"), "TIFF", compression="group4")
    for mode in ("RGB", "P", "1"):
        yield encoded(image.convert(mode), "BMP")
    yield encoded(image.convert("P"), "PNG", transparency=0)


def _mutated(whole: bytes, chance: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(len(data) if chance.random() < 0.6 else min(len(data), 120))
        kind = chance.choice(("byte", "bit", "number", "hole", "copy", "end"))
        if kind == "byte":
            data[place] = chance.randrange(256)
        elif kind == "bit":
            data[place] ^= 1 << chance.randrange(8)
        elif kind == "number":
            numbers = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\xff\xff\0\0")
            data[place : place + 4] = chance.choice(numbers)
        elif kind == "hole":
            del data[place : place + chance.randrange(1, 40)]
        elif kind == "copy":
            start = chance.randrange(len(data))
            data[place:place] = data[start : start + chance.randrange(1, 60)]
        else:
            del data[max(place, 1) :]
        data = data or bytearray(1)
    return _with_checksums(bytes(data)) if chance.random() < 0.7 else bytes(data)


def _with_checksums(data: bytes) -> bytes:
    """Returns a damaged PNG of which the checksums are right, so that its damage is met; all else as it is."""
    parts, place = [data[:8]], 8
    while data.startswith(b"\x89PNG") and place + 12 <= len(data):
        size, name = struct.unpack_from(">I4s", data, place)
        parts.append(png_chunk(name, data[place + 8 : place + 8 + size]))
        place += 12 + size
    return b"".join(parts) + data[place:] if len(parts) > 1 else data
