"""A separate VAE: one file in either layout, a diffusers folder, or a hub id."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hnetkit.errors import ModelNotUsable
from hnetkit.generate.loading.components import load_component
from hnetkit.generate.loading.parts import VAE_NAMES, build_vae
from hnetkit.generate.loading.places import asking_the_hub, require_hub_id
from hnetkit.generate.loading.state_dicts import read_state_dict

_PREFIX = "first_stage_model."


def find_vae(place: str) -> Path:
    """Returns the file, or the folder with ``config.json``, that a place means; a hub id is fetched into the cache.

    Raises:
        NotFound: no such file, folder or hub id.
        ModelNotUsable: the folder or the hub's model has no autoencoder.
    """
    if os.path.isfile(place):
        return Path(place)
    if not os.path.isdir(place):
        return _download(place)
    for folder in (Path(place), Path(place, "vae")):
        if (folder / "config.json").is_file():
            return folder
    raise ModelNotUsable(f"{place}: no autoencoder (it has no config.json)", hint="give a folder that has, or one file")


def load_vae(place: Path, dtype: Any, config: Callable[[], Mapping[str, Any]]) -> Any:
    """Returns an ``AutoencoderKL`` on the CPU in `dtype`.

    Args:
        place: of `find_vae`.
        config: gives the configuration for a file, which has none: that of the model's own autoencoder.

    Raises:
        ModelNotUsable: it holds no autoencoder, or one of another build.
        FileRefused: the file cannot be read safely.
    """
    if place.is_file():
        return _from_file(place, dtype, config())
    return load_component(place, "vae", "AutoencoderKL", dtype)


def refuse_other_latents(vae: Any, pipe: Any, place: str) -> None:
    """Holds a separate autoencoder against the UNet.

    Raises:
        ModelNotUsable: their latents have not the same number of channels.
    """
    theirs, ours = vae.config.latent_channels, pipe.unet.config.out_channels
    if theirs != ours:
        raise ModelNotUsable(
            f"{place}: an autoencoder of {theirs} channels; the model has {ours}", hint="leave --vae out"
        )


def _from_file(path: Path, dtype: Any, config: Mapping[str, Any]) -> Any:
    state = read_state_dict(path)
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in state.shapes) else ""
    tensors = state.part(tuple(prefix + name for name in VAE_NAMES), dtype)
    if not tensors:
        raise ModelNotUsable(f"{path}: no autoencoder (VAE)", hint="give a file with encoder.* and decoder.* tensors")
    return build_vae(config, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, str(path))


def _download(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    require_hub_id(hub_id)
    with asking_the_hub(hub_id):
        for inside in ("", "vae/"):
            with suppress(EntryNotFoundError):
                config = hf_hub_download(hub_id, f"{inside}config.json")
                hf_hub_download(hub_id, f"{inside}diffusion_pytorch_model.safetensors")
                return Path(config).parent
        raise ModelNotUsable(
            f"{hub_id}: no folder here, and the hub gave no autoencoder of this name with .safetensors weights",
            hint="go online once so that it is cached, or give a file or folder",
        )
