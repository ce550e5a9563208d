"""`hnetkit inspect`, `validate` and `convert`: model files, without any library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import click

from hnetkit.cli.output import Output, Row, output_options, say_failure
from hnetkit.cli.progress import step_progress
from hnetkit.errors import FileRefused, HnetkitError, NotFound, PartlyFailed, UsageError, failure_of, printable
from hnetkit.text import counted

if TYPE_CHECKING:
    from hnetkit.formats.conversion import ConvertedFile
    from hnetkit.network import DType

T = TypeVar("T")
_COLUMNS = ["name", "kind", "base_model", "layer_structure", "activation", "layer_norm", "dtype", "size_bytes", "path"]
_PICTURE_COLUMNS = ["path", "prompt", "negative_prompt", "settings", "hypernetworks"]


@click.command("inspect")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@output_options
def inspect_command(files: tuple[str, ...], output: Output) -> None:
    """Show what is in model files.

    A PNG, JPEG or WebP picture shows how it was made, by A1111's text or ComfyUI's graph, and which of its
    hypernetworks the library holds; exits with 4 where it does not say. A file of another kind is named as what it
    is. Nothing in a file is ever run; exits with 7 where one is unsafe, damaged, or of a build that cannot be
    computed.

    \b
    Examples:
      hnetkit inspect style.pt
      hnetkit inspect --json *.pt *.safetensors
      hnetkit inspect picture.png
    """
    rows: list[Row] = []
    failures: list[HnetkitError] = []
    for path in _tracked("Reading", files, output):
        try:
            row, failure = _inspected(path, output)
        except Exception as error:
            failures.append(failure_of(error, path))
            continue
        if failure is not None:
            failures.append(failure)
        rows.append(row)
    columns = _PICTURE_COLUMNS if rows and all(row["kind"] == "picture" for row in rows) else _COLUMNS
    output.rows(rows, columns=columns, text=_card)
    _raise_all(failures, of=len(files))


@click.command("validate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@output_options
def validate_command(files: tuple[str, ...], output: Output) -> None:
    """Check hypernetwork files for damage and contradictions.

    Reads every value. Exits with 7 where a file is refused or holds values that are not finite.

    \b
    Examples:
      hnetkit validate style.pt
      hnetkit validate --json models/hypernetworks/*.pt
    """
    rows: list[Row] = []
    failures: list[HnetkitError] = []
    for path in _tracked("Checking", files, output):
        row, failure = _validated(path)
        if failure is not None:
            failures.append(failure)
        if row is not None:
            rows.append(row)
    output.rows(rows, columns=["path", "verdict", "problems", "warnings"], text=_verdict_lines)
    _raise_all(failures, of=len(files))


@click.command("convert")
@click.argument("sources", nargs=-1, required=True, metavar="SRC... [DST]")
@click.option(
    "--to", type=click.Choice(["safetensors", "pt"]), help="Format of the outputs, named after their sources."
)
@click.option(
    "--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help="Convert every tensor; else each stays as it is."
)
@click.option("--out-dir", type=click.Path(), help="Folder of the outputs; else each lies beside its source.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@output_options
def convert_command(
    sources: tuple[str, ...], to: str | None, dtype: str | None, out_dir: str | None, overwrite: bool, output: Output
) -> None:
    """Convert hypernetworks between .pt and .safetensors.

    Without --to, the last argument is the file to write, and its suffix decides the format. Tensors keep their bytes
    and metadata keeps its values and types, so that converting back gives the same network.

    \b
    Examples:
      hnetkit convert style.pt style.safetensors
      hnetkit convert --to safetensors --out-dir converted models/*.pt
    """
    from hnetkit.formats.conversion import convert, convert_all

    chosen = cast("DType | None", dtype)
    done: list[ConvertedFile] = []
    failures: list[HnetkitError] = []
    if to is None:
        if len(sources) != 2 or out_dir is not None:
            hint = "hnetkit convert style.pt style.safetensors, or add --to safetensors"
            raise UsageError("without --to, give one source and the file to write", hint=hint)
        try:
            done.append(convert(*sources, dtype=chosen, overwrite=overwrite))
        except Exception as error:
            failures.append(failure_of(error, sources[0]))
    else:
        form = cast("Literal['safetensors', 'pt']", to)
        with step_progress("Converting", quiet=output.quiet) as report:
            done, failures = convert_all(
                sources, form, out_dir=out_dir, dtype=chosen, overwrite=overwrite, progress=report
            )
    for made in done:
        for name in made.not_carried:
            output.note(f"{made.source}: {name} is not carried over")
    columns = ["source", "target", "dtype", "size_bytes", "content_hash"]
    output.rows(map(_converted_row, done), columns=columns, text=lambda row: row["target"])
    _raise_all(failures, of=len(done) + len(failures))


def _tracked(label: str, items: Sequence[T], output: Output) -> Iterator[T]:
    """Yields the items, and shows how far they are."""
    with step_progress(label, quiet=output.quiet) as report:
        for done, item in enumerate(items):
            report(done, len(items))
            yield item


def _raise_all(failures: list[HnetkitError], *, of: int) -> None:
    """One failure of one file leaves with its own exit code; of several files, refusals with 7 and a mixture with 1.

    Where nothing that was asked could be meant, that is a usage error still.
    """
    if not failures:
        return
    if of == 1:
        raise failures[0]
    for failure in failures:
        say_failure(failure)
    summary = f"{len(failures)} of {of} files failed"
    if all(isinstance(failure, FileRefused) for failure in failures):
        raise FileRefused(summary)
    if len(failures) == of and all(isinstance(failure, UsageError) for failure in failures):
        raise UsageError(summary)
    raise PartlyFailed(summary)


def _inspected(path: str, output: Output) -> tuple[Row, HnetkitError | None]:
    from hnetkit.cli.picture_rows import picture_row
    from hnetkit.formats.open_file import OpenFile
    from hnetkit.inspection import examine_open

    with OpenFile(path) as file:
        picture = picture_row(file, output)
        if picture is not None:
            return picture
        found = examine_open(file)
    return found.as_row(), found.refusal if found.verdict == "refused" else None


def _validated(path: str) -> tuple[Row | None, HnetkitError | None]:
    from hnetkit.formats import load
    from hnetkit.inspection import validate

    try:
        report = validate(load(path))
    except NotFound as error:
        return None, error
    except Exception as error:
        failure = failure_of(error, path)
        return {"path": path, "verdict": "refused", "problems": [str(failure)], "warnings": []}, failure
    verdict = "refused" if report.problems else "warnings" if report.warnings else "ok"
    row = {"path": path, "verdict": verdict, "problems": list(report.problems), "warnings": list(report.warnings)}
    if not report.problems:
        return row, None
    more = f" and {len(report.problems) - 1} more" if len(report.problems) > 1 else ""
    return row, FileRefused(f"{path}: {report.problems[0]}{more}", hint="get the file again, or an earlier save of it")


def _converted_row(made: ConvertedFile) -> Row:
    return {
        "source": made.source,
        "target": str(made.target),
        "format": made.format,
        "dtype": made.dtype,
        "size_bytes": made.size_bytes,
        "content_hash": made.content_hash,
    }


def _card(row: Row) -> list[str]:
    """One file for a person to read."""
    if row["kind"] == "picture":
        from hnetkit.cli.picture_rows import picture_card

        return picture_card(row)
    lines = [row["path"]]
    if row["format"] is None:
        lines.append(f"  {row['reason'].removeprefix(printable(row['path']) + ': ')}")
    else:
        lines += [f"  {label:<12} {text}" for label, text in _facts(row)]
    lines += [f"  warning      {warning}" for warning in row["warnings"]]
    return lines


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    structure = ", ".join(f"{part:g}" for part in row["layer_structure"])
    extras = [
        *(["layer norm"] if row["layer_norm"] else []),
        *(["activated output"] if row["activate_output"] and row["activation"] != "linear" else []),
        *([f"dropout {', '.join(f'{p:g}' for p in row['dropout'])}"] if any(row["dropout"]) else []),
    ]
    yield "name", row["name"]
    yield "for", row["base_model"]
    yield "widths", ", ".join(map(str, row["widths"]))
    yield "build", "; ".join([f"[{structure}] {row['activation']}", *extras])
    yield "weights", f"{row['parameters']:,} in {row['dtype']}, {row['size_bytes'] / 1e6:.1f} MB, {row['format']}"
    if row["step"] is not None:
        yield "trained", f"{counted(row['step'], 'step')}{_trained_on(row)}"
    yield "content", row["content_hash"][:23]
    yield "sha256", row["sha256"][:20]


def _trained_on(row: Row) -> str:
    name, short = row["sd_checkpoint_name"], row["sd_checkpoint"]
    return f" on {name or 'a checkpoint'}{f' [{short}]' if short else ''}" if name or short else ""


def _verdict_lines(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['verdict']:<9}{row['path']}"]
    lines += [f"  problem  {problem}" for problem in row["problems"]]
    lines += [f"  warning  {warning}" for warning in row["warnings"]]
    return lines
