"""`hnetkit generate` and `grid`: pictures with hypernetworks applied."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from hnetkit.cli.library import complete_name
from hnetkit.cli.options import Number
from hnetkit.cli.output import Output, Row, output_options, say
from hnetkit.cli.progress import step_progress
from hnetkit.errors import NotFound, PartlyFailed, UsageError
from hnetkit.files import refuse_existing
from hnetkit.generate.model import ModelSource, draw_pictures
from hnetkit.generate.options import NAMES, DrawOptions
from hnetkit.generate.picture_files import Picture, is_picture_file
from hnetkit.generate.sampling.samplers import SAMPLERS
from hnetkit.text import counted

F = TypeVar("F", bound=Callable[..., Any])


def _both_sizes(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise UsageError(f"--hires-size {text}: not WIDTHxHEIGHT", hint="--hires-size 1024x1024")
    return int(found[1]), int(found[2])


_FILE = click.Path()
_FRACTION = Number(0, 1)
_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--model",
        "place",
        metavar="M",
        help="A diffusers folder, a hub id, or a checkpoint in one file. [default: as set with `hnetkit config`]",
    ),
    click.option("--vae", metavar="V", help="Another autoencoder: a file, a diffusers folder, or a hub id."),
    click.option("--tokenizer", metavar="DIR", help="Folder of the tokenizer of a checkpoint in one file."),
    click.option("--negative-prompt", metavar="T", help="What to steer away from."),
    click.option("--steps", type=click.IntRange(1, 1000), help="Sampling steps. [default: the model's, else 20]"),
    click.option(
        "--cfg-scale",
        type=Number(min=1),
        help="How closely to follow the prompt. [default: the model's, else 7]",
    ),
    click.option("--width", type=int, help="Pixels, a multiple of 8. [default: the model's]"),
    click.option("--height", type=int, help="Pixels, a multiple of 8. [default: the model's]"),
    click.option(
        "--sampler",
        metavar="NAME",
        help=f"{', '.join(SAMPLERS)}. [default: the model's, else Euler a]",
    ),
    click.option(
        "--rng",
        type=click.Choice(NAMES["rng"]),
        help="Where noise comes from: torch's generator for CPUs, or that of CUDA in software. [default: cpu]",
    ),
    click.option(
        "--clip-skip",
        type=click.IntRange(1, 12),
        help="2 leaves out the last layer of SD 1's text encoder. [default: 1]",
    ),
    click.option(
        "--emphasis",
        type=click.Choice(NAMES["emphasis"]),
        help="What weights do; none reads brackets as text. [default: original]",
    ),
    click.option("--ensd", "eta_seed_delta", type=int, help="A1111's eta noise seed delta. [default: 0]"),
    click.option("--variation-seed", type=click.IntRange(min=0), help="Seed of the variation noise."),
    click.option(
        "--variation-strength", type=_FRACTION, help="How much variation noise to blend in, 0 to 1. [default: 0]"
    ),
    click.option("--image", type=_FILE, metavar="FILE", help="Draw over this picture (image-to-image)."),
    click.option(
        "--denoising",
        type=_FRACTION,
        help="How strongly to repaint --image, or the first pass in the second: 0 keeps it, 1 ignores it. "
        "[default: 0.75, in a second pass 0.7]",
    ),
    click.option("--mask", type=_FILE, metavar="FILE", help="White where --image is drawn anew (inpainting)."),
    click.option("--mask-blur", type=Number(min=0), metavar="PX", help="Softens the mask. [default: 4]"),
    click.option("--invert-mask", is_flag=True, help="Draw where the mask is black."),
    click.option(
        "--masked-content",
        type=click.Choice(NAMES["masked_content"]),
        help="What lies under the mask at first. [default: original]",
    ),
    click.option("--hires-scale", type=Number(1, 8), metavar="X", help="Draw in two passes, X times as large."),
    click.option("--hires-size", callback=_both_sizes, metavar="WxH", help="Draw in two passes, to this size."),
    click.option(
        "--hires-steps", type=click.IntRange(1, 1000), help="Sampling steps of the second pass. [default: --steps]"
    ),
    click.option(
        "--hires-upscaler", type=click.Choice(NAMES["hires_upscaler"]), help="What enlarges. [default: Latent]"
    ),
    click.option(
        "--hires-prompt", metavar="T", help="Prompt of the second pass, with tags of its own. [default: PROMPT]"
    ),
    click.option(
        "--hires-negative-prompt", metavar="T", help="Negative prompt of the second pass. [default: --negative-prompt]"
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute."),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
        help="What to compute in; auto is fp16 on CUDA, fp32 elsewhere.",
    ),
    click.option("--offload", is_flag=True, help="Keep on the GPU only the part at work: less memory, slower."),
    click.option("--attention-slicing", is_flag=True, help="Compute attention in slices: less memory, slower."),
    click.option("--compile", "compiled", is_flag=True, help="Compile the UNet: slow at first, then faster."),
]


def network_option(help_text: str) -> Callable[[F], F]:
    """Adds ``-n NAME[:STRENGTH]``, repeatable; the command receives `networks`."""
    return click.option(
        "-n",
        "--network",
        "networks",
        multiple=True,
        metavar="NAME[:STRENGTH]",
        shell_complete=complete_name,
        help=f"{help_text} Repeatable.",
    )


def picture_options(command: F) -> F:
    """Adds what `generate` and `grid` share; the command receives `model: ModelSource`, and `options`.

    They are those of `DrawOptions`, by their names; None where nothing is said.
    """

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        model = ModelSource(**{field.name: kwargs.pop(field.name) for field in fields(ModelSource)})
        options = {field.name: kwargs.pop(field.name) for field in fields(DrawOptions)}
        return command(*args, model=model, options=options, **kwargs)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]


@click.command("generate")
@click.argument("prompt", required=False)
@network_option("Apply a network of the library, or a file, after those of the prompt.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw a picture again by the settings in it; what is said beside it counts instead.",
)
@click.option(
    "--seed", type=click.IntRange(min=-1), help="Seed of the first image; -1 picks one at random. [default: -1]"
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of images; each seed is one higher.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Images to sample together."
)
@click.option("--out", default=".", metavar="FILE|DIR", help="A .png file, or a folder. [default: this folder]")
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@picture_options
@output_options
def generate_command(
    prompt: str | None,
    networks: tuple[str, ...],
    source: Path | None,
    seed: int | None,
    count: int,
    batch_size: int,
    out: str,
    overwrite: bool,
    model: ModelSource,
    options: dict[str, Any],
    output: Output,
) -> None:
    """Draw pictures with hypernetworks applied.

    PROMPT is in A1111's language: (weights:1.2), [from:to:0.5], [a|b], AND, BREAK. Tags <hypernet:NAME:STRENGTH> name
    networks of the library, in stacking order; `hnetkit prompt` shows what a prompt means. A picture holds its
    parameters as text that the usual programs read. In a folder it is called NNNNN-SEED.png, and nothing is replaced.
    The path of each picture is printed.

    \b
    Examples:
      hnetkit generate "a red circle <hypernet:outline:0.8>" --seed 7
      hnetkit generate "a blue star" -n outline:0.7 -n dots:0.7 --count 4 --out pictures
      hnetkit generate --from old.png --steps 30
    """
    _require_place(out, count=count, overwrite=overwrite)

    def rows() -> Iterator[Row]:
        """Yields one row for each picture, once it is on disk."""
        with step_progress("Drawing", quiet=output.quiet) as progress:
            pictures = draw_pictures(
                model,
                prompt,
                DrawOptions(**options),
                seed=seed,
                count=count,
                batch_size=batch_size,
                networks=networks,
                again=source,
                progress=progress,
                note=output.note,
            )
            for picture in pictures:
                yield _row(picture, picture.save(out, overwrite=overwrite))

    output.rows(rows(), columns=["path", "seed", "prompt"], text=lambda row: str(row["path"]))


def _require_place(out: str, *, count: int, overwrite: bool) -> None:
    """Raises before anything is drawn, where nothing could be written."""
    if not is_picture_file(out):
        return
    if count > 1:
        raise UsageError(f"--out {out} is one file, --count {count} are several", hint="--out FOLDER")
    refuse_existing(out, overwrite=overwrite)
    if not Path(out).parent.is_dir():
        raise NotFound(f"{Path(out).parent}: no such folder")


def _row(picture: Picture, path: Path) -> Row:
    return {
        "path": str(path),
        "seed": picture.seed,
        "prompt": picture.prompt,
        "negative_prompt": picture.negative_prompt,
        "hypernetworks": list(picture.hypernetworks),
        "model": picture.model,
        "infotext": picture.infotext,
    }


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
