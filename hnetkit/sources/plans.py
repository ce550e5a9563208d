"""What would be fetched: a `FetchItem` for each file, whatever its source, and a `FetchPlan` for all of one command.

A plan is made by looking things up alone. Carrying it out stores the sites' records and makes a job for each item.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from hnetkit.errors import HnetkitError, UsageError, failure_of, printable
from hnetkit.library.restore import said_of_trashed
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import Failed, Filters, ignore_record
from hnetkit.sources.civitai_models import BadRecord, CivitaiModel
from hnetkit.sources.huggingface import Listing
from hnetkit.sources.install import safe_stem, split_name
from hnetkit.sources.presence import find_network, path_of_job, warn_if_away
from hnetkit.sources.references import FORMS, Reference, parse_reference, redact_reference
from hnetkit.sources.sidecar_writer import BARE
from hnetkit.sources.trust import redact
from hnetkit.text import argument


@dataclass(frozen=True, slots=True)
class FetchItem:
    """One file that a source has, and what to do with it.

    Attributes:
        source: ``"civitai"``, ``"huggingface"`` or ``"url"``.
        key: permanent key of its job.
        url: complete; the query of a plain address may hold a secret, so it is neither stored nor shown.
        name: of the file, as the source has it.
        action: ``"fetch"``, ``"have"`` or ``"skip"``.
        model, version: their names.
        model_id, version_id, file_id: the source's own numbers or names; None at a plain address.
        sha256, size_bytes: as the source states; None if it does not.
        code, reason: why it is skipped, or what of an archive is not here.
        not_before: ISO 8601; when it becomes available.
        path: of a file of the library with its bytes, if there is one.
        digits: of the hash by which it was asked for: no other content is installed.
        hashes: others than the sha256, for the catalog.
    """

    source: str
    key: str
    url: str = field(repr=False)
    name: str
    action: str = "fetch"
    model: str | None = None
    version: str | None = None
    model_id: int | str | None = None
    version_id: int | str | None = None
    file_id: int | str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    code: str | None = None
    reason: str | None = None
    not_before: str | None = None
    path: str | None = None
    digits: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)


def by_hash(sha256: str) -> str:
    """Returns the address of an item that has none but its file's hash; `pull` takes it as a reference too."""
    return f"sha256:{sha256}"


def is_by_hash(job: Job) -> bool:
    """Whether a job has no source of its own."""
    return job.sha256 is not None and job.url == by_hash(job.sha256)


@dataclass(slots=True)
class FetchPlan:
    """What a command will fetch; nothing has been touched yet.

    Attributes:
        filters: of a sync of Civitai.
        repository: that a sync is of. Where both are None, references name the files.
        items: files, with what to do.
        models: models of Civitai that are to be stored: all that the filters match, or those of the references.
        listings: of repositories of the hub, that are to be stored.
        lost: files of a repository that are here, and not there any more.
        failed: records, and parts of records, that cannot be used.
        errors: references that could not be resolved, each with the reason.
    """

    filters: Filters | None = None
    repository: Reference | None = None
    items: list[FetchItem] = field(default_factory=list)
    models: list[CivitaiModel] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    lost: list[FetchItem] = field(default_factory=list)
    failed: list[BadRecord] = field(default_factory=list)
    errors: list[tuple[str, HnetkitError]] = field(default_factory=list)

    @property
    def is_sync(self) -> bool:
        """Whether filters or a repository say what is wanted, so that what is here already is not worth a word."""
        return self.filters is not None or self.repository is not None

    @property
    def to_fetch(self) -> list[FetchItem]:
        return [item for item in self.items if item.action == "fetch"]

    @property
    def missing(self) -> list[int]:
        """Numbers of the models wanted by number that the site does not have."""
        there = {model.id for model in self.models}.union(*({bad.id, *bad.about} for bad in self.failed))
        return [id for id in self.filters.ids if id not in there] if self.filters else []

    @property
    def empty(self) -> list[CivitaiModel]:
        """Models without any file that may be a network, as the site lists archived ones."""
        told = {item.model_id for item in self.items} | {bad.id for bad in self.failed}
        return [model for model in self.models if model.id not in told]

    @property
    def left_out(self) -> int:
        """Number of files, versions and models that are neither here nor to be fetched."""
        skipped = sum(item.action == "skip" for item in self.items)
        of_records = sum(bad.count for bad in self.failed)
        return skipped + of_records + len(self.missing) + len(self.empty) + len(self.errors)

    @property
    def unsized(self) -> int:
        """Number of files to fetch of which the source states no size."""
        return sum(item.size_bytes is None for item in self.to_fetch)

    @property
    def bytes_to_fetch(self) -> int:
        """Approximate size in bytes; files of unknown size count as 0."""
        return sum(item.size_bytes or 0 for item in self.to_fetch)


def parse_references(
    texts: Sequence[str], sha256: str | None, plan: FetchPlan, *, all_versions: bool = False
) -> list[Reference]:
    """Returns what references mean; one bad one among several goes into the errors of a plan.

    Args:
        texts: as typed.
        sha256: that the files at plain addresses must have.
        plan: receives the errors.
        all_versions: are wanted of each, which only a model has.

    Raises:
        UsageError: none is recognized, or there is a `sha256` for something else than a plain address, or
            `all_versions` for something else than a model.
    """
    parsed: list[Reference] = []
    for text in texts:
        try:
            parsed.append(parse_reference(text))
        except HnetkitError as error:
            if len(texts) == 1:
                raise
            plan.errors.append((redact_reference(text), error))
    if plan.errors and not parsed:
        raise UsageError("none of the references is recognized", hint=f"use {FORMS}")
    if sha256 is not None and (other := next((ref for ref in parsed if not ref.url), None)) is not None:
        raise UsageError(
            f"{other.text}: --sha256 is for plain addresses; listed files are checked against the site's own hash",
            hint="leave out --sha256, or give the hash alone: hnetkit pull HASH",
        )
    others = (ref for ref in parsed if ref.kind != "model" and not ref.may_be_model)
    if all_versions and (other := next(others, None)) is not None:
        message = f"{other.text}: --all-versions is for models of Civitai"
        of_model = None if other.model is None else f"hnetkit pull {argument(f'model:{other.model}')} --all-versions"
        raise UsageError(message, hint=of_model or "leave out --all-versions, or pull what is no model by itself")
    return parsed


def each_once(items: Iterable[FetchItem]) -> list[FetchItem]:
    """Returns each file once, as two references may mean the same: the one with a hash, or else to be fetched."""
    found: dict[str, FetchItem] = {}
    for item in items:
        first = found.setdefault(item.key, item)
        if _rank(item) > _rank(first):
            found[item.key] = item
    return list(found.values())


def _rank(item: FetchItem) -> tuple[bool, bool]:
    return bool(item.digits), item.action == "fetch"


# --- what is here


def as_here(registry: Registry, item: FetchItem) -> FetchItem:
    """Returns a file that is to be fetched, or what `path_here` has of it, and what an archive had besides."""
    path = path_here(registry, item)
    if path is None:
        warn_if_away(registry, item.sha256)
        return item
    partly = (job.reason for job in registry.jobs.of(item.key, "done") if job.code == "partly")
    reason = next(partly, None)
    return replace(item, action="have", path=path, code=None if reason is None else "partly", reason=reason)


def path_here(registry: Registry, item: FetchItem) -> str | None:
    """Returns a file of the library with what the source lists; where it states no hash, with what was installed."""
    path = find_network(registry, item.sha256)
    if path is not None:
        return path
    return next(filter(None, (path_of_job(registry, job) for job in _done_for(registry, item))), None)


def _done_for(registry: Registry, item: FetchItem) -> list[Job]:
    """Returns the job that fetched what the source lists now, as a list of one or none."""
    return [job for job in registry.jobs.of(item.key, "done") if not is_replaced(job, item)]


def is_replaced(job: Job, item: FetchItem) -> bool:
    """Whether the source lists another file by now than the job fetched: by its hash, or without one by its size."""
    if item.sha256 is not None:
        return item.sha256 != job.sha256
    return None not in (item.size_bytes, job.size_bytes) and item.size_bytes != job.size_bytes


def _is_settled(registry: Registry, item: FetchItem) -> bool:
    """Whether the file is here, perhaps installed since the plan was made, and all its jobs are done.

    A job that is not done was killed just before its end, or failed before another one installed the same bytes; one
    with the code `BARE` has sidecars to write.
    """
    here = item.action == "have" or (item.action == "fetch" and path_here(registry, item) is not None)
    return here and all(job.state == "done" and job.code != BARE for job in registry.jobs.of(item.key))


def unless_removed(registry: Registry, item: FetchItem, removed: Mapping[str, str]) -> FetchItem:
    """Returns the item, skipped where its file is in the library's trash: who removed it does not want it again.

    The same holds for an archive of which nothing is missing but what is in the trash.
    """
    if item.action != "fetch" or not removed:
        return item
    came = [sha256 for job in _done_for(registry, item) for sha256 in registry.jobs.networks_of(job.id)]
    missing = [sha256 or "" for sha256 in came if find_network(registry, sha256) is None]
    stated = item.sha256 or ""
    keys = [stated] if stated in removed else missing or [item.key]  # by its key what was replaced at the site since
    if not all(key in removed for key in keys):
        return item
    return replace(item, action="skip", code="removed", reason=said_of_trashed(removed[keys[0]]))


# --- jobs


def enqueue(
    registry: Registry, folder: Path, items: Iterable[FetchItem], failed: Failed = ignore_record
) -> Iterator[tuple[FetchItem, Job]]:
    """Makes jobs for the files to fetch, and records why the others are skipped; call it inside `registry.write()`.

    Args:
        registry: stores the jobs.
        folder: to install into.
        items: of stored models and repositories.
        failed: called with each that cannot be stored.

    Yields:
        The jobs to run, each with its item.
    """
    for (source, model), of_model in groupby(items, key=lambda item: (item.source, item.model_id)):
        wanted = [item for item in of_model if item.code != "removed" and not _is_settled(registry, item)]
        if not wanted:
            continue
        # once: a model may have thousands
        rows = {} if model is None else registry.catalogue.file_rows(source, str(model))
        for item in wanted:
            try:
                row = None if model is None else rows[str(item.version_id), str(item.file_id)]
                job = _enqueue_item(registry, folder, item, row)
            except Exception as error:
                number = model if isinstance(model, int) else None
                failed(BadRecord(number, str(failure_of(error, printable(item.name)[:100]))))
                continue
            if job is not None:
                yield item, job


def _enqueue_item(registry: Registry, folder: Path, item: FetchItem, row: int | None) -> Job | None:
    job = add_job(registry, folder, item, row)
    if item.action == "skip":
        if job.state not in ("refused", "failed"):
            registry.jobs.set_state(job.id, "skipped", code=item.code, reason=item.reason, not_before=item.not_before)
        return None
    registry.jobs.requeue(job.id)
    return registry.jobs.get(job.id)


def add_job(registry: Registry, folder: Path, item: FetchItem, row: int | None) -> Job:
    """Returns the job that fetches a file, which is created, or updated except for its state.

    Args:
        registry: stores it.
        folder: to install into.
        item: the file.
        row: of the file in the catalog; None if it has none.
    """
    stem, suffix = split_name(item.name)
    values = {
        "source": item.source,
        "url": redact(item.url) if item.source == "url" and "://" in item.url else item.url,
        "name": safe_stem(stem, f"civitai-{item.file_id}" if isinstance(item.file_id, int) else "network"),
        "suffix": suffix,
        "folder": str(folder),
        "remote_file_id": row,
        "sha256": item.sha256,
        "size_bytes": item.size_bytes,
    }
    return registry.jobs.add(item.key, values)
