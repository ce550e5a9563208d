"""What are these files? Asked by their hashes, all at once; and on which checkpoints were they trained?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from hnetkit.errors import Gone
from hnetkit.library.library import Row
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import Civitai, Filters
from hnetkit.sources.pages import BadRecord
from hnetkit.sources.record import SOURCE
from hnetkit.sources.shapes import id_of
from hnetkit.sources.sync import alone, store

_DIGITS = re.compile(r"[0-9a-f]{8,64}")
_AGAIN = timedelta(days=7)  # what the site did not know yesterday it hardly knows today


@dataclass(frozen=True, slots=True)
class Identified:
    """What a site knows.

    Attributes:
        files: a row for each network file of the library: ``path``, ``sha256``, ``model``, ``version``, ``creator``,
            ``model_id``, ``version_id``, ``checkpoint_model_id``, ``checkpoint_version_id``; None where it knows none.
        checkpoints: a row for each on which a network was trained: ``checkpoint`` (its hash), ``name``, ``model_id``,
            ``version_id``.
    """

    files: list[Row]
    checkpoints: list[Row]


def identified(
    registry: Registry, civitai: Civitai, *, again: bool = False, failed: list[BadRecord] | None = None
) -> Identified:
    """Asks about files, then about the checkpoints that they were trained on; see `identify` and `checkpoints`."""
    files = list(identify(registry, civitai, again=again, failed=failed))
    bases = list(checkpoints(registry, civitai, failed))
    trained = {base["checkpoint"]: base for base in bases}
    for row in files:
        base = trained.get((row.pop("sd_checkpoint") or "").lower(), {})
        row["checkpoint_model_id"], row["checkpoint_version_id"] = base.get("model_id"), base.get("version_id")
    return Identified(files, bases)


def identify(
    registry: Registry, civitai: Civitai, *, again: bool = False, failed: list[BadRecord] | None = None
) -> Iterator[Row]:
    """Asks the site about every network file of the library, keeps its answers, and yields one row per file.

    A file that was converted is asked about by the hash of what it was converted from.

    Args:
        again: ask also about what the site did not know lately.
        failed: gets the models of which the site's record cannot be used.
    """
    files = [row for row in registry.files.of_networks() if row["state"] == "present"]
    asked = {row["id"]: _known_as(row) for row in files}
    known = registry.catalogue.lookups()
    unknown = sorted({sha for sha in asked.values() if again or _is_due(known.get(sha))})
    failed = [] if failed is None else failed
    found = civitai.ids_by_hash(unknown, failed=failed.append) if unknown else {}
    with registry.write():
        for sha256, (model, version) in found.items():
            registry.catalogue.put_lookup(sha256, _text(model), _text(version))
    _fetch_records(registry, civitai, failed)
    known = registry.catalogue.lookups()
    names = _names(registry)
    trained = {row["content_hash"]: row["sd_checkpoint"] for row in registry.networks.with_checkpoint()}
    for row in files:
        answer = known.get(asked[row["id"]], {"model_id": None, "version_id": None})
        yield {
            "path": row["path"],
            "sha256": asked[row["id"]],
            "sd_checkpoint": trained.get(row["content_hash"]),
            "model_id": answer["model_id"],
            "version_id": answer["version_id"],
            **names.get(answer["version_id"] or "", {"model": None, "version": None, "creator": None}),
        }


def _known_as(row: Row) -> str:
    """The hash by which the site may know a file."""
    return str(row["source_sha256"] or row["sha256"])


def _is_due(answer: Row | None) -> bool:
    if answer is None:
        return True
    at = datetime.fromisoformat(answer["looked_up_at"])
    return answer["model_id"] is None and abs(datetime.now(timezone.utc) - at) > _AGAIN  # a clock may have been wrong


def _fetch_records(registry: Registry, civitai: Civitai, failed: list[BadRecord]) -> None:
    """Gets what the site says of models that it recognised and that the catalogue lacks."""
    have = {row["remote_id"] for row in registry.catalogue.models(source=SOURCE)}
    wanted = {answer["model_id"] for answer in registry.catalogue.lookups().values() if answer["model_id"]} - have
    ids = tuple(sorted(filter(None, map(id_of, wanted))))
    for page in civitai.pages(Filters(ids=ids), failed=failed.append) if ids else ():
        failed += store(registry, page)


def _names(registry: Registry) -> dict[str, Row]:
    rows = registry.catalogue.files(source=SOURCE)
    return {row["version_id"]: {key: row[key] for key in ("model", "version", "creator")} for row in rows}


def checkpoints(registry: Registry, civitai: Civitai, failed: list[BadRecord] | None = None) -> Iterator[Row]:
    """Asks what the checkpoints are that networks say they were trained on, and yields one row for each.

    Args:
        failed: gets those about which nothing could be learnt.
    """
    failed = [] if failed is None else failed
    trained: dict[str, str | None] = {}
    for row in registry.networks.with_checkpoint():
        trained.setdefault(row["sd_checkpoint"].lower(), row["sd_checkpoint_name"])
    known = registry.catalogue.lookups()
    for digits, name in sorted(trained.items()):
        if not _DIGITS.fullmatch(digits):  # a file may say anything: a site is told hashes alone
            continue
        if _is_due(known.get(digits)):
            with alone(None, failed, f"the checkpoint {digits[:64]}"):
                model, version = _version_of(civitai, digits)
                with registry.write():
                    registry.catalogue.put_lookup(digits, model, version)
                known[digits] = {"model_id": model, "version_id": version}
        if digits not in known:
            continue
        yield {"checkpoint": digits, "name": name, **{k: known[digits][k] for k in ("model_id", "version_id")}}


def _version_of(civitai: Civitai, digits: str) -> tuple[str | None, str | None]:
    try:
        version = civitai.version_by_hash(digits)
    except Gone:
        return None, None
    return _text(version.model_id), _text(version.id)


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)
