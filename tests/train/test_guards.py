"""What stops a run, and what does not: sequences of losses, gradients and previews as statements."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnetkit.errors import UsageError
from hnetkit.train.guards import MEASURED, Guards, GuardSettings, Verdict

BROKEN = 1.0  # a network that broke makes the UNet guess nothing of the noise, at any time step


@dataclass(frozen=True)
class World:
    """What losses look like: as of a diffusion model, they depend on the time step more than on the network.

    Attributes:
        level: of a middling time step.
        spread: of the logarithm from time step to time step.
        samples: of a step.
    """

    level: float = 0.08
    spread: float = 1.3
    samples: int = 1

    def losses(self, seed: int, levels: Iterable[float]) -> Iterator[float]:
        """Yields the loss of each step; single samples reach 3, as those of the demo model do."""
        draw = random.Random(seed)
        for level in levels:
            drawn = [math.exp(draw.gauss(math.log(level), self.spread)) for _ in range(self.samples)]
            yield sum(min(loss, 3.0) for loss in drawn) / self.samples

    def broken(self, seed: int) -> Iterator[float]:
        """Returns the losses of 400 steps, nearly the same at all time steps."""
        draw = random.Random(seed)
        return (BROKEN * draw.uniform(0.8, 1.3) for _ in range(400))

    def guards(self, seed: int, chosen: GuardSettings | None = None) -> Guards:
        """Guards that know what the loss is before the first step."""
        guards = Guards(chosen)
        assert guards.begin(list(self.losses(seed + 1, [self.level] * MEASURED))) is None
        return guards


worlds = st.builds(World, st.floats(0.01, 0.15), st.floats(0.1, 1.5), st.sampled_from((1, 2, 4, 8, 32)))
seeds = st.integers(0, 2**32)


def watch(guards: Guards, losses: Iterable[float], begin: int = 0) -> tuple[int, Verdict] | None:
    """The first verdict that is more than a warning, with its step."""
    for step, loss in enumerate(losses, start=begin + 1):
        verdict = guards.after_step(step, loss, gradient_norm=0.1)
        if verdict is not None and verdict.kind != "warn":
            return step, verdict
    return None


def falling(level: float, steps: int) -> list[float]:
    """Levels of a run that learns: down to a half, most of it early."""
    return [level * (0.5 + 0.5 * math.exp(-step / 200)) for step in range(steps)]


@given(worlds, seeds)
@settings(max_examples=30, deadline=None)
def test_a_run_that_learns_is_never_stopped(world: World, seed: int) -> None:
    assert watch(world.guards(seed), world.losses(seed, falling(world.level, 3000))) is None


@given(worlds, seeds)
@settings(max_examples=30, deadline=None)
def test_a_network_that_breaks_in_its_first_steps_is_gone_back_to_its_beginning(world: World, seed: int) -> None:
    found = watch(world.guards(seed), world.broken(seed))
    assert found is not None
    step, verdict = found
    assert step <= 150
    assert (verdict.kind, verdict.sound_until) == ("roll-back", 0)
    assert "--rate" in verdict.remedy


@given(worlds, seeds, st.integers(150, 1000))
@settings(max_examples=30, deadline=None)
def test_a_network_that_breaks_later_goes_back_to_before_it_broke(world: World, seed: int, steps: int) -> None:
    guards = world.guards(seed)
    assert watch(guards, world.losses(seed, falling(world.level, steps))) is None
    found = watch(guards, world.broken(seed), steps)
    assert found is not None
    step, verdict = found
    assert step <= steps + 150
    # where it broke is known to a few steps; the loss of the step after N is that of a network of N steps
    assert steps - 30 <= verdict.sound_until <= steps + 3
    assert verdict.kind == "roll-back"


def test_one_loss_far_above_all_others_is_no_spike() -> None:
    guards = World(spread=0.2).guards(0)
    assert watch(guards, [*[0.08] * 100, 3.0, *[0.08] * 20, 3.0, 3.0, *[0.08] * 50]) is None


def test_a_network_that_was_bad_from_the_beginning_may_get_better() -> None:
    guards = Guards()
    guards.begin([1.1, 1.2] * 32)
    assert watch(guards, [1.15 - step / 1000 for step in range(1000)]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_seen_at_once(bad: float) -> None:
    guards = World().guards(0)
    assert watch(guards, [0.08] * 20) is None
    verdict = guards.after_step(21, bad, 0.1)
    assert verdict is not None
    assert verdict.kind == "roll-back"
    assert verdict.reason == f"the loss of step 21 is {bad}"
    assert verdict.sound_until == 19  # the loss of step 20 was that of the network after step 19


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_seen_at_once(bad: float) -> None:
    verdict = World().guards(0).after_step(1, 0.08, bad)
    assert verdict is not None
    assert verdict.kind == "roll-back"
    assert "gradient of step 1" in verdict.reason


def test_a_loss_that_is_no_number_before_the_first_step_stops() -> None:
    verdict = Guards().begin([0.1, math.nan])
    assert verdict is not None
    assert verdict.kind == "stop"


def test_single_steps_that_mixed_precision_leaves_out_are_normal_and_many_in_a_row_are_not() -> None:
    guards = World().guards(0)
    for step in range(1, 201):
        assert guards.after_step(step, 0.08, math.inf if step % 10 else 0.1, is_skipped=bool(step % 10)) is None
    left_out = [guards.after_step(step, 0.08, math.inf, is_skipped=True) for step in range(201, 216)]
    assert left_out[:-1] == [None] * 14
    assert left_out[-1] is not None
    assert "15 steps in a row" in left_out[-1].reason


def test_gradients_that_were_never_there_stop_the_run_with_the_reason() -> None:
    guards = World().guards(0)
    verdicts = [guards.after_step(step, 0.08, 0.0) for step in range(1, 11)]
    assert verdicts[:-1] == [None] * 9
    assert verdicts[-1] is not None
    assert verdicts[-1].kind == "stop"  # going back to the same network helps nobody
    assert verdicts[-1].reason.startswith("no gradient reaches the network")
    assert "--initialization" in verdicts[-1].remedy


def test_gradients_that_died_are_gone_back_from() -> None:
    guards = World().guards(0)
    assert watch(guards, [0.08] * 50) is None
    verdicts = [guards.after_step(step, 0.08, 1e-13) for step in range(51, 61)]
    assert verdicts[:-1] == [None] * 9
    assert verdicts[-1] is not None
    assert verdicts[-1].kind == "roll-back"
    assert verdicts[-1].sound_until <= 50


def test_nine_steps_without_a_gradient_are_forgiven() -> None:
    guards = World().guards(0)
    for step in range(1, 100):
        assert guards.after_step(step, 0.08, 0.0 if step % 10 else 0.1) is None


def warned(guards: Guards, losses: Iterable[float]) -> list[tuple[int, Verdict]]:
    """The steps of the warnings, with the warnings."""
    said = [(step, guards.after_step(step, loss, 0.1)) for step, loss in enumerate(losses, start=1)]
    return [(step, verdict) for step, verdict in said if verdict is not None]


def test_a_high_running_mean_warns_once_and_names_the_remedy() -> None:
    warnings = warned(Guards(GuardSettings(window=20)), [*[0.1] * 20, *[0.5] * 60, *[0.1] * 60, *[0.5] * 60])
    assert [step for step, _ in warnings] == [31]  # 11 of 20 steps at 0.5: 0.32
    assert warnings[0][1].kind == "warn"
    assert "--rate" in warnings[0][1].remedy
    assert "above 0.3" in warnings[0][1].reason


def test_pictures_on_which_the_untrained_model_has_a_high_loss_are_no_reason_to_warn() -> None:
    world = World(level=0.5, spread=0.8)
    for seed in range(20):
        assert warned(world.guards(seed), world.losses(seed, falling(0.5, 300))) == []


def test_a_loss_that_rose_above_the_untrained_models_is_told_with_it() -> None:
    guards = Guards(GuardSettings(window=10, spike=100))
    assert guards.begin([0.4, 0.5] * 32) is None
    warnings = warned(guards, [*[0.45] * 30, *[0.9] * 30])
    assert [step for step, _ in warnings] == [32]
    assert warnings[0][1].reason.endswith("above 0.3 and above the 0.450 before the first step")


def test_a_roll_back_does_not_repeat_the_warning() -> None:
    guards = Guards(GuardSettings(window=10))
    state = guards.state_dict()
    assert len(warned(guards, [0.5] * 20)) == 1
    guards.roll_back(state)
    assert warned(guards, [0.5] * 20) == []


def test_a_checkpoint_of_before_the_first_loss_was_stored_is_resumed() -> None:
    state = World().guards(0).state_dict()
    later = ("first_loss", "first_error")
    guards = Guards()
    guards.load_state_dict({name: value for name, value in state.items() if name not in later})
    assert guards.state_dict() == {**state, **dict.fromkeys(later)}


def test_the_limit_of_the_running_mean_is_an_option() -> None:
    guards = Guards(GuardSettings(window=10, loss_limit=0.05))
    said = [guards.after_step(step, 0.1, 0.1) for step in range(1, 12)]
    assert [verdict is not None for verdict in said] == [False] * 9 + [True, False]


@pytest.mark.parametrize(("steps", "window"), [(20, 10), (300, 30), (20_000, 100)])
def test_the_window_is_a_tenth_of_a_short_run(steps: int, window: int) -> None:
    assert Guards(steps=steps).window == window
    assert Guards(GuardSettings(window=50), steps).window == 50


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("window", "loss_limit", "spike", "dead_steps", "skipped_steps", "noise_limit")),
        *({"rate_factor": factor} for factor in (0, 1.5, math.nan)),
        {"most_roll_backs": -1},
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        GuardSettings(**wrong)  # type: ignore[arg-type]


def test_a_preview_with_more_than_three_times_the_first_ones_detail_has_become_noise() -> None:
    guards = Guards()
    assert [guards.after_preview(step, energy) for step, energy in ((0, 0.002), (100, 0.004), (200, 0.0059))] == [
        None
    ] * 3
    verdict = guards.after_preview(300, 0.0062)
    assert verdict is not None
    assert verdict.kind == "roll-back"
    assert verdict.sound_until == 200
    assert "3.1 times" in verdict.reason
    assert "--noise-limit" in verdict.remedy


def test_the_limit_of_a_previews_detail_is_an_option() -> None:
    guards = Guards(GuardSettings(noise_limit=10))
    assert [guards.after_preview(step, energy) for step, energy in ((0, 0.002), (100, 0.019))] == [None] * 2
    assert guards.after_preview(200, 0.021) is not None


def test_detail_on_pictures_that_were_nearly_flat_is_no_noise() -> None:
    guards = Guards()
    assert [guards.after_preview(step, energy) for step, energy in ((0, 1e-6), (100, 0.002))] == [None] * 2


def test_a_preview_of_black_pictures_is_gone_back_from() -> None:
    guards = Guards()
    assert guards.after_preview(0, 0.002) is None
    verdict = guards.after_preview(100, 0.0, "6 of 18 pictures came out NaN or black")
    assert verdict is not None
    assert (verdict.kind, verdict.sound_until) == ("roll-back", 0)
    assert verdict.reason == "the preview after step 100: 6 of 18 pictures came out NaN or black"


def test_each_roll_back_lowers_the_rate_and_the_fourth_fault_stops_the_run() -> None:
    guards = World().guards(0)
    at_the_beginning = guards.state_dict()
    factors = []
    for _ in range(3):
        verdict = guards.after_step(1, math.nan, 0.1)
        assert verdict is not None
        assert verdict.kind == "roll-back"
        guards.roll_back(at_the_beginning)
        factors.append(guards.rate_factor)
    assert factors == pytest.approx([0.1, 0.01, 0.001])
    last = guards.after_step(1, math.nan, 0.1)
    assert last is not None
    assert last.kind == "stop"
    assert "after 3 roll-backs" in last.reason


def test_how_far_and_how_often_is_an_option() -> None:
    guards = Guards(GuardSettings(rate_factor=0.5, most_roll_backs=1))
    state = guards.state_dict()
    assert guards.rate_factor == 1
    guards.roll_back(state)
    assert guards.rate_factor == 0.5
    verdict = guards.after_step(1, math.nan, 0.1)
    assert verdict is not None
    assert verdict.kind == "stop"


@given(worlds, seeds)
@settings(max_examples=30, deadline=None)
def test_after_a_roll_back_the_run_is_watched_as_from_its_checkpoint(world: World, seed: int) -> None:
    guards = world.guards(seed)
    watch(guards, world.losses(seed, [world.level] * 200))
    checkpoint = json.loads(json.dumps(guards.state_dict()))
    assert watch(guards, world.broken(seed), 200) is not None
    guards.roll_back(checkpoint)
    assert guards.running_mean < 0.6
    assert watch(guards, world.losses(seed + 2, [world.level] * 500), 200) is None
    found = watch(guards, world.broken(seed), 700)
    assert found is not None
    assert found[1].sound_until > 600


def test_a_roll_back_takes_the_statistics_of_the_checkpoint_and_begins_to_count_anew() -> None:
    guards = World(spread=0.5).guards(0)
    for step in range(1, 100):
        guards.after_step(step, 0.08, 0.1)
    for step in range(100, 109):  # nine more losses that are high, without a gradient
        assert guards.after_step(step, 0.16, 0.0) is None
    checkpoint, mean = guards.state_dict(), guards.running_mean
    for step in range(109, 111):
        guards.after_step(step, 5.0, 0.1)
    guards.roll_back(checkpoint)
    assert guards.running_mean == mean
    for step in range(109, 118):
        assert guards.after_step(step, 0.16, 0.0) is None


events = st.lists(
    st.tuples(
        st.sampled_from((0.01, 0.1, 0.4, 1.0, 3.0, math.nan)),
        st.sampled_from((0.1, 0.0, math.inf)),
        st.booleans(),
    ),
    max_size=150,
)


@given(events, events, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_a_state_that_went_through_json_gives_the_same_verdicts(
    before: list[tuple[float, float, bool]], after: list[tuple[float, float, bool]], stretch: int
) -> None:
    def tell(guards: Guards, told: list[tuple[float, float, bool]], begin: int) -> list[Verdict | None]:
        said = []
        for step, (loss, norm, is_skipped) in enumerate(told * stretch, start=begin):
            said.append(guards.after_step(step, loss, norm, is_skipped=is_skipped))
            if step % 20 == 0:
                said.append(guards.after_preview(step, 0.002 if math.isnan(loss) else loss / 100))
        return said

    first = Guards(GuardSettings(window=20))
    tell(first, before, 1)
    second = Guards(GuardSettings(window=20))
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert tell(first, after, 1000) == tell(second, after, 1000)
    assert first.state_dict() == second.state_dict()


def test_what_was_kept_does_not_change_with_the_run() -> None:
    guards = World().guards(0)
    kept = guards.state_dict()
    before = json.dumps(kept)
    watch(guards, [0.08] * 150)
    assert json.dumps(kept) == before
    guards.load_state_dict(kept)
    watch(guards, [0.08] * 150)
    assert json.dumps(kept) == before
