"""The network that is trained: MLPs with fp32 parameters in A1111's layout, and the weights that they start from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetkit.errors import UsageError
from hnetkit.kernels.activations import activate
from hnetkit.network import Hypernetwork, ResidualMLP
from hnetkit.runtime.strength import SIDES, Side
from hnetkit.train.batching import seed_for
from hnetkit.train.build import INITIALIZATIONS, Build


class TrainedNetwork(nn.Module):
    """A hypernetwork in training: fp32 parameters, dropout live in train mode.

    Args:
        build: how it is built.
        widths: that the UNet's contexts have; the build may choose among them.
        seed: of the weights that it starts from. Those of a width and side do not depend on which others there are.

    Attributes:
        build: as given; of a network that goes on from a file, what the file says.
        widths: of the contexts that it changes, ascending.

    Raises:
        UsageError: the build wants a width that is not there.
    """

    def __init__(self, build: Build, widths: Iterable[int], *, seed: int) -> None:
        super().__init__()
        self.build = build
        self.widths = build.chosen(widths)
        self.mlps = _pairs({width: build.layers(width) for width in self.widths}, build)
        for width in self.widths:
            for side in build.sides:
                initialize_weights(self.mlp(width, side).linear, build, seed_for(seed, f"weights of {side}", width))

    @classmethod
    def of(cls, network: Hypernetwork) -> TrainedNetwork:
        """Returns a network of the same weights, in fp32, to go on training with.

        A side that changes nothing in any width, beside one that does, is not trained: it was left out before.

        Raises:
            UsageError: its MLPs are not all of one build, or of one that is not made any more.
        """
        build = build_from(network)
        layers = {width: _layers(network.mlps[width].key) for width in network.widths}
        trained = cls.__new__(cls)
        nn.Module.__init__(trained)
        trained.build, trained.widths, trained.mlps = build, tuple(network.widths), _pairs(layers, build)
        for width, side, mlp in network.each_mlp():
            if side in build.sides:
                trained.mlp(width, side).load(mlp)
        return trained

    def mlp(self, width: int, side: Side) -> MLP:
        """Returns the MLP of a width and a side that are trained."""
        return cast(MLP, cast(nn.ModuleDict, self.mlps[str(width)])[side])

    def apply_to(
        self, x: Tensor, side: Side, casts: CastCache | None = None, strengths: Tensor | None = None
    ) -> Tensor:
        """Returns ``x + strength * MLP(x)`` of one side, ``[n, ..., width]`` of x's dtype, in which products are too.

        Args:
            x: ``[n, ..., width]``; a width that is not one of `widths` gives `x`.
            side: K or V; one that is not trained gives `x`.
            casts: of the parameters, where several calls share them.
            strengths: of each context, ``[n]``; None is 1 for all.
        """
        if side not in self.build.sides or x.shape[-1] not in self.widths:
            return x
        rows = x.reshape(-1, x.shape[-1])
        added = cast(Tensor, self.mlp(x.shape[-1], side)(rows, casts or CastCache())).view(x.shape)
        if strengths is not None:
            added = added * strengths.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return x + added


def build_from(network: Hypernetwork) -> Build:
    """Returns the build of a network that was read.

    Raises:
        UsageError: its MLPs are not all of one build, or of one that is not made any more.
    """
    mlps = [mlp for _, _, mlp in network.each_mlp()]
    first = mlps[0].stages
    is_normed, activation = first[0].norm is not None, network.activation or first[-1].activation
    expected = [
        (activation if place < len(first) - 1 or network.activate_output else None, is_normed)
        for place in range(len(first))
    ]
    found = {tuple((stage.activation, stage.norm is not None) for stage in mlp.stages) for mlp in mlps}
    if found != {tuple(expected)}:
        raise UsageError(
            f"{network.name}: its MLPs are not all of one build that is known, so training cannot go on with it",
            hint="hnetkit inspect shows how it is built",
        )
    stated = str(network.metadata.get("weight_initialization")).lower()
    return Build(
        structure=tuple(network.layer_structure),
        activation=activation,
        layer_norm=is_normed,
        activate_output=network.activate_output and activation is not None,
        dropout=tuple(network.dropout),
        initialisation=next((name for name, a1111 in INITIALIZATIONS.items() if a1111.lower() == stated), "normal"),
        zero_output=False,
        widths=tuple(network.widths),
        sides=_sides_of(network),
    )


def _sides_of(network: Hypernetwork) -> tuple[Side, ...]:
    changing = tuple(side for side in SIDES if not all(_is_silent(m) for _, s, m in network.each_mlp() if s == side))
    return changing or SIDES


def _is_silent(mlp: ResidualMLP) -> bool:
    """Whether an MLP gives 0 for every context."""
    last = mlp.stages[-1]
    if last.norm is not None:
        return not any(ref.torch().any() for ref in (last.norm.weight, last.norm.bias))
    if any(ref.torch().any() for ref in (last.weight, last.bias) if ref is not None):
        return False
    slope = None if last.slope is None else last.slope.torch()
    rows = torch.zeros(1, mlp.width)
    return last.activation is None or not activate(rows, last.activation, slope, inplace=False).any()


def _layers(mlp: ResidualMLP) -> list[int]:
    return [mlp.width, *(stage.weight.shape[0] for stage in mlp.stages)]


def _pairs(layers: Mapping[int, Sequence[int]], build: Build) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            str(width): nn.ModuleDict({side: MLP(build, own) for side in build.sides})
            for width, own in sorted(layers.items())
        }
    )


# --- the MLP of one width and side


class Activation(nn.Module):
    """An activation without weights, by A1111's name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, rows: Tensor) -> Tensor:
        return activate(rows, self.name, None, inplace=False)


class CastCache:
    """Parameters in the dtype of the products, each cast once however many layers use it."""

    def __init__(self) -> None:
        self._made: dict[tuple[Tensor, torch.dtype, bool], Tensor] = {}

    def __call__(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns `parameter` in `dtype`: itself where it is."""
        if parameter.dtype == dtype:
            return parameter
        key = (parameter, dtype, torch.is_grad_enabled())
        if key not in self._made:
            self._made[key] = parameter.to(dtype)
        return self._made[key]


class MLP(nn.Module):
    """The `MLP` of ``x + MLP(x)`` for one width and side: ``linear`` is A1111's Sequential, so tensors have its names.

    Args:
        build: the order of the modules.
        layers: widths, from the context's to the context's.
    """

    def __init__(self, build: Build, layers: Sequence[int]) -> None:
        super().__init__()
        self.linear = nn.Sequential(*_modules(build, layers))

    def forward(self, rows: Tensor, casts: CastCache) -> Tensor:
        """Returns ``MLP(rows)``, ``[rows, width]``, computed in the dtype of `rows`."""
        dtype = rows.dtype
        for module in self.linear:
            if isinstance(module, nn.Linear):
                rows = F.linear(rows, casts(module.weight, dtype), casts(module.bias, dtype))
            elif isinstance(module, nn.LayerNorm):
                weight, bias = casts(module.weight, dtype), casts(module.bias, dtype)
                rows = F.layer_norm(rows, module.normalized_shape, weight, bias, module.eps)
            elif isinstance(module, nn.PReLU):
                rows = F.prelu(rows, casts(module.weight, dtype))
            else:
                rows = module(rows)
        return rows

    def load(self, mlp: ResidualMLP) -> None:
        """Takes the weights of an MLP of the same build; a missing bias is 0."""
        linears, norms = self._of(nn.Linear), self._of(nn.LayerNorm)
        with torch.no_grad():
            for linear, stage in zip(linears, mlp.stages, strict=True):
                linear.weight.copy_(stage.weight.torch())
                linear.bias.copy_(stage.bias.torch()) if stage.bias is not None else linear.bias.zero_()
            for norm, stage in zip(norms, mlp.stages if norms else (), strict=True):
                assert stage.norm is not None, "builds were compared"
                norm.weight.copy_(stage.norm.weight.torch())
                norm.bias.copy_(stage.norm.bias.torch())
            for slope, stage in zip(self._of(nn.PReLU), mlp.stages, strict=False):
                assert stage.slope is not None, "builds were compared"
                slope.weight.copy_(stage.slope.torch())

    def _of(self, kind: type[nn.Module]) -> list[Any]:
        return [module for module in self.linear if isinstance(module, kind)]


def _modules(build: Build, layers: Sequence[int]) -> Iterator[nn.Module]:
    """Yields the modules of A1111's Sequential: linear, activation, layer norm and dropout of each stage.

    Linear layers hold no weights yet: torch's own would cost time, and draw from its global generator.
    """
    stages = len(layers) - 1
    for place in range(stages):
        yield nn.Linear(layers[place], layers[place + 1], device="meta").to_empty(device="cpu")
        if build.activation is not None and (place < stages - 1 or build.activate_output):
            yield _activation(build.activation)
        if build.layer_norm:
            yield nn.LayerNorm(layers[place + 1])
        if build.chance(place):
            yield nn.Dropout(build.chance(place))


def _activation(name: str) -> nn.Module:
    if name == "prelu":
        return nn.PReLU()
    return nn.RReLU() if name == "rrelu" else Activation(name)  # random slopes while it trains


# --- initial weights

_NORM_STD = 0.01  # A1111 draws the weights of layer norms too, whatever the initialisation of the linear layers


def initialize_weights(modules: nn.Sequential, build: Build, seed: int) -> None:
    """Gives one MLP the weights that it starts from, the same for the same seed.

    Args:
        modules: linear layers, layer norms and what lies between them, on the CPU.
        build: says how; with its `zero_output` the MLP gives exactly 0 for every context.
        seed: of this MLP alone.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    for module in modules:
        if isinstance(module, nn.Linear):
            _draw(module.weight, build, generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, std=_NORM_STD, generator=generator)
            nn.init.zeros_(module.bias)
    if build.zero_output:
        set_output_to_zero(modules)


def set_output_to_zero(modules: nn.Sequential) -> None:
    """Makes an MLP give 0: the last layer norm's weight and bias, or those of the last linear layer without one.

    With a norm the linear layers keep their weights: the norm's own gradient needs what they give.
    """
    last = next(module for module in reversed(modules) if isinstance(module, nn.Linear | nn.LayerNorm))
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def _draw(weight: torch.Tensor, build: Build, generator: torch.Generator) -> None:
    nonlinearity: Literal["leaky_relu", "relu"] = "leaky_relu" if build.activation == "leakyrelu" else "relu"
    match build.initialisation:
        case "normal":
            nn.init.normal_(weight, std=build.std, generator=generator)
        case "xavier-uniform":
            nn.init.xavier_uniform_(weight, generator=generator)
        case "xavier-normal":
            nn.init.xavier_normal_(weight, generator=generator)
        case "kaiming-uniform":
            nn.init.kaiming_uniform_(weight, nonlinearity=nonlinearity, generator=generator)
        case "kaiming-normal":
            nn.init.kaiming_normal_(weight, nonlinearity=nonlinearity, generator=generator)
