"""Other programs: `hnetkit link`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hnetkit.cli.completion import complete_name
from hnetkit.cli.library import because, open_library, tell
from hnetkit.cli.options import command, option
from hnetkit.cli.output import Output, Row, output_options
from hnetkit.cli.progress import step_progress
from hnetkit.errors import PartlyFailed, UsageError
from hnetkit.library.layouts import PROGRAMS, folder_of, program_at
from hnetkit.text import argument, counted

if TYPE_CHECKING:
    from hnetkit.library.link import LinkChange
    from hnetkit.library.placing import How
    from hnetkit.library.plugins import Kind

_LINK_PLANS = {"linked": "to link", "updated": "to update", "removed": "to remove"}
"""What a dry run says instead of what is done."""


@command("link")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_name)
@option(
    "--layout",
    type=click.Choice(list(PROGRAMS)),
    help="Program that DIR belongs to; told from what is in DIR where it can be.",
)
@option("--symlink", is_flag=True, help="Use symbolic links, or fail.")
@option("--hardlink", is_flag=True, help="Use hard links, or fail.")
@option("--copy", is_flag=True, help="Copy the files.")
@option("--node", is_flag=True, help="Put hnetkit's nodes into ComfyUI instead of networks.")
@option("--extension", is_flag=True, help="Put hnetkit's extension into Forge or reForge instead of networks.")
@option("--remove", former=["--undo"], is_flag=True, help="Remove what this command put there, where it is unchanged.")
@option("--dry-run", is_flag=True, help="List what would be done, and change nothing.")
@output_options
def link_command(
    directory: Path,
    names: tuple[str, ...],
    layout: str | None,
    symlink: bool,
    hardlink: bool,
    copy: bool,
    node: bool,
    extension: bool,
    remove: bool,
    dry_run: bool,
    output: Output,
) -> None:
    """Put the library's networks into another program's folder.

    DIR is the program's main folder. Links all usable networks, or those that are named, with the previews, notes and
    other sidecars beside them. Formats that the program cannot read are converted to .pt. Without --symlink,
    --hardlink or --copy, files come in the way in which earlier ones came, else in the first of these that works.

    Names stay as they are, except for what cannot be in a prompt or on some disks; a changed name is said.

    Run it again after a change of the library: it adds what is new and removes what you no longer have. Files that
    hnetkit did not put there, or that changed since, are kept; the exit code is 1 if one is in the way.

    \b
    Examples:
      hnetkit link ~/stable-diffusion-webui
      hnetkit link ~/ComfyUI outline dots --copy
      hnetkit link ~/models --layout comfyui
      hnetkit link ~/ComfyUI --remove
      hnetkit link ~/ComfyUI --node
      hnetkit link ~/forge --extension
    """
    how = _chosen_way(symlink=symlink, hardlink=hardlink, copy=copy)
    if node or extension:
        if names or how or (node and extension):
            raise UsageError("--node and --extension put no networks anywhere: each goes alone, with DIR")
        _link_plugin("node" if node else "extension", directory, layout, remove, dry_run, output)
        return
    if remove and (names or how):
        raise UsageError(
            "--remove removes everything",
            hint=f"hnetkit link {argument(directory, is_path=True)} --layout {layout} --remove"
            if layout
            else f"hnetkit link {argument(directory, is_path=True)} --remove",
        )
    with open_library() as library, step_progress("Linking", quiet=output.quiet) as progress:
        program = library.program_for(directory, layout)
        tell(library, names, output)
        if remove:
            found = library.unlink(directory, layout=program.name, dry_run=dry_run)
        else:
            found = library.link(
                directory, layout=program.name, names=names, how=how, dry_run=dry_run, progress=progress
            )
    _list_changes(found, output, dry_run=dry_run)
    marked = program_at(directory)
    if marked is not None and marked != program:
        output.note(f"Note: by what is in it, {directory} is the folder of {marked.name}, not {program.name}")
    if (note := (marked or program).note) and not remove:
        output.note(f"Note: {note}")
    told = "" if layout else f" ({program.name})"
    output.note(f"{_link_totals(found, dry_run=dry_run)}; {folder_of(program, directory)}{told}")
    skipped = [change.reason for change in found if change.what == "skipped"]
    if skipped:
        raise PartlyFailed(f"{len(skipped)} of {counted(len(found), 'file')} could not be linked{because(skipped)}")


def _link_plugin(kind: Kind, directory: Path, layout: str | None, remove: bool, dry_run: bool, output: Output) -> None:
    from hnetkit.library.plugins import PLUGINS, python_of

    plugin = PLUGINS[kind]
    if layout not in (None, plugin.program):
        raise UsageError(f"--{kind} is for {plugin.program}", hint=f"--layout {argument(plugin.program)}")
    with open_library() as library:
        if remove:
            found = library.unlink_plugin(directory, kind, dry_run=dry_run)
        else:
            found = library.link_plugin(directory, kind, dry_run=dry_run)
    _list_changes(found, output, dry_run=dry_run)
    output.note(_link_totals(found, dry_run=dry_run))
    if not remove and not dry_run:
        python = python_of(directory, kind)
        where = "there" if python else "in the program's own Python"
        pip = f"{argument(python, is_path=True) if python else 'python'} -m pip install --no-deps hnetkit"
        output.note(f"It needs the package {where}: {pip}")
        output.note("Then start the program again.")
    kept = [change.reason for change in found if change.what == "kept"]
    if kept:
        done = "removed" if remove else "written"
        raise PartlyFailed(f"{counted(len(kept), 'file')} could not be {done}{because(kept)}")


def _chosen_way(**flags: bool) -> How | None:
    ways = [way for way, is_set in flags.items() if is_set]
    if len(ways) > 1:
        raise UsageError("choose one of --symlink, --hardlink and --copy")
    return ways[0] if ways else None  # type: ignore[return-value]


def _list_changes(changes: Iterable[LinkChange], output: Output, *, dry_run: bool) -> None:
    shown = [change for change in changes if change.what != "there" or output.form != "text"]
    line = partial(_link_line, dry_run=dry_run)
    output.rows(map(_link_row, shown), columns=["change", "path", "source", "how", "reason"], text=line)


def _link_row(change: LinkChange) -> Row:
    row = asdict(change)
    return {"change": row.pop("what"), **row}


def _link_line(row: Row, *, dry_run: bool) -> str:
    how = "; ".join(filter(None, [row["how"] if row["change"] not in ("kept", "skipped") else None, row["reason"]]))
    is_planned = dry_run and row["change"] in _LINK_PLANS
    change = _LINK_PLANS[row["change"]] if is_planned else row["change"]
    return f"{change:<9} {row['path']}{f'  ({how})' if how else ''}"


def _link_totals(changes: Iterable[LinkChange], *, dry_run: bool) -> str:
    counts = Counter(change.what for change in changes)
    there = f"{counts.pop('there')} there already" if counts["there"] else ""
    done = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    done = f"would be: {done}" if done and dry_run else done or "nothing to change"
    return ", ".join(filter(None, [done, there]))
