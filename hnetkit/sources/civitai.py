"""Client of Civitai's API: filters, listings that survive broken pages, look-ups by hash, errors by their meaning."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlencode

from hnetkit.errors import (
    Archived,
    AuthRequired,
    EarlyAccess,
    Gone,
    HnetkitError,
    NetworkFailed,
    NoAccess,
    RateLimited,
    RegionBlocked,
    RemoteError,
    UnsafeFile,
    UsageError,
    failure_of,
)
from hnetkit.limits import Budget
from hnetkit.ratings import SAFE
from hnetkit.sources.civitai_models import (
    BadRecord,
    CivitaiModel,
    CivitaiVersion,
    Json,
    parse_id,
    parse_model,
    parse_version,
    parts_left_out,
    read_page,
)
from hnetkit.sources.http import ATTEMPTS, Clock, HttpClient, RateLimiter, Stopped, TooSlow, read_json
from hnetkit.sources.trust import Origin, SitePolicy, require_no_secret
from hnetkit.tokens import token_of

SOURCE = "civitai"
CIVITAI_HOSTS = ("civitai.com", "civitai.red", "civitai.green")
CIVITAI_API = "https://civitai.com/api/v1"
TYPE = "Hypernetwork"
PAGE = 100
MOST_LISTED = 20_000
"""Models of one listing; the site has some hundreds of the type."""
MOST_KEPT = 2 << 30
"""Bytes that the records of one listing may take in memory."""
MOST_HASHES = 10_000
MOST_BARREN = 100  # pages in a row without a new model, after which the listing counts as circular
MOST_GONE = 100
"""Missing models in a row after which a list of numbers counts as made up."""
MOST_BROKEN = 50  # failed look-ups of hashes; each halves the batch
_SORTS = ("Newest", "Oldest")
_SIZES = (PAGE, 10, 1)  # models per page: where a page fails, smaller ones are tried
_FEW = 2  # attempts for smaller pages
_TRIED = 2  # single models requested where their list fails, before all count as failed
_LONGEST_CURSOR = 1000  # characters
_TOKEN_HINT = "export CIVITAI_TOKEN=... (made under Account settings, API keys)"

Failed = Callable[[BadRecord], None]
"""Called with each record that cannot be used."""


def halts_everything(error: Exception) -> bool:
    """Whether every further request would fail alike; a missing login or a country's law may concern one model."""
    return isinstance(error, RateLimited | Stopped)


def ignore_record(record: BadRecord) -> None:
    """Does nothing."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which models are wanted; by default all hypernetworks.

    Attributes:
        query: words to search for.
        username, tag: exactly one creator, one tag.
        base_models: any of these, by the site's names (``"SD 1.5"``).
        ids: exactly these models.
        favorites: those that the token's owner marked.
        nsfw: also what the site shows to logged-in users only.
    """

    query: str | None = None
    username: str | None = None
    tag: str | None = None
    base_models: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    favorites: bool = False
    nsfw: bool = False

    @classmethod
    def of(cls, stored: Json) -> Filters:
        """Returns the filters that `as_dict` stored."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**{key: value for key, value in values.items() if key in known})

    def as_dict(self) -> dict[str, Any]:
        """Returns the filters that are set, for storing and showing."""
        return {key: value for key, value in asdict(self).items() if value}

    @property
    def is_everything(self) -> bool:
        """Whether all models are wanted, apart from those that `nsfw` adds."""
        return not self.as_dict().keys() - {"nsfw"}

    def parameters(self, sort: str | None = "Newest", size: int = PAGE) -> list[tuple[str, str]]:
        """Returns the query of a listing; flags only where they are true, since the site takes their presence for true.

        Args:
            sort: ``"Newest"`` or ``"Oldest"`` first; a search has its own order.
            size: models per page.
        """
        pairs = [("types", TYPE), ("limit", str(size)), ("nsfw", "true" if self.nsfw else "false")]
        pairs += [("query", self.query)] if self.query else [("sort", str(sort)), ("period", "AllTime")]
        pairs += [("username", self.username)] if self.username else []
        pairs += [("tag", self.tag)] if self.tag else []
        pairs += [("baseModels", name) for name in self.base_models]
        pairs += [("favorites", "true")] if self.favorites else []
        return pairs

    def wants(self, model: CivitaiModel) -> bool:
        """Whether a listed model matches: the site ignores filters that it does not understand."""
        if model.type is not None and model.type.lower() != TYPE.lower():
            return False
        if not self.nsfw and is_nsfw(model.raw, model.nsfw_level):
            return False
        if self.tag and model.tags is not None and self.tag.lower() not in {tag.lower() for tag in model.tags}:
            return False
        if self.username and model.creator is not None and _slug(model.creator) != _slug(self.username):
            return False
        bases = {version.base_model for version in model.versions}
        return not self.base_models or not bases or bool(bases & set(self.base_models))


def _slug(username: str) -> str:
    """Returns a name as the site compares names: in lower case, without what no address holds."""
    return re.sub(r"[^a-z0-9_]", "", username.strip().replace(" ", "_").lower()) or username.strip().casefold()


def is_nsfw(raw: Any, level: int | None) -> bool:
    """Whether a listing without `Filters.nsfw` leaves a model out: it is marked so, or has no rating up to PG-13."""
    is_marked = isinstance(raw, Mapping) and raw.get("nsfw") is True
    return is_marked or (level is not None and level != 0 and level & SAFE == 0)


class _Circular(NetworkFailed):
    """A listing leads back to pages that were there before; whether anything follows, only the other end can tell."""


class Civitai:
    """The site's API.

    Args:
        clock: shared with the downloads.
        base: URL of the API; None takes ``HNETKIT_CIVITAI_URL`` or the site's own.
        token: None takes ``CIVITAI_TOKEN`` or ``CIVITAI_API_KEY``.
    """

    def __init__(self, clock: Clock, *, base: str | None = None, token: str | None = None) -> None:
        self.base = base or civitai_base()
        trust = SitePolicy(Origin.of(self.base), token or civitai_token(), CIVITAI_HOSTS)
        self.client = HttpClient(trust, clock, RateLimiter(clock, 50.0 if trust.base.is_loopback else 2.0))

    def pages(self, filters: Filters, *, failed: Failed = ignore_record) -> Iterator[list[CivitaiModel]]:
        """Yields matching models page by page, each model once; a page before the last may be empty.

        Args:
            filters: which models.
            failed: called with each record that cannot be used; the others are still listed.

        Raises:
            RemoteError: the site does not list them.
        """
        if filters.ids:
            yield from self._by_ids(filters, failed)
            return
        seen: dict[int, int] = {}
        broken: NetworkFailed | None = None
        for sort in (None,) if filters.query else _SORTS:  # what breaks from one end may be listed from the other
            known = len(seen)
            try:
                yield from self._from_one_end(filters, sort, seen, failed, ATTEMPTS if broken is None else _FEW)
            except NetworkFailed as error:
                broken = broken or error
                if isinstance(error, TooSlow):  # further pages may be as slow
                    break
                continue
            if broken is None or len(seen) > known or isinstance(broken, _Circular):
                return
        assert broken is not None
        if not seen:
            raise broken
        failed(
            BadRecord(
                None, f"the listing breaks off after {len(seen)} models: {broken}", is_whole=False, cuts_list=True
            )
        )

    def _from_one_end(
        self, filters: Filters, sort: str | None, seen: dict[int, int], failed: Failed, attempts: int
    ) -> Iterator[list[CivitaiModel]]:
        """Yields pages in one order; in the second order only until known models appear.

        Raises:
            NetworkFailed: the next model cannot be listed, not even on a page of its own.
        """
        is_second, cursors = bool(seen), set[str]()
        cursor: str | None = None
        barren, size, good = 0, 0, 0
        first: NetworkFailed | None = None
        kept = Budget(made=MOST_KEPT)
        what = f"models of {filters.username}" if filters.username else "models"
        read = functools.partial(read_page, kept=kept)
        while True:
            query: list[tuple[str, str | bytes]] = [*filters.parameters(sort, _SIZES[size])]
            if cursor is not None:  # sent back unchanged, even if it is no valid text
                query.append(("cursor", cursor.encode("utf-8", "surrogatepass")))
            try:
                page = self._get("models", query, what=what, read=read, attempts=_FEW if size else attempts)
                items = _items(page)
            except TooSlow:
                raise
            except NetworkFailed as error:  # one record of the page may be broken, or too large
                first = first or error
                size, good = size + 1, 0
                if size == len(_SIZES):
                    raise first from error
                continue
            except UnsafeFile:
                reason = f"the listing is too large; left out what follows {len(seen)} models"
                failed(BadRecord(None, reason, cuts_list=True))
                return
            first, good = None, good + 1
            if size and good == 10:  # the broken record is behind us
                size, good = size - 1, 0
            known = len(seen)
            models = list(_models(items, failed))
            if is_second and not cursors and known > 1 and models and models[0].id == next(iter(seen)):
                raise NetworkFailed(f"{what}: the site does not list them from the other end")
            listed = list(_each_model_once(models, seen, failed))
            barren = 0 if listed else barren + 1
            yield [model for model in listed if filters.wants(model)]
            cursor = _cursor(page)
            if cursor is None or (is_second and known == len(seen)):
                return
            if cursor in cursors or barren == MOST_BARREN:
                raise _Circular(f"{what}: the list repeats itself")
            if len(seen) >= MOST_LISTED:
                reason = f"the listing goes on after {len(seen)} models; left out what follows"
                failed(BadRecord(None, reason, cuts_list=True))
                return
            cursors.add(cursor)

    def _by_ids(self, filters: Filters, failed: Failed) -> Iterator[list[CivitaiModel]]:
        gone = 0  # in a row
        unasked: list[int] = []
        for start in range(0, len(filters.ids), PAGE):
            part = filters.ids[start : start + PAGE]
            query = [("ids", ",".join(map(str, part))), ("limit", str(PAGE)), ("nsfw", "true")]
            bad: set[int | None] = set()

            def note_bad(record: BadRecord, bad: set[int | None] = bad) -> None:
                bad.add(record.id)
                failed(record)

            read = functools.partial(read_page, kept=Budget(made=MOST_KEPT))
            broken: HnetkitError | None = None
            try:
                items = _items(self._get("models", query, what="models by id", read=read))
            except (NetworkFailed, UnsafeFile) as error:  # one may be broken: each is requested by itself
                items, broken = [], error
            wanted = (model for model in _models(items, note_bad) if model.id in part)
            found = list(_each_model_once(wanted, {}, failed))
            for asked, id in enumerate(sorted(set(part) - {model.id for model in found} - bad)):
                if broken is not None and asked == _TRIED and not found:
                    raise broken
                if gone >= MOST_GONE:
                    unasked.append(id)
                    continue
                there = [model for model in [self._model_if_there(id, failed)] if model is not None]
                gone = 0 if there else gone + 1
                found += there
            yield found
        if unasked:
            few = f"{', '.join(map(str, unasked[:10]))}{', ...' if len(unasked) > 10 else ''}"
            reason = f"{MOST_GONE} models in a row do not exist; not asked about further unlisted ones"
            failed(BadRecord(None, f"{reason} ({len(unasked):,}): {few}", len(unasked), about=frozenset(unasked)))

    def _model_if_there(self, id: int, failed: Failed) -> CivitaiModel | None:
        try:
            model = self.model(id)
        except Gone:
            return None
        except Exception as error:
            if halts_everything(error):
                raise
            failed(BadRecord(id, str(failure_of(error, f"model {id}"))))
            return None
        for bad in parts_left_out(model):
            failed(bad)
        return model

    def model(self, id: int) -> CivitaiModel:
        """Returns one model, also an archived one.

        Raises:
            Gone: there is none. One such answer is no proof that it was deleted.
        """
        model = parse_model(self._get(f"models/{id}", what=f"model {id}"))
        if model is None:
            raise NetworkFailed(f"model {id}: the answer is no model")
        if model.id != id:
            raise NetworkFailed(f"model {id}: the site answered with model {model.id}")
        return model

    def version(self, id: int) -> CivitaiVersion:
        """Returns one version, with its model's number."""
        version = parse_version(self._get(f"model-versions/{id}", what=f"version {id}"))
        if version is None:
            raise NetworkFailed(f"version {id}: the answer is no version")
        if version.id != id:
            raise NetworkFailed(f"version {id}: the site answered with version {version.id}")
        return version

    def version_by_hash(self, digits: str) -> CivitaiVersion:
        """Returns the oldest version with a file of this hash, of any kind of hash that the site knows."""
        what = f"a file with the hash {digits}"
        version = parse_version(self._get(f"model-versions/by-hash/{quote(digits, safe='')}", what=what))
        if version is None:
            raise Gone(f"{what}: the site has none")
        hashes = [hash for file in version.files for hash in file.hashes.values()]
        if hashes and not any(hash.startswith(digits) for hash in hashes):
            raise NetworkFailed(f"{what}: the site answered with version {version.id}, which has no such file")
        return version

    def ids_by_hash(
        self, sha256s: Sequence[str], *, failed: Failed = ignore_record
    ) -> Iterator[dict[str, tuple[int, int] | tuple[None, None]]]:
        """Yields each answer: sha256 -> (model, version), or (None, None) for those that the site does not know.

        Args:
            sha256s: any number; each request asks about `MOST_HASHES` of them.
            failed: called with the hashes that make the site fail; they are missing from the answers.

        Raises:
            RemoteError: the site answers for none.
        """
        waiting = [sha256s[start : start + MOST_HASHES] for start in range(0, len(sha256s), MOST_HASHES)]
        broken: list[NetworkFailed] = []
        unasked, has_answered = 0, False
        while waiting:
            part = waiting.pop(0)
            try:
                found = self._ids_of(part, attempts=_FEW if broken else ATTEMPTS)
            except NetworkFailed as error:  # one hash of the part may be at fault: ask about its halves
                broken.append(error)
                if len(part) == 1:
                    failed(BadRecord(None, f"the hash {part[0]}: {error}"))
                elif len(broken) == MOST_BROKEN:
                    unasked = len(part) + sum(map(len, waiting))
                    break
                else:
                    half = len(part) // 2
                    waiting[:0] = [part[:half], part[half:]]
            else:
                has_answered = True
                yield found
        if broken and not has_answered:
            raise broken[0]
        if unasked:
            failed(BadRecord(None, f"not asked about {unasked:,} hashes: {broken[-1]}", unasked))

    def _ids_of(self, sha256s: Sequence[str], attempts: int) -> dict[str, tuple[int, int] | tuple[None, None]]:
        found: dict[str, tuple[int, int] | tuple[None, None]] = dict.fromkeys(sha256s, (None, None))
        body = [sha256.upper() for sha256 in sha256s]
        answer = self._content("model-versions/by-hash/ids", "files by their hashes", body=body, attempts=attempts)
        for row in answer if isinstance(answer, list) else []:
            row = row if isinstance(row, dict) else {}
            model, version, sha256 = parse_id(row.get("modelId")), parse_id(row.get("modelVersionId")), row.get("hash")
            if model is not None and version is not None and isinstance(sha256, str) and sha256.lower() in found:
                found[sha256.lower()] = (model, version)
        return found

    def me(self) -> str:
        """Returns the name of the token's owner; the only request that shows that a token is bad.

        Raises:
            AuthRequired: the site does not accept the token.
        """
        answer = self._get("me", what="the account of the token")
        name = answer.get("username") if isinstance(answer, dict) else None
        if not name or not isinstance(name, str):
            raise NetworkFailed("the account of the token: an answer without a name")
        return name[:100]

    def download_url(self, version_id: int, file_id: int) -> str:
        """Returns the URL of exactly one file."""
        return f"{self.base.removesuffix('/v1')}/download/models/{version_id}?fileId={file_id}"

    def _get(
        self,
        path: str,
        query: Iterable[tuple[str, str | bytes]] = (),
        *,
        what: str,
        read: Callable[[str], Any] = read_json,
        attempts: int = ATTEMPTS,
    ) -> Any:
        encoded = urlencode(list(query), safe=",", quote_via=quote)
        return self._content(f"{path}?{encoded}" if encoded else path, what, read=read, attempts=attempts)

    def _content(
        self,
        path: str,
        what: str,
        body: Any = None,
        read: Callable[[str], Any] = read_json,
        attempts: int = ATTEMPTS,
    ) -> Any:
        """Returns the content of a successful answer.

        Raises:
            RemoteError: see `civitai_error`.
        """
        status, content = self.client.json(f"{self.base}/{path}", what=what, body=body, read=read, attempts=attempts)
        if status == 200 and not (
            isinstance(content, dict) and set(content) <= {"error", "message", "code"} and content
        ):
            return content
        error = civitai_error(status, content, what)
        if type(error) is AuthRequired and self.client.policy.token is not None:
            raise AuthRequired(f"{what}: the site does not accept the token that is set", hint=_TOKEN_HINT)
        raise error


def civitai_base() -> str:
    """Returns the URL of Civitai's API: ``HNETKIT_CIVITAI_URL``, or the site's own.

    A bare origin stands for its ``/api/v1``.

    Raises:
        UsageError: the variable holds no URL.
    """
    base = os.environ.get("HNETKIT_CIVITAI_URL", "").strip().rstrip("/") or CIVITAI_API
    try:
        require_no_secret(base)
        Origin.of(base)
    except NetworkFailed as error:
        raise UsageError(f"HNETKIT_CIVITAI_URL: {error}", hint=f"for example {CIVITAI_API}") from error
    return base if "/" in base.partition("://")[2] else f"{base}/api/v1"


def civitai_token() -> str | None:
    """Returns the token of the environment: ``CIVITAI_TOKEN``, then ``CIVITAI_API_KEY``."""
    return next(filter(None, map(token_of, ("CIVITAI_TOKEN", "CIVITAI_API_KEY"))), None)


def civitai_error(status: int, content: Any, what: str) -> RemoteError:
    """Returns the error that an unsuccessful answer means.

    Args:
        status: HTTP status.
        content: JSON of the answer.
        what: was requested.
    """
    message = _message(content)
    lower = message.lower()
    if status == 451:
        return RegionBlocked(f"{what}: the site serves nothing to this region", hint="try from another region")
    if status == 410 or "archived" in lower:
        return Archived(f"{what}: archived by its owner; the site no longer serves its files")
    if status == 404:
        return Gone(f"{what}: the site has none")
    if "early access" in lower:
        until = content.get("deadline") if isinstance(content, dict) else None
        when = f" until {str(until)[:10]}" if until else ""
        return EarlyAccess(f"{what}: early access{when}: only for supporters", hint="try again after that date")
    if "disabled downloads" in lower:
        return NoAccess(f"{what}: the owner has disabled downloads")
    if status == 403:
        return NoAccess(f"{what}: not for this account: {message[:200] or 'forbidden'}")
    if status == 401:
        return AuthRequired(f"{what}: the site requires a token", hint=_TOKEN_HINT)
    return NetworkFailed(f"{what}: the site answered {status}: {message[:200]}")


def _message(content: Any) -> str:
    if not isinstance(content, dict):
        return ""
    parts = [content.get(key) for key in ("message", "error", "code")]
    flat = [part.get("message") if isinstance(part, dict) else part for part in parts]
    return next((part[:1000] for part in flat if isinstance(part, str) and part), "")


def _models(items: Iterable[Any], failed: Failed) -> Iterator[CivitaiModel]:
    """Yields the usable models of a page; records without a number are reported once, since there may be millions."""
    nameless = 0
    for item in items:
        try:
            model = None if isinstance(item, BadRecord) else parse_model(item)
        except Exception as error:
            id = parse_id(item.get("id")) if isinstance(item, dict) else None
            item, model = BadRecord(id, f"the site's record of it makes no sense: {type(error).__name__}"), None
        if model is not None:
            yield model
        elif isinstance(item, BadRecord):
            failed(item)
        else:
            nameless += 1
    if nameless:
        failed(BadRecord(None, f"left out: models without a number ({nameless:,})", nameless))


def _each_model_once(models: Iterable[CivitaiModel], seen: dict[int, int], failed: Failed) -> Iterator[CivitaiModel]:
    """Yields each model the first time that it is listed, and reports what cannot be used of it.

    A listing that grows while it is read may hold a model on two pages; this is reported only if the files differ.

    Args:
        models: as listed.
        seen: number of a model -> hash of its files; extended.
        failed: called with what cannot be used.
    """
    for model in models:
        files = hash(tuple((version.id, file.id, file.sha256) for version in model.versions for file in version.files))
        if model.id not in seen:
            seen[model.id] = files
            for bad in parts_left_out(model):
                failed(bad)
            yield model
        elif seen[model.id] != files:
            failed(BadRecord(model.id, "left out: listed once more, with other files", is_whole=False))


def _items(page: Any) -> list[Any]:
    items = page.get("items") if isinstance(page, dict) else None
    if not isinstance(items, list):
        raise NetworkFailed("the list of models: the answer has no list", hint="run the same command again later")
    return items


def _cursor(page: Any) -> str | None:
    metadata = page.get("metadata") if isinstance(page, dict) else None
    cursor = metadata.get("nextCursor") if isinstance(metadata, dict) else None
    if isinstance(cursor, bool) or not isinstance(cursor, str | int | float):
        return None
    return str(cursor)[:_LONGEST_CURSOR] or None if not isinstance(cursor, int) or abs(cursor) < 2**64 else None


def is_past(time: str | None) -> bool:
    """Whether an ISO 8601 time is in the past; True for None and for nonsense."""
    try:
        at = datetime.fromisoformat(str(time).replace("Z", "+00:00"))
        return at.replace(tzinfo=at.tzinfo or timezone.utc) <= datetime.now(timezone.utc)
    except (ValueError, OverflowError):
        return True
