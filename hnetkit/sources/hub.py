"""Hugging Face: what a repository holds, pinned to a commit. All of it comes through hnetkit's own requests."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hnetkit.errors import AuthRequired, Gone, NetworkFailed, NoAccess, RateLimited, RemoteError, UsageError
from hnetkit.hub import endpoint, hub_token, token_hint
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import Failed, ignored
from hnetkit.sources.here import again_unless_here
from hnetkit.sources.names import SUFFIXES, safe_stem, split_name
from hnetkit.sources.origins import Origin, Trust, require_no_secret
from hnetkit.sources.pace import Clock, Pace
from hnetkit.sources.pages import BadRecord
from hnetkit.sources.refs import Ref
from hnetkit.sources.shapes import int_of
from hnetkit.sources.web import Web

SOURCE = "huggingface"


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository at a commit.

    Attributes:
        commit: 40 hex digits: what a revision was when it was asked about.
        tags, downloads: as the hub says.
    """

    name: str
    commit: str
    tags: tuple[str, ...]
    downloads: int | None


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository.

    Attributes:
        url: of these very bytes, for ever.
        sha256: None for a small file that lies in git itself.
    """

    repo: Repo
    path: str
    size_bytes: int | None
    sha256: str | None
    url: str


class Hub:
    """The hub that ``HF_ENDPOINT`` names, with the token of ``HF_TOKEN``.

    Raises:
        UsageError: ``HF_ENDPOINT`` is no address that may be asked.
    """

    def __init__(self, clock: Clock) -> None:
        self.endpoint = endpoint()
        try:
            require_no_secret(self.endpoint)
            trust = Trust(Origin.of(self.endpoint))
            trust.check(self.endpoint)
        except NetworkFailed as error:
            raise UsageError(f"HF_ENDPOINT: {error}", hint=error.hint or "unset HF_ENDPOINT") from error
        self.token = hub_token()
        self.web = Web(replace(trust, token=self.token), clock, Pace(clock, 4.0))

    def files(self, ref: Ref, *, failed: Failed = ignored) -> list[HubFile]:
        """Returns the model files that a reference means, at the commit that its revision is now.

        Args:
            failed: told what of the hub's list cannot be used.

        Raises:
            RemoteError: no such repository or revision, or not for everybody.
            Gone: no file fits.
        """
        info = self._info(ref)
        siblings = info.get("siblings")
        repo = Repo(ref.repo, str(info["sha"]), _tags(info.get("tags")), int_of(info.get("downloads")))
        if siblings is not None and not isinstance(siblings, list):
            raise NetworkFailed(f"{ref.text}: an answer of the hub that makes no sense")
        listed = [self._file(repo, sibling) for sibling in siblings or ()]
        found = list({file.path: file for file in listed if file is not None}.values())
        if odd := len(listed) - len(found):
            reason = f"left out: files of {ref.repo} without a name of their own ({odd:,})"
            failed(BadRecord(None, reason, odd, is_whole=False))
        wanted = [file for file in found if _is_meant(file.path, ref.pattern)]
        if not wanted:
            names = ", ".join(sorted(file.path for file in found)[:5])
            raise Gone(f"{ref.text}: no model file fits; it has {names or 'no file'}", hint=f"hf:{ref.repo}:*.pt")
        return wanted

    def _info(self, ref: Ref) -> Mapping[str, Any]:
        """What the hub says of a repository. Asked by our own requests, which hold to our rules about tokens."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise NetworkFailed(f"{ref.text}: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
        at = f"/revision/{quote(ref.revision, safe='')}" if ref.revision else ""
        status, info = self.web.json(f"{self.endpoint}/api/models/{ref.repo}{at}?blobs=true", what=ref.text)
        if status == 200 and isinstance(info, Mapping) and re.fullmatch(r"[0-9a-f]{40}", str(info.get("sha"))):
            return info
        said = str(info.get("error")) if isinstance(info, Mapping) else ""
        if status in (401, 403) and "restricted" in said:
            raise AuthRequired(f"{ref.text}: only for those who accepted its terms", hint=token_hint())
        if status == 404 and "rev id" in said:
            raise Gone(f"{ref.text}: the repository has no revision {ref.revision}")
        if status in (401, 404):  # to those who may not see it, a private one does not exist
            raise Gone(f"{ref.text}: the hub has no such repository, or not for everybody", hint=token_hint())
        if status == 200:
            raise NetworkFailed(f"{ref.text}: an answer of the hub that makes no sense")
        raise refusal(status, info, ref.text)

    def _file(self, repo: Repo, sibling: Any) -> HubFile | None:
        path = sibling.get("rfilename") if isinstance(sibling, Mapping) else None
        if not isinstance(path, str):
            return None
        path = path.encode("utf-8", "backslashreplace").decode()  # JSON can spell what no registry holds
        lfs = sibling.get("lfs")
        sha256 = str(lfs.get("sha256")).lower() if isinstance(lfs, Mapping) else ""
        url = f"{self.endpoint}/{repo.name}/resolve/{repo.commit}/{quote(path)}"
        size = int_of(sibling.get("size"))
        return HubFile(repo, path, size, sha256 if re.fullmatch(r"[0-9a-f]{64}", sha256) else None, url)


def _is_meant(path: str, pattern: str | None) -> bool:
    if pattern is not None:
        return fnmatch.fnmatchcase(path, pattern)
    return os.path.splitext(path)[1].lower() in SUFFIXES - {".zip"}


def refusal(status: int, content: Any, what: str) -> RemoteError:
    """Returns the error that the hub's refusal means."""
    if status == 401:
        return AuthRequired(f"{what}: the hub wants to know who asks", hint=token_hint())
    if status == 403:
        return NoAccess(f"{what}: not for this account", hint=token_hint())
    if status == 404:
        return Gone(f"{what}: the hub does not have it")
    if status == 429:
        return RateLimited(f"{what}: the hub asks for a pause", hint="run the same command again in some minutes")
    return NetworkFailed(f"{what}: the hub answered {status}")


def enqueue(registry: Registry, folder: Path, files: list[HubFile]) -> Iterator[Job]:
    """Keeps what the hub says of files, and makes jobs of them; call it inside of `registry.write()`."""
    versions: dict[str, int] = {}
    for file in files:
        if file.repo.commit not in versions:  # once: a repository may have thousands of files, and as many tags
            versions[file.repo.commit] = record(registry, file.repo)
        row = _record_file(registry, versions[file.repo.commit], file)
        stem, suffix = split_name(file.path)
        values = {
            **{"source": SOURCE, "url": file.url, "name": safe_stem(stem, "network"), "suffix": suffix},
            **{"folder": str(folder), "remote_file_id": row, "sha256": file.sha256, "size_bytes": file.size_bytes},
        }
        job = registry.jobs.add(f"hf:{file.repo.name}@{file.repo.commit}:{file.path}", values)
        yield again_unless_here(registry, job)


def repo_of(raw: Mapping[str, Any]) -> Repo | None:
    """Returns the repository whose record `record` kept; None where there is none in it."""
    name, commit, tags = raw.get("id"), raw.get("sha"), raw.get("tags")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        return None
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        return None
    return Repo(name, commit, _tags(tags), int_of(raw.get("downloads")))


def _tags(said: Any) -> tuple[str, ...]:
    return tuple(tag for tag in said if isinstance(tag, str)) if isinstance(said, list) else ()


def record(registry: Registry, repo: Repo) -> int:
    """Stores a repository as a model, its commit as a version; returns the number of the version's row."""
    catalogue = registry.catalogue
    about = {"name": repo.name, "creator": repo.name.partition("/")[0], "tags": repo.tags, "downloads": repo.downloads}
    raw = {"id": repo.name, "sha": repo.commit, "tags": repo.tags, "downloads": repo.downloads}
    model = catalogue.put_model(SOURCE, repo.name, {**about, "state": "listed"}, raw)
    return catalogue.put_version(model, repo.commit, {"name": repo.commit[:10]})


def _record_file(registry: Registry, version: int, file: HubFile) -> int:
    values = {"name": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
    return registry.catalogue.put_file(version, file.path, values)
