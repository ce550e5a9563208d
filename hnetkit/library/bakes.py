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

    It is ``"present"``, ``"missing"``, or ``"changed"`` where something else is at its path.
    """
    return [_shown(bake) for bake in registry.bakes.of(content_hash)]


def gone_bakes(registry: Registry) -> tuple[list[str], list[str]]:
    """Returns the paths of baked files that are gone, and a line about each that may be only away, with its disk."""
    gone, kept = [], []
    for path in (Path(path) for path in registry.bakes.paths() if is_absent(path)):
        if (away := away_below(path.parent, path)) is None:
            gone.append(str(path))
        else:
            kept.append(f"{path} kept: {away}; hnetkit forget {argument(path, is_path=True)} forgets it")
    return gone, kept


def _shown(bake: Bake) -> Row:
    marker = _marker(bake.path)
    row = asdict(bake)
    is_same = is_as_scanned({"path": marker, "size_bytes": row.pop("size_bytes"), "mtime_ns": row.pop("mtime_ns")})
    row["networks"] = list(row.pop("parts"))
    row["state"] = "missing" if is_absent(bake.path) else "present" if is_same else "changed"
    return row


def _marker(path: str) -> str:
    """Returns the file by which it is seen whether what was baked to a path is still there."""
    try:
        return os.path.join(path, _OF_FOLDER) if is_folder_at(path) else path
    except OSError:  # it cannot be looked at
        return path
