"""The UNets that stacks are timed for, by their attention layers, and which of them networks belong on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from hnetkit.errors import IncompatibleNetwork
from hnetkit.network import BaseModel, Hypernetwork
from hnetkit.runtime.strength import Kind

TEXT_TOKENS = 77

Item: TypeAlias = tuple[str, Hypernetwork, float]
"""A network's name, the network, and its strength."""


class Layers(NamedTuple):
    """Attention layers of a UNet whose contexts are alike, ``[rows, width]``, and how many there are."""

    width: int
    kind: Kind
    rows: int
    number: int


class Level(NamedTuple):
    """Self-attention layers of one width, at latents that were halved so often."""

    width: int
    halvings: int
    number: int


class Model(NamedTuple):
    """A UNet by its attention layers.

    Attributes:
        name: what people call it.
        size: pixels of the side of its pictures.
        levels: its self-attention.
        text_width, text_layers: its cross-attention.
    """

    name: str
    size: int
    levels: tuple[Level, ...]
    text_width: int
    text_layers: int

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(sorted({*(level.width for level in self.levels), self.text_width}))

    def layers(self, width: int, height: int, batch: int) -> list[Layers]:
        """Returns the layers of a picture of ``width x height`` pixels, for `batch` pictures in one call."""
        found = []
        for level in self.levels:
            rows, columns = height // 8, width // 8
            for _ in range(level.halvings):
                rows, columns = (rows + 1) // 2, (columns + 1) // 2
            found.append(Layers(level.width, "self", batch * rows * columns, level.number))
        return [*found, Layers(self.text_width, "cross", batch * TEXT_TOKENS, self.text_layers)]


_SD_LEVELS = (Level(320, 0, 5), Level(640, 1, 5), Level(1280, 2, 5), Level(1280, 3, 1))
MODELS: Mapping[BaseModel, Model] = {
    "sd1": Model("SD 1", 512, _SD_LEVELS, 768, 16),
    "sd2": Model("SD 2", 768, _SD_LEVELS, 1024, 16),
    "sdxl": Model("SDXL", 1024, (Level(640, 1, 10), Level(1280, 2, 60)), 2048, 70),
}


def base_of(items: Sequence[Item]) -> BaseModel:
    """Returns the model that networks are made for, SD 1 where it cannot be told.

    Raises:
        IncompatibleNetwork: they are made for several, or for one that is not in `MODELS`.
    """
    for base in MODELS:
        if all(base in _bases(network) for _, network, _ in items):
            return base
    if len(items) == 1:
        require_fit(items, "sd1")
    told = {_made_for(network): f"{name} for {_made_for(network)}" for name, network, _ in items}
    raise IncompatibleNetwork(f"no model takes all of them: {', '.join(told.values())}", hint="measure them one by one")


def require_fit(items: Iterable[Item], base: BaseModel) -> Model:
    """Returns a model of `MODELS`.

    Raises:
        IncompatibleNetwork: a network is made for another, or has none of its widths.
    """
    model = MODELS[base]
    for name, network, _ in items:
        bases = _bases(network)
        if base not in bases:
            hint = f"--base-model {' or '.join(bases)}" if bases else f"bench knows {', '.join(MODELS)}"
            raise IncompatibleNetwork(f"{name} is made for {_made_for(network)}, not for {model.name}", hint=hint)
        if not set(network.widths) & set(model.widths):
            fitting = [other for other in bases if set(network.widths) & set(MODELS[other].widths)]
            raise IncompatibleNetwork(
                f"{name} reaches no layer: its widths are {_listed(network.widths)}, "
                f"those of {model.name} are {_listed(model.widths)}",
                hint=f"--base-model {fitting[0]}"
                if fitting
                else f"no model that bench knows ({', '.join(MODELS)}) has them",
            )
    return model


def _bases(network: Hypernetwork) -> tuple[BaseModel, ...]:
    """Returns the models of `MODELS` that a network may be made for."""
    told = network.base_model
    several: Mapping[BaseModel, tuple[BaseModel, ...]] = {"unknown": tuple(MODELS), "sd1-or-sd2": ("sd1", "sd2")}
    return several.get(told, (told,) if told in MODELS else ())


def _made_for(network: Hypernetwork) -> str:
    """Returns the name of what a network is made for."""
    bases = _bases(network)
    if len(bases) == len(MODELS):
        return "any model"
    return " or ".join(MODELS[base].name for base in bases) or "the SDXL refiner"


def _listed(widths: Iterable[int]) -> str:
    return ", ".join(map(str, widths))
