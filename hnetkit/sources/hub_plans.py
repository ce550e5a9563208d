"""Files of the Hugging Face hub: what to do with each, and what the catalog keeps of their repositories.

A job is about bytes for ever: its key names the commit and path at which the catalog first saw them. So after later
commits, these bytes are neither fetched again nor, if they were refused, tried again; and a download that was stopped
goes on, whatever else was committed meanwhile.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from hnetkit.library.restore import trashed
from hnetkit.registry.catalogue import TOLD, repo_of
from hnetkit.registry.store import Registry
from hnetkit.sources.archive_layouts import entry_of
from hnetkit.sources.civitai_models import BadRecord
from hnetkit.sources.huggingface import (
    DATASETS,
    SOURCE,
    Hub,
    HubFile,
    Listing,
    Repo,
    file_url,
    parse_repo,
    wanted_files,
)
from hnetkit.sources.plans import FetchItem, FetchPlan, as_here, unless_removed
from hnetkit.sources.presence import versions_here
from hnetkit.sources.references import Reference

_GIT = "GIT"  # of the hashes that the catalog keeps: git's id of a file that is in git itself
_LISTINGS = "listings"  # key of a stored record
_MOST_KEPT = 8 << 20  # bytes of a repository's listings as JSON; what is over that is asked for again each time
_MOST_REVISIONS = 20  # of a repository, whose listings are kept


def plan_repository(registry: Registry, hub: Hub, ref: Reference) -> FetchPlan:
    """Returns what a sync of a repository will do; only reads.

    Raises:
        RemoteError: the hub does not list it; or there is something to fetch, and its owner does not let us in.
        Gone: it has no model file that `ref` selects.
    """
    plan = FetchPlan(repository=ref)
    add_repository(registry, hub, ref, plan)
    removed = trashed(registry)
    plan.items = [unless_removed(registry, item, removed) for item in plan.items]
    if plan.to_fetch:
        hub.require_access(ref, plan.listings[0].repo)
    return plan


def add_repository(registry: Registry, hub: Hub, ref: Reference, plan: FetchPlan) -> None:
    """Adds to a plan what a reference selects of a repository, as `plan_repository` has it."""
    known = known_listings(registry, ref.repo)
    failed: list[BadRecord] = []
    listing = hub.look_up(ref, known, failed=failed.append)
    plan.failed += failed
    plan.items += plan_hub(registry, listing.repo, wanted_files(listing, ref), ref)
    if not any(bad.cuts_list for bad in failed):
        before = next((earlier for earlier in known if earlier.revision == listing.revision), None)
        plan.lost += _lost_files(registry, before, listing, ref)
    plan.listings.append(listing)


def plan_hub(registry: Registry, repo: Repo, files: Iterable[HubFile], ref: Reference) -> list[FetchItem]:
    """Returns what to do with files of a repository, each content once; only reads.

    A file that was refused for its content is fetched again only if `ref` names it.
    """
    first = _first_seen(registry, repo.name)
    items: dict[str, FetchItem] = {}
    for file in files:
        here = f"{repo.commit}:{file.path}"  # the catalog has no content of what it saw long ago, nor of some mirrors
        content = file.content if file.content in first or here not in first else here
        commit, path = first.setdefault(content or here, (repo.commit, file.path))
        item = hub_item(repo, file, commit, path)
        if item.key not in items:
            items[item.key] = _planned(registry, item, ref)
    return list(items.values())


def _first_seen(registry: Registry, name: str) -> dict[str, tuple[str, str]]:
    """Returns content -> the commit and path at which the catalog first saw it."""
    found: dict[str, tuple[str, str]] = {}
    for _, commit, path, sha256, hashes in registry.catalogue.contents(name):
        found.setdefault(sha256 or hashes.get(_GIT) or f"{commit}:{path}", (commit, path))
    return found


def _planned(registry: Registry, item: FetchItem, ref: Reference) -> FetchItem:
    item = as_here(registry, item)
    if item.action == "have" or ref.pattern in (item.name, glob.escape(item.name)):
        return item
    refused = (job for job in registry.jobs.of(item.key, "refused") if job.code in ("refused", "archive"))
    job = next(refused, None)
    return item if job is None else replace(item, action="skip", code=job.code, reason=job.reason)


def hub_item(repo: Repo, file: HubFile, commit: str | None = None, path: str | None = None) -> FetchItem:
    """Returns a file of a repository, which is to be fetched.

    Args:
        repo: at a commit that has it.
        file: there.
        commit, path: at which its bytes were first seen; None for the same.
    """
    commit, path = commit or repo.commit, path or file.path
    entry = entry_of(repo.name, path)
    return FetchItem(
        SOURCE,
        f"hf:{repo.name}@{commit}:{path}",
        file_url(repo, file.path),
        file.path,
        model=repo.name if entry is None else entry.title,
        version=commit[:10],
        model_id=repo.name if entry is None else f"{repo.name}:{entry.place}",
        version_id=commit,
        file_id=path,
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        hashes={} if file.blob is None else {_GIT: file.blob},
    )


def _lost_files(registry: Registry, before: Listing | None, now: Listing, ref: Reference) -> list[FetchItem]:
    """Returns what the library has of files that a revision had when it was last listed, and does not have now.

    Also where `ref` selects others: the list is stored as a whole, and the next one is compared with this.
    """
    if before is None or before.repo.commit == now.repo.commit:
        return []
    there = {file.path for file in now.files} | {file.content for file in now.files if file.content}
    lost = [file for file in before.files if not there & {file.path, file.content}]
    return [item for item in plan_hub(registry, before.repo, lost, ref) if item.action == "have"]


# --- what the catalog keeps


def repo_at(registry: Registry, name: str, commit: str) -> Repo:
    """Returns a repository at a commit, with what the catalog knows of it."""
    known = parse_repo(registry.catalogue.raw(SOURCE, name) or {})
    return Repo(name, commit, (), None) if known is None else replace(known, commit=commit)


def hub_repositories(registry: Registry) -> list[str]:
    """Returns the names of the repositories that files of the library came from."""
    return sorted({repo_of(model) for model in versions_here(registry, SOURCE)})


def known_listings(registry: Registry, name: str) -> list[Listing]:
    """Returns the files of a repository as each of its revisions was last listed, the latest first."""
    raw = registry.catalogue.raw(SOURCE, name) or {}
    repo, found = parse_repo(raw), list[Listing]()
    if repo is None:
        return found
    for listing in _kept_listings(raw):
        with suppress(KeyError, TypeError):  # not as we keep it
            files = tuple(HubFile(*file) for file in listing["files"])
            found.append(Listing(replace(repo, commit=str(listing["commit"])), listing["revision"], files))
    return found


def _kept_listings(raw: Mapping[str, Any]) -> list[Any]:
    """Returns the listings in the record of a repository."""
    listings = raw.get(_LISTINGS)
    return listings if isinstance(listings, list) else []


def without_listings(raw: Any) -> Any:
    """Returns the record of a repository that is worth telling another machine."""
    return {key: value for key, value in raw.items() if key != _LISTINGS} if isinstance(raw, Mapping) else raw


def store_listings(registry: Registry, plan: FetchPlan) -> None:
    """Stores the repositories of a plan, the lists of their files, and its items that are new or were only told of."""
    for listing in plan.listings:
        _store_listing(
            registry, listing, [item for item in plan.items if repo_of(str(item.model_id)) == listing.repo.name]
        )


def _store_listing(registry: Registry, listing: Listing, items: Iterable[FetchItem]) -> None:
    kept = {
        "commit": listing.repo.commit,
        "revision": listing.revision,
        "files": [[file.path, file.size_bytes, file.sha256, file.blob] for file in listing.files],
    }
    earlier = _kept_listings(registry.catalogue.raw(SOURCE, listing.repo.name) or {})
    others = [other for other in earlier if isinstance(other, dict) and other.get("revision") != listing.revision]
    told = {row["remote_id"] for row in registry.catalogue.models(source=SOURCE) if row["last_seen"] == TOLD}
    known = {row[:3] for row in registry.catalogue.contents(listing.repo.name) if row[0] not in told}
    new = [item for item in items if (item.model_id, item.version_id, item.file_id) not in known]
    store_items(registry, listing.repo, new, list(_within_limits([kept, *others])))


def _within_limits(listings: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yields the listings, the latest first, for which there is room in a record; one that is too large is left out."""
    room = _MOST_KEPT
    for listing in islice(listings, _MOST_REVISIONS):
        size = len(json.dumps(listing))
        if size <= room:
            room -= size
            yield listing


def store_repo(
    registry: Registry, repo: Repo, listings: Sequence[Mapping[str, Any]] | None = None, *, is_told: bool = False
) -> int:
    """Stores a repository as a model; returns the model's row number.

    Args:
        registry: of the library.
        repo: to be stored.
        listings: of its files, for revisions; None keeps those that are stored.
        is_told: whether an import tells of it, and not the hub.
    """
    owner = repo.name.removeprefix(DATASETS).partition("/")[0]
    about = {"name": repo.name, "creator": owner, "tags": repo.tags, "downloads": repo.downloads}
    raw: dict[str, Any] = {"id": repo.name, "sha": repo.commit, "tags": repo.tags, "downloads": repo.downloads}
    if listings is None:
        listings = _kept_listings(registry.catalogue.raw(SOURCE, repo.name) or {})
    raw |= {_LISTINGS: listings} if listings else {}
    return registry.catalogue.put_model(SOURCE, repo.name, {**about, "state": "listed"}, raw, is_told=is_told)


def store_items(
    registry: Registry,
    repo: Repo,
    items: Iterable[FetchItem],
    listings: Sequence[Mapping[str, Any]] | None = None,
    *,
    is_told: bool = False,
) -> dict[str, int]:
    """Stores a repository and files of it, each with its commit as the version; returns file -> its row number.

    What an archive has of one network is a model of its own. The arguments are those of `store_repo`.
    """
    models = {repo.name: store_repo(registry, repo, listings, is_told=is_told)}
    versions: dict[tuple[str, str], int] = {}
    rows = {}
    for item in items:  # models and versions once: a repository may have thousands of files
        model, commit, path = str(item.model_id), str(item.version_id), str(item.file_id)
        if model not in models:
            models[model] = _store_entry(registry, repo, model, path, is_told=is_told)
        if (model, commit) not in versions:
            versions[model, commit] = registry.catalogue.put_version(models[model], commit, {"name": commit[:10]})
        values = {"name": path, "size_bytes": item.size_bytes, "sha256": item.sha256, "hashes": item.hashes or None}
        rows[path] = registry.catalogue.put_file(versions[model, commit], path, values)
    return rows


def _store_entry(registry: Registry, repo: Repo, model: str, path: str, *, is_told: bool) -> int:
    entry = entry_of(repo.name, path)
    about = {} if entry is None else {"name": entry.title, "creator": entry.creator}
    raw = {"id": repo.name, "sha": repo.commit, "tags": repo.tags, "downloads": None}
    values = {**about, "tags": repo.tags, "state": "listed"}
    return registry.catalogue.put_model(SOURCE, model, values, raw, is_told=is_told)
