"""`hnetkit export` and `import`: the library's knowledge, carried to another machine."""

from __future__ import annotations

import json
from typing import IO

import click

from hnetkit.cli.library import open_registry
from hnetkit.cli.output import Output, output_options, put_json


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
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
    from hnetkit.files import new_file
    from hnetkit.sources.portable import exported

    with open_registry() as registry:
        records = list(exported(registry))
    if file == "-":
        for record in records:
            put_json(record)
        return
    with new_file(file, overwrite=overwrite) as out:
        out.write("".join(f"{json.dumps(record, ensure_ascii=True)}\n" for record in records).encode())
    output.rows(
        [{"file": file, "records": len(records) - 1}], columns=["file", "records"], text=lambda row: row["file"]
    )
    output.note(f"{len(records) - 1} records")


@click.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@output_options
def import_command(file: IO[str], output: Output) -> None:
    """Take in what `export` wrote.

    What is known here already stays; tags are added. FILE may be - for standard input.

    \b
    Examples:
      hnetkit import library.jsonl
      zcat library.jsonl.gz | hnetkit import -
    """
    from hnetkit.sources.portable import imported

    with open_registry() as registry:
        counts = imported(registry, file)
    rows = [{"kind": kind, "records": count} for kind, count in sorted(counts.items())]
    output.rows(rows, columns=["kind", "records"], text=lambda row: f"{row['kind']}  {row['records']}")
