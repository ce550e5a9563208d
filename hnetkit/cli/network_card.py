"""A network's card: all that is known of it, as `hnetkit show` and `hnetkit tag` print it."""

from __future__ import annotations

from collections.abc import Iterator

from hnetkit.facts import Fact, Row, facts_of

_WIDTH = 15  # characters of a label and the space behind it


def network_card(row: Row) -> list[str]:
    """Returns the lines that show a network; `row` is that of `Library.record`."""
    return [row["name"], *(line for group in facts_of(row) for fact in group.facts for line in _lines(fact))]


def _lines(fact: Fact) -> Iterator[str]:
    """Yields the lines of a fact; those of a longer text stand below each other."""
    label, text = fact
    for number, line in enumerate(text.splitlines()):
        yield f"  {label if number == 0 else '':<{_WIDTH}}{line}"
