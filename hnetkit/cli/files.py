"""`hnetkit inspect`, `validate` and `convert`: model files, without any library."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from hnetkit.cli.output import Output, Row, output_options, say_failure
from hnetkit.cli.progress import step_progress
from hnetkit.errors import FileRefused, HnetkitError, NotFound, PartlyFailed, UsageError, failure_of, printable
from hnetkit.files import is_model_name
from hnetkit.network import DType
from hnetkit.text import argument, counted

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
    rows: list[Row] = []
    failures: list[HnetkitError] = []
    pairs = list(_targets(sources, to, out_dir, failures))
    unread = len(failures)
    for source, target in _tracked("Converting", pairs, output):
        try:
            rows.append(_convert(source, target, cast("DType | None", dtype), overwrite, output))
        except Exception as error:
            failures.append(failure_of(error, source))
    output.rows(
        rows, columns=["source", "target", "dtype", "size_bytes", "content_hash"], text=lambda row: row["target"]
    )
    _raise_all(failures, of=len(pairs) + unread)


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
    from hnetkit.formats.source import OpenFile
    from hnetkit.inspection import examine_open

    with OpenFile(path) as file:
        picture = picture_row(file, output)
        if picture is not None:
            return picture
        found = examine_open(file)
    return found.as_row(), found.refusal if found.verdict == "refused" else None


def _validated(path: str) -> tuple[Row | None, HnetkitError | None]:
    from hnetkit.checks import validate
    from hnetkit.formats import load

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


def _targets(
    sources: tuple[str, ...], to: str | None, out_dir: str | None, failures: list[HnetkitError]
) -> Iterator[tuple[str, Path]]:
    """Yields (source, target) pairs; `failures` gets unreadable folders, and sources that would get one name."""
    if to is None:
        if len(sources) != 2 or out_dir is not None:
            hint = "hnetkit convert style.pt style.safetensors, or add --to safetensors"
            raise UsageError("without --to, give one source and the file to write", hint=hint)
        source, target = sources[0], Path(sources[1])
        yield source, target / f"{Path(source).stem}.safetensors" if target.is_dir() else target
        return
    folder = Path(out_dir) if out_dir else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[tuple[str, Path]]] = {}
    named: dict[str, str] = {}  # each file once, in however many spellings
    for source in _expanded(sources, failures):
        folder_of_it, name = os.path.split(source)
        named.setdefault(os.path.join(os.path.realpath(folder_of_it), name), source)
    for source in named.values():
        target = (folder or Path(source).parent) / f"{Path(source).stem}.{to}"
        place = os.path.normcase(os.path.join(os.path.realpath(target.parent), target.name))
        found.setdefault(place, []).append((source, target))
    for pairs in found.values():
        if len(pairs) == 1:
            yield pairs[0]
        else:
            failures += _of_one_name(pairs)


def _of_one_name(pairs: Sequence[tuple[str, Path]]) -> Iterator[HnetkitError]:
    """The failure of each of several sources whose outputs would be one file; no choice of one would be right."""
    more = f" and {len(pairs) - 2} more" if len(pairs) > 2 else ""
    for source, target in pairs:
        other = next(other for other, _ in pairs if other != source)
        alone = f"hnetkit convert {argument(source, is_path=True)} OTHER{target.suffix}"
        yield UsageError(f"{source}: {other}{more} would also become {target}; give it a name of its own: {alone}")


def _expanded(sources: Iterable[str], failures: list[HnetkitError]) -> Iterator[str]:
    """A folder stands for the model files in it; `failures` gets those that cannot be read, or hold none."""

    for source in sources:
        if not os.path.isdir(source):
            yield source
            continue
        try:
            found = [path for path in Path(source).iterdir() if is_model_name(path.name)]
        except OSError as error:
            failures.append(failure_of(error, source))
            continue
        files = sorted(str(path) for path in found if os.path.isfile(path))
        if not files:
            failures.append(NotFound(f"{source}: no model file lies in this folder", hint="name the folder below it"))
        yield from files


def _convert(source: str, target: Path, dtype: DType | None, overwrite: bool, output: Output) -> Row:
    from hnetkit.formats import load, save
    from hnetkit.formats.writing import require_output

    require_output(target, overwrite=overwrite)
    net = load(source)
    try:
        save(net, target, dtype=dtype, overwrite=overwrite)
    except OSError as error:
        error.filename = None  # that of the temporary file means nothing to the person
        raise failure_of(error, str(target)) from error
    for name in net.not_carried:
        output.note(f"{source}: {name} is not carried over")
    written = load(target)
    return {
        "source": source,
        "target": str(target),
        "format": written.format,
        "dtype": written.dtype,
        "size_bytes": written.size_bytes,
        "content_hash": written.content_hash,
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
