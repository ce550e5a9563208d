"""Strangers' text on its way out: nothing that a terminal obeys or nobody sees, and all that people write with."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.text import exact, from_cell, normal_form, printable, size_text, to_cell, without_markup

HAZARDS = st.sampled_from(
    "'=+-@\\u005c1b\x1b\x07\x7f\x9b\t\r\n \u202e\u2066\u200e\u200d\u200c\u2028\ufeff\ufe0f\udce9猫❤\uff1d"
)
TEXTS = st.text(HAZARDS | st.characters(), max_size=40)


def test_no_character_that_a_terminal_obeys_or_that_turns_a_line_is_printable() -> None:
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    for sign in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(sign) in kinds:
            assert printable(f"a{sign}b").isascii()
            assert exact(f"a{sign}b").isascii()


@pytest.mark.parametrize("sign", [*"\u034f\u115f\u1160\u17b4\u180b\u2800\u3164\uffa0", "\ufe0f", "\U000e0100"])
def test_what_is_not_seen_at_all_is_escaped(sign: str) -> None:
    assert printable(f"in{sign}k").isascii()


@pytest.mark.parametrize(
    "name",
    ["👩‍👩‍👧", "❤️‍🔥", "1️⃣", "نمی‌خواهم", "नमस्‍ते", "葛󠄀城", "猫\u3000犬", "Ångström — ½ “ink”", "水彩・透明", "C:\\ink"],
)
def test_names_of_every_script_stay_as_they_are(name: str) -> None:
    assert printable(name) == exact(name) == name


@pytest.mark.parametrize(
    "hidden", ["ink\u200d", "in\u200ck", "猫\u200d\u200d犬", "猫\u200c", "ink\ufe0f", "猫\ufe00\ufe01", "\u200d猫"]
)
def test_joiners_and_selectors_that_join_nothing_are_escaped(hidden: str) -> None:
    assert printable(hidden) != hidden


@given(TEXTS)
def test_making_a_text_safe_twice_changes_nothing_more(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    assert exact(exact(text)) == exact(text)
    assert "\n" not in printable(text)


@given(TEXTS)
def test_json_reads_back_exactly(text: str) -> None:
    for ascii_only in (False, True):
        written = exact(json.dumps(text, ensure_ascii=False), ascii_only=ascii_only)
        assert json.loads(written.encode("ascii" if ascii_only else "utf-8")) == text


@given(TEXTS)
def test_a_cell_reads_back_exactly_on_one_line_and_is_no_formula(text: str) -> None:
    cell = to_cell(text)
    assert from_cell(cell) == text
    assert printable(cell) == cell
    assert cell.strip()[:1] not in set("=+-@\uff1d\uff0b\uff0d\uff20")


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1girl", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "\uff20x", " =1", "'=1", "-2.5"]
)
def test_what_a_spreadsheet_would_compute_has_an_apostrophe_before_it(text: str) -> None:
    assert to_cell(text).startswith("'")
    assert from_cell(to_cell(text)) == text


@pytest.mark.parametrize("text", ["", "1girl, -2", "'tis", "a=b", r"a \(b\)", r"C:\users\ink", "猫　犬"])
def test_a_plain_cell_is_written_as_it_is(text: str) -> None:
    assert to_cell(text) == text


@pytest.mark.parametrize("text", ["x;=cmd|'/C calc'!A0;y", ";=1", "a; +1", "a;;@SUM(A1)", "\uff1b;\uff1d1"])
def test_nothing_is_a_formula_where_a_spreadsheet_divides_at_semicolons(text: str) -> None:
    cell = to_cell(text)
    assert from_cell(cell) == text
    assert not any(part.strip()[:1] in {*"=+-@", "\uff1d"} for part in cell.split(";") if part.strip())


def test_semicolons_between_words_stay() -> None:
    assert to_cell("ink; wash;-") == "ink; wash;\\u002d"
    assert to_cell("a;b; c=d") == "a;b; c=d"


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0.0 kB"), (950, "0.9 kB"), (1_500_000, "1.5 MB"), (83_000_000, "83.0 MB"), (4.2e9, "4.2 GB")],
)
def test_sizes_are_shown_in_powers_of_ten(size: int, shown: str) -> None:
    assert size_text(size) == shown


@pytest.mark.parametrize("digits", ["9" * 5000, "x" + "f" * 5000, "X110000000", "1114112000"])
def test_a_reference_to_no_sign_is_a_space(digits: str) -> None:
    """Python refuses to read a number of more than 4,300 digits."""
    assert without_markup(f"<p>a &amp; &#{digits}; b &#{digits}") == "a & b"


@given(st.text(st.characters() | st.sampled_from("a가\u0301\u0316\u0344\u0f73\u0f75\u05b0\u1161\ufb1d"), max_size=60))
def test_a_long_text_has_the_normal_forms_of_unicode(text: str) -> None:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert normal_form(form, text * 60) == unicodedata.normalize(form, text * 60)
