"""Civitai's JSON as data, whatever shape it comes in.

None means that the answer did not say; an empty tuple means that it said "none". What the site declares (type, format,
fp, scan) is kept as its claim. Source: the site's public API, version 1, as of August 2026, and older dumps of it.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from html import unescape
from typing import Any, Protocol, TypeVar

Json = Mapping[str, Any]

_NSFW_WORDS = {"none": 1, "soft": 2, "mature": 4, "x": 8, "xxx": 16, "blocked": 32}
_NO_HASHES = frozenset({"0" * 64, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"})
_MODES = {"archived": "archived", "takendown": "taken-down"}
_TAG_STRENGTH = re.compile(r"<hypernet:[^:<>]+:([0-9.]+)>")
_LARGEST_ID = 2**31


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a version.

    Attributes:
        id: the site's number: what names it for certain.
        name: as the site builds it from the model's and the version's names; not unique, not stable.
        size_bytes: about; within 1 KiB of the truth where the site is right.
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
class Image:
    """An example picture or video of a version."""

    url: str
    type: str
    nsfw_level: int | None
    width: int | None
    height: int | None
    strength: float | None


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model.

    Attributes:
        published_at, early_access_until: ISO 8601.
        usage: ``"Download"``, or another word where the owner allows no download.
        strength: the median of what its example pictures were made with.
        left_out: what of its files cannot be used -> how many.
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
    files: tuple[RemoteFile, ...]
    images: tuple[Image, ...]
    left_out: Mapping[str, int]
    raw: Json


@dataclass(frozen=True, slots=True)
class Model:
    """One model with its versions, the newest first.

    Attributes:
        nsfw_level: bit mask of the site's ratings: 1 PG, 2 PG-13, 4 R, 8 and 16 above that, 32 blocked.
        state: ``"listed"``, ``"archived"`` or ``"taken-down"``.
        left_out: what of its versions and files cannot be used -> how many.
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
    versions: tuple[Version, ...]
    left_out: Mapping[str, int]
    raw: Json


def model_of(data: Any) -> Model | None:
    """Returns the model in a JSON object; None where there is none in it, for want of a number.

    No version and no file stands twice in it: of those with one number the first counts.
    """
    data = _object(data)
    id = id_of(data.get("id"))
    if id is None:
        return None
    left_out: Counter[str] = Counter()
    versions, seen = [], set[int]()
    for version in _parts(data, "modelVersions", version_of, "versions", left_out):
        files = _each_once(version.files, seen, "files", left_out)
        versions.append(replace(version, files=files) if len(files) < len(version.files) else version)
        left_out.update(version.left_out)
    creator = data.get("creator")
    return Model(
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
        downloads=int_of(_object(data.get("stats")).get("downloadCount")),
        state=_MODES.get(str(data.get("mode")).lower(), "listed"),
        versions=tuple(sorted(versions, key=lambda v: (v.published_at or "", v.id), reverse=True)),
        left_out=left_out,
        raw=data,
    )


def version_of(data: Any) -> Version | None:
    """Returns the version in a JSON object, of a list or of its own; None where there is none in it."""
    data = _object(data)
    id = id_of(data.get("id"))
    if id is None:
        return None
    left_out: Counter[str] = Counter()
    images = tuple(i for i in map(_image, _list(data.get("images"))) if i is not None)
    strengths = [image.strength for image in images if image.strength is not None]
    return Version(
        id=id,
        model_id=id_of(data.get("modelId")),
        name=_text(data.get("name")) or f"version {id}",
        base_model=_text(data.get("baseModel")),
        published_at=_text(data.get("publishedAt")),
        early_access_until=_text(data.get("earlyAccessEndsAt")) or _text(data.get("earlyAccessDeadline")),
        availability=_text(data.get("availability")),
        usage=_text(data.get("usageControl")),
        nsfw_level=_nsfw(data),
        trained_words=_texts(data, "trainedWords"),
        strength=round(statistics.median(strengths), 2) if strengths else None,
        files=_parts(data, "files", _file, "files", left_out),
        images=images,
        left_out=left_out,
        raw=data,
    )


class _Numbered(Protocol):
    @property
    def id(self) -> int: ...


P = TypeVar("P", bound=_Numbered)


def _parts(data: Json, key: str, read: Callable[[Any], P | None], what: str, left_out: Counter[str]) -> tuple[P, ...]:
    """Returns what can be used of a list, each number once, and counts the rest; a list that is not there is empty."""
    said = data.get(key)
    if said is not None and not isinstance(said, list):
        left_out[f"{key} that are no list"] += 1
    parts = [read(item) for item in _list(said)]
    if None in parts:
        left_out[f"{what} without a number"] += parts.count(None)
    return _each_once(filter(None, parts), set(), what, left_out)


def _each_once(parts: Iterable[P], seen: set[int], what: str, left_out: Counter[str]) -> tuple[P, ...]:
    """Returns the parts whose numbers were not seen before, and counts the others."""
    once = []
    for part in parts:
        if part.id in seen:
            left_out[f"{what} with the number of another one"] += 1
        else:
            seen.add(part.id)
            once.append(part)
    return tuple(once)


def _file(data: Any) -> RemoteFile | None:
    data = _object(data)
    id = id_of(data.get("id"))
    if id is None:
        return None
    declared = _object(data.get("metadata"))
    size = _number(data.get("sizeKB"))
    hashes = {
        str(kind): value.lower()
        for kind, value in _object(data.get("hashes")).items()
        if isinstance(value, str) and not (len(value) >= 8 and any(no.startswith(value.lower()) for no in _NO_HASHES))
    }
    sha256 = next((value for kind, value in hashes.items() if kind.upper() == "SHA256"), None)
    return RemoteFile(
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


def _image(data: Any) -> Image | None:
    data = _object(data)
    url = _text(data.get("url"))
    if url is None:
        return None
    return Image(
        url=url,
        type=_text(data.get("type")) or ("video" if url.lower().endswith((".mp4", ".webm")) else "image"),
        nsfw_level=_nsfw(data),
        width=int_of(data.get("width")),
        height=int_of(data.get("height")),
        strength=_strength(_object(data.get("meta"))),
    )


def _strength(meta: Json) -> float | None:
    """The strength of the hypernetwork that a picture was made with, from A1111's settings."""
    said = _number(meta.get("Hypernet strength"))
    if said is None and meta.get("Hypernet"):
        said = _number(meta.get("Hypernetwork strength"))
    if said is None:
        match = _TAG_STRENGTH.search(str(meta.get("prompt") or ""))
        said = _number(match[1]) if match else None
    return said if said is not None and 0 < said <= 2 else None


# --- what JSON may hold


def _object(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, int) and abs(value) >= 2**64:  # as text it may be longer than Python will make
        return None
    return str(value).strip() or None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value[:64] if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return number if number == number and abs(number) != float("inf") else None


def int_of(value: Any) -> int | None:
    """Returns a whole number that every reader of JSON holds exactly; None for anything else."""
    number = _number(value)
    return int(number) if number is not None and abs(number) < 2**53 else None


def id_of(value: Any) -> int | None:
    """Returns a number that a site may have given out; None for anything else, also for a part of one."""
    number = _number(value)
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
    return int_of(level)


def _commercial_use(data: Json) -> tuple[str, ...] | None:
    said = data.get("allowCommercialUse")
    if isinstance(said, str):
        said = said.strip("{}").split(",")
    if not isinstance(said, list):
        return None
    return tuple(word.strip() for word in said if isinstance(word, str) and word.strip() not in ("", "None"))


MOST_HTML = 256 << 10
"""Signs of a description that are read; what is longer is cut."""

_BLOCKS = frozenset({"p", "br", "li", "div", "h1", "h2", "h3", "h4", "ul", "ol", "tr", "pre", "blockquote"})
_SILENT = frozenset({"script", "style"})
_TAG = re.compile(r"(/?)([a-zA-Z][a-zA-Z0-9]*)")
_NO_SIGN = re.compile(r"&#[xX]?[0-9a-fA-F]{9,};?")  # beyond every sign there is, and slow to turn into a number


def plain_text(html: Any) -> str | None:
    """Returns a description without its tags and without what could steer a terminal; None where there is none."""
    if not isinstance(html, str):
        return None
    text = unescape(_NO_SIGN.sub(" ", "".join(_texts_of(html[:MOST_HTML]))))
    lines = (" ".join(_printable(line).split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line) or None


def _texts_of(html: str) -> Iterator[str]:
    """Yields what stands outside of tags, comments, scripts and styles; each sign is looked at a few times at most."""
    at, silent, last_comment = 0, "", html.rfind("-->")
    while (start := html.find("<", at)) >= 0:
        if not silent:
            yield html[at:start]
        if html.startswith("<!--", start) and start + 4 <= last_comment:
            at = html.index("-->", start + 4) + 3
            continue
        tag = _TAG.match(html, start + 1)
        if tag is None and html[start + 1 : start + 2] not in ("!", "?", "/"):  # a sign of its own, as in "a < b"
            if not silent:
                yield "<"
            at = start + 1
            continue
        end = html.find(">", start)
        if end < 0:  # no tag ends any more
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
