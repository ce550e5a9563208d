"""The plan of a UNet's stack as data: what is applied where, in which form, at what cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hnetkit.kernels.dispatch import BF16
from hnetkit.kernels.eager import sum_dtype
from hnetkit.kernels.weights import MLPWeights, multiplications
from hnetkit.runtime.buffers import LayerGroupStack
from hnetkit.runtime.layers import Layer
from hnetkit.runtime.plan import LayerGroup, SidePlan
from hnetkit.runtime.strength import SIDES, Side
from hnetkit.runtime.unet_state import UNetState
from hnetkit.text import counted


class Explanation(dict[str, Any]):
    """The plan as a dict of data, which prints as a line for each part that is applied."""

    def __str__(self) -> str:
        names = ", ".join(network["name"] for network in self["networks"] if network["active"])
        if not self["networks"]:
            return "no hypernetworks are loaded"
        if not self["enabled"] or not names:
            return f"no hypernetworks are applied; {counted(len(self['networks']), 'network')} loaded"
        lines = [f"{names}: {counted(self['layers_reached'], 'layer')}, {self['kernel']} on {self['device']}"]
        for part in self["parts"]:
            pairs = zip(part["networks"], part["strengths"], strict=True)
            stack = ", ".join(f"{name} {strength:g}" for name, strength in pairs) or part["reason"]
            where = f"{part['width']:>5} {part['kind']:<5} {part['side']}"
            lines.append(f"{where}  {part['path']:<9}  {counted(len(part['layers']), 'layer')}: {stack}")
        return "\n".join(lines)


def explanation(
    unet: Any, state: UNetState | None, *, latent_size: int | None, batch_size: int, text_tokens: int
) -> Explanation:
    """Returns what `hnetkit.runtime.adapters.explain` documents."""
    if state is None:
        return Explanation(
            enabled=False,
            networks=[],
            layers_reached=0,
            launches=0,
            flops=0,
            bytes=0,
            parts=[],
        )
    size = latent_size or unet.config.sample_size
    levels = len(unet.down_blocks) - 1
    rows = {
        layer: batch_size * (text_tokens if layer.kind == "cross" else _tokens(layer, size, levels))
        for layer in state.layers
    }
    parts = [
        _describe_side(state, group, side, rows)
        for group in state.plan.groups
        for side in group.side_plans
        if not group.is_idle
    ]
    return Explanation(
        enabled=state.is_enabled,
        kernel=state.path_here,
        device=str(state.device),
        dtype=str(state.dtype).removeprefix("torch."),
        networks=[_describe_network(state, name) for name in state.networks],
        layers_reached=sum(len(group.layers) for group in state.plan.groups if not group.is_idle),
        launches=sum(part["launches"] for part in parts),
        flops=sum(part["flops"] for part in parts),
        bytes=sum(part["bytes"] for part in parts),
        parts=parts,
    )


def _describe_network(state: UNetState, name: str) -> dict[str, Any]:
    network = state.networks[name].network
    strength = dict(state.stack).get(name)
    return {
        "name": name,
        "path": network.path,
        "widths": network.widths,
        "base_model": network.base_model,
        "active": strength is not None,
        "strength": None if strength is None else dataclasses.asdict(strength),
    }


def _describe_side(state: UNetState, group: LayerGroup, side: Side, rows: Mapping[Layer, int]) -> dict[str, Any]:
    side_plan = group.side_plans[side]
    group_stack = state.group_stack(group) if side_plan.is_active else None
    applied_in = group.layers[:1] if group.kind == "cross" else group.layers
    path, reason = _path(state, group, side)
    networks = [network for step in side_plan.steps for network in step.networks if network.number]
    networks += side_plan.folded
    steps = [step for step in side_plan.steps if step.is_active]
    mlps = _active_mlps(group_stack, side_plan, side) if group_stack else []
    work = sum(rows[layer] for layer in applied_in)
    weights = sum(multiplications(mlp) for mlp in mlps)
    shared = group_stack.executor.launches(state.device) if group_stack else None
    return {
        "width": group.width,
        "kind": group.kind,
        "side": side,
        "path": path,
        "kernel": state.path_here if group_stack else None,
        "reason": reason,
        "networks": [network.name for network in networks],
        "strengths": [network.number for network in networks],
        "steps": [[network.name for network in step.networks if network.number] for step in steps],
        "folded": [network.name for network in side_plan.folded],
        "left_out": {
            name: _why_left_out(state, name, group)
            for name, _ in state.stack
            if all(network.name != name for network in networks)
        },
        "layers": [layer.name for layer in group.layers],
        "applications": len(applied_in) if group_stack else 0,
        "with_other_side": shared is not None and len(group.sides) == 2,
        "launches": len(applied_in) * _launches(mlps, state, group, side, shared),
        "flops": 2 * weights * work,
        "bytes": _bytes(mlps) * len(applied_in) + (2 * group.width * work * state.dtype.itemsize if group_stack else 0),
    }


def _path(state: UNetState, group: LayerGroup, side: Side) -> tuple[str, str]:
    side_plan = group.side_plans[side]
    if not side_plan.is_active:
        if side_plan.folded:
            return "folded", f"no activation: composed, and in the weights of to_{side}"
        return "skip", "no network changes this context"
    if group.kind == "cross":
        return "text-once", "applied to the text once per UNet call, for all layers"
    if all(step.is_composed for step in side_plan.steps):
        return "affine", "no activation: one product per layer" + _why_not_folded(state, group, side)
    return state.path_here, f"computed in every layer, network by network{_less_exact(state)}"


def _less_exact(state: UNetState) -> str:
    """Says how products are less exact than the UNet's dtype would have them; nothing where they are not."""
    if state.path_here == BF16:
        return ", with products in bf16"
    if state.path_here == "grouped":
        from hnetkit.kernels.gpu.linear import product_precision

        if product_precision(state.dtype, state.device) == "fp16":
            return ", with sums of 32 products in fp16, as torch allows"
    return ""


def _why_not_folded(state: UNetState, group: LayerGroup, side: Side) -> str:
    last = group.side_plans[side].steps[-1].names[-1]
    if dict(state.stack)[last].has_window:
        return f"; not folded, since {last} has a window of steps"
    return f"; folding into to_{side} would take over a second on this device, or its weights are not plain"


def _why_left_out(state: UNetState, name: str, group: LayerGroup) -> str:
    if group.width not in state.networks[name].widths:
        return f"has no width {group.width}"
    return "strength 0, or outside its window of steps"


def _active_mlps(group_stack: LayerGroupStack, side_plan: SidePlan, side: Side) -> list[MLPWeights]:
    mlps = group_stack.executor.mlps(SIDES.index(side))
    return [mlp for mlp, step in zip(mlps, side_plan.steps, strict=True) if step.is_active]


def _launches(mlps: Sequence[MLPWeights], state: UNetState, group: LayerGroup, side: Side, shared: int | None) -> int:
    """Returns the launches of one application.

    With Triton's kernels those of both sides, counted with the first. With plain torch products, activations, norms,
    residuals, and casts.
    """
    if shared is not None:
        active = [other for other in group.sides if group.side_plans[other].is_active]
        return shared if side == active[0] else 0
    if not mlps:
        return 0
    stages = [stage for mlp in mlps for stage in mlp]
    inside = sum(1 + (stage.activation is not None) + (stage.norm_weight is not None) for stage in stages)
    narrow = sum(mlp[0].weight.dtype != sum_dtype(state.dtype) for mlp in mlps)
    return inside + len(mlps) + (narrow + 1 if narrow else 0)


def _bytes(mlps: Sequence[MLPWeights]) -> int:
    """Returns the bytes of the weights of products."""
    return sum(stage.weight.nbytes for mlp in mlps for stage in mlp)


def _tokens(layer: Layer, size: int | Sequence[int], levels: int) -> int:
    """Returns the context length of a self-attention layer for latents of `size`, from the block that it is in."""
    block, number, *_ = layer.name.split(".")
    level = int(number) if block == "down_blocks" else levels - int(number) if block == "up_blocks" else levels
    height, width = (size, size) if isinstance(size, int) else size
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height * width
