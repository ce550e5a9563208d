"""Parse Civitai's JSON: models, versions, files and images, in whatever shape they come.

None means that the answer did not state a value; an empty tuple means that it stated "none". What the site declares
(type, format, fp, scan) is kept as its claim. On a page with a hostile record, the others are still read.
Source: the site's public API, version 1, as of August 2026, and older dumps of it.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from hnetkit.limits import Budget, json_size, parse_json
from hnetkit.sources.http import MOST_MADE, read_json
from hnetkit.text import unescaped

Json = Mapping[str, Any]

_NSFW_WORDS = {"none": 1, "soft": 2, "mature": 4, "x": 8, "xxx": 16, "blocked": 32}
_NO_HASHES = frozenset({"0" * 64, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"})
_MODES = {"archived": "archived", "takendown": "taken-down"}
_TAG_STRENGTH = re.compile(r"<hypernet:[^:<>]+:([0-9.]+)>")
_LARGEST_ID = 2**31


@dataclass(frozen=True, slots=True)
class CivitaiFile:
    """One file of a version.

    Attributes:
        id: the site's number; the only reliable identifier.
        name: built by the site from the names of model and version; neither unique nor stable.
        size_bytes: approximate, within 1 KiB where the site is right.
        hashes: kind in the site's spelling -> lower-case hex.
        sha256: of the whole file, 64 digits.
    """

    id: int
    name: str
    type: str | None
    size_bytes: int | None
    format: str | None
    fp: str | None
    scan: str | None
    is_primary: bool
    hashes: Mapping[str, str]
    sha256: str | None


@dataclass(frozen=True, slots=True)
class CivitaiImage:
    """An example image or video of a version."""

    url: str
    type: str
    nsfw_level: int | None
    width: int | None
    height: int | None
    strength: float | None


@dataclass(frozen=True, slots=True)
class CivitaiVersion:
    """One version of a model.

    Attributes:
        published_at, early_access_until: ISO 8601.
        usage: ``"Download"``, or another word where the owner has disabled downloads.
        strength: the median strength of its example images.
        left_out: kind of unusable file -> count.
    """

    id: int
    model_id: int | None
    name: str
    base_model: str | None
    published_at: str | None
    early_access_until: str | None
    availability: str | None
    usage: str | None
    nsfw_level: int | None
    trained_words: tuple[str, ...] | None
    strength: float | None
    files: tuple[CivitaiFile, ...]
    images: tuple[CivitaiImage, ...]
    left_out: Mapping[str, int]
    raw: Json


@dataclass(frozen=True, slots=True)
class CivitaiModel:
    """One model with its versions, the newest first.

    Attributes:
        nsfw_level: bit mask of the site's ratings: 1 PG, 2 PG-13, 4 R, 8 and 16 above that, 32 blocked.
        state: ``"listed"``, ``"archived"`` or ``"taken-down"``.
        left_out: kind of unusable version or file -> count.
    """

    id: int
    name: str
    type: str | None
    creator: str | None
    description: str | None
    tags: tuple[str, ...] | None
    nsfw_level: int | None
    availability: str | None
    commercial_use: tuple[str, ...] | None
    allow_no_credit: bool | None
    allow_derivatives: bool | None
    allow_different_license: bool | None
    downloads: int | None
    state: str
    versions: tuple[CivitaiVersion, ...]
    left_out: Mapping[str, int]
    raw: Json


def parse_model(data: Any) -> CivitaiModel | None:
    """Returns the model in a JSON object; None without a number.

    Of several versions, or files, with one number, the first is kept.
    """
    data = _object(data)
    id = parse_id(data.get("id"))
    if id is None:
        return None
    left_out: Counter[str] = Counter()
    versions, seen = [], set[int]()
    for version in _parts(data, "modelVersions", parse_version, "versions", left_out):
        files = _each_once(version.files, seen, "files", left_out)
        versions.append(replace(version, files=files) if len(files) < len(version.files) else version)
        left_out.update(version.left_out)
    creator = data.get("creator")
    return CivitaiModel(
        id=id,
        name=_text(data.get("name")) or f"model {id}",
        type=_text(data.get("type")),
        creator=_text(_object(creator).get("username")) if creator else None,
        description=plain_text(data.get("description")),
        tags=_texts(data, "tags"),
        nsfw_level=_nsfw(data),
        availability=_text(data.get("availability")),
        commercial_use=_commercial_use(data),
        allow_no_credit=_flag(data.get("allowNoCredit")),
        allow_derivatives=_flag(data.get("allowDerivatives")),
        allow_different_license=_flag(data.get("allowDifferentLicense")),
        downloads=parse_int(_object(data.get("stats")).get("downloadCount")),
        state=_MODES.get(str(data.get("mode")).lower(), "listed"),
        versions=tuple(sorted(versions, key=lambda v: (v.published_at or "", v.id), reverse=True)),
        left_out=left_out,
        raw=data,
    )


def parse_version(data: Any) -> CivitaiVersion | None:
    """Returns the version in a JSON object, from a listing or an answer of its own; None without a number."""
    data = _object(data)
    id = parse_id(data.get("id"))
    if id is None:
        return None
    left_out: Counter[str] = Counter()
    images = tuple(i for i in map(_parse_image, _list(data.get("images"))) if i is not None)
    strengths = [image.strength for image in images if image.strength is not None]
    return CivitaiVersion(
        id=id,
        model_id=parse_id(data.get("modelId")),
        name=_text(data.get("name")) or f"version {id}",
        base_model=_text(data.get("baseModel")),
        published_at=_text(data.get("publishedAt")),
        early_access_until=_text(data.get("earlyAccessEndsAt")) or _text(data.get("earlyAccessDeadline")),
        availability=_text(data.get("availability")),
        usage=_text(data.get("usageControl")),
        nsfw_level=_nsfw(data),
        trained_words=_texts(data, "trainedWords"),
        strength=round(statistics.median(strengths), 2) if strengths else None,
        files=_parts(data, "files", _parse_file, "files", left_out),
        images=images,
        left_out=left_out,
        raw=data,
    )


class _Numbered(Protocol):
    @property
    def id(self) -> int: ...


P = TypeVar("P", bound=_Numbered)


def _parts(data: Json, key: str, read: Callable[[Any], P | None], what: str, left_out: Counter[str]) -> tuple[P, ...]:
    """Returns the usable parts of a list, each number once, and counts the others; a missing list is empty."""
    listed = data.get(key)
    if listed is not None and not isinstance(listed, list):
        left_out[f"{key} that are no list"] += 1
    parts = [read(item) for item in _list(listed)]
    if None in parts:
        left_out[f"{what} without a number"] += parts.count(None)
    return _each_once(filter(None, parts), set(), what, left_out)


def _each_once(parts: Iterable[P], seen: set[int], what: str, left_out: Counter[str]) -> tuple[P, ...]:
    """Returns the parts whose numbers are new, and counts the others."""
    once = []
    for part in parts:
        if part.id in seen:
            left_out[f"{what} with the number of another one"] += 1
        else:
            seen.add(part.id)
            once.append(part)
    return tuple(once)


def _parse_file(data: Any) -> CivitaiFile | None:
    data = _object(data)
    id = parse_id(data.get("id"))
    if id is None:
        return None
    declared = _object(data.get("metadata"))
    size = _parse_number(data.get("sizeKB"))
    hashes = {
        str(kind): value.lower()
        for kind, value in _object(data.get("hashes")).items()
        if isinstance(value, str) and not (len(value) >= 8 and any(no.startswith(value.lower()) for no in _NO_HASHES))
    }
    sha256 = next((value for kind, value in hashes.items() if kind.upper() == "SHA256"), None)
    return CivitaiFile(
        id=id,
        name=_text(data.get("name")) or f"{id}.pt",
        type=_text(data.get("type")),
        size_bytes=round(size * 1024) if size is not None and 0 < size < 1e12 else None,
        format=_text(declared.get("format")),
        fp=_text(declared.get("fp")),
        scan=_text(data.get("pickleScanResult")),
        is_primary=data.get("primary") is True,
        hashes=hashes,
        sha256=sha256 if sha256 and re.fullmatch(r"[0-9a-f]{64}", sha256) else None,
    )


def _parse_image(data: Any) -> CivitaiImage | None:
    data = _object(data)
    url = _text(data.get("url"))
    if url is None:
        return None
    return CivitaiImage(
        url=url,
        type=_text(data.get("type")) or ("video" if url.lower().endswith((".mp4", ".webm")) else "image"),
        nsfw_level=_nsfw(data),
        width=parse_int(data.get("width")),
        height=parse_int(data.get("height")),
        strength=_strength(_object(data.get("meta"))),
    )


def _strength(meta: Json) -> float | None:
    """Returns the hypernetwork strength in A1111's settings of an image."""
    strength = _parse_number(meta.get("Hypernet strength"))
    if strength is None and meta.get("Hypernet"):
        strength = _parse_number(meta.get("Hypernetwork strength"))
    if strength is None:
        match = _TAG_STRENGTH.search(str(meta.get("prompt") or ""))
        strength = _parse_number(match[1]) if match else None
    return strength if strength is not None and 0 < strength <= 2 else None


# --- values of JSON


def _object(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, int) and abs(value) >= 2**64:  # as text it may exceed Python's limit
        return None
    return str(value).strip() or None


def _parse_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value[:64] if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return number if number == number and abs(number) != float("inf") else None


def parse_int(value: Any) -> int | None:
    """Returns a number, truncated, if JSON readers hold it exactly; None otherwise."""
    number = _parse_number(value)
    return int(number) if number is not None and abs(number) < 2**53 else None


def parse_id(value: Any) -> int | None:
    """Returns a whole number that can be an id of the site; None for anything else."""
    number = _parse_number(value)
    return int(number) if number is not None and number.is_integer() and 0 < number < _LARGEST_ID else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _texts(data: Json, key: str) -> tuple[str, ...] | None:
    if not isinstance(data.get(key), list):
        return None
    found = (_text(item.get("name") if isinstance(item, Mapping) else item) for item in data[key])
    return tuple(text for text in found if text)


def _nsfw(data: Json) -> int | None:
    level = data.get("nsfwLevel")
    level = data.get("nsfw") if level is None else level
    if isinstance(level, bool):
        return 28 if level else 1
    if isinstance(level, str) and level.lower() in _NSFW_WORDS:
        return _NSFW_WORDS[level.lower()]
    return parse_int(level)


def _commercial_use(data: Json) -> tuple[str, ...] | None:
    uses = data.get("allowCommercialUse")
    if isinstance(uses, str):
        uses = uses.strip("{}").split(",")
    if not isinstance(uses, list):
        return None
    return tuple(word.strip() for word in uses if isinstance(word, str) and word.strip() not in ("", "None"))


MOST_HTML = 256 << 10
"""Characters of a description that are read; the rest is cut."""

_BLOCKS = frozenset({"p", "br", "li", "div", "h1", "h2", "h3", "h4", "ul", "ol", "tr", "pre", "blockquote"})
_SILENT = frozenset({"script", "style"})
_TAG = re.compile(r"(/?)([a-zA-Z][a-zA-Z0-9]*)")


def plain_text(html: Any) -> str | None:
    """Returns a description without its tags and without terminal control characters; None where nothing is left."""
    if not isinstance(html, str):
        return None
    text = unescaped("".join(_visible_texts(html[:MOST_HTML])))
    lines = (" ".join(_printable(line).split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line) or None


def _visible_texts(html: str) -> Iterator[str]:
    """Yields the text outside tags, comments, scripts and styles, in linear time."""
    at, silent, last_comment = 0, "", html.rfind("-->")
    while (start := html.find("<", at)) >= 0:
        if not silent:
            yield html[at:start]
        if html.startswith("<!--", start) and start + 4 <= last_comment:
            at = html.index("-->", start + 4) + 3
            continue
        tag = _TAG.match(html, start + 1)
        if tag is None and html[start + 1 : start + 2] not in ("!", "?", "/"):  # a plain "<", as in "a < b"
            if not silent:
                yield "<"
            at = start + 1
            continue
        end = html.find(">", start)
        if end < 0:  # no further tag is closed
            at = start + 1
            break
        name = tag[2].lower() if tag else ""
        if name in _SILENT and tag is not None:
            silent = (silent and "" if silent == name else silent) if tag[1] else silent or name
        if name in _BLOCKS and not silent and tag is not None and not tag[1]:
            yield "\n"
        at = end + 1
    if not silent:
        yield html[at:]


def _printable(text: str) -> str:
    return "".join(" " if c.isspace() else c for c in text if c.isspace() or c.isprintable())


# --- pages of which a record may be hostile

_MOST_RECORD = 32 << 20  # bytes that one record of a split page may take in memory
_MOST_RECORDS = 1000  # of a split page; the site sends a hundred
_MOST_TOKENS = 5_000_000  # brackets, commas and quotes read to split a page
_STRUCTURE, _IN_TEXT = re.compile(r'["\[\]{},]'), re.compile(r'["\\]')
_ID = re.compile(r'\s*\{\s*"id"\s*:\s*([0-9]{1,10})\s*[,}]')


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record of a site, or parts of one, that cannot be used.

    Attributes:
        id: number of the model; None where it has none.
        reason: why, in words.
        count: of the records, or parts of one, that are affected.
        is_whole: whether nothing of the model can be used.
        about: numbers of the models, where one record stands for several.
        cuts_list: whether models that follow in a list may be missing.
    """

    id: int | None
    reason: str
    count: int = 1
    is_whole: bool = True
    about: frozenset[int] = frozenset()
    cuts_list: bool = False


def parts_left_out(what: CivitaiModel | CivitaiVersion) -> Iterator[BadRecord]:
    """Yields a record of the unusable parts of a model or version, if there are any."""
    if what.left_out:
        parts = ", ".join(f"{part} ({count:,})" for part, count in what.left_out.items())
        id = what.id if isinstance(what, CivitaiModel) else what.model_id
        yield BadRecord(id, f"left out: {parts}", sum(what.left_out.values()), is_whole=False)


def read_page(text: str, kept: Budget) -> Any:
    """Returns a page as `read_json` would, with a BadRecord in place of each record that cannot be read.

    Args:
        text: JSON of the page.
        kept: memory that all pages of the listing may take.

    Raises:
        ValueError: it is no page.
        UnsafeFile: it exceeds `kept`.
    """
    try:
        page = read_json(text)
        kept.make(json_size(text))
    except ValueError:
        records, rest = _split_records(text)
        page = parse_json(rest, most=MOST_MADE, strict=False)
        page["items"] = [_parse_record(record, kept) for record in records]
    return page


def _parse_record(text: str, kept: Budget) -> Any:
    try:
        record = parse_json(text, most=_MOST_RECORD, strict=False)
        kept.make(json_size(text))  # counted once parsed: unparsed brackets look far larger
        return record
    except ValueError as error:
        match = _ID.match(text)
        return BadRecord(int(match[1]) if match else None, f"the site's record of it cannot be read: {error}")


def _split_records(text: str) -> tuple[list[str], str]:
    """Returns the texts of the records in a page's ``items``, and the page without them.

    Raises:
        ValueError: the list is missing or not closed.
    """
    records: list[str] = []
    depth, begin, start = 0, 0, 0
    for token, at in _structure(text):
        if token in "[{":
            depth += 1
            if depth == 2 and token == "[" and not begin and re.search(r'"items"\s*:\s*$', text[max(0, at - 40) : at]):
                begin = start = at + 1
        elif token in "]}":
            depth -= 1
        if begin and ((token == "," and depth == 2) or depth == 1):
            records.append(text[start:at])
            start = at + 1
            if len(records) > _MOST_RECORDS:
                raise ValueError(f"more than {_MOST_RECORDS:,} records")
            if depth == 1:
                return records, text[:begin] + text[at:]
    raise ValueError("no list of models")


def _structure(text: str) -> Iterator[tuple[str, int]]:
    """Yields each bracket and comma outside the strings of a JSON text, with its index."""
    at = 0
    for _ in range(_MOST_TOKENS):
        match = _STRUCTURE.search(text, at)
        if match is None:
            return
        at = match.end()
        if match[0] != '"':
            yield match[0], match.start()
            continue
        inner = None
        while inner is None or inner[0] != '"':
            inner = _IN_TEXT.search(text, at)
            if inner is None:
                return
            at = inner.end() + (inner[0] == "\\")
    raise ValueError(f"more than {_MOST_TOKENS:,} values")
