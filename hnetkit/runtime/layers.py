"""The attention layers of a UNet that hypernetworks reach."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hnetkit.errors import AttachError, UsageError
from hnetkit.runtime.fit import Contexts
from hnetkit.runtime.strength import Kind

# attention between frames, in UNets of videos: no network was made for it, though widths may agree
_BETWEEN_FRAMES = re.compile(r"(?:^|\.)(?:motion_modules|temp_attentions|transformer_in)(?:\.|$)")
_ATTENTION = re.compile(r"(?:^|\.)transformer_blocks\.\d+\.(attn[12])$")
_KINDS: Mapping[str, Kind] = {"attn1": "self", "attn2": "cross"}


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
    return Contexts(
        widths=frozenset(layer.width for layer in layers),
        text=frozenset(layer.width for layer in layers if layer.kind == "cross"),
        is_sdxl=getattr(getattr(unet, "config", None), "addition_embed_type", None) == "text_time",
    )
