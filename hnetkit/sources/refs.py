"""What a person types to mean a model: addresses, numbers, URNs, hashes, places on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from hnetkit.errors import HnetkitError, UsageError
from hnetkit.sources.origins import CIVITAI_HOSTS, Origin, civitai_base, redacted

FORMS = "a civitai.com address, model:ID, version:ID, urn:air:..., a hash, hf:owner/repo[@rev][:glob], https://..."
_MODEL = re.compile(r"/(?:api/v1/)?models/([0-9]{1,10})(?:/|$)")
_VERSION = re.compile(r"/(?:api/v1/model-versions|model-versions|api/download/models)/([0-9]{1,10})(?:/|$)")
_NUMBER = re.compile(r"(model|version):([0-9]{1,10})")
_AIR = re.compile(r"(?:urn:air:[\w.-]+:[\w.-]+:)?civitai:([0-9]{1,10})(?:@([0-9]{1,10}))?(?:\.\w+)?", re.IGNORECASE)
_HASH = re.compile(r"(?:[0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{12}|[0-9a-f]{64})", re.IGNORECASE)
_WITH_AT = re.compile(r"hf:[\w.-]+/[\w.-]+@|(?:urn:air:[\w.-]+:[\w.-]+:)?civitai:[0-9]+@", re.IGNORECASE)
_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::(.+))?")

Kind = Literal["model", "version", "hash", "hub", "url"]


@dataclass(frozen=True, slots=True)
class Ref:
    """What is meant.

    Attributes:
        kind: where to look.
        id: of a model or version.
        model: that a version must belong to; None where the text does not say it.
        file: of a version, the only one that is meant; None means all of it.
        digits: of a hash, in lower case.
        repo, revision, pattern: of the hub; `pattern` is a glob over the repository's paths.
        url: of a plain file, whole: what stands in its query may be a secret, so it is neither stored nor shown.
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


def ref_of(text: str) -> Ref:
    """Returns what `text` means.

    Raises:
        UsageError: nothing that hnetkit knows.
    """
    text = text.strip()
    said = shown(text)
    if match := _NUMBER.fullmatch(text):
        return Ref("model" if match[1] == "model" else "version", text, id=int(match[2]))
    if match := _AIR.fullmatch(text):
        return (
            Ref("version", text, id=int(match[2]), model=int(match[1]))
            if match[2]
            else Ref("model", text, id=int(match[1]))
        )
    if match := _HUB.fullmatch(text):
        return Ref("hub", text, repo=match[1], revision=match[2], pattern=match[3])
    if text.startswith(("http://", "https://")):
        return _of_address(text)
    if _HASH.fullmatch(text):
        return Ref("hash", text, digits=text.lower())
    raise UsageError(f"{said[:200]}: means nothing that can be fetched", hint=f"it may be {FORMS}")


def shown(text: str) -> str:
    """What may be shown of a text that is no reference: people paste addresses with `?token=`, or with a password."""
    if "://" in text:
        return redacted(text)
    short = re.split(r"[?#&]", text, maxsplit=1)[0]
    return short if _WITH_AT.match(short) else redacted(short)


def _of_address(text: str) -> Ref:
    said = redacted(text)
    is_civitai, parts = _is_civitai(text), urlsplit(text)
    query = parse_qs(parts.query)
    if "@" in re.split(r"[/?#]", text.partition("://")[2], maxsplit=1)[0]:
        raise UsageError(f"{said}: give no user or password in an address", hint="leave out all before the @")
    if not is_civitai:
        return Ref("url", said, url=text.partition("#")[0])
    chosen = query.get("modelVersionId", [""])[0]
    of_model = _MODEL.search(parts.path)
    if re.fullmatch(r"[0-9]{1,10}", chosen):
        return Ref("version", said, id=int(chosen), model=int(of_model[1]) if of_model else None)
    if match := _VERSION.search(parts.path):
        file = query.get("fileId", [""])[0]
        return Ref("version", said, id=int(match[1]), file=int(file) if re.fullmatch(r"[0-9]{1,10}", file) else None)
    if of_model:
        return Ref("model", said, id=int(of_model[1]))
    raise UsageError(f"{said}: no page of a model or version", hint="copy the address of the model's own page")


def _is_civitai(text: str) -> bool:
    try:
        origin = Origin.of(text)
        urlsplit(text)  # finds fault with more
    except (HnetkitError, ValueError) as error:
        raise UsageError(f"{redacted(text)[:200]}: no address", hint=f"it may be {FORMS}") from error
    host = origin.host.removeprefix("www.")
    return host in CIVITAI_HOSTS or origin == Origin.of(civitai_base())
