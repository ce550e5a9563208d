"""LoRAs and textual inversions: found by their names in a prompt, read safely, and attached to a pipeline.

diffusers and PEFT are given tensors, which hnetkit's own reader reads. They never get a path, beside which they would
look for other files, and of a file's metadata only the scale of a LoRA.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import (
    AmbiguousName,
    FileChanged,
    HnetkitError,
    ModelNotUsable,
    NotFound,
    UnsafeFile,
    UsageError,
    did_you_mean,
    failure_of,
)
from hnetkit.files import is_folder_at
from hnetkit.formats import pickle_reader
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.pickle_globals import HARMLESS
from hnetkit.formats.reading import refuse_sparse
from hnetkit.formats.safetensors_file import SafetensorsFile, read_safetensors
from hnetkit.formats.torch_file import LEGACY_MAGIC, read_torch_legacy, read_torch_zip
from hnetkit.generate.backend_errors import first_line, is_out_of_memory, quiet_libraries
from hnetkit.generate.loading.checkpoints import refuse_more_than_the_file
from hnetkit.library.known_hashes import hash_of_file
from hnetkit.limits import parse_json
from hnetkit.network import TensorRef
from hnetkit.prompts.chunks import WordsOf, token_of, words_in
from hnetkit.prompts.tags import LoraTag
from hnetkit.text import argument, shorten, size_text

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING_SUFFIXES = (".safetensors", ".pt", ".bin")

_PICTURE_SUFFIXES = (".png", ".webp", ".jxl", ".avif")  # in which A1111 keeps and reads vectors too

MAX_VECTORS = 1000  # of one file; a prompt holds 75 at a time

_SECOND_ENCODER = "clip_g"
_ANOTHER_EMBEDDING = "get the file again, or take its name out of the prompt"
_PARAMETERS = "torch.nn.modules.container.ParameterDict"  # the container in which the first trainer saved its vectors

_LORA_SUFFIX = ".safetensors"

# the names that are allowed, because PEFT builds patterns of them
_NAME = re.compile(r"[\w.-]{1,400}")
# the name of the first of a layer's two projections; the second differs in group 2
_PAIR = re.compile(r"(.*(?:lora|lora_linear_layer)[._])(A|down)((?:\.\w+)?\.weight)")
_SECOND: Mapping[str, str] = {"A": "B", "down": "up"}
# what follows the name of a layer in that of a projection
_LAYER = re.compile(r"[._]lora(?:_linear_layer)?[._](?:A|down)(?:\.\w+)?\.weight")
# all that the libraries apply: the two projections, their scale, the bias of the second, and DoRA's magnitude
_OF_A_LORA = re.compile(
    r".*(?:lora|lora_linear_layer)[._](?:(?:A|B|down|up)(?:\.\w+)?\.weight|B(?:\.\w+)?\.bias|magnitude_vector.*)"
    r"|.*\.alpha"
)
_WHOLE_NUMBERS: Mapping[str, int] = {"I8": 1, "U8": 1, "I16": 2, "I32": 4, "I64": 8}
# the metadata key under which diffusers writes a LoRA's configuration
_METADATA = "lora_adapter_metadata"
_MOST_METADATA = 8 << 20
_BUNDLED = "bundle_emb."
_ANOTHER_LORA = "get the file again, or take its tag out of the prompt"
_OTHER_LORA = "take its tag out of the prompt; plain LoRAs and LoCons are applied"
# how the tensors of other kinds are named: diffusers leaves some of them out, and names none
_OTHER_KINDS: Mapping[str, re.Pattern[str]] = {
    "a DoRA": re.compile(r".*\.dora_scale"),
    "a LoHa": re.compile(r".*\.hada_\w+"),
    "a LoKr": re.compile(r".*\.lokr_\w+"),
    "an OFT": re.compile(r".*\.oft_\w+"),
    "a LoCon of three matrices (Tucker)": re.compile(r".*\.lora_mid\.weight"),
    "a LyCORIS with whole weights": re.compile(r".*\.diff(?:_b)?"),
    "a LyCORIS with layer norms": re.compile(r".*\.[wb]_norm"),
    "an (IA)3": re.compile(r".*\.on_input"),
}
_LARGEST = 1e9  # of an alpha; a rank is at most a few thousand
_PARTS = ("unet", "text_encoder", "text_encoder_2")
# how much more its layers may take with zeros up to the largest rank: resized ones have ranks from 1 to 128
_MOST_TIMES, _MOST_FILLED = 16, 200_000_000


# --- textual inversions


def find_embeddings(
    texts: Iterable[str], folder: str | None, note: Callable[[str], object] = lambda line: None
) -> list[Path]:
    """Returns the files of a folder whose stem is in one of the texts, word by word and in any case.

    Args:
        note: called with a warning about each place that could not be looked at.

    Raises:
        NotFound: the folder is not there.
        AmbiguousName: the names of two files are the same words.
    """
    if folder is None:
        return []
    if not is_folder_at(folder):
        raise NotFound(f"{folder}: no such folder", hint="hnetkit config embeddings FOLDER")
    from hnetkit.library.walking import Unseen, model_files

    read, unseen = WordsOf(texts), list[Unseen]()
    files = (path for path in model_files(Path(folder), unseen) if path.suffix.lower() in EMBEDDING_SUFFIXES)
    for place in unseen:
        note(f"Warning: {place.path} could not be read ({place.reason}): textual inversions there are plain text")
    named = (path for path in files if read.have(path.stem))
    found: dict[tuple[str, ...], Path] = {}
    for path in named:
        if (other := found.setdefault(words_in(path.stem), path)) != path:
            raise AmbiguousName(
                f"{path.stem}: several textual inversions have this name: {other}, {path}", hint="move one of them away"
            )
    return list(found.values())


def find_unread_embeddings(texts: Iterable[str], folder: str | None) -> list[Path]:
    """Returns the pictures of a folder that may hold the vectors of a word of the texts, and that have no file beside.

    A1111 writes textual inversions into pictures. hnetkit reads the files in `EMBEDDING_SUFFIXES` alone.
    """
    read, pictures, files = WordsOf(texts), [], set[str]()
    for place, _, names in os.walk(folder) if folder is not None else ():
        for path in (Path(place, name) for name in names):
            if path.suffix.lower() in EMBEDDING_SUFFIXES:
                files.add(path.stem.lower())
            elif path.suffix.lower() in _PICTURE_SUFFIXES and read.have(path.stem):
                pictures.append(path)
    return sorted(path for path in pictures if path.stem.lower() not in files)


def load_embeddings(
    pipe: Any, files: Iterable[Path], failed: Callable[[Path, HnetkitError], object] | None = None
) -> None:
    """Adds the vectors of files to a pipeline's vocabulary, under tokens that no text has: see `token_of`.

    Args:
        failed: called with each file that cannot be used and its error; without it the first one raises.

    Raises:
        ModelNotUsable: a file holds no vectors, or vectors for another base model.
        FileRefused: it cannot be read safely.
    """
    for path in files:
        try:
            _load_embedding(pipe, path)
        except Exception as error:
            if failed is None:
                raise
            failed(path, failure_of(error, str(path)))


def _load_embedding(pipe: Any, path: Path) -> None:
    vectors, token, second = read_vectors(path), token_of(path.stem), getattr(pipe, "text_encoder_2", None)
    _add_vectors(pipe, path, token, vectors.get("clip_l"), pipe.text_encoder, pipe.tokenizer)
    if second is not None:
        _add_vectors(pipe, path, token, vectors.get(_SECOND_ENCODER), second, pipe.tokenizer_2)


@contextmanager
def embeddings_loaded(
    pipe: Any, files: Sequence[Path], failed: Callable[[Path, HnetkitError], object] | None = None
) -> Iterator[None]:
    """Keeps the vectors of files in a pipeline's vocabulary inside the block; see `load_embeddings`."""
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
        ModelNotUsable: there are none, or more than `MAX_VECTORS`.
        FileRefused: the file cannot be read safely.
    """
    with OpenFile(path) as file:
        chosen = _chosen_vectors(file)
        vectors = {name: tensor.torch().reshape(-1, tensor.shape[-1]) for name, tensor in chosen.items()}
        if not all(bool(tensor.isfinite().all()) for tensor in vectors.values()):
            raise ModelNotUsable(
                f"{path}: a textual inversion with values that are not finite", hint=_ANOTHER_EMBEDDING
            )
        return vectors


def number_of_vectors(path: Path) -> int:
    """Returns how many vectors the textual inversion in a file has, without reading them; raises as `read_vectors`."""
    with OpenFile(path) as file:
        tensor = next(iter(_chosen_vectors(file).values()))
        return tensor.numel // tensor.shape[-1]


def _chosen_vectors(file: OpenFile) -> dict[str, TensorRef]:
    """Returns the tensors of a textual inversion by the encoders that they are for; raises as `read_vectors`."""
    refuse_sparse(file)
    matrices = {
        name: tensor for name, tensor in _embedding_tensors(file) if len(tensor.shape) in (1, 2) and tensor.numel
    }
    refuse_more_than_the_file(file, (tensor.nbytes for tensor in matrices.values()))
    if _SECOND_ENCODER in matrices:
        chosen = {name: matrices[name] for name in ("clip_l", _SECOND_ENCODER) if name in matrices}
    elif len(matrices) == 1:
        chosen = {"clip_l": next(iter(matrices.values()))}
    else:
        raise ModelNotUsable(f"{file.path}: no textual inversion ({len(matrices)} matrices in it; one is expected)")
    number = max(tensor.numel // tensor.shape[-1] for tensor in chosen.values())
    if number > MAX_VECTORS:
        raise ModelNotUsable(f"{file.path}: no textual inversion ({number} vectors in it)")
    return chosen


def _embedding_tensors(file: OpenFile) -> Iterator[tuple[Any, TensorRef]]:
    """Yields the tensors of a file by their keys, without reading them."""
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
        if isinstance(item, pickle_reader.TensorStub | TensorRef):
            yield key, torch_file.tensor(item, shorten(key))


def _add_vectors(pipe: Any, path: Path, token: str, vectors: Tensor | None, encoder: Any, tokenizer: Any) -> None:
    width = encoder.get_input_embeddings().weight.shape[1]
    if vectors is None or vectors.shape[1] != width:
        has = "no vectors for it" if vectors is None else f"vectors of width {vectors.shape[1]}"
        raise ModelNotUsable(
            f"{path}: a textual inversion of another base model (the text encoder is {width} wide; it has {has})",
            hint=f"take {path.stem} out of the prompt",
        )
    pipe.load_textual_inversion({token: vectors}, token=token, text_encoder=encoder, tokenizer=tokenizer)


# --- LoRAs

_OURS = "hnetkit_"  # begins the names of LoRAs that a prompt puts on a pipeline

ActiveAdapters = list[tuple[Any, tuple[str, ...], bool]]
"""Each layer that has LoRAs, with the names of its active ones, and whether they are disabled."""


@dataclass(frozen=True)
class Lora:
    """A LoRA: its tag and its file."""

    tag: LoraTag
    path: Path

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of its file's sha256."""
        return hash_of_file(self.path)[:10]


def find_loras(tags: Sequence[LoraTag], folder: str | None) -> list[Lora]:
    """Returns the file of each tag, by its stem, from a folder and its subfolders.

    Raises:
        UsageError: no folder is set, or PEFT is not installed.
        NotFound: the folder is not there, or no file has this name; the hint is the nearest one.
        AmbiguousName: several files have it.
    """
    if not tags:
        return []
    if folder is None:
        raise UsageError(f"<lora:{tags[0].name}>: no folder of LoRAs is set", hint="hnetkit config loras FOLDER")
    if not is_folder_at(folder):
        raise NotFound(f"{folder}: no such folder", hint="hnetkit config loras FOLDER")
    if find_spec("peft") is None:
        raise UsageError("LoRAs need the package peft", hint="pip install peft")
    from hnetkit.library.walking import Unseen, model_files

    unseen: list[Unseen] = []
    files: dict[str, list[Path]] = {}
    for path in model_files(Path(folder), unseen):
        if path.suffix == _LORA_SUFFIX:
            files.setdefault(path.stem, []).append(path)
    missed = "".join(f"; {place.path} could not be read: {place.reason}" for place in unseen[:1])
    return [Lora(tag, _file_named(tag.name, files, folder, missed)) for tag in tags]


def attach_loras(pipe: Any, loras: Sequence[Lora], note: Callable[[str], object]) -> None:
    """Loads LoRAs onto a pipeline and activates them at their tags' strengths.

    Args:
        note: called with a warning for each LoRA that fits the model only in part.

    Raises:
        ModelNotUsable: one is not a LoRA, or does not fit this model.
        FileRefused: a file cannot be read safely.
    """
    names = _adapters(loras)
    for name, lora in zip(names, loras, strict=True):
        before, tensors = lora.hash, read_lora(lora.path)
        if Lora(lora.tag, lora.path).hash != before:  # replaced since a grid computed the keys of its images
            raise FileChanged(f"{lora.path}: the file is another one than before", hint="give the same command again")
        layers, modules = sum(_PAIR.fullmatch(key) is not None for key in tensors), sum(1 for _ in _modules(pipe))
        if layers > modules:  # to look for each of very many takes the libraries far longer than to read them
            reason = f"it has {layers:,} layers, and the model {modules:,} parts"
            raise ModelNotUsable(f"{lora.path}: cannot be put on this model ({reason})")
        try:
            with quiet_libraries(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # PEFT's, of merging and of a second LoRA: for developers
                pipe.load_lora_weights(tensors, adapter_name=name)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelNotUsable(f"{lora.path}: cannot be put on this model ({first_line(error)})") from error
        reached = _layers_with(pipe, name)
        if not reached:  # the libraries skip layers that they do not know
            raise ModelNotUsable(f"{lora.path}: cannot be put on this model (none of its layers is in it)")
        if reached < layers:
            note(f"Warning: {lora.path}: {layers - reached} of its {layers} layers are not in this model")
    if loras:
        strengths = [_lora_strengths(pipe, lora.tag) for lora in loras]
        pipe.set_adapters(names, adapter_weights=strengths)
        for module, _, is_disabled in active_adapters(pipe):
            if is_disabled:  # by somebody, for LoRAs that were there before: of a layer, all are or none is
                module.enable_adapters(True)


def detach_loras(pipe: Any, loras: Sequence[Lora], before: ActiveAdapters) -> None:
    """Takes the LoRAs of `attach_loras` off a pipeline, and activates those again that were active before."""
    if not before:
        pipe.unload_lora_weights()
        return
    there = {name for names in pipe.get_list_adapters().values() for name in names}
    for module, active, is_disabled in before:
        module.set_adapter(list(active))
        if is_disabled:
            module.enable_adapters(False)
    with warnings.catch_warnings():  # PEFT speaks of layers that the user's LoRAs do not have
        warnings.simplefilter("ignore")
        pipe.delete_adapters([name for name in _adapters(loras) if name in there])


def active_adapters(pipe: Any) -> ActiveAdapters:
    """Returns the layers of a pipeline that have LoRAs, each with the names of those that are active."""
    layers = (module for module in _modules(pipe) if len(getattr(module, "lora_A", ())))
    return [(module, tuple(module.active_adapters), bool(module.disable_adapters)) for module in layers]


def own_loras(pipe: Any) -> dict[str, list[float]]:
    """Returns the LoRAs that somebody put on a pipeline and that change what it draws, each with its strengths there.

    Those of a prompt are none of them.
    """
    found: dict[str, set[float]] = {}
    for module, active, is_disabled in active_adapters(pipe):
        for name in () if is_disabled else active:
            if name in module.lora_A and not name.startswith(_OURS) and module.scaling[name]:
                found.setdefault(name, set()).add(float(module.scaling[name]))
    return {name: sorted(strengths) for name, strengths in found.items()}


def _adapters(loras: Sequence[Lora]) -> list[str]:
    return [f"{_OURS}{number}" for number in range(len(loras))]


def _modules(pipe: Any) -> Iterator[Any]:
    parts = [getattr(pipe, part, None) for part in _PARTS]
    return (module for part in parts if part is not None for module in part.modules())


def _layers_with(pipe: Any, adapter: str) -> int:
    """Returns the number of a pipeline's layers that have an adapter."""
    return sum(adapter in getattr(module, "lora_A", ()) for module in _modules(pipe))


def read_lora(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a LoRA by name, multiplied by the scale in the file's metadata, if there is one.

    Raises:
        ModelNotUsable: its names, shapes or numbers are not those of a LoRA.
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
            for kind, pattern in _OTHER_KINDS.items():
                if pattern.fullmatch(name):
                    raise ModelNotUsable(f"{path}: not a plain LoRA but {kind}, which is not applied", hint=_OTHER_LORA)
        tensors = {name: _lora_tensor(source, name) for name in source.entries}
        for name, scale in _stated_scales(path, source).items():
            tensors[name] = tensors[name] * scale
    _refuse_unknown_names(path, tensors)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()) and not name.endswith("alpha"):
            raise ModelNotUsable(f"{path}: {shorten(name)} has values that are not finite", hint=_ANOTHER_LORA)
        if name.endswith("alpha") and not (tensor.numel() == 1 and bool(torch.isfinite(tensor).all())):
            raise ModelNotUsable(f"{path}: no LoRA: {name} is not a number")
    return _of_one_scale(path, tensors)


def _refuse_unknown_names(path: Path, names: Iterable[str]) -> None:
    """Raises ModelNotUsable for a tensor that is of no LoRA: the libraries would leave it out in silence."""
    for name in names:
        if not _OF_A_LORA.fullmatch(name):
            raise ModelNotUsable(
                f"{path}: not a plain LoRA: it has {shorten(name)}, which is not applied", hint=_OTHER_LORA
            )


def _of_one_scale(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors that give each layer its own strength, although diffusers' loader may take one for all of them.

    Where alphas or ranks differ by layer, that loader gives some layers the scale of others. The alphas then go into
    the up-projections, and zeros fill every layer up to the largest rank: what a layer adds stays the same.

    Raises:
        ModelNotUsable: an alpha belongs to no layer, or one layer has so large a rank that the zeros fill the memory.
    """
    from torch.nn.functional import pad

    pairs = dict(_pairs_of(tensors))
    ranks = {down: len(tensors[down]) for down in pairs}
    alphas = {down: float(tensors[name]) for down in pairs if (name := _alpha_of(down)) in tensors}
    known = {_alpha_of(down) for down in alphas}
    if unknown := next((name for name in tensors if name.endswith(".alpha") and name not in known), None):
        raise ModelNotUsable(f"{path}: not a plain LoRA: {shorten(unknown)} belongs to no layer", hint=_OTHER_LORA)
    if len(set(ranks.values())) <= 1 and len(set(alphas.values())) <= 1 and len(alphas) in (0, len(pairs)):
        return tensors
    result = {name: tensor for name, tensor in tensors.items() if name not in known}
    most = max(ranks.values())
    own = sum(tensor.nbytes for tensor in tensors.values())
    filled = sum((tensors[down].nbytes + tensors[up].nbytes) * most // ranks[down] for down, up in pairs.items())
    if filled > _MOST_TIMES * own + _MOST_FILLED:
        reason = f"one of its layers has the rank {most:,}, and with it all would take {size_text(filled)}"
        raise ModelNotUsable(f"{path}: no LoRA: {reason}", hint=_ANOTHER_LORA)
    for down, up in pairs.items():
        missing, scale = most - ranks[down], alphas[down] / ranks[down] if down in alphas else 1.0
        kernel = (0, 0) * (tensors[down].ndim - 2)  # of convolutions
        result[down] = pad(tensors[down], (*kernel, 0, 0, 0, missing))
        result[up] = pad(tensors[up] * scale, (*kernel, 0, missing, 0, 0))
    return result


def _pairs_of(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields the names of each down-projection and of its up-projection."""
    for name in names:
        if match := _PAIR.fullmatch(name):
            yield name, f"{match[1]}{_SECOND[match[2]]}{match[3]}"


def _alpha_of(down: str) -> str:
    return f"{_LAYER.sub('', down)}.alpha"


def _lora_tensor(source: SafetensorsFile, name: str) -> Tensor:
    """Returns a tensor. Of whole numbers only a single one is read: some trainers write a scale in them."""
    import torch

    entry = source.entries[name]
    if entry.dtype in _WHOLE_NUMBERS and math.prod(entry.shape) == 1:
        data = source.file.read_at(entry.offset, _WHOLE_NUMBERS[entry.dtype])
        return torch.tensor(float(int.from_bytes(data, "little", signed=entry.dtype[0] == "I"))).reshape(entry.shape)
    return source.tensor(name).torch()


def _stated_scales(path: Path, source: SafetensorsFile) -> dict[str, float]:
    """Returns the scale of each up-projection, where the metadata states one.

    Raises:
        ModelNotUsable: the projections of a pair have different ranks, or one is missing.
    """
    stated = _lora_metadata(source)
    scales = {}
    for name, up in _pairs_of(source.entries):
        entry = source.entries[name]
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
            raise ModelNotUsable(f"{path}: no LoRA: its lora_alpha is not a number")
        scales[up] = alpha / (math.sqrt(rank) if stated.get(f"{part}.use_rslora") is True else rank)
    return scales


def _lora_metadata(source: SafetensorsFile) -> dict[str, Any]:
    try:
        value = parse_json(source.metadata.get(_METADATA, "{}"), most=_MOST_METADATA)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def lora_hashes(loras: Sequence[Lora]) -> dict[str, str]:
    """Returns the infotext's entry for each LoRA."""
    return {f"lora:{lora.tag.name}": lora.hash for lora in loras}


def _lora_strengths(pipe: Any, tag: LoraTag) -> dict[str, float]:
    encoders = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    return {"unet": tag.unet_multiplier, **dict.fromkeys(encoders, tag.te_multiplier)}


def _file_named(name: str, files: dict[str, list[Path]], folder: str, missed: str) -> Path:
    found = files.get(name, [])
    if not found:
        near = did_you_mean(name, files)
        hint = (
            f"did you mean {argument(near)}?" if near else f"LoRAs are looked for in {folder}, as {_LORA_SUFFIX} files"
        )
        raise NotFound(f"{name}: no LoRA has this name{missed}", hint=hint)
    if len(found) > 1:
        raise AmbiguousName(f"{name}: several LoRAs have this name: {', '.join(map(str, found))}")
    return found[0]
