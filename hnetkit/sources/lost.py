"""Jobs for what Civitai does not have any more: by the catalog's records of it, by CivArchive's, or by a hash alone."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hnetkit.errors import HnetkitError, NotAHypernetwork, RemoteError
from hnetkit.registry.columns import Row
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.civarchive import NAME, ArchivedVersion
from hnetkit.sources.civitai import SOURCE, Civitai
from hnetkit.sources.install import SUFFIXES, safe_stem, split_name
from hnetkit.sources.mirrors import SecondSource, by_hash
from hnetkit.sources.presence import find_network, requeue_unless_here
from hnetkit.sources.references import Reference, format_of
from hnetkit.sources.sync import LARGE_TYPES, OTHER_FILES, job_key, job_values


def enqueue_lost(
    registry: Registry,
    civitai: Civitai,
    second: SecondSource,
    folder: Path,
    ref: Reference,
    error: HnetkitError,
    *,
    all_versions: bool = False,
) -> list[Job]:
    """Makes the jobs that fetch what a reference to Civitai means, from others, since the site does not have it.

    Args:
        registry: stores the jobs; its catalog may know what the site had.
        civitai: gives the URLs, of which one may still serve its file.
        second: knows who else may have a file.
        folder: to install in.
        ref: to a model, a version or a hash.
        error: why the site does not give it.
        all_versions: of the model, not only the newest.

    Raises:
        HnetkitError: `error`, where nobody has it, with who was asked.
        NotAHypernetwork: CivArchive calls it something else.
    """
    asked: list[str] = []
    rows = _catalogued(registry, ref, all_versions=all_versions)
    if rows and ref.kind != "hash" and all(find_network(registry, row["sha256"]) is not None for row in rows):
        raise error  # that it is here already is no answer to the question for a model
    jobs = [_enqueue_row(registry, civitai, folder, row) for row in rows]
    if not jobs and ref.kind == "hash" and len(ref.digits) == 64:
        found = second.look(ref.digits)
        asked += found.asked
        if found.places:
            jobs.append(enqueue_by_hash(registry, folder, ref.digits, name=found.name, size_bytes=found.size_bytes))
    elif not jobs:
        jobs += _of_archive(registry, second, folder, ref, asked)
    if not jobs:
        if asked:
            error.args = (f"{error}; also asked: {'; '.join(asked)}",)
        raise error
    return jobs


def enqueue_by_hash(registry: Registry, folder: Path, sha256: str, *, name: str | None, size_bytes: int | None) -> Job:
    """Makes the job that fetches a file by its hash, from whoever has it.

    Args:
        registry: stores the job.
        folder: to install in.
        sha256: that the file must have.
        name: of the file; None takes the first digits of the hash.
        size_bytes: None where it is unknown.
    """
    stem, suffix = split_name(name or f"{sha256[:10]}.pt")
    values = {
        "source": "url",
        "url": by_hash(sha256),
        "name": safe_stem(stem, sha256[:10]),
        "suffix": suffix,
        "folder": str(folder),
        "remote_file_id": None,
        "sha256": sha256,
        "size_bytes": size_bytes,
    }
    with registry.write():
        return requeue_unless_here(registry, registry.jobs.add(by_hash(sha256), values))


def _catalogued(registry: Registry, ref: Reference, *, all_versions: bool) -> list[Row]:
    """Returns the files that the catalog has of what is meant, each with a sha256 that a site stated."""
    with registry.write():
        rows = [row for row in _rows(registry, ref) if row["sha256"] and _may_be_network(row)]
    if ref.kind == "hash" and len({row["sha256"] for row in rows}) > 1:  # too few digits
        return []
    if ref.kind == "model" and ref.file is None and not all_versions:
        newest = max((_age(row) for row in rows), default=None)
        rows = [row for row in rows if _age(row) == newest]
    if ref.format is not None and ref.file is None:
        several = Counter(row["version_id"] for row in rows)
        rows = [row for row in rows if several[row["version_id"]] == 1 or _format(row) == ref.format]
    return list({row["sha256"]: row for row in reversed(rows)}.values())


def _enqueue_row(registry: Registry, civitai: Civitai, folder: Path, row: Row) -> Job:
    if row["source"] != SOURCE:
        name = row["file_name"].rpartition("/")[2]
        return enqueue_by_hash(registry, folder, row["sha256"], name=name, size_bytes=row["size_bytes"])
    numbers = int(row["version_id"]), int(row["file_id"])
    values = job_values(civitai, folder, numbers, row["file_name"], row["remote_file_id"], row["size_bytes"])
    with registry.write():
        job = registry.jobs.add(job_key(row["file_id"]), values | {"sha256": row["sha256"]})
        registry.jobs.requeue(job.id)
        return registry.jobs.get(job.id)


def _rows(registry: Registry, ref: Reference) -> list[Row]:
    if ref.kind == "hash":
        return registry.catalogue.files_hashed(ref.digits)
    if ref.kind == "model":
        rows = registry.catalogue.files_of(SOURCE, model=str(ref.id))
    else:
        model = None if ref.model is None else str(ref.model)
        rows = registry.catalogue.files_of(SOURCE, model=model, version=str(ref.id))
    return [row for row in rows if ref.file is None or row["file_id"] == str(ref.file)]


def _format(row: Row) -> str:
    return format_of(row["site_format"], row["file_name"])


def _may_be_network(row: Row) -> bool:
    kind, file = (row["type"] or "").lower(), (row["file_type"] or "Model").lower()
    return kind not in LARGE_TYPES and file not in OTHER_FILES


def _age(row: Row) -> tuple[str, int]:
    return row["published_at"] or "", int(row["version_id"])


def _of_archive(
    registry: Registry, second: SecondSource, folder: Path, ref: Reference, asked: list[str]
) -> Iterator[Job]:
    """Yields a job for each file of a version that CivArchive knows. Which bytes these are, it alone says."""
    model = ref.id if ref.kind == "model" else ref.model
    if model is None:  # the archive numbers versions within models
        return
    try:
        found = second.archived_version(model, None if ref.kind == "model" else ref.id)
    except RemoteError as error:
        asked.append(str(error))
        return
    if found is None:
        return
    _refuse_other_kind(found, ref)
    files = [file for file in found.files if ref.file is None and _has_model_suffix(file.name)]
    if ref.format is not None and len(files) > 1:
        files = [file for file in files if format_of(None, file.name or "") == ref.format]
    if files:
        warnings.warn(f"{ref.text}: the site does not say which bytes it had; {NAME} does", stacklevel=2)
    for file in files:
        yield enqueue_by_hash(registry, folder, file.sha256, name=file.name, size_bytes=file.size_bytes)


def _refuse_other_kind(found: ArchivedVersion, ref: Reference) -> None:
    if (found.type or "").lower() in LARGE_TYPES:
        reason = f"{ref.text}: not a hypernetwork: {NAME} calls it a {found.type}"
        raise NotAHypernetwork(reason, kind=str(found.type).lower())


def _has_model_suffix(name: str | None) -> bool:
    return name is None or name.lower().endswith(tuple(SUFFIXES))
