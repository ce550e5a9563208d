"""Textual inversions: files whose name in a prompt stands for vectors of the text encoder's vocabulary."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import ModelNotUsable, NotFound, UnsafeFile
from hnetkit.formats import pickle_values
from hnetkit.formats.safetensors_file import read_safetensors
from hnetkit.formats.source import OpenFile
from hnetkit.formats.torch_file import LEGACY_MAGIC, read_torch_legacy, read_torch_zip
from hnetkit.generate.loading.state_dicts import HARMLESS

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".bin")

_SECOND_ENCODER = "clip_g"


def find_embeddings(texts: Iterable[str], folder: str | None) -> list[Path]:
    """Returns the files of a folder whose stem is a word of one of the texts; case does not matter.

    Raises:
        NotFound: the folder is not there.
    """
    if folder is None:
        return []
    if not os.path.isdir(folder):
        raise NotFound(f"{folder}: no such folder", hint="hnetkit config embeddings FOLDER")
    together = "\n".join(texts)
    files = (path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())
    return [path for path in files if re.search(rf"(?<!\w){re.escape(path.stem)}(?!\w)", together, re.IGNORECASE)]


def load_embeddings(pipe: Any, files: Iterable[Path]) -> None:
    """Adds the vectors of files to a pipeline's vocabulary, under their stems in lower case.

    Raises:
        ModelNotUsable: a file holds no vectors, or those of another base model.
        FileRefused: it cannot be read safely.
    """
    second = getattr(pipe, "text_encoder_2", None)
    for path in files:
        vectors, name = read_vectors(path), path.stem.lower()
        _add(pipe, path, name, vectors.get("clip_l"), pipe.text_encoder, pipe.tokenizer)
        if second is not None:
            _add(pipe, path, name, vectors.get(_SECOND_ENCODER), second, pipe.tokenizer_2)


def read_vectors(path: Path) -> dict[str, Tensor]:
    """Returns vectors ``[number, width]`` for ``clip_l``, the only or first text encoder, and ``clip_g``.

    Raises:
        ModelNotUsable: there are none.
        FileRefused: the file cannot be read safely.
    """
    with OpenFile(path) as file:
        found = dict(_tensors(file))
        if _SECOND_ENCODER in found:
            return {name: found[name] for name in ("clip_l", _SECOND_ENCODER) if name in found}
        matrices = [tensor for tensor in found.values() if tensor.ndim in (1, 2)]
        if len(matrices) != 1:
            raise ModelNotUsable(f"{path}: no textual inversion ({len(matrices)} matrices in it; one is expected)")
        return {"clip_l": matrices[0].reshape(-1, matrices[0].shape[-1])}


def _tensors(file: OpenFile) -> Iterator[tuple[str, Tensor]]:
    head = file.read_at(0, min(file.size, 4096))
    if len(head) > 8 and head[8:9] == b"{":
        source = read_safetensors(file)
        yield from ((name, source.tensor(name).torch()) for name in source.entries)
        return
    torch_file = read_torch_legacy(file) if head.startswith(LEGACY_MAGIC) else read_torch_zip(file)
    if torch_file is None or not isinstance(torch_file.value, dict):
        raise ModelNotUsable(f"{file.path}: no textual inversion")
    for name in torch_file.foreign:
        if name not in HARMLESS:
            raise UnsafeFile(f"{file.path}: asks for {name[:80]}, which no textual inversion needs")
    inner: Mapping[Any, Any] = torch_file.value.get("string_to_param", torch_file.value)
    for key, item in inner.items() if isinstance(inner, dict) else ():
        if isinstance(item, pickle_values.Tensor):
            yield str(key), torch_file.tensor(item, str(key)).torch()


def _add(pipe: Any, path: Path, name: str, vectors: Tensor | None, encoder: Any, tokenizer: Any) -> None:
    width = encoder.get_input_embeddings().weight.shape[1]
    if vectors is None or vectors.shape[1] != width:
        has = "no vectors for it" if vectors is None else f"vectors of width {vectors.shape[1]}"
        raise ModelNotUsable(
            f"{path}: a textual inversion of another base model (the text encoder is {width} wide; it has {has})",
            hint=f"take {path.stem} out of the prompt",
        )
    pipe.load_textual_inversion({name: vectors}, token=name, text_encoder=encoder, tokenizer=tokenizer)
