"""The stages of an MLP, derived from the names and shapes of its tensors in A1111's Sequential.

The index in ``linear.{i}.weight`` counts every module of the Sequential, including those without tensors, so a gap
shows an activation or a dropout. Each stage is linear, activation, layer norm, dropout. No tensor shows whether an
output without layer norm is activated: the caller states that.

Source: AUTOMATIC1111 1.10, modules/hypernetworks/hypernetwork.py, HypernetworkModule (behavior only).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hnetkit.errors import DamagedFile, UnsupportedNetwork
from hnetkit.network import LayerNorm, ResidualMLP, Stage, TensorRef
from hnetkit.text import counted, shorten

# one spelling only: other programs may or may not treat linear.00 and linear.0 as one tensor
_KEY = re.compile(r"linear\.(0|[1-9][0-9]{0,3})\.(weight|bias)")
_SKIP_KEY = re.compile(r"linear\.[0-9]+\.(linear\.[0-9]+|upsample_layer)\.")
# NovelAI's names, and those of a fork with one or two layers
_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1", "linear": "linear.0"}


@dataclass(frozen=True, slots=True)
class _Module:
    """A module of the Sequential that has tensors."""

    index: int
    weight: TensorRef
    bias: TensorRef | None

    @property
    def is_linear(self) -> bool:
        return len(self.weight.shape) == 2

    @property
    def is_slope(self) -> bool:
        """PReLU: a one-dimensional weight without a bias."""
        return len(self.weight.shape) == 1 and self.bias is None


def canonical_key(key: str) -> str:
    """Returns a tensor's A1111 name: ``linear1.weight`` -> ``linear.0.weight``."""
    stem, _, kind = key.rpartition(".")
    return f"{_OLD_NAMES.get(stem, stem)}.{kind}"


def build_mlp(
    tensors: Mapping[str, TensorRef],
    width: int,
    *,
    activation: str | None,
    activate_output: bool,
    dropout: Sequence[float],
    where: str,
) -> ResidualMLP:
    """Builds the MLP that the tensors describe.

    Args:
        tensors: by canonical key, in the file's order.
        width: context width of its input and output.
        activation: the file's activation, None for none.
        activate_output: whether the last stage has it; used if no tensor shows that.
        dropout: probability per stage; missing ones are 0.
        where: width and side, for messages.

    Raises:
        DamagedFile: the shapes do not chain from width to width.
        UnsupportedNetwork: the modules are in another order, or there are skip connections.
    """
    modules = _modules(tensors, where)
    groups = _groups(modules, where)
    stages = []
    for number, group in enumerate(groups):
        following = groups[number + 1][0].index if number + 1 < len(groups) else None
        chance = dropout[number] if number < len(dropout) else 0.0
        stages.append(_stage(group, following, activation, activate_output, chance, where))
    _check_chain(stages, width, where)
    return ResidualMLP(tuple(stages), {key: tensors[key] for key in sorted(tensors, key=_position)})


def _position(key: str) -> tuple[int, bool]:
    """The sort key of a tensor in A1111's dict: by module, weight before bias."""
    _, index, kind = key.split(".")
    return int(index), kind == "bias"


def expected_indices(
    stages: int, *, activation: bool, activate_output: bool, norm: bool, dropout: Sequence[float]
) -> list[int]:
    """Returns the indices that A1111 would give the linear layers in its Sequential."""
    indices, position = [], 0
    for stage in range(stages):
        indices.append(position)
        activated = activation and (stage < stages - 1 or activate_output)
        dropped = stage < len(dropout) and dropout[stage] > 0
        position += 1 + activated + norm + dropped
    return indices


def linear_indices(mlp: ResidualMLP) -> list[int]:
    """Returns the indices of the linear layers in the file."""
    return sorted(int(key.split(".")[1]) for key, tensor in mlp.tensors.items() if len(tensor.shape) == 2)


def _modules(tensors: Mapping[str, TensorRef], where: str) -> list[_Module]:
    weights: dict[int, TensorRef] = {}
    biases: dict[int, TensorRef] = {}
    for key, tensor in tensors.items():
        if _SKIP_KEY.match(key):
            raise UnsupportedNetwork(f"{where}: built with skip connections inside, which only one extension could run")
        match = _KEY.fullmatch(key)
        if match is None:
            raise UnsupportedNetwork(f"{where}: holds {shorten(key)}, which no known hypernetwork has")
        (weights if match[2] == "weight" else biases)[int(match[1])] = tensor
    alone = biases.keys() - weights.keys()
    if alone or not weights:
        missing = f"linear.{min(alone)}.weight" if alone else "linear.0.weight"
        raise DamagedFile(f"{where}: {missing} is missing")
    modules = [_Module(index, weights[index], biases.get(index)) for index in sorted(weights)]
    for module in modules:
        _check_shapes(module, where)
    return modules


def _check_shapes(module: _Module, where: str) -> None:
    shape = module.weight.shape
    if len(shape) not in (1, 2) or not module.weight.numel:
        raise DamagedFile(f"{where}: linear.{module.index}.weight has the shape {list(shape)}")
    if module.bias is not None and module.bias.shape != (shape[0],):
        raise DamagedFile(
            f"{where}: linear.{module.index}.bias has the shape {list(module.bias.shape)}, its weight {list(shape)}"
        )


def _groups(modules: list[_Module], where: str) -> list[list[_Module]]:
    """Splits the modules into stages, each beginning with a linear layer."""
    groups: list[list[_Module]] = []
    for module in modules:
        if module.is_linear:
            groups.append([module])
        elif groups:
            groups[-1].append(module)
        else:
            raise UnsupportedNetwork(f"{where}: does not begin with a linear layer")
    return groups


def _stage(
    group: list[_Module],
    following: int | None,
    activation: str | None,
    activate_output: bool,
    dropout: float,
    where: str,
) -> Stage:
    linear, *rest = group
    slopes = [module for module in rest if module.is_slope]
    norms = [module for module in rest if not module.is_slope]
    if len(slopes) > 1 or len(norms) > 1 or (slopes and norms and slopes[0].index > norms[0].index):
        raise UnsupportedNetwork(f"{where}: its modules are in an order that A1111 does not build")
    norm = norms[0] if norms else None
    own: str | None = activation
    if slopes:
        own = "prelu"
    elif activation == "prelu":
        own = None
    elif activation is not None:
        own = _activation_in_gap(linear, norm, following, activation, activate_output, where)
    return Stage(
        weight=linear.weight,
        bias=linear.bias,
        activation=own,
        slope=slopes[0].weight if slopes else None,
        norm=LayerNorm(norm.weight, _bias_of(norm)) if norm else None,
        dropout=dropout,
    )


def _activation_in_gap(
    linear: _Module, norm: _Module | None, following: int | None, activation: str, activate_output: bool, where: str
) -> str | None:
    """The activation if there is a gap between the linear layer and the next module; None without a gap."""
    if norm is not None:
        gap = norm.index - linear.index - 1
        if gap == 0 and following is not None and following - norm.index > 1:
            raise UnsupportedNetwork(f"{where}: built with its activation after the layer norm")
        return activation if gap else None
    if following is None:
        return activation if activate_output else None
    return activation if following - linear.index > 1 else None


def _bias_of(norm: _Module) -> TensorRef:
    assert norm.bias is not None, "a one-dimensional weight without bias is a slope"
    return norm.bias


def _check_chain(stages: list[Stage], width: int, where: str) -> None:
    width_so_far = width
    for number, stage in enumerate(stages):
        out, taken = stage.weight.shape
        if taken != width_so_far:
            raise DamagedFile(f"{where}: layer {number + 1} takes {counted(taken, 'value')}, but gets {width_so_far}")
        if stage.norm is not None and stage.norm.weight.shape != (out,):
            raise DamagedFile(f"{where}: the layer norm of layer {number + 1} does not fit its {counted(out, 'value')}")
        if stage.slope is not None and stage.slope.shape not in ((1,), (out,)):
            raise DamagedFile(f"{where}: the slope of layer {number + 1} does not fit its {counted(out, 'value')}")
        width_so_far = out
    if width_so_far != width:
        raise DamagedFile(f"{where}: gives {counted(width_so_far, 'value')} where {width} are needed")
