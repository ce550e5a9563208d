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
        assert infotext.parse(text) == (text, "", {}, ())


def test_every_real_text_gives_its_hypernetworks_and_strengths(shared: Path) -> None:
    entries = json.loads((shared / "data" / "infotexts.json").read_text(encoding="utf-8"))
    found = [infotext.hypernetworks_of(infotext.parse(entry["text"])) for entry in entries]
    assert [[(one.name, one.strength) for one in mentions.networks] for mentions in found] == [
        [("yagamitaichi-200000", 1.0)],
        [("yagamitaichi-200000", 0.7)],
        [("yagamitaichi-200000", 0.7)],
        [("helloasuka", 1.0)],
        [("hoge", 1.0)],
        [("waterElemental_10", 0.7)],
        [("anime", 0.5)],
        [],  # <hypernet:...:num>
        [("3v4gr33n-4250", 1.0)],
        [("anime", 1.0)],
        [("sxz-bloom", 0.5)],
        [("v18000Steps", 1.0)],
        [("A1 Extra-600000", 0.15)],
    ]
    warned = [entry["text"] for entry, mentions in zip(entries, found, strict=True) if mentions.warnings]
    assert warned == ["<hypernet:Toru8pWavenChibi_wavenchibiV10b:num>"]


SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7"


def networks(text: str) -> list[infotext.Mention]:
    found = infotext.hypernetworks_of(infotext.parse(text))
    assert not found.warnings
    return list(found.networks)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Hypernet: ink", ("ink", 1.0, None)),
        ("Hypernet: ink, Hypernet strength: 0.7", ("ink", 0.7, None)),
        ("Hypernet: ink, Hypernetwork strength: 0.7", ("ink", 0.7, None)),
        ("Hypernet: ink, Hypernet hash: 1A2B3C4D", ("ink", 1.0, "1a2b3c4d")),
        ("Hypernet: ink, Hypernet hash: 0123456789, Hypernet strength: 0.5", ("ink", 0.5, "0123456789")),
        ("Hypernet: ink(1a2b3c4d)", ("ink", 1.0, "1a2b3c4d")),
        ("Hypernet: ink (v2)", ("ink (v2)", 1.0, None)),
        ("Hypernet: ink, Hypernet hash: e3b0c442", ("ink", 1.0, None)),
        ('Hypernet: ink, Hashes: {"hypernet:ink": "0123456789"}', ("ink", 1.0, "0123456789")),
    ],
)
def test_each_form_of_the_selected_network_is_read(written: str, expected: tuple[str, float, str | None]) -> None:
    assert networks(f"a cat\n{SETTINGS}, {written}") == [expected]


def test_the_selected_network_comes_after_those_of_the_tags() -> None:
    text = f"<hypernet:b:0.5> a cat <hypernet:a:2>\nNegative prompt: x\n{SETTINGS}, Hypernet: ink, Hypernet strength: 0"
    assert [(one.name, one.strength) for one in networks(text)] == [("b", 0.5), ("a", 2.0), ("ink", 0.0)]


@pytest.mark.parametrize(
    "lists",
    [
        'Hypernetworks: "ink, wash(1a2b3c4d)", Hypernetworks Strengths: "0.5, 1.2"',
        "Hypernetworks: ink, wash(1a2b3c4d), Hypernetworks Strengths: 0.5, 1.2",
    ],
)
def test_the_lists_of_an_extension_are_read_in_their_order(lists: str) -> None:
    text = f"a cat\n{SETTINGS}, {lists}, Version: 1"
    assert networks(text) == [("ink", 0.5, None), ("wash", 1.2, "1a2b3c4d")]
    assert infotext.parse(text).parameters["Version"] == "1"


def test_a_list_without_strengths_is_at_full_strength() -> None:
    assert networks(f"a\n{SETTINGS}, Hypernetworks: ink") == [("ink", 1.0, None)]


def test_tags_get_their_hashes() -> None:
    text = (
        f"<hypernet:ink:0.5> <hypernet:wash(1a2b3c4d):1> <hypernet:dots:1>\n"
        f'{SETTINGS}, Hashes: {{"hypernet:ink": "0123456789", "hypernet:dots": "ABCDEF0123"}}'
    )
    assert networks(text) == [("ink", 0.5, "0123456789"), ("wash", 1.0, "1a2b3c4d"), ("dots", 1.0, "abcdef0123")]


def test_the_hash_fields_before_hashes_are_read_and_give_way_to_it() -> None:
    older = 'Lora hashes: "glow: aaaaaaaaaa, sky: bbbbbbbbbb", TI hashes: "bad: cccccccccc"'
    read = infotext.parse(f'a\n{SETTINGS}, {older}, Hashes: {{"lora:sky": "dddddddddd"}}')
    assert read.hashes == {"lora:glow": "aaaaaaaaaa", "lora:sky": "dddddddddd", "embed:bad": "cccccccccc"}


@pytest.mark.parametrize(
    ("written", "about"),
    [
        ("Hypernet: ink, Hypernet strength: strong", "strength 'strong' is not a number"),
        ("Hypernet: ink, Hypernet strength: nan", "not a number"),
        ("Hypernet: ink, Hypernet hash: what", "'what' is not a hash"),
    ],
)
def test_what_is_malformed_is_told_and_the_network_kept(written: str, about: str) -> None:
    read = infotext.parse(f"a\n{SETTINGS}, {written}")
    found = infotext.hypernetworks_of(read)
    assert found.networks == (("ink", 1.0, None),)
    assert about in found.warnings[0]
    assert read.prompt == "a<hypernet:ink:1.0>"


def test_a_name_that_no_tag_can_hold_is_still_told() -> None:
    read = infotext.parse(f'a\n{SETTINGS}, Hypernet: "in:k>"')
    assert read.prompt == "a"
    assert [one.name for one in infotext.hypernetworks_of(read).networks] == ["in:k>"]


def test_no_network_selected_is_no_network() -> None:
    assert networks(f"a\n{SETTINGS}, Hypernet: None") == []


def test_a_negative_prompt_of_weights_is_no_line_of_parameters() -> None:
    read = infotext.parse("a cat\nNegative prompt: (red:1.2), (blue:1.2), (green:1.2)")
    assert (read.negative_prompt, read.parameters) == ("(red:1.2), (blue:1.2), (green:1.2)", {})


def test_a_last_line_with_two_parameters_is_still_prompt() -> None:
    assert infotext.parse("a cat\nSteps: 20, Seed: 1").prompt == "a cat\nSteps: 20, Seed: 1"
    assert infotext.parse("a cat\nSteps: 20, Seed: 1, Size: 8x8").prompt == "a cat"


@pytest.mark.parametrize("broken", ['Hashes: {"a": "b"', "Hashes: {]}", "Hashes: 5", 'Hashes: ["a"]', "Hashes: {}"])
def test_broken_hashes_are_no_hashes(broken: str) -> None:
    assert infotext.parse(f"a\nSteps: 1, Seed: 2, Size: 8x8, {broken}").hashes == {}


def test_text_made_to_be_slow_is_read_quickly() -> None:
    started = time.process_time()
    lines = (
        "Steps: 1, a\n" * 20_000,
        "ab: a\n" * 30_000,
        "Version: a,\n" * 20_000,
        'ab: "\n' * 30_000,
        "a | " * 50_000,
    )
    for text in (*lines, "a " * 50_000, " " * 100_000, 'ab: "\\' * 30_000, "[" * 100_000, "Hashes: {" * 20_000):
        infotext.parse(f"x\nSteps: 1, Seed: 2, Size: 3, {text}")
    assert time.process_time() - started < 5


def as_lines(text: str) -> str:
    """What is left of a prompt: lines are trimmed, and empty ones at its ends are lost."""
    return "\n".join(line.strip() for line in text.split("\n")).strip()


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


WORDS = st.sampled_from(
    [
        *("Steps: 20, ", "Seed: 1, ", "Size: 8x8", "Negative prompt:", "\n", "Hypernet: ", "Hypernet strength: ", ", "),
        *("Hypernet hash: ", "Hypernetworks: ", "Hypernetworks Strengths: ", 'Hashes: {"hypernet:ink": "01234567"}'),
        *(
            "<hypernet:",
            "ink",
            ":0.5>",
            "(1a2b3c4d)",
            '"',
            "\\",
            "{",
            "}",
            " ",
            ":",
            ">",
            "nan",
            "\ud800",
            "\r",
            "\x0b",
        ),
    ]
)
TEXTS = st.text(st.sampled_from('abSteps: ,"\\{}\n1<>:x')) | st.text() | st.lists(WORDS).map("".join)


@given(TEXTS)
def test_any_text_is_an_infotext(text: str) -> None:
    read = infotext.parse(text)
    assert isinstance(read.hashes, dict)
    for network in infotext.hypernetworks_of(read).networks:
        assert network.name
        assert network.strength - network.strength == 0  # finite
        assert network.hash is None or re.fullmatch("[0-9a-f]{8,64}", network.hash)


@given(TEXTS)
@example("a\n\nNegative prompt:")
@example("Negative prompt: Negative prompt: x\nNegative prompt: Negative prompt: y")
@example(f"a\n{SETTINGS}, Hypernet: ink, Hypernet strength: 0.7")
@example("a, (b: c\n  A1: 1, B1: 2, C1: 3")
def test_what_was_read_is_written_and_read_again_as_it_was(text: str) -> None:
    read = infotext.parse(text)._replace(warnings=())
    again = infotext.parse(infotext.write(read.prompt, read.negative_prompt, read.parameters))
    assert again == read
    assert infotext.hypernetworks_of(again) == infotext.hypernetworks_of(read)


LINES = f"a large star\nNegative prompt: blurry\n{SETTINGS}, Seed: 3"


@pytest.mark.parametrize(
    ("text", "more"),
    [
        (LINES, {}),
        (f"{LINES}\nTemplate: a {{large|small}} star", {"Template": "a {large|small} star"}),
        (
            f"{LINES}\nTemplate:a (red:1.2), (blue:1.2), (green:1.2)\nstar\nNegative Template:blurry",
            {"Template": "a (red:1.2), (blue:1.2), (green:1.2)\nstar", "Negative Template": "blurry"},
        ),
        (
            f'{LINES}, Wildcard prompt: "a, large\nstar", Version: 1',
            {"Wildcard prompt": "a, large\nstar", "Version": "1"},
        ),
        (LINES.replace(", ", ",\n"), {}),
        (LINES.replace(", ", "\n"), {}),
        (LINES.replace("\n", "\r\n") + "\r\n", {}),
        (f"{LINES}\n\nUsed embeddings: soft [abcd]", {"Used embeddings": "soft [abcd]"}),
        (
            f"{LINES}\nTime taken: 3.5s, Torch active/reserved: 1/2 MiB",
            {"Time taken": "3.5s", "Torch active/reserved": "1/2 MiB"},
        ),
        (
            LINES.replace("Steps", "Version: aa62f6d, Pipeline: Original,\nSteps"),
            {"Version": "aa62f6d", "Pipeline": "Original"},
        ),
        (LINES.replace(", ", " | "), {}),
        (f"a large star\n{SETTINGS}, Seed: 3\nNegative prompt: blurry", {}),
    ],
    ids=[
        *("alone", "a template", "templates with weights and lines", "a value over lines", "a line for each pair"),
        *("lines without commas", "Windows' lines", "embeddings behind", "the time behind", "SD.Next's lines"),
        *("SD.Next's separators", "the negative prompt behind"),
    ],
)
def test_settings_are_found_wherever_their_line_is(text: str, more: dict[str, str]) -> None:
    read = infotext.parse(text)
    given = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "3"}
    assert read == ("a large star", "blurry", given | more, ())


def test_text_behind_the_settings_is_neither_a_setting_nor_a_prompt_and_is_said() -> None:
    read = infotext.parse(f"{LINES}\nposted by somebody (loudly: 2), with (love:3), and (care:4)\nagain")
    assert (read.prompt, read.negative_prompt) == ("a large star", "blurry")
    assert set(read.parameters) == {"Steps", "Sampler", "CFG scale", "Seed"}
    assert read.warnings == (
        "text behind the settings is left out: posted by somebody (loudly: 2), with (love:3), and (care:4) again",
    )


def test_of_two_lines_of_settings_the_last_one_counts() -> None:
    assert infotext.parse(f"{SETTINGS}, Seed: 1\na cat\n{SETTINGS}, Seed: 2").parameters["Seed"] == "2"
    read = infotext.parse(f"a cat\n{SETTINGS}, Seed: 2\nSteps: many")
    assert (read.prompt, read.parameters["Seed"]) == ("a cat", "2")


def test_the_steps_of_a_story_are_a_prompt() -> None:
    text = "a staircase\nSteps: 20 of them, (wooden:1.2)\nand a cat"
    assert infotext.parse(text) == (text, "", {}, ())


@pytest.mark.parametrize(
    "text",
    [
        "<hypernet:a:1>" * 15_000 + "\n" + SETTINGS,
        "a cat\n" + SETTINGS + ", Hypernetworks: " + "a, " * 60_000,
        "<hypernet:b:1>" * 60 + "\n" + SETTINGS + ", Hypernetworks: " + "a, " * 60_000,
    ],
    ids=["tags", "list", "both"],
)
def test_of_countless_networks_the_first_are_read_and_that_is_said(text: str) -> None:
    read = infotext.hypernetworks_of(infotext.parse(text))
    assert len(read.networks) == infotext.MOST_MENTIONED
    assert any("hypernetworks are named; only the first 100 are read" in warning for warning in read.warnings)


def test_of_countless_warnings_their_number_is_told() -> None:
    read = infotext.hypernetworks_of(infotext.parse("<hypernet:a:x>" * 15_000 + "\n" + SETTINGS))
    assert len(read.warnings) == 101
    assert read.warnings[-1] == "14,900 more warnings are left out"


@pytest.mark.parametrize(
    "key",
    [
        "Hashes: {",
        'Hashes: {"a": ',
        "Lora hashes: a: b, ",
        "TI hashes: ",
        'aa: "',
        "Hypernetworks: a, ",
        "Hashes: {}, ",
    ],
)
def test_parameters_made_to_be_slow_are_read_quickly(key: str) -> None:
    started = time.process_time()
    infotext.hypernetworks_of(infotext.parse(f"a cat\n{SETTINGS}, " + key * (200_000 // len(key))))
    assert time.process_time() - started < 10


def test_text_between_the_settings_is_said() -> None:
    read = infotext.parse("a star\nSteps: 4, CFG scale: 7,5, Seed: 3, Denoising strength: 0,4")
    assert read.parameters["CFG scale"] == "7"
    assert read.warnings == ("text between the settings is left out: 5, 4; write a decimal comma as a point",)


def test_the_settings_of_two_pictures_in_one_text_are_said() -> None:
    one = "a star\nNegative prompt: fog\nSteps: 4, CFG scale: 7, Seed: 3"
    assert infotext.parse(one).warnings == ()
    (said,) = infotext.parse(f"{one}\n\n{one.replace('3', '4')}").warnings
    assert said.startswith("the text has the settings of several pictures")


def test_names_in_civitais_list_are_no_settings() -> None:
    resources = '[{"type":"checkpoint","modelName":"Turbo, Steps: 8, Seed: 3","x":[1]}]'
    read = infotext.parse(
        f"a star\nSteps: 4, CFG scale: 7, Seed: 5, Civitai resources: {resources}, Civitai metadata: {{}}"
    )
    assert (read.parameters["Seed"], read.parameters["Steps"], read.warnings) == ("5", "4", ())
    assert read.parameters["Civitai resources"] == resources
