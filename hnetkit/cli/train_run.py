"""`hnetkit train run`: a hypernetwork from a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hnetkit.cli.output import Output, Row, output_options
from hnetkit.cli.train_options import training_options
from hnetkit.cli.train_progress import as_one_process, run_progress

if TYPE_CHECKING:
    from hnetkit.train.trainer import TrainingResult


@click.command("run")
@click.option(
    "--recipe",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Recipe, a JSON file as in a run's folder.",
)
@click.option("--resume", is_flag=True, help="Refuse to begin where there is no checkpoint to go on from.")
@training_options
@output_options
def run_command(file: Path | None, resume: bool, asked: dict[str, Any], output: Output) -> None:
    """Train a hypernetwork on a folder of pictures.

    PICTURES holds pictures whose sides are multiples of 8, as `hnetkit train prepare` makes them, each with its caption
    in a .txt of its name; pictures of several sizes are fine. OUT/NAME gets the network as NAME.safetensors and, for
    A1111, NAME.pt; one more every --save-every steps; checkpoints, previews, a log and the recipe.

    The same command given again goes on from the last checkpoint, with the same result as if it had never stopped:
    Ctrl-C, a crash and a power cut are all fine. --max-steps and --rate may change meanwhile, to go further. Options
    override the recipe file.

    Started by `accelerate launch --multi_gpu --num_processes N --no_python hnetkit train ...`, N processes share each
    step.

    \b
    Examples:
      hnetkit train pictures --model stable-diffusion-v1-5 --name ink
      hnetkit train pictures --name ink --rate "5e-5:200, 5e-6:2000" --activation swish --structure 1,1.5,1
      hnetkit train --recipe training/ink/recipe.json --max-steps 30000
      hnetkit train pictures --name ink --restart --batch-size 2 --accumulate 4
    """
    from hnetkit.distributed import disconnect
    from hnetkit.train import train

    output = as_one_process(output)
    with run_progress(output) as told:
        result = train(file or {}, resume=resume, **asked, **told)
    disconnect()
    if result.files:
        output.rows([_row(result)], columns=["path", "name", "step", "loss"], text=lambda row: str(row["path"]))


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
