"""Look after fetched files: ask the site what they are, find damaged ones, and fetch those again."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from hnetkit.errors import FileRefused, Gone, HnetkitError, failure_of
from hnetkit.files import MODEL_SUFFIXES, is_absent, is_folder_at, mtime_of
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import MAX_FILE, load
from hnetkit.hashes import damaged_parts, sha256_of
from hnetkit.library.library import Row
from hnetkit.registry.catalogue import TOLD
from hnetkit.registry.imported import ImportedFile
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import SOURCE, Civitai, Filters
from hnetkit.sources.civitai_models import BadRecord, parse_id, parts_left_out
from hnetkit.sources.dumps import WantedHashes, find_in_dump
from hnetkit.sources.install import Replacement, quarantine
from hnetkit.sources.mirrors import by_hash as address_of
from hnetkit.sources.presence import find_bytes, find_network
from hnetkit.sources.sync import isolate_failure, store_models, store_told

# --- identifying by hash

_DIGITS = re.compile(r"[0-9a-f]{8,64}")
_AGAIN = timedelta(days=7)  # until the site is asked again about what it did not know


@dataclass(frozen=True, slots=True)
class Identification:
    """What the site knows of the library's files.

    Attributes:
        files: one row per network file: ``path``, ``sha256``, ``model``, ``version``, ``creator``, ``model_id``,
            ``version_id``, ``checkpoint_model_id``, ``checkpoint_version_id``; None where the site knows none.
            ``state`` is ``"known"``, ``"unknown"``, or ``"failed"`` where nothing was answered; ``reason`` says so, or
            what of a known model's record cannot be used.
        checkpoints: one row per checkpoint that a network was trained on: ``checkpoint`` (its hash), ``name``,
            ``model_id``, ``version_id``.
    """

    files: list[Row]
    checkpoints: list[Row]


def identify_library(
    registry: Registry, civitai: Civitai, *, again: bool = False, failed: list[BadRecord] | None = None
) -> Identification:
    """Identifies files and checkpoints; see `identify_files` and `identify_checkpoints`."""
    files = list(identify_files(registry, civitai, again=again, failed=failed))
    return _with_checkpoints(files, list(identify_checkpoints(registry, civitai, failed)))


def identify_by_dump(
    registry: Registry,
    dump: Path,
    *,
    failed: list[BadRecord] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Identification:
    """Looks up in a dump of the site's records what the library's files are, and stores these; no site is asked.

    What the site itself said is kept, and what it says later replaces what the dump told.

    Args:
        registry: of the library.
        dump: see `find_in_dump`.
        failed: receives what cannot be read of the dump, or not stored.
        progress: called with the bytes of a dump of lines that were read, and with all.

    Raises:
        NotFound, FileRefused: there is no such dump.
    """
    failed = [] if failed is None else failed
    files, asked = _network_files(registry)
    oldest: dict[str, tuple[int, int]] = {}
    for match in find_in_dump(dump, WantedHashes(asked.values()), failed.append, progress):
        with isolate_failure(match.model.id, failed), registry.write():
            store_told(registry, match.model)
            failed += parts_left_out(match.model)
            for sha256, version in match.versions.items():
                oldest[sha256] = min(oldest.get(sha256, (version, match.model.id)), (version, match.model.id))
    with registry.write():
        for sha256, (version, model) in oldest.items():
            registry.catalogue.put_told_lookup(sha256, str(model), str(version))
    known = registry.catalogue.lookups()
    bases = [{"checkpoint": digits, **{k: row[k] for k in ("model_id", "version_id")}} for digits, row in known.items()]
    found = _with_checkpoints(list(_identified(registry, files, asked, failed)), bases)
    return Identification(found.files, [])


def _with_checkpoints(files: list[Row], bases: list[Row]) -> Identification:
    trained = {base["checkpoint"]: base for base in bases}
    for row in files:
        base = trained.get((row.pop("sd_checkpoint") or "").lower(), {})
        row["checkpoint_model_id"], row["checkpoint_version_id"] = base.get("model_id"), base.get("version_id")
    return Identification(files, bases)


def identify_files(
    registry: Registry, civitai: Civitai, *, again: bool = False, failed: list[BadRecord] | None = None
) -> Iterator[Row]:
    """Asks the site about every network file of the library, stores each answer, and yields one row per file.

    A converted file is looked up by the hash of its original.

    Args:
        registry: of the library.
        civitai: is asked.
        again: ask also about files that the site did not know lately.
        failed: receives the records that cannot be used.
    """
    files, asked = _network_files(registry)
    known = registry.catalogue.lookups()
    unknown = sorted({sha for sha in asked.values() if again or _is_due(known.get(sha))})
    failed = [] if failed is None else failed
    answered: set[str | None] = set()
    unheard = set(unknown)
    for found in civitai.ids_by_hash(unknown, failed=failed.append):
        unheard -= found.keys()
        with registry.write():
            for sha256, (model, version) in found.items():
                registry.catalogue.put_lookup(sha256, _text(model), _text(version))
                answered.add(_text(model))
    _fetch_records(registry, civitai, answered, failed)
    yield from _identified(registry, files, asked, failed, unheard)


def _network_files(registry: Registry) -> tuple[list[Row], dict[int, str]]:
    """Returns the network files that are here, and id of each -> the hash by which a site may know it."""
    files = [row for row in registry.files.of_networks() if row["state"] == "present"]
    return files, {row["id"]: str(row["source_sha256"] or row["sha256"]) for row in files}


def _identified(
    registry: Registry,
    files: list[Row],
    asked: dict[int, str],
    failed: Iterable[BadRecord],
    unheard: Collection[str] = (),
) -> Iterator[Row]:
    """Yields what is known of each file by now.

    Args:
        registry: of the library.
        files, asked: see `_network_files`.
        failed: records that cannot be used.
        unheard: hashes about which the site gave no answer.
    """
    reasons = {str(id): bad.reason for bad in failed for id in (bad.id, *bad.about) if id is not None}
    known = registry.catalogue.lookups()
    names = _names(registry)
    trained = {row["content_hash"]: row["sd_checkpoint"] for row in registry.networks.with_checkpoint()}
    for row in files:
        sha256 = asked[row["id"]]
        answer = known.get(sha256, {"model_id": None, "version_id": None})
        is_known, is_unheard = answer["model_id"] is not None, sha256 in unheard
        yield {
            "state": "known" if is_known else "failed" if is_unheard else "unknown",
            "path": row["path"],
            "sha256": sha256,
            "sd_checkpoint": trained.get(row["content_hash"]),
            "model_id": answer["model_id"],
            "version_id": answer["version_id"],
            **names.get(answer["version_id"] or "", {"model": None, "version": None, "creator": None}),
            "reason": "the site gave no answer about it" if is_unheard else reasons.get(answer["model_id"] or ""),
        }


def _is_due(answer: Row | None) -> bool:
    if answer is None or answer["looked_up_at"] == TOLD:
        return True
    age = datetime.now(timezone.utc) - datetime.fromisoformat(answer["looked_up_at"])
    return answer["model_id"] is None and abs(age) > _AGAIN  # abs: the clock may have been wrong


def _fetch_records(registry: Registry, civitai: Civitai, answered: set[str | None], failed: list[BadRecord]) -> None:
    """Fetches the records of models that the site recognized and that the catalog lacks, or has from a dump.

    Args:
        registry: of the library.
        civitai: is asked.
        answered: numbers of the models that the site recognized just now.
        failed: receives the records that cannot be used.
    """
    rows = registry.catalogue.models(source=SOURCE)
    have = {row["remote_id"] for row in rows if row["last_seen"] != TOLD or row["remote_id"] not in answered}
    wanted = {answer["model_id"] for answer in registry.catalogue.lookups().values() if answer["model_id"]} - have
    ids = tuple(sorted(filter(None, map(parse_id, wanted))))
    for page in civitai.pages(Filters(ids=ids), failed=failed.append) if ids else ():
        failed += store_models(registry, page)


def _names(registry: Registry) -> dict[str, Row]:
    rows = registry.catalogue.files(source=SOURCE)
    return {row["version_id"]: {key: row[key] for key in ("model", "version", "creator")} for row in rows}


def identify_checkpoints(registry: Registry, civitai: Civitai, failed: list[BadRecord] | None = None) -> Iterator[Row]:
    """Asks the site about the checkpoints that networks name as their base, and yields one row for each.

    Args:
        registry: of the library.
        civitai: is asked.
        failed: receives those that could not be looked up.
    """
    failed = [] if failed is None else failed
    trained: dict[str, str | None] = {}
    for row in registry.networks.with_checkpoint():
        trained.setdefault(row["sd_checkpoint"].lower(), row["sd_checkpoint_name"])
    known = registry.catalogue.lookups()
    for digits, name in sorted(trained.items()):
        if not _DIGITS.fullmatch(digits):  # a file may hold anything here; only hashes are sent
            continue
        if _is_due(known.get(digits)):
            with isolate_failure(None, failed, f"the checkpoint {digits[:64]}"):
                model, version = _version_of(civitai, digits)
                with registry.write():
                    registry.catalogue.put_lookup(digits, model, version)
                known[digits] = {"model_id": model, "version_id": version}
        if digits not in known:
            continue
        yield {"checkpoint": digits, "name": name, **{k: known[digits][k] for k in ("model_id", "version_id")}}


def _version_of(civitai: Civitai, digits: str) -> tuple[str | None, str | None]:
    try:
        version = civitai.version_by_hash(digits)
    except Gone:
        return None, None
    return _text(version.model_id), _text(version.id)


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


# --- repairing


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


def find_damage(
    registry: Registry, progress: Callable[[int, int], None] = lambda done, total: None, *, by_hash: bool = False
) -> Iterator[Damage]:
    """Reads every installed file, and yields those that are missing or changed; then what imports told of, as missing.

    Args:
        registry: of the library.
        progress: called with the number of files read, and of all.
        by_hash: a network of an import of which no source is known is to be looked for by its sha256.
    """
    installs = [install for install in registry.jobs.installs(kind="network") if install["job_id"] is not None]
    for done, install in enumerate(installs):
        progress(done, len(installs))
        damage = damage_of(registry, install)
        if damage is not None:
            yield damage
    for file in _imported(registry):
        if by_hash and not file.reference:
            file = replace(file, reference=address_of(file.sha256), reference_sha256=file.sha256)
        yield Damage("missing" if file.reference else "unknown", file.name, None, file.sha256, imported=file)


def imported_with_source(registry: Registry) -> list[ImportedFile]:
    """Returns what `find_damage` finds missing of imports: networks that are not here, and can be fetched."""
    return [file for file in _imported(registry) if file.reference]


def _imported(registry: Registry) -> Iterator[ImportedFile]:
    """Yields a file for each network of an import that is not here, with a reference where one is known."""
    for files in registry.imported.by_content().values():
        yield next((file for file in files if file.reference), files[0])


def damage_of(registry: Registry, install: Row) -> Damage | None:
    """Reads an installed file, and returns what is wrong with it; None if nothing is, or it was moved or converted."""
    path = install["path"]
    try:
        what, damaged = _state_of(path, install["sha256"])
        if what is None or (what == "missing" and find_network(registry, install["sha256"]) is not None):
            return None
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


@dataclass(slots=True)
class Repair:
    """What is fetched again, and how.

    Attributes:
        jobs: their numbers.
        wanted: number of a job -> sha256 that its file must have, since the site may have replaced it.
        replaced: number of a job -> damaged files whose places its networks take.
        put_aside: number of a job -> where its damaged files are now whose bytes are elsewhere in the library.
        failed: damages that cannot be repaired.
    """

    jobs: dict[int, None] = field(default_factory=dict)
    wanted: dict[int, str] = field(default_factory=dict)
    replaced: dict[int, list[Replacement]] = field(default_factory=dict)
    put_aside: dict[int, list[Path]] = field(default_factory=dict)
    failed: list[tuple[Damage, HnetkitError]] = field(default_factory=list)


def begin_repair(registry: Registry, damages: Iterable[Damage], library: Path) -> Repair:
    """Queues the jobs of damages; see `requeue_damaged`."""
    repair = Repair()
    for damage in damages:
        aside = requeue_damaged(registry, damage, library)
        if isinstance(aside, HnetkitError):
            repair.failed.append((damage, aside))
        if isinstance(aside, HnetkitError) or damage.job is None:
            continue
        job = damage.job
        repair.jobs[job.id] = None
        # without a hash at the site, only the file of an archive differs from the network that was installed from it
        is_whole = damage.sha256 == job.sha256 if job.sha256 else job.suffix in MODEL_SUFFIXES
        if damage.sha256 and is_whole:
            repair.wanted[job.id] = damage.sha256
        if aside is not None:
            repair.put_aside.setdefault(job.id, []).append(aside)
        elif (old := replacement_of(damage)) is not None:
            repair.replaced.setdefault(job.id, []).append(old)
    return repair


def damaged_by(registry: Registry, jobs: Iterable[int]) -> dict[int, list[Replacement]]:
    """Returns number of a job -> what it installed and is damaged by now, whose places its networks are to take."""
    wanted, found = set(jobs), dict[int, list[Replacement]]()
    for install in registry.jobs.installs(kind="network") if wanted else ():
        damage = damage_of(registry, install) if install["job_id"] in wanted else None
        if damage is not None and (old := replacement_of(damage)) is not None:
            found.setdefault(install["job_id"], []).append(old)
    return found


def requeue_damaged(registry: Registry, damage: Damage, library: Path) -> Path | HnetkitError | None:
    """Queues the job of a damage; returns where the damaged file is now if it was put aside, or the failure.

    A damaged file stays where it is until `replacement_of` is installed, unless its bytes are elsewhere in the library.

    Args:
        registry: of the library.
        damage: to repair.
        library: the folder to install in if the one where the file was is gone.
    """
    path, aside = Path(damage.path), None
    if damage.job is None:
        return HnetkitError(damage.reason or f"{damage.path}: its source is unknown")
    try:
        if damage.what == "corrupt" and damage.damaged is None:
            raise FileRefused(f"{path}: not a file that hnetkit replaces", hint="move it away, then: hnetkit repair")
        state = "missing" if damage.what == "missing" else "corrupt"
        with registry.write():
            registry.files.set_state([row["id"] for row in registry.files.at(damage.path)], state)
        if damage.what == "corrupt" and find_bytes(registry, damage.sha256) is not None:
            aside = quarantine(registry, damage.job, path, f"{path.name}: damaged since it was installed")
            path.unlink(missing_ok=True)
        with registry.write():
            registry.jobs.set_folder(damage.job.id, str(_folder_for(damage, Path(damage.job.folder), library)))
            registry.jobs.requeue(damage.job.id)
    except Exception as error:
        return failure_of(error, damage.path)
    return aside


def _folder_for(damage: Damage, folder: Path, library: Path) -> Path:
    """Returns the folder to fetch into: one on the disk of a damaged file, whose name a rename can take over."""
    if damage.what == "missing":
        return folder if is_folder_at(folder) else library
    beside = Path(damage.path).parent
    return folder if is_folder_at(folder) and folder.stat().st_dev == beside.stat().st_dev else beside


def replacement_of(damage: Damage) -> Replacement | None:
    """Returns what is to be replaced, where a damaged file is still in its place."""
    if damage.what != "corrupt" or damage.damaged is None or damage.sha256 is None:
        return None
    return Replacement(Path(damage.path), damage.damaged, damage.sha256)


def forget_moved(registry: Registry, damages: Iterable[Damage]) -> None:
    """Forgets the paths of files that were fetched again under another name; other damage stays on record."""
    with registry.write():
        for damage in damages:
            is_done = damage.job is not None and registry.jobs.get(damage.job.id).state == "done"
            if is_done and is_absent(damage.path):
                registry.jobs.forget_install(damage.path)
