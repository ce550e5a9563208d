"""Learning-rate schedules mean what A1111's mean, and a cosine is the cosine that people know."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hnetkit.errors import UsageError
from hnetkit.train.schedules import PRESETS, Rates, RateStage, end_of, scale_schedule, schedule

# what A1111's own parser makes of a text: (text, max_steps, from_step) -> [(rate, end), ...]; None: it refuses it
A1111 = {
    ("0.005", 1000, 0): [(0.005, 1000)],
    ("1e-4:1000, 5e-5:2000, 1e-5:10000, 5e-6", 20000, 0): [(1e-4, 1000), (5e-5, 2000), (1e-5, 10000), (5e-6, 20000)],
    ("1e-4:1000, 5e-5:2000, 1e-5:10000, 5e-6", 1000, 0): [(1e-4, 1000), (5e-5, 1000)],
    ("5e-5:380,5e-6:10000,5e-7:20000", 1000, 500): [(5e-6, 1000)],
    ("5e-5:832,5e-6:14000,5e-7:2000", 20000, 0): [(5e-5, 832), (5e-6, 14000), (5e-7, 2000)],
    ("0.005:25000,0.0005:75000", 20000, 500): [(0.005, 20000)],
    ("1e-5:100,1e-6:50,1e-7:200", 1000, 0): [(1e-5, 100), (1e-6, 50), (1e-7, 200)],
    ("5e-5:10:20", 1000, 0): [(5e-5, 1000)],
    ("1e-5:100,1e-6:50,1e-7:200", 1000, 500): None,
    ("1e-5:", 1000, 0): None,
    ("", 1000, 0): None,
}

rate = st.floats(0, 1, allow_nan=False).map(repr)
item = st.one_of(rate, st.tuples(rate, st.integers(-2, 300)).map(lambda pair: f"{pair[0]}:{pair[1]}"))
written = st.lists(st.one_of(item, st.just(" ")), max_size=6).map(",".join)
cosine = st.builds(
    lambda rate, cycle, warmup, mult, decay: f"cosine:{rate}:cycle={cycle}:warmup={warmup}:mult={mult}:decay={decay}",
    rate,
    st.integers(10, 400),
    st.integers(0, 9),
    st.floats(1, 3),
    st.floats(0.1, 1),
)
near_to_one = st.text(alphabet="0123456789e-+.,:_ =adefilmnoprstuwyc\x00\ud800٣", max_size=30)
junk = st.one_of(st.text(max_size=20), near_to_one, near_to_one.map("cosine:1e-4:".__add__), written, cosine)


def ends(text: str, max_steps: int, from_step: int) -> list[tuple[float, int]] | None:
    try:
        return [(stage.rate, stage.to_step) for stage in schedule(text, max_steps, from_step).stages]
    except UsageError:
        return None


def fault(text: str, max_steps: int, from_step: int) -> str:
    try:
        schedule(text, max_steps, from_step)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("asked", "expected"), A1111.items(), ids=lambda value: str(value)[:40])
def test_stages_are_those_of_the_original_parser(
    asked: tuple[str, int, int], expected: list[tuple[float, int]] | None
) -> None:
    assert ends(*asked) == expected


def test_every_published_schedule_gives_the_stages_of_the_original_parser(shared: Path) -> None:
    compared = 0
    for row in json.loads((shared / "data" / "learn_rate_schedules.json").read_text(encoding="utf-8")):
        for key, expected in row.items():
            if found := re.fullmatch(r"max_(\d+)_from_(\d+)", key):
                refused = isinstance(expected, str)
                wanted = None if refused else [tuple(pair) for pair in expected]
                assert ends(row["text"], int(found[1]), int(found[2])) == wanted, (row["text"], key)
                compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("5e-5x:100", 1, "'5e-5x' is not a number"),
        ("  fast", 3, "'fast' is not a number"),
        ("5e-5:100, 5e-6:many", 16, "'many' is not a whole number"),
        ("5e-5:100, 5e-6: 1.5", 17, "'1.5' is not a whole number"),
        ("1e-5:", 6, "a number of steps is missing"),
        ("5e-5:10, :100", 10, "a number is missing"),
        ("nan", 1, "'nan' is not a number from 0 on"),
        ("1e-5:5, inf:9", 9, "'inf' is not a number from 0 on"),
        ("-1e-5", 1, "'-1e-5' is not a number from 0 on"),
        (" , ", 2, "no rate in it"),
        ("1e-5:20, 1e-6:10", 15, "training goes on from step 20, and no rate lasts longer"),
        ("cosine", 7, "cosine:RATE has a rate"),
        ("cosine:1e-4:period=5", 13, "after the rate: cycle=, mult=, warmup=, min= or decay="),
        ("cosine:1e-4:cycle", 13, "cycle=NUMBER has one number"),
        ("cosine:1e-4:cycle=5:cycle=6", 21, "cycle is given twice"),
        ("cosine:1e-4:cycle=0", 19, "a cycle has at least 1 step"),
        ("cosine:1e-4:mult=0.5", 18, "cycles do not become shorter: at least 1"),
        ("cosine:1e-4:cycle=5:warmup= 5", 29, "a warm-up has fewer steps than its cycle, which has 5"),
        ("cosine:1e-4:warmup=1000", 20, "a warm-up has fewer steps than its cycle, which has 1000"),
        ("cosine:1e-4:min=1e-3", 17, "the lowest rate is not above the highest, 0.0001"),
        ("cosine:1e-4:decay=1.5", 19, "a number above 0, up to 1"),
    ],
)
def test_a_fault_is_named_with_its_column(text: str, column: int, reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"column {column}: {reason}")):
        schedule(text, 1000, 20 if "20," in text else 0)


def test_a_cosine_of_endless_cycles_is_refused_before_it_fills_memory() -> None:
    with pytest.raises(UsageError, match="more than 10000 cycles"):
        schedule("cosine:1e-4:cycle=1", 10**9)


def test_a_cycle_of_more_steps_than_any_run_makes_is_one_cycle() -> None:
    text = f"cosine:1e-4:cycle={'9' * 400}:mult=1e300"
    assert schedule(text, 1000).stages == (RateStage(1e-4, 0, 1000),)
    assert schedule(scale_schedule(text, 0.5), 1000).stages == (RateStage(1e-4, 0, 1000),)


def test_a_rate_holds_until_its_step_is_made() -> None:
    rates = Rates("1e-4:2, 1e-5:4", 10)
    assert [rates.rate_at(step) for step in range(4)] == [1e-4, 1e-4, 1e-5, 1e-5]
    assert rates.last_step == 4
    assert rates.rate_at(7) == 1e-5


def test_stages_say_which_steps_they_cover() -> None:
    assert schedule("1e-4:200, 1e-5", 1000, 50).stages == (RateStage(1e-4, 50, 200), RateStage(1e-5, 200, 1000))


def test_a_step_that_lies_before_another_takes_no_steps_away() -> None:
    rates = Rates("1e-5:100, 1e-6:50, 1e-7:200", 1000)
    assert rates.stages == (RateStage(1e-5, 0, 100), RateStage(1e-6, 100, 50), RateStage(1e-7, 100, 200))
    assert (rates.rate_at(99), rates.rate_at(100)) == (1e-5, 1e-7)
    assert "1e-6 until step 50 is never used: 100 steps are made by then" in list(rates.warnings())


def test_training_ends_with_the_longest_stage_even_where_the_last_is_shorter() -> None:
    assert Rates("5e-5:832, 5e-6:14000, 5e-7:2000", 20000).last_step == 14000


def test_a_schedule_that_ends_early_is_said_before_training() -> None:
    said = list(Rates("5e-5:100, 5e-6:1500", 2000).warnings())
    assert said == ["training ends at step 1500, not at 2000: the schedule ends there"]


@pytest.mark.parametrize("text", ["5e-5:100, 5e-6", "5e-5:100, 5e-6:-1", "5e-5:100, 5e-6:2000", "cosine:1e-4"])
def test_a_schedule_that_lasts_gives_no_warning(text: str) -> None:
    assert list(Rates(text, 2000).warnings()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1e-5, 1e-6:100", "everything from column 7 on is ignored: the rate before it has no end"),
        ("1e-5:10:20", "everything from column 6 on is ignored: A1111 takes two colons for no step at all"),
        ("cosine:1e-4:cycle=600", "the last cycle is cut off at step 1000: it would end at 1200"),
    ],
)
def test_what_is_not_read_is_said(text: str, said: str) -> None:
    assert list(Rates(text, 1000).warnings()) == [said]


def test_a_run_that_is_over_is_said() -> None:
    rates = Rates("1e-5", 1000, 1000)
    assert rates.last_step == 1000
    assert list(rates.warnings()) == ["no step is left: 1000 are made, and training ends at 1000"]


@given(written, st.integers(1, 300), st.integers(0, 300))
@example("1e-5:100,1e-6:50,1e-7:200", 300, 60)
@example("1e-5:100,1e-6:200,1e-7:50", 300, 120)
def test_a_run_that_goes_on_has_the_rates_of_one_that_was_never_stopped(text: str, max_steps: int, done: int) -> None:
    try:
        whole, rest = Rates(text, max_steps), Rates(text, max_steps, done)
    except UsageError:
        return
    steps = range(done, whole.last_step)
    assert [rest.rate_at(step) for step in steps] == [whole.rate_at(step) for step in steps]
    assert rest.last_step == max(done, whole.last_step)


@given(cosine, st.integers(1, 300), st.integers(0, 300))
def test_a_cosine_that_goes_on_does_so_too(text: str, max_steps: int, done: int) -> None:
    whole, rest = Rates(text, max_steps), Rates(text, max_steps, done)
    steps = range(done, max_steps)
    assert [rest.rate_at(step) for step in steps] == [whole.rate_at(step) for step in steps]


@given(junk, st.integers(1, 2000), st.integers(0, 2000))
def test_any_text_is_stages_or_a_usage_error(text: str, max_steps: int, from_step: int) -> None:
    if message := fault(text, max_steps, from_step):
        assert re.search(r"column \d+: |more than 10000 cycles", message)
        return
    rates = Rates(text, max_steps, from_step)
    assert rates.stages
    assert all(0 <= stage.rate < math.inf for stage in rates.stages)
    assert all(0 <= rates.rate_at(step) < math.inf for step in (from_step, max_steps, rates.last_step))
    assert all(isinstance(line, str) for line in rates.warnings())


@given(junk)
def test_any_text_is_scaled_or_a_usage_error(text: str) -> None:
    try:
        same, other = scale_schedule(text, 1), scale_schedule(text, 0.01, 3)
    except UsageError:
        return
    assert schedule(same, 1000).stages == schedule(text, 1000).stages
    assert end_of(same) == end_of(text)
    schedule(other, 1000)


def test_scaling_changes_steps_and_rates() -> None:
    assert scale_schedule("default", 1 / 50) == "5e-5:2, 5e-6:30, 5e-7:200, 5e-8:400"
    assert scale_schedule("1e-4:1000, 1e-5", 0.5, rates=3) == "0.0003:500, 3e-5"
    assert scale_schedule("1e-4:10", 0.001) == "0.0001:1"
    assert (
        scale_schedule("cosine:4e-5:cycle=64:warmup=4:min=6e-7", 0.5, 2) == "cosine:8e-5:cycle=32:warmup=2:min=1.2e-6"
    )
    assert scale_schedule(f"1e-4:5, 1e-5:{'9' * 400}", 0.4) == "0.0001:2, 1e-5"
    assert scale_schedule("cosine:4e-5:cycle=10:warmup=9", 0.1) == "cosine:4e-5:cycle=1"


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf])
def test_a_schedule_is_not_scaled_by_what_is_no_factor(factor: float) -> None:
    with pytest.raises(UsageError, match="cannot be scaled"):
        scale_schedule("1e-4", factor)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_stands_wherever_a_schedule_is_taken(name: str) -> None:
    assert (
        schedule(name, 4000).stages == schedule(f" {name} ", 4000).stages == schedule(PRESETS[name].text, 4000).stages
    )
    assert end_of(name) == end_of(PRESETS[name].text)


def test_the_default_goes_down_in_four_steps_with_two_stops() -> None:
    assert schedule("default", 100000).stages == (
        RateStage(5e-5, 0, 100),
        RateStage(5e-6, 100, 1500),
        RateStage(5e-7, 1500, 10000),
        RateStage(5e-8, 10000, 20000),
    )
    assert PRESETS["default"].stops == {"usable": (5000, 10000), "fine": (20000, 20000)}


@pytest.mark.parametrize(
    ("text", "end"), [("default", 20000), ("1e-4:9, 1e-5:5", 9), ("1e-4:9, 1e-5", None), ("cosine:1e-4:cycle=5", None)]
)
def test_a_schedule_knows_its_own_end(text: str, end: int | None) -> None:
    assert end_of(text) == end


def test_a_cosine_falls_from_the_rate_to_the_lowest_over_the_run() -> None:
    rates = Rates("cosine:1e-4:min=2e-5", 100)
    assert rates.stages == (RateStage(1e-4, 0, 100),)
    assert rates.rate_at(0) == 1e-4
    assert rates.rate_at(50) == pytest.approx(6e-5)
    assert rates.rate_at(75) == pytest.approx(2e-5 + 8e-5 * (1 - math.sqrt(0.5)) / 2)
    assert rates.rate_at(100) == rates.rate_at(99) > 2e-5


def test_a_cosine_warms_up_in_every_cycle_and_each_is_longer_and_lower() -> None:
    rates = Rates("cosine:1e-4:cycle=10:mult=2:warmup=2:min=1e-5:decay=0.5", 60)
    # without the warm-up of 2, cycles have 8, 16 and 32 steps
    assert rates.stages == (RateStage(1e-4, 0, 10), RateStage(5e-5, 10, 28), RateStage(2.5e-5, 28, 60))
    assert [rates.rate_at(step) for step in (0, 1, 2)] == pytest.approx([1e-5, 5.5e-5, 1e-4])
    assert [rates.rate_at(step) for step in (10, 11, 12)] == pytest.approx([1e-5, 3e-5, 5e-5])
    assert rates.rate_at(12 + 8) == pytest.approx(3e-5)


def test_a_peak_does_not_decay_below_the_lowest_rate() -> None:
    assert [stage.rate for stage in schedule("cosine:1e-4:cycle=5:min=4e-5:decay=0.5", 15).stages] == [1e-4, 5e-5, 4e-5]


def test_a_cosine_that_goes_on_leaves_out_the_cycles_that_are_over() -> None:
    assert schedule("cosine:1e-4:cycle=100", 250, 130).stages == (RateStage(1e-4, 130, 200), RateStage(1e-4, 200, 250))


def test_a_cosine_gives_the_numbers_of_torchs_own() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    truth = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=7, T_mult=2, eta_min=1e-6)
    rates = Rates("cosine:1e-4:cycle=7:mult=2:min=1e-6", 60)
    for step in range(60):
        assert rates.rate_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        truth.step()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1e-5:100, 1e-5:200", "1e-5:200", True),
        ("1e-5:100, 1e-6:200", "1e-5:101, 1e-6:200", False),
        ("1e-5:100, 1e-6:200", "1e-5:100, 1e-6:201", False),
        ("1e-5:100, 1e-6:50, 1e-7:200", "1e-5:100, 1e-7:200", True),
        ("cosine:4e-5:cycle=64:warmup=5:min=6e-7", "restarts", True),
        ("cosine:1e-5:cycle=50", "cosine:1e-5:cycle=51", False),
        ("cosine:1e-5", "1e-5", False),
    ],
)
def test_schedules_are_compared_by_their_rates(one: str, other: str, same: bool) -> None:
    for last in (300,) if "c" in one else (300, 1_000_000_000):
        assert Rates(one, last).is_same(Rates(other, last)) == same


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1e-5:1," * 1_000_000, "more than 10000 rates"),
        ("1e400", "not a number from 0 on"),
        ("nan", "not a number from 0 on"),
        (f"1e-5:{'9' * 5_000}, 1e-6", "not a whole number"),
        ("cosine:1e-5:cycle=1", "more than 10000 cycles"),
    ],
)
def test_a_schedule_that_nobody_writes_is_refused_before_it_is_made(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Rates(text, 1_000_000_000)
