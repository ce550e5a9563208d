"""The record of a run, step by step: a table that A1111's tools read, and TensorBoard where wanted."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hnetkit.errors import BadPicture, HnetkitError, MissingPackage, NotFound
from hnetkit.files import new_file, read_regular
from hnetkit.images import open_image
from hnetkit.limits import require_unique_columns

if TYPE_CHECKING:
    from typing import TextIO

    from torch.utils.tensorboard import SummaryWriter

CSV_NAME = "hypernetwork_loss.csv"
PLOT_NAME = "loss.png"
TENSORBOARD_NAME = "tensorboard"

_MOST_LOG = 512 << 20  # bytes: of millions of steps
_WHOLE = ("step", "epoch", "epoch_step", "roll_backs")  # columns of whole numbers


class LogRow(NamedTuple):
    """One step of the optimizer. The first five are A1111's columns.

    Attributes:
        step: steps made, this one included.
        epoch, epoch_step: as A1111 writes them, from 0.
        loss: mean over the step's samples.
        learn_rate: that the step was made with.
        running_mean: `hnetkit.train.guards.Guards.running_mean` after the step.
        gradient_norm: before clipping.
        seconds: that training took so far, previews and checkpoints left out.
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
    def of(cls, line: Mapping[str, str]) -> LogRow:
        """Returns the row of a line of the table.

        Raises:
            ValueError: a column is missing, or is no number that a run reaches.
        """
        try:
            step, epoch, epoch_step, roll_backs = (int(line[name]) for name in _WHOLE)
            loss, rate, mean, norm, seconds = (float(line[name]) for name in cls._fields[3:8])
        except (KeyError, TypeError) as error:
            raise ValueError("not a whole line of the table") from error
        if max(map(abs, (step, epoch, epoch_step, roll_backs))) >= 1 << 63:
            raise ValueError("a number that no run reaches")
        return cls(step, epoch, epoch_step, loss, rate, mean, norm, seconds, roll_backs)


class Log:
    """The log of one run; only the main process has one.

    Rows of steps that a roll-back undid stay; those after it follow with a higher `LogRow.roll_backs`.

    Args:
        folder: of the run; it exists.
        tensorboard: also write ``tensorboard/`` in `folder`.

    Raises:
        MissingPackage: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self._csv = folder / CSV_NAME
        self._open: TextIO | None = None
        self._board = _Board(folder / TENSORBOARD_NAME) if tensorboard else None

    def truncate_after(self, step: int, roll_backs: int = 0) -> None:
        """Drops what a run that is resumed will write again: call it once, before the first `step`.

        Args:
            step, roll_backs: of the checkpoint that is gone on with; 0 and 0 start over.
        """
        self._end_file()
        at = roll_backs, step
        self._rewrite(
            row for row in read_log(self._csv) if row.roll_backs < roll_backs or (row.roll_backs, row.step) <= at
        )
        if self._board is not None:
            self._board.go_on_after(step)

    def step(self, row: LogRow) -> None:
        """Appends one line, which the operating system has when this returns."""
        if self._open is None:
            self._open = self._appending()
        self._open.write(_as_csv([row]).decode())
        self._open.flush()
        if self._board is not None:
            self._board.step(row)

    def preview(self, step: int, path: Path) -> None:
        """Shows a preview's sheet in TensorBoard, where that is on."""
        if self._board is not None:
            self._board.picture(step, path)

    def close(self) -> None:
        """Ends the log; harmless twice."""
        self._end_file()
        if self._board is not None:
            self._board.close()

    def _appending(self) -> TextIO:
        """Opens the table for a line more; a last line that was cut off is dropped first."""
        if not self._csv.exists() or not self._csv.read_bytes().endswith(b"\n"):
            self._rewrite(read_log(self._csv))
        return open(self._csv, "a", encoding="utf-8", newline="")

    def _rewrite(self, rows: Iterable[LogRow]) -> None:
        content = _as_csv([LogRow._fields, *rows])
        with new_file(self._csv, overwrite=True) as file:
            file.write(content)

    def _end_file(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class _Board:
    """TensorBoard's record of a run.

    Args:
        folder: of its files; made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackage(
                f"--tensorboard: TensorBoard is not installed ({error})", hint='pip install "hnetkit[train]"'
            ) from error
        self._folder, self._make = folder, SummaryWriter
        self._writer: SummaryWriter | None = None
        self._last = 0

    def step(self, row: LogRow) -> None:
        if row.step <= self._last:
            self.go_on_after(row.step - 1)
        writer = self._writing()
        self._last = row.step
        writer.add_scalar("loss", row.loss, row.step)
        writer.add_scalar("loss (running mean)", row.running_mean, row.step)
        writer.add_scalar("learning rate", row.learn_rate, row.step)
        writer.add_scalar("gradient norm", row.gradient_norm, row.step)

    def picture(self, step: int, path: Path) -> None:
        import numpy as np

        try:
            pixels = np.asarray(open_image(path).convert("RGB"))
        except (BadPicture, NotFound):  # too large to be opened, or no longer what was written: training goes on
            return
        self._writing().add_image("preview", pixels, step, dataformats="HWC")

    def go_on_after(self, step: int) -> None:
        """Hides what was written of later steps, which come again."""
        self.close()
        self._last = step

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _writing(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=self._last + 1)
        return self._writer


def read_log(path: Path) -> Iterator[LogRow]:
    """Yields the rows of a table; none where there is no file. A last line that was cut off is left out.

    Raises:
        HnetkitError: another line is not whole, or is no row.
    """
    try:
        text = read_regular(path, most=_MOST_LOG).decode("utf-8", "replace")
    except FileNotFoundError:
        return
    except ValueError as error:
        raise HnetkitError(f"{path}: not a training log ({error})", hint="move it away") from error
    whole = text[: text.rfind("\n") + 1]
    lines = csv.DictReader(io.StringIO(whole, newline=""))
    try:
        require_unique_columns(lines, LogRow._fields)
        for line in lines:
            yield LogRow.of(line)
    except (ValueError, csv.Error) as error:
        number = lines.line_num + isinstance(error, csv.Error)  # of these, the line is not counted yet
        raise HnetkitError(f"{path}: line {number} is no row of a training log", hint="move it away") from error


def has_no_step(path: Path) -> bool:
    """Whether a table is there, and is as a run leaves it before its first step."""
    empty = _as_csv([LogRow._fields])
    try:
        return read_regular(path, most=len(empty)) == empty
    except (OSError, ValueError):
        return False


def _as_csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
