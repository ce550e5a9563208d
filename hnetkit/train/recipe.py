"""Everything that a training run is asked to do, as data: one JSON file, written and read again."""

from __future__ import annotations

import os
import re
import reprlib
import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hnetkit.errors import NotFound, UsageError, did_you_mean
from hnetkit.files import is_reserved
from hnetkit.generate.request import has_room
from hnetkit.limits import read_json
from hnetkit.text import printable, shorten
from hnetkit.train.build import Build
from hnetkit.train.guards import GuardSettings
from hnetkit.train.previews import PreviewSettings
from hnetkit.train.schedules import Rates, schedule

if TYPE_CHECKING:
    from hnetkit.library.library import AnyPath

FORMAT = "hnetkit.training/1"
"""Of the record of a run, which holds its recipe."""

Precision = Literal["no", "fp16", "bf16"]
LatentSampling = Literal["once", "deterministic", "random"]

# settings that may differ when a run is resumed: they change no step that was made, or are compared by content
_FREE = (
    "model",
    "vae",
    "pictures",
    "start",
    "beside",
    "max_steps",
    "rates",
    "save_every",
    "keep",
    "preview_every",
    "previews",
    "guarded",
    "guards",
    "tensorboard",
)

# limits far above what anybody trains with: a recipe may come from a stranger
MOST_SAMPLES = 4096
"""Samples of a batch, which are computed together."""

MOST_BATCHES = 65_536
"""Batches whose gradients make one step."""

MOST_OF_A_STEP = 1 << 20
"""Samples of all batches of one step."""

MOST_STEPS = 1_000_000_000
"""Steps of a run."""

MOST_PREVIEWS = 10_000
"""Images of one preview."""

MAX_RECORD = 64 << 20
"""Bytes of a run's ``recipe.json``, which names every image with its hash and its caption."""

MADE_OF_RECORD = 256 << 20
"""Bytes that its values may take in memory: those of some 80,000 images."""

_LONGEST_NAME = 150  # characters: files add a step and a suffix, and file systems take 255 bytes
_MOST_OPTIONS = 64  # options of an optimizer, values of a list option, and characters of a text option
_MOST = {"batch_size": MOST_SAMPLES, "accumulation": MOST_BATCHES, "max_steps": MOST_STEPS}
_NAME = re.compile(r"[^/\\:*?\"<>|\x00-\x1f]*[^/\\:*?\"<>|\x00-\x1f. ]")


@dataclass(frozen=True)
class Recipe:
    """What a run trains, on what, and how.

    Attributes:
        name: of the network and its files.
        model: a diffusers folder, a hub id, or a checkpoint in one file.
        pictures: the folder of prepared images with their captions.
        vae: another autoencoder: a file, a diffusers folder, or a hub id.
        tokenizer: a folder with the tokenizer of a checkpoint in one file.
        build: of a new network; ignored for `start`, whose file says how it is built.
        start: a hypernetwork file to continue training; None makes a new network.
        beside: files of fixed hypernetworks that captions may name too.
        rates: a learning-rate schedule in A1111's grammar, or a preset's name.
        max_steps: of the optimizer; None: to the end of the schedule.
        batch_size: samples at once, over all processes.
        accumulation: batches whose gradients make one step.
        clip_norm: what the gradients' norm is clipped at, after unscaling: a number, or a schedule of numbers in the
            grammar of rates; None leaves it.
        clip_value: what each value of a gradient is clipped at; at most one of the two may be set.
        optimizer: a class of ``torch.optim``.
        optimizer_options: its keyword arguments beside the rate.
        precision: of the frozen model; the network is always trained in fp32.
        gradient_checkpointing: compute activations twice instead of keeping them.
        capture: make steps as CUDA graphs, on a GPU: not yet run on one.
        min_snr: gamma of min-SNR weighting of the loss; None for none.
        template: of prompts: the name of a built-in one, or a file; a line is drawn for each sample.
        prompt_name: what templates and captions call the network; None for its name.
        shuffle_tags: put a caption's tags in another order each time.
        drop_tags: probability of dropping each tag, 0 to 1.
        latents: one sample of the autoencoder's distribution for each image, its mean, or a sample each time.
        alpha_as_weight: an image's opacity weighs the loss.
        size: (width, height) in pixels to which images are cropped; None takes them as they are.
        clip_skip: 2 skips the last layer of SD 1's text encoder.
        seed: of everything that is random.
        save_every: steps between two checkpoints, each with the network as a file; 0 for one at the end alone.
        keep: checkpoints to keep.
        preview_every: steps between two previews; 0 for none.
        previews: what they show.
        guarded: whether guards may stop the run or roll it back.
        guards: their limits.
        tensorboard: also log for TensorBoard.

    Raises:
        UsageError: an invalid value.
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
    capture: bool = False
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
                f"{brief_text(self.name)} cannot name a network's files on every system",
                hint="letters, digits, - and _",
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
        """What captions call networks: the trained one, then those beside it by the stems of their files."""
        return (self.called, *(Path(file).stem for file in self.beside))

    @property
    def clip_at(self) -> str | None:
        """The schedule of what gradients are clipped at, by norm or by value; None if they are not."""
        return self.clip_norm if self.clip_norm is not None else self.clip_value

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as a JSON object, every setting spelled out."""
        data: dict[str, Any] = dataclass_to_json(self)
        return data

    @classmethod
    def from_json(cls, data: Any, where: str = "recipe") -> Recipe:
        """Returns the recipe of a JSON object; missing settings have their defaults.

        Raises:
            UsageError: an unknown setting, or an invalid value.
        """
        return dataclass_from_json(cls, data, where)

    def differences(self, other: Recipe) -> list[str]:
        """Returns the settings by which another recipe makes other steps, as ``build.activation unset, not 'relu'``.

        The first value is this recipe's.
        """
        mine, others = self.to_json(), other.to_json()
        steps = [field.name for field in fields(self) if field.name not in _FREE and field.name != "build"]
        pairs = [(name, mine[name], others[name]) for name in steps]
        pairs += [(f"build.{name}", value, others["build"][name]) for name, value in mine["build"].items()]
        return [f"{name} {_shown(own)}, not {_shown(now)}" for name, own, now in pairs if own != now]

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
                shown = brief_text(name), brief_text(value)
                yield f"optimizer_options: {shown[0]} is no number, text or short list of these: {shown[1]}"


def _is_option(value: Any) -> bool:
    """Whether an optimizer could take a value of JSON."""
    if isinstance(value, list | tuple):
        return len(value) <= _MOST_OPTIONS and not any(isinstance(i, list) or not _is_option(i) for i in value)
    if isinstance(value, str):
        return len(value) <= _MOST_OPTIONS
    return value is None or (isinstance(value, int | float) and abs(value) <= LARGEST)


def require_one_build(recipe: Recipe) -> None:
    """Raises UsageError if both the recipe and the file that training starts from say how the network is built."""
    if recipe.start is not None and recipe.build != Build():
        raise UsageError(f"{recipe.start} says how the network is built", hint="leave --structure and the like out")


def schedules_of(recipe: Recipe) -> tuple[Rates, Rates | None]:
    """Returns the rates of a recipe, and what gradients are clipped at, if they are.

    Raises:
        UsageError: one of the two is no schedule.
    """
    rates = schedule(recipe.rates, recipe.max_steps)
    return rates, None if recipe.clip_at is None else Rates(recipe.clip_at, rates.last_step)


def make_recipe(
    base: Recipe | Mapping[str, Any] | AnyPath,
    changes: Mapping[str, Any] = MappingProxyType({}),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """Returns a recipe with some of its settings changed.

    Args:
        base: a recipe, the JSON object of one, or a file, see `read_recipe`.
        changes: setting -> value as JSON holds it, overriding `base`; a setting of a part is ``"build.structure"``.
        defaults: setting -> value, for what neither of them sets.

    Raises:
        NotFound: no such file.
        UsageError: something is missing or invalid.
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
    """Returns the JSON object of a recipe's file, or of the recipe in a run's ``recipe.json``, for `Recipe.from_json`.

    Raises:
        NotFound: no such file.
        UsageError: it holds no JSON object, or is of another version of hnetkit.
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
    if not isinstance(recipe, dict):
        return data
    if data.get("format", FORMAT) != FORMAT:
        raise UsageError(
            f"{path}: of format {shorten(str(data['format']))}, and this hnetkit reads {FORMAT}",
            hint="use the hnetkit that wrote it, or a newer one",
        )
    return recipe


# --- dataclasses as JSON

T = TypeVar("T")

LARGEST = 2**63 - 1
"""Largest number, and smallest below zero, that files and tensors can hold."""

_SHOWN = 60  # characters of a key or a value in a message


def dataclass_to_json(value: Any) -> Any:
    """Returns a dataclass, and others in it, as JSON holds it: tuples become lists."""
    return _plain(asdict(value))


def dataclass_from_json(kind: type[T], data: Any, where: str) -> T:
    """Returns the dataclass that `dataclass_to_json` made `data` from; missing fields have their defaults.

    Args:
        where: what `data` was read from, for errors.

    Raises:
        UsageError: an unknown key, a missing one, or a value of another type.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where}: {_describe(data)} is not a JSON object")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # only given dataclasses
    for key in data:
        if key not in known:
            near = did_you_mean(str(key), known) or ", ".join(known)
            raise UsageError(f"{where}: there is no setting {str(key)[:_SHOWN]}", hint=f"known: {near}")
    values = {key: _parse(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{where}: {error}") from error


def _shown(value: Any) -> str:
    return "unset" if value is None else brief_text(value)


def brief_text(value: Any) -> str:
    """Returns a value of JSON as a message shows it, shortened if it is large or deep."""
    written = _BRIEF.repr(value)
    return written if len(written) <= 2 * _SHOWN else f"{written[: 2 * _SHOWN]}..."


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxlong = _SHOWN


def _describe(value: Any) -> str:
    """Returns what an invalid value is: a number as it is, of anything else only its type.

    A stranger's folder may hold a link to a private file, whose content must not appear in a message.
    """
    return _KINDS.get(type(value)) or brief_text(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _parse(hint: Any, value: Any, where: str) -> Any:
    """Returns a value of JSON as its annotation wants it."""
    origin, arguments = get_origin(hint), get_args(hint)
    value = os.fspath(value) if isinstance(value, os.PathLike) else value  # from Python
    if hint is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"{where}: {_describe(value)} is none of {', '.join(map(str, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _parse(next(kind for kind in arguments if kind is not type(None)), value, where)
    if origin is tuple:
        return _parse_tuple(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: {_describe(value)} is not a JSON object")
        return dict(value)
    if is_dataclass(hint):
        return dataclass_from_json(hint, value, where)  # type: ignore[arg-type]  # a class, not one of its objects
    if type(value) in (int, float) and hint in (int, float) and not -LARGEST <= value <= LARGEST:
        raise UsageError(f"{where}: {_describe(value)} is no number from {-LARGEST} to {LARGEST}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint or (hint is str and not _is_text(value)):
        raise UsageError(f"{where}: {_describe(value)} is not {_NAMES.get(hint, hint)}")
    return value


def _is_text(value: str) -> bool:
    """Whether a text can be encoded and name a file: JSON may hold lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _parse_tuple(arguments: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{where}: {_describe(value)} is not a list")
    if arguments[-1] is Ellipsis:
        return tuple(_parse(arguments[0], item, where) for item in value)
    if len(value) != len(arguments):
        raise UsageError(f"{where}: {_describe(value)} has not {len(arguments)} values")
    return tuple(_parse(kind, item, where) for kind, item in zip(arguments, value, strict=True))


_KINDS: Mapping[Any, str] = {str: "a text", list: "a list", tuple: "a list", dict: "an object"}
_NAMES: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
