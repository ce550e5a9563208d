"""`Picture`, a drawn image, and the names of the files that pictures are saved to, which never collide."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import OutputExists, UsageError
from hnetkit.files import is_folder_at, is_there, suffixed
from hnetkit.image_text import SUFFIXES, write_image
from hnetkit.text import argument, shorten

if TYPE_CHECKING:
    from PIL import Image

_OTHERS = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl")
_NUMBERED = re.compile(r"([0-9]{5,9})-[0-9]+\.(?:png|jpe?g|webp)", re.IGNORECASE)
_LAST_NUMBER = 10**9 - 1


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture and its settings.

    Attributes:
        image: PIL's, in RGB.
        seed: of its noise.
        infotext: A1111's, which `save` writes into the file.
        prompt: as it is stored, with the tags of its networks.
        negative_prompt: as it was given.
        hypernetworks: ``name, strength, hash`` of each, in stacking order.
        model: name of its model.
    """

    image: Image.Image
    seed: int
    infotext: str
    prompt: str
    negative_prompt: str
    hypernetworks: tuple[dict[str, Any], ...]
    model: str

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"<Picture {width}x{height}, seed {self.seed}: {shorten(self.prompt)!r}>"

    def save(self, out: str | os.PathLike[str] = ".", *, overwrite: bool = False) -> Path:
        """Writes the picture with its infotext, and returns its path.

        Args:
            out: a ``.png``, ``.jpg`` or ``.webp`` file, or a folder, which is created if needed. In a folder the file
                is named ``NNNNN-SEED.png``, and none is replaced.
            overwrite: replace a file that exists.

        Raises:
            OutputExists: the file exists and `overwrite` is False.
            NotFound: the folder of a file does not exist.
            UsageError: `out` is a file of another type.
        """
        if is_image_file(os.fspath(out)):
            write_image(Path(out), self.image, self.infotext, overwrite=overwrite)
            return Path(out)
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        number = next_number(folder)
        while True:
            path = folder / f"{number:05}-{self.seed}.png"
            try:
                write_image(path, self.image, self.infotext)
            except OutputExists:  # another process draws into this folder and took the number first
                number = max(number + 1, next_number(folder))
            else:
                return path


def is_image_file(out: str, *, option: str = "--out", example: str = "FOLDER") -> bool:
    """Whether `out` names an image file; otherwise it is a folder, which may not exist yet.

    Args:
        option: that has this value, for hints.
        example: of a value that it can have.

    Raises:
        UsageError: it names a file of another type.
    """
    if is_folder_at(out) or out.endswith(("/", os.sep)):
        return False
    suffix = Path(out).suffix.lower()
    if suffix in _OTHERS:
        raise UsageError(
            f"{out}: pictures are written as PNG, JPEG or WebP",
            hint=f"{option} {argument(suffixed(out, '.png'), is_path=True)}",
        )
    # asked again: another command that draws into the folder may have made it since
    if suffix not in SUFFIXES and is_there(out) and not is_folder_at(out):
        raise UsageError(f"{out}: neither a folder nor a .png, .jpg or .webp file", hint=f"{option} {example}")
    if out.endswith("."):  # neither "." nor "..", which are folders
        hint = f"{option} {argument(suffixed(out, '.png'), is_path=True)}"
        raise UsageError(f"{out}: a name that ends in a dot, which not every disk can have", hint=hint)
    return suffix in SUFFIXES


def next_number(folder: Path) -> int:
    """Returns the number after the highest ``NNNNN-SEED.png`` (``.jpg``, ``.webp``) of a folder; 0 if there is none.

    Numbers of more than nine digits are ignored. After the last number of nine digits, the lowest free one is taken.
    """
    if not is_folder_at(folder):
        return 0
    taken = {int(match[1]) for entry in os.listdir(folder) if (match := _NUMBERED.fullmatch(entry))}
    highest = max(taken, default=-1)
    return highest + 1 if highest < _LAST_NUMBER else next(number for number in count() if number not in taken)
