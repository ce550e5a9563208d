"""What became of each thing that was to be fetched, and the error that this is where it did not come."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from hnetkit import errors
from hnetkit.errors import HnetkitError, PartlyFailed
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.pages import BadRecord
from hnetkit.sources.plan import Item
from hnetkit.sources.repair import Damage
from hnetkit.sources.sync import Plan

_STATES = {"fetch": "fetch", "have": "have", "skip": "skipped"}


@dataclass(frozen=True, slots=True)
class FetchResult:
    """One file of a site, or one record of it, and what became of it.

    Attributes:
        state: ``"done"``; ``"had"``, ``"have"``: here already, found while fetching or before; ``"skipped"``,
            ``"kept"``, ``"refused"``, ``"failed"``: for `reason`; ``"fetch"``: planned; ``"listed"``, ``"archived"``,
            ``"taken-down"``, ``"gone"``: what the site says of a model that it does not list any more.
        name: the file's, or ``model:ID``, or what was asked for.
        code, reason: why it did not come, for programs and for people.
        model, version, model_id, version_id, file_id: the site's own names and numbers.
        sha256, size_bytes: as the site says.
        paths: where it is now; several where it was an archive.
        job: its number in the registry.
        error: what was raised, where nothing could be asked for.
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
    job: int | None = None
    error: HnetkitError | None = None

    @property
    def is_failed(self) -> bool:
        """Whether it did not come, or not all of it, for a reason that is no choice of anybody's."""
        return self.state in ("failed", "refused") or self.code == "partly"


def of_item(item: Item) -> FetchResult:
    """A file for which nothing was done."""
    return FetchResult(
        _STATES[item.action],
        item.file.name,
        item.code,
        item.reason,
        item.model.name,
        item.version.name,
        item.model.id,
        item.version.id,
        item.file.id,
        item.file.sha256,
        item.file.size_bytes,
    )


def of_plan(plan: Plan) -> list[FetchResult]:
    """What would become of everything that is planned."""
    return [*map(of_record, plan.failed), *map(of_item, plan.items)]


def of_job(registry: Registry, job: Job) -> FetchResult:
    """A job at its end."""
    with registry.write():
        installs = registry.jobs.installs(job=job.id, kind="network")
        about = registry.catalogue.file(job.remote_file_id) if job.remote_file_id else {}
    had = job.state == "done" and job.code == "had"
    here = [job.reason or ""] if had else [i["path"] for i in installs if os.path.lexists(i["path"])]
    return FetchResult(
        "had" if had else job.state,
        f"{job.name}{job.suffix}",
        job.code,
        job.reason,
        about.get("model"),
        about.get("version"),
        about.get("model_id"),
        about.get("version_id"),
        about.get("file_id"),
        job.sha256,
        job.size_bytes,
        tuple(here) if job.state == "done" else (),
        job.id,
    )


def of_record(bad: BadRecord) -> FetchResult:
    """A record of the site that cannot be used."""
    name = "a record of the list" if bad.id is None else f"model:{bad.id}"
    return FetchResult("refused", name, "record", bad.reason, model_id=bad.id)


def of_error(error: HnetkitError, name: str) -> FetchResult:
    """A reference with which nothing could be done."""
    return FetchResult("failed", name, getattr(error, "code", "failed"), str(error), error=error)


def of_unlisted(id: str, state: str) -> FetchResult:
    """A known model that a list of everything did not hold, and what the site says when it is asked about it."""
    return FetchResult(state, f"model:{id}", reason="not listed any more; kept here")


def not_there(id: int) -> FetchResult:
    """A model that was asked for by its number, and that the site does not have."""
    return FetchResult("failed", f"model:{id}", "gone", "the site has none")


def of_kept(damage: Damage) -> FetchResult:
    """A place of an installed file at which another network lies now."""
    return FetchResult("kept", damage.path, "kept", "another network lies there, which is kept")


def of_damage(damage: Damage, error: HnetkitError) -> FetchResult:
    """An installed file that is damaged, and that cannot be fetched again."""
    return FetchResult("failed", damage.path, "disk", str(error))


def require_all(results: Iterable[FetchResult]) -> None:
    """Does nothing where everything came, or need not.

    Raises:
        HnetkitError: the failure of the only one there is, as its own class with its own exit code.
        PartlyFailed: some of several.
    """
    results = list(results)
    failed = [result for result in results if result.is_failed]
    if not failed:
        return
    if len(results) == 1 and failed[0].state != "done":
        raise _as_error(failed[0])
    codes = {result.code for result in failed if result.state != "refused" and result.error is None}
    hint = _HINTS.get(str(codes.pop())) if len(codes) == 1 else None
    raise PartlyFailed(f"{len(failed)} of {len(results)} did not come", hint=hint or "the same command tries again")


def _as_error(result: FetchResult) -> HnetkitError:
    if result.error is not None:
        return result.error
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and getattr(k, "code", None) == result.code]
    kind = kinds[0] if kinds else errors.FileRefused if result.state == "refused" else errors.NetworkFailed
    error: HnetkitError = kind(result.reason or result.name, hint=_HINTS.get(str(result.code)))
    return error


_HINTS = {
    "no-token": "export CIVITAI_TOKEN=... (for hf: HF_TOKEN), and run the same command again",
    "rate-limited": "run the same command again later: it goes on from here",
    "network": "run the same command again: it goes on from here",
    "refused": "what is kept of it is in the library's folder .quarantine",
    "wrong-bytes": "what is kept of it is in the library's folder .quarantine",
    "defect": "this is a defect of hnetkit: please report it; what came is in the library's folder .quarantine",
    "partly": "what is kept of the archive is in the library's folder .quarantine",
    "disk-full": "make room, or set HNETKIT_LIBRARY to another disk",
}
