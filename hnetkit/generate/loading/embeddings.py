"""Textual inversions: files whose name in a prompt stands for vectors of the text encoder's vocabulary."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import AmbiguousName, HnetkitError, ModelNotUsable, NotFound, UnsafeFile, failure_of
from hnetkit.formats import pickle_reader
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import refuse_sparse
from hnetkit.formats.safetensors_file import read_safetensors
from hnetkit.formats.torch_file import LEGACY_MAGIC, read_torch_legacy, read_torch_zip
from hnetkit.generate.loading.state_dicts import HARMLESS, refuse_more_than_the_file
from hnetkit.library.scan import model_files
from hnetkit.network import TensorRef
from hnetkit.text import shorten

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".bin")

MAX_VECTORS = 1000  # of one file; a prompt holds 75 at a time

_SECOND_ENCODER = "clip_g"
_ANOTHER = "get the file again, or take its name out of the prompt"
_PARAMETERS = "torch.nn.modules.container.ParameterDict"  # in which the first trainer of all saved its vectors


def find_embeddings(texts: Iterable[str], folder: str | None) -> list[Path]:
    """Returns the files of a folder whose stem is a word of one of the texts; case does not matter.

    Raises:
        NotFound: the folder is not there.
        AmbiguousName: two files have one name, in which case does not count.
    """
    if folder is None:
        return []
    if not os.path.isdir(folder):
        raise NotFound(f"{folder}: no such folder", hint="hnetkit config embeddings FOLDER")
    together = "\n".join(texts)
    files = (path for path in model_files(Path(folder)) if path.suffix.lower() in SUFFIXES)
    named = (path for path in files if is_named(path, together))
    found: dict[str, Path] = {}
    for path in named:
        if (other := found.setdefault(path.stem.lower(), path)) != path:
            raise AmbiguousName(
                f"{path.stem}: several textual inversions have this name: {other}, {path}", hint="move one of them away"
            )
    return list(found.values())


def is_named(path: Path, text: str) -> bool:
    """Whether a file's stem is a word of a text; case does not matter."""
    return re.search(rf"(?<!\w){re.escape(path.stem)}(?!\w)", text, re.IGNORECASE) is not None


def load_embeddings(
    pipe: Any, files: Iterable[Path], failed: Callable[[Path, HnetkitError], object] | None = None
) -> None:
    """Adds the vectors of files to a pipeline's vocabulary, under their stems in lower case.

    Args:
        failed: called with each file that cannot be used, and why; without it the first one raises.

    Raises:
        ModelNotUsable: a file holds no vectors, or those of another base model.
        FileRefused: it cannot be read safely.
    """
    for path in files:
        try:
            _load(pipe, path)
        except Exception as error:
            if failed is None:
                raise
            failed(path, failure_of(error, str(path)))


def _load(pipe: Any, path: Path) -> None:
    vectors, name, second = read_vectors(path), path.stem.lower(), getattr(pipe, "text_encoder_2", None)
    _add(pipe, path, name, vectors.get("clip_l"), pipe.text_encoder, pipe.tokenizer)
    if second is not None:
        _add(pipe, path, name, vectors.get(_SECOND_ENCODER), second, pipe.tokenizer_2)


@contextmanager
def embeddings_loaded(
    pipe: Any, files: Sequence[Path], failed: Callable[[Path, HnetkitError], object] | None = None
) -> Iterator[None]:
    """Has the vectors of files in a pipeline's vocabulary, as `load_embeddings` adds them, while the block lasts."""
    encoders = [(pipe.text_encoder, pipe.tokenizer)]
    if getattr(pipe, "text_encoder_2", None) is not None:
        encoders.append((pipe.text_encoder_2, pipe.tokenizer_2))
    known = [frozenset(tokenizer.get_vocab()) for _, tokenizer in encoders]
    try:
        load_embeddings(pipe, files, failed)
        yield
    finally:
        for (encoder, tokenizer), before in zip(encoders, known, strict=True):
            tokens = [token.content for token in tokenizer.added_tokens_decoder.values()]
            if added := [token for token in tokens if token not in before]:
                pipe.unload_textual_inversion(added, text_encoder=encoder, tokenizer=tokenizer)


def read_vectors(path: Path) -> dict[str, Tensor]:
    """Returns vectors ``[number, width]`` for ``clip_l``, the only or first text encoder, and ``clip_g``.

    Raises:
        ModelNotUsable: there are none, or more than a textual inversion has.
        FileRefused: the file cannot be read safely.
    """
    with OpenFile(path) as file:
        refuse_sparse(file)
        matrices = {name: tensor for name, tensor in _tensors(file) if len(tensor.shape) in (1, 2) and tensor.numel}
        refuse_more_than_the_file(file, (tensor.nbytes for tensor in matrices.values()))
        if _SECOND_ENCODER in matrices:
            chosen = {name: matrices[name] for name in ("clip_l", _SECOND_ENCODER) if name in matrices}
        elif len(matrices) == 1:
            chosen = {"clip_l": next(iter(matrices.values()))}
        else:
            raise ModelNotUsable(f"{path}: no textual inversion ({len(matrices)} matrices in it; one is expected)")
        number = max(tensor.numel // tensor.shape[-1] for tensor in chosen.values())
        if number > MAX_VECTORS:
            raise ModelNotUsable(f"{path}: no textual inversion ({number} vectors in it)")
        vectors = {name: tensor.torch().reshape(-1, tensor.shape[-1]) for name, tensor in chosen.items()}
        if not all(bool(tensor.isfinite().all()) for tensor in vectors.values()):
            raise ModelNotUsable(f"{path}: a textual inversion with values that are no finite numbers", hint=_ANOTHER)
        return vectors


def _tensors(file: OpenFile) -> Iterator[tuple[Any, TensorRef]]:
    """Yields the tensors of a file by their keys, none of them read."""
    head = file.read_at(0, min(file.size, 4096))
    if len(head) > 8 and head[8:9] == b"{":
        source = read_safetensors(file)
        yield from ((name, source.tensor(name)) for name in source.entries)
        return
    torch_file = read_torch_legacy(file) if head.startswith(LEGACY_MAGIC) else read_torch_zip(file)
    if torch_file is None or not isinstance(torch_file.value, dict):
        raise ModelNotUsable(f"{file.path}: no textual inversion")
    for name in torch_file.foreign:
        if name not in HARMLESS and name != _PARAMETERS:
            raise UnsafeFile(f"{file.path}: asks for {shorten(name, 80)}, which no textual inversion needs")
    inner: Any = torch_file.value.get("string_to_param", torch_file.value)
    if isinstance(inner, pickle_reader.Foreign) and inner.name == _PARAMETERS and isinstance(inner.state, dict):
        inner = inner.state.get("_parameters")
    for key, item in inner.items() if isinstance(inner, dict) else ():
        if isinstance(item, pickle_reader.TensorStub):
            yield key, torch_file.tensor(item, shorten(key))


def _add(pipe: Any, path: Path, name: str, vectors: Tensor | None, encoder: Any, tokenizer: Any) -> None:
    width = encoder.get_input_embeddings().weight.shape[1]
    if vectors is None or vectors.shape[1] != width:
        has = "no vectors for it" if vectors is None else f"vectors of width {vectors.shape[1]}"
        raise ModelNotUsable(
            f"{path}: a textual inversion of another base model (the text encoder is {width} wide; it has {has})",
            hint=f"take {path.stem} out of the prompt",
        )
    # diffusers gives a token to each vector: NAME, NAME_1, NAME_2 ...
    tokens = {name, *(f"{name}_{number}" for number in range(1, len(vectors)))}
    if taken := tokens & tokenizer.get_vocab().keys():
        raise ModelNotUsable(
            f"{path}: the text encoder knows {shorten(min(taken))} already, and a textual inversion cannot replace it",
            hint=f"give the file another name, or take {path.stem} out of the prompt",
        )
    pipe.load_textual_inversion({name: vectors}, token=name, text_encoder=encoder, tokenizer=tokenizer)
