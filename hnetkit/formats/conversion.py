"""Conversion of model files between formats, one or many, without two sources writing one output."""

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
"""Called with the number of files done, and of all."""


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """One file that `convert` wrote.

    Attributes:
        format, dtype, size_bytes, content_hash: of the new file, as it was read back.
        not_carried: content of the source that the new file lacks, such as an optimizer.
    """

    source: str
    target: Path
    format: str | None
    dtype: str
    size_bytes: int
    content_hash: str
    not_carried: tuple[str, ...]


def convert(source: AnyPath, target: AnyPath, *, dtype: DType | None = None, overwrite: bool = False) -> ConvertedFile:
    """Writes a network to another file, whose suffix decides the format. Tensors keep their bytes.

    Args:
        target: a file, or a folder for a safetensors file of the source's name.
        dtype: convert every tensor to this; None keeps each as it is.
        overwrite: replace an existing network.

    Raises:
        NotFound, FileRefused: the source does not exist, or is not a readable network.
        UsageError: the target exists, or has another suffix.
        DiskFull: there is no room for the target.
    """
    source, target = os.fspath(source), Path(target)
    if target.is_dir():
        target = target / f"{Path(source).stem}.safetensors"
    require_output(target, overwrite=overwrite)
    net = load(source)
    try:
        save(net, target, dtype=dtype, overwrite=overwrite)
    except OSError as error:
        error.filename = None  # the name of the temporary file would tell the user nothing
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
    """Converts files one by one; each output has its source's name.

    Args:
        sources: files; a folder means the model files in it.
        to: suffix of the new files.
        out_dir: folder for them, created if missing; None puts each beside its source.
        dtype, overwrite: as in `convert`.

    Returns:
        The files written, and the failures. Folders without a model, and sources that share one output, count as such.
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
    """Yields (source, target) pairs. Adds unreadable folders, and sources that share a target, to `failures`."""
    found: dict[str, list[tuple[str, Path]]] = {}
    named: dict[str, str] = {}  # each file once, however its path is spelled
    for source in _expanded(sources, failures):
        folder_of_it, name = os.path.split(source)
        named.setdefault(os.path.join(os.path.realpath(folder_of_it), name), source)
    for source in named.values():
        target = (Path(source).parent if out_dir is None else Path(out_dir)) / f"{Path(source).stem}.{to}"
        key = os.path.normcase(os.path.join(os.path.realpath(target.parent), target.name))
        found.setdefault(key, []).append((source, target))
    for pairs in found.values():
        if len(pairs) == 1:
            yield pairs[0]
        else:
            failures += _collisions(pairs)


def _collisions(pairs: Sequence[tuple[str, Path]]) -> Iterator[HnetkitError]:
    """Yields a failure for each of several sources with one target: choosing any of them would be a guess."""
    more = f" and {len(pairs) - 2} more" if len(pairs) > 2 else ""
    for source, target in pairs:
        other = next(other for other, _ in pairs if other != source)
        alone = f"hnetkit convert {argument(source, is_path=True)} OTHER{target.suffix}"
        yield UsageError(f"{source}: {other}{more} would also become {target}; give it a name of its own: {alone}")


def _expanded(sources: Iterable[str], failures: list[HnetkitError]) -> Iterator[str]:
    """Yields the files, and those in folders. Adds folders that are unreadable or hold no model to `failures`."""
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
            failures.append(
                NotFound(f"{source}: no model file in this folder", hint="give the subfolder that holds them")
            )
        yield from files
