"""What the fetching commands share: their options, the desk, carrying jobs out, and how a file reads."""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from hnetkit import paths
from hnetkit.cli.library import open_registry
from hnetkit.cli.output import Output, Row
from hnetkit.errors import HnetkitError, PartlyFailed, UsageError
from hnetkit.text import counted

if TYPE_CHECKING:
    from hnetkit.registry.jobs import Job
    from hnetkit.registry.store import Registry
    from hnetkit.sources.desk import Desk
    from hnetkit.sources.pages import BadRecord
    from hnetkit.sources.plan import Item

F = TypeVar("F", bound=Callable[..., Any])
FILE_COLUMNS = ["state", "name", "size", "model", "version", "reason"]
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmg]?)", re.IGNORECASE)


def fetch_options(command: F) -> F:
    """Adds --parallel, --limit-rate, --no-previews and --no-sidecars; the command receives `fetching: dict`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        fetching = {"parallel": kwargs.pop("parallel"), "limit": kwargs.pop("limit_rate")}
        fetching |= {"previews": not kwargs.pop("no_previews"), "sidecars": not kwargs.pop("no_sidecars")}
        return command(*args, fetching=fetching, **kwargs)

    decorated: Any = wrapper
    for option in (
        click.option("--no-sidecars", is_flag=True, help="Write nothing beside the networks."),
        click.option("--no-previews", is_flag=True, help="Fetch no example pictures."),
        click.option(
            "--limit-rate", metavar="RATE", callback=_rate, help="Bytes a second for all files together: 500k, 2M."
        ),
        click.option("--parallel", type=click.IntRange(1, 16), default=2, show_default=True, help="Files at a time."),
    ):
        decorated = option(decorated)
    return cast(F, decorated)


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = _SIZE.fullmatch(value.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--limit-rate {value}: not a number of bytes", hint="for example 500k or 2M")
    return float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()]


@contextmanager
def open_desk(*, look_only: bool = False, **settings: Any) -> Iterator[Desk]:
    """Everything that fetching needs, with the person's registry and library; `look_only` makes no registry."""
    from hnetkit.registry.store import Registry
    from hnetkit.sources.civitai import Civitai
    from hnetkit.sources.desk import Desk
    from hnetkit.sources.pace import RealClock

    with ExitStack() as stack:
        if look_only and not paths.registry_file().exists():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            registry = stack.enter_context(Registry(Path(folder) / "registry.db"))
        else:
            registry = stack.enter_context(open_registry())
        clock = RealClock()
        yield Desk(registry, paths.library_folder(), clock, Civitai(clock), **settings)


def carried_out(desk: Desk, jobs: list[int], output: Output, *, total: int | None = None) -> list[Row]:
    """Runs jobs under a progress bar and returns a row for each."""
    from hnetkit.cli.progress import byte_progress
    from hnetkit.sources.pace import Stopped

    if total is None:
        total = sum(desk.registry.jobs.get(job).size_bytes or 0 for job in jobs)
    rows = []
    with byte_progress("fetching", quiet=output.quiet) as report:
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            report(done, max(total, done))

        try:
            for job in desk.run(jobs, progress):
                rows.append(_job_row(desk.registry, job))
        except Stopped as stop:
            ended = Stopped(f"stopped after {len(rows)} of {counted(len(jobs), 'file')}", hint=stop.hint)
            ended.exit_code = stop.exit_code
            raise ended from stop
    return rows


def leave(rows: Iterable[Row], failures: list[HnetkitError]) -> None:
    """Ends with the exit code that a single failure has, or with 1 where some of several failed."""
    rows = list(rows)
    failed = [row for row in rows if row["state"] in ("failed", "refused") or row.get("code") == "partly"]
    if not failed and not failures:
        return
    if len(rows) + len(failures) == 1 and failed and failed[0]["state"] != "done":
        raise _as_error(failed[0])
    codes = {row["code"] for row in failed if row["state"] != "refused"}
    hint = _HINTS.get(codes.pop()) if len(codes) == 1 else None
    raise PartlyFailed(
        f"{len(failed) + len(failures)} of {len(rows) + len(failures)} did not come",
        hint=hint or "the same command tries again",
    )


def _as_error(row: Row) -> HnetkitError:
    from hnetkit import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and getattr(k, "code", None) == row["code"]]
    kind = kinds[0] if kinds else errors.FileRefused if row["state"] == "refused" else errors.NetworkFailed
    error: HnetkitError = kind(row["reason"] or row["name"], hint=_HINTS.get(row["code"]))
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


def not_there(id: int) -> Row:
    return {"state": "failed", "name": f"model:{id}", "code": "gone", "reason": "the site has none", "paths": []}


def bad_row(bad: BadRecord) -> Row:
    name = "a record of the list" if bad.id is None else f"model:{bad.id}"
    return {"state": "refused", "name": name, "code": "record", "reason": bad.reason, "model_id": bad.id, "paths": []}


def note_bad(failed: Iterable[BadRecord], output: Output) -> None:
    """Names what could not be used, and ends with exit code 1 where there is any.

    Raises:
        PartlyFailed: there is some.
    """
    failed = list(failed)
    for bad in failed:
        output.note(f"Error: {'' if bad.id is None else f'model:{bad.id}: '}{bad.reason}")
    if failed:
        raise PartlyFailed(f"{counted(len(failed), 'record')} of the site cannot be used", hint="the others were used")


def item_row(item: Item) -> Row:
    return {
        "state": {"fetch": "fetch", "have": "have", "skip": "skipped"}[item.action],
        "name": item.file.name,
        "size": size_text(item.file.size_bytes),
        "model": item.model.name,
        "version": item.version.name,
        "reason": item.reason,
        "code": item.code,
        "model_id": item.model.id,
        "version_id": item.version.id,
        "file_id": item.file.id,
        "sha256": item.file.sha256,
        "size_bytes": item.file.size_bytes,
        "paths": [],
    }


def _job_row(registry: Registry, job: Job) -> Row:
    with registry.write():
        installs = registry.jobs.installs(job=job.id, kind="network")
        listed = [registry.catalogue.file(job.remote_file_id)] if job.remote_file_id else []
    about = listed[0] if listed else {}
    had = job.state == "done" and job.code == "had"
    return {
        "state": "had" if had else job.state,
        "name": f"{job.name}{job.suffix}",
        "size": size_text(job.size_bytes),
        "model": about.get("model"),
        "version": about.get("version"),
        "reason": job.reason,
        "code": job.code,
        "model_id": about.get("model_id"),
        "version_id": about.get("version_id"),
        "file_id": about.get("file_id"),
        "sha256": job.sha256,
        "size_bytes": job.size_bytes,
        "paths": [job.reason]
        if had
        else [i["path"] for i in installs if os.path.lexists(i["path"])]
        if job.state == "done"
        else [],
    }


def file_line(row: Row) -> str | list[str]:
    if row.get("paths"):
        lines = [f"{row['state']:<9}{path}" for path in row["paths"]]
        return [*lines, f"         {row['reason']}"] if row.get("code") == "partly" else lines
    reason = (row["reason"] or "").removeprefix(f"{row['name']}: ")
    detail = f"  ({reason})" if reason else f"  {row.get('size') or ''}"
    return f"{row['state']:<9}{row['name']}{detail}"


def size_text(size_bytes: int | None) -> str | None:
    if size_bytes is None:
        return None
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"
