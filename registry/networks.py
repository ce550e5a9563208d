"""Networks by content, with their tags, notes and aliases, the search over them, and how they were trained."""

from __future__ import annotations

import json
import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from hnetkit.registry.columns import COLUMNS, Row, batches, from_json, now, text_of, to_json, upsert
from hnetkit.registry.migrations import SEARCH

_JSON = tuple(COLUMNS["networks"])
_PLAIN = (
    "name",
    "activation",
    "layer_norm",
    "activate_output",
    "dtype",
    "parameters",
    "base_model",
    "step",
    "sd_checkpoint",
    "sd_checkpoint_name",
)
_WORD = re.compile(r"\w+")
_MOST = 2**63 - 1  # the largest integer that SQLite holds
_ID = "SELECT id FROM networks WHERE content_hash = ?"
_FILELESS = "NOT EXISTS (SELECT 1 FROM files WHERE files.content_hash = networks.content_hash)"
# one row per network
_SELECT = """
SELECT networks.*,
    (SELECT json_group_array(tag) FROM (SELECT tag FROM tags WHERE network_id = networks.id ORDER BY tag)) AS tags,
    (SELECT note FROM notes WHERE network_id = networks.id) AS note,
    (SELECT json_group_array(alias) FROM (SELECT alias FROM aliases WHERE network_id = networks.id ORDER BY alias))
        AS aliases
FROM networks
"""


class Networks:
    """The tables `networks`, `tags`, `notes`, `aliases` and the search over them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._stale: set[int] = set()  # networks whose entry in the search index is outdated

    def put(self, row: Mapping[str, Any]) -> None:
        """Stores a network; its tags, note and aliases stay."""
        values = {key: _plain(row[key]) for key in _PLAIN} | {key: to_json(row[key]) for key in _JSON}
        self._stale.add(upsert(self._db, "networks", {"content_hash": row["content_hash"]}, values))

    def refresh(self, content_hash: str) -> None:
        """Has the search read again what is said of a network, as its sidecars changed."""
        self._stale.update(id for (id,) in self._db.execute(_ID, [content_hash]))

    def is_known(self, content_hash: str) -> bool:
        return self._db.execute(_ID, [content_hash]).fetchone() is not None

    def has_note(self, id: int) -> bool:
        return self._db.execute("SELECT 1 FROM notes WHERE network_id = ?", [id]).fetchone() is not None

    def id_of(self, content_hash: str) -> int:
        id: int = self._db.execute(_ID, [content_hash]).fetchone()[0]
        return id

    def rows(self) -> list[Row]:
        """Returns all networks, by name."""
        return self._rows("1")

    def with_checkpoint(self) -> list[Row]:
        """Returns the networks that state the hash of the checkpoint that they were trained on."""
        return self._rows("sd_checkpoint NOTNULL")

    def of_contents(self, content_hashes: list[str]) -> list[Row]:
        """Returns the known networks among these contents."""
        rows = []
        for part in batches(content_hashes):
            rows += self._rows(f"content_hash IN ({','.join('?' * len(part))})", part)
        return rows

    def with_alias(self, alias: str) -> list[Row]:
        """Returns the network with this alias, as a list of one or none."""
        return self._rows("id IN (SELECT network_id FROM aliases WHERE alias = ?)", [text_of(alias)])

    def aliases(self) -> set[str]:
        """Returns the aliases of all networks."""
        return {alias for (alias,) in self._db.execute("SELECT alias FROM aliases")}

    def search(self, text: str) -> list[Row]:
        """Returns the networks whose names, tags, note, checkpoint or base model contain every word, best match first.

        The last word may be incomplete. Punctuation is ignored: any input is a search for its words.
        """
        words = _WORD.findall(unicodedata.normalize("NFC", text))
        if not words:
            return []
        query = " ".join(f'"{word}"' for word in words) + "*"
        ranked = "(SELECT rowid, rank FROM network_text WHERE network_text MATCH ?) AS found"
        cursor = self._db.execute(f"SELECT rowid FROM {ranked} ORDER BY rank, rowid", [query])
        order = {id: rank for rank, (id,) in enumerate(cursor)}
        rows = []
        for ids in batches(list(order)):
            rows += self._rows(f"id IN ({','.join('?' * len(ids))})", ids)
        return sorted(rows, key=lambda row: order[row["id"]])

    def _rows(self, where: str, parameters: Iterable[Any] = ()) -> list[Row]:
        return [_network_row(row) for row in self._unread(where, parameters)]

    def _unread(self, where: str, parameters: Iterable[Any]) -> list[Row]:
        """Networks as rows with unparsed JSON columns, so that a damaged one does not matter."""
        cursor = self._db.execute(f"{_SELECT} WHERE {where} ORDER BY name, id", list(parameters))
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, values, strict=True)) for values in cursor]
        return [row | {key: json.loads(row[key]) for key in ("tags", "aliases")} for row in rows]

    # --- tags, notes, aliases

    def add_tags(self, id: int, tags: Iterable[str]) -> None:
        self._db.conn.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", [(id, text_of(tag)) for tag in tags])
        self._stale.add(id)

    def remove_tags(self, id: int, tags: Iterable[str]) -> None:
        self._db.conn.executemany(
            "DELETE FROM tags WHERE network_id = ? AND tag = ?", [(id, text_of(tag)) for tag in tags]
        )
        self._stale.add(id)

    def set_note(self, id: int, note: str) -> None:
        """Replaces the note; an empty one removes it."""
        self._db.execute("DELETE FROM notes WHERE network_id = ?", [id])
        if note:
            self._db.execute("INSERT INTO notes VALUES (?, ?)", [id, text_of(note)])
        self._stale.add(id)

    def set_alias(self, id: int, alias: str) -> None:
        """Gives a network an alias, which is taken from any other network."""
        alias = text_of(alias)
        former = self._db.execute("SELECT network_id FROM aliases WHERE alias = ?", [alias]).fetchone()
        self._db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?)", [alias, id])
        self._stale |= {id, *(former or ())}

    def drop_unused(self, content_hash: str, *, for_good: bool = False) -> None:
        """Drops a network whose file got another content, if nothing else refers to it.

        It is kept while another file has it, while it has tags, a note or an alias, which should be there when the
        content comes back, while it is recorded how it was trained, and while another network was trained from it.

        Args:
            for_good: hnetkit itself replaced the content, as a continued training does: the record of this one's
                training is then no reason to keep it.
        """
        known_by = ("tags", "notes", "aliases", *(() if for_good else ("trainings",)))
        worded = " UNION ".join(f"SELECT network_id FROM {table}" for table in known_by)
        parent = "EXISTS (SELECT 1 FROM trainings WHERE started_from = content_hash)"
        self._drop(f"content_hash = ? AND {_FILELESS} AND id NOT IN ({worded}) AND NOT {parent}", [content_hash])
        self.refresh(content_hash)

    def fileless(self) -> int:
        """Returns the number of networks in no file, which only an import, tags, notes or aliases keep."""
        count: int = self._db.execute(f"SELECT count(*) FROM networks WHERE {_FILELESS}").fetchone()[0]
        return count

    def forget_fileless(self, among: Iterable[str] | None = None) -> None:
        """Removes networks that are in no file any more.

        Args:
            among: content hashes that may be removed; None for all, including those from an import.
        """
        if among is None:
            self._drop(_FILELESS)
            return
        for content_hash in among:
            self._drop(f"content_hash = ? AND {_FILELESS}", [content_hash])

    def _drop(self, condition: str, parameters: Iterable[Any] = ()) -> None:
        gone = f"SELECT id FROM networks WHERE {condition}"
        self._db.execute(f"DELETE FROM network_text WHERE rowid IN ({gone})", list(parameters))
        self._db.execute(f"DELETE FROM networks WHERE id IN ({gone})", list(parameters))

    def is_searchable(self) -> bool:
        """Whether the search index is intact, with an entry for every network and for nothing else."""
        ours = "SELECT id FROM networks"
        indexed = "SELECT id FROM network_text_content"
        try:
            (lost,) = self._db.execute(
                f"SELECT EXISTS (SELECT * FROM ({ours} EXCEPT {indexed})) + EXISTS ({indexed} EXCEPT {ours})"
            ).fetchone()
            self._db.execute("SELECT count(*) FROM network_text WHERE network_text MATCH 'a*'").fetchone()
        except sqlite3.DatabaseError:
            return False
        return not lost

    def rebuild_search(self) -> None:
        """Rebuilds the search index from the networks."""
        self._db.execute("DROP TABLE IF EXISTS network_text")
        self._db.execute(SEARCH)
        self._stale.update(id for (id,) in self._db.execute("SELECT id FROM networks"))

    def index(self) -> None:
        """Updates the search index for changed networks; `Registry.write` does so once, before it commits."""
        while self._stale:
            for row in self._unread("id = ?", [self._stale.pop()]):
                self._index(row)

    def _index(self, row: Row) -> None:
        stems = self._db.execute("SELECT DISTINCT stem FROM files WHERE content_hash = ?", [row["content_hash"]])
        names = " ".join([row["name"], *(stem for (stem,) in stems), *row["aliases"]])
        trained_on = f"{row['sd_checkpoint_name'] or ''} {row['sd_checkpoint'] or ''}"
        values = [row["id"], names.replace("_", " ") + " " + names, " ".join(row["tags"]), row["note"], trained_on]
        self._db.execute("DELETE FROM network_text WHERE rowid = ?", [row["id"]])
        self._db.execute(
            "INSERT INTO network_text (rowid, names, tags, note, trained_on, base_model) VALUES (?, ?, ?, ?, ?, ?)",
            [*values, row["base_model"]],
        )


def _plain(value: Any) -> Any:
    """A value that fits a column: a file may claim any step, which `metadata` keeps unchanged."""
    if isinstance(value, int) and abs(value) > _MOST:
        return None
    return text_of(value) if isinstance(value, str) else value


def _network_row(row: Row) -> Row:
    for key in _JSON:
        row[key] = from_json(row[key], "networks", key, row["content_hash"])
    for key in ("layer_norm", "activate_output"):
        row[key] = bool(row[key])
    return row


@dataclass(frozen=True, slots=True)
class Training:
    """The training that produced one content.

    Attributes:
        recipe: all settings of the run, as JSON.
        started_from: content hash of the network that it started from; None for a new one.
        model_name, model_hash: of the model that it was trained on; None if unknown.
        trained_at: when it was stored, UTC, ISO 8601.
    """

    recipe: Mapping[str, Any]
    started_from: str | None = None
    model_name: str | None = None
    model_hash: str | None = None
    trained_at: str | None = None


class Trainings:
    """The table `trainings`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put(self, network_id: int, training: Training) -> None:
        """Stores how a network was trained, replacing an earlier record."""
        self._db.execute(
            "INSERT OR REPLACE INTO trainings VALUES (?, ?, ?, ?, ?, ?)",
            [
                network_id,
                to_json(training.recipe),
                training.started_from,
                training.model_name and text_of(training.model_name),
                training.model_hash,
                training.trained_at or now(),
            ],
        )

    def of(self, content_hash: str) -> Training | None:
        """Returns how a network was trained; None if unknown."""
        found = self._db.execute(
            "SELECT recipe, started_from, model_name, model_hash, trained_at FROM trainings "
            "JOIN networks ON networks.id = network_id WHERE content_hash = ?",
            [content_hash],
        ).fetchone()
        if found is None:
            return None
        return Training(from_json(found[0], "trainings", "recipe", content_hash), *found[1:])

    def lineage(self, content_hash: str) -> list[str]:
        """Returns the contents that it was trained from, one after another, nearest first."""
        found: list[str] = []
        training = self.of(content_hash)
        while training is not None and training.started_from and training.started_from not in found:
            found.append(training.started_from)
            training = self.of(training.started_from)
        return found
