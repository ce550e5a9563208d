"""Lists of the library's networks: which of them, in which order, and what a line shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from hnetkit.base_models import fitting, require_base_model
from hnetkit.errors import UsageError, did_you_mean
from hnetkit.text import argument, size_text

if TYPE_CHECKING:
    from hnetkit.registry.store import Registry

Row = dict[str, Any]

_SHOWN = ("name", "base_model", "layer_structure", "activation", "size_bytes", "state", "tags")
_TRAINED_ON = ("checkpoint_name", "checkpoint_hash")

# how to sort -> the column of the view, and whether the largest comes first
SORTS: Mapping[str, tuple[str, bool]] = {
    "name": ("name", False),
    "added": ("first_seen", True),
    "size": ("size_bytes", True),
    "copies": ("copies", True),
    "step": ("step", True),
    "base-model": ("base_model", False),
    "title": ("title", False),
    "creator": ("creator", False),
}
"""The orders of a list."""


def list_networks(
    registry: Registry,
    *,
    tags: Iterable[str] = (),
    base_model: str | None = None,
    width: int | None = None,
    activation: str | None = None,
    missing: bool = False,
    duplicates: bool = False,
    sort: str = "name",
    reverse: bool = False,
) -> list[Row]:
    """Returns what a list shows of each network that passes all filters, and its `content_hash`.

    The arguments are those of `hnetkit.library.library.Library.networks`.

    Raises:
        UsageError: there is no such base model or order.
    """
    if sort not in SORTS:
        raise UsageError(f"{argument(sort)}: not an order of a list", hint=f"use one of {', '.join(SORTS)}")
    column = SORTS[sort][0]
    bases = None if base_model is None else fitting(require_base_model(base_model))
    columns = {*_SHOWN, *_TRAINED_ON, "content_hash", column, *(["copies"] if duplicates else [])}
    found = registry.networks.listing(*sorted(columns))
    tests: list[Callable[[Row], bool]] = []
    for wanted in [registry.networks.tagged(tag) for tag in tags]:
        tests.append(lambda row, wanted=wanted: row["content_hash"] in wanted)  # type: ignore[misc]
    if width is not None:
        wide = registry.networks.of_width(width)
        tests.append(lambda row: row["content_hash"] in wide)
    if bases is not None:
        tests.append(lambda row: row["base_model"] in bases)
    if activation is not None:
        tests.append(lambda row: row["activation"] == activation.lower())
    if missing:
        tests.append(lambda row: row["state"] == "missing")
    if duplicates:
        tests.append(lambda row: row["copies"] > 1)
    for test in tests:
        found = list(filter(test, found))
    lost = registry.catalogue.lost()
    rows = in_order(found, sort, reverse=reverse)
    for row in rows:
        row["layer_structure"] = _structure(row["layer_structure"])
        row["size"] = size_or_state(row["state"], row["size_bytes"])
        row["trained_on"] = trained_on(row["checkpoint_name"], row["checkpoint_hash"])
        row["gone"] = lost.get(row["content_hash"])
    return rows


def nearest_filters(
    registry: Registry, *, tags: Iterable[str] = (), width: int | None = None, activation: str | None = None
) -> list[str]:
    """Returns, in words, the nearest that some network has to each of these that no network has."""
    networks, near = registry.networks, list[str]()
    for tag in tags:
        if not networks.tagged(tag) and (like := did_you_mean(tag, networks.tags())):
            near.append(f"the tag {like}")
    if width is not None and not networks.of_width(width):
        near += [f"the width {each}" for each in sorted(networks.widths(), key=lambda each: abs(each - width))[:1]]
    if activation is not None:
        known = {row["activation"] for row in networks.listing("activation")} - {None}
        if activation.lower() not in known and (like := did_you_mean(activation, known)):
            near.append(f"the activation {like}")
    return near


def in_order(rows: list[Row], sort: str, *, reverse: bool = False) -> list[Row]:
    """Returns rows of networks in an order of `SORTS`; what is not known comes last, and names decide among equals.

    Args:
        rows: with ``name`` and the column of the order; the list itself may be sorted.
        sort: the order.
        reverse: turns it around.
    """
    column, is_falling = SORTS[sort][0], SORTS[sort][1] != reverse
    rows.sort(key=lambda row: str(row["name"]).casefold(), reverse=is_falling and column == "name")
    if column == "name":
        return rows
    known = [row for row in rows if row[column] is not None]
    known.sort(key=lambda row: _key(row[column]), reverse=is_falling)
    return [*known, *(row for row in rows if row[column] is None)]


def _key(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value


def said_of_lost(gone: Row | None) -> str | None:
    """Returns in words that a site does not have a network any more, and since when; None if nothing says so."""
    if gone is None:
        return None
    return f"{gone['state']} since {gone['since'][:10]}" if gone["since"] else str(gone["state"])


@lru_cache(maxsize=4096)  # of networks of one structure, all files have one size
def size_or_state(state: str, size_bytes: int) -> str:
    """Returns what a list shows for the size of a network: that it is missing or corrupt, where its best file is."""
    return size_text(size_bytes) if state == "present" else state


@cache
def _structure(text: str) -> list[float]:
    parts: list[float] = json.loads(text)
    return parts


@lru_cache(maxsize=4096)  # as many networks are trained on one
def trained_on(name: str | None, short: str | None) -> str | None:
    """Returns the checkpoint that a network was trained on, in words; None if it is unknown."""
    if not short:
        return name or None
    return f"{name} [{short}]" if name else f"[{short}]"
