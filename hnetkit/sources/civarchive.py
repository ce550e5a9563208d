"""Client of CivArchive: an archive's records of models that Civitai has or had, and where else their files lie.

All of it is a stranger's word. What a file must be is decided by its sha256, and no token goes there or to a mirror.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hnetkit.errors import Gone, NetworkFailed, RateLimited, RemoteError, UsageError
from hnetkit.registry.columns import text_of
from hnetkit.sources.civitai_models import parse_id, parse_int
from hnetkit.sources.http import Clock, HttpClient, RateLimiter
from hnetkit.sources.trust import Origin, SitePolicy, require_no_secret

SOURCE = "civarchive"
NAME = "CivArchive"
CIVARCHIVE_API = "https://civarchive.com/api"
OFF = "off"
"""Value of ``HNETKIT_CIVARCHIVE_URL`` with which the archive is not asked."""
MOST_FILES = 100
"""Files of one answer that are read; a version has a few."""
MOST_MIRRORS = 20
"""Mirrors of one file that are read."""
_ATTEMPTS, _OBEYED_S = 3, 30.0  # the archive fails at times, and there may be other sources
_MOST_NAME, _MOST_URL = 1000, 2000  # characters
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ArchivedMirror:
    """An address that is said to have a file.

    Attributes:
        url: complete; its query may hold a secret, so it is neither stored nor shown.
        is_deleted: whether the archive found nothing there any more.
        is_closed: whether it asks for a login or for money.
    """

    url: str
    is_deleted: bool = False
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file that the archive knows.

    Attributes:
        name: with its suffix; None where it is not stated.
        size_bytes: approximate; None where it is not stated.
        mirrors: those that may have it first.
    """

    sha256: str
    name: str | None
    size_bytes: int | None
    mirrors: tuple[ArchivedMirror, ...]


@dataclass(frozen=True, slots=True)
class ArchivedVersion:
    """A version of a model of Civitai, as the archive has it.

    Attributes:
        type: of the model, in Civitai's words; None where it is not stated.
    """

    model_id: int | None
    version_id: int | None
    model: str | None
    version: str | None
    type: str | None
    files: tuple[ArchivedFile, ...]


class CivArchive:
    """The archive's API.

    Args:
        clock: shared with the downloads.
        base: URL of the API; see `civarchive_base`.
    """

    def __init__(self, clock: Clock, base: str) -> None:
        self.base = base
        self.policy = SitePolicy(Origin.of(base))
        self.client = HttpClient(self.policy, clock, RateLimiter(clock, 50.0 if self.policy.base.is_loopback else 1.0))

    def file(self, sha256: str) -> ArchivedFile:
        """Returns what the archive knows of the file with this hash.

        Raises:
            Gone: it does not know it.
            RemoteError: it does not answer, or with nonsense.
        """
        what = f"{NAME}, the file {sha256[:10]}"
        answer = self._get(f"sha256/{sha256}", what)
        found = _file_with(sha256, _version(answer, asked=sha256).files)
        if found is not None and found.mirrors:
            return found
        model, version = _numbers(answer)
        if model is not None and version is not None:  # it may name the version alone, whose own record has the mirrors
            found = _file_with(sha256, self.version(model, version).files) or found
        if found is None:
            raise Gone(f"{what}: it has none")
        return found

    def version(self, model: int, version: int | None = None) -> ArchivedVersion:
        """Returns a version of a model of Civitai; without a number, the one that the archive shows first.

        Raises:
            Gone: the archive does not know it.
            RemoteError: it does not answer, or with nonsense.
        """
        what = f"{NAME}, model {model}" + ("" if version is None else f" version {version}")
        path = f"models/{model}" + ("" if version is None else f"?modelVersionId={version}")
        found = _version(self._get(path, what))
        if found.model_id not in (None, model) or version not in (None, found.version_id):
            raise NetworkFailed(f"{what}: it answered with model {found.model_id}, version {found.version_id}")
        if not found.files:
            raise Gone(f"{what}: it has no file with a sha256")
        return found

    def _get(self, path: str, what: str) -> Mapping[str, Any]:
        status, content = self.client.json(f"{self.base}/{path}", what=what, attempts=_ATTEMPTS, obeyed_s=_OBEYED_S)
        if status == 200 and isinstance(content, Mapping):
            return content
        raise _error(status, what)


def civarchive_base() -> str | None:
    """Returns the URL of CivArchive's API: ``HNETKIT_CIVARCHIVE_URL``, or the archive's own; None for ``off``.

    Raises:
        UsageError: the variable holds no URL that may be requested.
    """
    base = os.environ.get("HNETKIT_CIVARCHIVE_URL", "").strip().rstrip("/") or CIVARCHIVE_API
    if base.lower() == OFF:
        return None
    try:
        require_no_secret(base)
        SitePolicy(Origin.of(base)).check(base)
    except NetworkFailed as error:
        raise UsageError(f"HNETKIT_CIVARCHIVE_URL: {error}", hint=f"for example {CIVARCHIVE_API}, or off") from error
    return base if "/" in base.partition("://")[2] else f"{base}/api"


def _error(status: int, what: str) -> RemoteError:
    if status == 200:
        return NetworkFailed(f"{what}: the answer makes no sense")
    if status in (404, 410):
        return Gone(f"{what}: it has none")
    if status == 429:
        return RateLimited(f"{what}: it asks for a pause")
    return NetworkFailed(f"{what}: it answered {status}")


# --- its answers


def _version(answer: Mapping[str, Any], *, asked: str | None = None) -> ArchivedVersion:
    """Returns the version in an answer, which may lack parts, hold them at two places, or be wrapped in ``data``.

    Args:
        answer: of the archive.
        asked: the sha256 that was asked for; a file that states none has it.
    """
    data = _object(answer.get("data")) or answer
    model = _object(data.get("model")) or data
    version = _object(data.get("version")) or _object(model.get("version"))
    files = next((found for part in (version, model, data) if (found := _list(part.get("files")))), [])
    model_id, version_id = _numbers(answer)
    return ArchivedVersion(
        model_id,
        version_id,
        _text(model.get("name")),
        _text(version.get("name")),
        _text(model.get("type")),
        tuple(_files(files[:MOST_FILES], asked)),
    )


def _numbers(answer: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Returns the numbers of model and version that an answer is about, also one that holds files alone."""
    data = _object(answer.get("data")) or answer
    model = _object(data.get("model")) or data
    version = _object(data.get("version")) or _object(model.get("version"))
    if version:
        return parse_id(version.get("modelId")) or parse_id(model.get("id")), parse_id(version.get("id"))
    for file in map(_object, _list(data.get("files"))[:MOST_FILES]):
        pair = tuple(parse_id(file.get(a)) or parse_id(file.get(b)) for a, b in _FILE_NUMBERS)
        if None not in pair:
            return pair[0], pair[1]
    return parse_id(model.get("id")), None


_FILE_NUMBERS = (("modelId", "model_id"), ("modelVersionId", "model_version_id"))


def _files(files: list[Any], asked: str | None) -> Iterator[ArchivedFile]:
    for data in map(_object, files):
        stated = data.get("sha256") or _object(data.get("hashes")).get("SHA256")
        sha256 = asked if stated is None else str(stated).lower()
        if sha256 is None or not _SHA256.fullmatch(sha256):
            continue
        kib = data.get("sizeKB")
        is_size = isinstance(kib, int | float) and not isinstance(kib, bool) and kib >= 1  # less is a placeholder
        size = parse_int(kib * 1024) if isinstance(kib, int | float) and is_size else None
        mirrors = list(_mirrors(data))
        named = next((name for name in (data.get("name"), *map(_name_of, _list(data.get("mirrors")))) if name), None)
        yield ArchivedFile(sha256, _text(named), size, tuple(sorted(mirrors, key=_least_likely)))


def _mirrors(file: Mapping[str, Any]) -> Iterator[ArchivedMirror]:
    """Yields each address of a file once; one of its own that no mirror repeats is one too."""
    seen: set[str] = set()
    own = {"url": file.get("downloadUrl")}
    for data in map(_object, [*_list(file.get("mirrors"))[:MOST_MIRRORS], own]):
        url = data.get("url")
        if not isinstance(url, str) or len(url) > _MOST_URL or url in seen or not _is_address(url):
            continue
        seen.add(url)
        is_closed = data.get("is_gated") is True or data.get("is_paid") is True
        yield ArchivedMirror(url, bool(data.get("deletedAt")), is_closed)


def _least_likely(mirror: ArchivedMirror) -> tuple[bool, bool]:
    return mirror.is_deleted, mirror.is_closed


def _is_address(url: str) -> bool:
    try:
        Origin.of(url)
    except NetworkFailed:
        return False
    return "@" not in re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]


def _file_with(sha256: str, files: tuple[ArchivedFile, ...]) -> ArchivedFile | None:
    """Returns the file with this hash, with the mirrors of all records of it."""
    same = [file for file in files if file.sha256 == sha256]
    if not same:
        return None
    mirrors = {mirror.url: mirror for file in reversed(same) for mirror in file.mirrors}
    known = next((file for file in same if file.name is not None), same[0])
    size = next((file.size_bytes for file in same if file.size_bytes is not None), None)
    likely = sorted(mirrors.values(), key=_least_likely)[:MOST_MIRRORS]
    return ArchivedFile(sha256, known.name, size, tuple(likely))


def _name_of(mirror: Any) -> Any:
    return _object(mirror).get("filename")


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    """Returns a text that can be stored: JSON may hold lone surrogates, SQLite may not."""
    if not isinstance(value, str):
        return None
    return text_of(value[:_MOST_NAME]).strip() or None
