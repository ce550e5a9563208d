"""`hnetkit prompt`: what a prompt means, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from hnetkit.cli.options import command, option
from hnetkit.cli.output import Output, Row, output_options
from hnetkit.errors import HnetkitError
from hnetkit.files import is_file_at
from hnetkit.text import counted

if TYPE_CHECKING:
    from hnetkit.prompts.chunks import ClipTokenizer

_MOST_RANGES = 4  # of one text, in words
STEPS = click.IntRange(1, 1000)


@command("prompt")
@click.argument("text")
@option("--steps", type=STEPS, default=20, show_default=True, help="Number of sampling steps.")
@option("--hires-steps", type=STEPS, help="Number of sampling steps of a second pass.")
@output_options
def prompt_command(text: str, steps: int, hires_steps: int | None, output: Output) -> None:
    """Show what a prompt means, step by step.

    Reads comments, tags, weights, schedules and AND as A1111 does, and counts tokens with the tokenizer of the model
    that is set; a textual inversion in the folder that is set counts as its vectors. No network is looked up and no
    model is loaded.

    \b
    Examples:
      hnetkit prompt "a (large:1.3) red star <hypernet:outline:0.8>"
      hnetkit prompt "a [red:blue:0.5] star <hypernet:dots:1:end=0.6>" --steps 30 --json
    """
    from hnetkit.prompts.schedule import explain_prompt

    tokenizer, reason = _tokenizer()
    if tokenizer is not None:
        tokenizer.add_vectors(dict(_inversions(text, output.note)))
    row = explain_prompt(text, steps=steps, hires_steps=hires_steps, tokenizer=tokenizer)
    for warning in row["warnings"]:
        output.note(f"Warning: {warning}")
    if added := " ".join(_added_tags({network["name"] for network in row["hypernetworks"]})):
        output.note(f"Drawing adds {added}, as the setting hypernetworks says.")
    output.rows([row], columns=["text", "hypernetworks", "loras", "schedule"], text=lambda shown: _card(shown, reason))


def _added_tags(named: Container[str]) -> Iterator[str]:
    """Yields the tags that drawing puts behind a prompt which has these names: those of the settings."""
    from hnetkit import settings
    from hnetkit.prompts.tags import split_tags

    yield from (str(tag) for tag in split_tags(settings.get("hypernetworks") or "").tags if tag.name not in named)


def _inversions(text: str, note: Callable[[str], None]) -> Iterator[tuple[str, int]]:
    """Yields the textual inversions of the folder that is set which a prompt names, with how many vectors they have."""
    from hnetkit import settings

    folder = settings.get("embeddings")
    if folder is None:
        return
    from hnetkit.generate.loading.extra_networks import find_embeddings, number_of_vectors
    from hnetkit.prompts.schedule import pieces_drawn
    from hnetkit.prompts.tags import split_comments, split_tags

    read = pieces_drawn(split_tags(split_comments(text)[0]).text)
    for path in find_embeddings(read, folder, note):
        try:
            yield path.stem, number_of_vectors(path)
        except HnetkitError as error:
            note(f"Warning: {error}; it counts as the words of its name")


def _tokenizer() -> tuple[ClipTokenizer | None, str]:
    """Returns the tokenizer of the model that is set, or else the reason why there is none."""
    from hnetkit import demo, settings
    from hnetkit.generate.loading.tokenizer import read_counting_tokenizer

    location = demo.location_of(settings.get("model"))
    if is_file_at(location):
        location = settings.get("tokenizer") or location
    try:
        return read_counting_tokenizer(location, demo.MODEL_NAME if demo.is_bundled(location) else None), ""
    except HnetkitError as error:
        return None, str(error)
    except ImportError:
        return None, f"{location}: the hub's cache cannot be read without huggingface_hub"


def _card(row: Row, reason: str) -> list[str]:
    """A prompt for a person to read."""
    facts = [*_facts(row), ("tokens", _counted(row) if row["tokenizer"] else f"not counted ({reason})")]
    width = max(len(label) for label, _ in facts) + 2
    return [f"{label:<{width}}{text}".rstrip() for label, text in facts]


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    yield "text", row["text"]
    yield from (("comment", comment) for comment in row["comments"])
    for found in row["hypernetworks"]:
        yield "hypernetwork", ", ".join(_words(found))
    for inversion in row["embeddings"]:
        yield "inversion", f"{inversion['name']}, {counted(inversion['vectors'], 'vector')}"
    for lora in row["loras"]:
        yield "lora", f"{lora['name']} {lora['te']:g} in the text encoder, {lora['unet']:g} in the UNet"
    yield from _drawn("steps", row["drawn"])
    yield from _drawn("hires", row["hires_drawn"] or [])


def _drawn(label: str, drawn: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """What is drawn at which steps: each part, and below it the pieces of a weight of their own."""
    for at_once in drawn:
        parts, when = at_once["parts"], f"{label} {_ranges(at_once['steps'])}"
        if len(parts) > 1 or parts[0]["weight"] != 1:
            yield when, counted(len(parts), "part")
        for part in parts:
            is_alone = len(parts) == 1 and part["weight"] == 1
            yield when if is_alone else f"  AND {part['weight']:g}", part["text"]
            weighted = [(text, weight) for text, weight in part["attention"] if weight != 1 and text.strip()]
            yield from (_weighted(text, weight) for text, weight in weighted)


def _weighted(text: str, weight: float) -> tuple[str, str]:
    return ("  new chunk", text) if (text, weight) == ("BREAK", -1) else (f"  weight {weight:.4g}", text)


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


def _ranges(ranges: Sequence[Sequence[int]]) -> str:
    """The steps in words; of many ranges, as ``[a|b]`` has them, the first two and the last."""
    shown = [f"{first}-{last}" if first < last else f"{first}" for first, last in ranges]
    return ", ".join(shown if len(shown) <= _MOST_RANGES else [*shown[:2], "...", shown[-1]])


def _counted(row: Row) -> str:
    """How full the windows of the text encoder are, at most, and who counted."""
    parts = [
        part for drawn in (row["drawn"], row["hires_drawn"] or []) for at_once in drawn for part in at_once["parts"]
    ]
    fullest = max(parts, key=lambda part: (part["chunks"], part["tokens"]))
    room, chunks = row["tokens_per_chunk"], fullest["chunks"]
    most = "at most " if len({part["tokens"] for part in parts}) > 1 else ""
    where = f"of {room}" if chunks == 1 else f"in {chunks} chunks of {room}"
    return f"{most}{fullest['tokens']} {where}, by the tokenizer of {row['tokenizer']}"
