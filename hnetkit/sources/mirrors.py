"""A second source: who else has the bytes of a file, by its sha256, where its own source does not give them.

Asked are other sites whose catalog lists these bytes, the mirrors that CivArchive knows, and those of the settings. All
but the first are strangers: no token goes to them, and only the sha256 decides whether a file is the right one.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hnetkit.errors import (
    Gone,
    HnetkitError,
    MissingExtra,
    NetworkFailed,
    NoAccess,
    RateLimited,
    RemoteError,
    UsageError,
    WrongBytes,
    failure_of,
)
from hnetkit.registry.catalogue import repo_of
from hnetkit.registry.columns import Row
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.civarchive import CIVARCHIVE_API, NAME, ArchivedFile, ArchivedVersion, CivArchive, civarchive_base
from hnetkit.sources.civarchive import SOURCE as ARCHIVE
from hnetkit.sources.civitai import SOURCE as CIVITAI
from hnetkit.sources.civitai import Civitai, civitai_error
from hnetkit.sources.download import Downloader, PartialFile, Progress, part_path
from hnetkit.sources.http import BandwidthLimit, Clock, HttpClient, RateLimiter
from hnetkit.sources.huggingface import SOURCE as HUB
from hnetkit.sources.huggingface import Hub, Listing, Repo, file_url, hub_error
from hnetkit.sources.plans import is_by_hash
from hnetkit.sources.references import Reference, parse_reference
from hnetkit.sources.trust import Origin, SitePolicy, redact, require_no_secret

SETTING = "setting"
MOST_ASKED = 8
"""Places of one kind that a file is asked for at: an archive may list any number. The user's own are all asked."""
MOST_SILENT = 3
"""Failures of CivArchive in a row, after which a run does not ask it again."""
MOST_SETTINGS = 10
_ATTEMPTS, _OBEYED_S = 2, 15.0  # there may be other places
_LATELY = timedelta(hours=1)  # a mirror that gave other bytes so lately is asked last
_HASH = "{sha256}"
_SETTING_HINT = f"use https://example.org/{_HASH} or hf:owner/repo, several with spaces between them"


# --- mirrors of the settings


@dataclass(frozen=True, slots=True)
class MirrorSetting:
    """A mirror that the user configured: an address with ``{sha256}`` in its path, or a repository of the hub."""

    text: str
    repo: Reference | None = None

    def url(self, sha256: str) -> str:
        """Returns the address of a file."""
        return self.text.replace(_HASH, sha256)


def parse_mirrors(text: str) -> tuple[MirrorSetting, ...]:
    """Returns the mirrors in a setting, which are separated by spaces.

    Raises:
        UsageError: one of them is none, or may not be asked.
    """
    found = tuple(map(_parse_mirror, dict.fromkeys(text.split())))
    if len(found) > MOST_SETTINGS:
        raise UsageError(f"mirrors: {len(found)} of them", hint=f"give {MOST_SETTINGS} at most")
    return found


def _parse_mirror(text: str) -> MirrorSetting:
    if text.startswith("hf:"):
        ref = parse_reference(text)
        if ref.pattern is not None:
            raise UsageError(f"mirrors: {text}: names files of a repository", hint="give the repository: hf:owner/repo")
        return MirrorSetting(text, ref)
    shown = redact(text)
    if "://" not in text:
        raise UsageError(f"mirrors: {shown[:100]}: no address and no repository", hint=_SETTING_HINT)
    try:
        require_no_secret(text)
        origin = Origin.of(text.replace(_HASH, "0" * 64))
        SitePolicy(origin).check(text.replace(_HASH, "0" * 64))
    except NetworkFailed as error:
        raise UsageError(f"mirrors: {error}", hint=error.command_hint or _SETTING_HINT) from error
    if _HASH not in text.partition("://")[2].partition("/")[2]:
        raise UsageError(f"mirrors: {shown[:100]}: lacks {_HASH} in its path", hint=_SETTING_HINT)
    return MirrorSetting(text)


# --- other places


def without_query(url: str) -> str:
    """Returns an address as it may be stored and shown."""
    return redact(url).removesuffix("?...")


@dataclass(frozen=True, slots=True)
class Mirror:
    """A place that may have a file.

    Attributes:
        source: ``"civitai"`` and ``"huggingface"`` by their own records; ``"civarchive"`` and ``"setting"``.
        url: complete; its query may hold a secret.
        shown: the place in words.
    """

    source: str
    url: str = field(repr=False)
    shown: str

    @property
    def address(self) -> str:
        """Without the query."""
        return without_query(self.url)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What is known of a file by its hash alone.

    Attributes:
        name: with its suffix; None where nobody states one.
        size_bytes: None where nobody states it.
        places: that may have it, as far as they are known without fetching.
        asked: who was asked and has it not, each with the reason.
    """

    name: str | None
    size_bytes: int | None
    places: tuple[Mirror, ...]
    asked: tuple[str, ...]


@dataclass(slots=True)
class SecondSource:
    """Fetches files by their sha256 from wherever they are; shared by all threads of a session.

    Attributes:
        registry: knows what the sites list, and which mirrors were seen; what is learned is stored there.
        clock, limit: shared with all downloads.
        civitai: whose catalog may list the same bytes a second time.
        settings: mirrors of the user's own.
    """

    registry: Registry
    clock: Clock
    limit: BandwidthLimit
    civitai: Civitai
    settings: Sequence[MirrorSetting] = ()
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _answers: dict[str, ArchivedFile | HnetkitError] = field(default_factory=dict)
    _listed: dict[str, Listing | HnetkitError] = field(default_factory=dict)
    _clients: dict[str, Any] = field(default_factory=dict)
    _silent: int = 0

    @property
    def is_set(self) -> bool:
        """Whether the user has mirrors of their own, which may have any file."""
        return bool(self.settings)

    # --- looking

    def look(self, sha256: str) -> Elsewhere:
        """Returns what is known of a file, after at most two requests to CivArchive and one listing for a repository.

        Raises:
            UsageError: a variable or a setting names no address that may be asked.
        """
        asked: list[str] = []
        places = tuple(self._places(sha256, "", asked))
        with self.registry.write():
            rows = self.registry.catalogue.files_of_bytes(sha256)
        archived = self._answers.get(sha256)
        known = archived if isinstance(archived, ArchivedFile) else None
        names = [known.name if known else None, *(row["file_name"] for row in rows)]
        sizes = [*(row["size_bytes"] for row in rows), known.size_bytes if known else None]
        first = next((name for name in names if name), None)
        return Elsewhere(first, next((size for size in sizes if size), None), places, tuple(asked))

    def _places(self, sha256: str, own: str, asked: list[str]) -> Iterator[Mirror]:
        """Yields the places that may have a file; `own` is the address of its own source, which was asked."""
        seen = {self._same(own)}
        for place in self._all_places(sha256, asked):
            if (same := self._same(place.url)) not in seen:
                seen.add(same)
                yield place

    def _same(self, url: str) -> str:
        """Returns what tells an address from others: of Civitai, the path of the version is the same on all hosts."""
        shown = without_query(url)
        with suppress(NetworkFailed):
            if url and self.civitai.client.policy.is_site(url):
                return f"{CIVITAI}:{urlsplit(shown).path}"
        return shown

    def _all_places(self, sha256: str, asked: list[str]) -> Iterator[Mirror]:
        with self.registry.write():
            rows = self.registry.catalogue.files_of_bytes(sha256)
        for row in rows:
            if row["source"] == CIVITAI and row["model_state"] == row["version_state"] == "listed":
                url = self.civitai.download_url(int(row["version_id"]), int(row["file_id"]))
                yield Mirror(CIVITAI, url, f"Civitai, model {row['model_id']}")
        for row in rows:
            if row["source"] == HUB:
                with suppress(ModuleNotFoundError, UsageError):  # the hub's own package; or no path, of an older import
                    repo = Repo(repo_of(row["model_id"]), row["version_id"], (), None)
                    url = file_url(repo, row["file_name"])
                    yield Mirror(HUB, url, f"hf:{repo.name}")
        yield from self._archived(sha256, asked)
        for setting in self.settings:
            yield from self._of_setting(setting, sha256, asked)

    def _archived(self, sha256: str, asked: list[str]) -> Iterator[Mirror]:
        """Yields the mirrors that CivArchive tells of; where it cannot be asked, those that it told of before."""
        found = self._ask_archive(sha256)
        if isinstance(found, ArchivedFile):
            for mirror in found.mirrors:
                if not mirror.is_deleted and not mirror.is_closed:
                    yield Mirror(ARCHIVE, _direct(mirror.url), f"{urlsplit(mirror.url).netloc} ({NAME})")
            if not any(not (mirror.is_deleted or mirror.is_closed) for mirror in found.mirrors):
                asked.append(f"{NAME}: it knows of no mirror that is still there")
            return
        if found is not None:
            asked.append(str(found))
        if not isinstance(found, Gone):
            with self.registry.write():
                rows = self.registry.mirrors.of([sha256])
            for row in rows:
                if row["source"] == ARCHIVE and row["state"] in ("listed", "served"):
                    yield Mirror(ARCHIVE, row["url"], f"{urlsplit(row['url']).netloc} ({NAME})")

    def _ask_archive(self, sha256: str) -> ArchivedFile | HnetkitError | None:
        """Returns what CivArchive says of a file, once for a session; None where it is not asked."""
        with self._lock:
            if sha256 in self._answers:
                return self._answers[sha256]
            archive = self._archive()
            if archive is None:
                return None
            if self._silent >= MOST_SILENT:
                return NetworkFailed(f"{NAME}: not asked, after {MOST_SILENT} failures in a row")
            try:
                answer: ArchivedFile | HnetkitError = archive.file(sha256)
                self._silent = 0
            except Gone as error:
                answer, self._silent = error, 0
            except RemoteError as error:
                answer, self._silent = error, self._silent + 1
            self._keep(sha256, answer)
            return answer

    def _keep(self, sha256: str, answer: ArchivedFile | HnetkitError) -> None:
        """Keeps an answer of CivArchive for this session, and the mirrors in it for later ones."""
        self._answers[sha256] = answer
        if isinstance(answer, ArchivedFile):
            with self.registry.write():
                for mirror in answer.mirrors:
                    if self.civitai.client.policy.is_site(mirror.url):  # no other place
                        continue
                    state = "deleted" if mirror.is_deleted else "listed"
                    self.registry.mirrors.put(sha256, without_query(_direct(mirror.url)), ARCHIVE, state)

    def archived_version(self, model: int, version: int | None) -> ArchivedVersion | None:
        """Returns what CivArchive has of a model's version; None where it is not asked.

        Raises:
            RemoteError: it does not have it, or does not answer.
        """
        with self._lock:
            archive = self._archive()
        if archive is None:
            return None
        found = archive.version(model, version)
        for file in found.files:
            if file.mirrors:  # it is not asked again for what it just said
                self._keep(file.sha256, file)
        return found

    def _archive(self) -> CivArchive | None:
        if NAME not in self._clients:
            base = civarchive_base()
            self._clients[NAME] = None if base is None else CivArchive(self.clock, base)
        archive: CivArchive | None = self._clients[NAME]
        return archive

    def _of_setting(self, setting: MirrorSetting, sha256: str, asked: list[str]) -> Iterator[Mirror]:
        if setting.repo is None:
            url = setting.url(sha256)
            yield Mirror(SETTING, url, urlsplit(url).netloc)
            return
        listed = self._ask_repo(setting.repo)
        if isinstance(listed, HnetkitError):
            asked.append(str(listed))
            return
        found = next((file for file in listed.files if file.sha256 == sha256), None)
        if found is None:
            asked.append(f"{setting.text}: it has none")
        else:
            yield Mirror(HUB, file_url(listed.repo, found.path), setting.text)

    def _ask_repo(self, ref: Reference) -> Listing | HnetkitError:
        """Returns the files of a repository, listed once for a session."""
        with self._lock:
            if ref.text not in self._listed:
                try:
                    self._listed[ref.text] = self._hub().look_up(ref)
                except (RemoteError, UsageError, ModuleNotFoundError) as error:
                    self._listed[ref.text] = failure_of(error, ref.text)
            return self._listed[ref.text]

    def _hub(self) -> Hub:
        with self._lock:
            if HUB not in self._clients:
                self._clients[HUB] = Hub(self.clock)
            hub: Hub = self._clients[HUB]
            return hub

    # --- fetching

    def fetch(self, job: Job, sha256: str, progress: Progress) -> tuple[PartialFile, Mirror]:
        """Fetches a file from the first place that gives the right bytes; each one that does not is a warning.

        Args:
            job: whose own source did not give them.
            sha256: that the file must have.
            progress: called as bytes arrive.

        Returns:
            The download, and where it came from.

        Raises:
            NotElsewhere: nobody gave them; it holds who was asked.
            DiskFull, OSError: the disk failed.
        """
        asked: list[str] = []
        counts: Counter[str] = Counter()
        what = f"{job.name}{job.suffix}"
        for place in self._likely_first(job, sha256, asked):
            counts[place.source] += 1
            if place.source != SETTING and counts[place.source] > MOST_ASKED:
                if counts[place.source] == MOST_ASKED + 1:
                    asked.append(f"further ones like {place.shown}: not asked, after {MOST_ASKED}")
                continue
            part = PartialFile(Path(job.folder), job.key, sha256, place.address)
            try:
                self._fetch(place, job, part, sha256, progress)
            except (RemoteError, WrongBytes, UsageError, MissingExtra, ModuleNotFoundError) as error:
                failure = failure_of(error, place.shown)
                progress(-part.size)
                if isinstance(failure, WrongBytes):
                    part.discard()
                self._note(place, sha256, _STATE_OF.get(type(failure), "failed"))
                asked.append(f"{place.shown}: {str(failure).removeprefix(f'{what}: ')}")
                warnings.warn(f"{what}: left out {asked[-1]}", stacklevel=1)
                continue
            self._note(place, sha256, "served")
            return part, place
        raise NotElsewhere(asked)

    def _likely_first(self, job: Job, sha256: str, asked: list[str]) -> Iterator[Mirror]:
        """Yields the places to ask: of the archive's, first those of which a part is here; recent liars at the end."""
        with self.registry.write():
            lied = {row["url"] for row in self.registry.mirrors.of([sha256]) if _lied_lately(row)}
        late: list[Mirror] = []
        for is_archived, places in groupby(self._places(sha256, job.url, asked), lambda place: place.source == ARCHIVE):
            for place in sorted(places, key=lambda place: not _is_begun(job, place)) if is_archived else places:
                if place.address in lied:
                    late.append(place)
                else:
                    yield place
        yield from late

    def _fetch(self, place: Mirror, job: Job, part: PartialFile, sha256: str, progress: Progress) -> None:
        """Completes `part` from a place.

        Raises:
            WrongBytes: they are others; what was left of an earlier run was not the reason.
        """
        is_listed = sha256 == job.sha256 and not is_by_hash(job)  # what a stranger says of the size bounds nothing
        what, size = f"{job.name}{job.suffix}", job.size_bytes if is_listed else None
        downloader = self._downloader(place)
        progress(part.size)
        is_resumed = part.size > 0
        downloader.fetch(place.url, part, what=what, size=size, progress=progress)
        if part.sha256 != sha256 and is_resumed:
            progress(-part.size)
            part.restart()
            downloader.fetch(place.url, part, what=what, size=size, progress=progress)
        if part.sha256 != sha256:
            raise WrongBytes(f"other bytes, with the sha256 {part.sha256}")

    def _downloader(self, place: Mirror) -> Downloader:
        error_of: Callable[[int, Any, str], HnetkitError] = _mirror_error
        if place.source == CIVITAI:
            client, error_of = self.civitai.client, civitai_error
        elif place.source == HUB:
            client, error_of = self._hub().client, hub_error
        else:
            origin = Origin.of(place.url)
            if place.source == ARCHIVE:  # a stranger may name any address
                archive = self._archive()
                (archive.policy if archive else SitePolicy(Origin.of(CIVARCHIVE_API))).check(place.url)
            policy = SitePolicy(origin, settled=place.source == SETTING)
            policy.check(place.url)
            client = HttpClient(policy, self.clock, RateLimiter(self.clock, 4.0))
        return Downloader(client, self.limit, error_of, _ATTEMPTS, _OBEYED_S, is_believed=False)

    def _note(self, place: Mirror, sha256: str, state: str) -> None:
        if place.source in (ARCHIVE, SETTING):
            with self.registry.write():
                self.registry.mirrors.put(sha256, place.address, place.source, state)


class NotElsewhere(Exception):
    """Nobody gave the bytes.

    Attributes:
        asked: who was asked, each with the reason; empty where there was nobody to ask.
    """

    def __init__(self, asked: list[str]) -> None:
        super().__init__("; ".join(asked))
        self.asked = asked


_STATE_OF = {WrongBytes: "other-bytes", Gone: "deleted"}


def _direct(url: str) -> str:
    """Returns the address of the file itself, where a mirror is the page of one on the hub."""
    with suppress(UsageError):
        ref = parse_reference(url)
        if ref.kind == "hub" and ref.url:
            return ref.url
    return url


def _is_begun(job: Job, place: Mirror) -> bool:
    return part_path(Path(job.folder), job.key, place.address).exists()


def _lied_lately(row: Row) -> bool:
    with suppress(ValueError, TypeError):
        age = datetime.now(timezone.utc) - datetime.fromisoformat(row["seen_at"])
        return row["state"] == "other-bytes" and abs(age) < _LATELY  # abs: the clock may have been wrong
    return False


def _mirror_error(status: int, content: Any, what: str) -> RemoteError:
    """Returns the error that an unsuccessful answer of a mirror means."""
    if status in (404, 410):
        return Gone(f"{what}: it has none")
    if status in (401, 402, 403):
        return NoAccess(f"{what}: it asks for a login")
    if status == 429:
        return RateLimited(f"{what}: it asks for a pause")
    return NetworkFailed(f"{what}: it answered {status}")
