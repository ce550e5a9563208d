"""The options of `hnetkit train run` and `sweep`: one that is not given comes from --recipe, else is the default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import partial, wraps
from typing import Any, NamedTuple

import click

from hnetkit.cli.options import Number, Option, device_option, option
from hnetkit.errors import UsageError, did_you_mean
from hnetkit.images import parse_size
from hnetkit.limits import parse_json


class _Setting(NamedTuple):
    """An option that stands for a setting of a recipe.

    Attributes:
        name: the setting's; ``"build.structure"`` is one of a part of the recipe.
        flags: of the option; ``"--x/--no-x"`` is a switch.
        default: in words, where the setting's own default, which may stand in them as ``{}``, does not tell a person
            what will be.
        former: the option's earlier spelling.
    """

    name: str
    flags: str
    help: str
    type: Any = None
    metavar: str | None = None
    multiple: bool = False
    default: str | None = None
    former: tuple[str, ...] = ()

    @property
    def parameter(self) -> str:
        """What the command receives it as."""
        return self.name.replace(".", "_")

    @property
    def spellings(self) -> list[str]:
        """What `--vary` may call it."""
        return [flag.lstrip("-") for flag in (self.flags.split("/")[0], *self.former)]


class _SettingOption(Option):
    """An option that shows a setting's default, which is the recipe's own."""

    def __init__(self, *declarations: Any, setting: _Setting, **attributes: Any) -> None:
        super().__init__(*declarations, **attributes)
        self._setting = setting

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        own = _default_text(_field(self._setting.name), " and " if self._setting.multiple else ",")
        shown = own if self._setting.default is None else self._setting.default.format(own)
        return {**extra, "default": shown} if shown else extra


class _Read(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
    """A parameter type that is read by a function, which raises ValueError for what it cannot read."""

    def __init__(self, read: Callable[[str], Any], name: str) -> None:
        self._read, self.name = read, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(value) if isinstance(value, str) else value
        except ValueError:
            return self.fail(f"{value!r} is not {self.name}", param, ctx)


def _numbers(kind: Callable[[str], float]) -> Callable[[str], list[float]]:
    def read(text: str) -> list[float]:
        return [kind(part) for part in text.split(",")]

    return read


_FLOATS = _Read(_numbers(float), "numbers, separated by commas")
_INTS = _Read(_numbers(int), "whole numbers, separated by commas")
_CHANCES = _Read(lambda text: [] if text == "none" else _numbers(float)(text), _FLOATS.name)
_SIZE = _Read(lambda text: list(parse_size(text)), "a number of pixels, or WIDTHxHEIGHT")
_OBJECT = _Read(parse_json, "a JSON object")
_LEAST_1, _LEAST_0 = click.IntRange(min=1), click.IntRange(min=0)
_ABOVE_0, _CHANCE = Number(min=0, min_open=True), Number(0, 1)

# heading in the help -> its options
_SETTINGS: dict[str, tuple[_Setting, ...]] = {
    "Run": (
        _Setting("name", "--name", "Name of the network and of its files; required without --recipe.", metavar="NAME"),
        _Setting(
            "start",
            "--init-from",
            "Start from the weights and layers of this hypernetwork, at step 0. Of the options under Network, only "
            "--with goes with it.",
            metavar="FILE",
            former=("--start",),
        ),
        _Setting("seed", "--seed", "Seed of all that is random.", _LEAST_0),
    ),
    "Model": (
        _Setting(
            "model",
            "--model",
            "Stable Diffusion model (1, 2 or XL) to train on: a diffusers folder, a Hugging Face hub id, which is "
            "fetched if needed, or a checkpoint file (.safetensors, .ckpt).",
            metavar="MODEL",
            default="that of `hnetkit config`, else the bundled demo model",
        ),
        _Setting(
            "vae",
            "--vae",
            "Another autoencoder: a file, a diffusers folder, or a hub id.",
            metavar="VAE",
            default="the model's",
        ),
        _Setting(
            "tokenizer",
            "--tokenizer",
            "Tokenizer folder for a checkpoint file; other models have their own.",
            metavar="DIR",
            default="CLIP's, from the hub",
        ),
        _Setting(
            "clip_skip",
            "--clip-skip",
            "Clip skip: 2 leaves out the last layer of SD 1's text encoder. No effect on SD 2 and SDXL.",
            _LEAST_1,
        ),
        _Setting(
            "precision",
            "--precision",
            "Precision of the frozen model; `no` is fp32. The network is always in fp32.",
            click.Choice(["no", "fp16", "bf16"]),
            default="on CUDA bf16, or fp16 if the GPU has no bf16; else no",
        ),
        _Setting(
            "gradient_checkpointing",
            "--gradient-checkpointing/--no-gradient-checkpointing",
            "Use less memory, with slower steps.",
        ),
        _Setting(
            "capture",
            "--capture/--no-capture",
            "Make steps as CUDA graphs, on a GPU: meant to be quicker, and not yet tried on one.",
        ),
    ),
    "Network": (
        _Setting(
            "build.structure",
            "--structure",
            "Layer sizes as multiples of the context width; the first and the last are 1.",
            _FLOATS,
            "LIST",
        ),
        _Setting(
            "build.activation",
            "--activation",
            "Activation: linear (none), relu, leakyrelu, elu, swish, tanh, sigmoid, or another that files may name.",
            metavar="NAME",
            default="linear",
        ),
        _Setting(
            "build.layer_norm", "--layer-norm/--no-layer-norm", "Put a layer norm after every layer, the last one too."
        ),
        _Setting(
            "build.activate_output",
            "--activate-output/--no-activate-output",
            "Put the activation after the last layer too.",
        ),
        _Setting(
            "build.dropout",
            "--dropout",
            "Dropout probability for each entry of --structure; the first and the last are 0.",
            _CHANCES,
            "LIST",
            default="none",
        ),
        _Setting(
            "build.initialisation",
            "--initialization",
            "Weight initialization: normal, xavier-uniform, xavier-normal, kaiming-uniform or kaiming-normal.",
            metavar="NAME",
            former=("--initialisation",),
        ),
        _Setting(
            "build.zero_output",
            "--zero-output/--no-zero-output",
            "Start with 0 in the last layer, or in its layer norm, so that the network changes nothing at first.",
        ),
        _Setting(
            "build.widths",
            "--widths",
            "Widths of the attention contexts that get networks, such as 320,768.",
            _INTS,
            "LIST",
            default="all of the model's",
        ),
        _Setting(
            "build.sides",
            "--sides",
            "Sides to train: the networks of K, those of V, or both. The other side changes nothing.",
            click.Choice(["k", "v", "both"]),
            default="both",
        ),
        _Setting(
            "beside",
            "--with",
            "Frozen hypernetwork, applied only where a caption has its tag, such as <hypernet:dots:0.5> for dots.pt. "
            "Repeatable.",
            metavar="FILE",
            multiple=True,
            former=("--beside",),
        ),
    ),
    "Learning": (
        _Setting(
            "rates",
            "--rate",
            "Learning rate: a number, a schedule or a preset (see `hnetkit train schedule`).",
            metavar="TEXT",
            default="the preset `{}`",
        ),
        _Setting(
            "max_steps",
            "--max-steps",
            "Step of the run to stop at, if --rate does not end before; required if --rate has no end.",
            _LEAST_1,
            default="where --rate ends",
        ),
        _Setting("batch_size", "--batch-size", "Number of samples in a batch, of all processes together.", _LEAST_1),
        _Setting(
            "accumulation",
            "--accumulation",
            "Number of batches whose gradients make one step.",
            _LEAST_1,
            former=("--accumulate",),
        ),
        _Setting(
            "clip_norm",
            "--clip-norm",
            "Limit the norm of the gradients: a number, or a schedule.",
            metavar="TEXT",
            default="no limit",
        ),
        _Setting(
            "clip_value",
            "--clip-value",
            "Limit each value of the gradients: a number, or a schedule. Not with --clip-norm.",
            metavar="TEXT",
            default="no limit",
        ),
        _Setting("optimizer", "--optimizer", "Optimizer: a class of torch.optim.", metavar="NAME"),
        _Setting(
            "optimizer_options",
            "--optimizer-options",
            'Arguments of the optimizer but its rate, such as {"weight_decay": 0}.',
            _OBJECT,
            "JSON",
            default="the optimizer's own",
        ),
        _Setting(
            "min_snr", "--min-snr", "Weight the loss by min-SNR with this gamma.", _ABOVE_0, "GAMMA", default="off"
        ),
    ),
    "Pictures and captions": (
        _Setting(
            "size",
            "--size",
            "Scale pictures to cover this size, in multiples of 8, and crop them to their middle; N means a square.",
            _SIZE,
            "N|WxH",
            default="as they are",
        ),
        _Setting(
            "template",
            "--template",
            "Prompt templates, one of which is drawn for each sample, with the caption for [filewords] and the "
            "network's name for [name]: a file with one per line, or style_filewords, subject_filewords, style, "
            "subject, hypernetwork or none (just `an image`).",
            metavar="NAME|FILE",
        ),
        _Setting(
            "prompt_name",
            "--prompt-name",
            "Name of the network in templates, for [name], and in captions, where the tag <hypernet:NAME:0.5> sets "
            "its strength, otherwise 1.",
            metavar="TEXT",
            default="the network's name",
        ),
        _Setting(
            "shuffle_tags",
            "--shuffle-tags/--no-shuffle-tags",
            "Shuffle a caption's tags, which commas separate, for each sample.",
        ),
        _Setting("drop_tags", "--drop-tags", "Probability of leaving each tag out of a sample's caption.", _CHANCE),
        _Setting(
            "latents",
            "--latents",
            "Latents of a picture: sampled once (once), their mean (deterministic), or sampled each time (random).",
            click.Choice(["once", "deterministic", "random"]),
        ),
        _Setting(
            "alpha_as_weight", "--alpha-as-weight/--no-alpha-as-weight", "Weight the loss by the opacity of each pixel."
        ),
    ),
    "Checkpoints and previews": (
        _Setting(
            "save_every",
            "--save-every",
            "Steps between checkpoints, each with the network as NAME-STEP.safetensors; 0 saves only at the end.",
            _LEAST_0,
        ),
        _Setting(
            "keep",
            "--keep",
            "Number of newest checkpoints to keep. The networks NAME-STEP.safetensors all stay.",
            _LEAST_1,
        ),
        _Setting(
            "preview_every", "--preview-every", "Steps between previews, the first at step 0; 0 draws none.", _LEAST_0
        ),
        _Setting(
            "previews.prompts",
            "--preview-prompt",
            "Prompt to preview. Repeatable.",
            multiple=True,
            metavar="TEXT",
            default="those in the model's hnetkit.json, 3 at most, else an empty one",
        ),
        _Setting(
            "previews.seeds",
            "--preview-seed",
            "Seed to preview every prompt with. Repeatable.",
            _LEAST_0,
            multiple=True,
        ),
        _Setting("tensorboard", "--tensorboard/--no-tensorboard", "Write TensorBoard logs too."),
    ),
    "Guards": (
        _Setting(
            "guarded",
            "--guards/--no-guards",
            "Roll back to a good checkpoint and lower the learning rate when training goes wrong. Off, nothing warns "
            "either.",
        ),
        _Setting(
            "guards.loss_limit",
            "--loss-limit",
            "Warn once, without rolling back, when the mean loss over a tenth of the run (10 to 100 steps) is above "
            "this and above the loss before the first step.",
            _ABOVE_0,
        ),
        _Setting(
            "guards.spike",
            "--spike",
            "Roll back when the loss stays above this many times its best level for some steps.",
            _ABOVE_0,
        ),
        _Setting(
            "guards.noise_limit",
            "--noise-limit",
            "Roll back when previews have more than this many times the fine detail of those at step 0.",
            _ABOVE_0,
        ),
        _Setting(
            "guards.rate_factor",
            "--rate-factor",
            "Factor applied to the rest of --rate at each roll-back.",
            _CHANCE,
        ),
        _Setting(
            "guards.most_roll_backs",
            "--roll-backs",
            "Maximum number of roll-backs; the next fault stops the run with an error.",
            _LEAST_0,
        ),
    ),
}

_BY_SPELLING = {
    spelling: setting for settings in _SETTINGS.values() for setting in settings for spelling in setting.spellings
}

_run = partial(option, section="Run")
_RUN = (
    click.argument("pictures", required=False),
    _run("--out", default="training", metavar="DIR", show_default=True, help="Parent of the run's folder, NAME."),
    _run(
        "--restart",
        is_flag=True,
        help="Start over at step 0, without asking: remove or replace the checkpoints, networks, previews and log of "
        "NAME; refused where that would lose a network with tags, a note or an alias.",
    ),
    _run(
        "--force",
        is_flag=True,
        help="Resume although the pictures, captions, model or networks that it is given have changed, instead of "
        "failing.",
    ),
)


def training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds PICTURES, where and how to train, and every setting of a recipe.

    The command receives `arguments`: keyword arguments of `hnetkit.train.train`, with the settings that were given.
    """

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = {setting: kwargs.pop(setting.parameter) for setting in dict.fromkeys(_BY_SPELLING.values())}
        changes = {
            setting.name: _as_json(setting, value) for setting, value in given.items() if value not in (None, ())
        }
        if (pictures := kwargs.pop("pictures")) is not None:
            changes["pictures"] = pictures
        arguments = {"model": changes.pop("model", None), "changes": changes}
        arguments |= {name: kwargs.pop(name) for name in ("out", "restart", "force", "device")}
        return function(*args, arguments=arguments, **kwargs)

    decorated: Callable[..., Any] = wrapper
    for add in reversed((*_RUN, *_options(), device_option(section="Model"))):
        decorated = add(decorated)
    return decorated


def _options() -> list[Callable[[Any], Any]]:
    return [
        click.option(
            setting.flags,
            setting.parameter,
            cls=_SettingOption,
            section=heading,
            former=setting.former,
            setting=setting,
            type=setting.type,
            metavar=setting.metavar,
            multiple=setting.multiple,
            default=None,
            help=setting.help,
        )
        for heading, settings in _SETTINGS.items()
        for setting in settings
    ]


def read_setting(name: str, text: str) -> tuple[str, Any]:
    """Returns the setting of the recipe that an option stands for, and what the option makes of a text.

    Args:
        name: the option's, without dashes in front.
        text: a switch takes ``on`` or ``off``; what is off by default also takes ``none``.

    Raises:
        UsageError: there is no such option, or it cannot take the text.
    """
    setting = _BY_SPELLING.get(name)
    if setting is None:
        near = did_you_mean(name, _BY_SPELLING)
        hint = f"do you mean {near}?" if near else "the names of options: `hnetkit train run --help`"
        raise UsageError(f"there is no setting {name}", hint=hint)
    if text == "none" and _field(setting.name).default is None:
        return setting.name, None
    kind = setting.type or (click.BOOL if "/" in setting.flags else click.STRING)
    try:
        value = kind.convert(text, None, None)
        return setting.name, _as_json(setting, (value,) if setting.multiple else value)
    except click.BadParameter as error:
        raise UsageError(f"{name}: {error.message}") from error


def _as_json(setting: _Setting, value: Any) -> Any:
    """Returns an option's value as a recipe has it."""
    if setting.name == "build.sides":
        return ["k", "v"] if value == "both" else [value]
    return value


def _field(name: str) -> Field[Any]:
    """Returns the field of the recipe, or of a part of it, that holds a setting."""
    from hnetkit.train.build import Build
    from hnetkit.train.guards import GuardSettings
    from hnetkit.train.previews import PreviewSettings
    from hnetkit.train.recipe import Recipe

    part, _, name = name.rpartition(".")
    kinds: dict[str, Any] = {"": Recipe, "build": Build, "guards": GuardSettings, "previews": PreviewSettings}
    return next(field for field in fields(kinds[part]) if field.name == name)


def _default_text(field: Field[Any], between: str = ",") -> str | None:
    """Returns a setting's default as an option shows it, with `between` several values; None where it has none."""
    value = field.default
    if value is MISSING or value is None:
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return between.join(map(_default_word, value))
    return _default_word(value)


def _default_word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
