"""`hnetkit train prepare` and `hnetkit train review`: a folder to train on, and a look at it before training."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hnetkit.cli.numbers import Number
from hnetkit.cli.output import Output, Row, output_options, say_failure
from hnetkit.errors import DiskFull, HnetkitError, MissingPackage, NotFound, PartlyFailed, UsageError, failure_of
from hnetkit.files import read_regular

if TYPE_CHECKING:
    from hnetkit.train.preparing.folder import Describe, Folder, Prepared, Settings
    from hnetkit.train.preparing.quality import Look

_MOST_TABLE = 16 << 20  # bytes of an edited table


@click.command("prepare")
@click.argument("pictures", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", required=True, help="The folder to train on.")
@click.option("--size", default="512", metavar="N|WxH", show_default=True, help="Of every picture, in pixels.")
@click.option("--buckets", is_flag=True, help="Several sizes of about this area: each picture gets the nearest.")
@click.option(
    "--crop",
    "focus",
    type=click.Choice(["centre", "entropy", "face"]),
    default="centre",
    show_default=True,
    help="What a crop keeps: the middle, the part with most to see, or the largest face.",
)
@click.option("--flip", is_flag=True, help="Add a mirrored copy of each.")
@click.option("--split", is_flag=True, help="Cut long pictures into several that overlap.")
@click.option(
    "--split-threshold",
    type=Number(0, 1),
    default=0.5,
    show_default=True,
    help="Long is a picture of which one crop would keep at most this share.",
)
@click.option(
    "--split-overlap",
    type=Number(0, 0.9),
    default=0.2,
    show_default=True,
    help="At least this share of a part is in the next one too.",
)
@click.option("--flatten", is_flag=True, help="Put transparent pictures on white for good.")
@click.option("--recursive", is_flag=True, help="Take the pictures of folders below PICTURES too.")
@click.option(
    "--caption",
    "captions",
    type=click.Choice(["blip", "tags", "none"]),
    multiple=True,
    help="What writes captions: a sentence by BLIP, tags by a booru tagger. Both may be given, in this order.",
)
@click.option("--blip-model", metavar="FOLDER|ID", help="Instead of Salesforce/blip-image-captioning-large.")
@click.option("--tags-model", metavar="FOLDER|ID", help="Instead of SmilingWolf/wd-vit-tagger-v3.")
@click.option(
    "--existing",
    type=click.Choice(["keep", "replace", "append", "prepend"]),
    default="keep",
    show_default=True,
    help="What becomes of a .txt beside an original; append and prepend add the new caption after or before it.",
)
@click.option("--prefix", default="", metavar="TEXT", help="Before every caption that a model makes.")
@click.option(
    "--general-threshold",
    type=Number(0, 1),
    default=0.35,
    show_default=True,
    help="How sure a tag must be.",
)
@click.option(
    "--character-threshold",
    type=Number(0, 1),
    default=0.85,
    show_default=True,
    help="How sure the name of a character must be.",
)
@click.option("--exclude-tag", "excluded", multiple=True, metavar="TAG", help="Leave this tag out.")
@click.option("--keep-underscores", is_flag=True, help="Tags as long_hair instead of long hair.")
@click.option("--no-escape", is_flag=True, help="Brackets in tags as they are, which a prompt takes for emphasis.")
@click.option("--by-score", is_flag=True, help="The surest tags first, instead of by alphabet.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="For captions.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace pictures in DIR that have the names of new ones, and their captions, edited ones too.",
)
@output_options
def prepare_command(
    pictures: Path,
    out: Path,
    size: str,
    buckets: bool,
    focus: Literal["centre", "entropy", "face"],
    flip: bool,
    split: bool,
    split_threshold: float,
    split_overlap: float,
    flatten: bool,
    recursive: bool,
    captions: tuple[str, ...],
    existing: Literal["keep", "replace", "append", "prepend"],
    overwrite: bool,
    output: Output,
    **captioning: Any,
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
    from hnetkit.train.preparing.folder import Folder, Settings, require_place
    from hnetkit.train.preparing.opening import picture_files, pictures_of_other_kinds
    from hnetkit.train.preparing.sizes import read_size

    settings = Settings(read_size(size), buckets, focus, flip, split, split_threshold, split_overlap, flatten, existing)
    hint = None if recursive else "--recursive looks into the folders below it"
    sources = picture_files(pictures, recursive=recursive, but_not_in=out, hint=hint)
    require_place(out, pictures, overwrite=overwrite, sources=sources)
    _require_faces(settings)
    describe = _captioners(captions, **captioning)
    if not out.parent.is_dir():
        raise NotFound(f"{out.parent}: no such folder")
    out.mkdir(exist_ok=True)
    made, looks, failed = _prepare_all(sources, Folder(out, settings, overwrite, describe), output)
    _warn(made, looks, settings, out, output)
    _warn_of_kinds(pictures_of_other_kinds(pictures, recursive=recursive), output)
    output.rows(map(_row, made), columns=["path", "source", "width", "height", "caption"], text=lambda row: row["path"])
    if failed:
        raise PartlyFailed(f"{failed} of {len(sources)} pictures were left out")


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
    from hnetkit.train.preparing.opening import pictures_of_other_kinds
    from hnetkit.train.preparing.review import COLUMNS, apply_captions, read_table, review

    if sum((table is not None, html is not None, tags)) > 1:
        raise UsageError("choose one of --apply, --html and --tags")
    if table is not None:
        failures: list[HnetkitError] = []
        changed = apply_captions(folder, read_table(_text_of(table)), failures.append)
        output.rows(({"path": str(path)} for path in changed), columns=["path"], text=lambda row: str(row["path"]))
        output.note(f"{len(changed)} captions changed")
        for failure in failures:
            say_failure(failure)
        if failures:
            raise PartlyFailed(f"{len(failures)} of {len(changed) + len(failures)} captions could not be written")
        return
    seen = review(folder)
    _warn_of_kinds(pictures_of_other_kinds(folder), output)
    for warning in (*seen.warnings, *seen.unreadable):
        output.note(f"Warning: {warning}")
    if html is not None:
        _write_page(html, folder, seen, overwrite)
        output.rows([{"path": str(html)}], columns=["path"], text=lambda row: str(row["path"]))
    elif tags:
        from hnetkit.train.preparing.quality import tag_counts

        counts = tag_counts([row["caption"] for row in seen.rows])
        output.rows(({"tag": tag, "pictures": count} for tag, count in counts), columns=["tag", "pictures"])
    else:
        output.rows(seen.rows, columns=COLUMNS)
    if seen.unreadable:
        raise PartlyFailed(f"{len(seen.unreadable)} of {len(seen.rows)} pictures or their captions cannot be read")


def _prepare_all(sources: Sequence[Path], folder: Folder, output: Output) -> tuple[list[Prepared], list[Look], int]:
    """Prepares what can be read; says of the rest why it was left out."""
    from hnetkit.train.preparing.quality import Look

    made: list[Prepared] = []
    looks: list[Look] = []
    failed = 0
    with click.progressbar(
        sources, label="Preparing", file=sys.stderr, hidden=output.quiet or not sys.stderr.isatty()
    ) as each:
        for source in each:
            try:
                look = Look.at(source)
                made += folder.add(source)
                looks.append(look)
            except (DiskFull, MissingPackage):  # of every other too
                raise
            except Exception as error:
                failure = failure_of(error, str(source))
                if isinstance(failure, DiskFull):  # what was written is there when the command is run again
                    hint = "make room, and run the command again with --overwrite"
                    raise DiskFull(str(failure), hint=hint) from error
                failed += 1
                say_failure(failure)
    return made, looks, failed


def _warn(made: Sequence[Prepared], looks: Sequence[Look], settings: Settings, out: Path, output: Output) -> None:
    from dataclasses import replace

    from hnetkit.train.preparing.folder import leftovers
    from hnetkit.train.preparing.quality import warnings_about

    captions = {one.source: one.caption for one in made}
    described = [replace(look, caption=captions.get(look.path, look.caption)) for look in looks]
    for warning in warnings_about(described, size=settings.size, buckets=settings.buckets):
        output.note(f"Warning: {warning}")
    if others := leftovers(out, made):
        output.note(f"Warning: {len(others)} pictures of before stay in {out}: {', '.join(others[:5])}")


def _warn_of_kinds(names: Sequence[str], output: Output) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        output.note(f"Warning: not read, of kinds that are not opened: {', '.join(names[:5])}{more}")


def _row(one: Prepared) -> Row:
    width, height = one.size
    row: Row = {"path": str(one.path), "source": str(one.source), "width": width, "height": height}
    return {**row, "caption": one.caption}


def _require_faces(settings: Settings) -> None:
    """Refuses --crop face without OpenCV before anything is written."""
    if settings.focus == "face":
        from hnetkit.train.preparing.crops import require_faces

        require_faces()


def _captioners(
    captions: tuple[str, ...],
    *,
    blip_model: str | None,
    tags_model: str | None,
    prefix: str,
    device: str,
    **tagging: Any,
) -> Describe | None:
    """Loads what writes captions, in the order that was asked for."""
    wanted = list(dict.fromkeys(captions))
    if "none" in wanted and len(wanted) > 1:
        raise UsageError("--caption none stands alone")
    for place, kind in ((blip_model, "blip"), (tags_model, "tags")):
        if place is not None and kind not in wanted:
            raise UsageError(f"--{kind}-model without --caption {kind}", hint=f"add --caption {kind}")
    if not wanted or wanted == ["none"]:
        return None
    from hnetkit.train.preparing import captioners

    settings = captioners.TagSettings(
        general=tagging["general_threshold"],
        character=tagging["character_threshold"],
        excluded=frozenset(tagging["excluded"]),
        underscores=tagging["keep_underscores"],
        escape=not tagging["no_escape"],
        by_score=tagging["by_score"],
    )
    load: dict[str, Callable[[], captioners.Blip | captioners.Tagger]] = {
        "blip": lambda: captioners.load_blip(blip_model or captioners.BLIP, device=device),
        "tags": lambda: captioners.load_tagger(tags_model or captioners.TAGGER, settings=settings, device=device),
    }
    models = [load[kind]() for kind in wanted]

    def describe(image: Any) -> str:
        said = ", ".join(words for words in (model.caption(image) for model in models) if words)
        return f"{prefix}{said}".strip()

    return describe


def _text_of(place: str) -> str:
    try:
        if place == "-":
            data = sys.stdin.buffer.read(_MOST_TABLE + 1)
        elif os.path.isfile(place):
            data = read_regular(place, most=_MOST_TABLE)
        else:
            with open(place, "rb") as file:
                data = file.read(_MOST_TABLE + 1)
    except OSError as error:
        raise NotFound(f"{place}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{place}: {error}", hint="give the table back in parts") from error
    if len(data) > _MOST_TABLE:
        raise UsageError(f"{place}: more than {_MOST_TABLE >> 20} MB", hint="give the table back in parts")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: not UTF-8 text", hint="save the table as CSV UTF-8") from error


def _write_page(html: Path, folder: Path, seen: Any, overwrite: bool) -> None:
    from hnetkit.cli.named import require_text_output
    from hnetkit.files import new_file
    from hnetkit.train.preparing.contact_sheet import BEGINNING, contact_sheet

    require_text_output(html, overwrite=overwrite, beginning=BEGINNING)
    with new_file(html, overwrite=overwrite) as file:
        for part in contact_sheet(folder, seen):
            file.write(part.encode("utf-8", "backslashreplace"))
