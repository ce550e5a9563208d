"""Parse what a user types for a model: URLs, numbers, URNs, hashes, repositories of the Hugging Face hub."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from hnetkit.errors import HnetkitError, UsageError
from hnetkit.sources.civitai import CIVITAI_HOSTS, civitai_base
from hnetkit.sources.trust import Origin, redact

HUB_HOSTS = ("huggingface.co", "hf.co")
FORMS = "a civitai.com address, model:ID, version:ID, urn:air:..., a hash, hf:owner/repo[@rev][:glob], https://..."
_MODEL = re.compile(r"/(?:api/v1/)?models/([0-9]{1,10})(?:/|$)")
_VERSION = re.compile(r"/(?:api/v1/model-versions|model-versions|api/download/models)/([0-9]{1,10})(?:/|$)")
_NUMBER = re.compile(r"(model|version):([0-9]{1,10})")
_AIR = re.compile(r"(?:urn:air:[\w.-]+:[\w.-]+:)?civitai:([0-9]{1,10})(?:@([0-9]{1,10}))?(?:\.\w+)?", re.IGNORECASE)
_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{12}|[0-9a-f]{64})", re.IGNORECASE)
_WITHOUT_SCHEME = re.compile(rf"(?:www\.)?(?:{'|'.join(map(re.escape, (*CIVITAI_HOSTS, *HUB_HOSTS)))})/", re.IGNORECASE)
_WITH_AT = re.compile(r"hf:[\w.-]+/[\w.-]+@|(?:urn:air:[\w.-]+:[\w.-]+:)?civitai:[0-9]+@", re.IGNORECASE)
_HUB = re.compile(r"hf:((?:datasets/)?[\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::(.+))?")
_HUB_PAGE = re.compile(r"/((?:datasets/)?[\w.-]+/[\w.-]+)(?:/(blob|resolve|raw|tree)/([^/]+)(?:/(.+?))?)?/?")
_HUB_LISTS = frozenset({"api", "collections", "datasets", "docs", "models", "organizations", "papers", "spaces"})

Kind = Literal["model", "version", "hash", "hub", "url"]


@dataclass(frozen=True, slots=True)
class Reference:
    """What a user's text refers to.

    Attributes:
        kind: where to look it up.
        text: as typed, without secrets.
        id: of a model or version.
        model: that a version must belong to; None where the text names none.
        file: number of the only wanted file of a version; None for all.
        digits: of a hash, in lower case.
        repo, revision, pattern: of the hub; `pattern` is a glob over the repository's paths, or a folder.
        url: of a plain file, complete; also of a file on the hub, from its page. Its query may hold a
            secret, so it is neither stored nor shown.
    """

    kind: Kind
    text: str
    id: int = 0
    model: int | None = None
    file: int | None = None
    digits: str = ""
    repo: str = ""
    revision: str | None = None
    pattern: str | None = None
    url: str = field(default="", repr=False)


def parse_reference(text: str) -> Reference:
    """Returns what `text` refers to.

    Raises:
        UsageError: it is no known form of reference.
    """
    text = text.strip()
    if match := _NUMBER.fullmatch(text):
        return Reference("model" if match[1] == "model" else "version", text, id=int(match[2]))
    if match := _AIR.fullmatch(text):
        if match[2]:
            return Reference("version", text, id=int(match[2]), model=int(match[1]))
        return Reference("model", text, id=int(match[1]))
    if match := _HUB.fullmatch(text):
        return Reference("hub", text, repo=match[1], revision=match[2], pattern=match[3])
    if text.startswith(("http://", "https://")):
        return _parse_address(text)
    if _WITHOUT_SCHEME.match(text):
        return _parse_address(f"https://{text}")
    if match := _HASH.fullmatch(text):
        return Reference("hash", text, digits=match[1].lower())
    hint = f"use model:{text} or version:{text}" if re.fullmatch(r"[0-9]{1,10}", text) else f"use {FORMS}"
    raise UsageError(f"{redact_reference(text)[:200]}: not a recognized reference", hint=hint)


def redact_reference(text: str) -> str:
    """Returns a text without what may be a secret: people paste URLs with ``?token=`` or a password."""
    if "://" in text:
        return redact(text)
    short = re.split(r"[?#&]", text, maxsplit=1)[0]
    return short if _WITH_AT.match(short) else redact(short)


def _parse_address(text: str) -> Reference:
    shown = redact(text)
    is_civitai, parts = _is_civitai(text), urlsplit(text)
    query = parse_qs(parts.query)
    if "@" in re.split(r"[/?#]", text.partition("://")[2], maxsplit=1)[0]:
        raise UsageError(f"{shown}: give no user or password in an address", hint="leave out all before the @")
    if _is_hub(text):
        return _parse_hub_page(parts, shown)
    if not is_civitai:
        return Reference("url", shown, url=text.partition("#")[0])
    chosen = query.get("modelVersionId", [""])[0]
    of_model = _MODEL.search(parts.path)
    if re.fullmatch(r"[0-9]{1,10}", chosen):
        return Reference("version", shown, id=int(chosen), model=int(of_model[1]) if of_model else None)
    if match := _VERSION.search(parts.path):
        file = query.get("fileId", [""])[0]
        return Reference(
            "version", shown, id=int(match[1]), file=int(file) if re.fullmatch(r"[0-9]{1,10}", file) else None
        )
    if of_model:
        return Reference("model", shown, id=int(of_model[1]))
    raise UsageError(f"{shown}: no page of a model or version", hint="copy the address of the model's own page")


def _is_hub(text: str) -> bool:
    """Whether an address is one of the hub, or of the hub that ``HF_ENDPOINT`` names."""
    origin, endpoint = Origin.of(text), os.environ.get("HF_ENDPOINT", "").strip()
    try:
        is_endpoint = bool(endpoint) and origin == Origin.of(endpoint)
    except HnetkitError:  # reported when the hub is used
        is_endpoint = False
    return is_endpoint or origin.host.removeprefix("www.") in HUB_HOSTS


def _parse_hub_page(parts: SplitResult, shown: str) -> Reference:
    """Returns the repository, folder or file that a page of the hub shows."""
    match = _HUB_PAGE.fullmatch(parts.path)
    if match is None or (match[1].split("/")[0] in _HUB_LISTS and not match[1].startswith("datasets/")):
        raise _no_hub_page(shown)
    repo, kind, revision, path = match[1], match[2], match[3], unquote(match[4] or "")
    if repo.startswith("datasets/") and repo.count("/") == 1:
        raise _no_hub_page(shown)
    if kind is None:
        return Reference("hub", shown, repo=repo)
    revision = unquote(revision)
    if not re.fullmatch(r"[\w./-]+", revision) or (kind != "tree" and not path):
        raise _no_hub_page(shown)
    if kind == "tree":
        return Reference("hub", shown, repo=repo, revision=revision, pattern=f"{path}/" if path else None)
    url = f"{parts.scheme}://{parts.netloc}/{repo}/resolve/{match[3]}/{match[4]}"
    url += f"?{parts.query}" if parts.query else ""
    return Reference("hub", shown, repo=repo, revision=revision, pattern=glob.escape(path), url=url)


def _no_hub_page(shown: str) -> UsageError:
    hint = "copy the address of the repository or of its file, or use hf:owner/repo[@rev][:glob]"
    return UsageError(f"{shown}: not a page of a repository or of its file", hint=hint)


def _is_civitai(text: str) -> bool:
    try:
        origin = Origin.of(text)
        urlsplit(text)  # rejects more
    except (HnetkitError, ValueError) as error:
        raise UsageError(f"{redact(text)[:200]}: not an address", hint=f"use {FORMS}") from error
    host = origin.host.removeprefix("www.")
    return host in CIVITAI_HOSTS or origin == Origin.of(civitai_base())
