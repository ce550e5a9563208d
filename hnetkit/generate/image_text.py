"""The texts that a picture file carries, read without decoding a pixel; the file may be a stranger's.

Source: W3C PNG (tEXt, zTXt, iTXt, eXIf), JFIF/EXIF 2.32 (APP1, UserComment), Google's WebP container (RIFF). Where
programs put what: AUTOMATIC1111/stable-diffusion-webui 1.10 (``parameters``, UserComment), comfyanonymous/ComfyUI
(``prompt``, ``workflow``; in EXIF as ``prompt:{...}`` in tags from 0x0110 downwards). Behaviour only.

Everything that is read of one picture draws on one budget, so that the time and the memory that a file can take grow
with its size alone, and end at `MOST_TEXT` and `MOST_PARTS`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Literal

from hnetkit.errors import DamagedFile, FileRefused, NoSettings, UnsafeFile
from hnetkit.formats.open_file import OpenFile
from hnetkit.limits import Budget
from hnetkit.prompts import comfyui, infotext
from hnetkit.prompts.infotext import Infotext

MOST_TEXT = 16 << 20
"""Bytes that all texts of a picture may have, as they stand in the file and decompressed."""

MOST_PARTS = 200_000
"""Chunks or segments of a picture and entries of its EXIF directories, together."""

Format = Literal["png", "jpeg", "webp"]
_PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST = 1 << 18  # letters of a prompt, or of all parameters
_GLANCE = 4096  # bytes that are read at once where chunks are small: pixels are passed over unread
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_COMFYS_TAGS = range(0x010C, 0x0111)  # Model, Make and downwards
_TAGS = frozenset({_EXIF_IFD, _USER_COMMENT, *_COMFYS_TAGS})
_COMFY = re.compile(r"(prompt|workflow):", re.IGNORECASE)
_HYPERNET = "<hypernet:"
_NOT_NEEDED = "give its prompt and settings as options, or look for another copy of the picture"
_EXIF = "\0EXIF"  # the name of an EXIF block among texts: no text can have it


def image_format(head: bytes) -> Format | None:
    """Returns the format of a file by its first 12 bytes; None where it is no picture that can carry settings."""
    if head.startswith(_PNG):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if head.startswith(b"RIFF") and head[8:12] == b"WEBP" else None


def read_infotext(file: OpenFile) -> Infotext:
    """Returns how a picture was made, as its infotext or ComfyUI's graph says.

    Raises:
        NoSettings: it says nothing of that, or the file is no picture.
        FileRefused: see `read_image_text`.
    """
    texts = read_image_text(file)
    parameters = texts.get("parameters", "").strip()
    if not parameters:
        comment = texts.get("UserComment", "")  # cameras and phones write there too
        is_said = len(comment) > _LONGEST or _HYPERNET in comment or infotext.parse(comment).parameters
        parameters = comment if is_said else ""
    if len(parameters) > _LONGEST:
        raise FileRefused(f"{file.path}: {len(parameters):,} letters of parameters")
    said = infotext.parse(parameters) if parameters else _graph_of(file, texts)
    if max(len(said.prompt), len(said.negative_prompt)) > _LONGEST:
        raise FileRefused(f"{file.path}: a prompt of {len(said.prompt):,} letters")
    if said.parameters or said.prompt:
        return said
    raise NoSettings(f"{file.path}: the picture carries no settings", hint="look for the original: sites remove them")


def _graph_of(file: OpenFile, texts: dict[str, str]) -> Infotext:
    try:
        return comfyui.parse(texts.get("prompt"), texts.get("workflow"))
    except UnsafeFile as error:
        raise UnsafeFile(f"{file.path}: its ComfyUI graph cannot be read: {error}", hint=_NOT_NEEDED) from error


def read_image_text(file: OpenFile) -> dict[str, str]:
    """Returns the texts of a PNG, JPEG or WebP by their names; of two of one name the later.

    EXIF's comment is called ``UserComment``; ComfyUI's texts are ``prompt`` and ``workflow`` in every format. A file
    that is cut short gives what stands before the cut; one of another kind gives nothing. What other programs do not
    read is no part of it: what stands behind the end of the picture, is packed in a way that the format does not know,
    or is a second EXIF block of a JPEG or WebP.

    Raises:
        UnsafeFile: it has more text than `MOST_TEXT`, or more parts than `MOST_PARTS`.
        DamagedFile: a compressed text cannot be decompressed.
    """
    kind = image_format(file.read_at(0, min(12, file.size)))
    if kind is None:
        return {}
    budget = Budget(made=MOST_TEXT, work=MOST_PARTS)
    texts: dict[str, str] = {}
    try:
        for name, data in {"png": _png_texts, "jpeg": _exif_of_jpeg, "webp": _exif_of_webp}[kind](file, budget):
            texts |= _exif_texts(data, budget) if name == _EXIF else {name: data.decode("utf-8", "replace")}
    except UnsafeFile as error:
        limit = f"{MOST_TEXT >> 20} MiB of text" if budget.made_left < 0 else f"{MOST_PARTS:,} chunks or entries"
        raise UnsafeFile(f"{file.path}: the picture carries more than {limit}", hint=_NOT_NEEDED) from error
    return texts


def _png_texts(file: OpenFile, budget: Budget) -> Iterator[tuple[str, bytes]]:
    """Every text of a PNG in UTF-8."""
    for name, start, size in _parts(file, len(_PNG), ">I4s", budget):
        if name == b"eXIf":
            yield _EXIF, _data(file, start, size, budget)
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            key, _, rest = _data(file, start, size, budget).partition(b"\0")
            text = _text_of_chunk(file, name, rest, budget)
            if text is not None:
                yield key.decode("latin-1"), text
        elif name == b"IEND":
            return


def _text_of_chunk(file: OpenFile, name: bytes, rest: bytes, budget: Budget) -> bytes | None:
    """The text in UTF-8; None where it is packed, or written, in a way that PNG does not know."""
    if name == b"tEXt":
        return rest.decode("latin-1").encode()
    if name == b"zTXt":
        return _unzipped(file, rest[1:], budget).decode("latin-1").encode() if rest[:1] == b"\0" else None
    text = rest[2:].split(b"\0", 2)[-1]  # behind the language and the translated key
    if rest[:1] == b"\0":
        return text
    return _unzipped(file, text, budget) if rest[:2] == b"\1\0" else None


def _unzipped(file: OpenFile, data: bytes, budget: Budget) -> bytes:
    try:
        text = zlib.decompressobj().decompress(data, budget.made_left + 1)
    except zlib.error as error:
        raise DamagedFile(f"{file.path}: a compressed text in it is damaged") from error
    budget.make(len(text))
    return text


def _exif_of_webp(file: OpenFile, budget: Budget) -> Iterator[tuple[str, bytes]]:
    end = 8 + struct.unpack("<I", file.read_at(4, 4))[0]  # of the picture; what follows is none of it
    for name, start, size in _parts(file, 12, "<4sI", budget):
        if start + size > end:
            return
        if name == b"EXIF":
            yield _EXIF, _data(file, start, size, budget)
            return


def _parts(
    file: OpenFile, position: int, header: Literal[">I4s", "<4sI"], budget: Budget
) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, size) of the chunks of a PNG or RIFF file; a chunk that is cut off is left out."""
    glances = _Glances(file)
    while position + 8 <= file.size:
        budget.work(1)
        first, second = struct.unpack(header, glances.at(position, 8))
        size, name = (first, second) if header == ">I4s" else (second, first)
        if position + 8 + size > file.size:
            return
        yield name, position + 8, size
        position += 8 + size + (4 if header == ">I4s" else size % 2)  # a checksum, or a byte of padding


def _exif_of_jpeg(file: OpenFile, budget: Budget) -> Iterator[tuple[str, bytes]]:
    glances = _Glances(file)
    position = 2
    while position + 4 <= file.size:
        budget.work(1)
        mark, code, size = struct.unpack(">BBH", glances.at(position, 4))
        if mark == code == 0xFF:  # a mark may have any number of these before it
            position += 1
            continue
        if mark != 0xFF or code in (0xD9, 0xDA) or size < 2:  # the end, or the pixels begin
            return
        if code == 0xE1 and position + 2 + size <= file.size:
            data = _data(file, position + 4, size - 2, budget)
            if data.startswith(b"Exif\0\0"):
                yield _EXIF, data
                return
        position += 2 + size


class _Glances:
    """Few bytes at rising places of a file: small parts that follow each other are read together."""

    def __init__(self, file: OpenFile) -> None:
        self._file, self._start, self._bytes = file, 0, b""

    def at(self, position: int, size: int) -> bytes:
        """Returns `size` bytes that are inside of the file."""
        if position + size > self._start + len(self._bytes):
            self._start = position
            self._bytes = self._file.read_at(position, min(_GLANCE, self._file.size - position))
        return self._bytes[position - self._start : position - self._start + size]


def _data(file: OpenFile, start: int, size: int, budget: Budget) -> bytes:
    budget.make(size)
    return file.read_at(start, size)


def _exif_texts(data: bytes, budget: Budget) -> dict[str, str]:
    """The texts of an EXIF block that say how a picture was made; a damaged block has those that can be found."""
    tiff = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return {}
    entries = dict(_entries(tiff, order, _uint(tiff, order, 4), budget))
    found = {}
    if _EXIF_IFD in entries:
        inner = dict(_entries(tiff, order, _uint(tiff[entries[_EXIF_IFD]], order, 0), budget))
        if _USER_COMMENT in inner:
            found["UserComment"] = _comment(_value(tiff, inner[_USER_COMMENT], budget))
    for tag in _COMFYS_TAGS:
        text = _value(tiff, entries.get(tag, slice(0)), budget).rstrip(b"\0").decode("utf-8", "replace")
        if match := _COMFY.match(text):
            found[match[1].lower()] = text[match.end() :]
    return found


def _value(tiff: bytes, place: slice, budget: Budget) -> bytes:
    """The bytes of an entry; many entries may name the same ones."""
    value = tiff[place]
    budget.make(len(value))
    return value


def _entries(tiff: bytes, order: str, start: int, budget: Budget) -> Iterator[tuple[int, slice]]:
    """(tag, where its bytes are) of a directory of TIFF; an entry of 4 bytes or less holds them, others say where."""
    count = struct.unpack_from(f"{order}H", tiff, start)[0] if start + 2 <= len(tiff) else 0
    for place in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        budget.work(1)
        tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, place)
        size = length * {3: 2, 4: 4, 13: 4}.get(kind, 1)
        begin = place + 8 if size <= 4 else _uint(tiff, order, place + 8)
        if tag in _TAGS:
            yield tag, slice(begin, begin + size)


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
    beginning = data[:_GLANCE]
    high_first, low_first = (_plain_letters(beginning.decode(code, "replace")) for code in ("utf-16-be", "utf-16-le"))
    return data.decode("utf-16-le" if low_first > high_first else "utf-16-be", "replace")


def _plain_letters(text: str) -> int:
    return sum("\n" <= letter <= "~" for letter in text)
