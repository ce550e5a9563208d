"""Keep a library in step with Civitai: store what the site lists, plan what to fetch, find updates, record removals.

The plan is made before anything is touched, and gives the reason for every file that is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from itertools import groupby
from pathlib import Path

from hnetkit.errors import Gone, NetworkFailed, NotAHypernetwork, failure_of, printable
from hnetkit.library.remove import said_of_trashed, trashed
from hnetkit.registry.catalogue import TOLD
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import SOURCE, Civitai, Failed, Filters, halts_everything, ignore_record, is_nsfw, is_past
from hnetkit.sources.civitai_models import BadRecord, CivitaiFile, CivitaiModel, CivitaiVersion, parse_id
from hnetkit.sources.http import Clock
from hnetkit.sources.install import BARE, safe_stem, split_name
from hnetkit.sources.presence import find_network, path_of_job, versions_here

# --- storing the site's records

_MODEL = (
    "name",
    "type",
    "creator",
    "description",
    "tags",
    "nsfw_level",
    "availability",
    "commercial_use",
    "allow_no_credit",
    "allow_derivatives",
    "allow_different_license",
    "downloads",
    "state",
)
_VERSION = (
    "name",
    "base_model",
    "published_at",
    "early_access_until",
    "availability",
    "usage",
    "nsfw_level",
    "trained_words",
    "strength",
)
_FILE = ("name", "type", "size_bytes", "format", "fp", "scan", "is_primary", "sha256", "hashes")
_IMAGE = ("url", "type", "nsfw_level", "width", "height")


def store_model(registry: Registry, model: CivitaiModel, *, whole: bool = False) -> None:
    """Stores a model with its versions and files in the catalog; call it inside `registry.write()`.

    Args:
        registry: stores it.
        model: from an answer of the site.
        whole: whether the answer holds all versions, as listings do not; the others are then marked gone.
    """
    row = registry.catalogue.put_model(SOURCE, str(model.id), {key: getattr(model, key) for key in _MODEL}, model.raw)
    for version in model.versions:
        _store_version(registry, row, version)
    if whole and model.versions and not model.left_out:  # an empty list is a known fault of the site and proves nothing
        registry.catalogue.mark_gone(row, keep_versions=[str(version.id) for version in model.versions])


def _store_version(registry: Registry, model: int, version: CivitaiVersion) -> None:
    row = registry.catalogue.put_version(model, str(version.id), {key: getattr(version, key) for key in _VERSION})
    registry.catalogue.put_images(row, [{key: getattr(image, key) for key in _IMAGE} for image in version.images])
    for file in version.files:
        registry.catalogue.put_file(row, str(file.id), {key: getattr(file, key) for key in _FILE})


def store_told(registry: Registry, model: CivitaiModel) -> None:
    """Stores a model as a dump tells of it, and keeps what the site itself said; call it inside `registry.write()`."""
    id = str(model.id)
    known = registry.catalogue.model(SOURCE, id)
    if known is None or known["last_seen"] == TOLD:
        store_model(registry, model)
        registry.catalogue.mark_told(SOURCE, id)
        return
    listed = {version for version, _ in registry.catalogue.file_rows(SOURCE, id)}
    for version in model.versions:
        if str(version.id) not in listed:
            _store_version(registry, known["id"], version)


# --- planning the files of a model

_LASTING = frozenset({"no-access", "archived", "gone"})  # failures that do not change within a day
_A_DAY = timedelta(days=1)
LARGE_TYPES = frozenset({"checkpoint", "controlnet", "dora", "locon", "lora", "motionmodule", "upscaler", "vae"})
OTHER_FILES = frozenset({"training data", "config", "workflow", "other", "negative", "vae"})


@dataclass(frozen=True, slots=True)
class SyncItem:
    """One file of a version, and what to do with it.

    Attributes:
        action: ``"fetch"``, ``"have"`` or ``"skip"``.
        code, reason: why it is skipped.
        not_before: ISO 8601; when it becomes available.
        path: of a file of the library with its bytes, if there is one.
        is_other: whether a model listed earlier has another file with the same number.
    """

    model: CivitaiModel
    version: CivitaiVersion
    file: CivitaiFile
    action: str
    code: str | None = None
    reason: str | None = None
    not_before: str | None = None
    path: str | None = None
    is_other: bool = False

    @property
    def key(self) -> str:
        return f"{job_key(self.file.id)}-{self.model.id}" if self.is_other else job_key(self.file.id)


def job_key(file_id: int | str) -> str:
    """Returns the permanent job key of a file of Civitai."""
    return f"civitai:{file_id}"


def plan_items(
    registry: Registry,
    model: CivitaiModel,
    *,
    all_versions: bool = False,
    only: int | None = None,
    base_models: tuple[str, ...] = (),
) -> list[SyncItem]:
    """Returns what to do with a model's files; only reads.

    Args:
        registry: of the library.
        model: as the site lists it now.
        all_versions: of the model, not only the newest that has files.
        only: number of the one version wanted.
        base_models: only versions for one of these, by the site's names, or for one that it does not state.
    """
    versions = [v for v in model.versions if model_files(v) and only in (None, v.id)]
    if base_models:
        versions = [v for v in versions if v.base_model in (None, *base_models)]
    if not all_versions and only is None:
        versions = versions[:1]
    return [plan_item(registry, model, version, file) for version in versions for file in model_files(version)]


def other_kind(model: CivitaiModel) -> NotAHypernetwork | None:
    """Returns the refusal of a model that the site calls something else, which may have gigabytes."""
    if model.type is None or model.type.lower() not in LARGE_TYPES:
        return None
    hint = "if the site is wrong, download the file in a browser, then: hnetkit scan FOLDER"
    reason = f"{model.name} is not a hypernetwork: the site calls it a {model.type}"
    return NotAHypernetwork(reason, kind=model.type.lower(), hint=hint)


def model_files(version: CivitaiVersion) -> list[CivitaiFile]:
    """Returns the files of a version that may be networks: no training data, no configs."""
    return [file for file in version.files if (file.type or "Model").lower() not in OTHER_FILES]


def plan_item(
    registry: Registry, model: CivitaiModel, version: CivitaiVersion, file: CivitaiFile, *, is_other: bool = False
) -> SyncItem:
    """Returns what to do with one file; only reads."""
    item = SyncItem(model, version, file, "fetch", is_other=is_other)
    path = _path_here(registry, item)
    if path is not None:
        return replace(item, action="have", path=path)
    if version.usage not in (None, "Download"):
        return replace(item, action="skip", code="no-access", reason="the owner has disabled downloads")
    if version.early_access_until and not is_past(version.early_access_until):
        until = version.early_access_until
        reason = f"early access until {until[:10]}"
        return replace(item, action="skip", code="early-access", reason=reason, not_before=until)
    for job in registry.jobs.of(item.key, "refused", "failed"):
        age = datetime.now(timezone.utc) - datetime.fromisoformat(job.updated_at)
        lasts = job.code in _LASTING and abs(age) < _A_DAY  # abs: the clock may have been wrong
        same = (job.sha256, job.size_bytes) == (file.sha256, file.size_bytes)
        if same and (job.state == "refused" or lasts):
            return replace(item, action="skip", code=job.code, reason=job.reason)
    return item


def _path_here(registry: Registry, item: SyncItem) -> str | None:
    """Returns a file of the library with what the site lists now; where it states no hash, with what was installed."""
    path = find_network(registry, item.file.sha256)
    if path is not None:
        return path
    return next(filter(None, (path_of_job(registry, job) for job in _done_for(registry, item))), None)


def _done_for(registry: Registry, item: SyncItem) -> list[Job]:
    """Returns the job that fetched what the site lists now, as a list of one or none."""
    return [job for job in registry.jobs.of(item.key, "done") if not is_replaced(job, item.file)]


def is_replaced(job: Job, file: CivitaiFile) -> bool:
    """Whether the site lists another file by now than the job fetched: by its hash, or without one by its size."""
    if file.sha256 is not None:
        return file.sha256 != job.sha256
    return None not in (file.size_bytes, job.size_bytes) and file.size_bytes != job.size_bytes


def enqueue_items(
    registry: Registry, civitai: Civitai, folder: Path, items: Iterable[SyncItem], failed: Failed = ignore_record
) -> Iterator[Job]:
    """Makes jobs for the files to fetch, and records why the others are skipped; call it inside `registry.write()`.

    Args:
        registry: stores the jobs.
        civitai: gives the URLs.
        folder: to install into.
        items: of stored models.
        failed: called with each that cannot be stored.

    Yields:
        The jobs to run.
    """
    for _, of_model in groupby(items, key=lambda item: item.model.id):
        wanted = [item for item in of_model if item.code != "removed" and not _is_settled(registry, item)]
        if not wanted:
            continue
        files = registry.catalogue.file_rows(SOURCE, str(wanted[0].model.id))  # once: a model may have thousands
        for item in wanted:
            try:
                job = _enqueue_item(registry, civitai, folder, item, files[str(item.version.id), str(item.file.id)])
            except Exception as error:
                failed(BadRecord(item.model.id, str(failure_of(error, printable(item.file.name)[:100]))))
                continue
            if job is not None:
                yield job


def _is_settled(registry: Registry, item: SyncItem) -> bool:
    """Whether the file is here, perhaps installed since the plan was made, and all its jobs are done.

    A job that is not done was killed just before its end, or failed before another one installed the same bytes; one
    with the code `BARE` has sidecars to write.
    """
    here = item.action == "have" or (item.action == "fetch" and _path_here(registry, item) is not None)
    return here and all(job.state == "done" and job.code != BARE for job in registry.jobs.of(item.key))


def _enqueue_item(registry: Registry, civitai: Civitai, folder: Path, item: SyncItem, row: int) -> Job | None:
    numbers = item.version.id, item.file.id
    values = job_values(civitai, folder, numbers, item.file.name, row, item.file.size_bytes)
    job = registry.jobs.add(item.key, values | {"sha256": item.file.sha256})
    if item.action == "skip":
        if job.state not in ("refused", "failed"):
            registry.jobs.set_state(job.id, "skipped", code=item.code, reason=item.reason, not_before=item.not_before)
        return None
    registry.jobs.requeue(job.id)
    return registry.jobs.get(job.id)


def job_values(
    civitai: Civitai, folder: Path, numbers: tuple[int, int], name: str, row: int | None, size_bytes: int | None
) -> dict[str, object]:
    """Returns the values of the job that fetches a file, but for its sha256.

    Args:
        civitai: gives the URL.
        folder: to install in.
        numbers: of version and file.
        name: of the file, as the site has it.
        row: of the file in the catalog; None if it has none.
        size_bytes: as the site states it; None if it does not.
    """
    stem, suffix = split_name(name)
    return {
        "source": SOURCE,
        "url": civitai.download_url(*numbers),
        "name": safe_stem(stem, f"civitai-{numbers[1]}"),
        "suffix": suffix,
        "folder": str(folder),
        "remote_file_id": row,
        "size_bytes": size_bytes,
    }


# --- planning a sync

_AGAIN_S = 5.0  # until a model that seems gone is checked again: one answer may be a hiccup
_ASKED_LATELY = timedelta(hours=24)
MOST_CHECKED = 100
"""Unlisted models checked by one command: an imported list may name any number of them."""


@dataclass(slots=True)
class SyncPlan:
    """What a sync will do; nothing has been touched yet.

    Attributes:
        filters: which models are wanted.
        models: all listed models that match.
        items: their files, with what to do.
        failed: records, and parts of records, that cannot be used.
    """

    filters: Filters
    models: list[CivitaiModel] = field(default_factory=list)
    items: list[SyncItem] = field(default_factory=list)
    failed: list[BadRecord] = field(default_factory=list)

    @property
    def to_fetch(self) -> list[SyncItem]:
        return [item for item in self.items if item.action == "fetch"]

    @property
    def missing(self) -> list[int]:
        """Numbers of the models wanted by number that the site does not have."""
        there = {model.id for model in self.models}.union(*({bad.id, *bad.about} for bad in self.failed))
        return [id for id in self.filters.ids if id not in there]

    @property
    def empty(self) -> list[CivitaiModel]:
        """Models without any file that may be a network, as the site lists archived ones."""
        told = {item.model.id for item in self.items} | {bad.id for bad in self.failed}
        return [model for model in self.models if model.id not in told]

    @property
    def left_out(self) -> int:
        """Number of files, versions and models that are neither here nor to be fetched."""
        skipped = sum(item.action == "skip" for item in self.items)
        return skipped + sum(bad.count for bad in self.failed) + len(self.missing) + len(self.empty)

    @property
    def unsized(self) -> int:
        """Number of files to fetch of which the site states no size."""
        return sum(item.file.size_bytes is None for item in self.to_fetch)

    @property
    def bytes_to_fetch(self) -> int:
        """Approximate size in bytes; files of unknown size count as 0."""
        return sum(item.file.size_bytes or 0 for item in self.to_fetch)


def plan_sync(
    registry: Registry,
    civitai: Civitai,
    filters: Filters,
    *,
    all_versions: bool = False,
    listed: Callable[[int], None] = lambda count: None,
) -> SyncPlan:
    """Lists the wanted models, and returns what to fetch.

    Args:
        registry: of the library.
        civitai: lists the models.
        filters: which models.
        all_versions: of each model, not only the newest.
        listed: called with the number of models listed so far.

    Raises:
        RemoteError: the listing failed.
    """
    plan = SyncPlan(filters)
    owners: dict[str, SyncItem] = {}
    for page in civitai.pages(filters, failed=plan.failed.append):
        for model in page:
            with isolate_failure(model.id, plan.failed):
                if (other := other_kind(model)) is not None:
                    raise other
                items = plan_items(
                    registry, model, all_versions=all_versions, base_models=() if filters.ids else filters.base_models
                )
                own = [
                    item
                    for item in (_unless_listed_before(registry, item, owners) for item in items)
                    if item is not None
                ]
                plan.items += own
                plan.models.append(model)
                if others := len(items) - len(own):
                    reason = f"left out: files that an earlier model has ({others:,})"
                    plan.failed.append(BadRecord(model.id, reason, others, is_whole=False))
        listed(len(plan.models))
    removed = trashed(registry)
    plan.items = [_unless_removed(registry, item, removed) for item in plan.items]
    return plan


def _unless_removed(registry: Registry, item: SyncItem, removed: Mapping[str, str]) -> SyncItem:
    """Returns the item, skipped where its file is in the library's trash: who removed it does not want it again.

    The same holds for an archive of which nothing is missing but what is in the trash.
    """
    if item.action != "fetch" or not removed:
        return item
    came = [sha256 for job in _done_for(registry, item) for sha256 in registry.jobs.networks_of(job.id)]
    missing = [sha256 or "" for sha256 in came if find_network(registry, sha256) is None]
    stated = item.file.sha256 or ""
    keys = [stated] if stated in removed else missing or [item.key]  # by its key what was replaced at the site since
    if not all(key in removed for key in keys):
        return item
    return replace(item, action="skip", code="removed", reason=said_of_trashed(removed[keys[0]]))


def _unless_listed_before(registry: Registry, item: SyncItem, owners: dict[str, SyncItem]) -> SyncItem | None:
    """Returns the item, or None where a model listed earlier has the same file.

    A file with the same number but other bytes is an item of its own: otherwise whoever is listed first could block
    the files of others.
    """
    first = owners.setdefault(item.key, item)
    if first.model.id == item.model.id:
        return item
    if item.file.sha256 is None or item.file.sha256 == first.file.sha256:
        return None
    return plan_item(registry, item.model, item.version, item.file, is_other=True)


@contextmanager
def isolate_failure(id: int | None, failed: list[BadRecord], what: str | None = None) -> Iterator[None]:
    """Turns any failure of the block into a record of one model, so that the other models go on.

    Args:
        id: number of the model.
        failed: receives the record.
        what: failed, in words, where it is no model.

    Raises:
        RateLimited: the site would answer every request like this.
        Stopped: the user asked for it.
    """
    try:
        yield
    except Exception as error:
        if halts_everything(error):
            raise
        failed.append(BadRecord(id, str(failure_of(error, what or f"model {id}"))))


def store_models(registry: Registry, models: Iterable[CivitaiModel]) -> list[BadRecord]:
    """Stores models, each in its own transaction, and returns those that could not be stored."""
    failed: list[BadRecord] = []
    for model in models:
        with isolate_failure(model.id, failed), registry.write():
            store_model(registry, model)
            for job in registry.jobs.of(_record_key(model.id), "refused"):
                registry.jobs.set_state(job.id, "done")
    return failed


def store_failures(registry: Registry, failed: Iterable[BadRecord]) -> None:
    """Stores which records of the site could not be used, and why."""
    nothing = {"url": "", "suffix": "", "folder": "", "remote_file_id": None, "sha256": None, "size_bytes": None}
    with registry.write():
        for bad in failed:
            if bad.id is not None:
                values = {"source": SOURCE, "name": f"model-{bad.id}", **nothing}
                job = registry.jobs.add(_record_key(bad.id), values)
                registry.jobs.set_state(job.id, "refused", code="record", reason=bad.reason)


def _record_key(id: int) -> str:
    return f"{SOURCE}:model:{id}"


def unlisted_models(registry: Registry, models: Iterable[CivitaiModel], *, nsfw: bool = True) -> list[str]:
    """Returns the numbers of known models that a listing of everything lacks and that were not checked lately.

    Args:
        registry: of the library.
        models: that are listed.
        nsfw: whether the listing had those that are not safe for work; their absence says nothing otherwise.

    The one seen longest ago comes first: a command checks only `MOST_CHECKED`.
    """
    listed = {str(model.id) for model in models}
    now = datetime.now(timezone.utc)
    first, last = ((now + age).isoformat(timespec="seconds") for age in (-_ASKED_LATELY, _ASKED_LATELY))
    rows = registry.catalogue.listed_models(SOURCE, not_seen=(first, last))  # times after now come from a wrong clock
    rows.sort(key=lambda row: str(row["last_seen"]))
    missed = [row for row in rows if row["remote_id"] not in listed]
    if not nsfw:
        raw = registry.catalogue.raw
        missed = [row for row in missed if not is_nsfw(raw(SOURCE, row["remote_id"]), row["nsfw_level"])]
    return [row["remote_id"] for row in missed]


def check_unlisted(
    registry: Registry, civitai: Civitai, clock: Clock, ids: Iterable[str], failed: list[BadRecord] | None = None
) -> Iterator[tuple[str, str]]:
    """Requests models by number, stores their state, and yields (number, state).

    Args:
        registry: stores it.
        civitai: is asked.
        clock: waits before a second check.
        ids: numbers of models; absence from a listing proves nothing.
        failed: receives those that could not be checked.
    """
    failed = [] if failed is None else failed
    doubtful: list[str] = []
    for id in ids:
        state = None
        with isolate_failure(parse_id(id), failed):
            state = _check_state(registry, civitai, id)
            if state == "gone":
                doubtful.append(id)
        if state not in (None, "gone"):
            yield id, str(state)
    if doubtful:
        clock.sleep(_AGAIN_S)  # once for all: an import may name thousands that never existed
    for id in doubtful:
        state = None
        with isolate_failure(parse_id(id), failed):
            state = _check_state(registry, civitai, id)
            if state == "gone":
                with registry.write():
                    registry.catalogue.set_model_state(SOURCE, id, "gone")
        if state is not None:
            yield id, state


def _check_state(registry: Registry, civitai: Civitai, id: str) -> str:
    """Returns the state of a model, and stores what the site says of it."""
    number = parse_id(id)
    if number is None:
        raise NetworkFailed(f"{id[:40]}: no number of a model")
    try:
        model = civitai.model(number)
    except Gone:
        return "gone"
    with registry.write():
        store_model(registry, model, whole=True)
        registry.catalogue.set_model_state(SOURCE, id, model.state)
    return model.state


@dataclass(frozen=True, slots=True)
class Update:
    """A model of which the site has a newer version than the library.

    Attributes:
        have: names of the versions in the library.
        newest: a file of the version that is not; where it cannot be fetched now, its `reason` says why.
        is_replaced: whether the library has another file in place of `newest`, which its owner has replaced since.
    """

    model: CivitaiModel
    have: tuple[str, ...]
    newest: SyncItem
    is_replaced: bool = False


def find_updates(registry: Registry, civitai: Civitai, failed: list[BadRecord] | None = None) -> Iterator[Update]:
    """Yields the models of which the library has some version but not the newest.

    Args:
        registry: of the library.
        civitai: lists the models.
        failed: receives the records that cannot be used.
    """
    failed = [] if failed is None else failed
    here = versions_here(registry, SOURCE)
    ids = tuple(sorted(filter(None, map(parse_id, here))))
    answered: set[int] = set()
    for page in civitai.pages(Filters(ids=ids), failed=failed.append) if ids else ():
        failed += store_models(registry, page)
        answered |= {model.id for model in page}
        for model in page:
            items: list[SyncItem] = []
            with isolate_failure(model.id, failed):
                items = plan_items(registry, model)
            have = here[str(model.id)]
            for item in (item for item in items if item.action != "have"):
                is_known = str(item.version.id) in have
                if not is_known or _has_former(registry, item, items):
                    yield Update(model, tuple(have.values()), item, is_known)
                    break
    unsure = {id for bad in failed for id in (bad.id, *bad.about)}
    with registry.write():
        for id in set(ids) - answered - unsure:  # neither in the list, nor by its number
            registry.catalogue.set_model_state(SOURCE, str(id), "gone")


def _has_former(registry: Registry, item: SyncItem, items: list[SyncItem]) -> bool:
    """Whether the library has another file in place of an item of a version that it has; `items`: of this version."""
    if done := registry.jobs.of(item.key, "done"):
        return any(is_replaced(job, item.file) for job in done)
    # only the site's answer about a hash told that this version is here
    return item.file.sha256 is not None and all(other.action != "have" for other in items)
