"""`hnetkit train prepare` and `hnetkit train review`: a folder to train on, and a look at it before training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hnetkit.cli.numbers import Number
from hnetkit.cli.output import Output, Row, output_options, say_failure
from hnetkit.cli.progress import step_progress
from hnetkit.errors import HnetkitError, PartlyFailed, UsageError

if TYPE_CHECKING:
    from hnetkit.train.preparing.folder import PreparedImage


@click.command("prepare")
@click.argument("pictures", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", required=True, help="Folder to make, to train on."
)
@click.option("--size", default="512", metavar="N|WxH", show_default=True, help="Size of every picture in pixels.")
@click.option("--buckets", is_flag=True, help="Use several sizes of about this area: each picture gets the nearest.")
@click.option(
    "--crop",
    type=click.Choice(["centre", "entropy", "face"]),
    default="centre",
    show_default=True,
    help="Part that a crop keeps: the middle, the part with most to see, or the largest face.",
)
@click.option("--flip", is_flag=True, help="Add a mirrored copy of each.")
@click.option("--split", is_flag=True, help="Cut long pictures into several that overlap.")
@click.option(
    "--split-threshold",
    type=Number(0, 1),
    default=0.5,
    show_default=True,
    help="Split when a single crop would keep at most this share of the picture.",
)
@click.option(
    "--split-overlap",
    type=Number(0, 0.9),
    default=0.2,
    show_default=True,
    help="Share of each part that the next one has too, at least.",
)
@click.option("--flatten", is_flag=True, help="Put transparent pictures on white for good.")
@click.option("--recursive", is_flag=True, help="Take the pictures of folders below PICTURES too.")
@click.option(
    "--caption",
    "captions",
    type=click.Choice(["blip", "tags", "none"]),
    multiple=True,
    help="Write captions: a sentence by BLIP, tags by a booru tagger, or both in the order given. Repeatable.",
)
@click.option(
    "--blip-model", metavar="FOLDER|ID", help="BLIP model to use instead of Salesforce/blip-image-captioning-large."
)
@click.option("--tags-model", metavar="FOLDER|ID", help="Tagger to use instead of SmilingWolf/wd-vit-tagger-v3.")
@click.option(
    "--existing",
    type=click.Choice(["keep", "replace", "append", "prepend"]),
    default="keep",
    show_default=True,
    help="What to do with a .txt beside an original; append and prepend add the new caption after or before it.",
)
@click.option("--prefix", default="", metavar="TEXT", help="Text put before every generated caption.")
@click.option(
    "--general-threshold",
    type=Number(0, 1),
    default=0.35,
    show_default=True,
    help="Probability from which a tag is taken.",
)
@click.option(
    "--character-threshold",
    type=Number(0, 1),
    default=0.85,
    show_default=True,
    help="Probability from which the name of a character is taken.",
)
@click.option("--exclude-tag", "exclude_tags", multiple=True, metavar="TAG", help="Leave this tag out. Repeatable.")
@click.option("--keep-underscores", is_flag=True, help="Write tags as long_hair instead of long hair.")
@click.option(
    "--no-escape", is_flag=True, help="Leave brackets in tags as they are, which a prompt takes for emphasis."
)
@click.option("--by-score", is_flag=True, help="Put the surest tags first, instead of sorting by alphabet.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Device for captions."
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace pictures in DIR that have the names of new ones, and their captions, edited ones too.",
)
@output_options
def prepare_command(
    pictures: Path, out: Path, captions: tuple[str, ...], no_escape: bool, output: Output, **options: Any
) -> None:
    """Make a folder to train on from a folder of pictures.

    Pictures are turned as their EXIF data says, cropped, brought to their size with Lanczos and written as PNG under
    the names of their originals, which are only read. Transparency stays, with white under it; --flatten removes it.
    With --buckets and --size 512, sides are multiples of 64 and at most 2:1.

    A .txt beside an original comes along as its caption. Captions that models make are written as .txt too, to be
    looked through with `hnetkit train review DIR`. Models load from a folder or the Hugging Face hub, .safetensors
    only; WD taggers need timm: pip install "hnetkit[train]". --crop face needs "opencv-python-headless<5"; where no
    face is found, the middle is kept.

    \b
    Examples:
      hnetkit train prepare photos --out pictures --size 512 --crop entropy
      hnetkit train prepare photos --out pictures --buckets --flip --caption blip --prefix "in the style of ink, "
      hnetkit train prepare scans --out pictures --split --caption tags --tags-model taggers/wd-vit
    """
    from hnetkit.train import prepare

    if "none" in captions and set(captions) != {"none"}:
        raise UsageError("--caption none stands alone")
    with step_progress("Preparing", quiet=output.quiet) as progress:
        done = prepare(
            pictures,
            out,
            captions=[kind for kind in captions if kind != "none"],
            escape=not no_escape,
            progress=progress,
            failed=say_failure,
            **options,
        )
    for warning in done.warnings:
        output.note(f"Warning: {warning}")
    columns = ["path", "source", "width", "height", "caption"]
    output.rows(map(_row, done.made), columns=columns, text=lambda row: row["path"])
    if done.failures:
        raise PartlyFailed(f"{len(done.failures)} of {done.originals} pictures were left out")


@click.command("review")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--apply", "table", metavar="FILE|-", help="Take an edited table back: CSV, TSV or JSON; - is stdin.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with all pictures.")
@click.option("--tags", is_flag=True, help="List the tags of all captions with how many pictures have each.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier page.")
@output_options
def review_command(
    folder: Path, table: str | None, html: Path | None, tags: bool, overwrite: bool, output: Output
) -> None:
    """List the captions of a training folder, to read and to edit.

    With --csv, --tsv or --json the list is a table of file, width, height, caption and warnings; edit captions in it
    and give it back with --apply, which writes the .txt files of those that changed. --html writes one page without
    scripts that shows every picture with its caption.

    \b
    Examples:
      hnetkit train review pictures --csv > captions.csv
      hnetkit train review pictures --apply captions.csv
      hnetkit train review pictures --html pictures.html
      hnetkit train review pictures --tags --table
    """
    from hnetkit.train import apply_captions, read_captions, review, write_page
    from hnetkit.train.preparing.review import COLUMNS

    if sum((table is not None, html is not None, tags)) > 1:
        raise UsageError("choose one of --apply, --html and --tags")
    if table is not None:
        failures: list[HnetkitError] = []
        captions = read_captions(sys.stdin.buffer if table == "-" else table)
        changed = apply_captions(folder, captions, failures.append)
        output.rows(({"path": str(path)} for path in changed), columns=["path"], text=lambda row: str(row["path"]))
        output.note(f"{len(changed)} captions changed")
        for failure in failures:
            say_failure(failure)
        if failures:
            raise PartlyFailed(f"{len(failures)} of {len(changed) + len(failures)} captions could not be written")
        return
    seen = review(folder)
    for warning in (*seen.warnings, *seen.unreadable):
        output.note(f"Warning: {warning}")
    if html is not None:
        write_page(seen, html, overwrite=overwrite)
        output.rows([{"path": str(html)}], columns=["path"], text=lambda row: str(row["path"]))
    elif tags:
        output.rows(({"tag": tag, "pictures": count} for tag, count in seen.tags()), columns=["tag", "pictures"])
    else:
        output.rows(seen.rows, columns=COLUMNS)
    if seen.unreadable:
        raise PartlyFailed(f"{len(seen.unreadable)} of {len(seen.rows)} pictures or their captions cannot be read")


def _row(one: PreparedImage) -> Row:
    width, height = one.size
    row: Row = {"path": str(one.path), "source": str(one.source), "width": width, "height": height}
    return {**row, "caption": one.caption}
