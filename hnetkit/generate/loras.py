"""LoRAs that a prompt asks for beside hypernetworks, through diffusers and PEFT.

The libraries are given tensors, which hnetkit's own reader read: never a path, behind which they would look for other
files, and nothing of what a file says of itself but its scale.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import AmbiguousName, FileChanged, ModelNotUsable, NotFound, UsageError
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import refuse_sparse
from hnetkit.formats.safetensors_file import SafetensorsFile, read_safetensors
from hnetkit.generate.memory import is_out_of_memory
from hnetkit.hashes import sha256_of
from hnetkit.library.scan import model_files
from hnetkit.limits import parse_json
from hnetkit.prompts.tags import LoraTag
from hnetkit.text import argument, shorten

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIX = ".safetensors"

# PEFT makes patterns of names
_NAME = re.compile(r"[\w.-]{1,400}")
# the first of the two projections, and what of its name is another in the second
_PAIR = re.compile(r"(.*(?:lora|lora_linear_layer)[._])(A|down)((?:\.\w+)?\.weight)")
_SECOND: Mapping[str, str] = {"A": "B", "down": "up"}
_WHOLE_NUMBERS: Mapping[str, int] = {"I8": 1, "U8": 1, "I16": 2, "I32": 4, "I64": 8}
# what diffusers writes beside the tensors of a LoRA
_METADATA = "lora_adapter_metadata"
_MOST_METADATA = 8 << 20
_BUNDLED = "bundle_emb."
_ANOTHER = "get the file again, or take its tag out of the prompt"
_LARGEST = 1e9  # of an alpha; a rank is at most a few thousand
_PARTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Lora:
    """A LoRA that was found: what its tag says, and its file."""

    tag: LoraTag
    path: Path

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of its file's sha256."""
        with OpenFile(self.path) as file:
            refuse_sparse(file)
            return sha256_of(file)[:10]


def find_loras(tags: Sequence[LoraTag], folder: str | None) -> list[Lora]:
    """Returns the file of each tag, by its stem, from a folder and those in it.

    Raises:
        UsageError: no folder was named, or PEFT is not installed.
        NotFound: no file has this name; the hint is the nearest one.
        AmbiguousName: several have it.
    """
    if not tags:
        return []
    if folder is None:
        raise UsageError(f"<lora:{tags[0].name}>: no folder of LoRAs is set", hint="hnetkit config loras FOLDER")
    if find_spec("peft") is None:
        raise UsageError("LoRAs need the package peft", hint="pip install peft")
    files: dict[str, list[Path]] = {}
    for path in model_files(Path(folder)):
        if path.suffix == _SUFFIX:
            files.setdefault(path.stem, []).append(path)
    return [Lora(tag, _only(tag.name, files, folder)) for tag in tags]


def _untold(note: str) -> None:
    """Nobody is told."""


def put_on_loras(pipe: Any, loras: Sequence[Lora], note: Callable[[str], None] = _untold) -> None:
    """Loads LoRAs onto a pipeline and puts them in effect at their tags' strengths.

    Args:
        note: told which of them belong on this model only in part.

    Raises:
        ModelNotUsable: one is no LoRA, or does not belong on this model.
        FileRefused: a file that cannot be read safely.
    """
    names = [f"lora{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        before, tensors = lora.hash, read_lora(lora.path)
        if Lora(lora.tag, lora.path).hash != before:  # a grid asked for it long ago, and by it knows its pictures
            raise FileChanged(f"{lora.path}: the file is another one than before", hint="give the same command again")
        try:
            pipe.load_lora_weights(tensors, adapter_name=name)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelNotUsable(f"{lora.path}: cannot be put on this model ({reason})") from error
        layers = sum(_PAIR.fullmatch(key) is not None for key in tensors)
        reached = _layers_with(pipe, name)
        if not reached:  # the libraries pass over what they do not know
            raise ModelNotUsable(f"{lora.path}: cannot be put on this model (none of its layers is in it)")
        if reached < layers:
            note(f"Warning: {lora.path}: {layers - reached} of its {layers} layers are not in this model")
    if loras:
        strengths = [_strengths(pipe, lora.tag) for lora in loras]
        pipe.set_adapters(names, adapter_weights=strengths)


def _layers_with(pipe: Any, adapter: str) -> int:
    """Returns how many layers of a pipeline an adapter is on."""
    parts = [getattr(pipe, part, None) for part in _PARTS]
    modules = [module for part in parts if part is not None for module in part.modules()]
    return sum(adapter in getattr(module, "lora_A", ()) for module in modules)


def read_lora(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a LoRA by name; a scale that the file states beside them is in them.

    Raises:
        ModelNotUsable: its names, shapes or numbers are no LoRA's.
        FileRefused: the file cannot be read safely.
    """
    import torch

    with OpenFile(path) as file:
        source = read_safetensors(file)
        for name, entry in source.entries.items():
            if name.startswith(_BUNDLED):
                raise ModelNotUsable(f"{path}: has a textual inversion inside ({shorten(name)}), which is not applied")
            if not _NAME.fullmatch(name) or 0 in entry.shape:
                raise ModelNotUsable(f"{path}: no LoRA: a tensor {name[:80]!r} of shape {list(entry.shape)[:8]}")
        tensors = {name: _tensor(source, name) for name in source.entries}
        for name, scale in _stated_scales(path, source).items():
            tensors[name] = tensors[name] * scale
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()) and not name.endswith("alpha"):
            raise ModelNotUsable(f"{path}: {shorten(name)} has values that are no finite numbers", hint=_ANOTHER)
        if name.endswith("alpha") and not (tensor.numel() == 1 and bool(torch.isfinite(tensor).all())):
            raise ModelNotUsable(f"{path}: no LoRA: {name} is no number")
    return tensors


def _tensor(source: SafetensorsFile, name: str) -> Tensor:
    """Returns a tensor; of whole numbers, in which some trainers write a scale, one alone."""
    import torch

    entry = source.entries[name]
    if entry.dtype in _WHOLE_NUMBERS and math.prod(entry.shape) == 1:
        data = source.file.read_at(entry.offset, _WHOLE_NUMBERS[entry.dtype])
        return torch.tensor(float(int.from_bytes(data, "little", signed=entry.dtype[0] == "I"))).reshape(entry.shape)
    return source.tensor(name).torch()


def _stated_scales(path: Path, source: SafetensorsFile) -> dict[str, float]:
    """Returns for each up-projection what its product is to be multiplied by; names without one are left out.

    Raises:
        ModelNotUsable: the projections of a pair are of different ranks, or one is missing.
    """
    stated = _metadata(source)
    scales = {}
    for name, entry in source.entries.items():
        if not (match := _PAIR.fullmatch(name)):
            continue
        up = f"{match[1]}{_SECOND[match[2]]}{match[3]}"
        shape = source.entries[up].shape if up in source.entries else ()
        if len(shape) < 2 or len(entry.shape) < 2 or shape[1] != entry.shape[0]:
            raise ModelNotUsable(f"{path}: no LoRA: {name[:120]} and its counterpart do not fit each other")
        part = next((part for part in _PARTS if name.startswith(f"{part}.")), None)
        if part is None or stated.get(f"{part}.lora_alpha") is None:
            continue
        rank, module = entry.shape[0], name.removeprefix(f"{part}.").partition(".lora_")[0]
        pattern = stated.get(f"{part}.alpha_pattern")
        alpha = pattern.get(module) if isinstance(pattern, dict) else None
        alpha = stated[f"{part}.lora_alpha"] if alpha is None else alpha
        if type(alpha) not in (int, float) or not abs(alpha) < _LARGEST:
            raise ModelNotUsable(f"{path}: no LoRA: its lora_alpha is no number")
        scales[up] = alpha / (math.sqrt(rank) if stated.get(f"{part}.use_rslora") is True else rank)
    return scales


def _metadata(source: SafetensorsFile) -> dict[str, Any]:
    try:
        said = parse_json(source.metadata.get(_METADATA, "{}"), most=_MOST_METADATA)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def hashes_of_loras(loras: Sequence[Lora]) -> dict[str, str]:
    """Returns the infotext's entry for each LoRA."""
    return {f"lora:{lora.tag.name}": lora.hash for lora in loras}


def _strengths(pipe: Any, tag: LoraTag) -> dict[str, float]:
    encoders = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    return {"unet": tag.unet_multiplier, **dict.fromkeys(encoders, tag.te_multiplier)}


def _only(name: str, files: dict[str, list[Path]], folder: str) -> Path:
    found = files.get(name, [])
    if not found:
        near = difflib.get_close_matches(name, files, n=1)
        hint = f"did you mean {argument(near[0])}?" if near else f"LoRAs are looked for in {folder}, as {_SUFFIX} files"
        raise NotFound(f"{name}: no LoRA has this name", hint=hint)
    if len(found) > 1:
        raise AmbiguousName(f"{name}: several LoRAs have this name: {', '.join(map(str, found))}")
    return found[0]
