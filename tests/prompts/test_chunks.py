"""CLIP's tokens, counted without the library that draws: the same ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit import demo
from hnetkit.errors import ModelNotUsable, NotFound
from hnetkit.generate.loading.tokenizer import TOKENIZERS, read_counting_tokenizer, read_tokenizer
from hnetkit.prompts.chunks import cleaned

WORDS = [
    "a",
    "star",
    "the",
    "'s",
    "'ve",
    "n't",
    "re",
    "ing",
    "123",
    "4",
    ", ",
    "!!",
    "_",
    "\u00e9",
    "\u65e5\u672c",
    "\u00b2",
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of every byte, with merges that lie in each other."""
    folder = tmp_path_factory.mktemp("tokenizers") / "bytes"
    folder.mkdir()
    visible = [chr(byte) for byte in range(256) if chr(byte).isprintable() and not chr(byte).isspace()]
    letters = [*visible, *(chr(256 + number) for number in range(256 - len(visible)))]
    merges = ["s t", "a r</w>", "st ar</w>", "t h", "th e</w>", "i n", "in g</w>", "' s</w>", "! !</w>", "1 2", "a a"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 20}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def library_tokens(folder: Path) -> Any:
    tokenizer = read_tokenizer(folder, TOKENIZERS[0])
    return lambda text: tokenizer(cleaned(text).lower(), truncation=False, add_special_tokens=False).input_ids


@given(st.lists(st.sampled_from([*WORDS, " ", "\n", "\t"])).map("".join) | st.text(st.characters(codec="latin-1")))
def test_every_text_has_the_tokens_that_drawing_reads(folder: Path, library_tokens: Any, text: str) -> None:
    assert read_counting_tokenizer(str(folder)).tokens(text) == library_tokens(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "It's WE'VE, don't!! <|endoftext|> x",
            "e\u0301 \u212b \u0130 \uff21",
            "x\u00b2 \u2160\u2161 1\u00bd a_b",
            "\u3000 a\u00a0b",
        ),
        *("\U0001f600\ufe0f star", "\u0928\u092e\u0938\u094d\u0924\u0947", "aaaaaaa starstar", ""),
    ],
)
def test_odd_texts_have_them_too(folder: Path, library_tokens: Any, text: str) -> None:
    assert read_counting_tokenizer(str(folder)).tokens(text) == library_tokens(text)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\u201ca\u201d \u2018b\u2019 it\u2019s", "\"a\" 'b' it's"),
        ("a\uff0c\uff08b\uff1a1.2\uff09 \uff21 \uff76\uff9e", "a,(b:1.2) A \u30ac"),
        ("\ufb01re \ufb03 \ufb05 \u01c4 \u0149", "fire ffi \u017ft D\u017d 'n"),
        ("a &amp; b &#233; &lt;c&gt; &nothing;", "a & b \xe9 <c> &nothing;"),
        ("a < b &amp; c", "a < b &amp; c"),
        ("a &amp;\nb &amp; < c\nd &amp;", "a &\nb &amp; < c\nd &amp;"),
        ("a\ufeff\u0007b\u3000c e\u0301", "ab c \xe9"),
        ("a \u2014 b\u2026 \xbd \u2122 \U0001f600\ufe0f", "a \u2014 b\u2026 \xbd \u2122 \U0001f600\ufe0f"),
    ],
)
def test_a_text_is_cleaned_as_clip_cleans_it_with_ftfy(text: str, plain: str) -> None:
    """What ftfy 6.3.1 makes of these."""
    assert cleaned(text) == plain


def test_the_demo_model_counts_as_it_draws() -> None:
    mine = read_counting_tokenizer(str(demo.model_folder()), demo.MODEL_NAME)
    its = read_tokenizer(demo.model_folder() / "tokenizer", TOKENIZERS[0])
    text = "a large red circle, (a blue star:1.2) with an outline and Unknown W\u00f6rds"
    assert mine.tokens(text) == its(text.lower(), add_special_tokens=False).input_ids
    assert (mine.name, mine.room) == (demo.MODEL_NAME, its.model_max_length - 2)
    comma = its.convert_tokens_to_ids(",</w>")
    assert mine.comma == (None if comma == its.unk_token_id else comma)


@pytest.mark.parametrize(
    "merges", [["ab a", "a b"], ["a a", "aa aa", "a aa"], ["b a", "a b", "ab ab", "a ba"]], ids=str
)
@pytest.mark.parametrize("text", ["ababx", "abababab", "aaaaaaa", "aabaab", "x" * 40, "ab" * 20])
def test_merges_in_any_order_give_the_tokens_that_drawing_reads(merges: list[str], text: str, tmp_path: Path) -> None:
    tokens = [*"abx", *(f"{letter}</w>" for letter in "abx"), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    tokenizer = read_tokenizer(tmp_path, TOKENIZERS[0])
    expected = tokenizer(text, truncation=False, add_special_tokens=False).input_ids
    assert read_counting_tokenizer(str(tmp_path)).tokens(text) == expected


def test_a_tokenizer_in_one_file_is_the_same(folder: Path, tmp_path: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    whole = {"model": {"vocab": vocabulary, "merges": [merge.split(" ") for merge in merges]}}
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    mine = read_counting_tokenizer(str(tmp_path))
    assert (mine.name, mine.room) == (str(tmp_path), 75)
    assert mine.tokens("stars aaa") == read_counting_tokenizer(str(folder)).tokens("stars aaa")


@pytest.mark.parametrize(
    "odd",
    [
        {"added_tokens": 5},
        {"added_tokens": [5]},
        {"added_tokens": [{"content": "x"}]},
        {"added_tokens": [{"id": "9" * 5000, "content": "x"}]},
        {"added_tokens": [{"id": float("nan"), "content": "x"}]},
        {"model": {"vocab": {"a": 0}, "merges": [5]}},
        {"model": {"vocab": {"a": 0}, "merges": [["a", 5]]}},
    ],
    ids=str,
)
def test_a_tokenizer_that_makes_no_sense_is_refused_in_words(tmp_path: Path, odd: dict[str, Any]) -> None:
    whole = {"model": {"vocab": {"a": 0}, "merges": []}} | odd
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ModelNotUsable, match="no tokenizer of CLIP"):
        read_counting_tokenizer(str(tmp_path))


@pytest.mark.parametrize("number", ["9" * 5000, "\u00b2", "-1"], ids=["long", "not decimal", "negative"])
def test_an_added_token_without_a_number_is_left_out(folder: Path, tmp_path: Path, number: str) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    settings = {"added_tokens_decoder": {number: {"content": "x"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert read_counting_tokenizer(str(tmp_path)).tokens("a star") == read_counting_tokenizer(str(folder)).tokens(
        "a star"
    )


def test_a_model_without_a_tokenizer_is_told_and_a_hostile_one_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotUsable, match="no tokenizer"):
        read_counting_tokenizer(str(tmp_path))
    with pytest.raises(NotFound, match="no tokenizer"):
        read_counting_tokenizer("nobody/nothing")
    (tmp_path / "vocab.json").write_text('{"a": "b"}')
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ModelNotUsable, match="not numbers of tokens"):
        read_counting_tokenizer(str(tmp_path))
