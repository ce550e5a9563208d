"""`hnetkit generate`: pictures with hypernetworks applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hnetkit import settings
from hnetkit.cli.output import Output, Row, output_options
from hnetkit.cli.picture_options import Choices, network_option, picture_options
from hnetkit.errors import NotFound, OutputExists, UsageError
from hnetkit.files import refuse_existing
from hnetkit.generate.picture_files import is_picture_file, next_number, write_picture
from hnetkit.generate.recipe import Recipe, read_recipe
from hnetkit.generate.request import Request, Stack, random_seed
from hnetkit.prompts.infotext import NEGATIVE
from hnetkit.prompts.tags import TaggedPrompt, shortened, split_tags

if TYPE_CHECKING:
    from hnetkit.generate.loras import Lora
    from hnetkit.generate.model import Model
    from hnetkit.generate.networks import Network, StackedPrompt
    from hnetkit.generate.picture import Picture


@click.command("generate")
@click.argument("prompt", required=False)
@network_option("Apply a network of the library, or a file, after those of the prompt.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw a picture again by the settings in it; what is said beside it counts instead.",
)
@click.option(
    "--seed", type=click.IntRange(min=-1), help="Seed of the first image; -1 picks one at random. [default: -1]"
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of images; each seed is one higher.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Images to sample together."
)
@click.option("--out", default=".", metavar="FILE|DIR", help="A .png file, or a folder. [default: this folder]")
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@picture_options
@output_options
def generate_command(
    prompt: str | None,
    options: tuple[str, ...],
    source: Path | None,
    seed: int | None,
    count: int,
    batch_size: int,
    out: str,
    overwrite: bool,
    choices: Choices,
    output: Output,
) -> None:
    """Draw pictures with hypernetworks applied.

    PROMPT is in A1111's language: (weights:1.2), [from:to:0.5], [a|b], AND, BREAK. Tags <hypernet:NAME:STRENGTH> name
    networks of the library, in stacking order; `hnetkit prompt` shows what a prompt means. A picture holds its
    parameters as text that the usual programs read. In a folder it is called NNNNN-SEED.png, and nothing is replaced.
    The path of each picture is printed.

    \b
    Examples:
      hnetkit generate "a red circle <hypernet:outline:0.8>" --seed 7
      hnetkit generate "a blue star" -n outline:0.7 -n dots:0.7 --count 4 --out pictures
      hnetkit generate --from old.png --steps 30
    """
    from hnetkit.generate.loras import find_loras
    from hnetkit.generate.networks import find_stack

    recipe = Recipe() if source is None else read_recipe(source)
    for warning in recipe.warnings:
        output.note(f"{source}: {warning}")
    choices = choices.filled(recipe.choices)
    prompt = recipe.prompt if prompt is None else prompt
    if prompt is None:
        raise UsageError("nothing to draw: a PROMPT is missing", hint='hnetkit generate "a red circle"')
    tagged = read_prompt(prompt, output)
    warn_of_marks([prompt, choices.negative_prompt or ""], output)
    stacked = find_stack(tagged if source else with_default_stack(tagged), options, choices.bundled)
    hires = None
    if choices.has_second_pass and choices.hires_prompt is not None:
        hires = find_stack(read_prompt(choices.hires_prompt, output), (), choices.bundled)
    loras = find_loras(tagged.loras, settings.get("loras"))
    networks = _Networks(stacked, hires, loras)
    if prompt == recipe.prompt:
        _warn_of_others(recipe, networks, output)
    place = _Place.of(out, count=count, overwrite=overwrite)
    if "<hypernet:" in (choices.negative_prompt or ""):
        output.note("Tags in a negative prompt are plain text, as in A1111.")
    seed = recipe.seed if seed is None else seed
    texts = [stacked.prompt.text, *([hires.prompt.text] if hires else [])]
    model = choices.load(output, choices.embeddings(texts))
    request = choices.request(model, stacked.prompt, drawn_seed(seed), hires.prompt if hires else None)
    request = replace(request, count=count, batch_size=batch_size)
    if not model.hash.startswith(recipe.hashes.get("model", "")[: len(model.hash)]):
        output.note(f"{source}: the hash of its model is {recipe.hashes['model'][:10]}; {model.hash} draws here.")
    rows = _write_pictures(model, request, networks, place, output)
    output.rows(rows, columns=["path", "seed", "prompt"], text=lambda row: str(row["path"]))


def drawn_seed(seed: int | None) -> int:
    """Returns a seed; a random one for -1 and for none."""
    return random_seed() if seed in (None, -1) else seed


def read_prompt(prompt: str, output: Output) -> TaggedPrompt:
    """Takes a prompt apart, and says what in it has no effect."""
    tagged = split_tags(prompt)
    for warning in tagged.warnings:
        output.note(f"Warning: {warning}")
    for tag in tagged.unknown:
        output.note(f"{tag}: no known kind of tag; left out of the prompt, as A1111 does.")
    return tagged


def warn_of_marks(prompts: Iterable[str], output: Output) -> None:
    """Says where the text of a picture will be read as another prompt: nothing can mark a line of it as plain."""
    if any(line.strip().startswith(NEGATIVE) for prompt in prompts for line in prompt.split("\n")):
        output.note(f"Warning: a line begins with {NEGATIVE!r}: read from the picture, it begins the negative prompt.")


def _warn_of_others(recipe: Recipe, networks: _Networks, output: Output) -> None:
    """Says which networks are others than those of their names that a picture was drawn with."""
    for key, known in networks.full_hashes.items():
        said = recipe.hashes.get(key)
        if said and not any(digits.startswith(said) or said.startswith(digits) for digits in known):
            name, here = shortened(key.partition(":")[2]), " or ".join(digits[:10] for digits in known)
            output.note(f"Warning: {name} is another one here ({here}) than the picture was drawn with ({said[:10]})")


def with_default_stack(prompt: TaggedPrompt) -> TaggedPrompt:
    """Returns a prompt with the networks of the settings at its end, but for those that it names itself."""
    named = {tag.name for tag in prompt.tags}
    default = split_tags(settings.get("hypernetworks") or "")
    return prompt.adding(tuple(tag for tag in default.tags if tag.name not in named))


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
        if self.is_file:
            write_picture(self.path, picture.image, infotext, overwrite=self.overwrite)
            return self.path
        number = next_number(self.path)
        while True:
            path = self.path / f"{number:05}-{picture.seed}.png"
            try:
                write_picture(path, picture.image, infotext)
            except OutputExists:  # another command draws into the same folder, and took the number first
                number = max(number + 1, next_number(self.path))
            else:
                return path


@dataclass(frozen=True, slots=True)
class _Networks:
    """What the prompts of both passes put on the model."""

    stacked: StackedPrompt
    hires: StackedPrompt | None
    loras: Sequence[Lora]

    @property
    def hashes(self) -> dict[str, str]:
        """The infotext's entries."""
        from hnetkit.generate.loras import hashes_of_loras
        from hnetkit.generate.networks import hashes_of

        return hashes_of(self._all) | hashes_of_loras(self.loras)

    @property
    def full_hashes(self) -> dict[str, set[str]]:
        """By the infotext's name of each: the sha256 of its file, and of the file that it was converted from."""
        from hnetkit.formats.writing import source_sha256
        from hnetkit.hashes import sha256_of

        found: dict[str, set[str]] = {}
        for one in self._all:
            own = sha256_of(one.network.source) if one.network.source is not None else None
            found[f"hypernet:{one.name}"] = {digits for digits in (source_sha256(one.network), own) if digits}
        return found | {f"lora:{lora.tag.name}": {lora.hash} for lora in self.loras}

    def put_on(self, model: Model, request: Request, note: Callable[[str], None]) -> Request:
        """Loads all of them onto the pipeline and returns the request that names them."""
        from hnetkit.generate.loras import put_on_loras
        from hnetkit.generate.networks import put_on

        put_on_loras(model.pipe, self.loras, note)
        names = iter(put_on(model.pipe, self._all))
        stack: Stack = tuple((next(names), strength) for strength in self.stacked.strengths)
        if request.second is None:
            return replace(request, stack=stack)
        second = stack if self.hires is None else tuple((next(names), strength) for strength in self.hires.strengths)
        return replace(request, stack=stack, second=replace(request.second, stack=second))

    @property
    def _all(self) -> list[Network]:
        return [*self.stacked.networks, *(self.hires.networks if self.hires else ())]


def _write_pictures(
    model: Model,
    request: Request,
    networks: _Networks,
    place: _Place,
    output: Output,
) -> Iterator[Row]:
    """Yields one row for each picture, once it is on disk."""
    from hnetkit.cli.progress import step_progress
    from hnetkit.generate.description import infotext_of
    from hnetkit.generate.picture import draw

    request, stacked, hashes = networks.put_on(model, request, output.note), networks.stacked, networks.hashes
    with step_progress("Drawing", quiet=output.quiet) as progress:
        for picture in draw(model, request, progress):
            text = infotext_of(model, request, picture.seed, stacked.prompt.written, hashes)
            yield {
                "path": str(place.write(picture, text)),
                "seed": picture.seed,
                "prompt": stacked.prompt.written,
                "negative_prompt": request.negative_prompt,
                "hypernetworks": [
                    {"name": network.name, "strength": tag.multiplier, "hash": network.hash}
                    for network, tag in zip(stacked.networks, stacked.prompt.tags, strict=True)
                ],
                "model": model.name,
                "infotext": text,
            }
