"""Whole stacks of [1, m, 1] networks of width 320 in one Triton launch: K and V, every network, both linear layers."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from hnetkit.kernels.configs import FusedTiles, fused_tiles
from hnetkit.kernels.devices import capability_of
from hnetkit.kernels.mlp import NORM_EPSILON
from hnetkit.kernels.packing import Packed
from hnetkit.kernels.state import State
from hnetkit.kernels.triton_fused import WIDTH, fused_kernel

_DTYPES = (torch.float16, torch.bfloat16)


def fits(networks: Packed) -> bool:
    """Whether networks of one build are what the kernel is for."""
    first, last = networks[0], networks[-1]
    widths = (first.weight.shape[-1], last.weight.shape[-2])
    return len(networks) == 2 and widths == (WIDTH, WIDTH) and first.weight.dtype in _DTYPES


def tiles_for(networks: Packed, device: torch.device) -> FusedTiles | None:
    """Returns the tiles that `run` takes on `device`; None where it cannot run."""
    if not fits(networks):
        return None
    return fused_tiles(capability_of(device), normed=any(stage.is_normed for stage in networks))


def run(state: State, networks: Packed, strengths: Tensor, tiles: FusedTiles, *, is_last: bool) -> State:
    """Applies networks of one build in one launch; see `grouped.run`.

    The stack's dtype is the products': what was not rounded to it would be lost.
    """
    first, last = networks
    count, sides, hidden, _ = first.weight.shape
    rows = state.rows.shape[1]
    if state.is_first:
        out = state.rows.new_empty(sides, rows, WIDTH)
        total = None if is_last and count == 1 else torch.empty_like(out, dtype=torch.float32)
    else:
        out, total = state.rows, state.residual
    fused_kernel[(triton.cdiv(rows, tiles.rows), sides)](
        state.rows,
        first.weight,
        first.bias,
        first.slope,
        last.weight,
        last.bias,
        last.slope,
        last.shift,
        last.norm_weight,
        last.norm_bias,
        strengths,
        out,
        total,
        rows,
        count,
        count - 1 if is_last else count,
        strengths.stride(0),
        NORM_EPSILON,
        HIDDEN=hidden,
        HIDDEN_WIDTH=first.width,
        ACTIVATION=first.activation or "none",
        LAST_ACTIVATION=last.activation or "none",
        HIDDEN_NORM=first.is_normed,
        LAST_NORM=last.is_normed,
        IS_FIRST=state.is_first,
        HAS_TOTAL=total is not None,
        BLOCK_ROWS=tiles.rows,
        BLOCK_HIDDEN=tiles.hidden,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return state.after(out, None if is_last else total)
