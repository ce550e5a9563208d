"""Does a network belong on this UNet? Decided by the width of the text context, never by shared widths alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from hnetkit.errors import IncompatibleNetwork
from hnetkit.network import BaseModel, Hypernetwork
from hnetkit.runtime.layers import Layer

_TEXT_WIDTH: Mapping[BaseModel, int] = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
_MODEL_NAME: Mapping[BaseModel, str] = {
    "sd1": "SD 1",
    "sd2": "SD 2",
    "sd1-or-sd2": "SD 1 or SD 2",
    "sdxl": "SDXL",
    "sdxl-refiner": "the SDXL refiner",
}


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
    made_for = _MODEL_NAME.get(network.base_model, "another model")
    raise IncompatibleNetwork(
        f"{name} is made for {made_for}; this UNet's text context is {', '.join(map(str, sorted(text)))} wide",
        hint="use the model that it was trained for (in Python, force=True applies it all the same)",
    )


def _fits(network: Hypernetwork, text: set[int], *, is_sdxl: bool) -> bool:
    made_for = _TEXT_WIDTH.get(network.base_model)
    if made_for is not None:
        return made_for in text
    if is_sdxl:
        return bool(text & set(network.widths))
    return bool(text & set(network.widths)) or network.base_model in ("sd1-or-sd2", "unknown")


def _is_sdxl(unet: nn.Module) -> bool:
    return getattr(unet.config, "addition_embed_type", None) == "text_time"
