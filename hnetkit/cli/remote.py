"""`hnetkit browse`, `pull`, `sync` and `updates`: networks from Civitai and Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hnetkit.cli.fetching import (
    FILE_COLUMNS,
    bad_row,
    carried_out,
    fetch_options,
    file_line,
    item_row,
    leave,
    not_there,
    note_bad,
    open_desk,
    size_text,
)
from hnetkit.cli.output import Output, Row, confirm, output_options, say_failure
from hnetkit.errors import HnetkitError, NotFound, UsageError, failure_of
from hnetkit.files import read_regular
from hnetkit.text import argument, counted

if TYPE_CHECKING:
    from hnetkit.registry.store import Registry
    from hnetkit.sources.civitai import Filters
    from hnetkit.sources.desk import Desk
    from hnetkit.sources.pages import BadRecord
    from hnetkit.sources.refs import Ref
    from hnetkit.sources.shapes import Model
    from hnetkit.sources.sync import Plan

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
    found: list[Model] = []
    failed: list[BadRecord] = []
    with open_desk(look_only=True) as desk:
        for page in desk.civitai.pages(filters, failed=failed.append):
            found += page
            if len(found) >= limit:
                break
    output.rows([_model_row(model) for model in found[:limit]], columns=_MODELS)
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
    from hnetkit.sources.pull import jobs_for
    from hnetkit.sources.refs import ref_of

    meant: list[Ref] = []
    failures: list[HnetkitError] = []
    for text in refs:
        try:
            meant.append(ref_of(text))
        except HnetkitError as error:  # a list that somebody gave may hold one
            if len(refs) == 1:
                raise
            failures.append(error)
            say_failure(error)
    if not meant:
        raise UsageError("nothing that was given can be fetched", hint=failures[0].hint)
    if sha256 is not None and (other := next((ref for ref in meant if ref.kind != "url"), None)) is not None:
        raise UsageError(
            f"{other.text}: --sha256 is for plain addresses; what a site lists is held against its own hash",
            hint="leave out --sha256, or give the hash alone: hnetkit pull HASH",
        )
    with open_desk(**fetching) as desk:
        jobs: list[int] = []
        rows: list[Row] = []
        for ref in meant:
            try:
                bad: list[BadRecord] = []
                ready, there = jobs_for(desk, ref, sha256=sha256, all_versions=all_versions, failed=bad.append)
            except Exception as error:
                failure = failure_of(error, ref.text)
                if len(refs) == 1:
                    raise failure from error
                failures.append(failure)
                say_failure(failure)
                continue
            jobs += [job for job in ready if job not in jobs]
            rows += [*map(bad_row, bad), *map(item_row, there)]
        rows += carried_out(desk, jobs, output)
    output.rows(rows, columns=FILE_COLUMNS, text=file_line)
    leave(rows, failures)


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

    with open_desk(look_only=dry_run, nsfw=nsfw, **fetching) as desk:
        if unsave is not None:
            _saved(desk.registry, unsave)
            with desk.registry.write():
                desk.registry.subscriptions.remove(unsave)
        if subscriptions or unsave is not None:
            output.rows(desk.registry.subscriptions.rows(), columns=["name", "filters", "synced_at"])
            return
        chosen = Filters(query, creator, tag, base_models, _ids(ids), favorites, nsfw)
        if name is not None:
            if chosen != Filters(nsfw=nsfw):
                raise UsageError("a saved name has its own filters", hint=f"hnetkit sync {argument(name)}")
            chosen = _saved(desk.registry, name)
        if save is not None and not dry_run:
            with desk.registry.write():
                desk.registry.subscriptions.put(save, chosen.as_dict())
        rows = _synced(desk, chosen, all_versions, dry_run, metadata_only, yes, output)
        if not dry_run:
            with desk.registry.write():
                for synced in {name, save} - {None}:
                    desk.registry.subscriptions.synced(str(synced))
    output.rows(rows, columns=FILE_COLUMNS, text=file_line)
    leave(rows, [])


def _synced(
    desk: Desk, filters: Filters, all_versions: bool, dry_run: bool, metadata_only: bool, yes: bool, output: Output
) -> list[Row]:
    from hnetkit.cli.progress import step_progress
    from hnetkit.sources.plan import enqueue
    from hnetkit.sources.sync import MOST_ASKED, ask_about, missing, plan_sync, store, store_failures

    with step_progress("listing", quiet=output.quiet) as report:
        plan = plan_sync(
            desk.registry, desk.civitai, filters, all_versions=all_versions, listed=lambda count: report(count, count)
        )
    output.note(_plan_note(plan))
    if dry_run:
        return [*map(bad_row, plan.failed), *map(item_row, plan.items)]
    if not filters.as_dict().keys() - {"nsfw"} and plan.to_fetch and not metadata_only:
        confirm(
            f"Fetch {counted(len(plan.to_fetch), 'file')}, {size_text(plan.bytes_to_fetch)}, into {desk.folder}?",
            yes=yes,
        )
    failed = plan.failed + store(desk.registry, plan.models)
    there = {model.id for model in plan.models} | {bad.id for bad in plan.failed}
    lost: list[Row] = [not_there(id) for id in filters.ids if id not in there]
    if not filters.as_dict().keys() - {"nsfw"}:
        gone = [id for id in missing(desk.registry, plan.models) if id not in {str(bad.id) for bad in failed}]
        if len(gone) > MOST_ASKED:
            output.note(f"{MOST_ASKED} of {len(gone):,} models that are not listed are asked about; others next time")
        for id, state in ask_about(desk.registry, desk.civitai, desk.clock, gone[:MOST_ASKED], failed):
            lost.append({"state": state, "name": f"model:{id}", "reason": "not listed any more; kept here"})
    jobs: list[int] = []
    if not metadata_only:
        unusable = {bad.id for bad in failed if bad.is_whole}
        items = [item for item in plan.items if item.model.id not in unusable]
        with desk.registry.write():
            jobs += [job.id for job in enqueue(desk.registry, desk.civitai, desk.folder, items, failed.append)]
    store_failures(desk.registry, failed)
    lost += map(bad_row, failed)
    if metadata_only:
        return lost
    skipped = [item_row(item) for item in plan.items if item.action == "skip"]
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

    failed: list[BadRecord] = []
    with open_desk() as desk:
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
            for update in updates(desk.registry, desk.civitai, failed)
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


def _saved(registry: Registry, name: str) -> Filters:
    from hnetkit.sources.civitai import Filters

    for row in registry.subscriptions.rows():
        if row["name"] == name:
            return Filters.of(row["filters"])
    raise NotFound(f"no choice was saved as {name}", hint="hnetkit sync --subscriptions lists them")


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
