"""The captions of a training folder as a table: to read, to edit, and to take back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnetkit.errors import BadPicture, NotFound, UsageError
from hnetkit.text import from_cell
from hnetkit.train.captions import caption_of
from hnetkit.train.preparing.folder import write_caption
from hnetkit.train.preparing.opening import picture_files
from hnetkit.train.preparing.quality import Look, warnings_about, warnings_of_each

COLUMNS = ("file", "width", "height", "caption", "warnings")
_SEPARATORS = ",;\t"  # some spreadsheets write CSV with semicolons


@dataclass(frozen=True, slots=True)
class Review:
    """What is to be seen in a training folder.

    Attributes:
        rows: with `COLUMNS`, one for each picture; width and height are None where it cannot be read.
        warnings: about all pictures together, one line each.
        unreadable: why pictures cannot be read.
    """

    rows: Sequence[dict[str, Any]]
    warnings: Sequence[str]
    unreadable: Sequence[str]


def review(folder: Path) -> Review:
    """Returns the pictures of a training folder with their captions and what is odd about them.

    Raises:
        NotFound: no such folder, or no pictures in it.
        UsageError: a caption is not UTF-8.
    """
    rows: list[dict[str, Any]] = []
    looks, seen, unreadable = [], [], []
    for path in picture_files(folder):
        row: dict[str, Any] = {"file": path.name, "width": None, "height": None, "caption": caption_of(path)}
        row["warnings"] = []
        rows.append(row)
        try:
            look = Look.at(path)
        except BadPicture as error:
            row["warnings"] = ["cannot be read"]
            unreadable.append(str(error))
            continue
        row["width"], row["height"] = look.size
        looks.append(look)
        seen.append(row)
    for row, warnings in zip(seen, warnings_of_each(looks), strict=True):
        row["warnings"] = warnings
    return Review(rows, list(warnings_about(looks)), unreadable)


def read_table(text: str) -> dict[str, str]:
    """Returns file name -> caption of an edited table: CSV, TSV, or JSON as `hnetkit train review` prints them.

    Raises:
        UsageError: it is no such table, or names a file twice.
    """
    text = text.removeprefix("\ufeff")
    rows = _of_json(text) if text.lstrip().startswith("[") else _of_lines(text)
    captions: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        name, caption = row.get("file"), row.get("caption")
        if not isinstance(name, str) or not isinstance(caption, str):
            raise UsageError(f"row {number} of the table has no file or no caption", hint="columns: file, caption")
        if name in captions:
            raise UsageError(f"row {number} of the table names {name} again")
        captions[name] = " ".join(caption.split())
    return captions


def apply_captions(folder: Path, captions: dict[str, str]) -> list[Path]:
    """Writes the captions that changed, each whole or not at all; returns their files.

    Every name is looked at before the first file is written: a name that is a path, or no picture of the folder,
    changes nothing. A caption that came from a file name and is unchanged stays there.

    Raises:
        UsageError: a name is a path, or two pictures that share a caption get different ones.
        NotFound: a picture is not in the folder.
    """
    pictures = {path.name: path for path in picture_files(folder)}
    for name in captions:
        if name in (".", "..") or any(mark in name for mark in "/\\\0"):
            raise UsageError(f"{name}: not a file name", hint="the table has the names of pictures, without folders")
        if name not in pictures:
            raise NotFound(f"{name}: no such picture in {folder}", hint=f"hnetkit train review {folder}")
    changed: dict[Path, str] = {}
    wanted: dict[Path, str] = {}
    for name, caption in captions.items():
        beside = pictures[name].with_suffix(".txt")
        if wanted.setdefault(beside, caption) != caption:
            raise UsageError(f"{name} shares {beside.name} with another picture, and the table gives both captions")
        if caption != caption_of(pictures[name]):
            changed[beside] = caption
    for path, caption in changed.items():
        write_caption(path, caption, overwrite=True)
    return list(changed)


def _of_json(text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise UsageError(f"the table is not JSON: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UsageError("the table is not a JSON array of objects", hint="hnetkit train review DIR --json")
    return list(rows)


def _of_lines(text: str) -> list[dict[str, Any]]:
    header = text.split("\n", 1)[0]
    separator = max(_SEPARATORS, key=header.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        if not {"file", "caption"} <= set(reader.fieldnames or ()):
            raise UsageError(
                "the table has no columns file and caption in its first line", hint="hnetkit train review DIR --csv"
            )
        rows = list(reader)
    except csv.Error as error:
        raise UsageError(f"the table is not CSV: {error}") from error
    for number, row in enumerate(rows, 1):
        if None in row:  # more cells than columns: most likely a caption with commas and without quotes
            raise UsageError(
                f"row {number} of the table has more cells than columns", hint="quote captions with commas"
            )
    return [{key: cell and from_cell(cell) for key, cell in row.items()} for row in rows]
