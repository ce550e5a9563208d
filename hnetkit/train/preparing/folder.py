"""From a folder of images to a folder to train on. The originals are only read."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from hnetkit.errors import (
    BadPicture,
    DiskFull,
    HnetkitError,
    MissingPackage,
    NotFound,
    OutputExists,
    UsageError,
    failure_of,
)
from hnetkit.files import new_file
from hnetkit.text import argument
from hnetkit.train.captions import caption_file, caption_of, write_caption
from hnetkit.train.preparing.crops import (
    Box,
    Focus,
    Size,
    buckets_of,
    crop_window,
    kept_share,
    nearest,
    parse_training_size,
    require_faces,
    windows_along,
)
from hnetkit.train.preparing.images import image_files, open_rgb, unsupported_images
from hnetkit.train.preparing.quality import ImageStats, warnings_about, warnings_of_kinds

if TYPE_CHECKING:
    from PIL import Image

    from hnetkit.library.library import AnyPath
    from hnetkit.train.preparing.captioners import Blip, Tagger


@dataclass(frozen=True, slots=True)
class Preparation:
    """What came of a folder of pictures.

    Attributes:
        originals: how many there are.
        made: the pictures of the training folder, in the order of their originals.
        failures: why originals were left out, one error each; it names the file.
        warnings: what is odd about the pictures, one line each.
    """

    originals: int
    made: Sequence[PreparedImage]
    failures: Sequence[HnetkitError]
    warnings: Sequence[str]


def prepare(
    folder: AnyPath,
    out: AnyPath,
    *,
    size: int | str | Size = 512,
    buckets: bool = False,
    crop: Focus = "centre",
    flip: bool = False,
    split: bool = False,
    split_threshold: float = 0.5,
    split_overlap: float = 0.2,
    flatten: bool = False,
    recursive: bool = False,
    captions: Iterable[str] = (),
    blip_model: str | None = None,
    tags_model: str | None = None,
    existing: Existing = "keep",
    prefix: str = "",
    general_threshold: float = 0.35,
    character_threshold: float = 0.85,
    exclude_tags: Iterable[str] = (),
    keep_underscores: bool = False,
    escape: bool = True,
    by_score: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    failed: Callable[[HnetkitError], None] | None = None,
) -> Preparation:
    """Makes a folder to train on from a folder of pictures, and returns what was made. The originals are only read.

    Pictures are turned as their EXIF data says, cropped, scaled, and written as PNG under the names of their originals,
    each with its caption in a ``.txt``. One that cannot be read is left out, and the others are made.

    Args:
        folder: of the originals.
        out: the folder to train on; it is made where it is not there, in one that is.
        size: of every picture in pixels: ``512``, ``"512x768"`` or ``(512, 768)``; sides are multiples of 8.
        buckets: several sizes of about that area; each picture gets the nearest.
        crop: what a crop keeps: the ``"centre"``, the part with most to see (``"entropy"``), or the largest ``"face"``.
        flip: adds a mirrored copy of each.
        split: cuts long pictures into several that overlap.
        split_threshold: pictures of which one crop would keep at most this share are long, 0 to 1.
        split_overlap: share of each part that the next one has too, 0 to 0.9.
        flatten: puts transparent pictures on white for good.
        recursive: takes the pictures of folders below it too.
        captions: what writes captions, in this order: ``"blip"`` a sentence, ``"tags"`` a booru tagger's tags.
        blip_model, tags_model: folders or hub ids of other models than the usual ones.
        existing: what becomes of a ``.txt`` beside an original: ``"keep"``, ``"replace"``, ``"append"``, ``"prepend"``.
        prefix: put before every caption that a model writes.
        general_threshold, character_threshold: how sure a tag, and a character's name, must be, 0 to 1.
        exclude_tags: tags that are left out.
        keep_underscores: writes tags as ``long_hair``.
        escape: writes brackets in tags as ``\\(`` and ``\\)``, which a prompt does not take for emphasis.
        by_score: puts the surest tags first, instead of sorting them by alphabet.
        device: for models that caption: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        overwrite: replaces pictures in `out` that have the names of new ones, and their captions.
        progress: told how many originals are done, and of how many.
        failed: told at once why an original was left out.

    Raises:
        UsageError: what cannot be meant, or `out` is where originals are.
        OutputExists: `out` has files in it, and `overwrite` is False.
        NotFound: a folder or a model is not there, or there are no pictures.
        ModelNotUsable: a captioning model cannot be loaded.
        MissingPackage: a package for faces or tags is not installed.
        DiskFull: there is no room; what was made until then is whole.
    """
    pictures, place = Path(folder), Path(out)
    settings = PreparationSettings(
        size=_size(size),
        buckets=buckets,
        focus=crop,
        flip=flip,
        split=split,
        split_threshold=split_threshold,
        split_overlap=split_overlap,
        flatten=flatten,
        existing=existing,
    )
    hint = None if recursive else "--recursive looks into the folders below it"
    sources = image_files(pictures, recursive=recursive, excluded=place, hint=hint)
    require_output_folder(place, pictures, overwrite=overwrite, sources=sources)
    if crop == "face":
        require_faces()
    describe = _captioner(
        list(dict.fromkeys(captions)),
        {"blip": blip_model, "tags": tags_model},
        prefix,
        device,
        general=general_threshold,
        character=character_threshold,
        excluded=frozenset(exclude_tags),
        underscores=keep_underscores,
        escape=escape,
        by_score=by_score,
    )
    if not place.parent.is_dir():
        raise NotFound(f"{place.parent}: no such folder")
    place.mkdir(exist_ok=True)
    made, looks, failures = _each(sources, TrainingFolder(place, settings, overwrite, describe), progress, failed)
    warnings = [
        *warnings_about(_as_captioned(looks, made), size=settings.size, buckets=buckets),
        *_warnings_of_leftovers(place, made),
        *warnings_of_kinds(unsupported_images(pictures, recursive=recursive)),
    ]
    return Preparation(len(sources), made, failures, warnings)


def _size(size: int | str | Size) -> Size:
    if isinstance(size, str):
        return parse_training_size(size)
    return parse_training_size("x".join(map(str, (size, size) if isinstance(size, int) else size)))


def _each(
    sources: Sequence[Path],
    folder: TrainingFolder,
    progress: Callable[[int, int], None] | None,
    failed: Callable[[HnetkitError], None] | None,
) -> tuple[list[PreparedImage], list[ImageStats], list[HnetkitError]]:
    """Prepares what can be read; returns that, how the originals look, and why the others were left out."""
    made: list[PreparedImage] = []
    looks: list[ImageStats] = []
    failures: list[HnetkitError] = []
    for number, source in enumerate(sources, 1):
        try:
            look = ImageStats.at(source)
            made += folder.add(source)
            looks.append(look)
        except (DiskFull, MissingPackage):  # of every other too
            raise
        except Exception as error:
            failure = failure_of(error, str(source))
            if isinstance(failure, DiskFull):  # what was written is there when it is done again
                hint = "make room, and run the command again with --overwrite"
                raise DiskFull(str(failure), hint=hint) from error
            failures.append(failure)
            if failed is not None:
                failed(failure)
        if progress is not None:
            progress(number, len(sources))
    return made, looks, failures


def _as_captioned(looks: Sequence[ImageStats], made: Sequence[PreparedImage]) -> list[ImageStats]:
    captions = {one.source: one.caption for one in made}
    return [replace(look, caption=captions.get(look.path, look.caption)) for look in looks]


def _warnings_of_leftovers(out: Path, made: Sequence[PreparedImage]) -> list[str]:
    others = leftovers(out, made)
    return [f"{len(others)} pictures of before stay in {out}: {', '.join(others[:5])}"] if others else []


def _captioner(
    kinds: Sequence[str], places: dict[str, str | None], prefix: str, device: str, **tagging: Any
) -> Describe | None:
    """Loads what writes captions, in the order that was asked for; None where nothing does.

    Raises:
        UsageError: a kind that is not known, or a model of a kind that was not asked for.
    """
    for kind in kinds:
        if kind not in places:
            raise UsageError(f"nothing called {kind} writes captions", hint=f"one of {', '.join(places)}")
    for kind, place in places.items():
        if place is not None and kind not in kinds:
            raise UsageError(f"--{kind}-model without --caption {kind}", hint=f"add --caption {kind}")
    if not kinds:
        return None
    from hnetkit.train.preparing import captioners

    settings = captioners.TagSettings(**tagging)

    def load(kind: str) -> Blip | Tagger:
        if kind == "blip":
            return captioners.load_blip(places[kind] or captioners.BLIP, device=device)
        return captioners.load_tagger(places[kind] or captioners.TAGGER, settings=settings, device=device)

    models = [load(kind) for kind in kinds]

    def describe(image: Any) -> str:
        said = ", ".join(words for words in (model.caption(image) for model in models) if words)
        return f"{prefix}{said}".strip()

    return describe


# --- the folder and its files

_LONGEST_STEM = 251  # bytes: with the suffix 255, which file systems allow

Existing = Literal["keep", "replace", "append", "prepend"]
Describe = Callable[["Image.Image"], str]


@dataclass(frozen=True, slots=True)
class PreparationSettings:
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
class PreparedImage:
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
class TrainingFolder:
    """A training folder that is being made.

    Attributes:
        path: of the folder.
        settings: how pictures are brought to their size.
        overwrite: whether files that are there are replaced.
        describe: makes a caption of a prepared picture; None where none is made.
    """

    path: Path
    settings: PreparationSettings
    overwrite: bool = False
    describe: Describe | None = None
    _names: set[str] = field(default_factory=set, init=False, repr=False)

    def add(self, source: Path) -> Iterator[PreparedImage]:
        """Yields what one original becomes, each once it is written: its caption first, then the picture.

        Raises:
            BadPicture: the original cannot be read or split.
            HnetkitError: its caption cannot be read, see `caption_of`.
            MissingPackage: faces are to be found and OpenCV is not installed.
        """
        image = open_rgb(source)
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
        return [crop_window(image, size, self.settings.focus)]

    def _caption(self, image: Image.Image, existing: str | None) -> str | None:
        """Returns the caption to write; None where the picture has none but its file name."""
        how = self.settings.existing
        if self.describe is None or (existing is not None and how == "keep"):
            return existing
        new = self.describe(image)
        parts = {"append": [existing, new], "prepend": [new, existing]}.get(how, [new])
        return ", ".join(part for part in parts if part)

    def _write(self, image: Image.Image, stem: str, source: Path, caption: str | None) -> PreparedImage:
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
        return PreparedImage(target, source, image.size, caption_of(target))

    def _free(self, stem: str) -> str:
        """Returns the stem, with a number where another picture took it; upper and lower case are one.

        So are accents that are written in two ways, which are one name for some file systems.
        """
        name, number = stem, 2
        while _as_one(name) in self._names:
            name, number = _stem(stem, f"-{number}"), number + 1
        self._names.add(_as_one(name))
        return name


def require_output_folder(out: Path, pictures: Path, *, overwrite: bool, sources: Iterable[Path] = ()) -> None:
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


def leftovers(out: Path, made: Sequence[PreparedImage]) -> list[str]:
    """Returns the names of the pictures of a training folder that this preparation did not make."""
    ours = {one.path.name for one in made}
    return [path.name for path in image_files(out) if path.name not in ours] if ours else []


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
