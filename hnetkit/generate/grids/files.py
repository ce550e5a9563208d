"""The files beside a grid's sheet: an image for each cell, and a record from which an interrupted grid resumes.

Beside ``grid.png`` they are ``grid.jsonl``, one JSON object per line and cell, and the folder ``grid-cells``. A line is
written after its image. Each process but the first writes its lines to a file of its own in the folder; the first
process merges them into the record.
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
from hnetkit.files import exclusive_lock, is_file_at, is_folder_at, new_file, refuse_links, stat_at, sync_folder
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.request import LARGEST_SEED
from hnetkit.image_text import SUFFIXES, read_image_text, write_image
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
"""Key of a row: why it has no image."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GridFiles:
    """The files of one grid.

    Args:
        sheet: the image that shows all cells.
        process: number of this process, from 0.
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
        """Locks the record against other commands inside the block; for the first process alone.

        Raises:
            HnetkitError: another command draws this grid.
        """
        lock_name = hashlib.sha256(os.fsencode(os.path.realpath(self.record))).hexdigest()[:16]
        hint = "wait for it, or choose another --out"
        busy = HnetkitError(f"{self.sheet}: another command draws this grid", hint=hint)
        # not beside the sheet, where the lock file would be left over
        return exclusive_lock(paths.home() / "locks" / f"grid-{lock_name}.lock", busy)

    def require_ours(self) -> None:
        """Raises OutputExists if something else, or a link, has the name of the record or of the folder."""
        refuse_links((self.record, self.folder))
        is_other = stat_at(self.record) is not None and not is_file_at(self.record)
        # writing through a link would change another file, and reading through it would copy that file into the record
        is_link = any(path.is_symlink() for path in (self.record, self.folder, *self._process_files()))
        if is_other or is_link or (stat_at(self.folder) is not None and not is_folder_at(self.folder)):
            raise OutputExists(f"{self.record} or {self.folder} is something else", hint="choose another --out")
        for path in (self.record, *self._regular_process_files()):
            if stat_at(path) is not None and not _is_record(path):
                raise OutputExists(f"{path}: the file exists and is no grid's record", hint="another --out")

    def require_alone(self, keys: Iterable[str]) -> None:
        """Raises OutputExists if the record belongs to another grid, whose sheet differs in its suffix alone.

        Args:
            keys: of the grid that will be drawn.
        """
        wanted = frozenset(keys)
        sheets = (self.sheet.with_suffix(suffix) for suffix in SUFFIXES)
        other = next((path for path in sheets if path != self.sheet and is_file_at(path)), None)
        if other is not None and any(row["key"] not in wanted for row in self.rows()):
            raise OutputExists(
                f"{self.record}: the record of another grid, {other}",
                hint="another --out, or --overwrite to replace it",
            )

    def merge_records(self) -> None:
        """Merges what earlier processes left into one record, without torn lines; for the first process alone."""
        if stat_at(self.record) is not None:
            if self.record.stat().st_nlink > 1:  # a hard link: writing would change another file too
                with self.record.open("rb") as shared, new_file(self.record, overwrite=True) as own:
                    shutil.copyfileobj(shared, own)
            with self.record.open("r+b") as file:
                end = 0
                for line in _lines(file):
                    end = file.tell() if line.endswith(b"\n") else end
                file.truncate(end)
        parts = self._regular_process_files()
        for path in parts:
            with path.open("rb") as file:
                for line in _lines(file):
                    if line.endswith(b"\n") and _row_in(line) is not None:  # a part may be another name of any file
                        self._append(self.record, line)
        self._remove(parts)

    def rows(self) -> Iterator[Row]:
        """Yields the rows of all processes, with images in the folder as it is called by now; skips damaged lines."""
        for path in (self.record, *self._regular_process_files()):
            if not is_file_at(path):
                continue
            with path.open("rb") as file:
                for line in _lines(file):
                    row = _row_in(line)
                    if row is not None:
                        yield row if FAILURE in row else row | {"picture": self._in_folder(self.image_path(row))}

    def done(self, keys: Iterable[str]) -> dict[str, Row]:
        """Returns the row of each of `keys` whose image is there and complete."""
        return {key: row for key, row in self._latest(keys).items() if self._is_whole(row)}

    def has_any(self, keys: Iterable[str]) -> bool:
        """Whether an image of `keys` is there and complete; no more of them are opened than it takes."""
        return any(map(self._is_whole, self._latest(keys).values()))

    def failed(self, keys: Iterable[str]) -> dict[str, Row]:
        """Returns the row of each of `keys` that failed when it was last tried."""
        return {key: row for key, row in self._latest(keys).items() if FAILURE in row}

    def lacks_pictures(self, keys: Iterable[str] | None = None) -> bool:
        """Whether some images of the recorded grid could not be drawn.

        Args:
            keys: of the grid that it must be; all images that were drawn are among them.
        """
        latest = {row["key"]: FAILURE in row for row in self.rows()}
        drawn = {key for key, is_failed in latest.items() if not is_failed}
        # no sheet is made of failures alone, so a sheet beside such a record is not of this grid
        return bool(drawn) and any(latest.values()) and (keys is None or drawn <= frozenset(keys))

    def discard(self, keys: Iterable[str]) -> None:
        """Removes images from the record, none of which could be drawn.

        A record without other images is removed, and so is the folder if it is empty.
        """
        unwanted = frozenset(keys)
        others = [row for row in self.rows() if row["key"] not in unwanted]
        if others:
            self.finish(others)
            return
        for path in (self.record, *self._regular_process_files()):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def write(self, number: int, key: str, image: Image.Image, infotext: str) -> str:
        """Writes the image of a cell and returns its path for the record: relative to the folder of the sheet."""
        path = self.folder / f"{number:04}-{key[:12]}.png"
        self.folder.mkdir(exist_ok=True)
        write_image(path, image, infotext, overwrite=True)
        return self._in_folder(path)

    def _in_folder(self, image: Path) -> str:
        return f"{self.folder.name}/{image.name}"

    def image_path(self, row: Mapping[str, Any]) -> Path:
        """Returns the path of a row's image: in the folder, whatever path the row states."""
        return self.folder / str(row.get("picture", "")).rpartition("/")[2]

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows to the record and flushes them to disk."""
        path = self.record if self.process == 0 else self.folder / f"process-{self.process}.jsonl"
        path.parent.mkdir(exist_ok=True)
        self._append(path, b"".join(_line(row) for row in rows))

    def finish(self, rows: Iterable[Row]) -> None:
        """Replaces the record by `rows`, and removes the files of the other processes."""
        with new_file(self.record, overwrite=True) as file:
            for row in rows:
                file.write(_line(row))
        self._remove(self._regular_process_files())

    def _remove(self, parts: Sequence[Path]) -> None:
        """Removes the files of other processes, once the name of the record, which has their lines, is on the disk."""
        if parts:
            sync_folder(self.record.parent)
        for path in parts:
            path.unlink()

    def _latest(self, keys: Iterable[str]) -> dict[str, Row]:
        """Returns the last row of each of `keys` that has one."""
        wanted = frozenset(keys)
        return {row["key"]: row for row in self.rows() if row["key"] in wanted}

    def _regular_process_files(self) -> list[Path]:
        found = self._process_files()
        return sorted(path for path in found if is_file_at(path) and not path.is_symlink())

    def _process_files(self) -> list[Path]:
        """Returns what has the name of a process's file; other files of the folder are the user's own."""
        return [path for path in self.folder.glob("process-*.jsonl") if _PART.fullmatch(path.name)]

    def _append(self, path: Path, lines: bytes) -> None:
        refuse_links((path,))
        with path.open("a+b") as file:
            if _is_torn(file):  # the disk was full
                lines = b"\n" + lines
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def _is_whole(self, row: Row) -> bool:
        path = self.image_path(row)
        try:
            open_image(path)
            with OpenFile(path) as file:
                return read_image_text(file).get("parameters") == row.get("infotext")
        except (BadPicture, FileRefused, NotFound):
            return False


def row_of(key: str, position: Mapping[str, Any], facts: Mapping[str, Any]) -> Row:
    """Returns a row of the record: the image's key, its position in the grid, and all its settings."""
    return {
        "format": FORMAT,
        "key": key,
        **position,
        **{name: fact for name, fact in facts.items() if name not in position},
    }


def _is_record(path: Path) -> bool:
    """Whether a file begins as a record does, or is empty. A full disk may have cut the first line short."""
    with path.open("rb") as file:
        return _BEGINNING.startswith(file.read(len(_BEGINNING)).split(b"\n")[0])


def _is_torn(file: BinaryIO) -> bool:
    """Whether a file ends in the middle of a line."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a record. One that is too long comes in pieces, which count as damaged lines."""
    return iter(lambda: file.readline(MAX_JSON), b"")


def _row_in(line: bytes) -> Row | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if _is_row(row) else None


def _is_row(row: Any) -> bool:
    """Whether a line has all keys that sheets and later runs read, of the right types; it may have been edited."""
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
