"""`hnetkit generate` and `hnetkit grid`: pictures with hypernetworks applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hnetkit import demo, settings
from hnetkit.cli.library import complete_name
from hnetkit.cli.output import Output, Row, output_options
from hnetkit.errors import NotFound, UsageError
from hnetkit.files import refuse_existing
from hnetkit.generate.png import is_picture_file, next_number, write_png
from hnetkit.generate.request import Request, random_seed, require_size
from hnetkit.generate.samplers import SAMPLERS, sampler_name
from hnetkit.prompts.tags import TaggedPrompt, has_unread_syntax, split_tags

if TYPE_CHECKING:
    from hnetkit.generate.grid import Comparison
    from hnetkit.generate.model import Model
    from hnetkit.generate.networks import StackedPrompt
    from hnetkit.generate.picture import Picture

F = TypeVar("F", bound=Callable[..., Any])
SEED = click.IntRange(min=-1)


@dataclass(frozen=True, slots=True)
class Choices:
    """What `picture_options` were given; None leaves the choice to the model or the settings."""

    model: str | None
    negative_prompt: str
    steps: int | None
    cfg_scale: float | None
    width: int | None
    height: int | None
    sampler: str | None
    device: str | None
    dtype: str | None

    @property
    def place(self) -> str | None:
        """The model that was asked for, here or in the settings; None for the bundled one."""
        return self.model or settings.get("model")

    @property
    def is_demo(self) -> bool:
        return self.place is None or Path(self.place).resolve() == demo.model_folder()

    @property
    def bundled(self) -> Mapping[str, Path]:
        """The networks that come with the model, by stem."""
        return demo.networks() if self.is_demo else {}

    def load(self, output: Output) -> Model:
        """Loads the model; says so where nobody chose one."""
        from hnetkit.generate.model import load_model

        if self.place is None:
            output.note("No --model: the bundled demo model draws. `hnetkit config model FOLDER` sets another.")
        model = load_model(
            self.place or demo.model_folder(),
            device=self.device or settings.get("device") or "auto",
            dtype=self.dtype or settings.get("dtype") or "auto",
        )
        return replace(model, name="hnetkit-demo") if self.is_demo else model

    def request(self, model: Model, prompt: TaggedPrompt, seed: int) -> Request:
        """Returns the request for one picture, without a stack; the model's defaults fill the gaps."""
        own, (width, height) = model.defaults, model.size
        return Request(
            prompt.text,
            seed,
            steps=self.steps or own.steps,
            cfg_scale=self.cfg_scale or own.cfg_scale,
            width=self.width or width,
            height=self.height or height,
            sampler=self.sampler or own.sampler,
            negative_prompt=self.negative_prompt,
        )


def picture_options(command: F) -> F:
    """Adds what `generate` and `grid` share; the command receives `choices: Choices`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return command(*args, choices=Choices(**{name: kwargs.pop(name) for name in Choices.__slots__}), **kwargs)

    def size(ctx: click.Context, param: click.Parameter, pixels: int | None) -> int | None:
        return None if pixels is None else require_size(pixels)

    def sampler(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
        return None if name is None else sampler_name(name)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    options: list[Callable[[Any], Any]] = [
        click.option(
            "--model",
            metavar="M",
            help="A diffusers folder, a hub id, or a .safetensors checkpoint. [default: as set with `hnetkit config`]",
        ),
        click.option("--negative-prompt", metavar="T", default="", help="What to steer away from."),
        click.option("--steps", type=click.IntRange(1, 1000), help="Sampling steps. [default: the model's, else 20]"),
        click.option(
            "--cfg-scale",
            type=click.FloatRange(min=1),
            help="How closely to follow the prompt. [default: the model's, else 7]",
        ),
        click.option("--width", type=int, callback=size, help="Pixels, a multiple of 8. [default: the model's]"),
        click.option("--height", type=int, callback=size, help="Pixels, a multiple of 8. [default: the model's]"),
        click.option(
            "--sampler",
            metavar="NAME",
            callback=sampler,
            help=f"{', '.join(SAMPLERS)}. [default: the model's, else Euler a]",
        ),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute."),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
            help="What to compute in; auto is fp16 on CUDA, fp32 elsewhere.",
        ),
    ]
    for option in reversed(options):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]


@click.command("generate")
@click.argument("prompt")
@click.option(
    "-n",
    "--network",
    "options",
    multiple=True,
    metavar="NAME[:STRENGTH]",
    shell_complete=complete_name,
    help="Apply a network of the library, or a file, after those of the prompt. Repeatable.",
)
@click.option("--seed", type=SEED, default=-1, help="Of the first picture; -1 draws one. [default: -1]")
@click.option("--count", type=click.IntRange(min=1), default=1, help="How many; each seed is one higher.")
@click.option("--out", default=".", metavar="FILE|DIR", help="A .png file, or a folder. [default: this folder]")
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@picture_options
@output_options
def generate_command(
    prompt: str,
    options: tuple[str, ...],
    seed: int,
    count: int,
    out: str,
    overwrite: bool,
    choices: Choices,
    output: Output,
) -> None:
    """Draw pictures with hypernetworks applied.

    Tags <hypernet:NAME:STRENGTH> in the prompt name networks of the library, in stacking order. A picture holds its
    parameters as text that the usual programs read. In a folder it is called NNNNN-SEED.png, and nothing is replaced.
    The path of each picture is printed. Weights such as (word:1.2) and schedules are not read yet.

    \b
    Examples:
      hnetkit generate "a red circle <hypernet:outline:0.8>" --seed 7
      hnetkit generate "a blue star" -n outline:0.7 -n dots:0.7 --count 4 --out pictures
    """
    from hnetkit.generate.networks import find_stack

    stacked = find_stack(split_tags(prompt), options, choices.bundled)
    place = _Place.of(out, count=count, overwrite=overwrite)
    _note_syntax(stacked.prompt, choices.negative_prompt, output)
    model = choices.load(output)
    _note_unread(model, stacked.prompt, output)
    request = replace(choices.request(model, stacked.prompt, _drawn_seed(seed)), count=count)
    rows = _write_pictures(model, request, stacked, place, output)
    output.rows(rows, columns=["path", "seed", "prompt"], text=lambda row: str(row["path"]))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where pictures go: one file, or a folder in which each gets a number."""

    path: Path
    is_file: bool
    overwrite: bool

    @classmethod
    def of(cls, out: str, *, count: int, overwrite: bool) -> _Place:
        """Raises before anything is drawn, where nothing could be written."""
        is_file = is_picture_file(out)
        if is_file and count > 1:
            raise UsageError(f"--out {out} is one file, --count {count} are several", hint="--out FOLDER")
        if is_file:
            refuse_existing(out, overwrite=overwrite)
            if not Path(out).parent.is_dir():
                raise NotFound(f"{Path(out).parent}: no such folder")
        return cls(Path(out), is_file, overwrite and is_file)

    def write(self, picture: Picture, infotext: str) -> Path:
        """Writes a picture and returns its path; the folder is made with its first picture."""
        if not self.is_file:
            self.path.mkdir(parents=True, exist_ok=True)
        path = self.path if self.is_file else self.path / f"{next_number(self.path):05}-{picture.seed}.png"
        write_png(path, picture.image, infotext, overwrite=self.overwrite)
        return path


def _write_pictures(
    model: Model, request: Request, stacked: StackedPrompt, place: _Place, output: Output
) -> Iterator[Row]:
    """Yields one row for each picture, once it is on disk."""
    from hnetkit.cli.progress import step_progress
    from hnetkit.generate.networks import hashes_of, put_on
    from hnetkit.generate.picture import draw, infotext_of

    names, strengths = put_on(model.pipe, stacked.networks), stacked.strengths
    request = replace(request, stack=tuple(zip(names, strengths, strict=True)))
    with step_progress("Drawing", quiet=output.quiet) as progress:
        for picture in draw(model, request, progress):
            hashes = hashes_of(stacked.networks)
            text = infotext_of(model, request, picture.seed, stacked.prompt.written, hashes)
            yield {
                "path": str(place.write(picture, text)),
                "seed": picture.seed,
                "prompt": stacked.prompt.written,
                "negative_prompt": request.negative_prompt,
                "hypernetworks": [
                    {"name": network.name, "strength": strength, "hash": network.hash}
                    for network, strength in zip(stacked.networks, strengths, strict=True)
                ],
                "model": model.name,
                "infotext": text,
            }


@click.command("grid")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_name)
@click.option("--prompt", "prompts", multiple=True, required=True, help="Repeat it for more rows.")
@click.option("--seed", "seeds", type=SEED, multiple=True, default=[-1], help="Repeat it for more rows; -1 draws one.")
@click.option("--strengths", default="0,0.5,1,1.5,2", metavar="LIST", show_default=True, help="One column each.")
@click.option("--out", default="grid.png", metavar="FILE", show_default=True, help="The .png file to write.")
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@picture_options
@output_options
def grid_command(
    names: tuple[str, ...],
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    strengths: str,
    out: str,
    overwrite: bool,
    choices: Choices,
    output: Output,
) -> None:
    """Draw a labelled sheet of hypernetworks by strengths.

    Each NAME is a row and each strength a column, 0 being the picture without it. Tags in a prompt apply in every
    column: the sheet shows what a network adds to them. The seed is the same everywhere.

    \b
    Examples:
      hnetkit grid outline dots --prompt "a red circle" --seed 7
      hnetkit grid dots --prompt "a blue star <hypernet:outline:0.7>" --strengths 0,0.5,1 --out dots.png
    """
    from hnetkit.generate.grid import Comparison
    from hnetkit.generate.networks import Wish, find_networks, find_stack

    if not is_picture_file(out):
        raise UsageError(f"--out {out}: a grid is one PNG file", hint="--out grid.png")
    refuse_existing(out, overwrite=overwrite)
    comparison = Comparison(
        networks=find_networks([Wish.of_option(name) for name in names], choices.bundled),
        strengths=_numbers(strengths),
        prompts=[find_stack(split_tags(prompt), (), choices.bundled) for prompt in prompts],
        seeds=[_drawn_seed(seed) for seed in seeds],
    )
    for stacked in comparison.prompts:
        _note_syntax(stacked.prompt, choices.negative_prompt, output)
    model = choices.load(output)
    for stacked in comparison.prompts:
        _note_unread(model, stacked.prompt, output)
    output.rows(
        [_write_grid(model, comparison, choices, Path(out), overwrite, output)],
        columns=["path", "networks", "strengths", "prompts", "seeds"],
        text=lambda row: str(row["path"]),
    )


def _write_grid(
    model: Model, comparison: Comparison, choices: Choices, path: Path, overwrite: bool, output: Output
) -> Row:
    from hnetkit.cli.progress import step_progress
    from hnetkit.generate.grid import draw_grid, infotext_of_grid

    def request(prompt: TaggedPrompt, seed: int) -> Request:
        return choices.request(model, prompt, seed)

    with step_progress("Drawing", quiet=output.quiet) as progress:
        sheet = draw_grid(model, comparison, request, progress)
    text = infotext_of_grid(model, comparison, request)
    write_png(path, sheet, text, overwrite=overwrite)
    return {
        "path": str(path),
        "networks": [network.name for network in comparison.networks],
        "strengths": list(comparison.strengths),
        "prompts": [stacked.prompt.written for stacked in comparison.prompts],
        "seeds": list(comparison.seeds),
        "model": model.name,
        "infotext": text,
    }


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UsageError(f"--strengths {text}: not a list of numbers", hint="--strengths 0,0.5,1")
    return numbers


def _drawn_seed(seed: int) -> int:
    return random_seed() if seed == -1 else seed


def _note_syntax(prompt: TaggedPrompt, negative_prompt: str, output: Output) -> None:
    """Says what A1111 would read in the prompts and hnetkit does not."""
    for tag in prompt.unknown:
        output.note(f"{tag}: no known kind of tag; left out of the prompt, as A1111 does.")
    if "<hypernet:" in negative_prompt:
        output.note("Tags in a negative prompt are plain text, as in A1111.")
    if has_unread_syntax(prompt.text) or has_unread_syntax(negative_prompt):
        output.note("Weights, schedules, AND and BREAK are not read yet: brackets reach the text encoder as they are.")


def _note_unread(model: Model, prompt: TaggedPrompt, output: Output) -> None:
    from hnetkit.generate.picture import unread_part

    rest = unread_part(model, prompt.text)
    if rest:
        output.note(f"The prompt is too long for the model, which does not read its end: {rest}")
