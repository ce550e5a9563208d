"""NovelAI's pictures: their JSON, and brackets that weigh otherwise than A1111's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.prompts import novelai
from hnetkit.prompts.attention import parse_attention

OLD = {
    "steps": 28,
    "sampler": "k_euler_ancestral",
    "seed": 0,
    "strength": 0.69,
    "noise": 0.667,
    "scale": 11.0,
    "uc": "lowres",
}


def texts(comment: object, **more: str) -> dict[str, str]:
    return {"Software": "NovelAI", "Description": "a {star}", "Comment": json.dumps(comment)} | more


def test_a_picture_of_2022_is_read_with_its_own_size() -> None:
    read = novelai.parse(texts(OLD, Source="Stable Diffusion 81274D13"), (512, 768))
    assert read is not None
    assert (read.prompt, read.negative_prompt) == ("a (star:1.05)", "lowres")
    assert read.parameters == {
        **{"Steps": "28", "Sampler": "Euler a", "CFG scale": "11.0", "Seed": "0", "Size": "512x768"},
        **{"Model": "Stable Diffusion 81274D13", "Clip skip": "2", "ENSD": "31337"},
        **{"strength": "0.69", "noise": "0.667", "Version": "NovelAI"},
    }


def test_a_picture_of_today_says_size_schedule_and_characters() -> None:
    comment = {
        **{"prompt": "unused", "steps": 23, "sampler": "k_dpmpp_2m", "noise_schedule": "karras", "scale": 5, "seed": 7},
        **{
            "width": 832,
            "height": 1216,
            "request_type": "Img2ImgRequest",
            "strength": 0.5,
            "cfg_rescale": 0,
            "sm": True,
        },
        "v4_prompt": {"caption": {"base_caption": "two", "char_captions": [{"char_caption": "a cat"}, 5]}},
        "v4_negative_prompt": {"caption": {"base_caption": "blurry", "char_captions": []}},
    }
    read = novelai.parse(texts(comment), (8, 8))
    assert read is not None
    assert (read.prompt, read.negative_prompt) == ("two, a cat", "blurry")
    assert read.parameters["Size"] == "832x1216"
    assert read.parameters["Schedule type"] == "Karras"
    assert read.parameters["Denoising strength"] == "0.5"
    assert read.parameters["sm"] == "True"
    assert "cfg_rescale" not in read.parameters


@pytest.mark.parametrize(
    ("written", "converted"),
    [
        ("a {star}, [dim], {{bright}}", "a (star:1.05), (dim:0.9524), (bright:1.103)"),
        ("a {large {red}} star", "a (large :1.05)(red:1.103) star"),
        ("star (symbol)", "star \\(symbol\\)"),
        ("{open", "(open:1.05)"),
        ("shut} and ] more", "shut and  more"),
        ("a{ }b", "a b"),
    ],
)
def test_brackets_become_weights(written: str, converted: str) -> None:
    read = novelai.parse(texts({"prompt": written}))
    assert read is not None
    assert read.prompt == converted


def test_the_weights_are_those_that_a_prompt_of_ours_has() -> None:
    read = novelai.parse(texts({"prompt": "a {star} (here) saber \\(fate\\)\\"}))
    assert read is not None
    assert parse_attention(read.prompt) == [("a ", 1.0), ("star", 1.05), (" (here) saber \\(fate\\)\\", 1.0)]


@pytest.mark.parametrize(
    "given",
    [{}, {"Software": "GIMP", "Comment": "{}"}, texts([]), texts(5), texts({}, Comment="{"), {"Software": "NovelAI"}],
)
def test_other_texts_are_not_novelais(given: dict[str, str]) -> None:
    assert novelai.parse(given) is None


_KEYS = st.sampled_from(["caption", "base_caption", "char_captions", "char_caption"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*OLD, "prompt", "v4_prompt", "width", "request_type"]), JSON))
def test_no_settings_make_it_fail(comment: dict[str, object]) -> None:
    read = novelai.parse(texts(comment))
    assert read is not None
    assert all(isinstance(value, str) for value in read.parameters.values())


def test_a_prompt_of_nothing_but_brackets_is_read_quickly() -> None:
    assert novelai.parse(texts({"prompt": "{" * 100_000 + "x"})) is not None


def test_what_a1111_reads_otherwise_is_written_so_that_it_does_not_or_is_said() -> None:
    comment = OLD | {"prompt": "salt AND pepper, <lora:x:1>star", "uc": "a BREAK"}
    read = novelai.parse(texts(comment))
    assert read is not None
    assert (read.prompt, read.negative_prompt) == ("salt and pepper,  star", "a break")
    assert read.warnings == ("<lora:x:1>: NovelAI does not read tags; it is left out",)


def test_no_tag_comes_about_where_another_one_is_left_out() -> None:
    read = novelai.parse(texts(OLD | {"prompt": "a <hyper<lora:b>net:dots:1>"}))
    assert read is not None
    assert read.prompt == "a <hyper net:dots:1>"


@pytest.mark.parametrize(("prompt", "word"), [("1.5::rain, night::, cat", "1.5::words::"), ("cat | dog:2", "|")])
def test_weights_and_mixtures_without_a_word_in_a1111_are_said(prompt: str, word: str) -> None:
    read = novelai.parse(texts(OLD | {"prompt": prompt}))
    assert read is not None
    assert [word in said for said in read.warnings] == [True]


def test_a_number_at_the_end_of_a_prompt_is_no_weight_and_stays_in_the_negative_one() -> None:
    read = novelai.parse(texts({**OLD, "uc": "a clock, 10:30"}, Description="a {sign}, 16:9"))
    assert read is not None
    assert (read.prompt, read.negative_prompt) == ("a (sign:1.05), 16:9:1", "a clock, 10:30")


@pytest.mark.parametrize(("scale", "said"), [(1.0, None), (1, None), (0.0, "0.0"), (0.5, "0.5")])
def test_a_weaker_negative_prompt_is_told(scale: float, said: str | None) -> None:
    read = novelai.parse(texts(OLD | {"uncond_scale": scale}))
    assert read is not None
    assert read.parameters.get("uncond_scale") == said
