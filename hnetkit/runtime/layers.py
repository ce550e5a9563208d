"""The attention layers of a UNet that hypernetworks reach, and which networks belong on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hnetkit.errors import AttachError, IncompatibleNetwork, UsageError
from hnetkit.network import BaseModel, Hypernetwork
from hnetkit.runtime.strength import Kind

_ATTENTION = re.compile(r"(?:^|\.)transformer_blocks\.\d+\.(attn[12])$")
_KINDS: Mapping[str, Kind] = {"attn1": "self", "attn2": "cross"}

TEXT_WIDTH: Mapping[BaseModel, int] = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
"""Width of the text context, which cross-attention takes; every other known width is of self-attention."""

BASE_MODEL_NAME: Mapping[BaseModel, str] = {
    "sd1": "SD 1",
    "sd2": "SD 2",
    "sd1-or-sd2": "SD 1 or SD 2",
    "sdxl": "SDXL",
    "sdxl-refiner": "the SDXL refiner",
}


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

    Raises:
        AttachError: there is none, or one of them has no ``to_k`` and ``to_v``.
    """
    layers = []
    for name, module in unet.named_modules():
        found = _ATTENTION.search(name)
        if found:
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


def require_fit(name: str, network: Hypernetwork, unet: nn.Module, layers: Iterable[Layer], *, force: bool) -> None:
    """Raises IncompatibleNetwork where `network` does not belong on `unet`.

    It belongs where its cross-attention width is the UNet's. Without a cross-attention width it belongs on SD 1 and
    SD 2, and not on SDXL, although they share widths. `force` waives this, but not that some layer must be reached.
    """
    layers = tuple(layers)
    own = set(network.widths)
    if not own & {layer.width for layer in layers}:
        here = ", ".join(map(str, sorted({layer.width for layer in layers})))
        raise IncompatibleNetwork(
            f"{name} reaches no layer: its widths are {', '.join(map(str, network.widths))}, the UNet's are {here}",
            hint="use the model that it was trained for",
        )
    text = {layer.width for layer in layers if layer.kind == "cross"}
    if force or _fits(network, text, is_sdxl=_is_sdxl(unet)):
        return
    made_for = BASE_MODEL_NAME.get(network.base_model, "another model")
    raise IncompatibleNetwork(
        f"{name} is made for {made_for}; this UNet's text context is {', '.join(map(str, sorted(text)))} wide",
        hint="use the model that it was trained for (in Python, force=True applies it all the same)",
    )


def _fits(network: Hypernetwork, text: set[int], *, is_sdxl: bool) -> bool:
    made_for = TEXT_WIDTH.get(network.base_model)
    if made_for is not None:
        return made_for in text
    if is_sdxl:
        return bool(text & set(network.widths))
    return bool(text & set(network.widths)) or network.base_model in ("sd1-or-sd2", "unknown")


def _is_sdxl(unet: nn.Module) -> bool:
    return getattr(unet.config, "addition_embed_type", None) == "text_time"
