"""`hnetkit train run`: a hypernetwork from a folder of pictures."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hnetkit import demo, settings
from hnetkit.cli.library import open_registry
from hnetkit.cli.output import Output, Row, is_terminal, output_options
from hnetkit.cli.train_options import make_recipe, recipe_options
from hnetkit.errors import UsageError

if TYPE_CHECKING:
    from hnetkit.generate.model import Model
    from hnetkit.train.loop import Callbacks, Result
    from hnetkit.train.recipe import Recipe
    from hnetkit.train.run import Report

_SECONDS_BETWEEN_LINES = 60  # where no terminal shows a bar
_DTYPES = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}


@click.command("run")
@click.argument("pictures", required=False)
@click.option("--recipe", "file", type=click.Path(path_type=Path), metavar="FILE", help="JSON, as in a run's folder.")
@click.option("--out", default="training", metavar="DIR", show_default=True, help="The run's folder is made in it.")
@click.option("--resume", is_flag=True, help="Refuse to begin where there is no checkpoint to go on from.")
@click.option("--restart", is_flag=True, help="Start over, and remove what the run made so far.")
@click.option("--force", is_flag=True, help="Go on although pictures or model have changed.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute.")
@recipe_options
@output_options
def run_command(
    pictures: str | None,
    file: Path | None,
    out: str,
    resume: bool,
    restart: bool,
    force: bool,
    device: str | None,
    given: dict[str, Any],
    output: Output,
) -> None:
    """Train a hypernetwork on a folder of pictures.

    PICTURES holds pictures whose sides are multiples of 8, as `hnetkit train prepare` makes them, each with its caption
    in a .txt of its name; pictures of several sizes are fine. OUT/NAME gets the network as NAME.safetensors and, for
    A1111, NAME.pt; one more every --save-every steps; checkpoints, previews, a log and the recipe.

    The same command given again goes on from the last checkpoint, with the same result as if it had never stopped:
    Ctrl-C, a crash and a power cut are all fine. --max-steps and --rate may change meanwhile, to go further. What is
    given beside --recipe counts instead of what the file says.

    Started by `accelerate launch --multi_gpu --num_processes N --no_python hnetkit train ...`, N processes share each
    step.

    \b
    Examples:
      hnetkit train pictures --model stable-diffusion-v1-5 --name ink
      hnetkit train pictures --name ink --rate "5e-5:200, 5e-6:2000" --activation swish --structure 1,1.5,1
      hnetkit train --recipe training/ink/recipe.json --max-steps 30000
      hnetkit train pictures --name ink --restart --batch-size 2 --accumulate 4
    """
    from hnetkit.generate.grids.processes import Processes, started_alone

    if not Processes.of_environment().is_main:
        output = replace(output, quiet=True)
    if started_alone():
        output.note("accelerate started one process: with --cpu it needs MPI for several; --multi_gpu starts them.")
    if resume and restart:
        raise UsageError("--resume and --restart say the opposite", hint="leave one of them out")
    from hnetkit.generate.model import device_of

    device = device_of(device or settings.get("device") or "auto")
    recipe = make_recipe(file, pictures, given, machine_defaults(device))
    if recipe.model == str(demo.model_folder()) and "model" not in given:
        output.note("No --model: training on the bundled demo model. `hnetkit config model FOLDER` sets another.")
    beginning = "resume" if resume else "restart" if restart else "go on"
    row = _train(recipe, Path(out) / recipe.name, device, beginning, force, output)
    if Processes.of_environment().is_main:
        output.rows([row], columns=["path", "name", "step", "loss"], text=lambda row: str(row["path"]))


def _train(recipe: Recipe, folder: Path, device: str, beginning: Any, force: bool, output: Output) -> Row:
    from hnetkit.train.data import read_data
    from hnetkit.train.loop import train
    from hnetkit.train.processes import leave

    with run_progress(output) as told:
        data = read_data(recipe, lambda done, total: told.prepared("Reading pictures", done, total))
        told.prepared("Loading the model", 0, 1)
        model = load_trained_on(recipe, device)
        for note in model.notes:
            output.note(note)
        result = train(recipe, model, data, folder, beginning=beginning, force=force, told=told)
    leave()
    if result.files:
        register_result(folder, recipe, model, result.files, result.started_from)
    return _row(recipe, folder, result)


def register_result(
    folder: Path, recipe: Recipe, model: Model, files: Sequence[Path], started_from: str | None
) -> None:
    """Puts the files of a run into the library, with what it was made with and the content hash of what it began with.

    Args:
        folder: of the run.
        recipe: that was asked for; where all steps were made before, they may have been made by another.
    """
    from hnetkit.train.registering import register
    from hnetkit.train.run_folder import RunFolder

    with open_registry() as registry:
        register(
            registry,
            files,
            recipe=RunFolder(folder, recipe).made_with().to_json(),
            started_from=started_from,
            model_name=model.name,
            model_hash=model.hash,
        )


def _row(recipe: Recipe, folder: Path, result: Result) -> Row:
    return {
        "path": str(result.files[0]) if result.files else "",
        "name": recipe.name,
        "step": result.step,
        "loss": result.loss,
        "roll_backs": result.roll_backs,
        "files": list(map(str, result.files)),
        "folder": str(folder),
    }


def machine_defaults(device: str) -> dict[str, Any]:
    """Returns the settings of a recipe that depend on this machine and its own settings."""
    precision = "no"
    if device == "cuda":
        import torch

        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    place = settings.get("model")
    return {"precision": precision, "model": place or str(demo.model_folder())}


def load_trained_on(recipe: Recipe, device: str) -> Model:
    """Returns the model that a recipe trains on, in its precision."""
    from hnetkit.generate.model import load_model

    if device == "cuda":
        import torch

        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    model = load_model(
        recipe.model, device=device, dtype=_DTYPES[recipe.precision], vae=recipe.vae, tokenizer=recipe.tokenizer
    )
    is_demo = Path(recipe.model).resolve() == demo.model_folder()
    return replace(model, name=demo.MODEL_NAME) if is_demo else model


@contextmanager
def run_progress(output: Output) -> Iterator[Callbacks]:
    """Gives what a run tells: a bar with loss, rate and time left at a terminal, a line now and then elsewhere."""
    from hnetkit.train.loop import Callbacks

    if output.quiet or not is_terminal(sys.stderr):
        yield Callbacks(output.note, lambda what, done, total: None, _lines(output))
        return
    from hnetkit.cli.progress import Bar

    begun = False

    def made(report: Report) -> None:
        nonlocal begun
        if not begun:
            begun = True
            bar.begin("Training", report.step - 1, report.last_step)
        about = f"loss {report.loss:.4f}  rate {report.rate:.3g}  epoch {report.epoch + 1}"
        bar.show("Training", report.step, report.last_step, about)

    bar = Bar("Training")
    try:
        yield Callbacks(bar.say, bar.show, made)
    finally:
        bar.stop()


def _lines(output: Output) -> Callable[[Report], None]:
    said = time.monotonic()

    def made(report: Report) -> None:
        nonlocal said
        if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            output.note(f"Step {report.step} of {report.last_step}: loss {report.loss:.4f}, rate {report.rate:.3g}")

    return made
