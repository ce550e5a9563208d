"""Several runs on one model: what differs between them, which of them are done, and one sheet and table of all.

``OUT/NAME`` holds a folder for each run, named by what differs, ``sweep.json``, ``sweep.png`` and ``sweep.csv``.
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.distributed import Processes
from hnetkit.errors import DiskFull, HnetkitError, OutputExists, RunChanged, TrainingFailed, UsageError
from hnetkit.files import new_file, refuse_links
from hnetkit.hashes import blake3_of
from hnetkit.limits import read_json
from hnetkit.text import to_cell
from hnetkit.train.captions import Template
from hnetkit.train.data import TrainingData, TrainingPicture, read_data
from hnetkit.train.logs import CSV_NAME, read_log
from hnetkit.train.loop import Callbacks, check, train
from hnetkit.train.previews import Previews
from hnetkit.train.rates import schedule
from hnetkit.train.recipe import Recipe, make_recipe
from hnetkit.train.registering import register_run
from hnetkit.train.run_folder import Beginning, Found, RunFolder
from hnetkit.train.sweep_runs import Choice, SweepRun, Varied, plan_runs, require_sense

if TYPE_CHECKING:
    from hnetkit.generate.model import Model
    from hnetkit.library.library import AnyPath, Library

FORMAT = "hnetkit.sweep/1"

_UNTOLD = Callbacks()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        run: that it came of.
        files: the network, as it is kept; none where the run failed.
        loss: its last running mean; None where no step was made.
        steps: made in all.
        roll_backs: in all.
        seconds: that training took, previews and checkpoints left out.
        failure: why it failed, or what it made cannot be told, and what remedies that; empty where it did not.
    """

    run: SweepRun
    files: tuple[Path, ...]
    loss: float | None
    steps: int
    roll_backs: int
    seconds: float
    failure: str = ""

    def row(self) -> dict[str, Any]:
        """Returns it as the table has it."""
        return {
            "name": self.run.recipe.name,
            **self.run.settings,
            "loss": None if self.loss is None else round(self.loss, 6),
            "steps": self.steps,
            "roll_backs": self.roll_backs,
            "seconds": round(self.seconds, 1),
            "file": str(self.files[0]) if self.files else "",
            "failure": self.failure,
        }


@dataclass(frozen=True)
class Sweep:
    """Runs that differ, in one folder.

    Attributes:
        name: of the sweep, with which the networks' names begin.
        folder: of the sweep.
        varied: names of what was asked to vary.
        runs: at least two.
    """

    name: str
    folder: Path
    varied: tuple[str, ...]
    runs: tuple[SweepRun, ...]

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other commands out of the folder while the block lasts."""
        return RunFolder(self.folder, self.runs[0].recipe).locked()

    def require_ours(self) -> None:
        """Raises OutputExists or RunChanged where the folder is something else, another sweep's, or holds links."""
        hint = "choose another --name or --out"
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputExists(f"{self.folder}: a file, not a sweep's folder", hint=hint)
        if not self.folder.is_dir():
            return
        refuse_links([self.folder / ".lock", *(run.folder for run in self.runs)])
        if self._record.exists():
            before, written = self._read_record()
            if before != list(self.varied):
                raise RunChanged(
                    f"{self.folder}: a sweep over {_listed(before)}, not over {_listed(self.varied)}", hint=hint
                )
            if written is not None and self._table.is_file() and blake3_of(self._table) != written:
                raise OutputExists(
                    f"{self._table}: changed since it was written, and would be replaced",
                    hint="move it away, or give it another name",
                )
            return
        others = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        if others:
            raise OutputExists(f"{self.folder}: holds {others[0]} and is no sweep's folder", hint=hint)

    def read(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[TrainingData]:
        """Returns what each run trains on; pictures that several train on are read once.

        Raises:
            NotFound, BadPicture, UsageError: as `hnetkit.train.data.read_data`.
        """
        read: dict[Any, Sequence[TrainingPicture]] = {}
        found = []
        for recipe in (run.recipe for run in self.runs):
            key = recipe.pictures, recipe.size, recipe.called, recipe.beside
            if key not in read:
                read[key] = read_data(replace(recipe, template="none"), progress).pictures
            found.append(TrainingData(read[key], Template.read(recipe.template), recipe))
        return found

    def previews(self, model: Model) -> Previews:
        """Returns what draws the rows of the sheet.

        Raises:
            UsageError: settings that cannot be meant, or more pictures than a sheet has room for.
        """
        from hnetkit.generate.grids.sheet import require_room

        settings = replace(self.runs[0].recipe.previews, strengths=(1.0,))
        previews = Previews(model, settings, self.folder, self.name)
        require_room(len(previews.columns), len(self.runs) + 1)
        return previews

    def check(self, model: Model, data: Sequence[TrainingData], beginning: Beginning, *, force: bool) -> list[Found]:
        """Returns what each run is made on, once every one of them could begin; nothing is written.

        Raises:
            UsageError, RunChanged: the first fault of a run, with the run's label.
        """
        found = []
        for run, own in zip(self.runs, data, strict=True):
            try:
                found.append(check(run.recipe, model, own, run.folder, beginning=beginning, force=force))
            except UsageError as error:
                raise type(error)(f"{run.label}: {error}", hint=error.hint) from error
        return found

    def begin(self) -> None:
        """Writes down what varies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_record()

    def write(self, outcomes: Sequence[Outcome], previews: Previews) -> Path:
        """Writes ``sweep.csv`` and ``sweep.png`` and returns the path of the sheet.

        Raises:
            FileRefused, NotFound: a network is not there any more.
            OutOfMemory: drawing needs more than there is.
        """
        _write(self._table, _as_csv([outcome.row() for outcome in outcomes]))
        self._write_record()
        path = self.folder / "sweep.png"
        sheet = _sheet(f"{self.name}: {len(outcomes)} runs over {_listed(self.varied)}", outcomes, previews)
        with new_file(path, overwrite=True) as file:
            sheet.save(file, format="png")
        return path

    @property
    def _record(self) -> Path:
        return self.folder / "sweep.json"

    @property
    def _table(self) -> Path:
        return self.folder / "sweep.csv"

    def _write_record(self) -> None:
        """Writes down what varies, and what is in the table."""
        table = blake3_of(self._table) if self._table.is_file() else None
        record = {"format": FORMAT, "varied": self.varied, "table": table}
        _write(self._record, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def _read_record(self) -> tuple[list[str], str | None]:
        """Returns what varies, and the hash of the table as it was written, where the record has one."""
        try:
            data = read_json(self._record)
            if data["format"] != FORMAT:
                raise ValueError("of another format")
            return [str(name) for name in data["varied"]], data.get("table")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunChanged(
                f"{self._record}: cannot be read ({error})", hint="choose another --name or --out"
            ) from error


def plan_sweep(
    recipe: Recipe | Mapping[str, Any] | AnyPath,
    varied: Sequence[Varied],
    changes: Mapping[str, Any],
    defaults: Mapping[str, Any],
    out: Path,
) -> Sweep:
    """Returns a sweep over all combinations of what varies.

    Args:
        recipe: of every run, where no whole recipes vary.
        changes, defaults: as for `hnetkit.train.recipe.make_recipe`, of every run.
        out: the folder of the sweep's own one.

    Raises:
        UsageError: values that cannot be meant, or fewer than two runs that can be told apart.
        NotFound: a recipe's file is not there.
    """
    require_sense(varied, changes)
    asked = []
    for values in product(*(one.values for one in varied)):
        choices = [Choice(one.what, text, one.setting) for one, (text, _) in zip(varied, values, strict=True)]
        base, own = recipe, dict(changes)
        for choice, (_, value) in zip(choices, values, strict=True):
            if choice.setting:
                own[choice.setting] = value
            else:
                base = value
        asked.append((choices, make_recipe(base, own, defaults)))
    of_recipes = {own.name for _, own in asked}
    if len(of_recipes) > 1:
        raise UsageError(f"recipes of several names, {', '.join(sorted(of_recipes))}", hint="--name X, of the sweep")
    name = of_recipes.pop()
    return Sweep(name, out / name, tuple(one.what for one in varied), plan_runs(name, out / name, asked))


def make_all(
    sweep: Sweep,
    model: Model,
    data: Sequence[TrainingData],
    *,
    beginning: Beginning = "go on",
    force: bool = False,
    told: Callbacks = _UNTOLD,
    made: Callable[[Outcome], None] | None = None,
    library: Library | None = None,
) -> list[Outcome]:
    """Returns what came of every run, once all could begin; the sheet and the table are written.

    Args:
        model: that all runs are trained on.
        data: of each run, as `Sweep.read` gives it.
        made: called after each run, in the main process.
        library: networks are put into it; None is that of the command line.

    Raises:
        DiskFull: there is no room.
        HnetkitError: as `hnetkit.train.loop.train`, where there are several processes, but for what a guard stops;
            what else is wrong with a run is its outcome.
    """
    processes = Processes.of_accelerate(model.pipe.unet.device.type)
    previews = sweep.previews(model)
    found = sweep.check(model, data, beginning, force=force)
    done = [_finished(run, own) if beginning != "restart" else None for run, own in zip(sweep.runs, found, strict=True)]
    processes.wait()  # every process has looked before the main one writes
    outcomes = []
    with sweep.locked() if processes.is_main else nullcontext():
        if processes.is_main:
            sweep.begin()
        processes.wait()
        for number, (run, before) in enumerate(zip(sweep.runs, done, strict=True)):
            heading = f"Run {number + 1} of {len(done)}: {run.label}"
            told.note(f"{heading}, finished before" if before else heading)
            outcome = before or _made(
                run, model, data[number], beginning, told, force=force, is_alone=processes.size == 1
            )
            outcomes.append(outcome)
            if processes.is_main:
                if outcome.files:
                    register_run(library, run.folder, run.recipe, model, outcome.files, found[number].start)
                if made is not None:
                    made(outcome)
        if processes.is_main:
            told.progress("Drawing the sheet", 0, 1)
            told.note(f"Sheet: {sweep.write(outcomes, previews)}")
        processes.wait()
    return outcomes


def _made(
    run: SweepRun,
    model: Model,
    data: TrainingData,
    beginning: Beginning,
    told: Callbacks,
    *,
    force: bool,
    is_alone: bool,
) -> Outcome:
    """Returns what came of a run that was made, or gone on with, also where it could not be.

    Args:
        is_alone: no other process waits for this one, which may go on after any failure.

    Raises:
        DiskFull: there is no room for the others either.
        HnetkitError: as `hnetkit.train.loop.train`, where other processes wait for this one.
    """
    try:
        result = train(run.recipe, model, data, run.folder, beginning=beginning, force=force, told=told)
    except HnetkitError as error:
        if isinstance(error, DiskFull) or not (is_alone or isinstance(error, TrainingFailed)):
            raise
        return _outcome(run, failure=f"{error}; {error.hint}" if error.hint else str(error))
    return _outcome(run, result.files)


def _finished(run: SweepRun, found: Found) -> Outcome | None:
    """Returns what came of a run that is at its end; None where there is something to do."""
    last_step = schedule(run.recipe.rates, run.recipe.max_steps).last_step
    if not RunFolder(run.folder, run.recipe).is_finished(found, last_step):
        return None
    return _outcome(run, [run.folder / f"{run.recipe.name}{suffix}" for suffix in (".safetensors", ".pt")])


def _outcome(run: SweepRun, files: Sequence[Path] = (), failure: str = "") -> Outcome:
    """Returns what the log says of a run."""
    try:
        rows = deque(read_log(run.folder / CSV_NAME), maxlen=1)
    except HnetkitError as error:
        rows, failure = deque(), failure or f"{error}; {error.hint}"
    if not rows:
        return Outcome(run, tuple(files), None, 0, 0, 0.0, failure)
    last = rows[0]
    return Outcome(run, tuple(files), last.running_mean, last.step, last.roll_backs, last.seconds, failure)


def _sheet(title: str, outcomes: Sequence[Outcome], previews: Previews) -> Any:
    from hnetkit.formats import load
    from hnetkit.generate.grids.sheet import Section, SheetRow, draw_sheet

    rows = [SheetRow("without a network", previews.row(None))]
    for outcome in outcomes:
        pictures = previews.row(load(outcome.files[0])) if outcome.files else previews.no_row()
        rows.append(SheetRow(f"{outcome.run.label} · {_said(outcome)}", pictures))
    return draw_sheet(title, f"{previews.drawn_with}  ·  strength 1", previews.columns, [Section("", rows)])


def _said(outcome: Outcome) -> str:
    if outcome.failure:
        return f"failed after {outcome.steps} steps"
    return f"loss {outcome.loss:.4f}" if outcome.loss is not None else "no step"


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Returns a value as its option is written, and no formula."""
    if isinstance(value, str):
        return to_cell(value)
    if isinstance(value, list):
        return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return json.dumps(value) if isinstance(value, dict | bool) else value


def _write(path: Path, text: str) -> None:
    with new_file(path, overwrite=True) as file:
        file.write(text.encode())


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
