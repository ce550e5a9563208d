"""The library's knowledge as JSON lines, to carry to another machine: what networks are, what people said of them,
what the sites said, what is subscribed to. No file of a network is in it, and no path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hnetkit.errors import HnetkitError
from hnetkit.registry.store import Registry
from hnetkit.sources.record import record as store
from hnetkit.sources.shapes import model_of

VERSION = 1
_NETWORK = (
    *("content_hash", "name", "widths", "layer_structure", "activation", "layer_norm", "activate_output", "dropout"),
    *("dtype", "parameters", "base_model", "step", "sd_checkpoint", "sd_checkpoint_name", "metadata"),
)
Record = Mapping[str, Any]


def exported(registry: Registry) -> Iterator[dict[str, Any]]:
    """Yields one record per thing that is known; each has its `kind`, the first is the header."""
    yield {"kind": "hnetkit", "version": VERSION}
    hashes: dict[str, set[str]] = {}
    for file in registry.files.rows("files.content_hash NOTNULL AND files.sha256 NOTNULL"):
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


def imported(registry: Registry, lines: Iterable[str]) -> dict[str, int]:
    """Takes in what `exported` yielded, and returns kind -> how many; what is known here already is kept.

    Raises:
        HnetkitError: the lines are not such records; nothing was taken in then.
    """
    counts: dict[str, int] = {}
    with registry.write():
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            kind = _take_in(registry, _record(line, number), number)
            counts[kind] = counts.get(kind, 0) + 1
    counts.pop("hnetkit", None)
    return counts


def _record(line: str, number: int) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise HnetkitError(f"line {number}: not JSON", hint="give a file that `hnetkit export` wrote") from error
    if not isinstance(record, dict) or (number == 1 and record.get("kind") != "hnetkit"):
        raise HnetkitError(f"line {number}: no record of hnetkit", hint="give a file that `hnetkit export` wrote")
    if number == 1 and record.get("version") != VERSION:
        raise HnetkitError(f"written in form {record.get('version')}", hint="pip install --upgrade hnetkit")
    return record


def _take_in(registry: Registry, record: Record, number: int) -> str:
    kind = str(record.get("kind"))
    try:
        if kind == "network":
            _network(registry, record)
        elif kind == "model":
            _model(registry, record)
        elif kind == "subscription":
            registry.subscriptions.put(str(record["name"]), dict(record["filters"]))
    except (KeyError, TypeError, ValueError) as error:
        raise HnetkitError(f"line {number}: a {kind} without its {error}", hint="export it again") from error
    return kind


def _network(registry: Registry, record: Record) -> None:
    known = registry.networks.rows("content_hash = ?", [record["content_hash"]])
    if not known:
        registry.networks.put(record)
    id = registry.networks.id_of(record["content_hash"])
    registry.networks.add_tags(id, [str(tag) for tag in record.get("tags") or ()])
    if record.get("note") and not (known and known[0]["note"]):
        registry.networks.set_note(id, str(record["note"]))
    taken = {alias for row in registry.networks.rows() for alias in row["aliases"]}
    for alias in record.get("aliases") or ():
        if alias not in taken:
            registry.networks.set_alias(id, str(alias))


def _model(registry: Registry, record: Record) -> None:
    model = model_of(record["raw"])
    if record["source"] != "civitai" or model is None:
        return
    if not registry.catalogue.models("source = ? AND remote_id = ?", ["civitai", str(model.id)]):
        store(registry, model)
        registry.catalogue.set_model_state("civitai", str(model.id), str(record.get("state") or "listed"))
