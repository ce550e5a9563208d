"""What the gallery draws: a strip, a comparison, or a picture again, each a folder that appears whole.


drawing.json    what to draw; it never changes
state.json      how far it is: written by the one process that draws, `hnetkit.gallery.worker`
stop            is there while a person has stopped it
strip.png, strip.jsonl, strip-cells     the grid, as `hnetkit grid` writes it; of several networks, comparison.png
preview.png     of a strip: its pictures as one square, for cards
picture.png     a picture that was drawn again, as `hnetkit generate --from` draws it
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from hnetkit.errors import HnetkitError, UsageError, failure_of
from hnetkit.files import is_there, new_file, stat_at
from hnetkit.generate.grids.files import FAILURE, GridFiles
from hnetkit.generate.request import LARGEST_SEED, MOST_STEPS, is_size
from hnetkit.generate.sampling.samplers import sampler_name
from hnetkit.library.resolve import label
from hnetkit.limits import read_json
from hnetkit.prompts.infotext import is_generation_data
from hnetkit.prompts.tags import plain_number
from hnetkit.text import argument, is_text

State: TypeAlias = Literal["waiting", "drawing", "done", "stopped", "failed"]
Kind: TypeAlias = Literal["strip", "comparison", "picture"]

MOST_NETWORKS, MOST_STRENGTHS, MOST_PROMPT = 6, 9, 4000
LARGEST_STRENGTH = 100.0
STRENGTHS = (0.0, 0.5, 1.0)
SEED = 1
"""One seed for all, so that strips of different networks can be compared."""

FORMAT = "hnetkit.drawing/1"
RECORD, STATE, STOP = FILES = "drawing.json", "state.json", "stop"
_CONTENT = re.compile(r"h1:[0-9a-f]{64}")


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


@dataclass(frozen=True, slots=True)
class PictureToDraw:
    """A picture of a person's to draw again by the settings in it.

    Attributes:
        path: its file.
        size_bytes, modified_ns: of its file when it was asked for, so that no other picture is drawn.
    """

    path: str
    size_bytes: int
    modified_ns: int

    @property
    def is_unchanged(self) -> bool:
        """Whether its file is the one that was asked for."""
        found = stat_at(self.path)
        return found is not None and (found.st_size, found.st_mtime_ns) == (self.size_bytes, self.modified_ns)


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
    """A strip, of one network, or a comparison of several: each a row, with a column for each strength. Or a picture.

    Attributes:
        networks: those to draw; of a picture, those that it names and the library has.
        settings: the defaults for a picture, which has its own.
        picture: what is drawn again; None for a strip or a comparison.
    """

    folder: Path
    networks: tuple[NamedNetwork, ...]
    settings: DrawingSettings
    progress: Progress
    picture: PictureToDraw | None = None
    is_damaged: bool = False

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def kind(self) -> Kind:
        return kind_in(self.id)

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
        return 1 if self.kind == "picture" else len(self.networks) * len(self.settings.strengths)

    @property
    def drawn(self) -> int:
        """How many cells are drawn by now, by the record of the grid."""
        return len(self.pictures())

    def pictures(self) -> dict[tuple[int, int], dict[str, Any]]:
        """(number of the network, number of the strength) -> the row of the grid's record, with all settings.

        A picture that was drawn again is (0, 0), and has its settings in its file.
        """
        if self.kind == "picture":
            return {(0, 0): {}} if is_there(self.sheet) else {}
        rows = GridFiles(self.sheet).rows()
        return {(row.get("y", 0), row.get("x", 0)): row for row in rows if FAILURE not in row}

    def picture_file(self, row: Mapping[str, Any]) -> Path:
        """Returns the file of one of `pictures`."""
        return self.sheet if self.kind == "picture" else GridFiles(self.sheet).image_path(row)

    @property
    def command(self) -> str | None:
        """The command line that draws the same, as far as prompt and model are chosen; None without a prompt."""
        own, progress = self.settings, self.progress
        if self.picture is not None:
            again = {"from": self.picture.path, "model": progress.model, "out": self.sheet.name}
            return " ".join(["hnetkit generate", *_options(again)])
        if not self.prompt:
            return None
        size = None if own.width is None else f"{own.width}x{own.height}"
        given = {
            "prompt": self.prompt,
            "negative-prompt": own.negative_prompt,
            "seed": str(own.seed),
            "strengths": ",".join(map(plain_number, own.strengths)),
            "steps": None if own.steps is None else str(own.steps),
            "sampler": own.sampler,
            "size": size,
            "model": progress.model,
            "out": self.sheet.name,
        }
        return " ".join(["hnetkit grid", *_options(given), *(argument(one.mention) for one in self.networks)])


def read_drawing(folder: Path) -> Drawing:
    """Returns a drawing, whatever became of its records."""
    try:
        networks, settings, picture = _parse_record(_read_json(folder / RECORD))
        kind = "picture" if picture is not None else "strip" if len(networks) == 1 else "comparison"
        if kind != kind_in(folder.name):
            raise HnetkitError(f"{folder / RECORD}: is of another drawing")
    except HnetkitError as error:
        damaged = Progress("failed", message=str(error), next_step="remove it, and draw it anew")
        return Drawing(folder, (), DrawingSettings(), damaged, is_damaged=True)
    try:
        progress = _parse_progress(_read_json(folder / STATE)) if is_there(folder / STATE) else Progress()
        if progress.state in ("waiting", "drawing") and is_there(folder / STOP):
            progress = replace(progress, state="stopped")
    except (HnetkitError, OSError) as error:
        failure = failure_of(error, str(folder / STATE))
        progress = Progress("failed", message=str(failure), next_step="draw it again")
    return Drawing(folder, networks, settings, progress, picture)


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except OSError as error:
        raise failure_of(error, str(path)) from error
    except ValueError as error:
        raise HnetkitError(f"{path}: unreadable ({error})") from error


def _parse_record(record: Any) -> tuple[tuple[NamedNetwork, ...], DrawingSettings, PictureToDraw | None]:
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("networks"), list):
        raise HnetkitError(f"{RECORD}: not the record of a drawing")
    networks = tuple(map(_parse_network, record["networks"]))
    picture = None if record.get("picture") is None else _parse_picture(record["picture"])
    if not (picture is not None or networks) or len(networks) > MOST_NETWORKS:
        raise HnetkitError(f"{RECORD}: not the record of a drawing")
    return networks, DrawingSettings.of(record.get("settings")), picture


def _parse_network(network: Any) -> NamedNetwork:
    fields = ("content_hash", "name")
    if not isinstance(network, dict) or not all(isinstance(network.get(field), str) for field in fields):
        raise HnetkitError(f"{RECORD}: not the record of a drawing")
    if not _CONTENT.fullmatch(network["content_hash"]):
        raise HnetkitError(f"{RECORD}: not the record of a drawing")
    return NamedNetwork(*(network[field] for field in fields))


def _parse_picture(picture: Any) -> PictureToDraw:
    fields = {"path": str, "size_bytes": int, "modified_ns": int}
    if not isinstance(picture, dict) or not all(type(picture.get(key)) is kind for key, kind in fields.items()):
        raise HnetkitError(f"{RECORD}: not the record of a drawing")
    return PictureToDraw(*(picture[key] for key in fields))


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
        raise HnetkitError(f"{STATE}: not the state of a drawing")
    of_texts = {key: state[key] for key in (*texts, *counts)}
    return Progress(state["state"], notes=tuple(state["notes"]), **of_texts)


def write_json(path: Path, value: object) -> None:
    """Writes a record, whole or not at all."""
    with new_file(path, overwrite=True) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


def _is_strength(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST_STRENGTH  # type: ignore[arg-type]


def kind_in(id: str) -> Kind:
    """Returns the kind of drawing that an id names."""
    return id.split("-")[1]  # type: ignore[return-value]


def subject_in(id: str) -> str:
    """Returns the digits of the network in the id of a strip, the picture's id in that of a picture, else nothing."""
    subject = id.split("-")[2:-1]
    return subject[0] if subject else ""


def _options(given: Mapping[str, str | None]) -> Iterator[str]:
    """Yields the options of a command line that have a value; one that begins with a dash is joined to its option."""
    for name, value in given.items():
        if value:
            yield f"--{name}{argument(f'={value}')}" if value.startswith("-") else f"--{name} {argument(value)}"
