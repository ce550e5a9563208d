"""Civitai's API: what may be asked, what its answers mean, and what its refusals mean."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    failure_of,
)
from hnetkit.limits import Budget
from hnetkit.sources.origins import CIVITAI_HOSTS, Origin, Trust, civitai_base, civitai_token
from hnetkit.sources.pace import Clock, Pace, Stopped
from hnetkit.sources.pages import MOST_KEPT, MOST_LISTED, BadRecord, parts_left_out, read_page
from hnetkit.sources.retry import ATTEMPTS
from hnetkit.sources.shapes import Json, Model, Version, id_of, model_of, version_of
from hnetkit.sources.web import TooSlow, Web, read_json

TYPE = "Hypernetwork"
PAGE = 100
MOST_HASHES = 10_000
MOST_BARREN = 100  # pages in a row without a model that was not listed before: the list goes round
MOST_GONE = 100
"""Models in a row that the site neither lists nor has: somebody may give away a list of numbers of nothing."""
MOST_BROKEN = 50  # requests about hashes that may fail: each halves what is asked about
_SORTS = ("Newest", "Oldest")
_SIZES = (PAGE, 10, 1)  # models to a page: where a page fails, smaller ones come as far as they can
_FEW = 2  # attempts for these
_TRIED = 2  # models that are asked about where a list of them fails: if none of these comes, none will
_LONGEST_CURSOR = 1000  # signs
_TOKEN_HINT = "export CIVITAI_TOKEN=... (made under Account settings, API keys)"

Failed = Callable[[BadRecord], None]
"""Told of a record that cannot be used."""


def halts(error: Exception) -> bool:
    """Whether the next question would meet the same.

    A login, and a law of a country, may be about one model: what is so for all of a site, its list says.
    """
    return isinstance(error, RateLimited | Stopped)


def ignored(record: BadRecord) -> None:
    """Says nothing of it."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which models are meant; all of the type where nothing is said.

    Attributes:
        query: words to search for.
        username, tag: exactly one creator, one tag.
        base_models: any of the site's names (``"SD 1.5"``).
        ids: exactly these models.
        favorites: those that the token's owner marked.
        nsfw: also what the site keeps from people who are not logged in.
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
        """Returns the filters that `as_dict` gave."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**{key: value for key, value in values.items() if key in known})

    def as_dict(self) -> dict[str, Any]:
        """Returns what differs from everything, for storing and showing."""
        return {key: value for key, value in asdict(self).items() if value}

    @property
    def is_everything(self) -> bool:
        """Whether no model of the type is left out, but what the site keeps from people who are not logged in."""
        return not self.as_dict().keys() - {"nsfw"}

    def parameters(self, sort: str | None = "Newest", size: int = PAGE) -> list[tuple[str, str]]:
        """Returns the query of a listing; flags only where they are true: their mere presence means something.

        Args:
            sort: ``"Newest"`` or ``"Oldest"`` first; a search has an order of its own.
            size: models to a page.
        """
        pairs = [("types", TYPE), ("limit", str(size)), ("nsfw", "true" if self.nsfw else "false")]
        pairs += [("query", self.query)] if self.query else [("sort", str(sort)), ("period", "AllTime")]
        pairs += [("username", self.username)] if self.username else []
        pairs += [("tag", self.tag)] if self.tag else []
        pairs += [("baseModels", name) for name in self.base_models]
        pairs += [("favorites", "true")] if self.favorites else []
        return pairs

    def wants(self, model: Model) -> bool:
        """Whether a listed model is meant: the site drops filters that it does not understand."""
        if model.type is not None and model.type != TYPE:
            return False
        if self.tag and model.tags is not None and self.tag.lower() not in {tag.lower() for tag in model.tags}:
            return False
        bases = {version.base_model for version in model.versions}
        return not self.base_models or not bases or bool(bases & set(self.base_models))


class Civitai:
    """The site's API.

    Args:
        clock: shared with the downloads.
        base: address of the API; None takes ``HNETKIT_CIVITAI_URL`` or the site's own.
        token: None takes ``CIVITAI_TOKEN`` or ``CIVITAI_API_KEY``.
    """

    def __init__(self, clock: Clock, *, base: str | None = None, token: str | None = None) -> None:
        self.base = base or civitai_base()
        trust = Trust(Origin.of(self.base), token or civitai_token(), CIVITAI_HOSTS)
        self.web = Web(trust, clock, Pace(clock, 50.0 if trust.base.is_loopback else 2.0))

    def pages(self, filters: Filters, *, failed: Failed = ignored) -> Iterator[list[Model]]:
        """Yields the meant models page by page, each model once; a page may be empty and not be the last.

        Args:
            filters: which are meant.
            failed: told of each record that cannot be used; the others are listed all the same.

        Raises:
            RemoteError: see `_content`.
        """
        if filters.ids:
            yield from self._by_ids(filters, failed)
            return
        seen: dict[int, int] = {}
        broken: NetworkFailed | None = None
        for sort in (None,) if filters.query else _SORTS:  # what one end does not give may come from the other
            known = len(seen)
            try:
                yield from self._from_one_end(filters, sort, seen, failed, ATTEMPTS if broken is None else _FEW)
            except NetworkFailed as error:
                broken = broken or error
                if isinstance(error, TooSlow):  # so may each further one be
                    break
                continue
            if broken is None or len(seen) > known:
                return
        assert broken is not None
        if not seen:
            raise broken
        failed(BadRecord(None, f"the list breaks off after {len(seen)} models: {broken}", is_whole=False))

    def _from_one_end(
        self, filters: Filters, sort: str | None, seen: dict[int, int], failed: Failed, attempts: int
    ) -> Iterator[list[Model]]:
        """Yields pages from the newest on, or from the oldest on as far as they were not seen before.

        Raises:
            NetworkFailed: it goes on, and what comes next cannot be had, not even by itself.
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
            if cursor is not None:  # it goes back as it came, also where it is no text
                query.append(("cursor", cursor.encode("utf-8", "surrogatepass")))
            try:
                page = self._get("models", query, what=what, read=read, attempts=_FEW if size else attempts)
                items = _items(page)
            except TooSlow:
                raise
            except NetworkFailed as error:  # it may stumble over one record of the page, or have one that is too large
                first = first or error
                size, good = size + 1, 0
                if size == len(_SIZES):
                    raise first from error
                continue
            except UnsafeFile:
                failed(BadRecord(None, f"the list is too large; left out what comes after {len(seen)} models"))
                return
            first, good = None, good + 1
            if size and good == 10:  # it passed
                size, good = size - 1, 0
            known = len(seen)
            listed = list(_once(_models(items, failed), seen, failed))
            barren = 0 if listed else barren + 1
            yield [model for model in listed if filters.wants(model)]
            cursor = _cursor(page)
            if cursor is None or cursor in cursors or barren == MOST_BARREN or (is_second and known == len(seen)):
                return
            if len(seen) >= MOST_LISTED:
                failed(BadRecord(None, f"the list goes on after {len(seen)} models; left out what comes then"))
                return
            cursors.add(cursor)

    def _by_ids(self, filters: Filters, failed: Failed) -> Iterator[list[Model]]:
        gone = 0  # in a row
        left_out = 0
        for start in range(0, len(filters.ids), PAGE):
            part = filters.ids[start : start + PAGE]
            query = [("ids", ",".join(map(str, part))), ("limit", str(PAGE)), ("nsfw", "true")]
            bad: set[int | None] = set()

            def tell(record: BadRecord, bad: set[int | None] = bad) -> None:
                bad.add(record.id)
                failed(record)

            read = functools.partial(read_page, kept=Budget(made=MOST_KEPT))
            broken: HnetkitError | None = None
            try:
                items = _items(self._get("models", query, what="models by id", read=read))
            except (NetworkFailed, UnsafeFile) as error:  # it may stumble over one: each is asked about by itself
                items, broken = [], error
            meant = (model for model in _models(items, tell) if model.id in part)
            found = list(_once(meant, {}, failed))
            for asked, id in enumerate(sorted(set(part) - {model.id for model in found} - bad)):
                if broken is not None and asked == _TRIED and not found:
                    raise broken
                if gone >= MOST_GONE:
                    left_out += 1
                    continue
                there = [model for model in [self._model_if_there(id, failed)] if model is not None]
                gone = 0 if there else gone + 1
                found += there
            yield found
        if left_out:
            reason = f"{MOST_GONE} models in a row are not there; not asked about further ones that no list has"
            failed(BadRecord(None, f"{reason} ({left_out:,})", left_out))

    def _model_if_there(self, id: int, failed: Failed) -> Model | None:
        try:
            model = self.model(id)
        except Gone:
            return None
        except Exception as error:
            if halts(error):
                raise
            failed(BadRecord(id, str(failure_of(error, f"model {id}"))))
            return None
        for bad in parts_left_out(model):
            failed(bad)
        return model

    def model(self, id: int) -> Model:
        """Returns one model, also an archived one.

        Raises:
            Gone: there is none (it may come back: one answer alone is no proof of deletion).
        """
        model = model_of(self._get(f"models/{id}", what=f"model {id}"))
        if model is None:
            raise NetworkFailed(f"model {id}: an answer that is no model")
        if model.id != id:
            raise NetworkFailed(f"model {id}: the site answered with model {model.id}")
        return model

    def version(self, id: int) -> Version:
        """Returns one version with its model's number."""
        version = version_of(self._get(f"model-versions/{id}", what=f"version {id}"))
        if version is None:
            raise NetworkFailed(f"version {id}: an answer that is no version")
        if version.id != id:
            raise NetworkFailed(f"version {id}: the site answered with version {version.id}")
        return version

    def version_by_hash(self, digits: str) -> Version:
        """Returns the oldest version with a file of this hash, of any kind that the site knows."""
        what = f"a file with the hash {digits}"
        version = version_of(self._get(f"model-versions/by-hash/{quote(digits, safe='')}", what=what))
        if version is None:
            raise Gone(f"{what}: the site has none")
        hashes = [hash for file in version.files for hash in file.hashes.values()]
        if hashes and not any(hash.startswith(digits) for hash in hashes):
            raise NetworkFailed(f"{what}: the site answered with version {version.id}, which has no such file")
        return version

    def ids_by_hash(
        self, sha256s: Sequence[str], *, failed: Failed = ignored
    ) -> dict[str, tuple[int, int] | tuple[None, None]]:
        """Returns sha256 -> (model, version) of those that the site knows, or (None, None); 10,000 to a request.

        Args:
            failed: told of the hashes over which the site stumbles; nothing is returned of them.

        Raises:
            RemoteError: it answers about none.
        """
        found: dict[str, tuple[int, int] | tuple[None, None]] = {}
        waiting = [sha256s[start : start + MOST_HASHES] for start in range(0, len(sha256s), MOST_HASHES)]
        broken: list[NetworkFailed] = []
        unasked = 0
        while waiting:
            part = waiting.pop(0)
            try:
                found |= self._ids_of(part, attempts=_FEW if broken else ATTEMPTS)
            except NetworkFailed as error:  # it may be one hash of the part: the halves are asked about
                broken.append(error)
                if len(part) == 1:
                    failed(BadRecord(None, f"the hash {part[0]}: {error}"))
                elif len(broken) == MOST_BROKEN:
                    unasked = len(part) + sum(map(len, waiting))
                    break
                else:
                    half = len(part) // 2
                    waiting[:0] = [part[:half], part[half:]]
        if broken and not found:
            raise broken[0]
        if unasked:
            failed(BadRecord(None, f"not asked about {unasked:,} hashes: {broken[-1]}", unasked))
        return found

    def _ids_of(self, sha256s: Sequence[str], attempts: int) -> dict[str, tuple[int, int] | tuple[None, None]]:
        found: dict[str, tuple[int, int] | tuple[None, None]] = dict.fromkeys(sha256s, (None, None))
        body = [sha256.upper() for sha256 in sha256s]
        answer = self._content("model-versions/by-hash/ids", "files by their hashes", body=body, attempts=attempts)
        for row in answer if isinstance(answer, list) else []:
            row = row if isinstance(row, dict) else {}
            model, version, sha256 = id_of(row.get("modelId")), id_of(row.get("modelVersionId")), row.get("hash")
            if model is not None and version is not None and isinstance(sha256, str) and sha256.lower() in found:
                found[sha256.lower()] = (model, version)
        return found

    def me(self) -> str:
        """Returns the name of the token's owner; the only way to learn that a token is bad.

        Raises:
            AuthRequired: the site does not know the token.
        """
        answer = self._get("me", what="the account of the token")
        name = answer.get("username") if isinstance(answer, dict) else None
        if not name or not isinstance(name, str):
            raise NetworkFailed("the account of the token: an answer without a name")
        return name[:100]

    def download_url(self, version_id: int, file_id: int) -> str:
        """Returns the address of exactly one file."""
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
        """Returns the content of a good answer.

        Raises:
            RemoteError: the kind that the answer means.
        """
        status, content = self.web.json(f"{self.base}/{path}", what=what, body=body, read=read, attempts=attempts)
        if status == 200 and not (
            isinstance(content, dict) and set(content) <= {"error", "message", "code"} and content
        ):
            return content
        raise refusal(status, content, what)


def refusal(status: int, content: Any, what: str) -> RemoteError:
    """Returns the error that a site's refusal means.

    Args:
        status: of HTTP.
        content: the JSON that came with it.
        what: that was asked for.
    """
    said = _said(content)
    lower = said.lower()
    if status == 451:
        return RegionBlocked(f"{what}: the site serves nothing to this region", hint="ask from another region")
    if status == 410 or "archived" in lower:
        return Archived(f"{what}: archived by its owner; the site keeps it and gives no file")
    if status == 404:
        return Gone(f"{what}: the site has none")
    if "early access" in lower:
        until = content.get("deadline") if isinstance(content, dict) else None
        when = f" until {str(until)[:10]}" if until else ""
        return EarlyAccess(f"{what}: early access{when}: only for those who paid", hint="run the same command after it")
    if "disabled downloads" in lower:
        return NoAccess(f"{what}: its owner allows no download")
    if status == 403:
        return NoAccess(f"{what}: not for this account: {said[:200] or 'forbidden'}")
    if status == 401:
        return AuthRequired(f"{what}: the site wants to know who asks", hint=_TOKEN_HINT)
    return NetworkFailed(f"{what}: the site answered {status}: {said[:200]}")


def _said(content: Any) -> str:
    if not isinstance(content, dict):
        return ""
    parts = [content.get(key) for key in ("message", "error", "code")]
    flat = [part.get("message") if isinstance(part, dict) else part for part in parts]
    return next((part[:1000] for part in flat if isinstance(part, str) and part), "")


def _models(items: Iterable[Any], failed: Failed) -> Iterator[Model]:
    """Yields what can be used of a page; of records without a number it tells once, since there may be millions."""
    nameless = 0
    for item in items:
        try:
            model = None if isinstance(item, BadRecord) else model_of(item)
        except Exception as error:
            id = id_of(item.get("id")) if isinstance(item, dict) else None
            item, model = BadRecord(id, f"the site's record of it makes no sense: {type(error).__name__}"), None
        if model is not None:
            yield model
        elif isinstance(item, BadRecord):
            failed(item)
        else:
            nameless += 1
    if nameless:
        failed(BadRecord(None, f"left out: models without a number ({nameless:,})", nameless))


def _once(models: Iterable[Model], seen: dict[int, int], failed: Failed) -> Iterator[Model]:
    """Yields each model the first time that it is listed, and tells what cannot be used of it.

    A list that grows while it is read holds a model on two pages; so it is told only where the files differ.

    Args:
        seen: number of a model -> what stands for its files; grows.
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
        raise NetworkFailed("the list of models: an answer without a list", hint="run the same command again later")
    return items


def _cursor(page: Any) -> str | None:
    metadata = page.get("metadata") if isinstance(page, dict) else None
    cursor = metadata.get("nextCursor") if isinstance(metadata, dict) else None
    if isinstance(cursor, bool) or not isinstance(cursor, str | int | float):
        return None
    return str(cursor)[:_LONGEST_CURSOR] or None if not isinstance(cursor, int) or abs(cursor) < 2**64 else None


def is_past(time: str | None) -> bool:
    """Whether an ISO 8601 time lies behind us; None and nonsense do."""
    try:
        at = datetime.fromisoformat(str(time).replace("Z", "+00:00"))
        return at.replace(tzinfo=at.tzinfo or timezone.utc) <= datetime.now(timezone.utc)
    except (ValueError, OverflowError):
        return True
