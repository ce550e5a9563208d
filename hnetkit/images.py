"""The one reader of images, which may be a stranger's: formats by an allow-list, decided from content, within limits.

Pillow is given what pixels need and nothing else. The directories, texts and further pictures of a file, which Pillow
would read, join and decompress before anybody can ask how large they are, are left out first; of them only the
orientation is wanted, which is read here. So a file costs what its own bytes and its pixels cost.

Source: W3C PNG, ITU-T T.81 (JPEG) and EXIF 2.32, GIF89a, TIFF 6.0 and BigTIFF, ISO/IEC 14496-12 (boxes of AVIF).
"""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hnetkit.errors import BadPicture, NotFound
from hnetkit.files import read_regular

if TYPE_CHECKING:
    from PIL import Image

Made = TypeVar("Made")

MAX_PIXELS = 1 << 27
"""Pixels of an image, whatever its file's size: the largest photographs of telephones have 108 million."""

SMALL_PIXELS = 24 << 20
"""Pixels of an image whose file is small: they take up to 200 MB while they are decoded and converted."""

PIXELS_PER_BYTE = 4
"""Pixels beyond `SMALL_PIXELS` that each byte of a file allows: photographs have one or two."""

MAX_SIDE = 65_535
"""Pixels of a side: the most that a JPEG can have."""

MAX_BYTES = 400 << 20
"""Bytes of a file."""

MAX_PROFILE = 4 << 20
"""Bytes of a colour profile; a larger one is left out."""

_MOST_PARTS = 200_000  # chunks, segments, boxes or blocks of a file
_MOST_SCANS = 100  # of a JPEG, each of which goes over all pixels; progressive ones have about ten
_MOST_VALUES = 200_000  # in the directory of a TIFF: one for each strip or tile
_MOST_RUNS = 16 << 20  # bytes of a compressed BMP
_MOST_EXIF = 1 << 20  # bytes that are looked at for the orientation

_ORIENTATION = 274
_KEPT = ("icc_profile", "transparency")  # of what Pillow says beside the pixels


class _Prepared(NamedTuple):
    """What Pillow is given.

    Attributes:
        pixels: a file without what is beside them.
        orientation: 1 to 8; 0 where it is to be found in what Pillow says.
        weight: 2 where the decoder holds about as much again for each pixel.
    """

    pixels: bytes
    orientation: int = 0
    weight: int = 1


def parse_size(text: str) -> tuple[int, int]:
    """Returns the (width, height) in pixels that ``"512"`` or ``"512x768"`` means; no limit is held here.

    Raises:
        ValueError: it means none.
    """
    found = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text.strip(), re.ASCII)
    if found is None:
        raise ValueError(f"{text}: not a size in pixels")
    return int(found[1]), int(found[2] or found[1])


def open_image(path: str | os.PathLike[str], data: bytes | None = None) -> Image.Image:
    """Returns the first picture of an image file, decoded and turned as its EXIF data says, in the mode that it has.

    Grey of 16 bits comes as grey of 8. The result knows nothing of its file but transparency and colour profile.

    Args:
        path: names it in errors, and is read where `data` is None.
        data: what is in the file.

    Raises:
        NotFound: there is no such file.
        BadPicture: it is no image of a format that is opened, is damaged, or is larger than the limits above.
    """
    data = read_image(path) if data is None else data
    image = _or_refused(path, _turned, data)
    # of what becomes of it later; nobody at a terminal can do anything about it
    warnings.filterwarnings("ignore", message="Palette images with Transparency", category=UserWarning)
    return image


def stored_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns (width, height) of an image file in pixels, before it is turned; nothing is decoded.

    Raises:
        As `open_image`.
    """
    return _or_refused(path, _stored_size, read_image(path))


def read_image(path: str | os.PathLike[str]) -> bytes:
    """Returns what is in an image file, for `open_image`.

    Raises:
        NotFound: there is no such file.
        BadPicture: it cannot be read, is no regular file, or has more than `MAX_BYTES` bytes.
    """
    try:
        return read_regular(path, most=MAX_BYTES)
    except FileNotFoundError as error:
        raise NotFound(f"{os.fspath(path)}: no such picture") from error
    except (OSError, ValueError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadPicture(f"{os.fspath(path)}: not a picture that can be read ({reason or 'too large'})") from error


def _or_refused(path: str | os.PathLike[str], step: Callable[[bytes], Made], data: bytes) -> Made:
    """Returns what `step` makes of the data; whatever exception it ends with is the image's fault."""
    try:
        return step(data)
    except Exception as error:  # decoders of damaged images end in every way that there is
        reason = _reason(error)
    # outside of the handler: an error that is kept must not keep the pixels
    raise BadPicture(f"{os.fspath(path)}: not a picture that can be read ({reason})")


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS / 1e6:.1f} megapixels"
    if isinstance(error, UnidentifiedImageError | struct.error | IndexError):
        return "damaged"
    return str(error) or type(error).__name__


def _turned(data: bytes) -> Image.Image:
    from PIL import Image

    methods = dict(
        enumerate(
            (
                Image.Transpose.FLIP_LEFT_RIGHT,
                Image.Transpose.ROTATE_180,
                Image.Transpose.FLIP_TOP_BOTTOM,
                Image.Transpose.TRANSPOSE,
                Image.Transpose.ROTATE_270,
                Image.Transpose.TRANSVERSE,
                Image.Transpose.ROTATE_90,
            ),
            start=2,
        )
    )
    with _quiet():
        opened, orientation = _header(data)
        with opened as image, _silent() if image.format == "TIFF" else nullcontext():
            image.load()
            orientation = orientation or _orientation_of(image.info)
            plain = image._new(image.im)  # shares the pixels, and not what the decoder holds
            if image.format == "PNG" and plain.mode == "I":  # an older Pillow's form of 16 bits; PNG has no more
                deep, info = plain.tobytes("raw", "I;16B"), plain.info
                plain = Image.frombytes("I;16B", plain.size, deep)
                plain.info = info
        del opened, image
    plain = _of_8_bits(plain)
    plain.info = {key: plain.info[key] for key in _KEPT if key in plain.info}
    if len(plain.info.get("icc_profile") or b"") > MAX_PROFILE:
        del plain.info["icc_profile"]
    return plain.transpose(methods[orientation]) if orientation in methods else plain


def _of_8_bits(image: Image.Image) -> Image.Image:
    """Returns grey of 16 bits as grey of 8: Pillow's own conversion cuts off, and makes white of nearly everything.

    Raises:
        ValueError: its values are of 32 bits, of which none is known to be white, unless all are of 8.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        order = "L;16B" if image.mode.endswith("B") else "L;16"  # the higher byte, as of colours of 16 bits
        grey = Image.frombytes("L", image.size, image.tobytes(), "raw", order)
        grey.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
        return grey
    if image.mode in ("I", "F"):
        lowest, highest = image.getextrema()
        if not (0 <= lowest <= highest <= 255 and highest > 1):  # type: ignore[operator]  # of one band: two numbers
            raise ValueError("its values have 32 bits and are not those of a picture: save it with 8 or 16 bits")
    return image


def _stored_size(data: bytes) -> tuple[int, int]:
    with _quiet(), _header(data)[0] as image:
        return image.size


def _header(data: bytes) -> tuple[Image.Image, int]:
    """Returns an image that is opened and not yet decoded, of an allowed size, and its orientation as `_Prepared`."""
    from PIL import Image

    kind = _kind_of(data)
    if not data:
        raise ValueError("an empty file")
    if kind is None:
        raise ValueError(f"its content is none of {', '.join(_PREPARED)}")
    prepared = _PREPARED[kind](data)
    image = Image.open(io.BytesIO(prepared.pixels), formats=(kind,))
    _require_size(*image.size, _most_pixels(data, prepared.weight, _is_light(image)))
    return image, prepared.orientation


def _is_light(image: Image.Image) -> bool:
    """Whether a picture takes one byte for each pixel, and three more in colour."""
    return image.mode in ("1", "L", "P") and "transparency" not in image.info


def _most_pixels(data: bytes, weight: int = 1, is_light: bool = True) -> int:
    """Returns how many pixels are made of a file, by what its decoder holds and what becomes of them."""
    small = SMALL_PIXELS * 8 // 5 if is_light else SMALL_PIXELS  # 5 bytes for each in all, where others take 8
    return min(MAX_PIXELS, small // weight + PIXELS_PER_BYTE * len(data))


def _require_size(width: int, height: int, most: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{width} x {height} pixels; a side has at most {MAX_SIDE:,}")
    if width * height > most:
        raise ValueError(f"{width * height / 1e6:.1f} megapixels; at most {most / 1e6:.1f} are opened of such a file")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what Pillow says of damaged or large images off the terminal."""
    log = logging.getLogger("PIL")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps what libtiff says of damage, which it writes past Python, off the terminal."""
    try:
        stderr = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _kind_of(data: bytes) -> str | None:
    """Returns the format of an image by its first bytes, as Pillow calls it; None for all that are not opened."""
    if data[4:8] == b"ftyp":
        return "AVIF" if data[8:12] in (b"avif", b"avis", b"mif1", b"msf1") else None
    if data[:4] == b"RIFF":
        return "WEBP" if data[8:12] == b"WEBP" else None
    return next((kind for kind, beginning in _BEGINNINGS if data.startswith(beginning)), None)


def _of_webp(data: bytes) -> _Prepared:
    return _Prepared(data, weight=2)


# --- PNG

_PNG_PARTS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"IDAT", b"IEND"})
_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_TURNING_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def _of_png(data: bytes) -> _Prepared:
    """Leaves out texts and further frames; the orientation may stand in one of two texts."""
    view = memoryview(data)
    kept, place = [view[:8]], 8
    for _ in range(_MOST_PARTS):
        if place + 12 > len(data):
            break
        size, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + size
        if end > len(data):
            break
        if name in _PNG_PARTS or (name in _PNG_TEXTS and data.startswith(_TURNING_TEXTS, place + 8)):
            kept.append(view[place:end])
        place = end
        if name == b"IEND":
            return _Prepared(b"".join(kept))
    else:
        raise ValueError(f"more than {_MOST_PARTS:,} chunks")
    return _Prepared(b"".join((*kept, view[place:])))  # cut short: Pillow says whether pixels are missing


# --- JPEG

_MARK = re.compile(rb"\xff[\x01-\xfe]")
_MARK_IN_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # restarts are part of a scan; decoders pass over no marks
_JPEG_PARTS = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD, 0xEE}) - {0xC8}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # marks without a segment
_FRAMES = _JPEG_PARTS & {*range(0xC0, 0xD0)} - {0xC4, 0xCC}


def _of_jpeg(data: bytes) -> _Prepared:
    """Leaves out everything but tables and scans of the first picture; phones write several behind one another."""
    view = memoryview(data)
    kept, exif, xmp = [view[:2]], [], b""
    place, scans, weight = 2, 0, 1
    for _ in range(_MOST_PARTS):
        found = _MARK.search(data, place)
        if found is None:
            break
        place, code = found.start(), data[found.start() + 1]
        if code == 0xD9:
            kept.append(view[place : place + 2])
            break
        if code in _ALONE:
            place += 2
            continue
        end = place + 2 + max(2, *struct.unpack_from(">H", data, place + 2))
        begins = data[place + 4 : min(place + 40, end)]
        if code in _FRAMES:
            weight = max(weight, _jpeg_weight(data, place))
        if code == 0xDA:
            scans += 1
            if scans > _MOST_SCANS:
                raise ValueError(f"more than {_MOST_SCANS} scans")
            following = _MARK_IN_SCAN.search(data, end)
            end = following.start() if following else len(data)
        elif code == 0xE1 and begins.startswith(b"Exif\0\0"):
            exif.append(view[place + 10 : end])  # a long one is written in several
        elif code == 0xE1 and begins.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = data[place + 33 : end]
        is_kept = (code == 0xE0 and begins.startswith(b"JFIF")) or (code == 0xE2 and begins.startswith(b"ICC_PROFILE"))
        if code == 0xDA or code in _JPEG_PARTS or is_kept:
            kept.append(view[place:end])
        place = end
    else:
        raise ValueError(f"more than {_MOST_PARTS:,} segments")
    orientation = _orientation_of({"exif": b"".join(exif), "xmp": xmp}) or 1
    return _Prepared(b"".join(kept), orientation, weight)


def _jpeg_weight(data: bytes, place: int) -> int:
    """Returns the weight of a frame: one that comes in several scans is held until the last, 2 bytes for each value.

    Colours that are stored at half the size leave about as much room as a turned picture takes.
    """
    factors = [(each >> 4, each & 15) for each in data[place + 11 : place + 10 + 3 * data[place + 9] : 3]]
    most = max((across for across, _ in factors), default=1) * max((down for _, down in factors), default=1)
    return 2 if sum(across * down for across, down in factors) > 2 * most else 1


# --- BMP


def _of_bmp(data: bytes) -> _Prepared:
    """Refuses long ones of which each run of pixels is a step of Python for Pillow."""
    is_compressed = data[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
    if is_compressed and len(data) > _MOST_RUNS:
        raise ValueError(f"a compressed BMP of more than {_MOST_RUNS >> 20} MB")
    return _Prepared(data)


# --- GIF

_GIF_PART = re.compile(rb"[\x21\x2c]")  # an extension, or a picture


def _of_gif(data: bytes) -> _Prepared:
    """Leaves out comments and all frames but the first."""
    view = memoryview(data)
    place = 13 + _gif_palette(data[10])
    beginning, control = view[:place], view[:0]
    while found := _GIF_PART.search(data, place):
        place = found.start()
        if data[place] == 0x21:
            end = _gif_blocks_end(data, place + 2)
            control = view[place:end] if data[place + 1 : place + 2] == b"\xf9" else control
            place = end
            continue
        left, top, width, height, flags = struct.unpack_from("<HHHHB", data, place + 1)
        screen = struct.unpack_from("<HH", data, 6)
        _require_size(max(screen[0], left + width), max(screen[1], top + height), _most_pixels(data))
        end = _gif_blocks_end(data, place + 11 + _gif_palette(flags))
        return _Prepared(b"".join((beginning, control, view[place:end], b";")))
    raise ValueError("a GIF without a picture")


def _gif_palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks_end(data: bytes, place: int) -> int:
    """Returns where a chain of blocks ends, each of which begins with its length."""
    while place < len(data) and data[place]:
        place += data[place] + 1
    return place + 1


# --- TIFF

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_PIXEL_TAGS = frozenset(
    {
        *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320),
        *(322, 323, 324, 325, 332, 334, 338, 339, 347, 529, 530, 531, 532, 34675),
    }
)
_COMPRESSION, _TILE_WIDTH, _TILE_LENGTH, _XMP = 259, 322, 323, 700
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946})  # none, fax, LZW, JPEG, deflate, PackBits


def _of_tiff(data: bytes) -> _Prepared:
    """Gives the file a directory of its first picture's pixels alone."""
    order, is_big = "<" if data[:1] == b"I" else ">", data[2:4] in (b"+\0", b"\0+")
    at, number = (8, "Q") if is_big else (4, "I")
    kept: dict[int, bytes] = {}
    said: dict[int, int] = {}
    xmp, room, values = b"", len(data), _MOST_VALUES
    first = struct.unpack_from(order + number, data, at)[0]
    for tag, kind, count, entry, place in _entries(data, order, first, is_big):
        if tag in said:
            continue
        size = count * _SIZES.get(kind, 1)
        said[tag] = _whole_number(data, order, kind, place)
        if tag == _XMP:
            xmp = data[place : place + min(size, _MOST_EXIF)]
        elif tag in _PIXEL_TAGS:
            room, values = room - size, values - count
            kept[tag] = entry
        if room < 0 or values < 0:
            raise ValueError("its directory claims more than the file has")
    if said.get(_COMPRESSION, 1) not in _COMPRESSIONS:
        raise ValueError(f"a TIFF of compression {said[_COMPRESSION]}, which is not opened")
    _require_size(said.get(_TILE_WIDTH, 0), said.get(_TILE_LENGTH, 0), _most_pixels(data))
    padding = -len(data) % 8
    directory = struct.pack(order + ("Q" if is_big else "H"), len(kept)) + b"".join(kept.values())
    head = data[:at] + struct.pack(order + number, len(data) + padding)
    pixels = b"".join((head, memoryview(data)[len(head) :], bytes(padding), directory, bytes(struct.calcsize(number))))
    return _Prepared(pixels, said.get(_ORIENTATION) or _orientation_of({"xmp": xmp}) or 1)


def _entries(data: bytes, order: str, start: int, is_big: bool = False) -> Iterator[tuple[int, int, int, bytes, int]]:
    """Yields tag, type, count and bytes of each entry of a directory, and where its values begin."""
    head, form, inline = ("Q", "HHQQ", 8) if is_big else ("H", "HHII", 4)
    length = struct.calcsize("<" + form)
    first = start + struct.calcsize("<" + head)
    count = struct.unpack_from(order + head, data, start)[0] if first <= len(data) else 0
    for place in range(
        first, min(first + count * length, first + _MOST_PARTS * length, len(data) - length + 1), length
    ):
        tag, kind, number, value = struct.unpack_from(order + form, data, place)
        at = place + length - inline if number * _SIZES.get(kind, 1) <= inline else value
        yield tag, kind, number, data[place : place + length], at


def _whole_number(data: bytes, order: str, kind: int, place: int) -> int:
    """Returns the number at a place, of a type that orientation and sizes have; 0 of all others."""
    form = {3: "H", 4: "I", 16: "Q"}.get(kind)
    if form is None or place + struct.calcsize(form) > len(data):
        return 0
    return int(struct.unpack_from(order + form, data, place)[0])


# --- AVIF


def _of_avif(data: bytes) -> _Prepared:
    """Hides EXIF data, whose orientation does not count beside that of the boxes, and XMP data that repeats it."""
    hidden, place = bytearray(data), 0
    for _ in range(_MOST_PARTS):
        if place + 8 > len(data):
            break
        size, name = struct.unpack_from(">I4s", data, place)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, place + 8)
        end = min(place + size, len(data)) if size else len(data)
        boxes = data[place:end] if name != b"mdat" else b""
        if b"Exif" in boxes:
            hidden[place:end] = boxes.replace(b"Exif", b"none").replace(b"application/rdf+xml", b"application/nothing")
        place = max(end, place + 8)
    return _Prepared(bytes(hidden), weight=2)


# --- orientation

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def _orientation_of(info: Mapping[Any, Any]) -> int:
    """Returns the orientation, 1 to 8, that EXIF data or else XMP data says; 0 where none does."""
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
    for tag, kind, _, _, place in _entries(tiff, order, start):
        if tag == _ORIENTATION:
            return _whole_number(tiff, order, kind, place)
    return 0


_BEGINNINGS = (
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("JPEG", b"\xff\xd8\xff"),
    ("GIF", (b"GIF87a", b"GIF89a")),
    ("BMP", b"BM"),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)

_PREPARED: dict[str, Callable[[bytes], _Prepared]] = {
    "PNG": _of_png,
    "JPEG": _of_jpeg,
    "WEBP": _of_webp,
    "BMP": _of_bmp,
    "GIF": _of_gif,
    "TIFF": _of_tiff,
    "AVIF": _of_avif,
}
"""What Pillow is given of each format that is opened."""
