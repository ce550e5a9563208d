"""The tokenizer of checkpoints in one file, which hold none: from a folder, or from the hub's cache.

All of Stable Diffusion 1, 2 and XL read CLIP's one vocabulary. OpenCLIP (SD 2, the second encoder of XL) fills up with
token 0, CLIP-L with its end token.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hnetkit.errors import ModelNotUsable, NotFound
from hnetkit.generate.loading.libraries import refusing
from hnetkit.generate.loading.places import require_safe_hub

HUB_ID = "openai/clip-vit-large-patch14"

_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
# the same files, where people have them: hub id, folder inside
_CACHED = (
    (HUB_ID, ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer/"),
    ("runwayml/stable-diffusion-v1-5", "tokenizer/"),
)
_FETCH = f"--tokenizer DIR, a folder with vocab.json and merges.txt of {HUB_ID}, or a pipeline's folder"


def load_tokenizers(place: str | None, configs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Returns a tokenizer for each text encoder.

    Args:
        place: a folder of tokenizer files, or a pipeline's folder that has one; None: the hub's cache, then the hub.
        configs: the encoders' configurations: vocabulary size, window, token to fill up with.

    Raises:
        NotFound: there is no such folder.
        ModelNotUsable: none is here and the hub is out of reach, or it is one of another vocabulary.
    """
    from transformers import CLIPTokenizer

    folder = _from_cache_or_hub() if place is None else _inside(place)
    made = []
    for config in configs:
        with refusing(str(folder), hint=_FETCH):
            tokenizer = CLIPTokenizer.from_pretrained(
                folder, model_max_length=config["max_position_embeddings"], local_files_only=True
            )
        if len(tokenizer) != config["vocab_size"]:
            raise ModelNotUsable(
                f"{folder}: a tokenizer of {len(tokenizer)} tokens; the model knows {config['vocab_size']}", hint=_FETCH
            )
        # set afterwards: one that is given while loading is also read as one token wherever it stands in a text
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config["pad_token_id"])
        made.append(tokenizer)
    return made


def _inside(place: str) -> Path:
    if not os.path.isdir(place):
        raise NotFound(f"{place}: no such folder", hint=_FETCH)
    for folder in (Path(place), Path(place, "tokenizer")):
        if any(all((folder / name).is_file() for name in names) for names in _FILES):
            return folder
    raise ModelNotUsable(f"{place}: no tokenizer (it has no vocab.json with merges.txt)", hint=_FETCH)


def _from_cache_or_hub() -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    for hub_id, inside in _CACHED:
        for names in _FILES:
            found = [try_to_load_from_cache(hub_id, inside + name) for name in names]
            if all(isinstance(path, str) for path in found):
                return Path(str(found[0])).parent
    require_safe_hub(HUB_ID)
    try:
        fetched = [hf_hub_download(HUB_ID, name) for name in _FILES[0]]
    except Exception as error:
        raise ModelNotUsable(
            f"a checkpoint in one file needs a tokenizer; none is here, and the hub gave none ({type(error).__name__})",
            hint=f"{_FETCH}; or go online once so that it is cached",
        ) from error
    return Path(fetched[0]).parent
