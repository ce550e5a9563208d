"""Load a model, draw images with a stack of hypernetworks, and compare them in a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnetkit.generate.grids.run import draw_grid as draw_grid

__all__ = ["draw_grid"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loaded late: it needs torch, and most other modules here do not
        from hnetkit.generate.grids.run import draw_grid

        return draw_grid
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
