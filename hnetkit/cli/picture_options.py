"""What `generate` and `grid` share: the options that say how a picture is drawn, and the request they become."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hnetkit import demo, settings
from hnetkit.cli.library import complete_name
from hnetkit.cli.numbers import Number
from hnetkit.cli.output import Output
from hnetkit.errors import HnetkitError, NotFound, UsageError
from hnetkit.generate.request import UPSCALERS, Request, SecondPass, Start, require_size
from hnetkit.generate.sampling.samplers import SAMPLERS, sampler_name
from hnetkit.prompts.tags import TaggedPrompt

if TYPE_CHECKING:
    from hnetkit.generate.model import Model

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Choices:
    """What `picture_options` were given; None leaves the choice to a picture, the model or the settings."""

    model: str | None = None
    vae: str | None = None
    tokenizer: str | None = None
    device: str | None = None
    dtype: str | None = None
    offload: bool = False
    attention_slicing: bool = False
    compiled: bool = False
    negative_prompt: str | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    sampler: str | None = None
    rng: str | None = None
    clip_skip: int | None = None
    emphasis: str | None = None
    eta_seed_delta: int | None = None
    variation_seed: int | None = None
    variation_strength: float | None = None
    image: Path | None = None
    denoising: float | None = None
    mask: Path | None = None
    mask_blur: float | None = None
    masked_content: str | None = None
    invert_mask: bool = False
    hires_scale: float | None = None
    hires_size: tuple[int, int] | None = None
    hires_steps: int | None = None
    hires_upscaler: str | None = None
    hires_prompt: str | None = None
    hires_negative_prompt: str | None = None

    def __post_init__(self) -> None:
        if self.mask is not None and self.image is None:
            raise UsageError("--mask needs the picture that it lies on", hint="--image FILE --mask FILE")
        for path in (self.image, self.mask):
            if path is not None and not path.is_file():
                raise NotFound(f"{path}: no such picture")
        if self.has_second_pass and self.image is not None:
            raise UsageError("--hires-scale and --image do not go together", hint="leave one of them out")
        if self.hires_scale is not None and self.hires_size is not None:
            raise UsageError("--hires-scale and --hires-size say the same in two ways", hint="leave one of them out")

    @property
    def has_second_pass(self) -> bool:
        return self.hires_scale is not None or self.hires_size is not None

    def filled(self, found: Mapping[str, Any]) -> Choices:
        """Returns what was chosen, with values of `found` where nobody chose."""
        unset = {field.name for field in fields(self) if getattr(self, field.name) is None}
        return replace(self, **{name: value for name, value in found.items() if name in unset})

    @property
    def place(self) -> str | None:
        """The model that was asked for, here or in the settings; None for the bundled one."""
        return self.model or settings.get("model")

    @property
    def is_demo(self) -> bool:
        return self.place is None or os.path.realpath(self.place) == str(demo.model_folder())

    @property
    def bundled(self) -> Mapping[str, Path]:
        """The networks that come with the model, by stem."""
        return demo.networks() if self.is_demo else {}

    def embeddings(self, texts: Iterable[str]) -> list[Path]:
        """Returns the files of the settings' textual inversions that texts or the negative prompts name."""
        from hnetkit.generate.loading.embeddings import find_embeddings

        negative = (self.negative_prompt or "", self.hires_negative_prompt or "")
        return find_embeddings([*texts, *negative], settings.get("embeddings"))

    def load(
        self,
        output: Output,
        embeddings: Iterable[Path] = (),
        failed: Callable[[Path, HnetkitError], object] | None = None,
    ) -> Model:
        """Loads the model and adds textual inversions to it; says so where nobody chose a model.

        Args:
            failed: as for `hnetkit.generate.loading.embeddings.load_embeddings`.
        """
        from hnetkit.generate.loading.embeddings import load_embeddings
        from hnetkit.generate.model import load_model

        if self.place is None:
            output.note("No --model: the bundled demo model draws. `hnetkit config model FOLDER` sets another.")
        model = load_model(
            self.place or demo.model_folder(),
            device=self.device or settings.get("device") or "auto",
            dtype=self.dtype or settings.get("dtype") or "auto",
            vae=self.vae,
            tokenizer=self.tokenizer,
            offload=self.offload,
            attention_slicing=self.attention_slicing,
            compiled=self.compiled,
        )
        for note in model.notes:
            output.note(note)
        load_embeddings(model.pipe, embeddings, failed)
        return replace(model, name=demo.MODEL_NAME) if self.is_demo else model

    def request(self, model: Model, prompt: TaggedPrompt, seed: int, hires: TaggedPrompt | None = None) -> Request:
        """Returns the request for one picture, without stacks; the model's defaults fill the gaps.

        Args:
            hires: the second pass's prompt, where it has one of its own.
        """
        own, (width, height) = model.defaults, model.size
        base = Request(
            prompt.text,
            seed,
            steps=self.steps or own.steps,
            cfg_scale=self.cfg_scale or own.cfg_scale,
            width=self.width or width,
            height=self.height or height,
            sampler=self.sampler or own.sampler,
            negative_prompt=self.negative_prompt or "",
            clip_skip=self.clip_skip or 1,
            eta_seed_delta=self.eta_seed_delta or 0,
            variation_seed=self.variation_seed or 0,
            variation_strength=self.variation_strength or 0.0,
            rng=self.rng or "cpu",  # type: ignore[arg-type]  # click let no other name through
            emphasis=self.emphasis or "original",  # type: ignore[arg-type]  # as above
            start=self._start,
        )
        return replace(base, second=self._second_pass(base, hires)) if self.has_second_pass else base

    @property
    def _start(self) -> Start | None:
        if self.image is None:
            return None
        return Start(
            self.image,
            denoising=0.75 if self.denoising is None else self.denoising,
            mask=self.mask,
            mask_blur=4 if self.mask_blur is None else self.mask_blur,
            inverted=self.invert_mask,
            content=self.masked_content or "original",  # type: ignore[arg-type]  # as above
        )

    def _second_pass(self, base: Request, prompt: TaggedPrompt | None) -> SecondPass:
        width, height = self.hires_size or (
            _scaled(base.width, self.hires_scale),
            _scaled(base.height, self.hires_scale),
        )
        return SecondPass(
            width,
            height,
            steps=self.hires_steps or base.steps,
            denoising=0.7 if self.denoising is None else self.denoising,
            upscaler=self.hires_upscaler or UPSCALERS[0],
            prompt=base.prompt if prompt is None else prompt.text,
            negative_prompt=base.negative_prompt if self.hires_negative_prompt is None else self.hires_negative_prompt,
            written="" if prompt is None else prompt.written,
        )


def _scaled(pixels: int, scale: float | None) -> int:
    return math.floor(pixels * (scale or 1) / 8) * 8


def _size(ctx: click.Context, param: click.Parameter, pixels: int | None) -> int | None:
    return None if pixels is None else require_size(pixels)


def _both_sizes(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise UsageError(f"--hires-size {text}: not WIDTHxHEIGHT", hint="--hires-size 1024x1024")
    return require_size(int(found[1])), require_size(int(found[2]))


def _sampler(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    return None if name is None else sampler_name(name)


_FILE = click.Path(path_type=Path)
_FRACTION = Number(0, 1)
_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--model",
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
    click.option("--width", type=int, callback=_size, help="Pixels, a multiple of 8. [default: the model's]"),
    click.option("--height", type=int, callback=_size, help="Pixels, a multiple of 8. [default: the model's]"),
    click.option(
        "--sampler",
        metavar="NAME",
        callback=_sampler,
        help=f"{', '.join(SAMPLERS)}. [default: the model's, else Euler a]",
    ),
    click.option(
        "--rng",
        type=click.Choice(["cpu", "nv"]),
        help="Where noise comes from: torch's generator for CPUs, or that of CUDA in software. [default: cpu]",
    ),
    click.option(
        "--clip-skip",
        type=click.IntRange(1, 12),
        help="2 leaves out the last layer of SD 1's text encoder. [default: 1]",
    ),
    click.option(
        "--emphasis",
        type=click.Choice(["original", "no-norm", "ignore", "none"]),
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
        type=click.Choice(["original", "noise", "nothing"]),
        help="What lies under the mask at first. [default: original]",
    ),
    click.option("--hires-scale", type=Number(1, 8), metavar="X", help="Draw in two passes, X times as large."),
    click.option("--hires-size", callback=_both_sizes, metavar="WxH", help="Draw in two passes, to this size."),
    click.option(
        "--hires-steps", type=click.IntRange(1, 1000), help="Sampling steps of the second pass. [default: --steps]"
    ),
    click.option("--hires-upscaler", type=click.Choice(UPSCALERS), help="What enlarges. [default: Latent]"),
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
    """Adds ``-n NAME[:STRENGTH]``, repeatable; the command receives `options`."""
    return click.option(
        "-n",
        "--network",
        "options",
        multiple=True,
        metavar="NAME[:STRENGTH]",
        shell_complete=complete_name,
        help=f"{help_text} Repeatable.",
    )


def picture_options(command: F) -> F:
    """Adds what `generate` and `grid` share; the command receives `choices: Choices`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = {field.name: kwargs.pop(field.name) for field in fields(Choices)}
        return command(*args, choices=Choices(**given), **kwargs)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]
