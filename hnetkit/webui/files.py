"""The files that tags can name: those of the webui's folder of hypernetworks, and of hnetkit's library."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hnetkit.errors import NotFound
from hnetkit.runtime.network_files import NetworkFile, file_named, library_folder, open_network

_SUFFIXES = (".pt", ".safetensors", ".ckpt")


def open_named(stem: str) -> NetworkFile:
    """Returns the file that a tag names.

    Raises:
        NotFound, AmbiguousName: see `hnetkit.runtime.network_files.file_named`.
        hnetkit.errors.FileRefused: it is no hypernetwork that can be read safely.
    """
    folders = [folder for folder in (_own_folder(), library_folder()) if folder is not None]
    try:
        return _named_in(folders[:1], stem, hint="")
    except NotFound:
        return _named_in(folders, stem, hint=f"put the file into {folders[0]}")


def _named_in(folders: list[str], stem: str, hint: str) -> NetworkFile:
    files = _files(folders)
    return open_network(files[file_named(stem, files, files.__getitem__, hint=hint)])


def _own_folder() -> str | None:
    """Returns the webui's folder; some forks have taken its option out."""
    from modules import paths, shared  # type: ignore[import-not-found]

    own: str | None = getattr(shared.cmd_opts, "hypernetwork_dir", None)
    return own or os.path.join(paths.models_path, "hypernetworks")


def _files(folders: list[str]) -> dict[str, str]:
    """Returns name -> path of the models in folders."""
    return {
        os.path.relpath(path, folder): path
        for folder in folders
        for root, names in _walk(folder)
        for name in sorted(names)
        if name.lower().endswith(_SUFFIXES) and (path := os.path.join(root, name))
    }


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder and its files, links followed, each folder once: two links in a circle would never end."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield root, names
