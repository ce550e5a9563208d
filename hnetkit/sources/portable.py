"""The library's knowledge as JSON lines, to carry to another machine: what networks are, what people said of them,
what the sites said, what is subscribed to. No file of a network is in it, and no path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hnetkit.errors import DiskFull, HnetkitError, RegistryError, UsageError, failure_of
from hnetkit.formats.a1111 import MAX_METADATA_TEXT
from hnetkit.library.resolve import require_alias
from hnetkit.limits import parse_json
from hnetkit.registry.store import Registry
from hnetkit.sources import hub
from hnetkit.sources.civitai import Filters
from hnetkit.sources.pages import parts_left_out
from hnetkit.sources.record import SOURCE
from hnetkit.sources.record import record as store
from hnetkit.sources.shapes import model_of
from hnetkit.text import shorten

VERSION = 1
MAX_LINE = 32 << 20
"""Bytes: what a site says of the largest model takes a few MB."""
MOST_LINES = 500_000
"""Lines that are read, empty ones too: nobody else can write into the registry meanwhile."""
MOST_FAILURES = 1000
"""Lines that are named where they cannot be taken in; further ones are counted."""
MOST_SAID = 300
"""Signs of such a line's name and of what is wrong with it."""

_NETWORK = (
    *("content_hash", "name", "widths", "layer_structure", "activation", "layer_norm", "activate_output", "dropout"),
    *("dtype", "parameters", "base_model", "step", "sd_checkpoint", "sd_checkpoint_name", "metadata"),
)
_NAMED = 3  # parts of one line that are left out
_HINT = "give a file that `hnetkit export` wrote"
_CONTENT = re.compile(r"h1:[0-9a-f]{64}")
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Import:
    """What became of the lines that were given.

    Attributes:
        counts: kind -> how many were taken in, whole or in part.
        failures: one line for each that was not, or not whole, which names it; of very many the first ones.
        failed: how many were not, or not whole.
    """

    counts: Mapping[str, int]
    failures: tuple[str, ...]
    failed: int


def exported(registry: Registry) -> Iterator[dict[str, Any]]:
    """Yields one record per thing that is known; each has its `kind`, the first is the header."""
    yield {"kind": "hnetkit", "version": VERSION}
    hashes: dict[str, set[str]] = {}
    for file in registry.files.of_networks():
        hashes.setdefault(file["content_hash"], set()).add(file["sha256"])
    for row in registry.networks.rows():
        words = {"tags": row["tags"], "note": row["note"], "aliases": row["aliases"]}
        known_as = {"sha256": sorted(hashes.get(row["content_hash"], ()))}
        yield {"kind": "network", **{key: row[key] for key in _NETWORK}, **words, **known_as}
    for row in registry.catalogue.models():
        raw = registry.catalogue.raw(row["source"], row["remote_id"])
        yield {"kind": "model", "source": row["source"], "id": row["remote_id"], "state": row["state"], "raw": raw}
    for row in registry.subscriptions.rows():
        yield {"kind": "subscription", "name": row["name"], "filters": row["filters"]}


def imported(registry: Registry, lines: Iterable[str | bytes]) -> Import:
    """Takes in what `exported` yielded; what is known here already is kept. A line that is wrong stops no other.

    What cannot be used of a line that is good otherwise is left out and named: an alias that `tag --alias` would
    refuse, which could stand before another network's name or hash, and odd parts of a site's record.

    Args:
        registry: gets it.
        lines: as text, or as bytes of UTF-8.

    Raises:
        HnetkitError: the first line is not the header of such records; nothing was taken in then.
        RegistryError, DiskFull: nothing can be stored; nothing was taken in then.
    """
    counts: dict[str, int] = {}
    failures: list[str] = []
    failed = 0
    with registry.write():
        taken = registry.networks.aliases()
        for number, line in enumerate(lines, 1):
            if number > MOST_LINES:
                failed += 1
                failures.insert(0, f"line {number}: more lines than any export has: left out what comes from here on")
                break
            if not line.strip():
                continue
            is_first = not counts and not failed
            try:
                record = _record(line, is_first=is_first)
                with registry.part():
                    left_out = _take_in(registry, record, taken)
                counts[record["kind"]] = counts.get(record["kind"], 0) + 1
                wrong = _left_out(left_out) if left_out else None
            except (RegistryError, DiskFull):
                raise
            except Exception as error:
                failure = failure_of(error, "this line")
                if is_first:
                    raise type(failure)(f"line {number}: {failure}", hint=failure.hint) from error
                wrong = str(failure)
            if wrong is not None:
                failed += 1
                if failed <= MOST_FAILURES:
                    failures.append(f"line {number}: {shorten(wrong, MOST_SAID)}")
    if not counts and not failed:
        raise HnetkitError("nothing to take in: it is empty", hint=_HINT)
    counts.pop("hnetkit", None)
    return Import(counts, tuple(failures), failed)


def _left_out(parts: list[str]) -> str:
    count = f" {len(parts):,}, of which the first are" if len(parts) > _NAMED else ""
    return f"left out{count}: {'; '.join(parts[:_NAMED])}"


def _record(line: str | bytes, *, is_first: bool) -> Record:
    if len(line) > MAX_LINE:
        raise HnetkitError(f"longer than {MAX_LINE >> 20} MB", hint=_HINT)
    try:
        record = parse_json(line)
    except ValueError as error:
        raise HnetkitError(f"not JSON: {error}", hint=_HINT) from error
    if not isinstance(record, dict):
        raise HnetkitError("no record of hnetkit", hint=_HINT)
    kind = record.get("kind")
    if not isinstance(kind, str) or (is_first and kind != "hnetkit"):
        raise HnetkitError("no record of hnetkit", hint=_HINT)
    if kind not in _SHAPES:
        raise HnetkitError(f"a record of another kind: {shorten(kind)}", hint="pip install --upgrade hnetkit")
    if kind == "hnetkit" and record.get("version") != VERSION:  # also further ones: several exports in a row are good
        raise HnetkitError(f"written in form {shorten(record.get('version'))}", hint="pip install --upgrade hnetkit")
    for key, (is_fit, what) in _SHAPES[kind].items():
        if not is_fit(record.get(key)):
            raise HnetkitError(f"a {kind} whose {key} is not {what}", hint=_HINT)
    return record


def _take_in(registry: Registry, record: Record, taken: set[str]) -> list[str]:
    """Stores a record whose values have their shapes, and returns what of it was left out.

    Args:
        taken: the aliases that somebody has; grows.
    """
    if record["kind"] == "network":
        return _network(registry, record, taken)
    if record["kind"] == "model":
        return _model(registry, record)
    if record["kind"] == "subscription":
        registry.subscriptions.put_new(record["name"], Filters.of(record["filters"]).as_dict())
    return []


def _network(registry: Registry, record: Record, taken: set[str]) -> list[str]:
    if not registry.networks.is_known(record["content_hash"]):
        registry.networks.put(record)
    id = registry.networks.id_of(record["content_hash"])
    registry.networks.add_tags(id, record.get("tags") or ())
    if record.get("note") and not registry.networks.has_note(id):
        registry.networks.set_note(id, record["note"])
    left_out = []
    for alias in record.get("aliases") or ():
        try:
            require_alias(registry, alias, record["content_hash"])
        except UsageError as error:
            left_out.append(str(error))
            continue
        if alias not in taken:
            registry.networks.set_alias(id, alias)
            taken.add(alias)
    return left_out


def _model(registry: Registry, record: Record) -> list[str]:
    source, raw = record["source"], record["raw"]
    model = model_of(raw) if source == SOURCE else None
    repo = hub.repo_of(raw) if source == hub.SOURCE else None
    id = str(model.id) if model is not None else repo.name if repo is not None else None
    if id is None or record.get("id") not in (None, id):
        raise HnetkitError(f"no record of a model of {shorten(source)}, or of another one", hint=_HINT)
    if registry.catalogue.model(source, id) is None:
        if model is not None:
            store(registry, model)
        elif repo is not None:
            hub.record(registry, repo)
        registry.catalogue.set_model_state(source, id, record.get("state") or "listed")
    return [bad.reason.removeprefix("left out: ") for bad in parts_left_out(model)] if model is not None else []


# --- what the values of a record are


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _name(value: Any) -> bool:
    return _text(value) and len(value) <= MAX_METADATA_TEXT


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _said(value: Any) -> bool:
    """Whether a site can be asked for it: JSON can spell what no address holds."""
    return value is None or (isinstance(value, str) and value.isprintable())


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) and abs(item) < 2**53 for item in value)


def _filters(value: Any) -> bool:
    """Whether it is what `Filters.as_dict` gives; a filter of a later hnetkit may be among them."""
    kinds: dict[str, Callable[[Any], bool]] = {
        **dict.fromkeys(("query", "username", "tag"), _said),
        **dict.fromkeys(("favorites", "nsfw"), lambda flag: isinstance(flag, bool)),
        "base_models": lambda names: _texts(names) and all(map(_said, names)),
        "ids": lambda ids: isinstance(ids, list) and all(map(_count, ids)),
    }
    return isinstance(value, dict) and all(kinds.get(key, lambda _: True)(item) for key, item in value.items())


_A_TEXT, _A_TEXT_OR_NOTHING = (_text, "a text"), (_text_or_none, "a text")
_A_FLAG = (lambda value: isinstance(value, bool), "true or false")
_NUMBERS = (_numbers, "a list of numbers")
_TEXTS_OR_NOTHING = (lambda value: value is None or _texts(value), "a list of texts")
_AN_OBJECT = (lambda value: isinstance(value, dict), "an object")

# kind -> key -> whether a value is fit, and what it should be
_SHAPES: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "hnetkit": {},
    "network": {
        "content_hash": (lambda value: isinstance(value, str) and bool(_CONTENT.fullmatch(value)), "a content hash"),
        **dict.fromkeys(("name", "activation", "dtype", "base_model"), (_name, "a text as a network's file holds")),
        "widths": (lambda value: isinstance(value, list) and all(map(_count, value)), "a list of widths"),
        **dict.fromkeys(("layer_structure", "dropout"), _NUMBERS),
        **dict.fromkeys(("layer_norm", "activate_output"), _A_FLAG),
        "parameters": (_count, "a number"),
        "step": (lambda value: value is None or type(value) is int, "a number"),
        **dict.fromkeys(("sd_checkpoint", "sd_checkpoint_name", "note"), _A_TEXT_OR_NOTHING),
        "metadata": _AN_OBJECT,
        **dict.fromkeys(("tags", "aliases"), _TEXTS_OR_NOTHING),
    },
    "model": {"source": _A_TEXT, "raw": _AN_OBJECT, "state": _A_TEXT_OR_NOTHING},
    "subscription": {"name": _A_TEXT, "filters": (_filters, "an object of filters")},
}
