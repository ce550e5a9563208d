"""`FetchSession`: browse, plan, download, install, resume, identify, update and repair networks of a library."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from hnetkit.errors import NotFound, failure_of
from hnetkit.library.library import AnyPath, Library, Row
from hnetkit.library.restore import trashed
from hnetkit.registry.jobs import Job
from hnetkit.sources import results
from hnetkit.sources.civarchive import civarchive_base
from hnetkit.sources.civitai import Civitai, Failed, Filters, civitai_error
from hnetkit.sources.civitai_models import BadRecord, CivitaiModel
from hnetkit.sources.download import Downloader
from hnetkit.sources.http import BandwidthLimit, HttpClient, RateLimiter, RealClock, Stopped
from hnetkit.sources.hub_plans import add_repository, hub_repositories, plan_repository, store_listings
from hnetkit.sources.huggingface import Hub, hub_error
from hnetkit.sources.jobs import JobRunner
from hnetkit.sources.lost import add_civitai
from hnetkit.sources.maintenance import (
    Identification,
    Repair,
    begin_repair,
    cut_short,
    find_damage,
    forget_moved,
    identify_by_dump,
    identify_library,
    imported_with_source,
)
from hnetkit.sources.mirrors import SecondSource, parse_mirrors
from hnetkit.sources.plans import FetchPlan, as_here, each_once, enqueue, parse_references
from hnetkit.sources.presence import Damage, Replacement, damaged_by, require_library, survey
from hnetkit.sources.references import Reference
from hnetkit.sources.results import FetchResult
from hnetkit.sources.sidecar_writer import SidecarWriter
from hnetkit.sources.single_files import enqueue_imported, plan_plain
from hnetkit.sources.subscriptions import Wanted, as_stored, not_saved, of_stored, repository_of, require_name, syncs_of
from hnetkit.sources.sync import (
    Update,
    check_gone,
    find_updates,
    plan_sync,
    store_failures,
    store_models,
)
from hnetkit.sources.trust import Origin, SitePolicy
from hnetkit.sources.workers import Worker, run_jobs
from hnetkit.text import counted

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""
_EVERYTHING = Filters()
_PICTURE_TIMEOUT_S = (5.0, 10.0)  # to connect, and between two reads: shorter than for a network


def _warn(bad: BadRecord) -> None:
    about = "" if bad.id is None else f"model:{bad.id}: "
    warnings.warn(f"{about}{bad.reason}", stacklevel=4)


def _unheard(*values: object) -> None:
    """Ignores a progress report."""


class FetchSession:
    """Fetches networks into a library, from Civitai, the Hugging Face hub and plain URLs.

    What an exception or a kill interrupts is resumed by the next session on the library, at the byte where it
    stopped. Any number of sessions may work on one library at once, in any number of processes.

    Tokens are read from the environment: ``CIVITAI_TOKEN``, else ``CIVITAI_API_KEY``; ``HF_TOKEN``.

    Args:
        library: to fetch into; None opens the default library, and closes it with the session.
        parallel: files at a time.
        limit: bytes per second, of all files together.
        sidecars: write files beside networks: the site's record, and an example picture.
        previews: fetch that picture.
        nsfw: allow a picture above PG-13.
        mirrors: asked for what its own source does not give, after CivArchive: addresses with ``{sha256}`` in their
            path, or repositories such as ``"hf:owner/repo"``.
        clock, site: replace the machine's clock, and the Civitai that the environment names.

    Attributes:
        library: as given.
        civitai: client of the site's API.
        nsfw: as given.

    Raises:
        RegistryError: the library cannot be opened.
        UsageError: ``HNETKIT_CIVITAI_URL``, ``HNETKIT_CIVARCHIVE_URL`` or a mirror is no URL that may be requested.
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
        mirrors: Sequence[str] = (),
        clock: RealClock | None = None,
        site: Civitai | None = None,
    ) -> None:
        self.clock = clock or RealClock()
        self.civitai = site or Civitai(self.clock)
        civarchive_base()
        settings = parse_mirrors(" ".join(mirrors))
        self._is_own = library is None
        self.library = library or Library()
        self.registry, self.folder = self.library.registry, self.library.folder
        self._parallel, self._limit = parallel, BandwidthLimit(self.clock, limit)
        self._second = SecondSource(self.registry, self.clock, self._limit, self.civitai, settings)
        self._sidecars, self._previews, self.nsfw = sidecars, previews, nsfw
        # complete URLs of jobs: they may hold secrets, so they are not stored
        self._urls: dict[int, str] = {}
        # digits of the hash by which the user asked for a job's file: no other content is installed
        self._wanted: dict[int, str] = {}
        # damaged files whose places the networks of a job take
        self._replaced: dict[int, list[Replacement]] = {}
        # sha256 -> name of what the user removed, and a repair does not bring back out of an archive
        self._removed: dict[str, str] = {}

    def close(self) -> None:
        """Closes the library if this session opened it."""
        if self._is_own:
            self.library.close()

    def __enter__(self) -> FetchSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- looking at the library

    def survey(self, progress: Progress | None = None) -> None:
        """Looks at the library's folder for files that were renamed, moved or copied there since the last scan.

        All verbs but `browse` do this first. What cannot be read there is a warning, and so are tags, notes and aliases
        of networks whose file holds another one by now.

        Args:
            progress: called with the bytes of new and changed files that were read, and of how many.
        """

        def warn(line: str) -> None:
            warnings.warn(line, stacklevel=1)  # from here each time, so that Python shows it once

        for change in survey(self.registry, self.folder, progress, warn):
            warn(str(change.reason))

    def require_library(self) -> None:
        """Raises NotFound if nothing is left of a library that is known, as if its disk were not mounted."""
        require_library(self.registry, self.folder)

    # --- looking up

    def browse(
        self, filters: Filters = _EVERYTHING, *, limit: int | None = None, failed: Failed = _warn
    ) -> list[CivitaiModel]:
        """Returns models of the site, newest first, or by relevance for a query.

        Args:
            filters: which models.
            limit: how many at most.
            failed: called with each record of the site that cannot be used; by default each is a warning.

        Raises:
            RemoteError: the site does not answer, or denies access.
        """
        found: list[CivitaiModel] = []
        for page in self.civitai.pages(filters, failed=failed):
            found += page
            if limit is not None and len(found) >= limit:
                break
        return found[:limit]

    def updates(self, *, failed: Failed = _warn) -> list[Update]:
        """Returns the models of Civitai of which the library has some version but not the newest.

        What the site is not asked about is a warning: networks of unknown source, those of an import that are not here,
        and repositories of the Hugging Face hub. So is that networks are gone at their source.

        Raises:
            RemoteError: as `browse`.
            NotFound: nothing is left of the library, as if its disk were not mounted.
        """
        self.survey()
        self.require_library()
        if repos := hub_repositories(self.registry):
            by = syncs_of(self.subscriptions(), repos)
            warnings.warn(f"the hub is not asked; what is new there comes by: {by}", stacklevel=2)
        if unknown := self.registry.catalogue.unknown_here():
            warnings.warn(f"{counted(unknown, 'network')} of unknown source: hnetkit identify", stacklevel=2)
        if absent := imported_with_source(self.registry):
            what = counted(len(absent), "network")
            warnings.warn(f"{what} of an import not here, and not asked about: hnetkit repair", stacklevel=2)
        bad: list[BadRecord] = []
        found = list(find_updates(self.registry, self.civitai, bad))
        if lost := self.registry.catalogue.lost():
            warnings.warn(f"{counted(len(lost), 'network')} gone at the source, kept here: hnetkit list", stacklevel=2)
        for record in bad:
            failed(record)
        return found

    def identify(
        self,
        *,
        again: bool = False,
        dump: AnyPath | None = None,
        progress: Progress | None = None,
        failed: Failed = _warn,
    ) -> Identification:
        """Looks up by hash what the library's files are, and which checkpoints they were trained on.

        Args:
            again: ask also about files that the site did not know lately.
            dump: of the site's records, to look them up in; no site is asked then, and of checkpoints nothing new is
                told. It is the SQLite database of a metadata archive, or JSON lines of the records.
            progress: called with the bytes of a dump of lines that were read, and with all.
            failed: as in `browse`.

        Raises:
            RemoteError: as `browse`.
            NotFound: as `updates`, or there is no such dump.
            FileRefused: the dump is none.
        """
        self.survey()
        self.require_library()
        bad: list[BadRecord] = []
        if dump is None:
            found = identify_library(self.registry, self.civitai, again=again, failed=bad)
        else:
            found = identify_by_dump(self.registry, Path(dump), failed=bad, progress=progress or _unheard)
        for record in bad:
            failed(record)
        return found

    # --- fetching by reference

    def plan_pull(self, *refs: str, sha256: str | None = None, all_versions: bool = False) -> FetchPlan:
        """Returns what `pull` would do, and fetches nothing; see there.

        Raises:
            UsageError: no reference is recognized.
            RemoteError: the site does not have what the only reference names, or does not serve it.
        """
        plan = FetchPlan()
        parsed = parse_references(refs, sha256, plan, all_versions=all_versions)
        self.survey()
        try:
            self.require_library()
        except NotFound as error:  # what was named comes all the same
            warnings.warn(f"{error}; is its disk mounted?", stacklevel=2)
        for ref in parsed:
            try:
                self._look_up(ref, plan, sha256=sha256, all_versions=all_versions)
            except Exception as error:
                failure = failure_of(error, ref.text)
                if len(refs) == 1:
                    raise failure from error
                plan.errors.append((ref.text, failure))
        plan.items = each_once(plan.items)
        return plan

    def _look_up(self, ref: Reference, plan: FetchPlan, *, sha256: str | None, all_versions: bool) -> None:
        """Adds to a plan what a reference means."""
        if ref.kind == "url" or (ref.url and (sha256 or ref.sha256)):
            plan.items.append(as_here(self.registry, plan_plain(ref, sha256)))
        elif ref.kind == "hub":
            add_repository(self.registry, Hub(self.clock), ref, plan)
        else:
            add_civitai(self.registry, self.civitai, self._second, ref, plan, all_versions=all_versions)

    def pull(
        self, *refs: str, sha256: str | None = None, all_versions: bool = False, progress: Progress | None = None
    ) -> list[FetchResult]:
        """Fetches files by reference, also files that were refused or failed before: `plan_pull`, then `carry_out`.

        Args:
            refs: ``"model:4209"``, ``"version:4931"``, an AIR, a hash, ``"hf:owner/repo[@revision][:glob]"``, the URL
                of a page at Civitai, Hugging Face or CivArchive, or a plain https URL; see docs/addresses.md.
            sha256: required hash of the file at a plain URL.
            all_versions: of a model, not only the newest.
            progress: called with the bytes received, and with their total.

        Returns:
            The result for each file, and for each of several references that could not be resolved.

        Raises:
            UsageError: no reference is recognized.
            RemoteError: the site does not have what the only reference names, or does not serve it.
            Stopped: the stop of `clock` was set; what was received is kept.
        """
        return self.carry_out(self.plan_pull(*refs, sha256=sha256, all_versions=all_versions), progress=progress)

    # --- syncing by filters

    def plan(
        self,
        filters: Wanted | str = _EVERYTHING,
        *,
        all_versions: bool = False,
        listed: Callable[[int], None] = _unheard,
    ) -> FetchPlan:
        """Returns what `sync` would do, and fetches nothing.

        Args:
            filters: of Civitai's models, or ``"hf:owner/repo[@revision][:folder or glob]"``; another text is the
                name under which these were saved.
            all_versions: of each model, not only the newest.
            listed: called with the number of models listed so far.

        Raises:
            NotFound: nothing is saved under this name.
            RemoteError: the site does not list the models, or the hub the repository.
        """
        chosen = self._chosen(filters)
        self.survey()
        if isinstance(chosen, Filters):
            return plan_sync(self.registry, self.civitai, chosen, all_versions=all_versions, listed=listed)
        return plan_repository(self.registry, Hub(self.clock), chosen)

    def _chosen(self, wanted: Wanted | str) -> Wanted:
        return (repository_of(wanted) or self.subscription(wanted)) if isinstance(wanted, str) else wanted

    def sync(
        self,
        filters: Wanted | str = _EVERYTHING,
        *,
        all_versions: bool = False,
        metadata_only: bool = False,
        refill: bool = False,
        progress: Progress | None = None,
    ) -> list[FetchResult]:
        """Fetches all matching files that are not here: `plan`, then `carry_out`."""
        plan = self.plan(filters, all_versions=all_versions)
        return self.carry_out(plan, metadata_only=metadata_only, refill=refill, progress=progress)

    def carry_out(
        self,
        plan: FetchPlan,
        *,
        metadata_only: bool = False,
        refill: bool = False,
        progress: Progress | None = None,
        note: Callable[[str], None] = _unheard,
    ) -> list[FetchResult]:
        """Fetches what is planned, and stores the site's records.

        After a listing of everything, known models that it lacks are checked by number, up to
        `hnetkit.sources.sync.MOST_CHECKED` of them.

        Args:
            plan: of this library.
            metadata_only: fetch no file.
            refill: fetch also if nothing is left of a library that is known.
            progress: called with the bytes received, and with their total.
            note: called with messages for the user.

        Returns:
            The result for each file that was not here, for each record that cannot be used, and for each model that
            the site lost.

        Raises:
            NotFound: nothing is left of the library, as if its disk were not mounted, and `refill` is not set.
            RateLimited: the site answers no further request.
            Stopped: the stop of `clock` was set; what was received is kept.
        """
        filters = plan.filters
        if plan.is_sync and plan.to_fetch and not metadata_only and not refill:
            self.require_library()
        failed = plan.failed + store_models(self.registry, plan.models)
        found = results.of_errors(plan) + results.of_absent(plan)
        for id, state in check_gone(self.registry, self.civitai, self.clock, plan, failed, note):
            found.append(results.of_unlisted(id, state))
        found += map(results.of_lost, plan.lost)
        if metadata_only and plan.listings:
            with self.registry.write():
                store_listings(self.registry, plan)
        jobs = [] if metadata_only else self.enqueue(plan, failed)
        if filters is not None:
            store_failures(self.registry, failed)
        found += map(results.of_record, failed)
        if not metadata_only:
            told = ("skip",) if plan.is_sync else ("skip", "have")
            found += [results.of_item(item) for item in plan.items if item.action in told]
            found += self._fetched(jobs, progress, total=plan.bytes_to_fetch)
        with self.registry.write():
            for row in self.subscriptions():
                if of_stored(row["filters"]) == (filters or plan.repository):
                    self.registry.subscriptions.mark_synced(row["name"])
        return found

    def subscriptions(self) -> list[Row]:
        """Returns what is saved: ``name``, ``filters``, ``created_at``, ``synced_at``."""
        return self.registry.subscriptions.rows()

    def subscription(self, name: str) -> Wanted:
        """Returns the filters, or the repository, saved under a name.

        Raises:
            NotFound: there are none.
        """
        for row in self.subscriptions():
            if row["name"] == name:
                return of_stored(row["filters"])
        raise not_saved(name)

    def subscribe(self, name: str, filters: Wanted | str) -> None:
        """Saves filters or a repository under a name, in place of earlier ones; no name of a repository will do."""
        require_name(name)
        with self.registry.write():
            self.registry.subscriptions.put(name, as_stored(self._chosen(filters)))

    def unsubscribe(self, name: str) -> None:
        """Removes the filters saved under a name; no file is touched.

        Raises:
            NotFound: there are none.
        """
        self.subscription(name)
        with self.registry.write():
            self.registry.subscriptions.remove(name)

    # --- repairing

    def damages(self, progress: Progress = _unheard) -> list[Damage]:
        """Reads every fetched file, and returns those that are missing or changed, and what an import told of.

        Args:
            progress: called with the number of files read, and of all.
        """
        self.survey()
        return list(find_damage(self.registry, progress, by_hash=self._second.is_set))

    def repair(
        self, damaged: Iterable[Damage] | None = None, *, refill: bool = False, progress: Progress | None = None
    ) -> list[FetchResult]:
        """Fetches missing and damaged files again, and networks that an import told of, under the names that they had.

        A damaged file stays in its place until its replacement is here; then it is moved to the library's folder
        .quarantine. Another network that the user put in the place of one is kept. What a kill left of fetching a file
        that is here is ended too.

        Args:
            damaged: result of `damages`; None calls it.
            refill: fetch also if nothing is left of the library.
            progress: called with the bytes received, and with their total.

        Raises:
            NotFound: nothing is left of the library, as if its disk were not mounted, and `refill` is not set.
            Stopped: the stop of `clock` was set; what was received is kept.
        """
        damaged = self.damages() if damaged is None else list(damaged)
        if damaged and not refill:
            self.require_library()
        found = [damage for damage in damaged if damage.is_to_fetch]
        begun = begin_repair(self.registry, [damage for damage in found if damage.imported is None], self.folder)
        for damage in found:
            self._begin_imported(damage, begun)
        begun.jobs |= dict.fromkeys(cut_short(self.registry))
        left = [results.of_left(damage) for damage in damaged if not damage.is_to_fetch]
        left += [results.of_irreparable(damage, error) for damage, error in begun.failed]
        self._wanted, self._replaced = begun.wanted, begun.replaced
        self._removed = self._trashed_but(damage.sha256 for damage in found)
        fetched = self._fetched(begun.jobs, progress)
        forget_moved(self.registry, found)
        return left + [
            results.of_repair(result, begun.replaced.get(result.job or 0, ()), begun.put_aside.get(result.job or 0, ()))
            for result in fetched
        ]

    def _trashed_but(self, wanted: Iterable[str | None]) -> dict[str, str]:
        """Returns what is not wanted of archives: what is in the trash, but for what takes a damaged file's place."""
        kept = {*wanted}
        return {key: name for key, name in trashed(self.registry).items() if key not in kept}

    def _begin_imported(self, damage: Damage, begun: Repair) -> None:
        """Queues the job that fetches a network that an import told of; other damage is none of it."""
        if damage.imported is None:
            return
        try:
            job = enqueue_imported(self.registry, self.civitai, self.folder, damage.imported).id
        except Exception as error:
            begun.failed.append((damage, failure_of(error, damage.path)))
            return
        begun.jobs[job] = None
        if damage.imported.reference_sha256 is not None:  # the site may have replaced it
            begun.wanted[job] = damage.imported.reference_sha256

    # --- running jobs

    def _fetched(
        self, jobs: Iterable[int], progress: Progress | None, *, total: int | None = None
    ) -> list[FetchResult]:
        """Runs jobs, and returns the result of each; `total`: bytes to receive, as far as known."""
        jobs = list(jobs)
        if total is None:
            total = sum(self.registry.jobs.get(job).size_bytes or 0 for job in jobs)
        received = 0
        raised: list[BaseException] = []

        def count(more: int) -> None:  # runs in a download thread: errors of `progress` must not fail it
            nonlocal received
            received += more
            if progress is not None and not raised:
                try:
                    progress(received, max(total, received))
                except BaseException as error:
                    raised.append(error)
                    self.clock.stop.set()

        ended: list[Job] = []
        removed = trashed(self.registry, is_emptied=True)
        try:
            for job in self.run(jobs, count):
                ended.append(job)
        except Stopped as stop:
            if raised:
                raise raised[0] from None
            stopped = Stopped(f"stopped after {len(ended)} of {counted(len(jobs), 'file')}", hint=stop.command_hint)
            stopped.exit_code = stop.exit_code
            raise stopped from stop
        # the rows of all are written now: a result may name what another job has placed
        return [results.of_job(self.registry, job, removed) for job in ended]

    def enqueue(self, plan: FetchPlan, failed: list[BadRecord]) -> list[int]:
        """Makes the jobs of a plan whose models are stored, for `run`, and returns their numbers.

        Args:
            plan: of this library.
            failed: records that cannot be used, whose files are left out; receives those that cannot be stored.
        """
        unusable = {bad.id for bad in failed if bad.is_whole and bad.id is not None}
        items = [item for item in plan.items if item.model_id not in unusable]
        with self.registry.write():
            if plan.listings:
                store_listings(self.registry, plan)
            made = [(item, job.id) for item, job in enqueue(self.registry, self.folder, items, failed.append)]
        self._urls |= {job: item.url for item, job in made if item.source == "url"}
        self._wanted = {job: item.digits for item, job in made if item.digits}
        self._replaced, self._removed = damaged_by(self.registry, [job for _, job in made]), {}
        if plan.is_sync:  # what references name is wanted, and so is all that an archive among it has
            self._removed = self._trashed_but(old.sha256 for olds in self._replaced.values() for old in olds)
        return [job for _, job in made]

    def run(self, jobs: Iterable[int], came: Callable[[int], None] = _unheard) -> Iterator[Job]:
        """Runs jobs of the registry, and yields each when it has ended; see `hnetkit.sources.workers.run_jobs`.

        Args:
            jobs: their numbers.
            came: called with the number of further bytes received.

        Raises:
            Stopped: the stop of `clock` was set; what was received is kept.
        """
        limit, policy = self._limit, self.civitai.client.policy
        pictures = HttpClient(
            SitePolicy(policy.base), self.clock, RateLimiter(self.clock, 10.0), _PICTURE_TIMEOUT_S, hidden=policy.token
        )
        site = Downloader(self.civitai.client, limit, civitai_error)
        hub_client = functools.cache(lambda: Hub(self.clock).client)  # one client: its rate limit holds for all files
        runner = JobRunner(
            self.registry,
            self.civitai,
            {
                "civitai": lambda job: site,
                "huggingface": lambda job: Downloader(hub_client(), limit, hub_error),
                "url": lambda job: Downloader(self._plain(job.url), limit, civitai_error),
            },
            SidecarWriter(self.registry, pictures if self._previews else None, self.nsfw) if self._sidecars else None,
            came,
            self._urls,
            self._wanted,
            self._replaced,
            self._removed,
            self._second,
        )
        with Worker(self.library.home / "workers") as worker:
            try:
                yield from run_jobs(self.registry, jobs, runner, worker, self.clock, parallel=self._parallel)
            except BaseException:
                self.clock.stop.clear()  # all threads have ended, and the session can be used again
                raise

    def _plain(self, url: str) -> HttpClient:
        return HttpClient(SitePolicy(Origin.of(url), settled=False), self.clock, RateLimiter(self.clock, 4.0))
