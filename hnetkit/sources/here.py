"""Whether the library has the very bytes that a site lists: a file that was replaced since it was read has not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import MAX_FILE
from hnetkit.hashes import sha256_of
from hnetkit.library.scan import mtime_of
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry


def path_of(registry: Registry, sha256: str | None) -> str | None:
    """Returns a file of the library that holds these bytes; None where none does any more, or nobody says the hash."""
    if sha256 is None:
        return None
    rows = registry.files.present(sha256)
    return next((str(row["path"]) for row in rows if _is_as_read(row) or holds(row["path"], sha256)), None)


def brought(registry: Registry, job: Job) -> str | None:
    """Returns where the library has what a finished job brought, the first of it; None unless it has all of it.

    An archive is known by this alone: nothing in the library has its hash.
    """
    installs = registry.jobs.installs(job=job.id, kind="network") if job.state == "done" else []
    paths = [path_of(registry, install["sha256"]) for install in installs]
    return paths[0] if all(paths) and paths else None


def again_unless_here(registry: Registry, job: Job) -> Job:
    """Takes up a finished job again unless all that it brought is here, and returns it; call it inside of `write`.

    The key of `job` must name its bytes for ever: what a site may have replaced since is the plan's to know.
    """
    path = brought(registry, job)
    if path is None:
        registry.jobs.requeue(job.id)
    elif job.code is None:
        registry.jobs.set_state(job.id, "done", code="had", reason=path)
    return registry.jobs.get(job.id)


def holds(path: str | os.PathLike[str], sha256: str, *, size: int | None = None) -> bool:
    """Whether a regular file has these bytes; one that cannot be read, or is larger than any network, has not.

    Args:
        size: that it has then, where that is known.
    """
    try:
        with OpenFile(path) as file:
            is_fit = file.size <= MAX_FILE if size is None else file.size == size
            return is_fit and sha256_of(file) == sha256
    except (OSError, HnetkitError):
        return False


def _is_as_read(row: dict[str, Any]) -> bool:
    try:
        status = Path(row["path"]).stat()
    except (OSError, ValueError):
        return False
    return (status.st_size, mtime_of(status)) == (row["size_bytes"], row["mtime_ns"])
