"""The texts that a picture file carries, read without decoding a pixel; the file may be a stranger's.

Source: W3C PNG (tEXt, zTXt, iTXt, eXIf), JFIF/EXIF 2.32 (APP1, UserComment), Google's WebP container (RIFF). Where
programs put what: AUTOMATIC1111/stable-diffusion-webui 1.10 (``parameters``, UserComment), comfyanonymous/ComfyUI
(``prompt``, ``workflow``; in EXIF as ``prompt:{...}`` in tags from 0x0110 downwards). Behaviour only.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Literal

from hnetkit.errors import DamagedFile, FileRefused, NoSettings
from hnetkit.formats.source import OpenFile
from hnetkit.prompts import comfyui, infotext
from hnetkit.prompts.infotext import Infotext

Format = Literal["png", "jpeg", "webp"]
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_TEXT = 16 << 20  # bytes of one text, and of all texts of a file, after decompression
_LONGEST = 1 << 18  # letters of a prompt, or of all parameters
_MOST_PARTS = 200_000  # chunks or segments of a file
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_COMFYS_TAGS = range(0x010C, 0x0111)  # Model, Make and downwards
_TAGS = frozenset({_EXIF_IFD, _USER_COMMENT, *_COMFYS_TAGS})
_COMFY = re.compile(r"(prompt|workflow):", re.IGNORECASE)
_HYPERNET = "<hypernet:"
_EXIF = "\0EXIF"  # the name of an EXIF block among texts: no text can have it


def picture_format(head: bytes) -> Format | None:
    """Returns the format of a file by its first 12 bytes; None where it is no picture that can carry settings."""
    if head.startswith(_PNG):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if head.startswith(b"RIFF") and head[8:12] == b"WEBP" else None


def settings_of(file: OpenFile) -> Infotext:
    """Returns how a picture was made, as its infotext or ComfyUI's graph says.

    Raises:
        NoSettings: it says nothing of that, or the file is no picture.
        FileRefused: see `read_picture_text`.
    """
    texts = read_picture_text(file)
    parameters = texts.get("parameters", "").strip()
    if not parameters:
        comment = texts.get("UserComment", "")  # cameras and phones write there too
        is_said = len(comment) > _LONGEST or _HYPERNET in comment or infotext.parse(comment).parameters
        parameters = comment if is_said else ""
    if len(parameters) > _LONGEST:
        raise FileRefused(f"{file.path}: {len(parameters):,} letters of parameters")
    said = infotext.parse(parameters) if parameters else comfyui.parse(texts.get("prompt"), texts.get("workflow"))
    if max(len(said.prompt), len(said.negative_prompt)) > _LONGEST:
        raise FileRefused(f"{file.path}: a prompt of {len(said.prompt):,} letters")
    if said.parameters or said.prompt:
        return said
    raise NoSettings(f"{file.path}: the picture carries no settings", hint="look for the original: sites remove them")


def read_picture_text(file: OpenFile) -> dict[str, str]:
    """Returns the texts of a PNG, JPEG or WebP by their names; of two of one name the later.

    EXIF's comment is called ``UserComment``; ComfyUI's texts are ``prompt`` and ``workflow`` in every format. A file
    that is cut short gives what stands before the cut; one of another kind gives nothing.

    Raises:
        FileRefused: its texts are too large.
        DamagedFile: a compressed text cannot be decompressed.
    """
    kind = picture_format(file.read_at(0, min(12, file.size)))
    if kind is None:
        return {}
    texts: dict[str, str] = {}
    room = _MOST_TEXT
    for name, data in {"png": _png_texts, "jpeg": _exif_of_jpeg, "webp": _exif_of_webp}[kind](file):
        room -= len(data)
        if room < 0:
            raise FileRefused(f"{file.path}: carries more than {_MOST_TEXT >> 20} MiB of text")
        texts |= _exif_texts(data) if name == _EXIF else {name: data.decode("utf-8", "replace")}
    return texts


def _png_texts(file: OpenFile) -> Iterator[tuple[str, bytes]]:
    """Every text of a PNG in UTF-8."""
    for name, start, size in _parts(file, len(_PNG), ">I4s"):
        if name == b"eXIf":
            yield _EXIF, _data(file, start, size)
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            key, _, rest = _data(file, start, size).partition(b"\0")
            yield key.decode("latin-1"), _text_of_chunk(file, name, rest)


def _text_of_chunk(file: OpenFile, name: bytes, rest: bytes) -> bytes:
    if name == b"tEXt":
        return rest.decode("latin-1").encode()
    if name == b"zTXt":
        return _unzipped(file, rest[1:]).decode("latin-1").encode()
    text = rest[2:].split(b"\0", 2)[-1]  # behind the language and the translated key
    return _unzipped(file, text) if rest[:1] == b"\1" else text


def _unzipped(file: OpenFile, data: bytes) -> bytes:
    try:
        stream = zlib.decompressobj()
        text = stream.decompress(data, _MOST_TEXT)
    except zlib.error as error:
        raise DamagedFile(f"{file.path}: a compressed text in it is damaged") from error
    if stream.unconsumed_tail:
        raise FileRefused(f"{file.path}: carries more than {_MOST_TEXT >> 20} MiB of text")
    return text


def _exif_of_webp(file: OpenFile) -> Iterator[tuple[str, bytes]]:
    for name, start, size in _parts(file, 12, "<4sI"):
        if name == b"EXIF":
            yield _EXIF, _data(file, start, size)


def _parts(file: OpenFile, position: int, header: Literal[">I4s", "<4sI"]) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, size) of the chunks of a PNG or RIFF file; a chunk that is cut off is left out."""
    for _ in range(_MOST_PARTS):
        if position + 8 > file.size:
            return
        first, second = struct.unpack(header, file.read_at(position, 8))
        size, name = (first, second) if header == ">I4s" else (second, first)
        if position + 8 + size > file.size:
            return
        yield name, position + 8, size
        position += 8 + size + (4 if header == ">I4s" else size % 2)  # a checksum, or a byte of padding
    raise FileRefused(f"{file.path}: more than {_MOST_PARTS} chunks")


def _exif_of_jpeg(file: OpenFile) -> Iterator[tuple[str, bytes]]:
    position = 2
    for _ in range(_MOST_PARTS):
        if position + 4 > file.size:
            return
        mark, code, size = struct.unpack(">BBH", file.read_at(position, 4))
        if mark != 0xFF or code in (0xD9, 0xDA) or size < 2:  # the end, or the pixels begin
            return
        if code == 0xE1 and position + 2 + size <= file.size:
            data = file.read_at(position + 4, size - 2)
            if data.startswith(b"Exif\0\0"):
                yield _EXIF, data
        position += 2 + size


def _data(file: OpenFile, start: int, size: int) -> bytes:
    if size > _MOST_TEXT:
        raise FileRefused(f"{file.path}: carries more than {_MOST_TEXT >> 20} MiB of text")
    return file.read_at(start, size)


def _exif_texts(data: bytes) -> dict[str, str]:
    """The texts of an EXIF block that say how a picture was made; a damaged block has those that can be found."""
    tiff = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return {}
    entries = dict(_entries(tiff, order, _uint(tiff, order, 4)))
    inner = dict(_entries(tiff, order, _uint(entries[_EXIF_IFD], order, 0))) if _EXIF_IFD in entries else {}
    found = {}
    if _USER_COMMENT in inner:
        found["UserComment"] = _comment(inner[_USER_COMMENT])
    for tag in _COMFYS_TAGS:
        text = entries.get(tag, b"").rstrip(b"\0").decode("utf-8", "replace")
        if match := _COMFY.match(text):
            found[match[1].lower()] = text[match.end() :]
    return found


def _entries(tiff: bytes, order: str, start: int) -> Iterator[tuple[int, bytes]]:
    """(tag, its bytes) of a directory of TIFF; an entry of 4 bytes or less holds its bytes, others say where."""
    count = struct.unpack_from(f"{order}H", tiff, start)[0] if start + 2 <= len(tiff) else 0
    for place in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, place)
        size = length * {3: 2, 4: 4, 13: 4}.get(kind, 1)
        begin = place + 8 if size <= 4 else _uint(tiff, order, place + 8)
        if tag in _TAGS:
            yield tag, tiff[begin : begin + size]


def _uint(data: bytes, order: str, place: int) -> int:
    """The 32-bit number at a place; one past every end where there is none."""
    return int(struct.unpack_from(f"{order}I", data, place)[0]) if place + 4 <= len(data) else len(data) + (1 << 32)


def _comment(data: bytes) -> str:
    """EXIF's comment: 8 bytes name its letters; many writers leave them out or empty."""
    kind, rest = data[:8], data[8:]
    if kind == b"UNICODE\0":
        return _utf16(rest).rstrip("\0")
    if kind == b"JIS\0\0\0\0\0":
        return rest.decode("iso2022_jp", "replace").rstrip("\0")
    text = rest if kind in (b"ASCII\0\0\0", bytes(8)) else data
    return text.decode("utf-8", "replace").rstrip("\0")


def _utf16(data: bytes) -> str:
    """A1111 always writes the high byte first, others as the EXIF block does or with a mark: the letters decide."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    high_first, low_first = data.decode("utf-16-be", "replace"), data.decode("utf-16-le", "replace")
    return low_first if _plain_letters(low_first) > _plain_letters(high_first) else high_first


def _plain_letters(text: str) -> int:
    return sum("\n" <= letter <= "~" for letter in text)
