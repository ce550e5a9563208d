"""The image files of a folder, and their pixels as they are seen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hnetkit.errors import NotFound, require_extra
from hnetkit.images import open_image

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_UNSUPPORTED = (
    ".heic",
    ".heif",
    ".jxl",
    ".jp2",
    ".jpe",
    ".tga",
    ".psd",
    ".svg",
    ".ico",
    ".dds",
    ".exr",
    ".hdr",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".orf",
    ".rw2",
    ".raf",
)
_HINT = "pass the folder made by `hnetkit train prepare PICTURES --out FOLDER`"
_MOST_NAMED = 5  # names in a message


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
        MissingExtra: no package that opens images is installed.
    """
    if not folder.is_dir():
        raise NotFound(f"{folder}: no such folder", hint=hint)
    names = _files_in(folder, recursive=recursive, excluded=_identity(excluded))
    # `os.path.isfile` also answers, with False, for a link whose target cannot be a name
    found = [path for path in names if _is_image_name(path.name) and os.path.isfile(path)]
    if not found:
        raise NotFound(f"{folder}: no pictures in it ({', '.join(SUFFIXES)})", hint=hint)
    require_extra("PIL", str(folder))
    return sorted(found)


def unsupported_images(folder: Path, *, recursive: bool = False) -> list[str]:
    """Returns the names of a folder's images of unsupported formats, without hidden ones."""
    names = (path.name for path in _files_in(folder, recursive=recursive))
    return sorted(name for name in names if not name.startswith(".") and name.lower().endswith(_UNSUPPORTED))


def open_rgb(path: Path, data: bytes | None = None) -> Image.Image:
    """Returns an image as RGB, or RGBA if it has transparency, turned as its EXIF data says.

    Args:
        data: the file's bytes, if they are read already.

    Raises:
        NotFound, BadPicture: as `hnetkit.images.open_image`.
    """
    image = open_image(path, data)
    has_alpha = image.mode != "LAB" and "A" in image.getbands()  # the A of LAB is a color
    mode = "RGBA" if has_alpha or "transparency" in image.info else "RGB"
    return image if image.mode == mode else image.convert(mode)


def name_some(names: Sequence[str]) -> str:
    """Returns the first few names as a message shows them, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _files_in(folder: Path, *, recursive: bool, excluded: tuple[int, int] | None = None) -> Iterator[Path]:
    """Yields the files of a folder, and of those below it at any depth; unreadable folders are skipped."""
    waiting = [folder]
    while waiting:
        below = []
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        yield Path(entry.path)
                    elif not entry.name.startswith(".") and _identity(entry) != excluded:
                        below.append(Path(entry.path))
        except OSError:
            continue
        if recursive:
            waiting += below


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


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
