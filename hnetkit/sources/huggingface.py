"""Client of the Hugging Face hub: repositories and their files at a commit, by hnetkit's own rules about tokens."""

from __future__ import annotations

import fnmatch
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import requests

from hnetkit.errors import (
    AuthRequired,
    Gone,
    NetworkFailed,
    NoAccess,
    RateLimited,
    RemoteError,
    Unreachable,
    UsageError,
)
from hnetkit.files import MODEL_SUFFIXES
from hnetkit.hub import REPO, REVISION_HINT, endpoint, hub_token, missing_hint, token_hint
from hnetkit.registry.columns import text_of
from hnetkit.sources.civitai import Failed, ignore_record
from hnetkit.sources.civitai_models import BadRecord, parse_int
from hnetkit.sources.http import Clock, HttpClient, JsonAnswer, RateLimiter
from hnetkit.sources.references import Reference
from hnetkit.sources.trust import Origin, SitePolicy, require_no_secret
from hnetkit.text import argument, counted, shorten

SOURCE = "huggingface"
_NAME = re.compile(REPO, re.ASCII)
_SAME_AGAIN = "run the same command again"
_NEW_TOKEN = "make a new one at the hub, or unset HF_TOKEN (hf auth logout removes a saved one)"
DATASETS = "datasets/"  # the hub's own prefix for repositories of another kind, in names and addresses


LARGE = 1000
"""Files of a repository from which on the hub may cut the list in its record, as huggingface_hub has found."""
MOST_LISTED = 200_000
"""Files of one repository."""


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository at a commit.

    Attributes:
        name: as it was asked for; of a data set, after ``datasets/``.
        commit: 40 hex digits that a revision resolved to.
        tags, downloads: as the hub states.
        is_gated: whether its owner has to let people in.
        renamed: its name by now, if that is another one.
    """

    name: str
    commit: str
    tags: tuple[str, ...]
    downloads: int | None
    is_gated: bool = False
    renamed: str | None = None

    @property
    def at(self) -> str:
        """Its name in addresses."""
        return self.renamed or self.name


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository.

    Attributes:
        path: in the repository.
        size_bytes: None if the hub does not state it.
        sha256: None of a small file that is in git itself.
        blob: git's id of such a file.
    """

    path: str
    size_bytes: int | None
    sha256: str | None
    blob: str | None = None

    @property
    def content(self) -> str | None:
        """What tells its bytes from others; None if the hub does not."""
        return self.sha256 or self.blob


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a repository at a commit.

    Attributes:
        revision: that was asked for; None for the main branch.
    """

    repo: Repo
    revision: str | None
    files: tuple[HubFile, ...]


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
        # the hub serves 3,000 files in five minutes to whoever has no token
        pace = RateLimiter(clock, 50.0 if policy.base.is_loopback else 8.0)
        self._client = HttpClient(replace(policy, token=self.token), clock, pace)

    @property
    def client(self) -> HttpClient:
        """Requests what the hub has.

        Raises:
            Unreachable: ``HF_HUB_OFFLINE`` keeps this machine off it.
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise Unreachable("the hub is not asked: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
        return self._client

    def look_up(self, ref: Reference, known: Iterable[Listing] = (), *, failed: Failed = ignore_record) -> Listing:
        """Returns the files of a repository, at the current commit of a reference's revision.

        Args:
            ref: of kind ``"hub"``.
            known: earlier listings of the repository; one whose commit is the current one is the answer again.
            failed: called with what cannot be used of the hub's answer.

        Raises:
            RemoteError: there is no such repository or revision, or it is not public.
        """
        answer = self._info(ref)
        info: Mapping[str, Any] = answer.content
        repo = Repo(
            ref.repo,
            str(info["sha"]),
            _tags(info.get("tags")),
            parse_int(info.get("downloads")),
            is_gated=info.get("gated") in ("auto", "manual", True),
            renamed=self._new_name(ref, answer),
        )
        if repo.renamed is not None:
            warnings.warn(f"{ref.text}: the repository is named {repo.renamed} by now", stacklevel=2)
        for listing in known:
            if listing.repo.commit == repo.commit:
                return Listing(repo, ref.revision, listing.files)
        siblings = info.get("siblings")
        if siblings is not None and not isinstance(siblings, list):
            raise NetworkFailed(f"{ref.text}: the answer of the hub makes no sense")
        is_whole = siblings is not None and len(siblings) < LARGE
        listed = [_sibling(entry) for entry in siblings or ()] if is_whole else self._tree(repo, ref, failed)
        found = {file.path: file for file in listed if file is not None}
        if odd := len(listed) - len(found):
            reason = f"left out: files of {ref.repo} without a name of their own ({odd:,})"
            failed(BadRecord(None, reason, odd, is_whole=False))
        return Listing(repo, ref.revision, tuple(found.values()))

    def _info(self, ref: Reference) -> JsonAnswer:
        """Returns the hub's record of a repository, requested by our own client with its rules about tokens."""
        at = f"/revision/{quote(ref.revision, safe='')}" if ref.revision else ""
        answer = self.client.json_answer(f"{self._api(ref.repo)}{at}?blobs=true", what=ref.text)
        status, info = answer.status, answer.content
        if Origin.of(answer.url) != self.client.policy.base:
            raise NetworkFailed(f"{ref.text}: the hub leads to another site")
        if status == 200 and isinstance(info, Mapping) and re.fullmatch(r"[0-9a-f]{40}", str(info.get("sha"))):
            return answer
        message = str(info.get("error")) if isinstance(info, Mapping) else ""
        if status in (401, 403) and ("restricted" in message or "credential" in message):
            raise hub_error(status, info, ref.text)
        if status == 404 and "rev id" in message:
            raise Gone(f"{ref.text}: the repository has no revision {ref.revision}", hint=REVISION_HINT)
        if status in (401, 404):  # a private repository looks missing without access
            raise Gone(f"{ref.text}: the hub has no such repository, or it is private", hint=missing_hint())
        if status == 200:
            raise NetworkFailed(f"{ref.text}: the answer of the hub makes no sense")
        raise hub_error(status, info, ref.text)

    def _api(self, repo: str) -> str:
        return f"{self.endpoint}/api/{repo if repo.startswith(DATASETS) else f'models/{repo}'}"

    def _new_name(self, ref: Reference, answer: JsonAnswer) -> str | None:
        """Returns the name that a repository has by now, where the hub redirected; None for the one asked for."""
        name = answer.content.get("id")
        asked = self._api(ref.repo)
        is_there = answer.url.startswith((f"{asked}?", f"{asked}/"))
        if not isinstance(name, str) or not _NAME.fullmatch(name) or is_there:
            return None
        renamed = f"{DATASETS}{name}" if ref.repo.startswith(DATASETS) else name
        return None if renamed == ref.repo else renamed

    def _tree(self, repo: Repo, ref: Reference, failed: Failed) -> list[HubFile | None]:
        """Returns what the tree of a commit lists, page by page; each but the last names the next by a cursor."""
        url = f"{self._api(repo.at)}/tree/{repo.commit}?recursive=true&limit={LARGE}"
        listed: list[HubFile | None] = []
        cursors: set[str] = set()
        page = url
        while True:
            answer = self.client.json_answer(page, what=ref.text)
            if answer.status != 200:
                raise hub_error(answer.status, answer.content, ref.text)
            if not isinstance(answer.content, list):
                raise NetworkFailed(f"{ref.text}: the answer of the hub makes no sense")
            listed += [_entry(entry) for entry in answer.content if not _is_folder(entry)]
            try:
                cursor = _cursor(answer.headers)
            except ValueError:
                raise NetworkFailed(f"{ref.text}: the hub's list of its files goes on at no address") from None
            if cursor is None:
                return listed
            if cursor in cursors:
                raise NetworkFailed(f"{ref.text}: the hub's list of its files repeats itself")
            if len(listed) >= MOST_LISTED or len(cursors) >= MOST_LISTED // LARGE:
                reason = f"{ref.text}: the list goes on after {len(listed):,} files; left out what follows"
                failed(BadRecord(None, reason, cuts_list=True))
                return listed
            cursors.add(cursor)
            page = f"{url}&cursor={quote(cursor, safe='')}"

    def require_access(self, ref: Reference, repo: Repo) -> None:
        """Raises an error where a gated repository does not let this account in.

        Raises:
            AuthRequired: its owner has to, and the error says where to ask.
            RemoteError: the hub does not answer.
        """
        if not repo.is_gated:
            return
        status, content = self.client.json(f"{self._api(repo.at)}/auth-check", what=ref.text)
        if status not in (401, 403):  # a mirror may not know this question
            return
        error = hub_error(status, content, ref.text)
        if "terms" in str(error):
            page = f"{self.endpoint}/{repo.at}"
            said = f"{ref.text}: gated: ask for access and accept its terms on {page}, with the account of HF_TOKEN"
            error = AuthRequired(
                said, hint=f"then {_SAME_AGAIN if self.token else f'export HF_TOKEN=..., {_SAME_AGAIN}'}"
            )
        raise error


def _sibling(entry: Any) -> HubFile | None:
    """Returns a file from the record of its repository; None for what is none."""
    if not isinstance(entry, Mapping):
        return None
    lfs = entry.get("lfs")
    sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else None
    return _file(entry.get("rfilename"), entry.get("size"), sha256, entry.get("blobId"))


def _entry(entry: Any) -> HubFile | None:
    """Returns a file from the tree of a commit; None for what is none."""
    if not isinstance(entry, Mapping):
        return None
    lfs = entry.get("lfs")
    return _file(
        entry.get("path"), entry.get("size"), lfs.get("oid") if isinstance(lfs, Mapping) else None, entry.get("oid")
    )


def _is_folder(entry: Any) -> bool:
    return isinstance(entry, Mapping) and entry.get("type") == "directory"


def _file(path: Any, size: Any, sha256: Any, blob: Any) -> HubFile | None:
    if not isinstance(path, str) or not is_file_path(path):
        return None
    path = text_of(path)  # JSON may hold lone surrogates, SQLite may not
    known = str(sha256).lower() if re.fullmatch(r"[0-9a-fA-F]{64}", str(sha256)) else None
    of_git = str(blob) if known is None and re.fullmatch(r"[0-9a-f]{40}", str(blob)) else None
    return HubFile(path, parse_int(size), known, of_git)


def _cursor(headers: Mapping[str, str]) -> str | None:
    """Returns where the next page begins, None after the last one.

    The address itself is ours, since a mirror's may be that of the hub.

    Raises:
        ValueError: there is a next page, and its address does not say where it begins.
    """
    for link in requests.utils.parse_header_links(headers.get("Link", "")):
        if link.get("rel") == "next":
            cursors = parse_qs(urlsplit(link["url"]).query).get("cursor")
            if not cursors:
                raise ValueError("a next page without a cursor")
            return cursors[0]
    return None


def is_file_path(path: str) -> bool:
    """Whether a path can be that of a file in a repository: one with `..` would be another address of the hub."""
    return set(path.split("/")).isdisjoint({"", ".", ".."})


def file_url(repo: Repo, path: str) -> str:
    """Returns the address of a file's bytes, which never change.

    Raises:
        UsageError: no repository has such a file.
    """
    if not is_file_path(path):
        raise UsageError(f"{shorten(path)}: not the path of a file in a repository")
    return f"{endpoint()}/{repo.at}/resolve/{repo.commit}/{quote(path)}"


def wanted_files(listing: Listing, ref: Reference) -> list[HubFile]:
    """Returns the model files of a repository that a reference selects.

    Raises:
        Gone: there are none; the error says what it holds.
    """
    found = listing.files
    whole = f"hf:{ref.repo}" + (f"@{ref.revision}" if ref.revision else "")
    wanted = [file for file in found if is_wanted(file.path, ref.pattern)]
    if not wanted and ref.pattern is not None:  # it may be a folder
        wanted = [file for file in found if is_wanted(file.path, f"{ref.pattern}/")]
    if ref.pattern is None and (archives := [file.path for file in found if file.path.lower().endswith(".zip")]):
        some = f"{', '.join(archives[:3])}{', ...' if len(archives) > 3 else ''}"
        pull = f"hnetkit pull {argument(f'{whole}:*.zip')}"
        warnings.warn(f"{ref.text} also has archives, which are not fetched: {some}; {pull} fetches them", stacklevel=2)
    if not wanted:
        models = sum(is_wanted(file.path, None) for file in found)
        hint = f"{argument(whole)} stands for all its model files ({models:,})" if models else None
        raise Gone(f"{ref.text}: no model file matches; it has {_what_it_holds(found)}", hint=hint)
    return wanted


def _what_it_holds(files: Sequence[HubFile]) -> str:
    """Returns the kinds of files with their counts, most first, and some names."""
    if not files:
        return "no file"
    kinds = Counter(os.path.splitext(file.path)[1].lower() or "without a suffix" for file in files)
    counts = ", ".join(f"{count:,} {kind[:20]}" for kind, count in kinds.most_common(5))
    names = ", ".join(sorted(file.path for file in files)[:5])
    return f"{counted(len(files), 'file')} ({counts}{', ...' if len(kinds) > 5 else ''}): {names}"


def is_wanted(path: str, pattern: str | None) -> bool:
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
    if not isinstance(name, str) or not re.fullmatch(rf"(?:datasets/)?{REPO}", name, re.ASCII):
        return None
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        return None
    return Repo(name, commit, _tags(tags), parse_int(raw.get("downloads")))


def _tags(value: Any) -> tuple[str, ...]:
    return tuple(tag for tag in value if isinstance(tag, str)) if isinstance(value, list) else ()
