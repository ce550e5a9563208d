"""Rendering a grid: batch by batch, each image on disk before the next batch, then all of them on one sheet."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import BadPicture, HnetkitError, failure_of
from hnetkit.generate.grids.axes import Content, label_of
from hnetkit.generate.grids.batches import Batch
from hnetkit.generate.grids.cells import Cell
from hnetkit.generate.grids.files import FAILURE, GridFiles, Row, row_of
from hnetkit.generate.grids.sheet import Section, SheetRow, draw_sheet, font_of, most_side
from hnetkit.generate.grids.spec import Grid
from hnetkit.generate.image_infotext import infotext_of
from hnetkit.generate.loading.pipeline import LoadedPipeline
from hnetkit.generate.prompt_networks import Note, ResolvedPrompts, StackedPrompt, ignore_note
from hnetkit.generate.request import Request
from hnetkit.images import image_size
from hnetkit.prompts import infotext
from hnetkit.prompts.chunks import WordsOf
from hnetkit.text import counted

if TYPE_CHECKING:
    from PIL import Image

    from hnetkit.generate.session import DrawSession

Progress = Callable[[float, float], None]
"""Called with the images done, counting parts of the current one, and the images in all."""

_NOT_RECORDED = frozenset({"prompt", "seed", "count", "batch_size", "stack", "init_image", "second"})


@dataclass(frozen=True, slots=True)
class Renderer:
    """What batches need to be drawn.

    Attributes:
        load: loads the model of a checkpoint; None is the grid's own model.
        request: returns the request of a cell, without stacks.
        hires: the prompt of the second pass, if it has its own.
        embeddings: files of textual inversions that any cell names.
        own: a model that the caller keeps using, so it is not unloaded.
        note: called with each message for the user.
    """

    load: Callable[[str | None], LoadedPipeline]
    request: Callable[[LoadedPipeline, Cell], Request]
    hires: StackedPrompt | None = None
    embeddings: Sequence[Path] = ()
    own: LoadedPipeline | None = None
    note: Note = ignore_note

    def prompts(self, cell: Cell, request: Request) -> ResolvedPrompts:
        """Returns the prompts of a cell, with the textual inversions that they name.

        Args:
            request: of the cell.
        """
        read = WordsOf(request.pieces)
        named = (path for path in self.embeddings if read.have(path.stem))
        return ResolvedPrompts(cell.stacked, self.hires, cell.loras, tuple(named))


def draw_batches(
    batches: Sequence[Batch],
    positions: Mapping[str, Sequence[Mapping[str, Any]]],
    files: GridFiles,
    renderer: Renderer,
    progress: Progress | None = None,
) -> dict[str, HnetkitError]:
    """Draws batches and writes each image and its record; a model is loaded once, and freed after its last batch.

    An error of one image, its networks or its model is recorded as its failure; the others are drawn.

    Args:
        batches: those of one checkpoint are neighbors.
        positions: key -> where on the grid its image is shown. Images with other keys are drawn because they share a
            batch, and not written.

    Returns:
        key -> why its image could not be drawn.
    """
    from hnetkit.generate.session import DrawSession

    total = sum(len(batch.cells) for batch in batches)
    done = 0
    failures: dict[str, HnetkitError] = {}

    def fail(batch: Batch, found: Mapping[str, HnetkitError]) -> None:
        own = {key: failure for key, failure in found.items() if key in positions}
        failures.update(own)
        for cell, key in zip(batch.cells, batch.keys, strict=True):
            if key in own:
                facts = {**_request_facts(cell), FAILURE: str(own[key]), "hint": own[key].command_hint}
                files.append([row_of(key, position, facts) for position in positions[key]])

    for number, (checkpoint, group) in enumerate(groupby(batches, key=lambda batch: batch.checkpoint)):
        if number:
            _free_memory()  # before another model comes
        together = list(group)
        drawable = [batch for batch in together if batch.cells[0].failure is None]
        session = _open_session(checkpoint, drawable, renderer) if drawable else None
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
                    fail(batch, _draw_batch(session, renderer, batch, positions, files, report))
                done += size
        if isinstance(session, DrawSession) and session.model is not renderer.own:
            with suppress(AttributeError):
                session.model.pipe.remove_all_hooks()
        del session
    return failures


def _open_session(checkpoint: str | None, batches: Sequence[Batch], renderer: Renderer) -> DrawSession | HnetkitError:
    from hnetkit.generate.session import DrawSession

    stacks = [batch.cells[0].networks for batch in batches]
    stacks += [renderer.hires.networks] if renderer.hires else []
    try:
        return DrawSession(renderer.load(checkpoint), stacks, embeddings=renderer.embeddings, note=renderer.note)
    except Exception as error:
        return failure_of(error, checkpoint or "the model")


def _free_memory() -> None:
    """Frees the memory of a model that is no longer used."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _draw_batch(
    session: DrawSession,
    renderer: Renderer,
    batch: Batch,
    positions: Mapping[str, Sequence[Mapping[str, Any]]],
    files: GridFiles,
    report: Callable[[int, int], None],
) -> dict[str, HnetkitError]:
    """Draws a batch and writes its images and their records; returns key -> why its image could not be drawn."""
    from hnetkit.generate.drawing import draw_each

    failures: dict[str, HnetkitError] = {}
    try:
        first = batch.cells[0]
        plain = renderer.request(session.model, first)
        prompts = renderer.prompts(first, plain)  # of all cells of a batch: they differ in their seeds alone
        request = session.prepare(plain, prompts)
        pictures = draw_each(session.model, request, batch.seeds, report)
        for cell, key, number, picture in zip(batch.cells, batch.keys, batch.numbers, pictures, strict=True):
            if isinstance(picture, BadPicture):
                failures[key] = picture
            elif key in positions:
                own = replace(request, seed=picture.seed)
                facts = _facts(session.model, own, cell, batch, prompts.hashes)
                path = files.write(number, key, picture.image, str(facts["infotext"]))
                files.append([row_of(key, position, {"picture": path, **facts}) for position in positions[key]])
    except Exception as error:
        failure = failure_of(error, batch.cells[0].prompt.written)
        return {key: failures.get(key, failure) for key in batch.keys}
    return failures


def _request_facts(cell: Cell) -> dict[str, Any]:
    """Returns the record of an image that could not be drawn."""
    return {
        "prompt": cell.prompt.written,
        "negative_prompt": cell.spec.negative_prompt,
        "seed": cell.spec.seed,
        "checkpoint": cell.spec.checkpoint,
    }


def _facts(
    model: LoadedPipeline, request: Request, cell: Cell, batch: Batch, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Returns all settings of an image, for the record."""
    second = None if request.second is None else asdict(request.second)
    if second is not None:
        del second["stack"]
    return {
        "prompt": cell.prompt.written,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        **{field.name: getattr(request, field.name) for field in fields(request) if field.name not in _NOT_RECORDED},
        "start": None if request.init_image is None else asdict(request.init_image),
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
        rows: of the record, one for each cell in reading order; at least one has an image.
        title: at the top.
        names: see `label_of`.
    """
    first = next(row for row in rows if FAILURE not in row)
    absent = _no_picture(files.image_path(first)) if any(FAILURE in row for row in rows) else None
    pictures = {
        tuple(row[side] for side in "xyz"): files.image_path(row) if absent is None or FAILURE not in row else absent
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
    columns = [label_of(cross_axes, names) for cross_axes in grid.x]
    return draw_sheet(title, _caption(grid, first), columns, sections, most_side(files.sheet))


def _no_picture(example: Path) -> Image.Image:
    """Returns the tile that a sheet shows for an image that could not be drawn, of the size of `example`."""
    from PIL import Image, ImageDraw

    size = image_size(example)
    tile = Image.new("RGB", size, "#e6e6e6")
    pen = ImageDraw.Draw(tile)
    font = font_of(max(4, min(size) // 5))
    pen.line([(0, 0), size], fill="#c8c8c8")
    pen.text((size[0] / 2, size[1] / 2), "failed", fill="#a02020", font=font, anchor="mm")
    return tile


def infotext_of_sheet(grid: Grid, rows: Sequence[Row], names: Mapping[tuple[str, Content], str]) -> str:
    """Returns the infotext of a grid's first image, with the values of its axes."""
    rows = [row for row in rows if FAILURE not in row]
    first = rows[0]
    own = infotext.parse(first["infotext"]).parameters
    hashes = {name: value for row in rows for name, value in infotext.parse(row["infotext"]).hashes.items()}
    varying = {
        _IN_INFOTEXT.get(coordinate, f"Grid {coordinate}"): ", ".join(
            _infotext_value(coordinate, value, names) for value in values
        )
        for coordinate, values in grid.varied().items()
    }
    parameters = {name: value for name, value in own.items() if name not in ("Hashes", "Version")}
    written = {**parameters, **varying, "Version": own.get("Version")}
    return infotext.write(first["prompt"], first["negative_prompt"], written, hashes)


_IN_INFOTEXT = {
    "cfg": "Grid CFG scales",
    "checkpoint": "Grid checkpoints",
    "hypernetwork": "Grid networks",
    "order": "Grid orders",
    "prompt": "Grid prompts",
    "sampler": "Grid samplers",
    "seed": "Grid seeds",
    "strength": "Grid strengths",
}


def _infotext_value(coordinate: str, value: Content, names: Mapping[tuple[str, Content], str]) -> str:
    if isinstance(value, tuple):
        return " + ".join(value)
    return names.get((coordinate, value)) or (
        "none" if value is None else f"{value:g}" if type(value) is float else str(value)
    )


def _caption(grid: Grid, row: Row) -> str:
    """Returns the settings that are the same in all cells."""
    varied = grid.varied()
    parts = {
        "checkpoint": row["model"],
        "seed": f"seed {row['seed']}",
        "sampler": row["sampler"],
        "steps": counted(row["steps"], "step"),
        "cfg": f"CFG {row['cfg_scale']:g}",
    }
    return "  ·  ".join(part for coordinate, part in parts.items() if coordinate not in varied)
