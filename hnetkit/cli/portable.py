"""`hnetkit export` and `import`: the library's knowledge, carried to another machine."""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import click

from hnetkit.cli.library import open_registry
from hnetkit.cli.named import require_text_output
from hnetkit.cli.output import Output, output_options, put_json, say
from hnetkit.errors import PartlyFailed, UsageError
from hnetkit.text import counted

MOST = 2 << 30
"""Bytes of an import: an export of ten thousand networks has about a hundredth of it."""
_IN_MEMORY, _PIECE = 16 << 20, 1 << 20  # bytes
_SHOWN = 20  # failures
_BEGINNING = b'{"kind": "hnetkit"'  # of what `export` writes


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
    from hnetkit.files import new_file
    from hnetkit.sources.portable import exported

    if file == "-":
        with open_registry() as registry:
            for record in exported(registry):
                put_json(record)
        return
    require_text_output(file, overwrite=overwrite, beginning=_BEGINNING)
    count = -1  # the header is none
    with open_registry() as registry, new_file(file, overwrite=overwrite) as out:
        for record in exported(registry):  # one at a time: each may be as large as a site liked
            out.write(f"{json.dumps(record, ensure_ascii=True)}\n".encode())
            count += 1
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
    from hnetkit.sources.portable import imported

    if file == "-" and sys.stdin is None:
        raise UsageError("standard input is closed", hint="hnetkit import FILE")
    with (
        sys.stdin.buffer if file == "-" else open(file, "rb") as given,
        _whole(given) as whole,
        open_registry() as registry,
    ):
        found = imported(registry, _lines(whole))
    rows = [{"kind": kind, "records": count} for kind, count in sorted(found.counts.items())]
    output.rows(rows, columns=["kind", "records"], text=lambda row: f"{row['kind']}  {row['records']}")
    for failure in found.failures[:_SHOWN]:
        say(failure)
    if found.failed > _SHOWN:
        say(f"and {found.failed - _SHOWN} more")
    if found.failed:
        raise PartlyFailed(f"{counted(found.failed, 'line')} could not be taken in, or not whole")


@contextmanager
def _whole(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file that is all there: the registry is not kept busy while somebody's pipe is waited for.

    Raises:
        UsageError: it is larger than any export.
    """
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        if os.fstat(file.fileno()).st_size > MOST:
            raise _too_large()
        yield file
        return
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as whole:
        left = MOST
        while piece := file.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise _too_large()
            whole.write(piece)
        whole.seek(0)
        yield cast(IO[bytes], whole)


def _too_large() -> UsageError:
    return UsageError(f"more than {MOST >> 30} GB, which no export has", hint="give a file that `hnetkit export` wrote")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of one that is far too long only the beginning."""
    from hnetkit.sources.portable import MAX_LINE

    while line := file.readline(MAX_LINE + 2):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n") and (line := file.readline(MAX_LINE + 2)):
            pass
