"""The attention layers of a UNet that hypernetworks reach."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from hnetkit.errors import AttachError, UsageError, did_you_mean
from hnetkit.runtime.fit import Contexts
from hnetkit.runtime.strength import Kind, Strength, is_within

# attention between frames, in UNets of videos: no network was made for it, though widths may agree
_BETWEEN_FRAMES = re.compile(r"(?:^|\.)(?:motion_modules|temp_attentions|transformer_in)(?:\.|$)")
_ATTENTION = re.compile(r"(?:^|\.)transformer_blocks\.\d+\.(attn[12])$")
_KINDS: Mapping[str, Kind] = {"attn1": "self", "attn2": "cross"}
_SDXL_TEXT = frozenset({2048, 1280})  # widths of the text, of SDXL and of its refiner
_LDM = re.compile(
    r"(?P<block>input|middle|output)_blocks?\.(?P<number>\d+)\.(?:\d+\.)?"
    r"transformer_blocks\.(?P<index>\d+)\.(?P<attention>attn[12])"
)
_LDM_BETWEEN_FRAMES = re.compile(r"(?:^|\.)time_(?:stack|mixer)(?:\.|$)")


@dataclass(frozen=True)  # no slots, here and in the plan: compiled code of older torch keeps weak references
class Layer:
    """One attention layer.

    Attributes:
        name: dotted name in the UNet, ``"up_blocks.1.attentions.0.transformer_blocks.0.attn2"``.
        kind: self-attention (``attn1``) or cross-attention (``attn2``).
        width: of the context that ``to_k`` and ``to_v`` take.
        projected: width of K and V.
    """

    name: str
    kind: Kind
    width: int
    projected: int


class Place(NamedTuple):
    """Where programs with patches say that an attention layer is.

    Attributes:
        block: ``"input"``, ``"middle"`` or ``"output"``.
        number: of the block; 0 in the middle.
        transformer: which of its transformer blocks.
        kind: which of its two attention layers.
    """

    block: str
    number: int
    transformer: int
    kind: Kind


def find_layers(unet: nn.Module) -> tuple[Layer, ...]:
    """Returns the layers ``...transformer_blocks.N.attn1`` and ``attn2`` in the module's order.

    Attention between the frames of a video is left alone.

    Raises:
        AttachError: there is none, or one of them has no ``to_k`` and ``to_v``.
    """
    layers = []
    for name, module in unet.named_modules():
        found = _ATTENTION.search(name)
        if found and not _BETWEEN_FRAMES.search(name):
            projection = getattr(module, "to_k", None)
            if projection is None or not hasattr(projection, "in_features"):
                raise AttachError(f"{name} has no to_k and to_v that take a context")
            layers.append(Layer(name, _KINDS[found[1]], projection.in_features, projection.out_features))
    if not layers:
        raise AttachError(f"{type(unet).__name__} has no attention layers that hypernetworks know")
    return tuple(layers)


def find_ldm_layers(unet: nn.Module) -> dict[Place, Layer]:
    """Returns the layers of a UNet that is built as Stable Diffusion's first code was: ComfyUI's, Forge's.

    The layers have the names of diffusers, by which `Strength` has its factors of blocks.

    Raises:
        AttachError: it has no attention layers that hypernetworks know, or it is a model of videos.
    """
    unet = getattr(unet, "_orig_mod", unet)  # what torch.compile made it of
    if any(_LDM_BETWEEN_FRAMES.search(name) for name, _ in unet.named_modules()):
        raise AttachError(f"{type(unet).__name__} draws videos: no hypernetwork was made for it")
    layers = {}
    for layer in find_layers(unet):
        found = _LDM.match(layer.name)
        if not found:
            raise AttachError(f"{type(unet).__name__}: {layer.name} is in no block that is known")
        block, number, index = found["block"], int(found["number"]), int(found["index"])
        number = 0 if block == "middle" else number
        name = f"{_diffusers_block(block, number, _res_blocks(unet))}.transformer_blocks.{index}.{found['attention']}"
        layers[Place(block, number, index, layer.kind)] = replace(layer, name=name)
    return layers


def _res_blocks(unet: Any) -> list[int]:
    """Returns how many residual blocks each level has, from the highest resolution down."""
    blocks = unet.num_res_blocks
    return [blocks] * len(unet.channel_mult) if isinstance(blocks, int) else list(blocks)


def _diffusers_block(block: str, number: int, res_blocks: list[int]) -> str:
    """Returns what diffusers calls the attention of a block; input block 0 is a convolution."""
    if block == "middle":
        return "mid_block.attentions.0"
    first, side, levels = (1, "down_blocks", res_blocks) if block == "input" else (0, "up_blocks", res_blocks[::-1])
    for level, count in enumerate(levels):
        if number <= first + count:  # a block of the way down has a downsampler after its last, one of the way up has
            return f"{side}.{level}.attentions.{number - first}"  # one residual block more
        first += count + 1
    raise AttachError(f"{block} block {number} is not among {sum(levels)} residual blocks")


def require_blocks(strength: Strength, layers: Iterable[Layer]) -> None:
    """Raises UsageError where a block of `strength` holds none of the layers."""
    layers = tuple(layers)
    for block in strength.block_names:
        if not any(is_within(layer.name, block) for layer in layers):
            blocks = {".".join(layer.name.split(".")[:depth]) for layer in layers for depth in (1, 2)}
            near = did_you_mean(block, blocks)
            hint = f"did you mean {near}?" if near else f"its blocks are {', '.join(sorted(blocks))}"
            raise UsageError(f"the UNet has no block {block} with attention layers", hint=hint)


def unet_of(pipe: Any) -> nn.Module:
    """Returns the UNet of a pipeline (or the UNet itself), taken out of what ``torch.compile`` made of it.

    Raises:
        UsageError: `pipe` has no UNet.
    """
    unet = getattr(pipe, "unet", pipe)
    unet = getattr(unet, "_orig_mod", unet)
    if not isinstance(unet, nn.Module) or not hasattr(unet, "down_blocks"):
        raise UsageError(
            f"{type(pipe).__name__} has no UNet",
            hint="hypernetworks belong on StableDiffusionPipeline or StableDiffusionXLPipeline",
        )
    return unet


def contexts_of(unet: nn.Module, layers: Iterable[Layer]) -> Contexts:
    """Returns the widths of the contexts that a UNet's layers take."""
    layers = tuple(layers)
    text = frozenset(layer.width for layer in layers if layer.kind == "cross")
    takes_sizes = getattr(getattr(unet, "config", None), "addition_embed_type", None) == "text_time"
    return Contexts(
        widths=frozenset(layer.width for layer in layers),
        text=text,
        is_sdxl=takes_sizes or bool(text & _SDXL_TEXT),
    )
