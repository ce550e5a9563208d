"""The Hugging Face hub: its address, its token, and files of its repositories, which it keeps in its own cache.

huggingface_hub is imported when it is used: what reads files of this machine alone does without.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from hnetkit.errors import (
    AuthRequired,
    HnetkitError,
    NetworkFailed,
    NotFound,
    RateLimited,
    UsageError,
    failure_of,
    require_extra,
)
from hnetkit.files import is_model_name, read_regular
from hnetkit.tokens import MOST_TOKEN, checked_token, no_token, token_of

Token: TypeAlias = str | bool | None
"""As huggingface_hub takes one: a text; None and True are that of `hub_token`, False is none."""

_REPO = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)
_MOST_LISTED = 10
_WITHOUT_NAME = "without weight_name its one model file is taken, or all of them are named"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def endpoint() -> str:
    """Returns the hub's address: ``HF_ENDPOINT``, else the hub's own."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(constants.ENDPOINT)


def may_hear_token(address: str) -> bool:
    """Whether a token may go there: over https, or to this very machine without a proxy in between."""
    try:
        parts = urlsplit(address)
    except ValueError:  # no address at all
        return False
    is_here = parts.hostname in ("127.0.0.1", "::1", "localhost")
    goes_straight = "http" not in getproxies() or bool(proxy_bypass(parts.hostname or ""))
    return parts.scheme == "https" or (is_here and goes_straight)


def hub_token() -> str | None:
    """Returns the token of ``HF_TOKEN``, else the one that `hf auth login` saved; None where there is none.

    As for the hub's own programs, ``HF_HUB_DISABLE_IMPLICIT_TOKEN`` keeps both at home.

    Raises:
        UsageError: what stands there cannot be one.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    token = token_of("HF_TOKEN")
    if token is not None:
        return token
    try:
        if os.path.exists(constants.HF_TOKEN_PATH):  # the hub's program would wait for a pipe
            read_regular(constants.HF_TOKEN_PATH, most=MOST_TOKEN)
        return checked_token(get_token() or "", constants.HF_TOKEN_PATH)
    except ValueError:  # text of no encoding is one too
        raise no_token(constants.HF_TOKEN_PATH) from None


def token_hint() -> str:
    """Returns what to do where the hub gives something only to those whom it knows."""
    from huggingface_hub import constants

    also = "unset HF_HUB_DISABLE_IMPLICIT_TOKEN, " if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else ""
    return f"{also}export HF_TOKEN=..., and accept the repository's terms on its page"


def network_file(
    place: str | os.PathLike[str],
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: Token = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> str:
    """Returns the path of a network's file, fetched from the hub where it is not here.

    Args:
        place: a file, a folder, or ``"owner/repo"``. What is here comes first.
        weight_name: of the file in a folder or repository; needed where that has several model files.
        subfolder: in which it lies there.
        revision: a branch, a tag or a commit; None is the main branch.
        token: see `Token`.
        cache_dir: instead of the hub's own cache.
        local_files_only: nothing is fetched.

    Raises:
        UsageError: there are several files to choose from, or ``HF_ENDPOINT`` is plain http.
        NotFound: there is no such repository, revision or file, or the repository is private.
        AuthRequired: the repository is only for those who accepted its terms, or the token is not known.
        NetworkFailed, RateLimited: the hub did not give it.
        MissingExtra: huggingface_hub is not installed.
    """
    path = os.fsdecode(place)
    if os.path.isdir(path):
        return _in_folder(os.path.join(path, subfolder or ""), weight_name)
    is_repo = _REPO.fullmatch(path) and (weight_name is not None or not is_model_name(path))
    if os.path.exists(path) or not is_repo:
        return path
    require_extra("huggingface_hub", path)
    from huggingface_hub import HfApi

    address = endpoint()
    if not may_hear_token(address):
        raise UsageError(f"{path}: HF_ENDPOINT is plain http, or no address", hint="give it an https address")
    if weight_name is None and local_files_only:
        raise UsageError(f"{path}: weight_name must say which file of the cache", hint='weight_name="FILE"')
    given = checked_token(token, "token") if isinstance(token, str) else hub_token() if token is not False else None
    hub = HfApi(endpoint=address, token=given or False)
    with _translated(path, revision, weight_name):
        if weight_name is None:
            info = hub.model_info(path, revision=revision)
            weight_name = _only_one(path, (file.rfilename for file in info.siblings or ()), subfolder)
            subfolder, revision = None, info.sha
        return str(
            hub.hf_hub_download(
                path,
                weight_name,
                subfolder=subfolder,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        )


def _in_folder(folder: str, weight_name: str | None) -> str:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise NotFound(f"{folder}: no such folder") from error
    name = _only_one(folder, names) if weight_name is None else weight_name
    if not os.path.exists(os.path.join(folder, name)):
        raise NotFound(f"{folder}: has no file {name}", hint=_WITHOUT_NAME)
    return os.path.join(folder, name)


def _only_one(where: str, names: Iterable[str], subfolder: str | None = None) -> str:
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    found = [name for name in names if is_model_name(name) and name.startswith(prefix)]
    if not found:
        raise NotFound(
            f"{where}: has no model file{f' in {subfolder}' if subfolder else ''}", hint='weight_name="FILE"'
        )
    if len(found) > 1:
        more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
        hint = f"say by weight_name which of {', '.join(sorted(found)[:_MOST_LISTED])}{more}"
        raise UsageError(f"{where}: has {len(found)} model files", hint=hint)
    return found[0]


@contextmanager
def _translated(repo: str, revision: str | None, weight_name: str | None) -> Iterator[None]:
    """Turns what huggingface_hub raises into our errors; none of its words are shown: a site may repeat a token."""
    try:
        yield
    except HnetkitError:
        raise
    except Exception as error:
        raise _failure(error, repo, revision, weight_name) from None


def _failure(error: Exception, repo: str, revision: str | None, weight_name: str | None) -> HnetkitError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):  # a kind of repository that is not found, to the library
        return AuthRequired(f"{repo}: only for those who accepted its terms", hint=token_hint())
    if isinstance(error, errors.RepositoryNotFoundError):  # to those who may not see it, a private one does not exist
        said = f"{repo}: no such file or folder here, and no such repository on the hub, or a private one"
        return NotFound(said, hint=f"check the name; if it is private: {token_hint()}")
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{repo}: has no revision {revision or 'main'}", hint="give a branch, a tag or a whole commit")
    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            return _failure(error.__cause__, repo, revision, weight_name)
        said = f"{repo}: {weight_name} is not in the cache, and the hub was not reached"
        return NetworkFailed(said, hint="go online once so that it is cached")
    if isinstance(error, errors.EntryNotFoundError):
        return NotFound(f"{repo}: has no file {weight_name}", hint=_WITHOUT_NAME)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkFailed(f"{repo}: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(getattr(error.response, "status_code", None), repo)
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{repo}: no repository of the hub can be called so", hint="owner/repo")
    if isinstance(error, OSError) and error.errno in _DISK:
        return failure_of(error, repo)
    return NetworkFailed(f"{repo}: the hub did not give it ({type(error).__name__})", hint="try again when online")


def _refusal(status: int | None, repo: str) -> HnetkitError:
    if status in (401, 403):
        return AuthRequired(f"{repo}: the hub denies access", hint=token_hint())
    if status == 404:
        return NotFound(f"{repo}: the hub does not have it")
    if status == 429:
        return RateLimited(f"{repo}: the hub asks for a pause", hint="try again in some minutes")
    return NetworkFailed(f"{repo}: the hub answered {status}", hint="try again later")
