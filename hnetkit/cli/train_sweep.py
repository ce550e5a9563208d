"""`hnetkit train sweep`: several recipes, one after the other, on one model, and one sheet of what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hnetkit.cli.output import Output, output_options, say
from hnetkit.cli.train_options import read_setting, training_options
from hnetkit.cli.train_progress import as_one_process, run_progress
from hnetkit.errors import PartlyFailed, UsageError

if TYPE_CHECKING:
    from hnetkit.train.sweeps import RunOutcome, VariedSetting


@click.command("sweep")
@click.option("--vary", "varied", multiple=True, metavar="NAME=A|B", help="Option to vary, and its values. Repeatable.")
@click.option(
    "--recipe",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Recipe, a JSON file as in a run's folder. Repeat to vary it.",
)
@training_options
@output_options
def sweep_command(varied: tuple[str, ...], files: tuple[Path, ...], asked: dict[str, Any], output: Output) -> None:
    """Train one network by several recipes, and show them on one sheet.

    Each --vary names an option of `hnetkit train run` without its dashes, and values of it that a | separates: commas
    belong to schedules and lists. Switches take on and off; options that are off by default also take none. Several
    --vary, and several --recipe, are combined, each value with each. All other options apply to every run.
    Model, precision and previews are the same for all: the model is loaded once.

    Each run is one of `hnetkit train run`, in OUT/NAME/ in a folder named by what differs; its network is called
    NAME-what-differs, while prompts say NAME in all runs alike. OUT/NAME/sweep.png has a row for each run and a column
    for each prompt and seed of the previews, below a row without a network; sweep.csv has the numbers.

    The same command given again goes on where it stopped: runs that are finished are not made again, and values may be
    added. A run that a guard stops is listed as failed, the others are made, and the exit code is 1.

    \b
    Examples:
      hnetkit train sweep pictures --name ink --vary "rate=5e-5:500, 5e-6:2000|1e-5:2000" --vary "activation=relu|swish"
      hnetkit train sweep pictures --name ink --recipe soft.json --recipe hard.json --max-steps 3000 --json
    """
    from hnetkit.distributed import Processes, disconnect
    from hnetkit.train import sweep

    output = as_one_process(output)
    axes = [*([_recipes(files)] if len(files) > 1 else []), *map(_values, varied)]
    with run_progress(output) as told:
        outcomes = sweep(files[0] if files else {}, vary=axes, made=_say_failure, **asked, **told)
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


def _say_failure(outcome: RunOutcome) -> None:
    if outcome.failure:
        say(f"Error: {outcome.run.label}: {outcome.failure}")


def _values(text: str) -> VariedSetting:
    """Reads one --vary."""
    from hnetkit.train.sweeps import VariedSetting

    what, equals, rest = text.partition("=")
    what, texts = what.strip().lstrip("-"), [part.strip() for part in rest.split("|")]
    if not equals or not all(texts):
        raise UsageError(f"--vary {text}: a name and its values", hint='--vary "rate=5e-5|5e-6"')
    read = [read_setting(what, part) for part in texts]
    return VariedSetting(what, read[0][0], [(part, value) for part, (_, value) in zip(texts, read, strict=True)])


def _recipes(files: Sequence[Path]) -> VariedSetting:
    """Returns recipes by the names of their files, or of their folders where they are those of runs."""
    from hnetkit.train.sweeps import WHOLE, VariedSetting

    names = [file.parent.name if file.stem == "recipe" and file.parent.name else file.stem for file in files]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two recipes are called {name}", hint="rename one of the files: runs are named by them")
    return VariedSetting(WHOLE, "", list(zip(names, files, strict=True)))
