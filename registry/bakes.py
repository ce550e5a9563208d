"""Files that stacks of networks were baked to, and which networks went into each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from sqlite3 import Connection
from typing import Any

from hnetkit.registry.columns import from_column, from_json, now, text_of, to_column, to_json, upsert


@dataclass(frozen=True, slots=True)
class BakedPart:
    """A network that went into a bake; it may be in no file any more, or never have been in the library.

    Attributes:
        name: that it had then.
        content_hash: of the network.
        sha256: of its file.
        strength: by self- and cross-attention and side, and by block, as JSON holds it.
    """

    name: str
    content_hash: str
    sha256: str | None
    strength: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bake:
    """A file, or the folder of a model, that a stack was baked to. None is unknown, or not of this target.

    Attributes:
        path: absolute.
        target: ``"lora"``, ``"diff"``, ``"checkpoint"`` or ``"hypernetwork"``.
        program: that the file is for.
        rank: of a LoRA, the largest.
        refine_steps: of the distillation after the fit.
        error: largest relative error of a layer and side, on contexts held out; 0 where all is exact.
        picture_error: error of pictures as a share of what the networks change.
        psnr: of these pictures, in dB.
        model_name, model_hash: of the model that it was made with.
        size_bytes, mtime_ns: by which a change is noticed; of a folder, those of its ``model_index.json``.
        baked_at: when it was stored, UTC, ISO 8601.
        parts: in stacking order.
    """

    path: str
    target: str
    program: str | None
    rank: int | None
    refine_steps: int | None
    error: float | None
    picture_error: float | None
    psnr: float | None
    model_name: str | None
    model_hash: str | None
    size_bytes: int
    mtime_ns: int
    baked_at: str | None
    parts: tuple[BakedPart, ...]


_COLUMNS = tuple(field.name for field in fields(Bake))[1:-1]  # but the path, which is the key, and the parts


class Bakes:
    """The tables `bakes` and `baked_networks`."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def put(self, bake: Bake) -> None:
        """Stores a bake, replacing the one at its path."""
        values = {column: getattr(bake, column) for column in _COLUMNS}
        values["model_name"] = bake.model_name and text_of(bake.model_name)
        values["baked_at"] = bake.baked_at or now()
        id = upsert(self._db, "bakes", {"path": to_column(bake.path)}, values)
        self._db.execute("DELETE FROM baked_networks WHERE bake_id = ?", [id])
        self._db.executemany(
            "INSERT INTO baked_networks VALUES (?, ?, ?, ?, ?, ?)",
            [
                (id, place, text_of(part.name), part.content_hash, part.sha256, to_json(part.strength))
                for place, part in enumerate(bake.parts)
            ],
        )

    def of(self, content_hash: str) -> list[Bake]:
        """Returns the bakes that a network went into, latest first."""
        rows = self._db.execute(
            f"SELECT id, path, {', '.join(_COLUMNS)} FROM bakes WHERE id IN "
            "(SELECT bake_id FROM baked_networks WHERE content_hash = ?) ORDER BY baked_at DESC, id DESC",
            [content_hash],
        ).fetchall()
        return [
            Bake(from_column(path), **dict(zip(_COLUMNS, values, strict=True)), parts=self._parts(id))
            for id, path, *values in rows
        ]

    def has(self, path: str) -> bool:
        """Whether something was baked to an absolute path."""
        return self._db.execute("SELECT 1 FROM bakes WHERE path = ?", [to_column(path)]).fetchone() is not None

    def places(self) -> list[tuple[str, int, int]]:
        """Returns path, size and time of all bakes, latest first."""
        rows = self._db.execute("SELECT path, size_bytes, mtime_ns FROM bakes ORDER BY baked_at DESC, id DESC")
        return [(from_column(path), size_bytes, mtime_ns) for path, size_bytes, mtime_ns in rows]

    def forget(self, paths: Iterable[str]) -> None:
        self._db.executemany("DELETE FROM bakes WHERE path = ?", [(to_column(path),) for path in paths])

    def _parts(self, id: int) -> tuple[BakedPart, ...]:
        rows = self._db.execute(
            "SELECT name, content_hash, sha256, strength FROM baked_networks WHERE bake_id = ? ORDER BY place", [id]
        )
        return tuple(
            BakedPart(name, content_hash, sha256, from_json(strength, "baked_networks", "strength", name))
            for name, content_hash, sha256, strength in rows
        )
