"""Several runs on one model: what differs between them, which are finished, and one sheet and table of all.

``OUT/NAME`` holds a folder for each run, named by what differs, ``sweep.json``, ``sweep.png`` and ``sweep.csv``.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blake3 import blake3

from hnetkit.distributed import Processes
from hnetkit.errors import DiskFull, HnetkitError, OutputExists, RunChanged, TrainingFailed, UsageError
from hnetkit.files import new_file, refuse_links
from hnetkit.hashes import blake3_of
from hnetkit.limits import read_json
from hnetkit.text import argument, to_cell
from hnetkit.train.data import Template, TrainingData, TrainingImage, read_data
from hnetkit.train.export import register_run
from hnetkit.train.logs import CSV_NAME, read_log
from hnetkit.train.previews import Previews
from hnetkit.train.recipe import Recipe, make_recipe
from hnetkit.train.run_folder import RunFolder, RunInputs, StartMode
from hnetkit.train.schedules import schedule
from hnetkit.train.trainer import Callbacks, TrainingResult, check, train

if TYPE_CHECKING:
    from hnetkit.generate.model import Model
    from hnetkit.library.library import AnyPath, Library

FORMAT = "hnetkit.sweep/1"

_NO_CALLBACKS = Callbacks()


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
    """

    run: SweepRun
    files: tuple[Path, ...]
    loss: float | None
    steps: int
    roll_backs: int
    seconds: float
    failure: str = ""

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
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputExists(f"{self.folder}: a file, not a sweep's folder", hint=hint)
        if not self.folder.is_dir():
            return
        refuse_links([self.folder / ".lock", *(run.folder for run in self.runs)])
        if self._record.exists():
            before, written = self._read_record()
            if before != list(self.varied):
                raise RunChanged(
                    f"{self.folder}: a sweep over {' and '.join(before)}, not over {' and '.join(self.varied)}",
                    hint=hint,
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

    def previews(self, model: Model) -> Previews:
        """Returns what draws the rows of the sheet.

        Raises:
            UsageError: invalid settings, or more images than fit on a sheet.
        """
        from hnetkit.generate.grids.sheet import require_room

        settings = replace(self.runs[0].recipe.previews, strengths=(1.0,))
        previews = Previews(model, settings, self.folder, self.name)
        require_room(len(previews.columns), len(self.runs) + 1)
        return previews

    def check(
        self, model: Model, data: Sequence[TrainingData], start_mode: StartMode, *, force: bool
    ) -> list[RunInputs]:
        """Returns the inputs of each run, after checking that every one of them could begin; writes nothing.

        Raises:
            UsageError, RunChanged: the first fault of a run, with the run's label.
        """
        inputs = []
        for run, own in zip(self.runs, data, strict=True):
            try:
                inputs.append(check(run.recipe, model, own, run.folder, start_mode=start_mode, force=force))
            except UsageError as error:
                raise type(error)(f"{run.label}: {error}", hint=error.hint) from error
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
        path = self.folder / "sweep.png"
        title = f"{self.name}: {len(outcomes)} runs over {' and '.join(self.varied)}"
        sheet = _sheet(title, outcomes, previews)
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
        """Writes what varies, and the hash of the table."""
        table = blake3_of(self._table) if self._table.is_file() else None
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
    callbacks: Callbacks = _NO_CALLBACKS,
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
    processes = Processes.of_accelerate(model.pipe.unet.device.type)
    previews = sweep.previews(model)
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
            outcomes.append(outcome)
            if processes.is_main:
                if outcome.files:
                    register_run(library, run.folder, run.recipe, model, outcome.files, inputs[number].start)
                if made is not None:
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
        return _outcome(run, failure=f"{error}; {error.hint}" if error.hint else str(error))
    return _outcome(run, result.files)


def _finished_before(run: SweepRun, inputs: RunInputs) -> RunOutcome | None:
    """Returns the outcome of a run that is finished; None if steps are missing."""
    last_step = schedule(run.recipe.rates, run.recipe.max_steps).last_step
    if not RunFolder(run.folder, run.recipe).is_finished(inputs, last_step):
        return None
    return _outcome(run, [run.folder / f"{run.recipe.name}{suffix}" for suffix in (".safetensors", ".pt")])


def _outcome(run: SweepRun, files: Sequence[Path] = (), failure: str = "") -> RunOutcome:
    """Returns the outcome of a run, with the numbers of its log."""
    try:
        rows = deque(read_log(run.folder / CSV_NAME), maxlen=1)
    except HnetkitError as error:
        rows, failure = deque(), failure or f"{error}; {error.hint}"
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


# --- what varies

SHARED = ("model", "vae", "tokenizer", "precision", "previews")
"""Settings that all runs share: the model is loaded once, and the sheet shows the same prompts and seeds of each."""

WHOLE = "recipe"
"""The name of what varies if whole recipes do."""

_LONGEST = 80  # characters of a run's folder; files add the sweep's name and more
_UNSAFE = re.compile(r"[^\w.+-]+", re.ASCII)


class VariedSetting(NamedTuple):
    """One setting that a sweep varies, or whole recipes.

    Attributes:
        what: its name, in labels, folders and the table.
        setting: of the recipe, such as ``build.structure``; empty for whole recipes.
        values: each as it is written, and as JSON holds it; a whole recipe with its name.
    """

    what: str
    setting: str
    values: Sequence[tuple[str, Any]]

    @classmethod
    def of(cls, setting: str, values: Sequence[Any] | Mapping[str, Any]) -> VariedSetting:
        """Returns the values of a setting, or whole recipes by name if `setting` is `WHOLE`.

        Args:
            values: in order; the keys of a mapping say how each is written.

        Raises:
            UsageError: recipes without names.
        """
        if setting == WHOLE and not isinstance(values, Mapping):
            raise UsageError("recipes that vary have names", hint='vary={"recipe": {"soft": ..., "hard": ...}}')
        values = [values] if isinstance(values, str) else values
        pairs = values.items() if isinstance(values, Mapping) else [(_value_text(value), value) for value in values]
        what = setting.rpartition(".")[2].replace("_", "-")
        return cls(what, "" if setting == WHOLE else setting, tuple(pairs))


class SweptChoice(NamedTuple):
    """One value of a varied setting.

    Attributes:
        what: the option's name, or ``recipe``.
        text: the value as it was given.
        setting: of the recipe, such as ``build.structure``; empty for a whole recipe.
    """

    what: str
    text: str
    setting: str = ""


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        label: what differs, for the user.
        folder: of this run alone.
        recipe: named by the sweep and what differs.
        settings: what differs, by the names of options if they were varied, else by those of the recipe.
    """

    label: str
    folder: Path
    recipe: Recipe
    settings: Mapping[str, Any]


def plan_runs(name: str, folder: Path, recipes: Sequence[tuple[Sequence[SweptChoice], Recipe]]) -> tuple[SweepRun, ...]:
    """Returns the runs of a sweep.

    The networks are named by what differs, but called by the sweep's name in their prompts and captions: otherwise the
    words of the prompts would differ too.

    Args:
        name: of the sweep.
        folder: of the sweep.
        recipes: each with its values of what varies.

    Raises:
        UsageError: fewer than two runs, two that are the same, or two that differ in what all share.
    """
    if len(recipes) < 2:
        raise UsageError("a sweep has at least two runs", hint='--vary "rate=5e-5|5e-6"')
    names = [_folder_name(choices) for choices, _ in recipes]
    labels = [" · ".join(f"{choice.what} {choice.text}" for choice in choices) for choices, _ in recipes]
    _require_different(labels, names, [recipe for _, recipe in recipes])
    different = _different(recipes)
    runs = []
    for label, own, (choices, recipe) in zip(labels, names, recipes, strict=True):
        recipe = replace(recipe, name=f"{name}-{own}", prompt_name=recipe.called)
        runs.append(SweepRun(label, folder / own, recipe, _settings(choices, recipe, different)))
    return tuple(runs)


def require_valid_variations(varied: Sequence[VariedSetting], changes: Mapping[str, Any]) -> None:
    """Checks what is to vary.

    Args:
        changes: settings that are the same for all runs.

    Raises:
        UsageError: all runs share it, it is given twice, or it has one value.
    """
    names = [setting.what for setting in varied]
    for what, setting, values in varied:
        if setting == "name" or setting.split(".")[0] in SHARED:
            raise UsageError(f"--vary {what}: all runs of a sweep have the {what} in common", hint="make two sweeps")
        if setting in changes:
            raise UsageError(f"--{what} and --vary {what}: which of them?", hint=f"leave --{what} out")
        if names.count(what) > 1:
            raise UsageError(f"{what} is varied twice", hint=f"--vary {argument(f'{what}=A|B|C')}")
        if len(values) < 2:
            hint = f"a | separates values: --vary {argument(f'{what}=A|B')}"
            raise UsageError(f"--vary {what}: one value does not vary", hint=hint)


def _value_text(value: Any) -> str:
    """Returns a value as its option is written."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool):
        return "none" if value is None else "on" if value else "off"
    if isinstance(value, list | tuple):
        return ",".join(map(_value_text, value))
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _require_different(labels: Sequence[str], names: Sequence[str], recipes: Sequence[Recipe]) -> None:
    """Raises UsageError if two runs are the same, or differ in what all must share."""
    for setting in SHARED:
        for label, recipe in zip(labels, recipes, strict=True):
            if getattr(recipe, setting) != getattr(recipes[0], setting):
                raise UsageError(
                    f"{labels[0]} and {label} differ in {setting}: the runs of a sweep have it in common",
                    hint="give it as an option beside the recipes, or make two sweeps",
                )
    for (one, mine), (other, others) in combinations(zip(labels, recipes, strict=True), 2):
        if _is_same(mine, others):
            raise UsageError(f"{one} and {other} are the same run", hint="leave one of them out")
    name, count = Counter(map(str.casefold, names)).most_common(1)[0]
    if count > 1:
        raise UsageError(f"{count} runs would share the folder {name}", hint="write their values otherwise")


def _is_same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes ask for the same steps, however their schedules are written."""

    def rest(recipe: Recipe) -> Recipe:
        return replace(recipe, name="run", tensorboard=False, rates="default", max_steps=None)

    if rest(one) != rest(other):
        return False
    mine, others = (schedule(recipe.rates, recipe.max_steps) for recipe in (one, other))
    return mine.is_same(others)


def _different(recipes: Sequence[tuple[Sequence[SweptChoice], Recipe]]) -> list[str]:
    """Returns the settings in which recipes differ beside those that vary."""
    flat = [_flat(recipe) for _, recipe in recipes]
    known = {"name", *(choice.setting for choice in recipes[0][0])}
    return [name for name in flat[0] if name not in known and any(one[name] != flat[0][name] for one in flat)]


def _settings(choices: Sequence[SweptChoice], recipe: Recipe, different: Sequence[str]) -> dict[str, Any]:
    flat = _flat(recipe)
    chosen = {choice.what: flat.get(choice.setting) for choice in choices}
    unset = {choice.what: choice.text for choice in choices if chosen[choice.what] is None}
    return {**chosen, **unset, **{name: flat[name] for name in different}}


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Returns every setting of a recipe, those of a part as ``part.name``."""
    data = recipe.to_json()
    parts = {f"{part}.{name}": value for part in ("build", "guards") for name, value in data.pop(part).items()}
    return {**data, **parts}


def _folder_name(choices: Sequence[SweptChoice]) -> str:
    """Returns what differs as a name for files, valid on every system and the same for the same choices."""
    words = "-".join(f"{choice.what}-{choice.text}" for choice in choices)
    name = _UNSAFE.sub("_", words).strip("._-")
    if len(name) <= _LONGEST and not re.search(r"[^\x20-\x7e]", words):
        return name
    return f"{name[: _LONGEST - 9]}-{blake3(words.encode()).hexdigest()[:8]}"
