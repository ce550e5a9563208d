"""`hnetkit grid`: one labelled sheet over up to three axes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hnetkit.cli.library import complete_name
from hnetkit.cli.output import Output, Row, output_options, say
from hnetkit.cli.picture_options import Choices, network_option, picture_options
from hnetkit.errors import NotFound, PartlyFailed, UsageError
from hnetkit.files import refuse_existing
from hnetkit.generate.picture_files import is_picture_file
from hnetkit.text import argument, counted

if TYPE_CHECKING:
    from hnetkit.generate.grids.asked import Asked


@click.command("grid")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_name)
@click.option("--prompt", "prompts", multiple=True, required=True, help="Repeat it for more rows of NAMEs.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(min=-1),
    multiple=True,
    default=[-1],
    help="Repeat it for more rows of NAMEs; -1 draws one.",
)
@click.option("--strengths", metavar="LIST", help="Columns beside NAMEs. [default: 0,0.5,1,1.5,2]")
@click.option("--x", metavar="AXIS=VALUES", help="What changes from left to right.")
@click.option("--y", metavar="AXIS=VALUES", help="What changes from top to bottom.")
@click.option("--z", metavar="AXIS=VALUES", help="What changes from one part of the sheet to the part below it.")
@network_option("Apply a network in every cell, after those of the prompt.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cells at once that differ in their seed.",
)
@click.option("--out", default="grid.png", metavar="FILE", show_default=True, help="The sheet to write.")
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@picture_options
@output_options
def grid_command(
    names: tuple[str, ...],
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    strengths: str | None,
    x: str | None,
    y: str | None,
    z: str | None,
    options: tuple[str, ...],
    batch_size: int,
    out: str,
    overwrite: bool,
    choices: Choices,
    output: Output,
) -> None:
    """Draw a labelled sheet of pictures over two or three axes.

    With NAMEs each is a row and each strength a column, 0 being the picture without it. Tags in a prompt apply in
    every column: the sheet shows what a network adds to them. The seed is the same everywhere.

    Else --x, --y and --z each name an AXIS: hypernetwork (NAME[:STRENGTH], or none), strength (of the axis's network,
    else of the whole stack; strength:NAME of one in it), order (of the stack: all, or ink/wash), seed, prompt (the
    first value is searched for in the prompts and replaced by each), steps, cfg, sampler, checkpoint. VALUES are
    separated by commas and quoted as in CSV; numbers take ranges: 1-5, 1-9 (2), 1-10 [4], 0:1:0.25.

    Beside grid.png, the folder grid-cells holds each cell's picture, and grid.jsonl a line of all that it was drawn
    by. Given again after an interrupt, the same command draws what is missing. A cell that cannot be drawn is marked on
    the sheet and told, the others are drawn, and the same command tries it again. Started by `accelerate launch
    --multi_gpu --num_processes N --no_python hnetkit grid ...`, N processes share the work; the sheet is the same.

    \b
    Examples:
      hnetkit grid outline dots --prompt "a red circle" --seed 7
      hnetkit grid dots --prompt "a blue star <hypernet:outline:0.7>" --strengths 0,0.5,1 --out dots.png
      hnetkit grid --prompt "a red star" -n dots --seed 7 --x strength=0:1:0.25 --y "prompt=red,blue" --out dots.png
      hnetkit grid --prompt "a star" -n dots -n outline:0.7 --x order=all --y seed=1-3 --z cfg=4,7 --out order.png
    """
    from hnetkit.generate.grids.processes import Processes, started_alone, take_own_threads

    take_own_threads()
    from hnetkit.cli.grid_run import GridRun
    from hnetkit.generate.grids.grid_files import GridFiles

    processes = Processes.of_environment()
    output = output if processes.is_main else replace(output, quiet=True)
    if started_alone():
        output.note("accelerate started one process: with --cpu it needs MPI for several; --multi_gpu starts them.")
    sheet = Path(out)
    _require_place(sheet, overwrite=overwrite)
    asked = _asked(names, prompts, seeds, strengths, (x, y, z))
    base = replace(asked.base, options=options, negative_prompt=choices.negative_prompt or "")
    run = GridRun(
        replace(asked, base=base),
        choices,
        files=GridFiles(sheet, processes.rank),
        processes=processes,
        output=output,
        batch_size=batch_size,
        overwrite=overwrite,
    )
    row = run.draw()
    if processes.is_main:
        columns = ["path", "networks", "strengths", "prompts", "seeds"]
        output.rows([row], columns=columns, text=lambda row: str(row["path"]))
        _raise_failed(row)


def _raise_failed(row: Row) -> None:
    """Names the cells of a sheet that could not be drawn, and why; the command then fails."""
    cells: dict[str, list[str]] = {}
    for cell in row["failed"]:
        place = ", ".join(f"{name} {value}" for name, value in cell["coordinates"].items())
        cells.setdefault(cell["failure"], []).append(place)
    for failure, places in cells.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        say(f"Error: {places[0]}{more}: {failure}")
    if cells:
        failed = f"{len(row['failed'])} of {counted(row['cells'], 'cell')} could not be drawn"
        raise PartlyFailed(failed, hint="the same command tries them again and replaces the sheet")


def _asked(
    names: tuple[str, ...],
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    strengths: str | None,
    axes: tuple[str | None, ...],
) -> Asked:
    from hnetkit.generate.grids.asked import of_axes, short_form

    if names and any(axes):
        axis = argument(f"hypernetwork={','.join(names)}")
        raise UsageError("NAMEs are rows already", hint=f"--y {axis}, or -n NAME")
    if names:
        return short_form(names, prompts, seeds, strengths)
    if strengths is not None:
        raise UsageError("--strengths goes with NAMEs", hint=f"--x {argument(f'strength={strengths}')}")
    return of_axes(prompts, seeds, axes)


def _require_place(sheet: Path, *, overwrite: bool) -> None:
    from hnetkit.generate.grids.grid_files import GridFiles

    if not is_picture_file(str(sheet)):
        raise UsageError(f"--out {sheet}: a grid is one picture file", hint="--out grid.png")
    if sheet.exists() and not overwrite:
        files = GridFiles(sheet)
        files.require_ours()
        refuse_existing(sheet, overwrite=files.lacks_pictures())
    if not sheet.parent.is_dir():
        raise NotFound(f"{sheet.parent}: no such folder")
