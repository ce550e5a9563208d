"""`hnetkit identify` and `repair`: what the library's files are, and whether they still are it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hnetkit.cli.fetching import FILE_COLUMNS, carried_out, fetch_options, file_line, leave, note_bad, open_desk
from hnetkit.cli.output import Output, Row, output_options
from hnetkit.errors import HnetkitError
from hnetkit.text import counted

if TYPE_CHECKING:
    from hnetkit.sources.pages import BadRecord
    from hnetkit.sources.repair import Damage


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
    from hnetkit.sources.identify import checkpoints, identify

    failed: list[BadRecord] = []
    with open_desk() as desk:
        files = list(identify(desk.registry, desk.civitai, again=again, failed=failed))
        bases = list(checkpoints(desk.registry, desk.civitai, failed))
    trained = {base["checkpoint"]: base for base in bases}
    for row in files:
        base = trained.get((row.pop("sd_checkpoint") or "").lower(), {})
        row["checkpoint_model_id"], row["checkpoint_version_id"] = base.get("model_id"), base.get("version_id")
    output.rows(files, columns=["path", "model", "version", "creator", "model_id", "version_id"], text=_identity_line)
    known = sum(row["model_id"] is not None for row in files)
    found = sum(base["model_id"] is not None for base in bases)
    output.note(
        f"{known} of {counted(len(files), 'file')} known to the site; {found} of {counted(len(bases), 'checkpoint')}"
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
    from hnetkit.sources.repair import damages, forget_moved, take_up

    with open_desk(**fetching) as desk:
        with step_progress("reading", quiet=output.quiet) as report:
            found = list(damages(desk.registry, report))
        if dry_run:
            rows: list[Row] = [{"state": damage.what, "path": damage.path} for damage in found]
            output.rows(rows, columns=["state", "path"], text=lambda row: f"{row['state']:<9}{row['path']}")
            count = sum(damage.what != "kept" for damage in found)
            output.note(f"{count} to fetch again" if count else "nothing is missing or damaged")
            return
        rows = [_kept_row(damage) for damage in found if damage.what == "kept"]
        found = [damage for damage in found if damage.what != "kept"]
        taken = [(damage, take_up(desk.registry, damage)) for damage in found]
        jobs = dict.fromkeys(job for _, job in taken if isinstance(job, int))
        rows += [_failed_row(damage, error) for damage, error in taken if isinstance(error, HnetkitError)]
        whole = {d.job.id: d.sha256 for d in found if d.job is not None and d.sha256 and d.sha256 == d.job.sha256}
        desk.asked |= whole  # what the site has replaced since is not what was here
        rows += carried_out(desk, list(jobs), output)
        forget_moved(desk.registry, found)
    output.rows(rows, columns=FILE_COLUMNS, text=file_line)
    if not rows:
        output.note("nothing is missing or damaged")
    leave(rows, [])


def _kept_row(damage: Damage) -> Row:
    reason = "another network lies there, which is kept"
    return {"state": "kept", "name": damage.path, "code": "kept", "reason": reason, "paths": []}


def _failed_row(damage: Damage, error: HnetkitError) -> Row:
    return {"state": "failed", "name": damage.path, "code": "disk", "reason": str(error), "paths": []}


def _identity_line(row: dict[str, Any]) -> str:
    if row["model_id"] is None:
        return f"{row['path']}  not known to the site"
    creator = f" by {row['creator']}" if row["creator"] else ""
    return f"{row['path']}  {row['model']} {row['version']}{creator}"
