"""Attention weights, read as A1111 reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hnetkit.prompts.attention import parse_attention, write_attention

TEXTS = st.lists(
    st.sampled_from(
        [*"()[]\\: ", "(", ":1.2)", ":-1)", ":0)", "BREAK", " BREAK ", "REAK", "a", "é b", "1.5", "\n", "\u2003"]
    )
).map("".join)


def test_every_row_of_the_original_parser_is_equal(shared: Path) -> None:
    rows = json.loads((shared / "data" / "prompts.json").read_text(encoding="utf-8"))
    assert len(rows) > 90
    for row in rows:
        assert [list(pair) for pair in parse_attention(row["prompt"])] == row["attention"], row["prompt"]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", [("", 1.0)]),
        ("a (b) [c]", [("a ", 1.0), ("b", 1.1), (" ", 1.0), ("c", 1 / 1.1)]),
        ("(a:1.5) (b: -.5 )", [("a", 1.5), (" ", 1.0), ("b", -0.5)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1.0)]),
        (r"a\b", [("ab", 1.0)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.1 * (1 / 1.1)), (" c", 1 / 1.1)]),
        ("a) b] c:1.2)", [("a) b] c:1.2)", 1.0)]),
        ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("aBREAK BREAKb break", [("aBREAK BREAKb break", 1.0)]),
    ],
)
def test_brackets_escapes_and_breaks(text: str, pairs: list[tuple[str, float]]) -> None:
    assert parse_attention(text) == pairs


@pytest.mark.parametrize("number", ["1.2.3", ".", "+", "...", "9" * 400])
def test_a_weight_that_is_no_finite_number_is_text(number: str) -> None:
    assert parse_attention(f"(a:{number})") == [(f"a:{number}", 1.1)]


def test_brackets_deeper_than_a_hundred_carry_no_weight() -> None:
    assert parse_attention("(" * 100 + "a") == parse_attention("(" * 10_000 + "a" + ")" * 10_000)


def test_weights_stay_finite() -> None:
    huge, tiny = "9" * 300, f".{'0' * 300}1"
    for text in (f"((a:{huge}):{huge})", f"((a:{tiny}):{tiny})", f"(((a:{huge}):{huge}):0)"):
        assert all(math.isfinite(weight) for _, weight in parse_attention(text))


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ([("", 1.0)], ""),
        ([("a cat", 1.0)], "a cat"),
        ([("a ", 1.0), ("cat", 1.2)], "a (cat:1.2)"),
        ([("cat", -0.5), (" (x)", 1.0)], r"(cat:-0.5) \(x\)"),
        ([("a", 1.0), ("BREAK", -1.0), ("b", 1.0)], "a BREAK b"),
        ([("a", 1.2), ("BREAK", -1.2), ("b", 1.2)], "(a BREAK b:1.2)"),
        ([("a", 1.0), ("BREAK", -1.0), ("", 1.0), ("BREAK", -1.0), ("b", 1.0)], "a BREAK BREAK b"),
        ([("BREAK", 1.0)], r"B\REAK"),
        ([("a", 1e-7)], "(a:0.0000001)"),
    ],
)
def test_pairs_are_written_plainly(pairs: list[tuple[str, float]], text: str) -> None:
    assert write_attention(pairs) == text
    assert parse_attention(text) == pairs


@given(TEXTS | st.text())
@example("a \\BREAK\\ b")
@example("BREAK BREAK (BREAK:-1)(BREA\\K:-1)")
@example("(\\:1.2)\\(a:0)")
def test_what_is_written_reads_back(text: str) -> None:
    pairs = parse_attention(text)
    written = write_attention(pairs)
    assert parse_attention(written) == pairs
    assert write_attention(parse_attention(written)) == written


def test_real_prompts_read_back(shared: Path) -> None:
    for row in json.loads((shared / "data" / "prompts.json").read_text(encoding="utf-8")):
        pairs = parse_attention(row["prompt"])
        assert parse_attention(write_attention(pairs)) == pairs
