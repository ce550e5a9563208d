"""`hnetkit identify` and `repair`: what the library's files are, and whether they still are it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hnetkit.cli.fetching import fetch_options, fetching_progress, note_bad, open_session, show_results
from hnetkit.cli.output import Output, Row, output_options
from hnetkit.text import counted

if TYPE_CHECKING:
    from hnetkit.sources.civitai_models import BadRecord


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
    from hnetkit.cli.progress import step_progress

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
