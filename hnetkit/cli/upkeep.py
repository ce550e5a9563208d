"""What was fetched, looked after: `hnetkit updates`, `identify` and `repair`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hnetkit.cli.options import command, option
from hnetkit.cli.output import Output, Row, output_options
from hnetkit.cli.progress import byte_progress, step_progress
from hnetkit.cli.remote import (
    confirm_fetch,
    downloads_option,
    fetch_options,
    fetching_progress,
    known_size,
    may_refill,
    note_bad,
    open_session,
    refill_option,
    result_rows,
    show_results,
    yes_option,
)
from hnetkit.errors import UsageError
from hnetkit.settings import asks_above
from hnetkit.text import counted, size_text

if TYPE_CHECKING:
    from hnetkit.sources.civitai_models import BadRecord


@command("updates")
@output_options
def updates_command(output: Output) -> None:
    """Show models that have a newer version on the site than in the library.

    Also shows files that their owners replaced under the same version, and says how many networks are gone from their
    source. Asks Civitai alone: what is new in a repository of the hub comes by `hnetkit sync hf:owner/repo`.

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
                "newest": update.newest.version,
                "replaced": update.is_replaced,
                "version_id": update.newest.version_id,
                "published": (update.published_at or "")[:10],
                "size": known_size(update.newest.size_bytes),
                "reason": update.newest.reason,
            }
            for update in session.updates(failed=failed.append)
        ]
    columns = ["model_id", "model", "have", "newest", "version_id", "published", "size", "replaced", "reason"]
    output.rows(rows, columns=columns)
    output.note("hnetkit pull version:ID fetches one" if rows else "nothing newer")
    note_bad(failed, output)


@command("identify")
@option("--again", is_flag=True, help="Ask again about files that the site did not know last time.")
@option(
    "--dump",
    metavar="FILE",
    type=click.Path(),
    help="Look the files up in this dump of Civitai's records, and ask no site: the SQLite database of a metadata "
    "archive, or the records as JSON lines, as the site's API or `hnetkit export` gives them.",
)
@output_options
def identify_command(again: bool, dump: str | None, output: Output) -> None:
    """Ask Civitai what the library's files are, by their hashes.

    Sends only hashes, of up to 10,000 files in one request. Also finds the checkpoints that networks were trained on.

    \b
    Examples:
      hnetkit identify
      hnetkit identify --json
      hnetkit identify --dump civitai.sqlite
    """
    if dump is not None and again:
        raise UsageError("--again is about the site, which --dump does not ask", hint="leave out one of the two")
    failed: list[BadRecord] = []
    with open_session() as session, byte_progress("reading", quiet=output.quiet or dump is None) as report:
        found = session.identify(again=again, dump=dump, progress=report, failed=failed.append)
    columns = ["path", "model", "version", "creator", "model_id", "version_id", "state", "reason"]
    output.rows(found.files, columns=columns, text=_identity_line)
    files, checkpoints = (sum(row["model_id"] is not None for row in rows) for rows in (found.files, found.checkpoints))
    known = f"{files} of {counted(len(found.files), 'file')} known"
    output.note(
        f"{known} to the site; {checkpoints} of {counted(len(found.checkpoints), 'checkpoint')}"
        if dump is None
        else f"{known}; hnetkit identify also asks the site"
    )
    note_bad(failed, output, of="the site" if dump is None else "the dump")


@command("repair")
@downloads_option("--dry-run", is_flag=True, help="List what is missing or damaged, and fetch nothing.")
@refill_option
@yes_option
@fetch_options
@output_options
def repair_command(dry_run: bool, refill: bool, yes: bool, fetching: dict[str, Any], output: Output) -> None:
    """Fetch files again that are missing or damaged, and networks of an import.

    Networks that `hnetkit import` told of and that are not here are fetched under the names that they had; where
    nothing says where one came from, it is listed as unknown.

    What its source does not have any more comes from another file of the library, from the hub, from mirrors that
    CivArchive knows, or from those of `hnetkit config mirrors`, held against its sha256.

    Reads every file that hnetkit fetched. A damaged file stays in its place until its replacement has been fetched and
    checked; then it is moved to the library's folder .quarantine. Another network that somebody put in its place is
    kept.

    Asks before it fetches more than 1 GB in all; `hnetkit config unasked` changes this size.

    \b
    Examples:
      hnetkit repair --dry-run
      hnetkit repair
    """
    from hnetkit.sources.results import of_damage

    with open_session(**fetching) as session:
        with step_progress("reading", quiet=output.quiet) as report:
            damages = session.damages(report)
        if dry_run:
            result_rows(map(of_damage, damages), output, text=_damage_line)
            count = sum(damage.is_to_fetch for damage in damages)
            is_whole = all(damage.what == "kept" for damage in damages)
            output.note("nothing is missing or damaged" if is_whole else f"{count} to fetch again")
            return
        refill = may_refill(session, refill=refill, yes=yes) if damages else refill
        to_fetch = [damage for damage in damages if damage.is_to_fetch]
        size = sum(damage.size_bytes or 0 for damage in to_fetch)
        if to_fetch and asks_above(size):
            confirm_fetch(len(to_fetch), size_text(size), session, yes=yes)
        with fetching_progress(session, output) as progress:
            found = session.repair(damages, refill=refill, progress=progress)
    if not found:
        output.note("nothing is missing or damaged")
    show_results(found, output)


def _damage_line(row: Row) -> str:
    reason = f"  ({row['reason']})" if row["reason"] else ""
    return f"{row['state']:<9}{row['path']}{reason}"


def _identity_line(row: dict[str, Any]) -> str:
    if row["model_id"] is None:
        return f"{row['path']}  {row['reason'] or 'not known'}"
    if row["model"] is None:
        return f"{row['path']}  model:{row['model_id']} version:{row['version_id']}"
    creator = f" by {row['creator']}" if row["creator"] else ""
    return f"{row['path']}  {row['model']} {row['version']}{creator}"
