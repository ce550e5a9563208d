"""`AND` between prompts, read as A1111 reads it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.prompts.schedule import as_whole_text, plain_elsewhere, split_and
from hnetkit.prompts.tags import split_tags


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


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a sign, 16:9", ["a sign, 16:9"]),
        ("a star : 2 ", ["a star : 2"]),
        ("a 1:2 AND b 3:4 AND c", ["a 1:2", "b 3:4", "c"]),
        ("a sign, 16:9 <hypernet:ink:0.8>", ["a sign, 16:9"]),
        ("a sign, 16:9<hypernet:ink:0.8><lora:glow:1>", ["a sign, 16:9"]),
        ("16:9, a sign", ["16:9, a sign"]),
        ("", [""]),
    ],
)
def test_a_text_that_ends_like_a_weight_is_written_so_that_it_has_none(prompt: str, parts: list[str]) -> None:
    assert [(text.strip(), weight) for text, weight in split_and(split_tags(as_whole_text(prompt)).text)] == [
        (part, 1.0) for part in parts
    ]


@pytest.mark.parametrize("prompt", ["a sign", "a sign ", "a <hypernet:ink:0.8> sign", "a\nAND  b", "10:30, a clock"])
def test_a_text_that_does_not_stays_as_it_is(prompt: str) -> None:
    assert as_whole_text(prompt) == prompt


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a [b:c:0.5] AND d BREAK e", ("square brackets and AND and BREAK", "square brackets and BREAK")),
        ("a \\[b\\] ANDROID and (c:1.2) <hypernet:ink:0.8>", ()),
    ],
)
def test_what_other_programs_read_as_text_is_found(prompt: str, found: tuple[str, ...]) -> None:
    said = [f"its {kind} has" for kind in ("prompt", "negative prompt")]
    assert list(plain_elsewhere("X", prompt, prompt)) == [
        f"{begins} {signs}, plain text in X and none in A1111" for begins, signs in zip(said, found, strict=False)
    ]
