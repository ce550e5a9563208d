"""What Civitai does not have any more: by the catalog's records of it, by CivArchive's, or by a hash alone."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator

from hnetkit.errors import Gone, HnetkitError, NotAHypernetwork, RemoteError, Unreachable
from hnetkit.registry.columns import Row
from hnetkit.registry.store import Registry
from hnetkit.sources.civarchive import NAME, ArchivedVersion
from hnetkit.sources.civitai import SOURCE, Civitai
from hnetkit.sources.civitai_references import resolve_civitai
from hnetkit.sources.install import SUFFIXES
from hnetkit.sources.mirrors import SecondSource
from hnetkit.sources.plans import FetchItem, FetchPlan, as_here, by_hash
from hnetkit.sources.presence import find_network
from hnetkit.sources.references import Reference, format_of
from hnetkit.sources.sync import LARGE_TYPES, OTHER_FILES, job_key


def add_civitai(
    registry: Registry,
    civitai: Civitai,
    second: SecondSource,
    ref: Reference,
    plan: FetchPlan,
    *,
    all_versions: bool,
) -> None:
    """Adds to a plan what a reference to Civitai means, from there or else from others.

    Raises:
        HnetkitError: nobody has it; see `resolve_civitai` and `plan_lost`.
    """
    try:
        model, items = resolve_civitai(registry, civitai, ref, all_versions=all_versions, failed=plan.failed.append)
    except (Gone, Unreachable) as error:
        plan.items += plan_lost(registry, civitai, second, ref, error, all_versions=all_versions)
    else:
        plan.models.append(model)
        plan.items += items


def plan_lost(
    registry: Registry,
    civitai: Civitai,
    second: SecondSource,
    ref: Reference,
    error: HnetkitError,
    *,
    all_versions: bool = False,
) -> list[FetchItem]:
    """Returns what a reference to Civitai means, to be fetched from others, since the site does not have it.

    Args:
        registry: its catalog may know what the site had.
        civitai: gives the URLs, of which one may still serve its file.
        second: knows who else may have a file.
        ref: to a model, a version or a hash.
        error: why the site does not give it.
        all_versions: of the model, not only the newest.

    Raises:
        HnetkitError: `error`, where nobody has it, with who was asked; or where it is here, with the path.
        NotAHypernetwork: CivArchive calls it something else.
    """
    asked: list[str] = []
    rows = _catalogued(registry, ref, all_versions=all_versions)
    items = [_planned(civitai, row) for row in rows]
    if not items and ref.kind == "hash" and find_network(registry, ref.digits) is not None:
        items.append(plan_by_hash(ref.digits, name=None, size_bytes=None))
    elif not items and ref.kind == "hash" and len(ref.digits) == 64:
        found = second.look(ref.digits)
        asked += found.asked
        if found.places:
            items.append(plan_by_hash(ref.digits, name=found.name, size_bytes=found.size_bytes))
    elif not items:
        items += _of_archive(second, ref, asked)
    if not items:
        if asked:
            error.args = (f"{error}; also asked: {'; '.join(asked)}",)
        raise error
    items = [as_here(registry, item) for item in items]
    if ref.kind != "hash" and all(item.action == "have" for item in items):
        # that it is here already is no answer to the question for a model
        raise _kept_here(ref, error, str(items[0].path)) from error
    return items


def _kept_here(ref: Reference, error: HnetkitError, path: str) -> HnetkitError:
    """Returns the error for what the site does not give, and is all here."""
    is_none = type(error) is Gone and isinstance(error.__cause__, Gone)  # it takes the number for a wrong one
    reason = f"{ref.text}: the site has none any more" if is_none else str(error)
    return type(error)(
        f"{reason}; here is {path}", hint="hnetkit list" if isinstance(error, Gone) else error.command_hint
    )


def plan_by_hash(sha256: str, *, name: str | None, size_bytes: int | None) -> FetchItem:
    """Returns a file that is to be fetched by its hash, from whoever has it.

    Args:
        sha256: that the file must have.
        name: of the file; None takes the first digits of the hash.
        size_bytes: None where it is unknown.
    """
    address, name = by_hash(sha256), name or f"{sha256[:10]}.pt"
    return FetchItem("url", address, address, name, sha256=sha256, size_bytes=size_bytes, digits=sha256)


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


def _planned(civitai: Civitai, row: Row) -> FetchItem:
    if row["source"] != SOURCE:
        return plan_by_hash(row["sha256"], name=row["file_name"].rpartition("/")[2], size_bytes=row["size_bytes"])
    version, file = int(row["version_id"]), int(row["file_id"])
    return FetchItem(
        SOURCE,
        job_key(file),
        civitai.download_url(version, file),
        row["file_name"],
        model=row["model"],
        version=row["version"],
        model_id=int(row["model_id"]),
        version_id=version,
        file_id=file,
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        digits=row["sha256"],
    )


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


def _of_archive(second: SecondSource, ref: Reference, asked: list[str]) -> Iterator[FetchItem]:
    """Yields each file of a version that CivArchive knows. Which bytes these are, it alone says."""
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
        yield plan_by_hash(file.sha256, name=file.name, size_bytes=file.size_bytes)


def _refuse_other_kind(found: ArchivedVersion, ref: Reference) -> None:
    if (found.type or "").lower() in LARGE_TYPES:
        reason = f"{ref.text}: not a hypernetwork: {NAME} calls it a {found.type}"
        raise NotAHypernetwork(reason, kind=str(found.type).lower())


def _has_model_suffix(name: str | None) -> bool:
    return name is None or name.lower().endswith(tuple(SUFFIXES))
