"""The pictures of a folder, opened the way they are seen."""

from __future__ import annotations

import os
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


def picture_files(
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
    left_out = but_not_in.resolve() if but_not_in is not None else None
    found = []
    for at, folders, names in os.walk(folder):
        here = Path(at)
        kept = [name for name in folders if not name.startswith(".") and (here / name).resolve() != left_out]
        folders[:] = sorted(kept) if recursive else []
        found += [here / name for name in names if _is_picture_name(name) and (here / name).is_file()]
    if not found:
        raise NotFound(f"{folder}: no pictures in it ({', '.join(SUFFIXES)})", hint=hint)
    require_extra("PIL", str(folder))
    return sorted(found)


def pictures_of_other_kinds(folder: Path, *, recursive: bool = False) -> list[str]:
    """Returns the names of a folder's pictures that are of no kind which is opened; hidden ones are left out."""
    found: list[str] = []
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")] if recursive else []
        found += [name for name in names if not name.startswith(".") and name.lower().endswith(_UNKNOWN)]
    return sorted(found)


def opened(path: Path, data: bytes | None = None) -> Image.Image:
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


def _is_picture_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
