"""A grid on its way from what was asked for to the sheet: all is found and checked, what is missing is drawn."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit import demo, settings
from hnetkit.distributed import Processes
from hnetkit.errors import BadPicture, FileChanged, HnetkitError, NotFound, UsageError, failure_of
from hnetkit.files import refuse_existing
from hnetkit.generate.grids.asked import RANDOM, Asked, Axes, Grid, Strengths, asked_for
from hnetkit.generate.grids.axes import Content
from hnetkit.generate.grids.batches import Plan, make_plan, share_of
from hnetkit.generate.grids.cells import Cell, Draft, Finder
from hnetkit.generate.grids.grid import Progress, Studio, draw_batches, infotext_of_sheet, make_sheet
from hnetkit.generate.grids.grid_files import FAILURE, GridFiles, Row, row_of
from hnetkit.generate.grids.sheet import most_side, require_room
from hnetkit.generate.loading.fingerprints import fingerprint, hash_of_file, stamp
from hnetkit.generate.model import AnyPath, Model, ModelSource, named
from hnetkit.generate.networks import StackedPrompt, Wish
from hnetkit.generate.options import DrawOptions
from hnetkit.generate.picture_files import is_picture_file, write_picture
from hnetkit.generate.pipeline import LoadedPipeline
from hnetkit.generate.request import Request, random_seed
from hnetkit.generate.resolved import (
    Note,
    find_all_embeddings,
    read_prompt,
    resolve_hires,
    untold,
    warn_of_marks,
    with_default_stack,
)
from hnetkit.images import open_image
from hnetkit.prompts.tags import TaggedPrompt, plain_number

if TYPE_CHECKING:
    from PIL import Image

    from hnetkit.library.library import Library
    from hnetkit.registry.store import Registry

_PACKAGES = ("hnetkit", "torch", "diffusers", "transformers", "peft")

Places = dict[str, list[dict[str, Any]]]
"""Key of a picture -> where on the grid it is shown."""


@dataclass(frozen=True, slots=True)
class DrawnGrid:
    """A sheet and its cells.

    Attributes:
        path: of the sheet.
        cells: a line of the record for each cell, in reading order: where it is, and all that its picture was drawn by,
            or ``failure``: why there is none.
        drawn: how many pictures were drawn now; the others were there.
        axes: what varies -> its values.
        networks, prompts: in the cells.
        record, pictures: the file of `cells`, and the folder of their pictures.
        infotext: of the sheet.
    """

    path: Path
    cells: list[Row]
    drawn: int
    axes: dict[str, list[Content]]
    networks: list[str]
    prompts: list[str]
    record: Path
    pictures: Path
    infotext: str

    @property
    def image(self) -> Image.Image:
        """The sheet."""
        return open_image(self.path)

    @property
    def failed(self) -> list[Row]:
        """The cells that could not be drawn; the same call tries them again."""
        return [cell for cell in self.cells if FAILURE in cell]

    def picture(self, cell: Row) -> Image.Image:
        """Returns the picture of one of `cells`.

        Raises:
            BadPicture, NotFound: it could not be drawn, or is gone.
        """
        if FAILURE in cell:
            raise BadPicture(f"this cell could not be drawn: {cell[FAILURE]}", hint=cell.get("hint"))
        return open_image(GridFiles(self.path).picture(cell))


def draw_grid(
    model: Model | ModelSource,
    axes: Axes = (),
    *,
    prompt: str | Sequence[str],
    seed: int | Sequence[int] = RANDOM,
    names: Sequence[str] = (),
    strengths: Strengths | None = None,
    networks: Iterable[AnyPath] = (),
    batch_size: int = 1,
    out: AnyPath = "grid.png",
    overwrite: bool = False,
    library: Library | None = None,
    progress: Progress | None = None,
    note: Note = untold,
    **options: Any,
) -> DrawnGrid | None:
    """Draws a labelled sheet of pictures over up to three axes, as `hnetkit grid` does; what is there stays.

    Beside ``grid.png``, ``grid-cells`` holds each cell's picture, and ``grid.jsonl`` what it was drawn by. A cell that
    cannot be drawn is marked on the sheet; called again, the same grid draws what is missing.

    Args:
        model: that draws where no axis names a checkpoint, or how to load it when it is needed.
        axes: what changes from left to right, from top to bottom, and from one part of the sheet to the part below it:
            ``{"strength": [0, 0.5, 1], "seed": range(1, 4)}``,
            or as in the command ``["strength=0:1:0.5", "seed=1-3"]``.
        prompt: several are further rows of `names`.
        seed: several are further rows of `names`; -1 draws one.
        names: networks, each a row, in place of `axes`.
        strengths: columns beside `names`.
        networks: ``NAME[:STRENGTH]`` of networks, or files, in every cell, after those of the prompt.
        batch_size: cells that differ in their seed alone, drawn at once.
        out: the sheet to write.
        overwrite: whether a sheet may be replaced.
        library: where networks are found; None is that of the command line.
        progress: told how far it is.
        note: told what a person should read.
        options: of `hnetkit.generate.options.DrawOptions`.

    Returns:
        The grid; None in all but the first of several processes that `accelerate launch` started.

    Raises:
        UsageError: what cannot be meant.
        OutputExists: there is a sheet, whole or of other pictures, or something else in its place.
        NotFound, AmbiguousName: a name means nothing, or several things.
        HnetkitError: none of the cells can be drawn: what is wrong with the first.
    """
    how, processes = DrawOptions(**options), Processes.of_environment()
    sheet = Path(out)
    _require_place(sheet, overwrite=overwrite)
    if isinstance(axes, str):
        axes = [axes]
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    asked = asked_for(axes, named(names), prompts, seeds, strengths)
    base = replace(asked.base, options=named(networks), negative_prompt=how.negative_prompt or "")
    run = GridRun(
        asked=replace(asked, base=base),
        source=model.source if isinstance(model, Model) else model,
        options=how,
        own=model if isinstance(model, Model) else None,
        files=GridFiles(sheet, processes.rank),
        processes=processes,
        batch_size=batch_size,
        overwrite=overwrite,
        registry=None if library is None else library.registry,
        progress=progress,
        note=_once(note),
    )
    return run.draw()


def _require_place(sheet: Path, *, overwrite: bool) -> None:
    if not is_picture_file(str(sheet)):
        raise UsageError(f"--out {sheet}: a grid is one picture file", hint="--out grid.png")
    if sheet.exists() and not overwrite:
        files = GridFiles(sheet)
        files.require_ours()
        refuse_existing(sheet, overwrite=files.lacks_pictures())
    if not sheet.parent.is_dir():
        raise NotFound(f"{sheet.parent}: no such folder")


@dataclass(slots=True, kw_only=True)
class GridRun:
    """A grid on its way from what was asked for to the sheet.

    Attributes:
        asked: seeds may still be to be drawn.
        source: of the model that draws where no axis names another.
        options: what all cells share.
        own: that model, where somebody has loaded it already.
        files: where everything is written.
        processes: that this one draws with.
        batch_size: pictures that are sampled together, at most.
        overwrite: whether a sheet may be replaced.
        registry: of the library; None is that of `hnetkit.paths.home`.
    """

    asked: Asked
    source: ModelSource
    options: DrawOptions
    own: Model | None
    files: GridFiles
    processes: Processes
    batch_size: int
    overwrite: bool
    registry: Registry | None
    progress: Progress | None
    note: Note
    _finder: Finder = field(init=False)
    _hires: StackedPrompt | None = field(init=False)
    _embeddings: tuple[Path, ...] = field(init=False)
    _shared: dict[str, object] = field(init=False)
    _models: dict[str | None, str] = field(init=False)
    _stamps: dict[str, object] = field(init=False)

    def draw(self) -> DrawnGrid | None:
        """Draws what is missing and, in the main process, writes the sheet and returns it.

        Raises:
            HnetkitError: what cannot be found or meant, before any model is loaded; or a picture that came out bad.
        """
        self._find()
        self.files.require_ours()
        with self.processes.connected(), self.files.locked() if self.processes.is_main else nullcontext():
            return self._draw()

    def _find(self) -> None:
        """Finds everything that cells name, and looks whether they can be meant."""
        self._require_room()

        def read(prompt: str) -> TaggedPrompt:
            return with_default_stack(read_prompt(prompt, self.note))

        drafts = [self.asked.base, *self.asked.drafts]
        warn_of_marks((text for draft in drafts for text in (draft.prompt, draft.negative_prompt)), self.note)
        self._finder = Finder(drafts, self._bundled(drafts), read, settings.get("loras"), self.registry)
        if self.asked.has_every_order:
            self.asked = self.asked.in_orders_of(self._finder.stack_of(self.asked.base))
            self._require_room()
        drafts = self.asked.drafts
        self._hires = resolve_hires(self.options, self.source.bundled, self.registry, self.note)
        texts = [self._finder.cell(draft).prompt.text for draft in drafts]
        self._embeddings = find_all_embeddings(texts, self._hires, self.options)
        places = dict.fromkeys(draft.checkpoint for draft in drafts)
        self._stamps = {str(file): stamp(file) for file in (*self._files, *map(self._place_of, places))}
        own = self._place_of(None)
        if self.own is not None and self._stamps.get(own, self.own.stamp) != self.own.stamp:
            raise FileChanged(f"{own}: replaced since the model was loaded", hint="load the model again")
        self._shared = self._what_all_share()
        self._models = {place: self._fingerprint(place) for place in places}

    def _fingerprint(self, checkpoint: str | None) -> str:
        """Returns a hash of a model's files; one that cannot be read fails where it is loaded, with its own cells."""
        place = self._place_of(checkpoint)
        try:
            return fingerprint(place)
        except (NotFound, UsageError):
            raise
        except Exception as error:
            return f"unreadable: {failure_of(error, str(place))}"

    def _place_of(self, checkpoint: str | None) -> str:
        return self._source_of(checkpoint).location

    @property
    def _files(self) -> list[AnyPath]:
        """What is read anew for pictures, beside the model and what knows its own hash."""
        files = (self.options.image, self.options.mask, self.source.vae, *self._embeddings)
        return [file for file in files if file]

    def _require_unchanged(self, files: Iterable[AnyPath]) -> None:
        """Raises FileChanged where a file is another one than pictures are known by."""
        for file in map(str, files):
            if stamp(file) != self._stamps[file]:
                raise FileChanged(f"{file}: replaced since the grid began", hint="give the same command again")

    def _require_room(self) -> None:
        grid = self.asked.grid
        require_room(len(grid.x), len(grid.y) * len(grid.z), most_side(self.files.sheet))

    def _draw(self) -> DrawnGrid | None:
        files, processes = self.files, self.processes
        if processes.is_main:
            files.settle()
        seeds = processes.broadcast(self._seeds() if processes.is_main else None)
        asked = self.asked.with_seeds(seeds)
        grid, plan = asked.grid, self._plan(asked)
        overwrite = self.overwrite or files.lacks_pictures(plan.keys)
        if processes.is_main:
            refuse_existing(files.sheet, overwrite=overwrite)
            if not self.overwrite:
                files.require_alone(plan.keys)
        done = set(processes.broadcast(list(files.done(plan.keys)) if processes.is_main else None))
        places: Places = {}
        for key, place in zip(plan.keys, grid.places, strict=True):
            places.setdefault(key, []).append({**grid.place_of(place), "random_seeds": seeds})
        if done and len(done) < len(places):
            self.note(f"{len(done)} of {len(places)} pictures are there already.")
        missing = {key: shown for key, shown in places.items() if key not in done}
        todo = [batch for batch in plan.batches if not missing.keys().isdisjoint(batch.keys)]
        mine = share_of(todo, processes.rank, processes.size)
        studio = Studio(
            self._load, self._request, self._hires, embeddings=self._embeddings, own=self.own, note=self.note
        )
        failures = draw_batches(mine, missing, files, studio, self._progress(sum(len(batch.cells) for batch in todo)))
        processes.wait()
        if not processes.is_main:
            return None
        if not files.done(plan.keys):
            self._refuse(plan, failures)
        return self._finish(asked, grid, plan, places, missing, overwrite=overwrite)

    def _refuse(self, plan: Plan, failures: Mapping[str, HnetkitError]) -> None:
        """Raises the first failure of a grid of which no picture could be drawn; nothing of it stays on record."""
        rows = self.files.failed(plan.keys)
        self.files.discard(plan.keys)
        for key in plan.keys:
            if key in failures:
                raise failures[key]
            if key in rows:
                raise HnetkitError(rows[key][FAILURE], hint=rows[key].get("hint"))

    def _finish(
        self, asked: Asked, grid: Grid, plan: Plan, places: Places, missing: Places, *, overwrite: bool
    ) -> DrawnGrid:
        """Writes record and sheet."""
        files, names = self.files, self._names(asked)
        facts = {row["key"]: row for row in files.rows()}
        if not facts.keys() >= set(plan.keys):
            raise HnetkitError("pictures of this grid are missing", hint="give the same command again")
        left = {key: iter(shown) for key, shown in places.items()}
        rows = [row_of(key, next(left[key]), facts[key]) for key in plan.keys]
        varied = grid.varied()
        title = "" if any(change.axis == "text" for change in grid.changes((0, 0, 0))) else self._written(asked.base)
        sheet = make_sheet(grid, rows, files, title, names)
        text = infotext_of_sheet(grid, rows, names)
        files.finish(rows)
        write_picture(files.sheet, sheet, text, overwrite=overwrite)
        failed = {row["key"] for row in rows if FAILURE in row}
        return DrawnGrid(
            files.sheet,
            rows,
            drawn=len(missing.keys() - failed),
            axes=varied,
            networks=[self._finder.names[str(name)] for name in varied.get("hypernetwork", []) if name],
            prompts=list(dict.fromkeys(map(self._written, asked.drafts))),
            record=files.record,
            pictures=files.folder,
            infotext=text,
        )

    def _plan(self, asked: Asked) -> Plan:
        cells = list(map(self._finder.cell, asked.drafts))
        is_varied = bool(self.options.variation_strength)  # each picture of a batch has another variation seed
        return make_plan(cells, self._shared, self._models, batch_size=1 if is_varied else self.batch_size)

    def _seeds(self) -> list[int]:
        """Returns seeds where random ones were asked for: those of the same grid before an interrupt, else new ones."""
        count = self.asked.random_seeds
        if count and (not self.files.sheet.exists() or self.files.lacks_pictures()):
            drawn_before = {tuple(row.get("random_seeds") or ()): None for row in self.files.rows()}
            for seeds in drawn_before:
                if len(seeds) == count and self.files.done(self._plan(self.asked.with_seeds(seeds)).keys):
                    return list(seeds)
        return [random_seed() for _ in range(count)]

    def _bundled(self, drafts: Iterable[Draft]) -> Mapping[str, Path]:
        places = {draft.checkpoint for draft in drafts}
        found = (self._source_of(place).bundled for place in places)
        return next((bundled for bundled in found if bundled), {})

    def _source_of(self, checkpoint: str | None) -> ModelSource:
        return self.source if checkpoint is None else replace(self.source, place=checkpoint)

    def _written(self, draft: Draft) -> str:
        return self._finder.written(draft)

    def _what_all_share(self) -> dict[str, object]:
        """Returns what a picture depends on beside its cell and the model."""
        source, options = self.source, self.options
        files = {"image": options.image, "mask": options.mask}
        chosen = {**asdict(source), **asdict(options)}
        hires = self._hires
        return {
            "choices": {name: value for name, value in chosen.items() if name not in ("place", *files)},
            "files": {name: hash_of_file(path) for name, path in files.items() if path is not None},
            "vae": fingerprint(source.vae) if source.vae and os.path.exists(source.vae) else source.vae,
            "embeddings": {path.stem: _hash_or_fault(path) for path in self._embeddings},
            "hires": [network.network.content_hash for network in hires.networks] if hires else [],
            "device": source.torch_device,
            "dtype": str(source.torch_dtype),
            "kernel": os.environ.get("HNETKIT_KERNEL", "auto"),
            "packages": {name: _version(name) for name in _PACKAGES},
        }

    def _load(self, checkpoint: str | None) -> Model:
        if self.processes.size > 1 and self._shared["device"] == "cuda":
            import torch

            torch.cuda.set_device(self.processes.local_rank)
        source = self._source_of(checkpoint)
        model = self.own if self.own is not None and checkpoint is None else source.load(self.note)
        self._require_unchanged((*self._files, self._place_of(checkpoint)))
        return model

    def _request(self, model: LoadedPipeline, cell: Cell) -> Request:
        draft, options = cell.draft, self.options
        self._require_unchanged(file for file in (options.image, options.mask) if file)
        chosen = replace(
            options,
            negative_prompt=draft.negative_prompt,
            steps=draft.steps or options.steps,
            cfg_scale=draft.cfg_scale or options.cfg_scale,
            sampler=draft.sampler or options.sampler,
        )
        return chosen.request(model, cell.prompt.text, draft.seed, self._hires.prompt if self._hires else None)

    def _names(self, asked: Asked) -> dict[tuple[str, Content], str]:
        """Returns what rows and columns are called where that is not the value itself."""
        varied = asked.grid.varied()
        names: dict[tuple[str, Content], str] = {}
        for option, name in self._finder.names.items():
            strength = Wish.of_option(option).strength
            is_said = "strength" not in varied and strength != 1
            names["hypernetwork", option] = f"{name} {plain_number(strength)}" if is_said else name
        for place in varied.get("checkpoint", []):
            path = Path(os.path.abspath(str(place)))
            is_demo = self._source_of(str(place)).is_demo
            names["checkpoint", place] = demo.MODEL_NAME if is_demo else path.stem if path.is_file() else path.name
        return names

    def _progress(self, in_all: int) -> Progress | None:
        """Tells of the pictures of all processes: the others are about as far as this one."""
        progress = self.progress
        if progress is None:
            return None

        def report(done: float, total: float) -> None:
            progress(done * in_all / total, in_all)

        return report


def _hash_or_fault(path: Path) -> str:
    """Returns the hash of a file; of one that cannot be read, why: it fails where it is loaded."""
    try:
        return hash_of_file(path)
    except Exception as error:
        return f"unreadable: {failure_of(error, str(path))}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _once(note: Note) -> Note:
    """Returns what tells each thing once."""
    said: set[str] = set()

    def tell(message: str) -> None:
        if message not in said:
            said.add(message)
            note(message)

    return tell
