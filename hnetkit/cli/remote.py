"""`hnetkit browse`, `pull`, `sync` and `updates`: networks from Civitai and Hugging Face."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hnetkit import paths
from hnetkit.cli.library import open_registry
from hnetkit.cli.output import Output, Row, confirm, output_options
from hnetkit.errors import HnetkitError, NotFound, PartlyFailed, UsageError, printable

if TYPE_CHECKING:
    from hnetkit.registry.jobs import Job
    from hnetkit.registry.store import Registry
    from hnetkit.sources.civitai import Filters
    from hnetkit.sources.desk import Desk
    from hnetkit.sources.plan import Item
    from hnetkit.sources.shapes import Model
    from hnetkit.sources.sync import Plan

F = TypeVar("F", bound=Callable[..., Any])
_MODELS = ["id", "name", "creator", "base_models", "size", "downloads", "strength", "license", "updated"]
_FILES = ["state", "name", "size", "model", "version", "reason"]
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmg]?)", re.IGNORECASE)


def fetch_options(command: F) -> F:
    """Adds --parallel, --limit-rate and --no-previews; the command receives them under these names."""
    for option in (
        click.option("--no-previews", is_flag=True, help="Fetch no example pictures."),
        click.option(
            "--limit-rate", metavar="RATE", callback=_rate, help="Bytes a second for all files together: 500k, 2M."
        ),
        click.option("--parallel", type=click.IntRange(1, 16), default=2, show_default=True, help="Files at a time."),
    ):
        command = option(command)
    return command


def filter_options(command: F) -> F:
    """Adds the options that choose models on the site."""
    for option in (
        click.option("--nsfw", is_flag=True, help="Include what the site marks as not safe for work."),
        click.option("--base-model", "base_models", multiple=True, help="Only for this base model, as in 'SD 1.5'."),
        click.option("--tag", help="Only models with this tag."),
        click.option("--creator", help="Only models of this user."),
    ):
        command = option(command)
    return command


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


@click.command("browse")
@click.argument("words", nargs=-1, metavar="[QUERY]")
@filter_options
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Models to show.")
@output_options
def browse_command(
    words: tuple[str, ...],
    creator: str | None,
    tag: str | None,
    base_models: tuple[str, ...],
    nsfw: bool,
    limit: int,
    output: Output,
) -> None:
    """Search Civitai for hypernetworks.

    Shows base model, size, licence, downloads, and the strength that example pictures used.

    \b
    Examples:
      hnetkit browse watercolor
      hnetkit browse --creator luisa_pinguin --base-model "SD 1.5" --json
    """
    from hnetkit.sources.civitai import Filters

    filters = Filters(" ".join(words) or None, creator, tag, base_models, nsfw=nsfw)
    found: list[Model] = []
    with open_desk(look_only=True) as desk:
        for page in desk.civitai.pages(filters):
            found += page
            if len(found) >= limit:
                break
    output.rows([_model_row(model) for model in found[:limit]], columns=_MODELS)
    if found:
        output.note("hnetkit pull model:ID fetches one")
    else:
        output.note("nothing found" + ("" if nsfw else "; --nsfw also shows what the site marks so"))


@click.command("pull")
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@click.option("--sha256", help="What a plain https file must have; fetched from no one without it.")
@click.option("--all-versions", is_flag=True, help="All versions of a model, not only the newest.")
@fetch_options
@output_options
def pull_command(
    refs: tuple[str, ...],
    sha256: str | None,
    all_versions: bool,
    parallel: int,
    limit_rate: float | None,
    no_previews: bool,
    output: Output,
) -> None:
    """Fetch networks into the library.

    REF is the address of a model or version on any of Civitai's hosts, model:ID, version:ID, an AIR urn, a hash,
    hf:owner/repo[@revision][:glob], or a plain https address with --sha256. Each file is checked before it is
    installed; what is no usable network goes to the library's folder .quarantine.

    \b
    Examples:
      hnetkit pull https://civitai.com/models/4209
      hnetkit pull version:4931 hf:someone/hypernetworks:*.pt
    """
    from hnetkit.sources.pull import jobs_for
    from hnetkit.sources.refs import ref_of

    meant = [ref_of(ref) for ref in refs]
    failures: list[HnetkitError] = []
    with open_desk(parallel=parallel, limit=limit_rate, previews=not no_previews) as desk:
        jobs: list[int] = []
        rows: list[Row] = []
        for ref in meant:
            try:
                ready, there = jobs_for(desk, ref, sha256=sha256, all_versions=all_versions)
            except HnetkitError as error:
                if len(meant) == 1:
                    raise
                failures.append(error)
                output.note(f"Error: {error}")
                continue
            jobs += [job for job in ready if job not in jobs]
            rows += [_item_row(item) for item in there]
        rows += carried_out(desk, jobs, output)
    output.rows(rows, columns=_FILES, text=file_line)
    leave(rows, failures)


@click.command("sync")
@click.argument("name", required=False)
@click.option("--query", help="Only what the site finds for these words.")
@filter_options
@click.option("--favorites", is_flag=True, help="Only what the token's owner marked as favourite.")
@click.option("--ids", help="Only these models: numbers with commas between, or @FILE with one on each line.")
@click.option("--save", metavar="NAME", help="Remember these filters: `hnetkit sync NAME` means them from now on.")
@click.option("--subscriptions", is_flag=True, help="List what was saved, and fetch nothing.")
@click.option("--all-versions", is_flag=True, help="All versions of each model, not only the newest.")
@click.option("--dry-run", is_flag=True, help="Show the plan with sizes, and touch nothing.")
@click.option("--metadata-only", is_flag=True, help="Keep what the site says, and fetch no file.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@fetch_options
@output_options
def sync_command(
    name: str | None,
    query: str | None,
    creator: str | None,
    tag: str | None,
    base_models: tuple[str, ...],
    nsfw: bool,
    favorites: bool,
    ids: str | None,
    save: str | None,
    subscriptions: bool,
    all_versions: bool,
    dry_run: bool,
    metadata_only: bool,
    yes: bool,
    parallel: int,
    limit_rate: float | None,
    no_previews: bool,
    output: Output,
) -> None:
    """Mirror hypernetworks of Civitai into the library.

    Without filters, all of the type, after showing how much that is and asking. NAME is a saved choice. What is
    here already is not fetched again, what is left out is said with the reason, and what the site lost stays here.
    An interrupted sync goes on where it stopped.

    \b
    Examples:
      hnetkit sync --dry-run
      hnetkit sync --creator luisa_pinguin --save luisa
      hnetkit sync luisa
    """
    from hnetkit.sources.civitai import Filters

    settings = {"parallel": parallel, "limit": limit_rate, "previews": not no_previews, "nsfw": nsfw}
    with open_desk(look_only=dry_run, **settings) as desk:
        if subscriptions:
            output.rows(desk.registry.subscriptions.rows(), columns=["name", "filters", "synced_at"])
            return
        chosen = Filters(query, creator, tag, base_models, _ids(ids), favorites, nsfw)
        if name is not None:
            if chosen != Filters(nsfw=nsfw):
                raise UsageError("a saved name has its own filters", hint=f"hnetkit sync {name}")
            chosen = _saved(desk.registry, name)
        if save is not None and not dry_run:
            with desk.registry.write():
                desk.registry.subscriptions.put(save, chosen.as_dict())
        rows = _synced(desk, chosen, all_versions, dry_run, metadata_only, yes, output)
        if not dry_run:
            with desk.registry.write():
                for synced in {name, save} - {None}:
                    desk.registry.subscriptions.synced(str(synced))
    output.rows(rows, columns=_FILES, text=file_line)
    leave(rows, [])


def _synced(
    desk: Desk, filters: Filters, all_versions: bool, dry_run: bool, metadata_only: bool, yes: bool, output: Output
) -> list[Row]:
    from hnetkit.cli.progress import step_progress
    from hnetkit.sources.plan import enqueue
    from hnetkit.sources.sync import ask_about, missing, plan_sync, store

    with step_progress("listing", quiet=output.quiet) as report:
        plan = plan_sync(
            desk.registry, desk.civitai, filters, all_versions=all_versions, listed=lambda count: report(count, count)
        )
    output.note(_plan_note(plan))
    if dry_run:
        return [_item_row(item) for item in plan.items]
    if not filters.as_dict().keys() - {"nsfw"} and plan.to_fetch and not metadata_only:
        confirm(f"Fetch {len(plan.to_fetch)} files, {_size(plan.bytes_to_fetch)}, into {desk.folder}?", yes=yes)
    store(desk.registry, plan.models)
    lost: list[Row] = [_not_there(id) for id in filters.ids if id not in {model.id for model in plan.models}]
    if not filters.as_dict().keys() - {"nsfw"}:
        for id, state in ask_about(desk.registry, desk.civitai, desk.clock, missing(desk.registry, plan.models)):
            lost.append({"state": state, "name": f"model:{id}", "reason": "not listed any more; kept here"})
    if metadata_only:
        return lost
    with desk.registry.write():
        jobs = [job.id for job in enqueue(desk.registry, desk.civitai, desk.folder, plan.items)]
    skipped = [_item_row(item) for item in plan.items if item.action == "skip"]
    return [*lost, *skipped, *carried_out(desk, jobs, output, total=plan.bytes_to_fetch)]


@click.command("updates")
@output_options
def updates_command(output: Output) -> None:
    """Show models of which the site has a newer version than the library.

    \b
    Examples:
      hnetkit updates
      hnetkit updates --json
    """
    from hnetkit.sources.sync import updates

    with open_desk() as desk:
        rows = [
            {
                "model_id": update.model.id,
                "model": update.model.name,
                "have": list(update.have),
                "newest": update.newest.version.name,
                "version_id": update.newest.version.id,
                "published": (update.newest.version.published_at or "")[:10],
                "size": _size(update.newest.file.size_bytes),
            }
            for update in updates(desk.registry, desk.civitai)
        ]
    output.rows(rows, columns=["model_id", "model", "have", "newest", "version_id", "published", "size"])
    output.note("hnetkit pull version:ID fetches one" if rows else "nothing newer")


# --- carrying out


def carried_out(desk: Desk, jobs: list[int], output: Output, *, total: int | None = None) -> list[Row]:
    """Runs jobs under a progress bar and returns a row for each."""
    from hnetkit.cli.progress import byte_progress

    if total is None:
        total = sum(desk.registry.jobs.get(job).size_bytes or 0 for job in jobs)
    rows = []
    with byte_progress("fetching", quiet=output.quiet) as report:
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            report(done, max(total, done))

        for job in desk.run(jobs, progress):
            rows.append(_job_row(desk.registry, job))
    return rows


def leave(rows: Iterable[Row], failures: list[HnetkitError]) -> None:
    """Ends with the exit code that a single failure has, or with 1 where some of several failed."""
    rows = list(rows)
    failed = [row for row in rows if row["state"] in ("failed", "refused")]
    if not failed and not failures:
        return
    if len(rows) + len(failures) == 1 and failed:
        raise _as_error(failed[0])
    raise PartlyFailed(
        f"{len(failed) + len(failures)} of {len(rows) + len(failures)} did not come",
        hint="the same command tries again",
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
    "refused": "it is kept in the library's folder .quarantine",
    "wrong-bytes": "it is kept in the library's folder .quarantine",
    "disk-full": "make room, or set HNETKIT_LIBRARY to another disk",
}


def _ids(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        given = Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text
    except OSError as error:
        raise NotFound(f"{text[1:]}: {error.strerror}") from error
    words = [word for word in re.split(r"[\s,]+", given) if word]
    if not words or not all(word.isdigit() for word in words):
        raise UsageError(
            f"--ids {text[:60]}: not numbers of models", hint="for example --ids 4209,3810 or --ids @list.txt"
        )
    return tuple(dict.fromkeys(map(int, words)))


def _saved(registry: Registry, name: str) -> Filters:
    from hnetkit.sources.civitai import Filters

    for row in registry.subscriptions.rows():
        if row["name"] == name:
            return Filters.of(row["filters"])
    raise NotFound(f"no choice was saved as {name}", hint="hnetkit sync --subscriptions lists them")


# --- rows


def _model_row(model: Model) -> Row:
    from hnetkit.sources.plan import model_files

    newest = next((version for version in model.versions if version.files), None)
    strengths = [version.strength for version in model.versions if version.strength is not None]
    return {
        "id": model.id,
        "name": model.name,
        "creator": model.creator,
        "base_models": sorted({version.base_model for version in model.versions if version.base_model}),
        "size": _size(sum(file.size_bytes or 0 for file in model_files(newest)) if newest else None),
        "size_bytes": sum(file.size_bytes or 0 for file in model_files(newest)) if newest else None,
        "downloads": model.downloads,
        "strength": strengths[0] if strengths else None,
        "license": _license(model),
        "commercial_use": None if model.commercial_use is None else list(model.commercial_use),
        "allow_no_credit": model.allow_no_credit,
        "allow_derivatives": model.allow_derivatives,
        "updated": (newest.published_at or "")[:10] if newest else None,
        "tags": None if model.tags is None else list(model.tags),
        "nsfw_level": model.nsfw_level,
        "versions": len(model.versions),
        "description": model.description,
    }


def _license(model: Model) -> str | None:
    """The licence in few words: what one may not do, or sell."""
    said = (model.commercial_use, model.allow_no_credit, model.allow_derivatives)
    if said == (None, None, None):
        return None
    words = ["no commercial use"] if model.commercial_use == () else []
    words += ["credit"] if model.allow_no_credit is False else []
    words += ["no derivatives"] if model.allow_derivatives is False else []
    return ", ".join(words) or "free"


def _not_there(id: int) -> Row:
    return {"state": "failed", "name": f"model:{id}", "code": "gone", "reason": "the site has none", "paths": []}


def _item_row(item: Item) -> Row:
    return {
        "state": {"fetch": "fetch", "have": "have", "skip": "skipped"}[item.action],
        "name": item.file.name,
        "size": _size(item.file.size_bytes),
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
        installs = registry.jobs.installs("job_id = ? AND kind = 'network'", [job.id])
        listed = registry.catalogue.files("remote_files.id = ?", [job.remote_file_id]) if job.remote_file_id else []
    about = listed[0] if listed else {}
    had = job.state == "done" and job.code == "had"
    return {
        "state": "had" if had else job.state,
        "name": f"{job.name}{job.suffix}",
        "size": _size(job.size_bytes),
        "model": about.get("model"),
        "version": about.get("version"),
        "reason": job.reason,
        "code": job.code,
        "model_id": about.get("model_id"),
        "version_id": about.get("version_id"),
        "file_id": about.get("file_id"),
        "sha256": job.sha256,
        "size_bytes": job.size_bytes,
        "paths": [job.reason] if had else [install["path"] for install in installs] if job.state == "done" else [],
    }


def file_line(row: Row) -> str:
    if row.get("paths"):
        return "\n".join(f"{row['state']:<9}{printable(path)}" for path in row["paths"])
    reason = (row["reason"] or "").removeprefix(f"{row['name']}: ")
    detail = f"  ({reason})" if reason else f"  {row.get('size') or ''}"
    return f"{row['state']:<9}{printable(row['name'])}{printable(detail)}"


def _plan_note(plan: Plan) -> str:
    have = sum(item.action == "have" for item in plan.items)
    return (
        f"{len(plan.models)} models, {len(plan.items)} files: {have} here, {len(plan.to_fetch)} to fetch "
        f"({_size(plan.bytes_to_fetch)}), {len(plan.items) - have - len(plan.to_fetch)} left out"
    )


def _size(size_bytes: int | None) -> str | None:
    if size_bytes is None:
        return None
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"
