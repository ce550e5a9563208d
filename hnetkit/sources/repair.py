"""Fetching again what hnetkit installed and what is missing or damaged now."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hnetkit.errors import FileRefused, HnetkitError, failure_of
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import MAX_FILE, load
from hnetkit.hashes import damaged_parts, sha256_of
from hnetkit.library.scan import mtime_of
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.install import quarantine


@dataclass(frozen=True, slots=True)
class Damage:
    """One installed file that is not as it was installed.

    Attributes:
        what: ``"missing"`` or ``"corrupt"``; ``"kept"`` where a person put another network in its place; ``"failed"``
            where that could not be learnt.
        job: fetches it again; None where there is none any more.
        sha256: that it had when it was installed.
        reason: what failed.
    """

    what: str
    path: str
    job: Job | None
    sha256: str | None = None
    reason: str | None = None


def damages(registry: Registry, progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Damage]:
    """Reads every byte of everything that was installed, and yields what is missing or not what it was.

    Args:
        progress: told how many files were read, and of how many.
    """
    installs = [install for install in registry.jobs.installs(kind="network") if install["job_id"] is not None]
    for done, install in enumerate(installs):
        progress(done, len(installs))
        path = install["path"]
        try:
            what = _damage(path, install["sha256"])
            if what == "corrupt" and _is_replaced(registry, path, install["sha256"]):
                what = "kept"
            damage = (
                Damage(what, path, registry.jobs.get(install["job_id"]), install["sha256"])
                if what is not None
                else None
            )
        except Exception as error:
            damage = Damage("failed", path, None, reason=str(failure_of(error, path)))
        if damage is not None:
            yield damage


def _damage(path: str, sha256: str) -> str | None:
    if not os.path.lexists(path):
        return "missing"
    try:
        with OpenFile(path) as file:
            return None if file.size <= MAX_FILE and sha256_of(file) == sha256 else "corrupt"
    except FileRefused:
        return "corrupt"


def _is_replaced(registry: Registry, path: str, sha256: str) -> bool:
    """Whether a whole network lies there that is another one; what rots on a disk keeps its size and its time."""
    status = os.stat(path)
    as_it_was = (sha256, status.st_size, mtime_of(status))
    if as_it_was in [(row["sha256"], row["size_bytes"], row["mtime_ns"]) for row in registry.files.at(path)]:
        return False
    try:
        return not damaged_parts(load(path))
    except FileRefused:
        return False


def take_up(registry: Registry, damage: Damage) -> int | HnetkitError:
    """Moves what is damaged into quarantine, and queues its job; returns the job's number, or what failed."""
    path = Path(damage.path)
    if damage.job is None:
        return HnetkitError(damage.reason or f"{damage.path}: nothing is known of where it came from")
    try:
        if damage.what == "corrupt":
            quarantine(registry, damage.job, path, f"{path.name}: damaged since it was installed")
            path.unlink(missing_ok=True)
        with registry.write():
            registry.files.set_state([row["id"] for row in registry.files.at(damage.path)], "missing")
            registry.jobs.requeue(damage.job.id)
    except Exception as error:
        return failure_of(error, damage.path)
    return damage.job.id


def forget_moved(registry: Registry, damages: Iterable[Damage]) -> None:
    """Forgets the places of files that came again under another name, or are elsewhere; others stay to be mended."""
    with registry.write():
        for damage in damages:
            is_done = damage.job is not None and registry.jobs.get(damage.job.id).state == "done"
            if is_done and not os.path.lexists(damage.path):
                registry.jobs.forget_install(damage.path)
