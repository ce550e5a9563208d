"""Which cells of a grid are one picture, and which pictures are sampled together. It depends on the grid alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnetkit.formats.reading import refuse_sparse
from hnetkit.formats.source import OpenFile
from hnetkit.generate.grids.cells import Cell
from hnetkit.generate.loading.folders import download
from hnetkit.hashes import sha256_of

_READ_BY_PIPELINES = (".json", ".txt", ".safetensors", ".model")
_KEY = 32  # hex digits


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures that are sampled together: they differ in nothing but their seed.

    Attributes:
        cells: one for each picture.
        keys: of each: a hash of all that it depends on.
        numbers: of each: its first place in the grid, counted from 0 in reading order.
    """

    cells: tuple[Cell, ...]
    keys: tuple[str, ...]
    numbers: tuple[int, ...]

    @property
    def checkpoint(self) -> str | None:
        return self.cells[0].draft.checkpoint

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(cell.draft.seed for cell in self.cells)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be drawn for a grid.

    Attributes:
        keys: of every cell, in reading order; cells that are the same picture have the same key.
        batches: in the order in which they are drawn: by model, then by stack.
    """

    keys: tuple[str, ...]
    batches: tuple[Batch, ...]


def make_plan(
    cells: Sequence[Cell],
    shared: Mapping[str, object],
    models: Mapping[str | None, str],
    *,
    batch_size: int,
) -> Plan:
    """Returns what is drawn in which batch.

    Args:
        cells: in reading order.
        shared: what all pictures depend on beside what cells say.
        models: checkpoint -> `fingerprint` of its files.
        batch_size: pictures that are sampled together, at most. Sums round differently in another batch, so that a
            picture's key has its companions in it.
    """
    facts = [{**cell.facts(), "model": models[cell.draft.checkpoint], "shared": shared} for cell in cells]
    alike = [digest(fact) for fact in facts]
    firsts = {own: number for number, own in reversed(list(enumerate(alike)))}
    groups: dict[str, list[int]] = {}
    for number in sorted(firsts.values()):
        without_seed = {name: fact for name, fact in facts[number].items() if name != "seed"}
        groups.setdefault(digest(without_seed), []).append(number)
    batches = []
    for numbers in groups.values():
        for at in range(0, len(numbers), batch_size):
            together = numbers[at : at + batch_size]
            company = [cells[number].draft.seed for number in together]
            keys = tuple(
                alike[number] if len(together) == 1 else digest({"picture": alike[number], "batch": company})
                for number in together
            )
            batches.append(Batch(tuple(cells[number] for number in together), keys, tuple(together)))
    key_of = {alike[number]: key for batch in batches for number, key in zip(batch.numbers, batch.keys, strict=True)}
    return Plan(tuple(key_of[own] for own in alike), tuple(_in_drawing_order(batches)))


def share_of(batches: Sequence[Batch], process: int, processes: int) -> Sequence[Batch]:
    """Returns the batches of one process of several: neighbours, so that it loads few models."""
    return batches[len(batches) * process // processes : len(batches) * (process + 1) // processes]


def digest(value: object) -> str:
    """Returns a hash of a value that JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY]


def fingerprint(place: str | os.PathLike[str]) -> str:
    """Returns a hash of a model's files; of a hub id, of those in the cache, where they come to first.

    Raises:
        NotFound: no such file, folder or hub id; the hint has the nearest names.
        ModelNotUsable: the hub does not give the model.
    """
    path = Path(place) if os.path.exists(place) else download(os.fspath(place))
    if path.is_file():
        return hash_of_file(path)
    files = sorted(_model_files(path))
    return digest([[file.relative_to(path).as_posix(), hash_of_file(file)] for file in files])


def stamp(place: str | os.PathLike[str]) -> list[tuple[str, int, int, int]]:
    """Returns what changes where a file, or one of a model's folder, is replaced; a hub id has one of its name alone.

    What is drawn under a hash must be what was hashed, and hashing a model takes long: so this is looked at again.
    """
    path = Path(place)
    files = sorted(_model_files(path)) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            status = os.stat(file)
        except OSError:
            found.append((str(file), 0, 0, 0))
        else:
            found.append((str(file), status.st_ino, status.st_size, status.st_mtime_ns))
    return found


def hash_of_file(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file.

    Raises:
        NotFound: it is not there.
        FileRefused: it cannot be read, or is hardly anything but holes.
    """
    with OpenFile(path) as file:
        refuse_sparse(file)
        return sha256_of(file)


def _model_files(folder: Path) -> Iterator[Path]:
    """A pipeline's own files and those of its parts; other things that lie in the folder are no part of it."""
    here = _names_in(folder)
    below = [path for part in here if os.path.isdir(part) for path in _names_in(part)]
    for path in (*(path for path in here if path.suffix == ".json"), *below):
        if path.suffix in _READ_BY_PIPELINES and os.path.isfile(path):
            yield path


def _names_in(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError:  # what nobody can read is no part of a model
        return []


def _in_drawing_order(batches: Sequence[Batch]) -> list[Batch]:
    """Sorts by model and by stack: what is on the UNet then changes in nothing but its strengths, mostly."""
    models: dict[str | None, int] = {}
    stacks: dict[tuple[str, ...], int] = {}
    for batch in batches:
        models.setdefault(batch.checkpoint, len(models))
        stacks.setdefault(_stack(batch), len(stacks))
    return sorted(batches, key=lambda batch: (models[batch.checkpoint], stacks[_stack(batch)], batch.numbers))


def _stack(batch: Batch) -> tuple[str, ...]:
    return tuple(network.network.content_hash for network in batch.cells[0].networks)
