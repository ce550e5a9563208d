"""Fits the costs of `kernels/launch_model.py` to the rows that an H100 gave, and says how well they choose tiles there.

    python benchmarks/fit_tiles.py

Least squares of the relative error, over the rows of the grouped kernels whose tiles the copy engine loaded. The regret
of a context is how much longer its network took with the tiles that the model chooses than with the best ones.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hnetkit.kernels.launch_model import Costs, quantities

ROWS = Path(__file__).resolve().parent / "results" / "tiles_h100.csv"
MULTIPROCESSORS = 132
RESIDUAL_BYTES = 7
"""That were moved for a value of the output when these rows were measured: two networks, and a sum in fp32."""


class Measured(NamedTuple):
    """What a network of a context took with some tiles."""

    rows: int
    width: int
    tile: tuple[int, int]
    tiles: str
    microseconds: float

    @property
    def quantities(self) -> Costs:
        return quantities(self.rows, self.width, self.tile, MULTIPROCESSORS, residual_bytes=RESIDUAL_BYTES)


def measured(path: Path = ROWS) -> list[Measured]:
    """Returns the rows that the costs are fitted to."""
    found = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["kernel"] == "grouped" and row["copy_engine"] == "yes":
                rows, columns, *_ = map(int, row["tiles"].split())
                each = float(row["us"]) / int(row["layers"]) / int(row["networks"])
                found.append(Measured(int(row["rows"]), int(row["width"]), (rows, columns), row["tiles"], each))
    return found


def fitted(rows: Sequence[Measured]) -> Costs:
    """Returns the costs, to four digits."""
    relative = np.array([np.array(row.quantities) / row.microseconds for row in rows])
    solution, *_ = np.linalg.lstsq(relative, np.ones(len(rows)), rcond=None)
    return Costs(*(float(f"{cost:.4g}") for cost in solution))


def regrets(rows: Sequence[Measured], costs: Costs) -> dict[tuple[int, int], float]:
    """Returns the regret for each context, by its rows and width."""

    def predicted(row: Measured) -> float:
        return float(np.dot(row.quantities, costs))

    found = {}
    for context in dict.fromkeys((row.rows, row.width) for row in rows):
        own = [row for row in rows if (row.rows, row.width) == context]
        chosen = min(own, key=predicted)
        took = min(row.microseconds for row in own if row.tiles == chosen.tiles)
        found[context] = took / min(row.microseconds for row in own) - 1
    return found


def error(rows: Sequence[Measured], costs: Costs) -> float:
    """Returns the root of the mean square of the relative error."""
    return math.sqrt(sum((np.dot(row.quantities, costs) / row.microseconds - 1) ** 2 for row in rows) / len(rows))


def main() -> None:
    """Prints the costs, their error, and the regrets."""
    rows = measured()
    costs = fitted(rows)
    print(costs)
    print(f"relative error {error(rows, costs):.3f} over {len(rows)} rows")
    for (count, width), regret in regrets(rows, costs).items():
        print(f"{count} x {width}: the chosen tiles take {regret:.1%} longer than the best")


if __name__ == "__main__":
    main()
