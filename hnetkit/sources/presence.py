"""What the library has already, and what of it is damaged: rows are held against the disk before anything is fetched.

Only a path that the system calls absent is absent. A file that cannot be seen for another reason counts as there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnetkit.errors import DiskFull, FileRefused, HnetkitError, NotFound, failure_of
from hnetkit.files import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES, is_absent, mtime_of
from hnetkit.formats.open_file import OpenFile, sha256_at
from hnetkit.formats.reading import MAX_FILE, load
from hnetkit.formats.writing import save
from hnetkit.hashes import damaged_parts, sha256_of
from hnetkit.library.disks import Disks, away_below
from hnetkit.library.examining import Progress
from hnetkit.library.scan import FileChange, Note, left_without_file, scan
from hnetkit.library.walking import is_as_scanned, is_gone
from hnetkit.registry.imported import ImportedFile
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.download import PartialFile
from hnetkit.text import counted

_OTHER = {
    **dict.fromkeys(PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES),
    **dict.fromkeys(SAFETENSORS_SUFFIXES, PICKLE_SUFFIXES),
}
"""Suffix -> those of the other container."""
_MOST_TWINS = 4
_PIECE = 1 << 20  # bytes

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
                registry.files.set_missing(file["id"] for file in registry.files.at(old))


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
    roots = [root for root in registry.files.roots() if root.path.is_relative_to(real)]
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


def warn_if_away(registry: Registry, sha256: str | None) -> None:
    """Warns of a place whose disk may be away, where the library knows a file that is to be fetched.

    Of a scanned folder as a whole, the scan and `require_library` tell.
    """
    for row in registry.files.with_bytes(sha256) if sha256 is not None else ():
        path, root = Path(row["path"]), Disks(registry).root_of(row["path"])
        if os.path.islink(path):
            path = Path(os.path.realpath(path))
            away = away_below(path.parent, path)
        else:
            away = away_below(root, path)
        if away is not None and away.place != root:
            warnings.warn(f"{away}: what was there counts as missing", stacklevel=1)  # from here, so it is shown once


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


# --- damaged files


@dataclass(frozen=True, slots=True)
class Damage:
    """An installed file that is not as it was installed, or a network of an import that is not here.

    Attributes:
        what: ``"missing"`` or ``"corrupt"``; ``"kept"`` where the user put another network in its place; ``"failed"``
            where it could not be checked; ``"unknown"`` where it is missing, and nothing tells where it came from.
        path: where it was installed; of an import, the name of the file.
        job: fetches it again; None where it could not be checked, and of an import.
        sha256: at installation.
        damaged: sha256 of the bytes of a damaged file; None if they cannot be read.
        reason: of a failed check.
        imported: what an import told of it.
    """

    what: str
    path: str
    job: Job | None
    sha256: str | None = None
    damaged: str | None = None
    reason: str | None = None
    imported: ImportedFile | None = None

    @property
    def is_to_fetch(self) -> bool:
        return self.what not in ("kept", "unknown")

    @property
    def size_bytes(self) -> int | None:
        """Size of what is to be fetched; None if it is unknown."""
        of = self.imported or self.job
        return None if of is None else of.size_bytes


@dataclass(frozen=True, slots=True)
class Replacement:
    """A damaged file that a download replaces; the damaged one goes into quarantine then, and not before.

    Attributes:
        path: of the file.
        damaged: sha256 of the bytes there; others are not replaced.
        sha256: of the bytes that replace them.
    """

    path: Path
    damaged: str
    sha256: str


def damage_of(registry: Registry, install: dict[str, Any]) -> Damage | None:
    """Reads an installed file, and returns what is wrong with it; None if nothing is, or it was moved or converted."""
    path = install["path"]
    try:
        what, damaged = _state_of(path, install["sha256"])
        if what is None or (what == "missing" and find_network(registry, install["sha256"]) is not None):
            return None
        if what == "missing":
            warn_if_away(registry, install["sha256"])
        if what == "corrupt" and _is_replaced(registry, path, install["sha256"]):
            what = "kept"
        return Damage(what, path, registry.jobs.get(install["job_id"]), install["sha256"], damaged)
    except Exception as error:
        return Damage("failed", path, None, reason=str(failure_of(error, path)))


def _state_of(path: str, sha256: str) -> tuple[str | None, str | None]:
    """Returns what is wrong with an installed file, None if nothing is, and the sha256 of what is there instead."""
    if is_absent(path):
        return "missing", None
    try:
        with OpenFile(path) as file:
            found = sha256_of(file) if file.size <= MAX_FILE else None
    except FileRefused:
        return "corrupt", None
    except NotFound:
        if not os.path.islink(path):
            raise
        raise NotFound(f"{path}: a link to {os.path.realpath(path)}, which is not there") from None
    return (None, None) if found == sha256 else ("corrupt", found)


def _is_replaced(registry: Registry, path: str, sha256: str) -> bool:
    """Whether the path holds another intact network; a file that rots on a disk keeps its size and time."""
    status = os.stat(path)
    as_it_was = (sha256, status.st_size, mtime_of(status))
    if as_it_was in [(row["sha256"], row["size_bytes"], row["mtime_ns"]) for row in registry.files.at(path)]:
        return False
    try:
        return not damaged_parts(load(path))
    except FileRefused:
        return False


def damaged_by(registry: Registry, jobs: Iterable[int]) -> dict[int, list[Replacement]]:
    """Returns number of a job -> what it installed and is damaged by now, whose places its networks are to take."""
    wanted, found = set(jobs), dict[int, list[Replacement]]()
    for install in registry.jobs.installs(kind="network") if wanted else ():
        damage = damage_of(registry, install) if install["job_id"] in wanted else None
        if damage is not None and (old := replacement_of(damage)) is not None:
            found.setdefault(install["job_id"], []).append(old)
    return found


def replacement_of(damage: Damage) -> Replacement | None:
    """Returns what is to be replaced, where a damaged file is still in its place."""
    if damage.what != "corrupt" or damage.damaged is None or damage.sha256 is None:
        return None
    return Replacement(Path(damage.path), damage.damaged, damage.sha256)


# --- copies in the other container


def remake(registry: Registry, sha256: str, part: PartialFile, job: Job, stems: Sequence[str] = ()) -> bool:
    """Completes `part` from a file of the library that holds the same network in the other container, if it can.

    A network that hnetkit wrote gives the same bytes whenever it is written: of a `.pt` and a `.safetensors` each can
    be made from the other. Whether it did so is decided by the sha256.

    Args:
        registry: of the library.
        sha256: of the file that is wanted.
        part: receives its bytes.
        job: fetches the file.
        stems: further names that it had; what is called like it may hold the same network.
    """
    with registry.write():
        lost = [row["content_hash"] for row in registry.files.with_bytes(sha256) if row["content_hash"]]
        twins = [*registry.files.holding(lost), *registry.files.converted_from(sha256)]
        twins += [row for stem in dict.fromkeys([job.name, *stems]) for row in registry.files.named_like(stem)]
    suffix = job.suffix
    others = {row["path"]: row for row in twins if Path(row["path"]).suffix.lower() in _OTHER.get(suffix, ())}
    for twin in list(others.values())[:_MOST_TWINS]:
        made = part.path.with_name(f"{part.path.name}.made{suffix}")
        try:
            save(load(twin["path"]), made, overwrite=True)
            if sha256_at(made) == sha256:
                _take(part, made)
                return True
        except DiskFull:
            raise
        except HnetkitError:  # that copy is damaged or gone
            continue
        finally:
            made.unlink(missing_ok=True)
    return False


def _take(part: PartialFile, path: Path) -> None:
    part.discard()
    part.begin(host=None, etag=None, total=path.stat().st_size)
    with part.open() as out, path.open("rb") as file:
        while piece := file.read(_PIECE):
            part.append(out, piece)
