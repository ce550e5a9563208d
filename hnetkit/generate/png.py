"""Pictures on disk: PNG with A1111's infotext in it, under names that never collide."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hnetkit.errors import UsageError
from hnetkit.files import new_file

if TYPE_CHECKING:
    from PIL import Image

_NUMBERED = re.compile(r"(\d{5,})-\d+\.png")


def write_png(path: Path, image: Image.Image, infotext: str, *, overwrite: bool = False) -> None:
    """Writes a picture whose ``parameters`` text is `infotext`; it appears under its name only when it is whole.

    Raises:
        OutputExists: the file exists and `overwrite` is False.
        NotFound: its folder does not exist.
    """
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text("parameters", infotext)
    with new_file(path, overwrite=overwrite) as file:
        image.save(file, format="png", pnginfo=about)


def is_picture_file(out: str) -> bool:
    """Whether `out` names one PNG file; else it is a folder, which may not exist yet.

    Raises:
        UsageError: it names a file of another type, or a file is there that is no PNG.
    """
    if os.path.isdir(out) or out.endswith(("/", os.sep)):
        return False
    suffix = Path(out).suffix.lower()
    if suffix in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise UsageError(f"{out}: pictures are written as PNG", hint=f"--out {Path(out).with_suffix('.png')}")
    if suffix != ".png" and os.path.lexists(out):
        raise UsageError(f"{out}: neither a folder nor a .png file", hint="--out FOLDER")
    return suffix == ".png"


def next_number(folder: Path) -> int:
    """Returns the number after the highest ``NNNNN-SEED.png`` of a folder; 0 where there is none."""
    if not folder.is_dir():
        return 0
    numbers = [int(match[1]) for entry in os.listdir(folder) if (match := _NUMBERED.fullmatch(entry))]
    return max(numbers, default=-1) + 1
