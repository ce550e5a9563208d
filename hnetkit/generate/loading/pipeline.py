"""Loading a pipeline that is ready to draw, with a separate autoencoder if one is given; fingerprints of its files."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hnetkit.errors import FileChanged, ModelNotUsable
from hnetkit.files import is_file_at, is_folder_at, stat_at
from hnetkit.generate.backend_errors import quiet_libraries, translating_oom
from hnetkit.generate.loading.checkpoints import MakeVae, load_checkpoint, predicts_v_by_yaml, read_state_dict
from hnetkit.generate.loading.defaults import Defaults, read_defaults
from hnetkit.generate.loading.diffusers_folder import (
    download_pipeline,
    load_component,
    load_pipeline_folder,
    part_weights,
    read_model_index,
    require_matching_parts,
    vae_configuration,
    variant_of,
    weight_files,
)
from hnetkit.generate.loading.extra_networks import own_loras
from hnetkit.generate.loading.model_source import hub_request, require_hub_id
from hnetkit.generate.loading.parts import VAE_NAMES, build_vae, left_out_of, refuse_missing_weights
from hnetkit.hub import fetched_file
from hnetkit.library.known_hashes import hash_of_file
from hnetkit.text import argument

if TYPE_CHECKING:
    from hnetkit.generate.sampling.encoding import Emphasis, TextEncoder

FileStamp: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size in bytes and modification time of each file."""

_VAE_FOLDER = "vae/"
_IN_THE_PIPELINE = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_WITH_LORAS = ("unet", "text_encoder", "text_encoder_2")
_MARK = "_hnetkit_loaded_as"  # attribute of each of them: of which files the pipeline was
_PARTS = ("text_encoder", "tokenizer", _VAE_FOLDER, "scheduler/")
_SHOWN_DIGITS = 10
_SCALES = {False: 0.18215, True: 0.13025}  # of the latents of SD 1 and 2, and of SDXL
_VAE_PREFIX = "first_stage_model."
_TEXT_PREFIXES = {"cond_stage_model.": False, "conditioner.": True}  # in whole checkpoints, and whether they are SDXL's
_MODEL_FILE_SUFFIXES = (".json", ".txt", ".safetensors", ".model")
_DIGEST_LENGTH = 32  # hex digits


@dataclass(frozen=True)
class SeparateVae:
    """An autoencoder that is not the model's own.

    Attributes:
        name: in an infotext.
        weights: its file of weights.
        weights_stamp: taken before the file was read.
    """

    name: str
    weights: Path
    weights_stamp: FileStamp

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of the sha256 of `weights`: A1111's VAE hash."""
        return _hash_as_loaded(self.weights, self.weights_stamp)


@dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline that is ready to draw.

    Attributes:
        pipe: a diffusers ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``, on its device; for a UNet that
            was made for inpainting, the pipeline of that name.
        name: the model's name in an infotext.
        defaults: those of its folder's `hnetkit.generate.loading.defaults.DEFAULTS_FILE`, else hnetkit's.
        weights: the file that identifies it: the UNet's weights, or the checkpoint.
        weights_stamp: taken before the file was read.
        scheduler_config: of the scheduler that it came with.
        notes: what was left out of its folder, one line each.
        vae: the separate autoencoder that it draws with; None for its own.
        folder: in diffusers' layout, that it was loaded from; None for a checkpoint.
        parts_stamp: of the files of its parts beside the UNet, taken before they were read.
    """

    pipe: Any
    name: str
    defaults: Defaults
    weights: Path
    weights_stamp: FileStamp
    scheduler_config: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    vae: SeparateVae | None = None
    folder: Path | None = None
    parts_stamp: FileStamp = ()
    _encoders: dict[tuple[int, Emphasis], TextEncoder] = field(default_factory=dict, compare=False, repr=False)

    @property
    def replaced(self) -> tuple[str, ...]:
        """The parts of the pipeline in whose place are others than were loaded; none if it was not read from files."""
        if not self.weights_stamp:
            return ()
        parts = ((name, getattr(self.pipe, name, None)) for name in _IN_THE_PIPELINE)
        return tuple(name for name, part in parts if part is not None and getattr(part, _MARK, None) != self._mark)

    @property
    def has_another_scheduler(self) -> bool:
        """Whether somebody put a scheduler on the pipeline, from which no picture is made: see `scheduler_config`."""
        return bool(self.weights_stamp) and self.pipe.scheduler.config is not self.scheduler_config

    def content_of_replaced(self) -> str | None:
        """Returns a hash of the parts in whose place others are, or that have LoRAs, by what is in them; else None."""
        loras = own_loras(self.pipe)
        changed = {*self.replaced, *(_WITH_LORAS if loras else ())}
        if not changed:
            return None
        parts = ((name, getattr(self.pipe, name, None)) for name in sorted(changed))
        contents = [[name, _content_of(part)] for name, part in parts if part is not None]
        return digest([contents, sorted(loras.items())] if loras else contents)

    @property
    def stated_name(self) -> str:
        """Its name in an infotext, with what is another than was loaded, but for the autoencoder, and with its LoRAs.

        The LoRAs are those that somebody put on the pipeline, and not those of a prompt.
        """
        others = " and ".join(name for name in self.replaced if name != "vae")
        loras = " and ".join(own_loras(self.pipe))
        added = [*([f"another {others}"] if others else []), *([f"the LoRA {loras}"] if loras else [])]
        return f"{self.name} with {' and '.join(added)}" if added else self.name

    @property
    def _mark(self) -> tuple[FileStamp, FileStamp]:
        return self.weights_stamp, self.vae.weights_stamp if self.vae else ()

    def mark_parts(self) -> None:
        """Remembers in each part that it is of this model, for `replaced`."""
        for name in _IN_THE_PIPELINE:
            if (part := getattr(self.pipe, name, None)) is not None:
                setattr(part, _MARK, self._mark)

    def text_encoder(self, clip_skip: int, emphasis: Emphasis) -> TextEncoder:
        """Returns the encoder with these settings: the same one each time, with the texts that it has cached."""
        from hnetkit.generate.sampling.encoding import TextEncoder

        settings = clip_skip, emphasis
        if settings not in self._encoders:
            self._encoders[settings] = TextEncoder(self.pipe, *settings)
        return self._encoders[settings]

    def forget_texts(self) -> None:
        """Drops the cached texts of all encoders, because LoRAs or the vocabulary have changed."""
        self._encoders.clear()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels by default: that of the defaults, else the size that the UNet was trained at."""
        trained_at = self.pipe.unet.config.sample_size
        height, width = trained_at if isinstance(trained_at, list | tuple) else (trained_at, trained_at)
        scale = self.pipe.vae_scale_factor
        return self.defaults.width or width * scale, self.defaults.height or height * scale

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of the sha256 of `weights` (for a checkpoint: A1111's model hash)."""
        return _hash_as_loaded(self.weights, self.weights_stamp)

    @cached_property
    def parts_hash(self) -> str | None:
        """10 hex digits of a hash of what draws beside a folder's UNet: encoders, its own autoencoder, scheduler.

        None for a checkpoint, whose hash is that of all its parts.
        """
        if self.folder is None:
            return None
        files = _files_of_parts(self.folder, has_own_vae=self.vae is None)
        found = digest([[file.relative_to(self.folder).as_posix(), hash_of_file(file)] for file in files])
        if _stamps_of_parts(self.folder, has_own_vae=self.vae is None) != self.parts_stamp:
            raise FileChanged(f"{self.folder}: a part replaced since the model was loaded", hint="load the model again")
        return found[:_SHOWN_DIGITS]

    def require_as_loaded(self) -> None:
        """Computes the hashes that images state; raises FileChanged if files are not those that were loaded."""
        _ = self.hash, self.parts_hash, self.vae and self.vae.hash


def load_pipeline(
    source: str,
    *,
    device: str,
    dtype: Any,
    vae: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    offload: bool = False,
    attention_slicing: bool = False,
    compiled: bool = False,
    captured: bool = False,
) -> LoadedPipeline:
    """Loads a pipeline straight into its dtype, without a safety checker, and moves it to its device.

    Args:
        source: a folder in diffusers' layout, a hub id (``"org/name"``, from the cache where the hub is out of
            reach), or a checkpoint in one ``.safetensors`` or ``.ckpt`` file.
        device: ``"cuda"``, ``"mps"`` or ``"cpu"``.
        dtype: torch's.
        vae, tokenizer, offload, attention_slicing, compiled, captured: see `hnetkit.generate.model.load_model`.

    Raises:
        As `hnetkit.generate.model.load_model`.
    """
    folder = None
    if not is_file_at(source):
        folder = Path(source) if is_folder_at(source) else download_pipeline(source)
    vae_path = None if vae is None else find_vae(os.fspath(vae))
    make_vae = None if vae_path is None else _vae_maker(vae_path, dtype)
    weights = Path(source) if folder is None else weight_files(folder)[0]
    before = file_stamp(weights)
    vae_weights = None if vae_path is None else _weights_of_vae(vae_path)
    vae_before = () if vae_weights is None else file_stamp(vae_weights)
    parts_before = () if folder is None else _stamps_of_parts(folder, has_own_vae=vae is None)
    with quiet_libraries(), translating_oom(f"loading {source}"):
        notes: tuple[str, ...] = ()
        if folder is None:
            own_tokenizer = os.fspath(tokenizer) if tokenizer is not None else None
            pipe = load_checkpoint(Path(source), dtype, device, tokenizer=own_tokenizer, make_vae=make_vae)
            notes = () if make_vae else tuple(_vae_beside(source))
        else:
            model_folder, index = folder, read_model_index(folder)
            notes = index.notes
            parts = {"vae": make_vae(lambda: vae_configuration(model_folder))} if make_vae else {}
            pipe = load_pipeline_folder(folder, index, dtype, **parts)
        files = [weights] if folder is None else part_weights(folder / "unet", variant_of(weights))
        notes += tuple(line for file in files for line in left_out_of(file, read_state_dict(file).shapes))
        refuse_missing_weights(pipe, source)
        if vae is not None:
            refuse_other_latents(pipe.vae, pipe, os.fspath(vae), _own_scale(pipe, folder))
        if folder is not None:
            require_matching_parts(pipe, str(folder))
        _set_up(pipe, device, offload=offload, attention_slicing=attention_slicing, compiled=compiled)
        if captured and device == "cuda":
            from hnetkit.runtime.capture import capture

            capture(pipe)
    defaults = Defaults() if folder is None else read_defaults(folder)
    separate = None
    if vae is not None and vae_weights is not None:
        separate = SeparateVae(_text_of(Path(os.path.abspath(vae)).name), vae_weights, vae_before)
    name = _model_name(source)
    loaded = LoadedPipeline(
        pipe,
        name,
        defaults,
        weights,
        before,
        pipe.scheduler.config,
        notes,
        vae=separate,
        folder=folder,
        parts_stamp=parts_before,
    )
    loaded.mark_parts()
    return loaded


def _model_name(source: str) -> str:
    path = Path(os.path.abspath(source))
    return _text_of(path.stem if is_file_at(path) else path.name)


def _text_of(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # the name of a file may have bytes that are not text


def _set_up(pipe: Any, device: str, *, offload: bool, attention_slicing: bool, compiled: bool) -> None:
    """Moves a pipeline to its device and switches on its options."""
    if hasattr(pipe, "watermark"):
        pipe.watermark = None  # SDXL's changes pixels if its package happens to be installed
    if attention_slicing:
        pipe.enable_attention_slicing()
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    if compiled:
        pipe.unet.compile()
    pipe.set_progress_bar_config(disable=True)


# --- a separate autoencoder


def find_vae(source: str) -> Path:
    """Returns the file of an autoencoder, or its folder with ``config.json``; a hub id is fetched into the cache.

    Raises:
        NotFound: there is no such file, folder or hub id.
        ModelNotUsable: the folder or the hub's model has no autoencoder.
    """
    if is_file_at(source):
        return Path(source)
    if not is_folder_at(source):
        return _download_vae(source)
    for folder in (Path(source), Path(source, "vae")):
        if is_file_at(folder / "config.json"):
            return folder
    raise ModelNotUsable(
        f"{source}: no autoencoder (it has no config.json)", hint="give a folder that has, or one file"
    )


def _vae_beside(checkpoint: str) -> Iterator[str]:
    """Yields a line for the autoencoder beside a checkpoint that A1111 would draw with, without being told to."""
    stem = os.path.splitext(checkpoint)[0]
    found = (f"{stem}.vae.{suffix}" for suffix in ("safetensors", "ckpt", "pt"))
    if path := next(filter(is_file_at, found), None):
        yield f"Warning: {path} is not used, with which A1111 draws by itself: --vae {argument(path, is_path=True)}"


def load_vae(path: Path, dtype: Any, config: Callable[[], Mapping[str, Any]]) -> Any:
    """Returns an ``AutoencoderKL`` on the CPU in `dtype`.

    Args:
        path: of `find_vae`.
        config: returns the configuration for a file, which has none: that of the model's own autoencoder.

    Raises:
        ModelNotUsable: it holds no autoencoder, or one of another architecture.
        FileRefused: the file cannot be read safely.
    """
    if is_file_at(path):
        return _vae_of_file(path, dtype, config())
    return load_component(path, "vae", "AutoencoderKL", dtype)


def refuse_other_latents(vae: Any, pipe: Any, source: str, scale: float) -> None:
    """Compares a separate autoencoder with the UNet.

    Args:
        scale: by which the latents are multiplied that the UNet was trained on.

    Raises:
        ModelNotUsable: their latents have different numbers of channels, or another scale.
    """
    theirs, ours = vae.config.latent_channels, pipe.unet.config.out_channels
    if theirs != ours:
        raise ModelNotUsable(
            f"{source}: an autoencoder of {theirs} channels; the model has {ours}", hint="leave --vae out"
        )
    if not math.isclose(vae.config.scaling_factor, scale, rel_tol=1e-3):
        raise ModelNotUsable(
            f"{source}: an autoencoder of another base model (its latents are scaled by {vae.config.scaling_factor:g}, "
            f"the model's by {scale:g})",
            hint="leave --vae out",
        )


def _own_scale(pipe: Any, folder: Path | None) -> float:
    """Returns the scale of a model's own latents, as its own autoencoder states it where it has one."""
    usual = _SCALES[getattr(pipe, "text_encoder_2", None) is not None]
    if folder is None or not is_file_at(folder / "vae" / "config.json"):
        return usual
    return float(vae_configuration(folder).get("scaling_factor", usual))


def _vae_maker(path: Path, dtype: Any) -> MakeVae:
    return lambda config: load_vae(path, dtype, config)


def _weights_of_vae(path: Path) -> Path:
    return path if is_file_at(path) else weight_files(path, "")[0]


def _vae_of_file(path: Path, dtype: Any, config: Mapping[str, Any]) -> Any:
    state = read_state_dict(path)
    prefix = _VAE_PREFIX if any(name.startswith(_VAE_PREFIX) for name in state.shapes) else ""
    tensors = state.part(tuple(prefix + name for name in VAE_NAMES), dtype)
    if not tensors:
        raise ModelNotUsable(f"{path}: no autoencoder (VAE)", hint="give a file with encoder.* and decoder.* tensors")
    for text_prefix, is_xl in _TEXT_PREFIXES.items() if prefix else ():
        if any(name.startswith(text_prefix) for name in state.shapes):
            config = {**config, "scaling_factor": _SCALES[is_xl]}
    return build_vae(config, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, str(path))


def _download_vae(hub_id: str) -> Path:
    from huggingface_hub.errors import EntryNotFoundError

    require_hub_id(hub_id)
    with hub_request(hub_id):
        for inside in ("", "vae/"):
            with suppress(EntryNotFoundError):
                config = fetched_file(hub_id, f"{inside}config.json")
                fetched_file(hub_id, f"{inside}diffusion_pytorch_model.safetensors")
                return config.parent
        raise ModelNotUsable(
            f"{hub_id}: no folder here, and the hub gave no autoencoder of this name with .safetensors weights",
            hint="go online once so that it is cached, or give a file or folder",
        )


# --- fingerprints


def digest(value: object) -> str:
    """Returns a hash of a value that JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]


def _content_of(part: Any) -> str:
    """Returns a hash of a part of a pipeline in memory: of its configuration and tensors, or of its words."""
    import torch

    if not isinstance(part, torch.nn.Module):
        return digest([type(part).__name__, part.get_vocab()])
    content = hashlib.sha256(f"{type(part).__name__} {getattr(part, 'config', None)}".encode("utf-8", "replace"))
    for name, tensor in part.state_dict().items():
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def fingerprint(source: str | os.PathLike[str]) -> str:
    """Returns a hash of a model's files. Those of a hub id are fetched into the cache first.

    Raises:
        NotFound: there is no such file, folder or hub id; the hint has the nearest names.
        ModelNotUsable: the hub does not give the model.
    """
    path = Path(source) if stat_at(source) is not None else download_pipeline(os.fspath(source))
    if is_file_at(path):
        return digest([hash_of_file(path), "v"]) if predicts_v_by_yaml(path) else hash_of_file(path)
    files = sorted(_model_files(path))
    return digest([[file.relative_to(path).as_posix(), hash_of_file(file)] for file in files])


def file_stamp(source: str | os.PathLike[str]) -> FileStamp:
    """Returns a value that changes when a file, or a file of a model's folder, is replaced. Of a hub id it is constant.

    Images are recorded under the hash of a model, which takes long to compute; the stamp tells whether it still holds.
    """
    path = Path(source)
    files = sorted(_model_files(path)) if is_folder_at(path) else [path]
    stamps = []
    for file in files:
        try:
            status = os.stat(file)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            stamps.append((str(file), 0, 0, 0))
        else:
            stamps.append((str(file), status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(stamps)


def _hash_as_loaded(file: Path, before: FileStamp) -> str:
    """Returns the first 10 hex digits of the sha256 of a file that was loaded when it had the stamp `before`."""
    digest = hash_of_file(file)
    if file_stamp(file) != before:
        raise FileChanged(f"{file}: replaced since the model was loaded", hint="load the model again")
    return digest[:_SHOWN_DIGITS]


def _model_files(folder: Path) -> Iterator[Path]:
    """Yields a pipeline's own files and those of its parts, without other files that are in the folder."""
    here = _list_folder(folder)
    below = [path for part in here if is_folder_at(part) for path in _list_folder(part)]
    for path in (*(path for path in here if path.suffix == ".json"), *below):
        if path.suffix in _MODEL_FILE_SUFFIXES and is_file_at(path):
            yield path


def _files_of_parts(folder: Path, *, has_own_vae: bool) -> list[Path]:
    """Returns the files of a pipeline's parts beside its UNet that draw."""
    parts = _PARTS if has_own_vae else tuple(part for part in _PARTS if part != _VAE_FOLDER)
    return sorted(path for path in _model_files(folder) if path.relative_to(folder).as_posix().startswith(parts))


def _stamps_of_parts(folder: Path, *, has_own_vae: bool) -> FileStamp:
    return tuple(chain.from_iterable(map(file_stamp, _files_of_parts(folder, has_own_vae=has_own_vae))))


def _list_folder(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError:  # a folder that cannot be read is no part of a model
        return []
