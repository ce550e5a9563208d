"""Strips and comparisons to draw, as a queue on the disk.

Each drawing is a folder below ``drawings`` in the home of hnetkit, which appears whole:

    drawing.json    what to draw; it never changes
    state.json      how far it is: written by the one process that draws, `hnetkit.gallery.worker`
    stop            is there while a person has stopped it
    strip.png, strip.jsonl, strip-cells     the grid, as `hnetkit grid` writes it; of several networks, comparison.png
    preview.png     of a strip: its pictures as one square, for cards

Any number of servers may show one queue. Its order is that of the folders' names, which begin with a time.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from hnetkit.errors import HnetkitError, NotFound, UsageError, failure_of
from hnetkit.files import TEMPORARY, is_folder_at, is_there, new_file, new_folder, stat_at
from hnetkit.generate.grids.files import FAILURE, GridFiles
from hnetkit.generate.request import LARGEST_SEED, MOST_STEPS, is_size
from hnetkit.generate.sampling.samplers import sampler_name
from hnetkit.library.records import with_files
from hnetkit.library.resolve import label
from hnetkit.library.suggestions import trigger_words
from hnetkit.limits import read_json
from hnetkit.prompts.infotext import is_generation_data
from hnetkit.prompts.tags import plain_number, without_tags
from hnetkit.text import argument, is_text

if TYPE_CHECKING:
    from hnetkit.library.library import Library

State: TypeAlias = Literal["waiting", "drawing", "done", "stopped", "failed"]

MOST_NETWORKS, MOST_STRENGTHS, MOST_PROMPT = 6, 9, 4000
LARGEST_STRENGTH = 100.0
STRENGTHS = (0.0, 0.5, 1.0)
SEED = 1
"""One seed for all, so that strips of different networks can be compared."""

_FORMAT = "hnetkit.drawing/1"
_RECORD, _STATE, _STOP = _FILES = "drawing.json", "state.json", "stop"
_ID = re.compile(r"\d{19}-(?:strip-[0-9a-f]{16}|comparison)-[0-9a-f]{6}")
_CONTENT = re.compile(r"h1:[0-9a-f]{64}")
_TRIGGER_WORDS = 300  # characters of a prompt that is made of them


@dataclass(frozen=True, slots=True)
class NamedNetwork:
    """A network to draw with, and its name when it was asked for."""

    content_hash: str
    name: str

    @property
    def mention(self) -> str:
        """What a command calls it, whatever else has its name."""
        has_plain_name = self.name and not self.name.startswith("-") and not set(self.name) & set(":/\\")
        return label(self.name, self.content_hash) if has_plain_name else self.content_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingSettings:
    """The settings of a strip or a comparison.

    Attributes:
        prompt: empty takes the trigger words of the first network, else an example that suits the model.
        strengths: the columns.
        steps, sampler, width, height: None takes the model's own, else 20 steps of Euler a at the size of the model's
            training: 512 x 512 for Stable Diffusion 1.
    """

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = SEED
    strengths: tuple[float, ...] = STRENGTHS
    steps: int | None = None
    sampler: str | None = None
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        for prompt in (self.prompt, self.negative_prompt):
            if not isinstance(prompt, str) or len(prompt) > MOST_PROMPT or not is_text(prompt):
                raise UsageError(f"a prompt is a text of at most {MOST_PROMPT:,} characters", hint="shorten the prompt")
            if is_generation_data(prompt):
                raise UsageError("the prompt is the generation data of a picture", hint="give the prompt alone")
        if type(self.seed) is not int or not 0 <= self.seed <= LARGEST_SEED:
            raise UsageError(f"a seed is a whole number from 0 to {LARGEST_SEED}", hint=f"for example {SEED}")
        if not 0 < len(self.strengths) <= MOST_STRENGTHS or not all(map(_is_strength, self.strengths)):
            raise UsageError(
                f"strengths are 1 to {MOST_STRENGTHS} numbers from -{LARGEST_STRENGTH:g} to {LARGEST_STRENGTH:g}",
                hint="for example 0, 0.5, 1",
            )
        if self.steps is not None and (type(self.steps) is not int or not 1 <= self.steps <= MOST_STEPS):
            raise UsageError(f"steps are a whole number from 1 to {MOST_STEPS}", hint="for example 20")
        if (self.width is None) is not (self.height is None) or not all(
            side is None or is_size(side) for side in (self.width, self.height)
        ):
            raise UsageError("width and height are multiples of 8, in pixels", hint="for example 512 and 512")

    @classmethod
    def of(cls, given: object) -> DrawingSettings:
        """Reads settings from JSON, which may come from anybody.

        Raises:
            UsageError: a value is out of its range, or there is no such setting.
        """
        if not isinstance(given, Mapping) or not all(key in cls.__dataclass_fields__ for key in given):
            raise UsageError("no settings of a drawing", hint=f"they are: {', '.join(cls.__dataclass_fields__)}")
        values: dict[str, Any] = dict(given)
        if "strengths" in values:
            listed = values["strengths"]
            if not isinstance(listed, list | tuple) or not all(map(_is_strength, listed)):
                raise UsageError("strengths are a list of numbers", hint="for example 0, 0.5, 1")
            values["strengths"] = tuple(map(float, listed))
        sampler = values.get("sampler")
        if sampler is not None:
            if not isinstance(sampler, str):
                raise UsageError("a sampler is a name", hint="for example Euler a")
            try:
                values["sampler"] = sampler_name(sampler)
            except UsageError as error:
                hint = error.command_hint and error.command_hint.removeprefix("--sampler ")
                raise UsageError(str(error).removeprefix("--sampler "), hint=hint) from error
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drawing is, as ``state.json`` holds it.

    Attributes:
        prompt, model: those that are drawn with; empty until they are chosen.
        message, next_step: why it failed, and what to do.
        notes: what the person should know of the pictures.
        starts: how often a process began to draw it without finishing another cell.
        cells: that were drawn when it began.
    """

    state: State = "waiting"
    prompt: str = ""
    model: str = ""
    message: str = ""
    next_step: str = ""
    notes: tuple[str, ...] = ()
    starts: int = 0
    cells: int = 0


@dataclass(frozen=True, slots=True)
class Drawing:
    """A strip, of one network, or a comparison of several: each a row, with a column for each strength."""

    folder: Path
    networks: tuple[NamedNetwork, ...]
    settings: DrawingSettings
    progress: Progress
    is_damaged: bool = False

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def kind(self) -> Literal["strip", "comparison"]:
        return "strip" if _strip_digits(self.id) else "comparison"

    @property
    def state(self) -> State:
        return self.progress.state

    @property
    def sheet(self) -> Path:
        return self.folder / f"{self.kind}.png"

    @property
    def prompt(self) -> str:
        """What is drawn; empty as long as it is not chosen."""
        return self.progress.prompt or self.settings.prompt

    @property
    def preview(self) -> Path:
        return self.folder / "preview.png"

    @property
    def cells(self) -> int:
        return len(self.networks) * len(self.settings.strengths)

    @property
    def drawn(self) -> int:
        """How many cells are drawn by now, by the record of the grid."""
        return len(self.pictures())

    def pictures(self) -> dict[tuple[int, int], dict[str, Any]]:
        """(number of the network, number of the strength) -> the row of the grid's record, with all settings."""
        rows = GridFiles(self.sheet).rows()
        return {(row.get("y", 0), row.get("x", 0)): row for row in rows if FAILURE not in row}

    def picture(self, row: Mapping[str, Any]) -> Path:
        """Returns the file of one of `pictures`."""
        return GridFiles(self.sheet).image_path(row)

    @property
    def command(self) -> str | None:
        """The command line that draws the same, as far as prompt and model are chosen; None without a prompt."""
        own, progress = self.settings, self.progress
        if not self.prompt:
            return None
        size = None if own.width is None else f"{own.width}x{own.height}"
        given = {
            "prompt": self.prompt,
            "negative-prompt": own.negative_prompt,
            "seed": str(own.seed),
            "strengths": ",".join(map(plain_number, own.strengths)),
            "steps": own.steps and str(own.steps),
            "sampler": own.sampler,
            "size": size,
            "model": progress.model,
            "out": self.sheet.name,
        }
        options = [_option(name, value) for name, value in given.items() if value]
        return " ".join(["hnetkit grid", *options, *(argument(one.mention) for one in self.networks)])


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
        record = {"format": _FORMAT, "networks": list(map(asdict, networks)), "settings": asdict(settings)}
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = self.folder / f"{time.time_ns():019}-{what}-{secrets.token_hex(3)}"
        with new_folder(folder) as temporary:
            _write_json(temporary / _RECORD, record)
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
            content = wanted.get(_strip_digits(id))
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
        of_kind = (self._drawing(id) for id in reversed(self._ids()) if _strip_digits(id) == digits)
        return [one for one in of_kind if {network.content_hash for network in one.networks} == wanted]

    def stop(self, id: str) -> Drawing:
        """Stops a drawing that waits or is drawn; the cells that it has stay.

        Raises:
            NotFound: there is none with this id.
            UsageError: it has ended already.
        """
        drawing = self.drawing(id)
        if drawing.state not in ("waiting", "drawing"):
            raise UsageError(f"the drawing is {drawing.state}, there is nothing to stop")
        with new_file(drawing.folder / _STOP, overwrite=True):
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
        for name in (_STATE, _STOP):
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
        return is_there(drawing.folder / _STOP) or not is_there(drawing.folder)

    def write(self, drawing: Drawing, progress: Progress) -> Drawing:
        """Writes how far a drawing is; for the process that holds `lock`. One that was removed stays away."""
        if is_there(drawing.folder):
            _write_json(drawing.folder / _STATE, asdict(progress))
        return replace(drawing, progress=progress)

    def _drawing(self, id: str) -> Drawing:
        """Returns a drawing, read again if its state has changed: a page asks for hundreds each second."""
        folder = self.folder / id
        try:
            seen = [(found.st_mtime_ns, found.st_ino) if (found := stat_at(folder / name)) else None for name in _FILES]
        except OSError:  # said where it is read
            return _read(folder)
        known = self._read_as.get(id)
        if known is None or known[0] != seen:
            self._read_as[id] = known = seen, _read(folder)
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
            raise NotFound("the library has no such network any more", hint="hnetkit scan")
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
            while len(words) > _TRIGGER_WORDS and ", " in words:
                words = words.rpartition(", ")[0]
            if prompt := " ".join(without_tags(words[:_TRIGGER_WORDS]).split()).strip(" ,"):
                return prompt
    return ""


def _read(folder: Path) -> Drawing:
    """Returns a drawing, whatever became of its records."""
    try:
        networks, settings = _parse_record(_read_json(folder / _RECORD))
        if (len(networks) == 1) is not bool(_strip_digits(folder.name)):
            raise HnetkitError(f"{folder / _RECORD}: is of another drawing")
    except HnetkitError as error:
        damaged = Progress("failed", message=str(error), next_step="remove it, and draw it anew")
        return Drawing(folder, (), DrawingSettings(), damaged, is_damaged=True)
    try:
        progress = _parse_progress(_read_json(folder / _STATE)) if is_there(folder / _STATE) else Progress()
        if progress.state in ("waiting", "drawing") and is_there(folder / _STOP):
            progress = replace(progress, state="stopped")
    except (HnetkitError, OSError) as error:
        failure = failure_of(error, str(folder / _STATE))
        progress = Progress("failed", message=str(failure), next_step="draw it again")
    return Drawing(folder, networks, settings, progress)


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except OSError as error:
        raise failure_of(error, str(path)) from error
    except ValueError as error:
        raise HnetkitError(f"{path}: unreadable ({error})") from error


def _parse_record(record: Any) -> tuple[tuple[NamedNetwork, ...], DrawingSettings]:
    if not isinstance(record, dict) or record.get("format") != _FORMAT or not isinstance(record.get("networks"), list):
        raise HnetkitError(f"{_RECORD}: not the record of a drawing")
    networks = tuple(map(_parse_network, record["networks"]))
    if not 0 < len(networks) <= MOST_NETWORKS:
        raise HnetkitError(f"{_RECORD}: not the record of a drawing")
    return networks, DrawingSettings.of(record.get("settings"))


def _parse_network(network: Any) -> NamedNetwork:
    fields = ("content_hash", "name")
    if not isinstance(network, dict) or not all(isinstance(network.get(field), str) for field in fields):
        raise HnetkitError(f"{_RECORD}: not the record of a drawing")
    if not _CONTENT.fullmatch(network["content_hash"]):
        raise HnetkitError(f"{_RECORD}: not the record of a drawing")
    return NamedNetwork(*(network[field] for field in fields))


def _parse_progress(state: Any) -> Progress:
    texts, counts = ("prompt", "model", "message", "next_step"), ("starts", "cells")
    if (
        not isinstance(state, dict)
        or state.get("state") not in ("waiting", "drawing", "done", "failed")
        or not all(isinstance(state.get(key), str) for key in texts)
        or not all(type(state.get(key)) is int for key in counts)
        or not isinstance(state.get("notes"), list)
        or not all(isinstance(note, str) for note in state["notes"])
    ):
        raise HnetkitError(f"{_STATE}: not the state of a drawing")
    of_texts = {key: state[key] for key in (*texts, *counts)}
    return Progress(state["state"], notes=tuple(state["notes"]), **of_texts)


def _write_json(path: Path, value: object) -> None:
    with new_file(path, overwrite=True) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


def _is_strength(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST_STRENGTH  # type: ignore[arg-type]


def _digits(content_hash: str) -> str:
    """Returns the digits of a content hash that are in the names of its strips."""
    return content_hash.removeprefix("h1:")[:16]


def _strip_digits(id: str) -> str:
    """Returns the digits in the id of a strip; empty for a comparison."""
    return id.split("-")[2] if "-strip-" in id else ""


def _option(name: str, value: str) -> str:
    """Returns an option of a command line; a value that begins with a dash is joined to it."""
    return f"--{name}{argument(f'={value}')}" if value.startswith("-") else f"--{name} {argument(value)}"
