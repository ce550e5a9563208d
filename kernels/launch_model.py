"""How long a network takes with given tiles: what chooses them on devices that nobody measured.

A multiprocessor computes one tile after the other, so that a launch takes as many rounds as the fullest one has tiles.
A round costs something by itself, something for the products of a tile, and something for what the tile's end reads and
writes. The costs were fitted to what an H100 took with many tiles: `benchmarks/fit_tiles.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Costs(NamedTuple):
    """Microseconds on an H100.

    Attributes:
        launch: of each launch.
        round: of each round of tiles.
        products: of a million FLOPs of a tile.
        ends: of a kilobyte that a tile reads and writes at its end.
    """

    launch: float
    round: float
    products: float
    ends: float


COSTS = Costs(launch=2.396, round=1.853, products=0.1965, ends=0.02936)

HOPPER_RATE = 4096
RATES = (((12, 0), 512), ((10, 0), 8192), ((9, 0), HOPPER_RATE), ((8, 6), 512), ((8, 0), 2048), ((0, 0), 512))
"""FLOPs that a multiprocessor does in a clock from a compute capability on: 16-bit products, summed in fp32.

From NVIDIA's descriptions of GB202, GB100, GH100, GA102 (AD102 has as many), and GA100.
"""


def quantities(rows: int, width: int, tile: tuple[int, int], multiprocessors: int, *, residual_bytes: int) -> Costs:
    """Returns how often each of the costs is paid in a network of [1, 2, 1], K and V.

    Args:
        rows, width: of x.
        tile: its rows and columns.
        multiprocessors: of the device.
        residual_bytes: that are read and written for a value of the network's output.
    """
    launches = rounds = products = ends = 0.0
    for columns, depth, moved in ((2 * width, width, 2), (width, 2 * width, residual_bytes)):
        tiles = 2 * math.ceil(rows / tile[0]) * math.ceil(columns / tile[1])
        own = math.ceil(tiles / multiprocessors)
        launches += 1
        rounds += own
        products += own * 2 * tile[0] * tile[1] * depth / 1e6
        ends += own * tile[0] * tile[1] * moved / 1e3
    return Costs(launches, rounds, products, ends)


def microseconds(
    rows: int, width: int, tile: tuple[int, int], capability: tuple[int, int], multiprocessors: int
) -> float:
    """Returns what a network of [1, 2, 1] takes in 16 bits, at an H100's clock."""
    rate = next(rate for least, rate in RATES if capability >= least)
    often = quantities(rows, width, tile, multiprocessors, residual_bytes=4)
    costs = COSTS._replace(products=COSTS.products * HOPPER_RATE / rate)
    return sum(count * cost for count, cost in zip(often, costs, strict=True))
