"""Tags in prompts, read as A1111 reads them."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import UsageError
from hnetkit.prompts import infotext
from hnetkit.prompts.tags import LoraTag, Tag, plain_number, split_comments, split_tags, without_tags

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


@pytest.mark.parametrize(
    ("tag", "strengths"),
    [
        ("<hypernet:ink:0.8>", (None, None, None, None)),
        ("<hypernet:ink:0.8:k=0.5>", (0.5, None, 0.5, None)),
        ("<hypernet:ink:0.8:v=0>", (None, 0.0, None, 0.0)),
        ("<hypernet:ink:0.8:self=-1>", (-1.0, -1.0, None, None)),
        ("<hypernet:ink:0.8:cross=2:more>", (None, None, 2.0, 2.0)),
        ("<hypernet:ink:0.8:k=0.5:self=0.2>", (0.2, 0.2, 0.5, None)),
        ("<hypernet:ink:0.8:self=0.2:k=0.5>", (0.5, 0.2, 0.5, None)),
        ("<hypernet:ink:0.8:k=0.5:self=0.2:k=0.7>", (0.7, 0.2, 0.7, None)),
    ],
)
def test_a_named_part_replaces_the_strength_and_the_later_one_wins(
    tag: str, strengths: tuple[float | None, ...]
) -> None:
    (found,) = split_tags(tag).tags
    assert found.multiplier == 0.8
    assert (found.self_k, found.self_v, found.cross_k, found.cross_v) == strengths
    assert split_tags(str(found)).tags == (found,)


def test_a_window_and_blocks_are_read_and_written() -> None:
    tag = "<hypernet:ink:0.8:k=0.5:start=0.2:end=0.75:blocks=down,mid,up_blocks.1>"
    (found,) = split_tags(tag).tags
    assert (found.k, found.v, found.self_, found.cross) == (0.5, None, None, None)
    assert (found.start, found.end, found.blocks) == (0.2, 0.75, ("down", "mid", "up_blocks.1"))
    assert str(found) == tag
    assert (
        str(split_tags("<hypernet:ink:.8:end=1:blocks=mid, up:start=0>").tags[0]) == "<hypernet:ink:0.8:blocks=mid,up>"
    )


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("<hypernet:ink:num>", "'num' is not a number"),
        ("<hypernet:ink:>", "'' is not a number"),
        ("<hypernet:ink:nan>", "'nan' is not a number"),
        ("<hypernet:ink:inf>", "'inf' is not a number"),
        ("<hypernet:ink:1,5>", "'1,5' is not a number"),
        ("<hypernet:ink:k=0.5>", "write the strength first, as in <hypernet:ink:1:k=0.5>"),
        ("<hypernet:ink:1:k=much>", "'much' is not a number"),
        ("<hypernet:ink:1:v=inf>", "'inf' is not a number"),
        ("<hypernet:ink:1:start=-0.1>", "start=-0.1 and end=1 are not a window"),
        ("<hypernet:ink:1:start=0.6:end=0.5>", "start=0.6 and end=0.5 are not a window"),
        ("<hypernet:ink:1:end=1.5>", "start=0 and end=1.5 are not a window"),
        ("<hypernet:ink:1:blocks=>", "'' is not a block"),
        ("<hypernet:ink:1:blocks=down,left>", "'left' is not a block"),
        ("<hypernet:ink:1:blocks=upper>", "'upper' is not a block"),
        ("<hypernet::1>", "no name"),
        ("<lora:zelda:much>", "'much' is not a number"),
        ("<lora:te=1>", "no name"),
    ],
)
def test_a_malformed_tag_gives_a_warning_with_its_column_and_no_network(tag: str, reason: str) -> None:
    split = split_tags(f"a cat <hypernet:wash:1> {tag} dog")
    assert [str(found) for found in split.tags] == ["<hypernet:wash:1>"]
    assert split.loras == ()
    assert split.text == "a cat   dog"
    assert split.written == f"a cat <hypernet:wash:1> {tag} dog"
    (warning,) = split.warnings
    assert warning.startswith(f"column 25: {tag}: {reason}")


def test_half_a_tag_stays_in_the_text_and_is_told() -> None:
    prompt = "a < lora:zelda>\n <hypernet> <hypernets are fine <hypernet:ink:1"
    split = split_tags(prompt)
    assert split.text == split.written == prompt
    places = [warning.split(": ")[0] for warning in split.warnings]
    assert places == ["column 3", "line 2, column 2", "line 2, column 33"]


@pytest.mark.parametrize(
    "opening",
    ["&lt;", "&amp;lt;", "&#60;", "&#060;", "&#x3C;", "%3C", "%3c", "%253C", "\uff1c", "\u2039", "\u3008", "\u27e8"],
)
@pytest.mark.parametrize("kind", ["hypernet", "lora", "lyco"])
def test_a_tag_as_pages_and_addresses_write_it_stays_in_the_text_and_is_told(opening: str, kind: str) -> None:
    prompt = f"a star {opening}{kind}:outline:1&gt;"
    split = split_tags(prompt)
    assert (split.text, split.tags, split.loras) == (prompt, (), ())
    (warning,) = split.warnings
    assert warning.startswith(f"column 8: {opening}{kind}:outline:1&gt;: not <hypernet:NAME:STRENGTH>")


def test_each_of_several_escaped_tags_is_told() -> None:
    tags = ["&lt;hypernet:outline:1&gt;", "%3Clora:x:1%3E", "\uff1chypernet:y:1\uff1e", "&#x3c;lyco:z", "&lt;lora:end"]
    warnings = split_tags(" a ".join(tags)).warnings
    assert [warning.partition(": ")[2].partition(": not ")[0] for warning in warnings] == [
        *tags[:3],
        "&#x3c;lyco:z a",
        "&lt;lora:end",
    ]


@pytest.mark.parametrize(
    ("prompt", "drawn", "comments"),
    [
        ("a star", "a star", ()),
        ("a star # <hypernet:ink:1>", "a star ", ("# <hypernet:ink:1>",)),
        ("# all of it", "", ("# all of it",)),
        ("#style\na star\n#one\n#two\nred", "a star\nred", ("#style", "#one", "#two")),
        ("a #ff0000 star, # and # more\n\nb", "a \n\nb", ("#ff0000 star, # and # more",)),
        ("a\n", "a\n", ()),
        ("", "", ()),
    ],
)
def test_a_comment_goes_from_its_mark_to_the_end_of_the_line(
    prompt: str, drawn: str, comments: tuple[str, ...]
) -> None:
    assert split_comments(prompt) == (drawn, comments)


@given(st.lists(st.sampled_from(["#", "\n", " ", "a", "<hypernet:ink:1>"])).map("".join))
def test_what_is_left_has_the_words_and_tags_before_each_mark(prompt: str) -> None:
    drawn, comments = split_comments(prompt)
    assert "#" not in drawn
    assert drawn.split() == [word for line in prompt.split("\n") for word in line.partition("#")[0].split()]
    assert len(comments) == sum("#" in line for line in prompt.split("\n"))


def test_a_named_argument_that_nobody_knows_has_no_effect_but_a_warning() -> None:
    split = split_tags("x <hypernet:ink:0.5:step=3:0.7>")
    assert (split.tags, split.written) == ((Tag("ink", 0.5),), "x <hypernet:ink:0.5>")
    assert split.warnings == tuple(
        f"column 3: <hypernet:ink:0.5:step=3:0.7>: {argument!r} has no effect" for argument in ("step=3", "0.7")
    )


@pytest.mark.parametrize(
    ("tag", "lora"),
    [
        ("<lora:zelda>", LoraTag("zelda", 1.0, 1.0)),
        ("<lora:zelda:0.5>", LoraTag("zelda", 0.5, 0.5)),
        ("<lyco:zelda:0.5:0.7>", LoraTag("zelda", 0.5, 0.7)),
        ("<lora:zelda:0.5:unet=0.2>", LoraTag("zelda", 0.5, 0.2)),
        ("<lora:zelda:te=0.3>", LoraTag("zelda", 0.3, 0.3)),
        ("<lora:unet=0.2:zelda:0.5:te=0>", LoraTag("zelda", 0.0, 0.2)),
    ],
)
def test_loras_are_collected_and_stay_in_what_is_written(tag: str, lora: LoraTag) -> None:
    split = split_tags(f"a {tag} cat")
    assert (split.text, split.written, split.loras) == ("a  cat", f"a {tag} cat", (lora,))
    assert [*split.tags, *split.unknown, *split.warnings] == []


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
    with pytest.raises(UsageError, match="a tag cannot contain"):
        split_tags("x").adding((Tag(name),))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back_from_its_plain_digits(value: float) -> None:
    text = plain_number(value)
    assert float(text) == value
    assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WINDOWS = st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted)
NAMES = st.text(st.characters(exclude_characters=":>", exclude_categories=["Cs", "Cc"]), min_size=1)


@given(
    st.lists(st.tuples(NAMES, NUMBERS), max_size=4),
    st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"])),
)
def test_what_is_stored_splits_into_the_same_parts(tags: list[tuple[str, float]], text: str) -> None:
    once = split_tags(text + "".join(str(Tag(*tag)) for tag in tags))
    again = split_tags(once.written)
    assert again == once
    assert [(tag.name, tag.multiplier) for tag in once.tags] == tags


PARTS = st.dictionaries(st.sampled_from(["k", "v", "self_", "cross"]), NUMBERS)
BLOCKS = st.lists(st.sampled_from(["down", "mid", "up", "mid_block", "up_blocks.1.attentions.0"]), max_size=3)


@given(NAMES, NUMBERS, PARTS, st.permutations(["k", "v", "self", "cross"]), WINDOWS, BLOCKS)
def test_a_tag_of_any_values_reads_back(
    name: str,
    strength: float,
    parts: dict[str, float],
    order: list[str],
    window: list[float],
    blocks: list[str],
) -> None:
    start, end = window
    tag = Tag(name, strength, start=start, end=end, blocks=tuple(blocks), order=tuple(order), **parts)
    (found,) = split_tags(str(tag)).tags
    assert str(found) == str(tag)
    for value in ("self_k", "self_v", "cross_k", "cross_v", "start", "end", "blocks"):
        assert getattr(found, value) == getattr(tag, value)


@given(
    st.lists(st.sampled_from(["<hypernet:", "<lora:", "<", ">", ":", "ink", "0.5", "k=", "end=", "mid", "\n"])).map(
        "".join
    )
)
def test_what_is_stored_of_any_text_has_the_same_tags(prompt: str) -> None:
    once = split_tags(prompt)
    again = split_tags(once.written)
    assert (again.tags, again.loras, again.unknown, again.written) == (
        once.tags,
        once.loras,
        once.unknown,
        once.written,
    )
    assert all(math.isfinite(tag.multiplier) for tag in once.tags)


def test_what_is_no_unicode_is_refused() -> None:
    with pytest.raises(UsageError, match="not valid text"):
        split_tags("a cat \udcff")


def test_places_of_many_warnings_are_counted_once_through_the_prompt() -> None:
    """A stranger's text of a hundred thousand bad tags: counting each from the start would take minutes."""
    prompt = "<hypernet:a:x>\n<hypernet:a:x><hypernet:a:x>\n" * 30_000
    warnings = split_tags(prompt).warnings
    assert [warning.partition(": ")[0] for warning in warnings[:4]] == [
        *("column 1", "line 2, column 1", "line 2, column 15", "line 3, column 1"),
    ]
    assert warnings[-1].startswith("line 60000, column 15: ")


def test_real_prompts_and_infotexts_give_their_networks(shared: Path) -> None:
    entries = json.loads((shared / "data" / "infotexts.json").read_text(encoding="utf-8"))
    found = []
    for entry in entries:
        text = entry["text"]
        split = split_tags(infotext.parse(text).prompt if entry["kind"] == "infotext" else text)
        if entry["kind"] == "tag, malformed weight":
            assert split.warnings == (f"column 1: {text}: 'num' is not a number; the tag is left out",)
        else:
            assert split.warnings == ()
        found.append([(tag.name, tag.multiplier) for tag in split.tags])
    assert found == [
        [("yagamitaichi-200000", 1.0)],
        [("yagamitaichi-200000", 0.7)],
        [("yagamitaichi-200000", 0.7)],
        [("helloasuka", 1.0)],
        [("hoge", 1.0)],
        [("waterElemental_10", 0.7)],
        [("anime", 0.5)],
        [],
        [("3v4gr33n-4250", 1.0)],
        [("anime", 1.0)],
        [("sxz-bloom", 0.5)],
        [("v18000Steps", 1.0)],
        [("A1 Extra-600000", 0.15)],
    ]


@pytest.mark.parametrize(
    "tag",
    [
        "<hypernet:ink:1" + ":x=1" * 50_000 + ">",
        "<lora:ink:1:1" + ":x" * 100_000 + ">",
        "<hypernet:ink:" + "x" * 200_000 + ">",
        "<hypernet:" + "x" * 200_000 + ":k=1>",
        "<hypernet:ink:1:blocks=" + "x" * 200_000 + ">",
        "<hypernet:ink:1:k=" + "x" * 200_000 + ">",
    ],
    ids=["arguments", "numbers", "strength", "name", "block", "part"],
)
def test_warnings_grow_no_faster_than_the_prompt(tag: str) -> None:
    warnings = split_tags(tag).warnings
    assert warnings
    assert max(map(len, warnings)) < 700
    assert sum(map(len, warnings)) < 200 * len(tag)


@pytest.mark.parametrize(
    "text",
    [
        "a <hyper<hypernet:ink:1>net:other:1> star",
        "a <lo<lora:ink:1>ra:other:1> star",
        "a <lo<hypernet:ink:1>ra:other:1> star",
        "a <hyper<hypernet:ink:1><hypernet:ink:1>net:other:1> star",
        "a <<hypernet:ink:1>hypernet:other:1> star",
        "a <hypernet<lora:ink:1>:other:1> star",
    ],
)
def test_no_tag_comes_about_where_another_one_is_taken_out(text: str) -> None:
    plain = split_tags(without_tags(text))
    assert (plain.tags, plain.loras, plain.unknown) == ((), (), ())
    tagged = split_tags(text)
    rest = split_tags(tagged.replacing([None] * len(tagged.tags)).written)
    assert rest.tags == ()
    assert rest.loras == tagged.loras


def test_what_is_taken_out_of_a_word_leaves_the_word() -> None:
    tagged = split_tags("castle<hypernet:ink:1>s <hypernet:ink:1>, a < b<hypernet:ink:1>c")
    assert tagged.replacing([None, None, None]).written == "castles , a < bc"


def test_tags_in_tags_take_time_by_their_length_alone() -> None:
    depth = 4000
    text = "<hyper" * depth + "<hypernet:ink:1>" + "net:other:1>" * depth
    begun = time.process_time()
    plain = without_tags(text)
    assert time.process_time() - begun < 1
    assert split_tags(plain).tags == ()
