"""The options of `hnetkit train run` and `sweep`: what is not given is as --recipe says, else the default."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import click

from hnetkit.cli.options import Number
from hnetkit.errors import UsageError
from hnetkit.limits import parse_json


class _Option(NamedTuple):
    """An option, and the setting of the recipe that it stands for: ``"build.structure"`` is one of a part of it."""

    setting: str
    flags: str
    help: str
    type: Any = None
    metavar: str | None = None
    multiple: bool = False


def _numbers(kind: Callable[[str], float]) -> Callable[[str], list[float]]:
    def read(text: str) -> list[float]:
        return [kind(part) for part in text.split(",")]

    return read


class _Read(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
    """What a function makes of a text; it raises ValueError where it cannot."""

    def __init__(self, read: Callable[[str], Any], name: str) -> None:
        self._read, self.name = read, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(value) if isinstance(value, str) else value
        except ValueError:
            return self.fail(f"{value!r} is not {self.name}", param, ctx)


def _size(text: str) -> list[int]:
    found = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", text)
    if found is None:
        raise ValueError(text)
    return [int(found[1]), int(found[2] or found[1])]


_FLOATS = _Read(_numbers(float), "numbers, separated by commas")
_INTS = _Read(_numbers(int), "whole numbers, separated by commas")
_SIZE = _Read(_size, "a number of pixels, or WIDTHxHEIGHT")
_OBJECT = _Read(parse_json, "a JSON object")
_LEAST_1, _LEAST_0 = click.IntRange(min=1), click.IntRange(min=0)
_ABOVE_0, _CHANCE = Number(min=0, min_open=True), Number(0, 1)
_PRECISION = click.Choice(["no", "fp16", "bf16"])
_LATENTS = click.Choice(["once", "deterministic", "random"])
_SIDES = click.Choice(["k", "v", "both"])

_OPTIONS = (
    _Option(
        "model",
        "--model",
        "Model to train on, as for `hnetkit generate`. [default: as set with `hnetkit config`]",
        metavar="M",
    ),
    _Option("name", "--name", "Name of the network and of its files.", metavar="X"),
    _Option("vae", "--vae", "Use another autoencoder: a file, a diffusers folder, or a hub id.", metavar="V"),
    _Option("tokenizer", "--tokenizer", "Folder with the tokenizer of a checkpoint in one file.", metavar="DIR"),
    _Option("start", "--start", "Continue training from this hypernetwork instead of a new one.", metavar="FILE"),
    _Option("beside", "--beside", "Fixed hypernetwork that captions may also name. Repeatable.", None, "FILE", True),
    # the network
    _Option("build.structure", "--structure", "Layers, as multiples of the width. [default: 1,2,1]", _FLOATS, "LIST"),
    _Option("build.activation", "--activation", "Activation, by its name in A1111. [default: linear]", metavar="NAME"),
    _Option("build.layer_norm", "--layer-norm/--no-layer-norm", "Put a layer norm after every layer."),
    _Option("build.activate_output", "--activate-output/--no-activate-output", "Activate the last layer too."),
    _Option("build.dropout", "--dropout", "Dropout probability for each entry of --structure.", _FLOATS, "LIST"),
    _Option(
        "build.initialisation",
        "--initialisation",
        "Weight initialisation, by its name in A1111. [default: normal]",
        metavar="NAME",
    ),
    _Option(
        "build.zero_output", "--zero-output/--no-zero-output", "Start as a network that changes nothing. [default: on]"
    ),
    _Option(
        "build.widths", "--widths", "Context widths that get a network. [default: all of the model's]", _INTS, "LIST"
    ),
    _Option("build.sides", "--sides", "Train what K sees, what V sees, or both. [default: both]", _SIDES),
    # how it learns
    _Option(
        "rates",
        "--rate",
        "Learning rate: a schedule or a preset, see `hnetkit train schedule`. [default: default]",
        None,
        "TEXT",
    ),
    _Option("max_steps", "--max-steps", "Last step. [default: where the schedule ends]", _LEAST_1),
    _Option("batch_size", "--batch-size", "Samples to compute at once, over all processes. [default: 1]", _LEAST_1),
    _Option("accumulation", "--accumulate", "Batches whose gradients make one step. [default: 1]", _LEAST_1),
    _Option("clip_norm", "--clip-norm", "Shorten gradients to this norm; a number, or a schedule.", metavar="TEXT"),
    _Option("clip_value", "--clip-value", "Cut gradients off at this value; a number, or a schedule.", metavar="TEXT"),
    _Option("optimizer", "--optimizer", "Optimizer: a class of torch.optim. [default: AdamW]", metavar="NAME"),
    _Option(
        "optimizer_options", "--optimizer-options", 'Arguments of the optimizer: {"weight_decay": 0}.', _OBJECT, "JSON"
    ),
    _Option(
        "precision",
        "--precision",
        "Precision of the frozen model; the network stays fp32. [default: bf16 or fp16 on CUDA, else no]",
        _PRECISION,
    ),
    _Option(
        "gradient_checkpointing",
        "--gradient-checkpointing/--no-gradient-checkpointing",
        "Take less memory, with slower steps.",
    ),
    _Option("min_snr", "--min-snr", "Gamma of min-SNR weighting of the loss. [default: off]", _ABOVE_0, "GAMMA"),
    _Option("seed", "--seed", "Random seed. [default: 0]", _LEAST_0),
    # what it sees
    _Option(
        "template",
        "--template",
        "Prompts with [filewords] and [name]: a file, or A1111's style_filewords, subject_filewords, style, subject, "
        "hypernetwork, none. [default: style_filewords]",
        metavar="NAME|FILE",
    ),
    _Option("prompt_name", "--prompt-name", "Text that [name] stands for. [default: the network's name]", metavar="X"),
    _Option("shuffle_tags", "--shuffle-tags/--no-shuffle-tags", "Put a caption's tags in another order each time."),
    _Option("drop_tags", "--drop-tags", "Probability that a tag is left out. [default: 0]", _CHANCE),
    _Option(
        "latents",
        "--latents",
        "Sample a picture's latents once, take their mean, or sample each time. [default: once]",
        _LATENTS,
    ),
    _Option("alpha_as_weight", "--alpha-as-weight/--no-alpha-as-weight", "Weigh the loss by a picture's opacity."),
    _Option("size", "--size", "Scale and cut pictures to this size. [default: as they are]", _SIZE, "N|WxH"),
    _Option(
        "clip_skip",
        "--clip-skip",
        "Clip skip: 2 leaves out the last layer of SD 1's text encoder. [default: 1]",
        _LEAST_1,
    ),
    # what is kept and watched
    _Option("save_every", "--save-every", "Steps between checkpoints; 0: at the end alone. [default: 500]", _LEAST_0),
    _Option("keep", "--keep", "Number of checkpoints to keep. [default: 3]", _LEAST_1),
    _Option("preview_every", "--preview-every", "Steps between previews; 0: none. [default: 500]", _LEAST_0),
    _Option(
        "previews.prompts",
        "--preview-prompt",
        "Prompt of a preview. Repeatable. [default: the model's own]",
        multiple=True,
        metavar="T",
    ),
    _Option(
        "previews.seeds", "--preview-seed", "Seed of a preview. Repeatable. [default: 1 and 2]", _LEAST_0, multiple=True
    ),
    _Option("guarded", "--guards/--no-guards", "Go back and lower the rate where the network breaks. [default: on]"),
    _Option("guards.loss_limit", "--loss-limit", "Warn when the mean loss exceeds this. [default: 0.3]", _ABOVE_0),
    _Option(
        "guards.spike", "--spike", "Roll back when the loss exceeds its best by this factor. [default: 1.5]", _ABOVE_0
    ),
    _Option(
        "guards.noise_limit",
        "--noise-limit",
        "Roll back when a preview has this many times the fine detail of the first. [default: 3]",
        _ABOVE_0,
    ),
    _Option(
        "guards.rate_factor",
        "--rate-factor",
        "Factor applied to the learning rate at each roll-back. [default: 0.1]",
        _CHANCE,
    ),
    _Option("guards.most_roll_backs", "--roll-backs", "Maximum number of roll-backs. [default: 3]", _LEAST_0),
    _Option("tensorboard", "--tensorboard/--no-tensorboard", "Also log for TensorBoard."),
)


_OF_BOTH = (
    click.argument("pictures", required=False),
    click.option(
        "--out", default="training", metavar="DIR", show_default=True, help="Folder in which the folder NAME is made."
    ),
    click.option("--restart", is_flag=True, help="Start over, and remove what was made so far."),
    click.option("--force", is_flag=True, help="Go on although pictures or model have changed."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Device to compute on."),
)


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds PICTURES, where and how to train, and every setting of a recipe.

    The command receives `asked`: keyword arguments of `hnetkit.train.train`, with the settings that were given.
    """

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = {option: kwargs.pop(_parameter(option)) for option in _OPTIONS}
        changes = {
            option.setting: _as_json(option, value) for option, value in given.items() if value not in (None, ())
        }
        if (pictures := kwargs.pop("pictures")) is not None:
            changes["pictures"] = pictures
        asked = {"model": changes.pop("model", None), "changes": changes}
        asked |= {name: kwargs.pop(name) for name in ("out", "restart", "force", "device")}
        return command(*args, asked=asked, **kwargs)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        wrapper = click.option(
            *(option.flags, _parameter(option)),
            type=option.type,
            metavar=option.metavar,
            multiple=option.multiple,
            default=None,
            help=option.help,
        )(wrapper)
    for decorate in reversed(_OF_BOTH):
        wrapper = decorate(wrapper)
    return wrapper


def read_setting(name: str, text: str) -> tuple[str, Any]:
    """Returns the setting of the recipe that an option stands for, and what the option makes of a text.

    Args:
        name: the option's, without dashes in front.
        text: a switch takes ``on`` or ``off``; what is off by default also takes ``none``.

    Raises:
        UsageError: there is no such option, or it cannot take the text.
    """
    options = {option.flags.split("/")[0].lstrip("-"): option for option in _OPTIONS}
    option = options.get(name)
    if option is None:
        near = difflib.get_close_matches(name, options, n=1)
        hint = f"do you mean {near[0]}?" if near else "the names of options: `hnetkit train run --help`"
        raise UsageError(f"there is no setting {name}", hint=hint)
    if text == "none" and _may_be_none(option.setting):
        return option.setting, None
    kind = option.type or (click.BOOL if "/" in option.flags else click.STRING)
    try:
        return option.setting, _as_json(option, kind.convert(text, None, None))
    except click.BadParameter as error:
        raise UsageError(f"{name}: {error.message}") from error


def _as_json(option: _Option, value: Any) -> Any:
    """Returns what an option read as a recipe has it."""
    if option.setting == "build.sides":
        return ["k", "v"] if value == "both" else [value]
    return value


def _may_be_none(setting: str) -> bool:
    from hnetkit.train.build import Build
    from hnetkit.train.guards import GuardSettings
    from hnetkit.train.previews import PreviewSettings
    from hnetkit.train.recipe import Recipe

    part, _, name = setting.rpartition(".")
    kinds: dict[str, Any] = {"": Recipe, "build": Build, "guards": GuardSettings, "previews": PreviewSettings}
    return any(field.name == name and field.default is None for field in fields(kinds[part]))


def _parameter(option: _Option) -> str:
    return option.setting.replace(".", "_")
