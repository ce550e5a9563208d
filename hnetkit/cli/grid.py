"""`hnetkit grid`: one labelled sheet over up to three axes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from hnetkit.cli.library import complete_name
from hnetkit.cli.output import Output, Row, output_options, say
from hnetkit.cli.picture_options import network_option, picture_options
from hnetkit.cli.progress import step_progress
from hnetkit.errors import PartlyFailed
from hnetkit.generate.model import ModelSource
from hnetkit.text import counted


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
    networks: tuple[str, ...],
    batch_size: int,
    out: str,
    overwrite: bool,
    model: ModelSource,
    options: dict[str, Any],
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
    from hnetkit.distributed import Processes, started_alone, use_default_threads

    use_default_threads()
    from hnetkit.generate.grids.run import draw_grid

    output = output if Processes.of_environment().is_main else replace(output, quiet=True)
    if started_alone():
        output.note("accelerate started one process: with --cpu it needs MPI for several; --multi_gpu starts them.")
    with step_progress("Drawing", quiet=output.quiet) as progress:
        grid = draw_grid(
            model,
            (x, y, z),
            prompt=prompts,
            seed=seeds,
            names=names,
            strengths=strengths,
            networks=networks,
            batch_size=batch_size,
            out=out,
            overwrite=overwrite,
            progress=progress,
            note=output.note,
            **options,
        )
    if grid is None:
        return
    row = {
        "path": str(grid.path),
        "networks": grid.networks,
        "strengths": grid.axes.get("strength", []),
        "prompts": grid.prompts,
        "seeds": list(dict.fromkeys(cell["seed"] for cell in grid.cells)),
        "model": next(cell["model"] for cell in grid.cells if "failure" not in cell),
        "axes": grid.axes,
        "cells": len(grid.cells),
        "drawn": grid.drawn,
        "failed": [{name: cell[name] for name in ("x", "y", "z", "coordinates", "failure")} for cell in grid.failed],
        "record": str(grid.record),
        "pictures": str(grid.pictures),
        "infotext": grid.infotext,
    }
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
