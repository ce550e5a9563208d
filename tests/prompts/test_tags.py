"""Tags in prompts, read as A1111 reads them."""

from __future__ import annotations

import contextlib
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import UsageError
from hnetkit.prompts.tags import Tag, has_unread_syntax, plain_number, split_tags

CIVITAI_READS = re.compile(r"<(lora|hypernet):[A-Za-z0-9_.-]+:[0-9.]+>")


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a cat", "a cat", []),
        ("a cat <hypernet:ink:0.5>", "a cat ", [("ink", 0.5)]),
        ("1girl<hypernet:hoge:1.0>, sea", "1girl, sea", [("hoge", 1.0)]),
        ("<hypernet:ink>a<hypernet:wash:-2>", "a", [("ink", 1.0), ("wash", -2.0)]),
        ("<hypernet:ink:0.5:0.9:x=1>", "", [("ink", 0.5)]),
        ("<hypernet: A1 Extra-600000 :0.15>", "", [(" A1 Extra-600000 ", 0.15)]),
        ("<hypernet:ink: 1e-1 >", "", [("ink", 0.1)]),
        ("<hypernet:ink><hypernet:ink:2>", "", [("ink", 1.0), ("ink", 2.0)]),
        ("[<hypernet:a:1>:0.5]", "[:0.5]", [("a", 1.0)]),
        ("a < b > c <hypernet> <:a>", "a < b > c <hypernet> <:a>", []),
    ],
)
def test_tags_come_out_in_order_and_the_text_stays(prompt: str, text: str, tags: list[tuple[str, float]]) -> None:
    split = split_tags(prompt)
    assert split.text == text
    assert [(tag.name, tag.multiplier) for tag in split.tags] == tags


@pytest.mark.parametrize("multiplier", ["num", "", "nan", "inf", "1,5", "0.5.1"])
def test_a_multiplier_that_is_no_number_is_an_error_that_names_the_tag(multiplier: str) -> None:
    tag = f"<hypernet:ink:{multiplier}>"
    with pytest.raises(UsageError, match=re.escape(tag)):
        split_tags(f"a cat <hypernet:wash:1> {tag}")


def test_a_lora_is_refused_because_its_picture_would_silently_differ() -> None:
    with pytest.raises(UsageError, match=r"<lora:zelda:0\.5>: only hypernetworks"):
        split_tags("a cat <lora:zelda:0.5>")


def test_other_kinds_of_tags_leave_the_text_and_are_told() -> None:
    split = split_tags("a <wild:cat:1> dog")
    assert (split.text, split.unknown, split.written) == ("a  dog", ("<wild:cat:1>",), "a <wild:cat:1> dog")


def test_the_stored_prompt_spells_every_multiplier_out() -> None:
    split = split_tags("x <hypernet:ink> <hypernet:wash:.5:more> <hypernet:dots:1e-3>")
    assert split.written == "x <hypernet:ink:1> <hypernet:wash:0.5> <hypernet:dots:0.001>"
    assert len(CIVITAI_READS.findall(split.written)) == 3


def test_added_networks_follow_those_of_the_prompt() -> None:
    split = split_tags("x <hypernet:ink:0.5>").adding((Tag("wash", 0.25), Tag("dots")))
    assert [tag.name for tag in split.tags] == ["ink", "wash", "dots"]
    assert split.written == "x <hypernet:ink:0.5> <hypernet:wash:0.25> <hypernet:dots:1>"
    assert split.text == "x "
    assert split_tags("x").adding(()).written == "x"


@pytest.mark.parametrize("name", ["a:b", "a>b", "a\nb"])
def test_a_name_that_no_tag_can_hold_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="a tag cannot hold"):
        split_tags("x").adding((Tag(name),))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back_from_its_plain_digits(value: float) -> None:
    text = plain_number(value)
    assert float(text) == value
    assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text)


NAMES = st.text(st.characters(exclude_characters=":>", exclude_categories=["Cs", "Cc"]), min_size=1)


@given(
    st.lists(st.tuples(NAMES, st.floats(allow_nan=False, allow_infinity=False)), max_size=4),
    st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"])),
)
def test_what_is_stored_splits_into_the_same_parts(tags: list[tuple[str, float]], text: str) -> None:
    once = split_tags(text + "".join(str(Tag(*tag)) for tag in tags))
    again = split_tags(once.written)
    assert again == once
    assert [(tag.name, tag.multiplier) for tag in once.tags] == tags


@given(st.text(st.sampled_from("<>:hypernetlora ab0.5-e\n")))
def test_any_text_splits_or_is_refused_in_one_line(prompt: str) -> None:
    with contextlib.suppress(UsageError):
        split = split_tags(prompt)
        assert all(math.isfinite(tag.multiplier) for tag in split.tags)
        assert not re.search(r"<\w+:[^>]+>", split.text) or "<" in prompt.replace(split.text, "")


@pytest.mark.parametrize("text", ["(cat:1.2)", "[cat]", "a AND b", "a BREAK b", r"star_\(symbol\)"])
def test_syntax_that_is_not_read_is_noticed(text: str) -> None:
    assert has_unread_syntax(text)


@pytest.mark.parametrize("text", ["a red circle, :d", "SAND and BREAKER", "<3"])
def test_plain_words_are_no_syntax(text: str) -> None:
    assert not has_unread_syntax(text)


def test_real_tags_split(shared: Path) -> None:
    entries = json.loads((shared / "data" / "infotexts.json").read_text(encoding="utf-8"))
    for entry in entries:
        if entry["kind"] == "tag, malformed weight":
            with pytest.raises(UsageError):
                split_tags(entry["text"])
        elif "<lora:" in entry["text"]:
            with pytest.raises(UsageError, match="lora"):
                split_tags(entry["text"])
        elif entry["kind"] != "infotext":
            assert split_tags(entry["text"]).tags, entry
