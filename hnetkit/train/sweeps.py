"""Several runs on one model: which are finished, which are made, and one sheet and table of all.

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
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.distributed import Processes
from hnetkit.errors import DiskFull, HnetkitError, OutputExists, RunChanged, TrainingFailed, UsageError
from hnetkit.files import is_file_at, is_folder_at, is_there, new_file, refuse_links, stat_at
from hnetkit.hashes import blake3_of
from hnetkit.limits import read_json
from hnetkit.text import to_cell
from hnetkit.train.callbacks import NO_CALLBACKS, Callbacks
from hnetkit.train.data import Template, TrainingData, TrainingImage, read_data
from hnetkit.train.logs import CSV_NAME, read_log
from hnetkit.train.previews import Previews
from hnetkit.train.recipe import Recipe, make_recipe
from hnetkit.train.run_folder import RunFolder, RunInputs, StartMode
from hnetkit.train.schedules import schedule
from hnetkit.train.variations import SweepRun, SweptChoice, VariedSetting, plan_runs, require_valid_variations

if TYPE_CHECKING:
    from hnetkit.generate.model import Model
    from hnetkit.library.library import AnyPath, Library
    from hnetkit.train.trainer import TrainingResult

FORMAT = "hnetkit.sweep/1"


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The result of a run.

    Attributes:
        run: its plan.
        files: the network; none if the run failed.
        loss: its last running mean; None if no step was made.
        steps: made in all.
        roll_backs: in all.
        seconds: of training, without previews and checkpoints.
        failure: why it failed, or its log is unreadable, and the remedy; empty if it succeeded.
        unregistered: why the library does not have the network; empty if it has.
    """

    run: SweepRun
    files: tuple[Path, ...]
    loss: float | None
    steps: int
    roll_backs: int
    seconds: float
    failure: str = ""
    unregistered: str = ""

    def row(self) -> dict[str, Any]:
        """Returns the row of the table."""
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
        name: of the sweep; the networks' names begin with it.
        folder: of the sweep.
        varied: names of what varies.
        runs: at least two.
    """

    name: str
    folder: Path
    varied: tuple[str, ...]
    runs: tuple[SweepRun, ...]

    def locked(self) -> AbstractContextManager[None]:
        """Locks the folder while the block lasts."""
        return RunFolder(self.folder, self.runs[0].recipe).locked()

    def require_ours(self) -> None:
        """Raises OutputExists or RunChanged if the folder is something else, another sweep's, or holds links."""
        hint = "choose another --name or --out"
        if stat_at(self.folder) and not is_folder_at(self.folder):
            raise OutputExists(f"{self.folder}: a file, not a sweep's folder", hint=hint)
        if not is_folder_at(self.folder):
            return
        refuse_links([self.folder / ".lock", *(run.folder for run in self.runs)])
        for path in (self._table, self._sheet):
            if is_there(path) and not is_file_at(path):
                raise OutputExists(f"{path}: not a file, and in the way of one", hint="move it away")
        if is_there(self._record):
            before, written = self._read_record()
            if before != list(self.varied):
                raise RunChanged(
                    f"{self.folder}: a sweep over {' and '.join(before)}, not over {' and '.join(self.varied)}",
                    hint=hint,
                )
            if written is not None and is_file_at(self._table) and blake3_of(self._table) != written:
                raise OutputExists(
                    f"{self._table}: changed since it was written, and would be replaced",
                    hint="move it away, or give it another name",
                )
            return
        others = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        if others:
            raise OutputExists(f"{self.folder}: holds {others[0]} and is no sweep's folder", hint=hint)

    def read(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[TrainingData]:
        """Returns the data of each run; images that several runs share are read once.

        Raises:
            NotFound, BadPicture, UsageError: as `hnetkit.train.data.read_data`.
        """
        read: dict[Any, Sequence[TrainingImage]] = {}
        data = []
        for recipe in (run.recipe for run in self.runs):
            key = recipe.pictures, recipe.size, recipe.called, recipe.beside
            if key not in read:
                read[key] = read_data(replace(recipe, template="none"), progress).images
            data.append(TrainingData(read[key], Template.read(recipe.template), recipe))
        return data

    def previews(self, model: Model, note: Callable[[str], None] = lambda line: None) -> Previews:
        """Returns what draws the rows of the sheet; `note` is called with what its prompts leave out.

        Raises:
            UsageError: invalid settings, or more images than fit on a sheet.
        """
        from hnetkit.generate.grids.sheet import require_room

        settings = replace(self.runs[0].recipe.previews, strengths=(1.0,))
        previews = Previews(model, settings, self.folder, self.name, note=note)
        require_room(len(previews.columns), len(self.runs) + 1)
        return previews

    def check(
        self, model: Model, data: Sequence[TrainingData], start_mode: StartMode, *, force: bool
    ) -> list[RunInputs]:
        """Returns the inputs of each run, after checking that every one of them could begin; writes nothing.

        Raises:
            UsageError, RunChanged: the first fault of a run, with the run's label.
        """
        from hnetkit.train.trainer import check

        inputs = []
        for run, own in zip(self.runs, data, strict=True):
            with run.naming_errors():
                inputs.append(check(run.recipe, model, own, run.folder, start_mode=start_mode, force=force))
        return inputs

    def begin(self) -> None:
        """Makes the folder and writes the record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_record()

    def write(self, outcomes: Sequence[RunOutcome], previews: Previews) -> Path:
        """Writes ``sweep.csv`` and ``sweep.png`` and returns the path of the sheet.

        Raises:
            FileRefused, NotFound: a network is no longer there.
            OutOfMemory: drawing needs more memory than there is.
        """
        _write(self._table, _as_csv([outcome.row() for outcome in outcomes]))
        self._write_record()
        title = f"{self.name}: {len(outcomes)} runs over {' and '.join(self.varied)}"
        sheet = _sheet(title, outcomes, previews)
        with new_file(self._sheet, overwrite=True) as file:
            sheet.save(file, format="png")
        return self._sheet

    @property
    def _record(self) -> Path:
        return self.folder / "sweep.json"

    @property
    def _table(self) -> Path:
        return self.folder / "sweep.csv"

    @property
    def _sheet(self) -> Path:
        return self.folder / "sweep.png"

    def _write_record(self) -> None:
        """Writes what varies, and the hash of the table."""
        table = blake3_of(self._table) if is_file_at(self._table) else None
        record = {"format": FORMAT, "varied": self.varied, "table": table}
        _write(self._record, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def _read_record(self) -> tuple[list[str], str | None]:
        """Returns what varies, and the hash of the table as it was written, if the record has one."""
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
    varied: Sequence[VariedSetting],
    changes: Mapping[str, Any],
    defaults: Mapping[str, Any],
    out: Path,
) -> Sweep:
    """Returns a sweep over all combinations of what varies.

    Args:
        recipe: of every run, unless whole recipes vary.
        changes, defaults: as for `hnetkit.train.recipe.make_recipe`, of every run.
        out: the parent of the sweep's folder.

    Raises:
        UsageError: invalid values, or fewer than two different runs.
        NotFound: a recipe's file is missing.
    """
    require_valid_variations(varied, changes)
    recipes = []
    for values in product(*(setting.values for setting in varied)):
        choices = [
            SweptChoice(which.what, text, which.setting) for which, (text, _) in zip(varied, values, strict=True)
        ]
        base, own = recipe, dict(changes)
        for choice, (_, value) in zip(choices, values, strict=True):
            if choice.setting:
                own[choice.setting] = value
            else:
                base = value
        recipes.append((choices, make_recipe(base, own, defaults)))
    names = {own.name for _, own in recipes}
    if len(names) > 1:
        raise UsageError(f"recipes of several names, {', '.join(sorted(names))}", hint="--name X, of the sweep")
    name = names.pop()
    return Sweep(name, out / name, tuple(setting.what for setting in varied), plan_runs(name, out / name, recipes))


def run_sweep(
    sweep: Sweep,
    model: Model,
    data: Sequence[TrainingData],
    *,
    start_mode: StartMode = "continue",
    force: bool = False,
    callbacks: Callbacks = NO_CALLBACKS,
    made: Callable[[RunOutcome], None] | None = None,
    library: Library | None = None,
) -> list[RunOutcome]:
    """Makes every run, after checking that all could begin; writes the sheet and the table; returns the outcomes.

    Args:
        model: that all runs are trained on.
        data: of each run, as `Sweep.read` gives it.
        made: called after each run, in the main process.
        library: for the networks; None is that of the command line.

    Raises:
        DiskFull: there is no room.
        HnetkitError: as `hnetkit.train.trainer.train`, before the first run or in any of several processes; otherwise
            the failure of a run is its outcome.
    """
    from hnetkit.train.export import register_run
    from hnetkit.train.trainer import train

    processes = Processes.of_accelerate(model.pipe.unet.device.type)
    previews = sweep.previews(model, callbacks.note)
    inputs = sweep.check(model, data, start_mode, force=force)
    earlier = [
        _finished_before(run, own) if start_mode != "restart" else None
        for run, own in zip(sweep.runs, inputs, strict=True)
    ]
    processes.wait()  # every process has looked before the main one writes
    outcomes = []
    with sweep.locked() if processes.is_main else nullcontext():
        if processes.is_main:
            sweep.begin()
        processes.wait()
        for number, (run, outcome) in enumerate(zip(sweep.runs, earlier, strict=True)):
            heading = f"Run {number + 1} of {len(sweep.runs)}: {run.label}"
            callbacks.note(f"{heading}, finished before" if outcome else heading)
            if outcome is None:
                options: Any = {"start_mode": start_mode, "force": force, "callbacks": callbacks}
                train_run = partial(train, run.recipe, model, data[number], run.folder, **options)
                outcome = _make_run(run, train_run, is_alone=processes.size == 1)
            if processes.is_main and outcome.files:
                start = inputs[number].start
                why = register_run(library, run.folder, run.recipe, model, outcome.files, start, callbacks.note)
                outcome = replace(outcome, unregistered=why)
            outcomes.append(outcome)
            if processes.is_main and made is not None:
                made(outcome)
        if processes.is_main:
            callbacks.progress("Drawing the sheet", 0, 1)
            callbacks.note(f"Sheet: {sweep.write(outcomes, previews)}")
        processes.wait()
    return outcomes


def _make_run(run: SweepRun, train_run: Callable[[], TrainingResult], *, is_alone: bool) -> RunOutcome:
    """Returns the outcome of a run that is made or resumed, which may be a failure.

    Args:
        train_run: calls `hnetkit.train.trainer.train` for it.
        is_alone: whether this is the only process; with others, all must fail together.

    Raises:
        DiskFull: there is no room for the other runs either.
        HnetkitError: as `hnetkit.train.trainer.train`, if there are other processes.
    """
    try:
        result = train_run()
    except HnetkitError as error:
        if isinstance(error, DiskFull) or not (is_alone or isinstance(error, TrainingFailed)):
            raise
        return _outcome(run, failure=f"{error}; {error.command_hint}" if error.command_hint else str(error))
    return _outcome(run, result.files)


def _finished_before(run: SweepRun, inputs: RunInputs) -> RunOutcome | None:
    """Returns the outcome of a run that is finished; None if steps are missing."""
    last_step = schedule(run.recipe.rates, run.recipe.max_steps).last_step
    files = RunFolder(run.folder, run.recipe)
    return _outcome(run, files.results) if files.is_finished(inputs, last_step) else None


def _outcome(run: SweepRun, files: Sequence[Path] = (), failure: str = "") -> RunOutcome:
    """Returns the outcome of a run, with the numbers of its log."""
    try:
        rows = deque(read_log(run.folder / CSV_NAME), maxlen=1)
    except HnetkitError as error:
        rows, failure = deque(), failure or f"{error}; {error.command_hint}"
    if not rows:
        return RunOutcome(run, tuple(files), loss=None, steps=0, roll_backs=0, seconds=0.0, failure=failure)
    last = rows[0]
    return RunOutcome(
        run=run,
        files=tuple(files),
        loss=last.running_mean,
        steps=last.step,
        roll_backs=last.roll_backs,
        seconds=last.seconds,
        failure=failure,
    )


def _sheet(title: str, outcomes: Sequence[RunOutcome], previews: Previews) -> Any:
    from hnetkit.formats import load
    from hnetkit.generate.grids.sheet import Section, SheetRow, draw_sheet

    rows = [SheetRow("without a network", previews.row(None))]
    for outcome in outcomes:
        images = previews.row(load(outcome.files[0])) if outcome.files else previews.empty_row()
        rows.append(SheetRow(f"{outcome.run.label} · {_summary(outcome)}", images))
    return draw_sheet(title, f"{previews.drawn_with}  ·  strength 1", previews.columns, [Section("", rows)])


def _summary(outcome: RunOutcome) -> str:
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
    """Returns a value as its option is written, escaped so that no spreadsheet takes it for a formula."""
    if isinstance(value, str):
        return to_cell(value)
    if isinstance(value, list):
        return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return json.dumps(value) if isinstance(value, dict | bool) else value


def _write(path: Path, text: str) -> None:
    with new_file(path, overwrite=True) as file:
        file.write(text.encode())
