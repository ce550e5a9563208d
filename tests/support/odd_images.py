"""One motif in every form that an image file has: each must look like the plain one."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, features

from support.hostile_images import png_chunk

SIDE = 64
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def png(width: int, height: int, depth: int, kind: int, rows: bytes, clear: bytes = b"") -> bytes:
    """Returns a PNG.

    Args:
        depth: bits of a value.
        kind: 0 gray, 2 colors, 4 gray with opacity, 6 colors with opacity.
        rows: without the byte of their filter.
        clear: the transparent color.
    """
    length = len(rows) // height
    filtered = b"".join(b"\0" + rows[start : start + length] for start in range(0, len(rows), length))
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, kind, 0, 0, 0)),
            png_chunk(b"tRNS", clear) if clear else b"",
            png_chunk(b"IDAT", zlib.compress(filtered)),
            png_chunk(b"IEND", b""),
        )
    )


def gray_tiff(row: bytes, *, bits: int, white_is_zero: bool = False) -> bytes:
    """Returns a TIFF of one row in a form that Pillow does not write; 32 bits are floats."""
    width = len(row) * 8 // bits
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: 1, 279: len(row)}
    tags[339] = 3 if bits == 32 else 1
    padded = row + bytes(len(row) % 2)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"".join(
        (b"II*\0", struct.pack("<I", 8 + len(padded)), padded, struct.pack("<H", len(tags)), directory, bytes(4))
    )


def motif() -> Image.Image:
    """Returns the plain picture: half red, half blue, white at the bottom and in a corner. Every turn shows."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2], pixels[:, SIDE // 2 :] = (220, 30, 30), (30, 30, 220)
    pixels[8:24, 8:24] = pixels[SIDE * 2 // 3 :] = 255
    return Image.fromarray(pixels)


def write_odd_images(folder: Path) -> dict[Path, bool]:
    """Writes the motif in every form; returns each file, and whether it is gray."""
    plain = motif()
    pixels, gray = np.asarray(plain), np.asarray(plain.convert("L"))
    opacity = np.where(np.arange(SIDE) < SIDE * 2 // 3, 255, 0).astype(np.uint8)[:, None].repeat(SIDE, 1)
    hidden = np.where(opacity[..., None] == 0, 0, pixels).astype(np.uint8)  # black under what is transparent
    cutout = Image.fromarray(np.dstack([hidden, opacity]))
    indexed = cutout.quantize(16)
    colors: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "plain.png": (plain, {}),
        "plain.jpg": (plain, {"quality": 98, "subsampling": 0}),
        "plain.jfif": (plain, {"format": "JPEG", "quality": 98, "subsampling": 0}),
        "plain.jpe": (plain, {"format": "JPEG", "quality": 98, "subsampling": 0}),
        "named-otherwise.png": (plain, {"format": "BMP"}),
        "plain.tif": (plain, {}),
        "palette.png": (plain.quantize(16), {}),
        "palette.gif": (plain.quantize(16), {}),
        "cutout.png": (cutout, {}),
        "cutout.webp": (cutout, {"lossless": True}),
        "cutout.gif": (cutout, {}),
        "cutout.tif": (cutout, {}),
        "palette-cutout.png": (indexed, {}),
        "frames.gif": (plain, {"save_all": True, "append_images": [Image.new("RGB", plain.size)]}),
        "frames.png": (plain, {"save_all": True, "append_images": [Image.new("RGB", plain.size)]}),
        "frames.webp": (plain, {"save_all": True, "append_images": [Image.new("RGB", plain.size)], "lossless": True}),
        "pages.tif": (plain, {"save_all": True, "append_images": [Image.new("RGB", plain.size)]}),
        "cmyk.tif": (plain.convert("CMYK"), {}),
    }
    for number, method in _ORIENTATIONS.items():
        exif = Image.Exif()
        exif[0x0112] = number
        for suffix, options in (
            (".jpg", {"quality": 98, "subsampling": 0}),
            (".png", {}),
            (".webp", {"lossless": True}),
        ):
            colors[f"turned-{number}{suffix}"] = plain.transpose(method), {"exif": exif, **options}
    if features.check("avif"):
        colors["cutout.avif"] = cutout, {"quality": 100, "subsampling": "4:4:4"}
    for name, (image, options) in colors.items():
        image.save(folder / name, **options)  # type: ignore[arg-type]
    deep, deep_opacity = pixels.astype(">u2") * 257, opacity.astype(">u2") * 257
    deep_hidden = hidden.astype(">u2") * 257
    for name, kind, values in (
        ("deep.png", 2, deep),
        ("deep-cutout.png", 6, np.dstack([deep_hidden, deep_opacity])),
    ):
        (folder / name).write_bytes(png(SIDE, SIDE, 16, kind, values.astype(">u2").tobytes()))
    deep_gray = gray.astype(">u2") * 257
    hidden_gray = np.where(opacity == 0, 0, deep_gray).astype(">u2")
    grays = {
        "deep-gray.png": png(SIDE, SIDE, 16, 0, deep_gray.tobytes()),
        "deep-gray-cutout.png": png(SIDE, SIDE, 16, 4, np.dstack([hidden_gray, deep_opacity]).astype(">u2").tobytes()),
        "deep-gray-clear.png": png(SIDE, SIDE, 16, 0, hidden_gray.tobytes(), b"\0\0"),
        "gray-clear.png": png(SIDE, SIDE, 8, 0, np.where(opacity == 0, 0, gray).astype(np.uint8).tobytes(), b"\0\0"),
    }
    for name, data in grays.items():
        (folder / name).write_bytes(data)
    native = gray.astype(np.uint16) * 257
    for name, image in (
        ("gray.png", Image.fromarray(gray)),
        ("deep-gray.tif", Image.fromarray(native)),
        ("whole-gray.tif", Image.fromarray(native.astype(np.int32))),
        ("float-gray.tif", Image.fromarray((gray / 255).astype(np.float32))),
        ("float-of-8-bits.tif", Image.fromarray(gray.astype(np.float32))),
    ):
        image.save(folder / name)
        grays[name] = b""
    names = {name: name in grays for name in (*colors, "deep.png", "deep-cutout.png", *grays)}
    return {folder / name: is_gray for name, is_gray in names.items()}


SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))


def color_profile(colorants: tuple[tuple[float, ...], ...] = (), space: bytes = b"RGB ") -> bytes:
    """Returns an ICC profile of a color space, with the colorants of red, green and blue as its only tags."""
    names = (b"rXYZ", b"gXYZ", b"bXYZ")[: len(colorants)]
    start = 132 + 12 * len(names)
    table = b"".join(struct.pack(">4sII", name, start + 20 * n, 20) for n, name in enumerate(names))
    values = (struct.pack(">3i", *(round(value * 65536) for value in colorant)) for colorant in colorants)
    data = b"".join(b"XYZ \0\0\0\0" + value for value in values)
    size = struct.pack(">I", start + len(data))
    head = size + bytes(12) + space + b"XYZ " + bytes(12) + b"acsp" + bytes(88)
    return head + struct.pack(">I", len(names)) + table + data
