"""Conversion of model files between formats, one or many, without two sources writing one output."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hnetkit.errors import HnetkitError, NotFound, OutputExists, UsageError, failure_of
from hnetkit.files import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES, is_model_name
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
        is_same_content: whether the library knows both by one hash; another dtype makes another network.
        not_carried: content of the source that the new file lacks, such as an optimizer.
    """

    source: str
    target: Path
    format: str | None
    dtype: str
    size_bytes: int
    content_hash: str
    is_same_content: bool
    not_carried: tuple[str, ...]


def convert(source: AnyPath, target: AnyPath, *, dtype: DType | None = None, overwrite: bool = False) -> ConvertedFile:
    """Writes a network to another file, whose suffix decides the format. Tensors keep their bytes.

    Args:
        target: a file, or a folder for a safetensors file of the source's name.
        dtype: convert every tensor to this; None keeps each as it is.
        overwrite: replace an existing network, but no other one beside the source in its format: then both names are
            most likely what a shell made of ``*.pt``, and each was meant to be converted.

    Raises:
        NotFound, FileRefused: the source does not exist, or is not a readable network.
        UsageError: the target exists, or has another suffix.
        DiskFull: there is no room for the target.
    """
    source, target = os.fspath(source), Path(target)
    if target.is_dir():
        target = target / f"{Path(source).stem}.safetensors"
    if overwrite and _is_another_network(source, target):
        raise OutputExists(
            f"{target}: another network beside {source}, in the same format, which is not replaced",
            hint="add --to to convert both; to replace it all the same, move it away first",
            python="convert_all converts several; to replace it all the same, move it away first",
        )
    return _convert(source, target, dtype=dtype, overwrite=overwrite)


def is_in_place(source: AnyPath, target: AnyPath) -> bool:
    """Whether both are one name in one folder, so that the target takes the place of the source."""
    places = (os.path.split(os.path.abspath(path)) for path in (source, target))
    one, other = (os.path.join(os.path.realpath(folder), name) for folder, name in places)
    return one == other


def _is_another_network(source: str, target: Path) -> bool:
    suffixes = {Path(source).suffix.lower(), target.suffix.lower()}
    is_one_format = suffixes.issubset(PICKLE_SUFFIXES) or suffixes.issubset(SAFETENSORS_SUFFIXES)
    if not is_one_format or not os.path.isfile(target) or os.path.samefile(source, target):
        return False
    if not os.path.samefile(Path(source).parent, target.parent):  # no pattern of a shell gives both
        return False
    try:
        return load(source).content_hash != load(target).content_hash
    except HnetkitError:  # no network, or a damaged one: told when it is read, or replaced
        return False


def _convert(source: str, target: Path, *, dtype: DType | None, overwrite: bool) -> ConvertedFile:
    if not overwrite and is_in_place(source, target):
        raise OutputExists(f"{source}: has this format already", hint="--overwrite writes it anew")
    require_output(target, overwrite=overwrite)
    net = load(source)
    try:
        save(net, target, dtype=dtype, overwrite=overwrite)
    except OSError as error:
        raise failure_of(error, str(target)) from error
    made = load(target)
    is_same = dtype is None or all(tensor.dtype == dtype for *_, tensor in net.each_tensor())
    return ConvertedFile(
        source, target, made.format, made.dtype, made.size_bytes, made.content_hash, is_same, tuple(net.not_carried)
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
    written: dict[object, str] = {}  # a disk may take two names for one: ink and Ink, or é in two spellings
    for count, (source, target) in enumerate(pairs):
        progress(count, len(pairs))
        try:
            if first := written.get(_identity(target) or target):
                raise OutputExists(f"{source}: {first} became {target} already", hint="give each a name of its own")
            done.append(_convert(source, target, dtype=dtype, overwrite=overwrite))
            written[_identity(target) or target] = source
        except Exception as error:
            failures.append(failure_of(error, source))
    return done, failures


def _identity(path: Path) -> tuple[int, int] | None:
    """What the disk knows a file by; None where it is not there, or the disk numbers no files."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


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
