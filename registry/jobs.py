"""Download jobs, and the files that hnetkit itself installed.

A job outlives the process that works on it: any process that finds it unfinished and its owner dead resumes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from hnetkit.registry.columns import from_column, now, text_of, to_column, upsert

UNFINISHED = ("queued", "fetching", "installing")


@dataclass(frozen=True, slots=True)
class Job:
    """One file to download.

    Attributes:
        key: permanent identity of the file: ``civitai:920301``, ``hf:owner/repo@commit:path``, ``url:...``.
        source: ``"civitai"``, ``"huggingface"`` or ``"url"``.
        url: the site's permanent URL, never a signed one.
        name, suffix: of the installed file; the name is a stem that works in any file system and any prompt.
        folder: to install it in, absolute.
        remote_file_id: its row in `remote_files`; None if no site lists it.
        sha256, size_bytes: as the site states; None if it does not.
        state: ``queued``, ``fetching``, ``installing``; ``done``, ``skipped`` (nothing to fetch now), ``refused``
            (downloaded, but not a usable network), ``failed``.
        owner: the worker that has claimed it.
        code, reason: why it was skipped, refused or failed.
        not_before: ISO 8601: the earliest time at which it is available.
        updated_at: ISO 8601: the last change of its state.
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


def _text(value: str | None) -> str | None:
    return text_of(value) if value else None


_COLUMNS = ", ".join(Job.__slots__)


def _job(row: dict[str, Any]) -> Job:
    return Job(**row | {"folder": from_column(row["folder"])})


class Jobs:
    """The tables `jobs`, `installs` and `job_networks`."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def add(self, key: str, values: Mapping[str, Any]) -> Job:
        """Returns the job with this key, which is created, or updated except for its state."""
        values = {name: to_column(value) if name == "folder" else value for name, value in values.items()}
        first = {"state": "queued", "created_at": now(), "updated_at": now()}
        return self.get(upsert(self._db, "jobs", {"key": key}, values, first=first))

    def rows(self) -> list[Job]:
        """Returns all jobs, oldest first."""
        return self._rows("1")

    def unfinished(self) -> list[Job]:
        """Returns the jobs that wait, or that a process works at or was killed at, oldest first."""
        return self._rows(f"state IN {UNFINISHED}")

    def of(self, key: str, *states: str) -> list[Job]:
        """Returns the job with a key, as a list of one or none. `states`: only if it is in one of them."""
        return [job for job in self._rows("key = ?", [key]) if not states or job.state in states]

    def get(self, id: int) -> Job:
        return self._rows("id = ?", [id])[0]

    def _rows(self, where: str, parameters: Iterable[Any] = ()) -> list[Job]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {where} ORDER BY id", list(parameters))
        return [_job(dict(zip(Job.__slots__, row, strict=True))) for row in rows]

    def requeue(self, id: int) -> None:
        """Queues a finished job again; one in progress is left to its owner."""
        self._queue(f"id = ? AND state NOT IN {UNFINISHED}", [id])

    def release(self, id: int, owner: str) -> None:
        """Returns an unfinished job of `owner` to the queue."""
        self._queue(f"id = ? AND owner = ? AND state IN {UNFINISHED}", [id, owner])

    def _queue(self, where: str, parameters: Iterable[Any]) -> None:
        self._db.execute(
            "UPDATE jobs SET state = 'queued', owner = NULL, code = NULL, reason = NULL, not_before = NULL, "
            f"updated_at = ? WHERE {where}",
            [now(), *parameters],
        )

    def claim(self, id: int, owner: str, instead_of: str | None) -> bool:
        """Gives an unfinished job to `owner`; returns False if its owner is no longer `instead_of`."""
        cursor = self._db.execute(
            "UPDATE jobs SET state = 'fetching', owner = ?, attempts = attempts + 1, updated_at = ? "
            f"WHERE id = ? AND state IN {UNFINISHED} AND owner IS ?",
            [owner, now(), id, instead_of],
        )
        return cursor.rowcount == 1

    def set_state(
        self, id: int, state: str, *, code: str | None = None, reason: str | None = None, not_before: str | None = None
    ) -> None:
        """Sets the state of a job; a finished one has no owner."""
        owner = "owner" if state in UNFINISHED else "NULL"
        self._db.execute(
            f"UPDATE jobs SET state = ?, code = ?, reason = ?, not_before = ?, updated_at = ?, owner = {owner} "
            "WHERE id = ?",
            [state, code, _text(reason), _text(not_before), now(), id],
        )

    def set_hash(self, id: int, sha256: str | None, size_bytes: int | None) -> None:
        """Stores the new hash and size of a file that the site replaced."""
        self._db.execute("UPDATE jobs SET sha256 = ?, size_bytes = ? WHERE id = ?", [sha256, size_bytes, id])

    def set_folder(self, id: int, folder: str) -> None:
        """Sets the folder that a job installs in."""
        self._db.execute("UPDATE jobs SET folder = ? WHERE id = ?", [to_column(folder), id])

    # --- files on disk that hnetkit installed

    def add_install(self, path: str, job: int | None, kind: str, sha256: str | None) -> None:
        """Records an installed file; `kind` is ``network``, ``preview``, ``sidecar`` or ``quarantine``."""
        self._db.execute(
            "INSERT OR REPLACE INTO installs VALUES (?, ?, ?, ?, ?)", [to_column(path), job, kind, sha256, now()]
        )

    def reserve(self, path: str, job: int, sha256: str) -> bool:
        """Reserves a path for the network of this job; returns False if another job has it."""
        cursor = self._db.execute(
            "INSERT INTO installs VALUES (?, ?, 'network', ?, ?) ON CONFLICT DO UPDATE SET sha256 = excluded.sha256, "
            "installed_at = excluded.installed_at WHERE job_id = excluded.job_id",
            [to_column(path), job, sha256, now()],
        )
        return cursor.rowcount == 1

    def add_had(self, job: int, sha256: str) -> None:
        """Records that a file which the job fetched holds this network, of which the job has no file installed.

        Another job has its place, or the user removed it.
        """
        self._db.execute("INSERT OR IGNORE INTO job_networks VALUES (?, ?)", [job, sha256])

    def forget_had(self, job: int) -> None:
        """Removes what `add_had` recorded of a job, whose file is about to be unpacked again."""
        self._db.execute("DELETE FROM job_networks WHERE job_id = ?", [job])

    def networks_of(self, job: int) -> list[str | None]:
        """Returns the sha256 of every network in what a job fetched: installed, here before, or removed since."""
        statement = "SELECT sha256 FROM installs WHERE job_id = ? AND kind = 'network' UNION "
        statement += "SELECT sha256 FROM job_networks WHERE job_id = ? ORDER BY sha256"
        return [sha256 for (sha256,) in self._db.execute(statement, [job, job])]

    def installs(self, *, job: int | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """Returns the installed files by path: all, or those of one job or one kind."""
        wanted = {column: value for column, value in (("job_id", job), ("kind", kind)) if value is not None}
        where = " AND ".join(f"{column} = ?" for column in wanted) or "1"
        cursor = self._db.execute(
            f"SELECT path, job_id, kind, sha256 FROM installs WHERE {where} ORDER BY path", list(wanted.values())
        )
        return [
            {"path": from_column(path), "job_id": job, "kind": kind, "sha256": sha} for path, job, kind, sha in cursor
        ]

    def installed_at(self, path: str) -> set[str]:
        """Returns the sha256 of the network that was installed at a path; an empty set for none."""
        statement = "SELECT sha256 FROM installs WHERE path = ? AND kind = 'network'"
        return {sha256 for (sha256,) in self._db.execute(statement, [to_column(path)])}

    def move_install(self, path: str, to: str) -> None:
        """Records that an installed file is at another path now; a record of that path stays as it is."""
        self._db.execute("UPDATE OR IGNORE installs SET path = ? WHERE path = ?", [to_column(to), to_column(path)])
        self.forget_install(path)

    def forget_install(self, path: str) -> None:
        """Removes the record of an installed file."""
        self._db.execute("DELETE FROM installs WHERE path = ?", [to_column(path)])

    def let_go(self, path: str) -> None:
        """Removes the record of an installed file that the user no longer wants; its job still knows what was in it."""
        for install in self._db.execute(
            "SELECT job_id, sha256 FROM installs WHERE path = ? AND kind = 'network' AND job_id NOTNULL",
            [to_column(path)],
        ).fetchall():
            self.add_had(*install)
        self.forget_install(path)
