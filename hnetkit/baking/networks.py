"""Several networks as one hypernetwork file, where that is exactly what they do together; and averages, so called.

Side by side, ``y = x + s_1 MLP_1(x) + s_2 MLP_2(x)``, networks of one hidden layer and one activation are a wider
network: their first layers above each other, their second layers, times the strengths, beside each other. In order, as
a stack applies them, only affine ones are one network again. Strengths go into the last layer.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from hnetkit.baking.contributions import NamedStack
from hnetkit.errors import UsageError
from hnetkit.files import SAFETENSORS_SUFFIXES
from hnetkit.formats.topology import build_mlp
from hnetkit.formats.writing import save
from hnetkit.kernels.affine import Affine, collapse, compose
from hnetkit.kernels.weights import MLPWeights, StageWeights
from hnetkit.library.bakes import record_bake
from hnetkit.network import TORCH_NAME, DType, Hypernetwork, MLPPair, ResidualMLP, TensorRef
from hnetkit.runtime.stack import read_mlp
from hnetkit.runtime.strength import SIDES, Kind, Side

if TYPE_CHECKING:
    from hnetkit.library.library import Library

Mix = Literal["stack", "parallel", "average"]
MIXES: tuple[Mix, ...] = ("stack", "parallel", "average")

SUFFIXES = (*SAFETENSORS_SUFFIXES, ".pt")
"""Of files that a network is written to; AUTOMATIC1111 reads the second."""

_HOMOGENEOUS = frozenset({None, "relu", "leakyrelu"})
"""Activations with ``f(s h) = s f(h)`` for s from 0 on."""

_MOST_MORE = 16 << 20  # values beyond those of the networks; maps of all widths of Stable Diffusion's models have fewer

_Part: TypeAlias = tuple[MLPWeights, float]


@dataclass(frozen=True, eq=False)
class BakedNetwork:
    """Several networks as one.

    Attributes:
        network: what they are together.
        record: what it was made of, as JSON holds it.
    """

    network: Hypernetwork
    record: Mapping[str, Any]

    @property
    def is_exact(self) -> bool:
        """Whether it does what the networks do together; an average of their weights does not."""
        return bool(self.record["mix"] != "average")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by width, side and A1111's names."""
        return {f"{width}.{side}.{key}": tensor.torch() for width, side, key, tensor in self.network.each_tensor()}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False, library: Library | None = None) -> Path:
        """Writes ``.safetensors``, or A1111's ``.pt``; `library` is as for `Baked.save`. Raises as `hnetkit.save`."""
        save(self.network, path, overwrite=overwrite)
        if library is not None:
            record_bake(library.registry, path, self.record)
        return Path(path)


def merge_networks(
    stack: NamedStack, text_widths: Collection[int], *, mix: Mix = "stack", name: str, dtype: DType = "fp32"
) -> Hypernetwork:
    """Returns one network that does at strength 1 what these do together.

    Args:
        stack: in stacking order.
        text_widths: context widths of cross-attention; all others are of self-attention.
        mix: one after the other as in a stack, side by side, or an average of their weights, which does what none of
            them does.
        name: shown by A1111.
        dtype: of the tensors.

    Raises:
        UsageError: no single network does that; the hint names what does.
        DamagedFile: a network has values that are not finite.
    """
    for own_name, _, strength in stack:
        if strength.has_window or strength.block_names:
            raise UsageError(
                f"{own_name}: a hypernetwork has no blocks and no window of steps",
                hint="a plain strength, or --to lora",
            )
    widths = sorted({width for _, network, _ in stack for width in network.widths})
    _refuse_growth(sum(_values_at(stack, width, mix) for width in widths), stack)
    mlps: dict[int, dict[Side, MLPWeights]] = {}
    for width in widths:
        kind: Kind = "cross" if width in text_widths else "self"
        parts = {side: tuple(_parts(stack, width, kind, side)) for side in SIDES}
        if any(number for side in SIDES for _, number in parts[side]):
            mlps[width] = {side: _MIXED[mix](parts[side]) for side in SIDES}
    if not mlps:
        raise UsageError("nothing is left of these networks at these strengths", hint="-n NAME:1")
    return _network(mlps, stack, mix, name, dtype)


def _values_at(stack: NamedStack, width: int, mix: Mix) -> int:
    """Returns how many weights of a context width are computed: several affine networks become maps of that width."""
    mlps = [mlp for _, network, _ in stack if width in network.mlps for mlp in network.mlps[width]]
    is_map = mix != "average" and len(mlps) > len(SIDES) and all(mlp.is_affine for mlp in mlps)
    return len(SIDES) * width**2 if is_map else sum(stage.weight.numel for mlp in mlps for stage in mlp.stages)


def _refuse_growth(values: int, stack: NamedStack) -> None:
    """Raises UsageError for networks of narrow layers in very wide contexts, whose small files would become gigabytes.

    Args:
        values: that the one network would have.
    """
    given = sum(network.parameters for _, network, _ in stack)
    if values > given + _MOST_MORE:
        raise UsageError(
            f"one network of these would have {values:,} weights, where they have {given:,}",
            hint="--to lora, which is fitted",
        )


def _parts(stack: NamedStack, width: int, kind: Kind, side: Side) -> Iterator[_Part]:
    for name, network, strength in stack:
        if width in network.mlps:
            mlp = network.mlps[width][SIDES.index(side)]
            exact = read_mlp(mlp, torch.device("cpu"), torch.float64, network.path or name)
            yield exact, strength.number(kind, side)


def _in_order(parts: Sequence[_Part]) -> MLPWeights:
    if len(parts) > 1 and all(_is_affine(mlp) for mlp, _ in parts):
        return _of_affine(compose((collapse(mlp), number) for mlp, number in parts))
    active = _active(parts)
    if len(active) > 1:
        raise UsageError(
            "a stack of networks with activations is no single network",
            hint="--to lora, which is fitted; or --mix parallel, which adds what each makes of the same context",
        )
    return _scaled(*active[0])


def _side_by_side(parts: Sequence[_Part]) -> MLPWeights:
    if len(parts) > 1 and all(_is_affine(mlp) for mlp, _ in parts):
        maps = [(collapse(mlp), number) for mlp, number in parts]
        matrices, offsets = zip(*((number * own.matrix, number * own.offset) for own, number in maps), strict=True)
        return _of_affine(Affine(torch.stack(matrices).sum(0), torch.stack(offsets).sum(0)))
    active = _active(parts)
    if len(active) == 1:
        return _scaled(*active[0])
    activations = {mlp[0].activation for mlp, _ in active}
    if len(activations) > 1 or not all(_is_plain(mlp) for mlp, _ in active):
        raise UsageError(
            "side by side, only networks of one hidden layer and one activation are a single network, without layer "
            "norms",
            hint="--to lora, which is fitted",
        )
    firsts, seconds = zip(*(mlp for mlp, _ in active), strict=True)
    numbers = [number for _, number in active]
    hidden = StageWeights(
        torch.cat([stage.weight for stage in firsts]),
        torch.cat([_bias(stage) for stage in firsts]),
        activations.pop(),
    )
    output = StageWeights(
        torch.cat([number * stage.weight for stage, number in zip(seconds, numbers, strict=True)], dim=1),
        sum((number * _bias(stage) for stage, number in zip(seconds, numbers, strict=True)), torch.zeros(())),
    )
    return hidden, output


def _averaged(parts: Sequence[_Part]) -> MLPWeights:
    shapes = {
        tuple((stage.weight.shape, stage.activation, stage.norm_weight is None) for stage in mlp) for mlp, _ in parts
    }
    total = sum(number for _, number in parts)
    if len(shapes) > 1:
        raise UsageError("an average is of networks of one shape", hint="--to lora")
    if not total:
        raise UsageError("the strengths of an average add up to 0", hint="-n NAME:1")

    def average(tensors: Sequence[Tensor | None]) -> Tensor | None:
        pairs = [(tensor, number) for tensor, (_, number) in zip(tensors, parts, strict=True) if tensor is not None]
        if not pairs:
            return None
        return sum((tensor * (number / total) for tensor, number in pairs), torch.zeros(()))

    return tuple(
        StageWeights(
            weight=average([stage.weight for stage in stages]),  # type: ignore[arg-type]  # every stage has one
            bias=average([stage.bias for stage in stages]),
            activation=stages[0].activation,
            slope=average([stage.slope for stage in stages]),
            norm_weight=average([stage.norm_weight for stage in stages]),
            norm_bias=average([stage.norm_bias for stage in stages]),
        )
        for stages in zip(*(mlp for mlp, _ in parts), strict=True)
    )


_MIXED = {"stack": _in_order, "parallel": _side_by_side, "average": _averaged}


def _is_affine(mlp: MLPWeights) -> bool:
    return all(stage.activation is None and stage.norm_weight is None for stage in mlp)


def _is_plain(mlp: MLPWeights) -> bool:
    """Whether an MLP has one hidden layer with an activation, and nothing after its output."""
    if len(mlp) != 2:
        return False
    hidden, output = mlp
    return (
        hidden.norm_weight is None and hidden.slope is None and output.activation is None and output.norm_weight is None
    )


def _active(parts: Sequence[_Part]) -> Sequence[_Part]:
    """Returns the networks that have an effect; where none has, the first one, at 0."""
    return [part for part in parts if part[1]] or parts[:1]


def _of_affine(affine: Affine) -> MLPWeights:
    return (StageWeights(affine.matrix, affine.offset),)


def _scaled(mlp: MLPWeights, number: float) -> MLPWeights:
    """Returns an MLP that gives `number` times as much."""
    *before, last = mlp
    if last.norm_weight is not None and last.norm_bias is not None:
        return *before, last._replace(norm_weight=number * last.norm_weight, norm_bias=number * last.norm_bias)
    if number != 1 and (last.activation not in _HOMOGENEOUS or (last.activation is not None and number < 0)):
        raise UsageError(
            f"a network whose output goes through {last.activation} has no strength but 1 inside",
            hint="-n NAME:1, or --to lora",
        )
    bias = None if last.bias is None else number * last.bias
    return *before, last._replace(weight=number * last.weight, bias=bias)


def _bias(stage: StageWeights) -> Tensor:
    return stage.weight.new_zeros(len(stage.weight)) if stage.bias is None else stage.bias


def _network(
    mlps: Mapping[int, Mapping[Side, MLPWeights]], stack: NamedStack, mix: Mix, name: str, dtype: DType
) -> Hypernetwork:
    """Returns the network of these MLPs, with hidden layers filled up to one structure, as files state one."""
    depths = {len(mlp) for pair in mlps.values() for mlp in pair.values()}
    kinds = {
        tuple((s.activation, s.norm_weight is None) for s in mlp) for pair in mlps.values() for mlp in pair.values()
    }
    if len(depths) > 1 or len(kinds) > 1:
        raise UsageError("these networks are of one kind at some widths and not at others", hint="--to lora")
    structure = _structure(mlps)
    if structure is None:
        raise UsageError("these networks have different structures at different widths", hint="--to lora")
    sizes = ([int(width * ratio) for ratio in structure] for width in mlps)
    filled = (inner * outer for own in sizes for inner, outer in itertools.pairwise(own))
    _refuse_growth(len(SIDES) * sum(filled), stack)
    kind = kinds.pop()
    activation = next((own for own, _ in kind if own is not None), None)
    activate_output = kind[-1][0] is not None
    built = {
        width: MLPPair(
            *(
                _residual_mlp(_filled(pair[side], width, structure), width, side, activation, activate_output, dtype)
                for side in SIDES
            )
        )
        for width, pair in mlps.items()
    }
    has_norm = not kind[0][1]
    return Hypernetwork(
        built,
        _metadata(stack, mix, name, structure, activation, has_norm, activate_output),
        activate_output=activate_output,
    )


def _structure(mlps: Mapping[int, Mapping[Side, MLPWeights]]) -> list[float] | None:
    """Returns the least multiples of the width that hold every stage; None where only one can be filled up, and is not.

    A hidden layer can be filled up with zeros, where no layer norm counts them.
    """
    pairs = [(width, mlp) for width, pair in mlps.items() for mlp in pair.values()]
    structure: list[float] = [1]
    for index in range(len(pairs[0][1])):
        ratio = max(len(mlp[index].weight) / width for width, mlp in pairs)
        ratio = int(ratio) if ratio == int(ratio) else ratio
        has_norm = pairs[0][1][index].norm_weight is not None
        if has_norm and any(len(mlp[index].weight) != int(width * ratio) for width, mlp in pairs):
            return None
        structure.append(ratio)
    return structure


def _filled(mlp: MLPWeights, width: int, structure: Sequence[float]) -> MLPWeights:
    """Returns the MLP with zeros in its hidden layers, up to a structure: what meets them is multiplied by 0."""
    stages, before = [], 0
    for stage, ratio in zip(mlp, structure[1:], strict=True):
        missing = int(width * ratio) - len(stage.weight)
        weight = torch.nn.functional.pad(stage.weight, (0, before, 0, missing))
        bias = None if stage.bias is None else torch.nn.functional.pad(stage.bias, (0, missing))
        stages.append(stage._replace(weight=weight, bias=bias))
        before = missing
    return tuple(stages)


def _residual_mlp(
    mlp: MLPWeights, width: int, side: Side, activation: str | None, activate_output: bool, dtype: DType
) -> ResidualMLP:
    kind = getattr(torch, TORCH_NAME[dtype])
    tensors: dict[str, TensorRef] = {}
    index = 0
    for stage in mlp:
        named = {"weight": stage.weight, "bias": _bias(stage)}
        tensors |= {f"linear.{index}.{key}": TensorRef.of(tensor.to(kind)) for key, tensor in named.items()}
        index += 1
        if stage.slope is not None:
            tensors[f"linear.{index}.weight"] = TensorRef.of(stage.slope.to(kind))
        index += stage.activation is not None
        if stage.norm_weight is not None and stage.norm_bias is not None:
            tensors[f"linear.{index}.weight"] = TensorRef.of(stage.norm_weight.to(kind))
            tensors[f"linear.{index}.bias"] = TensorRef.of(stage.norm_bias.to(kind))
            index += 1
    return build_mlp(
        tensors,
        width,
        activation=activation,
        activate_output=activate_output,
        dropout=(),
        where=f"{width}.{side}",
    )


_SAID: Mapping[Mix, str] = {"stack": ", then ", "parallel": " beside ", "average": " averaged with "}


def _metadata(
    stack: NamedStack,
    mix: Mix,
    name: str,
    structure: Sequence[float],
    activation: str | None,
    has_norm: bool,
    activate_output: bool,
) -> dict[str, Any]:
    """A1111's keys, in its order. `activation_func` is never None: ComfyUI would drop the network."""
    made_of = _SAID[mix].join(f"{own_name} ({strength})" for own_name, _, strength in stack)
    return {
        "step": 0,
        "name": name,
        "layer_structure": list(structure),
        "activation_func": activation or "linear",
        "is_layer_norm": has_norm,
        "weight_initialization": "Normal",
        "use_dropout": False,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        "activate_output": activate_output,
        "last_layer_dropout": False,
        "dropout_structure": [0.0] * len(structure),
        "optional_info": f"made by hnetkit of {made_of}",
    }
