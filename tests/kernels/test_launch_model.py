"""Tiles that nobody measured follow from the number of multiprocessors, by costs fitted to committed rows."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from hnetkit.kernels import configs, launch_model

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL, LARGE = (64, 64), (128, 128)


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("fit_tiles")


def shape(tiles: configs.Tiles) -> tuple[int, int]:
    return tiles.rows, tiles.columns


def test_the_costs_are_those_that_the_committed_rows_give(fit: ModuleType) -> None:
    rows = fit.measured()
    assert len(rows) > 100
    assert fit.fitted(rows) == launch_model.COSTS
    assert max(fit.regrets(rows, launch_model.COSTS).values()) < 0.1
    free_ends = launch_model.COSTS._replace(round=0.0, ends=0.0)
    assert max(fit.regrets(rows, free_ends).values()) > 0.3, "costs of the products alone would choose worse"


def test_what_was_measured_wins_whatever_the_number_of_multiprocessors() -> None:
    for number in (78, 114, 132):
        assert shape(configs.linear_tiles((9, 0), number, 512, 1280)) == (64, 128)
        assert shape(configs.linear_tiles((9, 0), number, 8192, 640)) == (128, 256)


def test_a_device_with_more_multiprocessors_gets_smaller_tiles_where_large_ones_would_leave_them_idle() -> None:
    few, many = (configs.linear_tiles((8, 9), number, 2048, 640) for number in (24, 128))
    assert (shape(few), shape(many)) == (LARGE, SMALL)
    assert configs.linear_tiles((8, 9), 24, 2048, 640) == few, "one device, one answer"
    for number in (24, 128):
        assert shape(configs.linear_tiles((8, 9), number, 32768, 640)) == LARGE
        assert shape(configs.linear_tiles((8, 9), number, 64, 320)) == SMALL


def test_a_measured_row_holds_on_its_own_capability_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [row._replace(measured="tiles.csv") for row in configs.linear_rows((8, 6)) if shape(row.tiles) == SMALL]
    others = [row for row in configs.LINEAR if row not in small]
    monkeypatch.setattr(configs, "LINEAR", (*small, *others))
    assert shape(configs.linear_tiles((8, 6), 28, 8192, 640)) == SMALL
    assert shape(configs.linear_tiles((8, 9), 28, 8192, 640)) == LARGE


def test_a_round_more_is_what_a_tile_too_many_costs() -> None:
    """2 sides of 8 x 8 tiles and 8 x 4 tiles: 128 and 64."""
    took = [launch_model.microseconds(512, 256, (64, 64), (8, 0), number) for number in (128, 127, 64, 63)]
    assert took[0] < took[1]
    assert took[1] == took[2] < took[3]
