"""`AND` between prompts, read as A1111 reads it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.prompts.schedule import split_and


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [("", 1.0)]),
        ("a cat", [("a cat", 1.0)]),
        ("a AND b", [("a", 1.0), (" b", 1.0)]),
        ("a:1.2 AND b :-.5  AND c: +2. ", [("a", 1.2), (" b", -0.5), (" c", 2.0)]),
        ("a:2", [("a", 2.0)]),
        ("a:b:2 AND", [("a:b", 2.0), ("", 1.0)]),
        ("(a:1.2) AND [b:c:3]", [("(a:1.2)", 1.0), (" [b:c:3]", 1.0)]),
        ("a:1e3 AND b:- AND c:.", [("a:1e3", 1.0), (" b:-", 1.0), (" c:.", 1.0)]),
        ("a and b, SAND, ANDY", [("a and b, SAND, ANDY", 1.0)]),
        ("a\nAND\nb:2\n", [("a", 1.0), ("\nb", 2.0)]),
        (f"a:{'9' * 400}", [(f"a:{'9' * 400}", 1.0)]),
    ],
)
def test_parts_and_their_weights(text: str, parts: list[tuple[str, float]]) -> None:
    assert split_and(text) == parts


@given(st.lists(st.sampled_from(["AND", " ", ":", "-", "1", ".5", "a", "\n"])).map("".join) | st.text())
def test_any_text_has_parts_with_finite_weights(text: str) -> None:
    parts = split_and(text)
    assert parts
    assert all(math.isfinite(weight) for _, weight in parts)
