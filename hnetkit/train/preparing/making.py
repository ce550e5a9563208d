"""A training folder made of a folder of pictures: what can be read is prepared, the rest is told and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import DiskFull, HnetkitError, MissingPackage, NotFound, UsageError, failure_of
from hnetkit.train.preparing.crops import Focus, require_faces
from hnetkit.train.preparing.folder import Describe, Existing, Folder, Prepared, Settings, leftovers, require_place
from hnetkit.train.preparing.opening import picture_files, pictures_of_other_kinds
from hnetkit.train.preparing.quality import Look, warnings_about, warnings_of_kinds
from hnetkit.train.preparing.sizes import Size, read_size

if TYPE_CHECKING:
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
    made: Sequence[Prepared]
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
    settings = Settings(
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
    sources = picture_files(pictures, recursive=recursive, but_not_in=place, hint=hint)
    require_place(place, pictures, overwrite=overwrite, sources=sources)
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
    made, looks, failures = _each(sources, Folder(place, settings, overwrite, describe), progress, failed)
    warnings = [
        *warnings_about(_as_captioned(looks, made), size=settings.size, buckets=buckets),
        *_warnings_of_leftovers(place, made),
        *warnings_of_kinds(pictures_of_other_kinds(pictures, recursive=recursive)),
    ]
    return Preparation(len(sources), made, failures, warnings)


def _size(size: int | str | Size) -> Size:
    if isinstance(size, str):
        return read_size(size)
    return read_size("x".join(map(str, (size, size) if isinstance(size, int) else size)))


def _each(
    sources: Sequence[Path],
    folder: Folder,
    progress: Callable[[int, int], None] | None,
    failed: Callable[[HnetkitError], None] | None,
) -> tuple[list[Prepared], list[Look], list[HnetkitError]]:
    """Prepares what can be read; returns that, how the originals look, and why the others were left out."""
    made: list[Prepared] = []
    looks: list[Look] = []
    failures: list[HnetkitError] = []
    for number, source in enumerate(sources, 1):
        try:
            look = Look.at(source)
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


def _as_captioned(looks: Sequence[Look], made: Sequence[Prepared]) -> list[Look]:
    captions = {one.source: one.caption for one in made}
    return [replace(look, caption=captions.get(look.path, look.caption)) for look in looks]


def _warnings_of_leftovers(out: Path, made: Sequence[Prepared]) -> list[str]:
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
