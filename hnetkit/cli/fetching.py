"""What the fetching commands share: their options, the session, and how what became of a file reads."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from hnetkit import paths
from hnetkit.cli.ending import stopping_on_signals
from hnetkit.cli.output import Output, Row, say_failure
from hnetkit.errors import PartlyFailed, UsageError
from hnetkit.text import counted

if TYPE_CHECKING:
    from hnetkit.sources.civitai_models import BadRecord
    from hnetkit.sources.results import FetchResult
    from hnetkit.sources.session import FetchSession

F = TypeVar("F", bound=Callable[..., Any])
_COLUMNS = ["state", "name", "size", "model", "version", "reason"]
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmg]?)", re.IGNORECASE)


def fetch_options(command: F) -> F:
    """Adds --parallel, --limit-rate, --no-previews and --no-sidecars; the command receives `fetching: dict`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        fetching = {"parallel": kwargs.pop("parallel"), "limit": kwargs.pop("limit_rate")}
        fetching |= {"previews": not kwargs.pop("no_previews"), "sidecars": not kwargs.pop("no_sidecars")}
        return command(*args, fetching=fetching, **kwargs)

    decorated: Any = wrapper
    for option in (
        click.option("--no-sidecars", is_flag=True, help="Write nothing beside the networks."),
        click.option("--no-previews", is_flag=True, help="Fetch no example pictures."),
        click.option(
            "--limit-rate", metavar="RATE", callback=_rate, help="Bytes a second for all files together: 500k, 2M."
        ),
        click.option("--parallel", type=click.IntRange(1, 16), default=2, show_default=True, help="Files at a time."),
    ):
        decorated = option(decorated)
    return cast(F, decorated)


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = _SIZE.fullmatch(value.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--limit-rate {value}: not a number of bytes", hint="for example 500k or 2M")
    return float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()]


@contextmanager
def open_session(*, look_only: bool = False, **settings: Any) -> Iterator[FetchSession]:
    """What fetches into the person's library; `look_only` makes no registry where there is none."""
    from hnetkit.library.library import Library
    from hnetkit.sources.session import FetchSession

    with ExitStack() as stack:
        if look_only and not paths.registry_file().exists():
            library = Library(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            library = Library()
        stack.enter_context(library)
        yield FetchSession(library, **settings)


@contextmanager
def fetching_progress(session: FetchSession, output: Output) -> Iterator[Callable[[int, int], None]]:
    """The bar of bytes that come; Ctrl-C ends it once what came is kept."""
    from hnetkit.cli.progress import byte_progress

    with byte_progress("fetching", quiet=output.quiet) as report, stopping_on_signals(session.clock):
        yield report


def show_results(found: Iterable[FetchResult], output: Output) -> None:
    """Prints what became of each, and leaves with the exit code that a single failure has, or with 1.

    Raises:
        HnetkitError: something did not come.
    """
    from hnetkit.sources.results import require_all

    found = list(found)
    output.rows([result_row(result) for result in found if result.error is None], columns=_COLUMNS, text=_line)
    for failure in (result.error for result in found if result.error is not None):
        say_failure(failure)
    require_all(found)


def note_results(found: Iterable[FetchResult], output: Output) -> None:
    """Prints what would become of each."""
    output.rows(map(result_row, found), columns=_COLUMNS, text=_line)


def note_bad(failed: Iterable[BadRecord], output: Output) -> None:
    """Names what could not be used, and ends with exit code 1 where there is any.

    Raises:
        PartlyFailed: there is some.
    """
    failed = list(failed)
    for bad in failed:
        output.note(f"Error: {'' if bad.id is None else f'model:{bad.id}: '}{bad.reason}")
    if failed:
        raise PartlyFailed(f"{counted(len(failed), 'record')} of the site cannot be used", hint="the others were used")


def result_row(result: FetchResult) -> Row:
    """A row of what became of a file; numbers of a site as it says them."""
    return {
        "state": result.state,
        "name": result.name,
        "size": size_text(result.size_bytes),
        "model": result.model,
        "version": result.version,
        "reason": result.reason,
        "code": result.code,
        "model_id": result.model_id,
        "version_id": result.version_id,
        "file_id": result.file_id,
        "sha256": result.sha256,
        "size_bytes": result.size_bytes,
        "paths": list(result.paths),
    }


def _line(row: Row) -> str | list[str]:
    if row.get("paths"):
        lines = [f"{row['state']:<9}{path}" for path in row["paths"]]
        return [*lines, f"         {row['reason']}"] if row.get("code") == "partly" else lines
    reason = (row["reason"] or "").removeprefix(f"{row['name']}: ")
    detail = f"  ({reason})" if reason else f"  {row.get('size') or ''}"
    return f"{row['state']:<9}{row['name']}{detail}"


def size_text(size_bytes: int | None) -> str | None:
    if size_bytes is None:
        return None
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"
