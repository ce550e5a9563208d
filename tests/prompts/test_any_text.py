"""Whatever is written in a prompt: no part of the prompt language raises, hangs, or reads its own writing otherwise."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hnetkit.prompts.attention import parse_attention, write_attention
from hnetkit.prompts.schedule import schedule, split_and
from hnetkit.prompts.tags import split_tags

SIGNS = [
    *"()[]<>\\:|=,. \n",
    "BREAK",
    " AND ",
    "1.2",
    "-1",
    ".5",
    "3",
    "cat",
    "é",
    "<hypernet:",
    "<lora:",
    ":k=",
    ":blocks=",
]
FORMS = ["(cat:1.2)", "[cat:dog:0.5]", "[cat|dog]", "[cat:3]", "[cat::3]", "<hypernet:ink:0.8:end=0.5>", "\\("]
TEXTS = st.lists(st.sampled_from(SIGNS + FORMS), max_size=40).map("".join) | st.text()


def read(prompt: str) -> None:
    split = split_tags(prompt)
    assert split_tags(split.written).tags == split.tags
    pairs = parse_attention(split.text)
    assert parse_attention(write_attention(pairs)) == pairs
    assert split_and(split.text)
    for steps, first_pass in ((20, None), (7, 20)):
        assert schedule(split.text, steps, first_pass)[-1][0] == steps


@given(TEXTS)
def test_any_text_is_a_prompt(prompt: str) -> None:
    read(prompt)


@pytest.mark.long
@seed(20261123)
@settings(max_examples=50_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(TEXTS)
def test_fifty_thousand_texts_are_prompts(prompt: str) -> None:
    read(prompt)


@pytest.mark.parametrize(
    "repeated",
    [
        *("(", "[", "(a", "[a:", "(a:9)", "[a|b]", "[[a|b]", " ", ":", ": ", "\\", "BREAK ", "AND "),
        *("<", "<a:", "<hypernet:", "< lora", "<hypernet:a:x>\n"),
    ],
)
def test_text_made_to_be_slow_is_read_quickly(repeated: str) -> None:
    started = time.process_time()
    read(repeated * (50_000 // len(repeated)))
    assert time.process_time() - started < 10
