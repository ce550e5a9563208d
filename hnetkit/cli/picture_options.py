"""What `generate` and `grid` share: the options that say which model draws, and how."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from hnetkit.cli.library import complete_name
from hnetkit.cli.numbers import Number
from hnetkit.errors import UsageError
from hnetkit.generate.model import ModelSource
from hnetkit.generate.options import NAMES, DrawOptions
from hnetkit.generate.sampling.samplers import SAMPLERS

F = TypeVar("F", bound=Callable[..., Any])


def _both_sizes(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise UsageError(f"--hires-size {text}: not WIDTHxHEIGHT", hint="--hires-size 1024x1024")
    return int(found[1]), int(found[2])


_FILE = click.Path()
_FRACTION = Number(0, 1)
_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--model",
        "model",
        metavar="M",
        help="A diffusers folder, a hub id, or a checkpoint in one file. [default: as set with `hnetkit config`]",
    ),
    click.option("--vae", metavar="V", help="Another autoencoder: a file, a diffusers folder, or a hub id."),
    click.option("--tokenizer", metavar="DIR", help="Folder of the tokenizer of a checkpoint in one file."),
    click.option("--negative-prompt", metavar="T", help="What to steer away from."),
    click.option("--steps", type=click.IntRange(1, 1000), help="Sampling steps. [default: the model's, else 20]"),
    click.option(
        "--cfg-scale",
        type=Number(min=1),
        help="How closely to follow the prompt. [default: the model's, else 7]",
    ),
    click.option("--width", type=int, help="Pixels, a multiple of 8. [default: the model's]"),
    click.option("--height", type=int, help="Pixels, a multiple of 8. [default: the model's]"),
    click.option(
        "--sampler",
        metavar="NAME",
        help=f"{', '.join(SAMPLERS)}. [default: the model's, else Euler a]",
    ),
    click.option(
        "--rng",
        type=click.Choice(NAMES["rng"]),
        help="Where noise comes from: torch's generator for CPUs, or that of CUDA in software. [default: cpu]",
    ),
    click.option(
        "--clip-skip",
        type=click.IntRange(1, 12),
        help="2 leaves out the last layer of SD 1's text encoder. [default: 1]",
    ),
    click.option(
        "--emphasis",
        type=click.Choice(NAMES["emphasis"]),
        help="What weights do; none reads brackets as text. [default: original]",
    ),
    click.option("--ensd", "eta_seed_delta", type=int, help="A1111's eta noise seed delta. [default: 0]"),
    click.option("--variation-seed", type=click.IntRange(min=0), help="Seed of the variation noise."),
    click.option(
        "--variation-strength", type=_FRACTION, help="How much variation noise to blend in, 0 to 1. [default: 0]"
    ),
    click.option("--image", type=_FILE, metavar="FILE", help="Draw over this picture (image-to-image)."),
    click.option(
        "--denoising",
        type=_FRACTION,
        help="How strongly to repaint --image, or the first pass in the second: 0 keeps it, 1 ignores it. "
        "[default: 0.75, in a second pass 0.7]",
    ),
    click.option("--mask", type=_FILE, metavar="FILE", help="White where --image is drawn anew (inpainting)."),
    click.option("--mask-blur", type=Number(min=0), metavar="PX", help="Softens the mask. [default: 4]"),
    click.option("--invert-mask", is_flag=True, help="Draw where the mask is black."),
    click.option(
        "--masked-content",
        type=click.Choice(NAMES["masked_content"]),
        help="What lies under the mask at first. [default: original]",
    ),
    click.option("--hires-scale", type=Number(1, 8), metavar="X", help="Draw in two passes, X times as large."),
    click.option("--hires-size", callback=_both_sizes, metavar="WxH", help="Draw in two passes, to this size."),
    click.option(
        "--hires-steps", type=click.IntRange(1, 1000), help="Sampling steps of the second pass. [default: --steps]"
    ),
    click.option(
        "--hires-upscaler", type=click.Choice(NAMES["hires_upscaler"]), help="What enlarges. [default: Latent]"
    ),
    click.option(
        "--hires-prompt", metavar="T", help="Prompt of the second pass, with tags of its own. [default: PROMPT]"
    ),
    click.option(
        "--hires-negative-prompt", metavar="T", help="Negative prompt of the second pass. [default: --negative-prompt]"
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute."),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
        help="What to compute in; auto is fp16 on CUDA, fp32 elsewhere.",
    ),
    click.option("--offload", is_flag=True, help="Keep on the GPU only the part at work: less memory, slower."),
    click.option("--attention-slicing", is_flag=True, help="Compute attention in slices: less memory, slower."),
    click.option("--compile", "compiled", is_flag=True, help="Compile the UNet: slow at first, then faster."),
]


def network_option(help_text: str) -> Callable[[F], F]:
    """Adds ``-n NAME[:STRENGTH]``, repeatable; the command receives `networks`."""
    return click.option(
        "-n",
        "--network",
        "networks",
        multiple=True,
        metavar="NAME[:STRENGTH]",
        shell_complete=complete_name,
        help=f"{help_text} Repeatable.",
    )


def picture_options(command: F) -> F:
    """Adds what `generate` and `grid` share; the command receives `model: ModelSource`, and `options`.

    They are those of `DrawOptions`, by their names; None where nothing is said.
    """

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        model = ModelSource(**{field.name: kwargs.pop(field.name) for field in fields(ModelSource)})
        options = {field.name: kwargs.pop(field.name) for field in fields(DrawOptions)}
        return command(*args, model=model, options=options, **kwargs)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]
