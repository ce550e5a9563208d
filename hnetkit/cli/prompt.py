"""`hnetkit prompt`: what a prompt means, before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from hnetkit.cli.options import command, option
from hnetkit.cli.output import Output, Row, output_options

STEPS = click.IntRange(1, 1000)


@command("prompt")
@click.argument("text")
@option("--steps", type=STEPS, default=20, show_default=True, help="Number of sampling steps.")
@option("--hires-steps", type=STEPS, help="Number of sampling steps of a second pass.")
@output_options
def prompt_command(text: str, steps: int, hires_steps: int | None, output: Output) -> None:
    """Show what a prompt means, step by step.

    Reads tags, weights, schedules and AND as A1111 does. No network is looked up and no model is loaded.

    \b
    Examples:
      hnetkit prompt "a (large:1.3) red star <hypernet:outline:0.8>"
      hnetkit prompt "a [red:blue:0.5] star <hypernet:dots:1:end=0.6>" --steps 30 --json
    """
    from hnetkit.prompts.schedule import explain_prompt

    row = explain_prompt(text, steps=steps, hires_steps=hires_steps)
    for warning in row["warnings"]:
        output.note(f"Warning: {warning}")
    output.rows([row], columns=["text", "hypernetworks", "loras", "schedule"], text=_card)


def _card(row: Row) -> list[str]:
    """A prompt for a person to read."""
    facts = list(_facts(row))
    width = max(len(label) for label, _ in facts) + 2
    return [f"{label:<{width}}{text}".rstrip() for label, text in facts]


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    yield "text", row["text"]
    for found in row["hypernetworks"]:
        yield "hypernetwork", ", ".join(_words(found))
    for lora in row["loras"]:
        yield "lora", f"{lora['name']} {lora['te']:g} in the text encoder, {lora['unet']:g} in the UNet"
    if any(weight != 1 for _, weight in row["attention"]):
        yield from (_weighted(text, weight) for text, weight in row["attention"] if text.strip())
    if len(row["composition"]) > 1 or row["composition"][0][1] != 1:
        yield from ((f"AND {weight:g}", text) for text, weight in row["composition"])
    yield from _ranges("steps", row["schedule"])
    if row["hires_schedule"] is not None:
        yield from _ranges("hires", row["hires_schedule"])


def _weighted(text: str, weight: float) -> tuple[str, str]:
    return ("new chunk", text) if (text, weight) == ("BREAK", -1) else (f"weight {weight:.4g}", text)


def _words(hypernetwork: dict[str, Any]) -> Iterator[str]:
    named = dict(hypernetwork)
    yield f"{named.pop('name')} {named.pop('strength'):g}"
    blocks = named.pop("blocks", None)
    start, end = named.pop("start", 0), named.pop("end", 1)
    yield from (f"{part} {value:g}" for part, value in named.items())
    if (start, end) != (0, 1):
        yield f"from {start:g} to {end:g} of the steps"
    if blocks:
        yield f"in {', '.join(blocks)}"


def _ranges(label: str, schedule: Iterable[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    first = 1
    for until, text in schedule:
        yield f"{label} {first}-{until}" if first < until else f"{label} {until}", text
        first = until + 1
