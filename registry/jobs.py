"""What is to be fetched, how far it is, and what hnetkit itself put on the disk.

A job outlives the process that works on it: whoever finds it unfinished and its owner dead goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from hnetkit.registry.columns import from_column, now, text_of, to_column, upsert

UNFINISHED = ("queued", "fetching", "installing")


@dataclass(frozen=True, slots=True)
class Job:
    """One file that is to be fetched.

    Attributes:
        key: what the file is, for ever: ``civitai:920301``, ``hf:owner/repo@commit:path``, ``url:...``.
        source: ``"civitai"``, ``"huggingface"`` or ``"url"``.
        url: the site's lasting address, never a signed one.
        name, suffix: to install it under; the name is a stem that any file system and any prompt can hold.
        folder: to install it in, absolute.
        remote_file_id: its row among the sites' files, None where no site lists it.
        sha256, size_bytes: as the site says; None where it does not.
        state: ``queued``, ``fetching``, ``installing``; ``done``, ``skipped`` (nothing to fetch now), ``refused``
            (came, and is no usable network), ``failed``.
        owner: the worker that has it.
        code, reason: why it was skipped, refused or failed.
        not_before: ISO 8601: it cannot be had earlier.
        updated_at: ISO 8601: when its state changed last.
    """

    id: int
    key: str
    source: str
    url: str
    name: str
    suffix: str
    folder: str
    remote_file_id: int | None
    sha256: str | None
    size_bytes: int | None
    state: str
    owner: str | None
    attempts: int
    not_before: str | None
    code: str | None
    reason: str | None
    updated_at: str


def _text(said: str | None) -> str | None:
    return text_of(said) if said else None


_COLUMNS = ", ".join(Job.__slots__)


def _job(row: dict[str, Any]) -> Job:
    return Job(**row | {"folder": from_column(row["folder"])})


class Jobs:
    """The tables `jobs` and `installs`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, key: str, values: Mapping[str, Any]) -> Job:
        """Returns the job of this key, made or, where one is there, brought up to date; its state stays."""
        values = {name: to_column(value) if name == "folder" else value for name, value in values.items()}
        first = {"state": "queued", "created_at": now(), "updated_at": now()}
        return self.get(upsert(self._db, "jobs", {"key": key}, values, first=first))

    def rows(self) -> list[Job]:
        """Returns all jobs, the oldest first."""
        return self._rows("1")

    def of(self, key: str, *states: str) -> list[Job]:
        """Returns the job of a key where it is in one of these states; without any, in whichever."""
        return [job for job in self._rows("key = ?", [key]) if not states or job.state in states]

    def get(self, id: int) -> Job:
        return self._rows("id = ?", [id])[0]

    def _rows(self, where: str, parameters: Iterable[Any] = ()) -> list[Job]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {where} ORDER BY id", list(parameters))
        return [_job(dict(zip(Job.__slots__, row, strict=True))) for row in rows]

    def requeue(self, id: int) -> None:
        """Takes up a finished job again; one that somebody is at stays theirs."""
        self._queue(f"id = ? AND state NOT IN {UNFINISHED}", [id])

    def release(self, id: int, owner: str) -> None:
        """Leaves an unfinished job of `owner` to whoever comes next."""
        self._queue(f"id = ? AND owner = ? AND state IN {UNFINISHED}", [id, owner])

    def _queue(self, where: str, parameters: Iterable[Any]) -> None:
        self._db.execute(
            "UPDATE jobs SET state = 'queued', owner = NULL, code = NULL, reason = NULL, not_before = NULL, "
            f"updated_at = ? WHERE {where}",
            [now(), *parameters],
        )

    def claim(self, id: int, owner: str, instead_of: str | None) -> bool:
        """Gives an unfinished job to `owner`; False where another one has it than `instead_of`."""
        cursor = self._db.execute(
            "UPDATE jobs SET state = 'fetching', owner = ?, attempts = attempts + 1, updated_at = ? "
            f"WHERE id = ? AND state IN {UNFINISHED} AND owner IS ?",
            [owner, now(), id, instead_of],
        )
        return cursor.rowcount == 1

    def set_state(
        self, id: int, state: str, *, code: str | None = None, reason: str | None = None, not_before: str | None = None
    ) -> None:
        """Moves a job on; a finished one has no owner."""
        owner = "owner" if state in UNFINISHED else "NULL"
        self._db.execute(
            f"UPDATE jobs SET state = ?, code = ?, reason = ?, not_before = ?, updated_at = ?, owner = {owner} "
            "WHERE id = ?",
            [state, code, _text(reason), _text(not_before), now(), id],
        )

    def set_hash(self, id: int, sha256: str | None, size_bytes: int | None) -> None:
        """Stores what the site says now of a file that it replaced."""
        self._db.execute("UPDATE jobs SET sha256 = ?, size_bytes = ? WHERE id = ?", [sha256, size_bytes, id])

    # --- what lies on the disk because of a job

    def add_install(self, path: str, job: int | None, kind: str, sha256: str | None) -> None:
        """Notes that hnetkit put a file there; `kind` is ``network``, ``preview``, ``sidecar`` or ``quarantine``."""
        self._db.execute(
            "INSERT OR REPLACE INTO installs VALUES (?, ?, ?, ?, ?)", [to_column(path), job, kind, sha256, now()]
        )

    def reserve(self, path: str, job: int, sha256: str) -> bool:
        """Notes that this job is about to put a network there; False where another one did, or is about to."""
        cursor = self._db.execute(
            "INSERT INTO installs VALUES (?, ?, 'network', ?, ?) ON CONFLICT DO UPDATE SET sha256 = excluded.sha256, "
            "installed_at = excluded.installed_at WHERE job_id = excluded.job_id",
            [to_column(path), job, sha256, now()],
        )
        return cursor.rowcount == 1

    def installs(self, *, job: int | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """Returns what hnetkit put on the disk, by path: for one job, and of one kind, where that is asked."""
        wanted = {column: value for column, value in (("job_id", job), ("kind", kind)) if value is not None}
        where = " AND ".join(f"{column} = ?" for column in wanted) or "1"
        cursor = self._db.execute(
            f"SELECT path, job_id, kind, sha256 FROM installs WHERE {where} ORDER BY path", list(wanted.values())
        )
        return [
            {"path": from_column(path), "job_id": job, "kind": kind, "sha256": sha} for path, job, kind, sha in cursor
        ]

    def forget_install(self, path: str) -> None:
        """Forgets that hnetkit put a file there."""
        self._db.execute("DELETE FROM installs WHERE path = ?", [to_column(path)])
