"""What `torch.compile` makes of a UNet, without a compiler: tracing is the same for every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Graphs:
    """A backend that runs graphs as they are.

    Attributes:
        made: all of them, in order.
    """

    def __init__(self) -> None:
        self.made: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.made.append(graph)
        return graph.forward
