"""Configurations beside weights, checked: they come from strangers and decide what a library builds.

hnetkit reads them, checks every value against a limit, and passes on nothing else. No library reads their files.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hnetkit.errors import ModelNotUsable
from hnetkit.generate.loading.defaults import MOST_PIXELS
from hnetkit.limits import read_json

HINT = "get the model again, from a source that you trust"

MOST_NUMBER = 1 << 20
"""Limit of a whole number without a limit of its own; vocabularies have 50,000 words."""

MOST: Mapping[str, int] = {
    "depth": 100,
    "depths": 100,
    "downsample_padding": 1,
    "image_size": 1024,
    "img_size": 1024,
    "layers_per_block": 16,
    "num_hidden_layers": 100,
    "num_train_timesteps": 100_000,
    "reverse_transformer_layers_per_block": 32,
    "sample_size": MOST_PIXELS,
    "transformer_layers_per_block": 32,
    "window_size": 32,
}
"""Limits by name. Stable Diffusion has 2 layers in a block, 10 transformer layers, 32 hidden ones, 1000 steps."""

MOST_STEPS = 100_000
"""Limit of a scheduler's whole numbers, and of the length of its list of betas."""

_LAYERS = ("layers_per_block", "transformer_layers_per_block", "num_hidden_layers", "depths")
_WIDTHS = (
    "block_out_channels",
    "cross_attention_dim",
    "embed_dim",
    "encoder_hid_dim",
    "hidden_size",
    "hidden_sizes",
    "intermediate_size",
    "max_position_embeddings",
    "time_embedding_dim",
    "vocab_size",
)
_MOST_BLOCKS = 8
_MOST_ITEMS = 64
_MOST_TEXT = 200

# keys that make a library run the model's own code, or read its weights in another way
_LEAD_ELSEWHERE = ("auto_map", "custom_pipelines", "quantization_config", "compression_config")

_CLIP_KEYS = frozenset(
    {
        "attention_dropout",
        "bos_token_id",
        "eos_token_id",
        "hidden_act",
        "hidden_size",
        "initializer_factor",
        "initializer_range",
        "intermediate_size",
        "layer_norm_eps",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "pad_token_id",
        "projection_dim",
        "vocab_size",
    }
)
_DIFFUSERS_KEYS = ("_class_name", "_diffusers_version")

# drawing from a prompt gives a UNet no classes
_NEVER = ("class_embed_type", "num_class_embeds")
_LISTS = ("attention_head_dim", "layers_per_block", "cross_attention_dim", "transformer_layers_per_block")
_NUMBERS_OR_NULL = ("norm_num_groups",)
_OF_A_VAE = "coderBlock"  # in the names of its blocks: DownEncoderBlock2D, UpDecoderBlock2D
_BLOCKS = ("block_out_channels", "down_block_types", "up_block_types")  # of each, one for a block
_BELOW_0 = ("shift_factor", "latents_mean", "lambda_min_clipped", "pad_token_id")
_MAY_BE_INFINITE = "lambda_min_clipped"  # DPM++ writes -Infinity

# other values of these would draw nothing
_BETAS = ("beta_start", "beta_end")
_WORDS: Mapping[str, tuple[str, ...]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
}


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file of a model; it has no keys that make a library run other code.

    Raises:
        ModelNotUsable: it is not there, cannot be read, is too large, is not an object, or names code to run.
    """
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise ModelNotUsable(f"{path}: cannot be loaded (no such file)", hint=HINT) from error
    except (OSError, ValueError) as error:
        raise ModelNotUsable(f"{path}: cannot be loaded: unreadable ({error})", hint=HINT) from error
    if not isinstance(value, dict):
        raise ModelNotUsable(f"{path}: cannot be loaded: not a JSON object", hint=HINT)
    for key in _LEAD_ELSEWHERE:
        if value.get(key):
            raise ModelNotUsable(f"{path}: cannot be loaded: {key} has no place in such a model", hint=HINT)
    return value


def part_configuration(path: Path, kind: type) -> dict[str, Any]:
    """Returns the configuration of a part of diffusers: the keys that its class takes, with values within limits.

    Args:
        kind: the class; a file that names another one is refused.

    Raises:
        ModelNotUsable: as `read_object`, or a value is not allowed; the message names it.
    """
    config = read_object(path)
    if (named := config.get("_class_name", kind.__name__)) != kind.__name__:
        raise ModelNotUsable(f"{path}: cannot be loaded: of a {_brief(named)}, not {kind.__name__}", hint=HINT)
    parameters = inspect.signature(kind).parameters
    held = checked_values(path, config, {*parameters, *_DIFFUSERS_KEYS})
    for key, value in held.items():
        parameter = parameters.get(key)
        default = parameter.default if parameter else None
        is_fit = _has_type_of(key, value, default) and not (parameter and _is_no_count(value, parameter))
        if not is_fit or (key in _NEVER and value is not None):
            raise _not_allowed(path, key, value)
    _require_own_blocks(path, {name: held.get(name, it.default) for name, it in parameters.items()})
    return held


def _require_own_blocks(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ModelNotUsable if the blocks of a UNet or an autoencoder are the other's, or not as many as their widths.

    The libraries notice neither before something is drawn.
    """
    widths, *kinds = (config.get(key, ()) for key in _BLOCKS)
    are_own = {_OF_A_VAE in str(kind) for each in kinds for kind in each} <= {"latent_channels" in config}
    if not are_own or any(len(each) != len(widths) for each in kinds):
        raise ModelNotUsable(f"{path}: cannot be loaded: {', '.join(_BLOCKS)} do not fit each other", hint=HINT)


def text_encoder_configuration(path: Path, kind: str) -> dict[str, Any]:
    """Returns the configuration of a CLIP text encoder of the class `kind`.

    Raises:
        ModelNotUsable: as `part_configuration`.
    """
    config = read_object(path)
    if (named := config.get("model_type", "clip_text_model")) not in ("clip_text_model", "clip"):
        raise ModelNotUsable(f"{path}: cannot be loaded: of a {_brief(named)}, not a CLIP text encoder", hint=HINT)
    inner = config.get("text_config")
    if named == "clip" and isinstance(inner, dict):
        config = inner
    held = {key: value for key, value in checked_values(path, config, _CLIP_KEYS).items() if value is not None}
    if isinstance(held.get("eos_token_id"), list):  # models that generate have several; CLIP has one
        raise _not_allowed(path, "eos_token_id", held["eos_token_id"])
    return {**held, "architectures": [kind]}


def scheduler_configuration(path: Path, kinds: Iterable[str]) -> dict[str, Any]:
    """Returns the configuration of a scheduler: numbers, words and lists of numbers.

    Args:
        kinds: names of the classes that it may have.

    Raises:
        ModelNotUsable: as `part_configuration`.
    """
    config = read_object(path)
    named = config.get("_class_name")
    if named is not None and named not in kinds:
        raise ModelNotUsable(f"{path}: cannot be loaded: of a {_brief(named)}, no scheduler", hint=HINT)
    held = {key: value for key, value in config.items() if not key.startswith("_") or key in _DIFFUSERS_KEYS}
    for key, value in held.items():
        numbers = value if isinstance(value, list) else [value]
        if key == _MAY_BE_INFINITE and value == -math.inf:
            continue
        if len(numbers) > MOST_STEPS or not all(_is_allowed(item, MOST.get(key, MOST_STEPS)) for item in numbers):
            if key not in _keys_of(kinds):  # the file may be a link to a private one: show nothing of it
                raise ModelNotUsable(f"{path}: cannot be loaded: holds what no scheduler takes", hint=HINT)
            raise _not_allowed(path, key, value)
    steps = held.get("num_train_timesteps", 1)
    if type(steps) is not int or steps < 1:
        raise _not_allowed(path, "num_train_timesteps", steps)
    _require_noise(path, held)
    return held


def _keys_of(kinds: Iterable[str]) -> set[str]:
    """Returns the names of all parameters of schedulers."""
    import diffusers

    found = (inspect.signature(getattr(diffusers, kind)).parameters for kind in kinds)
    return {*_DIFFUSERS_KEYS, *(name for parameters in found for name in parameters)}


def _require_noise(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ModelNotUsable if the noise levels of a scheduler cannot be computed."""
    for key, words in _WORDS.items():
        if config.get(key, words[0]) not in words:
            raise _not_allowed(path, key, config[key])
    stated = {key: [config[key]] for key in _BETAS if key in config}
    if (trained := config.get("trained_betas")) is not None:
        stated["trained_betas"] = trained if isinstance(trained, list) else []
    for key, betas in stated.items():
        if not betas or not all(type(beta) in (int, float) and 0 < beta < 1 for beta in betas):
            raise _not_allowed(path, key, config[key])


def refuse_more_than_weights(path: Path, config: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> None:
    """Compares the sizes in a configuration with the tensors that are there, before anything is built.

    Args:
        shapes: of all tensors.

    Raises:
        ModelNotUsable: there are more layers than tensors, or a width is larger than that of any tensor.
    """
    blocks = config.get("block_out_channels", [0])
    layers = len(blocks) if isinstance(blocks, list) else 1
    for key in _LAYERS:
        layers *= max(1, _largest(config.get(key, 1)))
    if layers > len(shapes):
        raise ModelNotUsable(f"{path}: cannot be loaded: {layers} layers, but {len(shapes)} tensors", hint=HINT)
    widest = max((side for shape in shapes for side in shape), default=0)
    for key in _WIDTHS:
        if _largest(config.get(key, 1)) > max(widest, 1):
            raise _not_allowed(path, key, config[key])


def checked_values(path: Path, config: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Returns the values of the known keys: numbers, short texts, and short lists of them.

    Raises:
        ModelNotUsable: a value is not allowed; the message names it.
    """
    held = {key: config[key] for key in known if key in config}
    for key, value in held.items():
        if not _is_allowed(value, MOST.get(key, MOST_NUMBER), depth=2) or not _has_sign(key, value):
            raise _not_allowed(path, key, value)
    blocks = held.get("block_out_channels")
    if isinstance(blocks, list) and len(blocks) > _MOST_BLOCKS:
        raise _not_allowed(path, "block_out_channels", blocks)
    return held


def _is_allowed(value: Any, most: int, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth > 0 and len(value) <= _MOST_ITEMS and all(_is_allowed(item, most, depth - 1) for item in value)
    if isinstance(value, str):
        return len(value) <= _MOST_TEXT
    if type(value) is int:
        return -most <= value <= most
    return value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value))


def _has_sign(key: str, value: Any) -> bool:
    """Whether no number is negative, except under the keys that allow it."""
    if isinstance(value, list):
        return all(_has_sign(key, item) for item in value)
    return key in _BELOW_0 or not isinstance(value, int | float) or value >= 0


def _has_type_of(key: str, value: Any, default: Any) -> bool:
    """Whether a value has the type of its parameter's default."""
    if isinstance(value, list):
        return default is None or isinstance(default, bool | tuple) or key in _LISTS
    if isinstance(default, bool):
        return value is None or isinstance(value, bool | int)
    if isinstance(default, int | float):
        return type(value) in (int, float) or (value is None and key in _NUMBERS_OR_NULL)
    if isinstance(default, str):
        return value is None or isinstance(value, str)
    return not isinstance(default, tuple)


def _is_no_count(value: Any, parameter: inspect.Parameter) -> bool:
    """Whether a number with a point is given where something is counted: drawing with it would fail."""
    if isinstance(value, list):
        return any(_is_no_count(item, parameter) for item in value)
    return isinstance(value, float) and "int" in str(parameter.annotation)


def _largest(value: Any) -> int:
    if isinstance(value, list):
        return max(map(_largest, value), default=1)
    return value if type(value) is int else 1


def _not_allowed(path: Path, key: str, value: Any) -> ModelNotUsable:
    return ModelNotUsable(f"{os.fspath(path)}: cannot be loaded: {key} cannot be {_brief(value)}", hint=HINT)


def _brief(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"
