"""What Pillow is given of an image file: its pixels alone, within limits that its header already shows.

Pillow would read, join and decompress the directories, texts and further images of a file before their size could be
checked, so they are left out first. Of them only the orientation is needed, which is read here. So a file costs only
what its bytes and its pixels cost.

Source: W3C PNG, ITU-T T.81 (JPEG) and EXIF 2.32, GIF89a, TIFF 6.0 and BigTIFF, ISO/IEC 14496-12 (boxes of AVIF).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

MAX_PIXELS = 1 << 27
"""Pixels of an image, whatever its file's size: the largest photos of phones have 108 million."""

SMALL_PIXELS = 24 << 20
"""Pixels of an image whose file is small: they take up to 200 MB while they are decoded and converted."""

PIXELS_PER_BYTE = 4
"""Pixels beyond `SMALL_PIXELS` that each byte of a file allows: photos have one or two."""

MAX_SIDE = 65_535
"""Pixels of a side: the most that a JPEG can have."""

_MOST_PARTS = 200_000  # chunks, segments, boxes or blocks of a file
_MOST_SCANS = 100  # of a JPEG, each of which goes over all pixels; progressive ones have about ten
_MOST_VALUES = 200_000  # in the directory of a TIFF: one for each strip or tile
_MOST_RUNS = 16 << 20  # bytes of a compressed BMP
_MOST_EXIF = 1 << 20  # bytes that are looked at for the orientation
_MOST_PNG_PROFILE = 1 << 20  # bytes of a color profile in a PNG: one with a larger profile is not opened by Pillow

_ORIENTATION = 274


class PillowInput(NamedTuple):
    """What Pillow is given.

    Attributes:
        pixels: the file without everything that is not needed for its pixels.
        orientation: 1 to 8; 0 if Pillow has to read it, which it does when it opens `pixels`.
        weight: 2 if the decoder needs about twice the memory for each pixel.
        has_more: whether the file holds further images, frames or pages, beside small copies of the first.
    """

    pixels: bytes
    orientation: int = 0
    weight: int = 1
    has_more: bool = False


def most_pixels(data: bytes, weight: int = 1, is_light: bool = True) -> int:
    """Returns the limit of a file's pixels, by the memory of its decoder and of later conversions."""
    small = SMALL_PIXELS * 8 // 5 if is_light else SMALL_PIXELS  # 5 bytes per pixel in all, others take 8
    return min(MAX_PIXELS, small // weight + PIXELS_PER_BYTE * len(data))


def require_size(width: int, height: int, most: int) -> None:
    """Raises ValueError if an image is too large."""
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{width} x {height} pixels; a side has at most {MAX_SIDE:,}")
    if width * height > most:
        raise ValueError(f"{width * height / 1e6:.1f} megapixels; at most {most / 1e6:.1f} are opened of such a file")


def kind_of(data: bytes) -> str | None:
    """Returns Pillow's name of an image's format, by its first bytes; None if the format is not allowed."""
    if data[4:8] == b"ftyp":
        return "AVIF" if data[8:12] in (b"avif", b"avis", b"mif1", b"msf1") else None
    if data[:4] == b"RIFF":
        return "WEBP" if data[8:12] == b"WEBP" else None
    return next((kind for kind, beginning in _BEGINNINGS if data.startswith(beginning)), None)


def _of_webp(data: bytes) -> PillowInput:
    is_animated = data[12:16] == b"VP8X" and bool(data[20] & 2)
    return PillowInput(data, weight=2, has_more=is_animated)


# --- PNG

_PNG_PARTS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"IDAT", b"IEND"})
_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_ORIENTATION_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def _of_png(data: bytes) -> PillowInput:
    """Leaves out texts and further frames, except the two texts that may hold the orientation: they come first.

    Of color profiles the first is kept, unless it is too large.
    """
    view = memoryview(data)
    kept, pixels, position, frames, profiles = [view[:8]], list[memoryview](), 8, 1, 0
    for _ in range(_MOST_PARTS):
        if position + 12 > len(data):
            break
        size, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + size
        if end > len(data):
            break
        is_kept = name in _PNG_PARTS or (name in _PNG_TEXTS and data.startswith(_ORIENTATION_TEXTS, position + 8))
        if name == b"iCCP":
            profiles += 1
            is_kept = profiles == 1 and _is_small_profile(data[position + 8 : end - 4])
        if is_kept:
            (pixels if name in (b"IDAT", b"IEND") else kept).append(view[position:end])
        if name == b"acTL" and size >= 4:
            (frames,) = struct.unpack_from(">I", data, position + 8)
        position = end
        if name == b"IEND":
            return PillowInput(b"".join((*kept, *pixels)), has_more=frames > 1)
    else:
        raise ValueError(f"more than {_MOST_PARTS:,} chunks")
    return PillowInput(b"".join((*kept, *pixels, view[position:])))  # cut short: Pillow says whether pixels are missing


def _is_small_profile(chunk: bytes) -> bool:
    """Whether a chunk holds a color profile that is not too large: a name, the kind of packing, the packed profile."""
    packed = chunk.partition(b"\0")[2][1:]
    try:
        return len(zlib.decompressobj().decompress(packed, _MOST_PNG_PROFILE + 1)) <= _MOST_PNG_PROFILE
    except zlib.error:
        return False


# --- JPEG

_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_MARKER_IN_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # restart markers are part of a scan
_JPEG_PARTS = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD, 0xEE}) - {0xC8}
_WITHOUT_SEGMENT = frozenset({0x01, *range(0xD0, 0xD9)})
_FRAMES = _JPEG_PARTS & {*range(0xC0, 0xD0)} - {0xC4, 0xCC}


def _of_jpeg(data: bytes) -> PillowInput:
    """Keeps only tables and scans of the first image; phones write several images into one file."""
    view = memoryview(data)
    kept, exif, xmp = [view[:2]], [], b""
    position, scans, weight = 2, 0, 1
    for _ in range(_MOST_PARTS):
        found = _MARKER.search(data, position)
        if found is None:
            break
        position, code = found.start(), data[found.start() + 1]
        if code == 0xD9:
            kept.append(view[position : position + 2])
            break
        if code in _WITHOUT_SEGMENT:
            position += 2
            continue
        end = position + 2 + max(2, *struct.unpack_from(">H", data, position + 2))
        begins = data[position + 4 : min(position + 40, end)]
        if code in _FRAMES:
            weight = max(weight, _jpeg_weight(data, position))
        if code == 0xDA:
            scans += 1
            if scans > _MOST_SCANS:
                raise ValueError(f"more than {_MOST_SCANS} scans")
            following = _MARKER_IN_SCAN.search(data, end)
            end = following.start() if following else len(data)
        elif code == 0xE1 and begins.startswith(b"Exif\0\0"):
            exif.append(view[position + 10 : end])  # a long block is split over several segments
        elif code == 0xE1 and begins.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = data[position + 33 : end]
        is_kept = (code == 0xE0 and begins.startswith(b"JFIF")) or (code == 0xE2 and begins.startswith(b"ICC_PROFILE"))
        if code == 0xDA or code in _JPEG_PARTS or is_kept:
            kept.append(view[position:end])
        position = end
    else:
        raise ValueError(f"more than {_MOST_PARTS:,} segments")
    orientation = orientation_of({"exif": b"".join(exif), "xmp": xmp}) or 1
    return PillowInput(b"".join(kept), orientation, weight)


def _jpeg_weight(data: bytes, position: int) -> int:
    """Returns the weight of a frame: the decoder of several scans keeps 2 bytes per value until the last scan.

    Colors that are stored at half the size save about as much memory as turning an image takes.
    """
    factors = [(each >> 4, each & 15) for each in data[position + 11 : position + 10 + 3 * data[position + 9] : 3]]
    most = max((across for across, _ in factors), default=1) * max((down for _, down in factors), default=1)
    return 2 if sum(across * down for across, down in factors) > 2 * most else 1


# --- BMP


def _of_bmp(data: bytes) -> PillowInput:
    """Refuses long compressed files: Pillow decodes each run of pixels in Python, which is slow."""
    is_compressed = data[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
    if is_compressed and len(data) > _MOST_RUNS:
        raise ValueError(f"a compressed BMP of more than {_MOST_RUNS >> 20} MB")
    return PillowInput(data)


# --- GIF

_GIF_PART = re.compile(rb"[\x21\x2c]")  # an extension, or an image


def _of_gif(data: bytes) -> PillowInput:
    """Leaves out comments and all frames but the first."""
    view = memoryview(data)
    position = 13 + _gif_palette(data[10])
    beginning, control = view[:position], view[:0]
    while found := _GIF_PART.search(data, position):
        position = found.start()
        if data[position] == 0x21:
            end = _gif_blocks_end(data, position + 2)
            control = view[position:end] if data[position + 1 : position + 2] == b"\xf9" else control
            position = end
            continue
        left, top, width, height, flags = struct.unpack_from("<HHHHB", data, position + 1)
        screen = struct.unpack_from("<HH", data, 6)
        require_size(max(screen[0], left + width), max(screen[1], top + height), most_pixels(data))
        end = _gif_blocks_end(data, position + 11 + _gif_palette(flags))
        pixels = b"".join((beginning, control, view[position:end], b";"))
        return PillowInput(pixels, has_more=_gif_has_more(data, end))
    raise ValueError("a GIF without a picture")


def _gif_has_more(data: bytes, position: int) -> bool:
    """Whether an image follows, behind at most as many extensions as a file may have parts."""
    for _ in range(_MOST_PARTS):
        if data[position : position + 1] != b"\x21":
            break
        position = _gif_blocks_end(data, position + 2)
    return data[position : position + 1] == b"\x2c"


def _gif_palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks_end(data: bytes, position: int) -> int:
    """Returns the end of a chain of blocks, each of which begins with its length."""
    while position < len(data) and data[position]:
        position += data[position] + 1
    return position + 1


# --- TIFF

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# fmt: off
_PIXEL_TAGS = frozenset({
    256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320,
    322, 323, 324, 325, 332, 334, 338, 339, 347, 529, 530, 531, 532, 34675,
})
# fmt: on
_SUBFILE, _BITS, _COMPRESSION, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT, _XMP = 254, 258, 259, 322, 323, 339, 700
_SIGNED = 2  # sample format
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946})  # none, fax, LZW, JPEG, deflate, PackBits


def _of_tiff(data: bytes) -> PillowInput:
    """Replaces the directories by one with the pixels of the first image alone."""
    order, is_big = "<" if data[:1] == b"I" else ">", data[2:4] in (b"+\0", b"\0+")
    at, number = (8, "Q") if is_big else (4, "I")
    kept: dict[int, bytes] = {}
    numbers: dict[int, int] = {}
    xmp, room, values = b"", len(data), _MOST_VALUES
    first = struct.unpack_from(order + number, data, at)[0]
    for tag, kind, count, entry, position in _entries(data, order, first, is_big):
        if tag in numbers:
            continue
        size = count * _SIZES.get(kind, 1)
        numbers[tag] = _whole_number(data, order, kind, position)
        if tag == _XMP:
            xmp = data[position : position + min(size, _MOST_EXIF)]
        elif tag in _PIXEL_TAGS:
            room, values = room - size, values - count
            kept[tag] = entry
        if room < 0 or values < 0:
            raise ValueError("its directory claims more than the file has")
    is_compressed = numbers.get(_COMPRESSION, 1) != 1
    is_deep = numbers.get(_BITS) == 32 or (numbers.get(_BITS) == 16 and numbers.get(_SAMPLE_FORMAT) == _SIGNED)
    if order == ">" and is_compressed and is_deep:  # Pillow takes its bytes in the wrong order
        raise ValueError("a compressed big-endian TIFF of 32 bits or of signed values: save it uncompressed")
    if numbers.get(_COMPRESSION, 1) not in _COMPRESSIONS:
        raise ValueError(f"a TIFF of compression {numbers[_COMPRESSION]}, which is not opened")
    require_size(numbers.get(_TILE_WIDTH, 0), numbers.get(_TILE_LENGTH, 0), most_pixels(data))
    padding = -len(data) % 8
    directory = struct.pack(order + ("Q" if is_big else "H"), len(kept)) + b"".join(kept.values())
    head = data[:at] + struct.pack(order + number, len(data) + padding)
    pixels = b"".join((head, memoryview(data)[len(head) :], bytes(padding), directory, bytes(struct.calcsize(number))))
    orientation = numbers.get(_ORIENTATION) or orientation_of({"xmp": xmp}) or 1
    return PillowInput(pixels, orientation, has_more=_tiff_has_more(data, order, first, is_big))


def _tiff_has_more(data: bytes, order: str, first: int, is_big: bool) -> bool:
    """Whether a second directory follows that is not a small copy of the first."""
    (head, length, number) = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    after = first + struct.calcsize("<" + head)
    after += length * (struct.unpack_from(order + head, data, first)[0] if after <= len(data) else 0)
    if after + struct.calcsize("<" + number) > len(data):
        return False
    (second,) = struct.unpack_from(order + number, data, after)
    tags = {tag: _whole_number(data, order, kind, at) for tag, kind, _, _, at in _entries(data, order, second, is_big)}
    return second != 0 and bool(tags) and not tags.get(_SUBFILE, 0) & 1


def _entries(data: bytes, order: str, start: int, is_big: bool = False) -> Iterator[tuple[int, int, int, bytes, int]]:
    """Yields tag, type, count and bytes of each entry of a directory, and the position of its values."""
    head, form, inline = ("Q", "HHQQ", 8) if is_big else ("H", "HHII", 4)
    length = struct.calcsize("<" + form)
    first = start + struct.calcsize("<" + head)
    count = struct.unpack_from(order + head, data, start)[0] if first <= len(data) else 0
    for position in range(
        first, min(first + count * length, first + _MOST_PARTS * length, len(data) - length + 1), length
    ):
        tag, kind, number, value = struct.unpack_from(order + form, data, position)
        at = position + length - inline if number * _SIZES.get(kind, 1) <= inline else value
        yield tag, kind, number, data[position : position + length], at


def _whole_number(data: bytes, order: str, kind: int, position: int) -> int:
    """Returns the number at a position, if its type is one of those for orientation and sizes; else 0."""
    form = {3: "H", 4: "I", 16: "Q"}.get(kind)
    if form is None or position + struct.calcsize(form) > len(data):
        return 0
    return int(struct.unpack_from(order + form, data, position)[0])


# --- AVIF


def _of_avif(data: bytes) -> PillowInput:
    """Hides EXIF and XMP data, whose orientation must not be used: that of the file's boxes counts."""
    _require_coded_size(data)
    hidden, position = bytearray(data), 0
    for _ in range(_MOST_PARTS):
        if position + 8 > len(data):
            break
        size, name = struct.unpack_from(">I4s", data, position)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, position + 8)
        end = min(position + size, len(data)) if size else len(data)
        boxes = data[position:end] if name != b"mdat" else b""
        if b"Exif" in boxes:
            hidden[position:end] = boxes.replace(b"Exif", b"none").replace(
                b"application/rdf+xml", b"application/nothing"
            )
        position = max(end, position + 8)
    return PillowInput(bytes(hidden), weight=2, has_more=data[8:12] == b"avis")


_MOST_UNITS = 50_000  # of all the data in a file: a few for each item, tile and frame
_MOST_ITEMS = 2000  # within a file: parts of a large picture, its opacity, thumbnails
_MOST_PLACES = 20  # boxes that say where items and tracks are, or that hold items: a file has one or two
_SEQUENCE_HEADER = 1  # type of a unit


def _require_coded_size(data: bytes) -> None:
    """Refuses pictures that are coded far larger than the file states: the decoder has the memory for them first.

    A picture and its opacity are two, each of which may have parts; together they are at most twice what is opened.

    Raises:
        ValueError: they are larger, or it cannot be seen how large they are.
    """
    most, coded = 2 * most_pixels(data, 2), 0
    sizes = (size for item in _coded_items(memoryview(data)) for size in ((0, 0), *_coded_sizes(item)))
    for number, (width, height) in enumerate(sizes):
        coded += width * height
        if coded > most:
            raise ValueError(f"{coded / 1e6:.1f} megapixels are coded in it; at most {most / 1e6:.1f} are decoded")
        if number > _MOST_UNITS:
            raise ValueError(f"more than {_MOST_UNITS:,} parts of pictures")


def _coded_items(data: memoryview) -> Iterator[memoryview]:
    """Yields the data of each item of a file, and of each track from its first frame on.

    They are found wherever a box says that there are some, also one that a decoder would not look at.

    Raises:
        ValueError: there are more than any picture has.
    """
    for place, found in enumerate(re.finditer(rb"iloc(?=[\0-\2])|stco|co64", data)):
        if place >= _MOST_PLACES:
            raise ValueError(f"more than {_MOST_PLACES} lists of what is in it")
        if found[0] == b"iloc":
            yield from _listed_items(data, found.end())
            continue
        form = ">II" if found[0] == b"stco" else ">IQ"
        count, first = struct.unpack_from(form, data, found.end() + 4)
        if count:
            yield data[first:]


def _listed_items(data: memoryview, position: int) -> Iterator[memoryview]:
    version, sizes = data[position], struct.unpack_from(">H", data, position + 4)[0]
    of_offset, of_length, of_base, of_index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    at, listed = position + 6, 0

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at], "big")

    inside = [found.end() for found in re.finditer(rb"idat", data)]
    if len(inside) > _MOST_PLACES:
        raise ValueError(f"more than {_MOST_PLACES} places with items")
    wide = 4 if version == 2 else 2
    for _ in range(number(wide)):
        listed += 1
        number(wide)
        starts = inside if version > 0 and number(2) & 15 == 1 else [0]
        number(2)
        base, pieces = number(of_base), list[tuple[int, int]]()
        for _ in range(number(2)):
            number(of_index if version > 0 else 0)
            pieces.append((base + number(of_offset), number(of_length) or len(data)))
            listed += 1
            if listed > 2 * _MOST_ITEMS:
                break
        if listed > 2 * _MOST_ITEMS or at > len(data):
            raise ValueError(f"a list of more than {_MOST_ITEMS:,} items, or one that is cut short")
        for start in starts:
            found = [data[start + begin : start + begin + length] for begin, length in pieces]
            if len(found) > 1 and sum(map(len, found)) > len(data):
                raise ValueError("an item that is larger than the file")
            yield found[0] if len(found) == 1 else memoryview(b"".join(found))


def _coded_sizes(coded: memoryview) -> Iterator[tuple[int, int]]:
    """Yields the width and height in each unit of AV1's data: 0 of all but sequence headers; none in other data.

    The first bit of a unit, which none may have, is passed over, as decoders do.

    Source: AV1 Bitstream & Decoding Process Specification, 5.3 to 5.5.
    """
    at = 0
    while at + 2 <= len(coded) and coded[at] & 2:  # one without a length is the last
        kind, is_extended = coded[at] >> 3 & 15, coded[at] >> 2 & 1
        at += 1 + is_extended
        size = shift = 0
        for byte in coded[at : at + 8]:
            at += 1
            size |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                break
        is_header = kind == _SEQUENCE_HEADER
        yield (
            _size_in_header(int.from_bytes(bytes(coded[at : at + 64]).ljust(64, b"\0"), "big")) if is_header else (0, 0)
        )
        at += size


def _size_in_header(header: int) -> tuple[int, int]:
    """Returns the size that a sequence header states.

    Raises:
        ValueError: frames may be far larger than it states.
    """
    left = 512

    def bits(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise ValueError("a sequence header without an end")
        return header >> left & (1 << count) - 1

    bits(4)
    is_reduced = bits(1)
    if is_reduced:
        bits(5)
    else:
        of_delay = _skip_timing(bits)
        has_display_delay = bits(1)
        for _ in range(bits(5) + 1):
            bits(12)
            if bits(5) > 7:
                bits(1)
            if of_delay and bits(1):
                bits(2 * of_delay + 1)
            if has_display_delay and bits(1):
                bits(4)
    across, down = bits(4) + 1, bits(4) + 1
    width, height = bits(across) + 1, bits(down) + 1
    if not is_reduced and (1 << across > 2 * max(width, 8) or 1 << down > 2 * max(height, 8)):
        raise ValueError("a sequence header that leaves room for larger frames")  # each states its own size
    return width, height


def _skip_timing(bits: Callable[[int], int]) -> int:
    """Reads past the timing in a sequence header, and returns how many bits a delay has; 0 without any."""
    if not bits(1):
        return 0
    bits(64)
    if bits(1):
        zeros = 0
        while zeros < 32 and not bits(1):
            zeros += 1
        bits(zeros)
    if not bits(1):
        return 0
    of_delay = bits(5) + 1
    bits(42)
    return of_delay


# --- orientation

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation_of(info: Mapping[Any, Any]) -> int:
    """Returns the orientation, 1 to 8, in EXIF data or else in XMP data; 0 if there is none."""
    exif = info.get("exif") or b""
    if not exif and (profile := info.get("Raw profile type exif")):  # in hexadecimal, after three lines
        exif = bytes.fromhex("".join(profile.split("\n")[3:]))
    found = _orientation_in(exif[:_MOST_EXIF].removeprefix(b"Exif\0\0"))
    if found:
        return found
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
    match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp[:_MOST_EXIF])
    return int(match[1]) if match else 0


def _orientation_in(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 0
    start = struct.unpack_from(order + "I", tiff, 4)[0]
    for tag, kind, _, _, position in _entries(tiff, order, start):
        if tag == _ORIENTATION:
            return _whole_number(tiff, order, kind, position)
    return 0


_BEGINNINGS = (
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("JPEG", b"\xff\xd8\xff"),
    ("GIF", (b"GIF87a", b"GIF89a")),
    ("BMP", b"BM"),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)

SANITIZERS: dict[str, Callable[[bytes], PillowInput]] = {
    "PNG": _of_png,
    "JPEG": _of_jpeg,
    "WEBP": _of_webp,
    "BMP": _of_bmp,
    "GIF": _of_gif,
    "TIFF": _of_tiff,
    "AVIF": _of_avif,
}
"""Format -> the function that returns what Pillow is given of a file."""


# --- color profiles


_SRGB = (0.4361, 0.2225, 0.0139, 0.3851, 0.7169, 0.0971, 0.1431, 0.0606, 0.7141)  # its colorants, at the white of D50
_SRGB_D65 = (0.4124, 0.2126, 0.0193, 0.3576, 0.7152, 0.1192, 0.1805, 0.0722, 0.9505)  # as some programs write them
_NEAR = 0.035  # by far more than programs round, and less than any other usual space is away
_MOST_TAGS = 100  # of a profile; usual ones have 10 to 20


def is_like_srgb(profile: bytes) -> bool:
    """Whether an ICC profile shows colors as sRGB does; so does none, one of grays, and what is no profile.

    Source: ICC.1:2010, header and tag table.
    """
    if profile[36:40] != b"acsp" or profile[16:20] == b"GRAY" or len(profile) < 132:
        return True
    if profile[16:20] != b"RGB ":
        return False
    count = min(struct.unpack_from(">I", profile, 128)[0], _MOST_TAGS, (len(profile) - 132) // 12)
    offsets = {name: at for name, at, _ in (struct.unpack_from(">4sII", profile, 132 + 12 * n) for n in range(count))}
    colorants: list[float] = []
    for name in (b"rXYZ", b"gXYZ", b"bXYZ"):
        at = offsets.get(name, len(profile)) + 8
        if at + 12 > len(profile):  # a profile of another make: tables, or damaged
            return False
        colorants += (value / 65536 for value in struct.unpack_from(">3i", profile, at))
    return any(all(abs(a - b) < _NEAR for a, b in zip(colorants, of, strict=True)) for of in (_SRGB, _SRGB_D65))
