"""Trained files in the library, with the recipe that made them and what they were trained from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.formats.open_file import OpenFile
from hnetkit.hashes import sha256_of
from hnetkit.library.library import Library
from hnetkit.library.scan import add_file
from hnetkit.registry.networks import Training
from hnetkit.registry.store import Registry
from hnetkit.train.recipe import Recipe
from hnetkit.train.run_folder import RunFolder

if TYPE_CHECKING:
    from hnetkit.generate.model import Model


def register_run(
    library: Library | None, folder: Path, recipe: Recipe, model: Model, files: Sequence[Path], started_from: str | None
) -> None:
    """Puts the files of a run into a library, with what its steps were made with.

    Args:
        library: None is that of the command line.
        folder: of the run.
        recipe: that was asked for; where all steps were made before, they may have been made by another.
        model: that it was trained on.
        started_from: content hash of the network that training began with.
    """
    with nullcontext(library) if library is not None else Library() as there:
        register(
            there.registry,
            files,
            recipe=RunFolder(folder, recipe).made_with().to_json(),
            started_from=started_from,
            model_name=model.name,
            model_hash=model.hash,
        )


def register(
    registry: Registry,
    paths: Iterable[str | os.PathLike[str]],
    *,
    recipe: Mapping[str, Any],
    started_from: str | None = None,
    model_name: str | None = None,
    model_hash: str | None = None,
) -> list[str]:
    """Stores files of trained networks with how they came to be; returns their content hashes.

    A file's folder becomes a root of the library, unless it lies under one.

    Args:
        paths: of files that are whole.
        recipe: everything that the run was asked to do, as JSON holds it.
        started_from: content hash of the network that training began with.
        model_name, model_hash: of the model that it was trained on.

    Raises:
        FileRefused, NotFound: a file cannot be read.
    """
    training = Training(recipe, started_from, model_name, model_hash)
    hashes = []
    for path in map(Path, paths):
        with OpenFile(path) as file:
            sha256 = sha256_of(file)
        content_hash = add_file(registry, _root_of(registry, path), path, sha256)["content_hash"]
        with registry.write():
            registry.trainings.put(registry.networks.id_of(content_hash), training)
        hashes.append(content_hash)
    return hashes


def _root_of(registry: Registry, path: Path) -> Path:
    """Returns the innermost root that a file lies under; its own folder where there is none."""
    folder = Path(os.path.realpath(path.parent))
    roots = [root.path for root in registry.files.roots() if folder.is_relative_to(root.path)]
    return max(roots, key=lambda root: len(root.parts), default=folder)
