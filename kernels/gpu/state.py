"""A stack that is partly applied: what one launch passes to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hnetkit.kernels.eager import sum_dtype
from hnetkit.kernels.gpu.plan import launch


class KernelState(NamedTuple):
    """Contexts after some networks of a stack.

    Attributes:
        rows: what the next network takes, ``[sides, rows, d]`` in the products' dtype, or ``[1, rows, d]`` before the
            first, when K and V still share one.
        residual: what the next network is added to: `x` itself before the first network, then the sum: `rows`, or one
            in fp32.
        dtype: x's, which the last network's output is rounded to.
        is_first: whether no network was applied yet: then neither tensor may be written to.
        launch: launches a kernel, as `hnetkit.kernels.gpu.plan.launch` does.
    """

    rows: Tensor
    residual: Tensor
    dtype: torch.dtype
    is_first: bool
    launch: Callable[..., object]

    @classmethod
    def of(cls, x: Tensor, products: torch.dtype, launch: Callable[..., object] = launch) -> KernelState:
        """Returns the state before the first network, for `x` ``[..., d]``."""
        residual = x.reshape(1, -1, x.shape[-1]).contiguous()
        return cls(residual.to(products), residual, x.dtype, is_first=True, launch=launch)

    def outputs(self, sides: int, *, is_last: bool) -> tuple[Tensor, Tensor | None]:
        """Returns memory for the next network's contexts, and for a sum in fp32 where one is needed after it."""
        shape = (sides, *self.rows.shape[1:])
        out = self.rows.new_empty(shape, dtype=self.dtype if is_last else self.rows.dtype)
        if is_last or not self.needs_total:
            return out, None
        return out, self.rows.new_empty(shape, dtype=torch.float32) if self.is_first else self.residual

    @property
    def needs_total(self) -> bool:
        """Whether sums are kept in fp32 beside `rows`, which would round them."""
        return torch.promote_types(self.rows.dtype, sum_dtype(self.dtype)) != self.rows.dtype

    def after(self, out: Tensor, total: Tensor | None) -> KernelState:
        """Returns the state after a network that gave `out` and `total`."""
        return self._replace(rows=out, residual=out if total is None else total, is_first=False)


def side_stride(tensor: Tensor) -> int:
    """Returns the elements from K's part of ``[sides, rows, d]`` to V's; 0 where both share one."""
    return tensor.stride(0) if len(tensor) > 1 else 0
