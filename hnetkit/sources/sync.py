"""Keep a library in step with Civitai: store what the site lists, plan what to fetch, find updates, record removals.

The plan is made before anything is touched, and gives the reason for every file that is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from hnetkit.errors import Gone, NetworkFailed, NotAHypernetwork, failure_of
from hnetkit.library.restore import trashed
from hnetkit.registry.catalogue import TOLD
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import SOURCE, Civitai, Filters, halts_everything, is_nsfw, is_past
from hnetkit.sources.civitai_models import BadRecord, CivitaiFile, CivitaiModel, CivitaiVersion, parse_id
from hnetkit.sources.http import Clock
from hnetkit.sources.plans import FetchItem, FetchPlan, as_here, is_replaced, unless_removed
from hnetkit.sources.presence import versions_here

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


def job_key(file_id: int | str) -> str:
    """Returns the permanent job key of a file of Civitai."""
    return f"civitai:{file_id}"


def plan_items(
    registry: Registry,
    civitai: Civitai,
    model: CivitaiModel,
    *,
    all_versions: bool = False,
    only: int | None = None,
    base_models: tuple[str, ...] = (),
) -> list[FetchItem]:
    """Returns what to do with a model's files; only reads.

    Args:
        registry: of the library.
        civitai: gives the URLs.
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
    return [plan_item(registry, civitai, model, version, file) for version in versions for file in model_files(version)]


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
    registry: Registry,
    civitai: Civitai,
    model: CivitaiModel,
    version: CivitaiVersion,
    file: CivitaiFile,
    *,
    is_other: bool = False,
) -> FetchItem:
    """Returns what to do with one file; only reads.

    Args:
        registry: of the library.
        civitai: gives the URL.
        model, version, file: as the site lists them now.
        is_other: whether a model listed earlier has another file with the same number.
    """
    listed = FetchItem(
        SOURCE,
        f"{job_key(file.id)}-{model.id}" if is_other else job_key(file.id),
        civitai.download_url(version.id, file.id),
        file.name,
        model=model.name,
        version=version.name,
        model_id=model.id,
        version_id=version.id,
        file_id=file.id,
        sha256=file.sha256,
        size_bytes=file.size_bytes,
    )
    item = as_here(registry, listed)
    if item.action == "have":
        return item
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


# --- planning a sync

_AGAIN_S = 5.0  # until a model that seems gone is checked again: one answer may be a hiccup
_ASKED_LATELY = timedelta(hours=24)
MOST_CHECKED = 100
"""Unlisted models checked by one command: an imported list may name any number of them."""


def plan_sync(
    registry: Registry,
    civitai: Civitai,
    filters: Filters,
    *,
    all_versions: bool = False,
    listed: Callable[[int], None] = lambda count: None,
) -> FetchPlan:
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
    plan = FetchPlan(filters)
    owners: dict[str, FetchItem] = {}
    for page in civitai.pages(filters, failed=plan.failed.append):
        for model in page:
            with isolate_failure(model.id, plan.failed):
                if (other := other_kind(model)) is not None:
                    raise other
                items = plan_items(
                    registry,
                    civitai,
                    model,
                    all_versions=all_versions,
                    base_models=() if filters.ids else filters.base_models,
                )
                own = [
                    item
                    for item in (_unless_listed_before(registry, civitai, model, item, owners) for item in items)
                    if item is not None
                ]
                plan.items += own
                plan.models.append(model)
                if others := len(items) - len(own):
                    reason = f"left out: files that an earlier model has ({others:,})"
                    plan.failed.append(BadRecord(model.id, reason, others, is_whole=False))
        listed(len(plan.models))
    removed = trashed(registry)
    plan.items = [unless_removed(registry, item, removed) for item in plan.items]
    return plan


def _unless_listed_before(
    registry: Registry, civitai: Civitai, model: CivitaiModel, item: FetchItem, owners: dict[str, FetchItem]
) -> FetchItem | None:
    """Returns the item, or None where a model listed earlier has the same file.

    A file with the same number but other bytes is an item of its own: otherwise whoever is listed first could block
    the files of others.
    """
    first = owners.setdefault(item.key, item)
    if first.model_id == item.model_id:
        return item
    if item.sha256 is None or item.sha256 == first.sha256:
        return None
    version = next(version for version in model.versions if version.id == item.version_id)
    file = next(file for file in version.files if file.id == item.file_id)
    return plan_item(registry, civitai, model, version, file, is_other=True)


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


def check_gone(
    registry: Registry,
    civitai: Civitai,
    clock: Clock,
    plan: FetchPlan,
    failed: list[BadRecord],
    note: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    """Checks known models that a plan for everything does not list, and yields (number, state); see `check_unlisted`.

    Args:
        plan: one for less, or cut short, lets nothing be checked.
        failed: the records that failed, which are not asked for again; receives those that could not be checked.
        note: is told how many are left for the next time.
    """
    filters = plan.filters
    if filters is None or not filters.is_everything or any(bad.cuts_list for bad in plan.failed):
        return
    reported = {str(bad.id) for bad in failed}
    missed = [id for id in unlisted_models(registry, plan.models, nsfw=filters.nsfw) if id not in reported]
    if len(missed) > MOST_CHECKED:
        note(f"{MOST_CHECKED} of {len(missed):,} unlisted models are checked now, the others next time")
    yield from check_unlisted(registry, civitai, clock, missed[:MOST_CHECKED], failed)


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
        published_at: of this version, ISO 8601; None if unknown.
        is_replaced: whether the library has another file in place of `newest`, which its owner has replaced since.
    """

    model: CivitaiModel
    have: tuple[str, ...]
    newest: FetchItem
    published_at: str | None
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
            items: list[FetchItem] = []
            with isolate_failure(model.id, failed):
                items = plan_items(registry, civitai, model)
            have = here[str(model.id)]
            published = {version.id: version.published_at for version in model.versions}
            for item in (item for item in items if item.action != "have"):
                is_known = str(item.version_id) in have
                if not is_known or _has_former(registry, item, items):
                    yield Update(model, tuple(have.values()), item, published[int(str(item.version_id))], is_known)
                    break
    unsure = {id for bad in failed for id in (bad.id, *bad.about)}
    with registry.write():
        for id in set(ids) - answered - unsure:  # neither in the list, nor by its number
            registry.catalogue.set_model_state(SOURCE, str(id), "gone")


def _has_former(registry: Registry, item: FetchItem, items: list[FetchItem]) -> bool:
    """Whether the library has another file in place of an item of a version that it has; `items`: of this version."""
    if done := registry.jobs.of(item.key, "done"):
        return any(is_replaced(job, item) for job in done)
    # only the site's answer about a hash told that this version is here
    return item.sha256 is not None and all(other.action != "have" for other in items)
