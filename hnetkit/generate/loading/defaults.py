"""Defaults of drawing: hnetkit's own, or those in a model's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnetkit.errors import ModelNotUsable
from hnetkit.generate.request import MOST_STEPS, is_size
from hnetkit.generate.sampling.samplers import SAMPLERS
from hnetkit.limits import read_json
from hnetkit.prompts.tags import split_tags
from hnetkit.text import is_text

DEFAULTS_FILE = "hnetkit.json"
MOST_PIXELS = 8192
"""Longest side that a model's own files may set; a user may ask for more."""
_MOST_PROMPTS, _MOST_LETTERS = 1000, 2000


def _is_allowed_size(value: Any) -> bool:
    return is_size(value) and value <= MOST_PIXELS


def _is_plain(prompt: Any) -> bool:
    """Whether it is a text that draws with the model alone: its tags would choose networks for whoever loads it."""
    if not isinstance(prompt, str) or len(prompt) > _MOST_LETTERS or not is_text(prompt):
        return False
    tagged = split_tags(prompt)
    return not (tagged.tags or tagged.loras or tagged.warnings)


# key of a model folder's defaults -> whether it may have this value
_ALLOWED: Mapping[str, Callable[[Any], bool]] = {
    "cfg_scale": lambda value: type(value) in (int, float) and 1 <= value <= 100,
    "steps": lambda value: type(value) is int and 1 <= value <= MOST_STEPS,
    "sampler": lambda value: isinstance(value, str) and value in SAMPLERS,
    "width": _is_allowed_size,
    "height": _is_allowed_size,
    "prompts": lambda value: isinstance(value, list) and len(value) <= _MOST_PROMPTS and all(map(_is_plain, value)),
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """The defaults of drawing.

    Attributes:
        width, height: pixels; None is the size that the model was trained at.
        prompts: examples that suit the model.
    """

    cfg_scale: float = 7.0
    steps: int = 20
    sampler: str = "Euler a"
    width: int | None = None
    height: int | None = None
    prompts: tuple[str, ...] = ()


def read_defaults(folder: Path) -> Defaults:
    """Returns the defaults in a model folder's `DEFAULTS_FILE`; hnetkit's own if there is none.

    Raises:
        ModelNotUsable: the file is not a JSON object of known keys with values of the right type.
    """
    path = folder / DEFAULTS_FILE
    try:
        stored = read_json(path)
    except FileNotFoundError:
        return Defaults()
    except (OSError, ValueError) as error:
        raise ModelNotUsable(f"{path}: unreadable ({error})", hint="fix or delete the file") from error
    for key, value in stored.items() if isinstance(stored, dict) else [("", stored)]:
        if key not in _ALLOWED or not _ALLOWED[key](value):
            raise ModelNotUsable(f"{path}: {_fault(key, value)}", hint=f"its keys are {', '.join(_ALLOWED)}")
    if "prompts" in stored:
        stored["prompts"] = tuple(stored["prompts"])
    return Defaults(**stored)


def _fault(key: str, value: Any) -> str:
    """Returns what is wrong, without any text of the file: in a stranger's folder it may link to a private file."""
    if key not in _ALLOWED:
        return "has a key that says nothing of pictures" if key else "not a JSON object"
    if key == "prompts":
        return "'prompts' has to be a list of short texts without tags of networks"
    brief = repr(value) if isinstance(value, bool | int | float) else f"a {type(value).__name__}"
    return f"{key!r} cannot be {brief[:80]}"
