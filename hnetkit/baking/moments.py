"""Second moments of contexts and of what a stack adds to them: all that a fit needs, however many rows there are.

Source of the idea: SVD-LLM (arXiv 2403.07378), which whitens the inputs of a layer by their second moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hnetkit.kernels.affine import algebra_device


class PairMoments:
    """Sums over rows x of a context and m of what is added to it, in float64.

    Args:
        width: of both.
        device: of the rows; sums are kept there, where it has float64.
        centered: subtract the mean of each text or image first, since a constant on all its keys does not count.

    Attributes:
        count: of rows.
    """

    def __init__(self, width: int, device: torch.device, *, centered: bool) -> None:
        self._width, self._centered = width, centered
        self.count = 0.0
        self._origin: Tensor | None = None
        self._sum = torch.zeros(2 * width, dtype=torch.float64, device=algebra_device(device))
        self._products = torch.zeros(2 * width, 2 * width, dtype=torch.float64, device=algebra_device(device))

    def add(self, x: Tensor, added: Tensor, weight: float = 1.0) -> None:
        """Adds rows, each of which counts `weight` times; x and added: ``[items, tokens, width]`` in fp32."""
        rows = torch.cat([x, added], dim=-1)  # [items, tokens, 2 width]
        if self._centered:
            rows = rows - rows.mean(1, keepdim=True)
        elif self._origin is None:  # products in fp32 lose what is small beside a large mean
            self._origin = rows.mean((0, 1))
        flat = (rows if self._origin is None else rows - self._origin).flatten(0, 1)
        self._products += weight * (flat.T @ flat).to(self._products)
        self._sum += weight * flat.sum(0).to(self._sum)
        self.count += weight * len(flat)

    @property
    def mean(self) -> tuple[Tensor, Tensor]:
        """The means ``[width]`` of x and m."""
        mean = self._sum / self.count  # of centered rows, rounding alone
        if self._origin is not None:
            mean = mean + self._origin.to(mean)
        return mean[: self._width], mean[self._width :]

    @property
    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances ``[width, width]`` of x with x, of m with x, and of m with m."""
        products = self._products / self.count
        if not self._centered:
            shift = self._sum / self.count
            products = products - torch.outer(shift, shift)
        width = self._width
        return products[:width, :width], products[width:, :width], products[width:, width:]
