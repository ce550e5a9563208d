"""Tile sizes of the grouped linear kernel, as data: one row per kind of device and size, with the reason.

Nothing is tuned at run time: one machine gives one answer. A row changes only with a measurement that is committed.
"""

from __future__ import annotations

from typing import NamedTuple


class Tiles(NamedTuple):
    """Rows, columns and depth of a tile, warps to a program, and stages of loads in flight."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


class Row(NamedTuple):
    """`tiles` for devices of compute capability `least` or higher, for `most_rows` rows of x or fewer.

    Attributes:
        reason: why these.
        measured: a record in `benchmarks/results`, or ``"unmeasured"``.
    """

    least: tuple[int, int]
    most_rows: int | None
    tiles: Tiles
    reason: str
    measured: str = "unmeasured"


# the first row that fits is taken
LINEAR: tuple[Row, ...] = (
    Row((9, 0), 256, Tiles(64, 64, 64, 4, 4), "few rows: small tiles keep more of the device busy"),
    Row((9, 0), None, Tiles(128, 128, 64, 8, 3), "compiles without spills, 96 KB of shared memory"),
    Row((8, 6), 512, Tiles(64, 64, 64, 4, 3), "few rows: small tiles keep more of the device busy"),
    Row((8, 6), None, Tiles(128, 128, 32, 8, 3), "with 4 warps the residual does not fit into registers"),
    Row((8, 0), 512, Tiles(64, 64, 64, 4, 4), "few rows: small tiles keep more of the device busy"),
    Row((8, 0), None, Tiles(128, 128, 64, 8, 3), "compiles without spills"),
    Row((0, 0), None, Tiles(64, 64, 32, 4, 2), "whatever comes"),
)
INTERPRETED = Tiles(16, 32, 32, 4, 2)


def linear_tiles(capability: tuple[int, int] | None, rows: int) -> Tiles:
    """Returns the tiles for a device; None is Triton's interpreter, where small ones show more of the edges."""
    if capability is None:
        return INTERPRETED
    return next(
        row.tiles for row in LINEAR if capability >= row.least and (row.most_rows is None or rows <= row.most_rows)
    )
