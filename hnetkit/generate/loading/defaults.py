"""What a picture is drawn with where nobody says otherwise: hnetkit's own values, or those of a model's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnetkit.errors import ModelNotUsable
from hnetkit.generate.request import is_size
from hnetkit.generate.sampling.samplers import SAMPLERS
from hnetkit.limits import read_json

DEFAULTS_FILE = "hnetkit.json"
MOST_PIXELS = 8192
"""Width or height that a model's own files may choose; those who draw may ask for more."""


def _is_own_size(value: Any) -> bool:
    return is_size(value) and value <= MOST_PIXELS


# what a model folder's own defaults may say
_MEANINGFUL: Mapping[str, Callable[[Any], bool]] = {
    "cfg_scale": lambda value: type(value) in (int, float) and 1 <= value <= 100,
    "steps": lambda value: type(value) is int and 1 <= value <= 1000,
    "sampler": lambda value: value in SAMPLERS,
    "width": _is_own_size,
    "height": _is_own_size,
    "prompts": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a picture is drawn with where nobody says otherwise.

    Attributes:
        width, height: pixels; None: the size that the model was trained at.
        prompts: examples that suit the model.
    """

    cfg_scale: float = 7.0
    steps: int = 20
    sampler: str = "Euler a"
    width: int | None = None
    height: int | None = None
    prompts: tuple[str, ...] = ()


def read_defaults(folder: Path) -> Defaults:
    """Returns what a model folder's `DEFAULTS_FILE` says; hnetkit's own defaults where there is none.

    Raises:
        ModelNotUsable: the file is no JSON object of known keys with values of the right type.
    """
    path = folder / DEFAULTS_FILE
    try:
        said = read_json(path)
    except FileNotFoundError:
        return Defaults()
    except (OSError, ValueError) as error:
        raise ModelNotUsable(f"{path}: unreadable ({error})", hint="mend the file, or delete it") from error
    for key, value in said.items() if isinstance(said, dict) else [("", said)]:
        if key not in _MEANINGFUL or not _MEANINGFUL[key](value):
            raise ModelNotUsable(f"{path}: {_brief(key, value)}", hint=f"its keys are {', '.join(_MEANINGFUL)}")
    if "prompts" in said:
        said["prompts"] = tuple(said["prompts"])
    return Defaults(**said)


def _brief(key: str, value: Any) -> str:
    """What is wrong, without a text of the file: in a stranger's folder it may be a link to a private one."""
    if key not in _MEANINGFUL:
        return "has a key that says nothing of pictures" if key else "not a JSON object"
    said = repr(value) if isinstance(value, bool | int | float) else f"a {type(value).__name__}"
    return f"{key!r} cannot be {said[:80]}"
