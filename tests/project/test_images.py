"""One reader opens every image: the good ones as Pillow decodes them, the hostile ones as an error of that image."""

from __future__ import annotations

import ast
import io
import os
import resource
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from support.hostile_images import BAGGAGE, BOMBS, damaged_avif, encoded, large_png, mutants, postscript
from support.odd_images import gray_tiff, png

from hnetkit import image_formats, images
from hnetkit.errors import BadPicture, NotFound
from hnetkit.images import (
    as_gray,
    has_more,
    image_size,
    on_white,
    open_image,
    open_mask,
    open_rgb,
    open_with_opacity,
    parse_size,
    read_image,
)

REPOSITORY = Path(__file__).resolve().parents[2]
READER = REPOSITORY / "hnetkit" / "images.py"
MEGABYTE = 1 << 20
FORMATS: list[tuple[str, dict[str, object]]] = [
    ("PNG", {}),
    ("JPEG", {}),
    ("JPEG", {"progressive": True, "restart_marker_rows": 1}),
    ("MPO", {"save_all": True}),
    ("WEBP", {"lossless": True}),
    ("AVIF", {}),
    ("GIF", {"comment": b"a storm"}),
    ("BMP", {}),
    *[("TIFF", {"compression": name}) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")],
    ("TIFF", {"big_tiff": True}),
]
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
CANNOT = {  # be written, by Pillow
    *(("JPEG", mode) for mode in ("LA", "P", "RGBA", "I;16")),
    *(("MPO", mode) for mode in ("LA", "P", "RGBA", "I;16")),
    *(("WEBP", mode) for mode in ("CMYK", "I;16")),
    *(("AVIF", mode) for mode in ("CMYK", "I;16")),
    *(("BMP", mode) for mode in ("LA", "CMYK", "I;16")),
    *(("GIF", mode) for mode in ("CMYK", "I;16")),
    ("PNG", "CMYK"),
}
WRITTEN = [
    (format, options, mode)
    for format, options in FORMATS
    for mode in MODES
    if (format, mode) not in CANNOT and (options.get("compression") != "jpeg" or mode in ("L", "RGB", "CMYK"))
]


def drawn(mode: str = "RGB") -> Image.Image:
    """A picture that is another one after every turn."""
    image = Image.linear_gradient("L").resize((24, 16))
    colours = Image.merge("RGB", (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.rotate(90)))
    if mode == "I;16":
        return image.convert("I").convert("I;16")
    return colours.convert(mode)


def as_pillow_has_it(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def high_bytes(deep: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8."""
    order = ">" if deep.mode.endswith("B") else "<"
    values = struct.unpack(f"{order}{deep.width * deep.height}H", deep.tobytes())
    return Image.frombytes("L", deep.size, bytes(value >> 8 for value in values))


def require_same(data: bytes) -> None:
    expected, image = as_pillow_has_it(data), open_image("a picture", data)
    if expected.mode.startswith("I;16"):
        expected = high_bytes(expected)
    assert (image.mode, image.size) == (expected.mode, expected.size)
    assert image.tobytes() == expected.tobytes()
    assert image.convert("RGBA").tobytes() == expected.convert("RGBA").tobytes()


def peak() -> int:
    """Bytes of memory that this process had at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- good images


@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
@pytest.mark.parametrize(("format", "options", "mode"), WRITTEN)
def test_a_good_image_has_the_pixels_that_pillow_finds_in_it(
    format: str, options: dict[str, object], mode: str
) -> None:
    more = {"append_images": [drawn().rotate(20)]} if format == "MPO" else {}
    require_same(encoded(drawn(mode), format, **options, **more))


@pytest.mark.parametrize(("format", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_grey_of_16_bits_keeps_its_shades(format: str, mode: str) -> None:
    values = struct.pack(f"{'>' if mode.endswith('B') else '<'}256H", *range(0, 65536, 256))
    image = open_image("a scan", encoded(Image.frombytes(mode, (16, 16), values), format))
    assert list(image.convert("RGB").getchannel("R").tobytes()) == list(range(256))


def of_values(mode: str, *values: float) -> bytes:
    """A TIFF of one row of values."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return encoded(image, "TIFF")


def grays(data: bytes) -> list[int]:
    image = open_image("a scan", data)
    assert image.mode == "L"
    return list(image.tobytes())


@pytest.mark.parametrize(
    ("mode", "values", "seen"),
    [
        ("F", (0, 0.25, 1), [0, 64, 255]),  # fractions
        ("F", (0, 64, 255), [0, 64, 255]),  # whole numbers of 8 bits
        ("F", (0, 64 * 257, 65535), [0, 64, 255]),  # and of 16
        ("I", (0, 1), [0, 255]),  # a mask
        ("I", (0, 64, 255), [0, 64, 255]),
        ("I", (0, 64 * 257, 65535), [0, 64, 255]),
        ("I", (0, 0), [0, 0]),
    ],
)
def test_grey_of_32_bits_is_scaled_to_what_its_8_bit_form_would_be(
    mode: str, values: tuple[float, ...], seen: list[int]
) -> None:
    assert grays(of_values(mode, *values)) == seen


@pytest.mark.parametrize(
    ("mode", "values", "said"),
    [
        ("F", (0, 1.5), "from 0 to 1.5"),
        ("F", (0.5, 200.0), "from 0.5 to 200"),
        ("F", (-0.25, 1.0), "from -0.25 to 1"),
        ("F", (0, 70000), "from 0 to 70000"),
        ("I", (0, 70000), "from 0 to 70000"),
        ("I", (-1, 255), "from -1 to 255"),
        ("F", (0, float("nan")), "not finite"),
        ("F", (0, float("inf")), "not finite"),
    ],
)
def test_values_of_32_bits_of_which_none_is_known_to_be_white_are_refused(
    mode: str, values: tuple[float, ...], said: str
) -> None:
    with pytest.raises(BadPicture, match=rf"a depth map: .*{said}"):
        open_image("a depth map", of_values(mode, *values))


def test_a_deep_scan_in_which_0_is_white_is_no_negative() -> None:
    assert grays(gray_tiff(struct.pack("<3H", 0, 0x4040, 65535), bits=16, white_is_zero=True)) == [255, 191, 0]
    assert grays(gray_tiff(struct.pack("<2f", 0, 1), bits=32, white_is_zero=True)) == [255, 0]


def test_a_scan_of_12_bits_keeps_its_shades() -> None:
    assert grays(gray_tiff(bytes.fromhex("000404ffffff"), bits=12)) == [0, 64, 255, 255]


@pytest.mark.parametrize(
    ("depth", "kind", "row", "clear"),
    [
        (2, 0, b"\x10", b"\0\1"),  # values 0 and 1, of 3
        (4, 0, b"\x05", b"\0\5"),
        (8, 0, b"\x00\x55", b"\0\x55"),
        (16, 0, b"\x00\x00\x55\x66", b"\x55\x66"),
        (8, 2, b"\0\0\0\x55\x55\x55", b"\0\x55" * 3),
        (16, 2, bytes(6) + b"\x55\x66" * 3, b"\x55\x66" * 3),
    ],
)
def test_the_transparent_color_of_any_depth_is_white(depth: int, kind: int, row: bytes, clear: bytes) -> None:
    data = png(2, 1, depth, kind, row, clear)
    assert on_white(open_image("a drawing", data)).tobytes() == bytes(3) + b"\xff" * 3


def test_of_deep_grey_only_the_very_transparent_value_is_white() -> None:
    data = png(3, 1, 16, 0, struct.pack(">3H", 0, 1, 0x5566), b"\0\0")
    assert as_gray(open_image("a drawing", data)).tobytes() == bytes([255, 0, 0x55])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_as_its_exif_data_says(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a storm", orientation
    require_same(encoded(drawn(), format, exif=exif))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_image_is_turned_as_its_xmp_data_says_where_it_has_no_exif_data(format: str, orientation: int) -> None:
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'
    about = PngInfo()
    about.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    options = {"PNG": {"pnginfo": about}, "TIFF": {"tiffinfo": {700: xmp.encode()}}}.get(format, {"xmp": xmp.encode()})
    require_same(encoded(drawn(), format, **options))


def test_exif_data_in_hexadecimal_counts_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    about = PngInfo()
    about.add_text("Raw profile type exif", f"\nexif\n      40\n{exif.tobytes().hex()}\n", zip=True)
    data = encoded(drawn(), "PNG", pnginfo=about)
    assert open_image("a picture", data).size == (16, 24)
    require_same(data)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_opened(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "white")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    require_same(data)
    red, _, blue = open_image("a picture", data).convert("RGB").getpixel((8, 8))  # type: ignore[misc]
    assert red > 200 > 50 > blue


def test_transparency_and_colour_profile_are_all_that_is_kept_beside_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    about = PngInfo()
    about.add_text("parameters", "a storm")
    data = encoded(drawn(), "PNG", pnginfo=about, transparency=(1, 2, 3), icc_profile=b"profile", dpi=(72, 72))
    assert open_image("a picture", data).info == {"transparency": (1, 2, 3), "icc_profile": b"profile"}
    monkeypatch.setattr(images, "MAX_PROFILE", 6)
    assert open_image("a picture", data).info == {"transparency": (1, 2, 3)}


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 200 << 20])
def test_a_png_with_a_large_colour_profile_is_opened_without_it(size: int) -> None:
    kept = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(kept, "PNG", icc_profile=bytes(size))
    opened = open_image("a.png", kept.getvalue())
    assert (opened.size, opened.getpixel((0, 0))) == ((4, 3), (255, 0, 0))
    assert len(opened.info.get("icc_profile", b"")) == (size if size <= 1 << 20 else 0)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(drawn(), "WEBP", lossless=True))
    assert open_image(tmp_path / "photo.png").tobytes() == drawn().tobytes()
    assert image_size(tmp_path / "photo.png") == (24, 16)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "JPEG", "BMP"])
def test_a_file_says_whether_it_holds_further_images(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "white")]
    assert not has_more("a picture", encoded(frames[0], format))
    if format not in ("JPEG", "BMP"):
        assert has_more("a scan", encoded(frames[0], format, save_all=True, append_images=frames[1:]))


def test_a_small_copy_in_a_tiff_is_no_further_image() -> None:
    buffer = io.BytesIO()
    drawn().save(buffer, "TIFF", save_all=True, append_images=[drawn().resize((4, 4))])
    data = bytearray(buffer.getvalue())
    assert has_more("a scan", bytes(data))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * count)
    struct.pack_into("<HHII", data, second + 2, 254, 4, 1, 1)  # its first tag: a reduced copy
    assert not has_more("a scan", bytes(data))


@pytest.mark.parametrize(("bits", "format", "form"), [(32, 3, "f"), (32, 2, "i"), (16, 2, "h")])
def test_a_tiff_whose_bytes_pillow_takes_in_the_wrong_order_is_refused(bits: int, format: int, form: str) -> None:
    row = zlib.compress(struct.pack(f">3{form}", 0, 1, 1))
    tags = {256: 3, 257: 1, 258: bits, 259: 8, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(row), 339: format}
    padded = row + bytes(len(row) % 2)
    directory = b"".join(
        struct.pack(">HHI", tag, *((3, 1) if tag in (258, 259, 262, 339) else (4, 1)))
        + (struct.pack(">HH", value, 0) if tag in (258, 259, 262, 339) else struct.pack(">I", value))
        for tag, value in tags.items()
    )
    data = b"".join(
        (b"MM\0*", struct.pack(">I", 8 + len(padded)), padded, struct.pack(">H", len(tags)), directory, bytes(4))
    )
    with pytest.raises(BadPicture, match=r"big-endian TIFF .*: save it uncompressed"):
        open_image("a scan", data)


# --- what is no image, or another


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"no picture",
        postscript(),
        b"\xc5\xd0\xd3\xc6" + bytes(100),  # PostScript behind a header
        b"DDS \x7c\0\0\0" + bytes(200),
        b"BLP2" + bytes(200),
        b"\xd7\xcd\xc6\x9a" + bytes(100),  # WMF
        b"SIMPLE  =                    T" + bytes(3000),  # FITS
        b"\0\0\1\0\1\0" + bytes(100),  # ICO
        b"P6 8 8 255\n" + bytes(192),
        b"8BPS\0\1" + bytes(100),
        bytes.fromhex("3f80000041000000") * 200,  # SPIDER
    ],
)
def test_formats_that_are_not_on_the_list_never_start(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n", encoding="utf-8")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(BadPicture, match=r"photo\.png: .*(an empty file|none of PNG, JPEG)"):
        open_image(tmp_path / "photo.png")
    assert not (tmp_path / "started").exists()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.png: no such picture"):
        read_image(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "zero.png", "folder.png"):
        with pytest.raises(BadPicture, match=name):
            open_image(tmp_path / name)


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "sparse.png").touch()
    os.truncate(tmp_path / "sparse.png", 1 << 40)
    with pytest.raises(BadPicture, match=r"sparse\.png: .*more than 419,430,400 bytes"):
        open_image(tmp_path / "sparse.png")


# --- what costs more than it holds


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_that_costs_more_than_it_holds_is_refused(name: str) -> None:
    data, before, started = BOMBS[name](), peak(), time.monotonic()
    with pytest.raises(BadPicture, match=name):
        open_image(name, data)
    assert peak() - before < 100 * MEGABYTE
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", BAGGAGE)
def test_what_an_image_carries_beside_its_pixels_is_left_behind(name: str) -> None:
    data, before, started = BAGGAGE[name](), peak(), time.monotonic()
    red, green, _ = open_image(name, data).convert("RGB").getpixel((4, 4))  # type: ignore[misc]
    assert red > 240 > 20 > green
    assert peak() - before < 100 * MEGABYTE
    assert time.monotonic() - started < 10


def test_a_small_file_may_have_as_many_pixels_as_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "SMALL_PIXELS", 64 * 64)
    monkeypatch.setattr(image_formats, "PIXELS_PER_BYTE", 0)
    assert open_image("a picture", encoded(Image.new("RGB", (64, 64)), "PNG")).size == (64, 64)
    with pytest.raises(BadPicture, match=r"megapixels"):
        open_image("a picture", encoded(Image.new("RGB", (65, 64)), "PNG"))
    with pytest.raises(BadPicture, match=r"megapixels"):  # of a WebP half as many
        open_image("a picture", encoded(Image.new("RGB", (64, 33)), "WEBP"))
    assert open_image("a picture", encoded(Image.new("RGB", (64, 32)), "WEBP")).size == (64, 32)
    monkeypatch.setattr(image_formats, "MAX_SIDE", 63)
    with pytest.raises(BadPicture, match="a side has at most 63"):
        open_image("a picture", large_png(64, 1))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_a_picture_of_a_byte_for_each_pixel_may_have_more(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "SMALL_PIXELS", 64 * 64)
    monkeypatch.setattr(image_formats, "PIXELS_PER_BYTE", 0)
    assert open_image("a scan", encoded(Image.new(mode, (64, 102)), "PNG")).size == (64, 102)
    for size, more in (((64, 103), {}), ((64, 65), {"transparency": 0})):
        with pytest.raises(BadPicture, match="megapixels"):
            open_image("a scan", encoded(Image.new(mode, size), "PNG", **more))


def test_a_jpeg_whose_colours_are_stored_in_full_may_have_half_as_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "SMALL_PIXELS", 64 * 64)
    monkeypatch.setattr(image_formats, "PIXELS_PER_BYTE", 0)
    photo, smaller = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 32))
    for more in ({}, {"progressive": True}, {"subsampling": 1}):
        assert open_image("a photo", encoded(photo, "JPEG", **more)).size == (64, 64)
    with pytest.raises(BadPicture, match="megapixels"):
        open_image("a photo", encoded(photo, "JPEG", subsampling=0, progressive=True))
    assert open_image("a photo", encoded(smaller, "JPEG", subsampling=0, progressive=True)).size == (64, 32)


def test_a_photo_of_a_camera_that_was_made_small_for_the_web_is_opened() -> None:
    photo, before = encoded(Image.new("RGB", (6000, 4000), "navy"), "JPEG", progressive=True), peak()
    assert open_image("a photo", photo).size == (6000, 4000)
    assert peak() - before < 200 * MEGABYTE + len(photo)


def test_a_larger_file_may_have_more_pixels_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (65, 64)), "PNG")
    monkeypatch.setattr(image_formats, "SMALL_PIXELS", 65 * 64 - len(data))
    monkeypatch.setattr(image_formats, "PIXELS_PER_BYTE", 1)
    assert open_image("a picture", data).size == (65, 64)
    monkeypatch.setattr(image_formats, "MAX_PIXELS", 65 * 64 - 1)
    with pytest.raises(BadPicture, match=r"megapixels"):
        open_image("a picture", data)


def test_a_compressed_bitmap_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    data = BOMBS["jumps.bmp"]()
    monkeypatch.setattr(image_formats, "_MOST_RUNS", len(data) - 1)
    with pytest.raises(BadPicture, match="compressed BMP"):
        open_image("a picture", data)


# --- what is damaged


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mark", [0x01, 0x02, 0x45, 0xBF])
def test_a_mark_that_does_not_exist_does_not_end_the_pixels_of_a_jpeg(mark: int) -> None:
    data = encoded(Image.effect_noise((200, 200), 90), "JPEG", restart_marker_rows=1)
    place = data.index(b"\xff\xda") + 3_000
    require_same(data[:place] + bytes([0xFF, mark, 0x00, 0x10]) + data[place + 4 :])


@pytest.mark.parametrize("data", [damaged_avif(), encoded(drawn(), "PNG")[:-40], encoded(drawn(), "JPEG")[:300]])
def test_a_damaged_image_is_an_error_that_keeps_nothing_of_it(data: bytes) -> None:
    with pytest.raises(BadPicture) as raised:
        open_image("a picture", data)
    assert raised.value.__context__ is None


def require_bad_or_good(seed: int, count: int) -> Counter[str]:
    ends = Counter[str]()
    for data in mutants(seed, count):
        try:
            open_image("a picture", data)
            ends["good"] += 1
        except BadPicture:
            ends["bad"] += 1
    return ends


def test_a_damaged_image_is_bad_or_good_and_nothing_else_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = peak()
    ends = require_bad_or_good(seed=1, count=400)
    assert min(ends["bad"], ends["good"]) > 50
    assert capfd.readouterr() == ("", "")
    assert peak() - before < 500 * MEGABYTE


@pytest.mark.long
def test_twenty_thousand_damaged_images(capfd: pytest.CaptureFixture[str]) -> None:
    before = peak()
    ends = require_bad_or_good(seed=2, count=20_000)
    assert capfd.readouterr() == ("", "")
    with capfd.disabled():
        print(f"\n{dict(ends)}, {(peak() - before) / MEGABYTE:.0f} MB")
    assert sum(ends.values()) == 20_000
    assert peak() - before < 500 * MEGABYTE


# --- the one reader


def modules_with_pillow() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("hnetkit", "kernels", "registry"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "PIL" in text or "image" in text.lower():
                yield path, ast.parse(text)


def test_nothing_else_opens_images() -> None:
    for path, tree in modules_with_pillow():
        modules = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "PIL"
            for alias in node.names
            if alias.name in ("Image", "ImageFile")
        } | {"PIL.Image", "PIL.ImageFile"}
        opened = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        opens = {f"{module}.{name}" for module in modules for name in ("open", "Parser")} & opened
        sources = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert (path == READER) == bool(opens), path
        assert not {"PIL.Image", "PIL.ImageFile"} & sources, path


def test_nothing_else_converts_an_image_from_one_mode_to_another_or_turns_it() -> None:
    """What a mode, a transparent color or an orientation means is decided once, in the reader."""
    others = {"exif_transpose", "alpha_composite", "imread", "imdecode", "decode_image"}
    for path, tree in modules_with_pillow():
        converting = [
            ast.unparse(call)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            # click's `convert` has three arguments
            and (call.func.attr in others or (call.func.attr == "convert" and len(call.args) < 3))
        ]
        assert (path == READER) == bool(converting), (path, converting)


def test_a_mask_is_what_is_opaque_or_else_what_is_white(tmp_path: Path) -> None:
    mask = Image.new("L", (16, 16), 20)
    mask.paste(255, (0, 0, 8, 16))
    forms: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "gray": (mask, {}),
        "deep": (Image.frombytes("I;16", mask.size, bytes(value for value in mask.tobytes() for _ in range(2))), {}),
        "opacity": (Image.merge("LA", (Image.new("L", mask.size, 90), mask)), {}),
        "palette": (Image.merge("RGBA", (mask, mask, mask, mask)).quantize(2), {}),
        "opaque": (Image.merge("RGBA", (mask, mask, mask, Image.new("L", mask.size, 255))), {}),
    }
    for name, (image, options) in forms.items():
        image.save(tmp_path / f"{name}.png", **options)  # type: ignore[arg-type]
        expected = mask.point(lambda part: part // 255 * 255) if name in ("opacity", "palette") else mask
        assert open_mask(tmp_path / f"{name}.png").tobytes() == expected.tobytes(), name
    Image.merge("RGB", (mask, mask, mask)).save(tmp_path / "clear.png", transparency=(20, 20, 20))
    assert set(open_mask(tmp_path / "clear.png").tobytes()) == {0, 255}


def test_a_soft_edge_of_opacity_is_cut_at_its_half_as_in_a1111(tmp_path: Path) -> None:
    edge = Image.linear_gradient("L")
    Image.merge("LA", (Image.new("L", edge.size, 255), edge)).save(tmp_path / "soft.png")
    edge.save(tmp_path / "gray.png")
    assert open_mask(tmp_path / "soft.png").tobytes() == bytes(255 if part > 128 else 0 for part in edge.tobytes())
    assert open_mask(tmp_path / "gray.png").tobytes() == edge.tobytes()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 5, 6, 8, 9])
def test_the_size_of_an_image_is_that_of_the_image_that_is_opened(
    tmp_path: Path, format: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "photo").write_bytes(encoded(drawn(), format, exif=exif))
    size = open_image(tmp_path / "photo").size
    monkeypatch.setattr(Image.Image, "load", None)  # nothing is decoded
    assert image_size(tmp_path / "photo") == size


def test_exif_data_behind_the_pixels_of_a_png_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(drawn(), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert open_image("a picture", moved).size == (16, 24)
    assert open_image("a picture", moved).tobytes() == open_image("a picture", data).tobytes()


def test_transparency_is_kept_for_those_who_want_it_and_white_for_the_others() -> None:
    cutout = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    cutout.putpixel((1, 0), (100, 0, 0, 255))
    data = encoded(cutout, "PNG")
    assert open_with_opacity("a cutout", data).tobytes() == cutout.tobytes()
    assert open_rgb("a cutout", data).tobytes() == bytes([255, 255, 255, 100, 0, 0])
    assert open_with_opacity("a picture", encoded(drawn("L"), "PNG")).mode == "RGB"


def test_an_image_that_is_larger_than_a_strip_is_put_on_white_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cutout = Image.merge("RGBA", (*drawn().split(), drawn("L")))
    whole = on_white(cutout)
    monkeypatch.setattr(images, "_STRIP", 24 * 3)
    assert on_white(cutout).tobytes() == whole.tobytes()


@pytest.mark.parametrize(("mode", "format"), [("F", "TIFF"), ("RGBA", "PNG"), ("LA", "PNG")])
def test_a_deep_or_transparent_image_of_many_pixels_takes_little_memory(mode: str, format: str) -> None:
    options = {"compression": "tiff_lzw"} if format == "TIFF" else {}
    data, before = encoded(Image.new(mode, (5800, 4000)), format, **options), peak()
    assert open_rgb("a scan", data).size == (5800, 4000)
    assert peak() - before < 200 * MEGABYTE + len(data)


@pytest.mark.parametrize(
    ("text", "size"), [("512", (512, 512)), ("512x768", (512, 768)), (" 64X32 ", (64, 32)), ("0x1", (0, 1))]
)
def test_a_size_is_one_number_or_two(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "512x", "5 12", "-512", "512x768x3", "1234567", "\u0665"])
def test_no_other_text_is_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size in pixels"):
        parse_size(text)
