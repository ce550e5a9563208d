"""The files that the nodes offer: those of ComfyUI's own folders of hypernetworks, and of hnetkit's library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hnetkit.errors import NotFound
from hnetkit.prompts.tags import Tag
from hnetkit.runtime.network_files import FilesByStem, NetworkFile, library_folder, open_network

_FOLDER = "hypernetworks"  # as ComfyUI calls its own


def names() -> list[str]:
    """Returns the files that can be chosen, as paths below one of the folders."""
    found: list[str] = _folders().get_filename_list(_FOLDER)
    return found


def open_file(name: str) -> NetworkFile:
    """Returns a file by its name in `names`.

    Raises:
        NotFound: it is gone.
        hnetkit.errors.FileRefused: it is no hypernetwork that can be read safely.
    """
    path = _folders().get_full_path(_FOLDER, name)
    if path is None:
        raise NotFound(f"{name}: the file is gone", hint="choose another, or put it back and press R")
    return open_network(path)


def named_by(tags: Sequence[Tag]) -> list[str]:
    """Returns the file that each tag names; see `hnetkit.runtime.network_files.FilesByStem.named`."""

    def path_of(name: str) -> str:
        return _folders().get_full_path(_FOLDER, name) or name

    files = FilesByStem(names() if tags else (), path_of, hint="put the file into models/hypernetworks, and press R")
    return [files.named(tag.name) for tag in tags]


def state_of(name: str) -> tuple[str, int, int] | None:
    """Returns what is another value once a file has other bytes; None where there is no such file."""
    path = _folders().get_full_path(_FOLDER, name)
    try:
        status = os.stat(path or "")
    except OSError:
        return None
    return path, status.st_mtime_ns, status.st_size


def _folders() -> Any:
    """Returns ComfyUI's `folder_paths`, with the library folder among those of hypernetworks."""
    import folder_paths  # type: ignore[import-not-found]

    library = library_folder()
    if library and library not in folder_paths.get_folder_paths(_FOLDER):
        folder_paths.add_model_folder_path(_FOLDER, library)
    return folder_paths
