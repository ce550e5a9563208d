"""A whole model in one file, in the original layout of Stable Diffusion 1, 2 and XL: ``.safetensors`` or ``.ckpt``.

Which model it is follows from the names and shapes of its tensors. The configurations, which such a file lacks, are
part of hnetkit (``configurations/<kind>/<part>/``, in diffusers' layout, from the architectures' published numbers).

Trainers left more than weights in a ``.ckpt``: numbers, settings, objects of their own. hnetkit's reader creates none
of them. Still, a file may name only the classes of a short list; any other name refuses the file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import ModelNotUsable, UnsafeFile
from hnetkit.files import is_file_at, read_regular
from hnetkit.formats import pickle_reader
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.pickle_globals import HARMLESS
from hnetkit.formats.reading import TITLES, kind_of_bytes, kind_of_names, refuse_sparse
from hnetkit.formats.safetensors_file import SafetensorsFile, read_safetensors
from hnetkit.formats.torch_file import LEGACY_MAGIC, TorchFile, read_torch_legacy, read_torch_zip
from hnetkit.generate.loading.parts import (
    OTHER_MODEL,
    VAE_NAMES,
    build_pipeline,
    build_text_encoder,
    build_unet,
    build_vae,
    edm_model,
    is_for_inpainting,
    model_of_cfg_scale,
    refiner,
    require_known_channels,
)
from hnetkit.generate.loading.tokenizer import load_tokenizers
from hnetkit.text import shorten

if TYPE_CHECKING:
    from torch import Tensor

CONFIGURATIONS = Path(__file__).parent / "configurations"

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_XL = "conditioner.embedders."
# the prefixes of each text encoder's tensors, by which program wrote the file
_TEXT = {
    "text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model.", f"{_XL}0.transformer."),
    "text_encoder_2": (f"{_XL}1.model.",),
}
_REFINER_WIDTH = 1280

# what CosXL and Playground 2.5 keep beside their weights: the noise levels of EDM, and the mean of their latents
_EDM = ("edm_vpred.", "edm_mean", "edm_std")
_READS_CFG_SCALE = ".cond_proj.weight"  # of a UNet's time embedding
# beside weights of 8 and 4 bits, what they are multiplied by, as ComfyUI, kohya's scripts and bitsandbytes name it
_SCALES = re.compile(r"(?:.*\.)?(?:scale_(?:weight|input)|(?:weight|input)_scale(?:_inv|_2)?|absmax|scaled_fp8)")
_PREDICTS_V = re.compile(r"^\s*parameterization:\s*[\"']?v[\"']?\s*(?:#.*)?$", re.MULTILINE)
MOST_YAML = 1 << 20
"""Bytes of a configuration beside a checkpoint; a larger one is none."""

MakeVae = Callable[[Callable[[], Mapping[str, Any]]], Any]

MAX_TENSORS = 5000
"""Tensors of one part of a model; SDXL's UNet has 1680."""

_FLOATS: Mapping[str, int] = {"FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "DoubleStorage": 8}
_SAFETENSORS_FLOATS = ("F16", "BF16", "F32", "F64")
_SMALL_FLOATS: Mapping[str, str] = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


def load_checkpoint(
    path: Path, dtype: Any, device: str, *, tokenizer: str | None = None, make_vae: MakeVae | None = None
) -> Any:
    """Returns the pipeline of a checkpoint, each tensor read straight into `dtype`.

    Args:
        device: where the UNet is called once, if only its output tells what it predicts.
        tokenizer: a folder; see `load_tokenizers`.
        make_vae: returns another autoencoder than the file's, given a function that returns the configuration.

    Raises:
        ModelNotUsable: it is not such a checkpoint, a part of it is missing or does not fit, or there is no tokenizer.
        FileRefused: the file cannot be read safely.
    """
    import diffusers

    state = read_state_dict(path)
    kinds = _kinds_of(state)
    unet_config = {**_config(kinds[0], "unet"), "in_channels": state.shapes[f"{_UNET}input_blocks.0.0.weight"][1]}
    encoders = [name for name in _TEXT if (CONFIGURATIONS / kinds[0] / name).is_dir()]
    tokenizers = load_tokenizers(tokenizer, [_config(kinds[0], name) for name in encoders])

    parts = dict(zip((name.replace("text_encoder", "tokenizer") for name in encoders), tokenizers, strict=True))
    vae_config = _config(kinds[0], "vae")
    parts["vae"] = make_vae(lambda: vae_config) if make_vae else _vae(state, vae_config, dtype)
    parts |= {name: _text_encoder(state, name, _config(kinds[0], name), dtype) for name in encoders}
    parts["unet"] = unet = build_unet(unet_config, state.part(_UNET, dtype), state.path)
    kind = kinds[0] if len(kinds) == 1 else _kind_from_prediction(kinds, unet.to(device))
    unet.register_to_config(sample_size=_config(kind, "unet")["sample_size"])
    scheduler_config = _config(kind, "scheduler") | _stated_prediction(state) | _stated_noise(state)
    parts["scheduler"] = getattr(diffusers, scheduler_config["_class_name"]).from_config(scheduler_config)
    return build_pipeline(parts)


def configuration_of(state: StateDict) -> dict[str, Any]:
    """Returns the configuration of a checkpoint's UNet; what it predicts is not known yet.

    Raises:
        ModelNotUsable: it is not such a checkpoint.
    """
    return _config(_kinds_of(state)[0], "unet")


def _kinds_of(state: StateDict) -> list[str]:
    """Returns the names of the configurations that fit a checkpoint; several differ only in what the UNet predicts."""
    if any(name.startswith(_EDM) for name in state.shapes):
        raise edm_model(state.path)
    if any(name.startswith(_UNET) and name.endswith(_READS_CFG_SCALE) for name in state.shapes):
        raise model_of_cfg_scale(state.path)
    first, context = f"{_UNET}input_blocks.0.0.weight", ".attn2.to_k.weight"
    contexts = [shape for name, shape in state.shapes.items() if name.startswith(_UNET) and name.endswith(context)]
    widths = {shape[-1] for shape in contexts if shape}
    channels = state.shapes.get(first, ())
    if len(channels) != 4 or len(widths) != 1 or not all(contexts):
        kind = TITLES[kind_of_names(state.shapes)]
        raise ModelNotUsable(
            f"{state.path}: no Stable Diffusion checkpoint (it has no UNet; it may be {kind})", hint=OTHER_MODEL
        )
    width = widths.pop()
    is_xl = any(name.startswith(f"{_XL}1.") for name in state.shapes)
    if width == _REFINER_WIDTH and any(name.startswith(f"{_XL}0.model.") for name in state.shapes):
        raise refiner(state.path)
    kinds = [kind.name for kind in sorted(CONFIGURATIONS.iterdir()) if _fits(kind, width, is_xl)]
    if not kinds:
        raise ModelNotUsable(f"{state.path}: a UNet whose text is {width} wide, which is unknown", hint=OTHER_MODEL)
    require_known_channels(channels[1], _config(kinds[0], "unet")["out_channels"], state.path)
    stated = _stated_prediction(state)
    return [kind for kind in kinds if stated.items() <= _config(kind, "scheduler").items()] or kinds[:1]


def _fits(kind: Path, width: int, is_xl: bool) -> bool:
    return _config(kind.name, "unet")["cross_attention_dim"] == width and (kind / "text_encoder_2").is_dir() == is_xl


def _config(kind: str, part: str) -> dict[str, Any]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    config: dict[str, Any] = json.loads((CONFIGURATIONS / kind / part / name).read_text(encoding="utf-8"))
    return config


def _stated_prediction(state: StateDict) -> dict[str, str]:
    """Returns what is stated that a checkpoint's UNet predicts, as a scheduler's configuration; empty if nothing is.

    Source: Stability's ModelSpec for metadata, the empty tensor ``v_pred`` that SDXL trainers leave, and the
    configuration beside the file.
    """
    stated = "v" if "v_pred" in state.shapes else state.metadata.get("modelspec.prediction_type", "")
    names = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}
    if stated not in names and predicts_v_by_yaml(state.path):
        stated = "v"
    return {"prediction_type": names[stated]} if stated in names else {}


def _stated_noise(state: StateDict) -> dict[str, bool]:
    """Returns what the file states of its noise: trainers of SDXL leave the empty tensor ``ztsnr``, as A1111 reads."""
    return {"rescale_betas_zero_snr": True} if "ztsnr" in state.shapes else {}


def predicts_v_by_yaml(path: str | os.PathLike[str]) -> bool:
    """Whether CompVis's configuration beside a checkpoint, ``NAME.yaml``, says that its UNet predicts v.

    A1111 builds the model by that file. Nothing else in it is read: the tensors say the rest.

    Raises:
        ModelNotUsable: there is such a file, and it cannot be read.
    """
    beside = f"{os.path.splitext(path)[0]}.yaml"
    try:
        if not is_file_at(beside):
            return False
        text = read_regular(beside, most=MOST_YAML)
    except ValueError:  # too large for one
        return False
    except OSError as error:
        hint = "make it readable: it may say what the model predicts"
        raise ModelNotUsable(f"{beside}: {error.strerror or error}", hint=hint) from error
    return _PREDICTS_V.search(text.decode("utf-8", "replace")) is not None


def _kind_from_prediction(kinds: list[str], unet: Any) -> str:
    """Picks the configuration by the UNet's output for noise; nothing else tells the two kinds of SD 2 apart."""
    prediction = "epsilon" if predicts_noise(unet) else "v_prediction"
    return next((kind for kind in kinds if _config(kind, "scheduler")["prediction_type"] == prediction), kinds[0])


def predicts_noise(unet: Any) -> bool:
    """Whether a UNet predicts noise (epsilon): at the last time step, its output is then almost its input.

    One for inpainting is shown a mask of ones, and zeros for the latents of a gray picture.
    """
    import torch

    generator, config = torch.Generator("cpu").manual_seed(0), unet.config
    noise = torch.randn(1, config.out_channels, 16, 16, generator=generator).to(unet.device, unet.dtype)
    beside = [torch.ones_like(noise[:, :1]), torch.zeros_like(noise)] if is_for_inpainting(config) else []
    sample = torch.cat([noise, *beside], dim=1)
    text = torch.zeros(1, 77, config.cross_attention_dim, device=unet.device, dtype=unet.dtype)
    with torch.no_grad():
        output = unet(sample, 999, encoder_hidden_states=text).sample
    return torch.cosine_similarity(output.float().flatten(), noise.float().flatten(), dim=0).item() > 0.5


def _text_encoder(state: StateDict, part: str, config: Mapping[str, Any], dtype: Any) -> Any:
    found = (prefix for prefix in _TEXT[part] if any(name.startswith(prefix) for name in state.shapes))
    prefix = next(found, _TEXT[part][0])
    return build_text_encoder(config, state.part(prefix, dtype), prefix, state.path)


def _vae(state: StateDict, config: Mapping[str, Any], dtype: Any) -> Any:
    tensors = state.part(tuple(_VAE + name for name in VAE_NAMES), dtype)
    if not tensors:
        raise ModelNotUsable(f"{state.path}: has no autoencoder of its own", hint="--vae FILE")
    return build_vae(config, {name.removeprefix(_VAE): tensor for name, tensor in tensors.items()}, state.path)


# --- state dicts


@dataclass(frozen=True)
class StateDict:
    """The floating-point tensors of one file, none of them loaded.

    Attributes:
        shapes: name -> shape of each tensor.
        metadata: of a safetensors header.
    """

    path: str
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    _read: Callable[[str], Tensor] = field(repr=False)

    def part(self, prefixes: str | tuple[str, ...], dtype: Any) -> dict[str, Tensor]:
        """Returns the tensors with these prefixes, on the CPU in `dtype`. Only one at a time is held in its own dtype.

        Raises:
            UnsafeFile: there are too many.
            FileRefused: one of them cannot be read; the message names it.
        """
        names = [name for name in self.shapes if name.startswith(prefixes)]
        if len(names) > MAX_TENSORS:
            raise UnsafeFile(f"{self.path}: {len(names)} tensors in one part of it; no such model has so many")
        return {name: self._read(name).to(dtype) for name in names}


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Reads a file's structure; tensors are read when they are used. The suffix does not matter.

    Raises:
        ModelNotUsable: it is neither safetensors nor a torch file, or its weights are to be multiplied by scales.
        UnsafeFile: the pickle names a class that is not in `HARMLESS`.
        FileRefused: it is damaged, or contradicts itself.
    """
    state = _read_structure(path)
    if scale := next(filter(_SCALES.fullmatch, state.shapes), None):
        raise ModelNotUsable(
            f"{state.path}: its weights are stored with scales, which are not applied ({shorten(scale)})",
            hint="get it in fp16, bf16 or fp32, or in plain fp8",
        )
    return state


def _read_structure(path: str | os.PathLike[str]) -> StateDict:
    file = OpenFile(path)
    refuse_sparse(file)
    head = file.read_at(0, min(file.size, 4096))
    if head.startswith(LEGACY_MAGIC):
        return _of_torch(read_torch_legacy(file))
    if head.startswith(b"PK\3\4"):
        source = read_torch_zip(file)
        if source is not None:
            return _of_torch(source)
    if len(head) > 8 and head[8:9] == b"{":
        return _of_safetensors(read_safetensors(file))
    kind = "zip" if head.startswith(b"PK") else kind_of_bytes(head)
    raise ModelNotUsable(f"{file.path}: {TITLES[kind]}, no Stable Diffusion checkpoint", hint="get the file again")


def _of_safetensors(source: SafetensorsFile) -> StateDict:
    def read(name: str) -> Tensor:
        import torch

        entry = source.entries[name]
        if entry.dtype not in _SMALL_FLOATS:
            return source.tensor(name).torch()
        data = bytearray(source.file.read_at(entry.offset, math.prod(entry.shape)))
        return torch.frombuffer(data, dtype=getattr(torch, _SMALL_FLOATS[entry.dtype])).reshape(entry.shape)

    known = (*_SAFETENSORS_FLOATS, *_SMALL_FLOATS)
    shapes = {name: entry.shape for name, entry in source.entries.items() if entry.dtype in known}
    return StateDict(source.file.path, shapes, source.metadata, read)


def _of_torch(source: TorchFile) -> StateDict:
    path = source.file.path
    for name in source.foreign:
        if name not in HARMLESS:
            raise UnsafeFile(
                f"{path}: asks for {shorten(name, 80)}, which no checkpoint needs",
                hint="do not load this file with any program; get it again from its source, best as .safetensors",
            )
    value = source.value
    inner = value.get("state_dict", value) if isinstance(value, dict) else value
    if not isinstance(inner, dict):
        raise ModelNotUsable(f"{path}: holds no state dict, so no Stable Diffusion checkpoint", hint="get it again")
    stubs = {
        name: item
        for name, item in inner.items()
        if isinstance(name, str) and isinstance(item, pickle_reader.TensorStub) and item.storage.type.name in _FLOATS
    }
    refuse_more_than_the_file(source.file, (_bytes_read(stub) for stub in stubs.values()))
    shapes = {name: stub.shape for name, stub in stubs.items()}
    return StateDict(path, shapes, {}, lambda name: _read_torch(source, stubs[name], name))


def refuse_more_than_the_file(file: OpenFile, sizes: Iterable[int]) -> None:
    """Refuses tensors that share their bytes so often that together they are far larger than the file.

    Args:
        sizes: bytes of each tensor once it is read.

    Raises:
        UnsafeFile: they are larger.
    """
    together = sum(sizes)
    if together > 2 * file.size:
        raise UnsafeFile(f"{file.path}: its tensors together ({shorten(together)} bytes) are larger than the file")


def _bytes_read(stub: pickle_reader.TensorStub) -> int:
    return max(math.prod(stub.shape), _span(stub)) * _FLOATS[stub.storage.type.name]


def _span(stub: pickle_reader.TensorStub) -> int:
    """Returns the number of values of its storage that a tensor spans."""
    return 1 + sum((length - 1) * stride for length, stride in zip(stub.shape, stub.stride, strict=True))


def _read_torch(source: TorchFile, stub: pickle_reader.TensorStub, name: str) -> Tensor:
    """Reads a tensor whose values may not be stored row by row, as in trainers' channels-last weights."""
    import torch

    numel, span = math.prod(stub.shape), _span(stub)
    if not numel or numel > span:  # empty, or values that are repeated by a stride of 0
        return source.tensor(stub, name).torch()
    flat = source.tensor(replace(stub, shape=(span,), stride=(1,)), name).torch()
    strided = flat.as_strided(stub.shape, stub.stride)
    # a side of length 1 may have any stride, but torch picks its kernels by strides: give it the usual ones
    return flat.view(stub.shape) if strided.is_contiguous() else strided.clone(memory_format=torch.contiguous_format)
