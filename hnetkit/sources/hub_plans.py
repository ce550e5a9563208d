"""Files of the Hugging Face hub: what to do with each, and what the catalog keeps of their repositories."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import replace
from urllib.parse import quote

from hnetkit.hub import endpoint
from hnetkit.registry.store import Registry
from hnetkit.sources.huggingface import DATASETS, SOURCE, HubFile, Repo, parse_repo
from hnetkit.sources.plans import FetchItem, as_here
from hnetkit.sources.references import Reference


def plan_hub(registry: Registry, repo: Repo, files: Iterable[HubFile], ref: Reference) -> list[FetchItem]:
    """Returns what to do with files of a repository; only reads.

    A file that was refused for its content is fetched again only if `ref` names it: a commit's bytes never change.
    """
    return [_planned(registry, hub_item(repo, file), ref) for file in files]


def _planned(registry: Registry, item: FetchItem, ref: Reference) -> FetchItem:
    item = as_here(registry, item)
    if item.action == "have" or ref.pattern in (item.name, glob.escape(item.name)):
        return item
    refused = (job for job in registry.jobs.of(item.key, "refused") if job.code in ("refused", "archive"))
    job = next(refused, None)
    return item if job is None else replace(item, action="skip", code=job.code, reason=job.reason)


def hub_item(repo: Repo, file: HubFile) -> FetchItem:
    """Returns a file of a repository, which is to be fetched."""
    return FetchItem(
        SOURCE,
        f"hf:{repo.name}@{repo.commit}:{file.path}",
        f"{endpoint()}/{repo.name}/resolve/{repo.commit}/{quote(file.path)}",
        file.path,
        model=repo.name,
        version=repo.commit[:10],
        model_id=repo.name,
        version_id=repo.commit,
        file_id=file.path,
        sha256=file.sha256,
        size_bytes=file.size_bytes,
    )


# --- what the catalog keeps


def repo_at(registry: Registry, name: str, commit: str) -> Repo:
    """Returns a repository at a commit, with what the catalog knows of it."""
    known = parse_repo(registry.catalogue.raw(SOURCE, name) or {})
    return Repo(name, commit, (), None) if known is None else replace(known, commit=commit)


def hub_repositories(registry: Registry) -> list[str]:
    """Returns the names of the repositories that files of the library came from."""
    return sorted({row["model_id"] for row in registry.catalogue.files(source=SOURCE, here=True)})


def store_repo(registry: Registry, repo: Repo) -> int:
    """Stores a repository as a model and its commit as a version; returns the version's row number."""
    catalogue = registry.catalogue
    owner = repo.name.removeprefix(DATASETS).partition("/")[0]
    about = {"name": repo.name, "creator": owner, "tags": repo.tags, "downloads": repo.downloads}
    raw = {"id": repo.name, "sha": repo.commit, "tags": repo.tags, "downloads": repo.downloads}
    model = catalogue.put_model(SOURCE, repo.name, {**about, "state": "listed"}, raw)
    return catalogue.put_version(model, repo.commit, {"name": repo.commit[:10]})


def store_items(registry: Registry, repo: Repo, items: Iterable[FetchItem]) -> dict[str, int]:
    """Stores a repository and files of its commit in the catalog; returns path -> the file's row number."""
    version = store_repo(registry, repo)
    rows = {}
    for item in items:
        values = {"name": item.name, "size_bytes": item.size_bytes, "sha256": item.sha256}
        rows[item.name] = registry.catalogue.put_file(version, item.name, values)
    return rows
