"""The library's record of what its networks were baked to, held against the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hnetkit.files import is_absent, is_folder_at, mtime_of
from hnetkit.library.disks import away_below
from hnetkit.library.walking import is_as_scanned
from hnetkit.registry.bakes import Bake, BakedPart
from hnetkit.registry.store import Registry
from hnetkit.text import argument

Row = dict[str, Any]
_OF_FOLDER = "model_index.json"  # by which a model in diffusers' layout is told from another at its place


def record_bake(registry: Registry, path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Stores what was baked to a file, or to a folder, that was just written.

    Args:
        path: of it.
        record: of the bake, as it stands in the file.

    Raises:
        RegistryError, DiskFull: nothing can be stored.
        OSError: the file is not there.
    """
    place = os.path.abspath(path)
    status = os.stat(_marker(place))
    layers, pictures = record.get("layers"), record.get("pictures") or {}
    bake = Bake(
        path=place,
        target=record["to"],
        program=record.get("for"),
        rank=max(layer["rank"] for layer in layers.values()) if layers and record["to"] == "lora" else None,
        refine_steps=record.get("refine_steps") or None,
        error=max(layer["error"] for layer in layers.values()) if layers else None,
        picture_error=pictures.get("share"),
        psnr=pictures.get("psnr"),
        model_name=record.get("model"),
        model_hash=record.get("model_hash"),
        size_bytes=status.st_size,
        mtime_ns=mtime_of(status),
        baked_at=None,
        parts=tuple(
            BakedPart(part["name"], part["content_hash"], part["sha256"], part["strength"])
            for part in record["networks"]
        ),
    )
    with registry.write():
        registry.bakes.put(bake)


def bakes_of(registry: Registry, content_hash: str) -> list[Row]:
    """Returns the bakes that a network went into, latest first; ``state`` is what the disk says of each now.

    It is ``"present"``, ``"missing"``, or ``"changed"`` where something else is at its path. ``found_at`` is where a
    scan found a file that was moved since.
    """
    return [_shown(registry, bake) for bake in registry.bakes.of(content_hash)]


def gone_bakes(registry: Registry) -> tuple[list[str], list[str]]:
    """Returns the paths of baked files that are gone, and a line about each that was moved or may be only away."""
    gone, kept = [], []
    for place, *stamp in registry.bakes.places():
        if not is_absent(place):
            continue
        path = Path(place)
        found = _found_at(registry, place, *stamp)
        away = f"it is {found} by now" if found else away_below(path.parent, path)
        if away is None:
            gone.append(place)
        else:
            kept.append(f"{path} kept: {away}; hnetkit forget {argument(path, is_path=True)} forgets it")
    return gone, kept


def _shown(registry: Registry, bake: Bake) -> Row:
    row = asdict(bake)
    stamp = {"size_bytes": row.pop("size_bytes"), "mtime_ns": row.pop("mtime_ns")}
    is_same = is_as_scanned({"path": _marker(bake.path), **stamp})
    row["networks"] = list(row.pop("parts"))
    row["state"] = "missing" if is_absent(bake.path) else "present" if is_same else "changed"
    row["found_at"] = None if row["state"] == "present" else _found_at(registry, bake.path, **stamp)
    return row


def _found_at(registry: Registry, path: str, size_bytes: int, mtime_ns: int) -> str | None:
    """Returns where a scan found a baked file that is not at its path now: by size and time, and of no other bake."""
    for row in registry.files.looking_like(size_bytes, mtime_ns):
        if row["path"] != path and not registry.bakes.has(row["path"]) and is_as_scanned(row):
            return str(row["path"])
    return None


def _marker(path: str) -> str:
    """Returns the file by which it is seen whether what was baked to a path is still there."""
    try:
        return os.path.join(path, _OF_FOLDER) if is_folder_at(path) else path
    except OSError:  # it cannot be looked at
        return path
