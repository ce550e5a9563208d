"""The files that tags can name: those of the webui's folder of hypernetworks, and of hnetkit's library."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hnetkit.runtime.network_files import FilesByStem, NetworkFile, library_folder

_SUFFIXES = (".pt", ".safetensors", ".ckpt")


class NamedFiles:
    """The files as they are now: those of the webui come first, then those of both folders."""

    def __init__(self) -> None:
        folders = [folder for folder in (_own_folder(), library_folder()) if folder is not None]
        self._own, self._all = (_by_stem(some, f"put the file into {folders[0]}") for some in (folders[:1], folders))

    def file(self, stem: str) -> NetworkFile:
        """Returns the file that a tag names.

        Raises:
            NotFound, AmbiguousName: see `hnetkit.runtime.network_files.FilesByStem`.
            hnetkit.errors.FileRefused: it is no hypernetwork that can be read safely.
        """
        return (self._own if stem in self._own else self._all).file(stem)


def _by_stem(folders: list[str], hint: str) -> FilesByStem:
    files = _files(folders)
    return FilesByStem(files, files.__getitem__, hint=hint)


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
