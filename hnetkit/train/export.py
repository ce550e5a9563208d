"""Trained networks as files that hnetkit, A1111 and ComfyUI read, and as records of the library."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hnetkit.errors import DiskFull, failure_of
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.topology import build_mlp
from hnetkit.formats.writing import save
from hnetkit.hashes import sha256_of
from hnetkit.library.library import Library
from hnetkit.library.scan import add_file, left_without_file
from hnetkit.network import Hypernetwork, MLPPair, ResidualMLP, TensorRef
from hnetkit.registry.networks import Training
from hnetkit.registry.store import Registry
from hnetkit.runtime.strength import SIDES, Side
from hnetkit.train.build import INITIALIZATIONS, Build
from hnetkit.train.checkpoints import NO_ROOM
from hnetkit.train.network import MLP, TrainedNetwork, set_output_to_zero
from hnetkit.train.recipe import Recipe
from hnetkit.train.run_folder import RunFolder

if TYPE_CHECKING:
    from hnetkit.generate.model import Model


def to_hypernetwork(
    network: TrainedNetwork,
    *,
    name: str,
    step: int,
    model_name: str | None,
    model_hash: str | None,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> Hypernetwork:
    """Returns a copy of the weights as they are now, with all of A1111's metadata.

    Files hold both sides of a width. An untrained side gets an MLP of the same build that gives 0.

    Args:
        name: shown by A1111.
        step: steps of training.
        model_name, model_hash: of the model that it was trained on; A1111 keeps the hash's first 10 digits.
        extra: more keys, or new values of A1111's: text, numbers, lists and tuples.
    """
    build = network.build
    mlps = {}
    for width in network.widths:
        trained = {side: network.mlp(width, side) for side in build.sides}
        zero = _zero_copy(trained[build.sides[0]])
        pair = (_residual_mlp(trained.get(side, zero), build, width, side) for side in SIDES)
        mlps[width] = MLPPair(*pair)
    metadata = _metadata(build, name, step, model_name, model_hash)
    return Hypernetwork(mlps, {**metadata, **extra}, activate_output=build.activate_output)


def save_trained(net: Hypernetwork, folder: str | os.PathLike[str], *, overwrite: bool = True) -> list[Path]:
    """Writes ``NAME.safetensors`` and A1111's ``NAME.pt``, each whole or not at all; returns their paths.

    Raises:
        DiskFull: no room; a file of that name from before is as it was.
        OutputExists: a file is there and `overwrite` is False.
    """
    paths = [Path(folder, f"{net.name}{suffix}") for suffix in (".safetensors", ".pt")]
    for path in paths:
        try:
            save(net, path, overwrite=overwrite)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise DiskFull(f"{path}: no room to write it", hint="make room and give the same command again") from error
    return paths


def _zero_copy(mlp: MLP) -> MLP:
    zero = copy.deepcopy(mlp)
    set_output_to_zero(zero.linear)
    return zero


def _residual_mlp(mlp: MLP, build: Build, width: int, side: Side) -> ResidualMLP:
    tensors = {name: TensorRef.of(tensor) for name, tensor in mlp.state_dict().items()}
    return build_mlp(
        tensors,
        width,
        activation=build.activation,
        activate_output=build.activate_output,
        dropout=build.dropout[1:],
        where=f"{width}.{side}",
    )


def _metadata(build: Build, name: str, step: int, model_name: str | None, model_hash: str | None) -> dict[str, Any]:
    """A1111's keys, in its order. `activation_func` is never None: ComfyUI would drop the network."""
    dropout = list(build.dropout) or [0.0] * len(build.structure)
    sides = " and ".join(side.upper() for side in build.sides)
    return {
        "step": step,
        "name": name,
        "layer_structure": list(build.structure),
        "activation_func": build.activation or "linear",
        "is_layer_norm": build.layer_norm,
        "weight_initialization": INITIALIZATIONS[build.initialisation],
        "use_dropout": any(dropout),
        "sd_checkpoint": model_hash and model_hash[:10],
        "sd_checkpoint_name": model_name,
        "activate_output": build.activate_output,
        "last_layer_dropout": dropout[-2] != 0,
        "dropout_structure": dropout,
        "optional_info": None if len(build.sides) == len(SIDES) else f"only {sides} was trained",
    }


# --- records of the library


def register_run(
    library: Library | None,
    folder: Path,
    recipe: Recipe,
    model: Model,
    files: Sequence[Path],
    started_from: str | None,
    note: Callable[[str], None],
) -> str:
    """Registers the files of a run in a library, with the recipe that its steps were made with.

    What keeps them out of it ends no training: the network is there.

    Args:
        library: None is that of the command line.
        folder: of the run.
        recipe: of this call; the record's may differ, if all steps were made before.
        model: that it was trained on.
        started_from: content hash of the network that training began with.
        note: called with a line about tags, notes and aliases of what the files held before.

    Returns:
        Why the library does not have them; empty if it has.
    """
    try:
        with nullcontext(library) if library is not None else Library() as opened:
            before = opened.registry.networks.fileless()
            register_files(
                opened.registry,
                files,
                recipe=RunFolder(folder, recipe).made_with().to_json(),
                started_from=started_from,
                model_name=model.name,
                model_hash=model.hash,
            )
            for line in left_without_file(opened.registry, before):
                note(line)
    except Exception as error:
        return f"{files[0]} is trained, and not in the library: {failure_of(error, str(files[0]))}"
    return ""


def register_files(
    registry: Registry,
    paths: Iterable[str | os.PathLike[str]],
    *,
    recipe: Mapping[str, Any],
    started_from: str | None = None,
    model_name: str | None = None,
    model_hash: str | None = None,
) -> list[str]:
    """Registers files of trained networks with their training; returns their content hashes.

    A file's folder becomes a root of the library, unless it is inside one.

    Args:
        paths: of complete files.
        recipe: of the run, as JSON holds it.
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
    """Returns the innermost root that a file is in; its own folder if there is none."""
    folder = Path(os.path.realpath(path.parent))
    roots = [root.path for root in registry.files.roots() if folder.is_relative_to(root.path)]
    return max(roots, key=lambda root: len(root.parts), default=folder)
