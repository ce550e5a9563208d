"""The Hugging Face hub: its address, its token, files of its repositories in the hub's own cache, and uploads.

huggingface_hub is imported on use, so that local files need no such package.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from hnetkit.errors import (
    AuthRequired,
    HnetkitError,
    NetworkFailed,
    NoAccess,
    NotFound,
    PartlyFailed,
    RateLimited,
    StorageFull,
    UsageError,
    failure_of,
    require_extra,
)
from hnetkit.files import is_model_name, read_regular
from hnetkit.text import argument, shorten
from hnetkit.tokens import MOST_TOKEN, checked_token, invalid_token, token_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Token: TypeAlias = str | bool | None
"""As in huggingface_hub: a token; None or True for that of `hub_token`, False for none."""

REPO = r"\w[\w.-]*/\w[\w.-]*"
"""The pattern of a repository's name: no part begins with a dot, so that none leads elsewhere in an address."""

_REPO = re.compile(REPO, re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9][\w.+=-]{0,127}", re.ASCII)
_SITE = re.compile(r"https?://[^/?#\\\s]+(?=/)", re.IGNORECASE)
_OWN_SITE = "https://huggingface.co"  # whose addresses a mirror of the hub may repeat
_MOST_FILES = 10_000  # of a repository that are looked at
_MOST_LISTED = 10
_WITHOUT_NAME = "without weight_name its one model file is taken, or all of them are named"
_MOST_SAID = 300  # letters of what the hub says of a card
_NO_ROOM = re.compile(r"storage (?:limit|quota|space)|quota|exceeded.{0,40}storage", re.IGNORECASE)
_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b")  # as hf_xet, which sends large files, reports a refusal
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def endpoint() -> str:
    """Returns the hub's URL: ``HF_ENDPOINT``, or the hub's own."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(constants.ENDPOINT)


def fault_of_endpoint(address: str) -> str | None:
    """Returns why a hub at this URL is not asked, None if it may be.

    A token may be sent over https, or to this machine without a proxy in between; and huggingface_hub prints the URL.
    """
    unsafe = "HF_ENDPOINT is plain http, or no address"
    try:
        parts = urlsplit(address)
    except ValueError:
        return unsafe
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "HF_ENDPOINT is more than a site's address: leave out user, password and query"
    is_here = parts.hostname in ("127.0.0.1", "::1", "localhost")
    # for huggingface_hub, a proxy for all is one for http too
    goes_straight = not {"http", "all"} & getproxies().keys() or bool(proxy_bypass(parts.hostname or ""))
    return None if parts.scheme == "https" or (is_here and goes_straight) else unsafe


def hub_token() -> str | None:
    """Returns the token of ``HF_TOKEN``, or the one that ``hf auth login`` saved; None where there is none.

    As in huggingface_hub, ``HF_HUB_DISABLE_IMPLICIT_TOKEN`` disables both.

    Raises:
        UsageError: the value cannot be a token.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    token = token_of("HF_TOKEN")
    if token is not None:
        return token
    try:
        if os.path.exists(constants.HF_TOKEN_PATH):  # huggingface_hub would block on a pipe
            read_regular(constants.HF_TOKEN_PATH, most=MOST_TOKEN)
        return checked_token(get_token() or "", constants.HF_TOKEN_PATH)
    except ValueError:  # includes text that cannot be decoded
        raise invalid_token(constants.HF_TOKEN_PATH) from None


REVISION_HINT = "give a branch, a tag or a whole commit"
"""The hint for a revision that a repository does not have."""


def token_hint() -> str:
    """Returns the hint for what the hub serves only with a token."""
    from huggingface_hub import constants

    also = "unset HF_HUB_DISABLE_IMPLICIT_TOKEN, " if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else ""
    return f"{also}export HF_TOKEN=..., and accept the repository's terms on its page"


def missing_hint() -> str:
    """Returns the hint for a repository that is not there: without access, a private one looks missing."""
    return f"check the name; if it is private: {token_hint()}"


def network_file(
    source: str | os.PathLike[str],
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: Token = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> str:
    """Returns the path of a network's file, fetched from the hub where it is not local.

    Args:
        source: a file, a folder, or ``"owner/repo"``. Local paths come first.
        weight_name: of the file in a folder or repository; required if that has several model files.
        subfolder: of the folder or repository.
        revision: branch, tag or commit; None is the main branch.
        token: see `Token`.
        cache_dir: replaces the hub's own cache.
        local_files_only: fetch nothing.

    Raises:
        UsageError: there are several files to choose from, or ``HF_ENDPOINT`` is no address that is asked.
        NotFound: there is no such repository, revision or file, or the repository is private.
        AuthRequired: the repository requires that its terms are accepted, or the token is not valid.
        NetworkFailed, RateLimited: the hub did not serve it.
        MissingExtra: huggingface_hub is not installed.
    """
    path = os.fsdecode(source)
    if os.path.isdir(path):
        return _in_folder(os.path.join(path, subfolder or ""), weight_name)
    is_repo = _REPO.fullmatch(path) and (weight_name is not None or not is_model_name(path))
    if os.path.exists(path) or not is_repo:
        return path
    hub = _client(path, token)
    _require_plain_answers()
    if weight_name is None and local_files_only:
        raise UsageError(f"{path}: weight_name must name the file in the cache", hint='weight_name="FILE"')
    with _translating_errors(path, revision, weight_name):
        if weight_name is None:
            info = hub.model_info(path, revision=revision)
            names = (file.rfilename for file in info.siblings or ())
            weight_name = _only_one(path, filter(_is_inside, names), subfolder)
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


def _client(what: str, token: Token) -> HfApi:
    """Returns huggingface_hub's client of the hub that ``HF_ENDPOINT`` names; `what` is for messages."""
    require_extra("huggingface_hub", what)
    from huggingface_hub import HfApi

    address = endpoint()
    if fault := fault_of_endpoint(address):
        raise UsageError(f"{what}: {fault}", hint="give it an https address")
    given = checked_token(token, "token") if isinstance(token, str) else hub_token() if token is not False else None
    return HfApi(endpoint=address, token=given or False)


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
def _translating_errors(repo: str, revision: str | None, weight_name: str | None) -> Iterator[None]:
    """Turns errors of huggingface_hub into ours, without its text: a site may repeat a token."""
    try:
        yield
    except HnetkitError:
        raise
    except Exception as error:
        raise _failure(error, repo, revision, weight_name) from None


def _failure(error: Exception, repo: str, revision: str | None, weight_name: str | None) -> HnetkitError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):  # a subclass of RepositoryNotFoundError
        return AuthRequired(f"{repo}: requires that you accept its terms", hint=token_hint())
    if isinstance(error, errors.RepositoryNotFoundError):  # a private repository looks missing without access
        message = f"{repo}: no such file or folder here, and no such repository on the hub, or a private one"
        return NotFound(message, hint=missing_hint())
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{repo}: has no revision {revision or 'main'}", hint=REVISION_HINT)
    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            return _failure(error.__cause__, repo, revision, weight_name)
        message = f"{repo}: {weight_name} is not in the cache, and the hub was not reached"
        return NetworkFailed(message, hint="go online once so that it is cached")
    if isinstance(error, errors.EntryNotFoundError):
        return NotFound(f"{repo}: has no file {weight_name}", hint=_WITHOUT_NAME)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkFailed(f"{repo}: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(getattr(error.response, "status_code", None), repo)
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{repo}: not a valid name of a repository", hint="owner/repo")
    if isinstance(error, OSError) and error.errno in _DISK:
        return failure_of(error, repo)
    return NetworkFailed(f"{repo}: the hub did not serve it ({type(error).__name__})", hint="try again when online")


def _refusal(status: int | None, repo: str) -> HnetkitError:
    if status in (401, 403):
        return AuthRequired(f"{repo}: the hub denies access", hint=token_hint())
    if status == 404:
        return NotFound(f"{repo}: the hub does not have it")
    if status == 429:
        return RateLimited(f"{repo}: the hub asks for a pause", hint="try again in some minutes")
    return NetworkFailed(f"{repo}: the hub answered {status}", hint="try again later")


# --- files in the hub's cache


def fetched_file(repo: str, name: str, revision: str | None = None) -> Path:
    """Returns a file of a repository in the hub's cache, fetched if it is missing; raises as huggingface_hub does.

    Raises:
        NetworkFailed: the hub's answer would lead out of the cache.
    """
    from huggingface_hub import hf_hub_download

    _require_plain_answers()
    return Path(hf_hub_download(repo, name, revision=revision))


def complete_folder(folder: Path, repo: str, patterns: Sequence[str]) -> None:
    """Fetches the files of these patterns into the folder that `fetched_file` gave one of the same commit in.

    huggingface_hub's own way to do so makes paths of all that the hub says of a repository. Without the hub, what is in
    the cache has to do.

    Raises: as `fetched_file`.
    """
    from huggingface_hub import HfApi, errors, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    commit = folder.name
    try:  # not by its list in pages: the token would follow to wherever the next page is said to be
        listed = HfApi().model_info(repo, revision=commit).siblings or ()
        names = [file.rfilename for file in islice(listed, _MOST_FILES)]
    except errors.RepositoryNotFoundError:
        raise
    except Exception:
        snapshot_download(repo, revision=commit, allow_patterns=list(patterns), local_files_only=True)
        return
    for name in filter_repo_objects(filter(_is_inside, names), allow_patterns=list(patterns)):
        fetched_file(repo, name, commit)


def _is_inside(name: str) -> bool:
    """Whether the name of a file in a repository leads to no place outside of its folder, on any system."""
    return not re.search(r"[\\:\0]", name) and not {"", ".", ".."} & {*name.split("/")}


def _require_plain_answers() -> None:
    """Has huggingface_hub refuse what a hub says of a file that is no plain name, or sends the token elsewhere.

    It makes paths of names: the commit is that of a folder, and the version of a file (its ETag) that of the file that
    is written. And it exchanges the token for one of the storage wherever the hub says.
    """
    from huggingface_hub import constants, errors, file_download

    ask = file_download.get_hf_file_metadata
    if hasattr(ask, "refuses_paths"):
        return

    @wraps(ask)
    def ask_plain(*args: Any, **options: Any) -> Any:
        try:
            found = ask(*args, **options)
        except errors.HfHubHTTPError as error:  # that a file is missing is noted under the commit
            headers = getattr(error.response, "headers", {})
            _require_plain(headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT))
            raise
        _require_plain(found.commit_hash, found.etag)
        exchange = getattr(found, "xet_file_data", None)
        if exchange is not None:
            _require_own_site(exchange.refresh_route, str(args[0] if args else options["url"]))
        return found

    ask_plain.refuses_paths = True  # type: ignore[attr-defined]
    file_download.get_hf_file_metadata = ask_plain


def _require_plain(*stated: str | None) -> None:
    if not all(text is None or _PLAIN.fullmatch(text) for text in stated):
        raise NetworkFailed("the hub states a commit or a version of a file that is none", hint="look at HF_ENDPOINT")


def _require_own_site(named: str, asked: str) -> None:
    """Raises NetworkFailed if an address that a hub names, which gets the token, is not of the site that was asked."""
    site, own = (found and found[0].lower() for found in (_SITE.match(named), _SITE.match(asked)))
    if site is None or site not in (own, _OWN_SITE):
        raise NetworkFailed("the hub would have the token sent to another site", hint="look at HF_ENDPOINT")


# --- uploads


@dataclass(frozen=True, slots=True)
class Repository:
    """A model repository to upload to, as the account of a token sees it.

    Attributes:
        name: ``owner/repo``.
        url: of its page.
        account: name of the account.
        is_there: whether it exists.
        is_private: it, or the one that is to be created.
        files: names of what is in it.
    """

    name: str
    url: str
    account: str
    is_there: bool
    is_private: bool
    files: frozenset[str]
    _hub: HfApi = field(repr=False)


def repository_name(text: str) -> str:
    """Returns the ``owner/repo`` of a model repository that is named so, or as ``hf:owner/repo``.

    Raises:
        UsageError: it is something else.
    """
    name = text.removeprefix("hf:")
    if _REPO.fullmatch(name) is None:
        raise UsageError(f"{text}: not the name of a repository", hint="owner/repo, such as your-name/ink")
    return name


def repository(name: str, *, private: bool = False, token: Token = None) -> Repository:
    """Asks the hub about a repository that something is to be uploaded to.

    Args:
        name: see `repository_name`.
        private: it is to be a private one.
        token: see `Token`.

    Raises:
        UsageError: it is no name of a repository, or that of a public one and `private` is set.
        AuthRequired: there is no token, the hub does not accept it, or it may only read.
        NetworkFailed, RateLimited: the hub did not answer.
        MissingExtra: huggingface_hub is not installed.
    """
    name = repository_name(name)
    hub = _client(name, token)
    if not hub.token:
        raise AuthRequired(
            f"{name}: uploading needs a token of the hub", hint=f"{_make_token()}, then export HF_TOKEN=..."
        )
    with _uploading(name, None):
        from huggingface_hub import errors
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(name)
        me = hub.whoami()
        account = _without_token(str(me.get("name")), hub)
        if ((me.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise NoAccess(f"{name}: the token may only read", hint=_make_token())
        url = f"{endpoint()}/{name}"
        try:
            info = hub.model_info(name)
        except errors.RepositoryNotFoundError:
            return Repository(name, url, account, False, private, frozenset(), hub)
    if private and not info.private:
        message = f"{name}: is there, and public"
        raise UsageError(message, hint="make it private on its page, or choose another name, or leave out --private")
    names = frozenset(file.rfilename for file in info.siblings or ())
    return Repository(name, url, account, True, bool(info.private), names, hub)


def upload(to: Repository, files: Mapping[str, Path], *, message: str, bars: bool = False) -> str | None:
    """Uploads files in one commit; creates the repository if it is not there. The same call continues an upload.

    Args:
        to: from `repository`.
        files: name in the repository -> file.
        message: of the commit.
        bars: show progress on a terminal.

    Returns:
        The address of the commit; None if all files were there already.

    Raises:
        NoAccess: the token or its account may not write there.
        StorageFull: the account has no room left.
        UsageError: the hub does not accept the model card among the files.
        PartlyFailed: the hub left files out, as a ``.gitignore`` of the repository may demand.
        NetworkFailed, RateLimited: the hub did not take it.
    """
    from huggingface_hub import CommitOperationAdd

    _require_own_checks()
    with _uploading(to.name, to), _bars(bars):
        before = None
        if to.is_there:
            before = to._hub.model_info(to.name).sha
        else:
            to._hub.create_repo(to.name, private=to.is_private, exist_ok=True)
        additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        done = to._hub.create_commit(to.name, additions, commit_message=message)
        there = {entry.path for entry in to._hub.get_paths_info(to.name, list(files), revision=done.oid)}
    if kept_out := [shorten(name) for name in files if name not in there]:  # huggingface_hub leaves them out in silence
        some = f"{', '.join(kept_out[:_MOST_LISTED])}{', ...' if len(kept_out) > _MOST_LISTED else ''}"
        hint = f"look into .gitignore at {to.url}/tree/main, and run the same command again"
        raise PartlyFailed(f"{to.name}: the hub did not take {some}", hint=hint)
    return None if done.oid == before else str(done.commit_url)


def _require_own_checks() -> None:
    """Has huggingface_hub refuse a hub that lets another site check whether a large file came: the token goes there."""
    from huggingface_hub import _commit_api

    ask = _commit_api.post_lfs_batch_info
    if hasattr(ask, "refuses_sites"):
        return

    @wraps(ask)
    def ask_own(*args: Any, **options: Any) -> Any:
        answer = ask(*args, **options)
        for action in answer[0]:
            check = (action.get("actions") or {}).get("verify")
            if check is not None:
                _require_own_site(str(check.get("href")), f"{options.get('endpoint') or endpoint()}/")
        return answer

    ask_own.refuses_sites = True  # type: ignore[attr-defined]
    _commit_api.post_lfs_batch_info = ask_own


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Shows or silences the progress bars of huggingface_hub, and silences its remarks."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    log, were_disabled = logging.getLogger("huggingface_hub"), are_progress_bars_disabled()
    level = log.level
    log.setLevel(logging.ERROR)
    if not shown:
        disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if not shown and not were_disabled:
            enable_progress_bars()


def _without_token(said: str, hub: HfApi) -> str:
    """Returns what a hub said, which may repeat the token, for a person to see."""
    return said.replace(str(hub.token), "<token>") if hub.token else said


def _make_token() -> str:
    return f"make one with write access at {endpoint()}/settings/tokens"


@contextmanager
def _uploading(name: str, to: Repository | None) -> Iterator[None]:
    """Turns errors of huggingface_hub into ours, as `_translating_errors`."""
    try:
        yield
    except HnetkitError:
        raise
    except Exception as error:
        raise _upload_failure(error, name, to) from None


def _upload_failure(error: Exception, name: str, to: Repository | None) -> HnetkitError:
    from huggingface_hub import errors

    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None and len(causes) < _MOST_LISTED:  # of a file among several
        causes.append(causes[-1].__cause__)
    refused = next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
    said = " ".join(str(cause) for cause in causes)
    stated = _STATUS.search(said)
    status = getattr(refused.response, "status_code", None) if refused else int(stated[1]) if stated else None
    if status in (402, 413, 507) or (status in (None, 400, 403) and _NO_ROOM.search(said)):
        return StorageFull(
            f"{name}: the account has no room left at the hub", hint=f"make room: {endpoint()}/settings/billing"
        )
    if "Invalid metadata in README.md" in said:
        reason = "; ".join(line.strip("- ") for line in said.splitlines()[1:] if line.startswith("- "))
        reason = shorten(reason if to is None else _without_token(reason, to._hub), _MOST_SAID)
        return UsageError(
            f"{name}: the hub does not accept the card: {reason}", hint="edit README.md, and run it again"
        )
    if status == 401 and not isinstance(refused, errors.RepositoryNotFoundError):
        return AuthRequired(f"{name}: the hub does not accept the token", hint=_make_token())
    if status in (401, 403, 404) and to is not None:
        mine = f"{to.account}/{name.partition('/')[2]}"
        hint = f"upload to {argument(mine)}, or use a token that may write there: {endpoint()}/settings/tokens"
        return NoAccess(f"{name}: {to.account} may not write there with this token", hint=hint)
    if status in (409, 412):
        return NetworkFailed(f"{name}: somebody else changes it right now", hint="run the same command again")
    if status is not None and status >= 500:
        return NetworkFailed(f"{name}: the hub answered {status}", hint="run the same command again; it goes on")
    return _failure(error if refused is None else refused, name, None, None)
