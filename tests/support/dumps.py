"""Dumps of Civitai's records, as people have them: a metadata archive in SQLite, and JSON lines."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

Model = dict[str, Any]

TABLES = """
CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT, type TEXT, username TEXT, data TEXT);
CREATE TABLE model_versions (
    id INTEGER PRIMARY KEY, model_id INTEGER, position INTEGER, name TEXT, base_model TEXT, published_at INTEGER,
    data TEXT
);
CREATE TABLE model_files (
    id INTEGER PRIMARY KEY, model_id INTEGER, version_id INTEGER, type TEXT, sha256 TEXT, data TEXT
)
"""
INDEXES = """
CREATE INDEX versions_of_model ON model_versions (model_id);
CREATE INDEX files_of_version ON model_files (version_id);
CREATE INDEX files_by_sha256 ON model_files (sha256)
"""


def write_sqlite(path: Path, models: Iterable[Model], *, tables: str = TABLES, indexes: str = INDEXES) -> Path:
    """Writes models as a metadata archive has them: what columns hold is no part of the JSON."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(f"{tables};{indexes}")
        for model in models:
            creator = (model.get("creator") or {}).get("username")
            data = _without(model, "id", "name", "type", "creator", "modelVersions")
            db.execute("INSERT INTO models VALUES (?, ?, ?, ?, ?)", [*_of(model, "id", "name", "type"), creator, data])
            for place, version in enumerate(model["modelVersions"]):
                row = [version["id"], model["id"], place, version["name"], version.get("baseModel"), None]
                data = _without(version, "id", "name", "baseModel", "files")
                db.execute("INSERT INTO model_versions VALUES (?, ?, ?, ?, ?, ?, ?)", [*row, data])
                for file in version["files"]:
                    row = [file["id"], model["id"], version["id"], file["type"], file["hashes"].get("SHA256")]
                    data = _without(file, "id", "type", "hashes")
                    db.execute("INSERT INTO model_files VALUES (?, ?, ?, ?, ?, ?)", [*row, data])
    return path


def make_endless(path: Path, table: str) -> None:
    """Lets each inner page of a large table lead to the next one only, so that its rows come again and again."""
    with closing(sqlite3.connect(path)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table]).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
        (count,) = db.execute("PRAGMA page_count").fetchone()
    data = bytearray(path.read_bytes())

    def pointers(page: int) -> list[int]:
        """Returns where a page holds the numbers of the pages below it."""
        at = (page - 1) * size
        cells = int.from_bytes(data[at + 3 : at + 5], "big")
        starts = [int.from_bytes(data[at + 12 + 2 * n : at + 14 + 2 * n], "big") for n in range(cells)]
        return [at + 8, *(at + start for start in starts)]

    inner = [page for page in range(2, count + 1) if data[(page - 1) * size] == 5 and page != root][:10]
    full = [page for page in range(2, count + 1) if data[(page - 1) * size + 4] or data[(page - 1) * size + 3]]
    leaf = next(page for page in full if data[(page - 1) * size] == 13)
    for page, below in zip([root, *inner], [*inner, leaf], strict=True):
        for pointer in pointers(page):
            data[pointer : pointer + 4] = below.to_bytes(4, "big")
    path.write_bytes(data)


def _of(record: Model, *keys: str) -> list[Any]:
    return [record[key] for key in keys]


def _without(record: Model, *keys: str) -> str:
    return json.dumps({key: value for key, value in record.items() if key not in keys})


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    """Writes one record on each line."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path
