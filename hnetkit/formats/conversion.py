"""Files of one format as files of another: which becomes which, and that no two become one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hnetkit.errors import HnetkitError, NotFound, UsageError, failure_of
from hnetkit.files import is_model_name
from hnetkit.formats.reading import load
from hnetkit.formats.writing import require_output, save
from hnetkit.network import DType
from hnetkit.text import argument

AnyPath = str | os.PathLike[str]
Progress = Callable[[int, int], None]
"""Told how many files are done, and of how many."""


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """A file that was written.

    Attributes:
        format, dtype, size_bytes, content_hash: of the new file, as it reads.
        not_carried: what of the source is not in it, such as an optimizer.
    """

    source: str
    target: Path
    format: str | None
    dtype: str
    size_bytes: int
    content_hash: str
    not_carried: tuple[str, ...]


def convert(source: AnyPath, target: AnyPath, *, dtype: DType | None = None, overwrite: bool = False) -> ConvertedFile:
    """Writes a network into another file, whose suffix decides the format; tensors keep their bytes.

    Args:
        target: a folder means a safetensors file in it, of the source's name.
        dtype: of every tensor; None keeps each.
        overwrite: replace what is there.

    Raises:
        NotFound, FileRefused: the source is not there, or no network that can be read.
        UsageError: the target is there, is hnetkit's own state, or has another suffix.
        DiskFull: it has no room.
    """
    source, target = os.fspath(source), Path(target)
    if target.is_dir():
        target = target / f"{Path(source).stem}.safetensors"
    require_output(target, overwrite=overwrite)
    net = load(source)
    try:
        save(net, target, dtype=dtype, overwrite=overwrite)
    except OSError as error:
        error.filename = None  # that of the temporary file means nothing to the person
        raise failure_of(error, str(target)) from error
    made = load(target)
    return ConvertedFile(
        source, target, made.format, made.dtype, made.size_bytes, made.content_hash, tuple(net.not_carried)
    )


def convert_all(
    sources: Iterable[AnyPath],
    to: Literal["safetensors", "pt"],
    *,
    out_dir: AnyPath | None = None,
    dtype: DType | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> tuple[list[ConvertedFile], list[HnetkitError]]:
    """Converts files, each by itself, into files of their names.

    Args:
        sources: files, and folders in place of the model files in them.
        to: the suffix of the new files.
        out_dir: their folder, made where it is not there; None: each lies beside its source.
        dtype, overwrite: as in `convert`.

    Returns:
        What was written, and what failed: also folders that hold no model, and sources whose outputs would be one file.
    """
    failures: list[HnetkitError] = []
    if out_dir is not None:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
    pairs = list(_targets([os.fspath(source) for source in sources], to, out_dir, failures))
    done: list[ConvertedFile] = []
    for count, (source, target) in enumerate(pairs):
        progress(count, len(pairs))
        try:
            done.append(convert(source, target, dtype=dtype, overwrite=overwrite))
        except Exception as error:
            failures.append(failure_of(error, source))
    return done, failures


def _targets(
    sources: Iterable[str], to: str, out_dir: AnyPath | None, failures: list[HnetkitError]
) -> Iterator[tuple[str, Path]]:
    """Yields (source, target) pairs; `failures` gets unreadable folders, and sources that would get one name."""
    found: dict[str, list[tuple[str, Path]]] = {}
    named: dict[str, str] = {}  # each file once, in however many spellings
    for source in _expanded(sources, failures):
        folder_of_it, name = os.path.split(source)
        named.setdefault(os.path.join(os.path.realpath(folder_of_it), name), source)
    for source in named.values():
        target = (Path(source).parent if out_dir is None else Path(out_dir)) / f"{Path(source).stem}.{to}"
        place = os.path.normcase(os.path.join(os.path.realpath(target.parent), target.name))
        found.setdefault(place, []).append((source, target))
    for pairs in found.values():
        if len(pairs) == 1:
            yield pairs[0]
        else:
            failures += _of_one_name(pairs)


def _of_one_name(pairs: Sequence[tuple[str, Path]]) -> Iterator[HnetkitError]:
    """The failure of each of several sources whose outputs would be one file; no choice of one would be right."""
    more = f" and {len(pairs) - 2} more" if len(pairs) > 2 else ""
    for source, target in pairs:
        other = next(other for other, _ in pairs if other != source)
        alone = f"hnetkit convert {argument(source, is_path=True)} OTHER{target.suffix}"
        yield UsageError(f"{source}: {other}{more} would also become {target}; give it a name of its own: {alone}")


def _expanded(sources: Iterable[str], failures: list[HnetkitError]) -> Iterator[str]:
    """A folder stands for the model files in it; `failures` gets those that cannot be read, or hold none."""
    for source in sources:
        if not os.path.isdir(source):
            yield source
            continue
        try:
            found = [path for path in Path(source).iterdir() if is_model_name(path.name)]
        except OSError as error:
            failures.append(failure_of(error, source))
            continue
        files = sorted(str(path) for path in found if os.path.isfile(path))
        if not files:
            failures.append(NotFound(f"{source}: no model file lies in this folder", hint="name the folder below it"))
        yield from files
