"""CLIP's tokenizer: from a pipeline's folder, from another folder, or from the hub's cache.

Stable Diffusion 1, 2 and XL all read CLIP's vocabulary. OpenCLIP (SD 2, the second encoder of XL) pads with token 0,
CLIP-L with its end token. A folder's files are read and reduced to what a tokenizer needs; the library is given a clean
folder with nothing else in it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError, ModelNotUsable, NotFound
from hnetkit.files import is_file_at, is_folder_at, read_regular, stat_at
from hnetkit.generate.backend_errors import translating_errors
from hnetkit.generate.loading.configs import HINT, read_object
from hnetkit.generate.loading.model_source import require_hub_id, require_safe_hub
from hnetkit.hub import fetched_file
from hnetkit.limits import MAX_JSON
from hnetkit.prompts.chunks import ClipTokenizer

HUB_ID = "openai/clip-vit-large-patch14"
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""All files of a tokenizer that are read."""

MOST_TOKENS = 1 << 20
"""Limit of a vocabulary, and of a text's length; CLIP's are 49,408 and 77."""

_MOST_ADDED = 20_000  # tokens beyond the vocabulary, of which the library keeps far more than their text

_NUMBER = re.compile(r"[0-9]{1,7}")
_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
# caches that often hold the same files: hub id, folder inside
_CACHED = (
    (HUB_ID, ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer/"),
    ("runwayml/stable-diffusion-v1-5", "tokenizer/"),
)
_CLIP_WINDOW, _LONGEST_WINDOW = 77, 10_000  # tokens
_FETCH = f"--tokenizer DIR, a folder with vocab.json and merges.txt of {HUB_ID}, or a pipeline's folder"

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_PLAIN = (
    "add_prefix_space",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "errors",
    "model_max_length",
    "padding_side",
    "truncation_side",
)
_OF_A_TOKEN = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def load_tokenizers(source: str | None, configs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Returns a tokenizer for each text encoder.

    Args:
        source: a folder of tokenizer files, or a pipeline's folder that has one; None: the hub's cache, then the hub.
        configs: the encoders' configurations: vocabulary size, window, padding token.

    Raises:
        NotFound: there is no such folder.
        ModelNotUsable: none is here and the hub is out of reach, or it has another vocabulary.
    """
    folder = _from_cache_or_hub() if source is None else tokenizer_folder(source)
    tokenizers = []
    for config in configs:
        with translating_errors(str(folder), hint=_FETCH):
            tokenizer = read_tokenizer(folder, TOKENIZERS[0], model_max_length=config["max_position_embeddings"])
        if len(tokenizer) != config["vocab_size"]:
            raise ModelNotUsable(
                f"{folder}: a tokenizer of {len(tokenizer)} tokens; the model knows {config['vocab_size']}", hint=_FETCH
            )
        # set after loading: a padding token that is set before is also matched as one token inside of texts
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config["pad_token_id"])
        tokenizers.append(tokenizer)
    return tokenizers


def read_tokenizer(folder: Path, kind: str, **own: Any) -> Any:
    """Returns the tokenizer of a folder.

    Args:
        kind: one of `TOKENIZERS`.
        own: settings that override the folder's.

    Raises:
        ModelNotUsable: a file is missing or cannot be read, or is not of a CLIP tokenizer.
    """
    import transformers

    with tempfile.TemporaryDirectory(prefix="hnetkit-tokenizer-") as clean:
        for name, content in _clean_files(folder):
            Path(clean, name).write_text(content, encoding="utf-8", newline="\n")
        tokenizer = getattr(transformers, kind).from_pretrained(clean, local_files_only=True, **own)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def read_counting_tokenizer(model: str, name: str | None = None) -> ClipTokenizer:
    """Returns a tokenizer that counts as the model's own does, without torch or transformers; nothing is fetched.

    Args:
        model: its folder, its hub id, or a checkpoint in one file, for which CLIP's tokenizer is in the hub's cache.
        name: for a person; None is the folder of the files, or their hub id.

    Raises:
        NotFound: no tokenizer is at hand.
        ModelNotUsable: its files cannot be read.
    """
    if is_folder_at(model):
        folder, found = tokenizer_folder(model), model
    else:
        is_file = is_file_at(model)
        if not is_file:
            require_hub_id(model)
        cached = _cached_folder(_CACHED if is_file else ((model, "tokenizer/"),))
        if cached is None:
            raise NotFound(f"{model}: no tokenizer of it is here")
        folder, found = cached
    vocabulary, merges, _ = _vocabulary_of(folder)
    window: Any = _settings(folder).get("model_max_length")
    if type(window) is not int or not 2 < window <= _LONGEST_WINDOW:
        window = _CLIP_WINDOW
    return ClipTokenizer(vocabulary, merges, window, name or found)


def _clean_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields name and content of the files of the clean folder."""
    config = _settings(folder)
    vocabulary, merges, added = _vocabulary_of(folder)
    _require_own_words(folder, merges, vocabulary)
    if added:
        config.setdefault("added_tokens_decoder", added)
    yield "vocab.json", json.dumps(vocabulary)
    yield "merges.txt", "\n".join(["#version: 0.2", *merges, ""])
    added_path, beyond = folder / "added_tokens.json", dict[str, int]()
    if stat_at(added_path) is not None:
        beyond = _require_vocabulary(added_path, read_object(added_path))
        yield "added_tokens.json", json.dumps(beyond)
    if len(beyond) + len(config.get("added_tokens_decoder", ())) > _MOST_ADDED:
        raise ModelNotUsable(f"{folder}: cannot be loaded: it adds more than {_MOST_ADDED:,} tokens", hint=HINT)
    yield "tokenizer_config.json", json.dumps({"tokenizer_class": TOKENIZERS[0], **config})


def _vocabulary_of(folder: Path) -> tuple[dict[str, int], list[str], dict[str, Any]]:
    """Returns the vocabulary, the merges and, of a ``tokenizer.json``, the added tokens of a folder."""
    if all(is_file_at(folder / name) for name in _FILES[0]):
        vocabulary, merges = read_object(folder / "vocab.json"), _merges_of_text(folder / "merges.txt")
        return _require_vocabulary(folder / "vocab.json", vocabulary), merges, {}
    vocabulary, merges, added = _parse_tokenizer_json(folder / "tokenizer.json")
    return _require_vocabulary(folder / "tokenizer.json", vocabulary), merges, added


def _settings(folder: Path) -> dict[str, Any]:
    """Returns a folder's settings of its tokenizer beside the vocabulary: the known keys with allowed values."""
    path = folder / "tokenizer_config.json"
    stored = read_object(path) if stat_at(path) is not None else {}
    named = stored.get("tokenizer_class")
    if named is not None and named not in TOKENIZERS:
        raise ModelNotUsable(f"{path}: cannot be loaded: of a {str(named)[:60]}, not CLIPTokenizer", hint=HINT)
    special = folder / "special_tokens_map.json"
    tokens = {**stored, **(read_object(special) if stat_at(special) is not None else {})}
    config: dict[str, Any] = {key: stored[key] for key in _PLAIN if isinstance(stored.get(key), str | int | float)}
    for key in _SPECIAL:
        if isinstance(tokens.get(key), str | dict):
            token = _token(path, tokens[key])
            config[key] = {"__type": "AddedToken", **token} if isinstance(token, dict) else token
    if isinstance(added := stored.get("added_tokens_decoder"), dict):
        config["added_tokens_decoder"] = {
            number: _token(path, token) for number, token in added.items() if _NUMBER.fullmatch(number)
        }
    return config


def _token(path: Path, token: Any) -> Any:
    """Returns a special token: its text, or its known attributes."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not 0 < len(content) <= 1000:
        raise ModelNotUsable(f"{path}: cannot be loaded: a token that is no text", hint=HINT)
    if isinstance(token, str):
        return token
    kept = {key: bool(token[key]) for key in _OF_A_TOKEN if key in token and key != "content"}
    return {"content": content, **kept}


def _parse_tokenizer_json(path: Path) -> tuple[Any, list[str], dict[str, Any]]:
    """Returns vocabulary, merges and added tokens of a ``tokenizer.json``."""
    whole = read_object(path)
    model = whole.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise ModelNotUsable(f"{path}: cannot be loaded: no tokenizer of CLIP", hint=HINT)
    merges = [" ".join(pair) if _is_pair(pair) else pair for pair in model["merges"]]
    added = whole.get("added_tokens") or []
    are_numbered = isinstance(added, list) and all(
        isinstance(token, dict) and _is_number(token.get("id")) for token in added
    )
    if not are_numbered or not all(isinstance(pair, str) for pair in merges):
        raise ModelNotUsable(f"{path}: cannot be loaded: no tokenizer of CLIP", hint=HINT)
    return model.get("vocab"), merges, {str(token["id"]): _token(path, token) for token in added}


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_TOKENS


def _merges_of_text(path: Path) -> list[str]:
    try:
        lines = read_regular(path, most=MAX_JSON).decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ModelNotUsable(f"{path}: cannot be loaded: unreadable ({error})", hint=HINT) from error
    return [line for line in lines if line.strip() and not line.startswith("#version")]


def _require_own_words(folder: Path, merges: Sequence[str], vocabulary: Mapping[str, int]) -> None:
    """Refuses merges of tokens that are none: the library would quote one, and the file may lead to a private one."""
    for pair in (merge.rstrip("\r").split(" ") for merge in merges):
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise ModelNotUsable(f"{folder}: cannot be loaded: its merges are not of its vocabulary", hint=HINT)


def _require_vocabulary(path: Path, vocabulary: Any) -> dict[str, int]:
    is_vocabulary = isinstance(vocabulary, dict) and len(vocabulary) <= MOST_TOKENS
    if not is_vocabulary or not all(map(_is_number, vocabulary.values())):
        raise ModelNotUsable(f"{path}: cannot be loaded: not numbers of tokens", hint=HINT)
    found: dict[str, int] = vocabulary
    return found


def tokenizer_folder(source: str) -> Path:
    """Returns the folder of tokenizer files, which may lie in that of a pipeline.

    Raises:
        NotFound: there is no such folder.
        ModelNotUsable: it has no tokenizer.
    """
    if not is_folder_at(source):
        raise NotFound(f"{source}: no such folder", hint=_FETCH)
    for folder in (Path(source), Path(source, "tokenizer")):
        if any(all(is_file_at(folder / name) for name in names) for names in _FILES):
            return folder
    raise ModelNotUsable(f"{source}: no tokenizer (it has no vocab.json with merges.txt)", hint=_FETCH)


def _from_cache_or_hub() -> Path:
    if cached := _cached_folder(_CACHED):
        return cached[0]
    require_safe_hub(HUB_ID)
    try:
        fetched = [fetched_file(HUB_ID, name) for name in _FILES[0]]
    except HnetkitError:
        raise
    except Exception as error:
        raise ModelNotUsable(
            f"a checkpoint in one file needs a tokenizer; none is here, and the hub gave none ({type(error).__name__})",
            hint=f"{_FETCH}; or go online once so that it is cached",
        ) from error
    return fetched[0].parent


def _cached_folder(places: Sequence[tuple[str, str]]) -> tuple[Path, str] | None:
    """Returns the first folder of the hub's cache with a tokenizer, of (hub id, folder inside), and its hub id."""
    from huggingface_hub import try_to_load_from_cache

    for hub_id, inside in places:
        for names in _FILES:
            found = [try_to_load_from_cache(hub_id, inside + name) for name in names]
            if all(isinstance(path, str) for path in found):
                return Path(str(found[0])).parent, hub_id
    return None
