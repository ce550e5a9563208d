"""Printing: data on stdout in the form that the user chose, everything else on stderr.

All output but progress bars goes through this module, which makes strangers' text safe: text is printable, line by
line; JSON, CSV and TSV hold the same data in escapes. Tokens of the environment are never shown.
"""

from __future__ import annotations

import codecs
import csv
import errno
import io
import json
import logging
import os
import shutil
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from operator import itemgetter
from typing import IO, Any, Literal, TextIO, TypeVar, cast

import click

from hnetkit.cli.options import OUTPUT, option
from hnetkit.errors import HnetkitError, UsageError
from hnetkit.text import are_plain_cells, exact, printable, to_cell

Row = dict[str, Any]
Form = Literal["text", "json", "nl", "csv", "tsv", "table"]
F = TypeVar("F", bound=Callable[..., Any])
_TOKENS = ("CIVITAI_TOKEN", "CIVITAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_WIDEST = 1000  # characters of a table's cell: longer than any path or reason that a person reads there
_SHORTEST_TOKEN = 8  # anything shorter is not a secret, and may be a word that text needs


class OutputClosed(Exception):
    """The reader closed our output, as ``| head`` does. It is not an OSError: click would exit with 1."""


@dataclass(frozen=True, slots=True)
class Output:
    """How a command prints: the `form` of data on stdout, and whether notes on stderr are off (`quiet`)."""

    form: Form = "text"
    quiet: bool = False

    def rows(
        self, rows: Iterable[Row], *, columns: Sequence[str], text: Callable[[Row], str | Iterable[str]] | None = None
    ) -> None:
        """Prints rows. JSON forms carry every key; tables, CSV and text carry `columns`.

        Args:
            rows: one dict each; nested values stay nested in JSON and become JSON text in CSV.
            columns: of the flat forms, in this order.
            text: returns the line or lines of a row where no output option is given; None prints a table.
        """
        if self.form == "json":
            put_json([_jsonable(row) for row in rows], indent=2)
        elif self.form == "nl":
            for row in rows:
                put_json(_jsonable(row))
        elif self.form in ("csv", "tsv"):
            _delimited(rows, columns, "," if self.form == "csv" else "\t")
        elif self.form == "text" and text is not None:
            for row in rows:
                shown = text(row)
                for line in (shown,) if isinstance(shown, str) else shown:
                    put(line)
        else:
            _table(rows, columns)

    def note(self, message: str) -> None:
        """Prints a message on stderr; not with -q."""
        if not self.quiet:
            say(message)


def put(line: str) -> None:
    """Prints one line of text on stdout."""
    _write(printable(line), sys.stdout)


def put_path(path: str | os.PathLike[str]) -> None:
    """Prints a path on stdout: its own bytes for a program, as in ``$(hnetkit path)``, printable text on a terminal."""
    if is_terminal(sys.stdout):
        put(os.fspath(path))
    else:
        _write(os.fsencode(path), sys.stdout)


def put_json(value: Any, *, indent: int | None = None) -> None:
    """Prints a value as JSON on stdout, which reads back exactly; characters that control a terminal are escaped."""
    lines = json.dumps(value, indent=indent, ensure_ascii=False).split("\n")
    ascii_only = _is_ascii()
    _write("\n".join([exact(line, ascii_only=ascii_only) for line in lines]), sys.stdout)


def say(line: str) -> None:
    """Prints one line on stderr, also with -q. Where stderr is closed or full, the work goes on without messages."""
    with suppress(OSError, OutputClosed):
        _write(printable(line), sys.stderr)


def not_text(argument: str) -> UsageError:
    """Returns the error for an argument that is not UTF-8: the registry and the sites take text alone."""
    return UsageError(f"{argument}: not UTF-8 text", hint="check the terminal's encoding")


def say_failure(failure: HnetkitError) -> None:
    """Prints why one of several items failed."""
    say(f"Error: {failure}")


def say_traceback(error: BaseException) -> None:
    """Prints the traceback of an error."""
    for block in traceback.format_exception(error):
        for line in block.rstrip("\n").split("\n"):
            say(line)


def say_usage(error: click.ClickException) -> None:
    """Prints what click refuses in a command line, and how the command is used; where it has nothing, the help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        for line in error.format_message().split("\n"):
            say(line)
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        for line in context.get_usage().split("\n"):
            say(line)
        say(f"Try '{context.command_path} {context.help_option_names[0]}' for help.")
        say("")
    say(f"Error: {error.format_message()}".replace("\n\t", " "))  # click puts each choice on a line of its own


class _SafeRecord(logging.LogRecord):
    """A log record of any library, made safe whatever handler prints it."""

    def getMessage(self) -> str:
        return _without_tokens(printable(super().getMessage()))


class _Stream(io.FileIO):
    """A standard stream that outlives its terminal: what is written after that was closed goes nowhere."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not self._is_forgiven(error):
                raise
            return memoryview(data).nbytes

    def _is_forgiven(self, error: OSError) -> bool:
        return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)


class _MessageStream(_Stream):
    """One for messages and bars alone, whoever writes them: the work goes on without, also where a disk is full."""

    def _is_forgiven(self, error: OSError) -> bool:
        return True


def take_streams() -> None:
    """Opens standard streams that the caller closed, so that no file gets their number; makes logs safe.

    No bar, message or library ends the work, or changes its exit code, because the terminal was closed meanwhile.
    """
    for name, mode, kind in (("stdin", "r", None), ("stdout", "w", _Stream), ("stderr", "w", _MessageStream)):
        if (stream := getattr(sys, name)) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif kind is not None:
            setattr(sys, name, _lasting(stream, kind))
    warnings.showwarning = lambda message, *about, **more: say(f"Warning: {message}")
    logging.setLogRecordFactory(_SafeRecord)


def _lasting(stream: TextIO, kind: type[_Stream]) -> TextIO:
    """Returns a stream like one of Python's own; any other, such as the console of Windows, as it is."""
    before: Any = getattr(stream, "buffer", None)
    is_buffered = isinstance(before, io.BufferedWriter)  # not with PYTHONUNBUFFERED
    if not isinstance(stream, io.TextIOWrapper) or type(before.raw if is_buffered else before) is not io.FileIO:
        return stream
    raw = kind(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if is_buffered else raw,
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal; None, a closed one, is not."""
    return stream is not None and stream.isatty()


def output_options(function: F) -> F:
    """Adds --json, --nl, --csv, --tsv, -t/--table and -q; the command receives `output: Output`."""

    def collect(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        chosen = ctx.meta.setdefault("hnetkit.forms", [])
        if value:
            chosen.append(param.name)
        if len(chosen) > 1:
            raise UsageError("choose one of --json, --nl, --csv, --tsv and --table")
        return value

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        form: Form = "text"
        for name in ("json", "nl", "csv", "tsv", "table"):
            if kwargs.pop(f"as_{name}"):
                form = name
        return function(*args, output=Output(form, kwargs.pop("quiet")), **kwargs)

    decorated: Any = wrapper
    for flags, help_text in (
        (("-t", "--table", "as_table"), "Print the results as a table."),
        (("--tsv", "as_tsv"), "Print the results as tab-separated values."),
        (("--csv", "as_csv"), "Print the results as comma-separated values."),
        (("--nl", "as_nl"), "Print one line of JSON for each result, with all details."),
        (("--json", "as_json"), "Print the results as a JSON array, with all details."),
    ):
        decorated = option(*flags, section=OUTPUT, is_flag=True, callback=collect, help=help_text)(decorated)
    return cast(F, quiet_option("Print only errors on stderr, no notes or progress.")(decorated))


def quiet_option(help_text: str) -> Callable[[F], F]:
    """Adds -q; the command receives `quiet`."""
    return option("-q", "--quiet", section=OUTPUT, is_flag=True, help=help_text)


def confirm(question: str, *, yes: bool) -> None:
    """Asks a question on stderr; returns if the answer, or `yes`, agrees.

    Raises:
        UsageError: stdin is not a terminal and -y was not given.
        HnetkitError: the answer was no.
    """
    if yes:
        return
    if not is_terminal(sys.stdin):
        raise UsageError(f"{question} There is no terminal to answer on.", hint="add -y to agree")
    if not click.confirm(_without_tokens(printable(question)), err=True):
        raise HnetkitError("nothing was done")


def _write(text: str | bytes, stream: IO[str] | None) -> None:
    """Writes text that is already safe, or bytes; escapes what the stream's encoding lacks. All output ends here."""
    if stream is None:
        return
    if isinstance(text, str):
        encoding = _encoding(stream)
        text = _without_tokens(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        click.echo(text, file=stream)
    except BrokenPipeError as error:
        raise OutputClosed from error


def _without_tokens(text: str) -> str:
    for name in _TOKENS:
        token = os.environ.get(name, "").strip()
        if len(token) >= _SHORTEST_TOKEN:
            text = text.replace(token, f"<{name}>")
    return text


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


_NUMBERS = frozenset({int, float, bool})
_TEXTS = frozenset({str, type(None)})
_SCALARS = _NUMBERS | {str}


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list) and _SCALARS.issuperset(map(type, value)):
        return ", ".join([f"{item:g}" if type(item) is float else str(item) for item in value])
    if isinstance(value, list | dict | tuple):
        return json.dumps(_jsonable(value), ensure_ascii=False)
    return str(value)


def _delimited(rows: Iterable[Row], columns: Sequence[str], delimiter: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    ascii_only, rows = _is_ascii(), list(rows)

    def cell(value: Any) -> str:
        text = _cell(value)
        if value is None or type(value) in _NUMBERS:
            return text
        return exact(to_cell(text), ascii_only=True) if ascii_only else to_cell(text)

    def cells(values: list[Any]) -> Iterator[str]:
        """Each once that many rows have in common: most do."""
        if _TEXTS.issuperset(map(type, values)):
            distinct = set(values)
            if None not in distinct and are_plain_cells(distinct):
                return iter(values)
            return map({value: cell(value) for value in distinct}.__getitem__, values)
        keys = list(map(id, values))
        made = {key: cell(value) for key, value in dict(zip(keys, values, strict=True)).items()}
        return map(made.__getitem__, keys)

    writer.writerows(zip(*(cells(_values(rows, column)) for column in columns), strict=True))
    _write(buffer.getvalue().removesuffix("\n"), sys.stdout)


def _values(rows: Sequence[Row], column: str) -> list[Any]:
    try:
        return list(map(itemgetter(column), rows))  # in half the time of `get`
    except KeyError:
        return [row.get(column) for row in rows]


def _is_ascii() -> bool:
    """Whether stdout takes no UTF-8, so that all beyond ASCII is escaped."""
    return codecs.lookup(_encoding(sys.stdout)).name != "utf-8"


def _encoding(stream: IO[str] | None) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _short(text: str) -> str:
    """Returns a table's cell, cut: the longest cell makes every line as long. Other forms print all of it."""
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}\u2026"


def _table(rows: Iterable[Row], columns: Sequence[str]) -> None:
    from hnetkit.cli.table import table_lines

    cells = [[_short(printable(_cell(row.get(column)))) for column in columns] for row in rows]
    _write("\n".join(table_lines(columns, cells, _columns_of_terminal())), sys.stdout)


def _columns_of_terminal() -> int | None:
    """Returns how wide a table may be; None where its reader is a file or a program, which takes any width."""
    return max(1, shutil.get_terminal_size().columns) if is_terminal(sys.stdout) else None
