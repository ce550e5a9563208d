"""Paths of hnetkit's state, all of which `HNETKIT_HOME` moves."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder of registry, config and library: `HNETKIT_HOME`, else the platform's data folder."""
    moved = os.environ.get("HNETKIT_HOME")
    return _absolute(moved) if moved else Path(platformdirs.user_data_dir("hnetkit", appauthor=False))


def registry_file() -> Path:
    return home() / "registry.db"


def config_file() -> Path:
    return home() / "config.json"


def hashes_file() -> Path:
    """The file of remembered hashes of models."""
    return home() / "hashes.json"


def is_state(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of the registry, one of its journals, the settings, or hashes; it need not exist."""
    folder, name = os.path.split(os.path.abspath(path))
    registry, config, hashes = registry_file().name, config_file().name, hashes_file().name
    journals = {f"{registry}-{journal}" for journal in ("wal", "shm", "journal")}
    own = {registry, *journals, config, ".config.lock", hashes, ".hashes.lock"}
    return name.casefold() in own and os.path.realpath(folder) == os.path.realpath(home())


def library_folder() -> Path:
    """The folder that downloads are installed in: `HNETKIT_LIBRARY`, else `library` in `home()`."""
    moved = os.environ.get("HNETKIT_LIBRARY")
    return _absolute(moved) if moved else _absolute(home() / "library")


def _absolute(path: str | Path) -> Path:
    """An absolute path, for messages that say where things are; services and `.env` files do not expand `~`."""
    return Path(os.path.abspath(os.path.expanduser(path)))
