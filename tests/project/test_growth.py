"""A small file costs little: memory above its size is bounded, and work grows with its size, not with its square."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import pytest
from support import growing, growth

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")

MADE = 200 << 20  # bytes above the input's own size
SECONDS = 2.0  # and as many for each MB


@pytest.fixture(scope="module")
def meter() -> Iterator[growth.Meter]:
    """One process that has imported what the inputs need."""
    meter = growth.Meter()
    yield meter
    meter.close()


def require_little(costs: list[growth.Cost]) -> None:
    for cost in costs:
        assert cost.cpu_s is not None, cost
        assert not cost.outcome.startswith("unforeseen"), cost
        assert cost.made_bytes < MADE + cost.size_bytes, cost
        assert cost.cpu_s < SECONDS * (1 + cost.size_bytes / 1e6), cost
    for small, large in itertools.pairwise(costs):
        # twice as steep as in proportion is still no square; below a second, a busy machine tells nothing
        assert small.cpu_s is not None
        assert large.cpu_s is not None
        growth_of_size = large.size_bytes / small.size_bytes
        assert large.cpu_s < max(1.0, 2 * growth_of_size * max(small.cpu_s, 0.02)), (small, large)


@pytest.mark.parametrize("name", growing.CASES)
def test_a_file_four_times_as_large_costs_about_four_times_as_much(name: str, meter: growth.Meter) -> None:
    require_little(meter.costs(name, (1, 4)))


@pytest.mark.long
@pytest.mark.parametrize("name", growing.CASES)
def test_cost_stays_in_proportion_over_growing_files(
    name: str, meter: growth.Meter, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = meter.costs(name, (1, 2, 4, 8, 16))
    with capsys.disabled():  # the record of `make test-long` has the figures
        print(f"\n{growing.CASES[name].carrier}: {name.replace('_', ' ')}")
        for cost in costs:
            cpu = "-" if cost.cpu_s is None else f"{cost.cpu_s:.2f} s"
            print(f"  {cost.size_bytes / 1e6:8.2f} MB  {cpu:>8}  {cost.made_bytes / 1e6:7.1f} MB made  {cost.outcome}")
    require_little(costs)


def test_every_carrier_of_a_stranger_s_data_is_measured() -> None:
    assert {case.carrier for case in growing.CASES.values()} >= {
        *(
            "pickle",
            "zip",
            "safetensors",
            "embedding",
            "checkpoint",
            "PNG",
            "JPEG",
            "WebP",
            "AVIF",
            "infotext",
            "graph",
        ),
        *("CSV", "JSON lines", "archive", "API answer", "sidecar", "recipe", "checkpoint of a training"),
    }
