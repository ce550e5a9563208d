"""The image files of a folder, and what else is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hnetkit.errors import NotFound, failure_of, require_extra
from hnetkit.files import is_file_at, is_folder_at
from hnetkit.train.captions import caption_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_CAPTION = ".txt"
_OF_THE_SYSTEM = ("thumbs.db", "desktop.ini")
_HINT = "pass the folder made by `hnetkit train prepare PICTURES --out FOLDER`"
_NO_CAPTION = "no picture has this name"
_FOLDER = "a folder with pictures"
_MOST_NAMED = 5  # names in a message
_LONGEST_NAME = 200  # characters of a name in a message


def image_files(
    folder: Path, *, recursive: bool = False, excluded: Path | None = None, hint: str | None = _HINT
) -> list[Path]:
    """Returns the image files of a folder in the order of their names, without hidden ones.

    Args:
        recursive: with those of all folders below it; links to folders are not followed.
        excluded: a folder below it to skip.
        hint: of the error.

    Raises:
        NotFound: no such folder, or no images in it.
        HnetkitError: it cannot be read.
        MissingExtra: no package that opens images is installed.
    """
    if not is_folder_at(folder):
        raise NotFound(f"{folder}: no such folder", hint=hint)
    names = _files_in(folder, recursive=recursive, excluded=_identity(excluded))
    found = [path for path in names if _is_image_name(path.name) and is_file_at(path)]
    if not found:
        raise NotFound(f"{folder}: no pictures in it ({', '.join(SUFFIXES)})", hint=hint)
    require_extra("PIL", str(folder))
    return sorted(found)


def left_out(
    folder: Path, *, recursive: bool = False, excluded: Path | None = None, used: Sequence[Path] = ()
) -> list[str]:
    """Returns what `image_files` passes over beside captions and hidden files.

    These are other files, texts that are the caption of no image, folders that cannot be read, and those right below
    that hold images.

    Args:
        recursive, excluded: as in `image_files`.
        used: files that are read for something else, such as a template.

    Returns:
        names, with those of the folders below `folder` that they are in.
    """
    unreadable: list[Path] = []
    names = list(_files_in(folder, recursive=recursive, excluded=_identity(excluded), unreadable=unreadable))
    found = [_below(path, folder) for path in names if _is_other(path.name)]
    found += [
        f"{_below(path, folder)} (leads to no file)"
        for path in names
        if _is_image_name(path.name) and not is_file_at(path)
    ]
    # by identity: some file systems find a caption whose name has other cases
    captions = {_identity(caption_file(path)) for path in names if _is_image_name(path.name)}
    captions |= set(map(_identity, used))
    found += [
        f"{_below(path, folder)} ({_NO_CAPTION})"
        for path in names
        if path.name.lower().endswith(_CAPTION) and not path.name.startswith(".") and _identity(path) not in captions
    ]
    found += [f"{_below(path, folder)} (a folder that cannot be read)" for path in unreadable]
    if not recursive:
        found += [f"{_below(path, folder)} ({_FOLDER})" for path in _folders_with_images(folder, _identity(excluded))]
    return sorted(found)


def left_out_warnings(names: Sequence[str]) -> Iterator[str]:
    """Yields a line if anything was left out, with these names."""
    if names:
        were = "file was" if len(names) == 1 else "files were"
        kinds = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        captions = (
            ", and a caption is named as its picture"
            if any(name.endswith(f"({_NO_CAPTION})") for name in names)
            else ""
        )
        folders = (
            ", and folders below are read by `hnetkit train prepare --recursive`"
            if any(name.endswith(f"({_FOLDER})") for name in names)
            else ""
        )
        yield f"{len(names):,} {were} left out: {name_some(names)}; pictures are {kinds}{captions}{folders}"


def name_some(names: Sequence[str]) -> str:
    """Returns the first few names as a message shows them, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _files_in(
    folder: Path, *, recursive: bool, excluded: tuple[int, int] | None = None, unreadable: list[Path] | None = None
) -> Iterator[Path]:
    """Yields the files of a folder, and of those below it at any depth.

    Args:
        unreadable: gets the folders that cannot be read. Without it, that is an error of `folder` itself.
    """
    waiting = [folder]
    while waiting:
        below, here = [], waiting.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        yield Path(entry.path)
                    elif not entry.name.startswith(".") and (excluded is None or _identity(entry) != excluded):
                        below.append(Path(entry.path))
        except OSError as error:
            if unreadable is not None:
                unreadable.append(here)
            elif here == folder:
                raise failure_of(error, str(folder)) from error
            continue
        if recursive:
            waiting += below


def _folders_with_images(folder: Path, excluded: tuple[int, int] | None) -> Iterator[Path]:
    """Yields the folders right below one that hold images, without hidden ones."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (
                not _is_folder(entry)
                or entry.name.startswith(".")
                or (excluded is not None and _identity(entry) == excluded)
            ):
                continue
            if any(_is_image_name(path.name) for path in _files_in(Path(entry.path), recursive=False, unreadable=[])):
                yield Path(entry.path)


def _below(path: Path, folder: Path) -> str:
    name = str(path.relative_to(folder))
    return name if len(name) <= _LONGEST_NAME else f"...{name[-_LONGEST_NAME:]}"


def _identity(folder: os.PathLike[str] | None) -> tuple[int, int] | None:
    try:
        status = os.stat(folder) if folder is not None else None
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status is not None else None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _is_other(name: str) -> bool:
    """Whether a file that is not hidden is neither an image nor a caption nor one of the system's own."""
    is_known = name.lower().endswith((*SUFFIXES, _CAPTION)) or name.lower() in _OF_THE_SYSTEM
    return not (is_known or name.startswith("."))


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
