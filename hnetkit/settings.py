"""Settings of `hnetkit config`: a small JSON file of text values."""

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
_PATHS = ("model", "loras", "embeddings")


def load() -> dict[str, str]:
    """Returns all settings; {} without a file.

    Raises:
        HnetkitError: the file is unreadable or not an object of strings.
    """
    path = config_file()
    try:
        settings = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise HnetkitError(f"{path}: unreadable settings ({error})", hint="fix or delete the file") from error
    if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
        raise HnetkitError(f"{path}: settings must be a JSON object of strings", hint="fix or delete the file")
    return settings


def get(key: str) -> str | None:
    """Returns one setting; None if it is not set, or is empty in the file."""
    return load().get(_known(key)) or None


def put(key: str, value: str | None) -> None:
    """Stores a setting; None removes it. Any number of processes may do so at once.

    An existing file or folder is stored with its absolute path: a command that runs in a stranger's folder must not
    pick up a file of the same name there.

    Raises:
        UsageError: the value is empty, or a URL, which may hold a password or a signature.
        HnetkitError: another process is changing the settings and did not finish in time.
    """
    _known(key)
    if value is not None:
        _require_sense(key, value)
        value = os.path.abspath(value) if key in _PATHS and os.path.exists(value) else value
    with _settings_locked():
        settings = load()
        settings.pop(key, None)
        if value is not None:
            settings[key] = value
        with new_file(os.path.realpath(config_file()), overwrite=True) as file:  # a link of the user's stays a link
            file.write(json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n")


def _settings_locked() -> AbstractContextManager[None]:
    """Keeps other processes out between reading the settings and writing them."""
    path = config_file()
    busy = HnetkitError(f"{path}: another process is changing the settings", hint="try again when it has ended")
    return exclusive_lock(path.with_name(".config.lock"), busy, patience_s=_PATIENCE_S)


def _require_sense(key: str, value: str) -> None:
    if not value.strip():
        raise UsageError(f"{key}: an empty value", hint=f"hnetkit config {key} --remove")
    scheme, separator, _ = value.partition("://")
    if separator:  # neither shown in full nor stored, because others may read the file
        hint = "download it, and give its folder or file" + ("; or give a hub id: org/name" if key == "model" else "")
        raise UsageError(f"{key}: {scheme[-20:]}://... is a URL, which no setting accepts", hint=hint)


def _known(key: str) -> str:
    if key not in KEYS:
        raise UsageError(f"no setting named {key}", hint=f"settings are: {', '.join(KEYS)}")
    return key
