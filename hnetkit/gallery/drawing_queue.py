"""What waits to be drawn, is drawn, and was drawn: a folder each below ``drawings`` in the home of hnetkit.

Any number of servers may show one queue. Its order is that of the folders' names, which begin with a time.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import NotFound, UsageError, failure_of
from hnetkit.files import TEMPORARY, is_folder_at, is_there, new_file, new_folder, stat_at
from hnetkit.gallery.drawing import (
    FILES,
    FORMAT,
    MOST_NETWORKS,
    RECORD,
    STATE,
    STOP,
    Drawing,
    DrawingSettings,
    Kind,
    NamedNetwork,
    PictureToDraw,
    Progress,
    State,
    kind_in,
    read_drawing,
    subject_in,
    write_json,
)
from hnetkit.library.records import gone, with_files
from hnetkit.library.suggestions import trigger_words
from hnetkit.prompts.infotext import is_generation_data
from hnetkit.prompts.tags import without_tags
from hnetkit.text import is_text

if TYPE_CHECKING:
    from hnetkit.library.library import Library

_ID = re.compile(r"\d{19}-(?:strip-[0-9a-f]{16}|picture-[0-9a-f]{24}|comparison)-[0-9a-f]{6}")
_TRIGGER_WORDS = 300  # characters of a prompt that is made of them


class DrawingQueue:
    """The drawings of one home: those that wait, the one that is drawn, and those that are done.

    Args:
        home: the folder that `HNETKIT_HOME` names.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "drawings"
        self._read_as: dict[str, tuple[object, Drawing]] = {}

    @property
    def lock(self) -> Path:
        """Locked by the process that draws."""
        return self.home / "locks" / "drawings.lock"

    def add(self, networks: Sequence[NamedNetwork], settings: DrawingSettings) -> Drawing:
        """Adds a strip of one network, or a comparison of up to `MOST_NETWORKS`, at the end.

        Raises:
            UsageError: no networks, too many, or one of them twice.
        """
        contents = [network.content_hash for network in networks]
        if not 0 < len(set(contents)) == len(contents) <= MOST_NETWORKS:
            raise UsageError(f"{len(contents)} networks to draw", hint=f"choose 1 to {MOST_NETWORKS}, each once")
        what = f"strip-{_digits(contents[0])}" if len(contents) == 1 else "comparison"
        return self._add(what, networks, settings)

    def add_picture(self, id: str, picture: PictureToDraw, networks: Sequence[NamedNetwork]) -> Drawing:
        """Adds a picture to draw again, at the end.

        Args:
            id: of the picture, 24 hexadecimal digits.
            networks: those of the library that it names; of more than `MOST_NETWORKS`, the first ones decide which
                model draws.
        """
        return self._add(f"picture-{id}", networks[:MOST_NETWORKS], DrawingSettings(), picture)

    def _add(
        self,
        what: str,
        networks: Sequence[NamedNetwork],
        settings: DrawingSettings,
        picture: PictureToDraw | None = None,
    ) -> Drawing:
        record: dict[str, Any] = {
            "format": FORMAT,
            "networks": list(map(asdict, networks)),
            "settings": asdict(settings),
        }
        if picture is not None:
            record["picture"] = asdict(picture)
        self.folder.mkdir(parents=True, exist_ok=True)
        last = int(ids[-1].partition("-")[0]) if (ids := self._ids()) else 0
        moment = min(max(time.time_ns(), last + 1), 10**19 - 1)  # the clock may have been set back since the last one
        folder = self.folder / f"{moment:019}-{what}-{secrets.token_hex(3)}"
        with new_folder(folder) as temporary:
            write_json(temporary / RECORD, record)
        return self.drawing(folder.name)

    def drawings(self) -> list[Drawing]:
        """Returns all, in their order. One whose record cannot be read counts as failed, with the reason."""
        return [self._drawing(id) for id in self._ids()]

    def drawing(self, id: str) -> Drawing:
        """Returns one of them.

        Raises:
            NotFound: there is none with this id.
        """
        if not _ID.fullmatch(id) or not is_folder_at(self.folder / id):
            raise NotFound("there is no such drawing any more")
        return self._drawing(id)

    def next(self) -> Drawing | None:
        """Returns the one to draw now: the one that an ended process had begun, else the first that waits."""
        pending = [drawing for drawing in self.drawings() if drawing.state in ("waiting", "drawing")]
        return min(pending, key=lambda drawing: drawing.state != "drawing", default=None)

    def strip_of(self, content_hash: str) -> Drawing | None:
        """Returns the latest strip of a network that is done, whatever its file is called."""
        return next(iter(self.strips_of([content_hash]).values()), None)

    def strips_of(self, contents: Iterable[str], states: Container[State] = ("done",)) -> dict[str, Drawing]:
        """Returns content hash -> its latest strip in one of these states."""
        wanted = {_digits(content): content for content in contents}
        found: dict[str, Drawing] = {}
        for id in reversed(self._ids()):
            content = wanted.get(subject_in(id))
            if content is None or content in found:
                continue
            drawing = self._drawing(id)
            if drawing.state in states and drawing.networks and drawing.networks[0].content_hash == content:
                found[content] = drawing
        return found

    def drawings_of(self, contents: Iterable[str]) -> list[Drawing]:
        """Returns the strips of a network, or the comparisons of exactly these networks, the latest first."""
        wanted = set(contents)
        digits = _digits(next(iter(wanted))) if len(wanted) == 1 else ""
        of_kind = self._of("strip" if digits else "comparison", digits)
        return [one for one in of_kind if {network.content_hash for network in one.networks} == wanted]

    def drawings_of_picture(self, id: str) -> list[Drawing]:
        """Returns a picture as it was drawn again, the latest first."""
        return self._of("picture", id)

    def _of(self, kind: Kind, subject: str) -> list[Drawing]:
        ids = (id for id in reversed(self._ids()) if kind_in(id) == kind and subject_in(id) == subject)
        return [self._drawing(id) for id in ids]

    def stop(self, id: str) -> Drawing:
        """Stops a drawing that waits or is drawn; the cells that it has stay.

        Raises:
            NotFound: there is none with this id.
            UsageError: it has ended already.
        """
        drawing = self.drawing(id)
        if drawing.state not in ("waiting", "drawing"):
            raise UsageError(f"the drawing is {drawing.state}, there is nothing to stop")
        with new_file(drawing.folder / STOP, overwrite=True):
            pass
        return self.drawing(id)

    def again(self, id: str) -> Drawing:
        """Lets a drawing go on that was stopped, failed, or lacks cells; those that it has are kept.

        Raises:
            NotFound: there is none with this id.
            UsageError: it is drawn or complete, or its record cannot be read.
        """
        drawing = self.drawing(id)
        if drawing.is_damaged:
            raise UsageError(drawing.progress.message, hint="remove it, and draw it anew")
        is_complete = drawing.state == "done" and drawing.drawn == drawing.cells
        if drawing.state in ("waiting", "drawing") or is_complete:
            raise UsageError(f"the drawing is {drawing.state}", hint="change a setting to draw another")
        for name in (STATE, STOP):
            (drawing.folder / name).unlink(missing_ok=True)
        return self.drawing(id)

    def remove(self, id: str) -> None:
        """Removes a drawing with its pictures.

        Raises:
            NotFound: there is none with this id.
            UsageError: it is being drawn.
        """
        drawing = self.drawing(id)
        if drawing.state == "drawing":
            raise UsageError("the drawing is being drawn", hint="stop it first")
        going = drawing.folder.with_name(f".{id}.{secrets.token_hex(8)}{TEMPORARY}")
        os.rename(drawing.folder, going)  # at once; a process that ends removes the rest later, as all half-made ones
        shutil.rmtree(going, ignore_errors=True)
        self._read_as.pop(id, None)

    def is_stopped(self, drawing: Drawing) -> bool:
        """Whether a person has stopped or removed a drawing."""
        return is_there(drawing.folder / STOP) or not is_there(drawing.folder)

    def write(self, drawing: Drawing, progress: Progress) -> Drawing:
        """Writes how far a drawing is; for the process that holds `lock`. One that was removed stays away."""
        if is_there(drawing.folder):
            write_json(drawing.folder / STATE, asdict(progress))
        return replace(drawing, progress=progress)

    def _drawing(self, id: str) -> Drawing:
        """Returns a drawing, read again if its state has changed: a page asks for hundreds each second."""
        folder = self.folder / id
        try:
            seen = [(found.st_mtime_ns, found.st_ino) if (found := stat_at(folder / name)) else None for name in FILES]
        except OSError:  # said where it is read
            return read_drawing(folder)
        known = self._read_as.get(id)
        if known is None or known[0] != seen:
            self._read_as[id] = known = seen, read_drawing(folder)
        return known[1]

    def _ids(self) -> list[str]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise failure_of(error, str(self.folder)) from error
        return sorted(filter(_ID.fullmatch, names))


def networks_of(library: Library, contents: Sequence[str]) -> list[NamedNetwork]:
    """Returns networks of the library as they are to be drawn.

    Args:
        contents: content hashes.

    Raises:
        NotFound: one of them is not in the library.
    """
    known = library.registry.networks.of_contents(list(contents))
    rows = {row["content_hash"]: row for row in with_files(library.registry, known)}
    for content in contents:
        if content not in rows:
            raise gone(library.registry, content)
    return [NamedNetwork(content, rows[content]["name"]) for content in contents]


def suggested_prompt(library: Library, networks: Iterable[NamedNetwork]) -> str:
    """Returns a prompt of the trigger words of the first of some networks that has any; empty if none has.

    They may come from strangers: tags of networks in them are left out, and more than a prompt.

    Raises:
        NotFound: the library has one of the networks no more.
    """
    for network in networks:
        words = trigger_words(library.record(network.content_hash))
        if is_text(words) and not is_generation_data(words):
            words = " ".join(words.split())
            if len(words) > _TRIGGER_WORDS:
                end = words.rfind(", ", 0, _TRIGGER_WORDS + len(", "))
                words = words[: _TRIGGER_WORDS if end < 0 else end]
            if prompt := " ".join(without_tags(words).split()).strip(" ,"):
                return prompt
    return ""


def _digits(content_hash: str) -> str:
    """Returns the digits of a content hash that are in the names of its strips."""
    return content_hash.removeprefix("h1:")[:16]
