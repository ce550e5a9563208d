"""Networks by content, with their tags, notes and aliases, the search over them, and how they were trained."""

from __future__ import annotations

import json
import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from sqlite3 import Connection
from typing import Any

from hnetkit.errors import RegistryError, UsageError
from hnetkit.limits import parse_json
from hnetkit.registry.columns import (
    COLUMNS,
    Row,
    batches,
    broken,
    from_json,
    is_sound,
    lost,
    now,
    spelled,
    spellings,
    text_of,
    to_json,
    upsert,
)
from hnetkit.text import normal_form, shorten, without_markup

SEARCH = """
CREATE VIRTUAL TABLE network_text USING fts5 (
    names, tags, words, site, note, description, trained_on, build, base_model,
    prefix = '2 3', tokenize = 'unicode61 remove_diacritics 2'
)
"""
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
MOST_WORDS = 200
"""Words of a search, each once; of scripts without spaces, characters."""
_WORD = re.compile(r"\w+")
_ENDED = re.compile(r"\w[!-/:-@\[-^`{-~]\W*$")  # the last word of a query, with a mark of ASCII at its end: c++, 100%
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # as authors of files join words
# scripts that have no spaces between words, or endings on them: each character is a word of the index, and what is
# searched is a phrase of them
_UNSPACED = re.compile(
    "([\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])"
)
_NUMBERS = ("size_bytes", "copies", "step")  # columns of the view `library`
_MOST = 2**63 - 1  # the largest integer that SQLite holds
_ID = "SELECT id FROM networks WHERE content_hash = ?"
FILELESS = "NOT EXISTS (SELECT 1 FROM files WHERE files.content_hash = networks.content_hash)"
_SITES = """
SELECT models.name, versions.name, models.creator, models.remote_id, versions.base_model, models.description,
    models.tags, versions.trained_words
FROM versions JOIN models ON models.id = versions.model_id
WHERE versions.id IN (SELECT version_id FROM network_versions WHERE network_id = ?) ORDER BY versions.id
"""
_IMPORTED_STEMS = "SELECT DISTINCT stem FROM imported_files WHERE network_id = ?"
_SAID = "SELECT said FROM sidecars JOIN files ON files.id = file_id WHERE content_hash = ? ORDER BY file_id"
# a word in a name counts for more than one in a description
_RANKED = """
SELECT networks.id, content_hash FROM (
    SELECT rowid, bm25(network_text, 10, 6, 6, 6, 3, 1, 2, 1, 1) AS worth FROM network_text WHERE network_text MATCH ?
) AS found JOIN networks ON networks.id = found.rowid ORDER BY worth, networks.id
"""
_BY_NAME = "SELECT id, content_hash FROM networks ORDER BY name, id"
_SIGNS = ("So", "Sm", "Sk")  # categories of signs that the index has no words for: emoji, stars, arrows
_WITH_SIGN = """
SELECT rowid FROM network_text
WHERE instr(names || tags || words || site || note || description || trained_on || build || base_model, ?)
"""
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

    def __init__(self, db: Connection) -> None:
        self._db = db

    def put(self, row: Mapping[str, Any]) -> None:
        """Stores a network; its tags, note and aliases stay."""
        values = {key: _plain(row[key]) for key in _PLAIN} | {key: to_json(row[key]) for key in _JSON}
        upsert(self._db, "networks", {"content_hash": row["content_hash"]}, values)

    def is_known(self, content_hash: str) -> bool:
        return self._db.execute(_ID, [content_hash]).fetchone() is not None

    def id_of(self, content_hash: str) -> int:
        id: int = self._db.execute(_ID, [content_hash]).fetchone()[0]
        return id

    def rows(self) -> list[Row]:
        """Returns all networks, by name."""
        return self._rows("1")

    def count(self) -> int:
        """Returns the number of known networks."""
        count: int = self._db.execute("SELECT count(*) FROM networks").fetchone()[0]
        return count

    def listing(self, *columns: str, of: Sequence[str] | None = None) -> list[Row]:
        """Returns columns of the view `library`, which has one row for each network.

        Args:
            columns: of the view.
            of: content hashes of the networks; None for all.

        Raises:
            RegistryError: what they have of a network is damaged.
        """
        if of is None:
            found = self._listed(columns, "1", ())
            self._require_read(found, [column for column in _JSON if column in columns])
            return found
        return [
            row
            for part in batches(of)
            for row in self._listed(columns, f"content_hash IN ({','.join('?' * len(part))})", part)
        ]

    def _listed(self, columns: Sequence[str], where: str, parameters: Sequence[str]) -> list[Row]:
        cursor = self._db.execute(f"SELECT {', '.join(columns)} FROM library WHERE {where}", list(parameters))
        found = cursor.fetchall()
        for column, values in zip(columns, zip(*found, strict=True), strict=False):  # none for none
            kinds = {int if column in _NUMBERS else str, type(None)}
            if not kinds.issuperset(map(type, values)):  # SQLite enforces no types
                row = next(row for row, value in zip(found, values, strict=True) if type(value) not in kinds)
                raise broken("files", column, shorten(row))
        return [dict(zip(columns, values, strict=True)) for values in found]

    def _require_read(self, found: Sequence[Row], columns: Iterable[str]) -> None:
        """Raises RegistryError where a text of these columns is no JSON of its kind; most networks have few of them."""
        for column in columns:
            try:
                for text in {row[column] for row in found} - {None}:
                    from_json(text, "networks", column, shorten(text))
            except RegistryError:
                self._require_sound([column])  # by the network's name, where SQLite sees it, too
                raise

    def _require_sound(self, columns: Sequence[str]) -> None:
        if columns:
            sound = " AND ".join(is_sound("networks", column) for column in columns)
            self._rows(f"NOT ({sound})")

    def of_width(self, width: int) -> set[str]:
        """Returns the content hashes of the networks that change contexts of a width."""
        self._require_sound(["widths"])
        among = "EXISTS (SELECT 1 FROM json_each(widths) WHERE value = ?)"
        return {hash for (hash,) in self._db.execute(f"SELECT content_hash FROM networks WHERE {among}", [width])}

    def widths(self) -> set[int]:
        """Returns the widths of the contexts that networks change."""
        self._require_sound(["widths"])
        return {width for (width,) in self._db.execute("SELECT DISTINCT value FROM networks, json_each(widths)")}

    def tagged(self, tag: str) -> set[str]:
        """Returns the content hashes of the networks with a tag: the user's, a site's or a sidecar's; in any case."""
        wanted = spelled(tag).casefold()
        return {
            content_hash for content_hash, tags in self._tags() if wanted in {spelled(one).casefold() for one in tags}
        }

    def tags(self) -> set[str]:
        """Returns all tags of networks: the user's, the sites' and the sidecars'."""
        return {tag for _, tags in self._tags() for tag in tags}

    def own_tags(self) -> set[str]:
        """Returns the user's tags."""
        return {tag for (tag,) in self._db.execute("SELECT DISTINCT tag FROM tags")}

    def _tags(self) -> Iterator[tuple[str, list[str]]]:
        """Yields content hashes with tags of theirs; one may come several times."""
        own = self._db.execute("SELECT content_hash, json_array(tag) FROM tags JOIN networks ON id = network_id")
        of_sites = self._db.execute(
            "SELECT content_hash, models.tags FROM network_versions JOIN networks ON networks.id = network_id "
            "JOIN versions ON versions.id = version_id JOIN models ON models.id = model_id WHERE models.tags NOTNULL"
        )
        of_sidecars = self._db.execute(
            "SELECT content_hash, said FROM sidecars JOIN files ON files.id = file_id WHERE content_hash NOTNULL"
        )
        for content_hash, text in chain(own, of_sites, of_sidecars):
            said = _lenient(text)
            tags = said.get("tags") if isinstance(said, dict) else said
            if isinstance(tags, list):
                yield content_hash, list(map(str, tags))

    def with_checkpoint(self) -> list[Row]:
        """Returns the networks that state the hash of the checkpoint that they were trained on."""
        return self._rows("sd_checkpoint NOTNULL")

    def of_content(self, content_hash: str) -> Row:
        """Returns the network with a content that files hold, or that is known otherwise.

        Raises:
            RegistryError: another program deleted its row.
        """
        found = self._rows("content_hash = ?", [content_hash])
        if not found:
            raise lost(content_hash)
        return found[0]

    def of_contents(self, content_hashes: list[str]) -> list[Row]:
        """Returns the known networks among these contents."""
        rows = []
        for part in batches(content_hashes):
            rows += self._rows(f"content_hash IN ({','.join('?' * len(part))})", part)
        return rows

    def with_alias(self, alias: str) -> list[Row]:
        """Returns the network with this alias, as a list of one or none."""
        texts = spellings(alias)
        marks = ",".join("?" * len(texts))
        return self._rows(f"id IN (SELECT network_id FROM aliases WHERE alias IN ({marks}))", texts)

    def without_file(
        self, *, alias: str | None = None, name: str | None = None, digits: str | None = None
    ) -> list[Row]:
        """Returns the networks in no file, as an import leaves them, of which all of this is true.

        Args:
            alias: one of their aliases.
            name: what they call themselves.
            digits: the first digits of their content hash, after ``h1:``.
        """
        tests: list[str] = []
        values: list[Any] = []
        if alias is not None:
            tests.append(f"id IN (SELECT network_id FROM aliases WHERE alias IN ({_marks(alias)}))")
            values += spellings(alias)
        if name is not None:
            tests.append(f"name IN ({_marks(name)})")
            values += spellings(name)
        if digits is not None:
            tests.append("content_hash >= ? AND content_hash < ? || 'g'")
            values += [f"h1:{digits}"] * 2
        return self._rows(" AND ".join([FILELESS, *tests]), values)

    def aliases(self) -> set[str]:
        """Returns the aliases of all networks."""
        return {alias for (alias,) in self._db.execute("SELECT alias FROM aliases")}

    def search(self, text: str) -> list[Row]:
        """Returns the networks of which every word is shown somewhere, best match first.

        Searched are names, tags, notes, what sites and sidecars say (title, creator, tags, trigger words, description),
        the checkpoint, the base model and the activation. The last word may be incomplete, unless a mark follows it.
        Punctuation is ignored otherwise: any input is a search for its words. Words of scripts without spaces between
        them are found inside of others, and so are signs that are no words, such as emoji.

        Raises:
            UsageError: it has more words than `MOST_WORDS`.
        """
        order = {id: rank for rank, (id, _) in enumerate(self._matching(text))}
        rows = []
        for ids in batches(list(order)):
            rows += self._rows(f"id IN ({','.join('?' * len(ids))})", ids)
        return sorted(rows, key=lambda row: order[row["id"]])

    def contents_matching(self, text: str) -> list[str]:
        """Returns the content hashes of the networks that `search` finds, best match first; raises as it does."""
        return [content for _, content in self._matching(text)]

    def _matching(self, text: str) -> list[tuple[int, str]]:
        """Returns ids and content hashes of the networks of which every word is shown somewhere, best match first."""
        text = normal_form("NFKC", text_of(text))
        *others, last = [f'"{_apart(word)}"' for word in _WORD.findall(text)] or [""]
        words = list(dict.fromkeys(others))
        words += [last if _ENDED.search(text) else f"{last}*"] if last and last not in words else []
        signs = {sign for sign in text if not sign.isascii() and unicodedata.category(sign) in _SIGNS}
        if (count := sum(len(word.split()) for word in words) + len(signs)) > MOST_WORDS:
            raise UsageError(f"a search of {count:,} words", hint=f"use at most {MOST_WORDS}")
        query = " ".join(words)
        if not words and not signs:
            return []
        found = self._db.execute(_RANKED, [query]) if words else self._db.execute(_BY_NAME)
        having = [{id for (id,) in self._db.execute(_WITH_SIGN, [sign])} for sign in signs]
        return [row for row in found if all(row[0] in ids for ids in having)]

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
        self._db.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", [(id, spelled(tag)) for tag in tags])

    def remove_tags(self, id: int, tags: Iterable[str]) -> None:
        self._remove("tag", id, tags)

    def _remove(self, what: str, id: int, names: Iterable[str]) -> None:
        texts = [(id, text) for name in names for text in spellings(name)]
        table = {"tag": "tags", "alias": "aliases"}[what]
        self._db.executemany(f"DELETE FROM {table} WHERE network_id = ? AND {what} = ?", texts)

    def note_of(self, id: int) -> str | None:
        """Returns the note; None without one."""
        row: tuple[str] | None = self._db.execute("SELECT note FROM notes WHERE network_id = ?", [id]).fetchone()
        return None if row is None else row[0]

    def set_note(self, id: int, note: str) -> None:
        """Replaces the note; an empty one removes it."""
        self._db.execute("DELETE FROM notes WHERE network_id = ?", [id])
        if note:
            self._db.execute("INSERT INTO notes VALUES (?, ?)", [id, text_of(note)])

    def set_alias(self, id: int, alias: str) -> None:
        """Gives a network an alias. One that another network has stays with that one."""
        self._db.execute("INSERT OR IGNORE INTO aliases VALUES (?, ?)", [spelled(alias), id])

    def remove_aliases(self, id: int, aliases: Iterable[str]) -> None:
        self._remove("alias", id, aliases)

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
        self._drop(f"content_hash = ? AND {FILELESS} AND id NOT IN ({worded}) AND NOT {parent}", [content_hash])

    def fileless(self) -> list[str]:
        """Returns the contents of the networks in no file, which only an import, tags, notes or aliases keep."""
        return [content for (content,) in self._db.execute(f"SELECT content_hash FROM networks WHERE {FILELESS}")]

    def forget_fileless(self, among: Iterable[str] | None = None) -> None:
        """Removes networks that are in no file any more.

        Args:
            among: content hashes that may be removed; None for all, including those from an import.
        """
        if among is None:
            self._drop(FILELESS)
            return
        for content_hash in among:
            self._drop(f"content_hash = ? AND {FILELESS}", [content_hash])

    def _drop(self, condition: str, parameters: Iterable[Any] = ()) -> None:
        self._db.execute(f"DELETE FROM networks WHERE {condition}", list(parameters))

    def is_searchable(self) -> bool:
        """Whether the search index is intact, with an entry for every network and for nothing else.

        Networks that changed since and are known to have to be put into it do not count.
        """
        ours = "SELECT id FROM networks"
        indexed = "SELECT id FROM network_text_content"
        waiting = "SELECT network_id FROM unindexed"
        try:
            (lost,) = self._db.execute(
                f"SELECT EXISTS (SELECT * FROM ({ours} EXCEPT {indexed} EXCEPT {waiting})) "
                f"+ EXISTS ({indexed} EXCEPT {ours})"
            ).fetchone()
            self._db.execute("SELECT count(*) FROM network_text WHERE network_text MATCH 'a*'").fetchone()
        except sqlite3.DatabaseError:
            return False
        return not lost

    def rebuild_search(self) -> None:
        """Rebuilds the search index from the networks."""
        self._db.execute("DROP TABLE IF EXISTS network_text")
        self._db.execute(SEARCH)
        self._db.execute("INSERT INTO unindexed SELECT id FROM networks")

    def has_unindexed(self) -> bool:
        """Whether networks changed since they were put into the search index."""
        return self._db.execute("SELECT 1 FROM unindexed LIMIT 1").fetchone() is not None

    def index(self) -> None:
        """Updates the search index for changed networks; `Registry.write` does so once, before it commits."""
        for (id,) in self._db.execute("SELECT DISTINCT network_id FROM unindexed").fetchall():
            self._db.execute("DELETE FROM network_text WHERE rowid = ?", [id])
            for row in self._unread("id = ?", [id]):
                texts = self._shown(row)
                columns, marks = ", ".join(texts), ", ".join("?" * len(texts))
                self._db.execute(
                    f"INSERT INTO network_text (rowid, {columns}) VALUES (?, {marks})",
                    [id, *map(_indexed, texts.values())],
                )
        self._db.execute("DELETE FROM unindexed")

    def _shown(self, row: Row) -> dict[str, str]:
        """Returns the texts of a network that people see, by the column of the search index."""
        of_files = self._db.execute("SELECT DISTINCT stem FROM files WHERE content_hash = ?", [row["content_hash"]])
        stems = [stem for (stem,) in of_files] or [stem for (stem,) in self._db.execute(_IMPORTED_STEMS, [row["id"]])]
        sites = self._db.execute(_SITES, [row["id"]]).fetchall()
        said = [_lenient(text) for (text,) in self._db.execute(_SAID, [row["content_hash"]])]
        titles, versions, creators, models, bases, descriptions = (
            [site[index] for site in sites] for index in range(6)
        )
        names = [row["name"], *stems, *row["aliases"]]
        return {
            "names": _joined(names, [_CAMEL.sub(" ", name).replace("_", " ") for name in names]),
            "tags": _joined(row["tags"], *(_lenient(site[6]) for site in sites), *_of(said, ("tags",))),
            "words": _joined(*(_lenient(site[7]) for site in sites), *_of(said, ("activation_text", "negative_text"))),
            "site": _joined(titles, versions, creators, models, *_of(said, ("title", "model_id"))),
            "note": _joined([row["note"]], *_of(said, ("notes",))),
            "description": without_markup(_joined(descriptions, *_of(said, ("description",)))),
            "trained_on": _joined([row["sd_checkpoint_name"], row["sd_checkpoint"]]),
            "build": _joined([row["activation"], "layer norm" if row["layer_norm"] else None]),
            "base_model": _joined([row["base_model"]], bases, *_of(said, ("sd_version",))),
        }


def _marks(name: str) -> str:
    return ",".join("?" * len(spellings(name)))


def _apart(text: str) -> str:
    """Returns a text with spaces around each character of a script that has none between words."""
    return text if text.isascii() else _UNSPACED.sub(r" \1 ", text)


def _indexed(text: str) -> str:
    return _apart(normal_form("NFKC", text_of(text)))


def _joined(*texts: Any) -> str:
    """Returns all texts and numbers of lists of any values, one a line."""
    parts = [part for values in texts if isinstance(values, list) for part in values]
    return "\n".join(str(part) for part in parts if isinstance(part, str | int))


def _lenient(text: Any) -> Any:
    """Returns the value of a JSON column; an empty one if it is damaged, which does not matter to a search."""
    try:
        return parse_json(text)
    except (ValueError, TypeError):
        return {}


def _of(said: list[Any], keys: Iterable[str]) -> list[list[Any]]:
    """Returns what sidecars say under any of these keys, as lists."""
    found = [one.get(key) for one in said if isinstance(one, dict) for key in keys]
    return [value if isinstance(value, list) else [value] for value in found]


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

    def __init__(self, db: Connection) -> None:
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
