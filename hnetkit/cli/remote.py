"""Civitai and Hugging Face: `hnetkit browse`, `pull`, `sync`, `updates`, `identify` and `repair`."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from hnetkit import paths
from hnetkit.cli.output import Output, Row, confirm, output_options, say_failure
from hnetkit.cli.progress import byte_progress, step_progress
from hnetkit.cli.signals import stopping_on_signals
from hnetkit.errors import NotFound, PartlyFailed, UsageError
from hnetkit.files import read_regular
from hnetkit.text import argument, counted

if TYPE_CHECKING:
    from hnetkit.sources.pages import BadRecord
    from hnetkit.sources.results import FetchResult
    from hnetkit.sources.session import FetchSession
    from hnetkit.sources.shapes import Model
    from hnetkit.sources.sync import Plan

F = TypeVar("F", bound=Callable[..., Any])
_COLUMNS = ["state", "name", "size", "model", "version", "reason"]
_MOST_IDS = 8 << 20  # bytes of a list of numbers: about a million
_MODELS = ["id", "name", "creator", "base_models", "size", "downloads", "strength", "license", "updated"]
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
def open_session(*, look_only: bool = False, **settings: Any) -> Iterator[FetchSession]:
    """What fetches into the person's library; `look_only` makes no registry where there is none."""
    from hnetkit.library.library import Library
    from hnetkit.sources.session import FetchSession

    with ExitStack() as stack:
        if look_only and not paths.registry_file().exists():
            library = Library(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            library = Library()
        stack.enter_context(library)
        yield FetchSession(library, **settings)


@contextmanager
def fetching_progress(session: FetchSession, output: Output) -> Iterator[Callable[[int, int], None]]:
    """The bar of bytes that come; Ctrl-C ends it once what came is kept."""
    with byte_progress("fetching", quiet=output.quiet) as report, stopping_on_signals(session.clock):
        yield report


def show_results(found: Iterable[FetchResult], output: Output) -> None:
    """Prints what became of each, and leaves with the exit code that a single failure has, or with 1.

    Raises:
        HnetkitError: something did not come.
    """
    from hnetkit.sources.results import require_all

    found = list(found)
    output.rows([result_row(result) for result in found if result.error is None], columns=_COLUMNS, text=_line)
    for failure in (result.error for result in found if result.error is not None):
        say_failure(failure)
    require_all(found)


def note_results(found: Iterable[FetchResult], output: Output) -> None:
    """Prints what would become of each."""
    output.rows(map(result_row, found), columns=_COLUMNS, text=_line)


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


def result_row(result: FetchResult) -> Row:
    """A row of what became of a file; numbers of a site as it says them."""
    return {
        "state": result.state,
        "name": result.name,
        "size": size_text(result.size_bytes),
        "model": result.model,
        "version": result.version,
        "reason": result.reason,
        "code": result.code,
        "model_id": result.model_id,
        "version_id": result.version_id,
        "file_id": result.file_id,
        "sha256": result.sha256,
        "size_bytes": result.size_bytes,
        "paths": list(result.paths),
    }


def _line(row: Row) -> str | list[str]:
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
    failed: list[BadRecord] = []
    with open_session(look_only=True) as session:
        found = session.browse(filters, limit=limit, failed=failed.append)
    output.rows(map(_model_row, found), columns=_MODELS)
    if found:
        output.note("hnetkit pull model:ID fetches one")
    else:
        output.note("nothing found" + ("" if nsfw else "; --nsfw also shows what the site marks so"))
    note_bad(failed, output)


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
    fetching: dict[str, Any],
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
    with open_session(**fetching) as session, fetching_progress(session, output) as progress:
        found = session.pull(*refs, sha256=sha256, all_versions=all_versions, progress=progress)
    show_results(found, output)


@click.command("sync")
@click.argument("name", required=False)
@click.option("--query", help="Only what the site finds for these words.")
@filter_options
@click.option("--favorites", "--favourites", is_flag=True, help="Only what the token's owner marked as favourite.")
@click.option("--ids", help="Only these models: numbers with commas between, or @FILE with one on each line.")
@click.option("--save", metavar="NAME", help="Remember these filters: `hnetkit sync NAME` means them from now on.")
@click.option("--unsave", metavar="NAME", help="Forget what was saved under NAME, and fetch nothing.")
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
    unsave: str | None,
    subscriptions: bool,
    all_versions: bool,
    dry_run: bool,
    metadata_only: bool,
    yes: bool,
    fetching: dict[str, Any],
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
    from hnetkit.sources.results import of_plan

    with open_session(look_only=dry_run, nsfw=nsfw, **fetching) as session:
        if unsave is not None:
            session.unsubscribe(unsave)
        if subscriptions or unsave is not None:
            output.rows(session.subscriptions(), columns=["name", "filters", "synced_at"])
            return
        filters = Filters(query, creator, tag, base_models, _ids(ids), favorites, nsfw)
        if name is not None:
            if filters != Filters(nsfw=nsfw):
                raise UsageError("a saved name has its own filters", hint=f"hnetkit sync {argument(name)}")
            filters = session.subscription(name)
        if save is not None and not dry_run:
            session.subscribe(save, filters)
        with step_progress("listing", quiet=output.quiet) as report:
            plan = session.plan(filters, all_versions=all_versions, listed=lambda count: report(count, count))
        output.note(_plan_note(plan))
        if dry_run:
            note_results(of_plan(plan), output)
            return
        if filters.is_everything and plan.to_fetch and not metadata_only:
            size = size_text(plan.bytes_to_fetch)
            confirm(f"Fetch {counted(len(plan.to_fetch), 'file')}, {size}, into {session.folder}?", yes=yes)
        with fetching_progress(session, output) as progress:
            found = session.carry_out(plan, metadata_only=metadata_only, progress=progress, note=output.note)
    show_results(found, output)


@click.command("updates")
@output_options
def updates_command(output: Output) -> None:
    """Show models of which the site has a newer version than the library.

    \b
    Examples:
      hnetkit updates
      hnetkit updates --json
    """
    failed: list[BadRecord] = []
    with open_session() as session:
        rows = [
            {
                "model_id": update.model.id,
                "model": update.model.name,
                "have": list(update.have),
                "newest": update.newest.version.name,
                "version_id": update.newest.version.id,
                "published": (update.newest.version.published_at or "")[:10],
                "size": size_text(update.newest.file.size_bytes),
            }
            for update in session.updates(failed=failed.append)
        ]
    output.rows(rows, columns=["model_id", "model", "have", "newest", "version_id", "published", "size"])
    output.note("hnetkit pull version:ID fetches one" if rows else "nothing newer")
    note_bad(failed, output)


def _ids(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        given = read_regular(text[1:], most=_MOST_IDS).decode() if text.startswith("@") else text
    except OSError as error:
        raise NotFound(f"{text[1:]}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{text[1:]}: no list of numbers: {error}") from error
    words = [word for word in re.split(r"[\s,]+", given.removeprefix("\ufeff")) if word]
    if not words or not all(re.fullmatch(r"[0-9]{1,10}", word) for word in words):
        raise UsageError(
            f"--ids {text[:60]}: not numbers of models", hint="for example --ids 4209,3810 or --ids @list.txt"
        )
    return tuple(dict.fromkeys(map(int, words)))


def _model_row(model: Model) -> Row:
    from hnetkit.sources.plan import model_files

    newest = next((version for version in model.versions if version.files), None)
    strengths = [version.strength for version in model.versions if version.strength is not None]
    return {
        "id": model.id,
        "name": model.name,
        "creator": model.creator,
        "base_models": sorted({version.base_model for version in model.versions if version.base_model}),
        "size": size_text(sum(file.size_bytes or 0 for file in model_files(newest)) if newest else None),
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


def _plan_note(plan: Plan) -> str:
    have = sum(item.action == "have" for item in plan.items)
    return (
        f"{counted(len(plan.models), 'model')}, {counted(len(plan.items), 'file')}: {have} here, "
        f"{len(plan.to_fetch)} to fetch ({size_text(plan.bytes_to_fetch)}), {plan.left_out} left out"
    )


@click.command("identify")
@click.option("--again", is_flag=True, help="Ask also about files that the site did not know lately.")
@output_options
def identify_command(again: bool, output: Output) -> None:
    """Ask Civitai what the library's files are, by their hashes.

    One request for up to 10,000 files; only their hashes are told. Also finds the checkpoints that networks were
    trained on.

    \b
    Examples:
      hnetkit identify
      hnetkit identify --json
    """
    failed: list[BadRecord] = []
    with open_session() as session:
        found = session.identify(again=again, failed=failed.append)
    output.rows(
        found.files, columns=["path", "model", "version", "creator", "model_id", "version_id"], text=_identity_line
    )
    files, checkpoints = (sum(row["model_id"] is not None for row in rows) for rows in (found.files, found.checkpoints))
    output.note(
        f"{files} of {counted(len(found.files), 'file')} known to the site; "
        f"{checkpoints} of {counted(len(found.checkpoints), 'checkpoint')}"
    )
    note_bad(failed, output)


@click.command("repair")
@click.option("--dry-run", is_flag=True, help="Say what is missing or damaged, and touch nothing.")
@fetch_options
@output_options
def repair_command(dry_run: bool, fetching: dict[str, Any], output: Output) -> None:
    """Fetch again what was installed and is missing or damaged.

    Reads every file that hnetkit fetched. A damaged one is kept in the library's folder .quarantine, and another
    network that somebody put in its place stays there.

    \b
    Examples:
      hnetkit repair --dry-run
      hnetkit repair
    """
    with open_session(**fetching) as session:
        with step_progress("reading", quiet=output.quiet) as report:
            damages = session.damages(report)
        if dry_run:
            rows: list[Row] = [{"state": damage.what, "path": damage.path} for damage in damages]
            output.rows(rows, columns=["state", "path"], text=lambda row: f"{row['state']:<9}{row['path']}")
            count = sum(damage.what != "kept" for damage in damages)
            output.note(f"{count} to fetch again" if count else "nothing is missing or damaged")
            return
        with fetching_progress(session, output) as progress:
            found = session.repair(damages, progress=progress)
    if not found:
        output.note("nothing is missing or damaged")
    show_results(found, output)


def _identity_line(row: dict[str, Any]) -> str:
    if row["model_id"] is None:
        return f"{row['path']}  not known to the site"
    creator = f" by {row['creator']}" if row["creator"] else ""
    return f"{row['path']}  {row['model']} {row['version']}{creator}"
