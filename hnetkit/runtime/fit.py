"""Which networks belong on which UNet, by the widths of its contexts. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hnetkit.errors import IncompatibleNetwork
from hnetkit.network import BaseModel, Hypernetwork

TEXT_WIDTH: Mapping[BaseModel, int] = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
"""Width of the text context, which cross-attention takes; every other known width is of self-attention."""

BASE_MODEL_NAME: Mapping[BaseModel, str] = {
    "sd1": "SD 1",
    "sd2": "SD 2",
    "sd1-or-sd2": "SD 1 or SD 2",
    "sdxl": "SDXL",
    "sdxl-refiner": "the SDXL refiner",
}

_HINT = "use the model that it was trained for"


@dataclass(frozen=True, slots=True)
class Contexts:
    """The widths of the contexts that a UNet's attention layers take.

    Attributes:
        widths: of all layers.
        text: of those that take the text.
        is_sdxl: whether the UNet is SDXL's, which shares widths of self-attention with SD 1 and 2.
    """

    widths: frozenset[int]
    text: frozenset[int]
    is_sdxl: bool

    @property
    def base_model(self) -> str | None:
        """What people call models with this text context; None for a width that no published one has."""
        return next((BASE_MODEL_NAME[base] for base, width in TEXT_WIDTH.items() if self.text == {width}), None)


def require_fit(name: str, network: Hypernetwork, contexts: Contexts, *, force: bool = False) -> None:
    """Raises IncompatibleNetwork where `network` does not belong on a UNet with these contexts.

    It belongs where its cross-attention width is the UNet's. Without a cross-attention width it belongs on SD 1 and
    SD 2, and not on SDXL, although they share widths. `force` waives this, but not that some layer must be reached.
    """
    if not contexts.widths & set(network.widths):
        raise IncompatibleNetwork(
            f"{name} reaches no layer: its widths are {_listed(network.widths)}, the UNet's are "
            f"{_listed(contexts.widths)}",
            hint=_HINT,
        )
    if force or _fits(network, contexts):
        return
    made_for = BASE_MODEL_NAME.get(network.base_model, "another model")
    raise IncompatibleNetwork(
        f"{name} is made for {made_for}; this UNet's text context is {_listed(contexts.text)} wide",
        hint=_HINT,
        python=f"{_HINT}, or force=True, which applies it all the same",
    )


def _fits(network: Hypernetwork, contexts: Contexts) -> bool:
    made_for = TEXT_WIDTH.get(network.base_model)
    if made_for is not None:
        return made_for in contexts.text
    if contexts.text & set(network.widths):
        return True
    return not contexts.is_sdxl and network.base_model in ("sd1-or-sd2", "unknown")


def _listed(widths: frozenset[int] | list[int]) -> str:
    return ", ".join(map(str, sorted(widths)))
