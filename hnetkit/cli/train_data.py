"""`hnetkit train prepare` and `hnetkit train review`: a folder to train on, and a look at it before training."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hnetkit.cli.options import DEVICES, OUTPUT, Choice, Number, command, option
from hnetkit.cli.output import Output, Row, output_options, say_failure
from hnetkit.cli.progress import step_progress
from hnetkit.errors import HnetkitError, PartlyFailed, UsageError
from hnetkit.text import argument, counted

if TYPE_CHECKING:
    from hnetkit.train.preparing.folder import PreparedImage


_pictures, _captions = (partial(option, section=heading) for heading in ("Pictures", "Captions"))


@command("prepare")
@click.argument("pictures", type=click.Path(path_type=Path))
@option(
    "--out",
    section=OUTPUT,
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="Folder to make, to train on.",
)
@_pictures("--recursive", is_flag=True, help="Take the pictures of folders below PICTURES too.")
@_pictures("--size", default="512", metavar="N|WxH", show_default=True, help="Size of every picture in pixels.")
@_pictures(
    "--buckets", is_flag=True, help="Give each picture the nearest of several shapes, all of about the area of --size."
)
@_pictures(
    "--crop",
    type=Choice(["center", "entropy", "face"], {"centre": "center"}),
    default="centre",
    show_default=True,
    help="Part that a crop keeps: the middle, the part with the most detail, or the largest face.",
)
@_pictures("--flip", is_flag=True, help="Add a mirrored copy of each picture.")
@_pictures("--split", is_flag=True, help="Cut long pictures into several that overlap.")
@_pictures(
    "--split-threshold",
    type=Number(0, 1),
    default=0.5,
    show_default=True,
    help="Split when a single crop would keep at most this share of the picture.",
)
@_pictures(
    "--split-overlap",
    type=Number(0, 0.9),
    default=0.2,
    show_default=True,
    help="Least share of each part that overlaps with the next.",
)
@_pictures("--flatten", is_flag=True, help="Remove transparency, putting white under it.")
@_captions(
    "--caption",
    "captions",
    type=click.Choice(["blip", "tags", "none"]),
    multiple=True,
    show_default="none",
    help="Write captions: a sentence by BLIP, tags by a booru tagger, or both in the order given. Repeatable.",
)
@_captions(
    "--blip-model",
    metavar="FOLDER|ID",
    show_default="Salesforce/blip-image-captioning-large",
    help="BLIP model, for --caption blip.",
)
@_captions(
    "--tags-model",
    metavar="FOLDER|ID",
    show_default="SmilingWolf/wd-vit-tagger-v3",
    help="Tagger, for --caption tags.",
)
@_captions(
    "--existing",
    type=click.Choice(["keep", "replace", "append", "prepend"]),
    default="keep",
    show_default=True,
    help="Handling of a .txt that an original already has: keep it, replace it, or add the new caption after it "
    "(append) or before it (prepend).",
)
@_captions("--prefix", default="", metavar="TEXT", help="Text put before every generated caption.")
@_captions(
    "--general-threshold",
    type=Number(0, 1),
    default=0.35,
    show_default=True,
    help="Least probability of a tag to be written.",
)
@_captions(
    "--character-threshold",
    type=Number(0, 1),
    default=0.85,
    show_default=True,
    help="Least probability of a character's name to be written.",
)
@_captions("--exclude-tag", "exclude_tags", multiple=True, metavar="TAG", help="Never write this tag. Repeatable.")
@_captions("--keep-underscores", is_flag=True, help="Write tags as long_hair instead of long hair.")
@_captions("--no-escape", is_flag=True, help="Write brackets in tags unescaped, so that prompts read them as emphasis.")
@_captions("--by-score", is_flag=True, help="Sort tags by probability instead of by alphabet.")
@_captions(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Device to compute captions on; auto takes a GPU if there is one.",
)
@option(
    "--overwrite",
    section=OUTPUT,
    is_flag=True,
    help="Replace pictures in DIR that have the names of new ones, and their captions, edited ones too.",
)
@output_options
def prepare_command(
    pictures: Path,
    out: Path,
    crop: Literal["center", "entropy", "face"],
    captions: tuple[str, ...],
    no_escape: bool,
    output: Output,
    **options: Any,
) -> None:
    """Make a folder to train on from a folder of pictures.

    Turns pictures as their EXIF data says, crops them, scales them with Lanczos and writes them as PNG under the names
    of their originals, which are only read. Transparency is kept, with white under it. With --buckets, sides are
    multiples of 64 and at most 2:1.

    A .txt beside an original is copied as its caption. Generated captions are .txt files too; read them through with
    `hnetkit train review DIR`. Models for captions load from a folder or the Hugging Face hub, .safetensors only; WD
    taggers need timm: pip install "hnetkit[train]". --crop face needs "opencv-python-headless<5", and keeps the middle
    where no face is found.

    \b
    Examples:
      hnetkit train prepare photos --out pictures --size 64 --crop entropy
      hnetkit train prepare photos --out mirrored --size 64 --buckets --flip
      hnetkit train prepare photos --out captioned --caption blip --prefix "in the style of ink, "
    """
    from hnetkit.train import prepare

    if "none" in captions and set(captions) != {"none"}:
        raise UsageError("--caption none stands alone")
    with step_progress("Preparing", quiet=output.quiet) as progress:
        done = prepare(
            pictures,
            out,
            crop="centre" if crop == "center" else crop,
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
    output.note(f"Look at them: hnetkit train review {argument(out, is_path=True)}")


@command("review")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@option(
    "--apply",
    "table",
    metavar="FILE|-",
    help="Read an edited table, CSV, TSV or JSON, and write its captions; - is stdin.",
)
@option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a web page with all pictures.")
@option("--tags", is_flag=True, help="List tags instead, with the number of pictures that have each.")
@option("--overwrite", is_flag=True, help="Replace an earlier page, with --html.")
@output_options
def review_command(
    folder: Path, table: str | None, html: Path | None, tags: bool, overwrite: bool, output: Output
) -> None:
    """List the captions of a training folder, to read and to edit.

    Lists file, width, height, caption and warnings of each picture. Save the list with --csv, --tsv or --json, edit
    captions in it, and give it back with --apply, which writes the .txt files of captions that changed. The
    column digest tells which captions somebody else changed meanwhile: they are named, and kept where the table leaves
    them as they were. --html writes one page without scripts that shows every picture with its caption.

    \b
    Examples:
      hnetkit train review pictures --csv > captions.csv
      hnetkit train review pictures --apply captions.csv
      hnetkit train review pictures --html pictures.html
      hnetkit train review pictures --tags --table
    """
    from hnetkit.train import apply_captions, read_captions, review, write_page
    from hnetkit.train.preparing.review import COLUMNS, TO_EDIT

    if sum((table is not None, html is not None, tags)) > 1:
        raise UsageError("choose one of --apply, --html and --tags")
    if table is not None:
        failures: list[HnetkitError] = []
        captions = read_captions(sys.stdin.buffer if table == "-" else table)
        changed = apply_captions(folder, captions, failures.append, output.note)
        output.rows(({"path": str(path)} for path in changed), columns=["path"], text=lambda row: str(row["path"]))
        output.note(f"{counted(len(changed), 'caption')} changed")
        for failure in failures:
            say_failure(failure)
        if failures:
            raise PartlyFailed(f"{len(failures)} of {len(changed) + len(failures)} captions could not be written")
        return
    found = review(folder)
    for warning in (*found.warnings, *found.unreadable):
        output.note(f"Warning: {warning}")
    if html is not None:
        write_page(found, html, overwrite=overwrite)
        output.rows([{"path": str(html)}], columns=["path"], text=lambda row: str(row["path"]))
    elif tags:
        output.rows(({"tag": tag, "pictures": count} for tag, count in found.tags()), columns=["tag", "pictures"])
    else:
        output.rows(found.rows, columns=TO_EDIT if output.form in ("csv", "tsv") else COLUMNS)
    if found.unreadable:
        raise PartlyFailed(f"{len(found.unreadable)} of {len(found.rows)} pictures or their captions cannot be read")


def _row(image: PreparedImage) -> Row:
    return {
        "path": str(image.path),
        "source": str(image.source),
        "width": image.size[0],
        "height": image.size[1],
        "caption": image.caption,
    }
