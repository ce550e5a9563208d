"""The plan of a UNet's stack as data: what is applied where, in which form, at what cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hnetkit.kernels.mlp import MLPWeights, multiplications
from hnetkit.runtime.attached import Attached
from hnetkit.runtime.buffers import Chain
from hnetkit.runtime.layers import Layer
from hnetkit.runtime.plan import Part, Recipe
from hnetkit.runtime.strength import SIDES, Side


def explanation(
    unet: Any, attached: Attached | None, *, latent_size: int | None, batch_size: int, text_tokens: int
) -> dict[str, Any]:
    """Returns what `hnetkit.runtime.attach.explain` documents."""
    if attached is None:
        return {
            "enabled": False,
            "networks": [],
            "layers_reached": 0,
            "launches": 0,
            "flops": 0,
            "bytes": 0,
            "parts": [],
        }
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
        "kernel": attached.path_here,
        "device": str(attached.device),
        "dtype": str(attached.dtype).removeprefix("torch."),
        "networks": [_network(attached, name) for name in attached.networks],
        "layers_reached": sum(len(part.layers) for part in attached.plan.parts if not part.is_idle),
        "launches": sum(part["launches"] for part in parts),
        "flops": sum(part["flops"] for part in parts),
        "bytes": sum(part["bytes"] for part in parts),
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
    chain = attached.chain(part) if recipe.is_active else None
    applied_in = part.layers[:1] if part.kind == "cross" else part.layers
    path, reason = _path(attached, part, side)
    terms = [term for step in recipe.steps for term in step.terms if term.number] + list(recipe.folded)
    steps = [step for step in recipe.steps if step.is_active]
    mlps = _active_mlps(chain, recipe, side) if chain else []
    work = sum(rows[layer] for layer in applied_in)
    weights = sum(multiplications(mlp) for mlp in mlps)
    shared = chain.prepared.launches(attached.device) if chain else None
    return {
        "width": part.width,
        "kind": part.kind,
        "side": side,
        "path": path,
        "kernel": attached.path_here if chain else None,
        "reason": reason,
        "networks": [term.name for term in terms],
        "strengths": [term.number for term in terms],
        "steps": [[term.name for term in step.terms if term.number] for step in steps],
        "folded": [term.name for term in recipe.folded],
        "left_out": {
            name: _why_left_out(attached, name, part)
            for name, _ in attached.stack
            if all(term.name != name for term in terms)
        },
        "layers": [layer.name for layer in part.layers],
        "applications": len(applied_in) if chain else 0,
        "with_other_side": shared is not None and len(part.sides) == 2,
        "launches": len(applied_in) * _launches(mlps, attached, part, side, shared),
        "flops": 2 * weights * work,
        "bytes": attached.dtype.itemsize * (weights * len(applied_in) + 2 * part.width * work if chain else 0),
    }


def _path(attached: Attached, part: Part, side: Side) -> tuple[str, str]:
    recipe = part.recipes[side]
    if not recipe.is_active:
        if recipe.folded:
            return "folded", f"no activation: composed, and in the weights of to_{side}"
        return "skip", "no network changes this context"
    if part.kind == "cross":
        return "text-once", "applied to the text once per UNet call, for all layers"
    if all(step.composed for step in recipe.steps):
        return "affine", "no activation: one product per layer" + _why_not_folded(attached, part, side)
    return attached.path_here, "computed in every layer, network by network"


def _why_not_folded(attached: Attached, part: Part, side: Side) -> str:
    last = part.recipes[side].steps[-1].names[-1]
    if dict(attached.stack)[last].has_window:
        return f"; not folded, since {last} has a window of steps"
    return f"; folding into to_{side} would take over a second on this device, or its weights are not plain"


def _why_left_out(attached: Attached, name: str, part: Part) -> str:
    if part.width not in attached.networks[name].widths:
        return f"has no width {part.width}"
    return "strength 0, or outside its window of steps"


def _active_mlps(chain: Chain, recipe: Recipe, side: Side) -> list[MLPWeights]:
    mlps = chain.prepared.mlps(SIDES.index(side))
    return [mlp for mlp, step in zip(mlps, recipe.steps, strict=True) if step.is_active]


def _launches(mlps: Sequence[MLPWeights], attached: Attached, part: Part, side: Side, shared: int | None) -> int:
    """Returns the launches of one application.

    Triton's kernels: those of both sides, counted with the first. Plain torch: products, activations, norms, residuals,
    and casts.
    """
    if shared is not None:
        active = [one for one in part.sides if part.recipes[one].is_active]
        return shared if side == active[0] else 0
    if not mlps:
        return 0
    stages = [stage for mlp in mlps for stage in mlp]
    inside = sum(1 + (stage.activation is not None) + (stage.norm_weight is not None) for stage in stages)
    casts = len(mlps) + 1 if attached.dtype.itemsize < 4 else 0
    return inside + len(mlps) + casts


def _tokens(layer: Layer, size: int | Sequence[int], levels: int) -> int:
    """Returns the context length of a self-attention layer for latents of `size`, from the block that it is in."""
    block, number, *_ = layer.name.split(".")
    level = int(number) if block == "down_blocks" else levels - int(number) if block == "up_blocks" else levels
    height, width = (size, size) if isinstance(size, int) else size
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height * width
