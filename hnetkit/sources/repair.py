"""Fetching again what hnetkit installed and what is missing or damaged now."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hnetkit.errors import HnetkitError
from hnetkit.formats.source import OpenFile
from hnetkit.hashes import sha256_of
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.install import quarantine


@dataclass(frozen=True, slots=True)
class Damage:
    """One installed file that is not as it was installed.

    Attributes:
        what: ``"missing"`` or ``"corrupt"``.
        job: fetches it again.
    """

    what: str
    path: str
    job: Job


def damages(registry: Registry, progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Damage]:
    """Reads every byte of everything that was installed, and yields what is missing or not what it was.

    Args:
        progress: told how many files were read, and of how many.
    """
    installs = registry.jobs.installs("kind = 'network' AND job_id NOTNULL")
    for done, install in enumerate(installs):
        progress(done, len(installs))
        what = _damage(install["path"], install["sha256"])
        if what is not None:
            yield Damage(what, install["path"], registry.jobs.get(install["job_id"]))


def _damage(path: str, sha256: str) -> str | None:
    if not os.path.lexists(path):
        return "missing"
    try:
        with OpenFile(path) as file:
            return None if sha256_of(file) == sha256 else "corrupt"
    except HnetkitError:
        return "corrupt"


def take_up(registry: Registry, damage: Damage) -> int:
    """Moves what is damaged into quarantine, and queues its job; returns the job's number."""
    path = Path(damage.path)
    if damage.what == "corrupt":
        quarantine(registry, damage.job, path, f"{path.name}: damaged since it was installed")
        path.unlink(missing_ok=True)
    with registry.write():
        registry.jobs.not_installed(damage.path)
        gone = [row["id"] for row in registry.files.rows() if row["path"] == damage.path]
        registry.files.set_state(gone, "missing")
        registry.jobs.again(damage.job.id)
    return damage.job.id
