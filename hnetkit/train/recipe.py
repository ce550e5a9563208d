"""Everything that a training run is asked to do, as data: one JSON file there and back."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from hnetkit.errors import NotFound, UsageError
from hnetkit.files import is_reserved
from hnetkit.generate.request import has_room
from hnetkit.limits import read_json
from hnetkit.text import printable
from hnetkit.train.as_json import LARGEST, from_json, shown, to_json
from hnetkit.train.build import Build
from hnetkit.train.guards import GuardSettings
from hnetkit.train.previews import PreviewSettings

if TYPE_CHECKING:
    from hnetkit.library.library import AnyPath

Precision = Literal["no", "fp16", "bf16"]
LatentSampling = Literal["once", "deterministic", "random"]

# what may be another one when a run goes on: it changes no step that was made, or is known by its content
_FREE = (
    *("model", "vae", "pictures", "start", "beside", "max_steps", "rates", "save_every", "keep"),
    *("preview_every", "previews", "guarded", "guards", "tensorboard"),
)

# far above what anybody trains with: a recipe may come from a stranger
MOST_SAMPLES = 4096
"""Of a batch: samples that are computed at once."""

MOST_BATCHES = 65_536
"""Whose gradients make one step."""

MOST_OF_A_STEP = 1 << 20
"""Samples of all batches of one step."""

MOST_STEPS = 1_000_000_000
"""Of a run."""

MOST_PREVIEWS = 10_000
"""Pictures of one preview."""

MAX_RECORD = 64 << 20
"""Bytes of a run's ``recipe.json``, which names every picture with its hash and its caption."""

MADE_OF_RECORD = 256 << 20
"""Bytes that its values may take in memory: those of some 80,000 pictures."""

_LONGEST_NAME = 150  # letters: files add a step and a suffix, and a system takes 255 bytes
_MOST_OPTIONS = 64  # of an optimizer, values of a list among them, and letters of a text
_MOST = {"batch_size": MOST_SAMPLES, "accumulation": MOST_BATCHES, "max_steps": MOST_STEPS}
_NAME = re.compile(r"[^/\\:*?\"<>|\x00-\x1f]*[^/\\:*?\"<>|\x00-\x1f. ]")


@dataclass(frozen=True)
class Recipe:
    """What a run trains, on what, and how.

    Attributes:
        name: of the network and its files.
        model: a diffusers folder, a hub id, or a checkpoint in one file.
        pictures: the folder of prepared pictures with their captions.
        vae: another autoencoder: a file, a diffusers folder, or a hub id.
        tokenizer: a folder with the tokenizer of a checkpoint in one file.
        beside: files of hypernetworks that captions may name beside the one that is trained; they stay as they are.
        build: of a new network; what `start` is built like counts instead.
        start: a hypernetwork file to go on training; None makes a new one.
        rates: a learning-rate schedule in A1111's grammar, or a preset's name.
        max_steps: of the optimizer; None: to the end of the schedule.
        batch_size: samples at once, over all processes.
        accumulation: batches whose gradients make one step.
        clip_norm: what the gradients' norm is shortened to, after unscaling: a number, or a schedule of numbers in the
            grammar of rates; None leaves it.
        clip_value: the same for each value of a gradient; one of the two at most.
        optimizer: a class of ``torch.optim``.
        optimizer_options: its keyword arguments beside the rate.
        precision: of the frozen model; the network is always trained in fp32.
        gradient_checkpointing: compute activations twice instead of keeping them.
        min_snr: gamma of min-SNR weighting of the loss; None for none.
        template: of prompts: the name of one that comes with hnetkit, or a file; a line is drawn for each sample.
        prompt_name: what templates and captions call the network; None: by its name.
        shuffle_tags: put a caption's tags in another order each time.
        drop_tags: the chance of each tag to be left out, 0 to 1.
        latents: one sample of the autoencoder's distribution for each picture, its mean, or a sample each time.
        alpha_as_weight: a picture's opacity weighs the loss.
        size: (width, height) in pixels to which pictures are cut; None takes them as they are.
        clip_skip: 2 leaves out the last layer of SD 1's text encoder.
        seed: of everything that is random.
        save_every: steps between two checkpoints, each with the network as a file; 0 for one at the end alone.
        keep: checkpoints to go back to.
        preview_every: steps between two previews; 0 for none.
        previews: what they show.
        guarded: whether the run is watched.
        guards: what is too much.
        tensorboard: also log for TensorBoard.

    Raises:
        UsageError: a value that cannot be meant.
    """

    name: str
    model: str
    pictures: str
    vae: str | None = None
    tokenizer: str | None = None
    build: Build = field(default_factory=Build)
    start: str | None = None
    beside: tuple[str, ...] = ()
    rates: str = "default"
    max_steps: int | None = None
    batch_size: int = 1
    accumulation: int = 1
    clip_norm: str | None = None
    clip_value: str | None = None
    optimizer: str = "AdamW"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "no"
    gradient_checkpointing: bool = False
    min_snr: float | None = None
    template: str = "style_filewords"
    prompt_name: str | None = None
    shuffle_tags: bool = False
    drop_tags: float = 0.0
    latents: LatentSampling = "once"
    alpha_as_weight: bool = False
    size: tuple[int, int] | None = None
    clip_skip: int = 1
    seed: int = 0
    save_every: int = 500
    keep: int = 3
    preview_every: int = 500
    previews: PreviewSettings = field(default_factory=PreviewSettings)
    guarded: bool = True
    guards: GuardSettings = field(default_factory=GuardSettings)
    tensorboard: bool = False

    def __post_init__(self) -> None:
        is_usual = len(self.name) <= _LONGEST_NAME and _NAME.fullmatch(self.name) and printable(self.name) == self.name
        if not is_usual or self.name.startswith(".") or is_reserved(self.name):
            raise UsageError(
                f"{shown(self.name)} cannot name a network's files on every system", hint="letters, digits, - and _"
            )
        for fault in self._faults():
            raise UsageError(fault)

    @property
    def samples_per_step(self) -> int:
        return self.batch_size * self.accumulation

    @property
    def called(self) -> str:
        """What templates and captions call the network."""
        return self.name if self.prompt_name is None else self.prompt_name

    @property
    def networks(self) -> tuple[str, ...]:
        """What captions call networks: the one that is trained, then those beside it by the stems of their files."""
        return (self.called, *(Path(file).stem for file in self.beside))

    @property
    def clip_at(self) -> str | None:
        """The schedule of what gradients are clipped at, by norm or by value; None where they are not."""
        return self.clip_norm if self.clip_norm is not None else self.clip_value

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as a JSON object, every setting spelled out."""
        data: dict[str, Any] = to_json(self)
        return data

    @classmethod
    def from_json(cls, data: Any, where: str = "recipe") -> Recipe:
        """Returns the recipe of a JSON object; what is left out has its default.

        Raises:
            UsageError: an unknown setting, or a value that cannot be meant.
        """
        return from_json(cls, data, where)

    def differences(self, other: Recipe) -> list[str]:
        """Returns the settings in which another recipe would have made other steps, as ``build.structure``."""
        mine, others = self.to_json(), other.to_json()
        names = [field.name for field in fields(self) if field.name not in _FREE]
        different = [name for name in names if mine[name] != others[name] and name != "build"]
        return different + [f"build.{name}" for name in mine["build"] if mine["build"][name] != others["build"][name]]

    def _faults(self) -> Iterator[str]:
        for name in ("batch_size", "accumulation", "keep", "clip_skip"):
            if getattr(self, name) < 1:
                yield f"{name} {getattr(self, name)}: at least 1"
        for name, most in _MOST.items():
            if (getattr(self, name) or 0) > most:
                yield f"{name} {getattr(self, name)}: at most {most}"
        if self.samples_per_step > MOST_OF_A_STEP:
            factors = f"batch_size {self.batch_size} times accumulation {self.accumulation}"
            yield f"{factors}: at most {MOST_OF_A_STEP} samples a step"
        shown_at_once = max(1, len(self.previews.prompts)) * len(self.previews.seeds) * len(self.previews.strengths)
        if shown_at_once > MOST_PREVIEWS:
            yield f"previews of {shown_at_once:,} pictures: at most {MOST_PREVIEWS:,}"
        for name in [name for name, count in Counter(self.networks).items() if count > 1]:
            yield f"two networks are called {name}: captions could not tell them apart"
        for name in ("save_every", "preview_every"):
            if getattr(self, name) < 0:
                yield f"{name} {getattr(self, name)}: at least 0"
        if self.max_steps is not None and self.max_steps < 1:
            yield f"max_steps {self.max_steps}: at least 1"
        if not 0 <= self.drop_tags <= 1:
            yield f"drop_tags {self.drop_tags:g}: a chance is between 0 and 1"
        if self.clip_norm is not None and self.clip_value is not None:
            yield "gradients are clipped by their norm or by value, not by both"
        if self.min_snr is not None and not self.min_snr > 0:
            yield f"min_snr {self.min_snr:g}: a number above 0"
        if not 0 <= self.seed <= LARGEST:
            yield f"seed {self.seed}: a whole number from 0 to {LARGEST}"
        if self.size is not None and not all(side > 0 and side % 8 == 0 for side in self.size):
            yield f"size {self.size[0]}x{self.size[1]}: multiples of 8"
        elif self.size is not None and not has_room(*self.size):
            yield f"size {self.size[0]}x{self.size[1]}: larger than any picture"
        if len(self.optimizer_options) > _MOST_OPTIONS:
            yield f"optimizer_options: {len(self.optimizer_options):,} of them"
        for name, value in self.optimizer_options.items():
            if not _is_option(value):
                yield f"optimizer_options: {shown(name)} is no number, text or short list of these: {shown(value)}"


def _is_option(value: Any) -> bool:
    """Whether an optimizer could take a value of JSON."""
    if isinstance(value, list | tuple):
        return len(value) <= _MOST_OPTIONS and not any(isinstance(i, list) or not _is_option(i) for i in value)
    if isinstance(value, str):
        return len(value) <= _MOST_OPTIONS
    return value is None or (isinstance(value, int | float) and abs(value) <= LARGEST)


def make_recipe(
    base: Recipe | Mapping[str, Any] | AnyPath,
    changes: Mapping[str, Any] = MappingProxyType({}),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """Returns a recipe with some of its settings changed.

    Args:
        base: a recipe, the JSON object of one, or a file, see `read_recipe`.
        changes: setting -> value as JSON holds it, in place of those of `base`; ``"build.structure"`` is one of a part.
        defaults: setting -> value, where neither says one.

    Raises:
        NotFound: no such file.
        UsageError: something is missing, or cannot be meant.
    """
    where = "the recipe"
    if isinstance(base, Recipe):
        data = base.to_json()
    elif isinstance(base, Mapping):
        data = dict(base)
    else:
        where, data = os.fspath(base), read_recipe(Path(base))
    for setting, value in changes.items():
        part, _, name = setting.rpartition(".")
        if not part:
            data[name] = value
        elif isinstance(settings := data.get(part, {}), Mapping):
            data[part] = {**settings, name: value}
        else:
            raise UsageError(f"{where}: {part} is not a JSON object")
    data = {**defaults, **data}
    for needed, hint in (("pictures", "hnetkit train PICTURES --name X"), ("name", "--name X")):
        if needed not in data:
            raise UsageError(f"a run needs {'a folder of ' if needed == 'pictures' else 'a '}{needed}", hint=hint)
    return Recipe.from_json(data, where)


def read_recipe(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a recipe's file, or in the ``recipe.json`` of a run, for `Recipe.from_json`.

    Raises:
        NotFound: no such file.
        UsageError: it holds no JSON object.
    """
    try:
        data = read_json(path, most=MAX_RECORD, made=MADE_OF_RECORD)
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such recipe") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a recipe that can be read ({error})") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a recipe is one JSON object")
    recipe = data.get("recipe")
    return recipe if isinstance(recipe, dict) else data
