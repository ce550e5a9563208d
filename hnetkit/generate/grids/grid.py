"""Drawing a grid: batch by batch, each picture on disk before the next batch, then all of them on one sheet."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import BadPicture, HnetkitError, failure_of
from hnetkit.generate.description import infotext_of
from hnetkit.generate.grids.asked import Grid
from hnetkit.generate.grids.axes import Content, label_of
from hnetkit.generate.grids.batches import Batch
from hnetkit.generate.grids.cells import Cell
from hnetkit.generate.grids.grid_files import FAILURE, GridFiles, Row, row_of
from hnetkit.generate.grids.sheet import Section, SheetRow, draw_sheet, font_of, most_side
from hnetkit.generate.networks import StackedPrompt
from hnetkit.generate.picture import draw_each
from hnetkit.generate.pipeline import LoadedPipeline
from hnetkit.generate.request import Request
from hnetkit.generate.resolved import Note, ResolvedPrompts, untold
from hnetkit.generate.session import DrawSession
from hnetkit.images import stored_size
from hnetkit.prompts import infotext
from hnetkit.text import counted

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[float, float], None]
"""Called with the pictures done, the one at work in part, and the pictures in all."""

_NOT_OF_A_CELL = frozenset({"prompt", "seed", "count", "batch_size", "stack", "start", "second"})


@dataclass(frozen=True, slots=True)
class Studio:
    """What turns cells into pictures.

    Attributes:
        load: loads the model of a checkpoint; None is the one that was asked for beside the axes.
        request: gives the request for a cell, without stacks.
        hires: the second pass's prompt, where it has one of its own.
        embeddings: files of textual inversions that any cell names.
        own: a model of somebody who goes on with it afterwards.
        note: told what is odd about a file and no failure.
    """

    load: Callable[[str | None], LoadedPipeline]
    request: Callable[[LoadedPipeline, Cell], Request]
    hires: StackedPrompt | None = None
    embeddings: Sequence[Path] = ()
    own: LoadedPipeline | None = None
    note: Note = untold

    def prompts(self, cell: Cell) -> ResolvedPrompts:
        """Returns what a cell asks for."""
        return ResolvedPrompts(cell.stacked, self.hires, cell.loras)


def draw_batches(
    batches: Sequence[Batch],
    places: Mapping[str, Sequence[Mapping[str, Any]]],
    files: GridFiles,
    studio: Studio,
    progress: Progress | None = None,
) -> dict[str, HnetkitError]:
    """Draws batches and puts each picture on disk and on record; a model is loaded once, and let go after its last.

    Whatever goes wrong with one picture, its networks or its model is on record as its failure; the others are drawn.

    Args:
        batches: those of one checkpoint are neighbours.
        places: key -> where on the grid its picture is shown. Pictures of other keys are drawn as companions, and
            not written.

    Returns:
        key -> why its picture could not be drawn.
    """
    total = sum(len(batch.cells) for batch in batches)
    done = 0
    failures: dict[str, HnetkitError] = {}

    def fail(batch: Batch, found: Mapping[str, HnetkitError]) -> None:
        own = {key: failure for key, failure in found.items() if key in places}
        failures.update(own)
        for cell, key in zip(batch.cells, batch.keys, strict=True):
            if key in own:
                facts = {**_asked(cell), FAILURE: str(own[key]), "hint": own[key].hint}
                files.append([row_of(key, place, facts) for place in places[key]])

    for checkpoint, group in groupby(batches, key=lambda batch: batch.checkpoint):
        together = list(group)
        drawable = [batch for batch in together if batch.cells[0].failure is None]
        session = _opened(checkpoint, drawable, studio) if drawable else None
        with session if isinstance(session, DrawSession) else nullcontext():
            for batch in together:
                before, size = done, len(batch.cells)

                def report(calls: int, of_calls: int, before: int = before, size: int = size) -> None:
                    if progress is not None:
                        progress(before + size * calls / of_calls, total)

                unusable = batch.cells[0].failure or (session if isinstance(session, HnetkitError) else None)
                if unusable is not None or not isinstance(session, DrawSession):
                    fail(batch, {key: unusable for key in batch.keys if unusable is not None})
                else:
                    fail(batch, _drawn(session, studio, batch, places, files, report))
                done += size
        if isinstance(session, DrawSession) and session.model is not studio.own:
            with suppress(AttributeError):
                session.model.pipe.remove_all_hooks()
        del session
        _free()  # before another model comes
    return failures


def _opened(checkpoint: str | None, batches: Sequence[Batch], studio: Studio) -> DrawSession | HnetkitError:
    stacks = [batch.cells[0].networks for batch in batches]
    stacks += [studio.hires.networks] if studio.hires else []
    try:
        return DrawSession(studio.load(checkpoint), stacks, embeddings=studio.embeddings, note=studio.note)
    except Exception as error:
        return failure_of(error, checkpoint or "the model")


def _free() -> None:
    """Gives back the memory of a model that nobody has any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _drawn(
    session: DrawSession,
    studio: Studio,
    batch: Batch,
    places: Mapping[str, Sequence[Mapping[str, Any]]],
    files: GridFiles,
    report: Callable[[int, int], None],
) -> dict[str, HnetkitError]:
    """Draws a batch and puts its pictures on disk and on record; returns key -> why there is none."""
    failures: dict[str, HnetkitError] = {}
    try:
        first = batch.cells[0]
        request = session.prepared(studio.request(session.model, first), studio.prompts(first))
        pictures = draw_each(session.model, request, batch.seeds, report)
        for cell, key, number, picture in zip(batch.cells, batch.keys, batch.numbers, pictures, strict=True):
            if isinstance(picture, BadPicture):
                failures[key] = picture
            elif key in places:
                own = replace(request, seed=picture.seed)
                facts = _facts(session.model, own, cell, batch, studio.prompts(cell).hashes)
                path = files.write(number, key, picture.image, str(facts["infotext"]))
                files.append([row_of(key, place, {"picture": path, **facts}) for place in places[key]])
    except Exception as error:
        failure = failure_of(error, batch.cells[0].prompt.written)
        return {key: failures.get(key, failure) for key in batch.keys}
    return failures


def _asked(cell: Cell) -> dict[str, Any]:
    """Returns what a picture that could not be drawn was asked to be."""
    return {
        "prompt": cell.prompt.written,
        "negative_prompt": cell.draft.negative_prompt,
        "seed": cell.draft.seed,
        "checkpoint": cell.draft.checkpoint,
    }


def _facts(
    model: LoadedPipeline, request: Request, cell: Cell, batch: Batch, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Returns all that a picture was drawn by, for the record."""
    second = None if request.second is None else asdict(request.second)
    if second is not None:
        del second["stack"]
    return {
        "prompt": cell.prompt.written,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        **{at.name: getattr(request, at.name) for at in fields(request) if at.name not in _NOT_OF_A_CELL},
        "start": None if request.start is None else asdict(request.start),
        "second": second,
        "batch": list(batch.seeds),
        "hypernetworks": [
            {"name": network.name, "strength": tag.multiplier, "hash": network.hash, "tag": str(tag)}
            for network, tag in zip(cell.networks, cell.prompt.tags, strict=True)
        ],
        "model": model.name,
        "model_hash": model.hash,
        "infotext": infotext_of(model, request, request.seed, cell.prompt.written, hashes),
    }


def make_sheet(
    grid: Grid,
    rows: Sequence[Row],
    files: GridFiles,
    title: str,
    names: Mapping[tuple[str, Content], str],
) -> Image.Image:
    """Returns the sheet.

    Args:
        rows: of the record, one for each cell in reading order; at least one has a picture.
        title: above everything.
        names: see `label_of`.
    """
    first = next(row for row in rows if FAILURE not in row)
    absent = _no_picture(files.picture(first)) if any(FAILURE in row for row in rows) else None
    pictures = {
        tuple(row[side] for side in "xyz"): files.picture(row) if absent is None or FAILURE not in row else absent
        for row in rows
    }
    sections = [
        Section(
            label_of(in_depth, names),
            [
                SheetRow(label_of(down, names), [pictures[x, y, z] for x in range(len(grid.x))])
                for y, down in enumerate(grid.y)
            ],
        )
        for z, in_depth in enumerate(grid.z)
    ]
    columns = [label_of(across, names) for across in grid.x]
    return draw_sheet(title, _caption(grid, first), columns, sections, most_side(files.sheet))


def _no_picture(example: Path) -> Image.Image:
    """Returns what stands on a sheet where a picture could not be drawn, as large as another one."""
    from PIL import Image, ImageDraw

    size = stored_size(example)
    tile = Image.new("RGB", size, "#e6e6e6")
    pen = ImageDraw.Draw(tile)
    font = font_of(max(4, min(size) // 5))
    pen.line([(0, 0), size], fill="#c8c8c8")
    pen.text((size[0] / 2, size[1] / 2), "failed", fill="#a02020", font=font, anchor="mm")
    return tile


def infotext_of_sheet(grid: Grid, rows: Sequence[Row], names: Mapping[tuple[str, Content], str]) -> str:
    """Returns the infotext of a grid's first picture, and what varies."""
    rows = [row for row in rows if FAILURE not in row]
    first = rows[0]
    own = infotext.parse(first["infotext"]).parameters
    hashes = {name: value for row in rows for name, value in infotext.parse(row["infotext"]).hashes.items()}
    varying = {
        _IN_INFOTEXT.get(coordinate, f"Grid {coordinate}"): ", ".join(
            _said(coordinate, value, names) for value in values
        )
        for coordinate, values in grid.varied().items()
    }
    parameters = {name: value for name, value in own.items() if name not in ("Hashes", "Version")}
    written = {**parameters, **varying, "Version": own.get("Version")}
    return infotext.write(first["prompt"], first["negative_prompt"], written, hashes)


_IN_INFOTEXT = {
    **{"hypernetwork": "Grid networks", "strength": "Grid strengths", "order": "Grid orders", "seed": "Grid seeds"},
    **{"prompt": "Grid prompts", "cfg": "Grid CFG scales", "sampler": "Grid samplers"},
    **{"checkpoint": "Grid checkpoints"},
}


def _said(coordinate: str, value: Content, names: Mapping[tuple[str, Content], str]) -> str:
    if isinstance(value, tuple):
        return " + ".join(value)
    return names.get((coordinate, value)) or (
        "none" if value is None else f"{value:g}" if type(value) is float else str(value)
    )


def _caption(grid: Grid, row: Row) -> str:
    """Returns what is the same in all cells."""
    varied = grid.varied()
    parts = {
        "checkpoint": row["model"],
        "seed": f"seed {row['seed']}",
        "sampler": row["sampler"],
        "steps": counted(row["steps"], "step"),
        "cfg": f"CFG {row['cfg_scale']:g}",
    }
    return "  ·  ".join(part for coordinate, part in parts.items() if coordinate not in varied)
