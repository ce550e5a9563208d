"""Results of fetching, one per file or record, and the error that they amount to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hnetkit import errors
from hnetkit.errors import HnetkitError, PartlyFailed
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai_models import BadRecord
from hnetkit.sources.plans import FetchItem, FetchPlan
from hnetkit.sources.presence import Damage, Replacement, path_of_install
from hnetkit.text import argument

NO_SOURCE = "no source of it is known; where you have its file: hnetkit scan FOLDER"
"""Why a network of an import is not fetched."""
_ARCHIVED = "archived by its owner; the site no longer serves its files"
_NO_FILE = "it has no file that may be a network"
_STATES = {"fetch": "fetch", "have": "have", "skip": "skipped"}


@dataclass(frozen=True, slots=True)
class FetchResult:
    """Result for one file of a site, or for one of its records.

    Attributes:
        state: ``"done"``; ``"had"`` or ``"have"``: in the library already, found while fetching or before;
            ``"skipped"``, ``"kept"``, ``"unknown"``, ``"refused"`` or ``"failed"``, see `reason`; ``"fetch"``: planned;
            ``"listed"``, ``"archived"``, ``"taken-down"``, ``"gone"``: state of a model that the site's listing lacks.
        name: of the file, or ``model:ID``, or the reference.
        code, reason: why it failed or was skipped, for programs and for people.
        model, version, model_id, version_id, file_id: the site's own names and numbers.
        sha256, size_bytes: as the site states.
        paths: in the library; several for an archive.
        place: where a file was that is missing, or damaged and not replaced; of an import, its name.
        job: its number in the registry.
        error: raised for a reference that could not be resolved.
    """

    state: str
    name: str
    code: str | None = None
    reason: str | None = None
    model: str | None = None
    version: str | None = None
    model_id: int | str | None = None
    version_id: int | str | None = None
    file_id: int | str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    paths: tuple[str, ...] = ()
    place: str | None = None
    job: int | None = None
    error: HnetkitError | None = None

    @property
    def is_failed(self) -> bool:
        """Whether the file, or part of it, failed; a skipped file did not."""
        return self.state in ("failed", "refused") or self.code == "partly"


def of_item(item: FetchItem) -> FetchResult:
    """Returns the result of an item without a job."""
    return FetchResult(
        _STATES[item.action],
        item.name,
        item.code,
        item.reason,
        item.model,
        item.version,
        item.model_id,
        item.version_id,
        item.file_id,
        item.sha256,
        item.size_bytes,
        () if item.path is None else (item.path,),
    )


def of_plan(plan: FetchPlan) -> list[FetchResult]:
    """Returns the results that a plan foresees, one per file, unusable record and unresolved reference."""
    return [
        *of_errors(plan),
        *map(of_record, plan.failed),
        *of_absent(plan),
        *map(of_lost, plan.lost),
        *map(of_item, plan.items),
    ]


def of_lost(item: FetchItem) -> FetchResult:
    """Returns the result of a file that is here, and no longer in its repository."""
    return replace(of_item(item), state="gone", reason="not in the repository any more; kept here")


def of_errors(plan: FetchPlan) -> list[FetchResult]:
    """Returns the results of the references that could not be resolved."""
    return [of_error(text, error) for text, error in plan.errors]


def of_error(text: str, error: HnetkitError) -> FetchResult:
    """Returns the result of a reference that could not be resolved."""
    return FetchResult("failed", text, getattr(error, "code", "failed"), str(error), error=error)


def of_absent(plan: FetchPlan) -> list[FetchResult]:
    """Returns the results of the models that the site does not have, or lists without a file that may be a network."""
    missing = [FetchResult("failed", f"model:{id}", "gone", "the site has none") for id in plan.missing]
    return missing + [
        FetchResult(
            "skipped",
            f"model:{model.id}",
            *(("archived", _ARCHIVED) if model.state == "archived" else ("no-file", _NO_FILE)),
            model=model.name,
            model_id=model.id,
        )
        for model in plan.empty
    ]


def of_job(registry: Registry, job: Job, removed: Mapping[str, str]) -> FetchResult:
    """Returns the result of a job that has ended.

    Args:
        removed: as `hnetkit.library.restore.trashed` gives it; what is fetched all the same was asked for by name.
    """
    with registry.write():
        installs = registry.jobs.installs(job=job.id, kind="network")
        # of a file that its owner replaced, the earlier one stays where it is; one that is damaged is not here
        installs = [install for install in installs if install["sha256"] == job.sha256] or installs
        found = dict.fromkeys(path_of_install(registry, install) for install in installs)
        about = registry.catalogue.file(job.remote_file_id) if job.remote_file_id else {}
    had = job.state == "done" and job.code == "had"
    code, reason = job.code, job.reason
    if job.source == "huggingface" and (job.state, code) == ("done", None):
        apart = [path for path in found if path is not None and Path(path).stem.startswith(f"{job.name}-")]
        code, reason = ("named", _why_apart(registry, job.name, apart[0])) if apart else (code, reason)
    again = dict.fromkeys(removed[install["sha256"]] for install in installs if install["sha256"] in removed)
    if again and job.state == "done" and not had:
        said = f"what was known of it is in the trash: hnetkit remove --undo {' '.join(map(argument, again))}"
        code, reason = code or "in-trash", f"{reason}; {said}" if reason else said
    here = [job.reason or ""] if had else [path for path in found if path is not None]
    return FetchResult(
        "had" if had else job.state,
        f"{job.name}{job.suffix}",
        code,
        reason,
        about.get("model"),
        about.get("version"),
        about.get("model_id"),
        about.get("version_id"),
        about.get("file_id"),
        job.sha256,
        job.size_bytes,
        tuple(here) if job.state == "done" else (),
        job=job.id,
    )


def _why_apart(registry: Registry, name: str, path: str) -> str:
    """Why a file has not the name that its repository gives it."""
    contents = {row["content_hash"] for row in registry.files.at(path)}
    near = (row for row in registry.files.named(name) if Path(row["path"]).parent == Path(path).parent)
    same = next((Path(row["path"]).name for row in near if row["content_hash"] in contents), None)
    return f"another network has the name {name}" if same is None else f"the same network is there as {same}"


def of_repair(result: FetchResult, damaged: Sequence[Replacement], put_aside: Sequence[Path] = ()) -> FetchResult:
    """Returns a result that says also where damaged files are.

    Args:
        result: of the job that fetches them again.
        damaged: are still in their places if it failed.
        put_aside: in quarantine, since the library has their bytes elsewhere.
    """
    if put_aside and result.state in ("done", "had"):
        aside = ", ".join(map(str, put_aside))
        return replace(result, code="replaced", reason=f"the damaged file is now {aside}")
    if result.state not in ("failed", "refused") or not damaged:
        return result
    kept = ", ".join(str(old.path) for old in damaged)
    return replace(result, reason=f"{result.reason}; the damaged file stays: {kept}")


def of_record(bad: BadRecord) -> FetchResult:
    """Returns the result of a record that cannot be used."""
    name = "a record of the list" if bad.id is None else f"model:{bad.id}"
    return FetchResult("refused", name, "record", bad.reason, model_id=bad.id)


def of_unlisted(id: str, state: str) -> FetchResult:
    """Returns the result of a known model that the listing lacks; `state` is what the site answers about it."""
    what = "the site has it, but its list does not" if state == "listed" else "not listed any more"
    return FetchResult(state, f"model:{id}", reason=f"{what}; kept here")


def of_damage(damage: Damage) -> FetchResult:
    """Returns the result of damage that is only looked at."""
    told = damage.imported
    reason = damage.reason if told is None else f"from {told.reference}" if told.reference else NO_SOURCE
    return FetchResult(
        damage.what,
        Path(damage.path).name,
        reason=reason,
        sha256=damage.sha256,
        size_bytes=damage.size_bytes,
        place=damage.path,
        job=None if damage.job is None else damage.job.id,
    )


def of_left(damage: Damage) -> FetchResult:
    """Returns the result of what is not fetched: another network is in its place, or its source is unknown."""
    if damage.what == "unknown":
        return FetchResult("unknown", damage.path, "no-source", NO_SOURCE, sha256=damage.sha256, place=damage.path)
    return FetchResult("kept", damage.path, "kept", "another network is there, and is kept", place=damage.path)


def of_irreparable(damage: Damage, error: HnetkitError) -> FetchResult:
    """Returns the result of a damaged file that cannot be fetched again."""
    code = getattr(error, "code", "unread" if damage.what == "failed" else "disk")
    return FetchResult("failed", damage.path, code, str(error), sha256=damage.sha256, place=damage.path)


def require_all(results: Iterable[FetchResult]) -> None:
    """Raises an error if any result is a failure.

    Raises:
        HnetkitError: the failure of a single result, with its own class and exit code.
        PartlyFailed: some of several failed.
    """
    results = list(results)
    failed = [result for result in results if result.is_failed]
    if not failed:
        return
    if len(results) == 1 and failed[0].code != "partly":
        raise _as_error(failed[0])
    lasting = [result for result in failed if result.state == "refused"]
    passing = [result for result in failed if result.state != "refused" and result.error is None]
    codes = {result.code for result in passing or lasting}
    hint = _HINTS.get(str(codes.pop())) if len(codes) == 1 else None
    if hint is None and len(lasting) == len(failed):
        hint = "they would be refused again"
    wrong = [result.error for result in failed if result.error is not None]
    if hint is None and len(wrong) == len(failed) and all(error.exit_code in (2, 4) for error in wrong):
        hint = wrong[0].command_hint if len(wrong) == 1 else None
        hint = hint or ("correct them" if len(failed) == len(results) else "correct them; the others were fetched")
    raise PartlyFailed(f"{len(failed)} of {len(results)} failed", hint=hint or "run the same command to try again")


def _as_error(result: FetchResult) -> HnetkitError:
    if result.error is not None:
        return result.error
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and getattr(k, "code", None) == result.code]
    kind = kinds[0] if kinds else errors.FileRefused if result.state == "refused" else HnetkitError
    error: HnetkitError = kind(result.reason or result.name, hint=_HINTS.get(str(result.code)))
    return error


_HINTS = {
    "no-token": "export CIVITAI_TOKEN=... (for hf: HF_TOKEN), and run the same command again",
    "no-access": "that is up to the owner; sync asks again after a day",
    "early-access": "run the same command again after that date",
    "rate-limited": "run the same command again later to resume",
    "network": "run the same command again to resume",
    "other-content": "hnetkit pull model:ID fetches what the site has now",
    "refused": "what was kept is in the library's folder .quarantine",
    "wrong-bytes": "what was kept is in the library's folder .quarantine",
    "defect": "this is a defect of hnetkit: please report it; what was kept is in the library's folder .quarantine",
    "partly": "the archive, if kept, is in the library's folder .quarantine",
    "archive": "extract it (it is in the library's folder .quarantine), then: hnetkit scan FOLDER",
    "unread": "see that it can be read and that its disk is there, or move it away; then: hnetkit repair",
    "disk": "see that the library's folder is there and can be written; HNETKIT_LIBRARY names another",
    "disk-full": "make room, or set HNETKIT_LIBRARY to another disk",
}
