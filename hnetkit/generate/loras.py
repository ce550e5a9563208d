"""LoRAs that a prompt asks for beside hypernetworks, through diffusers and PEFT."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hnetkit.errors import AmbiguousName, ModelNotUsable, NotFound, UsageError
from hnetkit.formats.source import OpenFile
from hnetkit.hashes import sha256_of
from hnetkit.prompts.tags import LoraTag

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Lora:
    """A LoRA that was found: what its tag says, and its file."""

    tag: LoraTag
    path: Path

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of its file's sha256."""
        return sha256_of(OpenFile(self.path))[:10]


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
    for path in sorted(Path(folder).rglob(f"*{_SUFFIX}")):
        files.setdefault(path.stem, []).append(path)
    return [Lora(tag, _only(tag.name, files, folder)) for tag in tags]


def put_on_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Loads LoRAs onto a pipeline and puts them in effect at their tags' strengths.

    Raises:
        ModelNotUsable: one does not belong on this model.
    """
    names = [f"lora{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        try:
            pipe.load_lora_weights(os.fspath(lora.path), adapter_name=name, local_files_only=True)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelNotUsable(f"{lora.path}: cannot be put on this model ({reason})") from error
    if loras:
        strengths = [_strengths(pipe, lora.tag) for lora in loras]
        pipe.set_adapters(names, adapter_weights=strengths)


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
        hint = f"did you mean {near[0]}?" if near else f"LoRAs are looked for in {folder}, as {_SUFFIX} files"
        raise NotFound(f"{name}: no LoRA has this name", hint=hint)
    if len(found) > 1:
        raise AmbiguousName(f"{name}: several LoRAs have this name: {', '.join(map(str, found))}")
    return found[0]
