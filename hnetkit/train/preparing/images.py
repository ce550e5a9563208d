"""The pictures of a folder, opened the way they are seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hnetkit.errors import NotFound, require_extra
from hnetkit.images import open_image

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_UNKNOWN = (
    *(".heic", ".heif", ".jxl", ".jp2", ".jpe", ".tga", ".psd", ".svg", ".ico", ".dds", ".exr", ".hdr"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
_HINT = "the folder that `hnetkit train prepare PICTURES --out FOLDER` made"


def image_files(
    folder: Path, *, recursive: bool = False, but_not_in: Path | None = None, hint: str | None = _HINT
) -> list[Path]:
    """Returns the picture files of a folder in the order of their names; hidden ones are left out.

    Args:
        recursive: with those of all folders below it; links to folders are not followed.
        but_not_in: a folder below it that is left out.
        hint: of the error.

    Raises:
        NotFound: no such folder, or no pictures in it.
        MissingExtra: nothing here can open a picture.
    """
    if not folder.is_dir():
        raise NotFound(f"{folder}: no such folder", hint=hint)
    names = _names_in(folder, recursive=recursive, left_out=_identity(but_not_in))
    # a link to what no name can be is no file, and no error
    found = [path for path in names if _is_picture_name(path.name) and os.path.isfile(path)]
    if not found:
        raise NotFound(f"{folder}: no pictures in it ({', '.join(SUFFIXES)})", hint=hint)
    require_extra("PIL", str(folder))
    return sorted(found)


def unsupported_images(folder: Path, *, recursive: bool = False) -> list[str]:
    """Returns the names of a folder's pictures that are of no kind which is opened; hidden ones are left out."""
    names = (path.name for path in _names_in(folder, recursive=recursive))
    return sorted(name for name in names if not name.startswith(".") and name.lower().endswith(_UNKNOWN))


def open_rgb(path: Path, data: bytes | None = None) -> Image.Image:
    """Returns a picture as RGB, or RGBA where it has transparency, turned as its EXIF data says.

    Args:
        data: what is in the file, where that was read already.

    Raises:
        NotFound, BadPicture: as `hnetkit.images.open_image`.
    """
    image = open_image(path, data)
    is_seen_through = image.mode != "LAB" and "A" in image.getbands()  # the A of LAB is a colour
    mode = "RGBA" if is_seen_through or "transparency" in image.info else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _names_in(folder: Path, *, recursive: bool, left_out: tuple[int, int] | None = None) -> Iterator[Path]:
    """Yields what is in a folder, and in those below it, however deep; of folders that cannot be read, nothing."""
    waiting = [folder]
    while waiting:
        below = []
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        yield Path(entry.path)
                    elif not entry.name.startswith(".") and _identity(entry) != left_out:
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


def _is_picture_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
