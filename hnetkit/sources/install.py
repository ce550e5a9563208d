"""Install a finished download: name it, check it with hnetkit's own reader, place it.

Nothing is replaced, and no network comes under a name that has another one's file or sidecars. Anything that is not a
usable network goes into `.quarantine` beside the target, under a name that no program loads, with the reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

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
from hnetkit.files import MODEL_SUFFIXES, exclusive_lock, is_reserved, is_there, new_file, publish, sync_folder
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import MAX_FILE
from hnetkit.hashes import sha256_of
from hnetkit.inspection import Examination, examine
from hnetkit.library import sidecar_writing, sidecars
from hnetkit.library.belongings import Belongings
from hnetkit.library.layouts import folded, stem_for_layout
from hnetkit.library.restore import said_of_trashed
from hnetkit.library.scan import add_examined, read_sidecars_again
from hnetkit.registry.catalogue import repo_of
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources import archives
from hnetkit.sources.archives import (
    OtherMembers,
    archive_suffix,
    belongings,
    extract_models,
    holds_models,
    only_picture,
    open_others,
)
from hnetkit.sources.download import PartialFile
from hnetkit.sources.presence import Replacement, find_bytes, find_network, has_bytes
from hnetkit.sources.sidecar_writer import MOST_PICTURE
from hnetkit.sources.trust import redact
from hnetkit.text import argument

# --- names that every file system takes and every prompt can say

_MOST_WORD = 40  # characters of what is appended to a name that is taken
_MOST_CHARACTERS = 1000  # of a name that are read: ordering its marks takes quadratic time
MOST_BYTES = 120  # of a stem: room for suffixes, sidecars and `-v123456` within 255
_SIDECAR = re.compile(r"(.+)\.(metadata|cm-info|api_info|civitai|preview|description)", re.IGNORECASE)
SUFFIXES = frozenset({*MODEL_SUFFIXES, *archives.SUFFIXES})


def safe_stem(name: str, fallback: str) -> str:
    """Returns a stem of letters, digits, ``_``, ``-`` and ``.`` that keeps as much of `name` as possible.

    Args:
        name: a stem from a site, in any script.
        fallback: replaces a name of which nothing is left; also appended to a reserved one.
    """
    text = unicodedata.normalize("NFC", name[:_MOST_CHARACTERS])
    text = re.sub(r"[^\w.-]+", "_", text, flags=re.UNICODE)
    text = re.sub(r"_{2,}", "_", text).strip("._- ")
    text = text.encode()[:MOST_BYTES].decode(errors="ignore").rstrip("._-")
    if not text:
        return fallback
    text = _SIDECAR.sub(r"\1_\2", text) if _SIDECAR.fullmatch(text) else text  # its x.json would be a sidecar
    first, dot, rest = text.partition(".")
    return f"{first}-{fallback}{dot}{rest}" if is_reserved(text) else text


def split_name(name: str) -> tuple[str, str]:
    """Returns stem and suffix of a file name from a site, which may hold folders and any character.

    The suffix is in lower case. One that no model and no archive has stays part of the stem, and ``.pt`` takes its
    place.
    """
    last = re.split(r"[/\\]", name)[-1].strip()
    suffix = PurePath(f"x{last}").suffix.lower()
    if suffix in SUFFIXES:
        return last[: -len(suffix)], suffix
    return last, ".pt"


# --- installing

QUARANTINE = ".quarantine"
LEAST_FREE = 1 << 30
"""Bytes free on the disk below which downloads are discarded rather than quarantined; they can be fetched again."""


@dataclass(slots=True)
class Installed:
    """Result of installing one download.

    Attributes:
        paths: networks in the library.
        left_out: members of an archive that may be networks but cannot be used, each with the reason.
        left: other members that no file here came of.
        preview: the name of a picture in an archive that became a preview without having the network's name.
        kept: the archive, if something was left in it and there is room.
        put_aside: where the damaged files are that were replaced.
        unwanted: members of an archive that are not installed, since the user removed them, each with the reason.
    """

    paths: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    preview: str | None = None
    kept: Path | None = None
    put_aside: list[Path] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)


def install(
    registry: Registry,
    job: Job,
    part: PartialFile,
    replaced: Sequence[Replacement] = (),
    removed: Mapping[str, str] | None = None,
) -> Installed:
    """Moves a finished download into the library; the partial file is gone afterwards.

    Args:
        registry: records what is installed.
        job: fetched it.
        part: the download.
        replaced: damaged files whose places its networks take.
        removed: what is not wanted of an archive: sha256 of a network -> name of what the user removed.

    Raises:
        HnetkitError: it holds no usable network, or reading it failed in any way; it is in quarantine.
        OSError, DiskFull: it could not be written; the partial file is still there.
    """
    folder, installed = Path(job.folder), Installed()
    part.flush()
    try:
        found = examine(part.path, whole=False, sha256=part.sha256)
        if found.network is None and _is_archive(part.path, found):
            _install_members(registry, job, part.path, replaced, removed or {}, installed)
        else:
            _require_network(part.path, found)
            name = f"{job.name}{_suffix_of(found, job.suffix)}"
            _install_one(registry, job, found, name, replaced, installed)
        if (left := [*installed.left_out, *installed.left]) and has_room(folder):
            installed.kept = quarantine(registry, job, part.path, "; ".join(left))
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


def _is_archive(path: Path, found: Examination) -> bool:
    """Whether a file is an archive of models; a file known to be something else raises its own refusal."""
    try:
        return holds_models(path)
    except UnsafeFile:
        if isinstance(found.refusal, NotAHypernetwork) and found.refusal.kind not in ("zip", "archive", "unknown"):
            raise found.refusal from None
        raise


def _require_network(path: Path, found: Examination) -> None:
    if found.network is None:
        raise found.refusal or WrongBytes(f"{path}: no usable network")


def _suffix_of(found: Examination, suffix: str) -> str:
    """Returns a suffix that programs look for: the site may call a network's file an archive, since it is a zip."""
    if suffix in MODEL_SUFFIXES or found.network is None:
        return suffix
    return ".safetensors" if found.network.format == "safetensors" else ".pt"


def _install_members(
    registry: Registry,
    job: Job,
    archive: Path,
    replaced: Sequence[Replacement],
    removed: Mapping[str, str],
    installed: Installed,
) -> None:
    left_out, left = installed.left_out, installed.left
    count, models = 0, []
    with registry.write():
        registry.jobs.forget_had(job.id)
    for name, member in extract_models(archive, archive.with_suffix(".unpacked")):
        count += 1
        try:
            if isinstance(member, HnetkitError):
                raise member
            found = examine(member, whole=False)
            _require_network(member, found)
            stem, suffix = split_name(name)
            sha256 = _sha256_of(found)
            if sha256 in removed:
                installed.unwanted.append(_named(name, said_of_trashed(removed[sha256])))
                with registry.write():
                    registry.jobs.add_had(job.id, sha256)
                continue
            _install_one(registry, job, found, f"{safe_stem(stem, job.name)}{suffix}", replaced, installed)
            models.append(name)
        except (OSError, DiskFull, RegistryError):
            raise
        except Exception as error:
            reason = str(failure_of(error, name)).removeprefix(f"{member}: ").removeprefix(f"{name}: ")
            (left if isinstance(error, NotAHypernetwork) else left_out).append(_named(name, reason))
    if not installed.paths and not installed.unwanted:
        few = "; ".join([*left_out, *left][:3])
        raise WrongBytes(f"{archive}: a zip without a usable network{': ' if few else ''}{few}")
    if installed.paths:
        with open_others(archive) as others:
            _install_others(registry, job, others, models, installed, is_alone=count == 1)


def _install_others(
    registry: Registry, job: Job, others: OtherMembers, models: Sequence[str], installed: Installed, *, is_alone: bool
) -> None:
    """Puts what belongs to the networks of an archive beside them, and notes what is left.

    Args:
        others: the other files in the archive.
        models: the names in the archive of `installed.paths`.
        is_alone: whether the archive has one model, so that its one picture is taken for the preview.
    """
    left = dict.fromkeys(range(len(others.names)), "")

    def place(number: int, path: Path, suffix: str) -> None:
        try:
            data = others.read(number, most=MOST_PICTURE)
            written = sidecar_writing.write_as_packed(path, suffix, data)
        except (HnetkitError, ValueError) as error:
            if number in left:
                left[number] = str(error).removeprefix(f"{path.parent}{os.sep}")
            return
        left.pop(number, None)
        with registry.write():
            kind = "preview" if suffix in sidecars.PREVIEWS else "sidecar"
            registry.jobs.add_install(str(written), job.id, kind, None)

    for number, model, suffix in belongings(others.names, models):
        place(number, installed.paths[model], suffix)
    picture = only_picture(others.names)
    if is_alone and picture is not None and picture[0] in left and sidecars.read(installed.paths[0]).preview is None:
        number, suffix = picture
        place(number, installed.paths[0], f".preview{suffix}")
        installed.preview = None if number in left else others.names[number]
    installed.left += [_named(others.names[number], reason) for number, reason in left.items()]
    for path in installed.paths:
        read_sidecars_again(registry, path)


def _named(name: str, reason: str) -> str:
    return f"{printable(name)[:100]}: {reason[:300]}" if reason else printable(name)[:100]


def _install_one(
    registry: Registry,
    job: Job,
    found: Examination,
    name: str,
    replaced: Sequence[Replacement],
    installed: Installed,
) -> None:
    """Places one network where a damaged file was, or else under the first free name; or finds that it is here.

    Where an import told of its bytes, it gets the name that prompts know it by.
    """
    sha256 = _sha256_of(found)
    for old in replaced:
        if old.sha256 == sha256 and has_bytes(old.path, old.damaged):
            installed.put_aside.append(_replace_damaged(registry, job, found, old))
            installed.paths.append(old.path)
            return
    with registry.write():
        here = find_bytes(registry, sha256)  # of a whole file this was asked before, but for one without a stated hash
        if here is not None:
            if not registry.jobs.reserve(here, job.id, sha256):
                registry.jobs.add_had(job.id, sha256)  # only so is an archive known to be here
        elif any(own["sha256"] == sha256 for own in registry.jobs.installs(job=job.id, kind="network")):
            here = find_network(registry, sha256)  # what came of it before may have been converted
        if here is not None:
            installed.paths.append(Path(here))
            return
        known_as = registry.imported.stem_of(sha256)
    stem, suffix = os.path.splitext(name)
    stem = stem if known_as is None else _kept_stem(known_as, stem)
    installed.paths.append(_place(registry, job, found, stem, suffix))


def _kept_stem(stem: str, fallback: str) -> str:
    """Returns the stem that a file had elsewhere, as far as it can be the name of a file here."""
    kept = stem_for_layout(stem) if stem else fallback
    is_short = len(kept.encode()) <= MOST_BYTES and not _SIDECAR.fullmatch(kept)
    return kept if is_short else safe_stem(kept, fallback)


def _sha256_of(found: Examination) -> str:
    assert found.hashes is not None  # only those of sparse files larger than any network are unknown
    assert found.hashes.sha256 is not None
    return found.hashes.sha256


def _replace_damaged(registry: Registry, job: Job, found: Examination, old: Replacement) -> Path:
    """Puts a network in the place of a damaged file, and returns where that one is now."""
    aside = quarantine(registry, job, old.path, f"{old.path.name}: damaged since it was installed")
    os.replace(found.path, old.path)
    sync_folder(old.path.parent)
    add_examined(registry, old.path.parent, found.moved(old.path))
    return aside


_PATIENCE_S = 60.0


@contextlib.contextmanager
def _names_locked(registry: Registry) -> Iterator[None]:
    """Keeps other threads and processes from taking a name between the look at which are taken and the file's own."""
    busy = HnetkitError("another process is placing a file", hint="try again when it has ended")
    with exclusive_lock(registry.path.parent / "locks" / "names.lock", busy, patience_s=_PATIENCE_S):
        yield


def _place(registry: Registry, job: Job, found: Examination, stem: str, suffix: str) -> Path:
    folder, sha256 = Path(job.folder), _sha256_of(found)
    for target in _names(registry, folder, stem, suffix, job, sha256):
        if has_bytes(target, sha256, size=found.size_bytes):
            add_examined(registry, folder, found.moved(target))
            return target
        with _names_locked(registry):
            is_placed = _place_at(registry, job, found, target, sha256)
        if not is_placed:
            continue
        try:
            add_examined(registry, folder, found.moved(target))
        except (OSError, RegistryError):
            raise
        except Exception:  # what cannot be stored goes to quarantine
            target.unlink(missing_ok=True)
            with registry.write():
                registry.jobs.forget_install(str(target))
            raise
        return target
    raise WrongBytes(f"{folder / stem}: all names for it are taken")


def _place_at(registry: Registry, job: Job, found: Examination, target: Path, sha256: str) -> bool:
    """Places a file under a name; returns False if that is taken."""
    folder = target.parent
    if _is_begun(folder, target.stem) and (
        _is_taken(folder, target.stem) or _has_anothers_sidecars(registry, job, target, sha256)
    ):
        return False
    with registry.write():  # before the file exists: a process that dies here leaves no file without an owner
        if not registry.jobs.reserve(str(target), job.id, sha256):
            return False
    try:
        publish(found.path, target)
    except OutputExists:
        with registry.write():
            registry.jobs.forget_install(str(target))
        return False
    return True


def _names(registry: Registry, folder: Path, stem: str, suffix: str, job: Job, sha256: str) -> Iterator[Path]:
    yield folder / f"{stem}{suffix}"
    yield from (folder / f"{stem}-{word}{suffix}" for word in _telling(registry, job))
    tag = job.key.rsplit(":", 1)[-1] if job.source == "civitai" else hashlib.sha256(job.key.encode()).hexdigest()[:8]
    yield folder / f"{stem}-{tag}{suffix}"
    for digits in (10, 64):  # unique whatever else has this stem
        yield folder / f"{stem}-{tag}-{sha256[:digits]}{suffix}"


def _telling(registry: Registry, job: Job) -> Iterator[str]:
    """Yields words that tell files of the hub with one name apart: who made it, its title or folder, the owner."""
    if job.source != "huggingface" or job.remote_file_id is None:
        return
    with registry.write():
        file = registry.catalogue.file(job.remote_file_id)
    folder = file["file_name"].rpartition("/")[0].rpartition("/")[2]
    of_archive = repo_of(file["model_id"]) != file["model_id"]
    owner = repo_of(file["model_id"]).removeprefix("datasets/").partition("/")[0]
    words = [file["creator"], file["model"], folder, owner] if of_archive else [folder, owner]
    yield from dict.fromkeys(word for text in words if text and (word := safe_stem(text[:_MOST_WORD], "")))


def _is_begun(folder: Path, stem: str) -> bool:
    """Whether any name in a folder begins with this stem and a dot; it may have thousands of others."""
    return f"\0{folded(stem)}." in folded("\0".join(["", *os.listdir(folder)]))


def _is_taken(folder: Path, stem: str) -> bool:
    """Whether a model with this stem is there: programs find networks by stem, some ignoring case."""
    return any(folded(name) == folded(stem) for name in _model_stems(folder))


def _has_anothers_sidecars(registry: Registry, job: Job, target: Path, sha256: str) -> bool:
    """Whether what lies at a place without a model was another network's, whose file was moved or deleted.

    It would count as this one's from now on, and go into the trash with it. What a network had beside it before its
    file went is its own: the registry knows these bytes there, or a sidecar names the version of the site.
    """
    if not Belongings(frozenset()).of(target)[0]:
        return False
    known = {row["sha256"] for row in registry.files.at_typed(str(target))} | registry.jobs.installed_at(str(target))
    if sha256 in known:
        return False
    if job.source != "civitai" or job.remote_file_id is None:
        return True
    version = str(registry.catalogue.file(job.remote_file_id)["version_id"])
    return str(sidecars.read(target).version_id) != version


def _model_stems(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name, suffix = os.path.splitext(entry.name)
            if suffix.lower() in (*MODEL_SUFFIXES, ".zip"):
                yield name


def _sha256(path: Path) -> str:
    with OpenFile(path) as file:
        if file.size > MAX_FILE:
            raise UnsafeFile(f"{path}: larger than any network", hint=f"move it away: {argument(path, is_path=True)}")
        return sha256_of(file)


def has_room(folder: Path) -> bool:
    """Whether there is room to quarantine what could be fetched again; good files come first."""
    return shutil.disk_usage(folder).free >= LEAST_FREE


def _move_aside(path: Path, target: Path) -> None:
    """Moves a file into quarantine, or recreates a user's link so that it leads to the same target."""
    if not path.is_symlink():
        publish(path, target)
    elif is_there(target):
        raise OutputExists(f"{target}: the file exists")
    else:
        target.symlink_to(os.path.realpath(path))


def quarantine(registry: Registry, job: Job, path: Path, reason: str) -> Path:
    """Keeps bytes that must not be loaded, with the reason, where no program looks; returns their path.

    Raises:
        FileRefused, NotFound: it is no regular file, or larger than any network.
    """
    folder = Path(job.folder) / QUARANTINE
    folder.mkdir(exist_ok=True)
    sha256, size, name = _sha256(path), path.stat().st_size, _kept_name(job, path)
    for digits in (0, 10, 64):
        target = folder / f"{name}{'-' if digits else ''}{sha256[:digits]}.bad"
        if has_bytes(target, sha256, size=size):
            if is_there(f"{target}.json"):
                return target
            break  # a kill or a full disk came before the reason
        with contextlib.suppress(OutputExists):
            _move_aside(path, target)
            break
    sync_folder(folder)  # the file may go from its place next
    why = {"key": job.key, "url": redact(job.url), "expected_sha256": job.sha256, "reason": reason}
    with new_file(f"{target}.json", overwrite=True) as file:
        file.write(json.dumps(why, indent=2, ensure_ascii=False).encode() + b"\n")
    with registry.write():
        registry.jobs.add_install(str(target), job.id, "quarantine", None)
    return target


def _kept_name(job: Job, path: Path) -> str:
    """The name of a job's file. An archive has the suffix of its kind: whoever is to extract it looks for that."""
    suffix, name = archive_suffix(path), f"{job.name}{job.suffix}"
    if suffix is None or name.lower().endswith(suffix):
        return name
    return job.name if job.name.lower().endswith(suffix) else f"{job.name.removesuffix('.tar')}{suffix}"
