"""`hnetkit train sweep`: several recipes, one after the other, on one model, and one sheet of what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hnetkit import settings
from hnetkit.cli.output import Output, output_options, say
from hnetkit.cli.train_options import make_recipe, read_setting, recipe_options
from hnetkit.cli.train_run import load_trained_on, machine_defaults, register_result, run_progress
from hnetkit.errors import PartlyFailed, UsageError
from hnetkit.text import argument

if TYPE_CHECKING:
    from hnetkit.generate.model import Model
    from hnetkit.train.run_folder import Beginning
    from hnetkit.train.sweep import Outcome, Sweep
    from hnetkit.train.sweep_runs import Choice

    Values = list[tuple[Choice, Any]]  # of one thing that varies, each with what its option makes of it


@click.command("sweep")
@click.argument("pictures", required=False)
@click.option("--vary", "varied", multiple=True, metavar="NAME=A|B", help="Values of an option; repeat for more.")
@click.option(
    "--recipe",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="JSON, as in a run's folder; repeat to vary it.",
)
@click.option("--out", default="training", metavar="DIR", show_default=True, help="The sweep's folder is made in it.")
@click.option("--restart", is_flag=True, help="Start every run over, and remove what it made so far.")
@click.option("--force", is_flag=True, help="Go on although pictures or model have changed.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute.")
@recipe_options
@output_options
def sweep_command(
    pictures: str | None,
    varied: tuple[str, ...],
    files: tuple[Path, ...],
    out: str,
    restart: bool,
    force: bool,
    device: str | None,
    given: dict[str, Any],
    output: Output,
) -> None:
    """Train one network by several recipes, and show them on one sheet.

    Each --vary names an option of `hnetkit train run` without its dashes, and values of it that a | separates: commas
    belong to schedules and lists. Switches take on and off, what is off by default also none. Several --vary, and
    several --recipe, are combined, each value with each. All other options count for every run. Model, precision and
    previews are the same for all: the model is loaded once.

    Each run is one of `hnetkit train run`, in OUT/NAME/ in a folder named by what differs; its network is called
    NAME-what-differs, while prompts say NAME in all runs alike. OUT/NAME/sweep.png has a row for each run and a column
    for each prompt and seed of the previews, below a row without a network; sweep.csv has the numbers.

    The same command given again goes on where it stopped: runs that are finished are not made again, and values may be
    added. A run that a guard stops is said and shown as failed, the others are made, and the exit code is 1.

    \b
    Examples:
      hnetkit train sweep pictures --name ink --vary "rate=5e-5:500, 5e-6:2000|1e-5:2000" --vary "activation=relu|swish"
      hnetkit train sweep pictures --name ink --recipe soft.json --recipe hard.json --max-steps 3000 --json
    """
    from hnetkit.generate.grids.processes import Processes, started_alone
    from hnetkit.generate.model import device_of

    if not Processes.of_environment().is_main:
        output = replace(output, quiet=True)
    if started_alone():
        output.note("accelerate started one process: with --cpu it needs MPI for several; --multi_gpu starts them.")
    device = device_of(device or settings.get("device") or "auto")
    sweep = _planned(pictures, varied, files, Path(out), given, machine_defaults(device))
    outcomes = _made(sweep, device, "restart" if restart else "go on", force, output)
    if not Processes.of_environment().is_main:
        return
    rows = [outcome.row() for outcome in outcomes]
    output.rows(rows, columns=[name for name in rows[0] if name not in ("name", "failure")])
    failed = [outcome for outcome in outcomes if outcome.failure]
    if failed:
        raise PartlyFailed(
            f"{len(failed)} of {len(outcomes)} runs failed: {', '.join(outcome.run.label for outcome in failed)}",
            hint="the same command tries them again; --restart starts over",
        )


def _planned(
    pictures: str | None,
    varied: Sequence[str],
    files: Sequence[Path],
    out: Path,
    given: dict[str, Any],
    defaults: dict[str, Any],
) -> Sweep:
    """Returns the product of all that varies."""
    from hnetkit.train.sweep import Sweep
    from hnetkit.train.sweep_runs import plan_runs

    axes: list[Values] = [_file_values(files)] if len(files) > 1 else []
    axes += [_values(text, given) for text in varied]
    names = [values[0][0].what for values in axes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is varied twice", hint=f"--vary {argument(f'{name}=A|B|C')}")
    asked = []
    for chosen in product(*axes):
        file = next((value for choice, value in chosen if not choice.setting), files[0] if files else None)
        own = {choice.setting: value for choice, value in chosen if choice.setting}
        asked.append(([choice for choice, _ in chosen], make_recipe(file, pictures, {**given, **own}, defaults)))
    of_recipes = {recipe.name for _, recipe in asked}
    if len(of_recipes) > 1:
        raise UsageError(f"recipes of several names, {', '.join(sorted(of_recipes))}", hint="--name X, of the sweep")
    name = of_recipes.pop()
    return Sweep(name, out / name, tuple(names), plan_runs(name, out / name, asked))


def _values(text: str, given: dict[str, Any]) -> Values:
    """Reads one --vary."""
    from hnetkit.train.sweep_runs import SHARED, Choice

    what, equals, rest = text.partition("=")
    what, texts = what.strip().lstrip("-"), [part.strip() for part in rest.split("|")]
    if not equals or not all(texts):
        raise UsageError(f"--vary {text}: a name and its values", hint='--vary "rate=5e-5|5e-6"')
    read = [(part, *read_setting(what, part)) for part in texts]
    setting = read[0][1]
    if setting == "name" or setting.split(".")[0] in SHARED:
        raise UsageError(f"--vary {text}: all runs of a sweep have the {what} in common", hint="make two sweeps")
    if setting in given:
        raise UsageError(f"--{what} and --vary {what}: which of them?", hint=f"leave --{what} out")
    if len(texts) < 2:
        raise UsageError(
            f"--vary {text}: one value does not vary", hint=f"a | separates values: --vary {argument(f'{what}=A|B')}"
        )
    return [(Choice(what, part, setting), value) for part, setting, value in read]


def _file_values(files: Sequence[Path]) -> Values:
    """Returns recipes by the names of their files, or of their folders where they are those of runs."""
    from hnetkit.train.sweep_runs import Choice

    names = [file.parent.name if file.stem == "recipe" and file.parent.name else file.stem for file in files]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two recipes are called {name}", hint="rename one of the files: runs are named by them")
    return [(Choice("recipe", name), file) for name, file in zip(names, files, strict=True)]


def _made(sweep: Sweep, device: str, beginning: Beginning, force: bool, output: Output) -> list[Outcome]:
    """Returns what came of every run, once all could begin; the sheet and the table are written."""
    from hnetkit.train.processes import Processes, leave
    from hnetkit.train.sweep import finished, make

    sweep.require_ours()
    with run_progress(output) as told:
        data = sweep.read(lambda done, total: told.prepared("Reading pictures", done, total))
        told.prepared("Loading the model", 0, 1)
        model = load_trained_on(sweep.runs[0].recipe, device)
    processes = Processes(device)
    previews = sweep.previews(model)
    found = sweep.check(model, data, beginning, force=force)
    done = [finished(run, own) if beginning != "restart" else None for run, own in zip(sweep.runs, found, strict=True)]
    processes.shared(None)  # every process has looked before the main one writes

    def outcome_of(number: int) -> Outcome:
        run, before = sweep.runs[number], done[number]
        heading = f"Run {number + 1} of {len(done)}: {run.label}"
        output.note(f"{heading}, finished before" if before else heading)
        if before is not None:
            return before
        with run_progress(output) as told:
            return make(run, model, data[number], beginning=beginning, force=force, told=told)

    outcomes = []
    with sweep.locked() if processes.is_main else nullcontext():
        if processes.is_main:
            sweep.begin()
        processes.shared(None)
        for number, own in enumerate(found):
            outcome = outcome_of(number)
            outcomes.append(outcome)
            if processes.is_main:
                _settle(outcome, model, own.start)
        leave()
        if processes.is_main:
            output.note(f"Sheet: {sweep.write(outcomes, previews)}")
    return outcomes


def _settle(outcome: Outcome, model: Model, start: str | None) -> None:
    """Puts a network into the library, or says why there is none."""
    if outcome.failure:
        say(f"Error: {outcome.run.label}: {outcome.failure}")
    else:
        register_result(outcome.run.folder, outcome.run.recipe, model, outcome.files, start)
