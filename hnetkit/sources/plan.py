"""What to fetch of what a site lists: decided before anything is touched, with the reason for everything left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import groupby
from pathlib import Path

from hnetkit.errors import failure_of, printable
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import Civitai, Failed, ignored, is_past
from hnetkit.sources.here import brought, path_of
from hnetkit.sources.names import safe_stem, split_name
from hnetkit.sources.pages import BadRecord
from hnetkit.sources.record import SOURCE
from hnetkit.sources.shapes import Model, RemoteFile, Version

_LASTING = frozenset({"no-access", "archived", "gone"})  # failures that asking again the same day does not change
_A_DAY = timedelta(days=1)
_OTHER_FILES = frozenset({"training data", "config", "workflow", "other", "negative", "vae"})


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a version, and what is to be done with it.

    Attributes:
        action: ``"fetch"``, ``"have"``, or ``"skip"``.
        code, reason: why it is skipped.
        not_before: ISO 8601: when it can be had.
        is_other: whether another model lists another file of the same number, and before it.
    """

    model: Model
    version: Version
    file: RemoteFile
    action: str
    code: str | None = None
    reason: str | None = None
    not_before: str | None = None
    is_other: bool = False

    @property
    def key(self) -> str:
        return f"{key_of(self.file.id)}-{self.model.id}" if self.is_other else key_of(self.file.id)


def key_of(file_id: int | str) -> str:
    """The job of a file of Civitai, for ever."""
    return f"civitai:{file_id}"


def items_of(registry: Registry, model: Model, *, all_versions: bool = False, only: int | None = None) -> list[Item]:
    """Returns what to do with a model's files; only reads.

    Args:
        registry: knows what is there.
        model: as the site says it now.
        all_versions: not only the newest that has files.
        only: the number of one version.
    """
    versions = [v for v in model.versions if model_files(v) and only in (None, v.id)]
    if not all_versions and only is None:
        versions = versions[:1]
    return [item_of(registry, model, version, file) for version in versions for file in model_files(version)]


def model_files(version: Version) -> list[RemoteFile]:
    """Returns the files of a version that may be networks: no training data, no settings."""
    return [file for file in version.files if (file.type or "Model").lower() not in _OTHER_FILES]


def item_of(registry: Registry, model: Model, version: Version, file: RemoteFile, *, is_other: bool = False) -> Item:
    """Returns what to do with one file; only reads."""
    item = Item(model, version, file, "fetch", is_other=is_other)
    if _is_here(registry, item):
        return replace(item, action="have")
    if version.usage not in (None, "Download"):
        return replace(item, action="skip", code="no-access", reason="its owner allows no download")
    if version.early_access_until and not is_past(version.early_access_until):
        until = version.early_access_until
        reason = f"early access until {until[:10]}"
        return replace(item, action="skip", code="early-access", reason=reason, not_before=until)
    for job in registry.jobs.of(item.key, "refused", "failed"):
        age = datetime.now(timezone.utc) - datetime.fromisoformat(job.updated_at)
        lasts = job.code in _LASTING and abs(age) < _A_DAY  # a clock may have been wrong
        same = (job.sha256, job.size_bytes) == (file.sha256, file.size_bytes)
        if same and (job.state == "refused" or lasts):
            return replace(item, action="skip", code=job.code, reason=job.reason)
    return item


def _is_here(registry: Registry, item: Item) -> bool:
    """Whether the bytes that the site lists now are on the disk, in any file; without a hash, what came will do."""
    file = item.file
    if path_of(registry, file.sha256) is not None:
        return True
    done = registry.jobs.of(item.key, "done")
    return any(file.sha256 in (None, job.sha256) and brought(registry, job) is not None for job in done)


def enqueue(
    registry: Registry, civitai: Civitai, folder: Path, items: Iterable[Item], failed: Failed = ignored
) -> Iterator[Job]:
    """Makes jobs of what is to be fetched, and keeps why the rest is skipped; call it inside of `registry.write()`.

    Args:
        items: of models that are stored.
        failed: told of each that cannot be stored.

    Yields:
        The jobs that are to be carried out.
    """
    for _, of_model in groupby(items, key=lambda item: item.model.id):
        wanted = [item for item in of_model if not _is_settled(registry, item)]
        if not wanted:
            continue
        files = registry.catalogue.file_rows(SOURCE, str(wanted[0].model.id))  # once: a model may have thousands
        for item in wanted:
            try:
                job = _enqueued(registry, civitai, folder, item, files[str(item.version.id), str(item.file.id)])
            except Exception as error:
                failed(BadRecord(item.model.id, str(failure_of(error, printable(item.file.name)[:100]))))
                continue
            if job is not None:
                yield job


def _is_settled(registry: Registry, item: Item) -> bool:
    """Whether it is here, perhaps brought since the plan was made, and its jobs know.

    Others were killed just before their end, or failed before another job brought their bytes.
    """
    here = item.action == "have" or (item.action == "fetch" and _is_here(registry, item))
    return here and all(job.state == "done" for job in registry.jobs.of(item.key))


def _enqueued(registry: Registry, civitai: Civitai, folder: Path, item: Item, row: int) -> Job | None:
    job = registry.jobs.add(item.key, _values(item, civitai, folder, row))
    if item.action == "skip":
        if job.state not in ("refused", "failed"):
            registry.jobs.set_state(job.id, "skipped", code=item.code, reason=item.reason, not_before=item.not_before)
        return None
    registry.jobs.requeue(job.id)
    return registry.jobs.get(job.id)


def _values(item: Item, civitai: Civitai, folder: Path, row: int | None) -> dict[str, object]:
    stem, suffix = split_name(item.file.name)
    return {
        "source": "civitai",
        "url": civitai.download_url(item.version.id, item.file.id),
        "name": safe_stem(stem, f"civitai-{item.file.id}"),
        "suffix": suffix,
        "folder": str(folder),
        "remote_file_id": row,
        "sha256": item.file.sha256,
        "size_bytes": item.file.size_bytes,
    }
