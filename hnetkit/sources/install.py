"""From a finished part to a file of the library: checked by hnetkit's own reader, placed without replacing anything.

What is no usable network goes to `.quarantine` beside it, under a name that no program loads, with the reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hnetkit.errors import (
    DiskFull,
    HnetkitError,
    NotAHypernetwork,
    OutputExists,
    RegistryError,
    UnsafeFile,
    WrongBytes,
    failure_of,
    printable,
)
from hnetkit.files import new_file, publish, sync_folder
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import MAX_FILE, FileIdentity, identify
from hnetkit.hashes import sha256_of
from hnetkit.library.scan import add_file
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.here import holds
from hnetkit.sources.names import SUFFIXES, safe_stem, split_name
from hnetkit.sources.origins import redacted
from hnetkit.sources.parts import Part
from hnetkit.sources.unpack import holds_models, unpacked
from hnetkit.text import argument

QUARANTINE = ".quarantine"
LEAST_FREE = 1 << 30
"""Bytes free on the disk: with less, nothing that was fetched goes to quarantine; it can be fetched again."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What became of one download.

    Attributes:
        paths: of the library's networks.
        left_out: members of an archive that may be networks and cannot be used, each with the reason.
    """

    paths: list[Path]
    left_out: list[str]


def install(registry: Registry, job: Job, part: Part) -> Installed:
    """Files what came; the part is gone afterwards.

    Raises:
        HnetkitError: it holds no usable network, or reading it failed in whatever way; it is in quarantine then.
        OSError, DiskFull: it could not be written; the part is still there.
    """
    folder = Path(job.folder)
    part.flush()
    try:
        found = _look(part.path)
        if found.network is None and _is_archive(part.path, found):
            installed = _install_members(registry, job, part.path)
        else:
            _require_network(part.path, found)
            installed = Installed([_install_one(registry, job, part.path, part.sha256, job.name, job.suffix)], [])
        if installed.left_out and has_room(folder):
            quarantine(registry, job, part.path, "; ".join(installed.left_out))
    except (OSError, DiskFull, RegistryError):
        raise
    except Exception as error:
        failure = failure_of(error, f"{job.name}{job.suffix}")
        if has_room(folder):
            quarantine(registry, job, part.path, str(failure))
        part.discard()
        raise failure from error
    sync_folder(folder)
    part.discard()
    return installed


def _look(path: Path) -> FileIdentity:
    with OpenFile(path) as file:
        return identify(file)


def _is_archive(path: Path, found: FileIdentity) -> bool:
    """Whether model files are to be taken out of it; what is known as something else says so itself."""
    try:
        return holds_models(path)
    except UnsafeFile:
        if isinstance(found.refusal, NotAHypernetwork) and found.refusal.kind not in ("zip", "archive", "unknown"):
            raise found.refusal from None
        raise


def _require_network(path: Path, found: FileIdentity) -> None:
    if found.network is None:
        raise found.refusal or WrongBytes(f"{path}: no usable network")


def _install_members(registry: Registry, job: Job, archive: Path) -> Installed:
    paths: list[Path] = []
    left_out: list[str] = []
    strange: list[str] = []
    for name, member in unpacked(archive, archive.with_suffix(".unpacked")):
        try:
            if isinstance(member, HnetkitError):
                raise member
            _require_network(member, _look(member))
            stem, suffix = split_name(name)
            sha256 = _sha256(member)
            paths.append(_install_one(registry, job, member, sha256, safe_stem(stem, job.name), suffix))
        except (OSError, DiskFull, RegistryError):
            raise
        except Exception as error:
            reason = str(failure_of(error, name)).removeprefix(f"{member}: ").removeprefix(f"{name}: ")
            others = strange if isinstance(error, NotAHypernetwork) else left_out
            others.append(f"{printable(name)[:100]}: {reason[:300]}")
    if not paths:
        few = "; ".join([*left_out, *strange][:3])
        raise WrongBytes(f"{archive}: a zip without a usable network{': ' if few else ''}{few}")
    return Installed(paths, left_out)


def _install_one(registry: Registry, job: Job, path: Path, sha256: str, stem: str, suffix: str) -> Path:
    """Places one network under the first name that is free, or finds that it is there already."""
    folder, size = Path(job.folder), path.stat().st_size
    for target in _names(folder, stem, suffix, job, sha256):
        if holds(target, sha256, size=size):
            add_file(registry, folder, target, sha256)
            return target
        if _is_taken(folder, target.stem):
            continue
        with registry.write():  # before it is there: a process that dies in between leaves no file that nobody owns
            if not registry.jobs.reserve(str(target), job.id, sha256):
                continue
        try:
            publish(path, target)
        except OutputExists:
            with registry.write():
                registry.jobs.forget_install(str(target))
            continue
        try:
            add_file(registry, folder, target, sha256)
        except (OSError, RegistryError):
            raise
        except Exception:  # what cannot be examined is no network of the library: it goes to quarantine
            target.unlink(missing_ok=True)
            with registry.write():
                registry.jobs.forget_install(str(target))
            raise
        return target
    raise WrongBytes(f"{folder / stem}: no name is left for it")


def _names(folder: Path, stem: str, suffix: str, job: Job, sha256: str) -> Iterator[Path]:
    yield folder / f"{stem}{suffix}"
    tag = job.key.rsplit(":", 1)[-1] if job.source == "civitai" else hashlib.sha256(job.key.encode()).hexdigest()[:8]
    yield folder / f"{stem}-{tag}{suffix}"
    for digits in (10, 64):  # whatever else an archive holds under this stem, and without a look at it
        yield folder / f"{stem}-{tag}-{sha256[:digits]}{suffix}"


def _is_taken(folder: Path, stem: str) -> bool:
    """Whether a model of this stem is there: programs know networks by their stems, some without regard to case."""
    return any(_folded(name) == _folded(stem) for name in _model_stems(folder))


def _model_stems(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name, suffix = os.path.splitext(entry.name)
            if suffix.lower() in SUFFIXES:
                yield name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _sha256(path: Path) -> str:
    with OpenFile(path) as file:
        if file.size > MAX_FILE:
            raise UnsafeFile(f"{path}: larger than any network", hint=f"move it away: {argument(path, is_path=True)}")
        return sha256_of(file)


def has_room(folder: Path) -> bool:
    """Whether what can be fetched again is kept: junk may come by the gigabyte, and good files need room too."""
    return shutil.disk_usage(folder).free >= LEAST_FREE


def _keep(path: Path, target: Path) -> None:
    """Keeps a file, or a link of a person's, which leads to the same place from wherever it lies."""
    if not path.is_symlink():
        publish(path, target)
    elif os.path.lexists(target):
        raise OutputExists(f"{target}: the file exists")
    else:
        target.symlink_to(os.path.realpath(path))


def quarantine(registry: Registry, job: Job, path: Path, reason: str) -> Path:
    """Keeps bytes that must not be loaded, and why, where no program looks; returns where.

    Raises:
        FileRefused, NotFound: it is no regular file, or larger than any network.
    """
    folder = Path(job.folder) / QUARANTINE
    folder.mkdir(exist_ok=True)
    sha256, size = _sha256(path), path.stat().st_size
    for digits in (0, 10, 64):
        target = folder / f"{job.name}{job.suffix}{'-' if digits else ''}{sha256[:digits]}.bad"
        if holds(target, sha256, size=size):
            return target
        with contextlib.suppress(OutputExists):
            _keep(path, target)
            break
    why = {"key": job.key, "url": redacted(job.url), "expected_sha256": job.sha256, "reason": reason}
    with new_file(f"{target}.json", overwrite=True) as file:
        file.write(json.dumps(why, indent=2, ensure_ascii=False).encode() + b"\n")
    with registry.write():
        registry.jobs.add_install(str(target), job.id, "quarantine", None)
    return target
