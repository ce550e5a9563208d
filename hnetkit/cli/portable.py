"""`hnetkit export` and `import`: the library's knowledge, carried to another machine."""

from __future__ import annotations

import sys

import click

from hnetkit.cli.library import open_library
from hnetkit.cli.output import Output, output_options, put_json, say
from hnetkit.errors import PartlyFailed, UsageError
from hnetkit.text import counted

_SHOWN = 20  # failures


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@output_options
def export_command(file: str, overwrite: bool, output: Output) -> None:
    """Write what is known of the library as JSON lines.

    Networks with their tags, notes and aliases, what Civitai says of models, subscriptions; no path, and no network
    itself. FILE may be - for standard output.

    \b
    Examples:
      hnetkit export library.jsonl
      hnetkit export - | gzip > library.jsonl.gz
    """
    from hnetkit.sources.export import export_library, export_records

    with open_library() as library:
        if file == "-":
            for record in export_records(library.registry):
                put_json(record)
            return
        count = export_library(library, file, overwrite=overwrite)
    output.rows([{"file": file, "records": count}], columns=["file", "records"], text=lambda row: row["file"])
    output.note(counted(count, "record"))


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@output_options
def import_command(file: str, output: Output) -> None:
    """Take in what `export` wrote.

    What is known here already stays; tags are added. FILE may be - for standard input. Exits with 1 where a line
    cannot be taken in; the others are.

    \b
    Examples:
      hnetkit import library.jsonl
      zcat library.jsonl.gz | hnetkit import -
    """
    from hnetkit.sources.export import import_library

    if file == "-" and sys.stdin is None:
        raise UsageError("standard input is closed", hint="hnetkit import FILE")
    with open_library() as library:
        found = import_library(library, sys.stdin.buffer if file == "-" else file)
    rows = [{"kind": kind, "records": count} for kind, count in sorted(found.counts.items())]
    output.rows(rows, columns=["kind", "records"], text=lambda row: f"{row['kind']}  {row['records']}")
    for failure in found.failures[:_SHOWN]:
        say(failure)
    if found.failed > _SHOWN:
        say(f"and {found.failed - _SHOWN} more")
    if found.failed:
        raise PartlyFailed(f"{counted(found.failed, 'line')} could not be taken in, or not whole")
