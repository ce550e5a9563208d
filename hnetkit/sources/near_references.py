"""What a text that cannot be fetched shows, and the nearest form that can: refusals of all that is no reference."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, unquote

from hnetkit.errors import UsageError
from hnetkit.files import MODEL_SUFFIXES, is_absent
from hnetkit.hub import REPO
from hnetkit.text import argument

FORMS = "an address at Civitai or Hugging Face, model:ID, version:ID, an AIR, a hash, hf:owner/repo[@rev][:glob], https://..."
NO_OWNERS = ("spaces/", "buckets/", "models/", "datasets/datasets/")
"""What begins a name at the hub and is no owner of a repository."""

_WORD = re.compile(r"[\w-][\w. -]{0,60}")
_NAME = re.compile(r"[\w.-]{1,60}")
_ADDRESS = re.compile(
    r"(?://)?(?P<host>[\w-]+(?:\.[\w-]+)*\.[a-z]{2,24})(?::[0-9]+)?(?P<path>/[^?#]*)?(?:[?#].*)?", re.IGNORECASE
)
_LOCAL = re.compile(r"file:|[.~]{0,2}[/\\]|[A-Za-z]:[\\/]", re.IGNORECASE)
_TAG = re.compile(r"<\s*(?:hypernet|lora|lyco)\s*:\s*([^:<>]+)[^<>]*>", re.IGNORECASE)
_AT_HASH = re.compile(r"[^@/:]*@?[0-9a-f]{6,64}")
_HUB_REPO = re.compile(rf"(?:hf:|hf://)?(?:models/)?((?:datasets/)?{REPO})(?:/(.*))?")
_HUB_COMMAND = re.compile(rf"(?:hf|huggingface-cli)\s+download\s+((?:datasets/)?{REPO})(?:\s+([\w./-]+))?(?:\s.*)?")
_BROWSE = "hnetkit browse WORDS, or the address of the model's own page"
_SCAN = "download it there, then: hnetkit scan FOLDER"


def may_be_token(text: str) -> bool:
    """Whether a text looks like a token for a site that was pasted in place of a reference."""
    is_sha256 = re.fullmatch(r"(?:0x)?[0-9a-f]{64}", text, re.IGNORECASE) is not None
    return not is_sha256 and re.fullmatch(r"hf_\w{16,}|(?=\w*[0-9])[A-Za-z0-9_]{28,}", text) is not None


def _refused(shown: str, what: str, hint: str) -> UsageError:
    return UsageError(f"{shown[:200]}: {what}", hint=hint)


def _unknown(shown: str, hint: str) -> UsageError:
    return UsageError(f"{shown[:200]}: not a recognized reference", hint=hint)


def refusal_of_text(text: str, shown: str, sites: Iterable[str]) -> UsageError:
    """Returns the refusal of a text that is no address."""
    if re.fullmatch(r"[0-9]{1,10}", text):
        return _refused(shown, "a number alone may be a model's or a version's", f"use model:{text} or version:{text}")
    if re.fullmatch(r"(?:0x)?[0-9a-f]+|(?:sha-?256|autov[123]|blake3|crc32)\s*[:=]?\s*[0-9a-fx]*", text, re.IGNORECASE):
        return _refusal_of_digits(text)
    if match := re.fullmatch(r"([0-9]{1,10})@([0-9]{1,10})", text):
        return _unknown(shown, f"hnetkit pull {argument(f'civitai:{match[0]}')}")
    if match := _TAG.fullmatch(text):
        return _refused(shown, "a tag of a prompt names a network of the library", _named(match[1]))
    if match := _HUB_COMMAND.fullmatch(text):
        path = f":{match[2]}" if match[2] else ""
        return _refused(shown, "a command of the hub's own program", f"hnetkit pull {argument(f'hf:{match[1]}{path}')}")
    if re.search(r"\s", text) and "://" in text:
        return _refused(shown, "more than an address", "give the address alone")
    if match := re.match(r"(?:urn:|air:)+(?:[\w/-]+:){0,2}([\w-]+):", text, re.IGNORECASE):
        return _refused(
            shown,
            f"an AIR of the source {match[1]}, from which nothing can be fetched",
            "use urn:air:sd1:hypernet:civitai:MODEL@VERSION",
        )
    if match := re.match(r"(magnet|ftp|ftps|sftp|ipfs|s3|gs|ssh|git|torrent):", text, re.IGNORECASE):
        return _refused(
            shown,
            f"nothing is fetched over {match[1].lower()}",
            "fetch it with a program for that, then: hnetkit scan FOLDER",
        )
    if _LOCAL.match(text) or (text.lower().endswith(MODEL_SUFFIXES) and "/" not in text):
        return _refused(shown, "a file or folder of this machine", "hnetkit scan FOLDER takes up what is here already")
    if "/" in text and not is_absent(text):  # what was meant may still be a repository of the same name
        folder = text if os.path.isdir(text) else os.path.dirname(text)
        hint = f"hnetkit scan {argument(folder, is_path=True)} takes up what is here already"
        if re.fullmatch(REPO, text):
            hint += f"; for a repository of the hub: hnetkit pull {argument(f'hf:{text}')}"
        return _refused(shown, "a file or folder of this machine", hint)
    if match := re.match(r"(?:hf|huggingface)(?::/?/?)", text, re.IGNORECASE):
        return _refusal_of_hub_name(text, shown)
    if (match := _ADDRESS.fullmatch(text)) and not text.startswith("@"):
        near = _lookalike(match["host"].lower().removeprefix("www."), sites)
        if near is not None:
            return _refused(shown, f"{match['host']} is not {near}", _at_site(near, match["path"] or ""))
        return _unknown(shown, "an address begins with https://, and a plain one needs --sha256")
    if match := re.fullmatch(REPO, text):
        return _unknown(shown, f"for a repository at Hugging Face: hnetkit pull {argument(f'hf:{match[0]}')}")
    if "@" in text and _AT_HASH.fullmatch(text):
        return _unknown(
            shown,
            "hnetkit show NAME@HASH shows a network of the library; hnetkit pull HASH fetches one",
        )
    if may_be_token(text):
        return _unknown(shown, "a token goes into the environment variable HF_TOKEN or CIVITAI_TOKEN")
    if _WORD.fullmatch(text):
        return _unknown(shown, f"hnetkit browse {argument(text)} looks for it at Civitai")
    return _unknown(shown, f"use {FORMS}")


def _refusal_of_digits(text: str) -> UsageError:
    """Returns the refusal of hex digits that are no hash; they are not shown, since a key looks the same."""
    digits = re.sub(r"(?i)^(?:sha-?256|autov[123]|blake3|crc32)\s*[:=]?\s*(?:0x)?|^0x", "", text)
    said = f"{len(digits):,} hex digits"
    if re.match(r"(?i)sha-?256|autov|blake3|crc32", text):
        return UsageError(
            f"{said}: too few or too many for this kind of hash",
            hint="AutoV1 and CRC32 have 8, AutoV2 10, AutoV3 12, SHA256 and BLAKE3 64",
        )
    hint = "a hash has 8, 10, 12 or 64"
    if len(digits) == 32:
        hint += "; an API key goes into the environment variable CIVITAI_TOKEN"
    return _unknown(said, hint)


def _named(name: str) -> str:
    return (
        f"hnetkit browse {argument(name.strip())} looks for one at Civitai"
        if _WORD.fullmatch(name.strip())
        else _BROWSE
    )


def _refusal_of_hub_name(text: str, shown: str) -> UsageError:
    rest = re.sub(r"(?i)^(?:hf|huggingface):(?://)?", "", text)
    if rest.startswith("spaces/"):
        return _refused(shown, "a Space is a program, not a repository of networks", "hnetkit pull hf:owner/repo")
    match = _HUB_REPO.fullmatch(rest)
    if match and match[2] and not rest.startswith(NO_OWNERS[1]):
        near = f"hnetkit pull {argument(f'hf:{match[1]}:{match[2]}')}"
        return _unknown(shown, near)
    return _unknown(shown, "use hf:owner/repo[@revision][:file, folder or glob]")


# --- hosts that are no source

_SHARES = {
    "drive.google.com": "Google Drive",
    "docs.google.com": "Google Drive",
    "mega.nz": "MEGA",
    "mega.co.nz": "MEGA",
    "mediafire.com": "MediaFire",
    "1drv.ms": "OneDrive",
    "onedrive.live.com": "OneDrive",
    "pan.baidu.com": "Baidu",
    "pixeldrain.com": "Pixeldrain",
    "gofile.io": "Gofile",
    "disk.yandex.ru": "Yandex Disk",
    "disk.yandex.com": "Yandex Disk",
    "yadi.sk": "Yandex Disk",
    "terabox.com": "TeraBox",
    "we.tl": "WeTransfer",
    "wetransfer.com": "WeTransfer",
}
_PLATFORMS = {
    "tensor.art": "TensorArt",
    "seaart.ai": "SeaArt",
    "pixai.art": "PixAI",
    "liblib.art": "LiblibAI",
    "shakker.ai": "Shakker",
}
_TALKS = {
    "arca.live": "arca.live",
    "reddit.com": "Reddit",
    "old.reddit.com": "Reddit",
    "redd.it": "Reddit",
    "rentry.org": "Rentry",
    "rentry.co": "Rentry",
    "discord.com": "Discord",
    "t.me": "Telegram",
}
_BY_HASH = "look for it at https://civarchive.com, and give the SHA256 that is shown there: hnetkit pull HASH"


def refusal_of_host(host: str, parts: SplitResult, shown: str, sites: Iterable[str]) -> UsageError | None:
    """Returns the refusal of an address whose host serves pages and no files; None where it may be a plain file.

    Args:
        host: without ``www.``.
        parts: of the address.
        shown: the address without secrets.
        sites: hosts whose pages are understood.
    """

    if (name := _SHARES.get(host)) is not None:
        return _refused(shown, f"{name} gives its files to browsers only", _SCAN)
    if host == "dropbox.com" and "dl=1" not in parts.query:
        return _refused(shown, "Dropbox shows a page here", "end the address with dl=1, and add --sha256")
    if (name := _PLATFORMS.get(host)) is not None:
        return _refused(shown, f"{name} gives its files to its own pages only", _BY_HASH)
    if (name := _TALKS.get(host)) is not None:
        return _refused(
            shown, f"a page at {name}, and no file", "copy the address of the model or of the file from the page"
        )
    if host in ("github.com", "gist.github.com"):
        return _refusal_of_github(parts.path, shown)
    if re.fullmatch(r"cdn-lfs[\w-]*\.(?:huggingface|hf)\.co|[\w.-]+\.xethub\.hf\.co", host):
        return _refused(
            shown,
            "the address of one download, which expires",
            "copy the address of the file's page: https://huggingface.co/...",
        )
    if host.endswith(".hf.space"):
        return _refused(shown, "a Space is a program, not a repository of networks", "hnetkit pull hf:owner/repo")
    if host == "hf-mirror.com":
        return _refused(shown, "a mirror of the hub", "export HF_ENDPOINT=https://hf-mirror.com, then the same command")
    if host in ("image.civitai.com", "imagecache.civitai.com", "media.civitai.com"):
        return _refused(shown, "a picture at Civitai", _BROWSE)
    if (near := _lookalike(host, sites)) is not None:
        also = "; a plain file there needs #sha256= and its 64 digits at the end"
        return _refused(shown, f"{host} is not {near}", f"{_at_site(near, parts.path)}{also}")
    return None


def _refusal_of_github(path: str, shown: str) -> UsageError | None:
    segments = path.strip("/").split("/")
    if segments[2:3] == ["raw"] or segments[2:4] == ["releases", "download"] or segments[2:3] == ["archive"]:
        return None
    if segments[2:3] == ["blob"] and all(_NAME.fullmatch(segment) for segment in segments):
        raw = f"https://github.com/{'/'.join([*segments[:2], 'raw', *segments[3:]])}"
        return _refused(shown, "GitHub shows a page here", f"hnetkit pull {argument(raw)} --sha256 HASH")
    hint = "copy the address of the file's Download button, and add --sha256"
    return _refused(shown, "a page at GitHub, and no file", hint)


def _at_site(site: str, path: str) -> str:
    whole = f"https://{site}{path}"
    return (
        f"hnetkit pull {argument(whole)}"
        if re.fullmatch(r"[\w.~/%+:-]{1,200}", whole, re.ASCII)
        else f"use https://{site}/..."
    )


def _lookalike(host: str, sites: Iterable[str]) -> str | None:
    """Returns the site that an unknown host is meant to be: one or two letters differ, or its ending or dots do."""
    for site in sites:
        label = site.partition(".")[0]
        is_same = host.replace(".", "") == label or (host.count(".") == 1 and host.partition(".")[0] == label)
        if len(label) > 5 and (is_same or _distance(host, site) <= 2):
            return site
    return None


def _distance(first: str, second: str) -> int:
    """Returns how many letters must be added, dropped, changed or swapped with their neighbor; at least 3 beyond 2."""
    if abs(len(first) - len(second)) > 2:
        return 3
    before, row = [0] * (len(second) + 1), list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        last, before, row = before, row, [i]
        for j, b in enumerate(second, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and first[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


# --- pages of known sites that are no model's

_CIVITAI_PAGES = {
    "images": "a picture",
    "posts": "a post",
    "articles": "an article",
    "collections": "a collection",
    "bounties": "a bounty",
    "generate": "the site's generator",
    "gallery": "a picture",
    "search": "a search",
    "models": "a list of models",
    "login": "the login",
}


def refusal_of_civitai_page(path: str, shown: str) -> UsageError:
    """Returns the refusal of a page of Civitai that names no model and no version."""
    segments = [segment for segment in unquote(path).split("/") if segment]
    first = segments[0] if segments else ""

    if match := re.search(r"/api/download/(?:models|training-data)/([0-9]{1,10})(?:/|$)", path):
        return _refused(
            shown,
            "training data, and no network",
            f"hnetkit pull {argument(f'version:{match[1]}')} fetches its networks",
        )
    if first in ("user", "tag") and len(segments) > 1 and _WORD.fullmatch(segments[1]):
        option, what = ("--creator", "a creator") if first == "user" else ("--tag", "a tag")
        return _refused(shown, f"the page of {what}", f"hnetkit sync {option} {argument(segments[1])} --dry-run")
    if segments[:3] == ["api", "v1", "models"]:
        return _refused(shown, "a list of models", _BROWSE)
    what = _CIVITAI_PAGES.get(first, "no page of a model or version")
    return _refused(shown, what if what.startswith("no ") else f"{what}, and no page of a model or version", _BROWSE)


_ARCHIVED = {"tensorart": "TensorArt", "seaart": "SeaArt", "huggingface": "Hugging Face", "pixai": "PixAI"}


def refusal_of_civarchive_page(path: str, shown: str) -> UsageError:
    """Returns the refusal of a page of CivArchive that shows no model of Civitai and no file."""
    first = path.strip("/").split("/")[0].lower()
    hint = "copy the SHA256 of the file that the page shows: hnetkit pull HASH"
    if first in _ARCHIVED and path.strip("/") != first:
        return _refused(shown, f"a model of {_ARCHIVED[first]}, whose numbers lead to no file", hint)
    hint = "copy the address of the model's page, or the SHA256 of its file"
    return _refused(shown, "no page of a model or of a file", hint)


HUB_PAGES = {
    "collections": "a collection",
    "papers": "a paper",
    "docs": "documentation",
    "models": "a list of repositories",
    "datasets": "a list of repositories",
    "organizations": "a list of owners",
    "settings": "your settings",
    "spaces": "a Space, which is a program",
    "api": "an address of the hub's API",
}
"""First words of addresses at the hub that are no owner of a repository -> what is there."""
_NO_REPO = "not a page of a repository or of its file"
_HUB_FORM = "copy the address of the repository or of its file, or use hf:owner/repo[@rev][:glob]"


def refusal_of_hub_page(segments: list[str], shown: str) -> UsageError:
    """Returns the refusal of a page of the hub that is in no repository."""
    what = HUB_PAGES.get(segments[0]) if segments else None
    if what is None and len(segments) == 1 and _NAME.fullmatch(segments[0]):
        hint = f"hnetkit pull {argument(f'hf:{segments[0]}/REPO')}"
        return _refused(shown, f"the page of an owner, {_NO_REPO}", hint)
    return _refused(shown, f"{what}, {_NO_REPO}" if what else _NO_REPO, _HUB_FORM)


def refusal_of_hub_repo_page(repo: str, view: str, revision: str, path: str, shown: str) -> UsageError:
    """Returns the refusal of a page of a repository that shows neither files nor a file."""
    what = {"commit": "a commit", "commits": "a history", "discussions": "a discussion", "blame": "a history"}.get(view)
    at = f"@{revision}" if view != "discussions" and re.fullmatch(r"[\w./-]+", revision) else ""
    within = f":{path}" if at and path else ""
    hint = f"hnetkit pull {argument(f'hf:{repo}{at}{within}')}"
    return _refused(shown, f"{what}, {_NO_REPO}" if what else _NO_REPO, hint)
