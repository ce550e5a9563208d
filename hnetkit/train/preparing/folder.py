"""From a folder of pictures to a folder to train on. The originals are only read."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from hnetkit.errors import BadPicture, HnetkitError, OutputExists, UsageError
from hnetkit.files import new_file
from hnetkit.text import argument
from hnetkit.train.captions import caption_file, caption_of
from hnetkit.train.preparing.crops import Box, Focus, kept_share, window, windows_along
from hnetkit.train.preparing.opening import opened, picture_files
from hnetkit.train.preparing.sizes import Size, buckets_of, nearest

if TYPE_CHECKING:
    from PIL import Image

_LONGEST_STEM = 251  # bytes: with the suffix 255, which file systems allow

Existing = Literal["keep", "replace", "append", "prepend"]
Describe = Callable[["Image.Image"], str]


@dataclass(frozen=True, slots=True)
class Settings:
    """How pictures are brought to their size.

    Attributes:
        size: (width, height) in pixels of every picture, or with `buckets` about their area.
        buckets: each picture gets the size of about this area that is nearest to its ratio.
        focus: where a picture is cropped.
        flip: with a mirrored copy of each.
        split: pictures of which a crop would keep at most `split_threshold` are cut into several instead.
        split_threshold: a share of the picture's area, 0 to 1.
        split_overlap: share of each part that the next one has too, 0 to 0.9.
        flatten: transparent pictures lose their transparency.
        existing: what becomes of a caption beside an original where a new one is made.

    Raises:
        UsageError: a value that cannot be meant.
    """

    size: Size = (512, 512)
    buckets: bool = False
    focus: Focus = "centre"
    flip: bool = False
    split: bool = False
    split_threshold: float = 0.5
    split_overlap: float = 0.2
    flatten: bool = False
    existing: Existing = "keep"

    def __post_init__(self) -> None:
        for name, value, known in (("crop", self.focus, Focus), ("existing", self.existing, Existing)):
            if value not in get_args(known):
                raise UsageError(f"{name} {value}: one of {', '.join(get_args(known))}")
        for name, share, most in (
            ("split_threshold", self.split_threshold, 1),
            ("split_overlap", self.split_overlap, 0.9),
        ):
            if not 0 <= share <= most:
                raise UsageError(f"{name} {share:g}: a share from 0 to {most}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """One picture of the training folder.

    Attributes:
        path: of the picture; its caption is beside it.
        source: the original.
        size: (width, height) in pixels.
        caption: as training reads it; may be empty.
    """

    path: Path
    source: Path
    size: Size
    caption: str


@dataclass(frozen=True)
class Folder:
    """A training folder that is being made.

    Attributes:
        path: of the folder.
        settings: how pictures are brought to their size.
        overwrite: whether files that are there are replaced.
        describe: makes a caption of a prepared picture; None where none is made.
    """

    path: Path
    settings: Settings
    overwrite: bool = False
    describe: Describe | None = None
    _names: set[str] = field(default_factory=set, init=False, repr=False)

    def add(self, source: Path) -> Iterator[Prepared]:
        """Yields what one original becomes, each once it is written: its caption first, then the picture.

        Raises:
            BadPicture: the original cannot be read or split.
            HnetkitError: its caption cannot be read, see `caption_of`.
            MissingPackage: faces are to be found and OpenCV is not installed.
        """
        image = opened(source)
        existing = caption_of(source) if caption_file(source).is_file() else None
        size = nearest(image.size, buckets_of(self.settings.size)) if self.settings.buckets else self.settings.size
        boxes = self._boxes(source, image, size)
        for number, box in enumerate(boxes, 1):
            ending = "" if len(boxes) == 1 else f"-{number}"
            part = _brought(image, box, size, flatten=self.settings.flatten)
            caption = self._caption(part, existing)
            if caption is None and ending:
                caption = caption_of(source)  # its file name, which the part no longer has
            yield self._write(part, _stem(source.stem, ending), source, caption)
            if self.settings.flip:
                mirrored, said = part.transpose(_flip()), caption_of(source) if caption is None else caption
                yield self._write(mirrored, _stem(source.stem, f"{ending}-flipped"), source, said)

    def _boxes(self, source: Path, image: Image.Image, size: Size) -> list[Box]:
        if self.settings.split and kept_share(image.size, size) <= self.settings.split_threshold:
            try:
                return windows_along(image.size, size, self.settings.split_overlap)
            except BadPicture as error:
                raise BadPicture(f"{source}: {error}", hint=error.hint) from error
        return [window(image, size, self.settings.focus)]

    def _caption(self, image: Image.Image, existing: str | None) -> str | None:
        """Returns the caption to write; None where the picture has none but its file name."""
        how = self.settings.existing
        if self.describe is None or (existing is not None and how == "keep"):
            return existing
        new = self.describe(image)
        parts = {"append": [existing, new], "prepend": [new, existing]}.get(how, [new])
        return ", ".join(part for part in parts if part)

    def _write(self, image: Image.Image, stem: str, source: Path, caption: str | None) -> Prepared:
        target = self.path / f"{self._free(stem)}.png"
        beside = target.with_suffix(".txt")
        if self.overwrite:
            _require_caption(beside, target, caption)
        with new_file(target, overwrite=self.overwrite) as file:
            image.save(file, format="PNG")
            file.flush()
            os.fsync(file.fileno())  # there was room for it: no caption stands beside an earlier picture
            if caption is not None:
                write_caption(beside, caption, overwrite=self.overwrite)
            elif self.overwrite:
                beside.unlink(missing_ok=True)  # of an earlier picture of this name
        return Prepared(target, source, image.size, caption_of(target))

    def _free(self, stem: str) -> str:
        """Returns the stem, with a number where another picture took it; upper and lower case are one.

        So are accents that are written in two ways, which are one name for some file systems.
        """
        name, number = stem, 2
        while _as_one(name) in self._names:
            name, number = _stem(stem, f"-{number}"), number + 1
        self._names.add(_as_one(name))
        return name


def require_place(out: Path, pictures: Path, *, overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """Accepts a folder to write to: a new one, an empty one, or any other with `overwrite`.

    Args:
        sources: the originals; links may lead to them from elsewhere.

    Raises:
        UsageError: it is the folder of the originals, or of one of them or its caption.
        OutputExists: it has files in it, or is a file.
    """
    if out.exists() and pictures.exists() and os.path.samefile(out, pictures):
        beside = argument(f"{out.name or 'pictures'}-512", is_path=True)
        raise UsageError(f"--out {out}: the originals are in it", hint=f"--out {beside}")
    if out.exists() and not out.is_dir():
        raise OutputExists(f"{out}: a file, not a folder")
    place = os.path.realpath(out)
    for path in (path for source in sources for path in (source, caption_file(source))):
        if path.is_symlink() and os.path.dirname(os.path.realpath(path)) == place:
            raise UsageError(f"--out {out}: an original is in it, to which {path} leads", hint="another --out")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise OutputExists(
            f"{out}: the folder is not empty",
            hint="another --out, or --overwrite to replace pictures of the same names, and their captions",
        )


def _require_caption(beside: Path, target: Path, caption: str | None) -> None:
    """Raises OutputExists where a text is no caption of an earlier preparation: no picture is beside it."""
    if os.path.lexists(target) or beside.is_symlink() or not beside.is_file():
        return
    try:
        is_left = caption is not None and caption_of(target) == " ".join(caption.split())  # by one that was interrupted
    except HnetkitError:
        is_left = False
    if not is_left:
        raise OutputExists(f"{beside}: a text without a picture, which is not replaced", hint="move it away")


def write_caption(path: Path, caption: str, *, overwrite: bool) -> None:
    """Writes a caption beside its picture, whole or not at all.

    Raises:
        OutputExists: the file exists and `overwrite` is False.
    """
    with new_file(path, overwrite=overwrite) as file:
        file.write(f"{caption}\n".encode())


def leftovers(out: Path, made: Sequence[Prepared]) -> list[str]:
    """Returns the names of the pictures of a training folder that this preparation did not make."""
    ours = {one.path.name for one in made}
    return [path.name for path in picture_files(out) if path.name not in ours] if ours else []


def _brought(image: Image.Image, box: Box, size: Size, *, flatten: bool) -> Image.Image:
    """Returns a part of a picture at a size; what is transparent gets white under it, whether it stays so or not."""
    from PIL import Image as Images

    part = image.resize(size, Images.Resampling.LANCZOS, box=box)
    if part.mode != "RGBA":
        return part
    white = Images.new("RGBA", size, "white")
    solid = Images.alpha_composite(white, part).convert("RGB")
    if not flatten:
        solid.putalpha(part.getchannel("A"))
    return solid


def _as_one(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _stem(stem: str, ending: str) -> str:
    """Returns a file's name without its suffix: `stem`, cut where it would be too long, and `ending`."""
    while len(os.fsencode(stem + ending)) > _LONGEST_STEM:
        stem = stem[:-1]
    return stem + ending


def _flip() -> Image.Transpose:
    from PIL import Image as Images

    return Images.Transpose.FLIP_LEFT_RIGHT
