"""The files that the nodes offer: those of ComfyUI's own folders of hypernetworks, and of hnetkit's library."""

from __future__ import annotations

import functools
import os
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from hnetkit.errors import AmbiguousName, NotFound, did_you_mean
from hnetkit.formats import load
from hnetkit.network import Hypernetwork
from hnetkit.runtime.buffers import LoadedNetwork

_FOLDER = "hypernetworks"  # as ComfyUI calls its own
_KEPT = 16  # networks that stay read, so that another strength reads nothing again


def _folders() -> Any:
    """Returns ComfyUI's `folder_paths`, with the library folder among those of hypernetworks."""
    import folder_paths  # type: ignore[import-not-found]

    try:
        from hnetkit.paths import library_folder
    except ModuleNotFoundError:  # platformdirs, in an installation without what the command line needs
        library = os.environ.get("HNETKIT_LIBRARY", "")
    else:
        library = str(library_folder())
    if library and library not in folder_paths.get_folder_paths(_FOLDER):
        folder_paths.add_model_folder_path(_FOLDER, library)
    return folder_paths


def names() -> list[str]:
    """Returns the files that can be chosen, as paths below one of the folders."""
    found: list[str] = _folders().get_filename_list(_FOLDER)
    return found


def name_of(stem: str) -> str:
    """Returns the file that a tag names by its stem.

    Raises:
        NotFound: there is none.
        AmbiguousName: there are several.
    """
    stems: dict[str, list[str]] = {}
    for name in names():
        stems.setdefault(PurePath(name.replace("\\", "/")).stem, []).append(name)
    found = stems.get(stem) or [name for own, listed in stems.items() if own.lower() == stem.lower() for name in listed]
    if not found:
        near = did_you_mean(stem, stems)
        raise NotFound(
            f"{stem}: no such hypernetwork in ComfyUI's folders or in hnetkit's library",
            hint=f"did you mean {near}?" if near else "put the file into models/hypernetworks, and press R",
        )
    if len(found) > 1:
        raise AmbiguousName(f"{stem} is the name of several files: {', '.join(found)}", hint="rename all but one")
    return found[0]


class NetworkFile:
    """A hypernetwork's file, and its weights for the models that it was used with."""

    def __init__(self, name: str, network: Hypernetwork) -> None:
        self.name = name
        self.network = network
        self._weights: dict[tuple[object, ...], Weights] = {}

    def weights(self, widths: frozenset[int], dtype: torch.dtype, path: str, model: Any) -> Weights:
        """Returns the weights of some widths, on the device where `model` waits; they are read once.

        Raises:
            hnetkit.errors.FileRefused, hnetkit.errors.IncompatibleNetwork: see `hnetkit.runtime.stack.read_mlp`.
        """
        key = (widths, dtype, path, model.load_device, model.offload_device)
        if key not in self._weights:
            loaded = LoadedNetwork(self.name, self.network, widths)
            loaded.read_weights(torch.device("cpu"), dtype, path)
            self._weights = {key: Weights(loaded, managed(loaded.pairs, model))}  # models of one kind at a time
        return self._weights[key]


class Weights:
    """Weights that stacks share.

    Attributes:
        loaded: the network.
        managed: what ComfyUI counts and moves.
    """

    def __init__(self, loaded: LoadedNetwork, managed: list[Any]) -> None:
        self.loaded = loaded
        self.managed = managed


def managed(modules: Any, model: Any) -> list[Any]:
    """Returns modules as ComfyUI takes models: counted, moved and released with those that sample; none for none."""
    import comfy.model_patcher  # type: ignore[import-not-found]

    module = nn.ModuleList(modules)
    size = sum(buffer.nbytes for buffer in module.buffers())
    if not size:
        return []
    return [comfy.model_patcher.ModelPatcher(module, model.load_device, model.offload_device, size=size)]


def open_file(name: str) -> NetworkFile:
    """Returns a file by its name in `names`; one that has not changed is not read again.

    Raises:
        NotFound: it is gone.
        hnetkit.errors.FileRefused: it is no hypernetwork that can be read safely.
    """
    path = _folders().get_full_path(_FOLDER, name)
    if path is None:
        raise NotFound(f"{name}: the file is gone", hint="choose another, or put it back and press R")
    status = os.stat(path)
    return _read(path, name, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=_KEPT)
def _read(path: str, name: str, changed: int, size: int) -> NetworkFile:
    return NetworkFile(PurePath(name.replace("\\", "/")).stem, load(path))
