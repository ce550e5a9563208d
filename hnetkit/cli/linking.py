"""`hnetkit link`: the library in other programs' folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hnetkit.cli.library import complete_name, open_library
from hnetkit.cli.output import Output, Row, output_options
from hnetkit.errors import PartlyFailed, UsageError
from hnetkit.library.layouts import PROGRAMS, folder_of
from hnetkit.text import argument, counted

if TYPE_CHECKING:
    from hnetkit.library.link import How, LinkChange


@click.command("link")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_name)
@click.option("--layout", required=True, type=click.Choice(list(PROGRAMS)), help="Whose folder DIR is.")
@click.option("--symlink", is_flag=True, help="Only by symbolic links.")
@click.option("--hardlink", is_flag=True, help="Only by hard links.")
@click.option("--copy", is_flag=True, help="Only by copies.")
@click.option("--undo", is_flag=True, help="Take back all that link put there and that is still as it was.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@output_options
def link_command(
    directory: Path,
    names: tuple[str, ...],
    layout: str,
    symlink: bool,
    hardlink: bool,
    copy: bool,
    undo: bool,
    dry_run: bool,
    output: Output,
) -> None:
    """Put the library's networks into another program's folder.

    DIR is the program's own folder. All usable networks are linked, or those that are named; what the program cannot
    read is converted to .pt. Again after a change of the library, it adds what is new and removes what left. Files
    that hnetkit did not put there, or that changed since, stay as they are; exits with 1 where one is in the way.

    \b
    Examples:
      hnetkit link ~/stable-diffusion-webui --layout a1111
      hnetkit link ~/ComfyUI --layout comfyui ink glow --copy
      hnetkit link ~/ComfyUI --layout comfyui --undo
    """
    from hnetkit.cli.progress import step_progress

    how = _the_only_way(symlink=symlink, hardlink=hardlink, copy=copy)
    program = PROGRAMS[layout]
    if undo and (names or how):
        raise UsageError(
            "--undo takes everything back",
            hint=f"hnetkit link {argument(directory, is_path=True)} --layout {layout} --undo",
        )
    with open_library() as library, step_progress("Linking", quiet=output.quiet) as progress:
        if undo:
            found = library.unlink(directory, layout=layout, dry_run=dry_run)
        else:
            found = library.link(directory, layout=layout, names=names, how=how, dry_run=dry_run, progress=progress)
    shown = [change for change in found if change.what != "there" or output.form != "text"]
    output.rows(map(_row, shown), columns=["change", "path", "source", "how", "reason"], text=_line)
    if program.note and not undo:
        output.note(f"Note: {program.note}")
    output.note(f"{_sum(found, dry_run=dry_run)}; {folder_of(program, directory)}")
    skipped = sum(change.what == "skipped" for change in found)
    if skipped:
        raise PartlyFailed(f"{skipped} of {counted(len(found), 'file')} could not be linked")


def _the_only_way(**asked: bool) -> How | None:
    ways = [way for way, is_asked in asked.items() if is_asked]
    if len(ways) > 1:
        raise UsageError("choose one of --symlink, --hardlink and --copy")
    return ways[0] if ways else None  # type: ignore[return-value]


def _row(change: LinkChange) -> Row:
    row = asdict(change)
    return {"change": row.pop("what"), **row}


def _line(row: Row) -> str:
    how = f"  ({row['reason'] or row['how']})" if row["reason"] or row["how"] else ""
    return f"{row['change']:<9}{row['path']}{how}"


def _sum(changes: Iterable[LinkChange], *, dry_run: bool) -> str:
    counts = Counter(change.what for change in changes)
    there = f"{counts.pop('there')} there already" if counts["there"] else ""
    done = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing to change"
    return f"{'would be: ' if dry_run else ''}{', '.join(filter(None, [done, there]))}"
