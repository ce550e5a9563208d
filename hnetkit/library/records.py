"""All that is known of networks, as rows: their files, the checkpoint, what sites say, how they were trained."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hnetkit.registry.store import Registry

Row = dict[str, Any]

_OF_A_FILE = ("path", "state", "format", "size_bytes", "sha256", "autov1", "warnings")


def with_files(registry: Registry, rows: list[Row]) -> list[Row]:
    """Returns networks of the registry with the files that hold them, and the checkpoint that they were trained on."""
    by_content: dict[str, list[Row]] = {}
    for file in registry.files.holding([row["content_hash"] for row in rows]):
        by_content.setdefault(file["content_hash"], []).append(file)
    checkpoints = {
        short: file["path"]
        for file in registry.files.of_kind("checkpoint")
        for short in (str(file["sha256"])[:10], file["autov1"])
    }
    return [_with_files(row, by_content.get(row["content_hash"], []), checkpoints) for row in rows]


def record(registry: Registry, content_hash: str) -> Row:
    """Returns everything that is known of one network, which is in the registry."""
    (row,) = with_files(registry, registry.networks.of_contents([content_hash]))
    files = registry.files.holding([content_hash])
    row["sidecars"] = list(registry.files.sidecars(file["id"] for file in files).values())
    row["sites"] = registry.catalogue.files_with({file["sha256"] for file in files})
    row["training"] = _training(registry, content_hash)
    return row


def _with_files(row: Row, files: list[Row], checkpoints: dict[str, str]) -> Row:
    present = any(file["state"] == "present" for file in files)
    return {
        **{key: value for key, value in row.items() if key != "id"},
        "name": files[0]["stem"] if files else row["name"],
        "own_name": row["name"],
        "size": _size(files[0]["size_bytes"]) if present else "missing",
        "trained_on": _trained_on(row),
        "checkpoint_path": checkpoints.get(row["sd_checkpoint"]),
        "present": present,
        "files": [{key: file[key] for key in _OF_A_FILE} for file in files],
    }


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def _trained_on(row: Row) -> str | None:
    name, short = row["sd_checkpoint_name"], row["sd_checkpoint"]
    return " ".join([*([name] if name else []), *([f"[{short}]"] if short else [])]) or None


def _training(registry: Registry, content_hash: str) -> Row | None:
    """How a network came to be that was trained here: its recipe, its model, and its ancestors, the nearest first."""
    training = registry.trainings.of(content_hash)
    if training is None:
        return None
    lineage = registry.trainings.lineage(content_hash)
    names = {row["content_hash"]: row["name"] for row in with_files(registry, registry.networks.of_contents(lineage))}
    return asdict(training) | {"lineage": [{"content_hash": own, "name": names.get(own)} for own in lineage]}
