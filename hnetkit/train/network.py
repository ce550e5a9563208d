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
    """A hypernetwork in training: fp32 parameters, with dropout in train mode.

    Args:
        build: how it is built.
        widths: of the UNet's contexts; the build may choose among them.
        seed: of the initial weights. Those of a width and side do not depend on which others there are.

    Attributes:
        build: as given, or that of the file that training continues from.
        widths: of the contexts that it changes, ascending.

    Raises:
        UsageError: the build wants a width that the UNet has not.
    """

    def __init__(self, build: Build, widths: Iterable[int], *, seed: int) -> None:
        super().__init__()
        self.build = build
        self.widths = build.trained_widths(widths)
        self.mlps = _mlps({width: build.layers(width) for width in self.widths}, build)
        for width in self.widths:
            for side in build.sides:
                initialize_weights(self.mlp(width, side).linear, build, seed_for(seed, f"weights of {side}", width))

    @classmethod
    def from_hypernetwork(cls, network: Hypernetwork) -> TrainedNetwork:
        """Returns a network with the same weights, in fp32, to continue training with.

        If one side changes nothing in any width and the other does, it was not trained before and is not trained now.

        Raises:
            UsageError: its MLPs are not all of one build, or the build is unsupported.
        """
        build = build_of(network)
        layers = {width: _layer_widths(network.mlps[width].key) for width in network.widths}
        trained = cls.__new__(cls)
        nn.Module.__init__(trained)
        trained.build, trained.widths, trained.mlps = build, tuple(network.widths), _mlps(layers, build)
        for width, side, mlp in network.each_mlp():
            if side in build.sides:
                trained.mlp(width, side).load(mlp)
        return trained

    def mlp(self, width: int, side: Side) -> MLP:
        """Returns the MLP of a trained width and side."""
        return cast(MLP, cast(nn.ModuleDict, self.mlps[str(width)])[side])

    def apply_to(
        self, x: Tensor, side: Side, casts: CastCache | None = None, strengths: Tensor | None = None
    ) -> Tensor:
        """Returns ``x + strength * MLP(x)`` of one side, ``[n, ..., width]``, computed in the dtype of `x`.

        Args:
            x: ``[n, ..., width]``; returned as it is if its width is not one of `widths`.
            side: K or V; one that is not trained gives `x`.
            casts: of the parameters, if several calls share them.
            strengths: of each context, ``[n]``; None is 1 for all.
        """
        if side not in self.build.sides or x.shape[-1] not in self.widths:
            return x
        rows = x.reshape(-1, x.shape[-1])
        added = cast(Tensor, self.mlp(x.shape[-1], side)(rows, casts or CastCache())).view(x.shape)
        if strengths is not None:
            added = added * strengths.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return x + added


def build_of(network: Hypernetwork) -> Build:
    """Returns the build of a loaded network.

    Raises:
        UsageError: its MLPs are not all of one build, or the build is unsupported.
    """
    mlps = [mlp for _, _, mlp in network.each_mlp()]
    first = mlps[0].stages
    is_normed, activation = first[0].norm is not None, network.activation or first[-1].activation
    expected = [
        (activation if number < len(first) - 1 or network.activate_output else None, is_normed)
        for number in range(len(first))
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
    """Returns the sides that change anything; both if none does."""
    changing = tuple(side for side in SIDES if not all(_gives_zero(m) for _, s, m in network.each_mlp() if s == side))
    return changing or SIDES


def _gives_zero(mlp: ResidualMLP) -> bool:
    """Whether an MLP gives 0 for every context."""
    last = mlp.stages[-1]
    if last.norm is not None:
        return not any(ref.torch().any() for ref in (last.norm.weight, last.norm.bias))
    if any(ref.torch().any() for ref in (last.weight, last.bias) if ref is not None):
        return False
    slope = None if last.slope is None else last.slope.torch()
    rows = torch.zeros(1, mlp.width)
    return last.activation is None or not activate(rows, last.activation, slope, inplace=False).any()


def _layer_widths(mlp: ResidualMLP) -> list[int]:
    return [mlp.width, *(stage.weight.shape[0] for stage in mlp.stages)]


def _mlps(layers: Mapping[int, Sequence[int]], build: Build) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            str(width): nn.ModuleDict({side: MLP(build, own) for side in build.sides})
            for width, own in sorted(layers.items())
        }
    )


# --- the MLP of one width and side


class ActivationModule(nn.Module):
    """An activation without weights, by A1111's name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, rows: Tensor) -> Tensor:
        return activate(rows, self.name, None, inplace=False)


class CastCache:
    """Parameters in the dtype of the products, each cast once for all layers that use it."""

    def __init__(self) -> None:
        self._casts: dict[tuple[Tensor, torch.dtype, bool], Tensor] = {}

    def __call__(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns `parameter` in `dtype`; itself if it has that dtype."""
        if parameter.dtype == dtype:
            return parameter
        key = (parameter, dtype, torch.is_grad_enabled())
        if key not in self._casts:
            self._casts[key] = parameter.to(dtype)
        return self._casts[key]


class MLP(nn.Module):
    """The MLP of one width and side; ``linear`` is A1111's Sequential, so that tensors have the same names.

    Args:
        build: says which modules there are.
        layers: their widths, the first and the last the context's.
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
        """Copies the weights of an MLP of the same build; a missing bias is 0."""
        linears, norms = self._modules_of(nn.Linear), self._modules_of(nn.LayerNorm)
        with torch.no_grad():
            for linear, stage in zip(linears, mlp.stages, strict=True):
                linear.weight.copy_(stage.weight.torch())
                linear.bias.copy_(stage.bias.torch()) if stage.bias is not None else linear.bias.zero_()
            for norm, stage in zip(norms, mlp.stages if norms else (), strict=True):
                assert stage.norm is not None, "builds were compared"
                norm.weight.copy_(stage.norm.weight.torch())
                norm.bias.copy_(stage.norm.bias.torch())
            for slope, stage in zip(self._modules_of(nn.PReLU), mlp.stages, strict=False):
                assert stage.slope is not None, "builds were compared"
                slope.weight.copy_(stage.slope.torch())

    def _modules_of(self, kind: type[nn.Module]) -> list[Any]:
        return [module for module in self.linear if isinstance(module, kind)]


def _modules(build: Build, layers: Sequence[int]) -> Iterator[nn.Module]:
    """Yields the modules of A1111's Sequential: linear, activation, layer norm and dropout of each stage.

    The weights of linear layers are left uninitialized: torch would draw them from its global generator, in vain.
    """
    stages = len(layers) - 1
    for stage in range(stages):
        yield nn.Linear(layers[stage], layers[stage + 1], device="meta").to_empty(device="cpu")
        if build.activation is not None and (stage < stages - 1 or build.activate_output):
            yield _activation(build.activation)
        if build.layer_norm:
            yield nn.LayerNorm(layers[stage + 1])
        if build.dropout_after(stage):
            yield nn.Dropout(build.dropout_after(stage))


def _activation(name: str) -> nn.Module:
    if name == "prelu":
        return nn.PReLU()
    return nn.RReLU() if name == "rrelu" else ActivationModule(name)  # random slopes while it trains


# --- initial weights: source AUTOMATIC1111 1.10, modules/hypernetworks/hypernetwork.py (behavior only)

_NORM_STD = 0.01  # A1111 draws the weights of layer norms too, for every initialization of the linear layers


def initialize_weights(modules: nn.Sequential, build: Build, seed: int) -> None:
    """Draws the initial weights of one MLP, the same for the same seed.

    Args:
        modules: of the MLP, on the CPU.
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
    """Makes an MLP give 0, by zeros in its last layer norm or, without one, in its last linear layer.

    With a norm the linear layers keep their weights: the norm's own gradient needs their output.
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
