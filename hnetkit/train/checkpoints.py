"""Checkpoints: everything that a run needs to be resumed, as safetensors and JSON, complete or absent.

Each is a folder with a running number, which is written under another name, synced to disk, and then renamed. The one
with the highest number is the newest. A roll-back writes an older state again under a new number.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from hnetkit.errors import DamagedFile, DiskFull, FileRefused, HnetkitError, NotFound
from hnetkit.files import is_absence, is_folder_at, read_regular, sync_folder
from hnetkit.formats.open_file import OpenFile
from hnetkit.limits import read_json
from hnetkit.text import size_text

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "hnetkit.training-state/1"

MAX_TENSORS = 32 << 30
"""Bytes of a checkpoint's tensors: a network of 4 GiB, an optimizer's two moments, and room for more."""

NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
"""The system's errors of a full disk."""

_MOST_STEPS = 2**63 - 1
_MOST_DIGITS = 18  # of a checkpoint's number
_TENSORS, _REST = "tensors.safetensors", "state.json"
_UNFINISHED = ".unfinished"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """A run after a step.

    Attributes:
        step: steps made.
        content: everything else: dicts, lists and tuples of tensors, numbers, texts and None.
    """

    step: int
    content: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: for nothing else; made with the first one.
        keep: how many; older ones are removed once a new one is complete.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self._keep = folder, keep

    def write(self, state: TrainingState) -> Path:
        """Writes a checkpoint and returns its folder.

        Raises:
            DiskFull: no room for it, although all but the newest complete one were removed.
        """
        with reporting_full_disk(self):
            try:
                written = self._write(state)
            except OSError as error:
                if error.errno not in NO_ROOM or len(self._numbers()) < 2:
                    raise
                self._keep_only_newest_complete()
                written = self._write(state)
        self._prune(self._keep)
        return written

    def read(
        self, most: int | None = None, passed_over: Callable[[DamagedFile], None] = lambda error: None
    ) -> TrainingState | None:
        """Returns the newest complete checkpoint; None if there is none.

        Args:
            most: only those of at most so many steps.
            passed_over: called with what is wrong with a newer one, if that is damaged.

        Raises:
            DamagedFile: there are checkpoints, and all of them are damaged.
            HnetkitError: one cannot be read at the moment, which says nothing of what is in it.
        """
        damaged: DamagedFile | None = None
        is_any_whole = False
        for number in reversed(self._numbers()):
            try:
                state = self._read(self._folder(number))
            except DamagedFile as error:
                damaged = error
                passed_over(error)
                continue
            if most is None or state.step <= most:
                return state
            is_any_whole = True
        if damaged is not None and not is_any_whole:
            raise damaged
        return None

    def oldest(self) -> TrainingState | None:
        """Returns the complete checkpoint with the fewest steps; None if there is none.

        Raises:
            HnetkitError: one cannot be read at the moment.
        """
        for folder in sorted(map(self._folder, reversed(self._numbers())), key=_step_of):
            with suppress(DamagedFile):
                return self._read(folder)
        return None

    def remove_after(self, step: int) -> None:
        """Removes checkpoints of more than so many steps."""
        for number in self._numbers():
            if _step_of(self._folder(number)) > step:
                self._remove(self._folder(number))

    def clear(self) -> None:
        """Removes all of them, and the remains of an interrupted write."""
        for number in self._numbers():
            self._remove(self._folder(number))
        self._remove_unfinished()

    @property
    def newest_folder(self) -> Path | None:
        numbers = self._numbers()
        return self._folder(numbers[-1]) if numbers else None

    @property
    def newest_complete(self) -> Path | None:
        """The folder of the checkpoint that `read` would return; None if none is complete."""
        for number in reversed(self._numbers()):
            with suppress(FileRefused):
                self._read(self._folder(number))
                return self._folder(number)
        return None

    def _numbers(self) -> list[int]:
        if not is_folder_at(self.folder):
            return []
        names = (path.name for path in self.folder.iterdir() if path.name.isdecimal() and is_folder_at(path))
        # a longer name was not counted here, and the next number would be too long for a file system
        return sorted(int(name) for name in names if len(name) <= _MOST_DIGITS and name == f"{int(name):08}")

    def _folder(self, number: int) -> Path:
        return self.folder / f"{number:08}"

    def _write(self, state: TrainingState) -> Path:
        from safetensors.torch import save

        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        target, unfinished = self._next()
        tensors: dict[str, Tensor] = {}
        content = _pack(state.content, "", tensors)
        try:
            unfinished.mkdir()
            data = save(tensors)
            _write_file(unfinished / _TENSORS, data)
            rest = {
                "format": FORMAT,
                "step": state.step,
                "blake3": blake3(data).hexdigest(),
                "content": content,
            }
            _write_file(unfinished / _REST, json.dumps(rest).encode())
            sync_folder(unfinished)
            os.rename(unfinished, target)
        finally:
            _discard(unfinished)
        sync_folder(self.folder)
        return target

    def _next(self) -> tuple[Path, Path]:
        """Returns the folder of the next checkpoint, and the one it is written to first; neither exists."""
        folders = map(self._folder, count(max(self._numbers(), default=0) + 1))
        names = ((folder, _unfinished(folder)) for folder in folders)
        return next(pair for pair in names if not any(map(os.path.lexists, pair)))

    def _read(self, folder: Path) -> TrainingState:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            rest = _read_rest(folder)
            if rest["format"] != FORMAT:
                raise FileRefused(f"{folder}: written by another version of hnetkit")
            data = _read_tensors(folder / _TENSORS)
            if blake3(data).hexdigest() != rest["blake3"]:
                raise ValueError("its bytes are not what was written")
            content = _unpack(rest["content"], load(data))
            if not isinstance(content, dict):
                raise ValueError("there is nothing in it")
            return TrainingState(rest["step"], content)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise _failure(folder, error) from error

    def _keep_only_newest_complete(self) -> None:
        """Removes all checkpoints but the newest complete one: a damaged one is of no use."""
        kept = self.newest_complete
        for folder in map(self._folder, self._numbers()) if kept else ():
            if folder != kept:
                self._remove(folder)

    def _prune(self, keep: int) -> None:
        for number in self._numbers()[:-keep]:
            self._remove(self._folder(number))

    def _remove(self, folder: Path) -> None:
        """Removes a checkpoint, which is renamed first so that nobody reads half of one."""
        doomed = _unfinished(folder)
        _discard(doomed)
        os.rename(folder, doomed)
        _discard(doomed)

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob(f"{'[0-9]' * 8}{_UNFINISHED}"):
            _discard(path)


def require_disk_space(folder: Path, size_bytes: int) -> None:
    """Raises DiskFull if `folder`, which exists, has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise DiskFull(
            f"{folder}: a checkpoint takes {size_text(size_bytes)} and {size_text(free)} are free",
            hint="make room, or --out on another disk; nothing was trained",
        )


@contextmanager
def reporting_full_disk(checkpoints: Checkpoints) -> Iterator[None]:
    """Turns the system's error of a full disk into DiskFull, while a checkpoint is written.

    Args:
        checkpoints: the earlier ones; the newest complete one is named in the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        newest = checkpoints.newest_complete
        kept = f"the one before, {newest}, is whole" if newest else "there is no whole one before it"
        raise DiskFull(
            f"no room for a checkpoint ({error.strerror}); {kept}",
            hint="make room and give the same command again",
        ) from error


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_UNFINISHED}")


def _discard(path: Path) -> None:
    """Removes a checkpoint, and its folder if nothing else is in it; of a link, only the link."""
    if path.is_symlink() or os.path.isfile(path):
        path.unlink()
        return
    for part in (path / _REST, path / _TENSORS):
        with suppress(OSError):
            part.unlink()
    with suppress(OSError):  # a user's own file in it stays
        path.rmdir()


def _step_of(folder: Path) -> int:
    """Returns after which step a checkpoint was written; 0 for a damaged one."""
    try:
        return int(_read_rest(folder)["step"])
    except (OSError, ValueError) as error:
        failure = _failure(folder, error)
        if isinstance(failure, DamagedFile):
            return 0
        raise failure from error


def _failure(folder: Path, error: Exception) -> HnetkitError:
    """Returns what an error over a checkpoint means: that it is damaged, or that the disk does not give it now."""
    if isinstance(error, OSError) and not (is_absence(error) or isinstance(error, IsADirectoryError)):
        return HnetkitError(
            f"{folder}: the checkpoint cannot be read ({error.strerror})",
            hint="give the same command again when it can, or move it away to continue from the one before",
        )
    return DamagedFile(f"{folder}: a damaged checkpoint ({error})", hint="--restart starts over")


def _read_rest(folder: Path) -> dict[str, Any]:
    """Returns what a checkpoint holds beside its tensors; raises OSError or ValueError if that is damaged."""
    rest = read_json(folder / _REST)
    if not isinstance(rest, dict) or type(rest.get("step")) is not int or not 0 <= rest["step"] <= _MOST_STEPS:
        raise ValueError("it does not say after which step it was written")
    return rest


def _read_tensors(path: Path) -> bytes:
    """Returns the bytes of a checkpoint's tensors; a sparse file, which may pretend any size, is not read."""
    try:
        with OpenFile(path) as file:
            has_holes = file.bytes_on_disk() < file.size
    except (NotFound, FileRefused) as error:
        raise error.__cause__ if isinstance(error.__cause__, OSError) else ValueError(str(error)) from error
    if has_holes:
        raise ValueError("hardly anything is in it but holes")
    return read_regular(path, most=MAX_TENSORS)


def _write_file(path: Path, data: bytes) -> None:
    """Writes a new file and syncs it to disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Returns a value as JSON holds it, and moves its tensors into `tensors`, named by their path in it."""
    from torch import Tensor

    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu").contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(item, f"{name}.{key}".lstrip("."), tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} cannot be kept in a checkpoint")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["tuple"])
    return {key: _unpack(item, tensors) for key, item in value["dict"]}
