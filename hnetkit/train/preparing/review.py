"""The captions of a training folder as a table to edit, and as an HTML page to browse."""

from __future__ import annotations

import base64
import csv
import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from blake3 import blake3

from hnetkit.errors import BadPicture, DiskFull, HnetkitError, NotFound, UsageError, failure_of
from hnetkit.files import new_file, read_regular, refuse_all_but
from hnetkit.images import open_rgb
from hnetkit.limits import parse_json, require_unique_columns
from hnetkit.text import argument, counted, from_cell
from hnetkit.train.captions import MAX_TEXT, caption_file, caption_of, write_caption
from hnetkit.train.preparing.images import image_files, left_out, left_out_warnings
from hnetkit.train.preparing.quality import (
    ImageStats,
    tag_counts,
    warnings_about,
    warnings_of_each,
)

if TYPE_CHECKING:
    from hnetkit.library.library import AnyPath

COLUMNS = ("file", "width", "height", "caption", "warnings")
TO_EDIT = (*COLUMNS, "digest")
"""The columns of a table that is given back: `digest` says what the caption was when the table was made."""

_SEPARATORS = ",;\t"  # some spreadsheets write CSV with semicolons
_MOST_TABLE = 16 << 20  # bytes of an edited table
_MOST_ROWS, _MOST_COLUMNS = 200_000, 1000  # a spreadsheet may add columns


@dataclass(frozen=True, slots=True)
class Review:
    """The images and captions of a training folder, with warnings.

    Attributes:
        folder: of the images.
        rows: with `TO_EDIT`, one for each image; width and height are None if it or its caption cannot be read.
        warnings: about the images as a whole, one line each.
        unreadable: why images or their captions cannot be read.
    """

    folder: Path
    rows: Sequence[dict[str, Any]]
    warnings: Sequence[str]
    unreadable: Sequence[str]

    def tags(self) -> list[tuple[str, int]]:
        """Returns the tags of all captions, each with how many images have it, the most frequent first."""
        return tag_counts([row["caption"] for row in self.rows])


def review(folder: AnyPath) -> Review:
    """Returns the images of a training folder with their captions and what is odd about them.

    Raises:
        NotFound: no such folder, or no pictures in it.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    images, readable, unreadable = [], [], []
    for path in image_files(folder):
        row: dict[str, Any] = dict.fromkeys(TO_EDIT) | {"file": path.name, "caption": "", "warnings": []}
        rows.append(row)
        try:
            row["caption"] = caption_of(path)
            row["digest"] = digest_of(row["caption"])
            image = ImageStats.of(path)
        except Exception as error:
            row["warnings"] = ["cannot be read"]
            unreadable.append(str(failure_of(error, str(path))))
            continue
        row["width"], row["height"] = image.size
        images.append(image)
        readable.append(row)
    for row, warnings in zip(readable, warnings_of_each(images), strict=True):
        row["warnings"] = warnings
    warnings = [*left_out_warnings(left_out(folder)), *warnings_about(images)]
    return Review(folder, rows, warnings, unreadable)


class Captions(dict[str, str]):
    """File name -> caption, of an edited table.

    Attributes:
        digests: file name -> `digest_of` the caption for which the table gave this one; not of every table.
    """

    def __init__(self) -> None:
        super().__init__()
        self.digests: dict[str, str] = {}


def digest_of(caption: str) -> str:
    """Returns what tells a caption from another; no spreadsheet takes it for a number."""
    return f"b3:{blake3(caption.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def read_captions(table: AnyPath | BinaryIO) -> Captions:
    """Returns file name -> caption of an edited table in a file, see `parse_captions`.

    Raises:
        NotFound: it cannot be opened.
        UsageError: it is too large, no UTF-8, or no such table.
    """
    name = os.fspath(table) if isinstance(table, str | os.PathLike) else getattr(table, "name", "the table")
    try:
        if not isinstance(table, str | os.PathLike):
            data = table.read(_MOST_TABLE + 1)
        elif os.path.isfile(table):
            data = read_regular(table, most=_MOST_TABLE)
        else:
            with open(table, "rb") as file:
                data = file.read(_MOST_TABLE + 1)
    except OSError as error:
        raise NotFound(f"{name}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{name}: {error}", hint="give the table back in parts") from error
    if len(data) > _MOST_TABLE:
        raise UsageError(f"{name}: more than {_MOST_TABLE >> 20} MB", hint="give the table back in parts")
    try:
        return parse_captions(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 text", hint="save the table as CSV UTF-8") from error


def parse_captions(text: str) -> Captions:
    """Returns file name -> caption of an edited table: CSV, TSV, or JSON as `hnetkit train review` prints them.

    Raises:
        UsageError: it is no such table, or names a file, or a row's file or caption, twice.
    """
    text = text.removeprefix("\ufeff")
    parse = _parse_json if text.lstrip().startswith("[") else _parse_csv
    captions = Captions()
    with closing(parse(text)) as rows:
        for number, row in enumerate(rows, 1):
            name, caption = row.get("file"), row.get("caption")
            if not isinstance(name, str) or not isinstance(caption, str):
                raise UsageError(f"row {number} of the table has no file or no caption", hint="columns: file, caption")
            if name in captions:
                raise UsageError(f"row {number} of the table names {name} again")
            captions[name] = " ".join(caption.split())
            if len(captions[name].encode("utf-8", "surrogatepass")) >= MAX_TEXT or not _is_text(captions[name]):
                raise UsageError(f"row {number} of the table has a caption that is too long, or is not text")
            if isinstance(digest := row.get("digest"), str) and digest:
                captions.digests[name] = digest
    return captions


def _raised(failure: HnetkitError) -> None:
    raise failure


def apply_captions(
    folder: AnyPath,
    captions: Mapping[str, str],
    failed: Callable[[HnetkitError], None] = _raised,
    note: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Writes the captions that changed, each completely or not at all; returns the files that were written.

    All names are checked before the first file is written. A caption that comes from a file name and is unchanged gets
    no file. Where the table says what a caption was, one that it leaves so stays as it is by now.

    Args:
        captions: file name -> caption.
        failed: called with the error if one caption could not be written; the others still are.
        note: called with a line about each caption that somebody else changed since the table was made.

    Raises:
        DiskFull: there is no room for any more of them.
        UsageError: a name is a path, or two images that share a caption file get different captions.
        NotFound: an image is not in the folder.
    """
    pictures = {path.name: path for path in image_files(Path(folder))}
    for name in captions:
        if name not in pictures:
            if name in (".", "..") or any(character in name for character in "/\\\0"):
                raise UsageError(f"{name}: not a file name", hint="the table has names of pictures, without folders")
            raise NotFound(
                f"{name}: no such picture in {folder}", hint=f"hnetkit train review {argument(folder, is_path=True)}"
            )
    digests = captions.digests if isinstance(captions, Captions) else {}
    changed: dict[Path, str] = {}
    notes: dict[Path, str] = {}
    wanted: dict[Path, str] = {}
    for name, caption in captions.items():
        beside = caption_file(pictures[name])
        if wanted.setdefault(beside, caption) != caption:
            raise UsageError(f"{name} shares {beside.name} with another picture, and the table gives both captions")
        now, digest = _current_caption(pictures[name], caption), digests.get(name)
        if caption == now:
            continue
        is_left_so = digest == digest_of(caption)
        if digest is not None and now is not None and digest != digest_of(now):
            kept = ", and kept, as the table leaves it as it was" if is_left_so else f"; until now it says: {now}"
            notes[beside] = f"{beside}: changed since the table was made{kept}"
        if not is_left_so:
            changed[beside] = caption
    for line in notes.values():
        note(line)
    written = []
    for path, caption in changed.items():
        try:
            write_caption(path, caption, overwrite=True)
        except Exception as error:
            failure = failure_of(error, str(path))
            if isinstance(failure, DiskFull):
                raise failure from error
            failed(failure)
        else:
            written.append(path)
    return written


def _current_caption(image: Path, wanted: str) -> str | None:
    """Returns an image's caption; of one that cannot be read, None if a new one is given."""
    try:
        return caption_of(image)
    except HnetkitError:
        return None if wanted else ""  # its row in the table was empty


def _is_text(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _parse_json(text: str) -> Generator[dict[str, Any], None, None]:
    try:
        rows = parse_json(text, pairs=_unique_keys)
    except ValueError as error:
        raise UsageError(f"the table is not JSON: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UsageError("the table is not a JSON array of objects", hint="hnetkit train review DIR --json")
    yield from rows


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise UsageError("a row of the table has a key twice", hint="leave one of the two")
    return row


def _require_unique_columns(reader: csv.DictReader[str]) -> None:
    try:
        require_unique_columns(reader.fieldnames or (), ("file", "caption"))
    except ValueError as error:
        raise UsageError(f"the table cannot be taken back: {error}", hint="leave one of them in it") from error


def _of_few_columns(lines: Iterable[str], separator: str) -> Iterator[str]:
    """Yields the lines of a table's head, which may have line breaks in quotes."""
    left = _MOST_COLUMNS
    for line in lines:
        left -= line.count(separator)
        if left < 0:
            raise UsageError(f"the table has more than {_MOST_COLUMNS:,} columns", hint="columns: file, caption")
        yield line


def _parse_csv(text: str) -> Generator[dict[str, Any], None, None]:
    header = text.split("\n", 1)[0]
    separator = max(_SEPARATORS, key=header.count)
    default_limit = csv.field_size_limit(max(len(text), 1))  # csv's own limit is half of a caption's
    try:
        lines = io.StringIO(text, newline="")
        columns = next(csv.reader(_of_few_columns(lines, separator), delimiter=separator, strict=True), [])
        reader = csv.DictReader(lines, columns, delimiter=separator, strict=True)
        if not {"file", "caption"} <= set(reader.fieldnames or ()):
            raise UsageError(
                "the table has no columns file and caption in its first line", hint="hnetkit train review DIR --csv"
            )
        _require_unique_columns(reader)
        for number, row in enumerate(reader, 1):
            if number > _MOST_ROWS:
                raise UsageError(f"the table has more than {_MOST_ROWS:,} rows", hint="give the table back in parts")
            if None in row:  # most likely a caption with commas but without quotes
                raise UsageError(
                    f"row {number} of the table has more cells than columns", hint="quote captions with commas"
                )
            yield {name: from_cell(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
    except csv.Error as error:
        raise UsageError(f"the table is not CSV: {error}") from error
    finally:
        csv.field_size_limit(default_limit)


# --- the page

_SIDE = 224  # longest side of a thumbnail in pixels
_QUALITY = 80

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ margin: 1.5rem; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({side}px, 1fr)); gap: 1.25rem; }}
figure {{ margin: 0; }}
img {{ max-width: 100%; }}
figcaption {{ overflow-wrap: anywhere; }}
.name {{ font-weight: 600; }}
.size, .none {{ opacity: .7; }}
.warning {{ color: light-dark(#a33a00, #ffb38a); }}
p {{ margin: .2rem 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
{warnings}
<main>
{figures}
</main>
</body>
</html>
"""

_PAGE_START = _PAGE.split("<title>")[0].encode()  # an earlier page is recognized by it


def write_page(seen: Review, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a page with a thumbnail and the caption of every image: one file of HTML without scripts.

    Args:
        overwrite: replace an earlier page; a file of another kind is never replaced.

    Raises:
        OutputExists: the file exists and must not be replaced.
    """
    refuse_all_but(_PAGE_START, path, overwrite=overwrite)
    with new_file(path, overwrite=overwrite) as file:
        for part in contact_sheet(seen):
            file.write(part.encode("utf-8", "backslashreplace"))


def contact_sheet(seen: Review) -> Iterator[str]:
    """Yields the page image by image, thumbnails included; names and captions are escaped."""
    before, after = _PAGE.split("{figures}")
    yield before.format(
        title=escape(f"{seen.folder.resolve().name}: {counted(len(seen.rows), 'picture')}"),
        side=_SIDE,
        warnings="\n".join(f'<p class="warning">{escape(warning)}</p>' for warning in seen.warnings),
    )
    for row in seen.rows:
        yield f"{_figure(seen.folder / row['file'], row)}\n"
    yield after.lstrip()


def _figure(path: Path, row: dict[str, object]) -> str:
    name, caption = escape(str(row["file"])), escape(str(row["caption"]))
    warnings = row["warnings"] if isinstance(row["warnings"], list) else []
    size = f' <span class="size">{row["width"]} &times; {row["height"]}</span>' if row["width"] else ""
    lines = [
        "<figure>",
        _thumbnail(path, alt=caption or name),
        "<figcaption>",
        f'<p><span class="name">{name}</span>{size}</p>',
        f"<p>{caption}</p>" if caption else '<p class="none">no caption</p>',
        *(f'<p class="warning">{escape(str(warning))}</p>' for warning in warnings if warning != "no caption"),
        "</figcaption>",
        "</figure>",
    ]
    return "\n".join(line for line in lines if line)


def _thumbnail(path: Path, alt: str) -> str:
    try:
        image = open_rgb(path)
    except (BadPicture, NotFound):
        return ""
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" width="{image.width}" height="{image.height}" alt="{alt}">'
