"""The texts of pictures: every place where programs put them, and files made to do harm."""

from __future__ import annotations

import contextlib
import json
import struct
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hnetkit.errors import DamagedFile, FileRefused, NoSettings, UnsafeFile
from hnetkit.formats.open_file import OpenFile
from hnetkit.image_text import read_image_text, read_infotext, write_image
from hnetkit.prompts.infotext import Infotext

IMAGE = Image.new("RGB", (8, 8), "red")
MAGIC = b"\x89PNG\r\n\x1a\n"
INFOTEXT = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7"
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.ckpt"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog"}},
    "3": {"class_type": "KSampler", "inputs": {"seed": 4, "steps": 9, "positive": ["2", 0], "model": ["1", 0]}},
}


def texts(path: Path) -> dict[str, str]:
    with OpenFile(path) as file:
        return read_image_text(file)


def said(path: Path) -> Infotext:
    with OpenFile(path) as file:
        return read_infotext(file)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(tmp_path: Path, *chunks: bytes) -> Path:
    path = tmp_path / "made.png"
    path.write_bytes(MAGIC + chunk(b"IHDR", bytes(13)) + b"".join(chunks) + chunk(b"IEND", b""))
    return path


def exif(tmp_path: Path, suffix: str, tags: dict[int, object], *, endian: str = "<") -> Path:
    block = Image.Exif()
    block.endian = endian
    for tag, value in tags.items():
        block[tag] = value
    IMAGE.save(tmp_path / f"made{suffix}", exif=block.tobytes())
    return tmp_path / f"made{suffix}"


def comment(tmp_path: Path, suffix: str, data: bytes) -> Path:
    return exif(tmp_path, suffix, {0x8769: {0x9286: data}})


def test_every_kind_of_text_of_a_png_is_read(tmp_path: Path) -> None:
    about = PngInfo()
    about.add_text("plain", "çà")
    about.add_text("zipped", "çà" * 100, zip=True)
    about.add_itxt("international", "ネオン", "ja", "ネ")
    about.add_itxt("international, zipped", "ネオン" * 100, zip=True)
    IMAGE.save(tmp_path / "a.png", pnginfo=about)
    assert texts(tmp_path / "a.png") == {
        **{"plain": "çà", "zipped": "çà" * 100, "international": "ネオン"},
        "international, zipped": "ネオン" * 100,
    }


@pytest.mark.parametrize("text", ["a café, 猫", "caf\xe9", "plain"])
def test_a_text_of_a_png_may_be_in_utf8_although_it_is_marked_as_latin1(tmp_path: Path, text: str) -> None:
    for kind, data in ((b"tEXt", text.encode()), (b"zTXt", b"\0" + zlib.compress(text.encode()))):
        assert texts(png(tmp_path, chunk(kind, b"parameters\0" + data))) == {"parameters": text}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_own_pictures_keep_letters_that_read_like_another_encoding(tmp_path: Path, suffix: str) -> None:
    text = INFOTEXT.replace("a cat", "a cafÃ©, çà")
    write_image(tmp_path / f"own{suffix}", IMAGE, text)
    assert said(tmp_path / f"own{suffix}").prompt == "a cafÃ©, çà"
    if suffix == ".png":
        with Image.open(tmp_path / "own.png") as image:
            assert image.info["parameters"] == text


def test_a_text_behind_the_pixels_is_read_without_decoding_them(tmp_path: Path) -> None:
    path = png(tmp_path, chunk(b"IDAT", b"no pixels"), chunk(b"tEXt", b"parameters\0" + INFOTEXT.encode()))
    assert texts(path) == {"parameters": INFOTEXT}


def test_the_exif_block_of_a_png_is_read(tmp_path: Path) -> None:
    path = comment(tmp_path, ".png", b"UNICODE\0" + INFOTEXT.encode("utf-16-be"))
    assert texts(path) == {"UserComment": INFOTEXT}


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
@pytest.mark.parametrize(
    "data",
    [
        b"UNICODE\0" + INFOTEXT.encode("utf-16-be"),
        b"UNICODE\0" + INFOTEXT.encode("utf-16-le"),
        b"UNICODE\0" + INFOTEXT.encode("utf-16"),
        b"UNICODE\0" + INFOTEXT.encode("utf-16-be") + bytes(4),
        b"ASCII\0\0\0" + INFOTEXT.encode(),
        bytes(8) + INFOTEXT.encode(),
        b"JIS\0\0\0\0\0" + INFOTEXT.encode("iso2022_jp"),
        INFOTEXT.encode(),
    ],
)
def test_each_way_to_write_the_exif_comment_is_read(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = comment(tmp_path, suffix, data)
    assert texts(path) == {"UserComment": INFOTEXT}
    assert said(path).parameters["Steps"] == "20"


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_comfyuis_graphs_are_found_in_exif(tmp_path: Path, suffix: str, endian: str) -> None:
    prompt, workflow = json.dumps(GRAPH), json.dumps({"nodes": []})
    path = exif(tmp_path, suffix, {0x0110: f"prompt:{prompt}", 0x010F: f"workflow:{workflow}"}, endian=endian)
    assert texts(path) == {"prompt": prompt, "workflow": workflow}
    assert said(path).parameters["Seed"] == "4"


def test_comfyuis_graphs_are_found_in_a_png(tmp_path: Path) -> None:
    path = png(tmp_path, chunk(b"tEXt", b"prompt\0" + json.dumps(GRAPH).encode()))
    assert said(path).prompt == "a dog"


def test_a_size_that_comfyuis_graph_does_not_say_is_that_of_the_png(tmp_path: Path) -> None:
    about = PngInfo()
    about.add_text("prompt", json.dumps(GRAPH))
    Image.new("RGB", (48, 64)).save(tmp_path / "a.png", pnginfo=about)
    assert said(tmp_path / "a.png").parameters["Size"] == "48x64"


def test_an_infotext_goes_before_a_graph(tmp_path: Path) -> None:
    graph = chunk(b"tEXt", b"prompt\0" + json.dumps(GRAPH).encode())
    assert said(png(tmp_path, graph, chunk(b"tEXt", b"parameters\0" + INFOTEXT.encode()))).prompt == "a cat"


@pytest.mark.parametrize("data", [b"ASCII\0\0\0from my phone", b"", b"ASCII\0\0\0" + bytes(50)])
def test_what_a_camera_writes_is_no_settings(tmp_path: Path, data: bytes) -> None:
    path = exif(tmp_path, ".jpg", {0x010F: "Canon", 0x0110: "A7", 0x8769: {0x9286: data}})
    with pytest.raises(NoSettings) as error:
        said(path)
    assert error.value.exit_code == 4


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8", MAGIC, b"RIFF\4\0\0\0WEBP", b"\xff\xd8\xff\xe1\0\1"])
def test_what_is_no_picture_or_an_empty_one_has_no_settings(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(NoSettings):
        said(tmp_path / "x")


def test_a_file_that_is_cut_short_gives_what_stands_before_the_cut(tmp_path: Path) -> None:
    path = png(tmp_path, chunk(b"tEXt", b"parameters\0" + INFOTEXT.encode()), chunk(b"tEXt", b"more\0" + bytes(100)))
    path.write_bytes(path.read_bytes()[:-50])
    assert texts(path) == {"parameters": INFOTEXT}


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt"])
def test_a_text_that_unpacks_to_too_much_is_refused(tmp_path: Path, name: bytes) -> None:
    head = b"parameters\0\0" if name == b"zTXt" else b"parameters\0\1\0\0\0"
    bomb = zlib.compress(bytes(200 << 20), 9)
    started = time.monotonic()
    with pytest.raises(FileRefused, match="MiB of text"):
        texts(png(tmp_path, chunk(name, head + bomb)))
    assert time.monotonic() - started < 5


def test_many_texts_that_are_too_much_together_are_refused(tmp_path: Path) -> None:
    part = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(6 << 20)))
    with pytest.raises(FileRefused, match="MiB of text"):
        texts(png(tmp_path, *[part] * 3))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("parameters", "<hypernet:" * 300_000),
        ("prompt", json.dumps(GRAPH).replace("a dog", "<hypernet:" * 300_000)),
    ],
)
def test_a_prompt_longer_than_any_is_refused_at_once(tmp_path: Path, name: str, text: str) -> None:
    started = time.monotonic()
    with pytest.raises(FileRefused, match="letters"):
        said(png(tmp_path, chunk(b"tEXt", f"{name}\0{text}".encode())))
    assert time.monotonic() - started < 5


def test_a_text_longer_than_any_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack(">I4s", 1 << 30, b"tEXt"))
        file.truncate(2 << 30)
    with pytest.raises(FileRefused, match="MiB of text"):
        texts(path)


def test_a_damaged_compressed_text_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile):
        texts(png(tmp_path, chunk(b"zTXt", b"parameters\0\0junk")))


class Counted(OpenFile):
    """A file that counts how often and how much is read of it."""

    reads = 0
    bytes = 0

    def read_at(self, offset: int, size: int) -> bytes:
        self.reads += 1
        self.bytes += size
        return super().read_at(offset, size)


def test_many_small_chunks_are_not_each_a_call_of_the_system(tmp_path: Path) -> None:
    path = png(tmp_path, chunk(b"teST", b"") * 30_000, chunk(b"tEXt", b"parameters\0" + INFOTEXT.encode()))
    with (file := Counted(path)):
        assert read_infotext(file).prompt == "a cat"
        assert file.reads < 200


def test_pixels_are_passed_over_unread(tmp_path: Path) -> None:
    pixels = chunk(b"IDAT", bytes(1 << 20))
    with (file := Counted(png(tmp_path, pixels * 20, chunk(b"tEXt", b"parameters\0" + INFOTEXT.encode())))):
        assert read_infotext(file).prompt == "a cat"
        assert file.bytes < 1 << 18


@pytest.mark.parametrize("suffix", [".webp", ".jpg"])
def test_an_exif_directory_that_names_the_whole_block_again_and_again_is_read_once(tmp_path: Path, suffix: str) -> None:
    count = 65_000 if suffix == ".webp" else 5_000
    room = (6 << 20) - 12 * count if suffix == ".webp" else 0
    named = struct.pack(">HHII", 0x0110, 2, 12 * count + room, 8)
    block = b"MM\0*\0\0\0\x08" + struct.pack(">H", count) + named * count + b"x" * room
    path = tmp_path / f"a{suffix}"
    if suffix == ".webp":
        path.write_bytes(
            b"RIFF" + struct.pack("<I", 12 + len(block)) + b"WEBPEXIF" + struct.pack("<I", len(block)) + block
        )
    else:
        path.write_bytes(b"\xff\xd8\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block)
    started = time.process_time()
    assert texts(path) == {}
    assert time.process_time() - started < 3


def test_exif_blocks_of_countless_entries_are_refused(tmp_path: Path) -> None:
    block = b"MM\0*\0\0\0\x08" + struct.pack(">H", 60_000) + bytes(12 * 60_000)
    with pytest.raises(UnsafeFile, match="200,000 chunks or entries"):
        texts(png(tmp_path, *[chunk(b"eXIf", block)] * 5))


@pytest.mark.parametrize("name", ["prompt", "workflow"])
def test_a_graph_that_unpacks_to_millions_of_values_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    bomb = zlib.compress(b"[" + b"{}," * 4_000_000 + b"0]", 9)
    assert len(bomb) < 20_000
    with pytest.raises(UnsafeFile, match=r"made\.png: its ComfyUI graph cannot be read") as error:
        said(png(tmp_path, chunk(b"zTXt", name.encode() + b"\0\0" + bomb)))
    assert error.value.hint


@pytest.mark.parametrize("size", [0, 3, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("whole", [0, 12, 0xFFFFFFFF])
def test_sizes_that_lie_in_a_webp_end_the_reading(tmp_path: Path, size: int, whole: int) -> None:
    lie = b"EXIF" + struct.pack("<I", size) + b"MM\0"
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", whole) + b"WEBP" + lie * 3)
    assert texts(tmp_path / "a.webp") == {}


CHUNKS = st.lists(
    st.tuples(
        st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"IDAT", b"teST"]),
        st.sampled_from([b"parameters\0", b"prompt\0", b"workflow\0\0", b"prompt\0\1\0\0\0", b""]),
        st.binary(max_size=60) | st.binary(max_size=60).map(zlib.compress) | st.just(json.dumps(GRAPH).encode()),
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHUNKS)
def test_no_stream_of_chunks_raises_anything_but_a_refusal(tmp_path: Path, parts: list[tuple[bytes, ...]]) -> None:
    path = png(tmp_path, *(chunk(name, key + data) for name, key, data in parts))
    with (file := Counted(path)):
        with contextlib.suppress(FileRefused, NoSettings):
            read_infotext(file)
        assert file.bytes <= 3 * file.size + 64


def test_a_file_of_countless_empty_chunks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="chunks"):
        texts(png(tmp_path, chunk(b"teST", b"") * 250_000))


def test_an_exif_block_that_points_everywhere_takes_no_memory(tmp_path: Path) -> None:
    entries = b"".join(struct.pack(">HHII", 0x0110 - i % 4, 2, 1 << 31, 8) for i in range(65_000))
    block = b"MM\0*\0\0\0\x08" + struct.pack(">H", 65_000) + entries
    (tmp_path / "a.webp").write_bytes(
        b"RIFF" + struct.pack("<I", 12 + len(block)) + b"WEBPEXIF" + struct.pack("<I", len(block)) + block
    )
    assert texts(tmp_path / "a.webp") == {}


SOURCES = st.sampled_from([".png", ".jpg", ".webp"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SOURCES, st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8))), st.integers(0, 2000))
def test_no_damage_raises_anything_but_a_refusal(
    tmp_path: Path, suffix: str, patches: list[tuple[int, bytes]], cut: int
) -> None:
    path = comment(tmp_path, suffix, b"UNICODE\0" + INFOTEXT.encode("utf-16-be"))
    data = bytearray(path.read_bytes())
    for place, patch in patches:
        place %= len(data)
        data[place : place + len(patch)] = patch
    path.write_bytes(data[: len(data) - cut])
    with contextlib.suppress(FileRefused, NoSettings):
        said(path)


# --- one file, one meaning: what Pillow, and with it A1111, reads


OTHER = "a dog\nSteps: 1, Seed: 2, Size: 8x8"


def in_exif(text: str) -> bytes:
    block = Image.Exif()
    block.endian = ">"
    block[0x8769] = {0x9286: b"UNICODE\0" + text.encode("utf-16-be")}
    return block.tobytes()


def segment(block: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block


def riff(block: bytes) -> bytes:
    return b"EXIF" + struct.pack("<I", len(block)) + block + bytes(len(block) % 2)


@pytest.mark.parametrize(
    "hidden",
    [
        chunk(b"IEND", b"") + chunk(b"tEXt", b"parameters\0" + OTHER.encode()),
        chunk(b"zTXt", b"parameters\0\1" + zlib.compress(OTHER.encode())),
        chunk(b"iTXt", b"parameters\0\1\1\0\0" + zlib.compress(OTHER.encode())),
        chunk(b"iTXt", b"parameters\0\2\0\0\0" + OTHER.encode()),
    ],
    ids=["behind the end", "zTXt packed otherwise", "iTXt packed otherwise", "iTXt of another kind"],
)
def test_a_text_of_a_png_that_other_programs_do_not_read_is_none(tmp_path: Path, hidden: bytes) -> None:
    path = png(tmp_path, chunk(b"tEXt", b"parameters\0" + INFOTEXT.encode()), hidden)
    assert texts(path) == {"parameters": INFOTEXT}


def test_of_two_exif_blocks_of_a_jpeg_the_first_counts_as_for_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "two.jpg"
    IMAGE.save(path)
    data = path.read_bytes()
    path.write_bytes(data[:2] + segment(in_exif(INFOTEXT)) + segment(in_exif(OTHER)) + data[2:])
    assert texts(path) == {"UserComment": INFOTEXT}


@pytest.mark.parametrize("is_inside", [True, False])
def test_a_second_exif_block_of_a_webp_is_not_read(tmp_path: Path, is_inside: bool) -> None:
    path = tmp_path / "two.webp"
    IMAGE.save(path, exif=in_exif(INFOTEXT))
    data = path.read_bytes() + riff(in_exif(OTHER))
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:] if is_inside else data)
    assert texts(path) == {"UserComment": INFOTEXT}


def test_marks_of_a_jpeg_may_have_fill_bytes_before_them(tmp_path: Path) -> None:
    path = tmp_path / "filled.jpg"
    IMAGE.save(path)
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xff\xff" + segment(in_exif(INFOTEXT)) + data[2:])
    assert texts(path) == {"UserComment": INFOTEXT}
