"""The text that a picture carries: what A1111 writes and reads."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hnetkit.prompts import infotext

REAL = (
    "a portrait, star_\\(symbol\\)\nsecond line\nNegative prompt: blurry, (bad:1.2)\nmore\n"
    "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 42, Size: 768x1024, Model hash: 2700c435, "
    'Hires prompt: "a, b: \\"c\\"", Version: v1.10.0, Hashes: {"model": "2700c435aa", "hypernet:ink": "0123456789"}'
)


def test_a_written_text_is_laid_out_as_a1111_does() -> None:
    text = infotext.write(
        "a cat <hypernet:ink:0.5>",
        "blurry",
        {"Steps": 20, "Sampler": "Euler a", "CFG scale": 7, "Skipped": None, "Note": "a, b"},
        {"model": "0123456789", "hypernet:ink": "abcdef0123"},
    )
    assert text == (
        "a cat <hypernet:ink:0.5>\nNegative prompt: blurry\n"
        'Steps: 20, Sampler: Euler a, CFG scale: 7, Note: "a, b", '
        'Hashes: {"model": "0123456789", "hypernet:ink": "abcdef0123"}'
    )


def test_the_sites_find_the_hashes() -> None:
    """What they search for, in the words of their own patterns."""
    text = infotext.write("a", "", {"Steps": 1}, {"model": "0123456789", "hypernet:ink": "abcdef0123"})
    found = re.search(r", Hashes:\s*({[^}]+})", text)
    assert found is not None
    assert json.loads(found[1]) == {"model": "0123456789", "hypernet:ink": "abcdef0123"}


def test_a_real_text_of_several_lines_comes_apart() -> None:
    read = infotext.parse(REAL)
    assert read.prompt == "a portrait, star_\\(symbol\\)\nsecond line"
    assert read.negative_prompt == "blurry, (bad:1.2)\nmore"
    assert read.parameters["Sampler"] == "DPM++ 2M Karras"
    assert read.parameters["Size"] == "768x1024"
    assert read.parameters["Hires prompt"] == 'a, b: "c"'
    assert read.parameters["Version"] == "v1.10.0"
    assert read.hashes == {"model": "2700c435aa", "hypernet:ink": "0123456789"}


def test_the_keys_of_2022_become_a_tag(shared: Path) -> None:
    entries = json.loads((shared / "data" / "infotexts.json").read_text(encoding="utf-8"))
    read = [infotext.parse(entry["text"]) for entry in entries if entry["kind"] == "infotext"]
    assert [re.findall(r"<.*>$", text.prompt) for text in read] == [
        ["<hypernet:yagamitaichi-200000:1.0>"],
        ["<hypernet:yagamitaichi-200000:0.7>"],
        ["<hypernet:yagamitaichi-200000:0.7>"],
        ["<hypernet:helloasuka:1.0>"],
    ]
    assert [text.parameters["Seed"] for text in read] == ["19990801", "3595266551", "4240373175", "4099472692"]
    assert read[3].prompt == "girl eating hamburger<hypernet:helloasuka:1.0>"


def test_real_prompts_without_parameters_stay_whole(shared: Path) -> None:
    entries = json.loads((shared / "data" / "infotexts.json").read_text(encoding="utf-8"))
    for text in (entry["text"] for entry in entries if entry["kind"] != "infotext"):
        # with three weights and more, a lone prompt looks like parameters, to A1111 as well
        expected = "" if text.count(":0.") > 2 else text
        assert infotext.parse(text).prompt == expected


def test_a_last_line_with_two_parameters_is_still_prompt() -> None:
    assert infotext.parse("a cat\nSteps: 20, Seed: 1").prompt == "a cat\nSteps: 20, Seed: 1"
    assert infotext.parse("a cat\nSteps: 20, Seed: 1, Size: 8x8").prompt == "a cat"


@pytest.mark.parametrize("broken", ['Hashes: {"a": "b"', "Hashes: {]}", "Hashes: 5", 'Hashes: ["a"]', "Hashes: {}"])
def test_broken_hashes_are_no_hashes(broken: str) -> None:
    assert infotext.parse(f"a\nSteps: 1, Seed: 2, Size: 8x8, {broken}").hashes == {}


def test_text_made_to_be_slow_is_read_quickly() -> None:
    started = time.monotonic()
    for text in ("a " * 50_000, " " * 100_000 + "a", 'ab: "\\' * 30_000, "[" * 100_000, "Hashes: {" * 20_000):
        infotext.parse(f"x\nSteps: 1, Seed: 2, Size: 3, {text}")
    assert time.monotonic() - started < 5


def as_lines(text: str) -> str:
    """What is left of a prompt: lines are trimmed, and empty ones at its beginning are lost."""
    return "\n".join(line.strip() for line in text.split("\n")).lstrip("\n")


def is_prompt(text: str) -> bool:
    return not any(line.strip().startswith("Negative prompt:") for line in text.split("\n"))


PROMPTS = st.text().filter(is_prompt)
KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9 /-]{1,20}", fullmatch=True).filter(
    lambda key: key not in ("Hypernet", "Hashes", "Steps", "Seed", "Size")
)


@given(PROMPTS, PROMPTS, st.dictionaries(KEYS, st.text()), st.dictionaries(st.text(), st.text()))
@example("", "", {}, {})
@example("a", "", {"Note": '"quoted"'}, {"hypernet:a, Seed: 3}": "0"})
@example("a\n\nb", " ", {"Note": "", "Other": " x "}, {})
def test_what_is_written_reads_back(
    prompt: str, negative: str, parameters: dict[str, str], hashes: dict[str, str]
) -> None:
    given = {"Steps": "20", "Seed": "1", "Size": "512x512", **parameters}
    read = infotext.parse(infotext.write(prompt, negative, given, hashes))
    assert read.prompt == as_lines(prompt)
    assert read.negative_prompt == as_lines(negative)
    assert read.hashes == hashes
    assert {key: value for key, value in read.parameters.items() if key != "Hashes"} == given


@given(st.text(st.sampled_from('abSteps: ,"\\{}\n1<>:x')) | st.text())
def test_any_text_is_an_infotext(text: str) -> None:
    read = infotext.parse(text)
    assert isinstance(read.hashes, dict)
    assert isinstance(read.prompt, str)
