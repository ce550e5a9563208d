"""Client of the Hugging Face hub: repositories and their files at a commit, by hnetkit's own rules about tokens."""

from __future__ import annotations

import fnmatch
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from hnetkit.errors import AuthRequired, Gone, NetworkFailed, NoAccess, RateLimited, RemoteError, UsageError
from hnetkit.files import MODEL_SUFFIXES
from hnetkit.hub import endpoint, hub_token, token_hint
from hnetkit.sources.civitai import Failed, ignore_record
from hnetkit.sources.civitai_models import BadRecord, parse_int
from hnetkit.sources.http import Clock, HttpClient, RateLimiter
from hnetkit.sources.references import Reference
from hnetkit.sources.trust import Origin, SitePolicy, require_no_secret
from hnetkit.text import argument

SOURCE = "huggingface"
_NEW_TOKEN = "make a new one at the hub, or unset HF_TOKEN (hf auth logout removes a saved one)"
DATASETS = "datasets/"  # the hub's own prefix for repositories of another kind, in names and addresses


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
    """One file of a repository; a small one that is in git itself has no sha256."""

    path: str
    size_bytes: int | None
    sha256: str | None


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

    def look_up(self, ref: Reference, *, failed: Failed = ignore_record) -> tuple[Repo, list[HubFile]]:
        """Returns a repository, and the model files that a reference selects, at the current commit of its revision.

        Args:
            ref: of kind ``"hub"``.
            failed: called with what cannot be used of the hub's answer.

        Raises:
            RemoteError: there is no such repository or revision, or it is not public.
            Gone: no file matches.
        """
        info = self._info(ref)
        siblings = info.get("siblings")
        repo = Repo(ref.repo, str(info["sha"]), tags_of(info.get("tags")), parse_int(info.get("downloads")))
        if siblings is not None and not isinstance(siblings, list):
            raise NetworkFailed(f"{ref.text}: the answer of the hub makes no sense")
        listed = [_file(sibling) for sibling in siblings or ()]
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
        return repo, wanted

    def _info(self, ref: Reference) -> Mapping[str, Any]:
        """Returns the hub's record of a repository, requested by our own client with its rules about tokens."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise NetworkFailed(f"{ref.text}: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
        at = f"/revision/{quote(ref.revision, safe='')}" if ref.revision else ""
        repo = ref.repo if ref.repo.startswith(DATASETS) else f"models/{ref.repo}"
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


def _file(sibling: Any) -> HubFile | None:
    path = sibling.get("rfilename") if isinstance(sibling, Mapping) else None
    if not isinstance(path, str):
        return None
    path = path.encode("utf-8", "backslashreplace").decode()  # JSON may hold lone surrogates, SQLite may not
    lfs = sibling.get("lfs")
    sha256 = str(lfs.get("sha256")).lower() if isinstance(lfs, Mapping) else ""
    known = sha256 if re.fullmatch(r"[0-9a-f]{64}", sha256) else None
    return HubFile(path, parse_int(sibling.get("size")), known)


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


def parse_repo(raw: Mapping[str, Any]) -> Repo | None:
    """Returns the repository from the record that `store_repo` stored; None where it holds none."""
    name, commit, tags = raw.get("id"), raw.get("sha"), raw.get("tags")
    if not isinstance(name, str) or not re.fullmatch(r"(?:datasets/)?[\w.-]+/[\w.-]+", name, re.ASCII):
        return None
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        return None
    return Repo(name, commit, tags_of(tags), parse_int(raw.get("downloads")))


def tags_of(value: Any) -> tuple[str, ...]:
    return tuple(tag for tag in value if isinstance(tag, str)) if isinstance(value, list) else ()
