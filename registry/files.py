"""Roots, the files found under them, and their sidecars. A file that is gone is marked `missing`, not forgotten."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePath
from sqlite3 import Connection
from typing import Any

from hnetkit.registry.columns import (
    COLUMNS,
    Row,
    batches,
    broken,
    from_column,
    from_json,
    is_sound,
    now,
    spelled,
    spellings,
    stem_of,
    text_of,
    to_column,
    to_json,
    upsert,
)

READ_AGAIN = -1
"""The `reader_version` of a file that the next scan is to read again; 0 is that of one whose row is damaged."""
CONVERTED = """
files.content_hash NOTNULL AND files.source_sha256 NOTNULL
AND NOT EXISTS (SELECT 1 FROM remote_files WHERE remote_files.sha256 = files.sha256)
AND files.sha256 NOT IN (SELECT installs.sha256 FROM installs WHERE installs.sha256 NOTNULL)
"""
"""Whether a file counts as converted from another: one that came from a site may claim the hash of anybody's file."""
_TEXT = ("text", str | None)
_KINDS = {"size_bytes": ("integer", int), "sha256": _TEXT, "source_sha256": _TEXT}  # SQLite enforces no types


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that is scanned, and when it last was."""

    id: int
    path: Path
    scanned_at: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What the registry knows of a file, for a scan to tell whether it changed."""

    id: int
    size_bytes: int
    mtime_ns: int
    reader_version: int
    state: str
    content_hash: str | None
    sidecars_seen: str | None = None
    sha256: str | None = None


class Files:
    """The tables `roots` and `files`."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    # --- roots

    def roots(self) -> list[Root]:
        rows = self._db.execute("SELECT id, path, scanned_at FROM roots ORDER BY id")
        return [Root(id, Path(from_column(path)), scanned_at) for id, path, scanned_at in rows]

    def add_root(self, path: Path) -> Root:
        """Returns the root at an absolute path, adding it if new. Files known under a parent root move to it."""
        column = to_column(str(path))
        self._db.execute("INSERT INTO roots (path, added_at) VALUES (?, ?) ON CONFLICT DO NOTHING", [column, now()])
        root = Root(self._db.execute("SELECT id FROM roots WHERE path = ?", [column]).fetchone()[0], path)
        for parent in self.roots():
            if parent.id != root.id and path.is_relative_to(parent.path):
                self._move_files(parent, root)
        return root

    def _move_files(self, parent: Root, root: Root) -> None:
        inside = root.path.relative_to(parent.path)
        for id, column in self._db.execute("SELECT id, path FROM files WHERE root_id = ?", [parent.id]).fetchall():
            path = PurePath(from_column(column))
            if path.is_relative_to(inside):
                moved = to_column(str(path.relative_to(inside)))
                self._db.execute("UPDATE OR REPLACE files SET root_id = ?, path = ? WHERE id = ?", [root.id, moved, id])

    def forget_root(self, root: Root) -> None:
        """Removes a root and the rows of its files; see `forget`."""
        self._db.execute("DELETE FROM roots WHERE id = ?", [root.id])

    def mark_scanned(self, root: Root) -> None:
        self._db.execute("UPDATE roots SET scanned_at = ? WHERE id = ?", [now(), root.id])

    # --- files

    def seen(self, root: Root) -> dict[str, KnownFile]:
        """Returns every file known under a root, by its path below the root.

        A file whose row is damaged has `reader_version` 0, so that it is read again; so has one whose network has no
        row any more.
        """
        tables = ("files", "sidecars", "networks")
        checks = [is_sound(table, column) for table in tables for column in COLUMNS[table]]
        checks += ["(files.content_hash IS NULL OR networks.content_hash NOTNULL)"]
        checks += [f"typeof(files.{column}) IN ('{kind}', 'null')" for column, (kind, _) in _KINDS.items()]
        sound = " AND ".join(checks)
        rows = self._db.execute(
            f"SELECT path, files.id, size_bytes, mtime_ns, reader_version * ({sound}), state, "
            "files.content_hash, sidecars_seen, sha256 FROM files LEFT JOIN sidecars ON file_id = files.id "
            "LEFT JOIN networks ON networks.content_hash = files.content_hash WHERE root_id = ?",
            [root.id],
        )
        return {from_column(path): KnownFile(*rest) for path, *rest in rows}

    def content_at(self, root: Root, path: str) -> str | None:
        """Returns the content hash of the file at a path below a root; None if it is unknown or not a network."""
        found = self._db.execute(
            "SELECT content_hash FROM files WHERE root_id = ? AND path = ?", [root.id, to_column(path)]
        ).fetchone()
        return found[0] if found else None

    def put(
        self,
        root: Root,
        path: str,
        mtime_ns: int,
        reader_version: int,
        row: Mapping[str, Any],
        *,
        sidecars_seen: str | None = None,
    ) -> None:
        """Stores the examination of a file.

        Args:
            root: the root that the file is under.
            path: below the root.
            mtime_ns: of the bytes that were read.
            reader_version: of the reader that read them.
            row: an examination (`hnetkit.inspection.Examination.as_row`) with the content of its `sidecars`.
            sidecars_seen: see `put_sidecars`.
        """
        keys = ("size_bytes", "sha256", "autov1", "content_hash", "format", "kind", "verdict", "reason")
        values = {key: row[key] for key in keys} | {
            "source_sha256": row.get("source_sha256") or self._former_hash(root, path, row),
            "stem": stem_of(path),
            "warnings": to_json(row["warnings"]),
            "mtime_ns": mtime_ns,
            "reader_version": reader_version,
            "state": "present",
            "last_seen": now(),
        }
        id = upsert(
            self._db, "files", {"root_id": root.id, "path": to_column(path)}, values, first={"first_seen": now()}
        )
        self.put_sidecars(id, row.get("sidecars") or {}, sidecars_seen)

    def _former_hash(self, root: Root, path: str, row: Mapping[str, Any]) -> str | None:
        """Returns the hash of the file that this one was written anew from, with the same content, in its place."""
        found = self._db.execute(
            "SELECT source_sha256, sha256 FROM files WHERE root_id = ? AND path = ? AND content_hash = ?",
            [root.id, to_column(path), row["content_hash"]],
        ).fetchone()
        hashes = found or ()
        return next((sha256 for sha256 in hashes if isinstance(sha256, str) and sha256 != row["sha256"]), None)

    def put_sidecars(self, id: int, said: Mapping[str, Any], seen: str | None) -> None:
        """Stores the content of a file's sidecars.

        Args:
            seen: what they looked like (`hnetkit.library.sidecars.fingerprints`); None has the next scan read them.
        """
        self._db.execute("UPDATE files SET sidecars_seen = ? WHERE id = ?", [seen, id])
        self._db.execute("DELETE FROM sidecars WHERE file_id = ?", [id])
        if said:
            self._db.execute("INSERT INTO sidecars VALUES (?, ?)", [id, to_json(said)])

    def sidecars(self, ids: Iterable[int]) -> dict[int, Row]:
        """Returns the content of files' sidecars when they were read, by the file's id."""
        found = {}
        for id in ids:
            row = self._db.execute("SELECT said FROM sidecars WHERE file_id = ?", [id]).fetchone()
            if row is not None:
                found[id] = from_json(row[0], "sidecars", "said", f"file {id}")
        return found

    def set_first_seen(self, ids: Iterable[int], when: str) -> None:
        """Sets since when files are known."""
        self._db.executemany("UPDATE files SET first_seen = ? WHERE id = ?", [(when, id) for id in ids])

    def read_again(self, ids: Iterable[int]) -> None:
        """Has the next scan read files again, whatever their size and time."""
        self._db.executemany("UPDATE files SET reader_version = ? WHERE id = ?", [(READ_AGAIN, id) for id in ids])

    def move(self, id: int, path: str) -> None:
        """Gives a file another path below its root; a row of that path is replaced."""
        values = [to_column(path), stem_of(path), id]
        self._db.execute("UPDATE OR REPLACE files SET path = ?, stem = ? WHERE id = ?", values)

    def set_state(self, ids: Iterable[int], state: str) -> None:
        """Marks files as ``present`` or ``corrupt``."""
        self._db.executemany("UPDATE files SET state = ? WHERE id = ?", [(state, id) for id in ids])

    def set_missing(self, ids: Iterable[int]) -> None:
        """Marks files as ``missing``; those that were not so far were last seen by the last scan."""
        scanned = "(SELECT coalesce(scanned_at, '') FROM roots WHERE roots.id = root_id)"
        self._db.executemany(
            f"UPDATE files SET last_seen = max(coalesce(last_seen, ''), {scanned}), state = 'missing' "
            "WHERE id = ? AND state <> 'missing'",
            [(id,) for id in ids],
        )

    def counts(self) -> tuple[int, int, int]:
        """Returns the number of files that hold a usable network, of those that are missing, and of all others."""
        kinds = "state = 'missing' AS is_missing, content_hash NOTNULL AS is_network"
        counted = "total(is_network AND NOT is_missing), total(is_missing), total(NOT (is_network OR is_missing))"
        holding, missing, others = self._db.execute(f"SELECT {counted} FROM (SELECT {kinds} FROM files)").fetchone()
        return int(holding), int(missing), int(others)

    # --- queries: files as rows with their full `path`, existing ones first

    def rows(self) -> list[Row]:
        """Returns all files."""
        return self._rows("1")

    def with_bytes(self, sha256: str) -> list[Row]:
        """Returns the files that had this hash when they were last read."""
        return self._rows("files.sha256 = ?", [sha256])

    def hashes(self) -> set[str]:
        """Returns the hashes that files had when they were last read."""
        return {sha256 for (sha256,) in self._db.execute("SELECT DISTINCT sha256 FROM files WHERE sha256 NOTNULL")}

    def looking_like(self, size_bytes: int, mtime_ns: int) -> list[Row]:
        """Returns the files that had this size and time when they were last read; what was moved keeps both."""
        return self._rows("files.size_bytes = ? AND files.mtime_ns = ?", [size_bytes, mtime_ns])

    def converted_from(self, sha256: str) -> list[Row]:
        """Returns the files of networks that were converted from a file with this hash; see `CONVERTED`."""
        return self._rows(f"files.source_sha256 = ? AND {CONVERTED}", [sha256])

    def missing(self) -> list[Row]:
        """Returns the files that no longer exist."""
        return self._rows("files.state = 'missing'")

    def of_root(self, root: Root) -> list[Row]:
        """Returns the files under a root."""
        return self._rows("files.root_id = ?", [root.id])

    def of_kind(self, kind: str) -> list[Row]:
        """Returns the files of a kind: ``"hypernetwork"``, ``"checkpoint"`` and others."""
        return self._rows("files.kind = ?", [kind])

    def of_networks(self) -> list[Row]:
        """Returns the files that hold a usable network."""
        return self._rows("files.content_hash NOTNULL")

    def at(self, path: str) -> list[Row]:
        """Returns the file at a full path, once for each root that it was found under."""
        known = self.named(PurePath(path).stem)
        return [row for row in known if row["path"] == path] or [
            row for row in known if spelled(row["path"]) == spelled(path)
        ]

    def at_typed(self, name: str) -> list[Row]:
        """Returns the file at a path as a person types it: of one behind a link to its folder, the one under the link.

        The path that was scanned counts before the one that the link leads to.
        """
        folder, own = os.path.split(name)
        return self.at(os.path.abspath(name)) or self.at(os.path.join(os.path.realpath(folder), own))

    def named(self, stem: str) -> list[Row]:
        """Returns the files with this stem, with a network or not: as it is spelled, else in another normal form."""
        texts = spellings(stem)
        return self._rows("files.stem = ?", texts[:1]) or self._rows(f"files.stem IN ({_marks(texts)})", texts)

    def named_like(self, stem: str) -> list[Row]:
        """Returns the files with this stem, or with it and a number, as a download has where the name was taken."""
        text = text_of(stem)
        numbered = "files.stem >= ? || '-' AND files.stem < ? || '.'"  # the character after a hyphen: an index has it
        return self._rows(f"files.stem = ? OR ({numbered})", [text] * 3)

    def with_alias(self, alias: str) -> list[Row]:
        """Returns the files of the network with this alias."""
        texts = spellings(alias)
        of_alias = f"alias IN ({_marks(texts)})"
        known_so = f"SELECT content_hash FROM networks JOIN aliases ON network_id = networks.id WHERE {of_alias}"
        return self._rows(f"files.content_hash IN ({known_so})", texts)

    def contents_called(self, name: str) -> set[str]:
        """Returns the contents of the files that `named` or `with_alias` gives; of thousands, too."""
        texts = spellings(name)
        for tried in (texts[:1], texts):
            query = f"SELECT DISTINCT content_hash FROM files WHERE stem IN ({_marks(tried)})"
            if named := {content for (content,) in self._db.execute(query, tried)}:
                break
        aliased = self._db.execute(
            "SELECT networks.content_hash FROM networks JOIN aliases ON network_id = networks.id "
            f"JOIN files ON files.content_hash = networks.content_hash WHERE alias IN ({_marks(texts)})",
            texts,
        )
        return {*(content for content in named if content is not None), *(content for (content,) in aliased)}

    def with_own_name(self, name: str) -> list[Row]:
        """Returns the files of networks that call themselves so."""
        texts = spellings(name)
        known_so = f"SELECT content_hash FROM networks WHERE name IN ({_marks(texts)})"
        return self._rows(f"files.content_hash IN ({known_so})", texts)

    def with_hash(
        self,
        *,
        content: str | None = None,
        sha256: str | None = None,
        autov1: str | None = None,
        source_sha256: str | None = None,
    ) -> list[Row]:
        """Returns the files of networks that have any of these hashes.

        Args:
            content: first digits of the content hash, after ``h1:``.
            sha256: first digits of the whole file's hash.
            autov1: A1111's old hash, all 8 digits.
            source_sha256: first digits of the hash of the file that it was converted from. This is the file's own
                claim, which anybody can forge.
        """
        begun = {"content_hash": content and f"h1:{content}", "sha256": sha256, "source_sha256": source_sha256}
        wanted = {
            f"files.{column} >= ? AND files.{column} < ? || 'g'": [digits, digits]  # a range, which an index can answer
            for column, digits in begun.items()
            if digits is not None
        }
        if autov1 is not None:
            wanted["files.autov1 = ?"] = [autov1]
        known_so = " OR ".join(wanted) or "0"
        return self._rows(f"files.content_hash NOTNULL AND ({known_so})", chain(*wanted.values()))

    def holding(self, content_hashes: list[str]) -> list[Row]:
        """Returns the files that hold any of these contents."""
        found = []
        for part in batches(content_hashes):
            found += self._rows(f"files.content_hash IN ({_marks(part)})", part)
        return found

    def stems(self) -> set[str]:
        """Returns the names of all files that hold a network."""
        return {stem for (stem,) in self._db.execute("SELECT stem FROM files WHERE content_hash NOTNULL")}

    def _rows(self, where: str, parameters: Iterable[Any] = ()) -> list[Row]:
        cursor = self._db.execute(
            "SELECT files.*, roots.path AS root FROM files JOIN roots ON roots.id = files.root_id "
            f"WHERE {where} ORDER BY files.state = 'present' DESC, files.stem, files.id",
            list(parameters),
        )
        names = [column[0] for column in cursor.description]
        return [_file_row(dict(zip(names, values, strict=True))) for values in cursor]

    def forget(self, ids: Iterable[int]) -> None:
        """Removes the rows of files; see `Networks.forget_fileless` for the networks that only they held."""
        self._db.executemany("DELETE FROM files WHERE id = ?", [(id,) for id in ids])


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _file_row(row: Row) -> Row:
    root, path = Path(from_column(row.pop("root"))), from_column(row["path"])
    row["path"] = str(root / path)
    for column, (_, kind) in _KINDS.items():
        if not isinstance(row[column], kind):
            raise broken("files", column, row["path"])
    row["warnings"] = from_json(row["warnings"], "files", "warnings", row["path"])
    del row["root_id"], row["sidecars_seen"]
    return row
