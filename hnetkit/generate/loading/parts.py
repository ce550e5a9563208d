"""Pipelines and their parts, built from configurations and tensors with CompVis's, Stability's or diffusers' names.

diffusers' own converters map the names; hnetkit checks that every tensor of the part is there and has its shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import ModelNotUsable
from hnetkit.text import shorten

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]

VAE_NAMES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
OTHER_MODEL = "give a Stable Diffusion 1, 2 or XL model, or one made from them for inpainting"
"""Hint where a model is one that no hypernetwork belongs on."""

_HINT = "get the file again; pruned files and merges may lack parts"
# channels of UNets that read more than latents of 4, and whose they are
_READ_MORE = {5: "depth-to-image", 7: "upscaler", 8: "InstructPix2Pix"}
# how the tensors of what some files hold beside a model are named: a prompt alone draws with none of it
_BESIDE: Mapping[str, re.Pattern[str]] = {
    "a ControlNet": re.compile(r"control_model\..*"),
    "a LoRA": re.compile(r".*\.lora_(?:A|B|down|up|linear_layer)\..*"),
    "an IP-Adapter": re.compile(r".*(?:\.to_[kv]_ip|ip_adapter)\..*"),
    "GLIGEN": re.compile(r".*(?:\.fuser|position_net)\..*"),
    "motion modules": re.compile(r".*\.motion_modules?\..*"),
    "unCLIP": re.compile(r"(?:embedder|noise_augmentor)\..*"),
}
# names in autoencoders that diffusers wrote before 0.14
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def is_for_inpainting(unet_config: Any) -> bool:
    """Whether a UNet was made for inpainting: beside latents, it reads a mask and the latents of a masked picture."""
    return bool(unet_config.in_channels == _for_inpainting(unet_config.out_channels))


def require_known_channels(reads: int, latents: int, source: str) -> None:
    """Accepts a UNet that reads latents alone, or what those for inpainting read.

    Args:
        reads: its input channels.
        latents: its output channels.
        source: of the model, for messages.

    Raises:
        ModelNotUsable: it reads something else.
    """
    if reads in (latents, _for_inpainting(latents)):
        return
    whose = f" ({_READ_MORE[reads]})" if latents == 4 and reads in _READ_MORE else ""
    usable = f"{latents} and, for inpainting, {_for_inpainting(latents)} are supported"
    raise ModelNotUsable(f"{source}: its UNet takes {reads} channels{whose}; {usable}", hint=OTHER_MODEL)


def _for_inpainting(latents: int) -> int:
    return latents + 1 + latents


def refiner(source: object) -> ModelNotUsable:
    """Returns the refusal of SDXL's refiner, which has one text encoder: SDXL's second."""
    return ModelNotUsable(f"{source}: the refiner of SDXL, which draws no picture alone", hint=OTHER_MODEL)


def edm_model(source: object) -> ModelNotUsable:
    """Returns the refusal of a model that was trained on EDM's noise, as CosXL and Playground 2.5 were."""
    return ModelNotUsable(
        f"{source}: made for the noise of EDM, as CosXL and Playground 2.5 are; no sampler here draws with it",
        hint=OTHER_MODEL,
    )


def model_of_cfg_scale(source: object) -> ModelNotUsable:
    """Returns the refusal of a model whose UNet was distilled for LCM, and reads the CFG scale beside the time."""
    return ModelNotUsable(
        f"{source}: its UNet takes the CFG scale as an input, as those distilled for LCM do",
        hint="give the model it was made from, and LCM as a LoRA; or draw with diffusers itself",
    )


def left_out_of(source: object, names: Iterable[str]) -> Iterator[str]:
    """Yields a line for each thing that a file of a model holds besides, and that is not applied.

    Args:
        names: of its tensors.
    """
    tensors = list(names)
    for kind, pattern in _BESIDE.items():
        if any(map(pattern.fullmatch, tensors)):
            yield f"Warning: {source} holds {kind} too, which is not applied"


def build_pipeline(parts: Mapping[str, Any], *, zeros_for_empty_prompt: bool = True) -> Any:
    """Returns a pipeline on the CPU, without a safety checker: SDXL's if it has two text encoders.

    Args:
        parts: by name.
        zeros_for_empty_prompt: of SDXL: whether an empty negative prompt is encoded as zeros.
    """
    import diffusers

    kind = "Inpaint" if is_for_inpainting(parts["unet"].config) else ""
    if "text_encoder_2" in parts:
        make = getattr(diffusers, f"StableDiffusionXL{kind}Pipeline")
        return make(**parts, force_zeros_for_empty_prompt=zeros_for_empty_prompt, add_watermarker=False)
    make = getattr(diffusers, f"StableDiffusion{kind}Pipeline")
    return make(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def build_unet(config: Mapping[str, Any], tensors: Tensors, source: str) -> Any:
    """Returns a ``UNet2DConditionModel`` from tensors named ``model.diffusion_model.*`` or as diffusers does."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    def converted() -> Tensors:
        if "conv_in.weight" in tensors:
            return tensors
        found: Tensors = convert_ldm_unet_checkpoint(tensors, config)
        return found

    return _fill(lambda: UNet2DConditionModel.from_config(config), converted, f"{source}: its UNet")


def names_in_checkpoint(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Returns, for each tensor of a UNet by diffusers' name, its name in a file, as `build_unet` reads it.

    Args:
        config: of the UNet.
        shapes: of the file's tensors ``model.diffusion_model.*``, by their names.
    """
    import torch
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    named = {id(tensor): name for name, tensor in tensors.items()}
    return {name: named[id(tensor)] for name, tensor in convert_ldm_unet_checkpoint(tensors, config).items()}


def build_vae(config: Mapping[str, Any], tensors: Tensors, source: str) -> Any:
    """Returns an ``AutoencoderKL`` from tensors without a prefix, in either layout's names; see `_fill`."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    def converted() -> Tensors:
        if any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in tensors):
            return {_without_old_names(name): _as_linear(name, tensor) for name, tensor in tensors.items()}
        found: Tensors = convert_ldm_vae_checkpoint(tensors, config)
        return found

    return _fill(lambda: AutoencoderKL.from_config(config), converted, f"{source}: its autoencoder")


def build_text_encoder(config: Mapping[str, Any], tensors: Tensors, prefix: str, source: str) -> Any:
    """Returns a text encoder of transformers, of the class that its configuration names; see `_fill`.

    Args:
        prefix: of every tensor. One that ends in ``.model.`` is OpenCLIP's; after any other, the names are
            transformers' own.
    """
    import transformers
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    kind = getattr(transformers, config["architectures"][0])
    config_object = kind.config_class.from_dict(dict(config))

    def converted() -> Tensors:
        if not prefix.endswith(".model."):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        found: Tensors = convert_open_clip_checkpoint(_ConfigOnly(config_object), tensors, prefix=prefix)
        return found

    return _fill(lambda: kind(config_object), converted, f"{source}: its text encoder")


class _ConfigOnly:
    """Stands in for a text encoder: OpenCLIP's converter reads nothing but its configuration."""

    def __init__(self, config: Any) -> None:
        self.config = config


def _fill(make: Callable[[], Any], convert: Callable[[], Tensors], what: str) -> Any:
    """Returns a part whose parameters are the converted tensors themselves, neither copied nor initialized.

    Raises:
        ModelNotUsable: a tensor is missing, or does not have the shape that the configuration says; the message names
            it. Also if a converter fails on a shape.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():
        part = make()
    try:
        found = {_bare(name): tensor for name, tensor in convert().items()}
    except (KeyError, AttributeError) as error:  # what the converters raise for a missing name
        raise ModelNotUsable(f"{what} lacks a tensor ({shorten(str(error))})", hint=_HINT) from error
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the converters split and join tensors before any shape was checked
        raise ModelNotUsable(f"{what} has a tensor that does not fit ({shorten(str(error))})", hint=_HINT) from error
    fitting = {}
    for name, slot in part.state_dict().items():
        tensor = found.pop(_bare(name), None)
        if tensor is None:
            raise ModelNotUsable(f"{what} lacks the tensor {name}", hint=_HINT)
        if tensor.shape != slot.shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(slot.shape)}"
            raise ModelNotUsable(f"{what} has a tensor that does not fit: {name} is {shapes}", hint=_HINT)
        fitting[name] = tensor.contiguous()
    part.load_state_dict(fitting, assign=True)
    return part.eval()


def refuse_missing_weights(pipe: Any, source: str) -> None:
    """Checks that every parameter of a pipeline has its values.

    Raises:
        ModelNotUsable: one has none; the message names the first.
    """
    for part, module in pipe.components.items():
        for name, tensor in module.named_parameters() if hasattr(module, "named_parameters") else ():
            if tensor.is_meta:
                raise ModelNotUsable(f"{Path(source)}: its {part} lacks the tensor {name}", hint=_HINT)


def _bare(name: str) -> str:
    # a prefix of all text encoders until transformers 5.6, and of those with a projection since
    return name.removeprefix("text_model.")


def _without_old_names(name: str) -> str:
    for old, new in _OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    # attention as 1x1 convolutions in old files: the same numbers, with two more dimensions
    is_product = ".attentions." in name and name.endswith(".weight") and tensor.ndim > 2
    return tensor.flatten(1) if is_product else tensor
