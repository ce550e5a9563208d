"""One run of `hnetkit grid`: everything is found and checked, what is missing is drawn, the sheet is put together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hnetkit import demo, settings
from hnetkit.cli.generate import read_prompt, warn_of_marks, with_default_stack
from hnetkit.cli.output import Output, Row
from hnetkit.cli.picture_options import Choices
from hnetkit.cli.progress import step_progress
from hnetkit.errors import FileChanged, HnetkitError, NotFound, UsageError, failure_of
from hnetkit.files import refuse_existing
from hnetkit.generate.grids.asked import Asked, Grid
from hnetkit.generate.grids.axes import Content
from hnetkit.generate.grids.batches import Batch, Plan, fingerprint, hash_of_file, make_plan, share_of, stamp
from hnetkit.generate.grids.cells import Cell, Draft, Finder
from hnetkit.generate.grids.grid import Progress, Studio, draw_batches, infotext_of_sheet, make_sheet
from hnetkit.generate.grids.grid_files import FAILURE, GridFiles, row_of
from hnetkit.generate.grids.processes import Processes
from hnetkit.generate.grids.sheet import most_side, require_room
from hnetkit.generate.loading.embeddings import is_named
from hnetkit.generate.model import Model, device_of, torch_dtype
from hnetkit.generate.networks import StackedPrompt, Wish, find_stack
from hnetkit.generate.picture_files import write_picture
from hnetkit.generate.request import Request, random_seed
from hnetkit.prompts.tags import TaggedPrompt, plain_number

_PACKAGES = ("hnetkit", "torch", "diffusers", "transformers", "peft")

Places = dict[str, list[dict[str, Any]]]
"""Key of a picture -> where on the grid it is shown."""


@dataclass(slots=True)
class GridRun:
    """A grid on its way from what was asked for to the sheet.

    Attributes:
        asked: seeds may still be to be drawn.
        choices: what all cells share.
        files: where everything is written.
        processes: that this one draws with.
        batch_size: pictures that are sampled together, at most.
        overwrite: whether a sheet may be replaced.
    """

    asked: Asked
    choices: Choices
    files: GridFiles
    processes: Processes
    output: Output
    batch_size: int
    overwrite: bool
    _finder: Finder = field(init=False)
    _hires: StackedPrompt | None = field(init=False)
    _embeddings: list[Path] = field(init=False)
    _unusable: dict[Path, HnetkitError] = field(init=False, default_factory=dict)
    _shared: dict[str, object] = field(init=False)
    _models: dict[str | None, str] = field(init=False)
    _stamps: dict[str, object] = field(init=False)

    def draw(self) -> Row:
        """Draws what is missing and, in the main process, writes the sheet; returns what to print of it.

        Raises:
            HnetkitError: what cannot be found or meant, before any model is loaded; or a picture that came out bad.
        """
        self._find()
        self.files.require_ours()
        with self.processes.joined(), self.files.locked() if self.processes.is_main else nullcontext():
            return self._draw()

    def _find(self) -> None:
        """Finds everything that cells name, and looks whether they can be meant."""
        self._require_room()
        said = _Once(self.output.form, self.output.quiet)

        def read(prompt: str) -> TaggedPrompt:
            return with_default_stack(read_prompt(prompt, said))

        drafts = [self.asked.base, *self.asked.drafts]
        warn_of_marks((text for draft in drafts for text in (draft.prompt, draft.negative_prompt)), said)
        self._finder = Finder(drafts, self._bundled(drafts), read, settings.get("loras"))
        if self.asked.has_every_order:
            self.asked = self.asked.in_orders_of(self._finder.stack_of(self.asked.base))
            self._require_room()
        drafts = self.asked.drafts
        hires = self.choices.hires_prompt if self.choices.has_second_pass else None
        self._hires = find_stack(read_prompt(hires, said), (), self.choices.bundled) if hires is not None else None
        texts = [self._finder.cell(draft).prompt.text for draft in drafts]
        self._embeddings = self.choices.embeddings([*texts, *([self._hires.prompt.text] if self._hires else [])])
        places = dict.fromkeys(draft.checkpoint for draft in drafts)
        self._stamps = {str(file): stamp(file) for file in (*self._files, *map(self._place_of, places))}
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

    def _place_of(self, checkpoint: str | None) -> str | Path:
        return checkpoint or self.choices.place or demo.model_folder()

    @property
    def _files(self) -> list[str | Path]:
        """What is read anew for pictures, beside the model and what knows its own hash."""
        named = (self.choices.image, self.choices.mask, self.choices.vae, *self._embeddings)
        return [file for file in named if file]

    def _require_unchanged(self, files: Iterable[str | Path]) -> None:
        """Raises FileChanged where a file is another one than pictures are known by."""
        for file in map(str, files):
            if stamp(file) != self._stamps[file]:
                raise FileChanged(f"{file}: replaced since the grid began", hint="give the same command again")

    def _require_room(self) -> None:
        grid = self.asked.grid
        require_room(len(grid.x), len(grid.y) * len(grid.z), most_side(self.files.sheet))

    def _draw(self) -> Row:
        files, processes = self.files, self.processes
        if processes.is_main:
            files.settle()
        seeds = processes.shared(self._seeds() if processes.is_main else None)
        asked = self.asked.with_seeds(seeds)
        grid, plan = asked.grid, self._plan(asked)
        overwrite = self.overwrite or files.lacks_pictures(plan.keys)
        if processes.is_main:
            refuse_existing(files.sheet, overwrite=overwrite)
            if not self.overwrite:
                files.require_alone(plan.keys)
        done = set(processes.shared(list(files.done(plan.keys)) if processes.is_main else None))
        places: Places = {}
        for key, place in zip(plan.keys, grid.places, strict=True):
            places.setdefault(key, []).append({**grid.place_of(place), "random_seeds": seeds})
        if done and len(done) < len(places):
            self.output.note(f"{len(done)} of {len(places)} pictures are there already.")
        missing = {key: shown for key, shown in places.items() if key not in done}
        todo = [batch for batch in plan.batches if not missing.keys().isdisjoint(batch.keys)]
        own = share_of(todo, processes.rank, processes.size)
        with self._progress(own, todo) as progress:
            said = _Once(self.output.form, self.output.quiet)
            studio = Studio(self._load, self._request, self._hires, said.note)
            failures = draw_batches(own, missing, files, studio, progress)
        processes.wait()
        if not processes.is_main:
            return {}
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

    def _finish(self, asked: Asked, grid: Grid, plan: Plan, places: Places, missing: Places, *, overwrite: bool) -> Row:
        """Writes record and sheet; returns what to print."""
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
        failed = [row for row in rows if FAILURE in row]
        return {
            "path": str(files.sheet),
            "networks": [self._finder.names[str(name)] for name in varied.get("hypernetwork", []) if name],
            "strengths": varied.get("strength", []),
            "prompts": list(dict.fromkeys(map(self._written, asked.drafts))),
            "seeds": list(dict.fromkeys(row["seed"] for row in rows)),
            "model": next(row["model"] for row in rows if FAILURE not in row),
            "axes": varied,
            "cells": len(rows),
            "drawn": len(missing.keys() - {row["key"] for row in failed}),
            "failed": [{name: row[name] for name in ("x", "y", "z", "coordinates", FAILURE)} for row in failed],
            "record": str(files.record),
            "pictures": str(files.folder),
            "infotext": text,
        }

    def _plan(self, asked: Asked) -> Plan:
        cells = list(map(self._finder.cell, asked.drafts))
        is_varied = bool(self.choices.variation_strength)  # each picture of a batch has another variation seed
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
        found = (self._choices_of(place).bundled for place in places)
        return next((bundled for bundled in found if bundled), {})

    def _choices_of(self, checkpoint: str | None) -> Choices:
        return self.choices if checkpoint is None else replace(self.choices, model=checkpoint)

    def _written(self, draft: Draft) -> str:
        return self._finder.written(draft)

    def _what_all_share(self) -> dict[str, object]:
        """Returns what a picture depends on beside its cell and the model."""
        choices = self.choices
        device = device_of(choices.device or settings.get("device") or "auto")
        files = {"image": choices.image, "mask": choices.mask}
        said = {name: value for name, value in asdict(choices).items() if name not in ("model", *files)}
        hires = self._hires
        return {
            "choices": said,
            "files": {name: hash_of_file(path) for name, path in files.items() if path is not None},
            "vae": fingerprint(choices.vae) if choices.vae and os.path.exists(choices.vae) else choices.vae,
            "embeddings": {path.stem: _hash_or_fault(path) for path in self._embeddings},
            "hires": [network.network.content_hash for network in hires.networks] if hires else [],
            "device": device,
            "dtype": str(torch_dtype(choices.dtype or settings.get("dtype") or "auto", device)),
            "kernel": os.environ.get("HNETKIT_KERNEL", "auto"),
            "packages": {name: _version(name) for name in _PACKAGES},
        }

    def _load(self, checkpoint: str | None) -> Model:
        choices = self._choices_of(checkpoint)
        if self.processes.size > 1 and self._shared["device"] == "cuda":
            import torch

            torch.cuda.set_device(self.processes.local_rank)
        self._unusable.clear()  # another model may be of another base
        model = choices.load(self.output, self._embeddings, self._unusable.__setitem__)
        self._require_unchanged((*self._files, self._place_of(checkpoint)))
        return model

    def _request(self, model: Model, cell: Cell) -> Request:
        draft, choices = cell.draft, self.choices
        self._require_unchanged(file for file in (choices.image, choices.mask) if file)
        self._require_usable(draft, cell.prompt.text)
        chosen = replace(
            choices,
            negative_prompt=draft.negative_prompt,
            steps=draft.steps or choices.steps,
            cfg_scale=draft.cfg_scale or choices.cfg_scale,
            sampler=draft.sampler or choices.sampler,
        )
        return chosen.request(model, cell.prompt, draft.seed, self._hires.prompt if self._hires else None)

    def _require_usable(self, draft: Draft, prompt: str) -> None:
        """Raises why a textual inversion that a picture's prompts name cannot be used."""
        hires = [self._hires.prompt.text] if self._hires else []
        texts = (prompt, draft.negative_prompt, *hires, self.choices.hires_negative_prompt or "")
        for path, failure in self._unusable.items():
            if any(is_named(path, text) for text in texts):
                raise failure

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
            is_demo = self._choices_of(str(place)).is_demo
            names["checkpoint", place] = demo.MODEL_NAME if is_demo else path.stem if path.is_file() else path.name
        return names

    @contextmanager
    def _progress(self, own: Sequence[Batch], todo: Sequence[Batch]) -> Iterator[Progress]:
        """Shows the pictures of all processes: the others are about as far as this one."""
        in_all = sum(len(batch.cells) for batch in todo)
        with step_progress("Drawing", quiet=self.output.quiet) as progress:

            def report(done: float, total: float) -> None:
                progress(done * in_all / total, in_all)

            yield report


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


@dataclass(frozen=True, slots=True)
class _Once(Output):
    """Says each thing once."""

    said: set[str] = field(default_factory=set)

    def note(self, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            Output.note(self, message)
