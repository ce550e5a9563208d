"""Files of networks in programs that go on running: read once, for all models of one kind and at any strength."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from hnetkit.errors import AmbiguousName, NotFound, did_you_mean
from hnetkit.formats import load
from hnetkit.kernels.dispatch import chosen_path
from hnetkit.network import Hypernetwork
from hnetkit.runtime.attention_patches import AttentionStack, Progress
from hnetkit.runtime.buffers import LoadedNetwork
from hnetkit.runtime.fit import require_fit
from hnetkit.runtime.layers import contexts_of, find_ldm_layers, require_blocks
from hnetkit.runtime.strength import Strength

_KEPT = 16  # networks that stay read while others are chosen
_MOST_SEARCHES = 5  # for names like one that is not there, of one prompt

Manage = Callable[[nn.Module], Any]
"""Takes a module with weights, and returns it as the program counts and moves modules."""


class SharedWeights:
    """The weights of a network that all stacks of it share.

    Attributes:
        loaded: the network.
        managed: its weights as the program has them; none where all of it is composed into other maps.
    """

    def __init__(self, loaded: LoadedNetwork, manage: Manage) -> None:
        self.loaded = loaded
        self.managed = managed(loaded.pairs, manage)


def managed(modules: Iterable[nn.Module], manage: Manage) -> list[Any]:
    """Returns modules as a program manages them: in one, or in none where they have no weights."""
    module = nn.ModuleList(modules)
    return [manage(module)] if nbytes(module) else []


def nbytes(module: nn.Module) -> int:
    """Returns the bytes of a module's buffers."""
    return sum(buffer.nbytes for buffer in module.buffers())


class NetworkFile:
    """A file, and its weights for the models that it was last used with."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = PurePath(path).stem
        self.network: Hypernetwork = load(path)
        self._weights: dict[tuple[object, ...], SharedWeights] = {}

    def weights(
        self, widths: frozenset[int], dtype: torch.dtype, path: str, manage: Manage, managed_for: object = None
    ) -> SharedWeights:
        """Returns the weights of some widths, in CPU memory until the program moves them; they are read once.

        Args:
            widths: of the model's contexts.
            dtype: of the model's contexts.
            path: that computes them, one of `hnetkit.kernels.dispatch.PATHS`.
            manage: called where they are read.
            managed_for: what else `manage` depends on.

        Raises:
            hnetkit.errors.DamagedFile, hnetkit.errors.IncompatibleNetwork: see `hnetkit.runtime.stack.read_mlp`.
        """
        key = (widths, dtype, path, managed_for)
        if key not in self._weights:
            loaded = LoadedNetwork(self.name, self.network, widths)
            loaded.read_weights(torch.device("cpu"), dtype, path)
            self._weights = {key: SharedWeights(loaded, manage)}  # of one kind of model: those of others are let go
        return self._weights[key]

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file, or of the one that it was converted from: what other people know it by. 64 hex digits."""
        if self.network.source_sha256:
            return self.network.source_sha256
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


class PatchableUNet:
    """A UNet that takes patches of attention, and what networks on it need.

    Args:
        unet: built as Stable Diffusion's first code was.
        device: where it samples.
        dtype: of its contexts.
        manage: for the weights that networks bring.
        managed_for: what else `manage` depends on.

    Raises:
        AttachError: it has no attention layers that hypernetworks know.
    """

    def __init__(
        self, unet: nn.Module, device: torch.device, dtype: torch.dtype, manage: Manage, managed_for: object = None
    ) -> None:
        self._layers = find_ldm_layers(unet)
        self._contexts = contexts_of(unet, self._layers.values())
        self._path, self._dtype = chosen_path(device), dtype
        self._manage, self._managed_for = manage, managed_for

    def weights(self, file: NetworkFile, strength: Strength) -> SharedWeights:
        """Returns the weights of a network that fits the UNet.

        Raises:
            IncompatibleNetwork: it is made for another base model, or has values too large for the dtype.
            UsageError: the strength names a block that the UNet does not have.
            hnetkit.errors.FileRefused: its values cannot be read, or are not finite.
        """
        require_fit(file.name, file.network, self._contexts)
        require_blocks(strength, self._layers.values())
        return file.weights(self._contexts.widths, self._dtype, self._path, self._manage, self._managed_for)

    def stack(
        self, files: Iterable[tuple[NetworkFile, Strength]], progress: Progress
    ) -> tuple[AttentionStack, list[Any]]:
        """Returns networks as a stack for its layers, and all the weights that it brings; raises as `weights`."""
        weights = [(self.weights(file, strength), strength) for file, strength in files]
        networks = [(own.loaded, strength) for own, strength in weights]
        stack = AttentionStack(networks, self._layers, progress, path=self._path, dtype=self._dtype)
        brought = [module for own, _ in weights for module in own.managed]
        return stack, [*brought, *managed(stack.composed, self._manage)]


def open_network(path: str) -> NetworkFile:
    """Returns a file; one that has not changed is not read again.

    Raises:
        NotFound: it is gone.
        hnetkit.errors.FileRefused: it is no hypernetwork that can be read safely.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}", hint="choose another file, or put it back") from error
    return _opened(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=_KEPT)
def _opened(path: str, changed: int, size: int) -> NetworkFile:
    return NetworkFile(path)


class FilesByStem:
    """The files that tags can name, looked at once for all tags of a prompt.

    Args:
        names: of the files that there are: paths below one of the program's folders.
        path_of: tells where a file of that name is.
        hint: what to do where there is no such file.
    """

    def __init__(self, names: Iterable[str], path_of: Callable[[str], str], *, hint: str) -> None:
        self._path_of, self._hint = path_of, hint
        self._stems: dict[str, list[str]] = {}
        self._folded: dict[str, list[str]] = {}
        self._searches_left = _MOST_SEARCHES
        for name in names:
            stem = PurePath(name.replace("\\", "/")).stem
            for known, key in ((self._stems, stem), (self._folded, stem.lower())):
                known.setdefault(key, []).append(name)

    def __contains__(self, stem: str) -> bool:
        return stem in self._stems or stem.lower() in self._folded

    def named(self, stem: str) -> str:
        """Returns which file a tag names by its stem, upper and lower case being the same if need be.

        Args:
            stem: as written in the tag.

        Raises:
            NotFound: there is none.
            AmbiguousName: there are several, and they are not one network in several forms.
            hnetkit.errors.FileRefused: one of several cannot be read.
        """
        found = self._stems.get(stem) or self._folded.get(stem.lower())
        if not found:
            near = self._near(stem)
            raise NotFound(f"{stem}: no such hypernetwork", hint=f"did you mean {near}?" if near else self._hint)
        first, *others = found
        if others and not _are_one_network(first, others, self._path_of):
            raise AmbiguousName(f"{stem} is the name of several files: {', '.join(found)}", hint="rename all but one")
        return first

    def file(self, stem: str) -> NetworkFile:
        """Returns the file that a tag names; raises as `named` and `open_network`."""
        return open_network(self._path_of(self.named(stem)))

    def _near(self, stem: str) -> str | None:
        """Returns the name that was meant, for the first few: each is compared with all, and a prompt may have many."""
        self._searches_left -= 1
        return did_you_mean(stem, self._stems) if self._searches_left >= 0 else None


def _are_one_network(first: str, others: Iterable[str], path_of: Callable[[str], str]) -> bool:
    """Whether files differ in their form alone, as a .pt and the .safetensors that it became."""
    mlps = open_network(path_of(first)).network.mlps
    return all(open_network(path_of(other)).network.mlps == mlps for other in others)


def library_folder() -> str | None:
    """Returns hnetkit's library folder; None where nothing tells it."""
    try:
        from hnetkit.paths import library_folder as folder
    except ModuleNotFoundError:  # platformdirs, in an installation without what the command line needs
        return os.environ.get("HNETKIT_LIBRARY")
    return str(folder())
