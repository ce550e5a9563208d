"""Parse what a user types for a model: addresses of pages and files, numbers, AIRs, hashes, repositories of the hub.

What people copy from a browser or from another program is understood, or refused with the nearest form that would be:
see `near_references`. docs/addresses.md lists examples of both; a test reads them there.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from hnetkit.errors import HnetkitError, UsageError
from hnetkit.files import MODEL_SUFFIXES
from hnetkit.hub import REPO
from hnetkit.sources import near_references
from hnetkit.sources.civitai import CIVITAI_HOSTS, civitai_base
from hnetkit.sources.near_references import FORMS as FORMS
from hnetkit.sources.near_references import HUB_PAGES
from hnetkit.sources.trust import Origin, redact

HUB_HOSTS = ("huggingface.co", "hf.co")
CIVARCHIVE_HOSTS = ("civarchive.com", "civitaiarchive.com")
_SITES = (*CIVITAI_HOSTS, *HUB_HOSTS, *CIVARCHIVE_HOSTS)

Kind = Literal["model", "version", "hash", "hub", "url"]


@dataclass(frozen=True, slots=True)
class Reference:
    """What a user's text refers to.

    Attributes:
        kind: where to look it up.
        text: as typed, without secrets.
        id: of a model or version.
        model: that a version must belong to; None where the text names none.
        file: number of the only wanted file; None for all.
        format: of the wanted files, where there are several: ``"pickle"``, ``"safetensors"`` or another word.
        may_be_model: whether `id` may be a model's where no version has it, as in download links that people wrote.
        digits: of a hash, in lower case.
        repo, revision, pattern: of the hub; `pattern` is a glob over the repository's paths, or a folder.
        url: of a plain file, complete; also of a file on the hub, from its page. Its query may hold a
            secret, so it is neither stored nor shown.
        sha256: that the address itself demands of the file.
    """

    kind: Kind
    text: str
    id: int = 0
    model: int | None = None
    file: int | None = None
    format: str | None = None
    may_be_model: bool = False
    digits: str = ""
    repo: str = ""
    revision: str | None = None
    pattern: str | None = None
    url: str = field(default="", repr=False)
    sha256: str | None = None


def parse_reference(text: str) -> Reference:
    """Returns what `text` refers to.

    Raises:
        UsageError: it is no known form of reference. The hint is the nearest one.
    """
    text = _unwrapped(text)
    shown = redact_reference(text)
    for parse in (_parse_number, _parse_air, _parse_hub_name, _parse_hash):
        if (ref := parse(text, shown)) is not None:
            return ref
    if text.lower().startswith(("http://", "https://")):
        return _parse_address(text)
    if _WITHOUT_SCHEME.match(text):
        return _parse_address(f"https://{text.removeprefix('//')}")
    raise near_references.refusal_of_text(text, shown, _SITES)


def redact_reference(text: str) -> str:
    """Returns a text without what may be a secret: people paste URLs with ``?token=`` or a password."""
    if _COMMAND.match(text):
        return f"{redact(text.split()[0].partition('=')[0])} ..."
    if near_references.may_be_token(text):
        return f"{text[:3]}..."
    short = re.split(r"[?#&]", text, maxsplit=1)[0]
    if _WITH_AT.match(short):
        return short
    shown, cut, _ = redact(text if "://" in text else short).partition("&")  # a ? that was forgotten
    return f"{shown}?..." if cut else shown


# --- as typed

_COMMAND = re.compile(r"\S+\s.*(?:://|\s-|@)|[^\s=]*=\S*\s", re.DOTALL)  # its options may hold a token
_CLONE = re.compile(
    r"(?:\$\s+)?(?:\w+=\w+\s+)*git\s+(?:lfs\s+)?clone\s+(?:-\S+\s+(?:[0-9]+\s+)?)*(\S+)(?:\s+[^\s-]\S*)?"
)
_WRAPPED = re.compile(
    r"""(['"`])(?P<quoted>.+)\1|<(?P<plain>https?://[^<>\s]+)>|\[[^]]*\]\((?P<linked>https?://\S+)\)"""
)
_SSH = re.compile(r"(?:ssh://)?git@(?:hf\.co|huggingface\.co)[:/](\S+)", re.IGNORECASE)
_WITHOUT_SCHEME = re.compile(rf"(?://)?(?:www\.)?(?:{'|'.join(map(re.escape, _SITES))})(?:[/?#:]|$)", re.IGNORECASE)
_WITH_AT = re.compile(
    r"[0-9]{1,10}@[0-9]{1,10}$|hf:(?://)?[\w.-]+/[\w./-]+@"
    r"|(?:urn:)?(?:air:)?(?:[\w-]+:){0,2}(?:civitai:[0-9]+|huggingface:[\w./-]+)@",
    re.IGNORECASE,
)


def _unwrapped(text: str) -> str:
    """Returns the reference without what was copied around it: quotes, brackets, a command that clones it."""
    text = text.strip().strip("\u200b\u2060\ufeff")  # invisible, in what is copied from a page
    if match := _CLONE.fullmatch(text):
        text = match[1]
    if match := _WRAPPED.fullmatch(text):
        text = match["quoted"] or match["plain"] or match["linked"]
    if match := _SSH.fullmatch(text):
        text = f"https://huggingface.co/{match[1]}"
    return text.strip()


# --- numbers, AIRs, names at the hub, hashes

_ID = r"[0-9]{1,10}"
_NUMBER = re.compile(rf"(model|version):\s?({_ID})", re.IGNORECASE)
_AIR = r"(?:urn:)?(?:air:)?(?:[\w/-]+:){0,2}"
_CIVITAI_AIR = re.compile(rf"{_AIR}civitai:({_ID})(?:@({_ID}))?(?:\+({_ID}))?(?:\.([\w-]+))?", re.IGNORECASE | re.ASCII)
_HUB_AIR = re.compile(rf"{_AIR}huggingface:({REPO})(?:@([\w.-]+)(?:/([^?#]+))?)?", re.IGNORECASE | re.ASCII)
_HUB = re.compile(rf"hf:((?:datasets/)?{REPO})(?:@([\w./-]+))?(?::(.+))?")
_HUB_PATH = re.compile(rf"hf://((?:datasets/)?{REPO})(?:@(refs/(?:pr|convert)/[\w.-]+|[^/]+))?(?:/(.*))?")
_REVISION = re.compile(r"[\w./-]+")
_HASH = re.compile(r"(?:(sha-?256|autov[123]|blake3|crc32)\s*[:=]?\s*)?(?:0x)?([0-9a-f]+)", re.IGNORECASE)
# as the webui lists hypernetworks; (20230215) may be a date
_A1111_HASH = re.compile(r"[^()/\\:]*[^()/\\:\s]\(((?=[0-9]*[a-f])(?:[0-9a-f]{8}|[0-9a-f]{10}))\)")
_DIGITS = (8, 10, 12, 64)
_DIGITS_OF = {
    "sha256": (10, 12, 64),
    "autov1": (8,),
    "autov2": (10,),
    "autov3": (12,),
    "blake3": (64,),
    "crc32": (8,),
}
_FORMATS = {
    **dict.fromkeys(("pt", "pth", "ckpt", "bin", "pickle", "pickletensor"), "pickle"),
    **dict.fromkeys(("safetensor", "safetensors", "sft"), "safetensors"),
}


def format_of(word: str | None, name: str = "") -> str:
    """Returns a format: ``"pickle"``, ``"safetensors"`` or another word.

    Args:
        word: for it, of an AIR, an address or the site.
        name: of the file, which tells the format by its suffix where the word says nothing of use.
    """
    known = _FORMATS.get((word or "").lower())
    suffix = os.path.splitext(name)[1].lower().lstrip(".")
    return known or _FORMATS.get(suffix) or suffix or (word or "").lower()


def _parse_number(text: str, shown: str) -> Reference | None:
    match = _NUMBER.fullmatch(text)
    return match and Reference("model" if match[1].lower() == "model" else "version", shown, id=int(match[2]))


def _parse_air(text: str, shown: str) -> Reference | None:
    if match := _HUB_AIR.fullmatch(text):
        path = match[3] and glob.escape(match[3])
        return Reference("hub", shown, repo=match[1], revision=match[2], pattern=path)
    if (match := _CIVITAI_AIR.fullmatch(text)) is None:
        return None
    model, version, file = int(match[1]), match[2], _id(match[3])
    format = match[4] and format_of(match[4])
    if version:
        return Reference("version", shown, id=int(version), model=model, file=file, format=format)
    return Reference("model", shown, id=model, file=file, format=format)


def _parse_hub_name(text: str, shown: str) -> Reference | None:
    if match := _HUB.fullmatch(text):
        return Reference("hub", shown, repo=match[1], revision=match[2], pattern=match[3])
    if (match := _HUB_PATH.fullmatch(text)) is None:
        return None
    revision = match[2] and unquote(match[2])
    if match[1].startswith(near_references.NO_OWNERS) or (revision and not _REVISION.fullmatch(revision)):
        return None
    return Reference("hub", shown, repo=match[1], revision=revision, pattern=match[3] or None)


def _parse_hash(text: str, shown: str) -> Reference | None:
    joined = "".join(text.split())  # 64 digits may be copied in groups, or over two lines
    match = _HASH.fullmatch(joined if len(joined) >= 64 else text)
    if match is not None and len(match[2]) in _DIGITS_OF.get((match[1] or "").lower().replace("-", ""), _DIGITS):
        return Reference("hash", shown, digits=match[2].lower())
    match = _A1111_HASH.fullmatch(text)
    return match and Reference("hash", shown, digits=match[1])


# --- addresses

_PINNED = re.compile(r"sha256[=:]([0-9a-f]{64})", re.IGNORECASE)


def _parse_address(text: str) -> Reference:
    shown = redact_reference(text)
    try:
        origin, parts = Origin.of(text), urlsplit(text)  # each rejects more
    except (HnetkitError, ValueError) as error:
        raise UsageError(f"{shown[:200]}: not an address", hint=f"use {FORMS}") from error
    if "@" in re.split(r"[/?#]", text.partition("://")[2], maxsplit=1)[0]:
        raise UsageError(f"{shown}: give no user or password in an address", hint="leave out all before the @")
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    host = origin.host.removeprefix("www.")
    if host in HUB_HOSTS or _is_at(origin, "HF_ENDPOINT"):
        return _parse_hub_page(parts, shown)
    if host in CIVITAI_HOSTS or origin == Origin.of(civitai_base()):
        return _parse_civitai_page(parts.path, query, shown)
    if host in CIVARCHIVE_HOSTS or _is_at(origin, "HNETKIT_CIVARCHIVE_URL"):
        return _parse_civarchive_page(parts.path, query, shown)
    url, _, fragment = text.partition("#")
    pinned = _PINNED.fullmatch(fragment)
    if (refusal := near_references.refusal_of_host(host, parts, shown, _SITES)) is not None and not pinned:
        raise refusal
    return Reference("url", shown, url=url, sha256=pinned[1].lower() if pinned else None)


def _is_at(origin: Origin, variable: str) -> bool:
    """Whether an address is one of the site that a variable names; a broken URL is reported when that site is used."""
    url = os.environ.get(variable, "").strip()
    try:
        return bool(url) and origin == Origin.of(url)
    except HnetkitError:
        return False


# --- pages of Civitai, and of CivArchive

_MODEL = re.compile(rf"/models/({_ID})(?:/|$)")
_VERSION = re.compile(rf"/(?:model-versions(?:/mini)?|models/{_ID}(?:/[^/]+)?/versions)/({_ID})(?:/|$)")
_DOWNLOAD = re.compile(rf"/api/download/models/({_ID})(?:/|$)")
_BY_HASH = re.compile(r"/(?:model-versions/by-hash|sha256)/([0-9a-f]{8,64})/?$", re.IGNORECASE)


def _parse_civitai_page(path: str, query: Mapping[str, str], shown: str) -> Reference:
    ref = _numbered(path, query, shown)
    if ref is None or query.get("type", "").lower() == "training data":
        raise near_references.refusal_of_civitai_page(path, shown)
    return ref


def _parse_civarchive_page(path: str, query: Mapping[str, str], shown: str) -> Reference:
    """Returns what a page of the archive shows: a model of Civitai by the same numbers, or a file by its sha256."""
    is_civitai = re.match(r"/(?:api/)?(?:models|sha256|download)/", path) is not None
    ref = _numbered(path, query, shown) if is_civitai else None
    if ref is None:
        raise near_references.refusal_of_civarchive_page(path, shown)
    return ref


def _numbered(path: str, query: Mapping[str, str], shown: str) -> Reference | None:
    """Returns the model, the version or the file that the numbers or the hash in an address of Civitai mean."""
    if (match := _BY_HASH.search(path)) and len(match[1]) in _DIGITS:
        return Reference("hash", shown, digits=match[1].lower())
    file = _id(query.get("fileId"))
    if match := _DOWNLOAD.search(path):
        format = query.get("format")
        return Reference(
            "version",
            shown,
            id=int(match[1]),
            file=file,
            format=format_of(format) if format and re.fullmatch(r"\w{1,20}", format) else None,
            may_be_model=file is None,
        )
    of_model = _MODEL.search(path)
    model = int(of_model[1]) if of_model else _id(query.get("modelId"))
    match = _VERSION.search(path)
    version = _id(query.get("modelVersionId")) or (int(match[1]) if match else None)
    if version is not None:
        return Reference("version", shown, id=version, model=model, file=file)
    return None if model is None else Reference("model", shown, id=model, file=file)


def _id(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(_ID, text) else None


# --- pages of the hub


def _parse_hub_page(parts: SplitResult, shown: str) -> Reference:
    """Returns the repository, folder or file that a page of the hub shows."""
    segments = [segment for segment in parts.path.split("/") if segment]
    if segments[:1] == ["api"] and segments[1:2] in (["models"], ["datasets"]):
        segments = segments[1:] if segments[1] == "datasets" else segments[2:]
    within = segments[1:] if segments[:1] == ["datasets"] else segments
    names = [name.removesuffix(".git") for name in within[:2]]
    if len(names) < 2 or names[0] in HUB_PAGES or not re.fullmatch(REPO, "/".join(names)):
        raise near_references.refusal_of_hub_page(segments, shown)
    repo = "/".join(["datasets"] * (within is not segments) + names)
    if len(within) == 2:
        return Reference("hub", shown, repo=repo)
    view, places = within[2], within[3:]
    count = 3 if places[:1] == ["refs"] and len(places) > 2 else 1  # refs/pr/3 holds slashes, encoded or not
    revision, path = unquote("/".join(places[:count])), unquote("/".join(places[count:]))
    is_file = view in ("blob", "resolve", "raw") and path != ""
    if not (is_file or view in ("tree", "revision")) or not _REVISION.fullmatch(revision):
        raise near_references.refusal_of_hub_repo_page(repo, view, revision, path, shown)
    if not is_file:
        is_named = os.path.splitext(path)[1].lower() in MODEL_SUFFIXES
        pattern = glob.escape(path) if is_named else f"{path}/" if path else None
        return Reference("hub", shown, repo=repo, revision=revision, pattern=pattern)
    url = f"{parts.scheme}://{parts.netloc}/{repo}/resolve/{'/'.join(places)}{'?' * bool(parts.query)}{parts.query}"
    pinned = _PINNED.fullmatch(parts.fragment)
    sha256 = pinned[1].lower() if pinned else None
    return Reference("hub", shown, repo=repo, revision=revision, pattern=glob.escape(path), url=url, sha256=sha256)
