"""Checkpoints: everything that a run needs to go on, as safetensors and JSON, complete or absent.

Each is a folder with a running number, which is written under another name, brought to disk, and then renamed. The one
with the highest number is the newest; a roll-back writes an older state again under a new number.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from hnetkit.errors import DamagedFile, DiskFull, FileRefused, NotFound
from hnetkit.files import read_regular, sync_folder
from hnetkit.formats.open_file import OpenFile
from hnetkit.limits import read_json

FORMAT = "hnetkit.training-state/1"

MAX_TENSORS = 32 << 30
"""Bytes of a checkpoint's tensors: a network of 4 GiB, an optimizer's two moments, and room for more."""

_MOST_STEPS = 2**63 - 1
_MOST_DIGITS = 18  # of a checkpoint's number
_TENSORS, _REST = "tensors.safetensors", "state.json"
_UNFINISHED = ".unfinished"
_CODES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True, slots=True)
class TrainingState:
    """A run after a step.

    Attributes:
        step: steps made.
        content: what else there is to know: dicts, lists and tuples of tensors, numbers, texts and None.
    """

    step: int
    content: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: that holds nothing else; made with the first one.
        keep: how many; older ones are removed once a new one is whole.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self._keep = folder, keep

    def write(self, state: TrainingState) -> Path:
        """Writes a checkpoint and returns its folder.

        Raises:
            DiskFull: no room for it, although all but the newest whole one were removed; that one is still there.
        """
        with reporting_full_disk(self):
            try:
                written = self._write(state)
            except OSError as error:
                if error.errno not in _NO_ROOM or len(self._numbers()) < 2:
                    raise
                self._leave_newest_whole()
                written = self._write(state)
        self._prune(self._keep)
        return written

    def read(self, most: int | None = None) -> TrainingState | None:
        """Returns the newest whole checkpoint; None where there is none.

        Args:
            most: only those of so many steps at most.

        Raises:
            DamagedFile: there are checkpoints, and all of them are damaged.
        """
        damaged: DamagedFile | None = None
        for number in reversed(self._numbers()):
            try:
                state = self._read(self._folder(number))
            except DamagedFile as error:
                damaged = error
                continue
            if most is None or state.step <= most:
                return state
        if damaged is not None:
            raise damaged
        return None

    def oldest(self) -> TrainingState | None:
        """Returns the whole checkpoint of fewest steps; None where there is none."""
        steps = [_step_of(self._folder(number)) for number in self._numbers()]
        return self.read(most=min(steps)) if steps else None

    def remove_after(self, step: int) -> None:
        """Removes checkpoints of more steps."""
        for number in self._numbers():
            if _step_of(self._folder(number)) > step:
                self._remove(self._folder(number))

    def clear(self) -> None:
        """Removes all of them, and what an interrupted write left."""
        for number in self._numbers():
            self._remove(self._folder(number))
        self._sweep()

    @property
    def newest_folder(self) -> Path | None:
        numbers = self._numbers()
        return self._folder(numbers[-1]) if numbers else None

    @property
    def newest_complete(self) -> Path | None:
        """The folder of the checkpoint that `read` would return; None where none is whole."""
        for number in reversed(self._numbers()):
            with suppress(FileRefused):
                self._read(self._folder(number))
                return self._folder(number)
        return None

    def _numbers(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if path.name.isdecimal() and os.path.isdir(path))
        # a longer one is nobody's count, and would leave no room for the name of the next
        return sorted(int(name) for name in names if len(name) <= _MOST_DIGITS and name == f"{int(name):08}")

    def _folder(self, number: int) -> Path:
        return self.folder / f"{number:08}"

    def _write(self, state: TrainingState) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        target, unfinished = self._next()
        tensors: dict[str, Tensor] = {}
        content = _packed(state.content, "", tensors)
        try:
            unfinished.mkdir()
            digest = _write_file(unfinished / _TENSORS, _as_safetensors(tensors))
            rest = {"format": FORMAT, "step": state.step, "blake3": digest, "content": content}
            _write_file(unfinished / _REST, [json.dumps(rest).encode()])
            sync_folder(unfinished)
            os.rename(unfinished, target)
        finally:
            _discard(unfinished)
        sync_folder(self.folder)
        return target

    def _next(self) -> tuple[Path, Path]:
        """Returns the name of the next checkpoint, and the one under which it is written; neither is taken."""
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
            content = _unpacked(rest["content"], load(data))
            if not isinstance(content, dict):
                raise ValueError("there is nothing in it")
            return TrainingState(rest["step"], content)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise DamagedFile(f"{folder}: a damaged checkpoint ({error})", hint="--restart starts over") from error

    def _leave_newest_whole(self) -> None:
        """Removes all checkpoints but the newest that is whole: a damaged one cannot be gone on from."""
        kept = self.newest_complete
        for folder in map(self._folder, self._numbers()) if kept else ():
            if folder != kept:
                self._remove(folder)

    def _prune(self, keep: int) -> None:
        for number in self._numbers()[:-keep]:
            self._remove(self._folder(number))

    def _remove(self, folder: Path) -> None:
        """Removes a checkpoint so that no half of one can be met: it loses its name first."""
        doomed = _unfinished(folder)
        _discard(doomed)
        os.rename(folder, doomed)
        _discard(doomed)

    def _sweep(self) -> None:
        for path in self.folder.glob(f"{'[0-9]' * 8}{_UNFINISHED}"):
            _discard(path)


def require_room(folder: Path, size_bytes: int) -> None:
    """Raises DiskFull where `folder`, which exists, has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise DiskFull(
            f"{folder}: a checkpoint takes {size_bytes >> 20} MB and {free >> 20} MB are free",
            hint="make room, or --out on another disk; nothing was trained",
        )


@contextmanager
def reporting_full_disk(states: Checkpoints) -> Iterator[None]:
    """Surrounds the writing of a checkpoint.

    Args:
        states: those before it; the newest that is whole is still there.

    Raises:
        DiskFull: in place of the system's own error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        newest = states.newest_complete
        kept = f"the one before, {newest}, is whole" if newest else "there is no whole one before it"
        raise DiskFull(
            f"no room for a checkpoint ({error.strerror}); {kept}",
            hint="make room and give the same command again",
        ) from error


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_UNFINISHED}")


def _discard(path: Path) -> None:
    """Removes a checkpoint, and its folder where nothing else is in that; of a link, the link alone."""
    if path.is_symlink() or os.path.isfile(path):
        path.unlink()
        return
    for part in (path / _REST, path / _TENSORS):
        with suppress(OSError):
            part.unlink()
    with suppress(OSError):  # somebody put something in it, which stays
        path.rmdir()


def _step_of(folder: Path) -> int:
    try:
        return int(_read_rest(folder)["step"])
    except (OSError, ValueError):
        return 0


def _read_rest(folder: Path) -> dict[str, Any]:
    """Returns what a checkpoint holds beside its tensors; raises OSError or ValueError where that is damaged."""
    rest = read_json(folder / _REST)
    if not isinstance(rest, dict) or type(rest.get("step")) is not int or not 0 <= rest["step"] <= _MOST_STEPS:
        raise ValueError("it does not say after which step it was written")
    return rest


def _read_tensors(path: Path) -> bytes:
    """Returns the bytes of a checkpoint's tensors; of a file of hardly anything but holes, none are read."""
    try:
        with OpenFile(path) as file:
            has_holes = file.bytes_on_disk() < file.size
    except (NotFound, FileRefused) as error:
        raise ValueError(str(error)) from error
    if has_holes:
        raise ValueError("hardly anything is in it but holes")
    return read_regular(path, most=MAX_TENSORS)


def _write_file(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Writes a file through to disk; returns the blake3 of it."""
    digest = blake3()
    with path.open("xb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _as_safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yields a safetensors file without a copy of the tensors, which are as large as a step's own needs."""
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())  # each aligned to its own size
    header: dict[str, object] = {}
    begin = 0
    for name in order:
        tensor = tensors[name]
        end = begin + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    yield len(data).to_bytes(8, "little") + data
    for name in order:
        if tensors[name].numel():
            yield tensors[name].reshape(-1).view(torch.uint8).numpy().data


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Returns a value as JSON holds it, and puts its tensors into `tensors` under their path in it."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu").contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _packed(item, f"{name}.{key}".lstrip("."), tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]}
    if isinstance(value, list):
        return [_packed(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} cannot be kept in a checkpoint")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpacked(item, tensors) for item in value["tuple"])
    return {key: _unpacked(item, tensors) for key, item in value["dict"]}
