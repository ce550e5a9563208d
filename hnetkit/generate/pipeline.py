"""A pipeline that is ready to draw, from a diffusers folder, a hub id, or one checkpoint file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import UsageError
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.loading.autoencoders import find_vae, load_vae, refuse_other_latents
from hnetkit.generate.loading.checkpoints import MakeVae, load_checkpoint
from hnetkit.generate.loading.defaults import Defaults, read_defaults
from hnetkit.generate.loading.fitting import require_fitting
from hnetkit.generate.loading.folders import download, load_folder, read_index, vae_configuration, weight_files
from hnetkit.generate.loading.libraries import quiet_libraries
from hnetkit.generate.loading.parts import refuse_unfilled
from hnetkit.generate.memory import needing_memory
from hnetkit.hashes import sha256_of

if TYPE_CHECKING:
    from hnetkit.generate.sampling.encoding import Emphasis, TextEncoder


@dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline that is ready to draw.

    Attributes:
        pipe: a diffusers ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``, on its device.
        name: what the infotext calls it.
        defaults: its own, where its folder has a `hnetkit.generate.loading.defaults.DEFAULTS_FILE`.
        weights: the file that tells it from others: the UNet's weights, or the checkpoint.
        scheduler_config: of the scheduler that it came with.
        notes: what was left out of its folder, one line each.
    """

    pipe: Any
    name: str
    defaults: Defaults
    weights: Path
    scheduler_config: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    _encoders: dict[tuple[int, Emphasis], TextEncoder] = field(default_factory=dict, compare=False, repr=False)

    def text_encoder(self, clip_skip: int, emphasis: Emphasis) -> TextEncoder:
        """Returns the encoder with these settings: the same one each time, with the texts that it keeps."""
        from hnetkit.generate.sampling.encoding import TextEncoder

        settings = clip_skip, emphasis
        if settings not in self._encoders:
            self._encoders[settings] = TextEncoder(self.pipe, *settings)
        return self._encoders[settings]

    def forget_texts(self) -> None:
        """Drops the texts that encoders keep: they were encoded with other LoRAs or another vocabulary."""
        self._encoders.clear()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels where nobody says otherwise: the defaults', else what the UNet was made for."""
        made_for = self.pipe.unet.config.sample_size
        height, width = made_for if isinstance(made_for, list | tuple) else (made_for, made_for)
        scale = self.pipe.vae_scale_factor
        return self.defaults.width or width * scale, self.defaults.height or height * scale

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of the sha256 of `weights` (of a checkpoint: A1111's model hash)."""
        return sha256_of(OpenFile(self.weights))[:10]


def load_pipeline(
    place: str,
    *,
    device: str,
    dtype: Any,
    vae: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    offload: bool = False,
    attention_slicing: bool = False,
    compiled: bool = False,
) -> LoadedPipeline:
    """Loads a pipeline straight into its dtype, without a safety checker, and moves it to its device.

    Args:
        place: a folder in diffusers' layout, a hub id (``"org/name"``, from the cache where the hub is out of
            reach), or a checkpoint in one ``.safetensors`` or ``.ckpt`` file.
        device: ``"cuda"``, ``"mps"`` or ``"cpu"``.
        dtype: torch's.
        vae, tokenizer, offload, attention_slicing, compiled: see `hnetkit.generate.model.load_model`.

    Raises:
        As `hnetkit.generate.model.load_model`.
    """
    if offload and device != "cuda":
        raise UsageError(f"--offload moves parts off a CUDA device; this runs on {device}", hint="leave --offload out")
    with quiet_libraries(), needing_memory(f"loading {place}"):
        folder = None if os.path.isfile(place) else Path(place) if os.path.isdir(place) else download(place)
        make_vae = _separate_vae(vae, dtype)
        notes: tuple[str, ...] = ()
        if folder is None:
            own = os.fspath(tokenizer) if tokenizer is not None else None
            pipe = load_checkpoint(Path(place), dtype, device, tokenizer=own, make_vae=make_vae)
        else:
            at, index = folder, read_index(folder)
            notes = index.notes
            parts = {"vae": make_vae(lambda: vae_configuration(at))} if make_vae else {}
            pipe = load_folder(folder, index, dtype, **parts)
        refuse_unfilled(pipe, place)
        if vae is not None:
            refuse_other_latents(pipe.vae, pipe, os.fspath(vae))
        if folder is not None:
            require_fitting(pipe, str(folder))
        _settle(pipe, device, offload=offload, attention_slicing=attention_slicing, compiled=compiled)
    defaults = Defaults() if folder is None else read_defaults(folder)
    weights = Path(place) if folder is None else weight_files(folder)[0]
    return LoadedPipeline(pipe, _name(place), defaults, weights, pipe.scheduler.config, notes)


def _name(place: str) -> str:
    path = Path(os.path.abspath(place))
    name = path.stem if path.is_file() else path.name
    return name.encode("utf-8", "replace").decode()  # a file's name need not be text


def _separate_vae(place: str | os.PathLike[str] | None, dtype: Any) -> MakeVae | None:
    if place is None:
        return None
    found = find_vae(os.fspath(place))
    return lambda config: load_vae(found, dtype, config)


def _settle(pipe: Any, device: str, *, offload: bool, attention_slicing: bool, compiled: bool) -> None:
    """Moves a pipeline to where it draws, and switches on what was asked for."""
    if hasattr(pipe, "watermark"):
        pipe.watermark = None  # SDXL's changes pixels where its package happens to be installed
    if attention_slicing:
        pipe.enable_attention_slicing()
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    if compiled:
        pipe.unet.compile()
    pipe.set_progress_bar_config(disable=True)
