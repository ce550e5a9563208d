"""Fetching into a library: what is asked of the sites, brought to its end or left for the next session."""

from __future__ import annotations

import functools
import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from urllib.parse import unquote, urlsplit

from hnetkit.errors import Archived, Gone, HnetkitError, NetworkFailed, NotFound, UsageError, failure_of
from hnetkit.library.library import Library, Row
from hnetkit.registry.jobs import Job
from hnetkit.sources import civitai, hub, queue, results
from hnetkit.sources.beside import Beside
from hnetkit.sources.civitai import Civitai, Failed, Filters
from hnetkit.sources.fetch import Fetch
from hnetkit.sources.here import again_unless_here
from hnetkit.sources.hub import Hub
from hnetkit.sources.identify import Identified, identified
from hnetkit.sources.names import safe_stem, split_name
from hnetkit.sources.origins import Origin, Trust, redacted
from hnetkit.sources.pace import ByteLimit, Pace, RealClock, Stopped
from hnetkit.sources.pages import BadRecord, parts_left_out
from hnetkit.sources.plan import Item, enqueue, items_of
from hnetkit.sources.refs import FORMS, Ref, ref_of, shown
from hnetkit.sources.repair import Damage, damages, forget_moved, take_up
from hnetkit.sources.results import FetchResult
from hnetkit.sources.shapes import Model
from hnetkit.sources.sync import (
    MOST_ASKED,
    Plan,
    Update,
    ask_about,
    missing,
    plan_sync,
    store,
    store_failures,
    updates,
)
from hnetkit.sources.web import Web
from hnetkit.sources.work import Workshop
from hnetkit.sources.workers import Worker
from hnetkit.text import counted

Progress = Callable[[int, int], None]
"""Told how much is done, and of how much."""
_ALL = Filters()
_PICTURE_TIMEOUT_S = (5.0, 10.0)  # a picture is worth less waiting than a network
_WHOLE = (10, 64)  # digits of a hash that can be held against any file; others stand for parts of some, or are weak


def _warn(bad: BadRecord) -> None:
    about = "" if bad.id is None else f"model:{bad.id}: "
    warnings.warn(f"{about}{bad.reason}", stacklevel=4)


def _unheard(*told: object) -> None:
    """Nobody listens."""


class FetchSession:
    """Fetches networks into a library, from Civitai, the Hugging Face hub and plain addresses.

    What an exception or a kill cuts short is resumed by the next session on the library, at the byte where it
    stopped. Any number of sessions may work on one library at once, in any number of processes.

    Tokens are read from the environment: ``CIVITAI_TOKEN``, else ``CIVITAI_API_KEY``; ``HF_TOKEN``.

    Args:
        library: to fetch into; None opens that of the command line, and closes it with the session.
        parallel: files at a time.
        limit: bytes a second, of all files together.
        sidecars: whether files are written beside networks: what the site says of them, and an example picture.
        previews: whether that picture is fetched.
        nsfw: whether it may be one above PG-13.
        clock, site: in place of the machine's clock, and of the Civitai that the environment names.

    Attributes:
        library: as given.
        civitai: the site's API.

    Raises:
        RegistryError: of a library that is opened for it.
        UsageError: ``HNETKIT_CIVITAI_URL`` is no address that may be asked.
    """

    def __init__(
        self,
        library: Library | None = None,
        *,
        parallel: int = 2,
        limit: float | None = None,
        sidecars: bool = True,
        previews: bool = True,
        nsfw: bool = False,
        clock: RealClock | None = None,
        site: Civitai | None = None,
    ) -> None:
        self.clock = clock or RealClock()
        self.civitai = site or Civitai(self.clock)
        self._is_own = library is None
        self.library = library or Library()
        self.registry, self.folder = self.library.registry, self.library.folder
        self._parallel, self._limit = parallel, limit
        self._sidecars, self._previews, self._nsfw = sidecars, previews, nsfw
        # whole addresses of jobs, which may hold secrets: their rows hold none
        self._addresses: dict[int, str] = {}
        # digits of the hash by which a job's file was asked for: no other content is installed
        self._asked: dict[int, str] = {}

    def close(self) -> None:
        """Closes the library, if it was opened for this session."""
        if self._is_own:
            self.library.close()

    def __enter__(self) -> FetchSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- looking

    def browse(self, filters: Filters = _ALL, *, limit: int | None = None, failed: Failed = _warn) -> list[Model]:
        """Returns models of the site, newest first, or by how well they fit the words of the query.

        Args:
            filters: which.
            limit: how many at most.
            failed: told of each record of the site that cannot be used; by default it is a warning.

        Raises:
            RemoteError: the site does not answer, or does not say it to everybody.
        """
        found: list[Model] = []
        for page in self.civitai.pages(filters, failed=failed):
            found += page
            if limit is not None and len(found) >= limit:
                break
        return found[:limit]

    def updates(self, *, failed: Failed = _warn) -> list[Update]:
        """Returns the models whose newest version is not here, of those of which some version is.

        Raises:
            RemoteError: as `browse`.
        """
        bad: list[BadRecord] = []
        found = list(updates(self.registry, self.civitai, bad))
        for record in bad:
            failed(record)
        return found

    def identify(self, *, again: bool = False, failed: Failed = _warn) -> Identified:
        """Asks the site by their hashes what the library's files are, and on which checkpoints they were trained.

        Args:
            again: ask also about what the site did not know lately.
            failed: as in `browse`.

        Raises:
            RemoteError: as `browse`.
        """
        bad: list[BadRecord] = []
        found = identified(self.registry, self.civitai, again=again, failed=bad)
        for record in bad:
            failed(record)
        return found

    # --- what is meant by name

    def pull(
        self, *refs: str, sha256: str | None = None, all_versions: bool = False, progress: Progress | None = None
    ) -> list[FetchResult]:
        """Fetches what is meant, also what was refused or failed once.

        Args:
            refs: ``"model:4209"``, ``"civitai:4209"``, ``"version:4931"``, an address at Civitai, a hash,
                ``"hf:owner/repo[@revision][:glob]"``, or a plain https address.
            sha256: that the file of a plain address must have.
            all_versions: of a model, not only the newest.
            progress: told bytes that came, and of how many.

        Returns:
            What became of each file, and of each reference of several with which nothing could be done.

        Raises:
            UsageError: no reference means anything.
            RemoteError: the site does not have what the only reference means, or does not give it.
            Stopped: somebody set the stop of `clock`; what came is kept.
        """
        meant: list[Ref] = []
        found: list[FetchResult] = []
        for text in refs:
            try:
                meant.append(ref_of(text))
            except HnetkitError as error:  # a list that somebody gave may hold one
                if len(refs) == 1:
                    raise
                found.append(results.of_error(error, shown(text)))
        if found and not meant:
            raise UsageError("nothing that was given can be fetched", hint=f"it may be {FORMS}")
        if sha256 is not None and (other := next((ref for ref in meant if ref.kind != "url"), None)) is not None:
            raise UsageError(
                f"{other.text}: --sha256 is for plain addresses; what a site lists is held against its own hash",
                hint="leave out --sha256, or give the hash alone: hnetkit pull HASH",
            )
        jobs: list[int] = []
        for ref in meant:
            bad: list[BadRecord] = []
            try:
                queued, there = self.enqueue(ref, sha256=sha256, all_versions=all_versions, failed=bad.append)
            except Exception as error:
                failure = failure_of(error, ref.text)
                if len(refs) == 1:
                    raise failure from error
                found.append(results.of_error(failure, ref.text))
                continue
            jobs += [job for job in queued if job not in jobs]
            found += [*map(results.of_record, bad), *map(results.of_item, there)]
        return found + self._fetched(jobs, progress)

    def enqueue(
        self, ref: Ref, *, sha256: str | None = None, all_versions: bool = False, failed: Failed = _warn
    ) -> tuple[list[int], list[Item]]:
        """Makes the jobs that fetch what is meant, for `run`; the other arguments are those of `pull`.

        Args:
            failed: told of what the site says and nobody can use.

        Returns:
            Numbers of jobs, and what is here already or cannot be had.

        Raises:
            RemoteError: the site does not have it, or does not give it.
            UsageError: a plain address without its sha256.
        """
        if ref.kind == "url":
            return [self._plain_job(ref, sha256)], []
        if ref.kind == "hub":
            files = Hub(self.clock).files(ref, failed=failed)
            with self.registry.write():
                return [job.id for job in hub.enqueue(self.registry, self.folder, files)], []
        model, items = self._of_site(ref, all_versions, failed)
        for bad in store(self.registry, [model]):
            raise NetworkFailed(f"{ref.text}: {bad.reason}")
        with self.registry.write():
            jobs = [job.id for job in enqueue(self.registry, self.civitai, self.folder, items, failed)]
        if len(ref.digits) in _WHOLE:
            self._asked |= dict.fromkeys(jobs, ref.digits)
        return jobs, [item for item in items if item.action != "fetch"]

    def _of_site(self, ref: Ref, all_versions: bool, failed: Failed) -> tuple[Model, list[Item]]:
        """What is meant of Civitai: the model, and those of its files that are asked for."""
        version = None
        if ref.kind == "hash":
            version = self.civitai.version_by_hash(ref.digits)
        elif ref.kind == "version":
            version = self.civitai.version(ref.id)
        model_id = ref.id if version is None else version.model_id
        if version is not None and ref.model not in (None, model_id):
            hint = "say which of the two is meant: model:ID or version:ID"
            raise UsageError(
                f"{ref.text}: version {version.id} is one of model {model_id}, not of {ref.model}", hint=hint
            )
        if model_id is None:
            raise Gone(f"{ref.text}: the site does not say which model it belongs to")
        model = self.civitai.model(model_id)
        items = items_of(self.registry, model, all_versions=all_versions, only=version.id if version else None)
        if ref.kind == "hash":
            listed = len(items)
            items = [item for item in items if any(h.startswith(ref.digits) for h in item.file.hashes.values())]
            if listed and not items:
                raise NetworkFailed(f"{ref.text}: of no file of {model.name} does the site say this hash")
        if ref.file is not None:
            items = [item for item in items if item.file.id == ref.file]
        asked = model if version is None else next((v for v in model.versions if v.id == version.id), version)
        left_out = list(parts_left_out(asked))
        if not items:
            if left_out:
                raise NetworkFailed(f"{ref.text}: {left_out[0].reason}")
            if model.state == "archived":
                raise Archived(f"{ref.text}: {model.name} is archived; the site keeps it and gives no file")
            which = "" if ref.file is None else f" of the number {ref.file}"
            raise Gone(f"{ref.text}: {model.name} has no file{which} that may be a network")
        for part in left_out:
            failed(part)
        return model, list(map(_again, items))

    def _plain_job(self, ref: Ref, sha256: str | None) -> int:
        if sha256 is None or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise UsageError(f"{ref.text}: nobody says what this file must be", hint="add --sha256 with its 64 digits")
        try:
            Trust(Origin.of(ref.url), settled=False).check(ref.url)
        except HnetkitError as error:
            raise UsageError(str(error), hint=error.hint or "use an https address") from error
        stem, suffix = split_name(unquote(urlsplit(ref.url).path))
        shown = redacted(ref.url)  # signatures change and are secrets: neither kept, nor part of what the job is
        place = shown.removesuffix("?...")
        key = f"url:{hashlib.sha256(place.encode()).hexdigest()[:16]}:{sha256.lower()}"
        values = {
            **{"source": "url", "url": shown, "name": safe_stem(stem, "network"), "suffix": suffix},
            **{"folder": str(self.folder), "remote_file_id": None, "sha256": sha256.lower(), "size_bytes": None},
        }
        with self.registry.write():
            job = again_unless_here(self.registry, self.registry.jobs.add(key, values))
        self._addresses[job.id] = ref.url
        return job.id

    # --- the site as a whole, or a choice of it

    def plan(
        self,
        filters: Filters | str = _ALL,
        *,
        all_versions: bool = False,
        listed: Callable[[int], None] = _unheard,
    ) -> Plan:
        """Returns what `sync` would do; nothing is touched for it.

        Args:
            filters: which models; a name is what was saved under it.
            all_versions: of each model, not only the newest.
            listed: told how many models were listed so far.

        Raises:
            NotFound: nothing was saved under this name.
            RemoteError: the site does not list them.
        """
        chosen = self.subscription(filters) if isinstance(filters, str) else filters
        return plan_sync(self.registry, self.civitai, chosen, all_versions=all_versions, listed=listed)

    def sync(
        self,
        filters: Filters | str = _ALL,
        *,
        all_versions: bool = False,
        metadata_only: bool = False,
        progress: Progress | None = None,
    ) -> list[FetchResult]:
        """Fetches all that is meant and is not here: `plan`, then `carry_out`."""
        plan = self.plan(filters, all_versions=all_versions)
        return self.carry_out(plan, metadata_only=metadata_only, progress=progress)

    def carry_out(
        self,
        plan: Plan,
        *,
        metadata_only: bool = False,
        progress: Progress | None = None,
        note: Callable[[str], None] = _unheard,
    ) -> list[FetchResult]:
        """Fetches what is planned, and keeps what the site says of it.

        After a list of everything, known models that it does not hold are asked about by number, up to
        `hnetkit.sources.sync.MOST_ASKED` of them.

        Args:
            plan: of this library.
            metadata_only: fetch no file.
            progress: told bytes that came, and of how many.
            note: told what a person should read.

        Returns:
            What became of each file that was not here, of each record that cannot be used, and of models that the
            site lost.

        Raises:
            RemoteError: the site would answer no further question.
            Stopped: somebody set the stop of `clock`; what came is kept.
        """
        failed = plan.failed + store(self.registry, plan.models)
        there = {model.id for model in plan.models} | {bad.id for bad in plan.failed}
        found = [results.not_there(id) for id in plan.filters.ids if id not in there]
        if plan.filters.is_everything:
            gone = [id for id in missing(self.registry, plan.models) if id not in {str(bad.id) for bad in failed}]
            if len(gone) > MOST_ASKED:
                note(f"{MOST_ASKED} of {len(gone):,} models that are not listed are asked about; others next time")
            asked = ask_about(self.registry, self.civitai, self.clock, gone[:MOST_ASKED], failed)
            found += [results.of_unlisted(id, state) for id, state in asked]
        jobs: list[int] = []
        if not metadata_only:
            unusable = {bad.id for bad in failed if bad.is_whole}
            items = [item for item in plan.items if item.model.id not in unusable]
            with self.registry.write():
                jobs += [job.id for job in enqueue(self.registry, self.civitai, self.folder, items, failed.append)]
        store_failures(self.registry, failed)
        found += map(results.of_record, failed)
        if not metadata_only:
            found += [results.of_item(item) for item in plan.items if item.action == "skip"]
            found += self._fetched(jobs, progress, total=plan.bytes_to_fetch)
        with self.registry.write():
            for row in self.subscriptions():
                if Filters.of(row["filters"]) == plan.filters:
                    self.registry.subscriptions.mark_synced(row["name"])
        return found

    def subscriptions(self) -> list[Row]:
        """Returns what was saved: ``name``, ``filters``, ``created_at``, ``synced_at``."""
        return self.registry.subscriptions.rows()

    def subscription(self, name: str) -> Filters:
        """Returns which models were saved under a name.

        Raises:
            NotFound: none.
        """
        for row in self.subscriptions():
            if row["name"] == name:
                return Filters.of(row["filters"])
        raise NotFound(f"no choice was saved as {name}", hint="hnetkit sync --subscriptions lists them")

    def subscribe(self, name: str, filters: Filters) -> None:
        """Saves which models a name means from now on."""
        with self.registry.write():
            self.registry.subscriptions.put(name, filters.as_dict())

    def unsubscribe(self, name: str) -> None:
        """Forgets what was saved under a name; no file is touched.

        Raises:
            NotFound: nothing was.
        """
        self.subscription(name)
        with self.registry.write():
            self.registry.subscriptions.remove(name)

    # --- what was fetched before

    def damages(self, progress: Progress = _unheard) -> list[Damage]:
        """Reads every file that was fetched, and returns what is missing or not what it was.

        Args:
            progress: told how many files were read, and of how many.
        """
        return list(damages(self.registry, progress))

    def repair(self, damaged: Iterable[Damage] | None = None, *, progress: Progress | None = None) -> list[FetchResult]:
        """Fetches again what is missing or damaged; a damaged file goes into the library's folder .quarantine.

        Another network that somebody put in the place of one stays there.

        Args:
            damaged: as `damages` found them; None looks for them.
            progress: told bytes that came, and of how many.

        Raises:
            Stopped: somebody set the stop of `clock`; what came is kept.
        """
        damaged = self.damages() if damaged is None else list(damaged)
        found = [damage for damage in damaged if damage.what != "kept"]
        taken = [(damage, take_up(self.registry, damage)) for damage in found]
        jobs = dict.fromkeys(job for _, job in taken if isinstance(job, int))
        left = [results.of_kept(damage) for damage in damaged if damage.what == "kept"]
        left += [results.of_damage(damage, error) for damage, error in taken if isinstance(error, HnetkitError)]
        whole = {d.job.id: d.sha256 for d in found if d.job is not None and d.sha256 and d.sha256 == d.job.sha256}
        self._asked |= whole  # what the site has replaced since is not what was here
        fetched = self._fetched(jobs, progress)
        forget_moved(self.registry, found)
        return left + fetched

    # --- carrying out

    def _fetched(
        self, jobs: Iterable[int], progress: Progress | None, *, total: int | None = None
    ) -> list[FetchResult]:
        """What became of each job; `total`: bytes that are to come, as far as that is known."""
        jobs = list(jobs)
        if total is None:
            total = sum(self.registry.jobs.get(job).size_bytes or 0 for job in jobs)
        came = 0
        raised: list[BaseException] = []

        def count(more: int) -> None:  # in the thread of a file, whose failure that of a caller's function is not
            nonlocal came
            came += more
            if progress is not None and not raised:
                try:
                    progress(came, max(total, came))
                except BaseException as error:
                    raised.append(error)
                    self.clock.stop.set()

        fetched: list[FetchResult] = []
        try:
            for job in self.run(jobs, count):
                fetched.append(results.of_job(self.registry, job))
        except Stopped as stop:
            if raised:
                raise raised[0] from None
            ended = Stopped(f"stopped after {len(fetched)} of {counted(len(jobs), 'file')}", hint=stop.hint)
            ended.exit_code = stop.exit_code
            raise ended from stop
        return fetched

    def run(self, jobs: Iterable[int], came: Callable[[int], None] = _unheard) -> Iterator[Job]:
        """Carries out jobs of the registry, and yields each at its end; see `hnetkit.sources.queue.run`.

        Args:
            jobs: their numbers.
            came: told how many more bytes came.

        Raises:
            Stopped: somebody set the stop of `clock`; what came is kept.
        """
        limit = ByteLimit(self.clock, self._limit)
        trust = self.civitai.web.trust
        pictures = Web(Trust(trust.base), self.clock, Pace(self.clock, 10.0), _PICTURE_TIMEOUT_S, hidden=trust.token)
        site = Fetch(self.civitai.web, limit, civitai.refusal)
        hub_web = functools.cache(lambda: Hub(self.clock).web)  # one: what one file learns of the hub, all know
        workshop = Workshop(
            self.registry,
            self.civitai,
            {
                "civitai": lambda job: site,
                "huggingface": lambda job: Fetch(hub_web(), limit, hub.refusal),
                "url": lambda job: Fetch(self._plain(job.url), limit, civitai.refusal),
            },
            Beside(self.registry, pictures if self._previews else None, self._nsfw) if self._sidecars else None,
            came,
            self._addresses,
            self._asked,
        )
        with Worker(self.library.home / "workers") as worker:
            try:
                yield from queue.run(self.registry, jobs, workshop, worker, self.clock, parallel=self._parallel)
            except BaseException:
                self.clock.stop.clear()  # all threads have heard of it, and the session may go on
                raise

    def _plain(self, url: str) -> Web:
        return Web(Trust(Origin.of(url), settled=False), self.clock, Pace(self.clock, 4.0))


def _again(item: Item) -> Item:
    """Somebody asks for just this: what was refused or failed once is tried again."""
    is_again = item.action == "skip" and not item.not_before
    return Item(item.model, item.version, item.file, "fetch") if is_again else item
