"""`hnetkit bake`: hypernetworks as files that programs without hypernetworks load."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hnetkit.cli.drawing import network_option
from hnetkit.cli.options import OUTPUT, command, device_option, dtype_option, option, size_in_pixels
from hnetkit.cli.output import Output, Row, output_options
from hnetkit.cli.progress import step_progress
from hnetkit.generate.model import ModelSource
from hnetkit.text import counted

if TYPE_CHECKING:
    from hnetkit.baking.run import BakeOutcome
    from hnetkit.network import DType

_TARGET, _FIT, _MODEL = "What to write", "Fitting and measuring", "Model"
_target, _fit, _model = (partial(option, section=heading) for heading in (_TARGET, _FIT, _MODEL))
_FELT = 0.001  # of what is added
_COLUMNS = ["path", "origin", "rank", "error", "picture_error", "psnr"]


@command("bake")
@click.argument("tags", required=False, default="", metavar="[TAGS]")
@network_option("Bake this network, by its name in the library or a file, after those of TAGS.")
@_target(
    "--to",
    type=click.Choice(("lora", "diff", "checkpoint", "hypernetwork")),
    default="lora",
    show_default=True,
    help="A LoRA, full differences of weights (diff), a copy of the model with the stack in its weights (checkpoint), "
    "or a single hypernetwork, where one does exactly the same.",
)
@_target(
    "--mix",
    type=click.Choice(("stack", "parallel", "average")),
    default="stack",
    show_default=True,
    help="A hypernetwork of several: one after the other as in a stack, each on the same context (parallel), or an "
    "average of their weights, which does what none of them does.",
)
@_target(
    "--for",
    "program",
    type=click.Choice(("diffusers", "comfyui", "a1111")),
    show_default="diffusers for a LoRA",
    help="The program that loads it: diffusers, ComfyUI and Forge (comfyui), or AUTOMATIC1111 and SD.Next (a1111). "
    "Differences need one of the last two; AUTOMATIC1111's LoRAs carry no constant on V.",
)
@_target(
    "--rank",
    type=int,
    metavar="N",
    show_default="what is exact, else 16",
    help="Rank of a LoRA. Networks without an activation that need no more stay exact.",
)
@_target(
    "--max-error",
    type=float,
    metavar="E",
    help="Write nothing if the relative error of the worst layer and side is above E (such as 0.3), on contexts that "
    "nothing was fitted on. Without --rank, it chooses the ranks of a LoRA.",
)
@_target(
    "--file-dtype",
    type=click.Choice(("fp32", "fp16", "bf16")),
    show_default="--dtype",
    help="Precision of the weights in the file; a checkpoint keeps its own.",
)
@_fit(
    "--refine",
    type=int,
    default=0,
    show_default="none",
    metavar="STEPS",
    help="Train what was fitted for so many steps, so that the UNet as a whole gives what it gives with the networks. "
    "A step takes about as long as 50 sampling steps, and more memory.",
)
@_fit(
    "--prompts",
    metavar="FILE",
    show_default="the model's own, else general ones",
    help="Draw these prompts, one on each line, to see which contexts the layers get; every fourth is held out to "
    "measure errors.",
)
@_fit(
    "--steps", type=click.IntRange(1, 1000), show_default="the model's, else 20", help="Sampling steps of each picture."
)
@_fit(
    "--size",
    callback=size_in_pixels,
    metavar="N|WxH",
    show_default="the model's",
    help="Size of these pictures in pixels; N means a square.",
)
@_fit(
    "--seed", type=click.IntRange(0, 2**32), default=0, show_default=True, help="Added to the seeds of these pictures."
)
@_fit(
    "--check",
    metavar="FILE",
    help="Write a sheet of pictures without networks, with them, and with what was baked, to this .png, .jpg or .webp "
    "file.",
)
@_model(
    "--model",
    metavar="MODEL",
    show_default="that of `hnetkit config`, else the bundled demo model",
    help="Stable Diffusion model (1, 2 or XL): a diffusers folder, a Hugging Face hub id, which is fetched if needed, "
    "or a checkpoint file.",
)
@_model(
    "--tokenizer", metavar="DIR", show_default="CLIP's, from the hub", help="Tokenizer folder for a checkpoint file."
)
@device_option(section=_MODEL)
@dtype_option(section=_MODEL)
@option(
    "--out",
    section=OUTPUT,
    required=True,
    metavar="FILE",
    help="Write to this .safetensors file; --to checkpoint of a diffusers folder, to this new folder.",
)
@option("--overwrite", section=OUTPUT, is_flag=True, help="Replace FILE if it exists, instead of failing.")
@output_options
def bake_command(
    tags: str,
    networks: tuple[str, ...],
    model: str | None,
    tokenizer: str | None,
    device: str | None,
    dtype: str | None,
    file_dtype: DType | None,
    out: str,
    output: Output,
    **options: Any,
) -> None:
    """Write hypernetworks as a LoRA, full weights, a checkpoint, or one network.

    Most programs of today load LoRAs and no hypernetworks. A stack of networks at fixed strengths becomes one file for
    them. Networks without an activation are written down exactly. All others are fitted to what the model's layers see
    while it draws; how far the result is from the networks is measured on prompts and seeds that it was not fitted on,
    printed, and written into the file.

    TAGS are those of a prompt, for strengths by side or block: "<hypernet:ink:0.8:k=0.5:blocks=up>". A window of steps
    cannot be baked: weights are the same at every step.

    \b
    Examples:
      hnetkit bake -n paper --to diff --for comfyui --out paper.safetensors
      hnetkit bake -n outline:0.8 -n paper:0.6 --rank 16 --steps 5 --out both.safetensors --check both.png
      hnetkit bake -n outline:0.8 -n outline:0.3 --to hypernetwork --mix parallel --out wide.pt
      hnetkit bake "<hypernet:paper:1:v=0.5>" --to checkpoint --out paper-model
    """
    from hnetkit.baking.run import bake_file

    source = ModelSource(model, device, dtype, tokenizer=tokenizer)
    with step_progress("Drawing", quiet=output.quiet, first="Loading the model") as progress:
        outcome = bake_file(
            source, out, tags=tags, networks=networks, dtype=file_dtype, note=output.note, progress=progress, **options
        )
    _note_outcome(outcome, output.note)
    if options["refine"] and not outcome.baked.record.get("refine_steps"):
        output.note("Nothing was fitted, so nothing was refined.")
    output.rows([_row(outcome)], columns=_COLUMNS, text=lambda row: str(row["path"]))


def _note_outcome(outcome: BakeOutcome, note: Callable[[str], None]) -> None:
    from hnetkit.baking.networks import BakedNetwork

    baked = outcome.baked
    if isinstance(baked, BakedNetwork):
        note("Exact, to rounding." if baked.is_exact else "An average of weights: not what the networks do together.")
        return
    changes = baked.changes.values()
    errors = [change.error for change in changes if change.origin == "exact"]
    exact = len(errors)
    if exact:
        felt = f", which changes up to {max(errors):.1%} of what is added" if max(errors) >= _FELT else ""
        note(f"Exact, to rounding to {baked.dtype}{felt}: {exact} of {counted(len(changes), 'projection')}.")
    if not baked.is_exact:
        name, error = max(baked.errors.items(), key=lambda item: item[1])
        note(
            f"Fitted: {len(changes) - exact} of {counted(len(changes), 'projection')}; the largest relative error on "
            f"contexts held out is {error:.3f}, of {name}."
        )
    if baked.pictures is not None:
        found = baked.pictures.errors
        note(f"Pictures held out ({found.number}) differ: {found}.")
        if (baked.record["fitted_on"] or {}).get("holds_out") == "seeds":
            note("There is one prompt, so errors are those of other seeds alone: give more of them with --prompts.")


def _row(outcome: BakeOutcome) -> Row:
    from hnetkit.baking.networks import BakedNetwork

    baked = outcome.baked
    row: Row = {"path": str(outcome.path), "sheet": None if outcome.sheet is None else str(outcome.sheet)}
    if isinstance(baked, BakedNetwork):
        return {**row, "origin": "exact" if baked.is_exact else "average", **baked.record}
    errors = None if baked.pictures is None else baked.pictures.errors
    return {
        **row,
        "origin": " and ".join(sorted({change.origin for change in baked.changes.values()})),
        "rank": max(change.rank for change in baked.changes.values()) if baked.to == "lora" else None,
        "error": max(baked.errors.values()),
        "picture_error": None if errors is None else errors.share,
        "psnr": None if errors is None else errors.psnr,
        **baked.record,
    }
