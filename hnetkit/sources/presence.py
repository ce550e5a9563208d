"""What the library has already: rows are held against the disk before anything is fetched.

Only a path that the system calls absent is absent. A file that cannot be seen for another reason counts as there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError, NotFound
from hnetkit.files import is_absent
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import MAX_FILE
from hnetkit.hashes import sha256_of
from hnetkit.library.examining import Progress
from hnetkit.library.scan import FileChange, Note, left_without_file, scan
from hnetkit.library.walking import is_as_scanned, is_gone
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.text import counted

# --- looking at the folder


def survey(
    registry: Registry, folder: Path, progress: Progress | None = None, note: Note | None = None
) -> list[FileChange]:
    """Looks at the library's folder, and returns what could not be read there.

    What was renamed, moved or copied is known afterwards where it is now, and is not fetched again. Only files that are
    new or changed are read.

    Args:
        registry: brought up to date.
        folder: that downloads are installed in; it may not exist.
        progress: called with the bytes read, and of how many.
        note: called with a line about tags, notes and aliases of networks that files hold no longer.

    Raises:
        HnetkitError: the folder cannot be looked at.
    """
    fileless = registry.networks.fileless()
    changes = [] if is_gone(folder) else scan(registry, [folder], progress)
    unread = [change for change in changes if change.what == "unread"]
    if note is not None:
        for line in left_without_file(registry, fileless):
            note(line)
    _follow_moved(registry)
    return unread


def _follow_moved(registry: Registry) -> None:
    """Brings the records of installed files to where their bytes are now."""
    gone = [row for row in registry.jobs.installs(kind="network") if is_absent(row["path"])]
    moved = [(row["path"], path) for row in gone if (path := find_bytes(registry, row["sha256"])) is not None]
    if moved:
        with registry.write():
            for old, new in moved:
                registry.jobs.move_install(old, new)
                registry.files.set_state([file["id"] for file in registry.files.at(old)], "missing")


def require_library(registry: Registry, folder: Path) -> None:
    """Raises NotFound if files are known, and nothing of them is left.

    A disk that is not mounted looks like this, and ``HNETKIT_LIBRARY`` set to the wrong folder. Sidecars and
    quarantined files count too: where one of them is, the disk is there.
    """
    if any(not is_absent(path) for path in _known_paths(registry, folder)):
        return
    networks = {install["path"] for install in registry.jobs.installs(kind="network")}
    if count := len(networks.union(_scanned_paths(registry, folder))):
        raise NotFound(
            f"{folder}: nothing is left of the library ({counted(count, 'file')})",
            hint="mount its disk, or set HNETKIT_LIBRARY to the folder where it is; "
            "hnetkit repair --refill fetches everything again",
        )


def _known_paths(registry: Registry, folder: Path) -> Iterator[str]:
    yield from (install["path"] for install in registry.jobs.installs())
    yield from _scanned_paths(registry, folder)


def _scanned_paths(registry: Registry, folder: Path) -> list[str]:
    real = Path(os.path.realpath(folder))
    roots = [root for root in registry.files.roots() if root.path == real]
    return [row["path"] for root in roots for row in registry.files.of_root(root) if row["content_hash"]]


# --- files by their bytes


def find_bytes(registry: Registry, sha256: str | None) -> str | None:
    """Returns the path of a library file with these bytes; None where there is none, or the hash is unknown.

    The disk is asked: a file that the last scan missed may be back, and one that it saw may be gone.
    """
    if sha256 is None:
        return None
    rows = registry.files.with_bytes(sha256)
    return next((str(row["path"]) for row in rows if _is_as_known(row) or has_bytes(row["path"], sha256)), None)


def find_network(registry: Registry, sha256: str | None) -> str | None:
    """Returns the path of a library file with these bytes, or else of one that was converted from them; None for none.

    What is here in this sense is not fetched again. Where a file is to have the very bytes, `find_bytes` tells. Which
    file a ``.safetensors`` was converted from stands in it. A ``.pt`` does not say it; that it holds the same network
    is known as long as the library knows the file that it came of.
    """
    if sha256 is None:
        return None
    if (path := find_bytes(registry, sha256)) is not None:
        return path
    contents = {row["content_hash"] for row in registry.files.with_bytes(sha256)} - {None}
    rows = [*registry.files.converted_from(sha256), *registry.files.holding(sorted(contents))]
    return next((str(row["path"]) for row in rows if _is_as_known(row)), None)


def versions_here(registry: Registry, source: str) -> dict[str, dict[str, str]]:
    """Returns model -> {version -> name} of all versions of a site with a file in the library, as the last scan saw it.

    A file that the site recognized by its hash counts too, also where the site has replaced it since.
    """
    found: dict[str, dict[str, str]] = {}
    for model, version, name in registry.catalogue.versions_here(source):
        found.setdefault(model, {})[version] = name
    return found


def path_of_install(registry: Registry, install: dict[str, Any]) -> str | None:
    """Returns where an installed network is, at its path or else in the library; None for nowhere."""
    at = [row for row in registry.files.at(install["path"]) if row["sha256"] == install["sha256"]]
    return install["path"] if any(map(is_as_scanned, at)) else find_network(registry, install["sha256"])


def path_of_job(registry: Registry, job: Job) -> str | None:
    """Returns the first path of what came of a finished job; None unless the library still has all of it.

    An archive can be recognized only this way: no file of the library has its hash.
    """
    networks = registry.jobs.networks_of(job.id) if job.state == "done" else []
    paths = [find_network(registry, sha256) for sha256 in networks]
    return min(filter(None, paths)) if all(paths) and paths else None


def requeue_unless_here(registry: Registry, job: Job) -> Job:
    """Queues a job again that ended otherwise than with its file here; call it inside `registry.write()`.

    The key of `job` must identify its bytes for ever; where a site may replace a file, the sync plan decides.

    Returns:
        The job as it is now.
    """
    path = path_of_job(registry, job)
    if path is None:
        registry.jobs.requeue(job.id)
    elif job.code in (None, "had", "elsewhere", "unpacked"):
        registry.jobs.set_state(job.id, "done", code="had", reason=path)
    return registry.jobs.get(job.id)


def has_bytes(path: str | os.PathLike[str], sha256: str, *, size: int | None = None) -> bool:
    """Whether a regular file has these bytes; False for one that cannot be read or is larger than any network.

    Args:
        path: of the file.
        sha256: of the bytes.
        size: of the bytes, where it is known.
    """
    try:
        with OpenFile(path) as file:
            is_fit = file.size <= MAX_FILE if size is None else file.size == size
            return is_fit and sha256_of(file) == sha256
    except (OSError, HnetkitError):
        return False


def _is_as_known(row: dict[str, Any]) -> bool:
    """Whether a file is as it was scanned; a corrupt one has the same size and time."""
    return row["state"] != "corrupt" and is_as_scanned(row)
