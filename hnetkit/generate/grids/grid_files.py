"""What a grid leaves beside its sheet: a picture for each cell, and a record that lets it go on where it stopped.

Of ``grid.png``: ``grid.jsonl``, one JSON object per line and cell, and the folder ``grid-cells``. A line is written
when its picture is on disk. Where several processes draw, each but the first has lines of its own in the folder, which
the first one takes over.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hnetkit import paths
from hnetkit.errors import BadPicture, FileRefused, HnetkitError, NotFound, OutputExists
from hnetkit.files import exclusive_lock, new_file, refuse_links
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.picture_files import SUFFIXES, write_picture
from hnetkit.generate.picture_text import read_picture_text
from hnetkit.generate.request import LARGEST_SEED
from hnetkit.images import open_image
from hnetkit.limits import MAX_JSON, parse_json

if TYPE_CHECKING:
    from PIL import Image

FORMAT = "hnetkit.grid/1"

_TEXTS = ("key", "picture", "prompt", "negative_prompt", "sampler", "model", "infotext")
_NUMBERS = ("steps", "cfg_scale")
_BEGINNING = f'{{"format": "{FORMAT}"'.encode()
_PART = re.compile(r"process-\d{1,9}\.jsonl")

FAILURE = "failure"
"""In a row: why there is no picture."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GridFiles:
    """The files of one grid.

    Args:
        sheet: the picture that shows all cells.
        process: which of several draws here, from 0.
    """

    sheet: Path
    process: int = 0

    @property
    def record(self) -> Path:
        return self.sheet.with_suffix(".jsonl")

    @property
    def folder(self) -> Path:
        return self.sheet.with_name(f"{self.sheet.stem}-cells")

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other commands from this record for as long as the block lasts; for the first process alone.

        Raises:
            HnetkitError: another one draws into it.
        """
        known_by = hashlib.sha256(os.fsencode(os.path.realpath(self.record))).hexdigest()[:16]
        hint = "wait for it, or choose another --out"
        busy = HnetkitError(f"{self.sheet}: another command draws this grid", hint=hint)
        return exclusive_lock(paths.home() / "locks" / f"grid-{known_by}.lock", busy)  # beside the sheet it would stay

    def require_ours(self) -> None:
        """Raises OutputExists where something else, or a link, has the record's name, or the folder's."""
        refuse_links((self.record, self.folder))
        is_other = self.record.exists() and not self.record.is_file()
        # what is written to a link would go elsewhere, and what is read there would get into the record
        is_link = any(path.is_symlink() for path in (self.record, self.folder, *self._named_as_parts()))
        if is_other or is_link or (self.folder.exists() and not self.folder.is_dir()):
            raise OutputExists(f"{self.record} or {self.folder} is something else", hint="choose another --out")
        for path in (self.record, *self._parts()):
            if path.exists() and not _is_record(path):
                raise OutputExists(f"{path}: the file exists and is no grid's record", hint="another --out")

    def require_alone(self, keys: Iterable[str]) -> None:
        """Raises OutputExists where the record is another grid's, whose sheet differs in its suffix alone.

        Args:
            keys: of the grid that is to be drawn.
        """
        wanted = frozenset(keys)
        sheets = (self.sheet.with_suffix(suffix) for suffix in SUFFIXES)
        other = next((path for path in sheets if path != self.sheet and path.is_file()), None)
        if other is not None and any(row["key"] not in wanted for row in self.rows()):
            raise OutputExists(
                f"{self.record}: the record of another grid, {other}",
                hint="another --out, or --overwrite to replace it",
            )

    def settle(self) -> None:
        """Makes one record of what earlier processes left, without torn lines; for the first process alone."""
        if self.record.exists():
            if self.record.stat().st_nlink > 1:  # what is written to it would be written to a file elsewhere as well
                with self.record.open("rb") as shared, new_file(self.record, overwrite=True) as own:
                    shutil.copyfileobj(shared, own)
            with self.record.open("r+b") as file:
                end = 0
                for line in _lines(file):
                    end = file.tell() if line.endswith(b"\n") else end
                file.truncate(end)
        for path in self._parts():
            with path.open("rb") as file:
                for line in _lines(file):
                    if line.endswith(b"\n") and _row_in(line) is not None:  # a part may be another name of any file
                        self._append(self.record, line)
            path.unlink()

    def rows(self) -> Iterator[Row]:
        """Yields what is on record, of all processes; lines that are damaged are passed over."""
        for path in (self.record, *self._parts()):
            if not path.is_file():
                continue
            with path.open("rb") as file:
                for line in _lines(file):
                    row = _row_in(line)
                    if row is not None:
                        yield row

    def done(self, keys: Iterable[str]) -> dict[str, Row]:
        """Returns a row for each of `keys` whose picture is there and whole."""
        wanted = frozenset(keys)
        latest = {row["key"]: row for row in self.rows() if row["key"] in wanted}
        return {key: row for key, row in latest.items() if self._is_whole(row)}

    def failed(self, keys: Iterable[str]) -> dict[str, Row]:
        """Returns the row of each of `keys` that could not be drawn when it was tried last."""
        wanted = frozenset(keys)
        latest = {row["key"]: row for row in self.rows() if row["key"] in wanted}
        return {key: row for key, row in latest.items() if FAILURE in row}

    def lacks_pictures(self, keys: Iterable[str] | None = None) -> bool:
        """Whether pictures of the grid that is on record could not be drawn.

        Args:
            keys: of a grid that it must be: all pictures that could be drawn are among them.
        """
        latest = {row["key"]: FAILURE in row for row in self.rows()}
        drawn = {key for key, is_failed in latest.items() if not is_failed}
        # no sheet is made of failures alone: one that lies there is no grid's, whatever a record beside it says
        return bool(drawn) and any(latest.values()) and (keys is None or drawn <= frozenset(keys))

    def discard(self, keys: Iterable[str]) -> None:
        """Takes pictures none of which could be drawn off the record.

        Where no other grid's are on it, it is removed, and so is the folder, where nothing is in it.
        """
        unwanted = frozenset(keys)
        others = [row for row in self.rows() if row["key"] not in unwanted]
        if others:
            self.finish(others)
            return
        for path in (self.record, *self._parts()):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def write(self, number: int, key: str, image: Image.Image, infotext: str) -> str:
        """Writes the picture of a cell and returns its path as it stands in the record: from the sheet's folder on."""
        path = self.folder / f"{number:04}-{key[:12]}.png"
        self.folder.mkdir(exist_ok=True)
        write_picture(path, image, infotext, overwrite=True)
        return f"{self.folder.name}/{path.name}"

    def picture(self, row: Mapping[str, Any]) -> Path:
        """Returns where a row's picture is: in the folder, whatever the row says."""
        return self.folder / str(row.get("picture", "")).rpartition("/")[2]

    def append(self, rows: Sequence[Row]) -> None:
        """Adds lines to the record, whole and on disk."""
        path = self.record if self.process == 0 else self.folder / f"process-{self.process}.jsonl"
        path.parent.mkdir(exist_ok=True)
        self._append(path, b"".join(_line(row) for row in rows))

    def finish(self, rows: Iterable[Row]) -> None:
        """Makes `rows` the record, and removes what processes had written."""
        with new_file(self.record, overwrite=True) as file:
            for row in rows:
                file.write(_line(row))
        for path in self._parts():
            path.unlink()

    def _parts(self) -> list[Path]:
        found = self._named_as_parts()
        return sorted(path for path in found if os.path.isfile(path) and not path.is_symlink())

    def _named_as_parts(self) -> list[Path]:
        """Returns what is called as processes call their lines; other files of the folder are a person's own."""
        return [path for path in self.folder.glob("process-*.jsonl") if _PART.fullmatch(path.name)]

    def _append(self, path: Path, lines: bytes) -> None:
        refuse_links((path,))
        with path.open("a+b") as file:
            if _is_torn(file):  # there was no room for all of it
                lines = b"\n" + lines
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def _is_whole(self, row: Row) -> bool:
        path = self.picture(row)
        try:
            open_image(path)
            with OpenFile(path) as file:
                return read_picture_text(file).get("parameters") == row.get("infotext")
        except (BadPicture, FileRefused, NotFound):
            return False


def row_of(key: str, place: Mapping[str, Any], facts: Mapping[str, Any]) -> Row:
    """Returns a line of the record: the picture's key, where in the grid it is shown, and all that it was drawn by."""
    return {"format": FORMAT, "key": key, **place, **{name: fact for name, fact in facts.items() if name not in place}}


def _is_record(path: Path) -> bool:
    """Whether a file begins as records do, or is empty; of the first line, there may have been room for a part."""
    with path.open("rb") as file:
        return _BEGINNING.startswith(file.read(len(_BEGINNING)).split(b"\n")[0])


def _is_torn(file: BinaryIO) -> bool:
    """Whether the last line of a file has no end."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a record; one that is longer than any comes in pieces, which are damaged lines."""
    return iter(lambda: file.readline(MAX_JSON), b"")


def _row_in(line: bytes) -> Row | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if _is_row(row) else None


def _is_row(row: Any) -> bool:
    """Whether a line that was read holds what sheets and later runs take of it; somebody may have changed it."""
    if not isinstance(row, dict) or row.get("format") != FORMAT:
        return False
    if FAILURE in row:
        return isinstance(row[FAILURE], str) and isinstance(row.get("key"), str)
    return (
        all(isinstance(row.get(name), str) for name in _TEXTS)
        and all(type(row.get(name)) in (int, float) and abs(row[name]) <= LARGEST_SEED for name in _NUMBERS)
        and _is_seed(row.get("seed"))
        and isinstance(row.get("random_seeds", []), list)
        and all(map(_is_seed, row.get("random_seeds", [])))
    )


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SEED


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=True, default=str).encode() + b"\n"
