"""The texts in an image file: read without decoding a pixel, of a file that may be a stranger's; and written.

Source: W3C PNG (tEXt, zTXt, iTXt, eXIf), JFIF/EXIF 2.32 (APP1, UserComment), Google's WebP container (RIFF). Where
programs put what: AUTOMATIC1111/stable-diffusion-webui 1.10 (``parameters``, UserComment, a text file beside the
image), comfyanonymous/ComfyUI (``prompt``, ``workflow``; in EXIF as ``prompt:{...}`` in tags from 0x0110 downwards),
and those of `hnetkit.prompts.novelai`, `hnetkit.prompts.easy_diffusion` and `hnetkit.prompts.draw_things`. Behavior
only.

All reads from one image share one budget. So the time and memory that a file can take grow with its size alone, and are
limited by `MOST_TEXT` and `MOST_PARTS`.
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hnetkit.errors import DamagedFile, FileRefused, HnetkitError, NoSettings, UnsafeFile, UsageError
from hnetkit.files import is_link_elsewhere, new_file, suffixed
from hnetkit.formats.open_file import OpenFile
from hnetkit.limits import Budget, parse_json
from hnetkit.prompts import comfyui, draw_things, easy_diffusion, infotext, novelai
from hnetkit.prompts.infotext import Infotext
from hnetkit.prompts.tags import excerpt, split_tags
from hnetkit.text import argument, is_text

if TYPE_CHECKING:
    from PIL import Image

MOST_TEXT = 16 << 20
"""Bytes of all texts of an image, as they are in the file and decompressed."""

MOST_PARTS = 200_000
"""Chunks or segments of an image and entries of its EXIF directories, together."""

_JPEG = (".jpg", ".jpeg")
SUFFIXES = (".png", *_JPEG, ".webp")
"""Of the files that `write_image` writes."""

_MOST_EXIF = 65_533 - 100  # bytes in JPEG's segment, less what surrounds the comment
ImageFormat = Literal["png", "jpeg", "webp"]
_PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST = 1 << 18  # characters of a prompt, or of all parameters
_READ_AHEAD = 4096  # bytes that are read at once, because chunks may be small; pixels are skipped unread
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_COMFY_TAGS = range(0x010C, 0x0111)  # Model, Make and downwards
_TAGS = frozenset({_EXIF_IFD, _USER_COMMENT, *_COMFY_TAGS})
_COMFY = re.compile(r"(prompt|workflow):", re.IGNORECASE)
_HYPERNET = "<hypernet:"
# settings of a graph that nodes which write A1111's text often leave out
_OF_GRAPH = re.compile(r"(?:Clip skip|VAE|Start image|Mask image|Denoising strength|Refiner)$|Hires |ControlNet ")
_XMP = "XML:com.adobe.xmp"
_MOST_NAMES = 20  # of texts, in a message
_STANDARD_INPUT = "standard input"
_NOT_NEEDED = "give its prompt and settings as options, or look for another copy of the picture"
_EXIF = "\0EXIF"  # stands for an EXIF block among the names of texts; no text can have this name


def image_format(head: bytes) -> ImageFormat | None:
    """Returns the format of a file by its first 12 bytes; None if it is no image that can carry settings."""
    if head.startswith(_PNG):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if head.startswith(b"RIFF") and head[8:12] == b"WEBP" else None


def read_infotext(file: OpenFile) -> Infotext:
    """Returns the settings of an image, as one of the known programs wrote them, or of a text file.

    An image without settings may have them in a text file of its name beside it, as A1111 writes it.

    Raises:
        NoSettings: there are none.
        FileRefused: see `read_image_text`; or the text file is a link to a file elsewhere.
    """
    head = file.read_at(0, min(24, file.size))
    if image_format(head) is None:
        return parse_settings(_text_of_file(file), file.path)
    texts = read_image_text(file)
    found = _settings_in(texts, file, _size_of_png(head)) or _settings_beside(file)
    if found is None:
        raise _no_settings(file, texts)
    if max(len(found.prompt), len(found.negative_prompt)) > _LONGEST:
        raise FileRefused(f"{file.path}: a prompt of {len(found.prompt):,} letters")
    return _with_unreadable_letters(found)


def infotext_of(path: Path) -> str:
    """Returns the settings of an image as A1111 writes them; an empty text where none can be read."""
    try:
        with OpenFile(path) as file:
            found = read_infotext(file)
    except (FileRefused, NoSettings):
        return ""
    text = as_infotext(found)
    return text if is_text(text) else ""


def as_infotext(found: Infotext) -> str:
    """Returns settings, which any program wrote, as A1111 writes them: its readers look for the steps first."""
    bare = {key: value for key, value in found.parameters.items() if key != "Hashes"}
    steps = {"Steps": bare.pop("Steps")} if "Steps" in bare else {}
    return infotext.write(found.prompt, found.negative_prompt, steps | bare, found.hashes)


def _with_unreadable_letters(found: Infotext) -> Infotext:
    """Returns settings that say it if letters of a prompt could not be decoded."""
    if "\ufffd" not in found.prompt + found.negative_prompt + found.parameters.get("Hires prompt", ""):
        return found
    said = "letters of its prompts cannot be read (\ufffd): they are not in UTF-8; save its text as UTF-8"
    return found._replace(warnings=(said, *found.warnings))


def read_standard_input() -> Infotext:
    """Returns the settings in the text that standard input holds.

    Raises:
        NoSettings: it holds none.
        UsageError: it is an image.
        FileRefused: it is too long.
    """
    data = sys.stdin.buffer.read(4 * _LONGEST + 1)
    if image_format(data) is not None:
        raise UsageError("standard input holds a picture, not its settings", hint="give the file: --from FILE")
    return parse_settings(_decode_text(data, _STANDARD_INPUT), _STANDARD_INPUT)


def parse_settings(text: str, origin: str) -> Infotext:
    """Returns the settings in a text: A1111's infotext, Easy Diffusion's lines, or a program's JSON object.

    Args:
        origin: where it comes from, for messages.

    Raises:
        NoSettings: it holds none.
        FileRefused: it is longer than any.
    """
    found = _settings_in_text(text, origin)
    if found is None:
        hint = 'the settings begin with a line such as "Steps: 20, Sampler: Euler a, Seed: 1"'
        raise NoSettings(f"{origin}: the text has no settings", hint=hint)
    return _with_unreadable_letters(found)


def _settings_in_text(text: str, origin: str) -> Infotext | None:
    if len(text) > _LONGEST:
        raise FileRefused(f"{origin}: {len(text):,} letters of parameters")
    members = _json_members(text)
    found = novelai.parse(members) or easy_diffusion.parse(members) or easy_diffusion.parse_lines(text)
    found = found or draw_things.parse(text) or infotext.parse(text)
    return found if found.parameters else None


def _settings_in(texts: dict[str, str], file: OpenFile, size: tuple[int, int] | None) -> Infotext | None:
    """Returns the settings in the texts of an image; None if no known program's are there."""
    if parameters := texts.get("parameters", "").strip():
        found = _settings_in_text(parameters, file.path) or infotext.parse(parameters)
        said = _said_otherwise(found, parameters, texts, file)
        return _of_its_program(found._replace(warnings=(*found.warnings, *said)), texts)
    comment = texts.get("UserComment", "")  # cameras and phones write comments too
    if len(comment) > _LONGEST or _HYPERNET in comment:
        return _of_its_program(_settings_in_text(comment, file.path) or infotext.parse(comment), texts)
    members = texts | _json_members(comment)
    found = novelai.parse(members, size) or easy_diffusion.parse(members) or _parse_graph(file, texts, size)
    if found.parameters or found.prompt:
        return found
    xmp = texts.get(_XMP, "")
    if len(xmp) <= _LONGEST and (described := draw_things.parse_xmp(xmp)):
        return described
    others = (text for name, text in texts.items() if name != _XMP and _may_be_infotext(text))
    return next((found for text in islice(others, _MOST_NAMES) if (found := infotext.parse(text)).parameters), None)


def _of_its_program(found: Infotext, texts: dict[str, str]) -> Infotext:
    """Returns settings in A1111's form that say it if ComfyUI drew the image: many of its nodes write them so.

    They say nothing of the program then, and the graph beside them does.
    """
    if "Version" in found.parameters:
        return found
    try:
        is_comfyui = comfyui.has_sampler(texts.get("prompt"), texts.get("workflow"))
    except UnsafeFile:
        return found
    return found._replace(parameters={**found.parameters, "Version": "ComfyUI"}) if is_comfyui else found


def _may_be_infotext(text: str) -> bool:
    return len(text) <= _LONGEST and "Steps:" in text


def _said_otherwise(found: Infotext, parameters: str, texts: dict[str, str], file: OpenFile) -> Iterator[str]:
    """Yields what other texts of an image say that those settings which are taken from its ``parameters`` do not."""
    comment = texts.get("UserComment", "").strip()
    if comment != parameters and len(comment) <= _LONGEST:
        other = infotext.parse(comment)
        if other.parameters and other[:3] != found[:3]:
            yield "its EXIF data has other settings, which A1111 reads; those in its text `parameters` are read here"
    try:
        graph = _parse_graph(file, texts, None)
    except FileRefused:
        return
    for called, resource in (("hypernetworks", "hypernet"), ("LoRAs", "lora")):
        known = {*_networks_in(found, resource), *_hashed(found, resource)}
        if others := [excerpt(name) for key, name in _networks_in(graph, resource).items() if key not in known]:
            yield (
                f"its ComfyUI graph has {called} that its text `parameters` does not name, which are not applied: "
                f"{', '.join(others[:_MOST_NAMES])}"
            )
    stated = {kind[0] for kind in map(_OF_GRAPH.match, found.parameters) if kind}
    if unsaid := [key for key in graph.parameters if (kind := _OF_GRAPH.match(key)) and kind[0] not in stated]:
        listed = ", ".join(unsaid[:_MOST_NAMES])
        yield f"its ComfyUI graph has settings that its text `parameters` does not, which are not taken over: {listed}"


def _networks_in(info: Infotext, kind: str) -> dict[str, str]:
    """Returns the networks of a kind, ``hypernet`` or ``lora``, in the prompts of an infotext: stem -> name.

    Stems are in small letters; some programs name the folder of a file too.
    """
    passes = [one for one in (info, info.second_pass) if one is not None]
    if kind == "hypernet":
        names = [mention.name for one in passes for mention in infotext.hypernetworks_of(one).networks]
    else:
        tagged = (split_tags(one.prompt.encode("utf-8", "replace").decode()) for one in passes)
        names = [lora.name for prompt in tagged for lora in prompt.loras]
    return {comfyui.stem_of(name).casefold(): name for name in names}


def _hashed(info: Infotext, kind: str) -> Iterator[str]:
    """Yields the networks of a kind that the hashes of an infotext name, as stems in small letters."""
    resources = (resource.partition(":") for resource in info.hashes)
    return (comfyui.stem_of(name).casefold() for of, _, name in resources if of == kind)


def _settings_beside(file: OpenFile) -> Infotext | None:
    """Returns the settings in the text file that A1111 writes beside an image; a caption there is none.

    Raises:
        UnsafeFile: it is a link to a file elsewhere, which may be a private one.
    """
    path = Path(file.path).with_suffix(".txt")
    if is_link_elsewhere(path, Path(file.path)):
        raise UnsafeFile(
            f"{path}: a link to a file elsewhere, whose text is not taken for the settings of {Path(file.path).name}",
            hint="if they are its settings, put the file itself there",
        )
    try:
        with OpenFile(path) as beside:
            found = _settings_in_text(_text_of_file(beside), beside.path)
    except HnetkitError:
        return None
    said = f"its settings are those in {path.name} beside it"
    return found and found._replace(warnings=(said, *found.warnings))


def _no_settings(file: OpenFile, texts: dict[str, str]) -> NoSettings:
    """Returns the error for an image without settings, which names the texts that it has."""
    names = [name for name, text in texts.items() if text.strip() and not name.startswith("XML:")]
    if not names:
        hint = "look for the original: sites remove them"
        return NoSettings(f"{file.path}: the picture carries no settings", hint=hint)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    listed = ", ".join(map(excerpt, names[:_MOST_NAMES]))
    said = f"the picture carries no settings of a program that hnetkit knows; its texts are: {listed}{more}"
    return NoSettings(f"{file.path}: {said}", hint="give its prompt and settings as options")


def _text_of_file(file: OpenFile) -> str:
    return _decode_text(file.read_at(0, min(4 * _LONGEST + 1, file.size)), file.path)


def _decode_text(data: bytes, origin: str) -> str:
    """Decodes a text file, which Windows' shells write in UTF-16."""
    if len(data) > 4 * _LONGEST:
        raise NoSettings(f"{origin}: too long for a text of settings", hint=_NOT_NEEDED)
    if b"\0" in data[:_READ_AHEAD] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise NoSettings(
            f"{origin}: neither a picture nor a text of settings", hint="give a PNG, JPEG, WebP or .txt file"
        )
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(encoding, "replace")


def _json_members(text: str) -> dict[str, str]:
    """Returns the members of a text that is a JSON object, as texts; {} for any other text."""
    if len(text) > _LONGEST or not text.lstrip().startswith("{"):
        return {}
    try:
        members = parse_json(text)
    except ValueError:
        return {}
    return {name: value if isinstance(value, str) else str(value) for name, value in members.items()}


def _size_of_png(head: bytes) -> tuple[int, int] | None:
    """Returns the (width, height) in pixels that the first 24 bytes of a PNG state; None for another image."""
    if len(head) < 24 or not head.startswith(_PNG):
        return None
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _parse_graph(file: OpenFile, texts: dict[str, str], size: tuple[int, int] | None) -> Infotext:
    try:
        return comfyui.parse(texts.get("prompt"), texts.get("workflow"), size=size)
    except UnsafeFile as error:
        raise UnsafeFile(f"{file.path}: its ComfyUI graph cannot be read: {error}", hint=_NOT_NEEDED) from error


def read_image_text(file: OpenFile) -> dict[str, str]:
    """Returns name -> text of a PNG, JPEG or WebP; the last text of a name wins.

    EXIF's comment is called ``UserComment``; ComfyUI's texts are ``prompt`` and ``workflow`` in every format. A file
    that is cut short gives the texts before the cut, and one of another format none. What other programs ignore is
    ignored here too: texts after the end of the image, texts compressed in a way that the format does not define, and a
    second EXIF block of a JPEG or WebP.

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
    """Yields the texts of a PNG in UTF-8."""
    for name, start, size in _chunks(file, len(_PNG), ">I4s", budget):
        if name == b"eXIf":
            yield _EXIF, _read_data(file, start, size, budget)
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            key, _, rest = _read_data(file, start, size, budget).partition(b"\0")
            text = _text_of_chunk(file, name, rest, budget)
            if text is not None:
                yield key.decode("latin-1"), text
        elif name == b"IEND":
            return


def _text_of_chunk(file: OpenFile, name: bytes, rest: bytes, budget: Budget) -> bytes | None:
    """Returns the text in UTF-8; None if it is compressed in a way that PNG does not define."""
    if name == b"tEXt":
        return _in_utf8(rest)
    if name == b"zTXt":
        return _in_utf8(_decompress(file, rest[1:], budget)) if rest[:1] == b"\0" else None
    text = rest[2:].split(b"\0", 2)[-1]  # after the language and the translated key
    if rest[:1] == b"\0":
        return text
    return _decompress(file, text, budget) if rest[:2] == b"\1\0" else None


def _in_utf8(text: bytes) -> bytes:
    """Returns a text that PNG holds in Latin-1: some programs, such as stable-diffusion.cpp, write UTF-8 there.

    What is valid as UTF-8, and not ASCII, makes words in Latin-1 next to never.
    """
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1").encode()
    return text


def _decompress(file: OpenFile, data: bytes, budget: Budget) -> bytes:
    try:
        text = zlib.decompressobj().decompress(data, budget.made_left + 1)
    except zlib.error as error:
        raise DamagedFile(f"{file.path}: a compressed text in it is damaged") from error
    budget.make(len(text))
    return text


def _exif_of_webp(file: OpenFile, budget: Budget) -> Iterator[tuple[str, bytes]]:
    end = 8 + struct.unpack("<I", file.read_at(4, 4))[0]  # of the image; what follows is not part of it
    for name, start, size in _chunks(file, 12, "<4sI", budget):
        if start + size > end:
            return
        if name == b"EXIF":
            yield _EXIF, _read_data(file, start, size, budget)
            return


def _chunks(
    file: OpenFile, position: int, header: Literal[">I4s", "<4sI"], budget: Budget
) -> Iterator[tuple[bytes, int, int]]:
    """Yields (name, start, size) of the chunks of a PNG or RIFF file, without a chunk that is cut off."""
    reads = _BufferedReads(file)
    while position + 8 <= file.size:
        budget.work(1)
        first, second = struct.unpack(header, reads.at(position, 8))
        size, name = (first, second) if header == ">I4s" else (second, first)
        if position + 8 + size > file.size:
            return
        yield name, position + 8, size
        position += 8 + size + (4 if header == ">I4s" else size % 2)  # a checksum, or a byte of padding


def _exif_of_jpeg(file: OpenFile, budget: Budget) -> Iterator[tuple[str, bytes]]:
    reads = _BufferedReads(file)
    position = 2
    while position + 4 <= file.size:
        budget.work(1)
        marker, code, size = struct.unpack(">BBH", reads.at(position, 4))
        if marker == code == 0xFF:  # a marker may follow any number of these bytes
            position += 1
            continue
        if marker != 0xFF or code in (0xD9, 0xDA) or size < 2:  # the end, or the pixels begin
            return
        if code == 0xE1 and position + 2 + size <= file.size:
            data = _read_data(file, position + 4, size - 2, budget)
            if data.startswith(b"Exif\0\0"):
                yield _EXIF, data
                return
        position += 2 + size


class _BufferedReads:
    """Small reads at ascending positions of a file, served from one larger read."""

    def __init__(self, file: OpenFile) -> None:
        self._file, self._start, self._bytes = file, 0, b""

    def at(self, position: int, size: int) -> bytes:
        """Returns `size` bytes at a position; all of them are inside the file."""
        if position + size > self._start + len(self._bytes):
            self._start = position
            self._bytes = self._file.read_at(position, min(_READ_AHEAD, self._file.size - position))
        return self._bytes[position - self._start : position - self._start + size]


def _read_data(file: OpenFile, start: int, size: int, budget: Budget) -> bytes:
    budget.make(size)
    return file.read_at(start, size)


def _exif_texts(data: bytes, budget: Budget) -> dict[str, str]:
    """Returns the texts of an EXIF block that hold settings; of a damaged block those that can be found."""
    tiff = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return {}
    entries = dict(_tiff_entries(tiff, order, _tiff_uint(tiff, order, 4), budget))
    found = {}
    if _EXIF_IFD in entries:
        inner = dict(_tiff_entries(tiff, order, _tiff_uint(tiff[entries[_EXIF_IFD]], order, 0), budget))
        if _USER_COMMENT in inner:
            found["UserComment"] = _decode_comment(_tiff_value(tiff, inner[_USER_COMMENT], budget))
    for tag in _COMFY_TAGS:
        text = _tiff_value(tiff, entries.get(tag, slice(0)), budget).rstrip(b"\0").decode("utf-8", "replace")
        if match := _COMFY.match(text):
            found[match[1].lower()] = text[match.end() :]
    return found


def _tiff_value(tiff: bytes, span: slice, budget: Budget) -> bytes:
    """Returns the bytes of an entry; they count each time, because many entries may name the same bytes."""
    value = tiff[span]
    budget.make(len(value))
    return value


def _tiff_entries(tiff: bytes, order: str, start: int, budget: Budget) -> Iterator[tuple[int, slice]]:
    """Yields (tag, span of its bytes) of a TIFF directory. An entry holds up to 4 bytes itself, else their offset."""
    count = struct.unpack_from(f"{order}H", tiff, start)[0] if start + 2 <= len(tiff) else 0
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        budget.work(1)
        tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, entry)
        size = length * {3: 2, 4: 4, 13: 4}.get(kind, 1)
        begin = entry + 8 if size <= 4 else _tiff_uint(tiff, order, entry + 8)
        if tag in _TAGS:
            yield tag, slice(begin, begin + size)


def _tiff_uint(data: bytes, order: str, position: int) -> int:
    """Returns the 32-bit number at a position; beyond the end, a number that is no valid offset."""
    if position + 4 > len(data):
        return len(data) + (1 << 32)
    return int(struct.unpack_from(f"{order}I", data, position)[0])


def _decode_comment(data: bytes) -> str:
    """Decodes EXIF's comment: 8 bytes name its encoding; many programs omit them or leave them empty."""
    kind, rest = data[:8], data[8:]
    if kind == b"UNICODE\0":
        return _decode_utf16(rest).rstrip("\0")
    if kind == b"JIS\0\0\0\0\0":
        return rest.decode("iso2022_jp", "replace").rstrip("\0")
    text = rest if kind in (b"ASCII\0\0\0", bytes(8)) else data
    return text.decode("utf-8", "replace").rstrip("\0")


def _decode_utf16(data: bytes) -> str:
    """Decodes UTF-16 in the byte order that gives more plain letters: programs do not agree on the order."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    beginning = data[:_READ_AHEAD]
    high_first, low_first = (_plain_letters(beginning.decode(code, "replace")) for code in ("utf-16-be", "utf-16-le"))
    return data.decode("utf-16-le" if low_first > high_first else "utf-16-be", "replace")


def _plain_letters(text: str) -> int:
    return sum("\n" <= letter <= "~" for letter in text)


def write_image(path: Path, image: Image.Image, infotext: str, *, overwrite: bool = False) -> None:
    """Writes an image with its `infotext`; the file appears under its name only when it is complete.

    The suffix decides the format: PNG (text ``parameters``), JPEG (quality 95, full color resolution) or WebP
    (lossless). The latter two have the text in EXIF's UserComment, as A1111 writes it.

    Raises:
        OutputExists: the file exists and `overwrite` is False.
        NotFound: its folder does not exist.
        UsageError: the suffix has no such format, or the text is too long for a JPEG.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: pictures are written as PNG, JPEG or WebP",
            hint=f"--out {argument(suffixed(path, '.png'), is_path=True)}",
        )
    infotext = infotext.encode("utf-8", "replace").decode()  # the name of a file in it may have bytes that are not text
    options = png_options(infotext) if suffix == ".png" else _exif_options(path, infotext)
    with new_file(path, overwrite=overwrite) as file:
        image.save(file, **options)


def png_options(infotext: str) -> dict[str, Any]:
    """Returns what Pillow's `save` is to be told for a PNG with an infotext; an empty one is left out."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    if infotext:  # in UTF-8 and marked so: as Latin-1, some letters would read like UTF-8, see `_in_utf8`
        (texts.add_text if infotext.isascii() else texts.add_itxt)("parameters", infotext)
    return {"format": "png", "pnginfo": texts}


def _exif_options(path: Path, infotext: str) -> dict[str, Any]:
    from PIL import Image

    comment = b"UNICODE\0" + infotext.encode("utf-16-be")
    exif = Image.Exif()
    exif.endian = ">"  # readers that follow the standard take the comment's byte order from here
    exif[_EXIF_IFD] = {_USER_COMMENT: comment}
    if path.suffix.lower() not in _JPEG:
        return {"format": "webp", "lossless": True, "exif": exif.tobytes()}
    if len(comment) > _MOST_EXIF:
        raise UsageError(
            f"{path}: a JPEG cannot hold parameters of {len(infotext)} letters",
            hint=f"--out {argument(suffixed(path, '.png'), is_path=True)}",
        )
    return {"format": "jpeg", "quality": 95, "subsampling": 0, "exif": exif.tobytes()}
