"""Models, versions, files and example images as the sites list them, and subscriptions to such lists.

A value that an answer lacks (None) never replaces one from an earlier answer. What a site no longer lists is marked,
never removed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from sqlite3 import Connection
from typing import Any
from urllib.parse import quote

from hnetkit.errors import RegistryError, UnsafeFile
from hnetkit.limits import MAX_MADE, json_size, parse_json
from hnetkit.registry.columns import COLUMNS, Row, broken, from_json, now, text_of, to_json, upsert
from hnetkit.registry.files import CONVERTED

TOLD = "0001-01-01T00:00:00+00:00"
"""The time of what a site never said: a dump or an import told it, and the site's own answer replaces it."""
MAX_RECORD = 16 << 20
"""Bytes of a site's record of one model, unpacked."""
# column -> its table
_JSON = {column: table for table in ("models", "versions", "remote_files") for column in COLUMNS[table]}
# a state that stays keeps its time; takes the state, the time now, and the state again
_SINCE = "state_since = CASE state WHEN ? THEN state_since ELSE ? END, state = ?"
# version and model are read apart from their files: a model may have thousands of files
_FILES = """
SELECT models.id, versions.id, remote_files.id AS remote_file_id, remote_files.remote_id AS file_id,
    remote_files.name AS file_name, remote_files.type AS file_type, remote_files.size_bytes,
    remote_files.format AS site_format, remote_files.fp AS site_fp, remote_files.scan AS site_scan,
    remote_files.sha256, remote_files.hashes, remote_files.hashes_at, remote_files.state AS file_state,
    remote_files.state_since AS file_state_since
FROM remote_files
JOIN versions ON versions.id = remote_files.version_id
JOIN models ON models.id = versions.model_id
"""
_PRESENT = f"""
SELECT sha256 FROM files WHERE state = 'present'
UNION SELECT source_sha256 FROM files WHERE state = 'present' AND {CONVERTED}
"""
_INSTALLED = f"""
SELECT jobs.remote_file_id FROM jobs JOIN installs ON installs.job_id = jobs.id
WHERE jobs.state = 'done' AND installs.kind = 'network' AND installs.sha256 IN ({_PRESENT})
"""
_HERE = f"(remote_files.sha256 IN ({_PRESENT}) OR remote_files.id IN ({_INSTALLED}))"
_MODEL = f"""
SELECT source, remote_id AS model_id, name AS model, creator, type, tags, nsfw_level, availability, commercial_use,
    allow_no_credit, allow_derivatives, allow_different_license, downloads, state AS model_state,
    state_since AS model_state_since, description, last_seen = '{TOLD}' AS is_told
FROM models WHERE id = ?
"""
_VERSION = """
SELECT remote_id AS version_id, name AS version, base_model AS site_base_model, published_at, early_access_until,
    trained_words, strength, state AS version_state, state_since AS version_state_since
FROM versions WHERE id = ?
"""


# networks of which a site has no version any more
_LOST = """
SELECT DISTINCT networks.content_hash, lost.source, lost.state, lost.since
FROM lost_versions AS lost
CROSS JOIN network_versions AS held ON held.version_id = lost.version_id
JOIN networks ON networks.id = held.network_id
WHERE NOT EXISTS (
    SELECT 1 FROM network_versions AS other
    JOIN versions ON versions.id = other.version_id
    JOIN models ON models.id = versions.model_id
    WHERE other.network_id = held.network_id AND models.source = lost.source
    AND other.version_id NOT IN (SELECT version_id FROM lost_versions)
)
ORDER BY lost.since DESC
"""


class Catalogue:
    """The tables `models`, `versions`, `remote_files`, `images` and `lookups`."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    # --- storing answers

    def put_model(
        self, source: str, remote_id: str, values: Mapping[str, Any], raw: Any, *, is_told: bool = False
    ) -> int:
        """Stores a model and returns its row's id; `raw` is the site's own JSON.

        Args:
            source, remote_id: of the model.
            values, raw: what the site says of it.
            is_told: whether an import says it for the site; one that the site itself spoke of stays so.

        Raises:
            UnsafeFile: `raw` is larger than any real record, and could not be read again.
        """
        text = json.dumps(raw, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(text) > MAX_RECORD or json_size(text) > MAX_MADE:
            raise UnsafeFile(f"its record at {source} is too large: {len(text) >> 20} MB")
        packed = zlib.compress(text, 6)
        return self._put(
            "models", {"source": source, "remote_id": remote_id}, {**values, "raw": packed}, is_told=is_told
        )

    def put_version(self, model: int, remote_id: str, values: Mapping[str, Any]) -> int:
        return self._put("versions", {"model_id": model, "remote_id": remote_id}, {**values, "state": "listed"})

    def put_file(self, version: int, remote_id: str, values: Mapping[str, Any]) -> int:
        """Stores a file, and with its hashes the time at which the site stated them.

        One that was gone when it was asked for stays so, until it is fetched: a site may list what it does not have.
        """
        dated = {"hashes_at": now()} if values.get("sha256") else {}
        columns = {name: _column(name, value) for name, value in {**values, **dated}.items()}
        key = {"version_id": version, "remote_id": remote_id}
        return upsert(self._db, "remote_files", key, columns, first={"state": "listed"}, keep_known=True)

    def put_images(self, version: int, images: Iterable[Mapping[str, Any]]) -> None:
        """Replaces the example images of a version, in the site's order."""
        images = list(images)
        if images:  # an empty list is a known fault of the site, and an import may have stored some
            self._db.execute("DELETE FROM images WHERE version_id = ?", [version])
        self._db.executemany(
            "INSERT INTO images (version_id, url, place, type, nsfw_level, width, height) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET place = excluded.place, nsfw_level = excluded.nsfw_level",
            [
                (
                    version,
                    text_of(image["url"]),
                    place,
                    text_of(image["type"]),
                    image["nsfw_level"],
                    image["width"],
                    image["height"],
                )
                for place, image in enumerate(images)
            ],
        )

    def mark_gone(self, model: int, *, keep_versions: Iterable[str]) -> None:
        """Marks the versions of a model that a complete answer no longer lists."""
        kept = list(keep_versions)
        marks = ",".join("?" * len(kept))
        self._db.execute(
            f"UPDATE versions SET {_SINCE} WHERE model_id = ? AND remote_id NOT IN ({marks})",
            ["gone", now(), "gone", model, *kept],
        )

    def set_model_state(self, source: str, remote_id: str, state: str, *, since: str | None = None) -> None:
        """Marks a model as ``listed``, ``archived``, ``taken-down`` or ``gone``, as of now.

        Args:
            source, remote_id: of the model.
            state: as the site answers.
            since: when this was first seen, where it is known; now, if the model was in another state before.
        """
        self._db.execute(
            f"UPDATE models SET {_SINCE}, last_seen = ? WHERE source = ? AND remote_id = ?",
            [state, now(), state, now(), source, remote_id],
        )
        if since is not None:
            self._db.execute(
                "UPDATE models SET state_since = ? WHERE source = ? AND remote_id = ?", [since, source, remote_id]
            )

    def mark_told(self, source: str, remote_id: str) -> None:
        """Marks a model as never seen at its site: a dump of its records, or an import, told of it."""
        self._db.execute(
            "UPDATE models SET last_seen = ? WHERE source = ? AND remote_id = ?", [TOLD, source, remote_id]
        )

    def set_file_state(self, remote_file: int, state: str) -> None:
        """Marks a file as ``listed`` or ``gone``: a site may list one that it does not have."""
        self._db.execute(f"UPDATE remote_files SET {_SINCE} WHERE id = ?", [state, now(), state, remote_file])

    def _put(self, table: str, key: Row, values: Mapping[str, Any], *, is_told: bool = False) -> int:
        columns = {name: _column(name, value) for name, value in values.items()}
        first = {"first_seen": now()} | ({"last_seen": TOLD} if is_told else {})
        columns |= {} if is_told else {"last_seen": now()}
        where = " AND ".join(f"{column} = ?" for column in key)
        known = self._db.execute(f"SELECT state FROM {table} WHERE {where}", list(key.values())).fetchone()
        if values["state"] != (known or ("listed",))[0]:
            columns["state_since"] = now()
        return upsert(self._db, table, key, columns, first=first, keep_known=True)

    # --- queries

    def files(self, *, source: str | None = None) -> list[Row]:
        """Returns all files, or those of one site, with everything that is known about their versions and models."""
        return self._files("models.source = coalesce(?, models.source)", [source])

    def file(self, id: int) -> Row:
        """Returns the file with this id, as `files` does."""
        (row,) = self._files("remote_files.id = ?", [id])
        return row

    def file_numbered(self, source: str, version: str, file: str) -> Row | None:
        """Returns the file that a site numbers so, as `files` does; None if it is unknown."""
        where = "models.source = ? AND versions.remote_id = ? AND remote_files.remote_id = ?"
        return next(iter(self._files(where, [source, version, file])), None)

    def numbers(self) -> list[tuple[int, str, str, str, str, str | None]]:
        """Returns of every file its row's id, the site, how that numbers model, version and file, and the sha256."""
        return self._db.execute(
            "SELECT remote_files.id, source, models.remote_id, versions.remote_id, remote_files.remote_id, sha256 "
            "FROM remote_files JOIN versions ON versions.id = version_id JOIN models ON models.id = model_id "
            "ORDER BY remote_files.id"
        ).fetchall()

    def versions_here(self, source: str) -> list[tuple[str, str, str]]:
        """Returns model, version and name of the versions of a site that the library has a file of, or looked up."""
        looked_up = f"SELECT version_id FROM lookups WHERE sha256 IN ({_PRESENT})"
        of_files = f"SELECT version_id FROM remote_files WHERE {_HERE}"
        rows = self._db.execute(
            "SELECT models.remote_id, versions.remote_id, versions.name FROM versions "
            "JOIN models ON models.id = versions.model_id WHERE models.source = ? "
            f"AND (versions.remote_id IN ({looked_up}) OR versions.id IN ({of_files})) ORDER BY versions.id",
            [source],
        )
        return rows.fetchall()

    def unknown_here(self) -> int:
        """Returns how many networks of the library came from nowhere that is known, nor were looked up."""
        known = "SELECT sha256 FROM remote_files UNION SELECT sha256 FROM installs UNION SELECT sha256 FROM lookups"
        known = f"SELECT sha256 FROM ({known}) WHERE sha256 NOTNULL"
        (count,) = self._db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM files WHERE state = 'present' AND content_hash NOTNULL "
            f"GROUP BY content_hash HAVING NOT max(sha256 IN ({known}) OR ifnull(source_sha256 IN ({known}), 0)))"
        ).fetchone()
        return int(count)

    def files_with(self, sha256s: Iterable[str]) -> list[Row]:
        """Returns the sites' records of files with these hashes, as `files` does; one per version."""
        wanted = list(sha256s)
        marks = ",".join("?" * len(wanted))
        looked_up = f"SELECT version_id FROM lookups WHERE sha256 IN ({marks})"
        rows = self._files(
            f"remote_files.sha256 IN ({marks}) OR versions.remote_id IN ({looked_up})", [*wanted, *wanted]
        )
        return list({(row["source"], row["version_id"]): row for row in rows}.values())

    def files_of(self, source: str, *, model: str | None = None, version: str | None = None) -> list[Row]:
        """Returns the files of a site's model, or of one version, as `files` does."""
        wanted = {"models.source": source, "models.remote_id": model, "versions.remote_id": version}
        given = {column: value for column, value in wanted.items() if value is not None}
        return self._files(" AND ".join(f"{column} = ?" for column in given), list(given.values()))

    def files_of_bytes(self, sha256: str) -> list[Row]:
        """Returns the files with this hash, at all sites, as `files` does."""
        return self._files("remote_files.sha256 = ?", [sha256])

    def files_hashed(self, digits: str) -> list[Row]:
        """Returns the files of which a site states a hash that begins with these digits, as `files` does."""
        stated = "SELECT 1 FROM json_each(hashes) WHERE lower(value) >= ? AND lower(value) < ? || 'g'"
        of_others = f"CASE WHEN json_valid(hashes) THEN EXISTS ({stated}) ELSE 0 END"
        where = f"(remote_files.sha256 >= ? AND remote_files.sha256 < ? || 'g') OR {of_others}"
        return self._files(where, [digits] * 4)

    def lost(self) -> dict[str, Row]:
        """Returns content hash -> the site that has no version of this network any more, in which state, since when.

        ``since`` is None where it is not known. Of several sites, the one where it happened last.
        """
        return {
            content: {"source": source, "state": state, "since": since}
            for content, source, state, since in reversed(self._db.execute(_LOST).fetchall())
        }

    def models(self, *, source: str | None = None) -> list[Row]:
        """Returns all models, or those of one site, without their raw JSON."""
        return self._models("source = coalesce(?, source)", [source])

    def model(self, source: str, remote_id: str) -> Row | None:
        """Returns a site's model with this number or name, as `models` does; None if it is unknown."""
        return next(iter(self._models("source = ? AND remote_id = ?", [source, remote_id])), None)

    def listed_models(self, source: str, *, not_seen: tuple[str, str]) -> list[Row]:
        """Returns a site's listed models that were last seen outside a period, as `models` does.

        Args:
            not_seen: beginning and end of the period, ISO 8601.
        """
        return self._models("source = ? AND state = 'listed' AND last_seen NOT BETWEEN ? AND ?", [source, *not_seen])

    def _files(self, where: str, parameters: list[Any]) -> list[Row]:
        models: dict[int, Row] = {}
        versions: dict[int, Row] = {}
        rows = []
        cursor = self._db.execute(f"{_FILES} WHERE {where} ORDER BY remote_files.id", parameters)
        names = [column[0] for column in cursor.description][2:]
        for model, version, *values in cursor.fetchall():
            if model not in models:
                (models[model],) = self._rows(_MODEL, [model])
            if version not in versions:
                (versions[version],) = self._rows(_VERSION, [version])
            file = _from_columns(dict(zip(names, values, strict=True)), str(values[names.index("file_name")]))
            row = {**models[model], **versions[version], **file}
            rows.append(row | {"link": _link(row), "is_told": bool(row["is_told"])})
        return rows

    def _models(self, where: str, parameters: list[Any]) -> list[Row]:
        rows = self._rows(f"SELECT * FROM models WHERE {where} ORDER BY id", parameters)
        return [{name: value for name, value in row.items() if name != "raw"} for row in rows]

    def file_rows(self, source: str, model: str) -> dict[tuple[str, str], int]:
        """Returns (version, file), as a site numbers those of one model -> the id of the file's row."""
        cursor = self._db.execute(
            "SELECT versions.remote_id, remote_files.remote_id, remote_files.id FROM remote_files "
            "JOIN versions ON versions.id = remote_files.version_id JOIN models ON models.id = versions.model_id "
            "WHERE models.source = ? AND models.remote_id = ?",
            [source, model],
        )
        return {(version, file): row for version, file, row in cursor}

    def contents(self, repo: str) -> Iterator[tuple[str, str, str, str | None, Row]]:
        """Yields model, commit and path of the files of a repository of the hub, sha256, other hashes; oldest first."""
        cursor = self._db.execute(
            "SELECT models.remote_id, versions.remote_id, remote_files.remote_id, sha256, hashes FROM remote_files "
            "JOIN versions ON versions.id = remote_files.version_id JOIN models ON models.id = versions.model_id "
            "WHERE models.source = 'huggingface' AND ? IN (models.remote_id, substr(models.remote_id, 1, ?)) "
            "AND substr(models.remote_id, ?, 1) IN ('', ':') ORDER BY remote_files.id",
            [repo, len(repo), len(repo) + 1],
        )
        for model, version, file, sha256, hashes in cursor:
            yield model, version, file, sha256, from_json(hashes, "remote_files", "hashes", file) if hashes else {}

    def _rows(self, select: str, parameters: list[Any]) -> list[Row]:
        cursor = self._db.execute(select, parameters)
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, values, strict=True)) for values in cursor]
        return [_from_columns(row, str(row.get("model") or row.get("version") or row.get("name"))) for row in rows]

    def raw(self, source: str, remote_id: str) -> Any:
        """Returns the site's own JSON of a model; None without a row.

        Raises:
            RegistryError: it is damaged, or unpacks to more than any real record.
        """
        row = self._db.execute(
            "SELECT raw FROM models WHERE source = ? AND remote_id = ?", [source, remote_id]
        ).fetchone()
        if row is None:
            return None
        try:
            return _unpacked(row[0])
        except (ValueError, TypeError) as error:
            raise broken("models", "raw", f"{source} {remote_id}") from error

    def faults(self) -> Iterator[RegistryError]:
        """Yields an error for each model whose own JSON can no longer be read."""
        for source, remote_id in self._db.execute("SELECT source, remote_id FROM models").fetchall():
            try:
                self.raw(source, remote_id)
            except RegistryError as error:
                yield error

    def images(self, version: int) -> list[Row]:
        """Returns the example images of the version with this id, in the site's order."""
        cursor = self._db.execute(
            "SELECT url, type, nsfw_level FROM images WHERE version_id = ? ORDER BY place", [version]
        )
        return [{"url": url, "type": type, "nsfw_level": level} for url, type, level in cursor]

    def version_row(self, remote_file: int) -> int:
        """Returns the id of the version that a file belongs to."""
        id: int = self._db.execute("SELECT version_id FROM remote_files WHERE id = ?", [remote_file]).fetchone()[0]
        return id

    def model_row(self, remote_file: int) -> int:
        """Returns the id of the model that a file belongs to."""
        id: int = self._db.execute(
            "SELECT model_id FROM versions WHERE id = ?", [self.version_row(remote_file)]
        ).fetchone()[0]
        return id

    def owner(self, remote_file: int) -> str | int:
        """Returns the creator of the model that a file belongs to, or the model's id if none is named."""
        model = self.model_row(remote_file)
        (creator,) = self._db.execute("SELECT creator FROM models WHERE id = ?", [model]).fetchone()
        return model if creator is None else str(creator)

    # --- look-ups of the library's files by hash

    def put_lookup(self, sha256: str, model_id: str | None, version_id: str | None) -> None:
        """Stores a site's answer about a hash. None and None mean that it is unknown there, which removes nothing."""
        self._db.execute(
            "INSERT INTO lookups VALUES (?, ?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET "
            "looked_up_at = excluded.looked_up_at, model_id = coalesce(excluded.model_id, model_id), "
            "version_id = coalesce(excluded.version_id, version_id)",
            [sha256, model_id, version_id, now()],
        )

    def put_told_lookup(self, sha256: str, model_id: str, version_id: str) -> None:
        """Stores what a dump of a site's records says about a hash; what the site itself says of it is kept."""
        self._db.execute(
            "INSERT INTO lookups VALUES (?, ?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET model_id = excluded.model_id, "
            "version_id = excluded.version_id, looked_up_at = excluded.looked_up_at "
            "WHERE lookups.version_id IS NULL OR lookups.looked_up_at = excluded.looked_up_at",
            [sha256, model_id, version_id, TOLD],
        )

    def lookups(self) -> dict[str, Row]:
        """Returns sha256 -> the answer and its time."""
        rows = self._db.execute("SELECT sha256, model_id, version_id, looked_up_at FROM lookups")
        return {sha: {"model_id": m, "version_id": v, "looked_up_at": at} for sha, m, v, at in rows}


def _link(row: Row) -> str:
    """Returns the address of the page that shows a version."""
    if row["source"] == "civitai":
        return f"https://civitai.com/models/{row['model_id']}?modelVersionId={row['version_id']}"
    repo, folder = repo_of(row["model_id"]), row["model_id"].partition(":")[2]
    return f"https://huggingface.co/{repo}" + (f"/tree/main/{quote(folder)}" if folder else "")


def repo_of(model_id: str) -> str:
    """Returns the repository of a model of the hub: one of an archive is a folder in it, as ``owner/repo:folder``."""
    return model_id.partition(":")[0]


def _unpacked(packed: bytes) -> Any:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, MAX_RECORD)
    except zlib.error as error:
        raise ValueError(f"a damaged record ({error})") from error
    if unpacker.unconsumed_tail:
        raise ValueError(f"a record of more than {MAX_RECORD >> 20} MB")
    if not unpacker.eof:
        raise ValueError("a damaged record (cut short)")
    return parse_json(data.decode("utf-8", "surrogatepass"))


def _column(name: str, value: Any) -> Any:
    if name in _JSON and value is not None:  # half a letter in a list would fail whatever reads the whole table
        return to_json([text_of(item) for item in value] if COLUMNS[_JSON[name]][name] is list else value)
    return text_of(value) if isinstance(value, str) else value


def _from_columns(row: Row, what: str) -> Row:
    for name, table in _JSON.items():
        if row.get(name) is not None:
            row[name] = from_json(row[name], table, name, what)
    for name in ("allow_no_credit", "allow_derivatives", "allow_different_license"):
        if row.get(name) is not None:
            row[name] = bool(row[name])
    return row


class Subscriptions:
    """The table `subscriptions`."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def put(self, name: str, filters: Mapping[str, Any]) -> None:
        """Stores a subscription, or replaces its filters."""
        self._db.execute(
            "INSERT INTO subscriptions (name, filters, created_at) VALUES (?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET filters = excluded.filters",
            [name, to_json(dict(sorted(filters.items()))), now()],
        )

    def put_new(self, name: str, filters: Mapping[str, Any]) -> Any:
        """Stores a subscription unless there is one with this name; returns the filters that it has then."""
        row = self._db.execute("SELECT filters FROM subscriptions WHERE name = ?", [name]).fetchone()
        if row is not None:
            return from_json(row[0], "subscriptions", "filters", name)
        self.put(name, filters)
        return filters

    def rows(self) -> list[Row]:
        """Returns all subscriptions, by name."""
        cursor = self._db.execute("SELECT name, filters, created_at, synced_at FROM subscriptions ORDER BY name")
        return [
            {
                "name": name,
                "filters": from_json(filters, "subscriptions", "filters", name),
                "created_at": created,
                "synced_at": synced,
            }
            for name, filters, created, synced in cursor
        ]

    def mark_synced(self, name: str) -> None:
        self._db.execute("UPDATE subscriptions SET synced_at = ? WHERE name = ?", [now(), name])

    def remove(self, name: str) -> None:
        self._db.execute("DELETE FROM subscriptions WHERE name = ?", [name])
