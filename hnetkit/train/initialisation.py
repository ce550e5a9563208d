"""What a new network starts from: A1111's weight initialisations, drawn from a seed, and the one that gives 0.

Source: AUTOMATIC1111 1.10, modules/hypernetworks/hypernetwork.py (behaviour only).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from hnetkit.train.build import Build

_NORM_STD = 0.01  # A1111 draws the weights of layer norms too, whatever the initialisation of the linear layers


def initialise(modules: nn.Sequential, build: Build, seed: int) -> None:
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
        silence(modules)


def silence(modules: nn.Sequential) -> None:
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
