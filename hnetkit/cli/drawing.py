"""`hnetkit generate` and `grid`: pictures with hypernetworks applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from hnetkit.cli.completion import complete_name
from hnetkit.cli.options import OUTPUT, Number, command, device_option, dtype_option, option, size_in_pixels
from hnetkit.cli.output import Output, Row, confirm, output_options, say
from hnetkit.cli.progress import as_one_process, step_progress
from hnetkit.errors import NotFound, PartlyFailed, UsageError
from hnetkit.files import is_file_at, is_folder_at, refuse_existing
from hnetkit.generate.image_files import Picture, is_image_file
from hnetkit.generate.model import ModelSource, draw_images
from hnetkit.generate.options import NAMES, DrawOptions
from hnetkit.generate.sampling.samplers import SAMPLERS
from hnetkit.image_text import SUFFIXES
from hnetkit.text import argument, counted, shorten

F = TypeVar("F", bound=Callable[..., Any])

_PROMPT, _IMAGE, _MODEL = "Prompt and networks", "Picture", "Model"
_prompt, _image, _model = (partial(option, section=heading) for heading in (_PROMPT, _IMAGE, _MODEL))
_over_image = partial(option, section="Image-to-image and inpainting")
_hires = partial(option, section="Hires (a second, larger pass)")
_axes = partial(option, section="Axes")
_overwrite = option("--overwrite", section=OUTPUT, is_flag=True, help="Replace FILE if it exists, instead of failing.")
MOST_UNASKED = 250
"""Cells of a grid that are drawn without a question."""

_FILE = click.Path()
_FRACTION = Number(0, 1)
_SEED = click.IntRange(min=-1)
_STEPS = click.IntRange(1, 1000)

# What `generate` and `grid` share. Defaults in words: a setting, a picture drawn again or the model decides first.
_SHARED = (
    _prompt(
        "--negative-prompt",
        metavar="TEXT",
        show_default="empty",
        help="Describe what to steer away from. Tags of networks have no effect in it.",
    ),
    _prompt(
        "--emphasis",
        type=click.Choice(NAMES["emphasis"]),
        show_default="original",
        help="Effect of weights such as (word:1.2): as in A1111 (original), the same without normalization (no-norm), "
        "dropped (ignore), or left in the text with their brackets (none).",
    ),
    _image("--steps", type=_STEPS, show_default="the model's, else 20", help="Number of sampling steps."),
    _image(
        "--cfg-scale",
        type=Number(min=1),
        show_default="the model's, else 7",
        help="Classifier-free guidance: how closely to follow the prompt; 1 ignores the negative prompt.",
    ),
    _image(
        "--size",
        callback=size_in_pixels,
        metavar="N|WxH",
        show_default="the model's",
        help="Size in pixels, multiples of 8; N means a square.",
    ),
    _image("--width", type=int, hidden=True, help="Width in pixels, in place of --size."),
    _image("--height", type=int, hidden=True, help="Height in pixels, in place of --size."),
    _image(
        "--sampler",
        metavar="NAME",
        show_default="the model's, else Euler a",
        help=f"{', '.join(SAMPLERS)}; in any case.",
    ),
    _image(
        "--rng",
        type=click.Choice(NAMES["rng"]),
        show_default="cpu",
        help="Random number generator of the noise, on any device: torch's for CPUs (cpu), or Nvidia's (nv), which "
        "A1111 uses on an Nvidia GPU.",
    ),
    _image(
        "--clip-skip",
        type=click.IntRange(1, 12),
        show_default="1",
        help="Clip skip: 2 leaves out the last layer of SD 1's text encoder. No effect on SD 2 and SDXL.",
    ),
    _image(
        "--ensd",
        "eta_seed_delta",
        type=int,
        show_default="0",
        help="Eta noise seed delta, as in A1111: added to the seed of the noise that samplers add at each step.",
    ),
    _image(
        "--variation-seed",
        type=click.IntRange(min=0),
        show_default="0",
        help="Seed of the noise that --variation-strength blends in; each further picture has the next seed.",
    ),
    _image(
        "--variation-strength",
        type=_FRACTION,
        show_default="0",
        help="Amount of variation noise to blend in: 0 for none, 1 for nothing else.",
    ),
    _model(
        "--model",
        "model",
        metavar="MODEL",
        show_default="that of `hnetkit config`, else the bundled demo model",
        help="Stable Diffusion model (1, 2 or XL): a diffusers folder, a Hugging Face hub id, which is fetched if "
        "needed, or a checkpoint file (.safetensors, .ckpt).",
    ),
    _model(
        "--vae",
        metavar="VAE",
        show_default="the model's",
        help="Another autoencoder: a file, a diffusers folder, or a hub id.",
    ),
    _model(
        "--tokenizer",
        metavar="DIR",
        show_default="CLIP's, from the hub",
        help="Tokenizer folder for a checkpoint file; other models have their own.",
    ),
    device_option(section=_MODEL),
    dtype_option(section=_MODEL),
    _model(
        "--offload",
        is_flag=True,
        help="Keep only the active part (text encoder, UNet or autoencoder) on the CUDA GPU: less memory, slower.",
    ),
    _model("--attention-slicing", is_flag=True, help="Compute attention in slices: less memory, slower."),
    _model(
        "--compile",
        "compiled",
        is_flag=True,
        help="Compile the UNet with torch.compile: the first picture is slow, further ones of the command are faster.",
    ),
    _model(
        "--capture/--no-capture",
        "captured",
        default=None,
        show_default="that of `hnetkit config`, else --capture",
        help="On CUDA, run the UNet as CUDA graphs: the first step of each size is as ever, further ones are faster. "
        "They take memory of their own.",
    ),
    _over_image(
        "--image", type=_FILE, metavar="FILE", help="Start from this picture, stretched to --size, and repaint it."
    ),
    _over_image(
        "--denoising",
        type=_FRACTION,
        show_default="0.75, in a hires pass 0.7",
        help="Strength of the change to --image or, in a hires pass, to the first pass: 0 keeps it, 1 ignores it. "
        "Over --image, only this share of --steps is made; a hires pass makes all of its own.",
    ),
    _over_image(
        "--mask",
        type=_FILE,
        metavar="FILE",
        help="Repaint --image only where this picture is white or, if it has transparent parts, opaque.",
    ),
    _over_image(
        "--mask-blur",
        type=Number(min=0),
        metavar="PX",
        show_default="4",
        help="Blur the edge of the mask by this radius in its own pixels, as A1111 does.",
    ),
    _over_image("--invert-mask", is_flag=True, default=None, help="Repaint where the mask is black instead."),
    _over_image(
        "--masked-content",
        type=click.Choice(NAMES["masked_content"]),
        show_default="original",
        help="Content under the mask before repainting: the picture (original), latent noise (noise), or latents of 0 "
        "(nothing).",
    ),
    _hires(
        "--hires-scale",
        type=Number(1, 8),
        metavar="X",
        help="Add a second pass, X times as large, rounded down to multiples of 8. Not with --image.",
    ),
    _hires(
        "--hires-size",
        callback=size_in_pixels,
        metavar="N|WxH",
        help="Add a second pass of this size; of another shape, it shows the middle of the first. Not with "
        "--hires-scale or --image.",
    ),
    _hires("--hires-steps", type=_STEPS, show_default="--steps", help="Number of sampling steps of the second pass."),
    _hires(
        "--hires-upscaler",
        type=click.Choice(NAMES["hires_upscaler"]),
        show_default="Latent",
        help="Method of enlarging the first pass: its latents (Latent), or its picture (Lanczos, Nearest).",
    ),
    _hires(
        "--hires-prompt",
        metavar="TEXT",
        show_default="PROMPT, as with an empty TEXT",
        help="Prompt of the second pass. If given, only networks of its own tags apply there, none of PROMPT or -n.",
    ),
    _hires(
        "--hires-negative-prompt",
        metavar="TEXT",
        show_default="--negative-prompt",
        help="Negative prompt of the second pass.",
    ),
)


def network_option(help_text: str) -> Callable[[F], F]:
    """Adds ``-n NAME[:STRENGTH]``, repeatable; the command receives `networks`."""
    return _prompt(
        "-n",
        "--network",
        "networks",
        multiple=True,
        metavar="NAME[:STRENGTH]",
        shell_complete=complete_name,
        help=f"{help_text} Its strength, any number, is 1 if left out. Repeatable.",
    )


def picture_options(function: F) -> F:
    """Adds the options that `generate` and `grid` share; the command receives `model: ModelSource`, and `options`.

    `options` are those of `DrawOptions`, by their names; None where an option is not given.
    """

    @wraps(function)
    def wrapper(*args: Any, size: tuple[int, int] | None, **kwargs: Any) -> Any:
        model = ModelSource(**{field.name: kwargs.pop(field.name) for field in fields(ModelSource)})
        options = {field.name: kwargs.pop(field.name) for field in fields(DrawOptions)}
        if size is not None:
            if (options["width"], options["height"]) != (None, None):
                raise UsageError(
                    "--size and --width or --height say the same in two ways", hint="leave one of them out"
                )
            options["width"], options["height"] = size
        return function(*args, model=model, options=options, **kwargs)

    decorated: Any = wrapper
    for add in reversed(_SHARED):
        decorated = add(decorated)
    return cast(F, decorated)


@command("generate")
@click.argument("prompt", required=False)
@network_option("Apply this network, by its name in the library or a file, after those of the prompt.")
@_prompt(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Recreate a picture from the settings that hnetkit or another program embedded in it; a text file, or - for "
    "standard input, may hold them too. PROMPT and other options override them, -n adds networks. The model, the VAE "
    "and the start image are not taken from it: give --model, --vae and --image. What cannot be taken over is listed.",
)
@_image("--seed", type=_SEED, show_default="-1", help="Seed of the first picture; -1 picks one at random.")
@_image(
    "--count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of pictures in all; each further one has the next seed.",
)
@_image(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of the --count pictures to sample together.",
)
@picture_options
@option(
    "--out",
    section=OUTPUT,
    default=".",
    metavar="FILE|DIR",
    show_default="the current folder",
    help="Write to this .png, .jpg or .webp file (with --count 1), or into this folder, which is made if needed.",
)
@_overwrite
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

    PROMPT, required without --from, is in A1111's language: (weights:1.2), [from:to:0.5], [a|b], AND, BREAK. A tag
    <hypernet:NAME:STRENGTH> applies a network of the library; several apply in order. `hnetkit prompt` shows what a
    prompt means.

    Each picture embeds its settings as text that other programs read too. Its path is printed; tables and CSV add seed
    and prompt, JSON all settings. In a folder, files are numbered NNNNN-SEED.png and nothing is replaced.

    Where a default is the model's, it is in hnetkit.json in the model's folder, if there is one. The default size is
    otherwise that of the model's training.

    \b
    Examples:
      hnetkit generate "a large red star <hypernet:outline:0.8>" --seed 3 --out star.png
      hnetkit generate "a small blue circle" -n outline:0.7 -n dots:0.7 --count 2 --out drawn
      hnetkit generate --from star.png --steps 30
    """
    _require_no_file(prompt, source)
    _require_writable(out, count=count, overwrite=overwrite)

    def rows() -> Iterator[Row]:
        """Yields one row for each picture, once it is on disk."""
        with step_progress("Drawing", quiet=output.quiet, first="Loading the model") as progress:
            pictures = draw_images(
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


def _require_no_file(prompt: str | None, source: Path | None) -> None:
    """Raises UsageError where PROMPT is a picture or a text of settings: its name would be drawn as words.

    Of two pictures that a shell gives for ``--from *.png``, the second is PROMPT.
    """
    if prompt is not None and prompt.lower().endswith((*SUFFIXES, ".txt")) and is_file_at(prompt):
        what = f"PROMPT is a file, {shorten(prompt)}"
        said = what if source is None else f"--from takes one picture, and {what}"
        raise UsageError(said, hint=f"hnetkit generate --from {argument(prompt, is_path=True)}")


def _require_writable(out: str, *, count: int, overwrite: bool) -> None:
    """Raises, before anything is drawn, where the pictures could not be written."""
    if not is_image_file(out):
        return
    if count > 1:
        raise UsageError(f"--out {out} is one file, --count {count} are several", hint="--out FOLDER")
    refuse_existing(out, overwrite=overwrite)
    if not is_folder_at(Path(out).parent):
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


@command("grid")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_name)
@_prompt(
    "--prompt", "prompts", multiple=True, required=True, help="Prompt of every cell. Repeat it for more rows of NAMEs."
)
@network_option("Apply this network in every cell, after those of the prompt.")
@_axes("--strengths", metavar="LIST", show_default="0,0.5,1,1.5,2", help="Strengths of the columns, with NAMEs.")
@_axes("--x", metavar="AXIS=VALUES", help="Vary this from left to right.")
@_axes("--y", metavar="AXIS=VALUES", help="Vary this from top to bottom.")
@_axes("--z", metavar="AXIS=VALUES", help="Vary this from one part of the sheet to the part below it.")
@_image(
    "--seed",
    "seeds",
    type=_SEED,
    multiple=True,
    default=[-1],
    show_default=True,
    help="Seed of every cell; -1 picks one at random. Repeat it for more rows of NAMEs.",
)
@_image(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of cells to sample together, of those that differ in their seed alone.",
)
@picture_options
@option(
    "--out", section=OUTPUT, default="grid.png", metavar="FILE", show_default=True, help="Write the sheet to this file."
)
@_overwrite
@option(
    "-y",
    "--yes",
    section=OUTPUT,
    is_flag=True,
    help=f"Draw more than {MOST_UNASKED} cells without being asked; required for so many where there is no terminal.",
)
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
    yes: bool,
    model: ModelSource,
    options: dict[str, Any],
    output: Output,
) -> None:
    """Draw a labeled sheet of pictures over two or three axes.

    With NAMEs, each network is a row and each strength a column; strength 0 is the picture without it. Tags in a prompt
    apply in every column, so the sheet shows what a network adds to them.

    Without NAMEs, --x, --y and --z each take one AXIS with its VALUES: hypernetwork (NAME[:STRENGTH], or none),
    strength (of the network of another axis, else of the whole stack; strength:NAME for one of its networks), order (of
    the stack: all, or as dots/outline), seed, prompt (the first value is replaced by each in the prompts), steps, cfg,
    sampler, checkpoint. VALUES are separated by commas and quoted as in CSV; numbers take ranges: 1-5, 1-9 (2) with a
    step, 1-10 [4] with a count, 0:1:0.25.

    Beside grid.png, the folder grid-cells holds the picture of each cell, and grid.jsonl a line with its settings.
    After an interrupt, the same command draws what is missing. A cell that cannot be drawn is marked on the sheet and
    reported, the others are drawn, and the same command tries it again. Started by `accelerate launch --multi_gpu
    --num_processes N --no_python hnetkit grid ...`, N processes share the work; the sheet is the same.

    \b
    Examples:
      hnetkit grid outline dots --prompt "a large red star" --seed 3
      hnetkit grid dots --prompt "a small blue circle <hypernet:outline:0.7>" --strengths 0,0.5,1 --out dots.png
      hnetkit grid --prompt "a red star" -n dots --seed 3 --x strength=0:1:0.5 --y "prompt=red,blue" --out colors.png
      hnetkit grid --prompt "a star" -n dots -n outline:0.7 --x order=all --y seed=1-2 --z cfg=4,7 --out order.png
    """
    from hnetkit.distributed import use_default_threads

    use_default_threads()  # before torch is imported
    from hnetkit.generate.grids.run import draw_grid

    output = as_one_process(output)

    def agree(cells: int) -> None:
        """Says how many cells there are, and asks where they are many."""
        output.note(f"A grid of {counted(cells, 'cell')}.")
        if cells > MOST_UNASKED:
            confirm(f"Draw {counted(cells, 'cell')}?", yes=yes)

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
            agree=agree,
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
    """Prints which cells of a sheet could not be drawn, and why; raises if there are any."""
    cells: dict[str, list[str]] = {}
    for cell in row["failed"]:
        position = ", ".join(f"{name} {value}" for name, value in cell["coordinates"].items())
        cells.setdefault(cell["failure"], []).append(position)
    for failure, positions in cells.items():
        more = f" and {len(positions) - 1} more" if len(positions) > 1 else ""
        say(f"Error: {positions[0]}{more}: {failure}")
    if cells:
        failed = f"{len(row['failed'])} of {counted(row['cells'], 'cell')} could not be drawn"
        raise PartlyFailed(failed, hint="the same command tries them again and replaces the sheet")
