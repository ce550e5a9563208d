"""Hugging Face repositories: their files pinned to a commit, all requested by hnetkit's own client."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hnetkit.errors import AuthRequired, Gone, NetworkFailed, NoAccess, RateLimited, RemoteError, UsageError
from hnetkit.files import MODEL_SUFFIXES
from hnetkit.hub import endpoint, hub_token, token_hint
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import Failed, ignore_record
from hnetkit.sources.civitai_models import BadRecord, parse_int
from hnetkit.sources.http import Clock, HttpClient, RateLimiter
from hnetkit.sources.install import safe_stem, split_name
from hnetkit.sources.presence import requeue_unless_here
from hnetkit.sources.references import Reference
from hnetkit.sources.trust import Origin, SitePolicy, require_no_secret
from hnetkit.text import argument

SOURCE = "huggingface"
_NEW_TOKEN = "make a new one at the hub, or unset HF_TOKEN (hf auth logout removes a saved one)"
_DATASETS = "datasets/"  # the hub's own prefix for repositories of another kind, in names and addresses


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository at a commit.

    Attributes:
        commit: 40 hex digits that a revision resolved to.
        tags, downloads: as the hub states.
    """

    name: str
    commit: str
    tags: tuple[str, ...]
    downloads: int | None


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository.

    Attributes:
        url: permanent URL of these bytes.
        sha256: None for a small file that is in git itself.
    """

    repo: Repo
    path: str
    size_bytes: int | None
    sha256: str | None
    url: str


class Hub:
    """The hub that ``HF_ENDPOINT`` names, with the token of ``HF_TOKEN``.

    Raises:
        UsageError: ``HF_ENDPOINT`` is no URL that may be requested.
    """

    def __init__(self, clock: Clock) -> None:
        self.endpoint = endpoint()
        try:
            require_no_secret(self.endpoint)
            policy = SitePolicy(Origin.of(self.endpoint))
            policy.check(self.endpoint)
        except NetworkFailed as error:
            raise UsageError(f"HF_ENDPOINT: {error}", hint=error.command_hint or "unset HF_ENDPOINT") from error
        self.token = hub_token()
        self.client = HttpClient(replace(policy, token=self.token), clock, RateLimiter(clock, 4.0))

    def files(self, ref: Reference, *, failed: Failed = ignore_record) -> list[HubFile]:
        """Returns the model files that a reference selects, at the current commit of its revision.

        Args:
            ref: of kind ``"hub"``.
            failed: called with what cannot be used of the hub's answer.

        Raises:
            RemoteError: there is no such repository or revision, or it is not public.
            Gone: no file matches.
        """
        info = self._info(ref)
        siblings = info.get("siblings")
        repo = Repo(ref.repo, str(info["sha"]), _tags(info.get("tags")), parse_int(info.get("downloads")))
        if siblings is not None and not isinstance(siblings, list):
            raise NetworkFailed(f"{ref.text}: the answer of the hub makes no sense")
        listed = [self._file(repo, sibling) for sibling in siblings or ()]
        found = list({file.path: file for file in listed if file is not None}.values())
        if odd := len(listed) - len(found):
            reason = f"left out: files of {ref.repo} without a name of their own ({odd:,})"
            failed(BadRecord(None, reason, odd, is_whole=False))
        wanted = [file for file in found if _is_wanted(file.path, ref.pattern)]
        if not wanted and ref.pattern is not None:  # it may be a folder
            wanted = [file for file in found if _is_wanted(file.path, f"{ref.pattern}/")]
        if ref.pattern is None and (archives := [file.path for file in found if file.path.lower().endswith(".zip")]):
            some = f"{', '.join(archives[:3])}{', ...' if len(archives) > 3 else ''}"
            at = f"@{ref.revision}" if ref.revision else ""
            pull = f"hnetkit pull {argument(f'hf:{repo.name}{at}:*.zip')}"
            warnings.warn(
                f"{ref.text} also has archives, which are not fetched: {some}; {pull} fetches them", stacklevel=2
            )
        if not wanted:
            names = ", ".join(sorted(file.path for file in found)[:5])
            raise Gone(f"{ref.text}: no model file matches; it has {names or 'no file'}", hint=f"hf:{ref.repo}:*.pt")
        return wanted

    def _info(self, ref: Reference) -> Mapping[str, Any]:
        """Returns the hub's record of a repository, requested by our own client with its rules about tokens."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise NetworkFailed(f"{ref.text}: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
        at = f"/revision/{quote(ref.revision, safe='')}" if ref.revision else ""
        repo = ref.repo if ref.repo.startswith(_DATASETS) else f"models/{ref.repo}"
        status, info = self.client.json(f"{self.endpoint}/api/{repo}{at}?blobs=true", what=ref.text)
        if status == 200 and isinstance(info, Mapping) and re.fullmatch(r"[0-9a-f]{40}", str(info.get("sha"))):
            return info
        message = str(info.get("error")) if isinstance(info, Mapping) else ""
        if status in (401, 403) and ("restricted" in message or "credential" in message):
            raise hub_error(status, info, ref.text)
        if status == 404 and "rev id" in message:
            raise Gone(f"{ref.text}: the repository has no revision {ref.revision}")
        if status in (401, 404):  # a private repository looks missing without access
            raise Gone(f"{ref.text}: the hub has no such repository, or it is private", hint=token_hint())
        if status == 200:
            raise NetworkFailed(f"{ref.text}: the answer of the hub makes no sense")
        raise hub_error(status, info, ref.text)

    def _file(self, repo: Repo, sibling: Any) -> HubFile | None:
        path = sibling.get("rfilename") if isinstance(sibling, Mapping) else None
        if not isinstance(path, str):
            return None
        path = path.encode("utf-8", "backslashreplace").decode()  # JSON may hold lone surrogates, SQLite may not
        lfs = sibling.get("lfs")
        sha256 = str(lfs.get("sha256")).lower() if isinstance(lfs, Mapping) else ""
        known = sha256 if re.fullmatch(r"[0-9a-f]{64}", sha256) else None
        return hub_file(repo, path, size_bytes=parse_int(sibling.get("size")), sha256=known)


def hub_file(repo: Repo, path: str, *, size_bytes: int | None, sha256: str | None) -> HubFile:
    """Returns a file of a repository, with the URL of its bytes."""
    return HubFile(repo, path, size_bytes, sha256, f"{endpoint()}/{repo.name}/resolve/{repo.commit}/{quote(path)}")


def repo_at(registry: Registry, name: str, commit: str) -> Repo:
    """Returns a repository at a commit, with what the catalog knows of it."""
    known = parse_repo(registry.catalogue.raw(SOURCE, name) or {})
    return Repo(name, commit, (), None) if known is None else replace(known, commit=commit)


def _is_wanted(path: str, pattern: str | None) -> bool:
    """Whether a file is meant: by a glob, or as a model file of a folder, whose name ends with ``/``."""
    if pattern is not None and not pattern.endswith("/"):
        return fnmatch.fnmatchcase(path, pattern)
    return path.startswith(pattern or "") and os.path.splitext(path)[1].lower() in MODEL_SUFFIXES


def hub_error(status: int, content: Any, what: str) -> RemoteError:
    """Returns the error that an unsuccessful answer of the hub means."""
    message = str(content.get("error")) if isinstance(content, Mapping) else ""
    if status in (401, 403) and "restricted" in message:
        return AuthRequired(f"{what}: requires that you accept its terms on the repository's page", hint=token_hint())
    if status in (401, 403) and "credential" in message:
        return AuthRequired(f"{what}: the hub does not accept the token that is set", hint=_NEW_TOKEN)
    if status == 401:
        return AuthRequired(f"{what}: the hub requires a token", hint=token_hint())
    if status == 403:
        return NoAccess(f"{what}: not for this account", hint=token_hint())
    if status == 404:
        return Gone(f"{what}: the hub does not have it")
    if status == 429:
        return RateLimited(f"{what}: the hub asks for a pause", hint="run the same command again in some minutes")
    return NetworkFailed(f"{what}: the hub answered {status}")


def enqueue_hub_files(registry: Registry, folder: Path, files: list[HubFile], ref: Reference) -> Iterator[Job]:
    """Stores the hub's records of files, and makes their jobs; call it inside `registry.write()`.

    A file that was refused for its content is queued again only if `ref` names it: a commit's bytes never change.
    """
    versions: dict[str, int] = {}
    for file in files:
        if file.repo.commit not in versions:  # once: a repository may have thousands of files and of tags
            versions[file.repo.commit] = store_repo(registry, file.repo)
        row = _store_file(registry, versions[file.repo.commit], file)
        stem, suffix = split_name(file.path)
        values = {
            "source": SOURCE,
            "url": file.url,
            "name": safe_stem(stem, "network"),
            "suffix": suffix,
            "folder": str(folder),
            "remote_file_id": row,
            "sha256": file.sha256,
            "size_bytes": file.size_bytes,
        }
        job = registry.jobs.add(f"hf:{file.repo.name}@{file.repo.commit}:{file.path}", values)
        is_named = ref.pattern in (file.path, glob.escape(file.path))
        is_settled = job.state == "refused" and job.code in ("refused", "archive") and not is_named
        yield job if is_settled else requeue_unless_here(registry, job)


def hub_repositories(registry: Registry) -> list[str]:
    """Returns the names of the repositories that files of the library came from."""
    return sorted({row["model_id"] for row in registry.catalogue.files(source=SOURCE, here=True)})


def parse_repo(raw: Mapping[str, Any]) -> Repo | None:
    """Returns the repository from the record that `store_repo` stored; None where it holds none."""
    name, commit, tags = raw.get("id"), raw.get("sha"), raw.get("tags")
    if not isinstance(name, str) or not re.fullmatch(r"(?:datasets/)?[\w.-]+/[\w.-]+", name, re.ASCII):
        return None
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        return None
    return Repo(name, commit, _tags(tags), parse_int(raw.get("downloads")))


def _tags(value: Any) -> tuple[str, ...]:
    return tuple(tag for tag in value if isinstance(tag, str)) if isinstance(value, list) else ()


def store_repo(registry: Registry, repo: Repo) -> int:
    """Stores a repository as a model and its commit as a version; returns the version's row number."""
    catalogue = registry.catalogue
    owner = repo.name.removeprefix(_DATASETS).partition("/")[0]
    about = {"name": repo.name, "creator": owner, "tags": repo.tags, "downloads": repo.downloads}
    raw = {"id": repo.name, "sha": repo.commit, "tags": repo.tags, "downloads": repo.downloads}
    model = catalogue.put_model(SOURCE, repo.name, {**about, "state": "listed"}, raw)
    return catalogue.put_version(model, repo.commit, {"name": repo.commit[:10]})


def _store_file(registry: Registry, version: int, file: HubFile) -> int:
    values = {"name": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
    return registry.catalogue.put_file(version, file.path, values)
