"""What a network is best used with: a strength, trigger words and a preview, as A1111 keeps them beside its files."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnetkit.errors import WHERE_GONE, HnetkitError, NotFound, OutputExists, UsageError, failure_of, require_extra
from hnetkit.files import is_absence, is_file_at, is_link_elsewhere, is_there
from hnetkit.library.layouts import folded
from hnetkit.library.scan import store_sidecars_of
from hnetkit.library.sidecar_writing import A1111_UNSET, change_a1111, refuse_to_touch, replace
from hnetkit.library.sidecars import MAX_TEXT, PREVIEWS, Json, sidecar
from hnetkit.library.walking import names_of_files
from hnetkit.registry.store import Registry
from hnetkit.text import argument, is_text, shorten

AnyPath = str | os.PathLike[str]
Row = Mapping[str, Any]

PREVIEW = ".preview.png"
"""What follows the stem in the name of the preview that A1111 writes, and hnetkit."""

MOST_SIDE = 1024
"""Pixels of the longer side of a preview; lists of networks show them smaller."""

_BEFORE = PREVIEWS[: PREVIEWS.index(PREVIEW)]  # shown in its place, where they are there
_COPY = "hnetkit.preview"  # the name of a text in each copy that is made here: others' pictures have the same place
_WEIGHT, _WORDS = "preferred weight", "activation text"  # keys of A1111


def suggested_strength(row: Row) -> tuple[float, str] | None:
    """Returns the strength that a network is best used at, and whose it is; None where nobody says one.

    The user's own comes first, then that of the example pictures of a site. `row` is that of `Library.record`.
    """
    own = [(weight, "preferred") for sidecar in row["sidecars"] if (weight := sidecar.get("preferred_weight"))]
    stated = [(site["strength"], "in its example pictures") for site in row["sites"] if site["strength"]]
    is_of_the_site = own and stated and own[0][0] == stated[0][0]  # `sync` writes it beside the file
    return next(iter([*stated, *own] if is_of_the_site else [*own, *stated]), None)


def trigger_words(row: Row) -> str:
    """Returns what to write in a prompt beside the tag of a network: the user's own text, else a site's words.

    A site's are cut as those of sidecars are: a page shows them of many networks.
    """
    own = [text for sidecar in row["sidecars"] if (text := (sidecar.get("activation_text") or "").strip())]
    stated = [", ".join(site["trained_words"])[:MAX_TEXT] for site in row["sites"] if site["trained_words"]]
    return next(iter([*own, *stated]), "")


@dataclass(frozen=True, slots=True)
class Suggestions:
    """What to write beside the files of a network; None leaves what is there, and an empty value removes it.

    Attributes:
        strength: 0 for none, as A1111 has it.
        words: for the prompt.
        preview: a PNG.
    """

    strength: float | None
    words: str | None
    preview: bytes | None

    @classmethod
    def read(cls, strength: float | str | None, words: str | None, preview: AnyPath | None) -> Suggestions:
        """Reads what a person says; an empty text is an empty value.

        Raises:
            UsageError: the strength is not a number, or is 0; the words are not text, or too many.
            NotFound, BadPicture: there is no such picture, or none that can be read.
            MissingExtra: pictures cannot be read here.
        """
        if words is not None and not is_text(words):
            raise UsageError("the trigger words are not valid text", hint="check the terminal's encoding")
        if words is not None and len(words) > MAX_TEXT:
            raise UsageError(f"trigger words of more than {MAX_TEXT:,} characters", hint="name the words alone")
        picture = None if preview is None else _png(preview) if os.fspath(preview) else b""
        return cls(None if strength is None else _strength(strength), words and words.strip(), picture)

    @property
    def is_nothing(self) -> bool:
        """Whether all is to stay as it is."""
        return self.strength is None and self.words is None and self.preview is None

    def write(self, registry: Registry, content_hash: str, name: str) -> list[HnetkitError]:
        """Writes beside each file that holds a network, and stores what its sidecars say then, within a `write`.

        A file with several names counts once; links lead to it.

        Args:
            name: of the network, for messages.

        Returns:
            The failures, where it was written beside other files of the network.

        Raises:
            NotFound: no file that holds the network is there as it was scanned.
            HnetkitError: it could be written nowhere, for the reason that is said of the first file.
        """
        places = [Path(names[0]) for names in _names(registry, content_hash)]
        if not places:
            raise NotFound(f"{name}: in no file that is here, and this is kept beside one", hint=WHERE_GONE)
        places = list({folded(str(sidecar(place, ""))): place for place in places}.values())
        failures = [error for place in places if (error := self._try_beside(place)) is not None]
        if len(failures) == len(places):
            raise failures[0]
        read_again(registry, content_hash)
        return failures

    def _try_beside(self, model_file: Path) -> HnetkitError | None:
        try:
            if self.preview is not None:
                _refuse_preview(model_file, self.preview)  # before anything is written
            if self.strength is not None or self.words is not None:
                change_a1111(model_file, self._changed)
            if self.preview is not None:
                _put_preview(model_file, self.preview)
        except Exception as error:
            return failure_of(error, str(model_file))
        return None

    def _changed(self, settings: Json) -> Json:
        """Returns A1111's settings with these values; what is removed becomes what its editor stores for no choice."""
        for key, value in ((_WEIGHT, self.strength), (_WORDS, self.words)):
            if value or (value is not None and key in settings):
                settings[key] = value or A1111_UNSET.get(key, "")
        return settings


def _strength(given: float | str) -> float:
    """Returns a strength as A1111 stores it, a whole one without a point."""
    if given == "":
        return 0
    try:
        number = float(given)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not number:
        what = "no effect" if number == 0 else "not a number"
        raise UsageError(f"the strength {shorten(given)}: {what}", hint="--strength 0.8; an empty one removes it")
    return int(number) if number.is_integer() else number


def _png(path: AnyPath) -> bytes:
    """Returns a picture as a PNG of at most `MOST_SIDE` pixels a side, with the settings that it was drawn with."""
    require_extra("PIL", "a preview")
    from hnetkit.image_text import infotext_of, png_options
    from hnetkit.images import open_rgb

    image, written = open_rgb(path), io.BytesIO()
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    options = png_options(infotext_of(Path(path)))
    options["pnginfo"].add_text(_COPY, "a smaller copy")
    image.save(written, **options)
    return written.getvalue()


def _is_copy(path: Path) -> bool:
    """Whether a picture was made by `_png`; any other may be the only one that somebody has of it."""
    from hnetkit.formats.open_file import OpenFile
    from hnetkit.image_text import read_image_text

    with OpenFile(path) as file:
        return _COPY in read_image_text(file)


def _refuse_preview(model_file: Path, data: bytes) -> None:
    """Raises OutputExists if the preview cannot be put there, or another one is shown whatever is done with it."""
    path = sidecar(model_file, PREVIEW)
    if is_link_elsewhere(path, model_file):
        raise refuse_to_touch(path, "a link to a file elsewhere")
    is_none_to_remove = not data and not is_there(path)
    for shown in (sidecar(model_file, suffix) for suffix in (PREVIEWS if is_none_to_remove else _BEFORE)):
        if is_file_at(shown):
            other = f"there is no {path.name} to remove" if is_none_to_remove else f"not {path.name} beside it"
            hint = f"rename {argument(shown, is_path=True)}, and try again"
            raise OutputExists(f"{shown}: programs show this picture, and {other}", hint=hint)
    if is_file_at(path) and not _is_copy(path):
        hint = f"rename {argument(path, is_path=True)}, and try again"
        raise OutputExists(f"{path}: not a copy that hnetkit made, and is left alone", hint=hint)


def _put_preview(model_file: Path, data: bytes) -> None:
    path = sidecar(model_file, PREVIEW)
    if data:
        replace(path, data, is_new=not is_there(path))
        return
    try:
        os.unlink(path)
    except OSError as error:
        if not is_absence(error):
            raise


def read_again(registry: Registry, content_hash: str) -> None:
    """Stores what the sidecars of a network's files say now, within a `write`, also for others that share them."""
    paths = {Path(path) for names in _names(registry, content_hash) for path in names}
    beside = (Path(row["path"]) for path in paths for row in registry.files.named(path.stem))
    for path in sorted({*paths, *(path for path in beside if path.parent in {own.parent for own in paths})}):
        store_sidecars_of(registry, path)


def _names(registry: Registry, content_hash: str) -> list[list[str]]:
    """Returns the paths of the files that hold a network and are there, those of one file together, links last."""
    return names_of_files(registry.files.holding([content_hash]))
