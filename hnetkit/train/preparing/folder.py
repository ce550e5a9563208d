"""From a folder of images to a folder to train on. The originals are only read."""

from __future__ import annotations

import os
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
from hnetkit.files import is_file_at, is_folder_at, is_there, new_file, stat_at, sync_folder
from hnetkit.images import on_white, open_with_opacity, whiten_hidden
from hnetkit.library.layouts import TakenNames
from hnetkit.text import argument, counted
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
from hnetkit.train.preparing.images import image_files, left_out, left_out_warnings, name_some
from hnetkit.train.preparing.quality import ImageStats, warnings_about

if TYPE_CHECKING:
    from PIL import Image

    from hnetkit.library.library import AnyPath
    from hnetkit.train.preparing.captioners import Blip, Tagger


@dataclass(frozen=True, slots=True)
class Preparation:
    """The result of preparing a folder of images.

    Attributes:
        originals: their number.
        made: the images of the training folder, in the order of their originals.
        failures: why originals were skipped, one error each, which names the file.
        warnings: about the images, one line each.
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
    """Makes a folder to train on from a folder of images. The originals are only read.

    Images are turned as their EXIF data says, cropped, scaled, and written as PNG under the names of their originals,
    each with its caption in a ``.txt``. An unreadable one is skipped, and the others are made.

    Args:
        folder: of the originals.
        out: the folder to train on; made if it is missing, but not its parent.
        size: of every image in pixels: ``512``, ``"512x768"`` or ``(512, 768)``; sides are multiples of 8.
        buckets: use several sizes of about that area; each image gets the nearest.
        crop: what a crop keeps: the ``"centre"``, the part with most to see (``"entropy"``), or the largest ``"face"``.
        flip: add a mirrored copy of each.
        split: cut long images into several that overlap.
        split_threshold: an image is long if a single crop would keep at most this share of it, 0 to 1.
        split_overlap: share of each part that is in the next one too, 0 to 0.9.
        flatten: put transparent images on white for good.
        recursive: include the images of folders below it.
        captions: what writes captions, in this order: ``"blip"`` a sentence, ``"tags"`` a booru tagger's tags.
        blip_model, tags_model: folders or hub ids of other models than the default ones.
        existing: what to do with a ``.txt`` beside an original: ``"keep"``, ``"replace"``, ``"append"``, ``"prepend"``.
        prefix: put before every generated caption.
        general_threshold, character_threshold: least probability of a tag, and of a character's name, 0 to 1.
        exclude_tags: tags to leave out.
        keep_underscores: write tags as ``long_hair``.
        escape: write brackets in tags as ``\\(`` and ``\\)``, which a prompt does not take for emphasis.
        by_score: put the surest tags first, instead of sorting by alphabet.
        device: for models that caption: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        overwrite: replace images in `out` that have the names of new ones, and their captions.
        progress: called with the originals done and the originals in all.
        failed: called with the error as soon as an original is skipped.

    Raises:
        UsageError: invalid options, or `out` is where originals are.
        OutputExists: `out` has files in it, and `overwrite` is False.
        NotFound: a folder or a model is missing, or there are no images.
        ModelNotUsable: a captioning model cannot be loaded.
        MissingPackage: a package for faces or tags is not installed.
        DiskFull: there is no room; what was made until then is complete.
    """
    source, target = Path(folder), Path(out)
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
    originals = image_files(source, recursive=recursive, excluded=target, hint=hint)
    require_output_folder(target, source, overwrite=overwrite, originals=originals)
    if crop == "face":
        require_faces()
    describe = _load_captioner(
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
    if not is_folder_at(target.parent):
        raise NotFound(f"{target.parent}: no such folder")
    target.mkdir(exist_ok=True)
    made, stats, failures = _prepare_all(
        originals, TrainingFolder(target, settings, overwrite, describe), progress, failed
    )
    captions_made = {image.source: image.caption for image in made}
    stats = [replace(image, caption=captions_made.get(image.path, image.caption)) for image in stats]
    warnings = [
        *warnings_about(stats, size=settings.size, buckets=buckets),
        *_leftover_warnings(target, made),
        *left_out_warnings(left_out(source, recursive=recursive, excluded=target)),
    ]
    return Preparation(len(originals), made, failures, warnings)


def _size(size: int | str | Size) -> Size:
    if isinstance(size, str):
        return parse_training_size(size)
    return parse_training_size("x".join(map(str, (size, size) if isinstance(size, int) else size)))


def _prepare_all(
    originals: Sequence[Path],
    folder: TrainingFolder,
    progress: Callable[[int, int], None] | None,
    failed: Callable[[HnetkitError], None] | None,
) -> tuple[list[PreparedImage], list[ImageStats], list[HnetkitError]]:
    """Prepares every readable original; returns the images made, the originals' statistics, and errors of the rest."""
    made: list[PreparedImage] = []
    stats: list[ImageStats] = []
    failures: list[HnetkitError] = []
    for number, original in enumerate(originals, 1):
        try:
            statistics = ImageStats.of(original)
            made += folder.add(original)
            stats.append(statistics)
        except (DiskFull, MissingPackage):  # every other original would fail too
            raise
        except Exception as error:
            failure = failure_of(error, str(original))
            if isinstance(failure, DiskFull):  # the files written so far are there at the second try
                hint = "make room, and run the command again with --overwrite"
                raise DiskFull(str(failure), hint=hint) from error
            failures.append(failure)
            if failed is not None:
                failed(failure)
        if progress is not None:
            progress(number, len(originals))
    return made, stats, failures


def _leftover_warnings(out: Path, made: Sequence[PreparedImage]) -> list[str]:
    """Returns a warning if the training folder has images that this preparation did not make."""
    ours = {image.path.name for image in made}
    others = [path.name for path in image_files(out) if path.name not in ours] if ours else []
    stay = "stays" if len(others) == 1 else "stay"
    return [f"{counted(len(others), 'picture')} of before {stay} in {out}: {name_some(others)}"] if others else []


def _load_captioner(
    kinds: Sequence[str], models: dict[str, str | None], prefix: str, device: str, **tagging: Any
) -> Describe | None:
    """Returns what writes captions with the models of `kinds`, in their order; None without any.

    Raises:
        UsageError: an unknown kind, or a model of a kind that is not used.
    """
    for kind in kinds:
        if kind not in models:
            raise UsageError(f"nothing called {kind} writes captions", hint=f"one of {', '.join(models)}")
    for kind, model in models.items():
        if model is not None and kind not in kinds:
            raise UsageError(
                f"--{kind}-model without --caption {kind}",
                hint=f"add --caption {kind}",
                python=f'add captions=["{kind}"]',
            )
    if not kinds:
        return None
    from hnetkit.train.preparing import captioners

    settings = captioners.TagSettings(**tagging)

    def load(kind: str) -> Blip | Tagger:
        if kind == "blip":
            return captioners.load_blip(models[kind] or captioners.BLIP, device=device)
        return captioners.load_tagger(models[kind] or captioners.TAGGER, settings=settings, device=device)

    loaded = [load(kind) for kind in kinds]

    def describe(image: Any) -> str:
        caption = ", ".join(words for words in (model.caption(image) for model in loaded) if words)
        return f"{prefix}{caption}".strip()

    return describe


# --- the folder and its files

_LONGEST_STEM = 251  # bytes: with the suffix 255, the most of common file systems

Existing = Literal["keep", "replace", "append", "prepend"]
Describe = Callable[["Image.Image"], str]


@dataclass(frozen=True, slots=True)
class PreparationSettings:
    """How images are prepared.

    Attributes:
        size: (width, height) in pixels of every image, or with `buckets` about their area.
        buckets: each image gets the size of about this area that is nearest to its ratio.
        focus: what a crop keeps.
        flip: add a mirrored copy of each.
        split: cut an image into several if a single crop would keep at most `split_threshold` of it.
        split_threshold: a share of the image's area, 0 to 1.
        split_overlap: share of each part that is in the next one too, 0 to 0.9.
        flatten: remove transparency.
        existing: what to do with a caption beside an original if a new one is made.

    Raises:
        UsageError: an invalid value.
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
    """One image of the training folder.

    Attributes:
        path: of the image; its caption is beside it.
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
        settings: how images are prepared.
        overwrite: whether existing files are replaced.
        describe: makes a caption of a prepared image; None if none are made.
    """

    path: Path
    settings: PreparationSettings
    overwrite: bool = False
    describe: Describe | None = None
    _names: TakenNames = field(default_factory=lambda: TakenNames(numbered=_stem), init=False, repr=False)

    def add(self, source: Path) -> Iterator[PreparedImage]:
        """Yields the images that one original becomes, each after it is written with its caption.

        Raises:
            BadPicture: the original cannot be read or split.
            HnetkitError: its caption cannot be read, see `caption_of`.
            MissingPackage: faces are to be found and OpenCV is not installed.
        """
        from PIL import ImageOps

        image = open_with_opacity(source)
        existing = caption_of(source) if is_file_at(caption_file(source)) else None
        size = nearest(image.size, buckets_of(self.settings.size)) if self.settings.buckets else self.settings.size
        boxes = self._boxes(source, image, size)
        for number, box in enumerate(boxes, 1):
            ending = "" if len(boxes) == 1 else f"-{number}"
            part = _resized(image, box, size, flatten=self.settings.flatten)
            caption = self._caption(part, existing)
            yield self._write(part, _stem(source.stem, ending), source, caption)
            if self.settings.flip:
                yield self._write(ImageOps.mirror(part), _stem(source.stem, f"{ending}-flipped"), source, caption)

    def _boxes(self, source: Path, image: Image.Image, size: Size) -> list[Box]:
        if self.settings.split and kept_share(image.size, size) <= self.settings.split_threshold:
            try:
                return windows_along(image.size, size, self.settings.split_overlap)
            except BadPicture as error:
                raise BadPicture(f"{source}: {error}", hint=error.command_hint) from error
        return [crop_window(image, size, self.settings.focus)]

    def _caption(self, image: Image.Image, existing: str | None) -> str | None:
        """Returns the caption to write; None if there is none but the file name."""
        how = self.settings.existing
        if self.describe is None or (existing is not None and how == "keep"):
            return existing
        new = self.describe(image)
        parts = {"append": [existing, new], "prepend": [new, existing]}.get(how, [new])
        return ", ".join(part for part in parts if part)

    def _write(self, image: Image.Image, stem: str, source: Path, caption: str | None) -> PreparedImage:
        target = self.path / f"{self._unique_stem(stem)}.png"
        beside = caption_file(target)
        if caption is None and target.stem != source.stem:
            caption = caption_of(source)  # that of its file name, which is not the name of this one
        if self.overwrite:
            _require_caption(beside, target, caption)
        with new_file(target, overwrite=self.overwrite) as file:
            image.save(file, format="PNG")
            file.flush()
            os.fsync(file.fileno())  # on a full disk, fail before the caption of an earlier image is replaced
            if caption is not None:
                write_caption(beside, caption, overwrite=self.overwrite)
        if caption is None and self.overwrite and is_there(beside):  # of an earlier image of this name
            sync_folder(self.path)
            beside.unlink()
        return PreparedImage(target, source, image.size, caption_of(target))

    def _unique_stem(self, stem: str) -> str:
        """Returns the stem, with a number if another image has it.

        Upper and lower case are the same, and so are accents in composed and decomposed form, as in some file systems.
        """
        name = self._names.free(stem)
        self._names.add(name)
        return name


def require_output_folder(out: Path, source: Path, *, overwrite: bool, originals: Iterable[Path] = ()) -> None:
    """Checks a folder to write to: it must be new or empty, unless `overwrite` is set.

    Args:
        source: folder of the originals.
        originals: their files, which may be links that lead into `out`.

    Raises:
        UsageError: it is the folder of the originals, or of one of them or its caption.
        OutputExists: it has files in it, or is a file.
    """
    if stat_at(out) and stat_at(source) and os.path.samefile(out, source):
        beside = argument(f"{out.name or 'pictures'}-512", is_path=True)
        raise UsageError(f"--out {out}: the originals are in it", hint=f"--out {beside}")
    if stat_at(out) and not is_folder_at(out):
        raise OutputExists(f"{out}: a file, not a folder")
    real = os.path.realpath(out)
    for path in (path for original in originals for path in (original, caption_file(original))):
        if path.is_symlink() and os.path.dirname(os.path.realpath(path)) == real:
            raise UsageError(f"--out {out}: an original is in it, to which {path} leads", hint="another --out")
    if not overwrite and is_folder_at(out) and any(out.iterdir()):
        raise OutputExists(
            f"{out}: the folder is not empty",
            hint="another --out, or --overwrite to replace pictures of the same names, and their captions",
        )


def _require_caption(beside: Path, target: Path, caption: str | None) -> None:
    """Raises OutputExists if a ``.txt`` without an image was not written by an interrupted preparation."""
    if is_there(target) or beside.is_symlink() or not is_file_at(beside):
        return
    try:
        is_ours = caption is not None and caption_of(target) == " ".join(caption.split())
    except HnetkitError:
        is_ours = False
    if not is_ours:
        raise OutputExists(f"{beside}: a text without a picture, which is not replaced", hint="move it away")


def _resized(image: Image.Image, box: Box, size: Size, *, flatten: bool) -> Image.Image:
    """Returns a part of an image at a size, with white where it is transparent; `flatten` leaves no transparency."""
    from PIL import Image as Images

    part = image.resize(size, Images.Resampling.LANCZOS, box=box)
    return on_white(part) if flatten or part.mode == "RGB" else whiten_hidden(part)


def _stem(stem: str, ending: str) -> str:
    """Returns a file's name without its suffix: `stem`, shortened if necessary, and `ending`."""
    while len(os.fsencode(stem + ending)) > _LONGEST_STEM:
        stem = stem[:-1]
    return stem + ending
