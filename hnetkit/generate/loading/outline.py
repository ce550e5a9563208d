"""What a model's configuration says of it, read in milliseconds: what does not fit it is refused before torch loads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnetkit.files import is_file_at, is_folder_at, stat_at
from hnetkit.generate.loading.checkpoints import configuration_of, read_state_dict
from hnetkit.generate.loading.configs import read_object
from hnetkit.generate.loading.defaults import Defaults, read_defaults
from hnetkit.generate.loading.diffusers_folder import read_model_index, require_known_unet, require_parts
from hnetkit.generate.loading.model_source import file_in_cache, require_hub_id
from hnetkit.generate.loading.pipeline import find_vae
from hnetkit.generate.loading.tokenizer import tokenizer_folder
from hnetkit.generate.request import is_size
from hnetkit.runtime.fit import Contexts

AnyPath = str | os.PathLike[str]

_USUAL_SIZE = 512
_USUAL_SCALE = 8


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """A model before it is loaded.

    Attributes:
        defaults: of drawing with it.
        size: (width, height) in pixels by default.
        contexts: of its UNet; None where its configuration does not say.
    """

    defaults: Defaults = field(default_factory=Defaults)
    size: tuple[int, int] = (_USUAL_SIZE, _USUAL_SIZE)
    contexts: Contexts | None = None


def read_outline(location: str, vae: AnyPath | None = None, tokenizer: AnyPath | None = None) -> ModelOutline:
    """Reads the outline of a model. Of a hub id, only what is in the cache is read.

    Args:
        vae: another autoencoder, as for `hnetkit.generate.model.load_model`; nothing but its place is looked at.
        tokenizer: a folder, for a checkpoint in one file.

    Raises:
        NotFound: there is no such file or folder, and it cannot be a hub id.
        ModelNotUsable: it is not a Stable Diffusion model, or its configuration cannot be read.
        FileRefused: a checkpoint cannot be read safely.
    """
    if vae is not None:
        if stat_at(vae) is not None:
            find_vae(os.fspath(vae))
        else:
            require_hub_id(os.fspath(vae))
    if is_file_at(location):
        if tokenizer is not None:
            tokenizer_folder(os.fspath(tokenizer))
        unet = configuration_of(read_state_dict(location))
        return ModelOutline(size=_size(Defaults(), unet, _USUAL_SCALE), contexts=_contexts(unet))
    if is_folder_at(location):
        index = read_model_index(Path(location))
        require_parts(Path(location), index, () if vae is None else ("vae",))
        return _of_folder(Path(location))
    require_hub_id(location)
    cached = file_in_cache(location, "model_index.json")
    return ModelOutline() if cached is None else _of_folder(cached.parent)


def _of_folder(folder: Path) -> ModelOutline:
    require_known_unet(folder)
    defaults, path = read_defaults(folder), folder / "unet" / "config.json"
    unet = read_object(path) if stat_at(path) is not None else {}
    return ModelOutline(defaults, _size(defaults, unet, _scale(folder / "vae" / "config.json")), _contexts(unet))


def _scale(vae: Path) -> int:
    """Returns how many pixels wide a latent is."""
    channels = read_object(vae).get("block_out_channels") if stat_at(vae) is not None else None
    return 2 ** (len(channels) - 1) if isinstance(channels, list) and 0 < len(channels) < 8 else _USUAL_SCALE


def _size(defaults: Defaults, unet: Mapping[str, Any], scale: int) -> tuple[int, int]:
    stated = unet.get("sample_size")
    height, width = stated if isinstance(stated, list) and len(stated) == 2 else (stated, stated)

    def pixels(side: Any) -> int:
        return side * scale if type(side) is int and is_size(side * scale) else _USUAL_SIZE

    return defaults.width or pixels(width), defaults.height or pixels(height)


def _contexts(unet: Mapping[str, Any]) -> Contexts | None:
    """Returns the contexts of a UNet by its configuration: self-attention may be at any of its blocks' widths."""
    channels, stated = unet.get("block_out_channels"), unet.get("cross_attention_dim")
    text: list[Any] = stated if isinstance(stated, list) else [stated]
    if not isinstance(channels, list) or not all(type(width) is int for width in (*channels, *text)):
        return None
    return Contexts(frozenset((*channels, *text)), frozenset(text), unet.get("addition_embed_type") == "text_time")
