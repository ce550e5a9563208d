"""What a person set once with `hnetkit config`: a small JSON file, text values only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager

from hnetkit.errors import HnetkitError, UsageError
from hnetkit.files import exclusive_lock, new_file
from hnetkit.limits import read_json
from hnetkit.paths import config_file

_PATIENCE_S = 10.0

KEYS: Mapping[str, str] = {
    "model": "what `generate` and `grid` load without --model: a diffusers folder or a hub id",
    "device": "where they run without --device: auto, cpu, cuda, mps",
    "dtype": "what they compute in without --dtype: auto, fp32, fp16, bf16",
    "loras": "the folder in which <lora:NAME:0.8> finds files",
    "embeddings": "the folder whose files' names are textual inversions in prompts",
    "hypernetworks": "tags that end every prompt that does not name these networks itself: <hypernet:NAME:0.5>",
}
_PLACES = ("model", "loras", "embeddings")


def load() -> dict[str, str]:
    """Returns all settings; empty where none was ever made.

    Raises:
        HnetkitError: the file is not what this module writes.
    """
    path = config_file()
    try:
        settings = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise HnetkitError(f"{path}: unreadable settings ({error})", hint="mend the file, or delete it") from error
    if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
        raise HnetkitError(f"{path}: settings must be one JSON object of texts", hint="mend the file, or delete it")
    return settings


def get(key: str) -> str | None:
    """Returns one setting, None where it was not made or somebody left it empty in the file."""
    return load().get(_known(key)) or None


def put(key: str, value: str | None) -> None:
    """Stores a setting; None takes it back. Any number of processes may do so at once.

    A file or folder that is there is meant wherever a command is started: a folder that a stranger gave may have one
    of the same name.

    Raises:
        UsageError: the value is empty, or an address, which may hold a password or a signature.
        HnetkitError: another process has been at it for long.
    """
    _known(key)
    if value is not None:
        _require_sense(key, value)
        value = os.path.abspath(value) if key in _PLACES and os.path.exists(value) else value
    with _at_settings():
        settings = load()
        settings.pop(key, None)
        if value is not None:
            settings[key] = value
        with new_file(os.path.realpath(config_file()), overwrite=True) as file:  # a link of the person's stays one
            file.write(json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n")


def _at_settings() -> AbstractContextManager[None]:
    """Between reading the settings and writing them nobody else does."""
    path = config_file()
    busy = HnetkitError(f"{path}: another process is at the settings", hint="try again when it ended")
    return exclusive_lock(path.with_name(".config.lock"), busy, patience_s=_PATIENCE_S)


def _require_sense(key: str, value: str) -> None:
    if not value.strip():
        raise UsageError(f"{key}: an empty value", hint=f"hnetkit config --unset {key}")
    scheme, separator, _ = value.partition("://")
    if separator:  # said without what follows, and never stored: the file may be read by others
        hint = "download it, and give its folder or file" + ("; or give a hub id: org/name" if key == "model" else "")
        raise UsageError(f"{key}: {scheme[-20:]}://... is an address, which no setting takes", hint=hint)


def _known(key: str) -> str:
    if key not in KEYS:
        raise UsageError(f"no setting is called {key}", hint=f"settings are: {', '.join(KEYS)}")
    return key
