"""`hnetkit train`: the group of commands that train hypernetworks, with `run`, `sweep` and `schedule`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click_default_group import DefaultGroup

from hnetkit import demo, settings
from hnetkit.cli.groups import LazyGroup, check_names
from hnetkit.cli.options import command, option
from hnetkit.cli.output import Output, Row, output_options, say
from hnetkit.cli.progress import as_one_process, run_progress
from hnetkit.cli.train_options import read_setting, training_options
from hnetkit.errors import HnetkitError, PartlyFailed, UsageError, did_you_mean
from hnetkit.files import is_folder_at
from hnetkit.text import argument

if TYPE_CHECKING:
    from hnetkit.train.schedules import Preset, Rates, RateStage
    from hnetkit.train.sweeps import RunOutcome
    from hnetkit.train.trainer import TrainingResult
    from hnetkit.train.variations import VariedSetting

_ENTERED_AGAIN = "the same command enters it later, and makes no step again"

# as COMMANDS of the folder: the lines of `hnetkit train --help`, held equal to the commands' own by a test
SUBCOMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Commands": {
        "prepare": ("train_data", "Make a folder to train on from a folder of pictures."),
        "review": ("train_data", "List the captions of a training folder, to read and to edit."),
        "schedule": ("train", "Show what a learning-rate schedule means, or list the presets."),
        "run": ("train", "Train a hypernetwork on a folder of pictures."),
        "sweep": ("train", "Train one network by several recipes, and show them on one sheet."),
    }
}


class TrainGroup(LazyGroup, DefaultGroup):  # type: ignore[misc]
    """Takes what is none of its commands for the arguments of `run`."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            super().get_command(ctx, self.default_cmd_name)  # imported, so that DefaultGroup finds it
        return super().get_command(ctx, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = args[0] in self.table or args[0].startswith("-") or os.path.exists(args[0])
        if not known and (near := did_you_mean(args[0], self.table)):
            raise UsageError(f"there is no command and no folder {args[0]}", hint=f"{ctx.command_path} {near}")
        found: tuple[str | None, click.Command | None, list[str]] = DefaultGroup.resolve_command(self, ctx, args)
        check_names(ctx, *found)
        return found


@click.group("train", cls=TrainGroup, sections=SUBCOMMANDS, default="run")
def train_command() -> None:
    """Train a hypernetwork, and prepare and check what it takes.

    `hnetkit train PICTURES` is short for `hnetkit train run PICTURES`.

    \b
    Examples:
      hnetkit train prepare photos --out pictures --size 64 --crop entropy
      hnetkit train pictures --name ink --max-steps 20
    """


@command("run")
@option(
    "--recipe",
    "file",
    section="Run",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read settings from a JSON file, such as a run's recipe.json; options override it.",
)
@option(
    "--resume",
    section="Run",
    is_flag=True,
    help="Require a checkpoint to resume from, and fail without one; a run resumes anyway where it can.",
)
@training_options
@output_options
def run_command(file: Path | None, resume: bool, arguments: dict[str, Any], output: Output) -> None:
    """Train a hypernetwork on a folder of pictures.

    PICTURES, required without --recipe, is a folder such as `hnetkit train prepare` makes: pictures whose sides are
    multiples of 8, each with its caption in a .txt file of the same name; the name itself is the caption where there
    is none. Pictures of several sizes are fine.

    Writes into the folder NAME in --out: the network as NAME.safetensors and, for A1111, as NAME.pt; checkpoints, and
    with each the network so far, as NAME-STEP.safetensors; previews, a log, and recipe.json with all settings. The
    network's path is printed at the end; tables, CSV and JSON add its name, step and loss.

    The same command given again resumes from the last checkpoint, with the same result as if Ctrl-C, a crash or a power
    cut had never stopped it. In between, --max-steps, --rate, and the options of checkpoints, previews and guards may
    change; other settings need --restart.

    `hnetkit train` without a command is `hnetkit train run`. Started by `accelerate launch --multi_gpu --num_processes
    N --no_python hnetkit train ...`, N processes share each step.

    \b
    Examples:
      hnetkit train pictures --name ink --max-steps 20
      hnetkit train --recipe training/ink/recipe.json --max-steps 30
      hnetkit train pictures --name ink --restart --max-steps 10 --batch-size 2 --accumulation 4
      hnetkit train pictures --name swish --rate "5e-5:5, 5e-6:10" --activation swish --structure 1,1.5,1
    """
    from hnetkit.distributed import disconnect
    from hnetkit.train import train

    output = as_one_process(output)
    if file is not None and "name" not in arguments["changes"]:
        _tell_left_behind(file, Path(arguments["out"]), output)
    with run_progress(output) as callbacks:
        result = train(file or {}, resume=resume, **arguments, **callbacks)
    disconnect()
    if result.files:
        output.rows([_row(result)], columns=["path", "name", "step", "loss"], text=lambda row: str(row["path"]))
        if result.unregistered:
            raise PartlyFailed(result.unregistered, hint=_ENTERED_AGAIN)
        output.note(_use_of(result))


def _tell_left_behind(file: Path, out: Path, output: Output) -> None:
    """Says so where a run's own recipe begins another run, as --out was left out, which is not where the run is."""
    run, new = file.parent, out / file.parent.name
    is_default = click.get_current_context().get_parameter_source("out") is click.core.ParameterSource.DEFAULT
    if is_default and run.name and is_folder_at(run / "state") and not is_folder_at(new / "state"):
        goes_on = f"--out {argument(run.parent, is_path=True)}"
        output.note(f"The run in {run} does not go on, and another one begins in {new}: with {goes_on} it goes on.")


def _use_of(result: TrainingResult) -> str:
    """Returns the command that draws with a network that was trained."""
    usual = settings.get("model") or str(demo.model_folder())
    model = "" if result.model == usual else f" --model {argument(result.model, is_path=True)}"
    name, files = result.folder.name, [os.path.realpath(path) for path in result.files]
    if _is_found(name, files):
        return f'Draw with it: hnetkit generate "a picture <hypernet:{name}:1>"{model}'
    file = argument(result.files[0], is_path=True)
    return f'Draw with it, as other networks are called {name} too: hnetkit generate "a picture" -n {file}{model}'


def _is_found(name: str, files: Sequence[str]) -> bool:
    """Whether a prompt finds files by their name, which other networks may have too."""
    from hnetkit.library.library import Library

    try:
        with Library() as library:
            return name not in demo.networks() and os.path.realpath(library.find(name)) in files
    except HnetkitError:
        return False


def _row(result: TrainingResult) -> Row:
    return {
        "path": str(result.files[0]),
        "name": result.folder.name,
        "step": result.step,
        "loss": result.loss,
        "roll_backs": result.roll_backs,
        "files": list(map(str, result.files)),
        "folder": str(result.folder),
    }


@command("sweep")
@option(
    "--vary",
    "varied",
    section="Run",
    multiple=True,
    metavar="NAME=A|B",
    help="Option to vary, and its values. Repeatable.",
)
@option(
    "--recipe",
    "files",
    section="Run",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Read settings from a JSON file, such as a run's recipe.json; options override it. Repeat to vary it.",
)
@training_options
@output_options
def sweep_command(varied: tuple[str, ...], files: tuple[Path, ...], arguments: dict[str, Any], output: Output) -> None:
    """Train one network by several recipes, and show them on one sheet.

    Each --vary names an option of `hnetkit train run` without its dashes, and its values, separated by |, as commas
    belong to schedules and lists. Switches take on and off; options that are off by default also take none. Several
    --vary, and several --recipe, are combined, each value with each. All other options apply to every run. Model,
    precision and previews are the same for all: the model is loaded once.

    Each run is one of `hnetkit train run`, in a folder below OUT/NAME named by what differs; its network is called
    NAME-what-differs, while prompts say NAME in all runs. OUT/NAME/sweep.png has a row for each run and a column for
    each prompt and seed of the previews, below a row without a network; sweep.csv has the numbers.

    The same command given again resumes: finished runs are kept, and values may be added. A run that a guard stops is
    listed as failed, the others are made, and the exit code is 1.

    \b
    Examples:
      hnetkit train sweep pictures --name rates --max-steps 10 --vary "rate=5e-5|1e-5"
      hnetkit train sweep pictures --name rates --max-steps 10 --vary "rate=5e-5|1e-5|5e-6" --json
    """
    from hnetkit.distributed import Processes, disconnect
    from hnetkit.train import sweep

    output = as_one_process(output)
    axes = [*([_recipes(files)] if len(files) > 1 else []), *map(_values, varied)]
    with run_progress(output) as callbacks:
        outcomes = sweep(files[0] if files else {}, vary=axes, made=_say_failure, **arguments, **callbacks)
    disconnect()
    if not Processes.of_environment().is_main:
        return
    rows = [outcome.row() for outcome in outcomes]
    output.rows(rows, columns=[name for name in rows[0] if name not in ("name", "failure")])
    failed = [outcome.run.label for outcome in outcomes if outcome.failure]
    if failed:
        raise PartlyFailed(
            f"{len(failed)} of {len(outcomes)} runs failed: {', '.join(failed)}",
            hint="the same command tries them again; --restart starts over",
        )
    if away := sum(bool(outcome.unregistered) for outcome in outcomes):
        raise PartlyFailed(f"{away} of {len(outcomes)} networks are not in the library", hint=_ENTERED_AGAIN)


def _say_failure(outcome: RunOutcome) -> None:
    for failure in filter(None, (outcome.failure, outcome.unregistered)):
        say(f"Error: {outcome.run.label}: {failure}")


def _values(text: str) -> VariedSetting:
    """Reads one --vary."""
    from hnetkit.train.variations import VariedSetting

    what, equals, rest = text.partition("=")
    what, texts = what.strip().lstrip("-"), [part.strip() for part in rest.split("|")]
    if not equals or not all(texts):
        raise UsageError(f"--vary {text}: a name and its values", hint='--vary "rate=5e-5|5e-6"')
    read = [read_setting(what, part) for part in texts]
    return VariedSetting(what, read[0][0], [(part, value) for part, (_, value) in zip(texts, read, strict=True)])


def _recipes(files: Sequence[Path]) -> VariedSetting:
    """Returns recipes by the names of their files, or of their folders where they are those of runs."""
    from hnetkit.train.variations import WHOLE, VariedSetting

    names = [file.parent.name if file.stem == "recipe" and file.parent.name else file.stem for file in files]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two recipes are called {name}", hint="rename one of the files: runs are named by them")
    return VariedSetting(WHOLE, "", list(zip(names, files, strict=True)))


@command("schedule")
@click.argument("text", required=False, metavar="[SCHEDULE]")
@option(
    "--max-steps",
    type=click.IntRange(min=1),
    show_default="where SCHEDULE ends",
    help="Step at which training ends at the latest.",
)
@option(
    "--from-step",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of steps that were trained before.",
)
@output_options
def schedule_command(text: str | None, max_steps: int | None, from_step: int, output: Output) -> None:
    """Show what a learning-rate schedule means, or list the presets.

    SCHEDULE is a preset's name, or as in A1111 RATE:STEP, RATE:STEP, ...: each rate applies until its step, counted
    from the network's first; a rate without a step, or with -1, lasts until the end. Training stops at the last step
    of the last rate. Schedules of gradient clipping are written the same way.

    A1111 does not know cosine:RATE[:cycle=STEPS][:mult=FACTOR][:warmup=STEPS][:min=RATE][:decay=FACTOR], which falls
    from RATE to min in each cycle. A cycle is mult times as long as the one before, its warm-up aside, and begins at
    decay times the rate. Without cycle=, the run is one cycle.

    \b
    Examples:
      hnetkit train schedule
      hnetkit train schedule default --from-step 1000
      hnetkit train schedule "5e-5:100, 5e-6:1500, 1e-6" --max-steps 5000 --json
      hnetkit train schedule "cosine:4e-5:cycle=500:warmup=50:min=6e-7" --max-steps 2000
    """
    from hnetkit.train import schedule
    from hnetkit.train.schedules import PRESETS

    if text is None:
        if max_steps is not None or from_step:
            raise UsageError("steps of which schedule?", hint="hnetkit train schedule default --max-steps 10000")
        _list(PRESETS, output)
        return
    rates = schedule(text, max_steps, from_step)
    for warning in rates.warnings():
        output.note(f"Warning: {warning}")
    preset = PRESETS.get(text.strip())
    output.rows(
        (stage._asdict() for stage in rates.stages),
        columns=["rate", "from_step", "to_step"],
        text=_lines(rates, preset.stops if preset else {}),
    )


def _list(presets: Mapping[str, Preset], output: Output) -> None:
    rows = (
        {"name": name, "schedule": preset.text, "stops": dict(preset.stops), "about": preset.about}
        for name, preset in presets.items()
    )
    output.rows(rows, columns=["name", "schedule", "about"])


def _lines(rates: Rates, stops: Mapping[str, tuple[int, int]]) -> Callable[[Row], str]:
    """How a stage reads: its steps, counted from 1 as people do, its rate, and the stops in it."""
    from hnetkit.train.schedules import RateStage

    columns = [(_steps(stage.from_step + 1, stage.to_step), _rate(rates, stage)) for stage in rates.stages]
    widths = [max(len(text) for text in texts) + 2 for texts in zip(*columns, strict=True)]
    lines = {
        stage: f"{steps:<{widths[0]}}{rate:<{widths[1]}}{_stops(stage, stops)}".rstrip()
        for stage, (steps, rate) in zip(rates.stages, columns, strict=True)
    }
    return lambda row: lines[RateStage(**row)]


def _steps(first: int, last: int) -> str:
    if first > last:
        return "no steps"
    return f"step {first}" if first == last else f"steps {first}-{last}"


def _rate(rates: Rates, stage: RateStage) -> str:
    from hnetkit.train.schedules import rate_text

    last = rates.rate_at(stage.to_step - 1)
    if stage.to_step <= stage.from_step or last == stage.rate:
        return rate_text(stage.rate)
    return f"{rate_text(stage.rate)} at most, {last:.3g} at the end"


def _stops(stage: RateStage, stops: Mapping[str, tuple[int, int]]) -> str:
    within = (
        (name, max(first, stage.from_step + 1), min(last, stage.to_step)) for name, (first, last) in stops.items()
    )
    return ", ".join(f"{name} at {_steps(first, last)}" for name, first, last in within if first <= last)
