"""Hugging Face: repositories through `huggingface_hub`, pinned to a commit; the bytes through hnetkit's own fetch."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnetkit.errors import AuthRequired, Gone, HnetkitError, NetworkFailed, NoAccess, RateLimited, RemoteError
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.names import SUFFIXES, safe_stem, split_name
from hnetkit.sources.origins import Origin, Trust, token_of
from hnetkit.sources.pace import Clock, Pace
from hnetkit.sources.refs import Ref
from hnetkit.sources.web import Web

SOURCE = "huggingface"
_HINT = "export HF_TOKEN=..., and accept the repository's terms on its page"


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
    """The hub that ``HF_ENDPOINT`` names, with the token of ``HF_TOKEN``."""

    def __init__(self, clock: Clock) -> None:
        from huggingface_hub import constants, get_token

        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(constants.ENDPOINT)
        self.token: str | None = token_of("HF_TOKEN") or get_token()
        self.web = Web(Trust(Origin.of(self.endpoint), self.token), clock, Pace(clock, 4.0))

    def files(self, ref: Ref) -> list[HubFile]:
        """Returns the model files that a reference means, at the commit that its revision is now.

        Raises:
            RemoteError: no such repository or revision, or not for everybody.
            Gone: no file fits.
        """
        from huggingface_hub import HfApi

        try:
            info = HfApi(endpoint=self.endpoint, token=self.token or False).model_info(
                ref.repo, revision=ref.revision, files_metadata=True
            )
        except Exception as error:
            raise _refused(ref, error) from error
        repo = Repo(ref.repo, str(info.sha), tuple(map(str, info.tags or ())), info.downloads)
        found = [self._file(repo, sibling) for sibling in info.siblings or ()]
        wanted = [file for file in found if _is_meant(file.path, ref.pattern)]
        if not wanted:
            names = ", ".join(sorted(file.path for file in found)[:5])
            raise Gone(f"{ref.text}: no model file fits; it has {names or 'no file'}", hint=f"hf:{ref.repo}:*.pt")
        return wanted

    def _file(self, repo: Repo, sibling: Any) -> HubFile:
        from huggingface_hub import hf_hub_url

        path, lfs = str(sibling.rfilename), sibling.lfs
        url = hf_hub_url(repo.name, path, revision=repo.commit, endpoint=self.endpoint)
        return HubFile(repo, path, sibling.size, lfs.sha256.lower() if lfs else None, url)


def _is_meant(path: str, pattern: str | None) -> bool:
    if pattern is not None:
        return fnmatch.fnmatchcase(path, pattern)
    return os.path.splitext(path)[1].lower() in SUFFIXES - {".zip"}


def _refused(ref: Ref, error: Exception) -> HnetkitError:
    """What the hub's own library raised, in hnetkit's words; its own texts may hold addresses of other machines."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return AuthRequired(f"{ref.text}: only for those who accepted its terms", hint=_HINT)
    if isinstance(error, errors.RepositoryNotFoundError):
        return Gone(f"{ref.text}: the hub has no such repository, or not for everybody", hint=_HINT)
    if isinstance(error, errors.RevisionNotFoundError):
        return Gone(f"{ref.text}: the repository has no revision {ref.revision}")
    if isinstance(error, errors.HfHubHTTPError):
        return refusal(error.response.status_code if error.response is not None else 0, None, ref.text)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkFailed(f"{ref.text}: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
    return NetworkFailed(f"{ref.text}: no answer from the hub ({type(error).__name__})")


def refusal(status: int, content: Any, what: str) -> RemoteError:
    """Returns the error that the hub's refusal means."""
    if status == 401:
        return AuthRequired(f"{what}: the hub wants to know who asks", hint=_HINT)
    if status == 403:
        return NoAccess(f"{what}: not for this account", hint=_HINT)
    if status == 404:
        return Gone(f"{what}: the hub does not have it")
    if status == 429:
        return RateLimited(f"{what}: the hub asks for a pause", hint="run the same command again in some minutes")
    return NetworkFailed(f"{what}: the hub answered {status}")


def enqueue(registry: Registry, folder: Path, files: list[HubFile]) -> Iterator[Job]:
    """Keeps what the hub says of files, and makes jobs of them; call it inside of `registry.write()`."""
    for file in files:
        row = _record(registry, file)
        stem, suffix = split_name(file.path)
        values = {
            **{"source": SOURCE, "url": file.url, "name": safe_stem(stem, "network"), "suffix": suffix},
            **{"folder": str(folder), "remote_file_id": row, "sha256": file.sha256, "size_bytes": file.size_bytes},
        }
        job = registry.jobs.add(f"hf:{file.repo.name}@{file.repo.commit}:{file.path}", values)
        registry.jobs.again(job.id)
        yield registry.jobs.get(job.id)


def _record(registry: Registry, file: HubFile) -> int:
    """Stores a repository as a model, its commit as a version; returns the number of the file's row."""
    repo, catalogue = file.repo, registry.catalogue
    about = {"name": repo.name, "creator": repo.name.partition("/")[0], "tags": repo.tags, "downloads": repo.downloads}
    raw = {"id": repo.name, "sha": repo.commit, "tags": repo.tags, "downloads": repo.downloads}
    model = catalogue.put_model(SOURCE, repo.name, {**about, "state": "listed"}, raw)
    version = catalogue.put_version(model, repo.commit, {"name": repo.commit[:10]})
    return catalogue.put_file(
        version, file.path, {"name": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
    )
