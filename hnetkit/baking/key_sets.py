"""The tensors of a baked stack under the names that each program reads, with what each of them can carry.

Programs differ in where they take V's constant from, which has to become a bias:

- diffusers: ``lora_B.bias`` of ``to_v``, and zeros for ``to_k``. Its loader mistakes alphas and ranks that differ by
  layer, so all layers have one rank and no alphas.
- ComfyUI and Forge: ``diff_b`` of ``to_out_0``, which has a bias; ``to_v`` has none there.
- AUTOMATIC1111 and SD.Next: ``diff_b`` of ``to_v``, and only beside its ``diff``; in a LoRA there is no place for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hnetkit.baking.changes import Changes, SideChange, output_shift
from hnetkit.errors import UsageError
from hnetkit.runtime.layers import Layer
from hnetkit.runtime.strength import Side

Kind = Literal["lora", "diff"]
Program = Literal["diffusers", "comfyui", "a1111"]
PROGRAMS: tuple[Program, ...] = ("diffusers", "comfyui", "a1111")

Outputs: TypeAlias = Mapping[Layer, Tensor]
"""Layer -> the weight of its ``to_out.0``."""


def require_key_set(kind: Kind, program: Program | None, *, has_constant: bool) -> Program:
    """Returns the program that a file is written for; diffusers, where a LoRA is written for none in particular.

    Args:
        has_constant: whether something constant is added to V.

    Raises:
        UsageError: the program cannot read this.
    """
    if kind == "lora":
        if program == "a1111" and has_constant:
            raise UsageError(
                "AUTOMATIC1111's LoRAs carry no bias, and what is added to V has a constant part",
                hint="--to diff --for a1111",
            )
        return program or "diffusers"
    if program in (None, "diffusers"):
        why = "diffusers loads no full differences" if program else "programs name full differences differently"
        raise UsageError(f"--to diff: {why}", hint="--for comfyui, or --for a1111; or --to lora, or --to checkpoint")
    return program


def named_tensors(changes: Changes, outputs: Outputs, kind: Kind, program: Program) -> dict[str, Tensor]:
    """Returns the tensors of a file by name, in float64.

    Raises:
        UsageError: as `require_key_set`.
    """
    require_key_set(kind, program, has_constant=any(map(_has_constant, changes.values())))
    return dict(_FORMS[kind, program](changes, outputs))


def _peft(changes: Changes, outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    rank = max(1, *(change.rank for change in changes.values()))
    has_bias = any(_has_constant(change) for change in changes.values())
    for (layer, side), change in changes.items():
        module = f"unet.{layer.name}.to_{side}"
        up, down = _padded(change, rank)
        yield f"{module}.lora_A.weight", down
        yield f"{module}.lora_B.weight", up
        if has_bias:  # PEFT makes one in every layer or in none, and leaves those without values that the file lacks
            yield f"{module}.lora_B.bias", up.new_zeros(len(up)) if change.constant is None else change.constant


def _kohya(changes: Changes, outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    for (layer, side), change in changes.items():
        module, rank = _kohya_name(layer, side), max(1, change.rank)
        up, down = _padded(change, rank)
        yield f"{module}.lora_down.weight", down
        # readers multiply by alpha / rank, and some take one alpha for all layers: it is 1 in every one
        yield f"{module}.lora_up.weight", up * rank
        yield f"{module}.alpha", torch.ones((), dtype=up.dtype)


def _kohya_with_output_bias(changes: Changes, outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    yield from _kohya(changes, outputs)
    yield from _output_biases(changes, outputs)


def _differences(changes: Changes, outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    for (layer, side), change in changes.items():
        yield f"{_kohya_name(layer, side)}.diff", change.matrix


def _differences_with_output_bias(changes: Changes, outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    yield from _differences(changes, outputs)
    yield from _output_biases(changes, outputs)


def _differences_with_value_bias(changes: Changes, outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    yield from _differences(changes, outputs)
    for (layer, side), change in changes.items():
        if change.constant is not None and _has_constant(change):
            yield f"{_kohya_name(layer, side)}.diff_b", change.constant


def _output_biases(changes: Changes, outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    for (layer, _), change in changes.items():
        if _has_constant(change):
            yield f"lora_unet_{layer.name.replace('.', '_')}_to_out_0.diff_b", output_shift(change, outputs[layer])


def _has_constant(change: SideChange) -> bool:
    return change.constant is not None and bool(change.constant.any())


def _padded(change: SideChange, rank: int) -> tuple[Tensor, Tensor]:
    """Returns up ``[projected, rank]`` and down ``[rank, width]``; parts that are not there are 0."""
    down = change.down
    if down is None:
        down = torch.eye(change.rank, dtype=change.up.dtype, device=change.up.device)
    missing = rank - change.rank
    return torch.nn.functional.pad(change.up, (0, missing)), torch.nn.functional.pad(down, (0, 0, 0, missing))


def _kohya_name(layer: Layer, side: Side) -> str:
    return f"lora_unet_{layer.name.replace('.', '_')}_to_{side}"


_FORMS: Mapping[tuple[Kind, Program], Callable[[Changes, Outputs], Iterator[tuple[str, Tensor]]]] = {
    ("lora", "diffusers"): _peft,
    ("lora", "comfyui"): _kohya_with_output_bias,
    ("lora", "a1111"): _kohya,
    ("diff", "comfyui"): _differences_with_output_bias,
    ("diff", "a1111"): _differences_with_value_bias,
}
