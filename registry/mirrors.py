"""Where else the bytes of a file are said to be, or were: addresses by sha256, without secrets."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from sqlite3 import Connection
from typing import Any

from hnetkit.registry.columns import Row, batches, now, text_of

STATES = ("listed", "served", "deleted", "other-bytes", "failed")
SOURCES = ("civarchive", "setting")
_COLUMNS = ("sha256", "url", "source", "state", "seen_at")


_ON_HUB = """
SELECT sha256, models.remote_id, versions.remote_id, remote_files.name, versions.last_seen FROM remote_files
JOIN versions ON versions.id = version_id JOIN models ON models.id = model_id
WHERE source = 'huggingface' AND models.state = 'listed' AND remote_files.state = 'listed'
"""


class Mirrors:
    """The table `mirrors`.

    A mirror is ``listed`` as long as only CivArchive tells of it, and ``deleted`` where that says so. What became of
    asking it is ``served``, ``other-bytes`` or ``failed``. Its source is ``civarchive`` or ``setting``.
    """

    def __init__(self, db: Connection) -> None:
        self._db = db

    def put(self, sha256: str, url: str, source: str, state: str, *, seen_at: str | None = None) -> None:
        """Stores a mirror as it was seen, now unless it is stated when.

        That one is listed still is no news of one that was asked; what is older than what is known is none either.
        """
        self._db.execute(
            "INSERT INTO mirrors VALUES (?, ?, ?, ?, ?) ON CONFLICT (sha256, url) DO UPDATE SET "
            "source = excluded.source, state = excluded.state, seen_at = excluded.seen_at "
            "WHERE excluded.seen_at >= seen_at AND (excluded.state <> 'listed' OR state IN ('listed', 'deleted'))",
            [sha256, text_of(url), source, state, seen_at or now()],
        )

    def of(self, sha256s: Iterable[str]) -> list[Row]:
        """Returns the mirrors of files with these hashes: those that served first, then the latest."""
        found: list[Row] = []
        for part in batches(sorted(set(sha256s))):
            marks = ",".join("?" * len(part))
            rows = self._db.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM mirrors WHERE sha256 IN ({marks}) "
                "ORDER BY state <> 'served', state <> 'listed', seen_at DESC, url",
                list(part),
            )
            found += [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        return found

    def known(self, sha256s: Iterable[str]) -> list[Row]:
        """Returns where files with these hashes may be had: mirrors that are there, and files of the hub.

        Each has ``sha256``, ``source``, ``place`` (an address, or ``hf:owner/repo@commit:path``), ``state`` and
        ``seen_at``.
        """
        wanted = set(sha256s)
        found = [
            {"sha256": row["sha256"], "source": row["source"], "place": row["url"]}
            | {"state": row["state"], "seen_at": row["seen_at"]}
            for row in self.of(wanted)
            if row["state"] in ("served", "listed")
        ]
        for part in batches(sorted(wanted)):
            cursor = self._db.execute(
                f"{_ON_HUB} AND sha256 IN ({','.join('?' * len(part))}) ORDER BY 1, 2", list(part)
            )
            for sha256, repo, commit, path, seen_at in cursor:
                place = f"hf:{repo}@{commit}:{glob.escape(path)}"
                about = {"sha256": sha256, "source": "huggingface", "place": place}
                found.append({**about, "state": "listed", "seen_at": seen_at})
        return found

    def take_in(self, row: Mapping[str, Any]) -> None:
        """Stores a mirror that an import tells of."""
        self.put(row["sha256"], row["url"], row["source"], row["state"], seen_at=row["seen_at"])
