"""From a trained network to files that hnetkit, A1111 and ComfyUI read."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hnetkit.errors import DiskFull
from hnetkit.formats.topology import build_mlp
from hnetkit.formats.writing import save
from hnetkit.network import Hypernetwork, MLPPair, ResidualMLP, TensorRef
from hnetkit.runtime.strength import SIDES, Side
from hnetkit.train.build import INITIALISATIONS, Build
from hnetkit.train.initialisation import silence
from hnetkit.train.mlp import MLP
from hnetkit.train.modules import TrainedNetwork

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


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

    Files hold both sides of a width. A side that was not trained gets an MLP of the same build that gives 0.

    Args:
        name: that A1111 shows.
        step: steps of training.
        model_name, model_hash: of the model that it was trained on; A1111 keeps the hash's first 10 digits.
        extra: more keys, or others in place of A1111's: text, numbers, lists and tuples.
    """
    build = network.build
    mlps = {}
    for width in network.widths:
        trained = {side: network.mlp(width, side) for side in build.sides}
        silent = _silent(trained[build.sides[0]])
        pair = (_as_read(trained.get(side, silent), build, width, side) for side in SIDES)
        mlps[width] = MLPPair(*pair)
    metadata = {**_metadata(build, name, step), "sd_checkpoint": model_hash and model_hash[:10]}
    metadata["sd_checkpoint_name"] = model_name
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
            if error.errno not in _NO_ROOM:
                raise
            raise DiskFull(f"{path}: no room to write it", hint="make room and give the same command again") from error
    return paths


def _silent(mlp: MLP) -> MLP:
    silent = copy.deepcopy(mlp)
    silence(silent.linear)
    return silent


def _as_read(mlp: MLP, build: Build, width: int, side: Side) -> ResidualMLP:
    tensors = {name: TensorRef.of(tensor) for name, tensor in mlp.state_dict().items()}
    return build_mlp(
        tensors,
        width,
        activation=build.activation,
        activate_output=build.activate_output,
        dropout=build.dropout[1:],
        where=f"{width}.{side}",
    )


def _metadata(build: Build, name: str, step: int) -> dict[str, Any]:
    """A1111's keys, in its order. `activation_func` is never None: ComfyUI would drop the network."""
    dropout = list(build.dropout) or [0.0] * len(build.structure)
    sides = " and ".join(side.upper() for side in build.sides)
    return {
        "step": step,
        "name": name,
        "layer_structure": list(build.structure),
        "activation_func": build.activation or "linear",
        "is_layer_norm": build.layer_norm,
        "weight_initialization": INITIALISATIONS[build.initialisation],
        "use_dropout": any(dropout),
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        "activate_output": build.activate_output,
        "last_layer_dropout": dropout[-2] != 0,
        "dropout_structure": dropout,
        "optional_info": None if len(build.sides) == len(SIDES) else f"only {sides} was trained",
    }
