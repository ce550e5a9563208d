"""Settings of `hnetkit config`: a small JSON file of text values."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress

from hnetkit import demo
from hnetkit.errors import HnetkitError, NotFound, UsageError, failure_of
from hnetkit.files import exclusive_lock, is_file_at, is_folder_at, is_model_name, new_file, stat_at
from hnetkit.hub import REPO
from hnetkit.limits import read_json
from hnetkit.paths import config_file
from hnetkit.text import argument, lacks_unit, parse_size

_PATIENCE_S = 10.0

DEVICES = ("auto", "cpu", "cuda", "mps")
UNASKED = "1GB"
"""The setting ``unasked`` where there is none."""
DTYPES = ("auto", "fp32", "fp16", "bf16")
CAPTURE = ("on", "off")

KEYS: Mapping[str, str] = {
    "model": "what commands load without --model: a diffusers folder, a checkpoint file or a hub id",
    "vae": "the autoencoder of this model, in place of its own: a file, a diffusers folder or a hub id",
    "tokenizer": "the tokenizer folder for checkpoint files",
    "device": f"where they run without --device: {', '.join(DEVICES)}",
    "dtype": f"what they compute in without --dtype: {', '.join(DTYPES)}",
    "capture": f"whether they run the UNet as CUDA graphs without --capture or --no-capture: {', '.join(CAPTURE)}",
    "loras": "the folder in which <lora:NAME:0.8> finds files",
    "embeddings": "the folder whose files' names are textual inversions in prompts",
    "mirrors": "who is asked for files that their own source has lost: addresses with {sha256}, or hf:owner/repo",
    "hypernetworks": "tags that end every prompt that does not name these networks itself: <hypernet:NAME:0.5>",
    "unasked": "what pull, sync and repair fetch without asking, as 500MB: 1GB if not set, 0 asks always, off never",
}
UNREAD = "no setting has this name, so nothing reads it"
"""What a key of the file means that is not in `KEYS`, as a newer hnetkit or a slip may have put there."""
FOLDERS = ("tokenizer", "loras", "embeddings")
MODELS = ("model", "vae")
_HOLDS: Mapping[str, tuple[str, ...]] = {
    "model": ("model_index.json",),
    "vae": ("config.json", "vae/config.json"),
    "tokenizer": ("vocab.json", "tokenizer.json", "tokenizer/vocab.json", "tokenizer/tokenizer.json"),
}
"""Setting -> the files of which its folder has at least one."""

CHOICES: Mapping[str, tuple[str, ...]] = {"device": DEVICES, "dtype": DTYPES, "capture": CAPTURE}
"""Setting -> its values, where there are but a few."""


def load() -> dict[str, str]:
    """Returns all settings; {} without a file.

    Raises:
        HnetkitError: the file is unreadable or not an object of strings.
    """
    path = config_file()
    try:
        settings = read_json(path)
    except FileNotFoundError as error:
        if os.path.islink(path):
            message = f"{path}: a link to {os.readlink(path)}, which is not there"
            raise HnetkitError(message, hint="make the link's file available, or remove the link") from error
        return {}
    except (OSError, ValueError) as error:
        raise HnetkitError(f"{path}: unreadable settings ({error})", hint="fix or delete the file") from error
    if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
        raise HnetkitError(f"{path}: settings must be a JSON object of strings", hint="fix or delete the file")
    return settings


def get(key: str) -> str | None:
    """Returns one setting; None if it is not set, or is empty in the file."""
    return load().get(_known(key)) or None


@contextmanager
def naming(**given: object) -> Iterator[None]:
    """Adds to an error inside the block that the value that it is about is that of the settings.

    Args:
        given: setting -> the value of the option or argument; None if the setting is used. Of several settings, the
            one whose value the error mentions is named.
    """
    try:
        yield
    except HnetkitError as error:
        used = {key: value for key, option in given.items() if option is None and (value := get(key)) is not None}
        said = {key: value for key, value in used.items() if len(given) == 1 or _is_named(value, str(error))}
        if said:
            key = max(said, key=lambda key: len(said[key]))  # one folder may be in another
            error.args = (f"{error} (the {key} of `hnetkit config`)",)
        raise


def _is_named(value: str, text: str) -> bool:
    """Whether a text has a value as a word of its own, or a path below it: ``demo`` is not in ``demo.safetensors``."""
    return re.search(rf"(?<![\w./\\-]){re.escape(value)}(?![\w-]|\.\w)", text) is not None


def faults(stored: Mapping[str, str]) -> Iterator[HnetkitError]:
    """Yields why a stored setting cannot be used any more, as files and folders go and come; names no network."""
    for key, value in stored.items():
        if key in KEYS and value:
            try:
                _checked(key, value)
            except HnetkitError as error:
                yield error


def put(key: str, value: str | None) -> str | None:
    """Stores a setting and returns what was stored; None removes it. Any number of processes may do so at once.

    What the file has under another key than those of `KEYS` can be removed too.

    Files and folders are stored with their absolute paths: a command that runs in another folder must find the same,
    and none of the same name there.

    Raises:
        UsageError: the key cannot have this value; or it is a URL, which may hold a password or a signature, and no
            mirror.
        NotFound: there is no such file or folder.
        HnetkitError: another process is changing the settings and did not finish in time.
    """
    if value is not None:
        _known(key)
    with _settings_locked():
        settings = load()
        if settings.pop(key, None) is None:
            _known(key)
        if value is not None:
            value = settings[key] = _checked(key, value)
        with new_file(os.path.realpath(config_file()), overwrite=True) as file:  # a link of the user's stays a link
            file.write(json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n")
    return value


def asks_above(size_bytes: int) -> bool:
    """Whether a fetch of so many bytes is to be agreed to, by the setting ``unasked``."""
    return size_bytes > _most_unasked(get("unasked") or UNASKED)


def _most_unasked(value: str) -> float:
    size = math.inf if value.strip().lower() == "off" else parse_size(value)
    if size is None:
        hint = "for example 1GB or 500MB; 0 to be asked always, off never"
        raise UsageError(f"unasked: {value} is not a size", hint=hint)
    return size


def is_hub_id(key: str, value: str) -> bool:
    """Whether a stored value is the name of a model of the hub: files and folders have absolute paths."""
    return key in MODELS and re.fullmatch(REPO, value) is not None


def _settings_locked() -> AbstractContextManager[None]:
    """Keeps other processes out between reading the settings and writing them."""
    path = config_file()
    busy = HnetkitError(f"{path}: another process is changing the settings", hint="try again when it has ended")
    return exclusive_lock(path.with_name(".config.lock"), busy, patience_s=_PATIENCE_S)


def _checked(key: str, value: str) -> str:
    """The value as it is stored."""
    if not value.strip():
        raise UsageError(f"{key}: an empty value", hint=f"hnetkit config {key} --remove")
    scheme, separator, _ = value.partition("://")
    if key == "mirrors":
        _require_mirrors(value)
        return " ".join(value.split())
    if separator:  # neither shown in full nor stored, because others may read the file
        hint = "download it, and give its folder or file" + ("; or give a hub id: org/name" if key in MODELS else "")
        raise UsageError(f"{key}: {scheme[-20:]}://... is a URL, which no setting accepts", hint=hint)
    if key in CHOICES and value not in CHOICES[key]:
        raise UsageError(f"{key}: {value} is not one of its values", hint=f"one of {', '.join(CHOICES[key])}")
    if key in FOLDERS or key in MODELS:
        return value if key == "model" and value == demo.NAME else _checked_path(key, value)
    if key == "hypernetworks":
        _require_stack(value)
    if key == "unasked":
        _most_unasked(value)
        if lacks_unit(value):
            number = value.strip()
            hint = f"hnetkit config {key} {argument(f'{number}GB')}, or {number}MB"
            raise UsageError(f"{key}: {number} alone is bytes", hint=hint)
    return value


def _checked_path(key: str, value: str) -> str:
    path = os.path.abspath(os.path.expanduser(value))
    try:
        is_folder, is_known = is_folder_at(path), stat_at(path) is not None
        lacks = is_folder and not _holds_what_is_needed(key, path)
    except OSError as error:  # which does not say that it is not there
        raise failure_of(error, path) from error
    if lacks:
        raise NotFound(f"{key}: {path} has no {_HOLDS[key][0]}", hint=_hint_in_place_of(key, path))
    if is_folder or (key in MODELS and is_known):
        return path
    if is_known:
        raise NotFound(f"{key}: {path} is not a folder", hint=f"hnetkit config {key} FOLDER")
    if is_hub_id(key, value):
        return value
    raise NotFound(f"{key}: {path}: no such {'file or folder' if key in MODELS else 'folder'}")


def _holds_what_is_needed(key: str, folder: str) -> bool:
    return key not in _HOLDS or any(is_file_at(os.path.join(folder, name)) for name in _HOLDS[key])


def _hint_in_place_of(key: str, folder: str) -> str:
    """Returns what to give in place of a folder: the first model file in it, as people keep checkpoints in one."""
    with suppress(OSError):
        for name in sorted(os.listdir(folder)) if key in MODELS else ():
            if is_model_name(name):
                return f"hnetkit config {key} {argument(os.path.join(folder, name), is_path=True)}"
    return f"hnetkit config {key} FOLDER, one that has it"


def _require_stack(value: str) -> None:
    from hnetkit.prompts.tags import problems_of_stack

    if problems := problems_of_stack(value):
        raise UsageError(f"hypernetworks: {problems[0]}", hint='hnetkit config hypernetworks "<hypernet:NAME:0.5>"')


def _require_mirrors(value: str) -> None:
    from hnetkit.sources.mirrors import parse_mirrors

    parse_mirrors(value)


def _known(key: str) -> str:
    if key not in KEYS:
        raise UsageError(f"no setting named {key}", hint=f"settings are: {', '.join(KEYS)}")
    return key
