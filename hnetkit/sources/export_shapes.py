"""What each record of an export must be: the checks of an import, key by key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from hnetkit.errors import NetworkFailed
from hnetkit.formats.a1111 import MAX_METADATA_TEXT
from hnetkit.registry.mirrors import SOURCES, STATES
from hnetkit.sources.huggingface import is_file_path
from hnetkit.sources.trust import Origin, redact

MOST_TOLD = 1000
"""Mirrors of one network."""
MOST_FILES = 10_000
"""Files of one repository of the hub."""
MOST_NAME, MOST_REFERENCE = 1000, 4000
"""Characters of a file's name, and of what `pull` takes to fetch it."""

_CONTENT, _SHA256 = re.compile(r"h1:[0-9a-f]{64}"), re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_name(value: Any) -> bool:
    return _is_text(value) and len(value) <= MAX_METADATA_TEXT


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_query_value(value: Any) -> bool:
    """Whether it can be part of a URL's query: JSON may hold characters that cannot."""
    return value is None or (isinstance(value, str) and value.isprintable())


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) and abs(item) < 2**53 for item in value)


def is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _are_records(value: Any, kinds: Mapping[str, Callable[[Any], bool]], most: int | None = None) -> bool:
    """Whether it is a list of objects, `most` at most, each with a fitting value for each key."""
    if not isinstance(value, list) or (most is not None and len(value) > most):
        return False
    return all(isinstance(one, dict) and all(fits(one.get(key)) for key, fits in kinds.items()) for one in value)


def _are_files(value: Any) -> bool:
    """Whether it is a list of what `export_records` tells of files, as `ImportedFile` has it."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "name": lambda name: _is_text(name) and len(name) <= MOST_NAME,
        "sha256": is_sha256,
        "autov1": _is_text_or_none,
        "size_bytes": lambda size: size is None or _is_count(size),
        "reference": lambda text: text is None or (_is_text(text) and len(text) <= MOST_REFERENCE),
        "reference_sha256": lambda text: text is None or is_sha256(text),
    }
    return _are_records(value, kinds)


def _are_hub_files(value: Any) -> bool:
    """Whether it is a list of what `export_records` tells of the files of a repository."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "commit": lambda text: isinstance(text, str) and _COMMIT.fullmatch(text) is not None,
        "path": lambda path: _is_text(path) and len(path) <= MOST_REFERENCE and is_file_path(path),
        "sha256": lambda text: text is None or is_sha256(text),
        "size_bytes": lambda size: size is None or _is_count(size),
    }
    return _are_records(value, kinds, MOST_FILES)


def _are_mirrors(value: Any) -> bool:
    """Whether it is a list of rows as `Mirrors.of` returns them, without more than host and path in an address."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "sha256": is_sha256,
        "url": lambda url: _is_text(url) and len(url) <= MOST_REFERENCE and redact(url) == url and _is_address(url),
        "source": lambda source: source in SOURCES,
        "state": lambda state: state in STATES,
        "seen_at": _is_time,
    }
    return _are_records(value, kinds, MOST_TOLD)


def _is_address(url: str) -> bool:
    try:
        Origin.of(url)
    except NetworkFailed:
        return False
    return True


def _is_time(value: Any) -> bool:
    """Whether it is a time as the registry stores it, in whose form the later is the greater text.

    One that is yet to come would outlast all news.
    """
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    is_stored_so = at.utcoffset() == timedelta(0) and at.isoformat(timespec="seconds") == value
    return is_stored_so and at <= datetime.now(timezone.utc) + timedelta(days=1)


def _is_filters(value: Any) -> bool:
    """Whether it is a result of `Filters.as_dict`; filters of a later hnetkit are accepted."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "query": _is_query_value,
        "username": _is_query_value,
        "tag": _is_query_value,
        "favorites": _is_flag,
        "nsfw": _is_flag,
        "base_models": lambda names: _is_texts(names) and all(map(_is_query_value, names)),
        "ids": lambda ids: isinstance(ids, list) and all(map(_is_count, ids)),
    }
    return isinstance(value, dict) and all(kinds.get(key, lambda _: True)(item) for key, item in value.items())


_TEXT, _TEXT_OR_NONE = (_is_text, "a text"), (_is_text_or_none, "a text")
_NAME = (_is_name, "a text as a network's file holds")
_FLAG = (_is_flag, "true or false")
_NUMBERS = (_is_numbers, "a list of numbers")
_WORDS = (  # an empty one, as another program may write it into the registry, is passed over
    lambda value: value is None or (isinstance(value, list) and all(isinstance(word, str) for word in value)),
    "a list of texts",
)
_OBJECT = (lambda value: isinstance(value, dict), "an object")

# kind -> key -> check of the value, and what it should be
SHAPES: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "hnetkit": {"records": (lambda value: value is None or _is_count(value), "a number")},
    "network": {
        "content_hash": (lambda value: isinstance(value, str) and bool(_CONTENT.fullmatch(value)), "a content hash"),
        "name": _NAME,
        "activation": _NAME,
        "dtype": _NAME,
        "base_model": _NAME,
        "widths": (lambda value: isinstance(value, list) and all(map(_is_count, value)), "a list of widths"),
        "layer_structure": _NUMBERS,
        "dropout": _NUMBERS,
        "layer_norm": _FLAG,
        "activate_output": _FLAG,
        "parameters": (_is_count, "a number"),
        "step": (lambda value: value is None or type(value) is int, "a number"),
        "sd_checkpoint": _TEXT_OR_NONE,
        "sd_checkpoint_name": _TEXT_OR_NONE,
        "note": _TEXT_OR_NONE,
        "metadata": _OBJECT,
        "tags": _WORDS,
        "aliases": _WORDS,
        "files": (lambda value: value is None or _are_files(value), "a list of files"),
        "mirrors": (lambda value: value is None or _are_mirrors(value), "a list of mirrors"),
    },
    "model": {
        "source": _TEXT,
        "raw": _OBJECT,
        "state": _TEXT_OR_NONE,
        "state_since": (lambda value: value is None or _is_time(value), "a time"),
        "files": (lambda value: value is None or _are_hub_files(value), "a list of files"),
    },
    "subscription": {"name": _TEXT, "filters": (_is_filters, "an object of filters")},
}
