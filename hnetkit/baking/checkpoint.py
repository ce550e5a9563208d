"""A copy of a model's files with a stack in the weights of its UNet, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hnetkit.baking.changes import Changes, output_shift
from hnetkit.baking.key_sets import Outputs
from hnetkit.baking.record import refuse_all_but_baked
from hnetkit.errors import DiskFull, FileRefused, NotFound, OutputExists, UsageError
from hnetkit.files import (
    SAFETENSORS_SUFFIXES,
    is_file_at,
    is_folder_at,
    is_link_elsewhere,
    is_model_name,
    is_there,
    new_file,
    new_folder,
    read_regular,
    refuse_any,
    stat_at,
    suffixed,
)
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.safetensors_file import read_safetensors
from hnetkit.formats.writing import write_header
from hnetkit.generate.loading.checkpoints import MOST_YAML, configuration_of, read_state_dict
from hnetkit.generate.loading.configs import read_object
from hnetkit.generate.loading.diffusers_folder import part_weights, read_model_index, variant_of, weight_files
from hnetkit.generate.loading.parts import names_in_checkpoint
from hnetkit.kernels.affine import to_float64
from hnetkit.network import DType, TensorRef
from hnetkit.text import argument, size_text

_CHUNK = 4 << 20  # bytes
_CONFIGURATION = ".yaml"
_UNET = "model.diffusion_model."
_WEIGHTS = "diffusion_pytorch_model"
_INDEX = f"{_WEIGHTS}.safetensors.index.json"
_PART = re.compile(r"\w+")  # a name of a part, which is that of its folder; anything else may lead elsewhere
_SPARE = 1.02
_COARSEST: Mapping[str, DType] = {"BF16": "bf16", "F16": "fp16"}


def differences(changes: Changes, outputs: Outputs) -> dict[str, Tensor]:
    """Returns what is added to each tensor of a UNet, by diffusers' name, in float64."""
    found: dict[str, Tensor] = {}
    for (layer, side), change in changes.items():
        found[f"{layer.name}.to_{side}.weight"] = change.matrix
        if change.constant is not None:
            found[f"{layer.name}.to_out.0.bias"] = output_shift(change, outputs[layer])
    return found


def weights_dtype(model: str) -> DType:
    """Returns the type of the weights in a model's files that a stack goes into: of several, that with fewest bits.

    Raises:
        NotFound, UsageError, ModelNotUsable: as `require_copyable`, of the model.
        FileRefused: a file cannot be read.
    """
    _require_source(model)
    found: set[str] = set()
    for path in _unet_files(Path(model)) if is_folder_at(model) else [Path(model)]:
        with OpenFile(path) as file:
            entries = read_safetensors(file).entries
        found |= {entry.dtype for name, entry in entries.items() if name.endswith(("to_k.weight", "to_v.weight"))}
    return next((short for code, short in _COARSEST.items() if code in found), "fp32")


def require_copyable(model: str, path: Path, *, overwrite: bool) -> None:
    """Checks that a copy of a model with other weights can be written to `path`.

    Args:
        model: a folder in diffusers' layout, or a checkpoint in one file.

    Raises:
        UsageError: the checkpoint is a pickle, or `path` does not suit what is copied.
        ModelNotUsable: the folder is no pipeline, or has no weights that are not pickled.
        OutputExists: there is something at `path`.
        NotFound: the model is no file or folder, or the folder that `path` is to be in is not there.
        DiskFull: the disk has no room for it.
    """
    _require_source(model)
    if not is_folder_at(path.parent):
        raise NotFound(f"{path.parent}: no such folder")
    is_file = is_file_at(model)
    if is_file and path.suffix.lower() not in SAFETENSORS_SUFFIXES:
        raise UsageError(
            f"{path}: a copy of one file is one file",
            hint=f"--out {argument(suffixed(path, '.safetensors'), is_path=True)}",
        )
    if not is_file and is_model_name(path.name):
        hint = f"--out {argument(suffixed(path, ''), is_path=True)}"
        raise UsageError(f"{path}: the model is a folder, and so is its copy", hint=hint)
    if stat_at(path) is not None and os.path.samefile(model, path):
        raise UsageError(f"{path}: the model itself, which is never changed", hint="choose another name")
    if is_file:
        refuse_all_but_baked(path, overwrite=overwrite)
        _configuration_for(model, path)
        size = os.path.getsize(model)
    else:
        refuse_any(path)
        size = sum(os.path.getsize(file) for file, _ in _files_of_folder(Path(model)))
    free = shutil.disk_usage(path.parent).free
    if size * _SPARE > free:
        raise DiskFull(
            f"{path}: {size_text(int(size))} are written, and the disk has {size_text(free)} left",
            hint="make room, or choose another disk",
        )


def _require_source(model: str) -> None:
    if stat_at(model) is None:
        raise NotFound(f"{model}: no file or folder that can be copied", hint="--model FOLDER or FILE")
    if is_file_at(model) and Path(model).suffix.lower() not in SAFETENSORS_SUFFIXES:
        raise UsageError(
            f"{model}: copies are made of .safetensors files alone", hint="--to lora, which goes with any checkpoint"
        )
    if is_folder_at(model):
        read_model_index(Path(model))
        _unet_files(Path(model))


def write_checkpoint(
    model: str, path: Path, added: Mapping[str, Tensor], metadata: Mapping[str, str], *, overwrite: bool
) -> None:
    """Writes a copy of a model with differences added to its UNet's weights, each rounded once to its own dtype.

    Args:
        model: as for `require_copyable`.
        path: a file for a file, a folder for a folder.
        added: by diffusers' names of the UNet's tensors.
        metadata: added to the header of each file that differs.

    Raises:
        As `require_copyable`.
        FileRefused: a tensor is not there, has another shape, or is of a type that cannot be added to.
    """
    require_copyable(model, path, overwrite=overwrite)
    if is_file_at(model):
        state = read_state_dict(model)
        shapes = {name: shape for name, shape in state.shapes.items() if name.startswith(_UNET)}
        if f"{_UNET}conv_in.weight" in shapes:
            named = {name: f"{_UNET}{name}" for name in added}
        else:
            named = names_in_checkpoint(configuration_of(state), shapes)
        _require_all(model, added, named)
        configuration = _configuration_for(model, path)
        if configuration is not None:
            with new_file(path.with_suffix(_CONFIGURATION)) as file:
                file.write(configuration)
        with new_file(path, overwrite=overwrite) as file:
            _copy_weights(Path(model), file, {named[name]: tensor for name, tensor in added.items()}, metadata)
        return
    folder, left = Path(model), dict(added)
    with new_folder(path) as target:
        for source, place in _files_of_folder(folder):
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            with new_file(target / place) as file:
                if place.parts[0] == "unet" and source.suffix == ".safetensors":
                    here = _names_in(source, left)
                    _copy_weights(source, file, here, metadata)
                    left = {name: tensor for name, tensor in left.items() if name not in here}
                else:
                    _copy_bytes(source, file)
        _require_all(model, left, {})


def _configuration_for(model: str, path: Path) -> bytes | None:
    """Returns what is to be written beside the copy of a checkpoint: it says what the UNet predicts, under its name.

    None where nothing is beside the checkpoint, or the same beside the copy already.

    Raises:
        FileRefused: it is a link to a file elsewhere.
        OutputExists: something else has its place: that may be a person's, and what it says a stranger's.
    """
    beside, place = Path(model).with_suffix(_CONFIGURATION), path.with_suffix(_CONFIGURATION)
    if is_link_elsewhere(beside, Path(model)):
        raise _elsewhere(beside)
    try:
        configuration = read_regular(beside, most=MOST_YAML)
    except (FileNotFoundError, ValueError):  # what is too large for one is not read as one either
        return None
    if not is_there(place):
        return configuration
    with suppress(OSError, ValueError):
        if read_regular(place, most=len(configuration)) == configuration:
            return None
    raise OutputExists(f"{place}: there, and not what lies beside the model", hint="choose another name for the copy")


def _require_all(model: str, added: Mapping[str, Tensor], named: Mapping[str, str]) -> None:
    if missing := [name for name in added if name not in named]:
        raise FileRefused(f"{model}: its UNet has no tensor {missing[0]}", hint="get the model again")


def _files_of_folder(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yields each file of a pipeline that is copied, and its place in the copy.

    Weights of the UNet in other variants are left out: the stack would not be in them. So is what is no name of a part.

    Raises:
        FileRefused: a file is a link to one elsewhere; the folder may be a stranger's, and the file a private one.
    """
    for path in _named_files(folder):
        if not _is_within(folder, path):
            raise _elsewhere(path)
        yield path, path.relative_to(folder)


def _elsewhere(path: Path) -> FileRefused:
    reason = "a link to a file elsewhere, which is not copied"
    return FileRefused(f"{path}: {reason}", hint="put the file itself there, if it belongs to the model")


def _is_within(folder: Path, path: Path) -> bool:
    """Whether a file lies in a folder, wherever links lead; in the hub's cache they lead to the blobs of the model."""
    real, own = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    places = [own, own.parent.parent / "blobs"] if own.parent.name == "snapshots" else [own]
    return any(real.is_relative_to(place) for place in places)


def _named_files(folder: Path) -> Iterator[Path]:
    unet = _unet_files(folder)
    kept = {path.name for path in unet} | ({_INDEX} if variant_of(unet[0]) is None else set())
    index = read_object(folder / "model_index.json")
    parts = [name for name, value in index.items() if isinstance(value, list) and value != [None, None]]
    yield from (folder / name for name in sorted(os.listdir(folder)) if name.endswith(".json"))
    # people remove a safety checker, and the index names it still
    for part in sorted(name for name in parts if _PART.fullmatch(name) and is_folder_at(folder / name)):
        for path in _files_below(folder / part):
            if part != "unet" or not path.name.startswith(_WEIGHTS) or path.name in kept:
                yield path


def _unet_files(folder: Path) -> list[Path]:
    """Returns the files of a pipeline that hold the weights of its UNet, of the variant that is loaded."""
    found = weight_files(folder)
    return part_weights(folder / "unet", variant_of(found[0]) if found else None)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yields all files in a folder and in those below; OSError where one cannot be listed."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        yield from (Path(place, name) for name in sorted(names))


def _names_in(path: Path, added: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with OpenFile(path) as file:
        entries = read_safetensors(file).entries
    return {name: tensor for name, tensor in added.items() if name in entries}


def _copy_weights(path: Path, file: BinaryIO, added: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    with OpenFile(path) as opened:
        source = read_safetensors(opened)
        refs = {name: source.tensor(name) for name in added}
        begin = min((entry.offset for entry in source.entries.values()), default=0)  # a shard may have none
        header: dict[str, Any] = {"__metadata__": {**source.metadata, **metadata}}
        for name, entry in source.entries.items():
            offsets = [entry.offset - begin, entry.offset - begin + source.nbytes(name)]
            header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        write_header(file, header, str(path))
        # they tile the file; an empty tensor lies where the next one begins
        for name in sorted(source.entries, key=lambda name: (source.entries[name].offset, source.nbytes(name))):
            if name in refs:
                file.write(_sum(name, refs[name], added[name], path))
            else:
                begin = source.entries[name].offset
                _copy_range(opened, file, begin, begin + source.nbytes(name))


def _copy_range(source: OpenFile, file: BinaryIO, begin: int, end: int) -> None:
    for offset in range(begin, end, _CHUNK):
        file.write(source.read_at(offset, min(_CHUNK, end - offset)))


def _copy_bytes(path: Path, file: BinaryIO) -> None:
    with OpenFile(path) as source:
        _copy_range(source, file, 0, source.size)


def _sum(name: str, ref: TensorRef, added: Tensor, path: Path) -> bytes:
    own = ref.torch()
    if own.shape != added.shape:
        raise FileRefused(f"{path}: {name} is {list(own.shape)}, where the model has {list(added.shape)}")
    total = (to_float64(own) + added.cpu()).to(own.dtype)
    if not torch.isfinite(total).all():
        raise FileRefused(f"{path}: {name} would not fit {ref.dtype}", hint="a model in fp32, or lower strengths")
    return total.contiguous().view(torch.uint8).numpy().tobytes()
