"""`hnetkit browse`, `pull`, `sync` and `updates`: networks from Civitai and Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hnetkit.cli.fetching import (
    fetch_options,
    fetching_progress,
    note_bad,
    note_results,
    open_session,
    show_results,
    size_text,
)
from hnetkit.cli.output import Output, Row, confirm, output_options
from hnetkit.errors import NotFound, UsageError
from hnetkit.files import read_regular
from hnetkit.text import argument, counted

if TYPE_CHECKING:
    from hnetkit.sources.civitai_models import BadRecord, CivitaiModel
    from hnetkit.sources.sync import SyncPlan

F = TypeVar("F", bound=Callable[..., Any])
_MOST_IDS = 8 << 20  # bytes of a list of numbers: about a million
_MODELS = ["id", "name", "creator", "base_models", "size", "downloads", "strength", "license", "updated"]


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
    from hnetkit.cli.progress import step_progress
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


def _model_row(model: CivitaiModel) -> Row:
    from hnetkit.sources.sync import model_files

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


def _license(model: CivitaiModel) -> str | None:
    """The licence in few words: what one may not do, or sell."""
    said = (model.commercial_use, model.allow_no_credit, model.allow_derivatives)
    if said == (None, None, None):
        return None
    words = ["no commercial use"] if model.commercial_use == () else []
    words += ["credit"] if model.allow_no_credit is False else []
    words += ["no derivatives"] if model.allow_derivatives is False else []
    return ", ".join(words) or "free"


def _plan_note(plan: SyncPlan) -> str:
    have = sum(item.action == "have" for item in plan.items)
    return (
        f"{counted(len(plan.models), 'model')}, {counted(len(plan.items), 'file')}: {have} here, "
        f"{len(plan.to_fetch)} to fetch ({size_text(plan.bytes_to_fetch)}), {plan.left_out} left out"
    )
