"""Look after fetched files: ask the site what they are, find damaged ones, and fetch those again."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from hnetkit.errors import FileRefused, Gone, HnetkitError, failure_of
from hnetkit.files import MODEL_SUFFIXES, is_absent, is_folder_at
from hnetkit.library.library import Row
from hnetkit.library.walking import is_as_scanned
from hnetkit.registry.catalogue import TOLD
from hnetkit.registry.imported import ImportedFile
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import SOURCE, Civitai, Filters
from hnetkit.sources.civitai_models import BadRecord, parse_id, parts_left_out
from hnetkit.sources.dumps import WantedHashes, find_in_dump
from hnetkit.sources.install import quarantine
from hnetkit.sources.plans import by_hash as address_of
from hnetkit.sources.presence import Damage, Replacement, damage_of, find_bytes, replacement_of
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
            ``state`` is ``"known"``, ``"unknown"``, ``"failed"`` where nothing was answered, or ``"changed"`` where the
            file is gone or another one since it was scanned, of which nothing is said; ``reason`` says so, or what of a
            known model's record cannot be used.
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
        nothing = {"model_id": None, "version_id": None}
        is_changed = not is_as_scanned(row)
        answer = nothing if is_changed else known.get(sha256, nothing)
        is_known, is_unheard = answer["model_id"] is not None, sha256 in unheard
        reason = "the site gave no answer about it" if is_unheard else reasons.get(answer["model_id"] or "")
        yield {
            "state": "changed" if is_changed else "known" if is_known else "failed" if is_unheard else "unknown",
            "path": row["path"],
            "sha256": sha256,
            "sd_checkpoint": trained.get(row["content_hash"]),
            "model_id": answer["model_id"],
            "version_id": answer["version_id"],
            **names.get(answer["version_id"] or "", {"model": None, "version": None, "creator": None}),
            "reason": "gone or changed since: hnetkit scan" if is_changed else reason,
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


def cut_short(registry: Registry) -> list[int]:
    """Returns the jobs that were killed after their file was in place: their parts lie beside it, or sidecars lack."""
    return [
        job.id
        for job in registry.jobs.unfinished()
        if is_folder_at(job.folder) and find_bytes(registry, job.sha256) is not None
    ]


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
        with registry.write():
            ids = [row["id"] for row in registry.files.at(damage.path)]
            registry.files.set_missing(ids) if damage.what == "missing" else registry.files.set_state(ids, "corrupt")
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


def forget_moved(registry: Registry, damages: Iterable[Damage]) -> None:
    """Forgets the paths of files that were fetched again under another name; other damage stays on record."""
    with registry.write():
        for damage in damages:
            is_done = damage.job is not None and registry.jobs.get(damage.job.id).state == "done"
            if is_done and is_absent(damage.path):
                registry.jobs.forget_install(damage.path)
