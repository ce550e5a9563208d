"""The plan of a UNet's stack as data: what is applied where, in which form, at what cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hnetkit.kernels.mlp import MLPWeights, multiplications
from hnetkit.runtime.attached import Attached
from hnetkit.runtime.layers import Layer
from hnetkit.runtime.plan import Part
from hnetkit.runtime.strength import Side


def explanation(
    unet: Any, attached: Attached | None, *, latent_size: int | None, batch_size: int, text_tokens: int
) -> dict[str, Any]:
    """Returns what `hnetkit.runtime.attach.explain` documents."""
    if attached is None:
        return {"enabled": False, "networks": [], "layers_reached": 0, "launches": 0, "flops": 0, "parts": []}
    size = latent_size or unet.config.sample_size
    levels = len(unet.down_blocks) - 1
    rows = {
        layer: batch_size * (text_tokens if layer.kind == "cross" else _tokens(layer, size, levels))
        for layer in attached.layers
    }
    parts = [
        _part(attached, part, side, rows) for part in attached.plan.parts for side in part.recipes if not part.is_idle
    ]
    return {
        "enabled": attached.is_enabled,
        "kernel": attached.path,
        "device": str(attached.device),
        "dtype": str(attached.dtype).removeprefix("torch."),
        "networks": [_network(attached, name) for name in attached.networks],
        "layers_reached": sum(len(part.layers) for part in attached.plan.parts if not part.is_idle),
        "launches": sum(part["launches"] for part in parts),
        "flops": sum(part["flops"] for part in parts),
        "parts": parts,
    }


def _network(attached: Attached, name: str) -> dict[str, Any]:
    network = attached.networks[name].network
    strength = dict(attached.stack).get(name)
    return {
        "name": name,
        "path": network.path,
        "widths": network.widths,
        "base_model": network.base_model,
        "active": strength is not None,
        "strength": None if strength is None else dataclasses.asdict(strength),
    }


def _part(attached: Attached, part: Part, side: Side, rows: Mapping[Layer, int]) -> dict[str, Any]:
    recipe = part.recipes[side]
    chain = attached.chain(part, side)
    applied_in = part.layers[:1] if part.kind == "cross" else part.layers
    path, reason = _path(attached, part, side)
    terms = [term for step in recipe.steps for term in step.terms] + list(recipe.folded)
    products = [(layer, mlp) for layer in applied_in for mlp in (chain.mlps() if chain else ())]
    return {
        "width": part.width,
        "kind": part.kind,
        "side": side,
        "path": path,
        "reason": reason,
        "networks": [term.name for term in terms],
        "strengths": [term.number for term in terms],
        "steps": [list(step.names) for step in recipe.steps],
        "folded": [term.name for term in recipe.folded],
        "left_out": {
            name: _why_left_out(attached, name, part)
            for name, _ in attached.stack
            if all(term.name != name for term in terms)
        },
        "layers": [layer.name for layer in part.layers],
        "applications": len(applied_in) if chain else 0,
        "launches": len(applied_in) * _launches(chain.mlps(), attached) if chain else 0,
        "flops": sum(2 * multiplications(mlp) * rows[layer] for layer, mlp in products),
    }


def _path(attached: Attached, part: Part, side: Side) -> tuple[str, str]:
    recipe = part.recipes[side]
    if not recipe.steps:
        if recipe.folded:
            return "folded", f"no activation: composed, and in the weights of to_{side}"
        return "skip", "no network changes this context"
    if part.kind == "cross":
        return "text-once", "applied to the text once per UNet call, for all layers"
    if all(step.composed for step in recipe.steps):
        return "affine", "no activation: one product per layer" + _why_not_folded(attached, part, side)
    return attached.path, "computed in every layer, network by network"


def _why_not_folded(attached: Attached, part: Part, side: Side) -> str:
    last = part.recipes[side].steps[-1].names[-1]
    if dict(attached.stack)[last].has_window:
        return f"; not folded, since {last} has a window of steps"
    return f"; folding into to_{side} would take over a second on this device, or its weights are not plain"


def _why_left_out(attached: Attached, name: str, part: Part) -> str:
    if part.width not in attached.networks[name].widths:
        return f"has no width {part.width}"
    return "strength 0, or outside its window of steps"


def _launches(mlps: Sequence[MLPWeights], attached: Attached) -> int:
    """Returns the launches of one application.

    Plain torch: products, activations, norms, residuals, and casts. Grouped: products and norms, all else is in them.
    """
    stages = [stage for mlp in mlps for stage in mlp]
    if attached.path == "grouped":
        return len(stages) + sum(stage.norm_weight is not None for stage in stages)
    dtype = attached.dtype
    inside = sum(1 + (stage.activation is not None) + (stage.norm_weight is not None) for stage in stages)
    casts = len(mlps) + 1 if dtype.itemsize < 4 else 0
    return inside + len(mlps) + casts


def _tokens(layer: Layer, size: int | Sequence[int], levels: int) -> int:
    """Returns the context length of a self-attention layer for latents of `size`, from the block that it is in."""
    block, number, *_ = layer.name.split(".")
    level = int(number) if block == "down_blocks" else levels - int(number) if block == "up_blocks" else levels
    height, width = (size, size) if isinstance(size, int) else size
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height * width
