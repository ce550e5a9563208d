"""Data on stdout in the form the user chose; everything else on stderr."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import click

from hnetkit.errors import HnetkitError, UsageError, printable

Row = dict[str, Any]
Form = Literal["text", "json", "nl", "csv", "tsv", "table"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Output:
    """How this call prints: `form` of the data, and whether notes on stderr are wanted."""

    form: Form = "text"
    quiet: bool = False

    def rows(self, rows: Iterable[Row], *, columns: Sequence[str], text: Callable[[Row], str] | None = None) -> None:
        """Prints rows. JSON forms carry every key; tables, CSV and text carry `columns`.

        Args:
            rows: one dict per thing; nested values stay nested in JSON and become JSON text in CSV.
            columns: what the flat forms show, in this order.
            text: how one row reads without an output option; None prints a table.
        """
        if self.form == "json":
            _echo(json.dumps([_jsonable(row) for row in rows], indent=2, ensure_ascii=False))
        elif self.form == "nl":
            for row in rows:
                _echo(json.dumps(_jsonable(row), ensure_ascii=False))
        elif self.form in ("csv", "tsv"):
            _delimited(rows, columns, "," if self.form == "csv" else "\t")
        elif self.form == "text" and text is not None:
            for row in rows:
                click.echo(text(row))
        else:
            _table(rows, columns)

    def note(self, message: str) -> None:
        """Says something to the person, on stderr; silent with -q."""
        if not self.quiet:
            click.echo(printable(message), err=True)


def output_options(command: F) -> F:
    """Adds --json, --nl, --csv, --tsv, -t/--table and -q; the command receives `output: Output`."""

    def collect(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        chosen = ctx.meta.setdefault("hnetkit.forms", [])
        if value:
            chosen.append(param.name)
        if len(chosen) > 1:
            raise UsageError("choose one of --json, --nl, --csv, --tsv and --table")
        return value

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        form: Form = "text"
        for name in ("json", "nl", "csv", "tsv", "table"):
            if kwargs.pop(f"as_{name}"):
                form = name
        return command(*args, output=Output(form, kwargs.pop("quiet")), **kwargs)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for flags, help_text in (
        (("-t", "--table", "as_table"), "Print a table."),
        (("--tsv", "as_tsv"), "Print tab-separated values."),
        (("--csv", "as_csv"), "Print comma-separated values."),
        (("--nl", "as_nl"), "Print newline-delimited JSON."),
        (("--json", "as_json"), "Print a JSON array."),
    ):
        wrapper = click.option(*flags, is_flag=True, callback=collect, help=help_text)(wrapper)
    return click.option("-q", "--quiet", is_flag=True, help="No notes and no progress on stderr.")(wrapper)  # type: ignore[return-value]


def confirm(question: str, *, yes: bool) -> None:
    """Asks on stderr; returns on agreement.

    Raises:
        UsageError: nobody is there to answer (stdin is not a terminal) and -y was not given.
        HnetkitError: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is here to answer.", hint="add -y to agree")
    if not click.confirm(question, err=True):
        raise HnetkitError("nothing was done")


def _echo(text: str, *, newline: bool = True) -> None:
    r"""Prints text; a byte of a file name that is not UTF-8 becomes JSON's own ``\udcXX``, which reads back exactly."""
    click.echo(text.encode("utf-8", "backslashreplace").decode(), nl=newline)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    if isinstance(value, list | dict | tuple):
        return json.dumps(_jsonable(value), ensure_ascii=False)
    return str(value)


def _delimited(rows: Iterable[Row], columns: Sequence[str], delimiter: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    _echo(buffer.getvalue(), newline=False)


def _table(rows: Iterable[Row], columns: Sequence[str]) -> None:
    from tabulate import tabulate

    cells = [[printable(_cell(row.get(column))) for column in columns] for row in rows]
    click.echo(tabulate(cells, headers=list(columns), disable_numparse=True))
