"""`hnetkit generate`: pictures with hypernetworks applied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from hnetkit.cli.output import Output, Row, output_options
from hnetkit.cli.picture_options import network_option, picture_options
from hnetkit.cli.progress import step_progress
from hnetkit.errors import NotFound, UsageError
from hnetkit.files import refuse_existing
from hnetkit.generate.image_files import Picture, is_image_file
from hnetkit.generate.model import ModelSource, draw_images
from hnetkit.generate.options import DrawOptions


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


def _require_place(out: str, *, count: int, overwrite: bool) -> None:
    """Raises before anything is drawn, where nothing could be written."""
    if not is_image_file(out):
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
