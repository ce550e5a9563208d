"""The one reader of images, which may be a stranger's: allowed formats, recognized by content, within limits.

What is read is what viewers show: turned as EXIF says, white under transparency, deep gray scaled to 8 bits. Only color
profiles are not applied, so that no foreign one is interpreted; `has_other_colors` tells where it matters. Nothing else
in hnetkit opens a file with Pillow or converts between its modes.
"""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from hnetkit.errors import BadPicture, NotFound
from hnetkit.files import read_regular
from hnetkit.image_formats import (
    MAX_PIXELS,
    SANITIZERS,
    is_like_srgb,
    kind_of,
    most_pixels,
    orientation_of,
    require_size,
)

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

MAX_BYTES = 400 << 20
"""Bytes of a file."""

MAX_PROFILE = 4 << 20
"""Bytes of a color profile; a larger one is left out."""

_STRIP = 1 << 20  # pixels that are converted at once, where a second image of the whole size would be too much
_HALF_OPAQUE = 128
_DEPTH = 24  # place in a PNG of the bits of a value
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of a TIFF
_KEPT_INFO = ("icc_profile", "transparency")  # keys of Pillow's `Image.info` that the result keeps


def parse_size(text: str) -> tuple[int, int]:
    """Returns the (width, height) in pixels that ``"512"`` or ``"512x768"`` means; no limit is held here.

    Raises:
        ValueError: it means none.
    """
    found = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text.strip(), re.ASCII)
    if found is None:
        raise ValueError(f"{text}: not a size in pixels")
    return int(found[1]), int(found[2] or found[1])


# --- files


def open_rgb(path: str | os.PathLike[str], data: bytes | None = None) -> Image.Image:
    """Returns the first image of a file in RGB as it is seen, with white under its transparency.

    Raises:
        As `open_image`.
    """
    return on_white(open_image(path, data))


def open_with_opacity(path: str | os.PathLike[str], data: bytes | None = None) -> Image.Image:
    """Returns the first image of a file in RGB, or in RGBA if it has transparency; `on_white` shows it as it is seen.

    Raises:
        As `open_image`.
    """
    image = open_image(path, data)
    mode = "RGBA" if _has_opacity(image) else "RGB"
    return image if image.mode == mode else image.convert(mode)


def open_mask(path: str | os.PathLike[str]) -> Image.Image:
    """Returns the first image of a file as a mask, in gray: its opacity if it is transparent anywhere, else its grays.

    As in A1111, opacity is either: what is more than half opaque is white.

    Raises:
        As `open_image`.
    """
    image = open_image(path)
    if _has_opacity(image):
        opacity = image.convert("RGBA").getchannel("A")
        if opacity.getextrema() != (255, 255):
            return opacity.point(lambda part: 255 if part > _HALF_OPAQUE else 0)
    return as_gray(image)


def open_image(path: str | os.PathLike[str], data: bytes | None = None) -> Image.Image:
    """Returns the first image of a file, decoded, turned as its EXIF data says, and in its own mode.

    Deep gray becomes gray of 8 bits: of 12 or 16 bits by its highest bits, of 32 bits by the values that it has.
    Fractions from 0 to 1 are black to white, and whole numbers have 8 bits, or 16 if one of them is above 255.
    Of its file's metadata, the result keeps only transparency and color profile.

    Args:
        path: names the file in errors, and is read if `data` is None.
        data: the content of the file.

    Raises:
        NotFound: there is no such file.
        BadPicture: it is not an image of an allowed format, is damaged, has other values of 32 bits than those above,
            or is larger than the limits of `hnetkit.image_formats`.
    """
    return _or_bad_picture(path, _turned, read_image(path) if data is None else data)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns (width, height) of an image file in pixels, turned as its EXIF data says, without decoding it.

    Raises:
        As `open_image`.
    """
    return _or_bad_picture(path, _size, read_image(path))


def has_more(path: str | os.PathLike[str], data: bytes | None = None) -> bool:
    """Whether an image file holds further images (frames, pages), of which `open_image` returns the first.

    Raises:
        As `open_image`.
    """
    return _or_bad_picture(path, _has_more, read_image(path) if data is None else data)


def has_other_colors(path: str | os.PathLike[str], data: bytes | None = None) -> bool:
    """Whether an image file has a color profile by which viewers show other colors than its values are in sRGB.

    `open_image` applies no profile, as A1111 and ComfyUI do not.

    Raises:
        As `open_image`.
    """
    return _or_bad_picture(path, _has_other_colors, read_image(path) if data is None else data)


def read_image(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of an image file, for `open_image`.

    Raises:
        NotFound: there is no such file.
        BadPicture: it cannot be read, is not a regular file, or has more than `MAX_BYTES` bytes.
    """
    try:
        return read_regular(path, most=MAX_BYTES)
    except FileNotFoundError as error:
        raise NotFound(f"{os.fspath(path)}: no such picture") from error
    except (OSError, ValueError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadPicture(f"{os.fspath(path)}: not a picture that can be read ({reason or 'too large'})") from error


def _or_bad_picture(path: str | os.PathLike[str], step: Callable[[bytes], T], data: bytes) -> T:
    """Returns the result of `step`; any exception in it becomes a `BadPicture`."""
    try:
        return step(data)
    except Exception as error:  # decoders may raise anything for a damaged image
        reason = _reason(error)
    # outside of the handler, so that the error does not keep the pixels in memory
    raise BadPicture(f"{os.fspath(path)}: not a picture that can be read ({reason})")


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS / 1e6:.1f} megapixels"
    if isinstance(error, UnidentifiedImageError):
        return "damaged, or of a kind that Pillow does not open"
    if isinstance(error, struct.error | IndexError):
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
            plain = image._new(image.im)  # shares the pixels without the decoder's state
            if image.format == "PNG":
                plain = _as_png_means(plain, data[_DEPTH])
            bits, is_negative = _tiff_grays(image) if image.format == "TIFF" else (16, False)
        del opened, image
    plain = _of_8_bits(plain, bits, is_negative=is_negative)
    plain.info = {key: plain.info[key] for key in _KEPT_INFO if key in plain.info}
    if len(plain.info.get("icc_profile") or b"") > MAX_PROFILE:
        del plain.info["icc_profile"]
    return plain.transpose(methods[orientation]) if orientation in methods else plain


def _size(data: bytes) -> tuple[int, int]:
    with _quiet():
        opened, orientation = _header(data)
        with opened as image:
            width, height = image.size
    return (height, width) if orientation >= 5 else (width, height)


def _has_more(data: bytes) -> bool:
    kind = kind_of(data)
    return kind is not None and SANITIZERS[kind](data).has_more


def _has_other_colors(data: bytes) -> bool:
    with _quiet():
        opened, _ = _header(data)
        with opened as image:
            return not is_like_srgb(image.info.get("icc_profile") or b"")


def _header(data: bytes) -> tuple[Image.Image, int]:
    """Returns an image of an allowed size, opened and not yet decoded, and its orientation, 1 to 8."""
    from PIL import Image

    kind = kind_of(data)
    if not data:
        raise ValueError("an empty file")
    if kind is None:
        raise ValueError(f"its content is none of {', '.join(SANITIZERS)}")
    sanitized = SANITIZERS[kind](data)
    image = Image.open(io.BytesIO(sanitized.pixels), formats=(kind,))
    require_size(*image.size, most_pixels(data, sanitized.weight, _is_light(image)))
    orientation = sanitized.orientation or orientation_of(image.info)
    return image, orientation if orientation in range(1, 9) else 1


def _is_light(image: Image.Image) -> bool:
    """Whether an image takes one byte for each pixel, and three more in color."""
    return image.mode in ("1", "L", "P") and "transparency" not in image.info


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Pillow's logs and warnings about damaged or large images."""
    log = logging.getLogger("PIL")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _silent() -> Iterator[None]:
    """Silences libtiff's messages about damage, which it writes to stderr past Python."""
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


# --- pixels


def on_white(image: Image.Image) -> Image.Image:
    """Returns an image of any mode in RGB, with white under its transparency, as it is seen."""
    from PIL import Image

    if not _has_opacity(image):
        return image if image.mode == "RGB" else image.convert("RGB")
    seen = Image.new("RGB", image.size, "white")
    for top, strip in _strips(image):
        colors = strip.convert("RGBA")
        seen.paste(colors, (0, top), colors)
    return seen


def as_gray(image: Image.Image) -> Image.Image:
    """Returns an image of any mode in gray of 8 bits, as `on_white` shows it."""
    return (on_white(image) if _has_opacity(image) else image).convert("L")


def whiten_hidden(image: Image.Image) -> Image.Image:
    """Returns an RGBA image with white where it is fully transparent, for programs that pass over opacity."""
    from PIL import Image

    clear = image.getchannel("A").point(lambda opacity: 255 * (opacity == 0))
    image = image.copy()
    image.paste(Image.new("RGBA", image.size, (255, 255, 255, 0)), mask=clear)
    return image


def _has_opacity(image: Image.Image) -> bool:
    is_color = image.mode == "LAB"  # its A is a color
    return (not is_color and "A" in image.getbands()) or "transparency" in image.info


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields an image in parts as wide as it is, each with its top."""
    height = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def _as_png_means(image: Image.Image, depth: int) -> Image.Image:
    """Returns a decoded PNG whose values and transparent color have the depth that Pillow stores.

    Args:
        depth: bits of a value in the file.
    """
    from PIL import Image

    if image.mode == "I":  # how an older Pillow opens 16 bits, the most that PNG has
        deep, info = image.tobytes("raw", "I;16B"), image.info
        image = Image.frombytes("I;16B", image.size, deep)
        image.info = info
    clear: Any = image.info.get("transparency")
    if image.mode == "L" and isinstance(clear, int) and depth in (2, 4):
        image.info["transparency"] = clear * 255 // (2**depth - 1)
    if image.mode == "RGB" and isinstance(clear, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image


def _tiff_grays(image: Any) -> tuple[int, bool]:
    """Returns the bits of a TIFF's values, and whether its deep grays are a negative, which Pillow does not turn."""
    bits = image.tag_v2.get(_BITS, (8,))
    return bits[0], image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _of_8_bits(image: Image.Image, bits: int, *, is_negative: bool) -> Image.Image:
    """Returns an image in 8 bits. Pillow's own conversion clips deep gray, which makes it white or black.

    Args:
        bits: of its values, if they have up to 16.
        is_negative: whether 0 is white.

    Raises:
        ValueError: its values have 32 bits, and it is unknown which of them is white.
    """
    import numpy as np
    from PIL import Image

    if image.mode in ("I", "F"):
        shades = _shades_of_32_bits(image)
    elif image.mode.startswith("I;16"):
        # the higher byte, as for colors of 16 bits
        def shades(values: Any) -> Any:
            return values >> bits - 8
    else:
        return image
    gray, clear = Image.new("L", image.size), image.info.get("transparency")
    opacity = None if clear is None else Image.new("L", image.size)
    for top, strip in _strips(image):
        values = np.asarray(strip)
        seen = shades(values).astype(np.uint8)
        gray.paste(Image.fromarray(255 - seen if is_negative else seen), (0, top))
        if opacity is not None:
            opacity.paste(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)), (0, top))
    result = gray if opacity is None else Image.merge("LA", (gray, opacity))
    result.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return result


def _shades_of_32_bits(image: Image.Image) -> Callable[[Any], Any]:
    """Returns the function that makes grays of an image's values; see `open_image` for the rule."""
    import numpy as np

    is_whole, lowest, highest = True, np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise ValueError("some of its values are not finite")
        is_whole = is_whole and bool((values == np.floor(values)).all())
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
    if lowest >= 0 and highest <= 1:
        return lambda values: values * 255 + 0.5
    if is_whole and lowest >= 0 and highest <= 65_535:
        return lambda values: values.astype(np.uint16) >> (8 if highest > 255 else 0)
    raise ValueError(
        f"its values of 32 bits go from {lowest:g} to {highest:g}, and which of them is white is unknown: "
        "save it with 8 or 16 bits"
    )
