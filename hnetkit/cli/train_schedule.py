"""`hnetkit train schedule`: what a learning-rate schedule means, before a run depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click

from hnetkit.cli.output import Output, Row, output_options
from hnetkit.errors import UsageError

if TYPE_CHECKING:
    from hnetkit.train.schedules import Preset, Rates, RateStage


@click.command("schedule")
@click.argument("text", required=False, metavar="[SCHEDULE]")
@click.option(
    "--max-steps",
    type=click.IntRange(min=1),
    help="Step at which training ends at the latest. [default: where SCHEDULE ends]",
)
@click.option(
    "--from-step", type=click.IntRange(min=0), default=0, show_default=True, help="Number of steps made before."
)
@output_options
def schedule_command(text: str | None, max_steps: int | None, from_step: int, output: Output) -> None:
    """Show what a learning-rate schedule means, or list the presets.

    SCHEDULE is a preset's name, or as in A1111 RATE:STEP, RATE:STEP, ...: each rate until its step, steps counted
    from the network's first; a rate without a step, or with -1, lasts until the end. Training stops at the last step
    of the last rate. Values of gradient clipping are written the same way.

    cosine:RATE[:cycle=STEPS][:mult=FACTOR][:warmup=STEPS][:min=RATE][:decay=FACTOR], which A1111 does not know, falls
    from RATE to min in each cycle. A cycle is mult times as long as the one before, its warm-up aside, and begins at
    decay times the rate. Without cycle=, the run is one.

    \b
    Examples:
      hnetkit train schedule
      hnetkit train schedule default --from-step 1000
      hnetkit train schedule "5e-5:100, 5e-6:1500, 1e-6" --max-steps 5000 --json
      hnetkit train schedule "cosine:4e-5:cycle=500:warmup=50:min=6e-7" --max-steps 2000
    """
    from hnetkit.train import schedule
    from hnetkit.train.schedules import PRESETS

    if text is None:
        if max_steps is not None or from_step:
            raise UsageError("steps of which schedule?", hint="hnetkit train schedule default --max-steps 10000")
        _list(PRESETS, output)
        return
    rates = schedule(text, max_steps, from_step)
    for warning in rates.warnings():
        output.note(f"Warning: {warning}")
    preset = PRESETS.get(text.strip())
    output.rows(
        (stage._asdict() for stage in rates.stages),
        columns=["rate", "from_step", "to_step"],
        text=_lines(rates, preset.stops if preset else {}),
    )


def _list(presets: Mapping[str, Preset], output: Output) -> None:
    rows = (
        {"name": name, "schedule": preset.text, "stops": dict(preset.stops), "about": preset.about}
        for name, preset in presets.items()
    )
    output.rows(rows, columns=["name", "schedule", "about"])


def _lines(rates: Rates, stops: Mapping[str, tuple[int, int]]) -> Callable[[Row], str]:
    """How a stage reads: its steps, counted from 1 as people do, its rate, and the stops in it."""
    from hnetkit.train.schedules import RateStage

    columns = [(_steps(stage.from_step + 1, stage.to_step), _rate(rates, stage)) for stage in rates.stages]
    widths = [max(len(text) for text in texts) + 2 for texts in zip(*columns, strict=True)]
    lines = {
        stage: f"{steps:<{widths[0]}}{rate:<{widths[1]}}{_stops(stage, stops)}".rstrip()
        for stage, (steps, rate) in zip(rates.stages, columns, strict=True)
    }
    return lambda row: lines[RateStage(**row)]


def _steps(first: int, last: int) -> str:
    if first > last:
        return "no steps"
    return f"step {first}" if first == last else f"steps {first}-{last}"


def _rate(rates: Rates, stage: RateStage) -> str:
    from hnetkit.train.schedules import rate_text

    last = rates.rate_at(stage.to_step - 1)
    if stage.to_step <= stage.from_step or last == stage.rate:
        return rate_text(stage.rate)
    return f"{rate_text(stage.rate)} at most, {last:.3g} at the end"


def _stops(stage: RateStage, stops: Mapping[str, tuple[int, int]]) -> str:
    within = (
        (name, max(first, stage.from_step + 1), min(last, stage.to_step)) for name, (first, last) in stops.items()
    )
    return ", ".join(f"{name} at {_steps(first, last)}" for name, first, last in within if first <= last)
