"""The log of a run, step by step: a table that A1111's tools read, and TensorBoard if wanted."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from hnetkit.errors import BadPicture, HnetkitError, MissingPackage, NotFound
from hnetkit.files import new_file, open_regular, read_regular
from hnetkit.images import open_rgb
from hnetkit.limits import rows_of_table

if TYPE_CHECKING:
    from typing import TextIO

    from torch.utils.tensorboard import SummaryWriter

CSV_NAME = "hypernetwork_loss.csv"
PLOT_NAME = "loss.png"
TENSORBOARD_NAME = "tensorboard"

_MOST_LOG = 512 << 20  # bytes: millions of steps
_LONGEST_HEADER = 64 << 10  # characters
_LONGEST_LINE = 64 << 10  # bytes
_INTEGERS = ("step", "epoch", "epoch_step", "roll_backs")  # columns of whole numbers


class LogRow(NamedTuple):
    """One step of the optimizer. The first five are A1111's columns.

    Attributes:
        step: steps made, this one included.
        epoch, epoch_step: as A1111 writes them, from 0.
        loss: mean over the step's samples.
        learn_rate: of the step.
        running_mean: `hnetkit.train.guards.Guards.running_mean` after the step.
        gradient_norm: before clipping.
        seconds: of training so far, without previews and checkpoints.
        roll_backs: before this step; tells rows of the same step apart.
    """

    step: int
    epoch: int
    epoch_step: int
    loss: float
    learn_rate: float
    running_mean: float
    gradient_norm: float
    seconds: float
    roll_backs: int = 0

    @classmethod
    def parse(cls, line: Mapping[str, str]) -> LogRow:
        """Returns the row of a line of the table.

        Raises:
            ValueError: a column is missing, or is no number that a run can reach.
        """
        try:
            step, epoch, epoch_step, roll_backs = (int(line[name]) for name in _INTEGERS)
            loss, rate, mean, norm, seconds = (float(line[name]) for name in cls._fields[3:8])
        except (KeyError, TypeError) as error:
            raise ValueError("not a whole line of the table") from error
        if max(map(abs, (step, epoch, epoch_step, roll_backs))) >= 1 << 63:
            raise ValueError("a number that no run reaches")
        return cls(step, epoch, epoch_step, loss, rate, mean, norm, seconds, roll_backs)


class Log:
    """The log of one run, in its main process.

    Rows of steps that a roll-back undid stay; those after it follow with a higher `LogRow.roll_backs`.

    Args:
        folder: of the run; it exists.
        tensorboard: also write ``tensorboard/`` in `folder`.

    Raises:
        HnetkitError: there is a table with a line that no run wrote.
        MissingPackage: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self._csv = folder / CSV_NAME
        for _ in read_log(self._csv):  # before a run that starts over removes what the rows tell of
            pass
        self._file: TextIO | None = None
        self._board = _Board(folder / TENSORBOARD_NAME) if tensorboard else None

    def truncate_after(self, step: int, roll_backs: int = 0) -> None:
        """Removes what a resumed run will write again: call it once, before the first `step`.

        Args:
            step, roll_backs: of the checkpoint that is resumed; 0 and 0 start over.
        """
        self._close_file()
        last = roll_backs, step
        self._rewrite(
            row for row in read_log(self._csv) if row.roll_backs < roll_backs or (row.roll_backs, row.step) <= last
        )
        if self._board is not None:
            self._board.hide_after(step)

    def step(self, row: LogRow) -> None:
        """Appends one line and flushes it to the operating system."""
        if self._file is None:
            self._file = self._open_for_appending()
        self._file.write(_as_csv([row]).decode())
        self._file.flush()
        if self._board is not None:
            self._board.step(row)

    def preview(self, step: int, path: Path) -> None:
        """Shows a preview's sheet in TensorBoard, if that is on."""
        if self._board is not None:
            self._board.add_image(step, path)

    def close(self) -> None:
        """Closes the log; a second call does nothing."""
        self._close_file()
        if self._board is not None:
            self._board.close()

    def _open_for_appending(self) -> TextIO:
        """Opens the table for more lines, without a last one that was cut off."""
        if not _is_whole(self._csv):
            self._rewrite(read_log(self._csv))
        return open(self._csv, "a", encoding="utf-8", newline="")

    def _rewrite(self, rows: Iterable[LogRow]) -> None:
        with new_file(self._csv, overwrite=True) as file:
            file.write(_as_csv([LogRow._fields]))
            for row in rows:  # of millions, none is kept
                file.write(_as_csv([row]))

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Board:
    """TensorBoard's record of a run.

    Args:
        folder: of its files; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackage(
                f"--tensorboard: TensorBoard is not installed ({error})", hint='pip install "hnetkit[train]"'
            ) from error
        self._folder, self._new_writer = folder, SummaryWriter
        self._writer: SummaryWriter | None = None
        self._last = 0

    def step(self, row: LogRow) -> None:
        if row.step <= self._last:
            self.hide_after(row.step - 1)
        writer = self._open_writer()
        self._last = row.step
        writer.add_scalar("loss", row.loss, row.step)
        writer.add_scalar("loss (running mean)", row.running_mean, row.step)
        writer.add_scalar("learning rate", row.learn_rate, row.step)
        writer.add_scalar("gradient norm", row.gradient_norm, row.step)

    def add_image(self, step: int, path: Path) -> None:
        import numpy as np

        try:
            pixels = np.asarray(open_rgb(path))
        except (BadPicture, NotFound):  # too large to open, or replaced since: no reason to stop training
            return
        self._open_writer().add_image("preview", pixels, step, dataformats="HWC")

    def hide_after(self, step: int) -> None:
        """Hides what was written of later steps, which are made again."""
        self.close()
        self._last = step

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open_writer(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = self._new_writer(str(self._folder), purge_step=self._last + 1)
        return self._writer


def read_log(path: Path) -> Iterator[LogRow]:
    """Yields the rows of a table; none if there is no file. A last line that was cut off is skipped.

    Raises:
        HnetkitError: another line is incomplete, or is no row.
    """
    with ExitStack() as stack:
        try:
            file, size = stack.enter_context(open_regular(path, most=_MOST_LOG))
        except FileNotFoundError:
            return
        except ValueError as error:
            raise HnetkitError(f"{path}: not a training log ({error})", hint="move it away") from error
        lines = _Lines(file, size)
        try:
            for cells in rows_of_table(lines, LogRow._fields):
                yield LogRow.parse(cells)
        except ValueError as error:
            where = f"{path}: line {lines.number}"
            raise HnetkitError(f"{where} is no row of a training log", hint="move it away") from error


class _Lines:
    """The lines that begin within `size` bytes of a file, one at a time: a log may be of hundreds of megabytes.

    Attributes:
        number: of the line that was read last.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self.number = file, size, 0

    def __iter__(self) -> Iterator[str]:
        while self._file.tell() < self._size and (line := self._file.readline(_LONGEST_LINE)).endswith(b"\n"):
            self.number += 1
            yield line.decode("utf-8-sig", "replace")  # spreadsheets add a mark
        if self._file.tell() < self._size:
            self.number += 1
            raise ValueError("a line without an end")


def _is_whole(path: Path) -> bool:
    """Whether the last line of a table has its end; `read_log` tells of what is no table."""
    try:
        with open_regular(path, most=_MOST_LOG) as (file, size):
            file.seek(max(size - 1, 0))
            return file.read(1) == b"\n"
    except (FileNotFoundError, ValueError):
        return False


def other_columns(path: Path) -> list[str]:
    """Returns the columns that somebody added to a run's table; it would be written again without them."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            names = next(csv.reader([file.readline(_LONGEST_HEADER)]), [])
    except (OSError, csv.Error):  # `read_log` tells what is wrong
        return []
    others = [name for name in names if name not in LogRow._fields]
    return others if len(names) - len(others) >= len(LogRow._fields) else []


def has_no_step(path: Path) -> bool:
    """Whether there is a table, as a run leaves it before its first step."""
    empty = _as_csv([LogRow._fields])
    try:
        return read_regular(path, most=len(empty)) == empty
    except (OSError, ValueError):
        return False


def _as_csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
