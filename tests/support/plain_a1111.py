"""The plain implementation: every attention layer applies every network anew, in torch's own modules, as A1111 does.

It shares no code with the package's runtime; tests and benchmarks measure the runtime against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnetkit.network import Hypernetwork, ResidualMLP
from support.networks import ACTIVATIONS

Modules = dict[int, tuple[nn.Module, nn.Module]]
"""``{width: (MLP of K, MLP of V)}``."""


def modules_of(network: Hypernetwork, dtype: torch.dtype = torch.float32) -> Modules:
    """Returns a network's MLPs as torch modules."""
    return {
        width: (_sequential(pair.key, dtype), _sequential(pair.value, dtype)) for width, pair in network.mlps.items()
    }


def apply(x: Tensor, networks: Sequence[tuple[Modules, float]]) -> tuple[Tensor, Tensor]:
    """Returns the contexts of K and V; x: ``[..., width]`` in the modules' dtype."""
    k = v = x
    for modules, multiplier in networks:
        if x.shape[-1] in modules:
            key, value = modules[x.shape[-1]]
            k, v = k + key(k) * multiplier, v + value(v) * multiplier
    return k, v


class PlainProcessor:
    """An attention processor of diffusers that applies networks to every context that it meets."""

    def __init__(self, networks: Sequence[tuple[Modules, float]]) -> None:
        self.networks = networks

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **unused: Any
    ) -> Tensor:
        k, v = apply(hidden_states if encoder_hidden_states is None else encoder_hidden_states, self.networks)

        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        out = F.scaled_dot_product_attention(heads(attn.to_q(hidden_states)), heads(attn.to_k(k)), heads(attn.to_v(v)))
        result: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return result


def _sequential(mlp: ResidualMLP, dtype: torch.dtype) -> nn.Sequential:
    modules: list[nn.Module] = []
    for stage in mlp.stages:
        out, wide = stage.weight.shape
        linear = nn.Linear(wide, out, bias=stage.bias is not None)
        linear.weight.data = stage.weight.torch()
        if stage.bias is not None:
            linear.bias.data = stage.bias.torch()
        modules.append(linear)
        if stage.activation is not None:
            modules.append(ACTIVATIONS[stage.activation]())
        if stage.slope is not None:
            modules[-1].weight.data = stage.slope.torch()  # type: ignore[union-attr]
        if stage.norm is not None:
            norm = nn.LayerNorm(out)
            norm.weight.data, norm.bias.data = stage.norm.weight.torch(), stage.norm.bias.torch()
            modules.append(norm)
    return nn.Sequential(*modules).eval().requires_grad_(False).to(dtype)
