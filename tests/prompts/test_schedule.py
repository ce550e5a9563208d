"""Prompt scheduling, read as A1111 reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import UsageError
from hnetkit.prompts.schedule import pieces_drawn, schedule

TEXTS = st.lists(st.sampled_from([*"()[]\\:|  ", "3", ".5", "-1", "1e400", "a", "é b", "\n", "[a:b:3]", "[a|b]"])).map(
    "".join
)


@pytest.mark.parametrize(
    ("key", "steps", "first_pass"),
    [("schedule_10", 10, None), ("schedule_20", 20, None), ("schedule_hires_10_10", 10, 10)],
)
def test_every_row_of_the_original_parser_is_equal(shared: Path, key: str, steps: int, first_pass: int | None) -> None:
    for row in json.loads((shared / "data" / "prompts.json").read_text(encoding="utf-8")):
        assert [list(pair) for pair in schedule(row["prompt"], steps, first_pass)] == row[key], row["prompt"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [(4, "")]),
        ("[a:b:2]", [(2, "a"), (4, "b")]),
        ("[a:2]", [(2, ""), (4, "a")]),
        ("[a::2]", [(2, "a"), (4, "")]),
        ("[a:b:.5]", [(2, "a"), (4, "b")]),
        ("[a:b: +.5 ]", [(2, "a"), (4, "b")]),
        ("[a:b:5e-1]", [(4, "b")]),
        ("[a:b:-1]", [(4, "b")]),
        ("[a:b:9]", [(4, "a")]),
        ("[a:b:1e999]", [(4, "a")]),
        ("[a|b|]", [(1, "a"), (2, "b"), (3, ""), (4, "a")]),
        ("[|a]", [(1, ""), (2, "a"), (3, ""), (4, "a")]),
        ("(x [a:b:2]:1.2)", [(2, "(x a:1.2)"), (4, "(x b:1.2)")]),
        (r"[a\:b:c\]:2]", [(2, r"a\:b"), (4, r"c\]")]),
    ],
)
def test_every_form(text: str, expected: list[tuple[int, str]]) -> None:
    assert schedule(text, 4) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("[a]", "[a", "a]", "(a", "[a:b]", "[a:b:c]", "[a:b:c:3]", "[:]", "[a:b:3)", "[a:[b:c]:3]", "[(a:b:c):d:2]"),
        *("a|b", "(a|b)", "[a|b", "[a|b:3]", "[a:b|c:3]", "[(a|b)|c]", "a\\", "a\\\nb"),
    ],
)
def test_what_fits_no_form_is_text(text: str) -> None:
    assert schedule(text, 10) == [(10, text)]


@pytest.mark.parametrize("literal", ["a|b", "(a|b)", "a\\"])
def test_a_bar_or_a_backslash_out_of_place_makes_the_whole_prompt_text(literal: str) -> None:
    text = f"[x:y:2] {literal}"
    assert schedule(text, 10) == [(10, text)]


def test_a_form_inside_brackets_that_fit_nothing_still_counts() -> None:
    assert schedule("[[a:b:2]:x:y:z] ((c [d:3]", 4) == [
        (2, "[a:x:y:z] ((c "),
        (3, "[b:x:y:z] ((c "),
        (4, "[b:x:y:z] ((c d"),
    ]


def test_in_the_second_pass_whole_numbers_count_both_passes_and_fractions_start_at_one() -> None:
    text = "[a:b:12] [c:d:1.5] [e:f:0.5]"
    assert schedule(text, 10, 10) == [(2, "a c f"), (5, "b c f"), (10, "b d f")]


@pytest.mark.parametrize("opened", ["[", "(", "[a:", "[a|", "([", "[[a:b:3]"])
def test_no_depth_is_too_deep(opened: str) -> None:
    assert schedule(opened * 20_000, 10)
    assert schedule(opened * 20_000 + "1]" * 20_000, 10)


@given(TEXTS | st.text(), st.integers(1, 50), st.none() | st.integers(1, 50))
def test_any_text_covers_all_steps_in_order(text: str, steps: int, first_pass: int | None) -> None:
    ends = [end for end, _ in schedule(text, steps, first_pass)]
    assert ends == sorted(set(ends))
    assert 1 <= ends[0] <= ends[-1] == steps


@given(TEXTS | st.text())
def test_text_without_forms_is_left_alone(text: str) -> None:
    if not any(sign in text for sign in ":|"):
        assert schedule(text, 10) == [(10, text)]


def test_a_prompt_that_takes_turns_without_end_is_refused_before_its_texts_are_made() -> None:
    with pytest.raises(UsageError, match=r"240,000 characters that changes 1,000 times"):
        schedule("[|]" * 80_000, 1000)
    assert len(schedule("[a|b]" * 1_000, 1000)) == 1000


def test_texts_that_come_again_are_kept_once() -> None:
    texts = [text for _, text in schedule("[cat|dog] and more", 1000)]
    assert len(set(map(id, texts))) == 2


@pytest.mark.parametrize(
    ("prompt", "emphasis", "read"),
    [
        ("[my-:0.5]style (b:1.2)", "original", {"my-style ", "style ", "b"}),
        ("[a:my-:1.5]style", "original", {"my-style", "astyle"}),  # in a second pass
        ("[a|my-]style AND c :0.5", "original", {"my-style", "c"}),
        ("a AND b", "original", {"a AND b"}),  # as a negative prompt
        ("(my:1.1)style", "original", {"my", "style"}),
        ("a BREAK b", "original", {"a", "b"}),
        ("(my-[a:style:3])", "none", {"(my-style)"}),
    ],
)
def test_pieces_are_what_is_read_at_any_step(prompt: str, emphasis: str, read: set[str]) -> None:
    pieces = {piece.strip() for piece in pieces_drawn(prompt, emphasis)}
    assert {piece.strip() for piece in read} <= pieces
    assert not {"BREAK", "mystyle", "my-style b"} & pieces
