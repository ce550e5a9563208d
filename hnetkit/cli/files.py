"""`hnetkit inspect`, `validate` and `convert`: model files and pictures, without any library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import click

from hnetkit.cli.options import command, option
from hnetkit.cli.output import Output, Row, output_options, say_failure
from hnetkit.cli.progress import step_progress
from hnetkit.errors import FileRefused, HnetkitError, NotFound, PartlyFailed, UsageError, failure_of, printable
from hnetkit.files import is_file_at
from hnetkit.text import counted, size_text

if TYPE_CHECKING:
    from hnetkit.errors import NoSettings
    from hnetkit.formats.conversion import ConvertedFile
    from hnetkit.formats.open_file import OpenFile
    from hnetkit.network import DType

T = TypeVar("T")
_COLUMNS = ["name", "kind", "base_model", "layer_structure", "activation", "layer_norm", "dtype", "size_bytes", "path"]
_BAKED = ("lora", "diff", "checkpoint")  # kinds of files that `bake` writes, beside hypernetworks
_WITH_SETTINGS = ("picture", "settings")
_PICTURE_COLUMNS = ["path", "prompt", "negative_prompt", "settings", "hypernetworks"]


@command("inspect")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@output_options
def inspect_command(files: tuple[str, ...], output: Output) -> None:
    """Show what is in model files.

    For a hypernetwork: what it is built like, what it was trained on, and its hashes. For a PNG, JPEG or WebP picture,
    or a text file with settings: prompt and settings, as A1111, SD.Next, ComfyUI, NovelAI, Easy Diffusion or Draw
    Things wrote them, and which of the hypernetworks are in your library. For any other file: what kind it is, and what
    `hnetkit bake` made it of.

    No code in a file is ever run. The exit code is 7 if a file is unsafe, damaged, or cannot be computed, and 4 if a
    picture has no settings.

    \b
    Examples:
      hnetkit inspect outline.pt
      hnetkit inspect --json *.pt
      hnetkit inspect star.png
    """
    rows: list[Row] = []
    failures: list[HnetkitError] = []
    for path in _with_progress("Reading", files, output):
        try:
            row, failure = _inspect_file(path, output)
        except Exception as error:
            failures.append(failure_of(error, path))
            continue
        if failure is not None:
            failures.append(failure)
        rows.append(row)
    columns = _PICTURE_COLUMNS if rows and all(row["kind"] in _WITH_SETTINGS for row in rows) else _COLUMNS
    output.rows(rows, columns=columns, text=_card)
    _raise_all(failures, of=len(files))


@command("validate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@output_options
def validate_command(files: tuple[str, ...], output: Output) -> None:
    """Check hypernetwork files for damage and contradictions.

    Reads every value. The exit code is 7 if a file is refused or has values that are not finite.

    \b
    Examples:
      hnetkit validate outline.pt
      hnetkit validate --json *.pt
    """
    from hnetkit.inspection import validate_file

    rows: list[Row] = []
    failures: list[HnetkitError] = []
    for path in _with_progress("Checking", files, output):
        try:
            row, failure = validate_file(path)
        except NotFound as error:
            failures.append(error)
            continue
        rows.append(row)
        if failure is not None:
            failures.append(failure)
    output.rows(rows, columns=["path", "verdict", "problems", "warnings"], text=_verdict_lines)
    _raise_all(failures, of=len(files))


@command("convert")
@click.argument("sources", nargs=-1, required=True, metavar="SRC... [DST]")
@option(
    "--to",
    type=click.Choice(["safetensors", "pt"]),
    help="Convert every SRC to this format; each output has the name of its source.",
)
@option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    show_default="each tensor's own",
    help="Convert every tensor to this precision.",
)
@option(
    "--out",
    "out_dir",
    former=["--out-dir"],
    type=click.Path(),
    metavar="DIR",
    show_default="beside each SRC",
    help="Write the outputs of --to into this folder.",
)
@option("--overwrite", is_flag=True, help="Replace existing files.")
@output_options
def convert_command(
    sources: tuple[str, ...], to: str | None, dtype: str | None, out_dir: str | None, overwrite: bool, output: Output
) -> None:
    """Convert hypernetworks between .pt and .safetensors.

    Without --to, give one SRC and the file to write, DST, whose suffix decides the format. Tensors keep their bytes and
    metadata keeps its values and types, so that converting back gives the same network.

    \b
    Examples:
      hnetkit convert outline.pt outline.safetensors
      hnetkit convert --to safetensors --out converted *.pt
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
    for line in _left_behind(done):
        output.note(line)
    columns = ["source", "target", "dtype", "size_bytes", "content_hash"]
    output.rows(map(_converted_row, done), columns=columns, text=lambda row: row["target"])
    _raise_all(failures, of=len(done) + len(failures))


def _with_progress(label: str, items: Sequence[T], output: Output) -> Iterator[T]:
    """Yields the items, and shows progress."""
    with step_progress(label, quiet=output.quiet) as report:
        for done, item in enumerate(items):
            report(done, len(items))
            yield item


def _raise_all(failures: list[HnetkitError], *, of: int) -> None:
    """Raises for failed files: the failure of a single file; of several, `FileRefused` if all were refused.

    If all of several were usage errors, so is the summary; a mixture is `PartlyFailed`.
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


def _inspect_file(path: str, output: Output) -> tuple[Row, HnetkitError | None]:
    from hnetkit.formats.open_file import OpenFile
    from hnetkit.generate.loading.baked import read_record
    from hnetkit.inspection import examine_open

    with OpenFile(path) as file:
        picture = _picture_row(file, output)
        if picture is not None:
            return picture
        found = examine_open(file)
        row = {**found.as_row(), "baked": read_record(file) if found.kind in _BAKED else None}
    return row, found.refusal if found.verdict == "refused" else None


def _converted_row(converted: ConvertedFile) -> Row:
    return {
        "source": converted.source,
        "target": str(converted.target),
        "format": converted.format,
        "dtype": converted.dtype,
        "size_bytes": converted.size_bytes,
        "content_hash": converted.content_hash,
        "not_carried": list(converted.not_carried),
    }


def _left_behind(done: Sequence[ConvertedFile]) -> Iterator[str]:
    """Yields what the sources have and the new files have not: content, sidecars, what the library knows of them."""
    from hnetkit.formats.conversion import is_in_place

    for converted in done:
        for name in converted.not_carried:
            yield f"{converted.source}: {name} is not carried over"
    if staying := [name for converted in done for name in _staying(Path(converted.source), converted.target)]:
        more = f" and {len(staying) - 3} more" if len(staying) > 3 else ""
        yield f"Beside the sources stay {', '.join(staying[:3])}{more}."
    same = [converted for converted in done if converted.is_same_content]
    if anew := [converted for converted in same if is_in_place(converted.source, converted.target)]:
        yield (
            f"{counted(len(anew), 'file')} written anew in place: sites and pictures know such a file by its former "
            "sha256, which hnetkit scan keeps of files that it knew."
        )
    if not all(converted.is_same_content for converted in done):
        yield "With another dtype it is another network to the library: tags, notes and aliases do not go along."


def _staying(source: Path, target: Path) -> list[str]:
    """Returns the names of the files that belong to a source and do not belong to what it became."""
    from hnetkit.library import sidecars

    place, new_place = (os.path.join(os.path.realpath(path.parent), path.stem) for path in (source, target))
    own = [] if place == new_place else [path.name for path in sidecars.beside(source).values()]
    optimizer = Path(f"{source}.optim")  # A1111's, which goes by the file's whole name
    is_left = source.name != target.name or place != new_place
    return [*own, optimizer.name] if is_left and is_file_at(optimizer) else own


def _card(row: Row) -> list[str]:
    """Returns the lines that show one file to a person."""
    if row["kind"] in _WITH_SETTINGS:
        return _picture_card(row)
    lines = [row["path"]]
    if row["format"] is None:
        lines.append(f"  {row['reason'].removeprefix(printable(row['path']) + ': ')}")
        lines += [] if row["baked"] is None else [f"  baked of {_told(row['baked'])}"]
    else:
        lines += [f"  {label:<12} {text}" for label, text in _facts(row)]
    lines += [f"  warning      {warning}" for warning in row["warnings"]]
    return lines


def _told(record: Row) -> str:
    from hnetkit.baking.record import told

    return told(record)


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    structure = ", ".join(f"{part:g}" for part in row["layer_structure"])
    extras = ["layer norm"] if row["layer_norm"] else []
    if row["activate_output"] and row["activation"] != "linear":
        extras.append("activated output")
    if any(row["dropout"]):
        extras.append(f"dropout {', '.join(f'{p:g}' for p in row['dropout'])}")
    yield "name", row["name"]
    yield "for", row["base_model"]
    yield "widths", ", ".join(map(str, row["widths"]))
    yield "build", "; ".join([f"[{structure}] {row['activation']}", *extras])
    yield "weights", f"{row['parameters']:,} in {row['dtype']}, {size_text(row['size_bytes'])}, {row['format']}"
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


def _picture_row(file: OpenFile, output: Output) -> tuple[Row, NoSettings | None] | None:
    """Returns what `image_facts` does, and prints how to get the networks that the library lacks."""
    from hnetkit.generate.image_settings import image_facts
    from hnetkit.library.resolve import fetch_command

    found = image_facts(file)
    networks = found[0]["hypernetworks"] if found else ()
    lacking = [network for network in networks if not (network["in_library"] or network["comes_with_model"])]
    hints = (
        f"Hint: {network['name']} is not in the library; {fetch_command(network['name'], network['hash'])}"
        for network in lacking
    )
    for hint in dict.fromkeys(hints):
        output.note(hint)
    return found


def _picture_card(row: Row) -> list[str]:
    """Returns the lines that show one picture to a person."""
    lines = [row["path"]]
    for label, text in _picture_facts(row):
        first, *others = text.split("\n")
        lines += [f"  {label:<12} {first}", *(f"{'':<15}{line}" for line in others)]
    return lines


def _picture_facts(row: Row) -> Iterator[tuple[str, str]]:
    if not (row["settings"] or row["prompt"]):
        yield "picture", "carries no settings"
        return
    yield "prompt", row["prompt"]
    if row["negative_prompt"]:
        yield "negative", row["negative_prompt"]
    if row["settings"]:
        yield "settings", ", ".join(f"{key}: {value}" for key, value in row["settings"].items())
    for network in row["hypernetworks"]:
        digits = f" [{network['hash']}]" if network["hash"] else ""
        which = " in the second pass" if network["pass"] == 2 else ""
        yield "network", f"{network['name']} at {network['strength']:g}{digits}{which}: {_where_held(network)}"
    for warning in row["warnings"]:
        yield "warning", warning


def _where_held(network: Row) -> str:
    """Returns where a picture's network is, and under which name if that is another one."""
    other = f" as {network['found_as']}" if network["found_as"] not in (None, network["name"]) else ""
    if network["comes_with_model"]:
        return f"comes with the demo model{other}"
    return f"in the library{other}" if network["in_library"] else "not in the library"
