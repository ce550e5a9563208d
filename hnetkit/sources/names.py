"""File names that every file system takes and every prompt can say, from names that people gave on a site."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath

from hnetkit.files import MODEL_SUFFIXES, is_reserved

_MOST_SIGNS = 1000  # of a name that are looked at: what puts marks in their order takes longer by the square
MOST_BYTES = 120  # of a stem: room for suffixes, sidecars and `-v123456` within 255
_SIDECAR = re.compile(r"(.+)\.(metadata|cm-info|api_info|civitai|preview|description)", re.IGNORECASE)
SUFFIXES = frozenset({*MODEL_SUFFIXES, ".zip"})


def safe_stem(name: str, fallback: str) -> str:
    """Returns a stem of letters, digits, ``_``, ``-`` and ``.`` that says as much of `name` as such a stem can.

    Args:
        name: a stem as somebody wrote it, in any script.
        fallback: for a name with nothing left of it; also put behind a reserved one.
    """
    text = unicodedata.normalize("NFC", name[:_MOST_SIGNS])
    text = re.sub(r"[^\w.-]+", "_", text, flags=re.UNICODE)
    text = re.sub(r"_{2,}", "_", text).strip("._- ")
    text = text.encode()[:MOST_BYTES].decode(errors="ignore").rstrip("._-")
    if not text:
        return fallback
    text = _SIDECAR.sub(r"\1_\2", text) if _SIDECAR.fullmatch(text) else text  # else its x.json is another's sidecar
    first, dot, rest = text.partition(".")
    return f"{first}-{fallback}{dot}{rest}" if is_reserved(text) else text


def split_name(name: str) -> tuple[str, str]:
    """Returns stem and suffix of a file name from a site, which may hold folders and any sign; suffix in lower case.

    A suffix that no model has is part of the stem, and ``.pt`` is taken for it.
    """
    last = re.split(r"[/\\]", name)[-1].strip()
    suffix = PurePath(f"x{last}").suffix.lower()
    if suffix in SUFFIXES:
        return last[: -len(suffix)], suffix
    return last, ".pt"
