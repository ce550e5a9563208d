"""Civitai and Hugging Face: `hnetkit browse`, `pull` and `sync`."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from hnetkit import paths
from hnetkit.cli.options import command, each_once, option, site_base_model_names
from hnetkit.cli.output import Output, Row, confirm, is_terminal, output_options, say_failure
from hnetkit.cli.progress import byte_progress, step_progress
from hnetkit.cli.signals import stopping_on_signals
from hnetkit.errors import FileRefused, NotFound, PartlyFailed, RemoteError, UsageError
from hnetkit.files import not_opened, read_regular, stat_at
from hnetkit.settings import asks_above
from hnetkit.settings import get as configured
from hnetkit.text import argument, counted, lacks_unit, parse_size, shorten, size_text

if TYPE_CHECKING:
    from hnetkit.sources.civitai import Filters
    from hnetkit.sources.civitai_models import BadRecord, CivitaiModel
    from hnetkit.sources.plans import FetchPlan
    from hnetkit.sources.results import FetchResult
    from hnetkit.sources.session import FetchSession

F = TypeVar("F", bound=Callable[..., Any])
_filter, downloads_option = (partial(option, section=heading) for heading in ("Filters", "Downloads"))
refill_option = downloads_option(
    "--refill",
    is_flag=True,
    help="Fetch everything again although all files of the library are gone. Without it you are asked, since its disk "
    "may not be mounted; --yes is no answer to that.",
)
dry_run_option = downloads_option(
    "--dry-run", is_flag=True, help="List what would be fetched, with sizes; fetch nothing and ask nothing."
)
yes_option = downloads_option(
    "-y", "--yes", is_flag=True, help="Do not ask before fetching; required where there is a question and no terminal."
)
_saved, _what = (partial(option, section=heading) for heading in ("Saved filters", "What to fetch"))
_COLUMNS = ["state", "name", "size", "model", "version", "reason", "path"]
_MOST_IDS = 8 << 20  # bytes of a list of numbers: about a million
_MODELS = ["id", "name", "creator", "base_models", "size", "downloads", "strength", "license", "updated"]
# codes of files that are here, with more to say
_EXPLAINED = frozenset({"elsewhere", "in-trash", "named", "partly", "replaced", "sidecars", "unpacked"})


def fetch_options(function: F) -> F:
    """Adds --parallel, --limit-rate, --no-previews and --no-sidecars; the command receives `fetching: dict`."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        fetching = {
            "parallel": kwargs.pop("parallel"),
            "limit": kwargs.pop("limit_rate"),
            "previews": not kwargs.pop("no_previews"),
            "sidecars": not kwargs.pop("no_sidecars"),
        }
        return function(*args, fetching=fetching, **kwargs)

    decorated: Any = wrapper
    for add in (
        downloads_option(
            "--no-sidecars",
            is_flag=True,
            help="Write no sidecar files (.json, .civitai.info) and no previews beside the networks.",
        ),
        downloads_option(
            "--no-previews",
            is_flag=True,
            help="Fetch no previews: one of the site's example pictures for each network.",
        ),
        downloads_option(
            "--limit-rate",
            metavar="RATE",
            callback=_rate,
            show_default="no limit",
            help="Limit all downloads together to this many bytes per second, such as 500k or 2M; k is 1000.",
        ),
        downloads_option(
            "--parallel",
            type=click.IntRange(1, 16),
            default=2,
            show_default=True,
            help="Number of files to fetch at the same time.",
        ),
    ):
        decorated = add(decorated)
    return cast(F, decorated)


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    rate = parse_size(value)
    if not rate:
        raise UsageError(f"--limit-rate {value}: not a number of bytes", hint="for example 500k or 2M")
    if lacks_unit(value):
        number = value.strip()
        hint = f"--limit-rate {argument(f'{number}k')}, or {number}M"
        raise UsageError(f"--limit-rate {number} alone is bytes", hint=hint)
    return rate


@contextmanager
def open_session(*, look_only: bool = False, **fetching: Any) -> Iterator[FetchSession]:
    """Opens a `FetchSession` on the user's library; with `look_only` no registry is created where there is none."""
    from hnetkit.library.library import Library
    from hnetkit.sources.session import FetchSession

    mirrors = (configured("mirrors") or "").split()
    with ExitStack() as stack:
        if look_only and stat_at(paths.registry_file()) is None:
            library = Library(stack.enter_context(tempfile.TemporaryDirectory()))
            library.folder = paths.library_folder()
        else:
            library = Library()
        stack.enter_context(library)
        yield FetchSession(library, mirrors=mirrors, **fetching)


@contextmanager
def fetching_progress(session: FetchSession, output: Output) -> Iterator[Callable[[int, int], None]]:
    """Shows the bytes that arrive; Ctrl-C stops once they are saved."""
    with byte_progress("fetching", quiet=output.quiet) as report, stopping_on_signals(session.clock):
        yield report


def may_refill(session: FetchSession, *, refill: bool, yes: bool = False) -> bool:
    """Returns whether to fetch where nothing is left of the library: asks, since -y is no answer to that.

    Raises:
        NotFound: nothing is left of it, and nobody can be asked.
    """
    if refill:
        return True
    try:
        session.require_library()
    except NotFound as error:
        if yes or not is_terminal(sys.stdin):
            raise
        confirm(f"{error}. Is its disk mounted? Fetch everything again?", yes=False)
        return True
    return False


@contextmanager
def _failing_as_row(text: str | None, output: Output) -> Iterator[None]:
    """Prints a row also for the only thing that was asked for, where it cannot be had; None for filters."""
    from hnetkit.sources.references import redact_reference
    from hnetkit.sources.results import of_error

    try:
        yield
    except (FileRefused, RemoteError) as error:
        if text is not None:
            result_rows([of_error(redact_reference(text), error)], output)
        raise


def show_results(found: Iterable[FetchResult], output: Output) -> None:
    """Prints the result of each file.

    Raises:
        HnetkitError: a file failed: the failure itself if it is the only one, else with exit code 1.
    """
    from hnetkit.sources.results import require_all

    found = list(found)
    result_rows(found, output)
    for failure in (result.error for result in found if result.error is not None):
        say_failure(failure)
    require_all(found)


def show_plan(plan: FetchPlan, output: Output) -> None:
    """Prints what would be done with each file.

    Raises:
        PartlyFailed: a reference could not be resolved.
    """
    from hnetkit.sources.results import of_plan

    result_rows(of_plan(plan), output)
    output.note(_plan_note(plan))
    for _, error in plan.errors:
        say_failure(error)
    if plan.errors:
        raise PartlyFailed(f"{counted(len(plan.errors), 'reference')} not resolved", hint="the others would be fetched")


def note_bad(failed: Iterable[BadRecord], output: Output, *, of: str = "the site") -> None:
    """Prints the records that cannot be used, of a site or of what else.

    Raises:
        PartlyFailed: there are any.
    """
    failed = list(failed)
    for bad in failed:
        output.note(f"Error: {'' if bad.id is None else f'model:{bad.id}: '}{bad.reason}")
    if failed:
        raise PartlyFailed(f"{counted(len(failed), 'record')} of {of} cannot be used", hint="the others were used")


def _line(row: Row) -> str | list[str]:
    if row.get("paths"):
        lines = [f"{row['state']:<9}{path}" for path in row["paths"]]
        return [*lines, f"         {row['reason']}"] if row.get("code") in _EXPLAINED else lines
    reason = (row["reason"] or "").removeprefix(f"{row['name']}: ")
    about = ", ".join(filter(None, [row.get("size"), row.get("model"), row.get("version")]))
    detail = f"  ({reason})" if reason else f"  {about}"
    return f"{row['state']:<9}{row['name']}{detail}"


def result_rows(
    found: Iterable[FetchResult], output: Output, *, text: Callable[[Row], str | list[str]] = _line
) -> None:
    """Prints a row for each result; as lines of text, without references that failed: these are told as errors."""
    shown = [result for result in found if output.form != "text" or result.error is None]
    output.rows(map(_result_row, shown), columns=_COLUMNS, text=text)


def _result_row(result: FetchResult) -> Row:
    """Returns the row of a file's result, with the numbers that the site gives."""
    return {
        "state": result.state,
        "name": result.name,
        "size": known_size(result.size_bytes),
        "model": result.model,
        "version": result.version,
        "reason": result.reason,
        "code": result.code,
        "model_id": result.model_id,
        "version_id": result.version_id,
        "file_id": result.file_id,
        "sha256": result.sha256,
        "size_bytes": result.size_bytes,
        "path": next(iter(result.paths), result.place),
        "paths": list(result.paths),
    }


def known_size(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else size_text(size_bytes)


def filter_options(function: F) -> F:
    """Adds the options that choose models on the site."""
    for add in (
        _filter("--nsfw", is_flag=True, help="Include models that the site marks as not safe for work."),
        _filter(
            "--base-model",
            "base_models",
            multiple=True,
            metavar="NAME",
            type=site_base_model_names(),
            callback=each_once,
            help="Restrict to models that have a version for this base model, and to these versions: sd1, sd2, sdxl, "
            "unknown, or one of the site's names, such as 'SD 1.5'. Repeatable, for any of several.",
        ),
        _filter("--tag", help="Restrict to models with this tag."),
        _filter("--creator", metavar="USER", help="Restrict to models of this user."),
    ):
        function = add(function)
    return function


@command("browse")
@click.argument("words", nargs=-1, metavar="[QUERY]")
@filter_options
@_filter("--limit", type=click.IntRange(1), default=20, show_default=True, help="Largest number of models to show.")
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

    Shows base model, size, license, downloads, and the strength that example pictures used.

    \b
    Examples:
      hnetkit browse watercolor
      hnetkit browse --creator luisa_pinguin --base-model sd1 --json
    """
    from hnetkit.sources.civitai import Filters

    filters = Filters(" ".join(words) or None, creator, tag, base_models, nsfw=nsfw)
    failed: list[BadRecord] = []
    with open_session(look_only=True) as session:
        found = session.browse(filters, limit=limit + 1, failed=failed.append)
    output.rows(map(_model_row, found[:limit]), columns=_MODELS)
    if len(found) > limit:
        output.note(f"there are more; --limit {2 * limit} shows more of them")
    if found:
        output.note("hnetkit pull model:ID fetches one")
    else:
        output.note(_nothing_found(filters))
    note_bad(failed, output)


@command("pull")
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@_what("--sha256", metavar="HASH", help="Hash that a file at a plain https address must have; required for it.")
@_what("--all-versions", is_flag=True, help="Fetch all versions of a model, not only the newest.")
@dry_run_option
@yes_option
@fetch_options
@output_options
def pull_command(
    refs: tuple[str, ...],
    sha256: str | None,
    all_versions: bool,
    dry_run: bool,
    yes: bool,
    fetching: dict[str, Any],
    output: Output,
) -> None:
    """Fetch networks into the library.

    REF is the address of a page or file at Civitai, Hugging Face or CivArchive, model:ID, version:ID, an AIR, a hash,
    hf:owner/repo[@revision][:file, folder or glob], or a plain https address with --sha256. Each file is checked
    before it is installed; a file that is not a usable network goes to the library's folder .quarantine.

    Asks before it fetches more than 1 GB in all; `hnetkit config unasked` changes this size. Most files of Civitai need
    your API key in the environment variable CIVITAI_TOKEN, private and gated repositories a token in HF_TOKEN.

    What Civitai has lost comes from whoever else has it, held against its sha256: files of the hub that the library
    knows, mirrors that CivArchive knows, and those of `hnetkit config mirrors`. No token goes to these mirrors.

    \b
    Examples:
      hnetkit pull https://civitai.com/models/4209
      hnetkit pull version:4931 'hf:someone/hypernetworks:*.pt'
      hnetkit pull --dry-run hf:someone/hypernetworks
      hnetkit pull https://huggingface.co/someone/hypernetworks/tree/main/styles
    """
    with open_session(look_only=dry_run, **fetching) as session:
        with _failing_as_row(refs[0], output):
            plan = session.plan_pull(*refs, sha256=sha256, all_versions=all_versions)
        if dry_run:
            show_plan(plan, output)
            return
        if asks_above(plan.bytes_to_fetch):
            output.note(_plan_note(plan))
            _confirm_plan(plan, session, yes=yes)
        with fetching_progress(session, output) as progress:
            found = session.carry_out(plan, progress=progress)
    show_results(found, output)


def _confirm_plan(plan: FetchPlan, session: FetchSession, *, yes: bool) -> None:
    confirm_fetch(len(plan.to_fetch), _size_to_fetch(plan), session, yes=yes)


def confirm_fetch(files: int, size: str, session: FetchSession, *, yes: bool) -> None:
    """Asks whether to fetch so many files, of a size in words."""
    confirm(f"Fetch {counted(files, 'file')} ({size}) into {session.folder}?", yes=yes)


@command("sync")
@click.argument("name", required=False, metavar="[NAME|REPOSITORY]")
@_filter("--query", metavar="WORDS", help="Restrict to models that the site finds for these words.")
@filter_options
@_filter(
    "--favorites",
    former=["--favourites"],
    is_flag=True,
    help="Restrict to your favorites on the site; needs your API key in the environment variable CIVITAI_TOKEN.",
)
@_filter(
    "--ids",
    metavar="LIST|@FILE",
    help="Fetch exactly these models, whatever other filters say: numbers of models (not of versions) separated by "
    "commas, or a file with one per line.",
)
@_saved(
    "--save",
    metavar="NAME",
    help="Save these filters, or the repository, as NAME, and sync; what was saved as NAME is replaced. Options of "
    "downloads are not saved, and with --dry-run nothing is.",
)
@_saved(
    "--remove",
    former=["--unsave"],
    metavar="NAME",
    help="Remove the saved filters NAME, and fetch nothing. Fetched files stay.",
)
@_saved("--subscriptions", is_flag=True, help="List the saved filters, and fetch nothing.")
@downloads_option("--all-versions", is_flag=True, help="Fetch all versions of each model, not only the newest.")
@dry_run_option
@downloads_option(
    "--metadata-only",
    is_flag=True,
    help="Store the site's records of the models in the registry; fetch no networks and no previews, and ask nothing.",
)
@refill_option
@yes_option
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
    remove: str | None,
    subscriptions: bool,
    all_versions: bool,
    dry_run: bool,
    metadata_only: bool,
    refill: bool,
    yes: bool,
    fetching: dict[str, Any],
    output: Output,
) -> None:
    """Mirror hypernetworks from Civitai, or a repository of the hub, into the library.

    Fetches every model that passes all filters into the folder that `hnetkit path library` prints. Without filters,
    mirrors every hypernetwork on Civitai (with --nsfw also those not safe for work), after showing the size and asking.
    NAME repeats what was saved with --save, and takes no filters.

    REPOSITORY is one of the Hugging Face hub: hf:owner/repo[@revision][:folder or glob], hf:datasets/owner/repo for a
    data set, or its address. Only new and changed files are fetched. Files that are deleted from the repository are
    kept, and named.

    Asks before it fetches more than 1 GB in all; `hnetkit config unasked` changes this size.

    Files that you have are not fetched again, and models deleted from the site are kept. Every file that is fetched or
    skipped is listed, with the reason. An interrupted sync resumes where it left off.

    \b
    Examples:
      hnetkit sync --dry-run
      hnetkit sync --creator luisa_pinguin --save luisa
      hnetkit sync luisa
      hnetkit sync hf:someone/hypernetworks:styles --save styles
    """
    from hnetkit.sources.civitai import Filters
    from hnetkit.sources.subscriptions import in_words, of_stored, repository_of

    filters = Filters(query, creator, tag, base_models, _ids(ids), favorites, nsfw)
    if (subscriptions or remove is not None) and (name is not None or save is not None or filters != Filters()):
        option = "--subscriptions" if remove is None else "--remove"
        raise UsageError(f"{option} fetches and saves nothing", hint="leave out the filters, NAME and --save")
    repository = None if name is None else repository_of(name)
    if repository is not None and filters != Filters():
        raise UsageError("filters are for Civitai", hint=f"hnetkit sync {argument(repository.text)}")
    if repository is None and name is not None and filters != Filters():
        raise UsageError("a saved name has its own filters", hint=f"hnetkit sync {argument(name)}")
    with open_session(look_only=dry_run, **fetching) as session:
        if remove is not None and dry_run:
            session.subscription(remove)  # it must be there
        elif remove is not None:
            session.unsubscribe(remove)
            output.note(f"{remove} is not saved any more; fetched files stay")
        if subscriptions or remove is not None:
            output.rows(session.subscriptions(), columns=["name", "filters", "synced_at"])
            return
        wanted = repository or (filters if name is None else session.subscription(name))
        if all_versions and not isinstance(wanted, Filters):
            raise UsageError("--all-versions is for Civitai", hint=f"hnetkit sync {argument(str(name))}")
        session.nsfw = isinstance(wanted, Filters) and wanted.nsfw
        if save is not None and not dry_run:
            before = {row["name"]: of_stored(row["filters"]) for row in session.subscriptions()}
            if before.get(save, wanted) != wanted:
                output.note(f"{save} had other filters until now: {in_words(before[save])}")
            session.subscribe(save, wanted)
            output.note(f"saved as {save}: {in_words(wanted)}; hnetkit sync {argument(save)} runs it again")
        with byte_progress("reading", quiet=output.quiet) as report:
            session.survey(report)
        text = None if isinstance(wanted, Filters) else wanted.text
        with _failing_as_row(text, output), step_progress("listing", quiet=output.quiet) as report:
            plan = session.plan(wanted, all_versions=all_versions, listed=lambda count: report(count, count))
        if plan.filters is not None and not (plan.models or plan.failed or plan.filters.ids):
            output.note(_nothing_found(plan.filters))
        if dry_run:
            show_plan(plan, output)
            return
        output.note(_stored_note(plan) if metadata_only else _plan_note(plan))
        if plan.to_fetch and not metadata_only:
            refill = may_refill(session, refill=refill, yes=yes)
            is_everything = plan.filters is not None and plan.filters.is_everything
            if is_everything or asks_above(plan.bytes_to_fetch):
                _confirm_plan(plan, session, yes=yes)
        with fetching_progress(session, output) as progress:
            found = session.carry_out(
                plan, metadata_only=metadata_only, refill=refill, progress=progress, note=output.note
            )
    show_results(found, output)


def _ids(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        given = read_regular(text[1:], most=_MOST_IDS).decode() if text.startswith("@") else text
    except OSError as error:
        raise not_opened(text[1:], error) from error
    except ValueError as error:
        raise UsageError(f"{text[1:]}: not a list of numbers: {error}") from error
    words = [word for word in re.split(r"[\s,]+", given.removeprefix("\ufeff")) if word]
    bad = next((word for word in words if not re.fullmatch(r"[0-9]{1,10}", word)), None)
    if bad is not None or not words:
        what = "no number of a model" if bad is None else f"{shorten(bad)} is not the number of a model"
        raise UsageError(f"--ids {text[:60]}: {what}", hint="for example --ids 4209,3810 or --ids @list.txt")
    return tuple(dict.fromkeys(map(int, words)))


def _nothing_found(filters: Filters) -> str:
    return "nothing found" + ("" if filters.nsfw else "; --nsfw also finds what the site marks so")


def _model_row(model: CivitaiModel) -> Row:
    from hnetkit.sources.sync import model_files

    newest = next((version for version in model.versions if version.files), None)
    strengths = [version.strength for version in model.versions if version.strength is not None]
    sizes = [file.size_bytes for file in model_files(newest) if file.size_bytes is not None] if newest else []
    size_bytes = sum(sizes) if sizes else None
    return {
        "id": model.id,
        "name": model.name,
        "creator": model.creator,
        "base_models": sorted({version.base_model for version in model.versions if version.base_model}),
        "size": known_size(size_bytes),
        "size_bytes": size_bytes,
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


def _license(model: CivitaiModel) -> str | None:
    """Returns the license in few words: what is not allowed, and what is required."""
    stated = (model.commercial_use, model.allow_no_credit, model.allow_derivatives)
    if stated == (None, None, None):
        return None
    words = ["no commercial use"] if model.commercial_use == () else []
    words += ["credit"] if model.allow_no_credit is False else []
    words += ["no derivatives"] if model.allow_derivatives is False else []
    return ", ".join(words) or "free"


def _stored_note(plan: FetchPlan) -> str:
    return f"stores the records of {' and '.join([*_sources(plan), counted(len(plan.items), 'file')])}"


def _sources(plan: FetchPlan) -> list[str]:
    """Returns what was listed, in words."""
    models = [counted(len(plan.models), "model")] if plan.models or plan.filters is not None else []
    count = len(plan.listings)
    return models + ([f"{count} {'repository' if count == 1 else 'repositories'}"] if count else [])


def _plan_note(plan: FetchPlan) -> str:
    have = sum(item.action == "have" for item in plan.items)
    return (
        f"{', '.join([*_sources(plan), counted(len(plan.items), 'file')])}: {have} here, "
        f"{len(plan.to_fetch)} to fetch ({_size_to_fetch(plan)}), {plan.left_out} left out"
    )


def _size_to_fetch(plan: FetchPlan) -> str:
    if not plan.unsized:
        return size_text(plan.bytes_to_fetch)
    if plan.unsized == len(plan.to_fetch):
        return "the site states no sizes"
    return f"{size_text(plan.bytes_to_fetch)} and {counted(plan.unsized, 'file')} without a stated size"
