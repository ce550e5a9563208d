"""Drawing a grid: find and check everything that it names, draw what is missing, write the sheet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit import demo, settings
from hnetkit.distributed import Processes
from hnetkit.errors import BadPicture, FileChanged, HnetkitError, IncompatibleNetwork, NotFound, UsageError, failure_of
from hnetkit.files import is_file_at, is_folder_at, refuse_existing, stat_at
from hnetkit.generate.grids.axes import Content
from hnetkit.generate.grids.batches import BatchPlan, plan_batches
from hnetkit.generate.grids.cells import Cell, CellBuilder, CellSpec, kept_by_second_pass
from hnetkit.generate.grids.files import FAILURE, GridFiles, Row, row_of
from hnetkit.generate.grids.render import Progress, Renderer, draw_batches, infotext_of_sheet, make_sheet
from hnetkit.generate.grids.sheet import most_side, require_room
from hnetkit.generate.grids.spec import RANDOM, Axes, Grid, GridSpec, Strengths, make_spec
from hnetkit.generate.image_files import is_image_file
from hnetkit.generate.loading.outline import ModelOutline
from hnetkit.generate.loading.pipeline import LoadedPipeline, digest, file_stamp, fingerprint
from hnetkit.generate.model import AnyPath, Model, ModelSource
from hnetkit.generate.options import DrawOptions
from hnetkit.generate.prompt_networks import (
    NetworkFinder,
    NetworkRequest,
    Networks,
    Note,
    StackedPrompt,
    find_embeddings_in,
    ignore_note,
    network_options,
    read_prompt,
    resolve_hires_prompt,
    warn_about_first_pass,
    warn_about_hires_loras,
    warn_about_negative_lines,
    warn_about_negative_tags,
    with_default_stack,
    without_comments,
    without_comments_in_options,
)
from hnetkit.generate.request import Request, random_seed
from hnetkit.image_text import write_image
from hnetkit.images import open_rgb
from hnetkit.library.known_hashes import hash_of_file
from hnetkit.prompts.tags import TaggedPrompt, plain_number
from hnetkit.text import counted, shorten

if TYPE_CHECKING:
    from PIL import Image

    from hnetkit.library.library import Library
    from hnetkit.registry.store import Registry

_PACKAGES = ("hnetkit", "torch", "diffusers", "transformers", "peft")

Positions = dict[str, list[dict[str, Any]]]
"""Key of an image -> its positions on the grid."""


@dataclass(frozen=True, slots=True)
class DrawnGrid:
    """A sheet and its cells.

    Attributes:
        path: of the sheet.
        cells: a row of the record for each cell, in reading order: its position and all settings of its picture, or
            ``failure``: why there is none.
        drawn: how many pictures this call drew; the others were there.
        axes: coordinate -> its values.
        networks, prompts: of the cells.
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

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"<DrawnGrid {shorten(str(self.path))}: {counted(len(self.cells), 'cell')}{failed}>"

    @property
    def image(self) -> Image.Image:
        """The sheet."""
        return open_rgb(self.path)

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
        return open_rgb(GridFiles(self.path).image_path(cell))


def draw_grid(
    model: Model | ModelSource,
    axes: Axes = (),
    *,
    prompt: str | Sequence[str],
    seed: int | Sequence[int] = RANDOM,
    names: Sequence[str] = (),
    strengths: Strengths | None = None,
    networks: Networks = (),
    batch_size: int = 1,
    out: AnyPath = "grid.png",
    overwrite: bool = False,
    library: Library | None = None,
    progress: Progress | None = None,
    note: Note = ignore_note,
    agree: Callable[[int], None] = lambda cells: None,
    **options: Any,
) -> DrawnGrid | None:
    """Draws a labeled sheet of pictures over up to three axes, as `hnetkit grid` does; pictures that exist are kept.

    Beside ``grid.png``, ``grid-cells`` holds each cell's picture, and ``grid.jsonl`` its settings. A cell that cannot
    be drawn is marked on the sheet. Called again, the same grid draws what is missing.

    Args:
        model: draws where no axis names a checkpoint; a `ModelSource` is loaded when it is needed.
        axes: what changes from left to right, from top to bottom, and from one part of the sheet to the part below it:
            ``{"strength": [0, 0.5, 1], "seed": range(1, 4)}``, or as in the command
            ``["strength=0:1:0.5", "seed=1-3"]``.
        prompt: several give further rows of `names`.
        seed: several give further rows of `names`; -1 picks one at random.
        names: networks, one row each, instead of `axes`.
        strengths: the columns beside `names`.
        networks: ``NAME[:STRENGTH]`` of networks, or files, in every cell, after those of the prompt.
        batch_size: how many cells that differ in their seed alone are sampled together.
        out: the sheet to write.
        overwrite: replace a sheet that exists.
        library: where networks are found; None is that of the command line.
        progress: called with the pictures done and in all.
        note: called with each message for the user.
        agree: called with the number of cells, once all of them are found and checked and before a model is loaded; an
            exception from it ends the call.
        options: of `hnetkit.generate.options.DrawOptions`.

    Returns:
        The grid; None in all but the first of several processes that `accelerate launch` started.

    Raises:
        UsageError: a value is out of its range, or arguments contradict each other.
        OutputExists: there is a complete sheet, or one of other pictures, or something else of that name.
        NotFound, AmbiguousName: a name stands for nothing, or for several things.
        HnetkitError: no cell can be drawn; the error of the first one.
    """
    note = _each_note_once(note)
    draw_options = without_comments_in_options(DrawOptions.of(options), note)
    for line in draw_options.without_effect(draw_options):
        note(f"Warning: {line}")
    processes = Processes.of_environment()
    sheet = Path(out)
    _require_output(sheet, overwrite=overwrite)
    if isinstance(axes, str):
        axes = [axes]
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    spec = make_spec(axes, network_options(names), prompts, seeds, strengths)
    base = replace(spec.base, options=network_options(networks), negative_prompt=draw_options.negative_prompt or "")
    run = GridRun(
        spec=replace(spec, base=base).with_prompts(lambda text: without_comments(text, note)),
        source=model.source if isinstance(model, Model) else model,
        options=draw_options,
        own=model if isinstance(model, Model) else None,
        files=GridFiles(sheet, processes.rank),
        processes=processes,
        batch_size=batch_size,
        overwrite=overwrite,
        registry=None if library is None else library.registry,
        progress=progress,
        note=note,
        agree=agree,
    )
    return run.draw()


def _require_output(sheet: Path, *, overwrite: bool) -> None:
    if not is_image_file(str(sheet), example="grid.png"):
        raise UsageError(f"--out {sheet}: a grid is one picture file", hint="--out grid.png")
    if stat_at(sheet) is not None and not overwrite:
        files = GridFiles(sheet)
        files.require_ours()
        refuse_existing(sheet, overwrite=files.lacks_pictures())
    if not is_folder_at(sheet.parent):
        raise NotFound(f"{sheet.parent}: no such folder")


@dataclass(slots=True, kw_only=True)
class GridRun:
    """One run of a grid.

    Attributes:
        spec: what to draw; random seeds may not be picked yet.
        source: of the model that draws where no axis names another.
        options: what all cells share.
        own: that model, if the caller has loaded it already.
        files: the files to write.
        processes: this process and its siblings.
        batch_size: the most images of a batch.
        overwrite: replace a sheet that exists.
        registry: of the library; None is that of `hnetkit.paths.home`.
        agree: called with the number of cells before anything is drawn.
    """

    spec: GridSpec
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
    agree: Callable[[int], None]
    _builder: CellBuilder = field(init=False)
    _hires: StackedPrompt | None = field(init=False)
    _embeddings: tuple[Path, ...] = field(init=False)
    _shared: dict[str, object] = field(init=False)
    _models: dict[str | None, str] = field(init=False)
    _stamps: dict[str, object] = field(init=False)

    def draw(self) -> DrawnGrid | None:
        """Draws what is missing and, in the main process, writes the sheet and returns it.

        Raises:
            HnetkitError: something cannot be found or used, before any model is loaded; or no image could be drawn.
        """
        self._find()
        self.files.require_ours()
        with self.processes.connected(), self.files.locked() if self.processes.is_main else nullcontext():
            return self._draw()

    def _find(self) -> None:
        """Finds everything that cells name, and checks their values."""
        self._require_room()

        cell_specs = [self.spec.base, *self.spec.cell_specs]
        finder = NetworkFinder(self._bundled(cell_specs), self.registry, self.note)

        def read(prompt: str) -> TaggedPrompt:
            return read_prompt(prompt, self.note)

        def default(prompt: TaggedPrompt) -> TaggedPrompt:
            return with_default_stack(prompt, finder)

        warn_about_negative_lines(
            (text for spec in cell_specs for text in (spec.prompt, spec.negative_prompt)), self.note
        )
        negatives = (spec.negative_prompt for spec in cell_specs)
        warn_about_negative_tags((*negatives, self.options.hires_negative_prompt), self.note)
        self._builder = CellBuilder(cell_specs, finder, read, settings.get("loras"), default)
        if self.spec.has_every_order:
            names = self._builder.stack_of(self.spec.base)
            if len(set(names)) < len(names):
                self.note("Warning: order=all: a network is in the stack twice, and its two places are not exchanged")
            self.spec = self.spec.in_orders_of(names)
            self._require_room()
        cell_specs = self.spec.cell_specs
        self._hires = resolve_hires_prompt(self.options, finder, self.note, with_defaults=True)
        cells = list(map(self._builder.cell, cell_specs))
        prompts = [cell.prompt for cell in cells]
        warn_about_hires_loras(prompts, self._hires, self.note)
        warn_about_first_pass(self._builder.names.values(), self._hires, self.note)
        varied = self.spec.grid.varied()
        for line in kept_by_second_pass(varied, self._hires, self.options.hires_negative_prompt):
            self.note(line)
        self._check_strengths(cell_specs)
        texts = [prompt.text for prompt in prompts]
        self._embeddings = find_embeddings_in(texts, self._hires, self.options, self.note)
        checkpoints = dict.fromkeys(spec.checkpoint for spec in cell_specs)
        self._stamps = {str(file): file_stamp(file) for file in (*self._files, *map(self._location_of, checkpoints))}
        own = self._location_of(None)
        if self.own is not None and self._stamps.get(own, self.own.stamp) != self.own.stamp:
            raise FileChanged(f"{own}: replaced since the model was loaded", hint="load the model again")
        self._require_drawable(cells)
        if self.processes.is_main:
            self.agree(len(cells))
        self._shared = self._shared_facts()
        self._models = {checkpoint: self._fingerprint(checkpoint) for checkpoint in checkpoints}

    def _check_strengths(self, cell_specs: Sequence[CellSpec]) -> None:
        """Reports strengths that an axis does not change, or replaces.

        Raises:
            UsageError: an axis of strengths, and no cell has a network.
        """
        varied = self.spec.grid.varied()
        if not any(axis.partition(":")[0] == "strength" for axis in varied):
            return
        stacks = [self._builder.cell(replace(spec, strengths=(), order=None)).prompt.tags for spec in cell_specs]
        if not any(stacks):
            raise UsageError(
                "strength: there is no network whose strength could vary",
                hint="-n NAME, or --y hypernetwork=NAME",
                python='networks=["NAME"], or axes={"hypernetwork": ["NAME"], ...}',
            )
        for tag in dict.fromkeys(tag for stack in stacks for tag in stack if tag.parts):
            if f"strength:{tag.name}" in varied or "strength" in varied:
                self.note(f"Warning: {tag}: the strengths of the grid do not change {' and '.join(tag.parts)} of it")
        for option in filter(None, varied.get("hypernetwork", [])):
            strength = NetworkRequest.from_option(str(option)).strength
            if "strength" in varied and strength != 1:
                self.note(f"Warning: {option}: the strengths of the grid replace its {plain_number(strength)}")

    def _require_drawable(self, cells: Sequence[Cell]) -> None:
        """Raises the first failure that can be foreseen without torch, where no cell is left that could be drawn.

        Cells without a network do not count beside others whose networks are for another base model: they are drawn to
        be compared with these.
        """
        outlines: dict[str | None, ModelOutline | HnetkitError | None] = {}
        for checkpoint in dict.fromkeys(cell.spec.checkpoint for cell in cells):
            outlines[checkpoint] = self._outline(checkpoint)
        foreseen = [self._foreseen(cell, outlines[cell.spec.checkpoint]) for cell in cells]
        with_networks = [failure for cell, failure in zip(cells, foreseen, strict=True) if cell.networks]
        if with_networks and all(isinstance(failure, IncompatibleNetwork) for failure in with_networks):
            foreseen = with_networks
        if foreseen[0] is not None and None not in foreseen:
            raise foreseen[0]

    def _outline(self, checkpoint: str | None) -> ModelOutline | HnetkitError | None:
        """Returns the outline of a model, or why it cannot be loaded; None if the caller has loaded it."""
        if self.own is not None and checkpoint is None:
            return None
        try:
            return self._source_of(checkpoint).outline()
        except (NotFound, UsageError):
            raise
        except HnetkitError as error:
            return error

    def _foreseen(self, cell: Cell, outline: ModelOutline | HnetkitError | None) -> HnetkitError | None:
        """Returns why a cell cannot be drawn, as far as its model's outline tells."""
        if cell.failure is not None:
            return cell.failure
        if outline is None or isinstance(outline, HnetkitError):
            return outline
        picked = replace(cell, spec=replace(cell.spec, seed=max(cell.spec.seed, 0)))  # random ones come later
        try:
            self._request(outline, picked)
            self._source_of(cell.spec.checkpoint).require_fit(cell.networks, outline)
        except HnetkitError as error:
            return error
        return None

    def _fingerprint(self, checkpoint: str | None) -> str:
        """Returns a hash of a model's files. If they cannot be read, the cells of this model fail when it is loaded."""
        location, vae = self._location_of(checkpoint), self._source_of(checkpoint).own_vae
        try:
            own = fingerprint(location)
            if self.own is not None and checkpoint is None and (others := self.own.content_of_replaced()):
                return digest([own, others])
            return own if vae == self.source.own_vae else digest([own, _of_place(vae)])
        except (NotFound, UsageError):
            raise
        except Exception as error:
            return f"unreadable: {failure_of(error, location)}"

    def _location_of(self, checkpoint: str | None) -> str:
        return self._source_of(checkpoint).location

    @property
    def _files(self) -> list[AnyPath]:
        """The files that are read again while images are drawn, except the model and those that check their hash."""
        files = (self.options.image, self.options.mask, self.source.own_vae, *self._embeddings)
        return [file for file in files if file]

    def _require_unchanged(self, files: Iterable[AnyPath]) -> None:
        """Raises FileChanged if a file was replaced since the keys of images were computed from it."""
        for file in map(str, files):
            if file_stamp(file) != self._stamps[file]:
                raise FileChanged(f"{file}: replaced since the grid began", hint="give the same command again")

    def _require_room(self) -> None:
        grid = self.spec.grid
        require_room(len(grid.x), len(grid.y) * len(grid.z), most_side(self.files.sheet))

    def _draw(self) -> DrawnGrid | None:
        files, processes = self.files, self.processes
        if processes.is_main:
            files.merge_records()
        seeds = processes.broadcast(self._seeds() if processes.is_main else None)
        spec = self.spec.with_seeds(seeds)
        grid, plan = spec.grid, self._plan(spec)
        overwrite = self.overwrite or files.lacks_pictures(plan.keys)
        if processes.is_main:
            refuse_existing(files.sheet, overwrite=overwrite)
            if not self.overwrite:
                files.require_alone(plan.keys)
        done = set(processes.broadcast(list(files.done(plan.keys)) if processes.is_main else None))
        positions: Positions = {}
        for key, position in zip(plan.keys, grid.positions, strict=True):
            positions.setdefault(key, []).append({**grid.record_position(position), "random_seeds": seeds})
        if done and len(done) < len(positions):
            self.note(f"{len(done)} of {len(positions)} pictures are there already.")
        missing = {key: shown for key, shown in positions.items() if key not in done}
        todo = [batch for batch in plan.batches if not missing.keys().isdisjoint(batch.keys)]
        renderer = Renderer(
            self._load, self._request, self._hires, embeddings=self._embeddings, own=self.own, note=self.note
        )
        failures = draw_batches(
            processes.slice_of(todo), missing, files, renderer, self._progress(sum(len(batch.cells) for batch in todo))
        )
        processes.wait()
        if not processes.is_main:
            return None
        if not files.has_any(plan.keys):
            self._refuse(plan, failures)
        return self._finish(spec, grid, plan, positions, missing, overwrite=overwrite)

    def _refuse(self, plan: BatchPlan, failures: Mapping[str, HnetkitError]) -> None:
        """Raises the first failure of a grid without a single image, and removes the grid from the record."""
        rows = self.files.failed(plan.keys)
        self.files.discard(plan.keys)
        for key in plan.keys:
            if key in failures:
                raise failures[key]
            if key in rows:
                raise HnetkitError(rows[key][FAILURE], hint=rows[key].get("hint"))

    def _finish(
        self, spec: GridSpec, grid: Grid, plan: BatchPlan, positions: Positions, missing: Positions, *, overwrite: bool
    ) -> DrawnGrid:
        """Writes record and sheet."""
        files, names = self.files, self._names(spec)
        facts = {row["key"]: row for row in files.rows()}
        if not facts.keys() >= set(plan.keys):
            raise HnetkitError("pictures of this grid are missing", hint="give the same command again")
        left = {key: iter(shown) for key, shown in positions.items()}
        rows = [row_of(key, next(left[key]), facts[key]) for key in plan.keys]
        varied = grid.varied()
        title = "" if any(change.axis == "text" for change in grid.changes((0, 0, 0))) else self._written(spec.base)
        sheet = make_sheet(grid, rows, files, title, names)
        text = infotext_of_sheet(grid, rows, names)
        files.finish(rows)
        write_image(files.sheet, sheet, text, overwrite=overwrite)
        failed = {row["key"] for row in rows if FAILURE in row}
        return DrawnGrid(
            files.sheet,
            rows,
            drawn=len(missing.keys() - failed),
            axes=varied,
            networks=[self._builder.names[str(name)] for name in varied.get("hypernetwork", []) if name],
            prompts=list(dict.fromkeys(map(self._written, spec.cell_specs))),
            record=files.record,
            pictures=files.folder,
            infotext=text,
        )

    def _plan(self, spec: GridSpec) -> BatchPlan:
        cells = list(map(self._builder.cell, spec.cell_specs))
        is_varied = bool(self.options.variation_strength)  # each picture of a batch has another variation seed
        return plan_batches(cells, self._shared, self._models, batch_size=1 if is_varied else self.batch_size)

    def _seeds(self) -> list[int]:
        """Returns the random seeds: those of the same grid before an interruption, else new ones."""
        count = self.spec.random_seeds
        if count and (stat_at(self.files.sheet) is None or self.files.lacks_pictures()):
            recorded = dict.fromkeys(tuple(row.get("random_seeds") or ()) for row in self.files.rows())
            for seeds in recorded:
                if len(seeds) == count and self.files.has_any(self._plan(self.spec.with_seeds(seeds)).keys):
                    return list(seeds)
        return [random_seed() for _ in range(count)]

    def _bundled(self, cell_specs: Iterable[CellSpec]) -> Mapping[str, Path]:
        checkpoints = {spec.checkpoint for spec in cell_specs}
        found = (self._source_of(checkpoint).bundled for checkpoint in checkpoints)
        return next((bundled for bundled in found if bundled), {})

    def _source_of(self, checkpoint: str | None) -> ModelSource:
        return self.source if checkpoint is None else replace(self.source, model=checkpoint)

    def _written(self, spec: CellSpec) -> str:
        return self._builder.written(spec)

    def _shared_facts(self) -> dict[str, object]:
        """Returns what an image depends on beside its cell and its model."""
        source, options = self.source, self.options
        files = {"image": options.image, "mask": options.mask}
        chosen = {**asdict(source), "tokenizer": source.own_tokenizer, **asdict(options)}
        hires = self._hires
        return {
            "choices": {name: value for name, value in chosen.items() if name not in ("model", *files)},
            "files": {name: hash_of_file(path) for name, path in files.items() if path is not None},
            "vae": _of_place(source.own_vae),
            "embeddings": {path.stem: _hash_or_reason(path) for path in self._embeddings},
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
        self._require_unchanged((*self._files, self._location_of(checkpoint)))
        return model

    def _request(self, model: LoadedPipeline | ModelOutline, cell: Cell) -> Request:
        spec, options = cell.spec, self.options
        self._require_unchanged(file for file in (options.image, options.mask) if file)
        chosen = replace(
            options,
            negative_prompt=spec.negative_prompt,
            steps=spec.steps or options.steps,
            cfg_scale=spec.cfg_scale or options.cfg_scale,
            sampler=spec.sampler or options.sampler,
        )
        return chosen.request(model, cell.prompt.text, spec.seed, self._hires.prompt if self._hires else None)

    def _names(self, spec: GridSpec) -> dict[tuple[str, Content], str]:
        """Returns the names of rows and columns, where they are not the values themselves."""
        varied = spec.grid.varied()
        names: dict[tuple[str, Content], str] = {}
        for option, name in self._builder.names.items():
            strength = NetworkRequest.from_option(option).strength
            shows_strength = "strength" not in varied and strength != 1
            names["hypernetwork", option] = f"{name} {plain_number(strength)}" if shows_strength else name
        if any(tag.parts for spec_of in spec.cell_specs for tag in self._builder.cell(spec_of).prompt.tags):
            names["strength", 0.0] = "0"  # not without the network: named parts keep their strengths
        for checkpoint in varied.get("checkpoint", []):
            path = Path(os.path.abspath(str(checkpoint)))
            is_demo = self._source_of(str(checkpoint)).is_demo
            own = path.stem if is_file_at(path) else path.name
            names["checkpoint", checkpoint] = demo.MODEL_NAME if is_demo else own
        return names

    def _progress(self, in_all: int) -> Progress | None:
        """Reports the images of all processes, assuming that the others are as far as this one."""
        progress = self.progress
        if progress is None:
            return None

        def report(done: float, total: float) -> None:
            progress(done * in_all / total, in_all)

        return report


def _hash_or_reason(path: Path) -> str:
    """Returns the hash of a file; the reason, if it cannot be read: it fails when it is loaded."""
    try:
        return hash_of_file(path)
    except Exception as error:
        return f"unreadable: {failure_of(error, str(path))}"


def _of_place(vae: str | os.PathLike[str] | None) -> str | None:
    """Returns the fingerprint of an autoencoder; of a hub id its name."""
    return None if vae is None else fingerprint(vae) if stat_at(vae) is not None else os.fspath(vae)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _each_note_once(note: Note) -> Note:
    """Returns a function that passes on each message once."""
    seen: set[str] = set()

    def note_once(message: str) -> None:
        if message not in seen:
            seen.add(message)
            note(message)

    return note_once
